import type { Address, Cidr, Family } from "../model/address.ts";
import type { Write } from "./datastore.ts";

/** Names the holder of a lease: one attachment. */
export type Handle = string;

export interface LeaseRequest {
  readonly handle: Handle;
  readonly node: string;
  /** Which families are wanted; one that no pool serves is left out, unless it is the only one. */
  readonly families: readonly Family[];
  /** Exactly these addresses (static IPs), instead of any. */
  readonly addresses?: readonly Address[];
  /** Names or prefixes of the pools that may serve; absent = all that select the node. */
  readonly pools?: readonly string[];
  /** For people, kept with the lease: pod, namespace. */
  readonly attributes: Readonly<Record<string, string>>;
  /** Written in the same commit as the lease, all or nothing. Called again when the commit has to be tried again. */
  readonly also?: (lease: Lease) => readonly Write[];
}

export interface Lease {
  readonly handle: Handle;
  /** At most one a family, IPv4 first. */
  readonly addresses: readonly Address[];
}

export interface IpamReport {
  readonly released: readonly Handle[];
  readonly leases: number;
}

export interface PoolUsage {
  readonly pool: string;
  readonly cidr: Cidr;
  /** Addresses; a bigint, for IPv6. */
  readonly capacity: bigint;
  readonly used: number;
  readonly blocks: number;
}

export interface Ipam extends AsyncDisposable {
  /** One handle, one lease: a second call returns the first one's. @throws {ExhaustedError} naming the pools asked and their usage */
  acquire(request: LeaseRequest, signal?: AbortSignal): Promise<Lease>;
  /** Repeatable; an unknown handle is no error. `also` is committed with it, even where there is nothing to release. */
  release(handle: Handle, also?: readonly Write[], signal?: AbortSignal): Promise<void>;
  /** Releases every lease of this node whose handle is not in `live`. CNI GC, leak repair. */
  collect(live: ReadonlySet<Handle>, signal?: AbortSignal): Promise<IpamReport>;
  usage(signal?: AbortSignal): Promise<readonly PoolUsage[]>;
  /** Whether an ADD could get an address now. @throws {ExhaustedError} with the reason, for CNI STATUS */
  ready(signal?: AbortSignal): Promise<void>;
}
