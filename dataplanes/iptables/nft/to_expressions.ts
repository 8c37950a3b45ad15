/**
 * A rule as `entry.ts` encodes it, as expressions of nf_tables in the order in which `iptables-nft` writes them: fields of the entry as
 * payload, meta and cmp, every extension as `match` or `target`, a counter, the verdict. Pure.
 */
import type { Family } from "../../../src/model/address.ts";
import { encodeExpressions, type RawRule } from "../../../src/kernel/netlink/schema/nftables_compat.ts";
import type { WireExpression } from "../../../src/kernel/netlink/schema/nftables.ts";
import type { EncodedRule } from "../entry.ts";
import { EXTENSION_HEADER_BYTES, EXTENSION_NAME_BYTES, LAYOUTS, VERDICT } from "../entry_layout.ts";
import {
  ADDRESS_OFFSETS,
  COMPARE,
  INTERFACE_BYTES,
  Invert,
  META,
  NETWORK_HEADER,
  REGISTER,
  REGISTER_VERDICT,
  VERDICT_CODES,
} from "./wire.ts";

/** What a rule has counted. */
export interface Counts {
  readonly packets: bigint;
  readonly bytes: bigint;
}
const NONE: Counts = { packets: 0n, bytes: 0n };

/** @param counts what it begins with. @throws {Error} for a set that there is not */
export function expressionsOf(
  rule: EncodedRule,
  family: Family,
  indexOf: (set: string) => number,
  { packets, bytes: counted }: Counts = NONE,
): RawRule {
  const layout = LAYOUTS[family];
  const bytes = rule.sets.length === 0 ? rule.bytes : rule.bytes.slice();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (const { offset, set } of rule.sets) view.setUint16(offset, indexOf(set), true);
  const inverted = bytes[layout.invertFlags]!;
  const all: WireExpression[] = [];

  const { interfaces, addressBytes } = layout;
  for (const [index, key, flag] of [[0, META.iifname, Invert.In], [1, META.oifname, Invert.Out]] as const) {
    const at = interfaces + index * INTERFACE_BYTES;
    const compared = ones(bytes, at + 2 * INTERFACE_BYTES);
    if (compared > 0) all.push(load(key), compare((inverted & flag) !== 0, latin1(bytes, at, at + compared)));
  }
  const number = view.getUint16(layout.protocol, true);
  const protocol = number === 0 ? undefined : { number, not: (inverted & Invert.Protocol) !== 0 };
  if (protocol !== undefined) all.push(load(META.l4proto), compare(protocol.not, String.fromCharCode(number)));
  for (const [index, flag] of [[0, Invert.Source], [1, Invert.Destination]] as const) {
    const at = index * addressBytes;
    const address = latin1(bytes, at, at + addressBytes);
    const mask = latin1(bytes, at + 2 * addressBytes, at + 3 * addressBytes);
    const not = (inverted & flag) !== 0;
    if (not || !isZero(mask)) all.push(...addressMatch(ADDRESS_OFFSETS[family][index], address, mask, not));
  }

  const targetAt = view.getUint16(layout.targetOffset, true);
  let extensions = false;
  for (let at = layout.headerBytes; at < targetAt; at += view.getUint16(at, true)) {
    all.push({ name: "match", data: extensionAt(bytes, view, at) });
    extensions = true;
  }
  all.push({ name: "counter", data: { bytes: counted, packets } });
  const target = extensionAt(bytes, view, targetAt);
  if (target.name !== "") {
    all.push({ name: "target", data: target });
    extensions = true;
  } else {
    const isGoto = (bytes[layout.flags]! & layout.gotoFlag) !== 0;
    const verdict = rule.chain === undefined
      ? { code: VERDICTS.get(view.getInt32(targetAt + EXTENSION_HEADER_BYTES, true))! }
      : { code: isGoto ? VERDICT_CODES.goto : VERDICT_CODES.jump, chain: rule.chain };
    all.push({ name: "immediate", data: { dreg: REGISTER_VERDICT, data: { verdict } } });
  }
  const expressions = encodeExpressions(all);
  return extensions && protocol !== undefined ? { expressions, protocol } : { expressions };
}

const VERDICTS = new Map<number, number>([
  [VERDICT.accept, VERDICT_CODES.accept],
  [VERDICT.drop, VERDICT_CODES.drop],
  [VERDICT.return, VERDICT_CODES.return],
]);

const load = (key: number): WireExpression => ({ name: "meta", data: { dreg: REGISTER, key } });
const compare = (not: boolean, value: string): WireExpression => ({
  name: "cmp",
  data: { sreg: REGISTER, operation: not ? COMPARE.neq : COMPARE.eq, data: { value } },
});

/** Whole bytes of a prefix are loaded alone; others are masked. */
function addressMatch(offset: number, address: string, mask: string, not: boolean): readonly WireExpression[] {
  let whole = 0;
  while (whole < mask.length && mask.charCodeAt(whole) === 0xff) whole++;
  const isMasked = whole === 0 || whole < mask.length && !isZero(mask.slice(whole));
  const length = isMasked ? mask.length : whole;
  const value = isMasked ? and(address, mask) : address.slice(0, length);
  const zeros = "\0".repeat(length);
  return [
    { name: "payload", data: { dreg: REGISTER, base: NETWORK_HEADER, offset, length } },
    ...!isMasked ? [] : [{
      name: "bitwise",
      data: { sreg: REGISTER, dreg: REGISTER, length, mask: { value: mask }, xor: { value: zeros } },
    }],
    compare(not, value),
  ];
}

/** struct xt_entry_match and xt_entry_target. */
function extensionAt(bytes: Uint8Array<ArrayBuffer>, view: DataView, at: number) {
  const size = view.getUint16(at, true);
  let end = at + 2;
  while (end < at + 2 + EXTENSION_NAME_BYTES && bytes[end] !== 0) end++;
  return {
    name: latin1(bytes, at + 2, end),
    revision: bytes[at + 2 + EXTENSION_NAME_BYTES]!,
    info: bytes.subarray(at + EXTENSION_HEADER_BYTES, at + size),
  };
}

function ones(bytes: Uint8Array, at: number): number {
  let count = 0;
  while (count < INTERFACE_BYTES && bytes[at + count] === 0xff) count++;
  return count;
}

const latin1 = (bytes: Uint8Array, start: number, end: number): string =>
  String.fromCharCode(...bytes.subarray(start, end));
const isZero = (text: string): boolean => /^\0*$/.test(text);
const and = (one: string, other: string): string =>
  Array.from(one, (char, i) => String.fromCharCode(char.charCodeAt(0) & other.charCodeAt(i))).join("");
