/** Tables as values: what `render.ts` makes, and what is printed, encoded and traced. */
import type { Address, Cidr, Family } from "../../src/model/address.ts";
import type { Cause } from "../../src/model/flat_list.ts";
import type { PortRange } from "../../src/model/ports.ts";

export type End = "source" | "destination";
export type TableName = "raw" | "mangle" | "nat" | "filter";
export const TABLES: readonly TableName[] = ["raw", "mangle", "nat", "filter"];
export type FlowState = "invalid" | "established" | "related" | "new" | "untracked";

export type Match =
  /** 1 … 255; 0 stands for all in x_tables, and is never written. */
  | { readonly match: "protocol"; readonly protocol: number; readonly not: boolean }
  | { readonly match: "net"; readonly end: End; readonly net: Cidr; readonly not: boolean }
  /** `prefix`: every name that begins so. */
  | { readonly match: "interface"; readonly way: "in" | "out"; readonly name: string; readonly prefix: boolean }
  /** By name; each dimension is the packet's source or destination. */
  | { readonly match: "set"; readonly set: string; readonly ends: readonly End[]; readonly not: boolean }
  /** Beside a protocol that has ports. At most 15 numbers, a range counts as two. */
  | { readonly match: "ports"; readonly protocol: number; readonly end: End; readonly ranges: readonly PortRange[] }
  /** Beside the family's own ICMP. */
  | { readonly match: "icmp"; readonly type: number; readonly code: number | null; readonly not: boolean }
  | { readonly match: "state"; readonly states: readonly FlowState[] }
  /** Some bit of `mask` is set in the packet's mark, or that of its flow; with `not`, none. */
  | { readonly match: "mark" | "flowMark"; readonly mask: number; readonly not: boolean }
  | { readonly match: "limit"; readonly perSecond: number; readonly burst: number }
  /** Whether the address is one of the node's own. */
  | { readonly match: "local"; readonly end: End; readonly not: boolean }
  /** Its destination was translated. */
  | { readonly match: "translated" }
  /** Of 2³¹. */
  | { readonly match: "chance"; readonly of31Bits: number }
  /**
   * `remember`: always holds, and the packet's source is in the list of this name from now on. `remembered`: it has come there within so
   * many seconds, which begin anew.
   */
  | { readonly match: "remember"; readonly list: string }
  | { readonly match: "remembered"; readonly list: string; readonly seconds: number };

export type Target =
  | { readonly target: "accept" | "drop" | "return" }
  | { readonly target: "jump" | "goto"; readonly chain: string }
  | { readonly target: "log"; readonly group: number; readonly prefix: string }
  /** Sets the bits of `mask` to those of `value`. */
  | { readonly target: "mark"; readonly value: number; readonly mask: number }
  | { readonly target: "noTrack" }
  | { readonly target: "masquerade" }
  | { readonly target: "tcpReset" | "portUnreachable" }
  /** Beside a protocol that has ports. */
  | { readonly target: "dnat"; readonly address: Address; readonly port: number };

export interface Rule {
  readonly matches: readonly Match[];
  readonly target: Target;
  /** What the rule's counter counts: packets that these have decided. Absent: nothing that anybody asks for. */
  readonly causes?: readonly Cause[];
}

/** One table of one family: our chains by name, and where they are jumped to from. */
export interface Table {
  readonly family: Family;
  readonly table: TableName;
  readonly chains: ReadonlyMap<string, readonly Rule[]>;
  /** Built-in chain → the chain of ours that it jumps to. */
  readonly hooks: ReadonlyMap<string, string>;
}

/** An ip set: what it holds, and how that changes. */
export interface AddressSetContent {
  /** As `addMembers` of the ipset schema takes them. */
  readonly has: (member: string) => boolean;
  readonly forEach: (visit: (member: string) => void) => void;
  /** All members one after another, of kind `net` and of equal length; undefined where they are to be had by `forEach` only. Once. */
  readonly packed?: () => Uint8Array | undefined;
  /** Members that `previous` and this do not share; undefined where that is not known without comparing. */
  readonly changesSince: (previous: AddressSetContent) => Iterable<string> | undefined;
}

export interface IpSet {
  readonly kind: "net" | "port" | "interface";
  readonly family: Family;
  readonly content: AddressSetContent;
}

export interface Ruleset {
  /** Tables that have something of ours; an unchanged one is the same object. */
  readonly tables: readonly Table[];
  /** By name. */
  readonly sets: ReadonlyMap<string, IpSet>;
}

export const RETURN: Target = { target: "return" };
export const DROP: Target = { target: "drop" };
export const ACCEPT: Target = { target: "accept" };
export const goto = (chain: string): Target => ({ target: "goto", chain });
export const jump = (chain: string): Target => ({ target: "jump", chain });
export const rule = (target: Target, ...matches: readonly Match[]): Rule => ({ matches, target });
export const inState = (...states: readonly FlowState[]): Match => ({ match: "state", states });
/** Their first packet has been judged. */
export const KNOWN_FLOWS = rule(RETURN, inState("established", "related"));
export const INVALID_FLOWS = rule(DROP, inState("invalid"));

/** Everything of ours begins so: chains and sets. */
export const OURS = "manx-";
/** XT_FUNCTION_MAXNAMELEN (30) of x_tables.h, less the terminator; `iptables` itself takes one less. */
export const CHAIN_NAME_MAX_BYTES = 28;

/** The chains that the kernel has of a table, in the order of their hooks (enum nf_inet_hooks). */
export const HOOK_NAMES = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"] as const;

/** Numbers that a multiport match takes: XT_MULTI_PORTS. */
export const MULTIPORT_MAX = 15;
