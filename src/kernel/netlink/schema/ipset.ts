/** IP sets by nfnetlink: include/uapi/linux/netfilter/ipset/ip_set.h. */
import type { Address, Cidr, Family } from "../../../model/address.ts";
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import { DecodeError, EncodeError } from "../../errors.ts";
import { address, attrs, be16, be32, decodeMessage, messageSchema, nested, Reader, str, u8, Writer } from "../codec.ts";
import { nfgenHeader } from "./conntrack.ts";
import { AF_UNSPEC, familyFrom, familyOf } from "./family.ts";

/** NFNL_SUBSYS_IPSET of include/uapi/linux/netfilter/nfnetlink.h, as the upper byte of message types. */
const SUBSYSTEM = 6 << 8;
/** enum ipset_cmd. */
const Command = { Create: 2, Destroy: 3, Swap: 6, List: 7, Add: 9, Del: 10, GetByName: 14 } as const;
/** IPSET_PROTOCOL. */
const PROTOCOL = 7;
/** IPSET_FLAG_LIST_HEADER. */
const LIST_HEADER = 4;
/** IPSET_MAXNAMELEN, less the terminator. */
export const SET_NAME_MAX_BYTES = 31;

/** nla_type bits, include/uapi/linux/netlink.h. Numbers must say that they are in network order, or they are refused. */
const NESTED = 0x8000;
const NETWORK_ORDER = 0x4000;
/** IPSET_ATTR_* of commands. */
const Attribute = {
  Protocol: 1,
  Name: 2,
  TypeName: 3,
  Revision: 4,
  Family: 5,
  Flags: 6,
  Data: 7,
  Elements: 8,
  Line: 9,
  Index: 11,
};
/** IPSET_ATTR_* of a set's data and of elements. */
const Data = {
  Ip: 1,
  Cidr: 3,
  Port: 4,
  Protocol: 7,
  HashSize: 18,
  MaxElements: 19,
  Interface: 23,
  Count: 24,
  References: 25,
};

/** IPSET_ERR_* where callers branch on them, as the errno that it comes with. */
export const IpsetErrno = { Busy: 4100, TypeMismatch: 4102, Exists: 4103, Full: 4352 } as const;

/** `net`: `Cidr`s. `port`: address, protocol, port. `interface`: a prefix and the name of an interface. */
export type SetKind = "net" | "port" | "interface";

/** With the newest revision that every kernel since 3.18 and every `ipset` since 6.22 knows. */
const TYPES: Readonly<Record<SetKind, { readonly name: string; readonly revision: number }>> = {
  net: { name: "hash:net", revision: 6 },
  port: { name: "hash:ip,port", revision: 5 },
  interface: { name: "hash:net,iface", revision: 6 },
};

/** So many members a set may have: it is a limit, not a size. */
const ELEMENTS_MAX = 1 << 24;
/** What one message holds of elements: their attribute has at most 65,535 bytes. */
const ELEMENTS_BYTES = 60_000;

export interface SetName {
  readonly name: string;
  readonly kind: SetKind;
  readonly family: Family;
}

// ------------------------------------------------------------------------------------------------------------- messages

const ip = attrs({ v4: [1, address], v6: [2, address] });
const data = attrs({
  ip: [Data.Ip, nested(() => ip)],
  cidr: [Data.Cidr, u8],
  port: [Data.Port, be16],
  protocol: [Data.Protocol, u8],
  hashSize: [Data.HashSize, be32],
  maxElements: [Data.MaxElements, be32],
  interfaceName: [Data.Interface, str],
  count: [Data.Count, be32],
  references: [Data.References, be32],
});
/** What the kernel answers; elements are read apart, there may be many. */
const answer = attrs({
  name: [Attribute.Name, str],
  type: [Attribute.TypeName, str],
  revision: [Attribute.Revision, u8],
  family: [Attribute.Family, u8],
  data: [Attribute.Data, nested(() => data)],
  elements: [Attribute.Elements, elements()],
  index: [Attribute.Index, be16],
});
const setMessage = messageSchema("ip set", nfgenHeader, answer);

function putHead(writer: Writer, name: string | undefined): void {
  // struct nfgenmsg
  writer.u8(AF_UNSPEC);
  writer.u8(0);
  writer.u16(0);
  put(writer, Attribute.Protocol, () => writer.u8(PROTOCOL));
  if (name !== undefined) putName(writer, Attribute.Name, name);
}

function message(
  command: number,
  flags: number,
  name: string | undefined,
  body: (writer: Writer) => void = () => {},
): NetlinkMessage {
  const writer = new Writer(256);
  putHead(writer, name);
  body(writer);
  return { type: SUBSYSTEM | command, flags, payload: writer.bytes.subarray(0, writer.length), schema: setMessage };
}

function put(writer: Writer, type: number, body: () => void): void {
  const at = writer.open(type);
  body();
  writer.close(at);
}

function putName(writer: Writer, type: number, name: string): void {
  if (new TextEncoder().encode(name).length > SET_NAME_MAX_BYTES) {
    throw new EncodeError(`set name ${name}`, `at most ${SET_NAME_MAX_BYTES} bytes`);
  }
  put(writer, type, () => (writer.text(name), writer.u8(0)));
}

/** NLM_F_EXCL: what is there already, or is not, is an error. */
const EXCLUSIVE = 0x200;

/** `count`: members to come, so that the kernel need not grow the set while it fills. */
export const createSet = ({ name, kind, family }: SetName, count = 0): NetlinkMessage =>
  message(Command.Create, EXCLUSIVE, name, (writer) => {
    const type = TYPES[kind];
    put(writer, Attribute.TypeName, () => (writer.text(type.name), writer.u8(0)));
    put(writer, Attribute.Revision, () => writer.u8(type.revision));
    put(writer, Attribute.Family, () => writer.u8(familyOf(family)));
    put(writer, Attribute.Data | NESTED, () => {
      put(writer, Data.HashSize | NETWORK_ORDER, () => writer.be32(hashSizeFor(count)));
      put(writer, Data.MaxElements | NETWORK_ORDER, () => writer.be32(ELEMENTS_MAX));
    });
  });

/**
 * The kernel doubles the buckets, and hashes all members again, as soon as one of them would hold more than 12 (AHASH_MAX_TUNED,
 * ip_set_hash_gen.h): at two members a bucket that hardly ever happens, at four it nearly always does.
 */
function hashSizeFor(count: number): number {
  let size = 64;
  while (size * 2 < count) size *= 2;
  return size;
}

export const destroySet = (name: string): NetlinkMessage => message(Command.Destroy, 0, name);

/** Either has the other's members then; rules go on looking where the name is. */
export const swapSets = (one: string, other: string): NetlinkMessage =>
  message(Command.Swap, 0, one, (writer) => putName(writer, Attribute.TypeName, other));

/** Messages that add members, or delete them. What is there already is added again, what is not there is deleted, without error. */
export class MemberMessages {
  readonly messages: NetlinkMessage[] = [];
  /** Members so far. */
  count = 0;
  private writer: Writer | undefined;
  private elements = 0;

  constructor(private readonly set: SetName, private readonly action: "add" | "delete") {}

  put(member: string): void {
    const { kind, family } = this.set;
    const writer = this.open();
    putMember(writer, kind, family, member);
    this.count++;
    if (writer.length - this.elements >= ELEMENTS_BYTES) this.close();
  }

  /** Members of kind `net` one after another. */
  putPacked(members: Uint8Array): void {
    const { family } = this.set;
    const memberBytes = family === 4 ? 5 : 17;
    for (let at = 0; at < members.length; at += memberBytes) {
      const writer = this.open();
      putPackedMember(writer, family, members, at);
      this.count++;
      if (writer.length - this.elements >= ELEMENTS_BYTES) this.close();
    }
  }

  private open(): Writer {
    let { writer } = this;
    if (writer !== undefined) return writer;
    this.writer = writer = new Writer(ELEMENTS_BYTES + 512);
    putHead(writer, this.set.name);
    const line = writer.open(Attribute.Line | NETWORK_ORDER);
    writer.be32(0);
    writer.close(line);
    this.elements = writer.open(Attribute.Elements | NESTED);
    return writer;
  }

  finish(): readonly NetlinkMessage[] {
    this.close();
    return this.messages;
  }

  private close(): void {
    const { writer } = this;
    if (writer === undefined) return;
    writer.close(this.elements);
    const type = SUBSYSTEM | (this.action === "add" ? Command.Add : Command.Del);
    this.messages.push({ type, flags: 0, payload: writer.bytes.subarray(0, writer.length), schema: setMessage });
    this.writer = undefined;
  }
}

const memberMessages = (
  set: SetName,
  action: "add" | "delete",
  members: Iterable<string>,
): readonly NetlinkMessage[] => {
  const messages = new MemberMessages(set, action);
  for (const member of members) messages.put(member);
  return messages.finish();
};
export const addMembers = (set: SetName, members: Iterable<string>): readonly NetlinkMessage[] =>
  memberMessages(set, "add", members);
export const deleteMembers = (set: SetName, members: Iterable<string>): readonly NetlinkMessage[] =>
  memberMessages(set, "delete", members);

/**
 * By hand, byte by byte: there may be a hundred thousand. An element is IPSET_ATTR_DATA of IPSET_ATTR_IP, which nests the
 * address, and of whatever else its kind has. Answers where the address goes.
 */
function beginMember(writer: Writer, family: Family): number {
  const addressBytes = family === 4 ? 4 : 16;
  const start = writer.reserve(MEMBER_HEAD_BYTES + addressBytes);
  const { bytes } = writer;
  bytes[start] = MEMBER_HEAD_BYTES + addressBytes;
  bytes[start + 1] = 0;
  bytes[start + 2] = Attribute.Data;
  bytes[start + 3] = NESTED >> 8;
  bytes[start + 4] = 8 + addressBytes;
  bytes[start + 5] = 0;
  bytes[start + 6] = Data.Ip;
  bytes[start + 7] = NESTED >> 8;
  bytes[start + 8] = 4 + addressBytes;
  bytes[start + 9] = 0;
  bytes[start + 10] = family === 4 ? 1 : 2;
  bytes[start + 11] = NETWORK_ORDER >> 8;
  return start + MEMBER_HEAD_BYTES;
}
const MEMBER_HEAD_BYTES = 12;

function putPrefix(writer: Writer, prefix: number): void {
  const cidr = writer.open(Data.Cidr);
  writer.u8(prefix);
  writer.close(cidr);
}

function putPackedMember(writer: Writer, family: Family, members: Uint8Array, at: number): void {
  const addressBytes = family === 4 ? 4 : 16;
  const to = beginMember(writer, family);
  const { bytes } = writer;
  for (let i = 0; i < addressBytes; i++) bytes[to + i] = members[at + i]!;
  const prefix = members[at + addressBytes]!;
  if (prefix === addressBytes * 8) return;
  putPrefix(writer, prefix);
  writer.view.setUint16(to - MEMBER_HEAD_BYTES, writer.length - to + MEMBER_HEAD_BYTES, true);
}

function putMember(writer: Writer, kind: SetKind, family: Family, member: string): void {
  const addressBytes = family === 4 ? 4 : 16;
  const to = beginMember(writer, family);
  const { bytes } = writer;
  for (let i = 0; i < addressBytes; i++) bytes[to + i] = member.charCodeAt(i);
  if (kind === "port") {
    const port = writer.open(Data.Port | NETWORK_ORDER);
    writer.be16(member.charCodeAt(addressBytes + 1) << 8 | member.charCodeAt(addressBytes + 2));
    writer.close(port);
    const protocol = writer.open(Data.Protocol);
    writer.u8(member.charCodeAt(addressBytes));
    writer.close(protocol);
  } else {
    const prefix = member.charCodeAt(addressBytes);
    if (prefix !== addressBytes * 8) putPrefix(writer, prefix);
    if (kind === "interface") {
      const name = writer.open(Data.Interface);
      writer.text(member.slice(addressBytes + 1));
      writer.u8(0);
      writer.close(name);
    }
  }
  // All parts are padded to 4 bytes.
  writer.view.setUint16(to - MEMBER_HEAD_BYTES, writer.length - to + MEMBER_HEAD_BYTES, true);
}

export const interfaceMember = (address: Address, interfaceName: string): string =>
  address + String.fromCharCode(address.length * 8) + interfaceName;

/** All sets, or one. `headers`: without their members. */
export const listSets = (
  { name, headers = false }: { readonly name?: string; readonly headers?: boolean } = {},
): NetlinkMessage =>
  message(Command.List, 0, name, (writer) => {
    if (headers) put(writer, Attribute.Flags | NETWORK_ORDER, () => writer.be32(LIST_HEADER));
  });

/** Answered by `parseIndex`: the number by which rules name the set. */
export const getSetIndex = (name: string): NetlinkMessage => message(Command.GetByName, 0, name);

/** @throws {DecodeError} */
export function parseIndex(received: Pick<NetlinkMessage, "payload">): number {
  const { index } = decodeMessage(setMessage, received).attributes;
  if (index === undefined) throw new DecodeError(0, "no index", "the index of an ip set");
  return index;
}

/** A part of a listing: those of a set follow one another, and only the first says what it is. */
export interface SetPart {
  readonly name: string;
  readonly header?: {
    /** Undefined: not one that we make. */
    readonly kind: SetKind | undefined;
    readonly family: Family | undefined;
    readonly count: number;
    readonly references: number;
    readonly maxElements: number;
  };
  /** As `addMembers` takes them. */
  readonly members: readonly string[];
}

/** @throws {DecodeError} */
export function parseSetPart(received: Pick<NetlinkMessage, "payload">): SetPart {
  const { name, type, family, data, elements = [] } = decodeMessage(setMessage, received).attributes;
  if (name === undefined) throw new DecodeError(0, "no name", "the name of an ip set");
  if (type === undefined) return { name, members: elements };
  return {
    name,
    header: {
      kind: (Object.keys(TYPES) as SetKind[]).find((kind) => TYPES[kind].name === type),
      family: family === undefined ? undefined : familyFrom(family),
      count: data?.count ?? 0,
      references: data?.references ?? 0,
      maxElements: data?.maxElements ?? 0,
    },
    members: elements,
  };
}

/** Elements of any kind, each as its bytes say. */
function elements(): {
  nested: true;
  encode(): never;
  decode(reader: Reader, start: number, end: number): readonly string[];
} {
  return {
    nested: true,
    encode: () => {
      throw new EncodeError("elements", "addMembers");
    },
    decode(reader, start, end) {
      const members: string[] = [];
      for (let at = start; at < end;) {
        const length = reader.attributeLength(at, end);
        members.push(memberAt(reader, at + 4, at + length));
        at += length + 3 & ~3;
      }
      return members;
    },
  };
}

function memberAt(reader: Reader, start: number, end: number): string {
  let ip = "", prefix: number | undefined, port = "", protocol = "", name: string | undefined;
  for (let at = start; at < end;) {
    const length = reader.attributeLength(at, end);
    const from = at + 4, to = at + length;
    switch (reader.view.getUint16(at + 2, true) & ~(NESTED | NETWORK_ORDER)) {
      case Data.Ip: {
        const inner = reader.attributeLength(from, to);
        ip = reader.latin1(from + 4, from + inner);
        break;
      }
      case Data.Cidr:
        reader.need(from, to, 1, "a prefix length");
        prefix = reader.bytes[from]!;
        break;
      case Data.Port:
        reader.need(from, to, 2, "a port");
        port = reader.latin1(from, from + 2);
        break;
      case Data.Protocol:
        reader.need(from, to, 1, "a protocol");
        protocol = String.fromCharCode(reader.bytes[from]!);
        break;
      case Data.Interface:
        name = reader.text(from, to);
        break;
    }
    at += length + 3 & ~3;
  }
  if (port !== "") return ip + protocol + port;
  return ip + String.fromCharCode(prefix ?? ip.length * 8) + (name ?? "");
}

/** A prefix of length 0 is no member of a set of prefixes: its halves stand for it. */
export const halvesOfAll = (family: Family): readonly Cidr[] => {
  const bytes = family === 4 ? 4 : 16;
  return ["\0", "\x80"].map((first) => first + "\0".repeat(bytes - 1) + "\x01") as unknown as readonly Cidr[];
};
