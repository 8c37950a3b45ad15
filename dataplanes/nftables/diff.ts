/** What turns one ruleset into another: the messages of one transaction. Pure. */
import { type MapChange, persistentMap } from "../../src/model/persistent_map.ts";
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
  type NftChain,
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
  if (before === undefined) return [newTable(table), ...diff(EMPTY, after, table)];
  const sets = [...after.sets.changesSince(before.sets)], chains = [...after.chains.changesSince(before.chains)];
  // A set of another form or a base chain elsewhere under a name of ours: nobody but a stranger makes these.
  const strange =
    sets.some(({ before, after }) => before !== undefined && after !== undefined && !sameForm(before, after)) ||
    chains.some(({ before, after }) =>
      before !== undefined && after !== undefined && !sameBase(before.base, after.base)
    );
  return strange ? [deleteTable(table), ...diff(undefined, after, table)] : changes(sets, chains, table);
}

const EMPTY: Ruleset = { sets: persistentMap(), chains: persistentMap() };

function changes(
  sets: readonly MapChange<string, NftSet>[],
  chains: readonly MapChange<string, NftChain>[],
  table: TableName,
): readonly NetlinkMessage[] {
  const messages: NetlinkMessage[] = [];
  let id = 0;
  for (const { key, before, after } of sets) {
    if (before === undefined && after !== undefined) messages.push(createSet(table, key, after, ++id));
  }
  for (const { key, before, after } of chains) {
    if (before === undefined && after !== undefined) messages.push(newChain(table, key, after.base));
  }

  for (const { key, before, after } of sets) {
    if (after === undefined || before?.elements === after.elements) continue;
    messages.push(...before === undefined ? allElements(table, key, after) : otherElements(table, key, before, after));
  }

  for (const { key, before, after } of chains) {
    if (after === undefined || before !== undefined && sameRules(before.rules, after.rules)) continue;
    if (before !== undefined && before.rules.length > 0) messages.push(flushChain(table, key));
    for (const rule of after.rules) messages.push(appendRule(table, key, wireRule(rule)));
  }

  const lost = chains.filter(({ after }) => after === undefined);
  for (const { key, before } of lost) if (before!.rules.length > 0) messages.push(flushChain(table, key));
  for (const { key, after } of sets) if (after === undefined) messages.push(deleteSet(table, key));
  for (const { key } of lost) messages.push(deleteChain(table, key));
  return messages;
}

function allElements(table: TableName, name: string, set: NftSet): readonly NetlinkMessage[] {
  const come = new ElementMessages("add", table, name);
  const packed = set.elements.packedKeys?.();
  if (packed !== undefined) come.addPacked(packed, keyLength(set.fields));
  else set.elements.forEach((value, key) => put(set, key, value, come));
  return come.messages();
}

function otherElements(table: TableName, name: string, before: NftSet, after: NftSet): readonly NetlinkMessage[] {
  const gone = new ElementMessages("remove", table, name), come = new ElementMessages("add", table, name);
  for (const change of elementChanges(before.elements, after.elements)) {
    if (change.before !== undefined) put(after, change.key, change.before, gone);
    if (change.after !== undefined) put(after, change.key, change.after, come);
  }
  return [...gone.messages(), ...come.messages()];
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
