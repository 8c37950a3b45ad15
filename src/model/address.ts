/**
 * IP addresses and prefixes as packed strings.
 *
 * An `Address` is its 4 or 16 network-order bytes as one Latin-1 string; a `Cidr` is the same with the prefix length as
 * one more character (5 or 17). Packed strings are immutable, compare and sort as the bytes do, cost a few machine words
 * and can be keys of a Map. Text exists at the edges only: `parseAddress`, `formatAddress` and their Cidr twins.
 */
declare const addressBrand: unique symbol;
declare const cidrBrand: unique symbol;

/** 4 or 16 Latin-1 characters, one a byte, network order. */
export type Address = string & { readonly [addressBrand]: true };
/** An `Address` whose bits past the prefix are zero, then one character: the prefix length in bits. */
export type Cidr = string & { readonly [cidrBrand]: true };
export type Family = 4 | 6;

/** Thrown for text that is not an address, prefix or port; `found` is that text. */
export class AddressSyntaxError extends Error {
  override readonly name = "AddressSyntaxError";
  constructor(readonly found: string, readonly wanted: string) {
    super(`found ${JSON.stringify(found)}, wanted ${wanted}`);
  }
}

export const addressFamily = (address: Address): Family => address.length === 4 ? 4 : 6;
export const cidrFamily = (cidr: Cidr): Family => cidr.length === 5 ? 4 : 6;
export const familyBits = (family: Family): 32 | 128 => family === 4 ? 32 : 128;

/** @throws {AddressSyntaxError} RFC 4291 section 2.2 text for IPv6, strict dotted decimal for IPv4 */
export function parseAddress(text: string): Address {
  const packed = text.includes(":") ? packV6(text) : packV4(text);
  if (packed === undefined) throw new AddressSyntaxError(text, "an IPv4 or IPv6 address");
  return packed as Address;
}

/** Dotted decimal, or RFC 5952 canonical IPv6 text. */
export function formatAddress(address: Address): string {
  if (address.length === 4) {
    return `${address.charCodeAt(0)}.${address.charCodeAt(1)}.${address.charCodeAt(2)}.${address.charCodeAt(3)}`;
  }
  const words: number[] = [];
  for (let i = 0; i < 16; i += 2) words.push(address.charCodeAt(i) << 8 | address.charCodeAt(i + 1));
  // RFC 5952 4.2: the longest run of zero words, the first of equals, never a single one.
  let runStart = -1, runLength = 1;
  for (let i = 0; i < 8; i++) {
    let length = 0;
    while (i + length < 8 && words[i + length] === 0) length++;
    if (length > runLength) runStart = i, runLength = length;
    if (length > 0) i += length - 1;
  }
  const hex = (from: number, to: number) => words.slice(from, to).map((word) => word.toString(16)).join(":");
  if (runStart === 0 && runLength === 5 && words[5] === 0xffff) {
    return `::ffff:${formatAddress(address.slice(12) as Address)}`;
  }
  return runStart < 0 ? hex(0, 8) : `${hex(0, runStart)}::${hex(runStart + runLength, 8)}`;
}

/** Host bits are cleared; use `parseCidrStrict` where they must already be zero.
 * @throws {AddressSyntaxError} for anything but `address/length` or a bare address, which stands for its full length */
export function parseCidr(text: string): Cidr {
  const slash = text.indexOf("/");
  if (slash < 0) return hostCidr(parseAddress(text));
  const lengthText = text.slice(slash + 1);
  const length = /^(0|[1-9][0-9]{0,2})$/.test(lengthText) ? Number(lengthText) : -1;
  let address: Address;
  try {
    address = parseAddress(text.slice(0, slash));
  } catch {
    throw new AddressSyntaxError(text, "an IPv4 or IPv6 prefix such as 10.0.0.0/8 or fd00::/64");
  }
  const bits = address.length * 8;
  if (length < 0 || length > bits) throw new AddressSyntaxError(text, `a prefix length from 0 to ${bits}`);
  return makeCidr(address, length);
}

/** @throws {AddressSyntaxError} as `parseCidr`, and where bits past the prefix are set */
export function parseCidrStrict(text: string): Cidr {
  const cidr = parseCidr(text);
  const slash = text.indexOf("/");
  const address = parseAddress(slash < 0 ? text : text.slice(0, slash));
  if (cidrAddress(cidr) !== address) throw new AddressSyntaxError(text, `the network itself, ${formatCidr(cidr)}`);
  return cidr;
}

export const formatCidr = (cidr: Cidr): string => `${formatAddress(cidrAddress(cidr))}/${cidrPrefix(cidr)}`;
export const cidrAddress = (cidr: Cidr): Address => cidr.slice(0, -1) as Address;
export const cidrPrefix = (cidr: Cidr): number => cidr.charCodeAt(cidr.length - 1);
/** The address as a prefix of full length. */
export const hostCidr = (address: Address): Cidr => (address + String.fromCharCode(address.length * 8)) as Cidr;

/** The network of `address` with `prefix` bits; host bits cleared. */
export function makeCidr(address: Address, prefix: number): Cidr {
  return maskAddress(address, prefix) + String.fromCharCode(prefix) as Cidr;
}

export function maskAddress(address: Address, prefix: number): Address {
  const whole = prefix >> 3;
  if (whole >= address.length) return address;
  const edge = address.charCodeAt(whole) & (0xff00 >> (prefix & 7)) & 0xff;
  return (address.slice(0, whole) + String.fromCharCode(edge) + "\0".repeat(address.length - whole - 1)) as Address;
}

export function cidrContains(cidr: Cidr, address: Address): boolean {
  return cidr.length === address.length + 1 && samePrefix(cidr, address, cidrPrefix(cidr));
}

/** Whether the two prefixes share an address (one then holds the other). */
export function cidrsOverlap(a: Cidr, b: Cidr): boolean {
  return a.length === b.length && samePrefix(a, b, Math.min(cidrPrefix(a), cidrPrefix(b)));
}

/** Compares the first `bits` bits, without making strings: rules are matched with it. */
function samePrefix(a: string, b: string, bits: number): boolean {
  const whole = bits >> 3;
  for (let i = 0; i < whole; i++) if (a.charCodeAt(i) !== b.charCodeAt(i)) return false;
  return (bits & 7) === 0 || ((a.charCodeAt(whole) ^ b.charCodeAt(whole)) & 0xff00 >> (bits & 7)) === 0;
}

/** The last address of the prefix. */
export function cidrLast(cidr: Cidr): Address {
  const prefix = cidrPrefix(cidr);
  let text = "";
  for (let i = 0; i < cidr.length - 1; i++) {
    const bits = Math.max(0, Math.min(8, prefix - i * 8));
    text += String.fromCharCode(cidr.charCodeAt(i) | (0xff >> bits));
  }
  return text as Address;
}

export const addressToBigInt = (address: Address): bigint => {
  let value = 0n;
  for (let i = 0; i < address.length; i++) value = value << 8n | BigInt(address.charCodeAt(i));
  return value;
};

export function addressFromBigInt(value: bigint, family: Family): Address {
  const bytes: number[] = [];
  for (let shift = familyBits(family) - 8; shift >= 0; shift -= 8) bytes.push(Number(value >> BigInt(shift) & 0xffn));
  return String.fromCharCode(...bytes) as Address;
}

export function addressBytes(address: Address): Uint8Array {
  const bytes = new Uint8Array(new ArrayBuffer(address.length));
  for (let i = 0; i < address.length; i++) bytes[i] = address.charCodeAt(i);
  return bytes;
}

/** @throws {AddressSyntaxError} unless there are 4 or 16 bytes */
export function addressFromBytes(bytes: Uint8Array): Address {
  if (bytes.length !== 4 && bytes.length !== 16) throw new AddressSyntaxError(`${bytes.length} bytes`, "4 or 16 bytes");
  return String.fromCharCode(...bytes) as Address;
}

function packV4(text: string): string | undefined {
  const parts = text.split(".");
  if (parts.length !== 4) return undefined;
  for (const part of parts) if (!/^(0|[1-9][0-9]{0,2})$/.test(part) || Number(part) > 255) return undefined;
  // In one piece: a string grown by its characters is kept as a tree of them, at several times the size.
  return String.fromCharCode(...parts.map(Number));
}

function packV6(text: string): string | undefined {
  if (text.length > 45) return undefined;
  const halves = text.split("::");
  if (halves.length > 2) return undefined;
  const head = packWords(halves[0]!, halves.length === 1);
  const tail = halves.length === 2 ? packWords(halves[1]!, true) : [];
  if (head === undefined || tail === undefined) return undefined;
  const missing = 16 - head.length - tail.length;
  if (halves.length === 1 ? missing !== 0 : missing < 2) return undefined;
  return String.fromCharCode(...head, ...Array<number>(missing).fill(0), ...tail);
}

function packWords(text: string, mayEndInV4: boolean): number[] | undefined {
  if (text === "") return [];
  const words = text.split(":");
  const packed: number[] = [];
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!;
    if (mayEndInV4 && i === words.length - 1 && word.includes(".")) {
      const v4 = packV4(word);
      if (v4 === undefined) return undefined;
      for (let at = 0; at < v4.length; at++) packed.push(v4.charCodeAt(at));
    } else if (/^[0-9a-fA-F]{1,4}$/.test(word)) {
      const value = parseInt(word, 16);
      packed.push(value >> 8, value & 0xff);
    } else return undefined;
  }
  return packed;
}
