/**
 * An immutable map with string keys whose versions share structure: a new version costs work for what changed, and two
 * versions are compared by walking only the parts that are not the same object. (A hash array mapped trie, 32 wide.)
 * Equal contents have equal shapes, so they also iterate in the same order whatever path led to them.
 */
export interface PersistentMap<K extends string, V> extends Iterable<readonly [K, V]> {
  readonly size: number;
  get(key: K): V | undefined;
  has(key: K): boolean;
  keys(): IterableIterator<K>;
  values(): IterableIterator<V>;
  /** As iterating, several times faster: for maps of many thousands. */
  forEach(visit: (value: V, key: K) => void): void;
  /** Same object when nothing changes. */
  set(key: K, value: V): PersistentMap<K, V>;
  /** Same object when the key is absent. */
  delete(key: K): PersistentMap<K, V>;
  /** What turns `previous` into this map. Values are compared by identity (`===`). */
  changesSince(previous: PersistentMap<K, V>): IterableIterator<MapChange<K, V>>;
  /** For many changes at once: works in place on parts nobody else has seen. This map stays as it is. */
  edit(): MapEditor<K, V>;
}

export interface MapChange<K, V> {
  readonly key: K;
  readonly before: V | undefined;
  readonly after: V | undefined;
}

export interface MapEditor<K extends string, V> {
  readonly size: number;
  get(key: K): V | undefined;
  has(key: K): boolean;
  set(key: K, value: V): void;
  delete(key: K): void;
  /** The map as it is now; the very map that the editor began with where the content is the same. May be edited on. */
  finish(): PersistentMap<K, V>;
}

export function persistentMap<K extends string, V>(entries: Iterable<readonly [K, V]> = []): PersistentMap<K, V> {
  const editor = (EMPTY as unknown as PersistentMap<K, V>).edit();
  for (const [key, value] of entries) editor.set(key, value);
  return editor.finish();
}

/** Who may change a branch in place; any object, compared by identity. */
type Owner = object | undefined;
type Slot<V> = Leaf<V> | Collision<V> | Branch<V>;

class Leaf<V> {
  constructor(readonly hash: number, readonly key: string, readonly value: V) {}
}

/** Keys with the very same hash, in order of key. */
class Collision<V> {
  constructor(readonly hash: number, readonly leaves: readonly Leaf<V>[]) {}
}

class Branch<V> {
  constructor(public bitmap: number, public slots: Slot<V>[], readonly owner: Owner) {}
}

class Trie<V> implements PersistentMap<string, V> {
  constructor(readonly size: number, readonly root: Slot<V> | undefined) {}

  get(key: string): V | undefined {
    return find(this.root, key)?.value;
  }
  has(key: string): boolean {
    return find(this.root, key) !== undefined;
  }
  set(key: string, value: V): PersistentMap<string, V> {
    const found = find(this.root, key);
    if (found !== undefined && found.value === value) return this;
    const root = insert(this.root, new Leaf(hashText(key), key, value), 0, undefined);
    return new Trie(this.size + (found === undefined ? 1 : 0), root);
  }
  delete(key: string): PersistentMap<string, V> {
    if (!this.has(key)) return this;
    return new Trie(this.size - 1, remove(this.root!, hashText(key), key, 0, undefined));
  }
  *[Symbol.iterator](): IterableIterator<readonly [string, V]> {
    for (const leaf of leavesOf(this.root)) yield [leaf.key, leaf.value];
  }
  *keys(): IterableIterator<string> {
    for (const leaf of leavesOf(this.root)) yield leaf.key;
  }
  *values(): IterableIterator<V> {
    for (const leaf of leavesOf(this.root)) yield leaf.value;
  }
  forEach(visit: (value: V, key: string) => void): void {
    if (this.root !== undefined) visitAll(this.root, visit);
  }
  changesSince(previous: PersistentMap<string, V>): IterableIterator<MapChange<string, V>> {
    const changes: MapChange<string, V>[] = [];
    compare((previous as Trie<V>).root, this.root, 0, (key, before, after) => {
      changes.push({ key, before: before?.value, after: after?.value });
      return true;
    });
    return changes.values();
  }
  edit(): MapEditor<string, V> {
    return new Editor(this);
  }
}

class Editor<V> implements MapEditor<string, V> {
  #base: Trie<V>;
  #root: Slot<V> | undefined;
  #owner: object = {};
  size: number;

  constructor(base: Trie<V>) {
    this.#base = base;
    this.#root = base.root;
    this.size = base.size;
  }
  get(key: string): V | undefined {
    return find(this.#root, key)?.value;
  }
  has(key: string): boolean {
    return find(this.#root, key) !== undefined;
  }
  set(key: string, value: V): void {
    const found = find(this.#root, key);
    if (found !== undefined && found.value === value) return;
    this.#root = insert(this.#root, new Leaf(hashText(key), key, value), 0, this.#owner);
    if (found === undefined) this.size++;
  }
  delete(key: string): void {
    if (!this.has(key)) return;
    this.#root = remove(this.#root!, hashText(key), key, 0, this.#owner);
    this.size--;
  }
  finish(): PersistentMap<string, V> {
    const unchanged = this.size === this.#base.size && compare(this.#base.root, this.#root, 0, () => false);
    if (unchanged) this.#root = this.#base.root;
    else this.#base = new Trie(this.size, this.#root);
    // What was handed out is shared from here on.
    this.#owner = {};
    return this.#base;
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

const bitOf = (hash: number, shift: number): number => 1 << (hash >>> shift & 31);

function find<V>(slot: Slot<V> | undefined, key: string): Leaf<V> | undefined {
  if (slot === undefined) return undefined;
  const hash = hashText(key);
  for (let shift = 0;; shift += 5) {
    if (slot instanceof Leaf) return slot.hash === hash && slot.key === key ? slot : undefined;
    if (slot instanceof Collision) {
      return slot.hash === hash ? slot.leaves.find((leaf) => leaf.key === key) : undefined;
    }
    const bit = bitOf(hash, shift);
    if ((slot.bitmap & bit) === 0) return undefined;
    slot = slot.slots[bitCount(slot.bitmap & bit - 1)]!;
  }
}

function insert<V>(slot: Slot<V> | undefined, leaf: Leaf<V>, shift: number, owner: Owner): Slot<V> {
  if (slot === undefined) return leaf;
  if (!(slot instanceof Branch)) {
    if (slot.hash === leaf.hash) return collide(slot, leaf);
    // Two hashes part somewhere below: a chain of branches down to there.
    return insert(new Branch(bitOf(slot.hash, shift), [slot], owner), leaf, shift, owner);
  }
  const bit = bitOf(leaf.hash, shift);
  const at = bitCount(slot.bitmap & bit - 1);
  const own = owner !== undefined && slot.owner === owner;
  if ((slot.bitmap & bit) === 0) {
    if (own) {
      slot.slots.splice(at, 0, leaf);
      slot.bitmap |= bit;
      return slot;
    }
    const slots = new Array<Slot<V>>(slot.slots.length + 1);
    for (let i = 0; i < at; i++) slots[i] = slot.slots[i]!;
    slots[at] = leaf;
    for (let i = at; i < slot.slots.length; i++) slots[i + 1] = slot.slots[i]!;
    return new Branch(slot.bitmap | bit, slots, owner);
  }
  const below = insert(slot.slots[at]!, leaf, shift + 5, owner);
  if (own) {
    slot.slots[at] = below;
    return slot;
  }
  const slots = slot.slots.slice();
  slots[at] = below;
  return new Branch(slot.bitmap, slots, owner);
}

function collide<V>(slot: Leaf<V> | Collision<V>, leaf: Leaf<V>): Slot<V> {
  const others = (slot instanceof Leaf ? [slot] : slot.leaves).filter((other) => other.key !== leaf.key);
  if (others.length === 0) return leaf;
  return new Collision(leaf.hash, [...others, leaf].sort((a, b) => a.key < b.key ? -1 : 1));
}

/** The key is there. */
function remove<V>(slot: Slot<V>, hash: number, key: string, shift: number, owner: Owner): Slot<V> | undefined {
  if (slot instanceof Leaf) return undefined;
  if (slot instanceof Collision) {
    const leaves = slot.leaves.filter((leaf) => leaf.key !== key);
    return leaves.length === 1 ? leaves[0] : new Collision(hash, leaves);
  }
  const bit = bitOf(hash, shift);
  const at = bitCount(slot.bitmap & bit - 1);
  const below = remove(slot.slots[at]!, hash, key, shift + 5, owner);
  const left = slot.slots.length - (below === undefined ? 1 : 0);
  if (left === 0) return undefined;
  if (left === 1) {
    // A lone leaf moves up, so that equal maps have equal shapes whatever path led to them.
    const lone = below ?? slot.slots[1 - at]!;
    if (!(lone instanceof Branch)) return lone;
  }
  const own = owner !== undefined && slot.owner === owner;
  const slots = own ? slot.slots : slot.slots.slice();
  if (below === undefined) slots.splice(at, 1);
  else slots[at] = below;
  const bitmap = below === undefined ? slot.bitmap & ~bit : slot.bitmap;
  if (!own) return new Branch(bitmap, slots, owner);
  slot.bitmap = bitmap;
  return slot;
}

function* leavesOf<V>(root: Slot<V> | undefined): IterableIterator<Leaf<V>> {
  if (root === undefined) return;
  const waiting: Slot<V>[] = [root];
  for (let slot = waiting.pop(); slot !== undefined; slot = waiting.pop()) {
    if (slot instanceof Leaf) yield slot;
    else {
      const below: readonly Slot<V>[] = slot instanceof Collision ? slot.leaves : slot.slots;
      for (let i = below.length - 1; i >= 0; i--) waiting.push(below[i]!);
    }
  }
}

type Difference<V> = (key: string, before: Leaf<V> | undefined, after: Leaf<V> | undefined) => boolean;

/** Calls `tell` for each difference until it answers false; true when it never did. */
function compare<V>(
  before: Slot<V> | undefined,
  after: Slot<V> | undefined,
  shift: number,
  tell: Difference<V>,
): boolean {
  if (before === after) return true;
  if (before instanceof Branch && after instanceof Branch) {
    let old = 0, now = 0;
    for (let bits = before.bitmap | after.bitmap; bits !== 0; bits &= bits - 1) {
      const bit = bits & -bits;
      const was = (before.bitmap & bit) === 0 ? undefined : before.slots[old++];
      const is = (after.bitmap & bit) === 0 ? undefined : after.slots[now++];
      if (!compare(was, is, shift + 5, tell)) return false;
    }
    return true;
  }
  // One side is a few keys at most; the other may be a whole branch.
  const wanted = new Map<string, Leaf<V>>();
  for (const leaf of leavesOf(before)) wanted.set(leaf.key, leaf);
  for (const leaf of leavesOf(after)) {
    const was = wanted.get(leaf.key);
    wanted.delete(leaf.key);
    if ((was === undefined || was.value !== leaf.value) && !tell(leaf.key, was, leaf)) return false;
  }
  for (const leaf of wanted.values()) if (!tell(leaf.key, leaf, undefined)) return false;
  return true;
}

function visitAll<V>(slot: Slot<V>, visit: (value: V, key: string) => void): void {
  if (slot instanceof Leaf) visit(slot.value, slot.key);
  else {
    const below: readonly Slot<V>[] = slot instanceof Collision ? slot.leaves : slot.slots;
    for (let i = 0; i < below.length; i++) visitAll(below[i]!, visit);
  }
}
