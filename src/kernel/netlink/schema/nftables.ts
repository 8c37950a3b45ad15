/**
 * nf_tables over nfnetlink: include/uapi/linux/netfilter/nf_tables.h. Attribute schemas, and pure builders and parsers of
 * the messages. Expressions are in `nftables_expression.ts`.
 */
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import { DecodeError, EncodeError } from "../../errors.ts";
import {
  type AttributeType,
  attrs,
  be16,
  be32,
  be64,
  bytes,
  decodeMessage,
  encodeMessage,
  type Infer,
  list,
  MessageFlag,
  messageSchema,
  nested,
  NLA_F_NESTED,
  padding,
  Reader,
  str,
  struct,
  u8,
  Writer,
} from "../codec.ts";
import {
  counter,
  data,
  expression,
  hookPriority,
  type Verdict,
  verdictFromWire,
  verdictToWire,
} from "./nftables_expression.ts";

/** NETLINK_NETFILTER, include/uapi/linux/netlink.h. */
export const NETLINK_NETFILTER = 12;
/** NFNL_SUBSYS_NFTABLES, include/uapi/linux/netfilter/nfnetlink.h. */
export const SUBSYSTEM_NFTABLES = 10;
/** NFNLGRP_NFTABLES, include/uapi/linux/netfilter/nfnetlink.h. */
export const GROUP_NFTABLES = 7;

/** NFPROTO_*, include/uapi/linux/netfilter.h. */
export const ProtocolFamily = { Unspec: 0, Inet: 1, Ipv4: 2, Arp: 3, Netdev: 5, Bridge: 7, Ipv6: 10 } as const;

const subsystem = <N extends number>(message: N): number => SUBSYSTEM_NFTABLES << 8 | message;

/** enum nf_tables_msg_types, as nlmsg_type. */
export const NftMessage = {
  NewTable: subsystem(0),
  GetTable: subsystem(1),
  DeleteTable: subsystem(2),
  NewChain: subsystem(3),
  GetChain: subsystem(4),
  DeleteChain: subsystem(5),
  NewRule: subsystem(6),
  GetRule: subsystem(7),
  DeleteRule: subsystem(8),
  NewSet: subsystem(9),
  GetSet: subsystem(10),
  DeleteSet: subsystem(11),
  NewElement: subsystem(12),
  GetElement: subsystem(13),
  DeleteElement: subsystem(14),
  NewGeneration: subsystem(15),
  GetGeneration: subsystem(16),
  NewObject: subsystem(18),
  GetObject: subsystem(19),
  DeleteObject: subsystem(20),
  NewFlowtable: subsystem(22),
  GetFlowtable: subsystem(23),
  DeleteFlowtable: subsystem(24),
} as const;

/** enum nft_table_flags. */
export const TableFlag = { Dormant: 1, Owner: 2, Persist: 4 } as const;
/** enum nft_set_flags. */
export const SetFlag = {
  Anonymous: 0x1,
  Constant: 0x2,
  Interval: 0x4,
  Map: 0x8,
  Timeout: 0x10,
  Evaluate: 0x20,
  Object: 0x40,
  Concatenation: 0x80,
  Expressions: 0x100,
} as const;
/** enum nft_set_elem_flags. */
export const ElementFlag = { IntervalEnd: 1, CatchAll: 2 } as const;
/** enum nft_data_types: what a verdict map's data is. */
export const DATA_TYPE_VERDICT = 0xffffff00;

/** enum nf_inet_hooks, include/uapi/linux/netfilter.h. */
export const HOOKS = ["prerouting", "input", "forward", "output", "postrouting", "ingress"] as const;
export type HookName = typeof HOOKS[number];

/** struct nfgenmsg, include/uapi/linux/netfilter/nfnetlink.h. */
export const nfgenmsg = struct({ family: u8, version: u8, resourceId: be16 });

/** enum nft_table_attributes */
export const table = attrs({
  name: [1, str],
  flags: [2, be32],
  use: [3, be32],
  handle: [4, be64],
  pad: [5, padding],
  userdata: [6, bytes],
  owner: [7, be32],
});
export type TableAttributes = Infer<typeof table>;

/** enum nft_hook_attributes */
export const hook = attrs({
  number: [1, be32],
  priority: [2, hookPriority],
  device: [3, str],
  devices: [4, list(() => str)],
});

/** enum nft_counter_attributes */
const chainCounters = attrs({ bytes: [1, be64], packets: [2, be64], pad: [3, padding] });

/** enum nft_chain_attributes */
export const chain = attrs({
  table: [1, str],
  handle: [2, be64],
  name: [3, str],
  hook: [4, hook],
  policy: [5, be32],
  use: [6, be32],
  type: [7, str],
  counters: [8, chainCounters],
  pad: [9, padding],
  flags: [10, be32],
  id: [11, be32],
  userdata: [12, bytes],
});
export type ChainAttributes = Infer<typeof chain>;

/** enum nft_rule_compat_attributes */
export const ruleCompat = attrs({ protocol: [1, be32], flags: [2, be32] });

/** enum nft_rule_attributes */
export const rule = attrs({
  table: [1, str],
  chain: [2, str],
  handle: [3, be64],
  expressions: [4, list(() => expression)],
  compat: [5, ruleCompat],
  position: [6, be64],
  userdata: [7, bytes],
  pad: [8, padding],
  id: [9, be32],
  positionId: [10, be32],
  chainId: [11, be32],
});
export type RuleAttributes = Infer<typeof rule>;

/** enum nft_set_field_attributes */
const setField = attrs({ length: [1, be32] });
/** enum nft_set_desc_attributes */
const setDescription = attrs({ size: [1, be32], fields: [2, list(() => setField)] });

/** enum nft_set_attributes */
export const set = attrs({
  table: [1, str],
  name: [2, str],
  flags: [3, be32],
  keyType: [4, be32],
  keyLength: [5, be32],
  dataType: [6, be32],
  dataLength: [7, be32],
  policy: [8, be32],
  description: [9, setDescription],
  id: [10, be32],
  timeout: [11, be64],
  gcInterval: [12, be32],
  userdata: [13, bytes],
  pad: [14, padding],
  objectType: [15, be32],
  handle: [16, be64],
  expression: [17, nested(() => expression)],
  expressions: [18, list(() => expression)],
  /** NFTA_SET_TYPE: name and address of the implementation that the kernel chose. */
  backend: [19, str],
  count: [20, be32],
});
export type SetAttributes = Infer<typeof set>;

/** enum nft_set_elem_attributes */
export const element = attrs({
  key: [1, data],
  data: [2, data],
  flags: [3, be32],
  timeout: [4, be64],
  expiration: [5, be64],
  userdata: [6, bytes],
  expression: [7, nested(() => expression)],
  pad: [8, padding],
  objectName: [9, str],
  keyEnd: [10, data],
  expressions: [11, list(() => expression)],
});

/** enum nft_set_elem_list_attributes */
export const elementList = attrs({
  table: [1, str],
  set: [2, str],
  elements: [3, list(() => element)],
  setId: [4, be32],
});

/** enum nft_object_attributes; the data of an object is kept as bytes. */
export const object = attrs({
  table: [1, str],
  name: [2, str],
  type: [3, be32],
  data: [4, bytes],
  use: [5, be32],
  handle: [6, be64],
  pad: [7, padding],
  userdata: [8, bytes],
});

/** enum nft_flowtable_attributes */
export const flowtable = attrs({
  table: [1, str],
  name: [2, str],
  hook: [3, attrs({ number: [1, be32], priority: [2, hookPriority], devices: [3, list(() => str)] })],
  use: [4, be32],
  handle: [5, be64],
  pad: [6, padding],
  flags: [7, be32],
});

/** enum nft_gen_attributes */
export const generation = attrs({ id: [1, be32], processId: [2, be32], processName: [3, str] });

const tableMessage = messageSchema("table", nfgenmsg, table);
const chainMessage = messageSchema("chain", nfgenmsg, chain);
const ruleMessage = messageSchema("rule", nfgenmsg, rule);
const setMessage = messageSchema("set", nfgenmsg, set);
const elementMessage = messageSchema("elements", nfgenmsg, elementList);
const generationMessage = messageSchema("generation", nfgenmsg, generation);

const { Create, Append, Exclusive } = MessageFlag;

/** What messages of one table have in common. `family`: a `ProtocolFamily`. */
export interface TableName {
  readonly family: number;
  readonly table: string;
}

const header = (at: TableName) => ({ family: at.family });

/** `exclusive`: refuse with EEXIST where it is there already. */
export const newTable = (
  at: TableName,
  options: { readonly exclusive?: boolean; readonly flags?: number } = {},
): NetlinkMessage =>
  encodeMessage(tableMessage, NftMessage.NewTable, options.exclusive ? Create | Exclusive : Create, header(at), {
    name: at.table,
    flags: options.flags ?? 0,
  });

export const deleteTable = (at: TableName): NetlinkMessage =>
  encodeMessage(tableMessage, NftMessage.DeleteTable, 0, header(at), { name: at.table });

/** Answered with the table, or ENOENT. */
export const getTable = (at: TableName): NetlinkMessage =>
  encodeMessage(tableMessage, NftMessage.GetTable, 0, header(at), { name: at.table });

/** To be dumped: every table of the family. */
export const getTables = (family: number): NetlinkMessage =>
  encodeMessage(tableMessage, NftMessage.GetTable, 0, { family }, {});

export interface BaseChain {
  readonly type: "filter" | "nat" | "route";
  readonly hook: HookName;
  readonly priority: number;
  readonly policy: "accept" | "drop";
  /** Name of the link whose packets it sees; of the hook `ingress`, which has no chain without one. */
  readonly device?: string;
}

/** NF_NETDEV_INGRESS of include/uapi/linux/netfilter.h: tables of links count their hooks by themselves. */
const hookNumber = (family: number, hook: HookName): number =>
  family === ProtocolFamily.Netdev ? 0 : HOOKS.indexOf(hook);

export const newChain = (at: TableName, name: string, base?: BaseChain): NetlinkMessage =>
  encodeMessage(chainMessage, NftMessage.NewChain, Create, header(at), {
    table: at.table,
    name,
    hook: base === undefined
      ? undefined
      : { number: hookNumber(at.family, base.hook), priority: base.priority, device: base.device },
    policy: base === undefined ? undefined : base.policy === "accept" ? 1 : 0,
    type: base?.type,
  });

export const deleteChain = (at: TableName, name: string): NetlinkMessage =>
  encodeMessage(chainMessage, NftMessage.DeleteChain, 0, header(at), { table: at.table, name });

/** To be dumped: every chain of the family, whatever its table. */
export const getChains = (family: number): NetlinkMessage =>
  encodeMessage(chainMessage, NftMessage.GetChain, 0, { family }, {});

export type WireExpression = Infer<typeof expression>;

/** At the end of its chain. */
export const appendRule = (
  at: TableName,
  chainName: string,
  expressions: readonly WireExpression[],
  userdata?: Uint8Array,
): NetlinkMessage =>
  encodeMessage(ruleMessage, NftMessage.NewRule, Create | Append, header(at), {
    table: at.table,
    chain: chainName,
    expressions,
    userdata,
  });

/** All rules of the chain. */
export const flushChain = (at: TableName, chainName: string): NetlinkMessage =>
  encodeMessage(ruleMessage, NftMessage.DeleteRule, 0, header(at), { table: at.table, chain: chainName });

export const deleteRule = (at: TableName, chainName: string, handle: bigint): NetlinkMessage =>
  encodeMessage(ruleMessage, NftMessage.DeleteRule, 0, header(at), { table: at.table, chain: chainName, handle });

/** To be dumped: the rules of the table, in order within each chain. */
export const getRules = (at: TableName, chainName?: string): NetlinkMessage =>
  encodeMessage(ruleMessage, NftMessage.GetRule, 0, header(at), { table: at.table, chain: chainName });

export interface SetDefinition {
  readonly name: string;
  /** `SetFlag` bits. */
  readonly flags: number;
  /** nft's number of the key's type: `setKeyType`. */
  readonly keyType: number;
  readonly keyLength: number;
  /** Bytes of each field of a concatenated key; given for interval sets of such keys. */
  readonly fieldLengths?: readonly number[];
  readonly dataType?: number;
  readonly dataLength?: number;
  /** Upper bound of its elements: the kernel refuses more (ENFILE) and picks its hash by it. */
  readonly size?: number;
  readonly userdata?: Uint8Array;
  /** After so long an element is gone; with `SetFlag.Timeout`. */
  readonly timeoutMs?: number;
  /** Each element counts the packets whose lookup finds it. */
  readonly counted?: boolean;
}

/** `id`: unique within its transaction; the kernel insists on one. */
export const newSet = (at: TableName, definition: SetDefinition, id: number): NetlinkMessage =>
  encodeMessage(setMessage, NftMessage.NewSet, Create, header(at), {
    table: at.table,
    name: definition.name,
    flags: definition.flags,
    keyType: definition.keyType,
    keyLength: definition.keyLength,
    dataType: definition.dataType,
    dataLength: definition.dataLength,
    description: definition.size === undefined && definition.fieldLengths === undefined ? undefined : {
      size: definition.size,
      fields: definition.fieldLengths?.map((length) => ({ length })),
    },
    id,
    timeout: definition.timeoutMs === undefined ? undefined : BigInt(definition.timeoutMs),
    userdata: definition.userdata,
    expression: definition.counted ? { name: "counter", data: {} } : undefined,
  });

export const deleteSet = (at: TableName, name: string): NetlinkMessage =>
  encodeMessage(setMessage, NftMessage.DeleteSet, 0, header(at), { table: at.table, name });

/** To be dumped: the sets of the table, without their elements. */
export const getSets = (at: TableName): NetlinkMessage =>
  encodeMessage(setMessage, NftMessage.GetSet, 0, header(at), { table: at.table });

/** Answered with each of the elements, or ENOENT where one is missing. */
export const getElementsAt = (at: TableName, setName: string, keys: readonly string[]): NetlinkMessage =>
  encodeMessage(elementMessage, NftMessage.GetElement, 0, header(at), {
    table: at.table,
    set: setName,
    elements: keys.map((value) => ({ key: { value } })),
  });

/** To be dumped: the elements of one set. */
export const getElements = (at: TableName, setName: string): NetlinkMessage =>
  encodeMessage(elementMessage, NftMessage.GetElement, 0, header(at), { table: at.table, set: setName });

export const getGeneration = (): NetlinkMessage =>
  encodeMessage(generationMessage, NftMessage.GetGeneration, 0, { family: 0 }, {});

export const parseTable = (message: NetlinkMessage) => decodeMessage(tableMessage, message);
export const parseChain = (message: NetlinkMessage) => decodeMessage(chainMessage, message);
export const parseRule = (message: NetlinkMessage) => decodeMessage(ruleMessage, message);
export const parseSet = (message: NetlinkMessage) => decodeMessage(setMessage, message);
export const parseGeneration = (message: NetlinkMessage) => decodeMessage(generationMessage, message);

/**
 * Table, family and kind of any nf_tables message or event: NFTA_*_TABLE and NFTA_TABLE_NAME are attribute 1 of all that
 * have a table. Undefined where there is none (a generation).
 * @throws {DecodeError}
 */
export function tableOf(message: NetlinkMessage): TableName | undefined {
  if (message.type === NftMessage.NewGeneration) return undefined;
  const reader = new Reader(message.payload);
  const end = message.payload.length;
  reader.need(0, end, nfgenmsg.size, "struct nfgenmsg");
  for (let at = nfgenmsg.size; at < end;) {
    const length = reader.attributeLength(at, end);
    if ((reader.view.getUint16(at + 2, true) & 0x3fff) === 1) {
      return { family: message.payload[0]!, table: reader.text(at + 4, at + length) };
    }
    at += length + 3 & ~3;
  }
  return undefined;
}

// ---------------------------------------------------------------------------------------------------------- set elements

/** One element on the wire. Keys and data are packed: one Latin-1 character a byte. */
export interface WireElement {
  readonly key: string;
  /** Inclusive end of a concatenated interval. */
  readonly keyEnd?: string;
  /** `ElementFlag` bits; absent = 0. */
  readonly flags?: number;
  readonly verdict?: Verdict;
  readonly data?: string;
  /** What it is, for people: shown by `nft list`. At most 125 bytes of ASCII. */
  readonly comment?: string;
  /** Of a parsed element that counts. */
  readonly counter?: { readonly packets: number; readonly bytes: number };
  /** Set on a parsed element with attributes beyond these: a timeout, expressions, an object. */
  readonly more?: true;
}

/** Elements are cut into messages of at most this much; an attribute holds 65,535 bytes. */
const ELEMENT_LIST_BYTES = 64_000;
/** NFT_DATA_VALUE_MAXLEN. */
const KEY_MAX_BYTES = 64;

/**
 * Messages that add (`NewElement`) or remove (`DeleteElement`) elements of one set, as many as their sizes ask for. Written
 * by hand: sets of 100,000 elements pass through here.
 */
export class ElementMessages {
  private readonly done: NetlinkMessage[] = [];
  /** Grows: most changes are an element or two. */
  private readonly writer = new Writer(256);
  private listAt = -1;

  constructor(private readonly kind: "add" | "remove", private readonly at: TableName, private readonly set: string) {}

  /** Fields as of `WireElement`; `value`: verdict or data. @throws {EncodeError} for a key that is too long */
  add(key: string, value?: Verdict | string, keyEnd?: string, flags = 0, comment?: string): void {
    if (key.length > KEY_MAX_BYTES) throw new EncodeError(`a key of ${key.length} bytes`, `at most ${KEY_MAX_BYTES}`);
    if (this.listAt < 0) this.start();
    const writer = this.writer;
    const at = writer.open(1 | NLA_F_NESTED);
    packedAttribute(writer, 1, key);
    if (value !== undefined && this.kind === "add") {
      const outer = writer.open(2 | NLA_F_NESTED);
      data.encode(writer, typeof value === "string" ? { value } : { verdict: verdictToWire(value) }, {});
      writer.close(outer);
    }
    if (flags !== 0) {
      const field = writer.open(3);
      writer.be32(flags);
      writer.close(field);
    }
    if (comment !== undefined && this.kind === "add") {
      const field = writer.open(6);
      writer.latin1(`\0${String.fromCharCode(comment.length + 1)}${comment}\0`);
      writer.close(field);
    }
    if (keyEnd !== undefined) packedAttribute(writer, 10, keyEnd);
    writer.close(at);
    if (writer.length - this.listAt > ELEMENT_LIST_BYTES) this.finish();
  }

  /** Keys alone, each of `length` bytes, one after another. */
  addPacked(keys: Uint8Array, length: number): void {
    for (let at = 0; at < keys.length; at += length) {
      if (this.listAt < 0) this.start();
      writePacked(this.writer, keys, at, length);
      if (this.writer.length - this.listAt > ELEMENT_LIST_BYTES) this.finish();
    }
  }

  /** All of them; none where nothing was added. */
  messages(): readonly NetlinkMessage[] {
    this.finish();
    return this.done;
  }

  private start(): void {
    const writer = this.writer;
    writer.length = 0;
    nfgenmsg.write(writer, { family: this.at.family });
    textAttribute(writer, 1, this.at.table);
    textAttribute(writer, 2, this.set);
    this.listAt = writer.open(3 | NLA_F_NESTED);
  }

  private finish(): void {
    if (this.listAt < 0) return;
    this.writer.close(this.listAt);
    this.listAt = -1;
    this.done.push({
      type: this.kind === "add" ? NftMessage.NewElement : NftMessage.DeleteElement,
      flags: this.kind === "add" ? Create : 0,
      payload: this.writer.bytes.slice(0, this.writer.length),
      schema: elementMessage,
    });
  }
}

/** NFTA_LIST_ELEM { NFTA_SET_ELEM_KEY { NFTA_DATA_VALUE } }, the three headers at once. */
function writePacked(writer: Writer, keys: Uint8Array, from: number, length: number): void {
  const padded = length + 3 & ~3;
  const at = writer.reserve(12 + padded);
  const { bytes, view } = writer;
  view.setUint32(at, 12 + padded | (1 | NLA_F_NESTED) << 16, true);
  view.setUint32(at + 4, 8 + padded | (1 | NLA_F_NESTED) << 16, true);
  view.setUint32(at + 8, 4 + length | 1 << 16, true);
  for (let i = 0; i < length; i++) bytes[at + 12 + i] = keys[from + i]!;
  for (let i = length; i < padded; i++) bytes[at + 12 + i] = 0;
}

function textAttribute(writer: Writer, type: number, text: string): void {
  const at = writer.open(type);
  str.encode(writer, text, {});
  writer.close(at);
}

function packedAttribute(writer: Writer, type: number, value: string): void {
  const outer = writer.open(type | NLA_F_NESTED);
  const inner = writer.open(1);
  writer.latin1(value);
  writer.close(inner);
  writer.close(outer);
}

/** What a message of a dump, or an event, says of a set's elements. @throws {DecodeError} */
export function parseElements(
  message: Pick<NetlinkMessage, "payload">,
): { readonly set: string; readonly elements: WireElement[] } {
  const reader = new Reader(message.payload);
  const end = message.payload.length;
  reader.need(0, end, nfgenmsg.size, "struct nfgenmsg");
  let setName = "";
  const elements: WireElement[] = [];
  eachAttribute(reader, nfgenmsg.size, end, (type, from, to) => {
    if (type === 2) setName = reader.text(from, to);
    else if (type === 3) {
      eachAttribute(reader, from, to, (_, first, last) => elements.push(readElement(reader, first, last)));
    }
  });
  return { set: setName, elements };
}

function eachAttribute(
  reader: Reader,
  start: number,
  end: number,
  visit: (type: number, from: number, to: number) => void,
) {
  for (let at = start; at < end;) {
    const length = reader.attributeLength(at, end);
    visit(reader.view.getUint16(at + 2, true) & 0x3fff, at + 4, at + length);
    at += length + 3 & ~3;
  }
}

function readElement(reader: Reader, start: number, end: number): WireElement {
  let key: string | undefined, keyEnd: string | undefined, dataValue: string | undefined;
  let verdict: Verdict | undefined;
  let counts: WireElement["counter"];
  let comment: string | undefined;
  let flags = 0, more = false;
  for (let at = start; at < end;) {
    const length = reader.attributeLength(at, end);
    const type = reader.view.getUint16(at + 2, true) & 0x3fff;
    const from = at + 4, to = at + length;
    if (type === 1) key = readPacked(reader, from, to);
    else if (type === 10) keyEnd = readPacked(reader, from, to);
    else if (type === 3) {
      reader.need(from, to, 4, "element flags");
      flags = reader.view.getUint32(from, false);
    } else if (type === 2) {
      const value = data.decode(reader, from, to, {});
      if (value.verdict !== undefined) verdict = verdictFromWire(value.verdict);
      else if (value.value !== undefined) dataValue = value.value;
    } else if (type === 6 && comment === undefined) {
      comment = readComment(reader, from, to);
      if (comment === undefined) more = true;
    } else if (type === 7 && counts === undefined) {
      counts = readCounter(reader, from, to);
      if (counts === undefined) more = true;
    } else if (type !== 8) more = true;
    at += length + 3 & ~3;
  }
  if (key === undefined && (flags & ElementFlag.CatchAll) === 0) {
    throw new DecodeError(start, "an element without key", "NFTA_SET_ELEM_KEY");
  }
  const one: { -readonly [K in keyof WireElement]: WireElement[K] } = { key: key ?? "" };
  if (keyEnd !== undefined) one.keyEnd = keyEnd;
  if (flags !== 0) one.flags = flags;
  if (verdict !== undefined) one.verdict = verdict;
  if (dataValue !== undefined) one.data = dataValue;
  if (comment !== undefined) one.comment = comment;
  if (counts !== undefined) one.counter = counts;
  if (more) one.more = true;
  return one;
}

/** NFTA_SET_ELEM_USERDATA as nft writes it: NFTNL_UDATA_SET_ELEM_COMMENT (0), a length, text, NUL. Undefined where it is more. */
function readComment(reader: Reader, start: number, end: number): string | undefined {
  const text = reader.latin1(start, end);
  return text.length > 2 && text[0] === "\0" && text.charCodeAt(1) === text.length - 2 && text.endsWith("\0")
    ? text.slice(2, -1)
    : undefined;
}

/** NFTA_SET_ELEM_EXPR; undefined where it is no counter. */
function readCounter(reader: Reader, start: number, end: number): WireElement["counter"] {
  let name: string | undefined, found: WireElement["counter"];
  eachAttribute(reader, start, end, (type, from, to) => {
    if (type === 1) name = reader.text(from, to);
    else if (type === 2) {
      const { packets = 0n, bytes = 0n } = counter.decode(reader, from, to, {});
      found = { packets: Number(packets), bytes: Number(bytes) };
    }
  });
  return name === "counter" ? found : undefined;
}

/** NFTA_DATA_VALUE within a key. */
function readPacked(reader: Reader, start: number, end: number): string {
  const length = reader.attributeLength(start, end);
  if ((reader.view.getUint16(start + 2, true) & 0x3fff) !== 1) {
    throw reader.error(start, "data of another kind", "NFTA_DATA_VALUE");
  }
  return reader.latin1(start + 4, start + length);
}

// ------------------------------------------------------------------------------------------------------------- key types

/** nft's own numbers of key types (its `enum datatypes`); the kernel only keeps them, for `nft list` to print by. */
export const KeyType = {
  NfProto: 2,
  Ipv4Address: 7,
  Ipv6Address: 8,
  L4Protocol: 12,
  Service: 13,
  IcmpType: 14,
  Mark: 19,
  InterfaceIndex: 20,
  CtState: 26,
  Icmpv6Type: 29,
  IfName: 41,
} as const;

/** The number of a key made of `fields`: one alone, or 6 bits each, first field highest. */
export const setKeyType = (fields: readonly number[]): number => fields.reduce((all, one) => all << 6 | one, 0) >>> 0;

/** Bytes of a field in a key: a multiple of 4, as registers are. */
export const fieldSize = (length: number): number => length + 3 & ~3;

export type { AttributeType };
