import { expect, test } from "bun:test";
import { existsSync, readlinkSync } from "node:fs";
import { parseAddress } from "../model/address.ts";
import { namespacePath } from "../kernel/netns.ts";
import { translatePorts } from "./host_port.ts";
import { Prober, type ProbeResult } from "./prober.ts";
import { Sandbox, type SandboxOptions } from "./sandbox.ts";
import type { Scenario } from "./scenario.ts";
import { parseScenario } from "./scenario_parser.ts";

const OPTIONS: SandboxOptions = { directory: "/nonexistent", self: [], dataplane: "none" };

const WORLD = `
scenario: wiring
world:
  nodes: [ { name: n1, serves: [tcp/22] }, { name: n2, serves: [udp/5] } ]
  hosts:
    - { name: a, address: 172.17.0.5, serves: [tcp/80, sctp/9] }
    - { name: b, address: 10.0.0.5, serves: [udp/80] }
    - { name: c, address: 192.168.2.100, link: eth0, serves: [udp/80] }
    - { name: d, address: "2001:db8::1", serves: [tcp/80], link: tun0, node: n2 }
    - { name: e, address: "2001:db8::2", serves: [tcp/80, sctp/80], link: tun0, node: n2 }
    - { name: f, address: 10.99.0.7, serves: [tcp/80, sctp/80], link: eth0 }
steps:
  - expect: |
      a -> b udp/80 allow
      a -> c udp/80 allow
      c -> a tcp/80 allow
      c -> a sctp/9 allow
      node:n1 -> node:n2 icmp allow
      node:n1 -> node:n2 icmpv6 allow
      node:n2 -> node:n1 tcp/22 allow
      node:n2@tun0 -> node:n1@h0 tcp/22 allow
      node:n1 -> e tcp/80 allow
      d -> e tcp/80 allow
      a -> f sctp/80 allow
      f -> a sctp/9 allow
      c -> f icmp allow
      d -> node:n1@h0 icmpv6 allow
      a -> node:n2@tun0 icmp allow
`;

async function observe(sandbox: Sandbox, scenario: Scenario): Promise<readonly string[]> {
  using prober = new Prober();
  const lines = scenario.steps[0]!.expect;
  const results: ProbeResult[] = [];
  for (const line of lines) results.push(...await prober.run(sandbox.probes(line)));
  return results.filter((result) => !result.holds || result.attempts > 1).map((result) =>
    `${result.probe.from.name} → ${result.probe.target.end.name} ${result.probe.protocol}: ${result.observed} ${result.attempts}`
  );
}

test("nodes, hosts behind links and hosts on the shared segment all reach each other before anything filters", async () => {
  const scenario = parseScenario("wiring.yaml", WORLD);
  await using sandbox = await Sandbox.build(scenario.world, OPTIONS);
  expect(await observe(sandbox, scenario)).toEqual([]);
});

test("the sandbox leaves the machine's own network alone and its namespaces end with it", async () => {
  const own = () => [
    readlinkSync("/proc/thread-self/ns/net"),
    ...[["link"], ["addr"], ["route"], ["-6", "route"]].map((args) =>
      // Lifetimes count down by themselves.
      Bun.spawnSync({ cmd: ["ip", "-o", ...args] }).stdout.toString().replace(
        /(expires|valid_lft|preferred_lft) \S+/g,
        "",
      )
    ),
    Bun.spawnSync({ cmd: ["nft", "list", "tables"] }).stdout.toString(),
  ];
  const before = own();
  let path: string, inode: string;
  {
    await using sandbox = await Sandbox.build(parseScenario("wiring.yaml", WORLD).world, OPTIONS);
    path = namespacePath(sandbox.nodes.get("n1")!.namespace);
    inode = readlinkSync(path);
    expect(inode).toMatch(/^net:/);
    expect(own()).toEqual(before);
  }
  expect(own()).toEqual(before);
  // The descriptor's number may be somebody else's by now.
  expect(existsSync(path) ? readlinkSync(path) : "gone").not.toBe(inode);
});

test("a translated port of a node is answered by what is behind it, from outside and from the node itself", async () => {
  const scenario = parseScenario(
    "t.yaml",
    `
scenario: t
world:
  nodes: [ { name: n1 } ]
  hosts: [ { name: a, address: 172.17.0.5, link: in0 }, { name: b, address: 172.18.0.5, link: in1, serves: [tcp/80] } ]
steps: [ { expect: a -> b tcp/80 allow } ]
`,
  );
  await using sandbox = await Sandbox.build(scenario.world, OPTIONS);
  const to = parseAddress("172.18.0.5");
  translatePorts(sandbox.nodes.get("n1")!.namespace, [{ family: 4, protocol: 6, port: 8080, to, toPort: 80 }]);
  using prober = new Prober();
  const end = sandbox.end({ kind: "host", name: "b" });
  const node = sandbox.nodeAddresses("n1")[0]!;
  const results = await prober.run([
    {
      from: sandbox.end({ kind: "host", name: "a" }),
      source: parseAddress("172.17.0.5"),
      to: node,
      protocol: "tcp",
      port: 8080,
      target: { end, address: to, port: 80 },
      expect: "allow",
    },
    {
      from: sandbox.end({ kind: "node", name: "n1", link: "eth0" }),
      source: node,
      to: node,
      protocol: "tcp",
      port: 8080,
      target: { end, address: to, port: 80 },
      expect: "allow",
    },
  ]);
  expect(results.map((result) => result.observed)).toEqual(["answered", "answered"]);
});
