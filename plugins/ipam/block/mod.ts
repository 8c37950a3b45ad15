/** Address management by blocks: each node claims blocks of the pools and hands out their addresses. */
import { definePlugin } from "../../../src/sdk/plugin.ts";
import { BlockIpam } from "./ipam.ts";
import { type BlockIpamConfig, parseConfig } from "./pools.ts";

export default definePlugin<"ipam", BlockIpamConfig>({
  api: "1.0",
  kind: "ipam",
  name: "block",
  parseConfig,
  open: (config, host, signal) => BlockIpam.open(config, host, signal),
});
