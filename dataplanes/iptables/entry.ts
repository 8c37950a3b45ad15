/**
 * Rules as the kernel has them: struct ipt_entry and ip6t_entry, with their matches and target, and what chains begin and end with. Pure but
 * for the buffers that rules share.
 */
import { type Cidr, cidrPrefix, type Family } from "../../src/model/address.ts";
import {
  align,
  type Block,
  type EntryLayout,
  ERROR_TARGET_BYTES,
  EXTENSION_HEADER_BYTES,
  EXTENSION_NAME_BYTES,
  LAYOUTS,
  OWN_MARK,
  putText,
} from "./entry_layout.ts";
import { matchBytes, matchName, matchRevision, writeMatch } from "./match_bytes.ts";
import { type Match, RETURN, type Rule } from "./ruleset.ts";
import { targetBytes, targetName, targetRevision, writeTarget } from "./target_bytes.ts";

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

/** Rules are small and many: they share buffers, and one view of each. */
const BLOCK_BYTES = 256 * 1024;
let block = newBlock();
let used = 0;

function newBlock(): Block {
  const bytes = new Uint8Array(new ArrayBuffer(BLOCK_BYTES));
  return { bytes, view: new DataView(bytes.buffer) };
}

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
    block = newBlock();
    used = 0;
  }
  const { bytes, view } = block;
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
    writeMatch(block, at + EXTENSION_HEADER_BYTES, match, family);
    if (match.match === "set") (sets ??= []).push({ offset: at + EXTENSION_HEADER_BYTES - start, set: match.set });
    at += EXTENSION_HEADER_BYTES + align(dataBytes);
  }
  putExtension(at, targetBytes(target, family), targetName(target), targetRevision(target));
  writeTarget(block, at + EXTENSION_HEADER_BYTES, target, family);
  if (target.target === "goto") bytes[start + layout.flags]! |= layout.gotoFlag;
  view.setUint32(start + layout.nfcache, OWN_MARK, true);
  view.setUint16(start + layout.targetOffset, targetOffset, true);
  view.setUint16(start + layout.nextOffset, size, true);
  const chain = target.target === "jump" || target.target === "goto" ? target.chain : undefined;
  return new EncodedRule(bytes, start, size, chain, sets ?? NO_SETS, causes);
}

function putExtension(at: number, dataBytes: number, name: string, revision: number): void {
  const { bytes, view } = block;
  view.setUint16(at, EXTENSION_HEADER_BYTES + align(dataBytes), true);
  putText(bytes, at + 2, name);
  bytes[at + 2 + EXTENSION_NAME_BYTES] = revision;
}

// ------------------------------------------------------------------------------------------------- fields of the entry

/** IFNAMSIZ. */
const INTERFACE_BYTES = 16;

/** IPT_INV_*; the same for both families. */
const Invert = { Source: 0x08, Destination: 0x10, Protocol: 0x40 } as const;
/** IP6T_F_PROTO: without it the protocol is not looked at. */
const F_PROTO_V6 = 1;

function writeField(start: number, layout: EntryLayout, match: Match, family: Family): void {
  const { bytes, view } = block;
  switch (match.match) {
    case "protocol":
      view.setUint16(start + layout.protocol, match.protocol, true);
      if (family === 6) bytes[start + layout.flags]! |= F_PROTO_V6;
      if (match.not) bytes[start + layout.invertFlags]! |= Invert.Protocol;
      return;
    case "net": {
      const { addressBytes } = layout;
      const at = start + (match.end === "source" ? 0 : addressBytes);
      for (let i = 0; i < addressBytes; i++) bytes[at + i] = match.net.charCodeAt(i);
      putMask(bytes, at + 2 * addressBytes, match.net);
      if (match.not) bytes[start + layout.invertFlags]! |= match.end === "source" ? Invert.Source : Invert.Destination;
      return;
    }
    case "interface": {
      const at = start + layout.interfaces + (match.way === "in" ? 0 : INTERFACE_BYTES);
      putText(bytes, at, match.prefix ? `${match.name}+` : match.name);
      // The terminator is compared as well, but where every name that begins so is meant.
      const compared = match.name.length + (match.prefix ? 0 : 1);
      bytes.fill(0xff, at + 2 * INTERFACE_BYTES, at + 2 * INTERFACE_BYTES + compared);
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

// ----------------------------------------------------------------------------------------------------- ends of chains

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
