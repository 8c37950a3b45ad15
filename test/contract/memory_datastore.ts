/** The datastore contract in memory: the reference for the suites, and a store that fails where a test wants it to. */
import { keyText, type Resource, type ResourceKey, type ResourceKind } from "../../src/model/resource.ts";
import type { Change, ChangeBatch, Datastore, Revision, Versioned, Write } from "../../src/sdk/datastore.ts";
import { ConflictError } from "../../src/sdk/errors.ts";

interface Entry {
  readonly key: ResourceKey;
  /** As text, so that nobody shares an object with the store. */
  readonly json: string | undefined;
  readonly revision: number;
}

/** Called for each commit; may throw before it is carried out, or after (the answer is lost). */
export type Sabotage = (when: "before" | "after", writes: readonly Write[]) => void;

/** What is stored. Several clients share it, and it outlives them. */
export class MemoryStorage {
  readonly entries = new Map<string, Entry>();
  readonly listeners = new Set<() => void>();
  revision = 0;
  /** Commits that were carried out. */
  commits = 0;
  sabotage: Sabotage | undefined;

  client(): Datastore {
    return new MemoryDatastore(this);
  }
}

class MemoryDatastore implements Datastore {
  readonly #closed = new AbortController();
  constructor(readonly storage: MemoryStorage) {}

  async *watch(kinds: readonly ResourceKind[], signal: AbortSignal): AsyncGenerator<ChangeBatch> {
    const until = AbortSignal.any([signal, this.#closed.signal]);
    let seen = 0;
    let first = true;
    while (!until.aborted) {
      const changes: Change[] = [];
      for (const { key, json, revision } of this.storage.entries.values()) {
        if (revision <= seen || (kinds.length > 0 && !kinds.includes(key.kind))) continue;
        if (json === undefined) {
          if (!first) changes.push({ key, revision: String(revision) as Revision });
        } else changes.push({ key, value: JSON.parse(json), revision: String(revision) as Revision });
      }
      seen = this.storage.revision;
      if (first || changes.length > 0) {
        first = false;
        yield { changes, synced: true };
      }
      if (this.storage.revision > seen || until.aborted) continue;
      const { promise, resolve } = Promise.withResolvers<void>();
      const wake = () => resolve();
      this.storage.listeners.add(wake);
      until.addEventListener("abort", wake, { once: true });
      await promise;
      this.storage.listeners.delete(wake);
      until.removeEventListener("abort", wake);
    }
  }

  async get(key: ResourceKey): Promise<Versioned | undefined> {
    return versioned(this.storage.entries.get(keyText(key)));
  }

  async list(kind: ResourceKind): Promise<readonly Versioned[]> {
    return [...this.storage.entries.values()].filter(({ key }) => key.kind === kind).map(versioned)
      .filter((found) => found !== undefined)
      .sort((a, b) => compare(a.key.namespace, b.key.namespace) || compare(a.key.name, b.key.name));
  }

  reached(seen: Revision, wanted: Revision): boolean {
    return Number(seen) >= Number(wanted);
  }

  async commit(writes: readonly Write[], signal?: AbortSignal): Promise<Revision> {
    await new Promise((resolve) => setImmediate(resolve));
    signal?.throwIfAborted();
    const { storage } = this;
    storage.sabotage?.("before", writes);
    const current = (key: ResourceKey) => {
      const found = storage.entries.get(keyText(key));
      return found?.json === undefined ? null : String(found.revision);
    };
    const lost = writes.filter(({ key, expect }) => expect !== undefined && expect !== current(key));
    if (lost.length > 0) throw new ConflictError(lost.map(({ key }) => keyText(key)));
    const changing = writes.filter(({ key, value }) => value !== null || current(key) !== null);
    if (changing.length > 0) {
      const revision = ++storage.revision;
      for (const { key, value } of changing) {
        storage.entries.set(keyText(key), { key, json: value === null ? undefined : JSON.stringify(value), revision });
      }
    }
    storage.commits++;
    for (const wake of [...storage.listeners]) wake();
    storage.sabotage?.("after", writes);
    return String(storage.revision) as Revision;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed.abort();
  }
}

const compare = (a: string, b: string): number => a < b ? -1 : a > b ? 1 : 0;

function versioned(entry: Entry | undefined): Versioned | undefined {
  if (entry?.json === undefined) return undefined;
  return { key: entry.key, value: JSON.parse(entry.json) as Resource, revision: String(entry.revision) as Revision };
}
