/** What ip sets hold, straight from the members of `AddressSet`s: nothing is copied, and a new version costs work for what changed. */
import { type Cidr, cidrFamily, cidrPrefix, type Family } from "../../src/model/address.ts";
import type { AddressSet, SetMember } from "../../src/model/desired.ts";
import { halvesOfAll } from "../../src/kernel/netlink/schema/ipset.ts";
import type { AddressSetContent } from "./ruleset.ts";

type Members = AddressSet["members"];

/** The union of some `net` sets and some prefixes, or the members of a `port` set, in one family. */
export class MemberContent implements AddressSetContent {
  private readonly literals: ReadonlySet<string>;

  constructor(
    readonly family: Family,
    readonly kind: "net" | "port",
    readonly sources: readonly Members[],
    readonly nets: readonly Cidr[] = [],
  ) {
    this.literals = new Set(nets);
  }

  has(member: string): boolean {
    if (this.hasKey(member)) return true;
    return this.kind === "net" && cidrPrefix(member as Cidr) === 1 && this.hasKey(allOf(this.family));
  }

  forEach(visit: (member: string) => void): void {
    const isWhole = this.kind === "net" && this.hasKey(allOf(this.family));
    if (this.sources.length === 1 && this.literals.size === 0 && !isWhole) return this.forEachAlone(visit);
    const seen = new Set<string>();
    const one = (key: string) => {
      if (!this.isOurs(key)) return;
      for (const member of this.members(key)) {
        if (seen.has(member)) continue;
        seen.add(member);
        visit(member);
      }
    };
    for (const net of this.nets) one(net);
    for (const source of this.sources) source.forEach((_, key) => one(key));
  }

  /** One source, and nothing in it twice: there may be a hundred thousand. */
  private forEachAlone(visit: (member: string) => void): void {
    const length = (this.family === 4 ? 4 : 16) + (this.kind === "net" ? 1 : 3);
    const refused = this.kind === "port" ? UNSPECIFIED[this.family] : undefined;
    this.sources[0]!.forEach((_, key) => {
      if (key.length === length && (refused === undefined || !key.startsWith(refused))) visit(key);
    });
  }

  /** All members one after another, each its address and the length of its prefix; undefined where they are few or not so simple. Once. */
  packed(): Uint8Array | undefined {
    const [source, ...more] = this.sources;
    if (this.kind !== "net" || source === undefined || more.length > 0 || this.literals.size > 0) return undefined;
    if (source.size < PACKED_FROM || this.hasKey(allOf(this.family))) return undefined;
    return takePacked(source, this.family);
  }

  changesSince(previous: AddressSetContent): Iterable<string> | undefined {
    if (
      !(previous instanceof MemberContent) || previous.family !== this.family || previous.kind !== this.kind ||
      previous.sources.length !== this.sources.length || previous.nets.length !== this.nets.length ||
      previous.nets.some((net, i) => net !== this.nets[i])
    ) return undefined;
    const touched = new Set<string>();
    this.sources.forEach((source, i) => {
      for (const { key } of source.changesSince(previous.sources[i]!)) {
        if (this.isOurs(key)) { for (const member of this.members(key)) touched.add(member); }
      }
    });
    return [...touched].filter((member) => this.has(member) !== previous.has(member));
  }

  private hasKey(key: string): boolean {
    return this.literals.has(key) || this.sources.some((source) => source.has(key as SetMember));
  }

  private isOurs(key: string): boolean {
    const bytes = this.family === 4 ? 4 : 16;
    return key.length === bytes + (this.kind === "net" ? 1 : 3);
  }

  private members(key: string): readonly string[] {
    if (this.kind === "net") return cidrPrefix(key as Cidr) === 0 ? halvesOfAll(this.family) : [key];
    // Nobody has the unspecified address, and ip_set refuses it.
    return key.startsWith(UNSPECIFIED[this.family]) ? [] : [key];
  }
}

/** From so many members on. */
const PACKED_FROM = 4_096;

/**
 * One walk for both families: going through 100,000 members, which lie wherever they were made, costs as much as having the
 * kernel take them. What the other family has not asked for yet waits here.
 */
const waiting = new WeakMap<Members, Readonly<Record<Family, Uint8Array>>>();

function takePacked(members: Members, family: Family): Uint8Array {
  const known = waiting.get(members);
  if (known !== undefined) {
    waiting.delete(members);
    return known[family];
  }
  // Keys are looked at only once all are there: a processor waits for many of them at a time in a loop that does nothing else.
  const keys = new Array<string>(members.size);
  let count = 0;
  members.forEach((_, key) => {
    keys[count++] = key;
  });
  const packed = { 4: new Uint8Array(count * 5), 6: new Uint8Array(0) };
  const longer: string[] = [];
  const v4 = packed[4];
  let at = 0;
  for (const key of keys) {
    if (key.length !== 5) longer.push(key);
    else {
      v4[at] = key.charCodeAt(0);
      v4[at + 1] = key.charCodeAt(1);
      v4[at + 2] = key.charCodeAt(2);
      v4[at + 3] = key.charCodeAt(3);
      v4[at + 4] = key.charCodeAt(4);
      at += 5;
    }
  }
  packed[4] = v4.subarray(0, at);
  packed[6] = new Uint8Array(longer.length * 17);
  longer.forEach((key, i) => {
    for (let j = 0; j < 17; j++) packed[6][i * 17 + j] = key.charCodeAt(j);
  });
  waiting.set(members, packed);
  return packed[family];
}

const UNSPECIFIED: Readonly<Record<Family, string>> = { 4: "\0".repeat(4), 6: "\0".repeat(16) };
const allOf = (family: Family): string => "\0".repeat(family === 4 ? 5 : 17);

/** Members that somebody has put together. */
export class ListedContent implements AddressSetContent {
  constructor(private readonly listed: ReadonlySet<string>) {}
  has(member: string): boolean {
    return this.listed.has(member);
  }
  forEach(visit: (member: string) => void): void {
    this.listed.forEach(visit);
  }
  changesSince(previous: AddressSetContent): Iterable<string> | undefined {
    if (!(previous instanceof ListedContent)) return undefined;
    const changed: string[] = [];
    this.listed.forEach((member) => {
      if (!previous.listed.has(member)) changed.push(member);
    });
    previous.listed.forEach((member) => {
      if (!this.listed.has(member)) changed.push(member);
    });
    return changed;
  }
  equals(other: ListedContent): boolean {
    return this.listed.size === other.listed.size && [...this.listed].every((member) => other.listed.has(member));
  }
}

export const ofFamily = (nets: readonly Cidr[], family: Family): readonly Cidr[] =>
  nets.filter((net) => cidrFamily(net) === family);
