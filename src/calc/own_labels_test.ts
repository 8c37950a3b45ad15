import { expect, test } from "bun:test";
import { LabelPool, LayeredLabels } from "./own_labels.ts";

const TRICKY: readonly (readonly [string, string])[] = [
  ["app", "web"],
  ["empty", ""],
  ["3:abc", "12:x:"],
  ["", "no name"],
  ["line\n\0", "5:é\u{1F600}\ud800"],
  ["pcns.team", "forged"],
];

test("pooled labels say what was given, whatever is in it", () => {
  const own = new LabelPool().acquire(new Map(TRICKY));
  expect([...own]).toEqual(TRICKY.map((pair) => [...pair]));
  expect([...own.entries()]).toEqual([...own]);
  for (const [name, value] of TRICKY) expect([own.get(name), own.has(name)]).toEqual([value, true]);
  expect([own.get("app2"), own.has("app2"), own.size]).toEqual([undefined, false, TRICKY.length]);
  expect([...own.keys()]).toEqual(TRICKY.map(([name]) => name));
  expect([...own.values()]).toEqual(TRICKY.map(([, value]) => value));
  const told: unknown[] = [];
  own.forEach((value, name) => told.push([name, value]));
  expect(told).toEqual([...own]);
  expect([...own.visible.keys()]).toEqual(TRICKY.slice(0, -1).map(([name]) => name));
});

test("equal labels are one object for as long as somebody uses them, and texts that look alike are two", () => {
  const pool = new LabelPool();
  const first = pool.acquire(new Map([["a", "1"], ["b", "2"]]));
  expect(pool.acquire(new Map([["a", "1"], ["b", "2"]]))).toBe(first);
  expect(first.visible).toBe(first);
  const others = [[["a", "1:b"], ["b", "2"]], [["a", "1"], ["b", "22"]], [["a", "1"]], [["a1", "1"], ["b", "2"]], []]
    .map((pairs) => pool.acquire(new Map(pairs as [string, string][])));
  expect(new Set([first, ...others]).size).toBe(others.length + 1);
  for (const own of others) pool.release(own);
  pool.release(first);
  expect(pool.acquire(new Map([["a", "1"], ["b", "2"]]))).toBe(first);
  pool.release(first);
  pool.release(first);
  expect(pool.held).toBe(0);
});

test("own labels lie over inherited ones", () => {
  const layered = new LayeredLabels(new Map([["a", "own"]]), new Map([["a", "inherited"], ["b", "inherited"]]));
  expect([...layered]).toEqual([["a", "own"], ["b", "inherited"]]);
  expect([layered.get("a"), layered.get("b"), layered.get("c"), layered.size]).toEqual([
    "own",
    "inherited",
    undefined,
    2,
  ]);
});
