/** Counters of real packets: what they say, and what they survive. */
import { afterAll, describe, expect, test } from "bun:test";
import type { CompiledPolicy, PolicyList } from "../../src/model/desired.ts";
import type { Decision } from "../../src/model/evaluate.ts";
import type { DecisionCount } from "../../src/sdk/dataplane.ts";
import { type Node, node, PLACES, reaches } from "../../test/contract/dataplane_node.ts";
import {
  list,
  netSet,
  policy,
  portSet,
  rule,
  setId,
  state,
  tier,
  workload,
} from "../../src/model/testdata/small_states.ts";
import { openDataplane } from "./testdata/open.ts";
import { removeLocks } from "./testdata/tools.ts";

afterAll(removeLocks);

const port = (first: number, last = first) => [{ first, last }];
const from = (...ids: readonly string[]) => ({ sets: ids.map(setId) });

/** Enough rules with ports for a tree of them, and one of each other way that a verdict comes about. */
const POLICY = policy(
  "NetworkPolicy/x/p",
  rule("allow", { protocol: 6, from: from("pods"), to: { ports: port(80) } }),
  rule("allow", { protocol: 6, from: from("outside"), to: { ports: port(80) } }),
  rule("allow", { protocol: 6, from: from("pods"), to: { ports: port(81) } }),
  rule("allow", { protocol: 6, from: from("nets"), to: { ports: port(82) } }),
  rule("allow", { protocol: 6, to: { ports: port(83) } }),
  rule("allow", { protocol: 6, to: { ports: port(8000, 8999) } }),
  rule("allow", { from: from("outside", "nets") }),
  rule("allow", { to: { portSets: [setId("named")] } }),
  rule("allow", { protocol: 6, to: { ports: port(9000) } }),
  rule("deny", { protocol: 6, to: { ports: port(9001, 9003) } }),
);
const STAGED: CompiledPolicy = {
  ...policy(
    "StagedNetworkPolicy/x/s",
    rule("deny", { protocol: 6, to: { ports: port(80) } }),
    rule("allow", { protocol: 6, to: { ports: port(81) } }),
  ),
  staged: true,
};
const listOf = (...policies: readonly CompiledPolicy[]): PolicyList => list([tier("default", "deny", ...policies)]);

const SETS = [
  netSet("pods", PLACES.a!.v4, PLACES.a!.v6),
  netSet("outside", PLACES.out!.v4),
  netSet("nets", "10.0.0.0/24", "192.0.2.0/24"),
  portSet("named", `${PLACES.b!.v4} 6 90`),
];

const worldOf = (ingress: PolicyList, generation = 1, egress?: PolicyList) =>
  state({
    generation,
    sets: SETS,
    workloads: [
      workload("a", "mxa", [PLACES.a!.v4, PLACES.a!.v6], egress === undefined ? {} : { egress }),
      workload("b", "mxb", [PLACES.b!.v4, PLACES.b!.v6], { ingress }),
    ],
  });

/** `p 0: 2` for each counter that is not at zero, in order of the text. */
const textOf = (counts: readonly DecisionCount[]): readonly string[] =>
  counts.filter(({ packets }) => packets > 0).map(({ decisions, packets }) =>
    `${decisions.map(nameOf).join(" + ")}: ${packets}`
  ).sort();

const nameOf = (decision: Decision): string =>
  decision.by === "rule"
    ? `${decision.staged ? "staged " : ""}${decision.policy.split("/").at(-1)} ${decision.origin.index}`
    : decision.by;

function knock(here: Node, lines: string): readonly boolean[] {
  return lines.trim().split("\n").map((line) => {
    const [place, target, family = "v4"] = line.trim().split(" ");
    return reaches(here.places[place!]!, PLACES.b![family as "v4" | "v6"], Number(target));
  });
}

const KNOCKS = `
  a 80
  a 80
  a 80 v6
  a 81
  a 82
  a 83
  a 8500
  a 90
  a 22
  out 80
  out 22
  a 9002
`;
const ANSWERS = [true, true, true, true, true, true, true, true, false, true, true, false];
const OF_RULES = ["p 0: 3", "p 1: 1", "p 2: 1", "p 3: 1", "p 4: 1", "p 5: 1", "p 6: 1", "p 7: 1", "p 9: 1"];
const WANTED = [...OF_RULES, "tier default: 1"];

describe.each(["legacy", "nft"] as const)("iptables (%s)", (variant) => {
  const open = (more: Readonly<Record<string, unknown>> = {}) =>
    node((namespace) => openDataplane(namespace, { variant, ...more }));

  test("the first packet of each flow is counted where it was decided", async () => {
    await using here = await open();
    const ingress = listOf(POLICY);
    await here.dataplane.apply(worldOf(ingress));
    expect(textOf(await here.dataplane.counts!(ingress))).toEqual([]);
    expect(knock(here, KNOCKS)).toEqual(ANSWERS);
    const counts = await here.dataplane.counts!(ingress);
    expect(textOf(counts)).toEqual(WANTED);
    // A SYN with its options: 60 bytes over IPv4, 80 over IPv6.
    expect(counts.find(({ decisions }) => nameOf(decisions[0]!) === "p 0")!.bytes).toBe(60 + 60 + 80);
    expect(await here.dataplane.counts!(listOf())).toEqual([]);
  });

  test("a tier's default, a pass and what follows it are counted each", async () => {
    await using here = await open();
    const ingress = list([
      tier(
        "first",
        "deny",
        policy("NetworkPolicy/x/first", rule("pass", { protocol: 6, to: { ports: port(80, 89) } })),
      ),
      tier("default", "deny", policy("NetworkPolicy/x/p", rule("allow", { protocol: 6, to: { ports: port(80) } }))),
    ]);
    await here.dataplane.apply(worldOf(ingress));
    expect(knock(here, "a 80\na 81\na 82\na 90")).toEqual([true, false, false, false]);
    const counts = await here.dataplane.counts!(ingress);
    const defaults = counts.flatMap(({ decisions: [one], packets }) =>
      one!.by === "tier default" ? [[one!.tier, packets]] : []
    );
    // A SYN that nobody answers may be sent again.
    expect(Object.fromEntries(defaults)).toEqual({ first: 1, default: 2 });
    expect(textOf(counts)).toEqual(["first 0: 3", "p 0: 1", "tier default: 1", "tier default: 2"]);
  });

  test("rules that are one in the kernel are counted together, and a rule's count is that of all endpoints", async () => {
    await using here = await open();
    const many = listOf(
      policy(
        "NetworkPolicy/x/many",
        ...["pods", "outside", "nets", "none"].map((set) =>
          rule("allow", { protocol: 6, from: from(set), to: { ports: port(80) } })
        ),
      ),
    );
    // The same rules judge what the other pod sends, in a list with another one behind them.
    const other = listOf(...many.tiers[0]!.policies, policy("NetworkPolicy/x/all", rule("allow", {})));
    await here.dataplane.apply(worldOf(many, 1, other));
    expect(knock(here, "a 80")).toEqual([true]);
    const together = "many 0 + many 1 + many 2 + many 3";
    expect(textOf(await here.dataplane.counts!(many))).toEqual([`${together}: 2`]);
    expect(textOf(await here.dataplane.counts!(other))).toEqual([`${together}: 2`]);
  });

  test("a staged policy counts what it would have decided and decides nothing", async () => {
    await using here = await open();
    const early = policy("NetworkPolicy/x/early", rule("deny", { protocol: 6, to: { ports: port(81) } }));
    const ingress = list([
      tier("first", "deny", STAGED),
      tier("default", "deny", early, { ...STAGED, id: "StagedNetworkPolicy/x/late" }, {
        ...POLICY,
        rules: POLICY.rules.slice(0, 5),
      }),
    ]);
    await here.dataplane.apply(worldOf(ingress));
    expect(knock(here, "a 80\na 81\na 83\na 22")).toEqual([true, false, true, false]);
    expect(textOf(await here.dataplane.counts!(ingress))).toEqual([
      "early 0: 1",
      "p 0: 1",
      "p 4: 1",
      "staged late 0: 1",
      "staged s 0: 1",
      "staged s 1: 1",
      "tier default: 1",
    ]);
  });

  test("counters survive other pods, members, a resync and a restart", async () => {
    await using here = await open();
    const ingress = listOf(POLICY);
    await here.dataplane.apply(worldOf(ingress));
    knock(here, KNOCKS);
    const more = worldOf(ingress, 2);
    await here.dataplane.apply({ ...more, workloads: more.workloads.set("c", workload("c", "mxc", ["10.0.0.3"])) });
    await here.dataplane.apply({
      ...more,
      generation: 3,
      sets: more.sets.set(setId("pods"), netSet("pods", PLACES.a!.v4, PLACES.a!.v6, "10.0.0.9")),
    });
    expect((await here.dataplane.resync()).messages).toBe(0);
    await using next = await openDataplane(here.node, { variant });
    expect((await next.apply(worldOf(ingress, 4))).converged).toBe(true);
    expect(textOf(await next.counts!(ingress))).toEqual(WANTED);
  });
});

test("counters survive a change of their policy, but not that of the rule whose place another one takes", async () => {
  await using here = await node((namespace) => openDataplane(namespace, { variant: "legacy" }));
  const before = listOf(POLICY);
  await here.dataplane.apply(worldOf(before));
  knock(here, KNOCKS);
  // A rule is known by its place: what it says may change as well. A default is its list's own.
  const edited = listOf({
    ...POLICY,
    rules: [...POLICY.rules.slice(0, -1), { ...POLICY.rules.at(-1)!, protocol: 17 }],
  });
  await here.dataplane.apply(worldOf(edited, 2));
  expect(textOf(await here.dataplane.counts!(edited))).toEqual(OF_RULES);
  expect(await here.dataplane.counts!(before)).toEqual([]);
  knock(here, "a 80");
  expect(textOf(await here.dataplane.counts!(edited))).toEqual(["p 0: 4", ...OF_RULES.slice(1)]);

  const another = policy("NetworkPolicy/x/q", ...POLICY.rules.map((one) => ({ ...one, protocol: 17 })));
  const others = listOf(another, POLICY);
  await here.dataplane.apply(worldOf(others, 3));
  expect(textOf(await here.dataplane.counts!(others))).toEqual(["p 0: 4", ...OF_RULES.slice(1)]);
  const gone = listOf(another);
  await here.dataplane.apply(worldOf(gone, 4));
  expect(textOf(await here.dataplane.counts!(gone))).toEqual([]);
});
