/**
 * Expressions of nf_tables as the entry of legacy iptables that says the same, where a rule of ours can say it: so rules are compared in one
 * form, whoever wrote them. Newer versions of `iptables-nft` write some extensions as expressions of nf_tables' own: ports of TCP
 * and UDP, marks, limits and NFLOG. Pure.
 */
import type { Family } from "../../../src/model/address.ts";
import { PROTOCOLS } from "../../../src/model/ports.ts";
import type { WireExpression } from "../../../src/kernel/netlink/schema/nftables.ts";
import {
  EXTENSION_HEADER_BYTES,
  EXTENSION_NAME_BYTES,
  LAYOUTS,
  STANDARD_TARGET_BYTES,
  VERDICT,
} from "../entry_layout.ts";
import {
  ADDRESS_OFFSETS,
  COMPARE,
  F_PROTO_V6,
  INTERFACE_BYTES,
  Invert,
  META,
  NETWORK_HEADER,
  RANGE_EQ,
  REGISTER_VERDICT,
  TRANSPORT_HEADER,
  VERDICT_CODES,
} from "./wire.ts";

export interface DecodedRule {
  /** struct ipt_entry or ip6t_entry. A jump's place is 0. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Chain that it jumps or goes to. */
  readonly chain?: string;
}

type Field = "in" | "out" | "protocol" | "source" | "destination" | "sourcePort" | "destinationPort" | "mark";
interface Loaded {
  readonly field: Field;
  readonly length: number;
  readonly mask?: string;
  /** Of a comparison that a second one makes a range. */
  readonly from?: string;
}
interface Extension {
  readonly name: string;
  readonly revision: number;
  readonly info: Uint8Array;
}
/** NFT_RULE-wide: what a packet must be like, as far as it was read. */
interface Draft {
  readonly head: Uint8Array<ArrayBuffer>;
  readonly seen: Set<Field>;
  readonly matches: Extension[];
  target?: Extension;
  chain?: string;
}

/** XT_LIMIT_SCALE. */
const LIMIT_SCALE = 10_000n;
const STANDARD_INFO_BYTES = STANDARD_TARGET_BYTES - EXTENSION_HEADER_BYTES;

/** Undefined: no rule of ours is like that. */
export function entryOf(expressions: readonly WireExpression[], family: Family): DecodedRule | undefined {
  const draft: Draft = {
    head: new Uint8Array(new ArrayBuffer(LAYOUTS[family].headerBytes)),
    seen: new Set(),
    matches: [],
  };
  const registers = new Map<number, Loaded>();
  for (const { name, data, unknown } of expressions) {
    if (unknown !== undefined || data instanceof Uint8Array || data?.unknown !== undefined) return undefined;
    if (draft.target !== undefined) return undefined;
    if (!step(draft, registers, family, name ?? "", (data ?? {}) as Data)) return undefined;
  }
  // A rule that only counts goes on: no rule of ours does.
  return draft.target === undefined ? undefined : assemble(draft, draft.target, family);
}

/** The attributes of the expressions that are understood, whatever their names. */
interface Data {
  readonly dreg?: number;
  readonly sreg?: number;
  readonly key?: number;
  readonly base?: number;
  readonly offset?: number;
  readonly length?: number;
  readonly operation?: number;
  readonly mask?: { readonly value?: string };
  readonly xor?: { readonly value?: string };
  readonly from?: { readonly value?: string };
  readonly to?: { readonly value?: string };
  readonly data?: { readonly value?: string; readonly verdict?: { readonly code?: number; readonly chain?: string } };
  readonly name?: string;
  readonly revision?: number;
  readonly info?: Uint8Array;
  readonly rate?: bigint;
  readonly unitSeconds?: bigint;
  readonly burst?: number;
  readonly type?: number;
  readonly flags?: number;
  readonly group?: number;
  readonly prefix?: string;
  readonly snapLength?: number;
  readonly queueThreshold?: number;
  readonly level?: number;
  readonly packets?: bigint;
  readonly bytes?: bigint;
}

/** Whether it was understood. */
function step(draft: Draft, registers: Map<number, Loaded>, family: Family, name: string, data: Data): boolean {
  const loaded = registers.get(data.sreg ?? -1);
  switch (name) {
    case "counter": {
      // struct xt_counters: packets, bytes.
      const view = new DataView(draft.head.buffer), { counters } = LAYOUTS[family];
      view.setBigUint64(counters, data.packets ?? 0n, true);
      view.setBigUint64(counters + 8, data.bytes ?? 0n, true);
      return true;
    }
    case "meta": {
      const field = data.sreg === undefined ? META_FIELDS.get(data.key ?? -1) : undefined;
      if (field === undefined || data.dreg === undefined) return false;
      registers.set(data.dreg, { field, length: 0 });
      return true;
    }
    case "payload": {
      const { dreg, sreg, base, offset = -1, length = 0 } = data;
      const field = base === NETWORK_HEADER ? networkField(family, offset, length) : portField(base, offset, length);
      if (field === undefined || dreg === undefined || sreg !== undefined) return false;
      registers.set(dreg, { field, length });
      return true;
    }
    case "bitwise": {
      const mask = data.mask?.value;
      if (loaded === undefined || mask === undefined || data.dreg === undefined || (data.operation ?? 0) !== 0) {
        return false;
      }
      if (loaded.mask !== undefined || !/^\0*$/.test(data.xor?.value ?? "x")) return false;
      registers.set(data.dreg, { ...loaded, mask });
      return true;
    }
    case "cmp": {
      const value = data.data?.value;
      if (loaded === undefined || value === undefined) return false;
      if (data.operation === COMPARE.gte && loaded.from === undefined) {
        registers.set(data.sreg!, { ...loaded, from: value });
        return true;
      }
      if (data.operation === COMPARE.lte && loaded.from !== undefined) {
        return compareRange(draft, loaded, loaded.from, value);
      }
      if (loaded.from !== undefined || data.operation !== COMPARE.eq && data.operation !== COMPARE.neq) return false;
      return compare(draft, loaded, value, data.operation === COMPARE.neq, family);
    }
    case "range": {
      const from = data.from?.value, to = data.to?.value;
      if (loaded === undefined || from === undefined || to === undefined || data.operation !== RANGE_EQ) return false;
      return compareRange(draft, loaded, from, to);
    }
    case "match":
      if (data.name === undefined || data.info === undefined) return false;
      draft.matches.push({ name: data.name, revision: data.revision ?? 0, info: data.info });
      return true;
    case "limit":
      return limit(draft, data);
    case "target":
      if (data.name === undefined || data.info === undefined) return false;
      draft.target = { name: data.name, revision: data.revision ?? 0, info: data.info };
      return true;
    case "log":
      return log(draft, data);
    case "immediate":
      return data.dreg === REGISTER_VERDICT && verdict(draft, family, data.data?.verdict);
    default:
      return false;
  }
}

const META_FIELDS = new Map<number, Field>([
  [META.iifname, "in"],
  [META.oifname, "out"],
  [META.l4proto, "protocol"],
  [META.mark, "mark"],
]);

/** Of the IPv4 header: where the protocol is. */
const PROTOCOL_OFFSET_V4 = 9;

function networkField(family: Family, offset: number, length: number): Field | undefined {
  const { addressBytes } = LAYOUTS[family];
  if (family === 4 && offset === PROTOCOL_OFFSET_V4 && length === 1) return "protocol";
  if (length === 0 || length > addressBytes) return undefined;
  const [source, destination] = ADDRESS_OFFSETS[family];
  return offset === source ? "source" : offset === destination ? "destination" : undefined;
}

function portField(base: number | undefined, offset: number, length: number): Field | undefined {
  if (base !== TRANSPORT_HEADER || length !== 2) return undefined;
  return offset === 0 ? "sourcePort" : offset === 2 ? "destinationPort" : undefined;
}

function compare(draft: Draft, { field, length, mask }: Loaded, value: string, not: boolean, family: Family): boolean {
  const { head, seen } = draft;
  const layout = LAYOUTS[family];
  const view = new DataView(head.buffer);
  const invert = (flag: number) => not && (head[layout.invertFlags]! |= flag);
  if (field === "sourcePort" || field === "destinationPort") {
    return mask === undefined && !not && compareRange(draft, { field, length }, value, value);
  }
  if (field === "mark") {
    if (value.length !== 4 || (mask?.length ?? 4) !== 4) return false;
    // struct xt_mark_mtinfo1; registers are in host byte order.
    const info = new Uint8Array(16);
    put(info, 0, value);
    put(info, 4, mask ?? "\xff\xff\xff\xff");
    info[8] = not ? 1 : 0;
    draft.matches.push({ name: "mark", revision: 1, info });
    return true;
  }
  if (seen.has(field)) return false;
  seen.add(field);
  switch (field) {
    case "in":
    case "out": {
      const end = value.indexOf("\0");
      const name = end < 0 ? value : value.slice(0, end);
      if (mask !== undefined || name === "" || name.length >= INTERFACE_BYTES) return false;
      const at = layout.interfaces + (field === "in" ? 0 : INTERFACE_BYTES);
      put(head, at, end < 0 ? `${name}+` : name);
      head.fill(0xff, at + 2 * INTERFACE_BYTES, at + 2 * INTERFACE_BYTES + name.length + (end < 0 ? 0 : 1));
      invert(field === "in" ? Invert.In : Invert.Out);
      return true;
    }
    case "protocol":
      if (mask !== undefined || value.length !== 1) return false;
      view.setUint16(layout.protocol, value.charCodeAt(0), true);
      if (family === 6) head[layout.flags]! |= F_PROTO_V6;
      invert(Invert.Protocol);
      return true;
    case "source":
    case "destination": {
      if (value.length !== length || (mask?.length ?? length) !== length) return false;
      const at = field === "source" ? 0 : layout.addressBytes;
      put(head, at, value);
      put(head, at + 2 * layout.addressBytes, mask ?? "\xff".repeat(length));
      invert(field === "source" ? Invert.Source : Invert.Destination);
      return true;
    }
  }
}

/** struct xt_tcp and xt_udp: source ports from and to, destination ports from and to, host byte order; padded. */
const PORT_MATCHES: Readonly<Record<number, { readonly name: string; readonly bytes: number }>> = {
  [PROTOCOLS.TCP]: { name: "tcp", bytes: 16 },
  [PROTOCOLS.UDP]: { name: "udp", bytes: 16 },
};

function compareRange(draft: Draft, { field, mask }: Loaded, from: string, to: string): boolean {
  if (field !== "sourcePort" && field !== "destinationPort" || mask !== undefined) return false;
  const kind = PORT_MATCHES[draft.seen.has("protocol") ? protocolOf(draft.head) : 0];
  if (kind === undefined || from.length !== 2 || to.length !== 2) return false;
  const info = new Uint8Array(kind.bytes);
  const view = new DataView(info.buffer);
  const [mine, other] = field === "sourcePort" ? [0, 4] : [4, 0];
  view.setUint16(mine, from.charCodeAt(0) << 8 | from.charCodeAt(1), true);
  view.setUint16(mine + 2, to.charCodeAt(0) << 8 | to.charCodeAt(1), true);
  view.setUint16(other + 2, 0xffff, true);
  draft.matches.push({ name: kind.name, revision: 0, info });
  return true;
}

/** 0: of any protocol, or of all others. */
function protocolOf(head: Uint8Array<ArrayBuffer>): number {
  const layout = head.length === LAYOUTS[4].headerBytes ? LAYOUTS[4] : LAYOUTS[6];
  return (head[layout.invertFlags]! & Invert.Protocol) !== 0 ? 0 : head[layout.protocol]!;
}

/** struct xt_rateinfo: its average is in 1 / XT_LIMIT_SCALE seconds a packet. */
function limit(draft: Draft, { rate = 0n, unitSeconds = 0n, burst = 0, type = 0, flags = 0 }: Data): boolean {
  if (rate === 0n || type !== 0 || flags !== 0) return false;
  const info = new Uint8Array(40);
  const view = new DataView(info.buffer);
  view.setUint32(0, Number(LIMIT_SCALE * unitSeconds / rate), true);
  view.setUint32(4, burst, true);
  draft.matches.push({ name: "limit", revision: 0, info });
  return true;
}

/** Of struct xt_nflog_info. */
const NFLOG_BYTES = 80;
const NFLOG_PREFIX_BYTES = 64;

function log(
  draft: Draft,
  { group, prefix = "", snapLength = 0, queueThreshold = 0, level, flags = 0 }: Data,
): boolean {
  if (group === undefined || level !== undefined || flags !== 0 || prefix.length >= NFLOG_PREFIX_BYTES) return false;
  const info = new Uint8Array(NFLOG_BYTES);
  const view = new DataView(info.buffer);
  view.setUint32(0, snapLength, true);
  view.setUint16(4, group, true);
  view.setUint16(6, queueThreshold, true);
  put(info, 12, prefix);
  draft.target = { name: "NFLOG", revision: 0, info };
  return true;
}

const VERDICTS = new Map<number | undefined, number>([
  [VERDICT_CODES.accept, VERDICT.accept],
  [VERDICT_CODES.drop, VERDICT.drop],
  [VERDICT_CODES.return, VERDICT.return],
]);

function verdict(
  draft: Draft,
  family: Family,
  found: { readonly code?: number; readonly chain?: string } | undefined,
): boolean {
  const info = new Uint8Array(STANDARD_INFO_BYTES);
  const leads = found?.code === VERDICT_CODES.jump || found?.code === VERDICT_CODES.goto;
  const code = leads ? 0 : VERDICTS.get(found?.code);
  if (code === undefined) return false;
  new DataView(info.buffer).setInt32(0, code, true);
  if (leads) {
    if (found.chain === undefined) return false;
    draft.chain = found.chain;
    const { flags, gotoFlag } = LAYOUTS[family];
    if (found.code === VERDICT_CODES.goto) draft.head[flags]! |= gotoFlag;
  }
  draft.target = { name: "", revision: 0, info };
  return true;
}

function assemble({ head, matches, chain }: Draft, target: Extension, family: Family): DecodedRule | undefined {
  const layout = LAYOUTS[family];
  const all = [...matches, target];
  if (all.some(({ name }) => name.length >= EXTENSION_NAME_BYTES)) return undefined;
  const sizes = all.map(({ info }) => EXTENSION_HEADER_BYTES + (info.length + 7 & ~7));
  const size = sizes.reduce((sum, one) => sum + one, layout.headerBytes);
  const bytes = new Uint8Array(new ArrayBuffer(size));
  const view = new DataView(bytes.buffer);
  bytes.set(head);
  view.setUint16(layout.targetOffset, size - sizes.at(-1)!, true);
  view.setUint16(layout.nextOffset, size, true);
  let at = layout.headerBytes;
  all.forEach(({ name, revision, info }, i) => {
    view.setUint16(at, sizes[i]!, true);
    put(bytes, at + 2, name);
    bytes[at + 2 + EXTENSION_NAME_BYTES] = revision;
    bytes.set(info, at + EXTENSION_HEADER_BYTES);
    at += sizes[i]!;
  });
  return chain === undefined ? { bytes } : { bytes, chain };
}

function put(bytes: Uint8Array, at: number, text: string): void {
  for (let i = 0; i < text.length; i++) bytes[at + i] = text.charCodeAt(i);
}
