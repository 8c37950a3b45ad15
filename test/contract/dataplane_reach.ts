/** What every dataplane for policy does to real packets between namespaces: the worlds are small, and each line is a connection tried. */
import { expect, test } from "bun:test";
import type { DesiredState } from "../../src/model/desired.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { cidr, netSet, portSet, rule, rules, setId, state, workload } from "../../src/model/testdata/small_states.ts";
import type { Dataplane } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { checkReach, node, PLACES } from "./dataplane_node.ts";

const port = (first: number, last = first) => [{ first, last }];

const pods = (
  parts: { ingress?: ReturnType<typeof rules>; egress?: ReturnType<typeof rules> },
  more: Parameters<typeof state>[0] = {},
): DesiredState =>
  state({
    workloads: [
      workload("a", "mxa", [PLACES.a!.v4, PLACES.a!.v6], { egress: parts.egress }),
      workload("b", "mxb", [PLACES.b!.v4, PLACES.b!.v6], { ingress: parts.ingress }),
    ],
    ...more,
  });

/** `open`: the dataplane, in a namespace that is a node of its own. */
export function dataplaneReach(open: (namespace: NetworkNamespace) => Promise<Dataplane>): void {
  test("runs of allow and deny, ranges, port maps, except nets and named ports decide over real packets", async () => {
    await using here = await node(open);
    checkReach(
      here,
      `
      a > b 80 = yes
      a > b 80 v6 = yes
    `,
    );
    const ingress = rules(
      rule("deny", { protocol: 6, to: { ports: port(85) } }),
      rule("allow", { protocol: 6, from: { sets: [setId("pods")] }, to: { ports: port(80, 90) } }),
      rule("allow", {
        protocol: 6,
        from: { nets: [cidr("192.0.2.0/24")], notNets: [cidr("192.0.2.128/25")] },
        to: { ports: port(1000, 2000) },
      }),
      rule("allow", {
        protocol: 6,
        from: { nets: [cidr("10.0.0.0/8")], notNets: [cidr("10.0.0.0/24")] },
        to: { ports: port(1000, 2000) },
      }),
      rule("allow", { protocol: 6, from: { sets: [setId("pods")] }, to: { ports: port(443) } }),
      rule("allow", { protocol: 6, to: { portSets: [setId("named")] } }),
      rule("deny", { protocol: 6, from: { nets: [cidr("10.0.0.1/32")] }, to: { ports: port(1, 5000) } }),
      rule("allow", { protocol: 6, to: { ports: port(4000, 6000), notPorts: port(4500) } }),
    );
    const sets = [netSet("pods", "10.0.0.1", "fd00::/64"), portSet("named", "10.0.0.2 6 8080", "fd00::2 6 8080")];
    expect((await here.dataplane.apply(pods({ ingress }, { sets }))).problems).toEqual([]);
    checkReach(
      here,
      `
      a > b 80 = yes
      a > b 85 = no
      a > b 90 = yes
      a > b 91 = no
      a > b 443 = yes
      a > b 1500 = no
      a > b 4000 = no
      a > b 5001 = yes
      a > b 4500 = no
      a > b 8080 = yes
      out > b 80 = no
      out > b 1500 = yes
      out > b 4000 = yes
      out > b 4500 = no
      out > b 8080 = yes
      a > b 80 v6 = yes
      a > b 85 v6 = no
      a > b 4000 v6 = yes
      out > b 80 v6 = no
      out > b 8080 v6 = yes
      node > b 9 = yes
      b > a 9 = yes
      b > node 9 = yes
    `,
    );
  });

  test("egress decides towards pods, the outside and the pod's own node, and the node still reaches the pod", async () => {
    await using here = await node(open);
    const egress = rules(
      rule("allow", { protocol: 6, to: { ports: port(53) } }),
      rule("allow", { protocol: 6, to: { nets: [cidr("192.0.2.1/32")], ports: port(443) } }),
    );
    await here.dataplane.apply(pods({ egress }));
    checkReach(
      here,
      `
      a > b 53 = yes
      a > b 54 = no
      a > node 53 = yes
      a > node 54 = no
      a > out 443 = yes
      a > out 80 = no
      a > out 53 v6 = yes
      a > out 443 v6 = no
      node > a 80 = yes
      b > a 80 = yes
    `,
    );
  });

  test("a pod that takes another's address is cut off, and an unknown pod interface is too", async () => {
    await using here = await node(open);
    await here.dataplane.apply(pods({}));
    checkReach(here, "a > b 80 = yes");
    runIn(
      here.places.a!,
      "sh",
      "-c",
      "ip addr del 10.0.0.1/32 dev eth0; ip addr add 10.0.0.77/32 dev eth0; ip route replace default via 10.0.0.254 dev eth0 src 10.0.0.77 onlink",
    );
    runIn(here.node, "ip", "route", "add", "10.0.0.77", "dev", "mxa");
    checkReach(
      here,
      `
      a > b 80 = no
      a > node 80 = no
      a > b 80 v6 = yes
    `,
    );
    await here.dataplane.apply({ ...pods({}), generation: 2, workloads: pods({}).workloads.delete("b") });
    checkReach(
      here,
      `
      out > b 80 = no
      b > out 80 = no
      b > node 80 = no
      out > a 80 v6 = yes
    `,
    );
  });

  test("a host endpoint shuts the node but for failsafe ports, and masquerading hides a pod's address", async () => {
    await using here = await node(open);
    const closed = rules();
    await here.dataplane.apply(pods({}, {
      hostEndpoints: [{ id: "h", interfaces: ["eth0"], ingress: closed, egress: closed }],
      failsafe: { inbound: [{ protocol: 6, port: 22 }], outbound: [{ protocol: 6, port: 53 }] },
      masquerade: { sources: ["10.0.0.0/24"], inside: ["10.0.0.0/24"] },
    }));
    // Without its route back, only an answer to the node's own address comes home.
    runIn(here.places.out!, "sh", "-c", "ip route del default; ip route add 10.0.0.254 dev eth0 2>/dev/null; true");
    checkReach(
      here,
      `
      out > node 22 = yes
      out > node 80 = no
      node > out 53 = yes
      node > out 80 = no
      a > out 80 = yes
      a > b 80 = yes
    `,
    );
  });
}
