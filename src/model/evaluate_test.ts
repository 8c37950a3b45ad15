import { expect, test } from "bun:test";
import { hostCidr, parseAddress, parseCidr } from "./address.ts";
import type {
  AddressSet,
  CompiledPolicy,
  DesiredHostEndpoint,
  DesiredState,
  Packet,
  PolicyList,
  Rule,
  RuleMatch,
  SetId,
} from "./desired.ts";
import { endpointAt, judge, judgeList, judgePath, missesOf, nearMisses } from "./evaluate.ts";
import type { ListJudgement, Path } from "./evaluate.ts";
import { persistentMap } from "./persistent_map.ts";
import type { Action } from "./rule.ts";

const [CLIENT, WEB, OTHER] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(parseAddress) as [never, never, never];
const CLIENTS = "clients" as SetId, HTTP = "http" as SetId;

const set = (id: SetId, kind: "net" | "port", ...members: string[]): [SetId, AddressSet] => [id, {
  id,
  kind,
  title: id,
  members: persistentMap(members.map((member) => [member, true] as const)),
}];
const SETS = persistentMap([
  set(CLIENTS, "net", hostCidr(CLIENT), parseCidr("172.16.0.0/12"), parseCidr("fd00::/16")),
  set(HTTP, "port", WEB + "\x06\x1f\x90"),
]);

const EMPTY: DesiredState = {
  generation: 1,
  sets: SETS,
  workloads: persistentMap(),
  hostEndpoints: persistentMap(),
  failsafe: { inbound: [{ protocol: 6, port: 22 }], outbound: [{ protocol: 17, port: 53 }] },
  masquerade: { sources: [], inside: [] },
};

const rule = (action: Action, match: Partial<Rule> = {}, policy = "p", index = 0): Rule => ({
  action,
  source: {},
  destination: {},
  ...match,
  origin: { policy, direction: "ingress", index },
});
const policy = (id: string, ...rules: readonly Rule[]): CompiledPolicy => ({
  id,
  staged: false,
  rules: rules.map((rule, index) => ({ ...rule, origin: { policy: id, direction: "ingress", index } })),
});
const list = (part: Partial<PolicyList>): PolicyList => ({ id: "list", tiers: [], profiles: [], end: "deny", ...part });
const tcp = (destinationPort: number, source = CLIENT): Packet => ({
  protocol: 6,
  source,
  destination: WEB,
  sourcePort: 40_000,
  destinationPort,
});
const ping = (type = 8, code = 0): Packet => ({ protocol: 1, source: CLIENT, destination: WEB, icmp: { type, code } });
const ping6 = (type = 128): Packet => ({
  protocol: 58,
  source: parseAddress("fd00::1"),
  destination: parseAddress("fd01::1"),
  icmp: { type, code: 0 },
});

const from = (source: RuleMatch) => ({ source });
const to = (destination: RuleMatch) => ({ destination });
const CASES: readonly [string, Partial<Rule>, Packet, string][] = [
  ["nothing asked", {}, tcp(80), ""],
  ["family 4", { family: 4 }, tcp(80), ""],
  ["family 6", { family: 6 }, tcp(80), "family"],
  ["protocol", { protocol: 17 }, tcp(80), "protocol"],
  ["not protocol", { notProtocol: 6 }, tcp(80), "notProtocol"],
  ["another protocol than the refused one", { notProtocol: 17 }, tcp(80), ""],
  ["icmp type", { icmp: { type: 8 } }, ping(8, 3), ""],
  ["icmp code", { icmp: { type: 8, code: 0 } }, ping(8, 3), "icmp"],
  ["icmp of a tcp packet", { icmp: { type: 8 } }, tcp(8), "icmp"],
  ["not icmp", { notIcmp: { type: 8 } }, ping(), "notIcmp"],
  ["not icmp of a tcp packet", { notIcmp: { type: 8 } }, tcp(8), ""],
  ["source nets", from({ nets: [parseCidr("10.0.0.0/31"), parseCidr("::/0")] }), tcp(80), ""],
  ["source nets of the other family", from({ nets: [parseCidr("::/0")] }), tcp(80), "source.nets"],
  ["source not nets", from({ notNets: [parseCidr("10.0.0.0/8")] }), tcp(80), "source.notNets"],
  ["source set by address", from({ sets: [CLIENTS] }), tcp(80), ""],
  ["source set by prefix", from({ sets: [CLIENTS] }), tcp(80, parseAddress("172.31.9.9") as never), ""],
  ["source set, IPv6", from({ sets: [CLIENTS] }), ping6(), ""],
  ["source in no set", from({ sets: [CLIENTS] }), tcp(80, OTHER), "source.sets"],
  ["a set that does not exist", from({ sets: ["none" as SetId] }), tcp(80), "source.sets"],
  ["all sets of several", from({ sets: [CLIENTS, "none" as SetId] }), tcp(80), "source.sets"],
  ["source not set", from({ notSets: [CLIENTS] }), tcp(80), "source.notSets"],
  ["not a set that does not exist", from({ notSets: ["none" as SetId] }), tcp(80), ""],
  ["port at the edges", to({ ports: [{ first: 80, last: 90 }] }), tcp(90), ""],
  ["port outside", to({ ports: [{ first: 80, last: 90 }] }), tcp(91), "destination.ports"],
  ["port of a packet without ports", to({ ports: [{ first: 0, last: 65535 }] }), ping(), "destination.ports"],
  ["source port", from({ ports: [{ first: 40_000, last: 40_000 }] }), tcp(1), ""],
  ["named port", to({ portSets: [HTTP] }), tcp(8080), ""],
  ["named port or number", to({ ports: [{ first: 1, last: 1 }], portSets: [HTTP] }), tcp(8080), ""],
  ["another than the named port", to({ portSets: [HTTP] }), tcp(80), "destination.ports"],
  ["not ports", to({ notPorts: [{ first: 80, last: 90 }] }), tcp(85), "destination.notPorts"],
  ["not the named port", to({ notPortSets: [HTTP] }), tcp(8080), "destination.notPorts"],
  ["not ports of a packet without ports", to({ notPorts: [{ first: 0, last: 65535 }] }), ping(), ""],
  ["service", to({ serviceSet: HTTP }), tcp(8080), ""],
  ["another port than the service's", to({ serviceSet: HTTP }), tcp(8081), "destination.serviceSet"],
  [
    "several at once",
    { protocol: 17, ...from({ sets: [CLIENTS], ports: [{ first: 1, last: 1 }] }) },
    tcp(80, OTHER),
    "protocol source.sets source.ports",
  ],
];
test.each([...CASES])("a rule asks for: %s", (_, match, packet, misses) => {
  expect(missesOf(EMPTY, rule("allow", match), packet).join(" ")).toBe(misses);
});

/** A judgement as lines. */
function told({ verdict, decision, tiers, profiles }: ListJudgement): string[] {
  const policyText = ({ id, staged, outcome, rules }: ListJudgement["profiles"][number]) =>
    `${id}${staged ? "*" : ""} ${outcome}${
      rules.map(({ action, misses }) => ` [${action}${misses.map((miss) => ` -${miss}`).join("")}]`).join("")
    }`;
  return [
    `${verdict} by ${JSON.stringify(decision).replaceAll('"', "")}`,
    ...tiers.flatMap((
      tier,
    ) => [`tier ${tier.name} ${tier.outcome}`, ...tier.policies.map((policy) => `  ${policyText(policy)}`)]),
    ...profiles.map((profile) => `profile ${policyText(profile)}`),
  ];
}

const port = (number: number) => to({ ports: [{ first: number, last: number }] });

test("a judgement tells tier by tier what was asked and what decided", () => {
  const judged = list({
    tiers: [
      { name: "first", defaultAction: "pass", policies: [policy("a", rule("log"), rule("deny", port(1)))] },
      {
        name: "second",
        defaultAction: "deny",
        policies: [policy("b", rule("pass", port(80))), policy("c", rule("deny"))],
      },
      {
        name: "third",
        defaultAction: "deny",
        policies: [policy("d", rule("deny", port(2))), policy("e", rule("allow", { protocol: 6 }))],
      },
    ],
  });
  expect(told(judgeList(EMPTY, judged, tcp(80)))).toEqual([
    "allow by {by:rule,tier:third,policy:e,origin:{policy:e,direction:ingress,index:0}}",
    "tier first pass",
    "  a no match [log] [deny -destination.ports]",
    "tier second pass",
    "  b pass [pass]",
    "tier third allow",
    "  d no match [deny -destination.ports]",
    "  e allow [allow]",
  ]);
  expect(told(judgeList(EMPTY, judged, tcp(81)))[0]).toBe(
    "deny by {by:rule,tier:second,policy:c,origin:{policy:c,direction:ingress,index:0}}",
  );
});

test("a tier where nothing matched ends with its default, unless all of it is staged", () => {
  const staged = (id: string, ...rules: readonly Rule[]) => ({ ...policy(id, ...rules), staged: true });
  const tier = (...policies: readonly CompiledPolicy[]) =>
    list({ tiers: [{ name: "t", defaultAction: "deny", policies }], end: "next" });
  expect(told(judgeList(EMPTY, tier(policy("a")), tcp(1)))).toEqual([
    "deny by {by:tier default,tier:t}",
    "tier t deny",
    "  a no match",
  ]);
  expect(told(judgeList(EMPTY, tier(staged("a", rule("deny"))), tcp(1)))).toEqual([
    "next by {by:end}",
    "tier t pass",
    "  a* deny [deny]",
  ]);
  expect(judgeList(EMPTY, tier(staged("a", rule("allow")), policy("b")), tcp(1)).verdict).toBe("deny");
});

test("profiles are asked in order after the tiers; where none decides the end does", () => {
  const profiles = [policy("one", rule("pass")), policy("two", rule("allow", port(1)))];
  expect(told(judgeList(EMPTY, list({ profiles }), tcp(1)))).toEqual([
    "allow by {by:rule,policy:two,origin:{policy:two,direction:ingress,index:0}}",
    "profile one pass [pass]",
    "profile two allow [allow]",
  ]);
  expect(judgeList(EMPTY, list({ profiles }), tcp(2))).toMatchObject({
    verdict: "deny",
    decision: { by: "no profile" },
  });
  expect(judgeList(EMPTY, list({ profiles, end: "next" }), tcp(2))).toMatchObject({
    verdict: "next",
    decision: { by: "end" },
  });
});

test("near misses are the rules that one condition kept from turning the verdict round", () => {
  const judged = list({
    tiers: [{
      name: "t",
      defaultAction: "deny",
      policies: [
        policy(
          "p",
          rule("allow", { protocol: 6, ...port(443) }),
          rule("allow", { protocol: 17, ...port(443) }),
          rule("deny", port(1)),
          rule("log", port(2)),
        ),
        { ...policy("s", rule("allow", port(443))), staged: true },
      ],
    }],
    profiles: [policy("never asked", rule("allow", port(443)))],
  });
  expect(nearMisses(judgeList(EMPTY, judged, tcp(80)))).toEqual([
    {
      tier: "t",
      policy: "p",
      action: "allow",
      origin: { policy: "p", direction: "ingress", index: 0 },
      misses: ["destination.ports"],
    },
  ]);
});

const OPEN = list({ id: "open", profiles: [policy("open", rule("allow"))] });
const SHUT = list({ id: "shut" });
const workload = (id: string, address: typeof WEB, ingress = OPEN, egress = OPEN) =>
  [id, { id, interfaceName: `if-${id}`, addresses: [address, parseAddress("fd01::1")], ingress, egress }] as const;

function stateWith(
  workloads: readonly ReturnType<typeof workload>[],
  hosts: readonly DesiredHostEndpoint[] = [],
): DesiredState {
  return {
    ...EMPTY,
    workloads: persistentMap(workloads),
    hostEndpoints: persistentMap(hosts.map((host) => [host.id, host] as const)),
  };
}

/** What was asked on the way. */
function way(state: DesiredState, path: Path): string[] {
  const { verdict, steps } = judgePath(state, path);
  return [
    verdict,
    ...steps.map((step) => {
      const endpoint = step.kind === "judgement" ? step.judgement.endpoint : step.endpoint;
      const name = "workload" in endpoint ? endpoint.workload : endpoint.hostEndpoint;
      return step.kind === "judgement"
        ? `${name} ${step.judgement.stage} ${step.judgement.verdict}`
        : `${name} ${step.reason}`;
    }),
  ];
}

test("an ICMP type is of the packet's own family, with or without a protocol beside it", () => {
  const state = EMPTY;
  const noPing4 = rule("allow", { notIcmp: { type: 8 } });
  const ping4: Packet = { protocol: 1, source: CLIENT, destination: WEB, icmp: { type: 8, code: 0 } };
  expect(missesOf(state, noPing4, ping4)).toEqual(["notIcmp"]);
  expect(missesOf(state, noPing4, { ...ping4, icmp: { type: 0, code: 0 } })).toEqual([]);
  expect(missesOf(state, noPing4, tcp(80))).toEqual([]);
  expect(missesOf(state, noPing4, ping6(8))).toEqual(["notIcmp"]);
  expect(missesOf(state, noPing4, { ...ping6(8), protocol: 1 })).toEqual([]);
});

test("between two local workloads both ends are asked, the source first", () => {
  const path = { packet: tcp(80), inInterface: "if-client", outInterface: "if-web" };
  expect(way(stateWith([workload("client", CLIENT), workload("web", WEB, SHUT)]), path)).toEqual([
    "deny",
    "client egress allow",
    "web ingress deny",
  ]);
  expect(way(stateWith([workload("client", CLIENT, OPEN, SHUT), workload("web", WEB)]), path)).toEqual([
    "deny",
    "client egress deny",
  ]);
});

test("a workload sends from its own addresses only, meets no policy with itself, nor with its node's packets", () => {
  const state = stateWith([workload("client", CLIENT, SHUT, SHUT), workload("web", WEB, SHUT)]);
  expect(way(state, { packet: tcp(80, OTHER), inInterface: "if-client", outInterface: "eth0" })).toEqual([
    "deny",
    "client not its address",
  ]);
  const toItself = { ...tcp(80, WEB), destination: WEB };
  expect(way(state, { packet: toItself, inInterface: "if-web", outInterface: "if-web" })).toEqual([
    "allow",
    "web itself",
  ]);
  expect(way(state, { packet: tcp(80, OTHER), inInterface: "if-web", outInterface: "if-web" })).toEqual([
    "deny",
    "web not its address",
  ]);
  expect(way(state, { packet: tcp(80), outInterface: "if-web" })).toEqual(["allow", "web from its node"]);
  expect(way(state, { packet: tcp(80), inInterface: "eth0", outInterface: "if-web" })).toEqual([
    "deny",
    "web ingress deny",
  ]);
  expect(way(state, { packet: tcp(80), inInterface: "eth0" })).toEqual(["allow"]);
});

test("neighbour discovery and listener messages of a workload never meet policy, echo does", () => {
  const state = stateWith([workload("web", WEB, SHUT, SHUT)]);
  const from = (source: string, type: number) => ({
    packet: { ...ping6(type), source: parseAddress(source) },
    inInterface: "if-web",
  });
  for (const type of [130, 133, 135, 136]) {
    for (const source of ["fd01::1", "fe80::1", "::"]) {
      expect(way(state, from(source, type))).toEqual(["allow", "web neighbour discovery"]);
    }
    expect(way(state, from("fd02::1", type))).toEqual(["deny", "web not its address"]);
  }
  // A report of RFC 3810 may be sent from there as well, but is a packet like any other then.
  expect(way(state, from("fe80::1", 143))).toEqual(["deny", "web egress deny"]);
  expect(way(state, from("fe80::1", 128))).toEqual(["deny", "web not its address"]);
  // Neighbours share a link: forwarded, it is a packet like any other.
  expect(way(state, { packet: ping6(135), inInterface: "eth0", outInterface: "if-web" })[0]).toBe("deny");
  expect(way(state, { packet: ping6(128), inInterface: "eth0", outInterface: "if-web" })[0]).toBe("deny");
  expect(way(state, { packet: ping6(137), inInterface: "eth0", outInterface: "if-web" })[0]).toBe("deny");
});

const early = (action: Action) =>
  list({ end: "next", tiers: [{ name: "t", defaultAction: "pass", policies: [policy("e", rule(action, port(80)))] }] });
const HOST: DesiredHostEndpoint = { id: "h", interfaces: ["eth0"], ingress: SHUT, egress: SHUT };

test("a host endpoint asks untracked, then preDnat about the packet as it came, then its normal or forward policy", () => {
  const state = stateWith([workload("web", WEB)], [{
    ...HOST,
    preDnat: early("deny"),
    untrackedIngress: early("pass"),
    forwardIngress: SHUT,
  }]);
  const to80 = tcp(80), to81 = tcp(81);
  expect(way(state, { packet: to80, inInterface: "eth0" })).toEqual([
    "deny",
    "h untrackedIngress next",
    "h preDnat deny",
  ]);
  expect(way(state, { packet: to81, beforeDnat: to80, inInterface: "eth0", outInterface: "if-web" })).toEqual([
    "deny",
    "h untrackedIngress next",
    "h preDnat deny",
  ]);
  expect(way(state, { packet: to80, beforeDnat: to81, inInterface: "eth0", outInterface: "if-web" }))
    .toEqual(["deny", "h untrackedIngress next", "h preDnat next", "h forwardIngress deny"]);
  expect(way(state, { packet: to81, inInterface: "eth0" })).toEqual([
    "deny",
    "h untrackedIngress next",
    "h preDnat next",
    "h ingress deny",
  ]);
});

test("what is allowed early has passed its host endpoint, though not the workload", () => {
  const state = stateWith([workload("web", WEB, SHUT)], [{ ...HOST, preDnat: early("allow"), forwardIngress: SHUT }]);
  expect(way(state, { packet: tcp(80), inInterface: "eth0" })).toEqual([
    "allow",
    "h preDnat allow",
    "h allowed before",
  ]);
  expect(way(state, { packet: tcp(80), inInterface: "eth0", outInterface: "if-web" }))
    .toEqual(["deny", "h preDnat allow", "h allowed before", "web ingress deny"]);
});

test("untracked egress policy is asked about what the node itself sends, before DNAT, and not about what it forwards", () => {
  const state = stateWith([workload("web", WEB), workload("client", CLIENT)], [{
    ...HOST,
    egress: OPEN,
    untrackedEgress: early("deny"),
  }]);
  const to80 = tcp(80), to81 = tcp(81);
  expect(way(state, { packet: to80, outInterface: "eth0" })).toEqual(["deny", "h untrackedEgress deny"]);
  expect(way(state, { packet: to81, beforeDnat: to80, outInterface: "eth0" })).toEqual([
    "deny",
    "h untrackedEgress deny",
  ]);
  expect(way(state, { packet: to80, beforeDnat: to81, outInterface: "eth0" })).toEqual([
    "allow",
    "h untrackedEgress next",
    "h egress allow",
  ]);
  expect(way(state, { packet: to80, inInterface: "if-client", outInterface: "eth0" })).toEqual([
    "allow",
    "client egress allow",
    "h forwardEgress next",
  ]);
});

test("the host endpoint of every interface is asked about what its node sends to a workload, one by name is not", () => {
  const workloads = [workload("web", WEB, SHUT)];
  const path = { packet: tcp(80), outInterface: "if-web" };
  const star = { ...HOST, id: "all", interfaces: "*" } as const;
  expect(way(stateWith(workloads, [HOST]), path)).toEqual(["allow", "web from its node"]);
  expect(way(stateWith(workloads, [HOST, star]), path)).toEqual(["deny", "all egress deny"]);
  expect(way(stateWith(workloads, [{ ...star, egress: OPEN }]), path)).toEqual([
    "allow",
    "all egress allow",
    "web from its node",
  ]);
  expect(way(stateWith(workloads, [{ ...star, untrackedEgress: early("allow") }]), path)).toEqual([
    "allow",
    "all untrackedEgress allow",
    "all allowed before",
    "web from its node",
  ]);
  const fromWorkload = { packet: tcp(80), inInterface: "if-client", outInterface: "if-web" };
  expect(way(stateWith([...workloads, workload("client", CLIENT)], [star]), fromWorkload)).toEqual([
    "deny",
    "client egress allow",
    "web ingress deny",
  ]);
});

test("failsafe ports pass a host endpoint, also early, but open no forwarded traffic", () => {
  const state = stateWith([workload("web", WEB)], [{ ...HOST, preDnat: early("deny"), forwardIngress: SHUT }]);
  expect(way(state, { packet: tcp(22), inInterface: "eth0" })).toEqual(["allow", "h failsafe port", "h failsafe port"]);
  expect(way(state, { packet: tcp(22), inInterface: "eth0", outInterface: "if-web" })).toEqual([
    "deny",
    "h failsafe port",
    "h forwardIngress deny",
  ]);
  const dns: Packet = { ...tcp(53), protocol: 17 };
  expect(way(state, { packet: dns, outInterface: "eth0" })).toEqual(["allow", "h failsafe port"]);
  expect(way(state, { packet: tcp(53), outInterface: "eth0" })).toEqual(["deny", "h egress deny"]);
  // Answers, where nothing tracks connections: known by their source port.
  const untracked = stateWith([], [{ ...HOST, ingress: OPEN, untrackedIngress: list({ end: "deny" }) }]);
  const answer: Packet = { protocol: 17, source: CLIENT, destination: WEB, sourcePort: 53, destinationPort: 40_000 };
  expect(way(untracked, { packet: answer, inInterface: "eth0" })).toEqual([
    "allow",
    "h failsafe port",
    "h ingress allow",
  ]);
});

test("the endpoint of a link: a workload, a host endpoint by name, the one for all others, but never of lo", () => {
  const state = stateWith([workload("web", WEB)], [HOST, { ...HOST, id: "all", interfaces: "*" }]);
  const at = (name: string) => endpointAt(state, name)?.workload?.id ?? endpointAt(state, name)?.host?.id;
  expect(["if-web", "eth0", "eth1", "lo"].map(at)).toEqual(["web", "h", "all", undefined]);
  expect(endpointAt(EMPTY, "eth0")).toBeUndefined();
});

test("an unknown endpoint denies, a stage without a list lets go on", () => {
  expect(judge(EMPTY, { workload: "x" }, "ingress", tcp(80))).toMatchObject({
    verdict: "deny",
    decision: { by: "unknown endpoint" },
  });
  expect(judge(stateWith([], [HOST]), { hostEndpoint: "h" }, "preDnat", tcp(80))).toMatchObject({
    verdict: "next",
    decision: { by: "end" },
  });
});
