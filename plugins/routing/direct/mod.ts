import { ConfigError } from "../../../src/sdk/errors.ts";
import { definePlugin } from "../../../src/sdk/plugin.ts";
import { DirectRouting } from "./routing.ts";

/** Routes to other nodes' blocks through the nodes' own addresses, on a subnet they share. */
export default definePlugin({
  api: "1.0",
  kind: "routing",
  name: "direct",
  parseConfig(raw): undefined {
    const keys = typeof raw === "object" && raw !== null && !Array.isArray(raw) ? Object.keys(raw) : undefined;
    if (raw === undefined || raw === null || keys?.length === 0) return undefined;
    if (keys !== undefined) {
      throw new ConfigError(keys[0]!, "an unknown key", "no keys: routing direct has no settings");
    }
    throw new ConfigError("", Array.isArray(raw) ? "a list" : typeof raw, "nothing: routing direct has no settings");
  },
  open: async (_config, host) => new DirectRouting(host),
});
