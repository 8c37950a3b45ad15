import type { Resource, ResourceKey, ResourceKind } from "../model/resource.ts";

declare const revisionBrand: unique symbol;
/** Opaque and ordered only by the store that made it. */
export type Revision = string & { readonly [revisionBrand]: true };

export interface Versioned<R extends Resource = Resource> {
  readonly key: ResourceKey;
  readonly value: R;
  /** Of the last write of this key. */
  readonly revision: Revision;
}

export interface Change {
  readonly key: ResourceKey;
  /** Absent: gone, or unreadable where `problem` is given. */
  readonly value?: Resource;
  readonly revision?: Revision;
  /** There, but it cannot be read; whoever reads keeps the last good version. */
  readonly problem?: string;
}

export interface ChangeBatch {
  readonly changes: readonly Change[];
  /** True from the batch on that completes the replay of what was there. Never true before it. */
  readonly synced: boolean;
}

export interface Write {
  readonly key: ResourceKey;
  /** null deletes; deleting an absent key succeeds. */
  readonly value: Resource | null;
  /** Absent: whatever is there. null: must not exist. A revision: must still be that one. */
  readonly expect?: Revision | null;
}

/** `kinds`: empty = every kind. */
export interface Datastore extends AsyncDisposable {
  /** Replays all that is there, then follows. Ends when `signal` aborts. Latest value of a key wins; steps between may be left out. */
  watch(kinds: readonly ResourceKind[], signal: AbortSignal): AsyncIterable<ChangeBatch>;
  get(key: ResourceKey, signal?: AbortSignal): Promise<Versioned | undefined>;
  /** Sorted by namespace, then name. */
  list(kind: ResourceKind, signal?: AbortSignal): Promise<readonly Versioned[]>;
  /** Whether `seen`, of one key, is `wanted` or a later write of that key. */
  reached(seen: Revision, wanted: Revision): boolean;
  /** All writes or none, durable on return. @throws {ConflictError} naming the keys whose `expect` did not hold */
  commit(writes: readonly Write[], signal?: AbortSignal): Promise<Revision>;
}
