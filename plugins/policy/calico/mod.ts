import { ConfigError } from "../../../src/sdk/errors.ts";
import { policySource } from "../../../src/sdk/kind_reader.ts";
import { definePlugin } from "../../../src/sdk/plugin.ts";
import { describe } from "../../../src/sdk/validation.ts";
import { hostEndpoint } from "./host_endpoint.ts";
import { globalNetworkSet, networkSet } from "./network_set.ts";
import {
  globalNetworkPolicy,
  networkPolicy,
  stagedGlobalNetworkPolicy,
  stagedKubernetesNetworkPolicy,
  stagedNetworkPolicy,
} from "./policy.ts";
import { profile } from "./profile.ts";
import { tier } from "./tier.ts";

/** Pure; for tests and tools that need no daemon. */
export const calicoSource = policySource([
  networkPolicy,
  globalNetworkPolicy,
  tier,
  networkSet,
  globalNetworkSet,
  hostEndpoint,
  profile,
  stagedNetworkPolicy,
  stagedGlobalNetworkPolicy,
  stagedKubernetesNetworkPolicy,
]);

/** The dialect of Calico. */
export default definePlugin({
  api: "1.0",
  kind: "policy",
  name: "calico",
  parseConfig(raw): undefined {
    if (raw === undefined || raw === null) return undefined;
    if (typeof raw !== "object" || Array.isArray(raw)) {
      throw new ConfigError("", describe(raw), "nothing: the dialect has no settings");
    }
    const [key] = Object.keys(raw);
    if (key !== undefined) throw new ConfigError(key, "an unknown key", "no keys: the dialect has no settings");
    return undefined;
  },
  open: () => Promise.resolve(calicoSource),
});
