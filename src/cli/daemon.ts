import { serveApi } from "../api/server.ts";
import { loadConfig } from "../host/config.ts";
import { runDaemon } from "../host/daemon.ts";
import { createLog } from "../host/log.ts";
import { otherDaemons } from "../host/other_daemons.ts";
import { loadPlugins } from "../host/parts.ts";
import { PR, prctl } from "../kernel/libc.ts";
import { print } from "./output.ts";

const SIGTERM = 15;

/** `manx daemon`: until SIGTERM or SIGINT. @returns the exit status */
export async function runDaemonCommand(
  options: { config: string; check?: boolean; dieWithParent?: boolean },
): Promise<number> {
  if (options.dieWithParent) {
    const parent = process.ppid;
    prctl(PR.SET_PDEATHSIG, SIGTERM);
    // It may have ended before it was asked to tell.
    if (process.ppid !== parent) return 0;
  }
  const config = loadConfig(options.config);
  if (options.check) {
    const plugins = await loadPlugins(config);
    print(
      `${options.config}: good; node ${config.node}, ${
        plugins.map(({ kind, plugin }) => `${kind} ${plugin.name}`).join(", ")
      }`,
    );
    return 0;
  }
  const log = createLog({ ...config.log, priorities: process.env.JOURNAL_STREAM !== undefined });
  for (const pid of otherDaemons()) {
    log.warn("another daemon serves this network namespace: each takes the other's rules for a mistake", {
      process: pid,
    });
  }
  const stop = new AbortController();
  const onSignal = () => {
    // Whoever asks again means it.
    if (stop.signal.aborted) process.exit(130);
    stop.abort();
  };
  process.on("SIGTERM", onSignal).on("SIGINT", onSignal);
  // A bug: end at once and let the supervisor start anew; kernel state stands.
  const onBug = (error: unknown) => {
    log.error("crashed", { error: error instanceof Error ? error.stack : String(error) });
    process.exit(70);
  };
  process.on("uncaughtException", onBug).on("unhandledRejection", onBug);
  await runDaemon(config, { signal: stop.signal, log, serve: serveApi });
  return 0;
}
