/** Attribute types whose payload is one value. */
import type { Address } from "../../model/address.ts";
import { EncodeError } from "../errors.ts";
import type { AttributeType, FixedType } from "./attribute.ts";
import { littleEndian, type Writer } from "./bytes.ts";

function fixed<T>(
  what: string,
  size: number,
  write: (writer: Writer, value: T) => void,
  readAt: (view: DataView, at: number) => T,
): FixedType<T> {
  return {
    size,
    encode: write,
    decode(reader, start, end) {
      if (end - start < size) reader.need(start, end, size, what);
      return readAt(reader.view, start);
    },
  };
}

export const u8 = fixed<number>("u8", 1, (w, v) => w.u8(v), (view, at) => view.getUint8(at));
export const u16 = fixed<number>("u16", 2, (w, v) => w.u16(v), (view, at) => view.getUint16(at, littleEndian));
export const u32 = fixed<number>("u32", 4, (w, v) => w.u32(v), (view, at) => view.getUint32(at, littleEndian));
export const u64 = fixed<bigint>("u64", 8, (w, v) => w.u64(v), (view, at) => view.getBigUint64(at, littleEndian));
export const i32 = fixed<number>("i32", 4, (w, v) => w.i32(v), (view, at) => view.getInt32(at, littleEndian));
/** Network byte order, as nfnetlink has most of its numbers. */
export const be16 = fixed<number>("be16", 2, (w, v) => w.be16(v), (view, at) => view.getUint16(at, false));
export const be32 = fixed<number>("be32", 4, (w, v) => w.be32(v), (view, at) => view.getUint32(at, false));
export const be64 = fixed<bigint>("be64", 8, (w, v) => w.be64(v), (view, at) => view.getBigUint64(at, false));

/** NLA_NUL_STRING: the terminator is added on the way out and not needed on the way in. */
export const str: AttributeType<string> = {
  encode(writer, value) {
    writer.text(value);
    writer.u8(0);
  },
  decode: (reader, start, end) => reader.text(start, end),
};

/** NLA_BINARY; what is decoded is a copy. */
export const bytes: AttributeType<Uint8Array> = {
  encode: (writer, value) => writer.raw(value),
  decode: (reader, start, end) => reader.copy(start, end),
};

/** NLA_FLAG: there or not. */
export const flag: AttributeType<boolean> = { presence: true, encode() {}, decode: () => true };

/** An attribute such as IFLA_PAD that only aligns the next one: never in a decoded value, never written. */
export const padding: AttributeType<undefined> = { ignored: true, encode() {}, decode: () => undefined };

/** 4 or 16 bytes of network order: `Address` of the model. */
export const address: AttributeType<Address> = {
  encode: (writer, value) => writer.latin1(value),
  decode(reader, start, end) {
    const length = end - start;
    if (length !== 4 && length !== 16) throw reader.error(start, `${length} bytes`, "an address of 4 or 16 bytes");
    return reader.latin1(start, end) as Address;
  },
};

/** A link-layer address of any length as `02:00:5e:10:00:01`; empty for links that have none. */
export const hardwareAddress: AttributeType<string> = {
  encode(writer, value) {
    if (!/^([0-9a-fA-F]{2}(:[0-9a-fA-F]{2})*)?$/.test(value)) {
      throw new EncodeError(JSON.stringify(value), "a link-layer address such as 02:00:5e:10:00:01");
    }
    for (let at = 0; at < value.length; at += 3) writer.u8(parseInt(value.slice(at, at + 2), 16));
  },
  decode(reader, start, end) {
    let text = "";
    for (let at = start; at < end; at++) {
      text += (at === start ? "" : ":") + reader.bytes[at]!.toString(16).padStart(2, "0");
    }
    return text;
  },
};
