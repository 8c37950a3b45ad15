/** A `PolicyList` as one order of rules: tiers, policies, rules, the tier's default, profiles, the end. Pure. */
import type { CompiledPolicy, PolicyList, Rule as PolicyRule } from "../../src/model/desired.ts";
import type { Decision } from "../../src/model/evaluate.ts";

/** What a packet's fate is put down to. */
export interface Cause {
  readonly decision: Decision;
  /** A packet that it denies is logged. */
  readonly logs: boolean;
}

export interface JudgedRule extends Cause {
  readonly rule: PolicyRule;
}

export type Item =
  | { readonly kind: "rule" | "log"; readonly judged: JudgedRule }
  /** Judged like any other at its place, without effect. */
  | { readonly kind: "staged"; readonly rules: readonly JudgedRule[] };

/** What follows the last rule; `on` = the next segment. */
export type SegmentEnd =
  | { readonly action: "deny"; readonly cause: Cause }
  | { readonly action: "next"; readonly cause: Cause }
  | { readonly action: "on" };

/** A stretch of the order: a tier with `pass` rules stands alone, because `pass` leaves it. */
export interface Segment {
  readonly items: readonly Item[];
  readonly end: SegmentEnd;
  readonly passes: boolean;
}

export function segmentsOf(list: PolicyList): readonly Segment[] {
  const segments: Segment[] = [];
  let open: Item[] = [];
  const close = (end: SegmentEnd) => {
    segments.push({ items: open, end, passes: false });
    open = [];
  };
  // A profile's `pass` ends that profile and the next one is asked: each is as a tier without a default.
  const profiles = list.profiles.map((profile) => ({
    name: undefined,
    policies: [profile],
    defaultAction: "pass" as const,
  }));
  for (const tier of [...list.tiers, ...profiles]) {
    const logDenied = "logDenied" in tier && tier.logDenied === true;
    const items = tier.policies.flatMap((policy) => itemsOf(policy, tier.name, logDenied || policy.logDenied === true));
    const enforced = tier.policies.filter((policy) => !policy.staged);
    const end = (): SegmentEnd => ({
      action: "deny",
      cause: {
        decision: { by: "tier default", tier: tier.name! },
        logs: logDenied || enforced.some((policy) => policy.logDenied),
      },
    });
    // A tier whose policies are all staged has nothing that could decide, its default included.
    const closes = enforced.length > 0 && tier.defaultAction === "deny";
    if (enforced.some(({ rules }) => rules.some((rule) => rule.action === "pass"))) {
      if (open.length > 0) close({ action: "on" });
      segments.push({ items, end: closes ? end() : { action: "on" }, passes: true });
      continue;
    }
    for (const item of items) open.push(item);
    if (!closes) continue;
    close(end());
    return segments;
  }
  close(
    list.end === "deny"
      ? { action: "deny", cause: { decision: { by: "no profile" }, logs: false } }
      : { action: "next", cause: { decision: { by: "end" }, logs: false } },
  );
  return segments;
}

/** Whether what the list denies by default is logged: that depends on the direction, which the list does not know. */
export const logsDefault = (list: PolicyList): boolean =>
  list.tiers.some((tier) => tier.logDenied || tier.policies.some((policy) => policy.logDenied));

function itemsOf(policy: CompiledPolicy, tier: string | undefined, logs: boolean): readonly Item[] {
  if (policy.staged) {
    // Nothing it does is to be noticed but by its counters.
    const rules = policy.rules.filter((rule) => rule.action !== "log").map((rule) => judge(rule, policy, tier, false));
    return rules.length === 0 ? [] : [{ kind: "staged", rules }];
  }
  return policy.rules.map((rule): Item => ({
    kind: rule.action === "log" ? "log" : "rule",
    judged: judge(rule, policy, tier, logs && rule.action === "deny"),
  }));
}

/** The last answer for each rule: rules outlive the lists they are in. */
const judged = new WeakMap<PolicyRule, JudgedRule>();

function judge(rule: PolicyRule, policy: CompiledPolicy, tier: string | undefined, logs: boolean): JudgedRule {
  const known = judged.get(rule);
  if (known !== undefined && known.logs === logs && known.decision.by === "rule") {
    const { decision } = known;
    if (decision.tier === tier && decision.policy === policy.id && (decision.staged ?? false) === policy.staged) {
      return known;
    }
  }
  const decision: Decision = {
    by: "rule",
    ...tier === undefined ? {} : { tier },
    policy: policy.id,
    origin: rule.origin,
    ...policy.staged ? { staged: true } : {},
  };
  const fresh = { rule, decision, logs };
  judged.set(rule, fresh);
  return fresh;
}
