/** The embedded datastore: one SQLite file on this machine. */
import { isAbsolute, join } from "node:path";
import { ConfigError } from "../../../src/sdk/errors.ts";
import { definePlugin } from "../../../src/sdk/plugin.ts";
import { SqliteDatastore } from "./store.ts";

export interface SqliteConfig {
  /** Absolute path of the database file; absent = `datastore.db` in the plugin's state directory. */
  readonly path?: string;
}

/** @throws {ConfigError} naming the key */
export function parseConfig(raw: unknown): SqliteConfig {
  if (raw === undefined || raw === null) return {};
  if (typeof raw !== "object" || Array.isArray(raw)) {
    throw new ConfigError("", Array.isArray(raw) ? "a list" : JSON.stringify(raw), "a mapping with the key path");
  }
  for (const key of Object.keys(raw)) {
    if (key !== "path") throw new ConfigError(key, "an unknown key", "path, or nothing");
  }
  const { path } = raw as { path?: unknown };
  if (path === undefined) return {};
  if (typeof path !== "string" || !isAbsolute(path) || path.endsWith("/") || path.includes("\0")) {
    throw new ConfigError("path", JSON.stringify(path) ?? String(path), "an absolute path of a file");
  }
  return { path };
}

export default definePlugin<"datastore", SqliteConfig>({
  api: "1.0",
  kind: "datastore",
  name: "sqlite",
  parseConfig,
  open: async (config, host, signal) => {
    signal.throwIfAborted();
    return SqliteDatastore.open(config.path ?? join(host.stateDirectory, "datastore.db"), host.log);
  },
});
