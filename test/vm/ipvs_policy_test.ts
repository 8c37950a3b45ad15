/** Policy of pods and host endpoints holds for what IPVS forwards, though it never meets the FORWARD hook. */
import { expect } from "bun:test";
import type { DesiredState } from "../../src/model/desired.ts";
import {
  list,
  netSet,
  policy,
  rule,
  rules,
  setId,
  state,
  tier,
  workload,
} from "../../src/model/testdata/small_states.ts";
import { openDataplane } from "../../dataplanes/nftables/testdata/open.ts";
import { Conversation } from "../contract/conversation.ts";
import { guestTest } from "./guest.ts";
import { backends, frontend, PLACES, serviceNode, services, SILENCE_MS } from "./service_node.ts";

const port = (first: number, last = first) => [{ first, last }];

const world = (
  lists: Partial<Record<"a" | "b" | "c", Parameters<typeof workload>[3]>>,
  more: Partial<Parameters<typeof state>[0]> = {},
): DesiredState =>
  state({
    workloads: (["a", "b", "c"] as const).map((name) =>
      workload(name, PLACES[name].link, [PLACES[name].v4, PLACES[name].v6], lists[name])
    ),
    sets: [
      netSet("a", PLACES.a.v4, PLACES.a.v6),
      netSet("b", PLACES.b.v4, PLACES.b.v6),
      netSet("c", PLACES.c.v4, PLACES.c.v6),
      netSet("out", PLACES.out.v4, PLACES.out.v6),
    ],
    ...more,
  });

const FRONTENDS = [
  frontend("tcp 10.96.0.2:80", backends(["10.0.0.2:8080"])),
  frontend("tcp 10.96.0.3:80", backends(["10.0.0.3:8080"])),
  frontend("tcp [fd00:96::2]:80", backends(["[fd00::2]:8080"])),
  frontend("udp 10.96.0.2:53", backends(["10.0.0.2:5353"])),
  frontend("tcp :30080", backends(["10.0.0.2:8080"]), { masqueradeOutside: true }),
];

async function policed() {
  const here = await serviceNode();
  const nftables = await openDataplane(here.namespace, { services: false });
  const talk = new Conversation(SILENCE_MS);
  for (const name of ["b", "c"] as const) {
    const { v4, v6 } = PLACES[name];
    talk.serve(name, here.places[name]!, `tcp ${v4}:8080`, `tcp [${v6}]:8080`, `udp ${v4}:5353`);
  }
  return {
    here,
    talk,
    async apply(wanted: DesiredState): Promise<void> {
      const whole = services(FRONTENDS, { state: wanted });
      for (const one of [nftables, here.dataplane]) {
        const report = await one.apply(whole);
        expect([report.converged, ...report.problems]).toEqual([true]);
      }
    },
    /** Lines `a tcp 10.96.0.2:80`, each with what came of it. */
    check(lines: string): void {
      const wanted = lines.trim().split("\n").map((line) => line.trim());
      expect(wanted.map((line) => {
        const [path] = line.split(" = ");
        const [from, ...what] = path!.split(" ");
        return `${path} = ${talk.ask(here.places[from!]!, what.join(" "))}`;
      })).toEqual(wanted);
    },
    async [Symbol.asyncDispose]() {
      talk[Symbol.dispose]();
      await nftables[Symbol.asyncDispose]();
      await here[Symbol.asyncDispose]();
    },
  };
}

guestTest("ingress of the backend is judged by the client that it is, whatever way it came", async () => {
  await using node = await policed();
  const ingress = rules(rule("allow", { from: { sets: [setId("a")] }, to: { ports: port(8080) }, protocol: 6 }));
  await node.apply(world({ b: { ingress } }));
  node.check(`
    a tcp 10.96.0.2:80 = b saw 10.0.0.1
    a tcp [fd00:96::2]:80 = b saw fd00::1
    c tcp 10.96.0.2:80 = silence
    c tcp [fd00:96::2]:80 = silence
    out tcp 10.96.0.2:80 = silence
    out tcp 192.0.2.254:30080 = silence
    a udp 10.96.0.2:53 = silence
    a tcp 10.96.0.3:80 = c saw 10.0.0.1
    out tcp 10.96.0.3:80 = c saw 192.0.2.1
    node tcp 10.96.0.2:80 = b saw 10.0.0.254
    b tcp 10.96.0.2:80 = b saw 10.0.0.254
  `);
});

guestTest("egress of the client is judged by the backend that it gets, not by the service's address", async () => {
  await using node = await policed();
  const egress = rules(rule("allow", { to: { sets: [setId("b")], ports: port(8080) }, protocol: 6 }));
  await node.apply(world({ a: { egress } }));
  node.check(`
    a tcp 10.96.0.2:80 = b saw 10.0.0.1
    a tcp [fd00:96::2]:80 = b saw fd00::1
    a tcp 10.96.0.3:80 = silence
    a udp 10.96.0.2:53 = silence
    a tcp 192.0.2.254:30080 = b saw 10.0.0.1
    c tcp 10.96.0.2:80 = b saw 10.0.0.3
    c udp 10.96.0.2:53 = b saw 10.0.0.3
  `);
});

guestTest("a flow that was let in goes on, and host endpoints judge what goes through them", async () => {
  await using node = await policed();
  await node.apply(world({}));
  const held = node.talk.hold(node.here.places.a!, "10.96.0.2:80");
  expect(held.passes()).toBe(true);
  const fromOut = rules(rule("deny", { from: { sets: [setId("out")] }, to: { sets: [setId("b")] } }), rule("allow"));
  const open = list([], [policy("Profile//open", rule("allow"))]);
  const denied = list([tier("default", "deny", policy("NetworkPolicy/x/none"))]);
  await node.apply(
    world({ b: { ingress: rules(rule("deny", { from: { sets: [setId("a")] } }), rule("allow")) } }, {
      hostEndpoints: [{ id: "uplink", interfaces: ["eth0"], ingress: open, egress: denied, forwardIngress: fromOut }],
    }),
  );
  expect(held.passes()).toBe(true);
  node.check(`
    a tcp 10.96.0.2:80 = silence
    out tcp 10.96.0.2:80 = silence
    out tcp 192.0.2.254:30080 = silence
    out tcp 10.96.0.3:80 = c saw 192.0.2.1
    c tcp 10.96.0.2:80 = b saw 10.0.0.3
  `);
});
