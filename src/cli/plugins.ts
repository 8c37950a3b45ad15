import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { isAbsolute, join } from "node:path";
import { PATHS, type PluginsReply } from "../api/protocol.ts";
import { inspectPlugin } from "../host/loader.ts";
import { call, CommandError } from "./client.ts";
import { print, table } from "./output.ts";

/** `manx plugins`. @returns the exit status */
export async function runPlugins({ output, socket }: { output: "table" | "json"; socket: string }): Promise<number> {
  const { api, plugins } = await call<PluginsReply>(socket, "GET", PATHS.plugins);
  if (output === "json") print(JSON.stringify({ api, plugins }, null, 2));
  else {print(
      table(
        ["SLOT", "NAME", "API", "SOURCE"],
        plugins.map((plugin) => [plugin.slot, plugin.name, plugin.api, plugin.source]),
      ),
    );}
  return 0;
}

/** `manx plugins check FILE`: everything the daemon does with it short of opening it. @returns the exit status */
export async function checkPlugin(file: string): Promise<number> {
  if (!isAbsolute(file)) {
    throw new CommandError(`plugins check: found ${JSON.stringify(file)}, wanted an absolute path`, [], 64);
  }
  const scratch = mkdtempSync(join(tmpdir(), "manx-check-"));
  try {
    const { plugin, sha256 } = await inspectPlugin(file, scratch);
    print(`${file}: good; ${plugin.kind} ${plugin.name}, api ${plugin.api}\nsha256: ${sha256}`);
    return 0;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
