import { existsSync } from "node:fs";
import { isServed } from "../api/socket_probe.ts";
import { type Config, loadConfig, parseConfig } from "../host/config.ts";
import { DEFAULT_CONFIG_FILE } from "../host/defaults.ts";
import { silentLog } from "../host/log.ts";
import { otherDaemons } from "../host/other_daemons.ts";
import { podLinks, sweepNode, type SweptPart } from "../host/switch/sweep.ts";
import { createKernelDoor } from "../kernel/door.ts";
import { CommandError } from "./client.ts";
import { complain, print } from "./output.ts";

/** `manx sweep`. @returns the exit status */
export async function runSweep(
  options: { config?: string; socket?: string; links?: boolean; force?: boolean; output: "text" | "json" },
): Promise<number> {
  const config = configOf(options.config);
  const socket = options.socket ?? config.api.socket;
  const daemon = existsSync(socket) && await isServed(socket)
    ? `a daemon at ${socket}`
    : otherDaemons().map((pid) => `a daemon in this network namespace, process ${pid}`)[0];
  if (daemon !== undefined) {
    if (options.force !== true) {
      throw new CommandError(
        `sweep: found ${daemon}, wanted none: it would put back what is removed; end it first (systemctl stop manx), or --force`,
      );
    }
    complain(`manx: found ${daemon}; it puts back what is removed`);
  }
  const kernel = createKernelDoor();
  const parts = await sweepNode(config, { kernel, log: silentLog, links: options.links === true });
  const isClean = parts.every(({ problems }) => problems.length === 0);
  const attached = podLinks(kernel);
  if (options.output === "json") print(JSON.stringify({ clean: isClean, parts, podLinks: attached }, null, 2));
  else {
    const lines = parts.flatMap(linesOf);
    print(
      parts.every(({ messages }) => messages === 0) && isClean
        ? ["nothing of manx was there", ...lines].join("\n")
        : lines.join("\n"),
    );
  }
  if (attached.length > 0) {
    const pods = attached.length === 1 ? "1 pod is" : `${attached.length} pods are`;
    complain(`manx: ${pods} still attached; nothing filters their traffic now`);
  }
  return isClean ? 0 : 1;
}

/** A node without a configuration has used the defaults, or has none because manx is going. */
function configOf(file: string | undefined): Config {
  if (file !== undefined) return loadConfig(file);
  return existsSync(DEFAULT_CONFIG_FILE) ? loadConfig(DEFAULT_CONFIG_FILE) : parseConfig("", DEFAULT_CONFIG_FILE);
}

function linesOf({ name, messages, problems, unavailable }: SweptPart): readonly string[] {
  if (unavailable !== undefined) return [`${name}: cannot be here: ${unavailable}`];
  if (problems.length > 0) return [`${name}: not all of it is removed`, ...problems.map((line) => `  ${line}`)];
  return messages === 0 ? [] : [`${name}: removed`];
}
