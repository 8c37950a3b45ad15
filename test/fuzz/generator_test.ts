/** That the generator makes what it is there for: manifests that are accepted, of every kind and with every field, and packets that meet them all. */
import { expect, test } from "bun:test";
import { stringify } from "yaml";
import { Random } from "../../src/calc/testing/random_world.ts";
import { parseManifest } from "../../src/host/resources/manifest.ts";
import { judgePath } from "../../src/model/evaluate.ts";
import type { Resource } from "../../src/model/resource.ts";
import type { Ruleset } from "../../dataplanes/nftables/ruleset.ts";
import { isReal, makePackets } from "./make_packet.ts";
import { manifestKey, WorldMaker } from "./make_world.ts";
import { icmpOf, isUntracked, packetText, pathOf } from "./packet.ts";
import { freshResult, newRenderer, refusalsOf, registry } from "./product.ts";
import { FACTS } from "./run.ts";

const SEEDS = 100;
const worldOf = (seed: number) => new WorldMaker(new Random(seed)).first();

test("a world is what `manx apply` takes, as text and one by one", () => {
  for (let seed = 1; seed <= 15; seed++) {
    const maker = new WorldMaker(new Random(seed));
    const world = maker.next(maker.first());
    expect([...world.values()].flatMap(refusalsOf)).toEqual([]);
    const text = [...world.values()].map((resource) => stringify(resource)).join("---\n");
    expect(parseManifest(text, "world.yaml", registry, true).length).toBe(world.size);
  }
});

test("equal seeds make equal worlds and packets", () => {
  const make = () => {
    const random = new Random(7);
    const maker = new WorldMaker(random);
    const world = maker.next(maker.first());
    const { desired } = freshResult(FACTS, world.values());
    return [world, makePackets(random, world.values(), desired, 50, { real: false })];
  };
  expect(make()).toEqual(make());
});

/** Paths of all fields, list indices left out: `ingress.source.nets`. */
function fieldsOf(value: unknown, path = "", into = new Set<string>()): Set<string> {
  if (Array.isArray(value)) { for (const item of value) fieldsOf(item, path, into); }
  else if (typeof value === "object" && value !== null) {
    for (const [key, item] of Object.entries(value)) {
      const here = path === "" ? key : `${path}.${key}`;
      into.add(here);
      fieldsOf(item, here, into);
    }
  }
  return into;
}

const KINDS = [
  ...[
    "Namespace",
    "Node",
    "Pod",
    "Service",
    "ServiceAccount",
    "EndpointSlice",
    "ClusterNetworkPolicy",
    "NetworkPolicy",
  ],
  ...[
    "GlobalNetworkPolicy",
    "StagedNetworkPolicy",
    "StagedGlobalNetworkPolicy",
    "StagedKubernetesNetworkPolicy",
    "Tier",
  ],
  ...["NetworkSet", "GlobalNetworkSet", "HostEndpoint", "WorkloadEndpoint", "Profile", "IPPool"],
];
const ENTITY = [
  ...["nets", "notNets", "selector", "notSelector", "namespaceSelector", "serviceAccounts", "serviceAccounts.names"],
  ...["serviceAccounts.selector", "services", "ports", "notPorts"],
];
const RULE = [
  ...[
    "action",
    "protocol",
    "notProtocol",
    "icmp.type",
    "icmp.code",
    "notICMP.type",
    "ipVersion",
    "metadata.annotations",
  ],
  ...ENTITY.map((field) => `source.${field}`),
  ...ENTITY.map((field) => `destination.${field}`),
];
const GLOBAL_SPEC = [
  ...["tier", "order", "selector", "types", "serviceAccountSelector", "namespaceSelector", "doNotTrack", "preDNAT"],
  ...["applyOnForward", "performanceHints"],
];
const KUBERNETES_SPEC = [
  ...["podSelector.matchLabels", "podSelector.matchExpressions.operator", "policyTypes", "ingress.ports.endPort"],
  ...[
    "ingress.ports.protocol",
    "ingress.from.ipBlock.except",
    "ingress.from.podSelector",
    "egress.to.namespaceSelector",
  ],
];
const CLUSTER_SPEC = [
  ...["subject.namespaces", "subject.pods", "priority", "egress.to.networks", "egress.to.nodes", "egress.to.pods"],
  ...["ingress.from.namespaces", "ingress.protocols.tcp.destinationPort.range", "ingress.protocols.sctp"],
  ...["ingress.protocols.udp.destinationPort.number", "ingress.protocols.destinationNamedPort", "ingress.name"],
];

test("every kind, every field of rules and policies, and every operator of selectors is made", () => {
  const kinds = new Set<string>(), texts: string[] = [];
  const fields = new Map<string, Set<string>>();
  let longest = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    for (const resource of worldOf(seed).values()) {
      const { apiVersion, kind } = resource;
      const name = kind === "NetworkPolicy" && apiVersion.startsWith("networking") ? "Kubernetes" : kind;
      kinds.add(kind);
      const spec = resource.spec as Readonly<Record<string, unknown>> | undefined;
      fields.set(name, fieldsOf(spec, "", fields.get(name)));
      for (const rules of [spec?.ingress, spec?.egress]) {
        if (Array.isArray(rules)) longest = Math.max(longest, rules.length);
      }
      texts.push(JSON.stringify(spec));
    }
  }
  expect(KINDS.filter((kind) => !kinds.has(kind))).toEqual([]);
  const missing = (kind: string, wanted: readonly string[]) =>
    wanted.filter((field) => !fields.get(kind)!.has(field)).map((field) => `${kind} ${field}`);
  const global = fields.get("GlobalNetworkPolicy")!;
  const unruled = RULE.filter((field) => !global.has(`ingress.${field}`) && !global.has(`egress.${field}`));
  expect([
    ...missing("GlobalNetworkPolicy", GLOBAL_SPEC),
    ...unruled,
    ...missing("Kubernetes", KUBERNETES_SPEC),
    ...missing("ClusterNetworkPolicy", CLUSTER_SPEC),
  ]).toEqual([]);
  const all = texts.join("\n");
  const spellings = [
    "==",
    "!=",
    " in {",
    " not in {",
    " contains ",
    " starts with ",
    " ends with ",
    "has(",
    "!has(",
    "&&",
    "||",
  ];
  const values = [
    "!(",
    "all()",
    "global()",
    "UDPLite",
    "SCTP",
    "ICMPv6",
    '"Pass"',
    '"Log"',
    ":65535",
    '/0"',
    '/32"',
    '/128"',
  ];
  expect([...spellings, ...values].filter((text) => !all.includes(text))).toEqual([]);
  expect(longest).toBeGreaterThanOrEqual(30);
});

const maps = (ruleset: Ruleset) =>
  [...ruleset.sets.values()].filter(({ map, fields }) => map && fields.includes("inet_service"));

test("packets meet every stage and every kind of decision, and long lists reach the port maps", () => {
  const met = new Set<string>(), protocols = new Set<string>();
  let portMaps = 0, rangeMaps = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const world = worldOf(seed);
    const { desired } = freshResult(FACTS, world.values());
    const found = maps(newRenderer().render(desired).ruleset);
    portMaps += found.filter(({ interval }) => !interval).length;
    rangeMaps += found.filter(({ interval }) => interval).length;
    for (const packet of makePackets(new Random(seed), world.values(), desired, 120, { real: false })) {
      protocols.add(`${packet.protocol} ${packet.source.includes(":") ? 6 : 4}`);
      for (const step of judgePath(desired, pathOf(packet)).steps) {
        if (step.kind === "judgement") {
          met.add(step.judgement.stage).add(step.judgement.decision.by).add(step.judgement.verdict);
        } else met.add(step.reason);
      }
    }
  }
  const stages = [
    "ingress",
    "egress",
    "forwardIngress",
    "forwardEgress",
    "preDnat",
    "untrackedIngress",
    "untrackedEgress",
  ];
  const decisions = ["rule", "tier default", "no profile", "end", "unknown endpoint", "allow", "deny", "next"];
  const reasons = [
    "neighbour discovery",
    "from its node",
    "itself",
    "failsafe port",
    "allowed before",
    "not its address",
  ];
  expect([...stages, ...decisions, ...reasons].filter((one) => !met.has(one))).toEqual([]);
  const wanted = [
    "6 4",
    "6 6",
    "17 4",
    "17 6",
    "132 4",
    "132 6",
    "136 4",
    "136 6",
    "1 4",
    "58 6",
    "47 4",
    "58 4",
    "1 6",
  ];
  expect(wanted.filter((one) => !protocols.has(one))).toEqual([]);
  expect(portMaps).toBeGreaterThan(10);
  expect(rangeMaps).toBeGreaterThan(10);
}, 60_000);

test("packets for real namespaces are all such as these can carry", () => {
  for (let seed = 1; seed <= 20; seed++) {
    const world = worldOf(seed);
    const { desired } = freshResult(FACTS, world.values());
    const packets = makePackets(new Random(seed), world.values(), desired, 100, { real: true });
    expect(packets.length).toBe(100);
    expect(packets.filter((packet) => !isReal(packet)).map(packetText)).toEqual([]);
    for (const packet of packets) {
      const { packet: after } = pathOf(packet);
      if (isUntracked(after)) expect(after.protocol).toBe(icmpOf(after.source));
    }
  }
});

test("a step adds, changes and takes away", () => {
  const maker = new WorldMaker(new Random(3));
  let world = maker.first();
  const seen = { added: 0, changed: 0, gone: 0 };
  for (let step = 0; step < 30; step++) {
    const next = maker.next(world);
    for (const [key, resource] of next) {
      const before: Resource | undefined = world.get(key);
      if (before === undefined) seen.added++;
      else if (before !== resource) seen.changed++;
      expect(manifestKey(resource)).toBe(key);
    }
    seen.gone += [...world.keys()].filter((key) => !next.has(key)).length;
    world = next;
  }
  expect(Math.min(seen.added, seen.changed, seen.gone)).toBeGreaterThan(5);
});
