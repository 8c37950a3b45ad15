/**
 * SHA-256 (FIPS 180-4) over text, in plain arithmetic: identities that are the same on every node and after every restart.
 * Cryptographic, because whoever writes selectors must not be able to choose two with one identity.
 */
const ROUND_CONSTANTS = constants(64, 3);
const INITIAL = constants(8, 2);
const ALPHABET = "abcdefghijklmnopqrstuvwxyz234567";
const DIGEST_BITS = 120;

const encoder = new TextEncoder();

/** The first 120 bits of the SHA-256 of the UTF-8 text, as 24 characters of `a-z2-7` (RFC 4648 base32, lower case). */
export function digest(text: string): string {
  const state = sha256(encoder.encode(text));
  let out = "", pending = 0, bits = 0;
  for (let at = 0; at < DIGEST_BITS / 8; at++) {
    pending = (pending << 8 | state[at >> 2]! >>> 24 - (at & 3) * 8 & 0xff) & 0xffff;
    for (bits += 8; bits >= 5; bits -= 5) out += ALPHABET[pending >>> bits - 5 & 31];
  }
  return out;
}

/** The hash as eight 32-bit words. */
export function sha256(message: Uint8Array): Int32Array {
  const state = Int32Array.from(INITIAL);
  const schedule = new Int32Array(64);
  const whole = message.length & ~63;
  for (let at = 0; at < whole; at += 64) addBlock(state, schedule, message, at);
  // FIPS 180-4 5.1.1: a one bit, zeros, and the length in bits as 64 bits close the last block.
  const rest = message.length - whole;
  const tail = new Uint8Array(rest < 56 ? 64 : 128);
  tail.set(message.subarray(whole));
  tail[rest] = 0x80;
  const view = new DataView(tail.buffer);
  view.setUint32(tail.length - 8, Math.floor(message.length / 0x20000000));
  view.setUint32(tail.length - 4, message.length << 3);
  for (let at = 0; at < tail.length; at += 64) addBlock(state, schedule, tail, at);
  return state;
}

function addBlock(state: Int32Array, w: Int32Array, bytes: Uint8Array, at: number): void {
  for (let i = 0; i < 16; i++, at += 4) {
    w[i] = bytes[at]! << 24 | bytes[at + 1]! << 16 | bytes[at + 2]! << 8 | bytes[at + 3]!;
  }
  for (let i = 16; i < 64; i++) {
    const x = w[i - 15]!, y = w[i - 2]!;
    const s0 = (x >>> 7 | x << 25) ^ (x >>> 18 | x << 14) ^ x >>> 3;
    const s1 = (y >>> 17 | y << 15) ^ (y >>> 19 | y << 13) ^ y >>> 10;
    w[i] = w[i - 16]! + s0 + w[i - 7]! + s1 | 0;
  }
  let a = state[0]!, b = state[1]!, c = state[2]!, d = state[3]!;
  let e = state[4]!, f = state[5]!, g = state[6]!, h = state[7]!;
  for (let i = 0; i < 64; i++) {
    const s1 = (e >>> 6 | e << 26) ^ (e >>> 11 | e << 21) ^ (e >>> 25 | e << 7);
    const t1 = h + s1 + (e & f ^ ~e & g) + ROUND_CONSTANTS[i]! + w[i]! | 0;
    const s0 = (a >>> 2 | a << 30) ^ (a >>> 13 | a << 19) ^ (a >>> 22 | a << 10);
    const t2 = s0 + (a & b ^ a & c ^ b & c) | 0;
    h = g, g = f, f = e, e = d + t1 | 0, d = c, c = b, b = a, a = t1 + t2 | 0;
  }
  state[0]! += a, state[1]! += b, state[2]! += c, state[3]! += d;
  state[4]! += e, state[5]! += f, state[6]! += g, state[7]! += h;
}

/** The first 32 bits of the fractions of the square (2) or cube (3) roots of the first primes: FIPS 180-4 4.2.2, 5.3.3. */
function constants(count: number, root: 2 | 3): Int32Array {
  const words: number[] = [];
  for (let n = 2; words.length < count; n++) {
    let prime = true;
    for (let d = 2; d * d <= n; d++) if (n % d === 0) prime = false;
    if (!prime) continue;
    // Exact: the largest r with r^root ≤ n · 2^(32·root); its low 32 bits are the fraction.
    const scaled = BigInt(n) << BigInt(32 * root);
    let low = 0n, high = 1n << 40n;
    while (high - low > 1n) {
      const middle = low + high >> 1n;
      if (middle ** BigInt(root) <= scaled) low = middle;
      else high = middle;
    }
    words.push(Number(BigInt.asIntN(32, low)));
  }
  return Int32Array.from(words);
}
