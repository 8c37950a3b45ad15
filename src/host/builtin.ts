/** The plugins that are part of the executable: the only place that names them. */
import type { Plugin, PluginKind } from "../sdk/plugin.ts";

type Load = () => Promise<{ readonly default: Plugin }>;

/** Loaded when a configuration uses them, so that a node pays for no other. */
export const BUILTIN: Readonly<Record<PluginKind, Readonly<Record<string, Load>>>> = {
  datastore: { sqlite: load(() => import("../../plugins/datastore/sqlite/mod.ts")) },
  ipam: { block: load(() => import("../../plugins/ipam/block/mod.ts")) },
  cni: { veth: load(() => import("../../plugins/cni/veth/mod.ts")) },
  policy: {
    kubernetes: load(() => import("../../plugins/policy/kubernetes/mod.ts")),
    calico: load(() => import("../../plugins/policy/calico/mod.ts")),
  },
  dataplane: {
    nftables: load(() => import("../../dataplanes/nftables/mod.ts")),
    iptables: load(() => import("../../dataplanes/iptables/mod.ts")),
    ipvs: load(() => import("../../dataplanes/ipvs/mod.ts")),
    memory: load(() => import("../../dataplanes/memory/mod.ts")),
  },
  routing: {
    none: load(() => import("../../plugins/routing/none/mod.ts")),
    direct: load(() => import("../../plugins/routing/direct/mod.ts")),
  },
};

/** Each plugin has its own type of configuration; to the loader they are alike. */
function load(module: () => Promise<{ readonly default: unknown }>): Load {
  return module as unknown as Load;
}
