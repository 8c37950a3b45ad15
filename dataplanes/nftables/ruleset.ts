/** A table as a value: what render makes, what is read from the kernel, what diff compares and trace walks. */
import type { BaseChain } from "../../src/kernel/netlink/schema/nftables.ts";
import { fieldSize, KeyType, setKeyType } from "../../src/kernel/netlink/schema/nftables.ts";
import type { PersistentMap } from "../../src/model/persistent_map.ts";
import type { Expression, Verdict } from "../../src/kernel/netlink/schema/nftables_expression.ts";

export type { BaseChain, Expression, Verdict };

export interface Ruleset {
  readonly sets: PersistentMap<string, NftSet>;
  readonly chains: PersistentMap<string, NftChain>;
}

export type Rule = readonly Expression[];

export interface NftChain {
  readonly base?: BaseChain;
  readonly rules: readonly Rule[];
}

/** The fields keys are made of; nft's names. */
export type KeyField =
  | "ipv4_addr"
  | "ipv6_addr"
  | "inet_proto"
  | "inet_service"
  | "ifname"
  | "ct_state"
  | "icmpv6_type"
  | "mark";

/** nft's type number and the bytes of a field, without the padding it has in a concatenated key. */
export const KEY_FIELDS: Readonly<Record<KeyField, { readonly type: number; readonly length: number }>> = {
  ipv4_addr: { type: KeyType.Ipv4Address, length: 4 },
  ipv6_addr: { type: KeyType.Ipv6Address, length: 16 },
  inet_proto: { type: KeyType.L4Protocol, length: 1 },
  inet_service: { type: KeyType.Service, length: 2 },
  ifname: { type: KeyType.IfName, length: 16 },
  ct_state: { type: KeyType.CtState, length: 4 },
  icmpv6_type: { type: KeyType.Icmpv6Type, length: 1 },
  mark: { type: KeyType.Mark, length: 4 },
};

export interface NftSet {
  readonly fields: readonly KeyField[];
  /** Keys are ranges: an `ElementKey` is the first key and the last, both inclusive. */
  readonly interval: boolean;
  /** Values are verdicts, or data where `data` says so; otherwise `true`. */
  readonly map: boolean;
  /** What the values of a map of data are made of. */
  readonly data?: readonly KeyField[];
  /** Each element counts the packets whose lookup finds it, and its value says which. What it has counted is no part of it. */
  readonly counted?: true;
  /** Packets make and renew its elements, and time takes them away; they are no part of it. */
  readonly dynamic?: true;
  /** The most elements it can ever have (NFTA_SET_DESC_SIZE); absent: no bound. */
  readonly capacity?: number;
  readonly elements: Elements;
}

/** The packed key; of an interval set the first and the last one after each other. */
export type ElementKey = string;
/** A string is packed data, or the comment of an element that counts. */
export type ElementValue = true | Verdict | string;

export interface ElementChange {
  readonly key: ElementKey;
  readonly before: ElementValue | undefined;
  readonly after: ElementValue | undefined;
}

/** Immutable; each key once, no two ranges overlapping. */
export interface Elements {
  forEach(visit: (value: ElementValue, key: ElementKey) => void): void;
  /** What turns `previous` into this, where that is known from how both came about; undefined: compare them. */
  changesSince?(previous: Elements): Iterable<ElementChange> | undefined;
  /** All keys one after another, where they lie ready so: for plain sets of many thousands. */
  packedKeys?(): Uint8Array | undefined;
}

/** Bytes of a key: one field as it is, several each padded to whole registers. */
export const keyLength = (fields: readonly KeyField[]): number =>
  fields.length === 1
    ? KEY_FIELDS[fields[0]!].length
    : fields.reduce((sum, field) => sum + fieldSize(KEY_FIELDS[field].length), 0);

export const keyType = (fields: readonly KeyField[]): number =>
  setKeyType(fields.map((field) => KEY_FIELDS[field].type));

const FIELD_BY_TYPE = new Map(Object.entries(KEY_FIELDS).map(([name, { type }]) => [type, name as KeyField]));

/** The fields that a type number stands for; undefined where one is not among ours. */
export function fieldsOfKeyType(type: number): readonly KeyField[] | undefined {
  const fields: KeyField[] = [];
  for (let rest = type; rest !== 0; rest >>>= 6) {
    const field = FIELD_BY_TYPE.get(rest & 0x3f);
    if (field === undefined) return undefined;
    fields.unshift(field);
  }
  return fields.length === 0 ? undefined : fields;
}

/** An interface name as a key: 16 bytes, NUL-padded (IFNAMSIZ). */
export const interfaceKey = (name: string): string => name.padEnd(16, "\0");

/** Elements of a map that shares what it can with its earlier versions. */
export class TrieElements implements Elements {
  constructor(readonly entries: PersistentMap<ElementKey, ElementValue>) {}

  forEach(visit: (value: ElementValue, key: ElementKey) => void): void {
    this.entries.forEach(visit);
  }

  changesSince(previous: Elements): Iterable<ElementChange> | undefined {
    if (!(previous instanceof TrieElements)) return undefined;
    return [...this.entries.changesSince(previous.entries)].filter(({ before, after }) => !sameValue(before, after));
  }
}

/** Elements given one by one. */
export function elementsOf(entries: Iterable<readonly [ElementKey, ElementValue]>): Elements {
  return new Map(entries);
}

export function sameValue(a: ElementValue | undefined, b: ElementValue | undefined): boolean {
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || a.kind !== b.kind) return false;
  return "chain" in a ? a.chain === (b as typeof a).chain : a.kind !== "other" || a.code === (b as typeof a).code;
}

/** What turns `before` into `after`. */
export function* elementChanges(before: Elements, after: Elements): Iterable<ElementChange> {
  if (before === after) return;
  const known = after.changesSince?.(before);
  if (known !== undefined) {
    yield* known;
    return;
  }
  const old = new Map<ElementKey, ElementValue>();
  before.forEach((value, key) => old.set(key, value));
  const changed: ElementChange[] = [];
  after.forEach((value, key) => {
    const was = old.get(key);
    if (!sameValue(was, value)) changed.push({ key, before: was, after: value });
    old.delete(key);
  });
  yield* changed;
  for (const [key, value] of old) yield { key, before: value, after: undefined };
}

/** Equal rules have equal texts. */
export const ruleText = (rule: Rule): string => JSON.stringify(rule);

export const sameRules = (a: readonly Rule[], b: readonly Rule[]): boolean =>
  a === b || a.length === b.length && a.every((rule, i) => rule === b[i] || ruleText(rule) === ruleText(b[i]!));

export const sameBase = (a: BaseChain | undefined, b: BaseChain | undefined): boolean =>
  a === b ||
  a !== undefined && b !== undefined && a.type === b.type && a.hook === b.hook && a.priority === b.priority &&
    a.policy === b.policy;

/** Whether a set of that form can hold the elements of the other. */
export const sameForm = (a: NftSet, b: NftSet): boolean =>
  a.interval === b.interval && a.map === b.map && a.capacity === b.capacity && a.counted === b.counted &&
  a.dynamic === b.dynamic &&
  sameFields(a.fields, b.fields) && sameFields(a.data ?? [], b.data ?? []);

const sameFields = (a: readonly KeyField[], b: readonly KeyField[]): boolean =>
  a.length === b.length && a.every((field, i) => field === b[i]);
