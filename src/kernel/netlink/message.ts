/** Whole messages by schema: a fixed structure, then attributes. */
import type { NetlinkMessage } from "../../sdk/kernel_door.ts";
import { DecodeError } from "../errors.ts";
import { type AttributeType, noSiblings } from "./attribute.ts";
import { joinPath } from "./attribute_set.ts";
import { Reader } from "./bytes.ts";
import { withScratch } from "./encoding.ts";
import type { StructType } from "./struct.ts";

/** nlmsg_flags, include/uapi/linux/netlink.h. */
export const MessageFlag = {
  Request: 0x1,
  Multi: 0x2,
  Ack: 0x4,
  Echo: 0x8,
  DumpInterrupted: 0x10,
  DumpFiltered: 0x20,
  /** NLM_F_ROOT | NLM_F_MATCH. */
  Dump: 0x300,
  Replace: 0x100,
  Exclusive: 0x200,
  Create: 0x400,
  Append: 0x800,
  /** NLM_F_NONREC of a delete: do not delete recursively. */
  NonRecursive: 0x100,
  /** NLM_F_BULK of a delete: many objects. */
  Bulk: 0x200,
} as const;

/** struct nlmsghdr. */
export const MESSAGE_HEADER_BYTES = 16;

/** The layout of one family of messages: a fixed structure, then attributes. */
export interface MessageSchema<H, A> {
  /** What the messages speak of, first in attribute paths: `link`. */
  readonly title: string;
  readonly header: StructType<H>;
  readonly attributes: AttributeType<A>;
}

export const messageSchema = <H, A>(
  title: string,
  header: StructType<H>,
  attributes: AttributeType<A>,
): MessageSchema<H, A> => ({ title, header, attributes });

/** A message with its schema attached, so that an error can name the attribute it speaks of. @throws {EncodeError} */
export function encodeMessage<H, A>(
  schema: MessageSchema<H, A>,
  type: number,
  flags: number,
  header: Partial<H>,
  attributes: A,
): NetlinkMessage {
  const payload = withScratch((writer) => {
    schema.header.write(writer, header);
    const padBytes = -schema.header.size & 3;
    if (padBytes !== 0) writer.zeros(padBytes);
    schema.attributes.encode(writer, attributes, noSiblings);
  });
  return { type, flags, payload, schema };
}

/** @throws {DecodeError} whose offset counts from the start of the payload */
export function decodeMessage<H, A>(
  schema: MessageSchema<H, A>,
  message: Pick<NetlinkMessage, "payload">,
): { readonly header: H; readonly attributes: A } {
  const reader = new Reader(message.payload);
  const end = message.payload.length;
  const header = schema.header.decode(reader, 0, end, noSiblings);
  const start = Math.min(end, schema.header.size + 3 & ~3);
  return { header, attributes: schema.attributes.decode(reader, start, end, noSiblings) };
}

const isMessageSchema = (schema: unknown): schema is MessageSchema<unknown, unknown> =>
  typeof schema === "object" && schema !== null && "attributes" in schema && "header" in schema && "title" in schema;

/**
 * The name path of the attribute at `offset` of a message we sent: `link.info.data`, or "offset N" where its schema does
 * not say. `offset` counts from the message's header as NLMSGERR_ATTR_OFFS does; `missingId` names an absent attribute
 * within it (NLMSGERR_ATTR_MISS_TYPE), or at the top where `offset` is undefined.
 */
export function attributePath(
  message: Pick<NetlinkMessage, "payload" | "schema">,
  offset: number | undefined,
  missingId?: number,
): string {
  const { schema, payload } = message;
  const within = offset === undefined ? "" : `offset ${offset}`;
  const unnamed = missingId === undefined ? within : `${missingId}${within && ` in ${within}`}`;
  if (!isMessageSchema(schema)) return unnamed;
  if (offset === undefined) {
    return missingId === undefined
      ? ""
      : joinPath(schema.title, schema.attributes.nameOf?.(missingId, noSiblings) ?? unnamed);
  }
  const start = schema.header.size + 3 & ~3;
  const at = offset - MESSAGE_HEADER_BYTES;
  if (at < 0 || at >= payload.length) return unnamed;
  if (at < start) return joinPath(schema.title, "header");
  try {
    const sought = { offset: at, missingId };
    const path = schema.attributes.locate?.(new Reader(payload), start, payload.length, sought, noSiblings);
    return path === undefined ? unnamed : joinPath(schema.title, path);
  } catch (error) {
    if (error instanceof DecodeError) return unnamed;
    throw error;
  }
}
