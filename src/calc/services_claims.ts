/** Somebody's wish for what only one may have: an address and port, a port of the node. */
export interface Claim<V> {
  /** Id of the service. */
  readonly service: string;
  /** Before age: the smaller has it. */
  readonly rank: number;
  /** Milliseconds since 1970. */
  readonly createdMs: number;
  readonly value: V;
}

/** By rank, then age, then name: the same whatever order they came in. */
const byRight = (a: Claim<unknown>, b: Claim<unknown>): number =>
  a.rank - b.rank || (a.createdMs < b.createdMs ? -1 : a.createdMs > b.createdMs ? 1 : 0) ||
  (a.service < b.service ? -1 : 1);

/** Who has what, by key. A service claims a key once. */
export class Claims<V> {
  /** Nearly always one; then it stands alone. Several are in order of right. */
  readonly #claims = new Map<string, Claim<V> | readonly Claim<V>[]>();
  readonly #contested = new Set<string>();
  /** Keys whose winner may be another one since they were last taken. */
  #touched = new Set<string>();

  get held(): number {
    return this.#claims.size + this.#contested.size;
  }

  winner(key: string): Claim<V> | undefined {
    const claims = this.#claims.get(key);
    return claims === undefined || "service" in claims ? claims : claims[0];
  }

  /** Keys that several want, with all who do, the winner first. */
  *contests(): IterableIterator<readonly [string, readonly Claim<V>[]]> {
    for (const key of this.#contested) yield [key, listOf(this.#claims.get(key))];
  }

  /** Replaces what one service claims. */
  replace(before: ReadonlyMap<string, Claim<V>> | undefined, after: ReadonlyMap<string, Claim<V>> | undefined): void {
    for (const [key, claim] of before ?? []) if (after?.get(key) !== claim) this.#set(key, claim, undefined);
    for (const [key, claim] of after ?? []) if (before?.get(key) !== claim) this.#set(key, undefined, claim);
  }

  takeTouched(): ReadonlySet<string> {
    const touched = this.#touched;
    if (touched.size > 0) this.#touched = new Set();
    return touched;
  }

  #set(key: string, before: Claim<V> | undefined, after: Claim<V> | undefined): void {
    this.#touched.add(key);
    const there = this.#claims.get(key);
    if (there === undefined && after !== undefined) {
      this.#claims.set(key, after);
      return;
    }
    const claims = listOf(there).filter((claim) => claim !== before);
    if (after !== undefined) claims.push(after);
    if (claims.length === 0) this.#claims.delete(key);
    else this.#claims.set(key, claims.length === 1 ? claims[0]! : claims.sort(byRight));
    if (claims.length > 1) this.#contested.add(key);
    else this.#contested.delete(key);
  }
}

const listOf = <V>(claims: Claim<V> | readonly Claim<V>[] | undefined): readonly Claim<V>[] =>
  claims === undefined ? [] : "service" in claims ? [claims] : claims;
