/** Counters of real packets: what they say, and what they survive. */
import { expect, test } from "bun:test";
import type { CompiledPolicy, PolicyList } from "../../src/model/desired.ts";
import type { Decision } from "../../src/model/evaluate.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import type { DecisionCount } from "../../src/sdk/dataplane.ts";
import { commentOf, countKey, keyOf } from "./counters.ts";
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

const port = (first: number, last = first) => [{ first, last }];
const from = (...ids: readonly string[]) => ({ sets: ids.map(setId) });

/** One rule of each way that a verdict comes about in the flat form; `more` rules of another policy after them. */
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
const listOf = (...policies: readonly CompiledPolicy[]): PolicyList => list([tier("default", "deny", ...policies)]);

const SETS = [
  netSet("pods", PLACES.a!.v4, PLACES.a!.v6),
  netSet("outside", PLACES.out!.v4),
  netSet("nets", "10.0.0.0/24", "192.0.2.0/24"),
  portSet("named", `${PLACES.b!.v4} 6 90`),
];

const worldOf = (ingress: PolicyList, generation = 1) =>
  state({
    generation,
    sets: SETS,
    workloads: [
      workload("a", "mxa", [PLACES.a!.v4, PLACES.a!.v6]),
      workload("b", "mxb", [PLACES.b!.v4, PLACES.b!.v6], { ingress }),
    ],
  });

/** `rule 0: 2` for each counter that is not at zero, in order of the text. */
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
`;
const WANTED = ["p 0: 3", "p 1: 1", "p 2: 1", "p 3: 1", "p 4: 1", "p 5: 1", "p 6: 1", "p 7: 1", "tier default: 1"];

for (const form of ["flat", "linear"]) {
  test(`the first packet of each flow is counted where it was decided (${form})`, async () => {
    await using here = await node((namespace) => openDataplane(namespace, { form }));
    const ingress = listOf(POLICY);
    await here.dataplane.apply(worldOf(ingress));
    expect(textOf(await here.dataplane.counts!(ingress))).toEqual([]);
    expect(knock(here, KNOCKS)).toEqual([true, true, true, true, true, true, true, true, false, true, true]);
    const counts = await here.dataplane.counts!(ingress);
    expect(textOf(counts)).toEqual(WANTED);
    // A SYN with its options: 60 bytes over IPv4, 80 over IPv6.
    expect(counts.find(({ decisions }) => nameOf(decisions[0]!) === "p 0")!.bytes).toBe(60 + 60 + 80);
    expect(await here.dataplane.counts!(listOf())).toEqual([]);
    runIn(here.node, "nft", "-j", "list", "ruleset");
    expect(runIn(here.node, "nft", "list", "ruleset")).toMatch(
      /counter packets 3 bytes 200 comment "ingress rule 0 of NetworkPolicy\/x\/p"|packets 2 bytes 120/,
    );
  });
}

test("counters survive what does not concern their rule: other policies, other pods, resync and restart", async () => {
  await using here = await node((namespace) => openDataplane(namespace));
  const before = listOf(POLICY);
  await here.dataplane.apply(worldOf(before));
  knock(here, KNOCKS);

  // A rule is known by its place: what it says may change as well.
  const edited = listOf({
    ...POLICY,
    rules: [...POLICY.rules.slice(0, -1), { ...POLICY.rules.at(-1)!, protocol: 17 }],
  });
  await here.dataplane.apply(worldOf(edited, 2));
  expect(textOf(await here.dataplane.counts!(edited))).toEqual(WANTED);
  expect(await here.dataplane.counts!(before)).toEqual([]);

  const more = worldOf(edited, 3);
  await here.dataplane.apply({ ...more, workloads: more.workloads.set("c", workload("c", "mxc", ["10.0.0.3"])) });
  await here.dataplane.apply({
    ...more,
    generation: 4,
    sets: more.sets.set(setId("pods"), netSet("pods", PLACES.a!.v4, PLACES.a!.v6, "10.0.0.9")),
  });
  expect((await here.dataplane.resync()).messages).toBe(0);
  await using next = await openDataplane(here.node);
  expect((await next.apply(worldOf(edited, 5))).converged).toBe(true);
  expect(textOf(await next.counts!(edited))).toEqual(WANTED);
});

test("a counter whose place another rule takes begins anew", async () => {
  await using here = await node((namespace) => openDataplane(namespace));
  const rules = [80, 81, 82, 83].map((at) =>
    rule("allow", { protocol: 6, from: from("pods"), to: { ports: port(at) } })
  );
  const first = listOf(policy("NetworkPolicy/x/p", ...rules), policy("NetworkPolicy/x/q", ...rules));
  await here.dataplane.apply(worldOf(first));
  knock(here, "a 80");
  expect(textOf(await here.dataplane.counts!(first))).toEqual(["p 0: 1"]);
  const second = listOf(policy("NetworkPolicy/x/p", ...rules.slice(1)), policy("NetworkPolicy/x/q", ...rules));
  await here.dataplane.apply(worldOf(second, 2));
  expect(textOf(await here.dataplane.counts!(second))).toEqual([]);
  knock(here, "a 80");
  expect(textOf(await here.dataplane.counts!(second))).toEqual(["q 0: 1"]);
});

test("a staged policy counts what it would have decided and decides nothing", async () => {
  await using here = await node((namespace) => openDataplane(namespace));
  const ingress = list([
    tier("first", "deny", STAGED),
    tier("default", "deny", policy("NetworkPolicy/x/early", rule("deny", { protocol: 6, to: { ports: port(81) } })), {
      ...STAGED,
      id: "StagedNetworkPolicy/x/late",
    }, POLICY),
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

const cause = (index: number, name = "NetworkPolicy/x/p") => ({
  logs: false,
  decision: { by: "rule", tier: "t", policy: name, origin: { policy: name, direction: "ingress", index } } as const,
});

test("comments are printable, short, and others for other decisions", () => {
  expect(commentOf([cause(3)])).toBe("ingress rule 3 of NetworkPolicy/x/p");
  const long = "NetworkPolicy/x/" + "p".repeat(200);
  const all = [
    commentOf([cause(0, long)]),
    commentOf([cause(0, `${long}q`)]),
    commentOf([cause(0, "ä")]),
    commentOf([cause(0, "ö")]),
    commentOf([cause(0), cause(1)]),
    commentOf([cause(0), cause(2)]),
  ];
  expect(new Set(all).size).toBe(all.length);
  for (const one of all) expect(one).toMatch(/^[\x20-\x7e]{1,125}$/);
});

test("keys are 16 bytes and tell decisions and scopes apart", () => {
  const keys = [
    countKey([cause(0)]),
    countKey([cause(1)]),
    countKey([cause(0), cause(1)]),
    countKey([cause(0)], "scope"),
    keyOf(""),
  ];
  expect(new Set(keys).size).toBe(keys.length);
  for (const key of keys) expect(key).toMatch(/^[\0-\xff]{16}$/);
  expect(countKey([{ ...cause(0) }])).toBe(keys[0]!);
});
