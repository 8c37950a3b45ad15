import { expect, test } from "bun:test";
import vectors from "../../test/vectors/selectors.json" with { type: "json" };
import { ALL, andSelectors, labelsIn, mentionsGlobal, NOTHING, orSelectors, prefixLabels } from "./selector.ts";
import type { Labels, Selector } from "./selector.ts";
import { formatSelector } from "./selector_format.ts";
import { matches } from "./selector_match.ts";
import { parseSelector, SELECTOR_DEPTH_LIMIT, SelectorSyntaxError } from "./selector_parse.ts";

const labelsOf = (record: Readonly<Record<string, string | undefined>>): Labels =>
  new Map(Object.entries(record).flatMap(([name, value]) => value === undefined ? [] : [[name, value]]));

function refusal(text: string): SelectorSyntaxError {
  try {
    parseSelector(text);
  } catch (error) {
    if (error instanceof SelectorSyntaxError) return error;
    throw error;
  }
  throw new Error(`accepted: ${text}`);
}

test.each(vectors.match.map((vector) => [vector.selector, vector.labels, vector.matches] as const))(
  "%s over %j matches: %p, and so does its canonical text",
  (text, labels, expected) => {
    const selector = parseSelector(text);
    expect(matches(selector, labelsOf(labels))).toBe(expected);
    expect(matches(parseSelector(formatSelector(selector)), labelsOf(labels))).toBe(expected);
  },
);

test.each(vectors.invalid.map((text) => [text.slice(0, 60), text] as const))(
  "%s is refused at a place inside the text",
  (_, text) => {
    const error = refusal(text);
    expect(error.position).toBeGreaterThanOrEqual(0);
    expect(error.position).toBeLessThanOrEqual(text.length);
    expect(error.message).toContain("▸");
  },
);

test.each(vectors.canonical.map((vector) => [vector.in, vector.out] as const))("%s is written %s", (text, out) => {
  expect(formatSelector(parseSelector(text))).toBe(out);
  expect(formatSelector(parseSelector(out))).toBe(out);
});

test.each(vectors.prefixed.map((vector) => [vector.in, vector.prefix, vector.out] as const))(
  "%s prefixed with %s is %s",
  (text, prefix, out) => expect(formatSelector(prefixLabels(parseSelector(text), prefix))).toBe(out),
);

// The lexer's vectors hold strings that are no selectors: those that are must parse, those that are not must not.
const NOT_SELECTORS = /not\s*in\s*"|in c| in"c"/;
test.each(vectors.tokens.map((vector) => [vector.in.slice(0, 60), vector.in] as const))(
  "token vector %s parses where it is a selector",
  (_, text) => {
    if (NOT_SELECTORS.test(text)) expect(refusal(text).wanted).toContain("list of strings");
    else {expect(formatSelector(parseSelector(formatSelector(parseSelector(text))))).toBe(
        formatSelector(parseSelector(text)),
      );}
  },
);

test.each([
  ["b == b", 5, '"b"', "a string in quotes"],
  ["a b", 2, '"b"', "==, !=, in, not in, contains, starts with or ends with"],
  ["foo == 'bar' & has(x)", 13, '"&"', "&&, || or the end"],
  ["(a == 'x'", 9, "the end", "a ) for the ( at character 1"],
  ["(a == 'x' b", 10, '"b"', "&&, || or )"],
  ["a == 'x')", 8, '")"', "&&, || or the end: no ( is open here"],
  ["a == 'x", 5, "a string that does not end", "a closing '"],
  ["a in {'x' 'y'}", 10, '"\'"', ", or }"],
  ["has()", 4, '")"', "a label name"],
  ["all(x)", 4, '"x"', ")"],
  ["a == 'x' && ", 12, "the end", "a label name, all(), global(), has(label), ! or ("],
  ["a == 'x' && 😀", 12, '"😀"', "a label name, all(), global(), has(label), ! or ("],
])("the refusal of %s points at %d", (text, position, found, wanted) => {
  const error = refusal(text);
  expect({ position: error.position, found: error.found, wanted: error.wanted }).toEqual({ position, found, wanted });
});

test("a refusal shows the place on one line, however long the text", () => {
  expect(refusal("foo == 'bar' & has(x)").message).toBe(
    `selector, character 14: found "&", wanted &&, || or the end: foo == 'bar' ▸& has(x)`,
  );
  const long = `${"a == 'x' && ".repeat(10_000)}!`;
  expect(refusal(long).message.length).toBeLessThan(250);
});

test("a selector of 100,000 terms and one inside 100,000 parentheses parse", () => {
  const flat = parseSelector(Array.from({ length: 100_000 }, (_, i) => `k == 'v${i}'`).join(" || "));
  expect(matches(flat, new Map([["k", "v99999"]]))).toBe(true);
  expect(formatSelector(parseSelector("(".repeat(100_000) + "has(a)" + ")".repeat(100_000)))).toBe("has(a)");
});

test("nesting at the limit works everywhere, and beyond it is refused", () => {
  const deep = parseSelector("!".repeat(SELECTOR_DEPTH_LIMIT) + "has(a)");
  expect(matches(deep, new Map())).toBe(SELECTOR_DEPTH_LIMIT % 2 === 1);
  expect(formatSelector(prefixLabels(deep, "p.")).endsWith("!has(p.a)")).toBe(true);
  expect(refusal("!".repeat(SELECTOR_DEPTH_LIMIT + 1) + "has(a)").found).toBe("deeper nesting");
  const mixed = (levels: number) => "(has(a) && !".repeat(levels) + "has(b)" + ")".repeat(levels);
  expect(() => parseSelector(mixed(200))).not.toThrow();
  expect(refusal(mixed(100_000)).found).toBe("deeper nesting");
  expect(refusal("!(".repeat(200_000)).found).toBe("the end");
});

test("the labels that a selector asks for", () => {
  const asked = (text: string) => [...labelsIn(parseSelector(text))].sort();
  expect(asked("!(a == 'x' && (has(b) || c not in {'y'})) || d contains 'z' && a != 'w' && global()")).toEqual([
    "a",
    "b",
    "c",
    "d",
  ]);
  expect(asked("all()")).toEqual([]);
});

test("global() holds for what has no namespace label", () => {
  expect(matches({ op: "global" }, new Map([["projectcalico.org/namespace", "a"]]))).toBe(false);
  expect(mentionsGlobal(parseSelector("!(has(a) || global())"))).toBe(true);
  expect(mentionsGlobal(parseSelector("has(global)"))).toBe(false);
});

test("conjunctions and disjunctions made by code are flat and free of all() and nothing", () => {
  const a = parseSelector("has(a)"), b = parseSelector("has(b)"), c = parseSelector("has(c)");
  expect(andSelectors()).toEqual(ALL);
  expect(andSelectors(ALL, a)).toBe(a);
  expect(formatSelector(andSelectors(a, andSelectors(b, c)))).toBe("(has(a) && has(b) && has(c))");
  expect(andSelectors(a, NOTHING)).toEqual(NOTHING);
  expect(orSelectors()).toEqual(NOTHING);
  expect(orSelectors(a, ALL)).toEqual(ALL);
  expect(formatSelector(orSelectors(a, NOTHING, orSelectors(b, c)))).toBe("(has(a) || has(b) || has(c))");
  expect(matches(NOTHING, new Map([["a", "b"]]))).toBe(false);
});

test("any bytes are parsed or refused with a SelectorSyntaxError", () => {
  const pieces = [
    "a",
    "b/c",
    "==",
    "!=",
    "'x'",
    '"',
    "'",
    "in",
    "not in",
    "{",
    "}",
    ",",
    "(",
    ")",
    "!",
    "&&",
    "||",
    "&",
    "has(",
    "all()",
    "global()",
    "contains",
    "starts with",
    " ",
    "\n",
    "\0",
    "é",
    "\ud800",
    "%",
  ];
  let seed = 7;
  const next = (bound: number) => (seed = (Math.imul(seed, 1103515245) + 12345) >>> 0, (seed >>> 8) % bound);
  let accepted = 0;
  for (let round = 0; round < 20_000; round++) {
    const text = Array.from({ length: next(14) }, () => pieces[next(pieces.length)]!).join(next(3) ? " " : "");
    let selector: Selector;
    try {
      selector = parseSelector(text);
    } catch (error) {
      expect(error).toBeInstanceOf(SelectorSyntaxError);
      continue;
    }
    accepted++;
    expect(parseSelector(formatSelector(selector))).toEqual(selector);
  }
  expect(accepted).toBeGreaterThan(200);
});
