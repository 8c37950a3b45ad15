/** From values to bytes and back. */
import { type AttributeType, noSiblings } from "./attribute.ts";
import { Reader, Writer } from "./bytes.ts";

/** Shared by all encodes: each appends at the end and cuts back, so that an encode within an encode is sound. */
let scratch = new Writer(64 * 1024);
/** A scratch writer that grew past this is dropped after use. */
const SCRATCH_KEEP_BYTES = 4 * 1024 * 1024;

/** The bytes that `body` appends, as a copy. */
export function withScratch(body: (writer: Writer) => void): Uint8Array {
  const writer = scratch;
  const start = writer.length;
  try {
    body(writer);
    return writer.bytes.slice(start, writer.length);
  } finally {
    writer.length = start;
    if (start === 0 && writer.bytes.length > SCRATCH_KEEP_BYTES) scratch = new Writer(64 * 1024);
  }
}

/** The bytes of `value`. @throws {EncodeError} where an attribute would exceed 65,535 bytes */
export const encode = <T>(schema: AttributeType<T>, value: T): Uint8Array =>
  withScratch((writer) => schema.encode(writer, value, noSiblings));

/** Appends the bytes of `value`. @throws {EncodeError} */
export const encodeInto = <T>(writer: Writer, schema: AttributeType<T>, value: T): void =>
  schema.encode(writer, value, noSiblings);

/** @throws {DecodeError} whose offset counts from the start of `input` plus `baseOffset` */
export const decode = <T>(schema: AttributeType<T>, input: Uint8Array, baseOffset = 0): T =>
  schema.decode(new Reader(input, baseOffset), 0, input.length, noSiblings);
