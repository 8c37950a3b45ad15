import { labelValueFault, qualifiedNameFault } from "../model/kubernetes_names.ts";
import { ALL, andSelectors, hasLabel, labelIn, labelIs, notSelector } from "../model/selector.ts";
import type { Selector } from "../model/selector.ts";
import type { Field } from "./validation.ts";

const OPERATORS = ["In", "NotIn", "Exists", "DoesNotExist"] as const;

/** meta/v1 LabelSelector; absent or empty is `all()`. Its parts come out sorted by label, so that equal ones are equal. */
export function readLabelSelector(field: Field): Selector {
  const selector = field.object(["matchLabels", "matchExpressions"]);
  const parts: Selector[] = [];
  const equalities = selector.at("matchLabels").entries().toSorted(([a], [b]) => a < b ? -1 : 1);
  for (const [key, value] of equalities) {
    const keyFault = qualifiedNameFault(key);
    if (keyFault !== undefined) value.refuse(keyFault, `the key ${JSON.stringify(key)}`);
    const text = value.required("a string").name(labelValueFault);
    if (text !== undefined) parts.push(labelIs(key, text));
  }
  for (const item of selector.at("matchExpressions").items()) {
    const part = readExpression(item);
    if (part !== undefined) parts.push(part);
  }
  return parts.length === 0 ? ALL : andSelectors(...parts);
}

/** meta/v1 LabelSelectorRequirement. */
function readExpression(field: Field): Selector | undefined {
  const expression = field.required("a requirement").object(["key", "operator", "values"]);
  if (!expression.given) return undefined;
  const key = expression.at("key").required("a label's key").name(qualifiedNameFault);
  const operator = expression.at("operator").required(OPERATORS.join(" or ")).oneOf(OPERATORS);
  const list = expression.at("values");
  const values = list.items().flatMap((item) => item.required("a string").name(labelValueFault) ?? []);
  if (key === undefined || operator === undefined) return undefined;
  const asksValues = operator === "In" || operator === "NotIn";
  if (asksValues && values.length === 0 && list.items().length === 0) list.refuse(`at least one value for ${operator}`);
  if (!asksValues && list.items().length > 0) list.refuse(`no values for ${operator}`);
  switch (operator) {
    case "In":
      return labelIn("in", key, values);
    case "NotIn":
      return labelIn("notIn", key, values);
    case "Exists":
      return hasLabel(key);
    case "DoesNotExist":
      return notSelector(hasLabel(key));
  }
}
