/** Calico's selector language and Kubernetes' label selectors, as questions put to a label map. */
import { type Fields, isGiven, ManifestError, readFields, readList, readTexts, refuse } from "./manifest.ts";

export type Labels = ReadonlyMap<string, string>;
export type LabelQuestion = (labels: Labels) => boolean;

export interface Selector {
  readonly matches: LabelQuestion;
  /** `global()` occurs in it. */
  readonly global: boolean;
}

const LABEL = /[A-Za-z0-9_./-]+/;
const LABEL_MAX = 512;

/**
 * Grammar, loosest first: `or = and ("||" and)*`, `and = unary ("&&" unary)*`, `unary = "!" unary | "(" or ")" | match`.
 * `all()` and `global()` hold for every label map: what is in scope is the caller's matter.
 * @throws {ManifestError}
 */
export function readSelector(text: string, where: string): Selector {
  let at = 0;
  let global = false;
  const fail = (wanted: string): never => {
    throw new ManifestError(
      `${where}: found ${JSON.stringify(text.slice(at))} at character ${at + 1}, wanted ${wanted}`,
    );
  };
  const skipBlanks = () => {
    while (/\s/.test(text[at] ?? "")) at++;
  };
  /** Takes what the pattern finds here, after blanks. */
  const take = (pattern: RegExp): string | undefined => {
    skipBlanks();
    const sticky = new RegExp(pattern.source, "y");
    sticky.lastIndex = at;
    const found = sticky.exec(text)?.[0];
    at += found?.length ?? 0;
    return found;
  };
  const or = (): LabelQuestion => {
    const parts = [and()];
    while (take(/\|\|/)) parts.push(and());
    return (labels) => parts.some((part) => part(labels));
  };
  const and = (): LabelQuestion => {
    const parts = [unary()];
    while (take(/&&/)) parts.push(unary());
    return (labels) => parts.every((part) => part(labels));
  };
  const unary = (): LabelQuestion => {
    if (take(/!/)) {
      const inner = unary();
      return (labels) => !inner(labels);
    }
    if (take(/\(/)) {
      const inner = or();
      if (!take(/\)/)) fail(")");
      return inner;
    }
    return match();
  };
  const match = (): LabelQuestion => {
    if (take(/all\(\s*\)/)) return () => true;
    if (take(/global\(\s*\)/)) {
      global = true;
      return () => true;
    }
    if (take(/has\(/)) {
      const label = labelName();
      if (!take(/\)/)) fail(")");
      return (labels) => labels.has(label);
    }
    const label = labelName();
    if (take(/==/)) return compared(label, string(), (value, wanted) => value === wanted);
    if (take(/contains/)) return compared(label, string(), (value, wanted) => value.includes(wanted));
    if (take(/starts\s*with/)) return compared(label, string(), (value, wanted) => value.startsWith(wanted));
    if (take(/ends\s*with/)) return compared(label, string(), (value, wanted) => value.endsWith(wanted));
    if (take(/!=/)) {
      const unwanted = string();
      return (labels) => labels.get(label) !== unwanted;
    }
    if (take(/not\s*in/)) {
      const unwanted = strings();
      return (labels) => !labels.has(label) || !unwanted.includes(labels.get(label)!);
    }
    if (take(/in/)) {
      const wanted = strings();
      return (labels) => labels.has(label) && wanted.includes(labels.get(label)!);
    }
    return fail("== != in, not in, contains, starts with or ends with");
  };
  const labelName = (): string => {
    const label = take(LABEL) ?? fail("a label, !, (, has(…), all() or global()");
    return label.length <= LABEL_MAX ? label : fail(`a label of at most ${LABEL_MAX} characters`);
  };
  const string = (): string => (take(/"[^"]*"|'[^']*'/) ?? fail("a string in quotes")).slice(1, -1);
  const strings = (): string[] => {
    if (!take(/\{/)) fail("{");
    const values: string[] = [];
    if (take(/\}/)) return values;
    do values.push(string()); while (take(/,/));
    if (!take(/\}/)) fail("} or ,");
    return values;
  };

  if (text.trim() === "") return { matches: () => true, global: false };
  const matches = or();
  skipBlanks();
  if (at < text.length) fail("&&, || or the end");
  return { matches, global };
}

const compared =
  (label: string, wanted: string, holds: (value: string, wanted: string) => boolean): LabelQuestion => (labels) => {
    const value = labels.get(label);
    return value !== undefined && holds(value, wanted);
  };

/** A selector in a place where `global()` has no meaning. */
export function readPlainSelector(text: string, where: string): LabelQuestion {
  const { matches, global } = readSelector(text, where);
  return global ? refuse(where, text, "no global(): it belongs in a rule's namespaceSelector") : matches;
}

/** meta/v1 LabelSelector: every label and every expression must hold; an empty one selects everything. */
export function readLabelSelector(value: unknown, where: string): LabelQuestion {
  const selector: Fields = isGiven(value) ? readFields(value, where) : refuse(where, value, "a label selector");
  const questions: LabelQuestion[] = Object.entries(readFields(selector.matchLabels, `${where}.matchLabels`)).map(
    ([label, wanted]) => (labels) => labels.get(label) === wanted,
  );
  for (const [i, entry] of readList(selector.matchExpressions, `${where}.matchExpressions`).entries()) {
    questions.push(readExpression(readFields(entry, where), `${where}.matchExpressions[${i}]`));
  }
  return (labels) => questions.every((question) => question(labels));
}

function readExpression({ key, operator, values }: Fields, where: string): LabelQuestion {
  if (typeof key !== "string") return refuse(`${where}.key`, key, "a label");
  const listed = readTexts(values, `${where}.values`);
  if (["In", "NotIn"].includes(String(operator)) && listed.length === 0) refuse(`${where}.values`, values, "values");
  switch (operator) {
    case "In":
      return (labels) => labels.has(key) && listed.includes(labels.get(key)!);
    case "NotIn":
      return (labels) => !labels.has(key) || !listed.includes(labels.get(key)!);
    case "Exists":
      return (labels) => labels.has(key);
    case "DoesNotExist":
      return (labels) => !labels.has(key);
    default:
      return refuse(`${where}.operator`, operator, "In, NotIn, Exists or DoesNotExist");
  }
}
