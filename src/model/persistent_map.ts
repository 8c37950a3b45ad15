/**
 * An immutable map with string keys whose versions share structure: a new version costs work for what changed, and two
 * versions are compared by walking only the parts that are not the same object. (A hash array mapped trie, 32 wide.)
 */
export interface PersistentMap<K extends string, V> extends Iterable<readonly [K, V]> {
  readonly size: number;
  get(key: K): V | undefined;
  has(key: K): boolean;
  keys(): IterableIterator<K>;
  values(): IterableIterator<V>;
  /** Same object when nothing changes. */
  set(key: K, value: V): PersistentMap<K, V>;
  /** Same object when the key is absent. */
  delete(key: K): PersistentMap<K, V>;
  /** What turns `previous` into this map. Values are compared by identity (`===`). */
  changesSince(previous: PersistentMap<K, V>): IterableIterator<MapChange<K, V>>;
}

export interface MapChange<K, V> {
  readonly key: K;
  readonly before: V | undefined;
  readonly after: V | undefined;
}

export function persistentMap<K extends string, V>(entries: Iterable<readonly [K, V]> = []): PersistentMap<K, V> {
  let map: PersistentMap<K, V> = EMPTY as unknown as PersistentMap<K, V>;
  for (const [key, value] of entries) map = map.set(key, value);
  return map;
}

type Slot<V> = Leaf<V> | Branch<V>;
interface Leaf<V> {
  readonly hash: number;
  /** Pairs whose keys have this very hash; nearly always one. */
  readonly pairs: readonly (readonly [string, V])[];
}
interface Branch<V> {
  readonly bitmap: number;
  readonly slots: readonly Slot<V>[];
}

const isLeaf = <V>(slot: Slot<V>): slot is Leaf<V> => "pairs" in slot;

class Trie<V> implements PersistentMap<string, V> {
  constructor(readonly size: number, readonly root: Slot<V> | undefined) {}

  get(key: string): V | undefined {
    return find(this.root, key)?.[1];
  }
  has(key: string): boolean {
    return find(this.root, key) !== undefined;
  }
  set(key: string, value: V): PersistentMap<string, V> {
    const found = find(this.root, key);
    if (found !== undefined && found[1] === value) return this;
    return new Trie(this.size + (found === undefined ? 1 : 0), insert(this.root, hashText(key), key, value, 0));
  }
  delete(key: string): PersistentMap<string, V> {
    if (!this.has(key)) return this;
    return new Trie(this.size - 1, remove(this.root!, hashText(key), key, 0));
  }
  *[Symbol.iterator](): IterableIterator<readonly [string, V]> {
    yield* walk(this.root);
  }
  *keys(): IterableIterator<string> {
    for (const [key] of walk(this.root)) yield key;
  }
  *values(): IterableIterator<V> {
    for (const [, value] of walk(this.root)) yield value;
  }
  *changesSince(previous: PersistentMap<string, V>): IterableIterator<MapChange<string, V>> {
    yield* compare((previous as Trie<V>).root, this.root, 0);
  }
}

const EMPTY = new Trie<never>(0, undefined);

/** FNV-1a, 32 bits, finished with a multiply-xor so that the low bits mix. */
function hashText(key: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193);
  hash = Math.imul(hash ^ hash >>> 16, 0x85ebca6b);
  return hash ^ hash >>> 13;
}

function bitCount(bits: number): number {
  bits -= bits >>> 1 & 0x55555555;
  bits = (bits & 0x33333333) + (bits >>> 2 & 0x33333333);
  return Math.imul(bits + (bits >>> 4) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

function find<V>(slot: Slot<V> | undefined, key: string): readonly [string, V] | undefined {
  if (slot === undefined) return undefined;
  const hash = hashText(key);
  for (let shift = 0;; shift += 5) {
    if (isLeaf(slot)) return slot.hash === hash ? slot.pairs.find((pair) => pair[0] === key) : undefined;
    const bit = 1 << (hash >>> shift & 31);
    if ((slot.bitmap & bit) === 0) return undefined;
    slot = slot.slots[bitCount(slot.bitmap & bit - 1)]!;
  }
}

function insert<V>(slot: Slot<V> | undefined, hash: number, key: string, value: V, shift: number): Slot<V> {
  if (slot === undefined) return { hash, pairs: [[key, value]] };
  if (isLeaf(slot)) {
    if (slot.hash === hash) {
      const others = slot.pairs.filter((pair) => pair[0] !== key);
      return { hash, pairs: [...others, [key, value]] };
    }
    return insert({ bitmap: 1 << (slot.hash >>> shift & 31), slots: [slot] }, hash, key, value, shift);
  }
  const bit = 1 << (hash >>> shift & 31);
  const at = bitCount(slot.bitmap & bit - 1);
  const slots = slot.slots.slice();
  if ((slot.bitmap & bit) === 0) {
    slots.splice(at, 0, { hash, pairs: [[key, value]] });
    return { bitmap: slot.bitmap | bit, slots };
  }
  slots[at] = insert(slots[at], hash, key, value, shift + 5);
  return { bitmap: slot.bitmap, slots };
}

function remove<V>(slot: Slot<V>, hash: number, key: string, shift: number): Slot<V> | undefined {
  if (isLeaf(slot)) {
    const pairs = slot.pairs.filter((pair) => pair[0] !== key);
    return pairs.length === 0 ? undefined : { hash, pairs };
  }
  const bit = 1 << (hash >>> shift & 31);
  const at = bitCount(slot.bitmap & bit - 1);
  const below = remove(slot.slots[at]!, hash, key, shift + 5);
  const slots = slot.slots.slice();
  if (below === undefined) {
    slots.splice(at, 1);
    if (slots.length === 0) return undefined;
    if (slots.length === 1 && isLeaf(slots[0]!)) return slots[0];
    return { bitmap: slot.bitmap & ~bit, slots };
  }
  slots[at] = below;
  // A lone leaf moves up, so that equal maps have equal shapes whatever path led to them.
  if (slots.length === 1 && isLeaf(below)) return below;
  return { bitmap: slot.bitmap, slots };
}

function* walk<V>(slot: Slot<V> | undefined): IterableIterator<readonly [string, V]> {
  if (slot === undefined) return;
  if (isLeaf(slot)) yield* slot.pairs;
  else { for (const below of slot.slots) yield* walk(below); }
}

function* compare<V>(
  before: Slot<V> | undefined,
  after: Slot<V> | undefined,
  shift: number,
): IterableIterator<MapChange<string, V>> {
  if (before === after) return;
  if (before !== undefined && after !== undefined && !isLeaf(before) && !isLeaf(after)) {
    for (let bits = before.bitmap | after.bitmap; bits !== 0; bits &= bits - 1) {
      const bit = bits & -bits;
      const at = (branch: Branch<V>) =>
        (branch.bitmap & bit) === 0 ? undefined : branch.slots[bitCount(branch.bitmap & bit - 1)];
      yield* compare(at(before), at(after), shift + 5);
    }
    return;
  }
  const old = new Map(walk(before));
  for (const [key, value] of walk(after)) {
    const was = old.get(key);
    if (was !== value || !old.has(key)) yield { key, before: was, after: value };
    old.delete(key);
  }
  for (const [key, value] of old) yield { key, before: value, after: undefined };
}
