import { expect, test } from "bun:test";
import { atLeast, atMost, inParallel, percentile, table } from "./measure.ts";

test("percentiles interpolate between the closest ranks", () => {
  expect(percentile([4, 1, 3, 2], 0.5)).toBe(2.5);
  expect(percentile([10], 0.99)).toBe(10);
  expect(percentile([1, 2, 3, 4, 5], 1)).toBe(5);
});

test("inParallel runs every index once and never more than its width at a time", async () => {
  const seen: number[] = [];
  let running = 0, most = 0;
  await inParallel(20, 3, async (index) => {
    most = Math.max(most, ++running);
    await Promise.resolve();
    seen.push(index);
    running--;
  });
  expect(seen.sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, i) => i));
  expect(most).toBe(3);
});

test("a goal is met on its limit and missed past it", () => {
  expect(atMost("a", 1, 1).met).toBe(true);
  expect(atMost("a", 1.01, 1).met).toBe(false);
  expect(atLeast("a", 0.79, 0.8).met).toBe(false);
});

test("tables align their columns", () => {
  expect(table(["what", "ms"], [["a long one", "1"], ["b", "22"]])).toBe(
    "  what         ms\n  ───────────────\n  a long one    1\n  b            22",
  );
});
