import { expect, test } from "bun:test";
import { persistentMap } from "./persistent_map.ts";
import type { PersistentMap } from "./persistent_map.ts";

/** The same numbers at each run. */
function numbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = Math.imul(state, 1664525) + 1013904223 | 0;
    return (state >>> 8) % below;
  };
}

/** Pairs of keys with one 32-bit hash, found by search: they live in one slot of the trie. */
const COLLIDING = collidingKeys(3);
function collidingKeys(pairs: number): string[] {
  const byHash = new Map<number, string>();
  const found: string[] = [];
  for (let i = 0; found.length < pairs * 2; i++) {
    const key = `c${i}`;
    // FNV-1a as the map has it; what finishes the hash there is one-to-one.
    let hash = 0x811c9dc5;
    for (let at = 0; at < key.length; at++) hash = Math.imul(hash ^ key.charCodeAt(at), 0x01000193);
    const other = byHash.get(hash);
    if (other !== undefined) found.push(other, key);
    byHash.set(hash, key);
  }
  return found;
}

const contents = <V>(map: PersistentMap<string, V>): [string, V][] => [...map].map(([key, value]) => [key, value]);

for (const seed of [1, 2, 3, 4, 5, 6]) {
  test(`it holds what a Map holds through sets and deletes, seed ${seed}`, () => {
    const next = numbers(seed);
    const key = () => next(10) === 0 ? COLLIDING[next(COLLIDING.length)]! : `key-${next(200)}`;
    let map: PersistentMap<string, number> = persistentMap();
    const plain = new Map<string, number>();
    const versions: [PersistentMap<string, number>, Map<string, number>][] = [];
    for (let i = 0; i < 3_000; i++) {
      const at = key();
      if (next(3) === 0) {
        map = map.delete(at);
        plain.delete(at);
      } else {
        const value = next(4);
        map = map.set(at, value);
        plain.set(at, value);
      }
      expect(map.size).toBe(plain.size);
      expect(map.get(at)).toBe(plain.get(at)!);
      expect(map.has(at)).toBe(plain.has(at));
      if (i % 150 === 0) versions.push([map, new Map(plain)]);
    }
    for (const [version, was] of versions) {
      expect(new Map(version)).toEqual(was);
      expect(version.size).toBe(was.size);
      // The shape depends on the content alone: a map made in another order iterates the same.
      const again = persistentMap([...was].reverse());
      expect(contents(again)).toEqual(contents(version));
      expect([...version.keys()]).toEqual(contents(version).map(([key]) => key));
      expect([...version.values()]).toEqual(contents(version).map(([, value]) => value));
      const visited: [string, number][] = [];
      version.forEach((value, key) => visited.push([key, value]));
      expect(visited).toEqual(contents(version));
    }
    for (const [before, wasBefore] of versions) {
      const [after, wasAfter] = versions[next(versions.length)]!;
      const replayed = new Map(wasBefore);
      for (const change of after.changesSince(before)) {
        expect(change.before).toBe(wasBefore.get(change.key)!);
        expect(change.after).toBe(wasAfter.get(change.key)!);
        expect(change.before).not.toBe(change.after!);
        if (change.after === undefined) replayed.delete(change.key);
        else replayed.set(change.key, change.after);
      }
      expect(replayed).toEqual(wasAfter);
    }
  });

  test(`an editor makes what single steps make, and leaves its beginning alone, seed ${seed}`, () => {
    const next = numbers(seed + 100);
    let map: PersistentMap<string, number> = persistentMap();
    const editor = map.edit();
    for (let round = 0; round < 60; round++) {
      const before = map, wasBefore = contents(map);
      let single = map;
      for (let i = next(80); i > 0; i--) {
        const at = next(10) === 0 ? COLLIDING[next(COLLIDING.length)]! : `key-${next(150)}`;
        if (next(2) === 0) {
          editor.delete(at);
          single = single.delete(at);
        } else {
          const value = next(4);
          editor.set(at, value);
          single = single.set(at, value);
        }
        expect(editor.size).toBe(single.size);
        expect(editor.get(at)).toBe(single.get(at)!);
        expect(editor.has(at)).toBe(single.has(at));
      }
      map = editor.finish();
      expect(contents(map)).toEqual(contents(single));
      expect(contents(before)).toEqual(wasBefore);
      expect([...map.changesSince(single)]).toEqual([]);
    }
  });
}

test("keys with one hash stay apart", () => {
  const map = persistentMap(COLLIDING.map((key, i) => [key, i] as const));
  expect(map.size).toBe(COLLIDING.length);
  COLLIDING.forEach((key, i) => expect(map.get(key)).toBe(i));
  const one = COLLIDING.slice(1).reduce((left, key) => left.delete(key), map);
  expect(contents(one)).toEqual([[COLLIDING[0]!, 0]]);
  expect(one.has(COLLIDING[1]!)).toBe(false);
});

test("nothing changed is the same object", () => {
  const map = persistentMap<string, number>([["a", 1], ["b", 2]]);
  expect(map.set("a", 1)).toBe(map);
  expect(map.delete("c")).toBe(map);
  expect(map.edit().finish()).toBe(map);
  const editor = map.edit();
  editor.set("c", 3);
  editor.set("a", 9);
  editor.delete("c");
  editor.set("a", 1);
  expect(editor.finish()).toBe(map);
  expect(persistentMap()).toBe(persistentMap());
});

test("an undefined value is a value", () => {
  const map = persistentMap<string, undefined>([["a", undefined]]);
  expect(map.size).toBe(1);
  expect(map.has("a")).toBe(true);
  expect(map.set("a", undefined)).toBe(map);
  expect(map.delete("a").size).toBe(0);
});

test("comparing two versions of a large map looks at the difference only", () => {
  const large = persistentMap<string, number>(Array.from({ length: 50_000 }, (_, i) => [`key-${i}`, i] as const));
  const changed = large.set("key-77", -1).delete("key-99").set("new", 0);
  expect([...changed.changesSince(large)].map(({ key }) => key).sort()).toEqual(["key-77", "key-99", "new"]);
  const rounds = 2_000;
  const started = performance.now();
  for (let i = 0; i < rounds; i++) changed.changesSince(large);
  const each = (performance.now() - started) / rounds;
  const whole = performance.now();
  for (const _ of large);
  expect(each * 20).toBeLessThan(performance.now() - whole);
});
