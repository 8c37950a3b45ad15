import type { Selector } from "../model/selector.ts";
import { NAMESPACE_LABEL } from "../model/selector_match.ts";

/** What labels must say about one key for a selector to match. */
export interface LabelRestriction {
  readonly present?: true;
  readonly absent?: true;
  /** One of these; none of them = never. */
  readonly values?: ReadonlySet<string>;
}
export type Restrictions = ReadonlyMap<string, LabelRestriction>;

const NONE: Restrictions = new Map();
const GLOBAL: Restrictions = new Map([[NAMESPACE_LABEL, { absent: true }]]);
const PRESENT: LabelRestriction = { present: true };

/** Conditions that follow from the selector: what fails one of them cannot match. Keys it says nothing about are absent. */
export function restrictionsOf(selector: Selector): Restrictions {
  return derive(selector, false);
}

/** Whether the restrictions contradict themselves: nothing matches. */
export function isImpossible(restrictions: Restrictions): boolean {
  for (const { present, absent, values } of restrictions.values()) {
    if ((present && absent) || values?.size === 0) return true;
  }
  return false;
}

function derive(selector: Selector, negated: boolean): Restrictions {
  switch (selector.op) {
    case "all":
      return NONE;
    case "global":
      return negated ? new Map([[NAMESPACE_LABEL, PRESENT]]) : GLOBAL;
    case "eq":
    case "ne":
      return (selector.op === "eq") === negated ? NONE : oneOf(selector.label, [selector.value]);
    case "in":
    case "notIn":
      return (selector.op === "in") === negated ? NONE : oneOf(selector.label, selector.values);
    case "contains":
    case "startsWith":
    case "endsWith":
      return negated ? NONE : new Map([[selector.label, PRESENT]]);
    case "has":
      return new Map([[selector.label, negated ? { absent: true } : PRESENT]]);
    case "not":
      return derive(selector.of, !negated);
    case "and":
    case "or": {
      if (selector.of.length === 0) return NONE;
      const parts = selector.of.map((part) => derive(part, negated));
      // De Morgan: the negation of a conjunction is the disjunction of the negations.
      return parts.reduce((selector.op === "and") === negated ? either : both);
    }
  }
}

const oneOf = (label: string, values: readonly string[]): Restrictions =>
  new Map([[label, { present: true, values: new Set(values) }]]);

function both(a: Restrictions, b: Restrictions): Restrictions {
  if (a.size === 0) return b;
  if (b.size === 0) return a;
  const out = new Map(a);
  for (const [label, more] of b) {
    const one = out.get(label);
    out.set(
      label,
      one === undefined ? more : {
        present: one.present ?? more.present,
        absent: one.absent ?? more.absent,
        values: one.values && more.values ? one.values.intersection(more.values) : one.values ?? more.values,
      },
    );
  }
  return out;
}

function either(a: Restrictions, b: Restrictions): Restrictions {
  const out = new Map<string, LabelRestriction>();
  for (const [label, one] of a) {
    const other = b.get(label);
    if (other === undefined) continue;
    const merged: LabelRestriction = {
      present: one.present && other.present,
      absent: one.absent && other.absent,
      values: one.values && other.values && one.values.union(other.values),
    };
    if (merged.present || merged.absent || merged.values) out.set(label, merged);
  }
  return out;
}
