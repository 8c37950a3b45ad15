import { NAMESPACE_LABEL } from "./endpoint_labels.ts";
import type { Labels, Selector } from "./selector.ts";

export { NAMESPACE_LABEL };

/** Whether `labels` satisfy the selector. `!=` and `not in` also hold where the label is absent, all other tests do not. */
export function matches(selector: Selector, labels: Labels): boolean {
  switch (selector.op) {
    case "all":
      return true;
    case "global":
      return !labels.has(NAMESPACE_LABEL);
    case "eq":
      return labels.get(selector.label) === selector.value;
    case "ne":
      return labels.get(selector.label) !== selector.value;
    case "contains":
      return labels.get(selector.label)?.includes(selector.value) ?? false;
    case "startsWith":
      return labels.get(selector.label)?.startsWith(selector.value) ?? false;
    case "endsWith":
      return labels.get(selector.label)?.endsWith(selector.value) ?? false;
    case "in": {
      const value = labels.get(selector.label);
      return value !== undefined && isAmong(selector.values, value);
    }
    case "notIn": {
      const value = labels.get(selector.label);
      return value === undefined || !isAmong(selector.values, value);
    }
    case "has":
      return labels.has(selector.label);
    case "not":
      return !matches(selector.of, labels);
    case "and":
      return selector.of.every((part) => matches(part, labels));
    case "or":
      return selector.of.some((part) => matches(part, labels));
  }
}

/** The values are sorted, and may be many. */
function isAmong(values: readonly string[], value: string): boolean {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (values[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return values[low] === value;
}
