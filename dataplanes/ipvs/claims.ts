/**
 * What several owners may want of one thing: the smallest owner's word holds, whoever came first. Knows which keys may have changed
 * since they were last taken.
 */
export class Claims<V> {
  private readonly owners = new Map<string, Map<string, V>>();
  /** Of keys with one owner, which is nearly all of them. */
  private readonly single = new Map<string, readonly [owner: string, value: V]>();
  private touched = new Set<string>();

  put(key: string, owner: string, value: V): void {
    this.touched.add(key);
    const only = this.single.get(key), many = this.owners.get(key);
    if (many !== undefined) many.set(owner, value);
    else if (only === undefined || only[0] === owner) this.single.set(key, [owner, value]);
    else {
      this.single.delete(key);
      this.owners.set(key, new Map([only, [owner, value]]));
    }
  }

  drop(key: string, owner: string): void {
    const many = this.owners.get(key);
    if (many === undefined) {
      if (this.single.get(key)?.[0] !== owner) return;
      this.single.delete(key);
    } else {
      if (!many.delete(owner)) return;
      if (many.size === 1) {
        const [[last, value]] = many as unknown as [[string, V]];
        this.owners.delete(key);
        this.single.set(key, [last, value]);
      }
    }
    this.touched.add(key);
  }

  get(key: string): V | undefined {
    const only = this.single.get(key);
    if (only !== undefined) return only[1];
    const many = this.owners.get(key);
    if (many === undefined) return undefined;
    let first: string | undefined;
    for (const owner of many.keys()) if (first === undefined || owner < first) first = owner;
    return first === undefined ? undefined : many.get(first);
  }

  get size(): number {
    return this.single.size + this.owners.size;
  }

  *keys(): Iterable<string> {
    yield* this.single.keys();
    yield* this.owners.keys();
  }

  /** Those that may have another value, or none, since they were last asked for. */
  takeTouched(): ReadonlySet<string> {
    const touched = this.touched;
    this.touched = new Set();
    return touched;
  }
}
