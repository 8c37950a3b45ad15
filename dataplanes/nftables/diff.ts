/** What turns one ruleset into another: the messages of one transaction. Pure. */
import type { NetlinkMessage } from "../../src/sdk/kernel_door.ts";
import {
  appendRule,
  DATA_TYPE_VERDICT,
  deleteChain,
  deleteSet,
  deleteTable,
  ElementFlag,
  ElementMessages,
  flushChain,
  newChain,
  newSet,
  newTable,
  ProtocolFamily,
  SetFlag,
  type TableName,
} from "../../src/kernel/netlink/schema/nftables.ts";
import { expressionToWire } from "../../src/kernel/netlink/schema/nftables_expression.ts";
import {
  elementChanges,
  type ElementKey,
  type ElementValue,
  KEY_FIELDS,
  type KeyField,
  keyLength,
  keyType,
  type NftSet,
  type Rule,
  type Ruleset,
  sameBase,
  sameForm,
  sameRules,
} from "./ruleset.ts";

/** The table that is ours: architecture.md, "Names that the kernel sees". */
export const TABLE: TableName = { family: ProtocolFamily.Inet, table: "manx" };

/**
 * @param before what is there; undefined where the table is missing
 * @returns nothing where both are equal. New sets stand before chains, chains before rules and elements that name them;
 * what is no longer wanted goes last.
 */
export function diff(before: Ruleset | undefined, after: Ruleset, table = TABLE): readonly NetlinkMessage[] {
  if (before === undefined) return [newTable(table), ...changes({ sets: new Map(), chains: new Map() }, after, table)];
  if (needsRebuild(before, after)) return [deleteTable(table), ...diff(undefined, after, table)];
  return changes(before, after, table);
}

/** A set of another form or a base chain elsewhere under a name of ours: nobody but a stranger makes these. */
function needsRebuild(before: Ruleset, after: Ruleset): boolean {
  for (const [name, set] of after.sets) {
    const there = before.sets.get(name);
    if (there !== undefined && there !== set && !sameForm(there, set)) return true;
  }
  for (const [name, chain] of after.chains) {
    const there = before.chains.get(name);
    if (there !== undefined && there !== chain && !sameBase(there.base, chain.base)) return true;
  }
  return false;
}

function changes(before: Ruleset, after: Ruleset, table: TableName): readonly NetlinkMessage[] {
  const messages: NetlinkMessage[] = [];
  let id = 0;
  for (const [name, set] of after.sets) if (!before.sets.has(name)) messages.push(createSet(table, name, set, ++id));
  for (const [name, chain] of after.chains) {
    if (!before.chains.has(name)) messages.push(newChain(table, name, chain.base));
  }

  for (const [name, set] of after.sets) {
    const there = before.sets.get(name);
    if (there === undefined) {
      const come = new ElementMessages("add", table, name);
      if (!set.map && !set.interval && set.elements.eachPlainKey !== undefined) {
        set.elements.eachPlainKey((bytes, length) => come.addPlain(bytes, length));
      } else set.elements.forEach((value, key) => put(set, key, value, come));
      messages.push(...come.messages());
    } else if (there.elements !== set.elements) {
      const gone = new ElementMessages("remove", table, name), come = new ElementMessages("add", table, name);
      for (const { key, before, after } of elementChanges(there.elements, set.elements)) {
        if (before !== undefined) put(set, key, before, gone);
        if (after !== undefined) put(set, key, after, come);
      }
      messages.push(...gone.messages(), ...come.messages());
    }
  }

  for (const [name, chain] of after.chains) {
    const there = before.chains.get(name);
    if (there === chain || there !== undefined && sameRules(there.rules, chain.rules)) continue;
    if (there !== undefined && there.rules.length > 0) messages.push(flushChain(table, name));
    for (const rule of chain.rules) messages.push(appendRule(table, name, wireRule(rule)));
  }

  const lostChains = [...before.chains].filter(([name]) => !after.chains.has(name));
  for (const [name, chain] of lostChains) if (chain.rules.length > 0) messages.push(flushChain(table, name));
  for (const name of before.sets.keys()) if (!after.sets.has(name)) messages.push(deleteSet(table, name));
  for (const [name] of lostChains) messages.push(deleteChain(table, name));
  return messages;
}

const wireRule = (rule: Rule) => rule.map(expressionToWire);

function createSet(table: TableName, name: string, set: NftSet, id: number): NetlinkMessage {
  const flags = (set.interval ? SetFlag.Interval : 0) | (set.map ? SetFlag.Map : 0);
  const concatenated = set.fields.length > 1;
  return newSet(table, {
    name,
    flags: flags | (concatenated && set.interval ? SetFlag.Concatenation : 0),
    keyType: keyType(set.fields),
    keyLength: keyLength(set.fields),
    fieldLengths: concatenated && set.interval ? set.fields.map((field) => KEY_FIELDS[field].length) : undefined,
    dataType: set.map ? DATA_TYPE_VERDICT : undefined,
    dataLength: set.map ? 0 : undefined,
    size: set.capacity,
    userdata: keyByteOrder(set.fields),
  }, id);
}

/**
 * What `nft list` reads to print keys of one field whose bytes are in host order: NFTNL_UDATA_SET_KEYBYTEORDER (0), 4 bytes,
 * BYTEORDER_HOST_ENDIAN (1). The kernel keeps it unread.
 */
const keyByteOrder = (fields: readonly KeyField[]): Uint8Array | undefined =>
  fields.length === 1 && (fields[0] === "ifname" || fields[0] === "ct_state")
    ? Uint8Array.of(0, 4, 1, 0, 0, 0)
    : undefined;

/** An interval of a single field is two elements: its first key, and the key after its last as an end. */
function put(set: NftSet, key: ElementKey, value: ElementValue, into: ElementMessages): void {
  const verdict = value === true ? undefined : value;
  if (!set.interval) {
    into.add(key, verdict);
    return;
  }
  const length = key.length / 2;
  const first = key.slice(0, length), last = key.slice(length);
  if (set.fields.length > 1) {
    into.add(first, verdict, last);
    return;
  }
  into.add(first, verdict);
  const end = keyAfter(last);
  if (end !== undefined) into.add(end, undefined, undefined, ElementFlag.IntervalEnd);
}

/** The next key of the same length; undefined after the last. */
export function keyAfter(key: string): string | undefined {
  for (let i = key.length - 1; i >= 0; i--) {
    const byte = key.charCodeAt(i);
    if (byte < 0xff) return key.slice(0, i) + String.fromCharCode(byte + 1) + "\0".repeat(key.length - 1 - i);
  }
  return undefined;
}

/** The key before; undefined before the first. */
export function keyBefore(key: string): string | undefined {
  for (let i = key.length - 1; i >= 0; i--) {
    const byte = key.charCodeAt(i);
    if (byte > 0) return key.slice(0, i) + String.fromCharCode(byte - 1) + "\xff".repeat(key.length - 1 - i);
  }
  return undefined;
}
