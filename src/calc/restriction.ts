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
      return (selector.op === "and") === negated ? any(parts) : all(parts);
    }
  }
}

const oneOf = (label: string, values: readonly string[]): Restrictions =>
  new Map([[label, { present: true, values: new Set(values) }]]);

// Both take time linear in what they are given, whatever selector somebody writes: 100,000 alternatives are a second's work otherwise.

/** All of the parts hold. */
function all(parts: readonly Restrictions[]): Restrictions {
  const out = new Map<string, LabelRestriction>();
  for (const part of parts) {
    for (const [label, more] of part) {
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
  }
  return out;
}

/** One of the parts holds, at least: what they have in common. */
function any(parts: readonly Restrictions[]): Restrictions {
  const [first, ...others] = parts;
  let out = new Map<string, { present?: true; absent?: true; values?: Set<string> }>();
  for (const [label, { present, absent, values }] of first!) {
    out.set(label, { present, absent, values: values && new Set(values) });
  }
  for (const part of others) {
    if (out.size === 0) return NONE;
    const fewer = part.size < out.size ? part.keys() : out.keys();
    const left: typeof out = new Map();
    for (const label of fewer) {
      const one = out.get(label), other = part.get(label);
      if (one === undefined || other === undefined) continue;
      one.present &&= other.present;
      one.absent &&= other.absent;
      if (other.values === undefined) one.values = undefined;
      else for (const value of other.values) one.values?.add(value);
      if (one.present || one.absent || one.values) left.set(label, one);
    }
    out = left;
  }
  return out;
}
