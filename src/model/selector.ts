/** Label selectors: the tree that `parseSelector` makes and the evaluator walks. Language: policy-semantics, "Matching". */
export type Labels = ReadonlyMap<string, string>;

export type Selector =
  | { readonly op: "all" }
  /** In no namespace: host endpoints and global network sets. */
  | { readonly op: "global" }
  | {
    readonly op: "eq" | "ne" | "contains" | "startsWith" | "endsWith";
    readonly label: string;
    readonly value: string;
  }
  /** `values` sorted, without repeats. */
  | { readonly op: "in" | "notIn"; readonly label: string; readonly values: readonly string[] }
  | { readonly op: "has"; readonly label: string }
  | { readonly op: "not"; readonly of: Selector }
  | { readonly op: "and" | "or"; readonly of: readonly Selector[] };

export const ALL: Selector = { op: "all" };
/** Matches nothing; `!all()` in text. */
export const NOTHING: Selector = { op: "not", of: ALL };

/** Whether it is `NOTHING`, by content. */
export const isNothing = (selector: Selector): boolean => selector.op === "not" && selector.of.op === "all";

/** The conjunction, flat and without `all()`; of none: `all()`. */
export function andSelectors(...parts: readonly Selector[]): Selector {
  const of = parts.flatMap((part) => part.op === "and" ? part.of : part.op === "all" ? [] : [part]);
  if (of.some(isNothing)) return NOTHING;
  return of.length === 0 ? ALL : of.length === 1 ? of[0]! : { op: "and", of };
}

/** The disjunction, flat; of none: `NOTHING`. */
export function orSelectors(...parts: readonly Selector[]): Selector {
  const of = parts.flatMap((part) => part.op === "or" ? part.of : isNothing(part) ? [] : [part]);
  if (of.some((part) => part.op === "all")) return ALL;
  return of.length === 0 ? NOTHING : of.length === 1 ? of[0]! : { op: "or", of };
}

export const notSelector = (of: Selector): Selector => ({ op: "not", of });
export const labelIs = (label: string, value: string): Selector => ({ op: "eq", label, value });
export const hasLabel = (label: string): Selector => ({ op: "has", label });

/** `in` or `notIn` with its values sorted and single. */
export const labelIn = (op: "in" | "notIn", label: string, values: readonly string[]): Selector => ({
  op,
  label,
  values: [...new Set(values)].sort(),
});

/** The same selector with `prefix` before every label name: how a selector over namespaces becomes one over endpoints. */
export function prefixLabels(selector: Selector, prefix: string): Selector {
  switch (selector.op) {
    case "all":
    case "global":
      return selector;
    case "not":
      return { op: "not", of: prefixLabels(selector.of, prefix) };
    case "and":
    case "or":
      return { op: selector.op, of: selector.of.map((part) => prefixLabels(part, prefix)) };
    default:
      return { ...selector, label: prefix + selector.label };
  }
}

/** Whether `global()` stands anywhere in it. */
export function mentionsGlobal(selector: Selector): boolean {
  switch (selector.op) {
    case "global":
      return true;
    case "not":
      return mentionsGlobal(selector.of);
    case "and":
    case "or":
      return selector.of.some(mentionsGlobal);
    default:
      return false;
  }
}

/** The names of the labels that it asks for. */
export function labelsIn(selector: Selector): ReadonlySet<string> {
  const labels = new Set<string>();
  const visit = (part: Selector): void => {
    if (part.op === "not") visit(part.of);
    else if ("of" in part) { for (const inner of part.of) visit(inner); }
    else if ("label" in part) labels.add(part.label);
  };
  visit(selector);
  return labels;
}
