import { expect, test } from "bun:test";
import { boundsFault, NESTING_MAX, nestingFault } from "./value_bounds.ts";

const nested = (levels: number): unknown => {
  let value: unknown = 1;
  for (let i = 0; i < levels; i++) value = i % 2 === 0 ? [value] : { a: value };
  return value;
};

test("nesting is taken up to its limit, and refused beyond it and without end", () => {
  expect(boundsFault(nested(NESTING_MAX), 1_000)).toBeUndefined();
  expect(boundsFault(nested(NESTING_MAX + 1), 1_000)).toBe(nestingFault());
  expect(boundsFault(nested(1_000_000), 10_000_000)).toBe(nestingFault());
  const itself: unknown[] = [1, "x"];
  itself.push({ again: itself }, itself);
  expect(boundsFault(itself, 10)).toBe(nestingFault());
});

test("what a text holds by itself is never too much; what aliases make of it is bounded", () => {
  const wide = Array.from({ length: 100_000 }, (_, i) => ({ [`k${i}`]: "v" }));
  expect(boundsFault(wide, JSON.stringify(wide).length)).toBeUndefined();
  const long = "x".repeat(1_000_000);
  expect(boundsFault([long, long], long.length)).toBeUndefined();
  expect(boundsFault(Array(90).fill(long), long.length)).toContain("found aliases that make more than");
  // Never walked to its end, whose size is 10 to the power of 30.
  let bomb: unknown = "x";
  for (let i = 0; i < 30; i++) bomb = Array(10).fill(bomb);
  expect(boundsFault(bomb, 400)).toContain("found aliases that make more than");
});
