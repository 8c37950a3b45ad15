/** The chains that `iptables-nft` makes for the kernel's hooks. */
import type { BaseChain } from "../../../src/kernel/netlink/schema/nftables.ts";
import type { TableName } from "../ruleset.ts";

const base = (hook: BaseChain["hook"], priority: number, type: BaseChain["type"] = "filter"): BaseChain => ({
  type,
  hook,
  priority,
  policy: "accept",
});
/** By table. Priorities are NF_IP_PRI_* of netfilter_ipv4.h. */
export const BASE_CHAINS: Readonly<Record<TableName, Readonly<Record<string, BaseChain>>>> = {
  raw: { PREROUTING: base("prerouting", -300), OUTPUT: base("output", -300) },
  mangle: {
    PREROUTING: base("prerouting", -150),
    INPUT: base("input", -150),
    FORWARD: base("forward", -150),
    OUTPUT: base("output", -150, "route"),
    POSTROUTING: base("postrouting", -150),
  },
  nat: {
    PREROUTING: base("prerouting", -100, "nat"),
    INPUT: base("input", 100, "nat"),
    OUTPUT: base("output", -100, "nat"),
    POSTROUTING: base("postrouting", 100, "nat"),
  },
  filter: { INPUT: base("input", 0), FORWARD: base("forward", 0), OUTPUT: base("output", 0) },
};

/** Whether packets come to it where, and when, they come to the other. */
export const isSameBase = (found: BaseChain | undefined, wanted: BaseChain): boolean =>
  found !== undefined && found.hook === wanted.hook && found.type === wanted.type && found.priority === wanted.priority;

/** For messages. */
export const printBase = (one: BaseChain | undefined): string =>
  one === undefined ? "at no hook" : `of type ${one.type} at hook ${one.hook}, priority ${one.priority}`;
