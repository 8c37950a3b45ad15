/** Generic netlink: families with names, whose numbers the kernel gives out. include/uapi/linux/genetlink.h. */
import type { NetlinkMessage, NetlinkSocket } from "../../sdk/kernel_door.ts";
import { DecodeError, isErrno } from "../errors.ts";
import {
  attrs,
  decodeMessage,
  encodeMessage,
  indexed,
  type Infer,
  messageSchema,
  pad,
  str,
  struct,
  u16,
  u32,
  u8,
} from "./codec.ts";

/** Netlink protocol, include/uapi/linux/netlink.h. */
export const NETLINK_GENERIC = 16;
/** GENL_ID_CTRL: the family that knows the others. */
const CONTROL_FAMILY = 16;
/** CTRL_CMD_*. */
const Command = { NewFamily: 1, GetFamily: 3 } as const;
const CONTROL_VERSION = 2;
/** GENL_NAMSIZ, less the terminator. */
export const FAMILY_NAME_MAX_BYTES = 15;

/** struct genlmsghdr. */
export const genericHeader = struct({ command: u8, version: u8, pad: pad(2) });

/** CTRL_ATTR_MCAST_GRP_*. */
const multicastGroup = attrs({ name: [1, str], id: [2, u32] });
/** CTRL_ATTR_OP_*. */
const operation = attrs({ id: [1, u32], flags: [2, u32] });

/** CTRL_ATTR_*. */
const family = attrs({
  id: [1, u16],
  name: [2, str],
  version: [3, u32],
  headerBytes: [4, u32],
  attributeMax: [5, u32],
  operations: [6, indexed(() => operation)],
  multicastGroups: [7, indexed(() => multicastGroup)],
});
export const familyMessage = messageSchema("family", genericHeader, family);
export type FamilyAttributes = Infer<typeof family>;

export interface GenericFamily {
  /** nlmsg_type of its messages. Another after its module was loaded anew. */
  readonly id: number;
  readonly name: string;
  readonly version: number;
  /** Multicast groups by name. */
  readonly groups: ReadonlyMap<string, number>;
}

/** CTRL_CMD_GETFAMILY; the kernel loads the family's module where it has one. ENOENT where there is none. */
export const getFamily = (name: string): NetlinkMessage =>
  encodeMessage(familyMessage, CONTROL_FAMILY, 0, { command: Command.GetFamily, version: CONTROL_VERSION }, { name });

/** @throws {DecodeError} */
export function parseFamily(message: Pick<NetlinkMessage, "payload">): GenericFamily {
  const { attributes } = decodeMessage(familyMessage, message);
  const { id, name, version = 0, multicastGroups = [] } = attributes;
  if (id === undefined || name === undefined) throw new DecodeError(4, "a family without number or name", "both");
  const groups = new Map<string, number>();
  for (const group of multicastGroups) {
    if (group.name !== undefined && group.id !== undefined) groups.set(group.name, group.id);
  }
  return { id, name, version, groups };
}

/** The family of this name, undefined where the kernel has none. @throws {KernelError} */
export function findFamily(socket: NetlinkSocket, name: string): GenericFamily | undefined {
  try {
    const [answer] = socket.request(`look up generic netlink family ${name}`, [getFamily(name)]);
    return answer === undefined ? undefined : parseFamily(answer);
  } catch (error) {
    if (isErrno(error, "ENOENT")) return undefined;
    throw error;
  }
}
