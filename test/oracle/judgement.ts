/** One direction of one endpoint: tiers, then profiles. */
import type { ProfileRules, Tier } from "./calico_policy.ts";
import { type Direction, mismatch, type Packet, type Policy, type Rule } from "./rule.ts";

export interface Question {
  readonly direction: Direction;
  readonly packet: Packet;
  /** Those that select the endpoint, cover the direction and are asked at this stage. In any order. */
  readonly policies: readonly Policy[];
  readonly tiers: ReadonlyMap<string, Tier>;
  /** Of the endpoint, in order; undefined for a profile of which nothing is known. */
  readonly profiles: readonly (readonly [name: string, rules: ProfileRules | undefined])[];
  /** Whether the end of a tier and of the profiles decides; before DNAT and connection tracking it does not. */
  readonly hasDefaults: boolean;
}

/** `none`: nothing decided, and nothing has to. Every step that was taken goes to `why`. */
export function judge(question: Question, why: string[]): "allow" | "deny" | "none" {
  const { direction, packet, policies, profiles, hasDefaults } = question;
  const byTier = Map.groupBy(policies, ({ tier }) => tier);
  // A tier that is nowhere defined denies at its end, and comes last.
  const tiers = [...byTier.keys()].map((name): Tier =>
    question.tiers.get(name) ?? { name, order: Infinity, defaultAction: "Deny" }
  ).sort((a, b) => compare(a.order, b.order) || compare(a.name, b.name));
  for (const tier of tiers) {
    const outcome = judgeTier(byTier.get(tier.name)!, direction, packet, why);
    if (outcome === "allow" || outcome === "deny") return outcome;
    if (outcome === "pass" || !hasDefaults) continue;
    why.push(`  end of tier ${tier.name}: ${tier.defaultAction}`);
    if (tier.defaultAction === "Deny") return "deny";
  }
  if (!hasDefaults) return "none";
  for (const [name, rules] of profiles) {
    const outcome = judgeRules(rules?.[direction] ?? [], packet, `profile ${name}`, why);
    if (outcome === "allow" || outcome === "deny") return outcome;
  }
  why.push("  no profile allows it: Deny");
  return "deny";
}

function judgeTier(policies: readonly Policy[], direction: Direction, packet: Packet, why: string[]) {
  for (const policy of policies.toSorted(beforeInTier)) {
    const outcome = judgeRules(policy.rules[direction], packet, `tier ${policy.tier}, ${policy.title}`, why);
    if (outcome !== "no match") return outcome;
  }
  return "no match";
}

/** By order, then name. Beyond that nothing is said; namespace and kind make it an order all the same. */
function beforeInTier(a: Policy, b: Policy): number {
  return compare(a.order, b.order) || compare(a.name, b.name) || compare(a.namespace, b.namespace) ||
    compare(a.kind, b.kind);
}

const compare = <Value>(a: Value, b: Value): number => a < b ? -1 : a > b ? 1 : 0;

/** The first rule that matches decides, but for Log, which lets the next one. */
function judgeRules(
  rules: readonly Rule[],
  packet: Packet,
  title: string,
  why: string[],
): "allow" | "deny" | "pass" | "no match" {
  const misses: string[] = [];
  for (const rule of rules) {
    const missed = mismatch(rule, packet);
    if (missed !== undefined) {
      misses.push(`${rule.where} differs in ${missed}`);
      continue;
    }
    misses.push(`${rule.where} matches: ${rule.action}`);
    if (rule.action === "log") continue;
    why.push(`  ${title}: ${misses.join("; ")}`);
    return rule.action;
  }
  why.push(`  ${title}: ${misses.join("; ") || "no rules"}`);
  return "no match";
}
