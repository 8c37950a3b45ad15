/**
 * Elements of sets of addresses, straight from the members of `AddressSet`s: nothing is copied, and a new version costs
 * work for what changed.
 *
 * Interval sets reject overlap, members may overlap. Prefixes are nested or disjoint, so the elements are the members that
 * no shorter member covers: independent of the order in which they came, and a change touches only what it covers.
 */
import {
  type Cidr,
  cidrAddress,
  cidrContains,
  cidrLast,
  cidrPrefix,
  type Family,
  familyBits,
  makeCidr,
} from "../../src/model/address.ts";
import type { AddressSet, SetMember } from "../../src/model/desired.ts";
import type { PersistentMap } from "../../src/model/persistent_map.ts";
import { isHost } from "../../src/model/prefixes.ts";
import type { ElementChange, ElementKey, Elements, ElementValue } from "./ruleset.ts";

/** How many members an address set has in a family. */
export interface FamilyCounts {
  /** Single addresses; of a `port` set, all members. */
  readonly hosts: number;
  /** Members of each shorter prefix length. */
  readonly short: ReadonlyMap<number, number>;
}

export interface MemberCounts {
  readonly members: AddressSet["members"];
  readonly 4: FamilyCounts;
  readonly 6: FamilyCounts;
  /** The full addresses of each family one after another, of a large set that was counted from nothing. */
  readonly packed?: { readonly 4: Uint8Array; readonly 6: Uint8Array };
}

const NOTHING: FamilyCounts = { hosts: 0, short: new Map() };

/** `previous`: the counts of an earlier version of the same set, to start from. */
export function countMembers(set: AddressSet, previous: MemberCounts | undefined): MemberCounts {
  if (previous?.members === set.members) return previous;
  const v4 = new Counter(32, previous?.[4]), v6 = new Counter(128, previous?.[6]);
  const count = set.kind === "net"
    ? (member: SetMember, by: number) => (member.length === 5 ? v4 : v6).add(cidrPrefix(member as Cidr), by)
    : (member: SetMember, by: number) => (member.length === 7 ? v4.add(32, by) : v6.add(128, by));
  let packed: MemberCounts["packed"];
  if (previous !== undefined) {
    for (const change of set.members.changesSince(previous.members)) {
      if (change.before === undefined) count(change.key, 1);
      else if (change.after === undefined) count(change.key, -1);
    }
  } else if (set.kind === "net" && set.members.size >= SIZED_FROM) {
    // One walk for both: going through 100,000 members again costs as much as writing them to the kernel's buffer.
    const v4Keys = new PackedKeys(4, set.members.size), v6Keys = new PackedKeys(16, 0);
    set.members.forEach((_, member) => {
      count(member, 1);
      if (isHost(member as Cidr)) (member.length === 5 ? v4Keys : v6Keys).push(member);
    });
    packed = { 4: v4Keys.finish(), 6: v6Keys.finish() };
  } else set.members.forEach((_, member) => count(member, 1));
  return { members: set.members, 4: v4.finish(), 6: v6.finish(), ...packed === undefined ? {} : { packed } };
}

/** Counts in the making. Nearly all that is counted is of full length. */
class Counter {
  private hosts: number;
  private readonly changes = new Map<number, number>();

  constructor(private readonly full: number, private readonly previous: FamilyCounts = NOTHING) {
    this.hosts = previous.hosts;
  }

  add(length: number, by: number): void {
    if (length === this.full) this.hosts += by;
    else this.changes.set(length, (this.changes.get(length) ?? 0) + by);
  }

  finish(): FamilyCounts {
    let { short } = this.previous;
    for (const [length, by] of this.changes) {
      if (by === 0) continue;
      const counted = new Map(short);
      const count = (short.get(length) ?? 0) + by;
      if (count > 0) counted.set(length, count);
      else counted.delete(length);
      short = counted;
    }
    return { hosts: this.hosts, short };
  }
}

class PackedKeys {
  private bytes: Uint8Array;
  private length = 0;

  constructor(private readonly keyBytes: number, keys: number) {
    this.bytes = new Uint8Array(keys * keyBytes);
  }

  push(key: string): void {
    const at = this.length, end = at + this.keyBytes;
    if (end > this.bytes.length) {
      const larger = new Uint8Array(Math.max(4096, this.bytes.length * 2));
      larger.set(this.bytes);
      this.bytes = larger;
    }
    for (let i = 0; i < this.keyBytes; i++) this.bytes[at + i] = key.charCodeAt(i);
    this.length = end;
  }

  finish(): Uint8Array {
    return this.bytes.subarray(0, this.length);
  }
}

/** Whether there is a member of that family at all. */
export const hasFamily = (counts: MemberCounts, family: Family): boolean =>
  counts[family].hosts > 0 || counts[family].short.size > 0;

/** The prefix lengths that have members, without the full one. */
export const shortLengths = (counts: MemberCounts, family: Family): readonly number[] => [
  ...counts[family].short.keys(),
];

/** How a set of addresses is made, as its content asks for. */
export interface AddressForm {
  /** Some member is shorter than an address. */
  readonly interval: boolean;
  /** `NftSet.capacity`. */
  readonly capacity: number | undefined;
}

/** Smaller sets grow freely; larger ones are worth a hash made to measure (a third of the time to fill it). */
export const SIZED_FROM = 4_096;
const SIZE_STEP = 4;

/** A function of the content alone, so that a restart finds what it would make; steps are wide, so that few changes cross one. */
export function addressForm(family: Family, sources: readonly MemberCounts[], nets: readonly Cidr[]): AddressForm {
  const interval = nets.some((net) => !isHost(net)) ||
    sources.some((counts) => counts[family].short.size > 0);
  if (interval) return { interval, capacity: undefined };
  const count = sources.reduce((sum, counts) => sum + counts[family].hosts, nets.length);
  if (count < SIZED_FROM) return { interval, capacity: undefined };
  let capacity = SIZED_FROM * SIZE_STEP;
  while (capacity <= count) capacity *= SIZE_STEP;
  return { interval, capacity };
}

/** The union of some `net` sets and some prefixes, in one family. */
export class NetElements implements Elements {
  private readonly literals: ReadonlySet<string>;

  /**
   * `lengths`: the short prefix lengths that occur, in order; empty for a plain set of addresses. `filled`: the sources
   * that have members of the family, the only ones that need a walk.
   */
  constructor(
    readonly family: Family,
    readonly sources: readonly PersistentMap<SetMember, true>[],
    private readonly filled: readonly PersistentMap<SetMember, true>[],
    readonly nets: readonly Cidr[],
    readonly lengths: readonly number[],
    readonly interval: boolean,
    private packed?: Uint8Array,
  ) {
    this.literals = new Set(nets);
  }

  forEach(visit: (value: ElementValue, key: ElementKey) => void): void {
    this.packed = undefined;
    this.eachMember((member) => {
      if (!this.covered(member)) visit(true, this.key(member));
    });
  }

  /** Once: they are asked for when the set is made, and need not be kept after. */
  packedKeys(): Uint8Array | undefined {
    const { packed } = this;
    this.packed = undefined;
    return packed;
  }

  changesSince(previous: Elements): Iterable<ElementChange> | undefined {
    if (
      !(previous instanceof NetElements) || previous.family !== this.family || previous.interval !== this.interval ||
      previous.sources.length !== this.sources.length || previous.nets.length !== this.nets.length ||
      previous.nets.some((net, i) => net !== this.nets[i])
    ) return undefined;
    return this.changes(previous);
  }

  private *changes(previous: NetElements): Iterable<ElementChange> {
    const memberLength = this.family === 4 ? 5 : 17;
    const full = familyBits(this.family);
    const touched = new Set<string>();
    const prefixes: Cidr[] = [];
    for (let i = 0; i < this.sources.length; i++) {
      for (const { key } of this.sources[i]!.changesSince(previous.sources[i]!)) {
        if (key.length !== memberLength || touched.has(key)) continue;
        touched.add(key);
        if (this.interval && cidrPrefix(key as Cidr) < full) prefixes.push(key as Cidr);
      }
    }
    if (prefixes.length > 0) {
      // A prefix that came or went covers or bares others.
      const cover = (member: Cidr) => prefixes.some((prefix) => cidrContains(prefix, cidrAddress(member)));
      for (const elements of [this, previous]) {
        elements.eachMember((member) => {
          if (cover(member)) touched.add(member);
        });
      }
    }
    for (const member of touched) {
      const before = previous.holds(member as Cidr), after = this.holds(member as Cidr);
      if (before === after) continue;
      yield { key: this.key(member as Cidr), before: before || undefined, after: after || undefined };
    }
  }

  private eachMember(visit: (member: Cidr) => void): void {
    const memberLength = this.family === 4 ? 5 : 17;
    const seen = this.filled.length + this.nets.length > 1 ? new Set<string>() : undefined;
    const one = (member: string) => {
      if (member.length !== memberLength || seen?.has(member)) return;
      seen?.add(member);
      visit(member as Cidr);
    };
    this.nets.forEach(one);
    for (const source of this.filled) source.forEach((_, member) => one(member));
  }

  private holds(member: Cidr): boolean {
    return this.has(member) && !this.covered(member);
  }

  private has(member: string): boolean {
    return this.literals.has(member) || this.filled.some((source) => source.has(member));
  }

  private covered(member: Cidr): boolean {
    const prefix = cidrPrefix(member);
    for (const length of this.lengths) {
      if (length >= prefix) return false;
      if (this.has(makeCidr(cidrAddress(member), length))) return true;
    }
    return false;
  }

  private key(member: Cidr): ElementKey {
    return this.interval ? cidrAddress(member) + cidrLast(member) : cidrAddress(member);
  }
}

/** The members of a `port` set in one family: address, protocol and port, each padded to a register. */
export class PortElements implements Elements {
  constructor(readonly family: Family, readonly source: PersistentMap<SetMember, true>) {}

  forEach(visit: (value: ElementValue, key: ElementKey) => void): void {
    this.source.forEach((_, member) => {
      if (this.ours(member)) visit(true, portKey(member));
    });
  }

  changesSince(previous: Elements): Iterable<ElementChange> | undefined {
    if (!(previous instanceof PortElements) || previous.family !== this.family) return undefined;
    return this.changes(previous);
  }

  private *changes(previous: PortElements): Iterable<ElementChange> {
    for (const { key, before, after } of this.source.changesSince(previous.source)) {
      if (this.ours(key)) yield { key: portKey(key), before, after };
    }
  }

  private ours(member: SetMember): boolean {
    return member.length === (this.family === 4 ? 7 : 19);
  }
}

/** Address, protocol, port: the key of a `port` set element. */
export function portKey(member: SetMember): ElementKey {
  const end = member.length - 3;
  return member.slice(0, end) + member[end] + "\0\0\0" + member.slice(end + 1) + "\0\0";
}
