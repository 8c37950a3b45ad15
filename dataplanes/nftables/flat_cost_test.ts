/** What a packet costs as lists grow: the rules that it walks, by the tracer. */
import { expect, test } from "bun:test";
import { hostCidr, parseAddress } from "../../src/model/address.ts";
import type { CompiledPolicy, PolicyList, Rule, SetId } from "../../src/model/desired.ts";
import { judgeList } from "../../src/model/evaluate.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { Renderer } from "./render.ts";
import { interfaceKey, type Ruleset } from "./ruleset.ts";
import { list, netSet, policy, rule, setId, state, tier, workload } from "../../src/model/testdata/small_states.ts";
import { findElement, traceChain, type TracedPacket } from "./trace.ts";

const FEW = 20, MANY = 1_000;
const host = (i: number) => `10.${i >> 16 & 255}.${i >> 8 & 255}.${i & 255}`;
const port = (at: number) => [{ first: at, last: at }];
const peers = (i: number): { readonly sets: readonly SetId[] } => ({ sets: [setId(`s${i}`)] });

const policies = (count: number, rulesOf: (i: number) => readonly Rule[]): readonly CompiledPolicy[] =>
  Array.from({ length: count }, (_, i) => policy(`NetworkPolicy/x/p${i}`, ...rulesOf(i)));
const closed = (all: readonly CompiledPolicy[]): PolicyList => list([tier("default", "deny", ...all)]);
const open = policy("Profile//open", rule("allow"));

/** Lists by what they are made of; every `i` has another peer. */
const LISTS: Readonly<Record<string, (count: number) => PolicyList>> = {
  "each policy another peer and port": (count) =>
    closed(policies(count, (i) => [rule("allow", { protocol: 6, from: peers(i), to: { ports: port(1000 + i) } })])),
  "each policy another peer, the same port": (count) =>
    closed(policies(count, (i) => [rule("allow", { protocol: 6, from: peers(i), to: { ports: port(80) } })])),
  "each policy another peer, no ports": (count) => closed(policies(count, (i) => [rule("allow", { from: peers(i) })])),
  "each policy two peers, three ports and a range": (count) =>
    closed(
      policies(count, (i) =>
        [peers(i), peers((i + 1) % count)].flatMap((from) =>
          [1000 + i, 5000 + i, 9000 + i].map((at) =>
            rule("allow", { protocol: 6, from, to: { ports: port(at) } })
          ).concat(
            rule("allow", { protocol: 17, from, to: { ports: [{ first: 20_000 + i * 10, last: 20_006 + i * 10 }] } }),
          )
        )),
    ),
  "each policy allows at its port and denies the rest of it": (count) =>
    closed(policies(count, (i) => [
      rule("allow", { protocol: 6, from: peers(i), to: { ports: port(1000 + i) } }),
      rule("deny", { protocol: 6, to: { ports: port(1000 + i) } }),
    ])),
  "policies that allow, deny and pass by turns, each another peer and port": (count) =>
    list([
      tier(
        "first",
        "deny",
        ...policies(count, (i) => [
          rule((["allow", "deny", "pass"] as const)[i % 3]!, {
            protocol: 6,
            from: peers(i),
            to: { ports: port(1000 + i) },
          }),
        ]),
      ),
    ], [open]),
  "deny, then allow, each another peer and port": (count) =>
    closed([
      ...policies(count / 2, (i) => [rule("deny", { protocol: 6, from: peers(i), to: { ports: port(1000 + i) } })]),
      ...policies(
        count / 2,
        (i) => [rule("allow", { protocol: 6, from: peers(count - 1 - i), to: { ports: port(1000 + i) } })],
      ),
    ]),
};

const sets = persistentMap(Array.from({ length: MANY }, (_, i) => {
  const set = netSet(`s${i}`);
  return [set.id, { ...set, members: persistentMap([[hostCidr(parseAddress(host(i))), true as const]]) }] as const;
}));

const headOf = (ruleset: Ruleset): string => {
  const found = findElement(ruleset.sets.get("to-workload")!, interfaceKey("mx1"));
  if (typeof found !== "object" || !("chain" in found)) throw new Error("found no chain for mx1");
  return found.chain;
};

/** The most rules that any of the packets walks; each is judged as the evaluator does. */
function cost(wanted: PolicyList, count: number, shape: "flat" | "linear" = "flat"): number {
  const world = { ...state({ workloads: [workload("w", "mx1", ["192.0.2.1"], { ingress: wanted })] }), sets };
  const { ruleset, problems } = new Renderer({ logGroup: 86, passedMark: 0x10000, shape }).render(world);
  expect(problems).toEqual([]);
  const head = headOf(ruleset);
  let most = 0;
  for (const at of [0, count / 2, count - 1]) {
    for (const [protocol, destinationPort] of [[6, 80], [6, 1000 + at], [17, 20_003 + at * 10], [6, 7]] as const) {
      const packet: TracedPacket = {
        source: parseAddress(host(at)),
        destination: parseAddress("192.0.2.1"),
        protocol,
        sourcePort: 1024,
        destinationPort,
        state: "new",
      };
      const { verdict, walked } = traceChain(ruleset, head, packet);
      expect(verdict).toBe(judgeList(world, wanted, packet).verdict === "allow" ? "accept" : "drop");
      most = Math.max(most, walked);
    }
  }
  return most;
}

/** A list's chain, its columns, maps and end; fifty times the policies must not add one. */
const RULES_MAX = 12;

for (const [what, listOf] of Object.entries(LISTS)) {
  test(`${what}: ${MANY} cost a packet what ${FEW} cost`, () => {
    const [few, many] = [cost(listOf(FEW), FEW), cost(listOf(MANY), MANY)];
    expect(many).toBeLessThanOrEqual(few);
    expect(many).toBeLessThanOrEqual(RULES_MAX);
  }, 30_000);
}

test("the linear form walks them all: what the flat one is worth", () => {
  expect(cost(LISTS["each policy another peer and port"]!(200), 200, "linear")).toBeGreaterThanOrEqual(200);
});

/** Where the order of actions does not permit it: all ranges overlap, and allow and deny by turns. */
const HARD: Readonly<Record<string, (i: number, count: number) => Rule>> = {
  "peers without ports": (i) => rule(i % 2 ? "allow" : "deny", { from: peers(i % 50) }),
  "ranges that all overlap": (i, count) =>
    rule(i % 2 ? "allow" : "deny", {
      protocol: 6,
      from: peers(i % 50),
      to: { ports: [{ first: i, last: 65_535 - count + i }] },
    }),
  "rules with ports and without": (i) =>
    i % 2
      ? rule("allow", { protocol: 6, from: peers(i % 50), to: { ports: port(i) } })
      : rule("deny", { from: peers(i % 50) }),
  "logs between": (i) => rule(i % 2 ? "allow" : "log", { protocol: 6, from: peers(i % 50), to: { ports: port(i) } }),
};
for (const [what, ruleOf] of Object.entries(HARD)) {
  test(`10,000 rules that cannot be flat are rendered all the same: ${what}`, () => {
    const count = 10_000;
    const hard = closed([policy("NetworkPolicy/x/p", ...Array.from({ length: count }, (_, i) => ruleOf(i, count)))]);
    const world = { ...state({ workloads: [workload("w", "mx1", ["192.0.2.1"], { ingress: hard })] }), sets };
    const startMs = performance.now();
    const { problems } = new Renderer({ logGroup: 86, passedMark: 0x10000 }).render(world);
    expect(performance.now() - startMs).toBeLessThan(5_000);
    expect(problems.join()).toContain("rules are walked one by one");
  }, 30_000);
}

test("rules of one action that differ in both ends are walked one by one, and that is said", () => {
  const both = closed(policies(100, (i) => [rule("allow", { from: peers(i), to: peers(99 - i) })]));
  const world = { ...state({ workloads: [workload("w", "mx1", ["192.0.2.1"], { ingress: both })] }), sets };
  const { problems } = new Renderer({ logGroup: 86, passedMark: 0x10000 }).render(world);
  expect(problems.join()).toMatch(/10\d rules are walked one by one/);
});
