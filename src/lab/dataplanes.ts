/** What `--dataplane NAME` means on a node of a sandbox, and whether this kernel can do it. */
import { join } from "node:path";
import { findFamily, NETLINK_GENERIC } from "../kernel/netlink/generic.ts";
import { IPVS_FAMILY } from "../kernel/netlink/schema/ipvs.ts";
import { openNetlink } from "../kernel/netlink/socket.ts";

/** IPVS does services alone: policy is another one's beside it. */
const IPVS = "ipvs";

/** The daemon's `dataplane`. `directory`: of the daemon. */
export function dataplaneConfig(dataplane: string, directory: string): unknown {
  switch (dataplane) {
    case IPVS:
      return [{ use: "nftables", config: { services: false } }, { use: IPVS }];
    // The machine's own lock is not for its sandboxes: each node has tables of its own, and whoever is not root may not take it.
    case "iptables":
      return { use: dataplane, config: { lockFile: join(directory, "xtables.lock") } };
    // One dataplane, two places in the kernel: each has a name of its own here.
    case "iptables-legacy":
    case "iptables-nft": {
      const [use, variant] = dataplane.split("-");
      return { use, config: { variant, lockFile: join(directory, "xtables.lock") } };
    }
    default:
      return { use: dataplane };
  }
}

/** Whether the daemon does services even where nobody asks for them: a dataplane for nothing else would stand idle. */
export const isForServices = (dataplane: string): boolean => dataplane === IPVS;

/** What this kernel lacks for it; undefined where it lacks nothing. @throws {KernelError} */
export function lackOfKernel(dataplane: string): string | undefined {
  if (dataplane !== IPVS) return undefined;
  using socket = openNetlink(NETLINK_GENERIC);
  if (findFamily(socket, IPVS_FAMILY) !== undefined) return undefined;
  return "dataplane ipvs: found a kernel without IPVS, wanted one with the module ip_vs";
}
