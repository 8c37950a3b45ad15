/** Whether the kernel takes rules as `iptables-nft` writes them: asked by a transaction that is refused at its end, so that nothing is left of it. */
import type { Family } from "../../../src/model/address.ts";
import { isErrno } from "../../../src/kernel/errors.ts";
import { SUBSYSTEM_NFTABLES, type TableName as NftTable } from "../../../src/kernel/netlink/schema/nftables.ts";
import {
  addRawRule,
  familyNumber,
  getExtension,
  newMarkedChain,
  newMarkedTable,
} from "../../../src/kernel/netlink/schema/nftables_compat.ts";
import type { NetlinkSocket } from "../../../src/sdk/kernel_door.ts";
import { encodeRule } from "../entry.ts";
import { DROP, OURS, rule } from "../ruleset.ts";
import type { Extensions } from "../probe.ts";
import { MARK } from "./found.ts";
import { expressionsOf } from "./to_expressions.ts";

const NO_SETS = (set: string): number => {
  throw new Error(`no set ${set}`);
};

/** Why the kernel does not take rules of a family; undefined where it does. */
export function refusal(netlink: NetlinkSocket, family: Family): unknown {
  const at: NftTable = { family: familyNumber(family), table: `${OURS}probe` };
  const established = encodeRule(rule(DROP, { match: "state", states: ["established"] }), family);
  const messages = [
    newMarkedTable(at, MARK),
    newMarkedChain(at, "FORWARD", MARK, { type: "filter", hook: "forward", priority: 0, policy: "accept" }),
    addRawRule(at, "FORWARD", { ...expressionsOf(established, family, NO_SETS), userdata: MARK }),
    // Nothing before it can fail so: this says that all before it was fine.
    newMarkedTable(at, MARK),
  ];
  try {
    netlink.transaction("probe iptables (nft)", SUBSYSTEM_NFTABLES, messages);
  } catch (error) {
    return isErrno(error, "EEXIST") ? undefined : error;
  }
  return new Error("a transaction that cannot hold was accepted");
}

/** The extensions of x_tables that nf_tables can use. */
export const nftExtensions = (netlink: NetlinkSocket, family: Family): Extensions => ({
  supports: (kind, name, revision) => {
    const [refused] = netlink.attempt(`ask for ${kind} ${name}`, [getExtension(family, kind, name, revision)]);
    return refused === undefined;
  },
});
