/**
 * Rules as the kernel has them: struct ipt_entry and ip6t_entry, with their matches and target. Layouts:
 * include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h, netfilter/x_tables.h and one header for
 * each extension. Revisions are those that `iptables` itself writes.
 */
import { type Cidr, cidrPrefix, type Family } from "../../src/model/address.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { type FlowState, type Match, MULTIPORT_MAX, RETURN, type Rule, type Target } from "./ruleset.ts";

/** What of an entry is where, in bytes. */
export interface EntryLayout {
  readonly headerBytes: number;
  readonly addressBytes: number;
  /** Of iniface; outiface and their masks follow, 16 bytes each. */
  readonly interfaces: number;
  readonly protocol: number;
  readonly flags: number;
  readonly invertFlags: number;
  readonly nfcache: number;
  readonly targetOffset: number;
  readonly nextOffset: number;
  readonly comefrom: number;
  readonly counters: number;
  /** IPT_F_GOTO. */
  readonly gotoFlag: number;
}

export const LAYOUTS: Readonly<Record<Family, EntryLayout>> = {
  4: {
    headerBytes: 112,
    addressBytes: 4,
    interfaces: 16,
    protocol: 80,
    flags: 82,
    invertFlags: 83,
    nfcache: 84,
    targetOffset: 88,
    nextOffset: 90,
    comefrom: 92,
    counters: 96,
    gotoFlag: 2,
  },
  6: {
    headerBytes: 168,
    addressBytes: 16,
    interfaces: 64,
    protocol: 128,
    flags: 131,
    invertFlags: 132,
    nfcache: 136,
    targetOffset: 140,
    nextOffset: 142,
    comefrom: 144,
    counters: 152,
    gotoFlag: 4,
  },
};

/** struct xt_entry_match and xt_entry_target: a size, a name of 29 bytes, a revision. */
export const EXTENSION_HEADER_BYTES = 32;
export const EXTENSION_NAME_BYTES = 29;
export const STANDARD_TARGET_BYTES = 40;
export const ERROR_TARGET_BYTES = 64;
/** IFNAMSIZ. */
const INTERFACE_BYTES = 16;

/** IPT_INV_*; the same for both families. */
const Invert = { Source: 0x08, Destination: 0x10, Protocol: 0x40 } as const;
/** IP6T_F_PROTO: without it the protocol is not looked at. */
const F_PROTO_V6 = 1;

/** Standard verdicts as x_tables has them: -NF_ACCEPT - 1, -NF_DROP - 1, XT_RETURN (-NF_REPEAT - 1). */
export const VERDICT = { accept: -2, drop: -1, return: -5 } as const;

/**
 * We mark what is ours by nfcache, which the kernel keeps and neither it nor any tool looks at: a rule of somebody else in a
 * chain of ours can so be told from one that an earlier version of us has written.
 */
export const OWN_MARK = 0x6d616e78;

/** An encoded rule; what is not known yet is filled in when the table is put together. Rules encoded one after another mostly lie so. */
export class EncodedRule {
  private own: Uint8Array<ArrayBuffer> | undefined;

  constructor(
    /** Holds many rules. */
    readonly block: Uint8Array<ArrayBuffer>,
    readonly start: number,
    readonly sizeBytes: number,
    /** Chain whose place goes to the standard target's verdict. */
    readonly chain: string | undefined,
    /** Set whose index goes to each offset. */
    readonly sets: readonly { readonly offset: number; readonly set: string }[],
    /** What its counter counts. */
    readonly causes: Rule["causes"],
  ) {}

  get bytes(): Uint8Array<ArrayBuffer> {
    return this.own ??= this.block.subarray(this.start, this.start + this.sizeBytes);
  }
}

const align = (size: number): number => size + 7 & ~7;

/** Rules are small and many: they share buffers, and one view of each. */
const BLOCK_BYTES = 256 * 1024;
let block = new Uint8Array(new ArrayBuffer(BLOCK_BYTES));
let view = new DataView(block.buffer);
let used = 0;

const NO_SETS: EncodedRule["sets"] = [];

export function encodeRule({ matches, target, causes }: Rule, family: Family): EncodedRule {
  const layout = LAYOUTS[family];
  let targetOffset = layout.headerBytes;
  for (const match of matches) {
    const dataBytes = matchBytes(match);
    if (dataBytes > 0) targetOffset += EXTENSION_HEADER_BYTES + align(dataBytes);
  }
  const size = targetOffset + EXTENSION_HEADER_BYTES + align(targetBytes(target, family));
  if (used + size > BLOCK_BYTES) {
    block = new Uint8Array(new ArrayBuffer(BLOCK_BYTES));
    view = new DataView(block.buffer);
    used = 0;
  }
  const start = used;
  used += size;
  let sets: { offset: number; set: string }[] | undefined;
  let at = start + layout.headerBytes;
  for (const match of matches) {
    const dataBytes = matchBytes(match);
    if (dataBytes === 0) {
      writeField(start, layout, match, family);
      continue;
    }
    putExtension(at, dataBytes, matchName(match, family), matchRevision(match));
    writeMatch(at + EXTENSION_HEADER_BYTES, match, family);
    if (match.match === "set") (sets ??= []).push({ offset: at + EXTENSION_HEADER_BYTES - start, set: match.set });
    at += EXTENSION_HEADER_BYTES + align(dataBytes);
  }
  putExtension(
    at,
    targetBytes(target, family),
    TARGET_NAMES[target.target] ?? "",
    TARGET_REVISIONS[target.target] ?? 0,
  );
  writeTarget(at + EXTENSION_HEADER_BYTES, target, family);
  if (target.target === "goto") block[start + layout.flags]! |= layout.gotoFlag;
  view.setUint32(start + layout.nfcache, OWN_MARK, true);
  view.setUint16(start + layout.targetOffset, targetOffset, true);
  view.setUint16(start + layout.nextOffset, size, true);
  const chain = target.target === "jump" || target.target === "goto" ? target.chain : undefined;
  return new EncodedRule(block, start, size, chain, sets ?? NO_SETS, causes);
}

function putExtension(at: number, dataBytes: number, name: string, revision: number): void {
  view.setUint16(at, EXTENSION_HEADER_BYTES + align(dataBytes), true);
  putText(block, at + 2, name);
  block[at + 2 + EXTENSION_NAME_BYTES] = revision;
}

function putText(bytes: Uint8Array, at: number, text: string): void {
  for (let i = 0; i < text.length; i++) bytes[at + i] = text.charCodeAt(i);
}

// ------------------------------------------------------------------------------------------------- fields of the entry

function writeField(start: number, layout: EntryLayout, match: Match, family: Family): void {
  switch (match.match) {
    case "protocol":
      view.setUint16(start + layout.protocol, match.protocol, true);
      if (family === 6) block[start + layout.flags]! |= F_PROTO_V6;
      if (match.not) block[start + layout.invertFlags]! |= Invert.Protocol;
      return;
    case "net": {
      const { addressBytes } = layout;
      const at = start + (match.end === "source" ? 0 : addressBytes);
      for (let i = 0; i < addressBytes; i++) block[at + i] = match.net.charCodeAt(i);
      putMask(block, at + 2 * addressBytes, match.net);
      if (match.not) block[start + layout.invertFlags]! |= match.end === "source" ? Invert.Source : Invert.Destination;
      return;
    }
    case "interface": {
      const at = start + layout.interfaces + (match.way === "in" ? 0 : INTERFACE_BYTES);
      putText(block, at, match.prefix ? `${match.name}+` : match.name);
      // The terminator is compared as well, but where every name that begins so is meant.
      const compared = match.name.length + (match.prefix ? 0 : 1);
      block.fill(0xff, at + 2 * INTERFACE_BYTES, at + 2 * INTERFACE_BYTES + compared);
      return;
    }
  }
}

function putMask(bytes: Uint8Array, at: number, net: Cidr): void {
  const prefix = cidrPrefix(net);
  for (let i = 0; i < net.length - 1; i++) {
    const bits = Math.max(0, Math.min(8, prefix - i * 8));
    bytes[at + i] = 0xff00 >> bits & 0xff;
  }
}

// ------------------------------------------------------------------------------------------------------------- matches

/** Bits of struct xt_conntrack_mtinfo3's state_mask, xt_conntrack.h. */
const STATE_BITS: Readonly<Record<FlowState, number>> = {
  invalid: 1 << 0,
  established: 1 << 1,
  related: 1 << 2,
  new: 1 << 3,
  untracked: 1 << 8,
};
/** XT_CONNTRACK_STATE. */
const CONNTRACK_STATE = 1;
const IPSET_INVERT = 1;
/** XT_CONNTRACK_STATE_DNAT of xt_conntrack.h. */
const STATE_DNAT = 1 << 7;
/** RTN_LOCAL of rtnetlink.h, as a bit; XT_ADDRTYPE_INVERT_SOURCE and _DEST of xt_addrtype.h. */
const TYPE_LOCAL = 1 << 2;
const INVERT_TYPE = { source: 1, destination: 2 } as const;
/** XT_RECENT_SET, _UPDATE and _REAP of xt_recent.h, and where its fields are. */
const Recent = { Set: 1 << 1, Update: 1 << 2, Reap: 1 << 5, name: 10, mask: 212 } as const;
/** XT_LIMIT_SCALE. */
const LIMIT_SCALE = 10_000;

/** Of what follows the extension's header; 0: a field of the entry itself. */
function matchBytes(match: Match): number {
  switch (match.match) {
    case "set":
    case "limit":
      return match.match === "set" ? 48 : 40;
    case "ports":
      return !isSingle(match) ? 48 : match.protocol === PROTOCOLS.TCP ? 12 : 10;
    case "icmp":
      return 4;
    case "state":
    case "translated":
      return 164;
    case "local":
      return 8;
    case "chance":
      return 24;
    case "remember":
    case "remembered":
      return 228;
    case "mark":
    case "flowMark":
      return 12;
    default:
      return 0;
  }
}

/** One range of TCP or UDP is asked for by their own matches. */
const isSingle = ({ protocol, ranges }: Extract<Match, { match: "ports" }>): boolean =>
  ranges.length === 1 && (protocol === PROTOCOLS.TCP || protocol === PROTOCOLS.UDP);

function matchName(match: Match, family: Family): string {
  switch (match.match) {
    case "ports":
      return !isSingle(match) ? "multiport" : match.protocol === PROTOCOLS.TCP ? "tcp" : "udp";
    case "icmp":
      return family === 4 ? "icmp" : "icmp6";
    case "state":
    case "translated":
      return "conntrack";
    case "local":
      return "addrtype";
    case "chance":
      return "statistic";
    case "remember":
    case "remembered":
      return "recent";
    case "flowMark":
      return "connmark";
    default:
      return match.match;
  }
}

const matchRevision = (match: Match): number =>
  match.match === "ports" ? (isSingle(match) ? 0 : 1) : MATCH_REVISIONS[match.match] ?? 0;
const MATCH_REVISIONS: Readonly<Partial<Record<Match["match"], number>>> = {
  set: 4,
  state: 3,
  translated: 3,
  mark: 1,
  flowMark: 1,
  local: 1,
  remember: 1,
  remembered: 1,
};

function writeMatch(at: number, match: Match, family: Family): void {
  switch (match.match) {
    case "set": {
      // struct xt_set_info_match_v4, xt_set.h: index, dimensions, flags; counters that are not asked for.
      block[at + 2] = match.ends.length;
      let flags = match.not ? IPSET_INVERT : 0;
      match.ends.forEach((end, i) => {
        if (end === "source") flags |= 2 << i;
      });
      block[at + 3] = flags;
      return;
    }
    case "ports":
      return isSingle(match) ? writeSingle(at, match) : writeMultiport(at, match);
    case "icmp":
      // struct ipt_icmp, ip6t_icmp: type, codes from and to, flags.
      block[at] = match.type;
      block[at + 1] = match.code ?? 0;
      block[at + 2] = match.code ?? 0xff;
      block[at + 3] = match.not ? 1 : 0;
      return;
    case "state":
      view.setUint16(at + 146, CONNTRACK_STATE, true);
      view.setUint16(at + 150, match.states.reduce((bits, state) => bits | STATE_BITS[state], 0), true);
      return;
    case "mark":
    case "flowMark":
      // struct xt_mark_mtinfo1 and xt_connmark_mtinfo1. Some bit set is: not all of them zero.
      view.setUint32(at + 4, match.mask, true);
      block[at + 8] = match.not ? 0 : 1;
      return;
    case "limit":
      // struct xt_rateinfo; the rest is the kernel's.
      view.setUint32(at, LIMIT_SCALE / match.perSecond, true);
      view.setUint32(at + 4, match.burst, true);
      return;
    case "translated":
      view.setUint16(at + 146, CONNTRACK_STATE, true);
      view.setUint16(at + 150, STATE_DNAT, true);
      return;
    case "local":
      // struct xt_addrtype_info_v1: types of the source, of the destination, flags.
      view.setUint16(match.end === "source" ? at : at + 2, TYPE_LOCAL, true);
      view.setUint32(at + 4, match.not ? INVERT_TYPE[match.end] : 0, true);
      return;
    case "chance":
      // struct xt_statistic_info of mode 0, random; the tool leaves the number in nth.count as well, which nobody looks at.
      view.setUint32(at + 4, match.of31Bits, true);
      view.setUint32(at + 12, match.of31Bits, true);
      return;
    case "remember":
      return writeRecent(at, family, match.list, 0, Recent.Set);
    case "remembered":
      return writeRecent(at, family, match.list, match.seconds, Recent.Update | Recent.Reap);
  }
}

/** struct xt_recent_mtinfo_v1: seconds, hits, what to do, invert, name, side (0: the source), mask. */
function writeRecent(at: number, family: Family, list: string, seconds: number, action: number): void {
  view.setUint32(at, seconds, true);
  block[at + 8] = action;
  putText(block, at + Recent.name, list);
  block.fill(0xff, at + Recent.mask, at + Recent.mask + LAYOUTS[family].addressBytes);
}

/** struct xt_tcp, xt_udp: source ports from and to, destination ports from and to, host byte order. */
function writeSingle(at: number, { end, ranges }: Extract<Match, { match: "ports" }>): void {
  const { first, last } = ranges[0]!;
  const mine = end === "source" ? at : at + 4, other = end === "source" ? at + 4 : at;
  view.setUint16(mine, first, true);
  view.setUint16(mine + 2, last, true);
  view.setUint16(other + 2, 0xffff, true);
}

/** struct xt_multiport_v1: flags, count, ports, which of them begin a range, invert. */
function writeMultiport(at: number, { end, ranges }: Extract<Match, { match: "ports" }>): void {
  block[at] = end === "source" ? 0 : 1;
  let count = 0;
  for (const { first, last } of ranges) {
    view.setUint16(at + 2 + 2 * count, first, true);
    if (first !== last) {
      block[at + 2 + 2 * MULTIPORT_MAX + count] = 1;
      view.setUint16(at + 2 + 2 * ++count, last, true);
    }
    count++;
  }
  block[at + 1] = count;
}

// ------------------------------------------------------------------------------------------------------------- targets

/** IPT_TCP_RESET, IP6T_TCP_RESET. */
const TCP_RESET: Readonly<Record<Family, number>> = { 4: 7, 6: 6 };
/** IPT_ICMP_PORT_UNREACHABLE, IP6T_ICMP6_PORT_UNREACH. */
const PORT_UNREACHABLE: Readonly<Record<Family, number>> = { 4: 3, 6: 4 };
/** NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED of nf_nat.h. */
const MAP_ADDRESS_AND_PORT = 3;
/** XT_CT_NOTRACK. */
const CT_NOTRACK = 1;

/** XT_STANDARD_TARGET has no name. */
const TARGET_NAMES: Readonly<Partial<Record<Target["target"], string>>> = {
  log: "NFLOG",
  mark: "MARK",
  noTrack: "CT",
  masquerade: "MASQUERADE",
  tcpReset: "REJECT",
  portUnreachable: "REJECT",
  dnat: "DNAT",
};
const TARGET_REVISIONS: Readonly<Partial<Record<Target["target"], number>>> = { mark: 2, noTrack: 2, dnat: 2 };

function targetBytes({ target }: Target, family: Family): number {
  switch (target) {
    case "log":
      return 76;
    case "mark":
      return 8;
    case "noTrack":
      return 72;
    case "masquerade":
      return family === 4 ? 20 : 40;
    case "dnat":
      return 44;
    default:
      return 4;
  }
}

function writeTarget(at: number, target: Target, family: Family): void {
  switch (target.target) {
    case "accept":
    case "drop":
    case "return":
      return view.setInt32(at, VERDICT[target.target], true);
    case "log":
      // struct xt_nflog_info: length, group, threshold (the group's reader sets its own), flags, padding, prefix.
      view.setUint16(at + 4, target.group, true);
      return putText(block, at + 12, target.prefix);
    case "mark":
      // struct xt_mark_tginfo2: mark = mark & ~mask ^ value.
      view.setUint32(at, target.value, true);
      return view.setUint32(at + 4, target.mask, true);
    case "noTrack":
      // struct xt_ct_target_info_v1.
      return view.setUint16(at, CT_NOTRACK, true);
    case "masquerade":
      // struct nf_nat_ipv4_multi_range_compat of one range, struct nf_nat_range: no addresses, no ports.
      if (family === 4) view.setUint32(at, 1, true);
      return;
    case "tcpReset":
      return view.setUint32(at, TCP_RESET[family], true);
    case "portUnreachable":
      return view.setUint32(at, PORT_UNREACHABLE[family], true);
    case "dnat": {
      // struct nf_nat_range2: flags, addresses and ports from and to, base port.
      const { address, port } = target;
      view.setUint32(at, MAP_ADDRESS_AND_PORT, true);
      putText(block, at + 4, address);
      putText(block, at + 20, address);
      view.setUint16(at + 36, port);
      view.setUint16(at + 38, port);
      return;
    }
  }
}

/** The head of a chain: an error target that carries its name, which is not there yet. Never reached by packets. */
export function encodeChainHead(family: Family): Uint8Array<ArrayBuffer> {
  const layout = LAYOUTS[family];
  const bytes = new Uint8Array(new ArrayBuffer(layout.headerBytes + ERROR_TARGET_BYTES));
  const view = new DataView(bytes.buffer);
  view.setUint16(layout.targetOffset, layout.headerBytes, true);
  view.setUint16(layout.nextOffset, bytes.length, true);
  view.setUint16(layout.headerBytes, ERROR_TARGET_BYTES, true);
  putText(bytes, layout.headerBytes + 2, "ERROR");
  return bytes;
}

/** @param at where the head begins */
export const nameChainHead = (bytes: Uint8Array, at: number, name: string, family: Family): void =>
  putText(bytes, at + LAYOUTS[family].headerBytes + EXTENSION_HEADER_BYTES, name);

/** What every chain ends with: a return, which is nobody's. */
export function encodeChainEnd(family: Family): Uint8Array<ArrayBuffer> {
  const bytes = encodeRule({ matches: [], target: RETURN }, family).bytes.slice();
  new DataView(bytes.buffer).setUint32(LAYOUTS[family].nfcache, 0, true);
  return bytes;
}
