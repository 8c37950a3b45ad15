/** What a node does with single packets, whatever policies say; and what the oracle itself has to keep to. */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createOracle, type OraclePacket } from "./mod.ts";
import { readManifests } from "./sketch.ts";

const ENDPOINTS = `
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: { name: a, namespace: default, labels: { app: a } }
spec: { node: n1, interfaceName: mxa, ipNetworks: [10.0.0.1/32, "fd00::1/128"] }
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: { name: b, namespace: default, labels: { app: b } }
spec: { node: n1, interfaceName: tap0, ipNetworks: [10.0.0.2/32, "fd00::2/128"] }
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: { name: shut }
spec: { selector: app == 'b', types: [Ingress, Egress] }
`;

function verdict(packet: Partial<OraclePacket>, more = ""): string {
  const oracle = createOracle({ resources: readManifests(`${ENDPOINTS}\n---\n${more}`), node: "n1" });
  const whole = { protocol: 6, source: "10.0.0.1", destination: "10.0.0.9", sourcePort: 4000, destinationPort: 80 };
  const { verdict, why } = oracle.judge({ ...whole, ...packet });
  return `${verdict}: ${why.join(" | ")}`;
}

test("a workload sends from its own addresses only", () => {
  expect(verdict({ inInterface: "mxa" })).toStartWith("allow");
  expect(verdict({ inInterface: "mxa", source: "10.0.0.2" })).toBe(
    "deny: workload default/a sends from an address that is not its own: Deny",
  );
  expect(verdict({ inInterface: "mxa", source: "10.0.0.2", outInterface: "mxa" })).toStartWith("deny");
});

test("a workload to itself never meets policy", () => {
  const own = { inInterface: "tap0", outInterface: "tap0", source: "10.0.0.2", destination: "10.0.0.2" };
  expect(verdict(own)).toBe("allow: workload default/b to itself: never meets policy");
});

test("neighbour discovery and listener messages never meet a workload's policy; they too come from its own link only", () => {
  const from = (source: string, type: number) =>
    verdict({ protocol: 58, source, destination: "ff02::1", icmp: { type, code: 0 }, inInterface: "tap0" });
  for (const type of [130, 133, 136]) {
    for (const source of ["fd00::2", "fe80::1", "::"]) expect(from(source, type)).toStartWith("allow");
    expect(from("fd00::1", type)).toStartWith("deny: workload default/b sends from an address");
  }
  expect(from("fe80::1", 143)).toContain("end of tier default: Deny");
  expect(from("fe80::1", 128)).toStartWith("deny: workload default/b sends from an address");
  const to = { protocol: 58, source: "fe80::9", destination: "fd00::2", outInterface: "tap0", inInterface: "eth0" };
  expect(verdict({ ...to, icmp: { type: 135, code: 0 } })).toStartWith("deny");
  expect(verdict({ ...to, icmp: { type: 137, code: 0 } })).toStartWith("deny");
});

test("a pod's link that belongs to no endpoint drops, also where it is another node's", () => {
  const more = `
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: { name: c, namespace: default }
spec: { node: n2, interfaceName: mxc, ipNetworks: [10.0.0.3/32] }`;
  expect(verdict({ inInterface: "mxc", source: "10.0.0.3" }, more)).toBe(
    "deny: no endpoint has the pod link mxc: Deny",
  );
  expect(verdict({ inInterface: "eth0", outInterface: "mxc", destination: "10.0.0.3" }, more)).toStartWith("deny");
  expect(verdict({ inInterface: "tap9" }, more)).toStartWith("allow");
});

test("of two endpoints with one address a selector finds both", () => {
  const more = `
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: { name: twin, namespace: default, labels: { app: twin } }
spec: { node: n2, interfaceName: mxt, ipNetworks: [10.0.0.1/32] }
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: { name: open }
spec: { order: 1, selector: app == 'b', ingress: [{ action: Allow, source: { selector: app == 'twin' } }] }`;
  const packet = { inInterface: "mxa", outInterface: "tap0", destination: "10.0.0.2" };
  expect(verdict(packet)).toStartWith("deny");
  expect(verdict(packet, more)).toStartWith("allow");
});

test("both API groups of Calico name the same objects, and the later one counts", () => {
  const more = `
apiVersion: crd.projectcalico.org/v1
kind: GlobalNetworkPolicy
metadata: { name: shut }
spec: { selector: app == 'b', types: [Egress] }`;
  const packet = { inInterface: "mxa", outInterface: "tap0", destination: "10.0.0.2" };
  expect(verdict(packet)).toStartWith("deny");
  expect(verdict(packet, more)).toStartWith("allow");
});

test("failsafe ports are the ones given", () => {
  const resources = readManifests(`
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: { name: h }
spec: { node: n1, interfaceName: eth0 }`);
  const failsafe = { inbound: [{ protocol: "tcp", port: 8022 }], outbound: [] };
  const packet = (port: number) => ({
    protocol: 6,
    source: "192.0.2.1",
    destination: "192.0.2.2",
    destinationPort: port,
    inInterface: "eth0",
  });
  const oracle = createOracle({ resources, node: "n1", failsafe });
  expect(oracle.judge(packet(8022)).verdict).toBe("allow");
  expect(oracle.judge(packet(22)).verdict).toBe("deny");
});

test("the transcript names endpoint, tier, policy and rule, and what kept rules from matching", () => {
  const more = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: { name: some }
spec:
  order: 1
  selector: app == 'b'
  ingress:
  - { action: Allow, protocol: UDP }
  - { action: Log }
  - { action: Allow, protocol: TCP, source: { selector: app == 'c' } }`;
  const packet = { inInterface: "mxa", outInterface: "tap0", destination: "10.0.0.2" };
  expect(verdict(packet, more).split(" | ")).toEqual([
    "deny: egress of workload default/a:",
    "  profile kns.default: rule matches: allow",
    "ingress of workload default/b:",
    "  tier default, GlobalNetworkPolicy some: ingress[0] differs in protocol; ingress[1] matches: log; " +
    "ingress[2] differs in source.selector",
    "  tier default, GlobalNetworkPolicy shut: no rules",
    "  end of tier default: Deny",
  ]);
});

test("what cannot be read is told, or refused where it is no policy", () => {
  const bad = (spec: string, kind = "GlobalNetworkPolicy") =>
    readManifests(`{ apiVersion: projectcalico.org/v3, kind: ${kind}, metadata: { name: bad }, spec: ${spec} }`);
  const problems = (spec: string) => createOracle({ resources: bad(spec), node: "n1" }).problems;
  expect(problems("{ preDNAT: true }")).toEqual([
    "GlobalNetworkPolicy bad: spec.applyOnForward: found undefined, wanted true with preDNAT or doNotTrack",
  ]);
  expect(problems("{ ingress: [{ action: Allow, destination: { ports: [80] } }] }")).toEqual([
    "GlobalNetworkPolicy bad: ingress[0].destination.ports: found 80, wanted a protocol with ports beside it",
  ]);
  expect(problems("{ selector: global() }")).toHaveLength(1);
  expect(problems("{ ingress: [{ action: Allow, source: { namespaceSelector: global() || has(a) } }] }")).toHaveLength(
    1,
  );
  expect(() => createOracle({ resources: bad("{ nets: [nonsense] }", "GlobalNetworkSet"), node: "n1" })).toThrow(
    'GlobalNetworkSet bad: spec.nets: found "nonsense", wanted an IPv4 or IPv6 address',
  );
  expect(() => createOracle({ resources: bad("{}", "GlobalNetworkPolice"), node: "n1" })).toThrow("wanted one of");
});

test("the oracle shares no code with what it judges", () => {
  const foreign = readdirSync(import.meta.dir).filter((name) => name.endsWith(".ts")).flatMap((name) =>
    [...readFileSync(join(import.meta.dir, name), "utf8").matchAll(/\bfrom "([^"]+)"|\bimport\("([^"]+)"\)/g)]
      .map((match) => `${name}: ${match[1] ?? match[2]}`)
      .filter((text) => !/: (\.\/[a-z_]+\.ts|yaml|node:[a-z]+|bun:test)$/.test(text))
  );
  expect(foreign).toEqual([]);
});

test("a world of 100 resources answers 1,000 packets in well under a second", () => {
  const policies = Array.from({ length: 60 }, (_, i) => `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: { name: p${i} }
spec:
  order: ${i}
  selector: app in { 'a', 'b', 'x${i}' }
  ingress:
  - { action: Allow, protocol: TCP, source: { selector: role == 'r${i}' }, destination: { ports: [${i + 1}] } }
  - { action: Deny, protocol: UDP, source: { nets: [10.1.${i}.0/24] } }`);
  const workloads = Array.from({ length: 40 }, (_, i) => `
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: { name: w${i}, namespace: default, labels: { role: r${i}, app: ${i % 2 === 0 ? "a" : "b"} } }
spec: { node: n1, interfaceName: mx${i}, ipNetworks: [10.2.0.${i}/32] }`);
  const resources = readManifests([...policies, ...workloads].join("\n---\n"));
  const startedMs = performance.now();
  const oracle = createOracle({ resources, node: "n1" });
  let allowed = 0;
  for (let i = 0; i < 1_000; i++) {
    const [from, to] = [i % 40, (i * 7 + 1) % 40];
    const { verdict } = oracle.judge({
      protocol: 6,
      source: `10.2.0.${from}`,
      destination: `10.2.0.${to}`,
      sourcePort: 4000,
      destinationPort: (i % 60) + 1,
      inInterface: `mx${from}`,
      outInterface: `mx${to}`,
    });
    if (verdict === "allow") allowed++;
  }
  const elapsedMs = performance.now() - startedMs;
  expect(allowed).toBeGreaterThan(0);
  // Some 100 to 250 ms; the bound leaves room for a machine that does other things.
  expect(elapsedMs).toBeLessThan(3_000);
});
