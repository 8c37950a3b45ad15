/** The kernel as plugins get it. */
import type { KernelDoor } from "../sdk/kernel_door.ts";
import { inNamespace, openNamespace } from "./netns.ts";
import { openNetlink } from "./netlink/socket.ts";
import { setSysctl } from "./sysctl.ts";
import { openXtables, tryLock } from "./xtables.ts";

/** The real kernel. Stateless: what it opens belongs to the caller. */
export const createKernelDoor = (): KernelDoor => ({
  netlink: openNetlink,
  xtables: openXtables,
  tryLock,
  openNamespace,
  inNamespace,
  setSysctl,
});
