/** Addresses and prefixes as numbers. */
import { refuse } from "./manifest.ts";

export type Family = 4 | 6;

export interface Address {
  readonly family: Family;
  readonly bits: bigint;
}

/** All addresses that share the first `length` bits. */
export interface Net extends Address {
  readonly length: number;
}

const WIDTH = { 4: 32, 6: 128 } as const;

export function readAddress(text: string, where: string): Address {
  const bits4 = bitsOfV4(text);
  if (bits4 !== undefined) return { family: 4, bits: bits4 };
  const bits6 = bitsOfV6(text);
  if (bits6 !== undefined) return { family: 6, bits: bits6 };
  return refuse(where, text, "an IPv4 or IPv6 address");
}

/** `10.0.0.0/8`; an address alone is a prefix of full length. */
export function readNet(text: string, where: string): Net {
  const [head, tail, ...more] = text.split("/");
  const address = readAddress(head!, where);
  if (tail === undefined) return { ...address, length: WIDTH[address.family] };
  const length = /^\d{1,3}$/.test(tail) && more.length === 0 ? Number(tail) : Infinity;
  return length <= WIDTH[address.family] ? { ...address, length } : refuse(where, text, "an address/length");
}

export function holds(net: Net, address: Address): boolean {
  if (net.family !== address.family) return false;
  const hostBits = BigInt(WIDTH[net.family] - net.length);
  return net.bits >> hostBits === address.bits >> hostBits;
}

export const sameAddress = (a: Address, b: Address): boolean => a.family === b.family && a.bits === b.bits;

function bitsOfV4(text: string): bigint | undefined {
  const parts = text.split(".");
  if (parts.length !== 4 || parts.some((part) => !/^\d{1,3}$/.test(part) || Number(part) > 255)) return undefined;
  return parts.reduce((bits, part) => bits << 8n | BigInt(part), 0n);
}

function bitsOfV6(text: string): bigint | undefined {
  const halves = text.split("::");
  if (halves.length > 2) return undefined;
  const [front, back] = halves.map(groupsOf);
  if (front === undefined || (halves.length === 2 && back === undefined)) return undefined;
  const missing = 8 - front.length - (back?.length ?? 0);
  if (back === undefined ? missing !== 0 : missing < 1) return undefined;
  const groups = [...front, ...new Array<number>(missing).fill(0), ...(back ?? [])];
  return groups.reduce((bits, group) => bits << 16n | BigInt(group), 0n);
}

/** The 16-bit groups between two `::`; the last 32 bits may stand as an IPv4 address. */
function groupsOf(text: string): number[] | undefined {
  if (text === "") return [];
  const groups: number[] = [];
  const parts = text.split(":");
  for (const [i, part] of parts.entries()) {
    const bits4 = i === parts.length - 1 ? bitsOfV4(part) : undefined;
    if (bits4 !== undefined) groups.push(Number(bits4 >> 16n), Number(bits4 & 0xffffn));
    else if (/^[0-9a-f]{1,4}$/i.test(part)) groups.push(parseInt(part, 16));
    else return undefined;
  }
  return groups;
}
