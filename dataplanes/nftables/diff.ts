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
  return isStrange(sets, chains)
    ? [deleteTable(table), ...diff(undefined, after, table)]
    : changes(sets, chains, table);
}

/**
 * The same as one transaction or two. A new set of intervals looks empty to the packet path until the kernel has come to the end of the
 * commit that brings it, which takes most of a second where it has 50,000 members; rules of the same commit ask it from its beginning on, and
 * what they deny by it would pass. So where there are such sets, all that is new and that no packet's way leads to yet goes first.
 */
export function transactions(
  before: Ruleset | undefined,
  after: Ruleset,
  table = TABLE,
): readonly (readonly NetlinkMessage[])[] {
  const from = before ?? EMPTY;
  const sets = [...after.sets.changesSince(from.sets)], chains = [...after.chains.changesSince(from.chains)];
  const isSlow = ({ before, after }: MapChange<string, NftSet>) => before === undefined && after?.interval === true;
  const whole = isStrange(sets, chains) || !sets.some(isSlow);
  if (whole) return [diff(before, after, table)].filter((messages) => messages.length > 0);
  const isNewSet = ({ before }: MapChange<string, NftSet>) => before === undefined;
  const isNewChain = ({ before, after }: MapChange<string, NftChain>) =>
    before === undefined && after?.base === undefined;
  const first = changes(sets.filter(isNewSet), chains.filter(isNewChain), table);
  const then = changes(
    sets.filter((change) => !isNewSet(change)),
    chains.filter((change) => !isNewChain(change)),
    table,
  );
  return [before === undefined ? [newTable(table), ...first] : first, then].filter((messages) => messages.length > 0);
}

/** A set of another form or a base chain elsewhere under a name of ours: nobody but a stranger makes these. */
const isStrange = (sets: readonly MapChange<string, NftSet>[], chains: readonly MapChange<string, NftChain>[]) =>
  sets.some(({ before, after }) => before !== undefined && after !== undefined && !sameForm(before, after)) ||
  chains.some(({ before, after }) => before !== undefined && after !== undefined && !sameBase(before.base, after.base));

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
  const flags = (set.interval ? SetFlag.Interval : 0) | (set.map ? SetFlag.Map : 0) |
    (set.dynamic ? SetFlag.Timeout | SetFlag.Evaluate : 0);
  const data = set.data === undefined
    ? { dataType: DATA_TYPE_VERDICT, dataLength: 0 }
    : { dataType: keyType(set.data), dataLength: keyLength(set.data) };
  const concatenated = set.fields.length > 1;
  return newSet(table, {
    name,
    flags: flags | (concatenated && set.interval ? SetFlag.Concatenation : 0),
    keyType: keyType(set.fields),
    keyLength: keyLength(set.fields),
    fieldLengths: concatenated && set.interval ? set.fields.map((field) => KEY_FIELDS[field].length) : undefined,
    ...set.map ? data : {},
    size: set.capacity,
    counted: set.counted,
    userdata: byteOrders(set),
  }, id);
}

/**
 * What `nft list` reads to print keys and data of one field whose bytes are in host order: NFTNL_UDATA_SET_KEYBYTEORDER (0) and
 * _DATABYTEORDER (1), 4 bytes, BYTEORDER_HOST_ENDIAN (1). The kernel keeps it unread.
 */
function byteOrders({ fields, data = [] }: NftSet): Uint8Array | undefined {
  const key = isHostOrder(fields) ? [0, 4, 1, 0, 0, 0] : [], value = isHostOrder(data) ? [1, 4, 1, 0, 0, 0] : [];
  return key.length + value.length === 0 ? undefined : Uint8Array.from([...key, ...value]);
}

const isHostOrder = ([field, ...more]: readonly KeyField[]): boolean =>
  more.length === 0 && (field === "ifname" || field === "ct_state" || field === "mark");

/** An interval of a single field is two elements: its first key, and the key after its last as an end. */
function put(set: NftSet, key: ElementKey, value: ElementValue, into: ElementMessages): void {
  if (set.counted && typeof value === "string") {
    into.add(key, undefined, undefined, undefined, value);
    return;
  }
  const given = value === true ? undefined : value;
  if (!set.interval) {
    into.add(key, given);
    return;
  }
  const length = key.length / 2;
  const first = key.slice(0, length), last = key.slice(length);
  if (set.fields.length > 1) {
    into.add(first, given, last);
    return;
  }
  into.add(first, given);
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
