/**
 * Where in struct ipt_entry and ip6t_entry things are, and what stands around the data of their extensions. Layouts:
 * include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h and netfilter/x_tables.h. Pure.
 */
import type { Family } from "../../src/model/address.ts";

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
/** Standard verdicts as x_tables has them: -NF_ACCEPT - 1, -NF_DROP - 1, XT_RETURN (-NF_REPEAT - 1). */
export const VERDICT = { accept: -2, drop: -1, return: -5 } as const;

/**
 * We mark what is ours by nfcache, which the kernel keeps and neither it nor any tool looks at: a rule of somebody else in a
 * chain of ours can so be told from one that an earlier version of us has written.
 */
export const OWN_MARK = 0x6d616e78;

/** Many entries, one behind the other. */
export interface Block {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Of the same bytes. */
  readonly view: DataView;
}

/** XT_ALIGN: sizes of entries and of their extensions. */
export const align = (size: number): number => size + 7 & ~7;

/** Latin-1, without a terminator: what follows is zero already. */
export function putText(bytes: Uint8Array, at: number, text: string): void {
  for (let i = 0; i < text.length; i++) bytes[at + i] = text.charCodeAt(i);
}
