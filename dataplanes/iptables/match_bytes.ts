/**
 * Matches of x_tables as bytes: for each its name, revision and data. Layouts: include/uapi/linux/netfilter, one header for each of them.
 * Revisions are those that `iptables` itself writes. Pure.
 */
import type { Family } from "../../src/model/address.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { type Block, LAYOUTS, putText } from "./entry_layout.ts";
import { type FlowState, type Match, MULTIPORT_MAX } from "./ruleset.ts";

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
export function matchBytes(match: Match): number {
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

export function matchName(match: Match, family: Family): string {
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

export const matchRevision = (match: Match): number =>
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

/** Into zeros, at `at`: what follows the extension's header. The index of a set is not known yet. */
export function writeMatch(block: Block, at: number, match: Match, family: Family): void {
  const { bytes, view } = block;
  switch (match.match) {
    case "set": {
      // struct xt_set_info_match_v4, xt_set.h: index, dimensions, flags; counters that are not asked for.
      bytes[at + 2] = match.ends.length;
      let flags = match.not ? IPSET_INVERT : 0;
      match.ends.forEach((end, i) => {
        if (end === "source") flags |= 2 << i;
      });
      bytes[at + 3] = flags;
      return;
    }
    case "ports":
      return isSingle(match) ? writeSingle(block, at, match) : writeMultiport(block, at, match);
    case "icmp":
      // struct ipt_icmp, ip6t_icmp: type, codes from and to, flags.
      bytes[at] = match.type;
      bytes[at + 1] = match.code ?? 0;
      bytes[at + 2] = match.code ?? 0xff;
      bytes[at + 3] = match.not ? 1 : 0;
      return;
    case "state":
      view.setUint16(at + 146, CONNTRACK_STATE, true);
      view.setUint16(at + 150, match.states.reduce((bits, state) => bits | STATE_BITS[state], 0), true);
      return;
    case "mark":
    case "flowMark":
      // struct xt_mark_mtinfo1 and xt_connmark_mtinfo1. Some bit set is: not all of them zero.
      view.setUint32(at + 4, match.mask, true);
      bytes[at + 8] = match.not ? 0 : 1;
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
      return writeRecent(block, at, family, match.list, 0, Recent.Set);
    case "remembered":
      return writeRecent(block, at, family, match.list, match.seconds, Recent.Update | Recent.Reap);
  }
}

/** struct xt_recent_mtinfo_v1: seconds, hits, what to do, invert, name, side (0: the source), mask. */
function writeRecent(
  { bytes, view }: Block,
  at: number,
  family: Family,
  list: string,
  seconds: number,
  action: number,
): void {
  view.setUint32(at, seconds, true);
  bytes[at + 8] = action;
  putText(bytes, at + Recent.name, list);
  bytes.fill(0xff, at + Recent.mask, at + Recent.mask + LAYOUTS[family].addressBytes);
}

/** struct xt_tcp, xt_udp: source ports from and to, destination ports from and to, host byte order. */
function writeSingle({ view }: Block, at: number, { end, ranges }: Extract<Match, { match: "ports" }>): void {
  const { first, last } = ranges[0]!;
  const mine = end === "source" ? at : at + 4, other = end === "source" ? at + 4 : at;
  view.setUint16(mine, first, true);
  view.setUint16(mine + 2, last, true);
  view.setUint16(other + 2, 0xffff, true);
}

/** struct xt_multiport_v1: flags, count, ports, which of them begin a range, invert. */
function writeMultiport({ bytes, view }: Block, at: number, { end, ranges }: Extract<Match, { match: "ports" }>): void {
  bytes[at] = end === "source" ? 0 : 1;
  let count = 0;
  for (const { first, last } of ranges) {
    view.setUint16(at + 2 + 2 * count, first, true);
    if (first !== last) {
      bytes[at + 2 + 2 * MULTIPORT_MAX + count] = 1;
      view.setUint16(at + 2 + 2 * ++count, last, true);
    }
    count++;
  }
  bytes[at + 1] = count;
}
