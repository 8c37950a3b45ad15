import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ManifestError } from "./manifest.ts";
import { readLabelSelector, readSelector } from "./selector.ts";

interface Vectors {
  readonly match: readonly { selector: string; labels: Record<string, string>; matches: boolean }[];
  readonly invalid: readonly string[];
  readonly canonical: readonly { in: string; out: string }[];
  readonly restrictions: readonly { selector: string }[];
}

const vectors: Vectors = JSON.parse(readFileSync(join(import.meta.dir, "../vectors/selectors.json"), "utf8"));

const matches = (selector: string, labels: Record<string, string>): boolean =>
  readSelector(selector, "selector").matches(new Map(Object.entries(labels)));

test("every selector of the vectors matches the label maps that it should, and no other", () => {
  expect(vectors.match).toHaveLength(98);
  expect(vectors.match.filter((each) => matches(each.selector, each.labels) !== each.matches)).toEqual([]);
});

test("every invalid selector of the vectors is refused", () => {
  expect(vectors.invalid.length).toBeGreaterThan(40);
  const accepted = vectors.invalid.filter((selector) => {
    try {
      readSelector(selector, "selector");
      return true;
    } catch (error) {
      expect(error).toBeInstanceOf(ManifestError);
      return false;
    }
  });
  expect(accepted).toEqual([]);
});

test("a selector and its canonical text match the same label maps", () => {
  const maps = vectors.match.map(({ labels }) => labels);
  for (const { in: text, out } of vectors.canonical) {
    for (const labels of maps) expect(matches(text, labels)).toBe(matches(out, labels));
  }
});

test("a refused selector names the character", () => {
  expect(() => readSelector("a == 'b' && %", "spec.selector")).toThrow(
    `spec.selector: found "%" at character 13, wanted a label, !, (, has(…), all() or global()`,
  );
});

test("labels called like what every object has are not there by themselves", () => {
  expect(matches("has(constructor)", {})).toBe(false);
  expect(matches("has(__proto__)", {})).toBe(false);
});

test("label selectors: every label and every expression must hold", () => {
  const selector = readLabelSelector({
    matchLabels: { app: "web" },
    matchExpressions: [
      { key: "tier", operator: "In", values: ["a", "b"] },
      { key: "stage", operator: "NotIn", values: ["test"] },
      { key: "owner", operator: "Exists" },
      { key: "legacy", operator: "DoesNotExist" },
    ],
  }, "selector");
  const all = { app: "web", tier: "a", owner: "x" };
  const holds = (labels: Record<string, string>) => selector(new Map(Object.entries(labels)));
  expect(holds(all)).toBe(true);
  expect(holds({ ...all, stage: "prod" })).toBe(true);
  expect(holds({ ...all, stage: "test" })).toBe(false);
  expect(holds({ ...all, legacy: "" })).toBe(false);
  expect(holds({ ...all, tier: "c" })).toBe(false);
  expect(holds({ app: "web", tier: "a" })).toBe(false);
  expect(readLabelSelector({}, "selector")(new Map())).toBe(true);
});
