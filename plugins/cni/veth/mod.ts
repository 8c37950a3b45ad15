import { ConfigError } from "../../../src/sdk/errors.ts";
import { definePlugin } from "../../../src/sdk/plugin.ts";
import { VethWiring } from "./wiring.ts";

export interface VethConfig {
  /** Bytes, for attachments that name none; absent = that of the link the default route goes out of. */
  readonly mtu?: number;
}

/** Connects pods by veth pairs and host routes. */
export default definePlugin({
  api: "1.0",
  kind: "cni",
  name: "veth",
  parseConfig(raw): VethConfig {
    if (raw === undefined || raw === null) return {};
    if (typeof raw !== "object" || Array.isArray(raw)) {
      throw new ConfigError("", Array.isArray(raw) ? "a list" : typeof raw, "an object with the key mtu");
    }
    for (const key of Object.keys(raw)) if (key !== "mtu") throw new ConfigError(key, "an unknown key", "mtu");
    const { mtu } = raw as { mtu?: unknown };
    if (mtu === undefined || mtu === null) return {};
    if (typeof mtu !== "number" || !Number.isInteger(mtu) || mtu < 68 || mtu > 65535) {
      throw new ConfigError("mtu", JSON.stringify(mtu), "bytes, from 68 to 65535");
    }
    return { mtu };
  },
  open: async (config, host) => new VethWiring(config, host),
});
