/** Between the datastore and the calculation: the latest change of each key, held back until the datastore is in sync. */
import { keyText, type ResourceKey } from "../model/resource.ts";
import type { Change, ChangeBatch } from "../sdk/datastore.ts";

/** Keys that may wait once the datastore is in sync; past it, `put` holds its caller back. Before, the store's size is the bound. */
export const PENDING_KEYS_MAX = 100_000;

export class Inbox {
  readonly #pending = new Map<string, Change>();
  /** Of the keys that are there, by text: what a new replay must name again, or they are gone. */
  readonly #present = new Map<string, ResourceKey>();
  /** Keys that the replay under way has named. */
  #replayed: Set<string> | undefined = new Set();
  #synced = false;
  #waiting: (() => void)[] = [];

  /** `wake` is called when there is something to take. */
  constructor(readonly wake: () => void, readonly limit: number = PENDING_KEYS_MAX) {}

  /** Whether the datastore has said once that all there was has been told. */
  get synced(): boolean {
    return this.#synced;
  }
  /** Keys that wait. */
  get pending(): number {
    return this.#pending.size;
  }

  /** Whether a change of it waits. */
  has(key: ResourceKey): boolean {
    return this.#pending.has(keyText(key));
  }

  /** A new watch begins: it names everything that is there, and what it leaves out is gone. */
  beginReplay(): void {
    this.#replayed = new Set();
  }

  /** Resolves when there is room for more. */
  put(batch: ChangeBatch): Promise<void> | undefined {
    for (const change of batch.changes) this.#note(change);
    if (batch.synced && this.#replayed !== undefined) {
      const replayed = this.#replayed;
      this.#replayed = undefined;
      for (const [text, key] of [...this.#present]) {
        if (!replayed.has(text)) this.#note({ key });
      }
      this.#synced = true;
      this.wake();
    } else if (this.#synced && this.#pending.size > 0) this.wake();
    if (!this.#synced || this.#pending.size <= this.limit) return undefined;
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** All that waits, one change a key; empty before the datastore is in sync. */
  take(): readonly Change[] {
    if (!this.#synced || this.#pending.size === 0) return [];
    const changes = [...this.#pending.values()];
    this.#pending.clear();
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resume of waiting) resume();
    return changes;
  }

  #note(change: Change): void {
    const text = keyText(change.key);
    this.#replayed?.add(text);
    if (change.value === undefined && change.problem === undefined) this.#present.delete(text);
    else this.#present.set(text, change.key);
    this.#pending.set(text, change);
  }
}
