/** Growing output and bounds-checked input of the codec, host byte order unless a name says otherwise. */
import { DecodeError, EncodeError } from "../errors.ts";

/** struct nlattr: nla_len is 16 bits and counts its own 4 bytes. */
export const ATTRIBUTE_HEADER_BYTES = 4;
const ATTRIBUTE_MAX_BYTES = 0xffff;
/** nla_type bits, include/uapi/linux/netlink.h. */
export const NLA_F_NESTED = 0x8000;
export const NLA_F_NET_BYTEORDER = 0x4000;
export const NLA_TYPE_MASK = 0x3fff;

/** Linux runs Bun on little-endian machines only; asserted in the codec's test rather than paid for on every access. */
export const littleEndian = true;

const utf8 = new TextEncoder();
const utf8Strict = new TextDecoder("utf-8", { fatal: true });

/** One growing buffer; every position is a byte offset from its start. */
export class Writer {
  bytes: Uint8Array<ArrayBuffer>;
  view: DataView;
  length = 0;

  constructor(capacityBytes = 4096) {
    this.bytes = new Uint8Array(new ArrayBuffer(capacityBytes));
    this.view = new DataView(this.bytes.buffer);
  }

  /** Makes room for `count` bytes, moves past them and returns where they start. Their content is undefined. */
  reserve(count: number): number {
    const start = this.length;
    const end = start + count;
    if (end > this.bytes.length) this.grow(end);
    this.length = end;
    return start;
  }

  private grow(neededBytes: number): void {
    const larger = new Uint8Array(new ArrayBuffer(Math.max(neededBytes, this.bytes.length * 2)));
    larger.set(this.bytes.subarray(0, this.length));
    this.bytes = larger;
    this.view = new DataView(larger.buffer);
  }

  u8(value: number): void {
    const at = this.reserve(1);
    this.bytes[at] = value;
  }
  u16(value: number): void {
    const at = this.reserve(2);
    this.view.setUint16(at, value, littleEndian);
  }
  u32(value: number): void {
    const at = this.reserve(4);
    this.view.setUint32(at, value, littleEndian);
  }
  u64(value: bigint): void {
    const at = this.reserve(8);
    this.view.setBigUint64(at, value, littleEndian);
  }
  i32(value: number): void {
    const at = this.reserve(4);
    this.view.setInt32(at, value, littleEndian);
  }
  be16(value: number): void {
    const at = this.reserve(2);
    this.view.setUint16(at, value, false);
  }
  be32(value: number): void {
    const at = this.reserve(4);
    this.view.setUint32(at, value, false);
  }
  be64(value: bigint): void {
    const at = this.reserve(8);
    this.view.setBigUint64(at, value, false);
  }
  raw(value: Uint8Array): void {
    const at = this.reserve(value.length);
    this.bytes.set(value, at);
  }
  zeros(count: number): void {
    const at = this.reserve(count);
    this.bytes.fill(0, at, at + count);
  }
  /** One byte a character: packed addresses and the like. */
  latin1(value: string): void {
    const at = this.reserve(value.length);
    const bytes = this.bytes;
    for (let i = 0; i < value.length; i++) bytes[at + i] = value.charCodeAt(i);
  }
  /** UTF-8, without a terminator. */
  text(value: string): void {
    const at = this.reserve(value.length);
    const bytes = this.bytes;
    for (let i = 0; i < value.length; i++) {
      const code = value.charCodeAt(i);
      if (code > 0x7f) {
        this.length = at;
        this.raw(utf8.encode(value));
        return;
      }
      bytes[at + i] = code;
    }
  }

  /** Starts an attribute; give the returned position to `close` when its payload is written. */
  open(type: number): number {
    const at = this.reserve(ATTRIBUTE_HEADER_BYTES);
    this.view.setUint16(at + 2, type, littleEndian);
    return at;
  }

  /** Writes the attribute's length and pads it to 4 bytes. @throws {EncodeError} past 65,535 bytes, header included */
  close(at: number): void {
    const length = this.length - at;
    if (length > ATTRIBUTE_MAX_BYTES) {
      throw new EncodeError(
        `an attribute of ${length} bytes`,
        `at most ${ATTRIBUTE_MAX_BYTES}, its 4 byte header included`,
      );
    }
    this.view.setUint16(at, length, littleEndian);
    const padding = -length & 3;
    if (padding !== 0) this.zeros(padding);
  }
}

/** Hostile nesting must not reach the end of the stack; the kernel itself stops at 16 (nf_tables) or less. */
const DEPTH_MAX = 32;

/** Input bytes; every read is checked and every failure is a `DecodeError` with its offset. */
export class Reader {
  readonly view: DataView;
  private depth = 0;

  /** `baseOffset` is added to the offsets that errors report. */
  constructor(readonly bytes: Uint8Array, readonly baseOffset = 0) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** @throws {DecodeError} unless `start`..`end` holds at least `size` bytes */
  need(start: number, end: number, size: number, what: string): void {
    if (end - start < size || end > this.bytes.length) {
      throw this.error(start, `${Math.max(0, end - start)} bytes`, `${size} bytes of ${what}`);
    }
  }

  error(at: number, found: string, wanted: string): DecodeError {
    return new DecodeError(this.baseOffset + at, found, wanted);
  }

  /** Runs `body` one nesting level deeper. */
  enter(at: number): void {
    if (++this.depth > DEPTH_MAX) {
      this.depth = 0;
      throw this.error(at, `attributes nested ${DEPTH_MAX + 1} deep`, `at most ${DEPTH_MAX}`);
    }
  }
  leave(): void {
    this.depth--;
  }

  /** A copy that stays valid when the receive buffer is used again. */
  copy(start: number, end: number): Uint8Array {
    return this.bytes.slice(start, end);
  }

  /** Up to the first NUL or the end; UTF-8, or Latin-1 where it is not valid UTF-8. */
  text(start: number, end: number): string {
    const bytes = this.bytes;
    let stop = start;
    let ascii = true;
    while (stop < end && bytes[stop] !== 0) {
      if (bytes[stop]! > 0x7f) ascii = false;
      stop++;
    }
    if (ascii) return this.latin1(start, stop);
    try {
      return utf8Strict.decode(bytes.subarray(start, stop));
    } catch {
      return this.latin1(start, stop);
    }
  }

  /** One character a byte. */
  latin1(start: number, end: number): string {
    const bytes = this.bytes;
    if (end - start === 4) {
      return String.fromCharCode(bytes[start]!, bytes[start + 1]!, bytes[start + 2]!, bytes[start + 3]!);
    }
    let text = "";
    for (let at = start; at < end; at += 1024) {
      text += String.fromCharCode(...bytes.subarray(at, Math.min(end, at + 1024)));
    }
    return text;
  }

  /** Length of the attribute at `at`, header included. @throws {DecodeError} where it does not fit before `end` */
  attributeLength(at: number, end: number): number {
    this.need(at, end, ATTRIBUTE_HEADER_BYTES, "an attribute header");
    const length = this.view.getUint16(at, littleEndian);
    if (length < ATTRIBUTE_HEADER_BYTES || length > end - at) {
      throw this.error(at, `an attribute of ${length} bytes`, `4 to ${end - at}`);
    }
    return length;
  }
}
