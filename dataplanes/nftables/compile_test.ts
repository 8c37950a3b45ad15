import { expect, test } from "bun:test";
import type { DesiredState, Packet, PolicyList } from "../../src/model/desired.ts";
import { judgeList } from "../../src/model/evaluate.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { ACCEPT, compileList, DROP, FILTER_ENDINGS, goto } from "./compile.ts";
import { Renderer } from "./render.ts";
import type { NftChain, Ruleset } from "./ruleset.ts";
import { random, SET_IDS, someList, somePacket, someSets } from "./testdata/random_lists.ts";
import { address, cidr, list, netSet, policy, rule, rules, setId, state, tier, workload } from "./testdata/world.ts";
import { traceChain, type TracedPacket, traceHook } from "./trace.ts";

const options = { logGroup: 86, passedMark: 0x10000 };

const rulesetOf = (list: PolicyList, sets: DesiredState["sets"]): Ruleset =>
  new Renderer(options).render({
    ...state({ workloads: [workload("w", "mx1", ["10.0.0.1"], { ingress: list })] }),
    sets,
  }).ruleset;

const headOf = (list: PolicyList) => `list-${list.id}`;

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
    const rulesWalked = [headOf(one), ...[...ruleset.chains.keys()].filter((name) => name.startsWith("c-"))]
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
  const compiled = (count: number) =>
    compileList(peers(count), "head", {
      endings: FILTER_ENDINGS,
      form: () => ({ interval: false, capacity: undefined }),
      logGroup: 1,
    });
  const sources = (count: number) =>
    [...compiled(count).addressSets.values()].filter((use) => use.family === 4).map((use) =>
      use.kind === "net" ? use.ids.length : 0
    );
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
  const compiled = compileList(rules(...all), "head", {
    endings: FILTER_ENDINGS,
    form: () => ({ interval: false, capacity: undefined }),
    logGroup: 1,
  });
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
  const with_ = rules(rule("allow", { protocol: 6 }), rule("deny", { from: { nets: [cidr("10.0.0.0/8")] } }));
  const without = rules(rule("allow", { protocol: 6 }));
  const chainOf = (one: PolicyList) => rulesetOf(one, persistentMap()).chains.get(headOf(one))!.rules;
  expect(chainOf(with_)).toEqual(chainOf(without));
});

test("a list ending in next goes where its endings say", () => {
  const one = list(
    [tier("t", "pass", policy("p", rule("deny", { protocol: 17 }), rule("allow", { protocol: 6 })))],
    [],
    "next",
  );
  const compiled = compileList(one, "head", {
    endings: { allow: ACCEPT, deny: DROP, next: goto("elsewhere") },
    form: () => ({ interval: false, capacity: undefined }),
    logGroup: 1,
  });
  const ruleset: Ruleset = {
    sets: persistentMap(compiled.fixedSets),
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
  expect([6, 17, 47].map((protocol) => traceChain(ruleset, "head", packet(protocol)))).toEqual([
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
