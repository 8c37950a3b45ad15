import { expect, test } from "bun:test";
import { type Address, type Cidr, makeCidr } from "../../src/model/address.ts";
import type { CompiledPolicy, DesiredState, Packet, PolicyList, PolicyTier, Rule, RuleMatch } from "../../src/model/desired.ts";
import { judgeList } from "../../src/model/evaluate.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { ACCEPT, compileList, DROP, FILTER_ENDINGS, goto } from "./compile.ts";
import { Renderer } from "./render.ts";
import type { Ruleset } from "./ruleset.ts";
import { address, cidr, list, netSet, policy, rule, rules, setId, state, tier, workload } from "./test_world.ts";
import { traceChain, traceHook, type TracedPacket } from "./trace.ts";

const options = { logGroup: 86, passedMark: 0x10000 };

const rulesetOf = (list: PolicyList, sets: DesiredState["sets"]): Ruleset =>
  new Renderer(options).render({ ...state({ workloads: [workload("w", "mx1", ["10.0.0.1"], { ingress: list })] }), sets }).ruleset;

const headOf = (list: PolicyList) => `list-${list.id}`;

/** xorshift32: the same numbers from the same seed everywhere. */
function random(seed: number) {
  let at = seed | 1;
  const next = () => {
    at ^= at << 13;
    at ^= at >>> 17;
    at ^= at << 5;
    return (at >>> 0) / 0x100000000;
  };
  const below = (n: number) => Math.floor(next() * n);
  return { below, chance: (p: number) => next() < p, pick: <T>(from: readonly T[]): T => from[below(from.length)]! };
}
type Random = ReturnType<typeof random>;

const PORT_CHOICES = [0, 1, 22, 53, 79, 80, 81, 443, 8000, 8080, 8999, 9000, 65534, 65535];
const HOSTS4 = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "10.1.0.1", "10.1.2.3", "192.0.2.1", "255.255.255.255", "0.0.0.0"].map(address);
const HOSTS6 = ["fd00::1", "fd00::2", "fd00:0:0:1::1", "fd01::1", "2001:db8::1", "::1", "::"].map(address);
const PROTOCOL_CHOICES = [6, 6, 6, 17, 132, 136, 1, 58, 47];
const SET_IDS = ["a", "b", "c", "d", "e", "f", "g", "missing"].map(setId);
const PORT_SET_IDS = ["pa", "pb", "missing-ports"].map(setId);

const someNet = (r: Random): Cidr => {
  const host = r.chance(0.7) ? r.pick(HOSTS4) : r.pick(HOSTS6);
  return makeCidr(host, r.pick(host.length === 4 ? [0, 8, 16, 24, 25, 31, 32, 32] : [0, 8, 16, 64, 127, 128, 128]));
};
const some = <T>(r: Random, make: () => T, most: number): T[] => Array.from({ length: 1 + r.below(most) }, make);

function someSets(r: Random): DesiredState["sets"] {
  let sets: DesiredState["sets"] = persistentMap();
  for (const id of SET_IDS.slice(0, -1)) {
    const nets = r.chance(0.15) ? [] : some(r, () => r.chance(0.5) ? someNet(r) : makeCidr(r.chance(0.7) ? r.pick(HOSTS4) : r.pick(HOSTS6), 128), 5);
    sets = sets.set(id, { id, kind: "net", title: id, members: persistentMap(nets.map((net) => [fullLength(net), true] as const)) });
  }
  for (const id of PORT_SET_IDS.slice(0, -1)) {
    const members = some(r, () => (r.chance(0.7) ? r.pick(HOSTS4) : r.pick(HOSTS6)) + member(r.pick([6, 17, 132]), r.pick(PORT_CHOICES)), 6);
    sets = sets.set(id, { id, kind: "port", title: id, members: persistentMap(members.map((one) => [one, true] as const)) });
  }
  return sets;
}
const member = (protocol: number, port: number) => String.fromCharCode(protocol, port >> 8, port & 0xff);
/** `makeCidr(v4, 128)` of above stands for one address. */
const fullLength = (net: Cidr): Cidr => net.length === 5 && net.charCodeAt(4) > 32 ? makeCidr(net.slice(0, 4) as Address, 32) : net;

function someMatch(r: Random, ports: boolean): RuleMatch {
  const match: { -readonly [K in keyof RuleMatch]: RuleMatch[K] } = {};
  if (r.chance(0.3)) match.nets = some(r, () => someNet(r), 3);
  if (r.chance(0.15)) match.notNets = some(r, () => someNet(r), 2);
  if (r.chance(0.3)) match.sets = some(r, () => r.pick(SET_IDS), 2);
  if (r.chance(0.1)) match.notSets = some(r, () => r.pick(SET_IDS), 2);
  const range = () => {
    const first = r.pick(PORT_CHOICES);
    return r.chance(0.6) ? { first, last: first } : { first, last: Math.min(65535, first + r.pick([1, 10, 1000, 65535])) };
  };
  if (ports && r.chance(0.6)) match.ports = some(r, range, 3);
  if (ports && r.chance(0.15)) match.portSets = some(r, () => r.pick(PORT_SET_IDS), 2);
  if (r.chance(0.08)) match.notPorts = some(r, range, 2);
  if (r.chance(0.05)) match.notPortSets = [r.pick(PORT_SET_IDS)];
  if (r.chance(0.05)) match.serviceSet = r.pick(PORT_SET_IDS);
  return match;
}

function someRule(r: Random, action: Rule["action"]): Rule {
  const kind = r.below(10);
  const protocol = kind < 6 ? r.pick([6, 6, 17, 132]) : kind === 6 ? r.pick([1, 58, 47]) : undefined;
  const ports = protocol === undefined ? r.chance(0.2) : protocol === 6 || protocol === 17 || protocol === 132;
  const icmp = protocol === 1 || protocol === 58 || r.chance(0.03);
  return rule(action, {
    protocol,
    family: r.chance(0.1) ? r.pick([4, 6] as const) : undefined,
    notProtocol: r.chance(0.05) ? r.pick(PROTOCOL_CHOICES) : undefined,
    icmp: icmp && r.chance(0.6) ? { type: r.pick([0, 8, 128, 129]), code: r.chance(0.3) ? r.below(2) : undefined } : undefined,
    notIcmp: r.chance(0.05) ? { type: r.pick([0, 8, 128, 129]), code: r.chance(0.3) ? r.below(2) : undefined } : undefined,
    from: someMatch(r, ports && r.chance(0.15)),
    to: someMatch(r, ports),
  });
}

function somePolicies(r: Random, actions: readonly Rule["action"][], most: number, long: number): CompiledPolicy[] {
  return Array.from({ length: r.below(most + 1) }, (_, i) => {
    let action = r.pick(actions);
    const all = Array.from({ length: r.below(long) }, () => {
      if (r.chance(0.25)) action = r.pick(actions);
      return someRule(r, action);
    });
    return { id: `p${i}`, staged: r.chance(0.1), rules: all };
  });
}

function someList(r: Random, long: number): PolicyList {
  const tiers: PolicyTier[] = Array.from({ length: r.below(4) }, (_, i) => (
    tier(`t${i}`, r.chance(0.5) ? "deny" : "pass", ...somePolicies(r, ["allow", "allow", "deny", "pass", "log"], 3, long))
  )).filter((one) => one.policies.length > 0);
  const profiles = somePolicies(r, ["allow", "deny", "pass"], 2, 4).map((one) => ({ ...one, staged: false }));
  return list(tiers, profiles, r.chance(0.8) ? "deny" : "next");
}

function somePacket(r: Random): TracedPacket {
  const hosts = r.chance(0.6) ? HOSTS4 : HOSTS6;
  const protocol = r.pick(PROTOCOL_CHOICES.filter((one) => one !== (hosts === HOSTS4 ? 58 : 1)));
  const ported = protocol === 6 || protocol === 17 || protocol === 132 || protocol === 136;
  return {
    source: r.pick(hosts),
    destination: r.pick(hosts),
    protocol,
    sourcePort: ported ? r.pick(PORT_CHOICES) : undefined,
    destinationPort: ported ? r.pick(PORT_CHOICES) : undefined,
    icmp: protocol === 1 || protocol === 58 ? { type: r.pick([0, 8, 128, 129]), code: r.below(2) } : undefined,
    state: "new",
  };
}

const verdictOf = { accept: "allow", drop: "deny", fell: "next" } as const;

function check(list: PolicyList, sets: DesiredState["sets"], packets: Iterable<TracedPacket>, seed: number): void {
  const ruleset = rulesetOf(list, sets);
  const world = { ...state({}), sets };
  for (const packet of packets) {
    const wanted = judgeList(world, list, packet as Packet).verdict;
    const found = verdictOf[traceChain(ruleset, headOf(list), packet)];
    // A filter chain says `accept` for `next` as well.
    if (found !== (wanted === "next" ? "allow" : wanted)) {
      const where = JSON.stringify({ seed, packet, list }, null, 1);
      throw new Error(`found ${found}, wanted ${wanted}: ${where}\n${JSON.stringify([...ruleset.chains], null, 1)}`);
    }
  }
}

test("compiled lists of random rules say what the evaluator says, by the tracer", () => {
  for (let seed = 1; seed <= 400; seed++) {
    const r = random(seed * 7919);
    const sets = someSets(r);
    const one = someList(r, r.pick([2, 5, 12, 30]));
    check(one, sets, Array.from({ length: 40 }, () => somePacket(r)), seed);
  }
});

test("a list of one thousand rules costs a packet as many rules as one of ten", () => {
  const cost = (count: number) => {
    const all = Array.from({ length: count }, (_, i) => rule("allow", { protocol: 6, from: { sets: [setId(`s${i % 40}`)] }, to: { ports: [{ first: 1000 + i, last: 1000 + i }] } }));
    const sets = persistentMap(Array.from({ length: 40 }, (_, i) => netSet(`s${i}`, `10.0.${i}.1`)).map((set) => [set.id, set] as const));
    const one = rules(...all);
    const ruleset = rulesetOf(one, sets);
    const rulesWalked = [headOf(one), ...[...ruleset.chains.keys()].filter((name) => name.startsWith("c-"))]
      .map((name) => ruleset.chains.get(name)!.rules.length);
    return Math.max(...rulesWalked);
  };
  expect(cost(1000)).toBe(cost(10));
});

test("many peers of one port become one union set; four or fewer stay lookups of shared sets", () => {
  const peers = (count: number) => rules(...Array.from({ length: count }, (_, i) => rule("allow", { protocol: 6, from: { sets: [setId(`s${i}`)] }, to: { ports: [{ first: 80, last: 80 }] } })));
  const compiled = (count: number) =>
    compileList(peers(count), "head", { endings: FILTER_ENDINGS, form: () => ({ interval: false, capacity: undefined }), logGroup: 1 });
  const sources = (count: number) => [...compiled(count).addressSets.values()].filter((use) => use.family === 4).map((use) => use.kind === "net" ? use.ids.length : 0);
  expect(sources(4)).toEqual([1, 1, 1, 1]);
  expect(sources(5)).toEqual([5]);
});

test("ranges that all overlap beyond the budget fall back to the linear form and say so", () => {
  const all = Array.from({ length: 300 }, (_, i) => rule("allow", { protocol: 6, from: { nets: [cidr(`10.0.${i >> 8}.${i & 255}`)] }, to: { ports: [{ first: i, last: 60000 - i }] } }));
  const compiled = compileList(rules(...all), "head", { endings: FILTER_ENDINGS, form: () => ({ interval: false, capacity: undefined }), logGroup: 1 });
  expect(compiled.notes.join("\n")).toContain("walked one by one");
  check(rules(...all), persistentMap(), [
    { source: address("10.0.0.5"), destination: address("10.0.0.9"), protocol: 6, sourcePort: 1, destinationPort: 5, state: "new" },
    { source: address("10.0.0.5"), destination: address("10.0.0.9"), protocol: 6, sourcePort: 1, destinationPort: 4, state: "new" },
  ], 0);
});

test("a tier with many pass rules by port leaves to the next tier from within its cells", () => {
  const r = random(42);
  const passes = Array.from({ length: 12 }, (_, i) => rule("pass", { protocol: 6, from: { sets: [r.pick(SET_IDS)] }, to: { ports: [{ first: 80 + i % 3, last: 80 + i }] } }));
  const one = list([
    tier("admin", "deny", policy("a", ...passes, rule("allow", { protocol: 17 }), ...passes.map((pass) => ({ ...pass, source: { nets: [cidr("10.0.0.0/8")] } })))),
    tier("default", "deny", policy("b", rule("allow", { protocol: 6, to: { ports: [{ first: 81, last: 81 }] } }))),
  ], [policy("open", rule("allow"))]);
  check(one, someSets(r), Array.from({ length: 500 }, () => somePacket(r)), 42);
});

test("deny rules before the default deny cost nothing", () => {
  const with_ = rules(rule("allow", { protocol: 6 }), rule("deny", { from: { nets: [cidr("10.0.0.0/8")] } }));
  const without = rules(rule("allow", { protocol: 6 }));
  const chainOf = (one: PolicyList) => rulesetOf(one, persistentMap()).chains.get(headOf(one))!.rules;
  expect(chainOf(with_)).toEqual(chainOf(without));
});

test("a list ending in next goes where its endings say", () => {
  const one = list([tier("t", "pass", policy("p", rule("deny", { protocol: 17 }), rule("allow", { protocol: 6 })))], [], "next");
  const compiled = compileList(one, "head", {
    endings: { allow: ACCEPT, deny: DROP, next: goto("elsewhere") },
    form: () => ({ interval: false, capacity: undefined }),
    logGroup: 1,
  });
  const ruleset: Ruleset = { sets: compiled.fixedSets, chains: new Map([...compiled.chains, ["elsewhere", { rules: [[{ op: "verdict", verdict: { kind: "return" } }]] }]]) };
  const packet = (protocol: number): TracedPacket => ({ source: address("10.0.0.1"), destination: address("10.0.0.2"), protocol, state: "new" });
  expect([6, 17, 47].map((protocol) => traceChain(ruleset, "head", packet(protocol)))).toEqual(["accept", "drop", "fell"]);
});

test("the tracer errs on an expression it does not know", () => {
  const ruleset: Ruleset = {
    sets: new Map(),
    chains: new Map([["forward", { base: { type: "filter", hook: "forward", priority: 0, policy: "accept" }, rules: [[{ op: "other", name: "socket", attributes: "{}" }]] }]]),
  };
  expect(() => traceHook(ruleset, "forward", { source: address("10.0.0.1"), destination: address("10.0.0.2"), protocol: 6, state: "new" }))
    .toThrow("found expression socket");
});

