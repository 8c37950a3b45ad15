/** Sets by key; a key exists while its set holds something. */
export class SetMap<K, T> {
  readonly #sets = new Map<K, Set<T>>();

  get(key: K): ReadonlySet<T> {
    return this.#sets.get(key) ?? NOTHING;
  }
  get size(): number {
    return this.#sets.size;
  }
  add(key: K, item: T): void {
    const set = this.#sets.get(key);
    if (set === undefined) this.#sets.set(key, new Set([item]));
    else set.add(item);
  }
  delete(key: K, item: T): void {
    const set = this.#sets.get(key);
    if (set?.delete(item) && set.size === 0) this.#sets.delete(key);
  }
  keys(): MapIterator<K> {
    return this.#sets.keys();
  }
  *values(): IterableIterator<T> {
    for (const set of this.#sets.values()) yield* set;
  }
}

const NOTHING: ReadonlySet<never> = new Set();
