/** The order of a segment's rules as the steps that a compiler takes: runs of one action, and what stands between them. Pure. */
import type { Family } from "../../src/model/address.ts";
import type { Rule as PolicyRule } from "../../src/model/desired.ts";
import { type Alternative, alternativesOf, matchesAll, type Test } from "../../src/model/rule_alternatives.ts";
import type { Cause, JudgedRule, Segment, SegmentEnd } from "../../src/model/flat_list.ts";
import type { RuleAction } from "./unite.ts";

export interface Entry {
  readonly alternatives: readonly Alternative[];
  readonly judged: JudgedRule;
}

/** Rules of one action, logged or not. */
export interface Run {
  readonly kind: "run";
  readonly action: RuleAction;
  readonly logs: boolean;
  readonly entries: Entry[];
}

export type Step =
  | Run
  /** Whatever gets here; and what of its action stands right before it. */
  | { readonly kind: "always"; readonly action: RuleAction | "next"; readonly causes: readonly Cause[] }
  | { readonly kind: "log"; readonly judged: JudgedRule; readonly alternatives: readonly Alternative[] }
  | { readonly kind: "staged"; readonly rules: readonly JudgedRule[] };

export interface Reading {
  readonly family: Family;
  /** No set has members of the family: what asks for one cannot match. */
  readonly absent: boolean;
  /** Rules are put together; otherwise each is a run of its own. */
  readonly isFlat: boolean;
}

/** Rules in runs, those that cannot match left out, cut after the first that always matches. */
export function stepsOf({ items, end }: Segment, reading: Reading): readonly Step[] {
  const steps: Step[] = [];
  for (const item of items) {
    if (item.kind === "staged") steps.push(item);
    else if (item.kind === "log") {
      const alternatives = alternativesIn(item.judged.rule, reading);
      if (alternatives.length > 0) steps.push({ kind: "log", judged: item.judged, alternatives });
    } else if (addRule(steps, item.judged, reading)) return steps;
  }
  addEnd(steps, end, reading);
  return steps;
}

/** Of a staged policy: it has no end. */
export function stagedSteps(rules: readonly JudgedRule[], reading: Reading): readonly Step[] {
  const steps: Step[] = [];
  for (const judged of rules) if (addRule(steps, judged, reading)) break;
  return steps;
}

/** Whether nothing comes after it. */
function addRule(steps: Step[], judged: JudgedRule, reading: Reading): boolean {
  const alternatives = alternativesIn(judged.rule, reading);
  if (alternatives.length === 0) return false;
  const action = judged.rule.action as RuleAction;
  if (alternatives.some(matchesAll)) {
    addAlways(steps, action, judged, reading);
    return true;
  }
  const last = steps[steps.length - 1];
  const entry = { alternatives, judged };
  if (reading.isFlat && last?.kind === "run" && last.action === action && last.logs === judged.logs) {
    last.entries.push(entry);
  } else steps.push({ kind: "run", action, logs: judged.logs, entries: [entry] });
  return false;
}

function addEnd(steps: Step[], end: SegmentEnd, reading: Reading): void {
  if (end.action === "deny") addAlways(steps, "deny", end.cause, reading);
  else if (end.action === "next") steps.push({ kind: "always", action: "next", causes: [] });
  else {
    // Going on is what happens at the end anyway.
    const last = steps[steps.length - 1];
    if (last?.kind === "run" && last.action === "pass") steps.pop();
  }
}

/** What matches always takes in the run before it, where that cannot be told from it. */
function addAlways(steps: Step[], action: RuleAction, cause: Cause, { isFlat }: Reading): void {
  const last = steps[steps.length - 1];
  const same = isFlat && last?.kind === "run" && last.action === action && !last.logs && !cause.logs;
  if (same) steps.pop();
  const causes = same ? [...new Set<Cause>(last.entries.map(({ judged }) => judged)), cause] : [cause];
  steps.push({ kind: "always", action, causes });
}

function alternativesIn(rule: PolicyRule, { family, absent }: Reading): readonly Alternative[] {
  if (!absent) return alternativesOf(rule, family);
  return needsMember(rule) ? [] : alternativesOf(rule, family).filter(({ tests }) => !tests.some(asksMembers));
}

/** Whether the rule can match only what is in some set. */
const needsMember = ({ source, destination }: PolicyRule): boolean =>
  (source.sets ?? destination.sets ?? source.serviceSet ?? destination.serviceSet) !== undefined;

const asksMembers = (test: Test): boolean =>
  (test.test === "address" && test.ids.length > 0 || test.test === "addressPort") && !test.not;
