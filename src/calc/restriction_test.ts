import { expect, test } from "bun:test";
import { matches, NAMESPACE_LABEL } from "../model/selector_match.ts";
import { parseSelector } from "../model/selector_parse.ts";
import vectors from "../../test/vectors/selectors.json" with { type: "json" };
import { isImpossible, restrictionsOf } from "./restriction.ts";
import type { Restrictions } from "./restriction.ts";

interface Vector {
  readonly selector: string;
  readonly restrictions:
    | Record<string, { mustBePresent?: boolean; mustBeAbsent?: boolean; mustHaveOneOf?: string[] }>
    | null;
}
const VECTORS = vectors.restrictions as unknown as readonly Vector[];

const plain = (restrictions: Restrictions) =>
  Object.fromEntries([...restrictions].map(([label, { present, absent, values }]) => [label, {
    ...present && { mustBePresent: true },
    ...absent && { mustBeAbsent: true },
    ...values && { mustHaveOneOf: [...values].sort() },
  }]));

test.each(VECTORS)("restrictions of $selector", ({ selector, restrictions }) => {
  const found = plain(restrictionsOf(parseSelector(selector)));
  // Here global() is a restriction too: the namespace label is absent.
  if (selector === "global()") expect(found).toEqual({ [NAMESPACE_LABEL]: { mustBeAbsent: true } });
  else expect(found).toEqual(restrictions ?? {});
});

test.each([
  ['!(a != "v")', { a: { mustBePresent: true, mustHaveOneOf: ["v"] } }],
  ['!(a not in {"v", "w"} || !has(b))', {
    a: { mustBePresent: true, mustHaveOneOf: ["v", "w"] },
    b: { mustBePresent: true },
  }],
  ['!(a == "v" && b == "w")', {}],
  ["!global()", { [NAMESPACE_LABEL]: { mustBePresent: true } }],
  ["!all()", {}],
])("restrictions seen through negation: %s", (selector, wanted) => {
  expect(plain(restrictionsOf(parseSelector(selector)))).toEqual(wanted as ReturnType<typeof plain>);
});

test.each(['a == "v" && a == "w"', "has(a) && !has(a)", 'global() && projectcalico.org/namespace == "x"'])(
  "%s is impossible",
  (selector) => expect(isImpossible(restrictionsOf(parseSelector(selector)))).toBe(true),
);

test("whatever matches satisfies the restrictions", () => {
  const selectors = [...VECTORS, ...vectors.match].map(({ selector }) => parseSelector(selector));
  const values = [undefined, "v1", "v2", "foo", "value", "b"];
  let matched = 0;
  for (const selector of selectors) {
    const restrictions = restrictionsOf(selector);
    for (const a of values) {
      for (const b of values) {
        const labels = new Map(
          Object.entries({ a, b }).filter((pair): pair is [string, string] => pair[1] !== undefined),
        );
        if (!matches(selector, labels)) continue;
        matched++;
        expect(isImpossible(restrictions)).toBe(false);
        for (const [label, { present, absent, values }] of restrictions) {
          const value = labels.get(label);
          if (present) expect(value).toBeDefined();
          if (absent) expect(value).toBeUndefined();
          if (values) expect(values.has(value!)).toBe(true);
        }
      }
    }
  }
  expect(matched).toBeGreaterThan(500);
});

test("restrictions of 100,000 terms are found in time that grows with their number alone", () => {
  const texts = Array.from({ length: 100_000 }, (_, i) => `k == "v${i}"`);
  const startedMs = performance.now();
  expect(restrictionsOf(parseSelector(texts.join(" || "))).get("k")!.values!.size).toBe(100_000);
  expect(isImpossible(restrictionsOf(parseSelector(texts.join(" && "))))).toBe(true);
  const labels = texts.map((_, i) => `has(l${i})`);
  expect(restrictionsOf(parseSelector(labels.join(" && "))).size).toBe(100_000);
  expect(restrictionsOf(parseSelector(`!(${labels.join(" || ")})`)).size).toBe(100_000);
  expect(restrictionsOf(parseSelector(labels.join(" || "))).size).toBe(0);
  // A quadratic way takes minutes.
  expect(performance.now() - startedMs).toBeLessThan(10_000);
});
