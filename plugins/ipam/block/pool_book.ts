/** The pools there are and the labels of the node, followed for as long as address management is open. */
import { formatCidr } from "../../../src/model/address.ts";
import { keyText, type Problem, type Resource } from "../../../src/model/resource.ts";
import type { Labels } from "../../../src/model/selector.ts";
import type { Change, Datastore } from "../../../src/sdk/datastore.ts";
import { ConfigError, ConflictError, explainError, UnavailableError } from "../../../src/sdk/errors.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import {
  CONFIGURED_BY,
  overlapping,
  planPools,
  type Pool,
  POOL_KIND,
  poolKey,
  poolResource,
  readPoolResource,
  samePool,
} from "./pools.ts";

const WATCH_RETRY_MS = 1_000;
/** Times that a configured pool is stored anew because another node was first. */
const ATTEMPTS_MAX = 32;

/** Opened by `PoolBook.open`; its fields are always the present ones. */
export class PoolBook implements AsyncDisposable {
  readonly #host: Host;
  readonly #store: Datastore;
  readonly #node: string;
  readonly #closing = new AbortController();
  #watching: Promise<void> = Promise.resolve();
  /** Stored pools as last read well, and what is wrong with those that cannot be. */
  readonly #stored = new Map<string, Pool>();
  readonly #unread = new Map<string, string>();
  /** Those that can serve beside one another, sorted by name. */
  pools: readonly Pool[] = [];
  /** Why other stored pools are left aside. */
  problems: readonly string[] = [];
  /** Of the Node object; none where there is no such object. */
  labels: Labels = new Map();

  private constructor(host: Host) {
    this.#host = host;
    this.#store = host.datastore;
    this.#node = host.node;
  }

  /** Stores the pools of the config. @throws {ConfigError} where one contradicts a stored one */
  static async open(configured: readonly Pool[], host: Host, signal: AbortSignal): Promise<PoolBook> {
    const book = new PoolBook(host);
    try {
      await book.#start(signal);
      await book.#storeConfigured(configured, signal);
      return book;
    } catch (error) {
      await book[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new UnavailableError("address management is closed"));
    await this.#watching;
  }

  /** Returns once pools and node labels are known; then follows them until closed. */
  async #start(signal: AbortSignal): Promise<void> {
    const ready = Promise.withResolvers<void>();
    ready.promise.catch(() => {}); // also where nobody waits any more
    this.#watching = this.#follow(ready.resolve, ready.reject);
    const onAbort = () => ready.reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      signal.throwIfAborted();
      await ready.promise;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  async #follow(onSynced: () => void, onFailed: (error: unknown) => void): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        let synced = false;
        const seen = new Set<string>();
        for await (const batch of this.#store.watch([POOL_KIND, "Node"], signal)) {
          for (const change of batch.changes) {
            if (change.key.kind === POOL_KIND) this.#takePool(change);
            else if (change.key.name === this.#node) this.#takeNode(change);
            if (!synced) seen.add(keyText(change.key));
          }
          if (batch.synced && !synced) {
            synced = true;
            // After a new start of the watch: what was not replayed is gone.
            for (const name of [...this.#stored.keys(), ...this.#unread.keys()]) {
              if (!seen.has(keyText(poolKey(name)))) this.#takePool({ key: poolKey(name) });
            }
            if (!seen.has(`Node//${this.#node}`)) this.labels = new Map();
            this.#plan();
            onSynced();
          }
          if (synced && batch.changes.some(({ key }) => key.kind === POOL_KIND)) this.#plan();
        }
        if (signal.aborted) break;
        throw new UnavailableError("the datastore ended its watch");
      } catch (error) {
        if (signal.aborted) break;
        onFailed(error);
        this.#host.log.warn("following pools and nodes failed, trying again", { error: explainError(error) });
        await this.#host.clock.sleep(WATCH_RETRY_MS, signal).catch(() => {});
      }
    }
    onFailed(signal.reason);
  }

  #takePool({ key, value, problem }: Change): void {
    this.#unread.delete(key.name);
    if (value === undefined && problem === undefined) {
      this.#stored.delete(key.name);
      return;
    }
    const read: Pool | readonly Problem[] = value === undefined
      ? [{ subject: key, path: "", message: problem!, effect: "last-good" }]
      : readPoolResource(key, value);
    if (!isProblems(read)) {
      this.#stored.set(key.name, read);
      return;
    }
    // The last good version, where there is one, stands.
    const text = `pool ${key.name}: ${
      read.map(({ path, message }) => path === "" ? message : `${path}: ${message}`).join(", ")
    }`;
    this.#unread.set(key.name, text);
    this.#host.log.warn("an IP pool cannot be read", { pool: key.name, problem: text });
  }

  #takeNode({ value, problem }: Change): void {
    if (problem !== undefined) return;
    this.labels = new Map(Object.entries(value?.metadata.labels ?? {}));
  }

  #plan(): void {
    const { pools, problems } = planPools(this.#stored.values());
    const overlaps = problems.map(({ subject, message }) => `pool ${subject.name}: ${message}`);
    for (const text of overlaps) {
      if (!this.problems.includes(text)) this.#host.log.warn("an IP pool is left aside", { problem: text });
    }
    this.pools = pools;
    this.problems = [...this.#unread.values(), ...overlaps];
  }

  /** Stores the pools of the config, so that whoever reads pools (NAT, `manx get`, other nodes) knows them too. */
  async #storeConfigured(configured: readonly Pool[], signal: AbortSignal): Promise<void> {
    const names = new Set(configured.map((pool) => pool.name));
    for (const name of [...this.#stored.keys()].filter((name) => !names.has(name))) {
      const found = await this.#store.get(poolKey(name), signal);
      if (found?.value.metadata.annotations?.[CONFIGURED_BY] !== this.#node) continue;
      await this.#store.commit([{ key: found.key, value: null, expect: found.revision }], signal);
      this.#stored.delete(name);
      this.#host.log.info("an IP pool that the config no longer has was removed", { pool: name });
    }
    const others = [...this.#stored.values()].filter(({ name }) => !names.has(name));
    for (const [i, pool] of configured.entries()) {
      const other = overlapping(pool, others);
      if (other !== undefined) {
        throw new ConfigError(
          `pools[${i}].cidr`,
          `${formatCidr(pool.cidr)}, which overlaps the stored pool ${other.name} (${formatCidr(other.cidr)})`,
          "a prefix apart from it, or that pool deleted",
        );
      }
      await this.#storeOne(pool, `pools[${i}]`, signal);
      this.#stored.set(pool.name, pool);
      this.#unread.delete(pool.name);
    }
    this.#plan();
  }

  async #storeOne(pool: Pool, path: string, signal: AbortSignal): Promise<void> {
    for (let attempt = 0;; attempt++) {
      const found = await this.#store.get(poolKey(pool.name), signal);
      const stored = found === undefined ? undefined : readPoolResource(found.key, found.value);
      if (stored !== undefined && !isProblems(stored) && samePool(stored, pool)) return;
      const from = found?.value.metadata.annotations?.[CONFIGURED_BY];
      if (found !== undefined && from !== this.#node) {
        throw new ConfigError(
          path,
          `pool ${pool.name} other than ${from === undefined ? "the stored one" : `that of node ${from}'s config`} (${
            JSON.stringify(found.value.spec)
          })`,
          "the same, or that pool deleted first",
        );
      }
      try {
        const value: Resource = poolResource(pool, this.#node);
        await this.#store.commit([{ key: poolKey(pool.name), value, expect: found?.revision ?? null }], signal);
        return;
      } catch (error) {
        if (!(error instanceof ConflictError) || attempt + 1 >= ATTEMPTS_MAX) throw error;
      }
    }
  }
}

const isProblems = <P>(read: Pool | readonly P[]): read is readonly P[] => Array.isArray(read);
