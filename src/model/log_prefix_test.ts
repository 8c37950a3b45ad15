import { expect, test } from "bun:test";
import type { DesiredState, PolicyList } from "./desired.ts";
import type { Decision } from "./evaluate.ts";
import * as prefixes from "./log_prefix.ts";
import { decisionsOf, type LogPrefix, type LogVerdict, parseLogPrefix } from "./log_prefix.ts";
import { persistentMap } from "./persistent_map.ts";
import type { Direction } from "./rule.ts";

/** As much as nf_tables has room for. */
const MAX_BYTES = 127;
const logPrefix = (decision: Decision, direction: Direction, verdict: LogVerdict): string =>
  prefixes.logPrefix(decision, direction, verdict, MAX_BYTES);
const createPrefixResolver = (desired: () => DesiredState | undefined) =>
  prefixes.createPrefixResolver(desired, MAX_BYTES);

const ruleDecision = (
  policy: string,
  index: number,
  { tier, direction = "ingress", staged }: { tier?: string; direction?: Direction; staged?: true } = {},
) =>
  ({
    by: "rule",
    policy,
    origin: { policy, direction, index },
    ...tier === undefined ? {} : { tier },
    ...staged ? { staged } : {},
  }) as Decision;

const WEB = "NetworkPolicy.networking.k8s.io/prod/web";
const LONG = `NetworkPolicy.projectcalico.org/${"n".repeat(63)}/${"p".repeat(253)}`;

const texts: readonly [string, Decision, Direction, "log" | "deny"][] = [
  [
    `manx deny ingress tier default rule 3 ${WEB}`,
    ruleDecision(WEB, 3, { tier: "default" }),
    "ingress",
    "deny",
  ],
  [
    "manx log egress profile rule 0 Profile.projectcalico.org//kns.prod",
    ruleDecision("Profile.projectcalico.org//kns.prod", 0, { direction: "egress" }),
    "egress",
    "log",
  ],
  ["manx deny egress tier default no match", { by: "tier default", tier: "default" }, "egress", "deny"],
  ["manx deny ingress no profile", { by: "no profile" }, "ingress", "deny"],
  ["manx log ingress end", { by: "end" }, "ingress", "log"],
  ["manx deny egress unknown endpoint", { by: "unknown endpoint" }, "egress", "deny"],
  [
    "manx log ingress staged tier default rule 12 StagedNetworkPolicy.projectcalico.org/prod/try",
    ruleDecision("StagedNetworkPolicy.projectcalico.org/prod/try", 12, { tier: "default", staged: true }),
    "ingress",
    "log",
  ],
  [
    "manx deny ingress tier t rule 0 no/no/match",
    ruleDecision("no/no/match", 0, { tier: "t" }),
    "ingress",
    "deny",
  ],
];
for (const [text, decision, direction, verdict] of texts) {
  test(`"${text}" is said of its decision, and read back as that`, () => {
    expect(logPrefix(decision, direction, verdict)).toBe(text);
    expect(parseLogPrefix(text)).toEqual({ verdict, direction, decision });
  });
}

test("a long name is cut, the rule's number is not, and the text alone gives verdict and direction", () => {
  const text = logPrefix(ruleDecision(LONG, 1_023, { tier: "t".repeat(253) }), "ingress", "deny");
  expect(text).toBe(
    `manx deny ingress tier ${"t".repeat(30)}~ rule 1023 NetworkPolicy.projectcalico.org/nnnnnnnnnnnnn~${
      text.slice(-16)
    }`,
  );
  expect(text.length).toBeLessThanOrEqual(MAX_BYTES);
  expect(parseLogPrefix(text)).toEqual({ verdict: "deny", direction: "ingress", decision: undefined });
});

const strange: readonly [string, Decision][] = [
  ["a policy of 127 bytes", ruleDecision(LONG.slice(0, 127), 0, { tier: "a" })],
  ["a name with a space", ruleDecision("a b", 0, { tier: "a" })],
  ["a name that is no ASCII", ruleDecision("pölicy", 0, { tier: "a" })],
  ["a name with control characters", ruleDecision("a\x1b[31m\n\0b", 0, { tier: "a" })],
  ["a name with the mark of the cut", ruleDecision("a~b", 0, { tier: "a" })],
  ["no name", ruleDecision("", 0, { tier: "" })],
  ["a tier with a space", { by: "tier default", tier: "a b" }],
  ["a long tier", { by: "tier default", tier: "t".repeat(253) }],
  ["a tier that is no ASCII", { by: "tier default", tier: "→".repeat(80) }],
  [
    "an origin that is another policy",
    { by: "rule", policy: "a", tier: "t", origin: { policy: "b", direction: "ingress", index: 0 } },
  ],
  [
    "an origin of the other direction",
    { by: "rule", policy: "a", tier: "t", origin: { policy: "a", direction: "egress", index: 0 } },
  ],
];

/** A list that may decide by each of these. */
function listOf(decisions: readonly Decision[]): PolicyList {
  const tiers = decisions.map((decision) => ({
    name: "tier" in decision ? decision.tier! : "",
    policies: decision.by !== "rule" ? [] : [{
      id: decision.policy,
      staged: "staged" in decision,
      rules: [{ action: "deny", source: {}, destination: {}, origin: decision.origin }],
    }],
    defaultAction: "deny",
  }));
  return { id: "l", tiers, profiles: [], end: "deny" } as PolicyList;
}

const EMPTY = listOf([]);

/** A state with one workload. */
const desired = (ingress = EMPTY, egress = EMPTY): DesiredState => ({
  generation: 1,
  sets: persistentMap(),
  workloads: persistentMap([["w", { id: "w", interfaceName: "mx0", addresses: [], ingress, egress }]]),
  hostEndpoints: persistentMap(),
  failsafe: { inbound: [], outbound: [] },
  masquerade: { sources: [], inside: [] },
});

test.each([127, 63])("strange and long names in %d bytes are printable, each another, and found again", (maxBytes) => {
  const list = listOf(strange.map(([, decision]) => decision));
  const resolver = prefixes.createPrefixResolver(() => desired(list, undefined), maxBytes);
  const seen = new Set<string>();
  for (const [subject, decision] of strange) {
    const prefix = prefixes.logPrefix(decision, "ingress", "deny", maxBytes);
    expect([subject, /^[\x20-\x7e]+$/.test(prefix) && prefix.length <= maxBytes]).toEqual([subject, true]);
    seen.add(prefix);
    expect([subject, resolver.resolve(prefix)]).toEqual([subject, {
      verdict: "deny",
      direction: "ingress",
      decision,
    } as LogPrefix]);
  }
  expect(seen.size).toBe(strange.length);
});

test("policies that differ after the cut only have different prefixes", () => {
  const one = ruleDecision(`${LONG}1`, 0, { tier: "t" }), two = ruleDecision(`${LONG}2`, 0, { tier: "t" });
  const [first, second] = [one, two].map((decision) => logPrefix(decision, "ingress", "deny"));
  expect(first).not.toBe(second);
  expect(first!.slice(0, -16)).toBe(second!.slice(0, -16));
  const resolver = createPrefixResolver(() => desired(listOf([one, two]), undefined));
  expect(resolver.resolve(second!)?.decision).toEqual(two);
});

test("a state is searched once for a prefix that nobody has, and another state again", () => {
  let searches = 0;
  const decision = ruleDecision(LONG, 0, { tier: "t" });
  let now: DesiredState | undefined;
  const resolver = createPrefixResolver(() => now);
  const counted = (ingress?: PolicyList, egress?: PolicyList): DesiredState => {
    const made = desired(ingress, egress);
    return {
      ...made,
      get workloads() {
        searches++;
        return made.workloads;
      },
    };
  };
  const prefix = logPrefix(decision, "ingress", "log");
  const shortened = { verdict: "log", direction: "ingress", decision: undefined } as const;
  expect(resolver.resolve(prefix)).toEqual(shortened);
  now = counted();
  for (let i = 0; i < 3; i++) expect(resolver.resolve(prefix)).toEqual(shortened);
  expect(searches).toBe(1);
  now = counted(undefined, listOf([decision]));
  expect(resolver.resolve(prefix)).toEqual(shortened);
  now = counted(listOf([decision]));
  expect(resolver.resolve(prefix)).toEqual({ ...shortened, decision });
  // What was found is known without the list.
  now = counted();
  expect(resolver.resolve(prefix)).toEqual({ ...shortened, decision });
  expect(searches).toBe(3);
});

test("host endpoints' lists are searched at every stage of the direction", () => {
  const stages = {
    ingress: ["ingress", "forwardIngress", "preDnat", "untrackedIngress"],
    egress: ["egress", "forwardEgress", "untrackedEgress"],
  } as const;
  for (const direction of ["ingress", "egress"] as const) {
    for (const stage of stages[direction]) {
      const decision = ruleDecision(LONG, 0, { tier: stage, direction });
      const host = { id: "h", interfaces: "*", ingress: EMPTY, egress: EMPTY, [stage]: listOf([decision]) } as const;
      const state = { ...desired(), hostEndpoints: persistentMap([["h", host]]) };
      const prefix = logPrefix(decision, direction, "deny");
      expect(createPrefixResolver(() => state).resolve(prefix)).toEqual({ verdict: "deny", direction, decision });
    }
  }
});

test("what is not ours is nobody's", () => {
  for (
    const text of [
      "",
      "manx",
      "manx deny",
      "manx accept ingress end",
      "manx deny sideways end",
      "manx deny ingress",
      "manx deny ingress tier t rule x p",
      "manx deny ingress tier t rule 1 p q",
      "manx deny ingress tier t rule 1 ~aaaaaaaaaaaaaaa1",
      "xmanx deny ingress end",
      "manx deny ingress end\n",
      "iptables: ",
    ]
  ) expect([text, parseLogPrefix(text)]).toEqual([text, undefined]);
});

test("a list's decisions are those it can be decided by", () => {
  const list: PolicyList = {
    ...listOf([ruleDecision("p", 0, { tier: "t" }), ruleDecision("s", 1, { tier: "u", staged: true })]),
    profiles: [{ id: "q", staged: false, rules: [] }],
  };
  expect([...decisionsOf(list)]).toEqual([
    ruleDecision("p", 0, { tier: "t" }),
    { by: "tier default", tier: "t" },
    ruleDecision("s", 1, { tier: "u", staged: true }),
    { by: "tier default", tier: "u" },
  ]);
});
