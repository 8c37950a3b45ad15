/**
 * Sets shared by everything that is looked up. nf_tables finds a set by walking the list of all sets of its table, so that
 * ten thousand sets cost every message 1 ms; a pool is one set, and whose its elements are is said by a key before them.
 *
 * A pool's elements are a view of address sets: nothing is copied, and a new version costs work for what changed.
 */
import type { Address, Family } from "../../src/model/address.ts";
import type { AddressSet, DesiredState, SetId, SetMember } from "../../src/model/desired.ts";
import type { PersistentMap } from "../../src/model/persistent_map.ts";
import { portKey } from "./address_elements.ts";
import type { ElementChange, ElementKey, Elements, ElementValue, KeyField } from "./ruleset.ts";

/** `peers`: addresses. `ports`: address, protocol and port. `flows`: protocol, port and address. */
export type PoolKind = "peers" | "ports" | "flows";
export type PoolName = `${PoolKind}${Family}`;

export const POOL_NAMES = ["peers4", "peers6", "ports4", "ports6", "flows4", "flows6"] as const satisfies PoolName[];

/** nft has no type for the key of a pool; it prints one as an IPv6 address. */
export const POOL_KEY = "ipv6_addr" as const satisfies KeyField;

export function poolFields(pool: PoolName): readonly KeyField[] {
  const address = `ipv${pool.at(-1) as "4" | "6"}_addr` as const;
  if (pool.startsWith("peers")) return [POOL_KEY, address];
  return pool.startsWith("ports")
    ? [POOL_KEY, address, "inet_proto", "inet_service"]
    : [POOL_KEY, "inet_proto", "inet_service", address];
}

/** The union of some address sets and some addresses. Of the sets, members that are no single address do not count. */
export interface Source {
  readonly ids: readonly SetId[];
  readonly addresses: readonly Address[];
}

/** What a pool has under one key: for `flows` by protocol and port, else under "" alone. */
export type Block = ReadonlyMap<string, Source>;

type Sets = DesiredState["sets"];

/** All blocks of a pool, and which of them show which set: a value. */
export interface Blocks {
  readonly blocks: PersistentMap<string, Block>;
  readonly shows: PersistentMap<SetId, readonly string[]>;
}

export class PoolElements implements Elements {
  private readonly family: Family;
  private readonly hasPorts: boolean;

  constructor(readonly pool: PoolName, readonly content: Blocks, readonly sets: Sets) {
    this.family = pool.endsWith("4") ? 4 : 6;
    this.hasPorts = pool.startsWith("ports");
  }

  forEach(visit: (value: ElementValue, key: ElementKey) => void): void {
    this.content.blocks.forEach((block, key) => {
      for (const [prefix, source] of block) {
        const head = key + prefix;
        this.eachMember(source, (member) => visit(true, head + member));
      }
    });
  }

  changesSince(previous: Elements): Iterable<ElementChange> | undefined {
    return previous instanceof PoolElements && previous.pool === this.pool ? this.changes(previous) : undefined;
  }

  private *changes(previous: PoolElements): Iterable<ElementChange> {
    const replaced = new Set<string>();
    for (const { key, before, after } of this.content.blocks.changesSince(previous.content.blocks)) {
      replaced.add(key);
      for (const [prefix, source] of before ?? NO_BLOCK) {
        yield* this.sourceChanges(previous, key + prefix, source, after?.get(prefix));
      }
      for (const [prefix, source] of after ?? NO_BLOCK) {
        if (before?.has(prefix) !== true) yield* this.sourceChanges(previous, key + prefix, undefined, source);
      }
    }
    // Blocks that are the same show other members where a set of theirs has changed.
    const touched = new Map<SetId, AddressSet["members"] | undefined>();
    const blocks = new Set<string>();
    for (const { key: id, before, after } of this.sets.changesSince(previous.sets)) {
      if (before?.members === after?.members) continue;
      touched.set(id, before?.members);
      for (const key of this.content.shows.get(id) ?? []) if (!replaced.has(key)) blocks.add(key);
    }
    for (const key of blocks) {
      for (const [prefix, source] of this.content.blocks.get(key)!) {
        if (source.ids.some((id) => touched.has(id))) {
          yield* this.memberChanges(previous, key + prefix, source, touched);
        }
      }
    }
  }

  /** The same source, over sets of which some have changed. */
  private *memberChanges(
    previous: PoolElements,
    head: string,
    source: Source,
    touched: ReadonlyMap<SetId, unknown>,
  ): Iterable<ElementChange> {
    const members = new Set<SetMember>();
    for (const id of source.ids) {
      if (!touched.has(id)) continue;
      const before = previous.sets.get(id)?.members, after = this.sets.get(id)?.members;
      if (before !== undefined && after !== undefined) {
        for (const { key } of after.changesSince(before)) members.add(key);
      } else (before ?? after)?.forEach((_, member) => members.add(member));
    }
    for (const member of members) {
      const key = this.keyOf(member);
      if (key === undefined) continue;
      const before = previous.holds(source, member, key), after = this.holds(source, member, key);
      if (before !== after) yield { key: head + key, before: before || undefined, after: after || undefined };
    }
  }

  private *sourceChanges(
    previous: PoolElements,
    head: string,
    before: Source | undefined,
    after: Source | undefined,
  ): Iterable<ElementChange> {
    if (before !== undefined && after !== undefined && sameSource(before, after)) {
      const touched = new Map<SetId, unknown>();
      for (const id of after.ids) if (this.sets.get(id) !== previous.sets.get(id)) touched.set(id, true);
      if (touched.size > 0) yield* this.memberChanges(previous, head, after, touched);
      return;
    }
    const old = new Set<string>();
    if (before !== undefined) previous.eachMember(before, (member) => old.add(member));
    const come: string[] = [];
    if (after !== undefined) {
      this.eachMember(after, (member) => {
        if (!old.delete(member)) come.push(member);
      });
    }
    for (const member of old) yield { key: head + member, before: true, after: undefined };
    for (const member of come) yield { key: head + member, before: undefined, after: true };
  }

  /** Each once, as the end of an element's key. */
  private eachMember(source: Source, visit: (member: string) => void): void {
    const seen = source.ids.length + source.addresses.length > 1 ? new Set<string>() : undefined;
    const one = (key: string) => {
      if (seen?.has(key)) return;
      seen?.add(key);
      visit(key);
    };
    source.addresses.forEach(one);
    for (const id of source.ids) {
      this.sets.get(id)?.members.forEach((_, member) => {
        const key = this.keyOf(member);
        if (key !== undefined) one(key);
      });
    }
  }

  private holds(source: Source, member: SetMember, key: string): boolean {
    return source.addresses.includes(key as Address) || source.ids.some((id) => this.sets.get(id)?.members.has(member));
  }

  /** Undefined: of the other family, or no single address. */
  private keyOf(member: SetMember): string | undefined {
    const bytes = this.family === 4 ? 4 : 16;
    if (this.hasPorts) return member.length === bytes + 3 ? portKey(member) : undefined;
    return member.length === bytes + 1 && member.charCodeAt(bytes) === bytes * 8 ? member.slice(0, bytes) : undefined;
  }
}

const NO_BLOCK: Block = new Map();

const sameSource = (a: Source, b: Source): boolean =>
  a === b || sameItems(a.ids, b.ids) && sameItems(a.addresses, b.addresses);

const sameItems = <T>(a: readonly T[], b: readonly T[]): boolean =>
  a === b || a.length === b.length && a.every((item, i) => item === b[i]);
