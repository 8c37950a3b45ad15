import type { Selector } from "./selector.ts";

/** Canonical text: equal text, equal meaning; it parses back to the same tree. */
export function formatSelector(selector: Selector): string {
  switch (selector.op) {
    case "all":
      return "all()";
    case "global":
      return "global()";
    case "eq":
      return `${selector.label} == ${quote(selector.value)}`;
    case "ne":
      return `${selector.label} != ${quote(selector.value)}`;
    case "contains":
      return `${selector.label} contains ${quote(selector.value)}`;
    case "startsWith":
      return `${selector.label} starts with ${quote(selector.value)}`;
    case "endsWith":
      return `${selector.label} ends with ${quote(selector.value)}`;
    case "in":
      return `${selector.label} in {${selector.values.map(quote).join(", ")}}`;
    case "notIn":
      return `${selector.label} not in {${selector.values.map(quote).join(", ")}}`;
    case "has":
      return `has(${selector.label})`;
    case "not":
      return `!${formatSelector(selector.of)}`;
    case "and":
      return group(selector.of, " && ", "all()");
    case "or":
      return group(selector.of, " || ", "!all()");
  }
}

function group(parts: readonly Selector[], between: string, ofNone: string): string {
  if (parts.length === 0) return ofNone;
  return parts.length === 1 ? formatSelector(parts[0]!) : `(${parts.map(formatSelector).join(between)})`;
}

/** The language has no escapes, so a string never holds both kinds of quotes. */
const quote = (value: string): string => value.includes('"') ? `'${value}'` : `"${value}"`;
