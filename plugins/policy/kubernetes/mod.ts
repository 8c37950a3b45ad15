import { ConfigError } from "../../../src/sdk/errors.ts";
import { policySource } from "../../../src/sdk/kind_reader.ts";
import { definePlugin } from "../../../src/sdk/plugin.ts";
import { describe } from "../../../src/sdk/validation.ts";
import { clusterNetworkPolicy } from "./cluster_network_policy.ts";
import { namespace, serviceAccount } from "./namespace.ts";
import { networkPolicy } from "./network_policy.ts";
import { pod } from "./pod.ts";
import { endpointSlice, service } from "./service.ts";

/** Pure; for tests and tools that need no daemon. */
export const kubernetesSource = policySource([
  namespace,
  pod,
  serviceAccount,
  service,
  endpointSlice,
  networkPolicy,
  clusterNetworkPolicy,
]);

/** The dialect of Kubernetes: its policies, and the core kinds they speak about. */
export default definePlugin({
  api: "1.0",
  kind: "policy",
  name: "kubernetes",
  parseConfig(raw): undefined {
    if (raw === undefined || raw === null) return undefined;
    if (typeof raw !== "object" || Array.isArray(raw)) {
      throw new ConfigError("", describe(raw), "nothing: the dialect has no settings");
    }
    const [key] = Object.keys(raw);
    if (key !== undefined) throw new ConfigError(key, "an unknown key", "no keys: the dialect has no settings");
    return undefined;
  },
  open: () => Promise.resolve(kubernetesSource),
});
