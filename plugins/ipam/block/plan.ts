/** Which address goes to whom: one commit's worth of acquires and releases, planned over what is known. Pure. */
import {
  type Address,
  addressFamily,
  addressFromBigInt,
  addressToBigInt,
  type Cidr,
  cidrAddress,
  cidrContains,
  cidrFamily,
  cidrLast,
  cidrPrefix,
  cidrsOverlap,
  type Family,
  familyBits,
  formatAddress,
  formatCidr,
  makeCidr,
} from "../../../src/model/address.ts";
import type { Labels } from "../../../src/model/selector.ts";
import { matches } from "../../../src/model/selector_match.ts";
import type { Revision, Write } from "../../../src/sdk/datastore.ts";
import { ExhaustedError, RefusedError } from "../../../src/sdk/errors.ts";
import type { Handle, Lease, LeaseRequest } from "../../../src/sdk/ipam.ts";
import {
  type Block,
  blockAddress,
  blockKey,
  blockOrdinal,
  blockResource,
  type FreeAddress,
  lease,
  newBlock,
  unlease,
} from "./blocks.ts";
import { choosePools, type Pool, poolIsCalled, reservedCount, servesWorkloads } from "./pools.ts";

/** Empty blocks given back in one commit at most. */
const BLOCKS_RETURNED_MAX = 8;

export interface OwnBlock {
  readonly block: Block;
  readonly revision: Revision;
}

export interface Place {
  readonly block: string;
  readonly ordinal: number;
}

/** What a node knows; `Draft` reads it and changes nothing of it. */
export interface NodeState {
  readonly node: string;
  readonly labels: Labels;
  readonly pools: readonly Pool[];
  /** Why stored pools are left aside; for messages. */
  readonly poolProblems: readonly string[];
  readonly cooldownSeconds: number;
  readonly own: ReadonlyMap<string, OwnBlock>;
  /** Names of own blocks: with a free address; without a lease. */
  readonly roomy: ReadonlySet<string>;
  readonly empty: ReadonlySet<string>;
  /** All blocks heard of, whoever holds them: prefix and node, which is "" where it cannot be read. */
  readonly taken: ReadonlyMap<string, { readonly cidr: Cidr; readonly node: string }>;
  readonly holdings: ReadonlyMap<Handle, readonly Place[]>;
}

/** Thrown where the answer depends on blocks of other nodes: list them and plan again. */
export class BlockListNeeded extends Error {
  override readonly name = "BlockListNeeded";
}

export interface Unclaimed {
  readonly cidr: Cidr;
  /** Blocks of the pool's block size that overlap a claimed one, and all there are. */
  readonly claimed: bigint;
  readonly total: bigint;
}

/**
 * A block prefix of `pool` that overlaps none of `taken`: the first, or for `salt` other than 0 the first from a place that depends on
 * it, so that nodes which raced for one do not race again. Undefined where all are claimed.
 */
export function planBlock(pool: Pool, taken: Iterable<Cidr>, salt: number): Unclaimed | undefined {
  const family = cidrFamily(pool.cidr);
  const shift = BigInt(familyBits(family) - pool.blockPrefix);
  const base = addressToBigInt(cidrAddress(pool.cidr));
  const total = 1n << BigInt(pool.blockPrefix - cidrPrefix(pool.cidr));
  // Where a block is a single address, the reserved ones are no blocks.
  const reserved = shift === 0n ? reservedCount(pool) : 0n;
  const first = reserved > 0n ? 1n : 0n;
  const end = reserved > 1n ? total - 1n : total;

  const gone: [bigint, bigint][] = [];
  for (const cidr of taken) {
    if (!cidrsOverlap(cidr, pool.cidr)) continue;
    const low = (addressToBigInt(cidrAddress(cidr)) - base) >> shift;
    const high = (addressToBigInt(cidrLast(cidr)) - base) >> shift;
    gone.push([low < first ? first : low, high >= end ? end - 1n : high]);
  }
  gone.sort((a, b) => a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0);
  let claimed = 0n;
  let reach = first;
  const gaps: [bigint, bigint][] = [];
  for (const [low, high] of gone) {
    if (low > reach) gaps.push([reach, low - 1n]);
    const from = low > reach ? low : reach;
    if (high >= from) claimed += high - from + 1n;
    if (high + 1n > reach) reach = high + 1n;
  }
  if (reach < end) gaps.push([reach, end - 1n]);
  const start = gaps[0];
  if (start === undefined) return undefined;
  const offset = BigInt(Math.abs(salt)) % (end - first - claimed);
  let left = offset;
  let index = start[0];
  for (const [low, high] of gaps) {
    const length = high - low + 1n;
    if (left < length) {
      index = low + left;
      break;
    }
    left -= length;
  }
  return {
    cidr: makeCidr(addressFromBigInt(base + (index << shift), family), pool.blockPrefix),
    claimed,
    total: end - first,
  };
}

/** FNV-1a of `text`, 32 bits; 0 for attempt 0, so that a lone node takes blocks in order. */
export function claimSalt(text: string, attempt: number): number {
  if (attempt === 0) return 0;
  let hash = 0x811c9dc5;
  for (const char of `${text}/${attempt}`) hash = Math.imul(hash ^ char.charCodeAt(0), 0x01000193);
  hash = Math.imul(hash ^ hash >>> 16, 0x85ebca6b);
  return (hash ^ hash >>> 13) >>> 0;
}

export interface DraftOptions {
  readonly state: NodeState;
  /** Seconds since 1970. */
  readonly nowSeconds: number;
  /** Of `claimSalt`. */
  readonly salt: number;
  /** Whether `state.taken` was read for this plan: then "all are claimed" is an answer. */
  readonly listed: boolean;
}

/** Planned, not yet part of the draft. */
export interface Planned {
  readonly lease: Lease;
  readonly blocks: readonly Block[];
  /** Absent: the handle had the lease before. */
  readonly places?: readonly Place[];
}

/** Blocks as they would be after a commit. Later plans see the earlier ones. */
export class Draft {
  readonly #state: NodeState;
  readonly #now: number;
  readonly #salt: number;
  readonly #listed: boolean;
  readonly #changed = new Map<string, Block>();
  readonly #returned = new Set<string>();
  readonly #held = new Map<Handle, readonly Place[] | undefined>();

  constructor({ state, nowSeconds, salt, listed }: DraftOptions) {
    this.#state = state;
    this.#now = nowSeconds;
    this.#salt = salt;
    this.#listed = listed;
  }

  /** Blocks to write: changed and given back. */
  get changed(): ReadonlyMap<string, Block> {
    return this.#changed;
  }
  get returned(): ReadonlySet<string> {
    return this.#returned;
  }
  /** How many blocks the draft would write with those of `planned`. */
  sizeWith(planned: Pick<Planned, "blocks"> | undefined): number {
    const more = planned?.blocks.filter((block) => !this.#changed.has(block.name)).length ?? 0;
    return this.#changed.size + this.#returned.size + more;
  }

  /** @throws {ExhaustedError} {RefusedError} {BlockListNeeded} */
  planAcquire(request: LeaseRequest): Planned {
    const { handle } = request;
    const held = this.#placesOf(handle);
    const addresses = request.addresses?.length === 0 ? undefined : request.addresses;
    if (held !== undefined) {
      const mine = this.#leaseOf(handle, held);
      const other = addresses?.find((address) => !mine.addresses.includes(address));
      if (other !== undefined) {
        throw new RefusedError([
          `address ${formatAddress(other)} for ${handle}: it holds ${mine.addresses.map(formatAddress).join(", ")} ` +
          "already; wanted a release first",
        ]);
      }
      return { lease: mine, blocks: [] };
    }
    const picks = addresses === undefined ? this.#pickAny(request) : addresses.map((a) => this.#pickStatic(request, a));
    const blocks: Block[] = [];
    const places: Place[] = [];
    for (const [block, ordinal] of picks) {
      const entry = { ordinal, handle, ...(isEmpty(request.attributes) ? {} : { attributes: request.attributes }) };
      blocks.push(lease(block, entry)!);
      places.push({ block: block.name, ordinal });
    }
    return {
      lease: leaseOfBlocks(handle, places, (name) => blocks.find((block) => block.name === name)!),
      blocks,
      places,
    };
  }

  /** The blocks without the leases of `handle`; none where it has none. */
  planRelease(handle: Handle): readonly Block[] {
    const changed = new Map<string, Block>();
    for (const { block: name, ordinal } of this.#placesOf(handle) ?? []) {
      changed.set(name, unlease(changed.get(name) ?? this.#block(name), ordinal, this.#now));
    }
    return [...changed.values()];
  }

  /** Makes a plan part of the draft; `places` undefined releases the handle. */
  apply(handle: Handle, blocks: readonly Block[], places: readonly Place[] | undefined): void {
    for (const block of blocks) this.#changed.set(block.name, block);
    this.#held.set(handle, places);
  }

  /**
   * Gives back blocks that hold no lease and no resting address, where another own block of the pool has a quarter of
   * its addresses free: one more pod must not claim again at once.
   */
  returnSpareBlocks(): void {
    for (const name of this.#state.empty) {
      if (this.#returned.size >= BLOCKS_RETURNED_MAX) return;
      if (this.#changed.has(name)) continue;
      const block = this.#block(name);
      const last = block.free.at(-1);
      if (last !== undefined && !this.#rested(last)) continue;
      const pool = this.#poolOf(block);
      if (pool === undefined || !servesWorkloads(pool) || this.#roomBeside(block, pool)) this.#returned.add(name);
    }
  }

  #roomBeside(block: Block, pool: Pool): boolean {
    for (const name of this.#state.roomy) {
      if (name === block.name || this.#returned.has(name)) continue;
      const other = this.#block(name);
      if (cidrContains(pool.cidr, cidrAddress(other.cidr)) && other.free.length >= blockSize(other) / 4) return true;
    }
    return false;
  }

  /** Each block once, expected as it was read; a new one must not exist. */
  writes(): Write[] {
    const writes: Write[] = [];
    for (const [name, block] of this.#changed) {
      writes.push({
        key: blockKey(name),
        value: blockResource(block),
        expect: this.#state.own.get(name)?.revision ?? null,
      });
    }
    for (const name of this.#returned) {
      writes.push({ key: blockKey(name), value: null, expect: this.#state.own.get(name)!.revision });
    }
    return writes;
  }

  /** Whether an acquire of any family would find an address. @throws {ExhaustedError} {BlockListNeeded} */
  probe(): void {
    this.#pickAny({ handle: "a new pod", node: this.#state.node, families: [4, 6], attributes: {} });
  }

  #pickAny(request: LeaseRequest): [Block, number][] {
    const { pools, labels } = this.#state;
    for (const text of request.pools ?? []) {
      if (!pools.some((pool) => poolIsCalled(pool, text))) {
        throw new RefusedError([
          `pool ${JSON.stringify(text)} for ${request.handle}: found no IP pool of that name or prefix, wanted ` +
          (pools.length === 0 ? "one that exists" : `one of ${pools.map((pool) => pool.name).join(", ")}`) +
          this.#asides(),
        ]);
      }
    }
    const picks: [Block, number][] = [];
    for (const family of [4, 6] as const) {
      if (!request.families.includes(family)) continue;
      const serving = choosePools(pools, family, labels, request.pools);
      if (serving.length > 0) picks.push(this.#pick(request, family, serving));
    }
    if (picks.length > 0) return picks;
    throw new ExhaustedError(
      `no IP address for ${request.handle} on node ${this.#state.node}: ${this.#whyNoPool(request)}${this.#asides()}`,
    );
  }

  #pick(request: LeaseRequest, family: Family, pools: readonly Pool[]): [Block, number] {
    let resting: [Block, FreeAddress] | undefined;
    for (const pool of pools) {
      let best: [Block, FreeAddress] | undefined;
      for (const block of this.#roomyBlocks(pool)) {
        const head = block.free[0]!;
        if (best === undefined || head.releasedAt < best[1].releasedAt) best = [block, head];
      }
      if (best === undefined) continue;
      if (this.#rested(best[1])) return [best[0], best[1].ordinal];
      if (resting === undefined || best[1].releasedAt < resting[1].releasedAt) resting = best;
    }
    for (const pool of pools) {
      const found = planBlock(pool, this.#takenCidrs(), this.#salt);
      // An address at rest keeps a block from being full, but while most of the pool is unclaimed it may rest on.
      if (found === undefined || (resting !== undefined && found.claimed * 2n >= found.total)) continue;
      const block = newBlock(found.cidr, this.#state.node, pool);
      return [block, block.free[0]!.ordinal];
    }
    if (resting !== undefined) return [resting[0], resting[1].ordinal];
    if (!this.#listed) throw new BlockListNeeded();
    throw new ExhaustedError(
      `no IPv${family} address left for ${request.handle} on node ${this.#state.node}: ` +
        `${pools.map((pool) => this.#poolUse(pool)).join("; ")}; wanted a larger or another pool${this.#asides()}`,
    );
  }

  #pickStatic(request: LeaseRequest, address: Address): [Block, number] {
    const subject = `address ${formatAddress(address)} for ${request.handle}`;
    const refuse = (reason: string) => new RefusedError([`${subject}: ${reason}`]);
    if (request.addresses!.filter((other) => addressFamily(other) === addressFamily(address)).length > 1) {
      throw refuse("a second one of its family, wanted at most one a family");
    }
    const pool = this.#state.pools.find((candidate) => cidrContains(candidate.cidr, address));
    if (pool === undefined || !servesWorkloads(pool)) {
      const all = this.#state.pools.filter(servesWorkloads).map(describePool).join(", ");
      throw refuse(
        `${pool === undefined ? "it is in no IP pool" : `pool ${pool.name} is disabled or not for workloads`}, ` +
          `wanted one of ${all === "" ? "an IP pool, of which there is none" : all}${this.#asides()}`,
      );
    }
    let block = this.#blockAround(address);
    if (block === undefined) {
      const holder = [...this.#state.taken.values()].find(({ cidr }) => cidrContains(cidr, address));
      if (holder !== undefined && !this.#listed) throw new BlockListNeeded();
      if (holder !== undefined) {
        throw new ExhaustedError(
          `${subject}: block ${formatCidr(holder.cidr)} belongs to node ${
            holder.node || "(unreadable)"
          }, wanted an address ` +
            `that no other node holds`,
        );
      }
      const cidr = makeCidr(address, pool.blockPrefix);
      const other = [...this.#takenCidrs()].find((taken) => cidrsOverlap(taken, cidr));
      if (other !== undefined) throw refuse(`its block would overlap block ${formatCidr(other)} of another size`);
      block = newBlock(cidr, this.#state.node, pool);
    }
    const ordinal = blockOrdinal(block, address);
    const entry = block.leases.get(ordinal);
    if (entry !== undefined) {
      throw new ExhaustedError(`${subject}: it is leased to ${entry.handle}, wanted a free address`);
    }
    if (!block.free.some((free) => free.ordinal === ordinal)) {
      throw refuse(`it is the first or last address of pool ${describePool(pool)}, which is never given to a pod`);
    }
    return [block, ordinal];
  }

  #placesOf(handle: Handle): readonly Place[] | undefined {
    return this.#held.has(handle) ? this.#held.get(handle) : this.#state.holdings.get(handle);
  }

  #block(name: string): Block {
    return this.#changed.get(name) ?? this.#state.own.get(name)!.block;
  }

  #leaseOf(handle: Handle, places: readonly Place[]): Lease {
    return leaseOfBlocks(handle, places, (name) => this.#block(name));
  }

  *#roomyBlocks(pool: Pool): IterableIterator<Block> {
    for (const name of this.#state.roomy) {
      if (this.#changed.has(name)) continue;
      const { block } = this.#state.own.get(name)!;
      if (cidrContains(pool.cidr, cidrAddress(block.cidr))) yield block;
    }
    for (const block of this.#changed.values()) {
      if (block.free.length > 0 && cidrContains(pool.cidr, cidrAddress(block.cidr))) yield block;
    }
  }

  *#takenCidrs(): IterableIterator<Cidr> {
    for (const { cidr } of this.#state.taken.values()) yield cidr;
    for (const block of this.#changed.values()) yield block.cidr;
  }

  #blockAround(address: Address): Block | undefined {
    for (const block of this.#changed.values()) if (cidrContains(block.cidr, address)) return block;
    for (const { block } of this.#state.own.values()) if (cidrContains(block.cidr, address)) return block;
    return undefined;
  }

  #poolOf = (block: Block): Pool | undefined =>
    this.#state.pools.find((pool) => cidrContains(pool.cidr, cidrAddress(block.cidr)));

  #rested({ releasedAt }: FreeAddress): boolean {
    const restSeconds = this.#now - releasedAt;
    // A clock set back by more than the cool-down must not keep an address at rest until it has caught up.
    return restSeconds >= this.#state.cooldownSeconds || -restSeconds > this.#state.cooldownSeconds;
  }

  #poolUse(pool: Pool): string {
    const inPool = (cidr: Cidr) => cidrContains(pool.cidr, cidrAddress(cidr));
    const own = [...this.#state.own.values()].filter(({ block }) => inPool(block.cidr));
    const leased = own.reduce((sum, { block }) => sum + this.#block(block.name).leases.size, 0);
    const size = own.reduce((sum, { block }) => sum + block.leases.size + block.free.length, 0);
    const claimed = new Set([...this.#takenCidrs()].filter(inPool)).size;
    return `pool ${describePool(pool)}: all of its blocks are claimed (${claimed}), ${own.length} by this node with ` +
      `${leased} of ${size} addresses leased`;
  }

  #whyNoPool(request: LeaseRequest): string {
    const { pools, node, labels } = this.#state;
    if (pools.length === 0) return NO_POOL;
    const reasons = pools.map((pool) => {
      const why = pool.disabled
        ? "is disabled"
        : !pool.forWorkloads
        ? `is not for workloads (allowedUses)`
        : !request.families.includes(cidrFamily(pool.cidr))
        ? `is IPv${cidrFamily(pool.cidr)}`
        : !matches(pool.selects, labels)
        ? `selects other nodes (${pool.nodeSelector})`
        : `was not asked for`;
      return `pool ${describePool(pool)} ${why}`;
    });
    const asked = request.families.map((family) => `IPv${family}`).join(" and ");
    return `no IP pool serves ${asked} on node ${node}: ${reasons.join("; ")}`;
  }

  #asides(): string {
    const { poolProblems } = this.#state;
    return poolProblems.length === 0 ? "" : ` (left aside: ${poolProblems.join("; ")})`;
  }
}

const NO_POOL =
  "there is no IP pool. Make one: `pools: [{ name: default, cidr: 10.244.0.0/16 }]` under ipam.config in the " +
  "daemon's config, or `manx apply` a manifest with apiVersion projectcalico.org/v3, kind IPPool, " +
  "metadata.name default and spec.cidr 10.244.0.0/16";

const describePool = (pool: Pool): string => `${pool.name} (${formatCidr(pool.cidr)})`;
const blockSize = (block: Block): number => 2 ** (familyBits(cidrFamily(block.cidr)) - cidrPrefix(block.cidr));
const isEmpty = (record: Readonly<Record<string, string>>): boolean => {
  for (const _ in record) return false;
  return true;
};

/** IPv4 first, one address a family. */
function leaseOfBlocks(handle: Handle, places: readonly Place[], find: (name: string) => Block): Lease {
  const addresses = places.map(({ block, ordinal }) => blockAddress(find(block), ordinal));
  const v4 = addresses.find((address) => addressFamily(address) === 4);
  const v6 = addresses.find((address) => addressFamily(address) === 6);
  return { handle, addresses: [v4, v6].filter((address) => address !== undefined) };
}
