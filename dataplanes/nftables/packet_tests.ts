/** What base chains ask of a packet, and the small sets that they ask it by. Pure. */
import { PROTOCOLS } from "../../src/model/ports.ts";
import { ACCEPT, DROP, isFamily, isProtocol, verdict } from "./expressions.ts";
import {
  type ElementKey,
  elementsOf,
  type ElementValue,
  type Expression,
  interfaceKey,
  type KeyField,
  type NftSet,
  type Rule,
} from "./ruleset.ts";

/** Interfaces with this prefix are pods', known or not: architecture.md, "Names that the kernel sees". */
export const POD_PREFIX = "mx";
/** IFNAMSIZ of include/uapi/linux/if.h, less the terminator. */
export const INTERFACE_NAME_MAX = 15;

export const iifname = (dreg = 0): Expression => ({ op: "meta", key: "iifname", dreg });
export const oifname = (dreg = 0): Expression => ({ op: "meta", key: "oifname", dreg });
export const ctState = (dreg = 0): Expression => ({ op: "ct", key: "state", dreg });
export const lookup = (set: string, invert = false): Expression => ({ op: "lookup", set, sreg: 0, invert });
export const vmap = (set: string): Expression => ({ op: "vmap", set, sreg: 0 });
export const isPod = (
  load: Expression,
): readonly Expression[] => [load, { op: "cmp", sreg: 0, is: "eq", data: POD_PREFIX }];
export const isInterface = (load: Expression, name: string): readonly Expression[] => [
  load,
  { op: "cmp", sreg: 0, is: "eq", data: interfaceKey(name) },
];
/** NF_CT_STATE_BIT of include/uapi/linux/netfilter/nf_conntrack_common.h, as `ct state` gives them: host byte order. */
export const CT_STATE = {
  invalid: "\x01\0\0\0",
  established: "\x02\0\0\0",
  related: "\x04\0\0\0",
  untracked: "\x40\0\0\0",
} as const;

/** Established and related flows are through: of every packet asked first, so by the cheapest means there is. */
export const THROUGH: Rule = [
  ctState(),
  { op: "bitwise", sreg: 0, dreg: 0, mask: "\x06\0\0\0", xor: "\0\0\0\0" },
  { op: "cmp", sreg: 0, is: "neq", data: "\0\0\0\0" },
  verdict(ACCEPT),
];
export const isState = (state: keyof typeof CT_STATE): readonly Expression[] => [
  ctState(),
  { op: "cmp", sreg: 0, is: "eq", data: CT_STATE[state] },
];

/** A 32-bit number as registers hold it: host byte order. */
export const hostWord = (value: number): string =>
  String.fromCharCode(value & 0xff, value >>> 8 & 0xff, value >>> 16 & 0xff, value >>> 24);

export const tableSet = (
  fields: readonly KeyField[],
  entries: Iterable<readonly [ElementKey, ElementValue]>,
  kind: { readonly map?: boolean; readonly interval?: boolean } = {},
): NftSet => ({ fields, interval: kind.interval ?? false, map: kind.map ?? false, elements: elementsOf(entries) });

/** What is dropped before any policy: `nft list` shows how often. */
export const DROPPED: Rule = [{ op: "counter" }, verdict(DROP)];

/** Types 130 to 136: RFC 2710 and RFC 4861. A link without them has no IPv6, whatever ports are open. */
export const NEIGHBOUR_DISCOVERY: Rule = [
  ...isFamily(6),
  ...isProtocol(PROTOCOLS.ICMPv6),
  { op: "payload", base: "transport", offset: 0, length: 1, dreg: 0 },
  { op: "range", sreg: 0, is: "eq", from: "\x82", to: "\x88" },
  verdict(ACCEPT),
];
