/** Sets of small whole numbers as words of 32 bits: for asking one question about thousands of things at once. */
export type Bits = Uint32Array;

export const noBits = (size: number): Bits => new Uint32Array(size + 31 >>> 5);

export function allBits(size: number): Bits {
  const bits = noBits(size).fill(0xffffffff);
  if ((size & 31) !== 0) bits[bits.length - 1] = (1 << (size & 31)) - 1;
  return bits;
}

export const hasBit = (bits: Bits, at: number): boolean => (bits[at >>> 5]! >>> (at & 31) & 1) !== 0;
export const setBit = (bits: Bits, at: number): void => void (bits[at >>> 5]! |= 1 << (at & 31));

export function isEmpty(bits: Bits): boolean {
  for (let i = 0; i < bits.length; i++) if (bits[i] !== 0) return false;
  return true;
}

export function sameBits(a: Bits, b: Bits): boolean {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** In both. */
export function andBits(a: Bits, b: Bits): Bits {
  const both = new Uint32Array(a.length);
  for (let i = 0; i < a.length; i++) both[i] = a[i]! & b[i]!;
  return both;
}

/** In `a` and not in `b`. */
export function withoutBits(a: Bits, b: Bits): Bits {
  const rest = new Uint32Array(a.length);
  for (let i = 0; i < a.length; i++) rest[i] = a[i]! & ~b[i]!;
  return rest;
}

/** Adds all of `b` to `a`. */
export function addBits(a: Bits, b: Bits): void {
  for (let i = 0; i < a.length; i++) a[i]! |= b[i]!;
}

/** Takes those of `which` that are in `from` out of it, and adds them to `to`. */
export function moveBits(which: Bits, from: Bits, to: Bits): void {
  for (let i = 0; i < which.length; i++) {
    const moved = which[i]! & from[i]!;
    if (moved === 0) continue;
    from[i]! ^= moved;
    to[i]! |= moved;
  }
}
