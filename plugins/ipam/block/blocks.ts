/** A block: the addresses of one prefix that belong to one node, as an immutable value and as a stored resource. Pure. */
import {
  type Address,
  addressFromBigInt,
  addressToBigInt,
  type Cidr,
  cidrAddress,
  cidrContains,
  cidrFamily,
  cidrLast,
  cidrPrefix,
  familyBits,
  formatCidr,
  parseCidr,
  parseCidrStrict,
} from "../../../src/model/address.ts";
import type { Resource, ResourceKey } from "../../../src/model/resource.ts";
import { type Pool, reservedCount } from "./pools.ts";

export const BLOCK_KIND = "IPAMBlock.ipam.manx";
export const BLOCK_API_VERSION = "ipam.manx/v1";
/** 2 to the power of: addresses of the largest block, as IPPoolSpec.blockSize allows. */
const BLOCK_BITS_MAX = 12;

/** As it is stored in `spec.leases`. */
export interface BlockLease {
  /** Place in the block: its address minus the block's first. */
  readonly ordinal: number;
  readonly handle: string;
  readonly attributes?: Readonly<Record<string, string>>;
}

export interface FreeAddress {
  readonly ordinal: number;
  /** Seconds since 1970 when it was released; 0 = never used. */
  readonly releasedAt: number;
}

export interface Block {
  readonly name: string;
  readonly cidr: Cidr;
  readonly node: string;
  /** By ordinal. An address that is neither here nor in `free` is reserved. */
  readonly leases: ReadonlyMap<number, BlockLease>;
  /** In the order in which they are given out. */
  readonly free: readonly FreeAddress[];
}

export const blockKey = (name: string): ResourceKey => ({ kind: BLOCK_KIND, namespace: "", name });

/** `10-244-0-0-26`, `fd00-10--40-122`: an RFC 1123 label made of the prefix. */
export function blockName(cidr: Cidr): string {
  const text = formatCidr(cidr).replace(/[.:/]/g, "-");
  return text.startsWith("-") ? `0${text}` : text;
}

/** The prefix a block name stands for, undefined where it is none: what an unreadable block still tells. */
export function blockNameCidr(name: string): Cidr | undefined {
  const parts = /^(.+)-([0-9]+)$/.exec(name);
  if (parts === null) return undefined;
  const [, head, prefix] = parts as unknown as [string, string, string];
  for (const text of [`${head.replaceAll("-", ".")}/${prefix}`, `${head.replaceAll("-", ":")}/${prefix}`]) {
    try {
      const cidr = parseCidr(text);
      if (blockName(cidr) === name) return cidr;
    } catch { /* not of this family */ }
  }
  return undefined;
}

const blockBits = (cidr: Cidr): number => familyBits(cidrFamily(cidr)) - cidrPrefix(cidr);

export const blockAddress = (block: Block, ordinal: number): Address =>
  addressFromBigInt(addressToBigInt(cidrAddress(block.cidr)) + BigInt(ordinal), cidrFamily(block.cidr));

/** @throws {RangeError} where `address` is not in the block */
export function blockOrdinal(block: Block, address: Address): number {
  if (!cidrContains(block.cidr, address)) throw new RangeError(`address is not in ${formatCidr(block.cidr)}`);
  return Number(addressToBigInt(address) - addressToBigInt(cidrAddress(block.cidr)));
}

/** A new block of `pool`, all of it free but what the pool keeps back. */
export function newBlock(cidr: Cidr, node: string, pool: Pool): Block {
  const free: FreeAddress[] = [];
  const reserved = reservedCount(pool);
  const size = 2 ** blockBits(cidr);
  const from = reserved > 0n && cidrAddress(cidr) === cidrAddress(pool.cidr) ? 1 : 0;
  const to = reserved > 1n && cidrLast(cidr) === cidrLast(pool.cidr) ? size - 1 : size;
  for (let ordinal = from; ordinal < to; ordinal++) free.push({ ordinal, releasedAt: 0 });
  return { name: blockName(cidr), cidr, node, leases: new Map(), free };
}

/** With `ordinal` leased; undefined where it is not free. */
export function lease(block: Block, entry: BlockLease): Block | undefined {
  const at = block.free.findIndex((free) => free.ordinal === entry.ordinal);
  if (at < 0) return undefined;
  return {
    ...block,
    leases: new Map(block.leases).set(entry.ordinal, entry),
    free: at === 0 ? block.free.slice(1) : block.free.toSpliced(at, 1),
  };
}

/** With `ordinal` back at the end of the free order; the block itself where it was not leased. */
export function unlease(block: Block, ordinal: number, releasedAt: number): Block {
  if (!block.leases.has(ordinal)) return block;
  const leases = new Map(block.leases);
  leases.delete(ordinal);
  return { ...block, leases, free: [...block.free, { ordinal, releasedAt }] };
}

/** Free addresses as runs `[first ordinal, last ordinal, released at]`. */
type FreeRun = readonly [number, number, number];

export function blockResource(block: Block): Resource {
  const free: [number, number, number][] = [];
  for (const { ordinal, releasedAt } of block.free) {
    const run = free.at(-1);
    if (run !== undefined && run[1] + 1 === ordinal && run[2] === releasedAt) run[1] = ordinal;
    else free.push([ordinal, ordinal, releasedAt]);
  }
  return {
    apiVersion: BLOCK_API_VERSION,
    kind: "IPAMBlock",
    metadata: { name: block.name },
    spec: {
      cidr: formatCidr(block.cidr),
      node: block.node,
      leases: [...block.leases.values()].sort((a, b) => a.ordinal - b.ordinal),
      free: free satisfies FreeRun[],
    },
  };
}

/** The block, or what is wrong with the resource: one line. */
export function readBlock(resource: Resource): Block | string {
  const spec = resource.spec as Record<string, unknown> | null | undefined;
  if (typeof spec !== "object" || spec === null) return "spec: found none, wanted a mapping";
  if (resource.apiVersion !== BLOCK_API_VERSION) {
    return `apiVersion: found ${resource.apiVersion}, wanted ${BLOCK_API_VERSION}`;
  }
  let cidr: Cidr;
  try {
    cidr = parseCidrStrict(String(spec.cidr));
  } catch (error) {
    return `spec.cidr: ${(error as Error).message}`;
  }
  if (blockName(cidr) !== resource.metadata.name) {
    return `spec.cidr: found ${formatCidr(cidr)}, wanted that of the name ${resource.metadata.name}`;
  }
  if (blockBits(cidr) > BLOCK_BITS_MAX) return `spec.cidr: found ${formatCidr(cidr)}, wanted at most 4096 addresses`;
  if (typeof spec.node !== "string" || spec.node === "") return "spec.node: found none, wanted the name of a node";
  if (!Array.isArray(spec.leases)) return "spec.leases: found none, wanted a list";
  if (!Array.isArray(spec.free)) return "spec.free: found none, wanted a list";

  const size = 2 ** blockBits(cidr);
  const seen = new Set<number>();
  const place = (ordinal: unknown): ordinal is number => {
    if (typeof ordinal !== "number" || !Number.isInteger(ordinal) || ordinal < 0 || ordinal >= size) return false;
    return !seen.has(ordinal) && seen.add(ordinal) !== undefined;
  };
  const leases = new Map<number, BlockLease>();
  for (const [i, entry] of (spec.leases as (Partial<BlockLease> | null)[]).entries()) {
    if (typeof entry !== "object" || entry === null || !place(entry.ordinal)) {
      return `spec.leases[${i}].ordinal: found ${JSON.stringify(entry)}, wanted each from 0 to ${size - 1} once`;
    }
    if (typeof entry.handle !== "string" || entry.handle === "") return `spec.leases[${i}].handle: wanted a text`;
    leases.set(entry.ordinal, entry as BlockLease);
  }
  const free: FreeAddress[] = [];
  for (const [i, run] of (spec.free as unknown[]).entries()) {
    const [first, last, releasedAt] = Array.isArray(run) ? run as unknown[] : [];
    if (
      typeof first !== "number" || typeof last !== "number" || typeof releasedAt !== "number" || last < first ||
      last >= size
    ) return `spec.free[${i}]: found ${JSON.stringify(run)}, wanted [first, last, seconds]`;
    for (let ordinal = first; ordinal <= last; ordinal++) {
      if (!place(ordinal)) return `spec.free[${i}]: found ${ordinal}, wanted each from 0 to ${size - 1} once`;
      free.push({ ordinal, releasedAt });
    }
  }
  return { name: resource.metadata.name, cidr, node: spec.node, leases, free };
}
