/** What one endpoint said about a packet, for people: who decided, what came near, what is staged. */
import type { Calc } from "../../calc/mod.ts";
import { tierOf } from "../../calc/policy_list.ts";
import type { Address } from "../../model/address.ts";
import type { CompiledPolicy, DesiredState, Packet, PolicyList, PolicyTier, Rule } from "../../model/desired.ts";
import {
  type Decision,
  type EndpointRef,
  type ExemptReason,
  judgeList,
  type Judgement,
  type ListJudgement,
  missesOf,
  type PolicyTrace,
  type RuleField,
  type Stage,
} from "../../model/evaluate.ts";
import type { ResourceKey } from "../../model/resource.ts";
import type { Direction, NeutralRule, RuleOrigin } from "../../model/rule.ts";
import { describeMiss, describeRule, type Holder } from "../../model/rule_text.ts";
import { describeSelector } from "../../model/selector_text.ts";
import type { AskedStep } from "./path.ts";
import type {
  CounterView,
  DecisionView,
  NearView,
  PolicyReference,
  PolicyView,
  RuleView,
  StagedView,
  StepView,
  TierView,
} from "./view.ts";
import { placeIn, type SourceLines } from "../resources/source_lines.ts";

/** Rules that came near, of one step. */
const NEAR_MAX = 5;
/** Ways that one written rule may match by, told of a rule that came near. */
const ALTERNATIVES_MAX = 3;
/** Policies of a tier that are listed from its beginning; the one that decided is listed as well. */
const POLICIES_MAX = 50;
/** Staged policies whose effect is worked out. */
const STAGED_MAX = 20;

export interface StepParts {
  readonly calc: Pick<Calc, "object">;
  readonly state: DesiredState;
  /** For people: `default/web` of a workload's id. */
  readonly nameOf: (endpoint: EndpointRef) => string;
  readonly holdersOf: (address: Address) => readonly Holder[];
  /** Where a policy was written, by its key text. */
  readonly linesOf: (policy: string) => Promise<SourceLines | undefined>;
  readonly counterOf: (list: PolicyList, decision: Decision) => Promise<CounterView>;
}

const EXEMPT: Readonly<Record<ExemptReason, string>> = {
  "neighbour discovery": "neighbour discovery and multicast listeners never meet policy",
  "from its node": "a node always reaches its own pods",
  itself: "a pod always reaches itself",
  "failsafe port": "a failsafe port is open whatever policy says",
  "allowed before": "policy before connection tracking or address translation has let it through here",
};

export async function viewOfStep(
  { node, packet, step, direction, reached }: AskedStep,
  parts: StepParts,
): Promise<StepView> {
  const ref = step.kind === "judgement" ? step.judgement.endpoint : step.endpoint;
  const common = { node, endpoint: parts.nameOf(ref), reached };
  const nothing = { tiers: [], profiles: [], near: [], nearMore: 0, staged: [] } as const;
  if (step.kind !== "judgement") {
    const refused = step.kind === "refused";
    return {
      ...common,
      ...nothing,
      direction,
      stage: direction,
      verdict: refused ? "deny" : "allow",
      reason: refused ? "it may send from its own addresses only" : EXEMPT[step.reason],
      counter: { absent: "policy is not asked" },
    };
  }
  const { judgement } = step;
  const { stage, verdict } = judgement;
  const list = listOf(parts.state, ref, stage);
  const where = { ...common, direction, stage, verdict };
  if (list === undefined) {
    return {
      ...where,
      ...nothing,
      reason: await reasonOf(judgement, undefined, parts),
      decision: { by: judgement.decision.by } as DecisionView,
      counter: { absent: "no policy is there to count" },
    };
  }
  const near = nearRules(list, judgement, packet, parts);
  const decision = await decisionOf(judgement, list, parts);
  return {
    ...where,
    reason: await reasonOf(judgement, decision, parts),
    decision,
    tiers: await Promise.all(judgement.tiers.map((trace, i) => tierView(trace, list.tiers[i]!, parts))),
    profiles: await Promise.all(
      judgement.profiles.map((trace, i) => policyView(trace, list.profiles[i]!, parts)),
    ),
    near: await Promise.all(near.slice(0, NEAR_MAX).map((one) => nearView(one, packet, parts))),
    nearMore: Math.max(0, near.length - NEAR_MAX),
    staged: await stagedViews(list, judgement, packet, parts),
    counter: await parts.counterOf(list, judgement.decision),
  };
}

export function listOf(state: DesiredState, endpoint: EndpointRef, stage: Stage): PolicyList | undefined {
  const found: Partial<Record<Stage, PolicyList>> | undefined = "workload" in endpoint
    ? state.workloads.get(endpoint.workload)
    : state.hostEndpoints.get(endpoint.hostEndpoint);
  return found?.[stage];
}

export const directionOf = (stage: Stage): Direction => /egress/i.test(stage) ? "egress" : "ingress";

/** Key text → key; what is no key text (a plugin's own name) is all name. */
export function keyOf(id: string): ResourceKey {
  const [kind, namespace, ...name] = id.split("/");
  return name.length === 0
    ? { kind: "", namespace: "", name: id }
    : { kind: kind!, namespace: namespace!, name: name.join("/") };
}

export async function referenceOf(id: string, parts: Pick<StepParts, "linesOf">): Promise<PolicyReference> {
  const { kind, namespace, name } = keyOf(id);
  const lines = await parts.linesOf(id);
  const words = [kind.split(".")[0]!, namespace === "" ? name : `${namespace}/${name}`];
  return {
    kind,
    namespace,
    name,
    title: words.filter((word) => word !== "").join(" "),
    ...lines === undefined ? {} : { place: placeIn(lines) },
  };
}

async function ruleView(rule: Rule, parts: StepParts, text = describeRule(rule, parts.state)): Promise<RuleView> {
  const { policy, direction, index } = rule.origin;
  const lines = await parts.linesOf(policy);
  const written = writtenRule(rule.origin, parts);
  return {
    path: `spec.${direction}[${index}]`,
    direction,
    index,
    action: rule.action,
    text,
    ...written?.name === undefined ? {} : { name: written.name },
    ...written?.annotations === undefined ? {} : { annotations: written.annotations },
    ...lines === undefined ? {} : { place: placeIn(lines, { direction, index }) },
  };
}

/** The rule as its dialect gave it: with its name and annotations. */
function writtenRule({ policy, direction, index }: RuleOrigin, { calc }: StepParts): NeutralRule | undefined {
  const object = calc.object("policy", policy) ?? calc.object("profile", keyOf(policy).name);
  return object?.[direction]?.find(({ origin }) => origin.index === index);
}

async function decisionOf(
  { decision, tiers, profiles }: Judgement,
  list: PolicyList,
  parts: StepParts,
): Promise<DecisionView> {
  if (decision.by !== "rule") {
    return "tier" in decision ? { by: decision.by, tier: decision.tier } : { by: decision.by };
  }
  // The last rule that was looked at, in the last policy, in the last tier or profile: that decided.
  const inTier = decision.tier !== undefined;
  const traces = inTier ? tiers.at(-1)!.policies : profiles;
  const policies = inTier ? list.tiers[tiers.length - 1]!.policies : list.profiles;
  const rule = policies[traces.length - 1]!.rules[traces.at(-1)!.rules.length - 1]!;
  return {
    by: "rule",
    ...decision.tier === undefined ? {} : { tier: decision.tier },
    policy: await referenceOf(decision.policy, parts),
    rule: await ruleView(rule, parts),
  };
}

async function reasonOf(
  { decision, endpoint, tiers }: Judgement,
  view: DecisionView | undefined,
  parts: StepParts,
): Promise<string> {
  const name = parts.nameOf(endpoint);
  switch (decision.by) {
    case "rule": {
      const { rule, policy } = view!;
      if (decision.tier !== undefined) return `${policy!.title} ${rule!.path}: ${rule!.text}`;
      const isSelected = tiers.some(({ policies }) => policies.some((one) => !one.staged));
      return `${isSelected ? "every tier passes it on" : `no policy selects ${name}`}; ${policy!.title}: ${rule!.text}`;
    }
    case "tier default": {
      const last = tiers.at(-1)!.policies.filter(({ staged }) => !staged).length;
      const whose = last === 1 ? "the policy" : `the ${last} policies`;
      return `no rule of ${whose} that tier ${decision.tier} has for ${name} matches; the tier's default action is Deny`;
    }
    case "no profile":
      return `no policy and no profile allows it`;
    case "end":
      return "no rule that applies here matches, and nothing is denied by default";
    case "unknown endpoint":
      return `${name} is not known there, and what is not known is denied`;
  }
}

async function tierView(
  { name, outcome, policies }: ListJudgement["tiers"][number],
  tier: PolicyTier,
  parts: StepParts,
): Promise<TierView> {
  const shown = policies.map((trace, i) => ({ trace, policy: tier.policies[i]! })).filter((_, i) =>
    i < POLICIES_MAX || i === policies.length - 1
  );
  const { order } = tierOf(name, parts.calc.object("tier", name));
  return {
    name,
    order: Number.isFinite(order) ? order : null,
    // As it is here: before DNAT and connection tracking, and where all is staged, no tier denies by default.
    defaultAction: tier.defaultAction,
    outcome,
    policies: await Promise.all(shown.map(({ trace, policy }) => policyView(trace, policy, parts))),
    more: policies.length - shown.length,
  };
}

async function policyView(
  { id, staged, outcome }: PolicyTrace,
  compiled: CompiledPolicy,
  parts: StepParts,
): Promise<PolicyView> {
  return { ...await appliedPolicy(compiled, parts), staged, outcome, ...id === compiled.id ? {} : { name: id } };
}

/** How many rules as they were written: several compiled ones may come of one. */
const writtenRules = ({ rules }: CompiledPolicy): number => new Set(rules.map(({ origin }) => origin.index)).size;

/** A policy or profile of a list, as `manx policies` shows it. */
export async function appliedPolicy(
  compiled: CompiledPolicy,
  parts: Pick<StepParts, "calc" | "linesOf">,
): Promise<Omit<PolicyView, "outcome">> {
  const policy = parts.calc.object("policy", compiled.id);
  return {
    ...await referenceOf(compiled.id, parts),
    order: policy?.order ?? null,
    staged: compiled.staged,
    rules: writtenRules(compiled),
    selects: policy === undefined ? "whoever names it" : describeSelector(policy.selects),
  };
}

/** A written rule that would have turned the verdict round, and the ways in which it failed by least. */
interface NearRule {
  readonly tier?: string;
  readonly alternatives: readonly { readonly rule: Rule; readonly misses: readonly RuleField[] }[];
  /** Of each alternative that counts. */
  readonly misses: number;
  /** Alternatives that are not among them. */
  readonly others: number;
}

/** Those that failed by least first, then in order. */
function nearRules(
  list: PolicyList,
  { verdict, decision }: Judgement,
  packet: Packet,
  { state }: StepParts,
): readonly NearRule[] {
  const decidedIn = decision.by === "rule" || decision.by === "tier default" ? decision.tier : undefined;
  const found = new Map<string, { tier?: string; all: { rule: Rule; misses: readonly RuleField[] }[] }>();
  const look = (policies: readonly CompiledPolicy[], tier: { tier?: string }) => {
    for (const { staged, id, rules } of policies) {
      if (staged) continue;
      for (const rule of rules) {
        if (!wouldTurn(rule, verdict, decidedIn !== undefined && decidedIn === tier.tier)) continue;
        const { direction, index } = rule.origin;
        const key = `${tier.tier ?? ""} ${id} ${direction} ${index}`;
        const entry = found.get(key) ?? { ...tier, all: [] };
        entry.all.push({ rule, misses: missesOf(state, rule, packet) });
        found.set(key, entry);
      }
    }
  };
  for (const { name, policies } of list.tiers) look(policies, { tier: name });
  // Profiles are asked only where no policy is: then they are all there is to come near.
  if (list.tiers.length === 0 || decision.by === "no profile") look(list.profiles, {});
  const near = [...found.values()].map(({ all, ...tier }): NearRule => {
    const least = Math.min(...all.map(({ misses }) => misses.length));
    const best = all.filter(({ misses }) => misses.length === least);
    return { ...tier, alternatives: best.slice(0, ALTERNATIVES_MAX), misses: least, others: all.length - best.length };
  });
  // What denies is near where one thing kept it from matching; what is denied may be far from all that would allow it.
  const close = verdict === "deny" ? near : near.filter(({ misses }) => misses <= 1);
  return close.toSorted((a, b) => a.misses - b.misses);
}

/** Pass ends a tier's say, and with it what that tier denies. */
const wouldTurn = ({ action }: Rule, verdict: Judgement["verdict"], inDecidingTier: boolean): boolean =>
  verdict === "deny" ? action === "allow" || action === "pass" && inDecidingTier : action === "deny";

async function nearView(
  { tier, alternatives, misses, others }: NearRule,
  packet: Packet,
  parts: StepParts,
): Promise<NearView> {
  const { rule } = alternatives[0]!;
  const context = { state: parts.state, packet, holdersOf: parts.holdersOf };
  const because = misses === 0 ? ["it matches, but what comes before it has decided"] : [
    ...new Set(alternatives.flatMap((one) => one.misses.flatMap((field) => describeMiss(one.rule, field, context)))),
  ];
  const forms = alternatives.map((one) => describeRule(one.rule, parts.state));
  const text = [...new Set(forms)].join(", or ") + (others === 0 ? "" : `, or by ${others} further peers or ports`);
  return {
    policy: await referenceOf(rule.origin.policy, parts),
    ...tier === undefined ? {} : { tier },
    rule: await ruleView(rule, parts, text),
    because,
  };
}

/** Each staged policy by itself: the list as it would be, had that one been in force. */
async function stagedViews(
  list: PolicyList,
  judgement: Judgement,
  packet: Packet,
  parts: StepParts,
): Promise<StagedView[]> {
  const staged = list.tiers.flatMap((tier) =>
    tier.policies.filter((policy) => policy.staged).map((policy) => ({ tier, policy }))
  );
  return await Promise.all(
    staged.slice(0, STAGED_MAX).map(async ({ tier, policy }): Promise<StagedView> => {
      const { defaultAction } = tierOf(tier.name, parts.calc.object("tier", tier.name));
      const enforced = { ...policy, staged: false };
      const with_ = (one: typeof tier) =>
        one !== tier ? one : {
          ...tier,
          // Where the list's stage has no tier defaults, none comes with the policy.
          defaultAction: list.end === "deny" || tier.defaultAction === "deny" ? defaultAction : tier.defaultAction,
          policies: tier.policies.map((other) => other === policy ? enforced : other),
        };
      const then = judgeList(parts.state, { ...list, tiers: list.tiers.map(with_) }, packet);
      const alone = judgeList(parts.state, {
        id: list.id,
        tiers: [{ name: tier.name, defaultAction: "pass", policies: [enforced] }],
        profiles: [],
        end: "next",
      }, packet).tiers[0]!.policies[0]!;
      const rule = alone.outcome === "no match" ? undefined : enforced.rules[alone.rules.length - 1]!;
      return {
        policy: await referenceOf(policy.id, parts),
        tier: tier.name,
        outcome: alone.outcome,
        ...rule === undefined ? {} : { rule: await ruleView(rule, parts) },
        changes: then.verdict !== judgement.verdict,
      };
    }),
  );
}
