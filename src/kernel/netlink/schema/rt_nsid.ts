/** Numbers one namespace gives to others: RTM_GETNSID, include/uapi/linux/net_namespace.h. */
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import { attrs, decodeMessage, encodeMessage, i32, messageSchema, pad, struct, u32, u8 } from "../codec.ts";

export const RTM_NEWNSID = 88;
export const RTM_DELNSID = 89;
export const RTM_GETNSID = 90;

/** struct rtgenmsg, padded. */
const namespaceIdHeader = struct({ family: u8, pad: pad(3) });
/** NETNSA_*. */
const namespaceId = attrs({ id: [1, i32], pid: [2, u32], fd: [3, u32], targetId: [4, i32], currentId: [5, i32] });
export const namespaceIdMessage = messageSchema("namespace id", namespaceIdHeader, namespaceId);

/** The number of the namespace held by `fd` in the socket's namespace, for `request`. */
export const getNamespaceId = (fd: number): NetlinkMessage =>
  encodeMessage(namespaceIdMessage, RTM_GETNSID, 0, {}, { fd });

/** -1 where it has none yet. @throws {DecodeError} */
export const parseNamespaceId = (message: Pick<NetlinkMessage, "payload">): number =>
  decodeMessage(namespaceIdMessage, message).attributes.id ?? -1;
