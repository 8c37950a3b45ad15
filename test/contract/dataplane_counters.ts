/**
 * What every dataplane's counters say of real packets, and what they survive. Call `dataplaneCounters` in a test file of the dataplane;
 * the worlds and the knocks are exported for what one dataplane does in its own way.
 */
import { expect, test } from "bun:test";
import type { CompiledPolicy, DesiredState, PolicyList } from "../../src/model/desired.ts";
import type { Decision } from "../../src/model/evaluate.ts";
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
import type { Dataplane, DecisionCount } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { type Node, node, PLACES, reaches } from "./dataplane_node.ts";

export const port = (first: number, last = first) => [{ first, last }];
export const from = (...ids: readonly string[]) => ({ sets: ids.map(setId) });

/** One rule of each way that a verdict comes about. */
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
);
const STAGED: CompiledPolicy = {
  ...policy(
    "StagedNetworkPolicy/x/s",
    rule("deny", { protocol: 6, to: { ports: port(80) } }),
    rule("allow", { protocol: 6, to: { ports: port(81) } }),
  ),
  staged: true,
};
export const listOf = (...policies: readonly CompiledPolicy[]): PolicyList =>
  list([tier("default", "deny", ...policies)]);

const SETS = [
  netSet("pods", PLACES.a!.v4, PLACES.a!.v6),
  netSet("outside", PLACES.out!.v4),
  netSet("nets", "10.0.0.0/24", "192.0.2.0/24"),
  portSet("named", `${PLACES.b!.v4} 6 90`),
];

/** `ingress` judges what comes to `b`, `egress` what `a` sends. */
export const worldOf = (ingress: PolicyList, generation = 1, egress?: PolicyList): DesiredState =>
  state({
    generation,
    sets: SETS,
    workloads: [
      workload("a", "mxa", [PLACES.a!.v4, PLACES.a!.v6], egress === undefined ? {} : { egress }),
      workload("b", "mxb", [PLACES.b!.v4, PLACES.b!.v6], { ingress }),
    ],
  });

/** `p 0: 2` for each counter that is not at zero, in order of the text. */
export const textOf = (counts: readonly DecisionCount[]): readonly string[] =>
  counts.filter(({ packets }) => packets > 0).map(({ decisions, packets }) =>
    `${decisions.map(nameOf).join(" + ")}: ${packets}`
  ).sort();

const nameOf = (decision: Decision): string =>
  decision.by === "rule"
    ? `${decision.staged ? "staged " : ""}${decision.policy.split("/").at(-1)} ${decision.origin.index}`
    : decision.by;

/** Lines `a 80`, `a 80 v6`: a place knocks at a port of `b`; whether each was answered. */
export function knock(here: Node, lines: string): readonly boolean[] {
  return lines.trim().split("\n").map((line) => {
    const [place, target, family = "v4"] = line.trim().split(" ");
    return reaches(here.places[place!]!, PLACES.b![family as "v4" | "v6"], Number(target));
  });
}

/** A policy, who knocks at `b` where it is in force, whether each is answered, and what its rules and the default count then. */
export interface CountedCase {
  readonly policy: CompiledPolicy;
  readonly knocks: string;
  readonly answers: readonly boolean[];
  readonly ofRules: readonly string[];
  readonly ofAll: readonly string[];
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
`;
const ANSWERS = [true, true, true, true, true, true, true, true, false, true, true];
const OF_RULES = ["p 0: 3", "p 1: 1", "p 2: 1", "p 3: 1", "p 4: 1", "p 5: 1", "p 6: 1", "p 7: 1"];
const OF_DEFAULT = "tier default: 1";

export const EIGHT_RULES: CountedCase = {
  policy: POLICY,
  knocks: KNOCKS,
  answers: ANSWERS,
  ofRules: OF_RULES,
  ofAll: [...OF_RULES, OF_DEFAULT],
};

const OF_TEN = [...OF_RULES, "p 9: 1"];
/** Enough rules with ports for a tree of them. */
export const TEN_RULES: CountedCase = {
  policy: policy(
    "NetworkPolicy/x/p",
    ...POLICY.rules,
    rule("allow", { protocol: 6, to: { ports: port(9000) } }),
    rule("deny", { protocol: 6, to: { ports: port(9001, 9003) } }),
  ),
  knocks: `${KNOCKS}a 9002`,
  answers: [...ANSWERS, false],
  ofRules: OF_TEN,
  ofAll: [...OF_TEN, OF_DEFAULT],
};

/** The same but for what the last rule says. */
export const edited = ({ policy: { rules, ...policy } }: CountedCase): PolicyList =>
  listOf({ ...policy, rules: [...rules.slice(0, -1), { ...rules.at(-1)!, protocol: 17 }] });

/** `open`: the dataplane, in a namespace that is a node of its own; again, as after a restart. */
export function dataplaneCounters(
  open: (namespace: NetworkNamespace) => Promise<Dataplane>,
  { policy: counted, knocks, answers, ofAll }: CountedCase,
): void {
  test("the first packet of each flow is counted where it was decided", async () => {
    await using here = await node(open);
    const ingress = listOf(counted);
    await here.dataplane.apply(worldOf(ingress));
    expect(textOf(await here.dataplane.counts!(ingress))).toEqual([]);
    expect(knock(here, knocks)).toEqual(answers);
    const counts = await here.dataplane.counts!(ingress);
    expect(textOf(counts)).toEqual(ofAll);
    // A SYN with its options: 60 bytes over IPv4, 80 over IPv6.
    expect(counts.find(({ decisions }) => nameOf(decisions[0]!) === "p 0")!.bytes).toBe(60 + 60 + 80);
    expect(await here.dataplane.counts!(listOf())).toEqual([]);
  });

  test("a tier's default, a pass and what follows it are counted each", async () => {
    await using here = await node(open);
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

  test.each([["many", counted.rules], ["few", counted.rules.slice(0, 5)]] as const)(
    "a staged policy counts what it would have decided and decides nothing, before %s rules",
    async (_, rules) => {
      await using here = await node(open);
      const early = policy("NetworkPolicy/x/early", rule("deny", { protocol: 6, to: { ports: port(81) } }));
      const ingress = list([
        tier("first", "deny", STAGED),
        tier("default", "deny", early, { ...STAGED, id: "StagedNetworkPolicy/x/late" }, {
          ...counted,
          rules,
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
    },
  );

  test("counters survive other pods, members, a resync and a restart", async () => {
    await using here = await node(open);
    const ingress = listOf(counted);
    await here.dataplane.apply(worldOf(ingress));
    knock(here, knocks);
    const more = worldOf(ingress, 2);
    await here.dataplane.apply({ ...more, workloads: more.workloads.set("c", workload("c", "mxc", ["10.0.0.3"])) });
    await here.dataplane.apply({
      ...more,
      generation: 3,
      sets: more.sets.set(setId("pods"), netSet("pods", PLACES.a!.v4, PLACES.a!.v6, "10.0.0.9")),
    });
    expect((await here.dataplane.resync()).messages).toBe(0);
    await using next = await open(here.node);
    expect((await next.apply(worldOf(ingress, 4))).converged).toBe(true);
    expect(textOf(await next.counts!(ingress))).toEqual(ofAll);
  });
}
