/**
 * Netlink attributes by declarative schema: `attrs({ table: [1, str], handle: [3, be64] })` is at once the encoder, the
 * decoder, the names in error messages and, by `Infer`, the TypeScript type. All of it in one import.
 */
export { type AttributeType, type Infer, type Siblings, type Sought, type UnknownAttribute } from "./attribute.ts";
export { attrs, indexed, list, nested, type Shape, switched, type Values } from "./attribute_set.ts";
export { NLA_F_NESTED, Reader, Writer } from "./bytes.ts";
export { decode, encode, encodeInto } from "./encoding.ts";
export {
  attributePath,
  decodeMessage,
  encodeMessage,
  MESSAGE_HEADER_BYTES,
  MessageFlag,
  type MessageSchema,
  messageSchema,
} from "./message.ts";
export {
  address,
  be16,
  be32,
  be64,
  bytes,
  flag,
  hardwareAddress,
  i32,
  padding,
  str,
  u16,
  u32,
  u64,
  u8,
} from "./scalar.ts";
export { headed, pad, struct, type StructType, type StructValues } from "./struct.ts";
