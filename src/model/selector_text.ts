/** Selectors in words, for people: `pods in namespace prod with app == "web"`; and why one does not match. */
import {
  NAME_LABEL,
  NAMESPACE_LABEL,
  NAMESPACE_PREFIX,
  ORCHESTRATOR_LABEL,
  SERVICE_ACCOUNT_LABEL,
  SERVICE_ACCOUNT_PREFIX,
} from "./endpoint_labels.ts";
import type { Labels, Selector } from "./selector.ts";
import { formatSelector } from "./selector_format.ts";
import { matches } from "./selector_match.ts";

/** Set by the API server on every namespace: another way to say its name. */
const KUBERNETES_NAME_LABEL = "kubernetes.io/metadata.name";

/** Labels by where they come from; own ones have no prefix. */
const KINDS = [
  { prefix: NAMESPACE_PREFIX, whose: "its namespace" },
  { prefix: SERVICE_ACCOUNT_PREFIX, whose: "its service account" },
] as const;

/** For example `pods in namespace prod with app == "web" and !has(old)`; `every endpoint` for `all()`. */
export function describeSelector(selector: Selector): string {
  let subject = "endpoints", place = "", account = "";
  const rest: string[] = [], ofNamespace: string[] = [], ofAccount: string[] = [];
  for (const part of conjuncts(selector)) {
    const namespace = nameAsked(part, [NAMESPACE_LABEL, NAMESPACE_PREFIX + NAME_LABEL, KUBERNETES_NAMESPACE]);
    const accountName = nameAsked(part, [SERVICE_ACCOUNT_LABEL, SERVICE_ACCOUNT_PREFIX + NAME_LABEL]);
    if (part.op === "has" && part.label === ORCHESTRATOR_LABEL) subject = "pods";
    else if (part.op === "has" && part.label === NAMESPACE_LABEL) place ||= " in any namespace";
    else if (isGlobal(part)) place = " in no namespace";
    else if (namespace !== undefined && !place.startsWith(" in namespace")) place = ` in namespace ${namespace}`;
    else if (accountName !== undefined && account === "") account = ` as service account ${accountName}`;
    else if (hasOnly(part, NAMESPACE_PREFIX)) ofNamespace.push(bare(withoutPrefix(part, NAMESPACE_PREFIX)));
    else if (hasOnly(part, SERVICE_ACCOUNT_PREFIX)) ofAccount.push(bare(withoutPrefix(part, SERVICE_ACCOUNT_PREFIX)));
    else if (!(part.op === "has" && part.label === SERVICE_ACCOUNT_LABEL)) rest.push(bare(part));
  }
  if (ofNamespace.length > 0) place = `${named(place)} in namespaces with ${ofNamespace.join(" and ")}`;
  if (ofAccount.length > 0) account += ` as service accounts with ${ofAccount.join(" and ")}`;
  if (selector.op === "all") return "every endpoint";
  return `${subject}${place}${account}${rest.length === 0 ? "" : ` with ${rest.join(" and ")}`}`;
}

const KUBERNETES_NAMESPACE = NAMESPACE_PREFIX + KUBERNETES_NAME_LABEL;
/** "In any namespace" says nothing beside which ones. */
const named = (place: string): string => place.startsWith(" in namespace ") ? place : "";

const conjuncts = (selector: Selector): readonly Selector[] =>
  selector.op === "and" ? selector.of : selector.op === "all" ? [] : [selector];

/** What it asks one of `labels` to be: `prod`, or `a or b`. */
function nameAsked(selector: Selector, labels: readonly string[]): string | undefined {
  if (selector.op === "eq" && labels.includes(selector.label)) return selector.value;
  return selector.op === "in" && labels.includes(selector.label) && selector.values.length > 0
    ? selector.values.join(" or ")
    : undefined;
}

const isGlobal = (selector: Selector): boolean =>
  selector.op === "global" ||
  selector.op === "not" && selector.of.op === "has" && selector.of.label === NAMESPACE_LABEL;

/** Whether it asks for labels with `prefix` and for nothing else. */
function hasOnly(selector: Selector, prefix: string): boolean {
  switch (selector.op) {
    case "all":
    case "global":
      return false;
    case "not":
      return hasOnly(selector.of, prefix);
    case "and":
    case "or":
      return selector.of.every((part) => hasOnly(part, prefix));
    default:
      return selector.label.startsWith(prefix);
  }
}

function withoutPrefix(selector: Selector, prefix: string): Selector {
  switch (selector.op) {
    case "all":
    case "global":
      return selector;
    case "not":
      return { op: "not", of: withoutPrefix(selector.of, prefix) };
    case "and":
    case "or":
      return { op: selector.op, of: selector.of.map((part) => withoutPrefix(part, prefix)) };
    default:
      return { ...selector, label: selector.label.slice(prefix.length) };
  }
}

const bare = (selector: Selector): string => formatSelector(selector);

/**
 * Why `labels` do not satisfy the selector, one reason for each part that does not hold: `has app=b, wanted app == "a"`. Empty
 * where they do. To be read after the name of whose labels they are.
 */
export function selectorMisses(selector: Selector, labels: Labels): readonly string[] {
  if (matches(selector, labels)) return [];
  if (selector.op === "and") return selector.of.flatMap((part) => selectorMisses(part, labels));
  const global = isGlobal(selector);
  if (global) return [`is in namespace ${labels.get(NAMESPACE_LABEL)}, wanted what is in none`];
  if (selector.op === "has" && selector.label === ORCHESTRATOR_LABEL) return ["is no pod"];
  if (selector.op === "has" && selector.label === NAMESPACE_LABEL) return ["is in no namespace"];
  const namespace = nameAsked(selector, [NAMESPACE_LABEL, NAMESPACE_PREFIX + NAME_LABEL, KUBERNETES_NAMESPACE]);
  if (namespace !== undefined) {
    const found = labels.get(NAMESPACE_LABEL);
    return [`is in ${found === undefined ? "no namespace" : `namespace ${found}`}, wanted namespace ${namespace}`];
  }
  const account = nameAsked(selector, [SERVICE_ACCOUNT_LABEL, SERVICE_ACCOUNT_PREFIX + NAME_LABEL]);
  if (account !== undefined) {
    const found = labels.get(SERVICE_ACCOUNT_LABEL);
    return [
      `runs as ${found === undefined ? "no service account" : `service account ${found}`}, wanted ${account}`,
    ];
  }
  for (const { prefix, whose } of KINDS) {
    if (!hasOnly(selector, prefix)) continue;
    return [`${found(selector, labels, prefix, whose)}, wanted ${bare(withoutPrefix(selector, prefix))}`];
  }
  return [`${found(selector, labels, "", "it")}, wanted ${bare(selector)}`];
}

/** `has app=b and no label tier`; of a namespace `is in a namespace with team=b`. */
function found(selector: Selector, labels: Labels, prefix: string, whose: string): string {
  const names = [...new Set(labelsOf(selector))].filter((label) => label.startsWith(prefix));
  if (names.length === 0) return `does not match ${whose === "it" ? "" : `by ${whose}`}`.trimEnd();
  const values = names.map((label) => {
    const value = labels.get(label), name = label.slice(prefix.length);
    return value === undefined ? `no label ${name}` : `${name}=${value}`;
  });
  return prefix === "" ? `has ${values.join(" and ")}` : `has ${values.join(" and ")} by ${whose}`;
}

function labelsOf(selector: Selector): readonly string[] {
  switch (selector.op) {
    case "all":
    case "global":
      return [];
    case "not":
      return labelsOf(selector.of);
    case "and":
    case "or":
      return selector.of.flatMap(labelsOf);
    default:
      return [selector.label];
  }
}
