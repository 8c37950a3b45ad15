/** The few rtnetlink calls that every part needs; all else is a builder of `netlink/schema` and `socket.request`. */
import type { NetlinkSocket } from "../sdk/kernel_door.ts";
import { isErrno } from "./errors.ts";
import { getLink, type Link, type LinkReference, parseLink, setLink } from "./netlink/schema/rt_link.ts";

/** The link, or undefined where there is none. @throws {KernelError} */
export function findLink(socket: NetlinkSocket, which: LinkReference): Link | undefined {
  const title = "name" in which ? which.name : `number ${which.index}`;
  try {
    const [answer] = socket.request(`look up link ${title}`, [getLink(which)]);
    return answer === undefined ? undefined : parseLink(answer);
  } catch (error) {
    if (isErrno(error, "ENODEV")) return undefined;
    throw error;
  }
}

/** The link of this name, or undefined where there is none. @throws {KernelError} */
export const linkByName = (socket: NetlinkSocket, name: string): Link | undefined => findLink(socket, { name });

/** Brings a link up. @throws {KernelError} */
export function setLinkUp(socket: NetlinkSocket, which: LinkReference): void {
  const title = "name" in which ? which.name : `number ${which.index}`;
  socket.request(`bring link ${title} up`, [setLink(which, { up: true })]);
}
