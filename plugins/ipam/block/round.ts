/** Requests that wait, and how many of them one commit takes. */
import { keyText } from "../../../src/model/resource.ts";
import type { Write } from "../../../src/sdk/datastore.ts";
import type { Handle, Lease, LeaseRequest } from "../../../src/sdk/ipam.ts";
import type { Block } from "./blocks.ts";
import { BlockListNeeded, type Draft } from "./plan.ts";

/** Writes in one commit: below etcd's default of 128 operations in a transaction (`--max-txn-ops`). */
const COMMIT_WRITES_MAX = 120;

export interface AcquireItem {
  readonly request: LeaseRequest;
  readonly signal: AbortSignal | undefined;
  readonly resolve: (lease: Lease) => void;
  readonly reject: (error: unknown) => void;
}

export interface ReleaseItem {
  readonly handle: Handle;
  readonly also: readonly Write[];
  readonly signal: AbortSignal | undefined;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

/** Looks for blocks to give back. */
export interface TidyItem {
  readonly tidy: true;
  readonly signal: undefined;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export type Item = AcquireItem | ReleaseItem | TidyItem;

/** An item that is part of the commit in hand. */
export interface Entered {
  readonly item: Item;
  readonly also: readonly Write[];
  readonly settle: () => void;
}

/** What one commit takes of the queue. */
export interface Round {
  readonly entered: readonly Entered[];
  readonly refused: readonly { readonly item: Item; readonly error: unknown }[];
  readonly rest: readonly Item[];
}

/**
 * Plans items into the draft, in order, until the commit is full or an item writes a key that it has already.
 * Settles nothing: where a list of blocks turns out to be needed, all of it is planned again.
 * @throws {BlockListNeeded}
 */
export function enter(draft: Draft, items: readonly Item[], alone: boolean): Round {
  const entered: Entered[] = [];
  const refused: { item: Item; error: unknown }[] = [];
  const keys = new Set<string>();
  let alsoSize = 0;
  for (const [i, item] of items.entries()) {
    if (entered.length > 0 && alone) return { entered, refused, rest: items.slice(i) };
    try {
      item.signal?.throwIfAborted();
      const step = planItem(draft, item);
      const texts = step.also.map(({ key }) => keyText(key));
      const full = alsoSize + texts.length + draft.sizeWith(step) > COMMIT_WRITES_MAX ||
        texts.some((text) => keys.has(text));
      if (full && entered.length > 0) return { entered, refused, rest: items.slice(i) };
      step.apply();
      for (const text of texts) keys.add(text);
      alsoSize += texts.length;
      entered.push({ item, also: step.also, settle: step.settle });
    } catch (error) {
      if (error instanceof BlockListNeeded) throw error;
      refused.push({ item, error });
    }
  }
  return { entered, refused, rest: [] };
}

interface Step {
  readonly blocks: readonly Block[];
  readonly also: readonly Write[];
  readonly apply: () => void;
  readonly settle: () => void;
}

function planItem(draft: Draft, item: Item): Step {
  if ("tidy" in item) return { blocks: [], also: [], apply: () => {}, settle: item.resolve };
  if ("handle" in item) {
    const blocks = draft.planRelease(item.handle);
    return { blocks, also: item.also, apply: () => draft.apply(item.handle, blocks, undefined), settle: item.resolve };
  }
  const { lease, blocks, places } = draft.planAcquire(item.request);
  return {
    blocks,
    also: item.request.also?.(lease) ?? [],
    apply: () => {
      if (places !== undefined) draft.apply(lease.handle, blocks, places);
    },
    settle: () => item.resolve(lease),
  };
}
