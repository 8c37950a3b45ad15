import { expect, test } from "bun:test";
import type { CompiledPolicy, DesiredState, Packet, PolicyList, Rule as PolicyRule } from "../../src/model/desired.ts";
import { type Decision, judgeList, type ListJudgement, missesOf } from "../../src/model/evaluate.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { compileList, FILTER_ENDINGS } from "./compile.ts";
import { ACCEPT, DROP, goto } from "./expressions.ts";
import { parseLogPrefix } from "../../src/model/log_prefix.ts";
import { printRuleset } from "./print.ts";
import { Renderer } from "./render.ts";
import { elementsOf, interfaceKey, type NftChain, type NftSet, type Ruleset } from "./ruleset.ts";
import { random, SET_IDS, someList, somePacket, someSets } from "../../src/model/testdata/random_lists.ts";
import {
  address,
  cidr,
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
import { findElement, traceChain, type TracedPacket, traceHook } from "./trace.ts";
import type { CompileOptions } from "./output.ts";

const options = { logGroup: 86, passedMark: 0x10000 };

const rulesetOf = (list: PolicyList, sets: DesiredState["sets"]): Ruleset =>
  new Renderer(options).render({
    ...state({ workloads: [workload("w", "mx1", ["10.0.0.1"], { ingress: list })] }),
    sets,
  }).ruleset;

/** The chain that packets to the one workload go to. */
const headOf = (ruleset: Ruleset): string => {
  const found = findElement(ruleset.sets.get("to-workload")!, interfaceKey("mx1"));
  if (typeof found !== "object" || !("chain" in found)) throw new Error("found no chain for mx1");
  return found.chain;
};
const compileOptions = (more: Partial<CompileOptions> = {}): CompileOptions => ({
  endings: FILTER_ENDINGS,
  direction: "ingress",
  shape: "flat",
  logGroup: 1,
  form: () => ({ interval: false, capacity: undefined }),
  sizeOf: () => "pooled",
  hasMembers: () => true,
  ...more,
});

/** More of them find more: `SEEDS=20000`. */
const SEEDS = Number(process.env.SEEDS ?? 150);

const verdictOf = { accept: "allow", drop: "deny", fell: "next" } as const;

/** Everything that the list decides about the packets, by the tracer and by the evaluator. */
function check(
  list: PolicyList,
  sets: DesiredState["sets"],
  packets: Iterable<TracedPacket>,
  seed: number,
  shape: "flat" | "linear" = "flat",
): void {
  const renderer = new Renderer({ ...options, shape });
  const world = { ...state({ workloads: [workload("w", "mx1", ["10.0.0.1"], { ingress: list })] }), sets };
  const { ruleset } = renderer.render(world);
  const counters = renderer.counters(list)!;
  for (const packet of packets) {
    const fail = (what: string): never => {
      const where = JSON.stringify({ seed, shape, packet, list }, null, 1);
      throw new Error(`${what}: ${where}\n${printRuleset(ruleset)}`);
    };
    const judged = judgeList(world, list, packet as Packet);
    const trace = traceChain(ruleset, headOf(ruleset), packet);
    const found = verdictOf[trace.verdict];
    // A filter chain says `accept` for `next` as well.
    if (found !== (judged.verdict === "next" ? "allow" : judged.verdict)) {
      fail(`found ${found}, wanted ${judged.verdict}`);
    }

    const counted = trace.counted.map((key) => counters.get(key) ?? fail(`found no meaning of counter ${key}`));
    const rules = new Map(rulesOf(list).map((one) => [textOf(one.decision), one.rule]));
    const actionOf = (decision: Decision) => rules.get(textOf(decision))?.action;
    // Passing on is counted as well, and so is what staged policies would say; the rest decides.
    const deciding = counted.filter((causes) =>
      causes.some(({ decision }) => decision.by !== "rule" || !decision.staged && actionOf(decision) !== "pass")
    );
    if (deciding.length !== (judged.verdict === "next" ? 0 : 1)) fail(`found ${deciding.length} verdicts counted`);
    for (const causes of counted) {
      const matches = causes.some(({ decision }) => {
        const rule = rules.get(textOf(decision));
        return rule === undefined
          ? textOf(decision) === textOf(judged.decision)
          : missesOf(world, rule, packet as Packet).length === 0;
      });
      if (!matches) fail(`found a counter of nothing that matches: ${JSON.stringify(causes)}`);
    }
    const [causes] = deciding;
    if (causes?.some(({ decision }) => decision.by === "rule" && actionOf(decision) !== judged.verdict)) {
      fail(`found a counter of another verdict: ${JSON.stringify(causes)}`);
    }
    const said = trace.logged.map((prefix) => parseLogPrefix(prefix) ?? fail(`found a log prefix ${prefix}`));
    const logs = said.filter(({ verdict }) => verdict === "log").map(({ decision }) => textOf(decision!));
    if (logs.join() !== loggedRules(judged).join()) fail(`found logs of ${logs.join()}`);
    const denies = said.filter(({ verdict }) => verdict === "deny").length;
    const wanted = judged.verdict === "deny" && logsDenied(list, judged.decision) ? 1 : 0;
    if (denies !== wanted) fail(`found ${denies} logs of a denied packet, wanted ${wanted}`);
    const staged = counted.filter((causes) => causes.some(({ decision }) => decision.by === "rule" && decision.staged));
    const wouldDecide = stagedDecisions(list, judged, world, packet as Packet);
    if (staged.length !== wouldDecide.length) {
      fail(`found ${staged.length} staged decisions, wanted ${wouldDecide.length}`);
    }
  }
}

const textOf = (decision: Decision): string =>
  decision.by === "rule"
    ? JSON.stringify([decision.tier, decision.policy, decision.origin.index, decision.staged])
    : JSON.stringify(decision);

function rulesOf(list: PolicyList): readonly { decision: Decision; rule: PolicyRule }[] {
  const of = (policy: CompiledPolicy, tier?: string) =>
    policy.rules.map((rule) => ({
      decision: {
        by: "rule",
        ...tier === undefined ? {} : { tier },
        policy: policy.id,
        origin: rule.origin,
        ...policy.staged ? { staged: true } : {},
      } as Decision,
      rule,
    }));
  return [
    ...list.tiers.flatMap((tier) => tier.policies.flatMap((one) => of(one, tier.name))),
    ...list.profiles.flatMap((one) => of(one)),
  ];
}

/** `log` rules that the packet matches, in order. */
const loggedRules = ({ tiers, profiles }: ListJudgement): readonly string[] =>
  [
    ...tiers.flatMap(({ name, policies }) => policies.map((policy) => ({ tier: name, policy }))),
    ...profiles.map((policy) => ({ tier: undefined, policy })),
  ].flatMap(({ tier, policy: { id, staged, rules } }) =>
    staged
      ? []
      : rules.filter(({ action, misses }) => action === "log" && misses.length === 0).map(({ origin }) =>
        textOf({ by: "rule", ...tier === undefined ? {} : { tier }, policy: id, origin })
      )
  );

/** Whether what is denied so is to be logged. */
function logsDenied(list: PolicyList, decision: Decision): boolean {
  const tier = "tier" in decision ? list.tiers.find(({ name }) => name === decision.tier) : undefined;
  if (tier === undefined) return false;
  if (tier.logDenied) return true;
  return tier.policies.some(({ id, staged, logDenied }) =>
    !staged && logDenied && (decision.by === "tier default" || decision.by === "rule" && decision.policy === id)
  );
}

/** Staged policies that the packet gets to, and that have a rule for it. */
function stagedDecisions(
  list: PolicyList,
  { tiers }: ListJudgement,
  world: DesiredState,
  packet: Packet,
): readonly string[] {
  return tiers.flatMap(({ policies }, at) =>
    policies.filter(({ staged }) => staged).filter(({ id }) =>
      list.tiers[at]!.policies.find((policy) => policy.id === id)!.rules.some((rule) =>
        rule.action !== "log" && missesOf(world, rule, packet).length === 0
      )
    ).map(({ id }) => id)
  );
}

test("compiled lists of random rules say what the evaluator says, by the tracer", () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const r = random(seed * 7919);
    const sets = someSets(r);
    const one = someList(r, r.pick([2, 5, 12, 30]));
    const packets = Array.from({ length: 40 }, () => somePacket(r));
    check(one, sets, packets, seed);
    check(one, sets, packets, seed, "linear");
  }
}, 600_000);

test("a list of one thousand rules costs a packet as many rules as one of ten", () => {
  const cost = (count: number) => {
    const all = Array.from(
      { length: count },
      (_, i) =>
        rule("allow", {
          protocol: 6,
          from: { sets: [setId(`s${i % 40}`)] },
          to: { ports: [{ first: 1000 + i, last: 1000 + i }] },
        }),
    );
    const sets = persistentMap(
      Array.from({ length: 40 }, (_, i) => netSet(`s${i}`, `10.0.${i}.1`)).map((set) => [set.id, set] as const),
    );
    const one = rules(...all);
    const ruleset = rulesetOf(one, sets);
    const rulesWalked = [headOf(ruleset), ...[...ruleset.chains.keys()].filter((name) => name.startsWith("c-"))]
      .map((name) => ruleset.chains.get(name)!.rules.length);
    return Math.max(...rulesWalked);
  };
  expect(cost(1000)).toBe(cost(10));
});

test("many peers of one port become one union set; four or fewer stay lookups of shared sets", () => {
  const peers = (count: number) =>
    rules(
      ...Array.from({ length: count }, (_, i) =>
        rule("allow", { protocol: 6, from: { sets: [setId(`s${i}`)] }, to: { ports: [{ first: 80, last: 80 }] } })),
    );
  const compiled = (count: number) => compileList(peers(count), "head", compileOptions());
  const sources = (count: number) =>
    [...compiled(count).blocks.get("peers4")!.values()].map((block) => block.get("")!.ids.length);
  expect(sources(4)).toEqual([1, 1, 1, 1]);
  expect(sources(5)).toEqual([5]);
});

test("ranges that all overlap beyond the budget fall back to the linear form and say so", () => {
  const all = Array.from(
    { length: 300 },
    (_, i) =>
      rule("allow", {
        protocol: 6,
        from: { nets: [cidr(`10.0.${i >> 8}.${i & 255}`)] },
        to: { ports: [{ first: i, last: 60000 - i }] },
      }),
  );
  const compiled = compileList(rules(...all), "head", compileOptions());
  expect(compiled.notes.join("\n")).toContain("walked one by one");
  check(rules(...all), persistentMap(), [
    {
      source: address("10.0.0.5"),
      destination: address("10.0.0.9"),
      protocol: 6,
      sourcePort: 1,
      destinationPort: 5,
      state: "new",
    },
    {
      source: address("10.0.0.5"),
      destination: address("10.0.0.9"),
      protocol: 6,
      sourcePort: 1,
      destinationPort: 4,
      state: "new",
    },
  ], 0);
});

test("a tier with many pass rules by port leaves to the next tier from within its cells", () => {
  const r = random(42);
  const passes = Array.from(
    { length: 12 },
    (_, i) =>
      rule("pass", {
        protocol: 6,
        from: { sets: [r.pick(SET_IDS)] },
        to: { ports: [{ first: 80 + i % 3, last: 80 + i }] },
      }),
  );
  const one = list([
    tier(
      "admin",
      "deny",
      policy(
        "a",
        ...passes,
        rule("allow", { protocol: 17 }),
        ...passes.map((pass) => ({ ...pass, source: { nets: [cidr("10.0.0.0/8")] } })),
      ),
    ),
    tier("default", "deny", policy("b", rule("allow", { protocol: 6, to: { ports: [{ first: 81, last: 81 }] } }))),
  ], [policy("open", rule("allow"))]);
  check(one, someSets(r), Array.from({ length: 500 }, () => somePacket(r)), 42);
});

test("deny rules before the default deny cost nothing", () => {
  const with_ = rules(
    rule("allow", { protocol: 6 }),
    rule("deny", { protocol: 17, to: { ports: [{ first: 53, last: 53 }] } }),
  );
  const without = rules(rule("allow", { protocol: 6 }));
  const chainOf = (one: PolicyList) => {
    const ruleset = rulesetOf(one, persistentMap());
    // What is counted differs.
    return ruleset.chains.get(headOf(ruleset))!.rules.map((rule) => rule.filter((one) => one.op !== "immediate"));
  };
  expect(chainOf(with_)).toEqual(chainOf(without));
});

test("a list ending in next goes where its endings say", () => {
  const one = list(
    [tier("t", "pass", policy("p", rule("deny", { protocol: 17 }), rule("allow", { protocol: 6 })))],
    [],
    "next",
  );
  const endings = { allow: ACCEPT, deny: DROP, next: goto("elsewhere") };
  const compiled = compileList(one, "head", compileOptions({ endings }));
  const ruleset: Ruleset = {
    sets: persistentMap<string, NftSet>([...compiled.sets, ["counts", {
      fields: ["ipv6_addr"],
      interval: false,
      map: false,
      elements: elementsOf([...compiled.counts.keys()].map((key) => [key, true])),
    }]]),
    chains: persistentMap<string, NftChain>([...compiled.chains, ["elsewhere", {
      rules: [[{ op: "verdict", verdict: { kind: "return" } }]],
    }]]),
  };
  const packet = (protocol: number): TracedPacket => ({
    source: address("10.0.0.1"),
    destination: address("10.0.0.2"),
    protocol,
    state: "new",
  });
  expect([6, 17, 47].map((protocol) => traceChain(ruleset, "list-head", packet(protocol)).verdict)).toEqual([
    "accept",
    "drop",
    "fell",
  ]);
});

test("the tracer errs on an expression it does not know", () => {
  const ruleset: Ruleset = {
    sets: persistentMap(),
    chains: persistentMap<string, NftChain>([["forward", {
      base: { type: "filter", hook: "forward", priority: 0, policy: "accept" },
      rules: [[{ op: "other", name: "socket", attributes: "{}" }]],
    }]]),
  };
  expect(() =>
    traceHook(ruleset, "forward", {
      source: address("10.0.0.1"),
      destination: address("10.0.0.2"),
      protocol: 6,
      state: "new",
    })
  )
    .toThrow("found expression socket");
});
