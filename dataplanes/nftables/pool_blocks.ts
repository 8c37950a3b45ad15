/** The blocks of the pools as lists come and go. */
import type { DesiredState, SetId } from "../../src/model/desired.ts";
import { type MapEditor, persistentMap } from "../../src/model/persistent_map.ts";
import { type Block, type Blocks, POOL_NAMES, PoolElements, poolFields, type PoolName } from "./pools.ts";
import type { NftSet } from "./ruleset.ts";
import { SharedEntries } from "./shared_entries.ts";

class Pool {
  private readonly blocks = new SharedEntries<Block>();
  private readonly shows: MapEditor<SetId, readonly string[]> = persistentMap<SetId, readonly string[]>().edit();

  retain(key: string, block: Block): void {
    const before = this.blocks.get(key);
    this.blocks.retain(key, block);
    if (before !== block) this.index(key, before, block);
  }

  release(key: string): void {
    const before = this.blocks.get(key);
    if (this.blocks.release(key)) this.index(key, before, undefined);
  }

  finish(): Blocks {
    return { blocks: this.blocks.finish(), shows: this.shows.finish() };
  }

  private index(key: string, before: Block | undefined, after: Block | undefined): void {
    const old = idsOf(before), now = idsOf(after);
    for (const id of now) if (!old.delete(id)) this.shows.set(id, [...this.shows.get(id) ?? [], key].sort());
    for (const id of old) {
      const left = this.shows.get(id)!.filter((other) => other !== key);
      if (left.length > 0) this.shows.set(id, left);
      else this.shows.delete(id);
    }
  }
}

function idsOf(block: Block | undefined): Set<SetId> {
  const ids = new Set<SetId>();
  for (const source of block?.values() ?? []) for (const id of source.ids) ids.add(id);
  return ids;
}

export class PoolBlocks {
  private readonly pools = new Map(POOL_NAMES.map((name) => [name, new Pool()]));

  retain(blocks: ReadonlyMap<PoolName, ReadonlyMap<string, Block>>): void {
    for (const [name, some] of blocks) {
      const pool = this.pools.get(name)!;
      for (const [key, block] of some) pool.retain(key, block);
    }
  }

  release(blocks: ReadonlyMap<PoolName, ReadonlyMap<string, Block>>): void {
    for (const [name, some] of blocks) {
      const pool = this.pools.get(name)!;
      for (const key of some.keys()) pool.release(key);
    }
  }

  /** The pools as sets, with the members that `sets` has. */
  *sets(sets: DesiredState["sets"]): Iterable<readonly [PoolName, NftSet]> {
    for (const [name, pool] of this.pools) {
      const elements = new PoolElements(name, pool.finish(), sets);
      yield [name, { fields: poolFields(name), interval: false, map: false, elements }];
    }
  }
}
