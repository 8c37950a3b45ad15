/**
 * The daemon while the kernel has not what a dataplane needs: it answers `manx status` with what is missing, refuses everything else with the same
 * words, writes nothing, and tries again. What an earlier daemon wrote stands meanwhile, and pods that come get no network before policy does.
 */
import type { KernelDoor } from "../sdk/kernel_door.ts";
import { UnavailableError } from "../sdk/errors.ts";
import type { Log } from "../sdk/plugin.ts";
import { VERSION } from "../version.ts";
import { systemClock } from "./clock.ts";
import type { Config } from "./config.ts";
import type { LoadedPlugin } from "./loader.ts";
import { DataplaneLacksError, openParts, type Parts } from "./parts.ts";
import { notifyService } from "./service_notify.ts";
import type { DataplaneRecord } from "./switch/record.ts";
import { createTimings } from "./timing.ts";
import { pluginViews } from "./daemon_view.ts";
import type { HostView, StatusView } from "./view.ts";

/** Between two tries; it doubles. */
const RETRY_FIRST_MS = 1_000;
const RETRY_LONGEST_MS = 30_000;

export interface WaitingOptions {
  readonly config: Config;
  readonly plugins: readonly LoadedPlugin[];
  readonly kernel: KernelDoor;
  readonly log: Log;
  readonly record: DataplaneRecord;
  /** Disposes of what was opened. */
  readonly open: AsyncDisposableStack;
  /** Absent: it does not wait. */
  readonly serve: ((view: HostView, socket: string, log: Log) => Promise<AsyncDisposable>) | undefined;
  readonly startedMs: number;
  readonly signal: AbortSignal;
}

/** Opens the parts as soon as the kernel has what they need. Undefined: `signal` has aborted. @throws {ManxError} where waiting would not help */
export async function openPartsPatiently(options: WaitingOptions): Promise<Parts | undefined> {
  const { config, plugins, kernel, log, record, open, serve, signal } = options;
  let problem = "", tries = 0;
  await using answering = new AsyncDisposableStack();
  for (let pauseMs = RETRY_FIRST_MS; !signal.aborted; pauseMs = Math.min(RETRY_LONGEST_MS, pauseMs * 2)) {
    const attempt = new AsyncDisposableStack();
    try {
      const parts = await openParts(config, plugins, kernel, log, attempt, signal, record);
      open.use(attempt);
      if (tries > 0) {
        log.info("the kernel has what it lacked", { tries });
        notifyService("STATUS=");
      }
      return parts;
    } catch (error) {
      await attempt.disposeAsync();
      if (!(error instanceof DataplaneLacksError) || serve === undefined) throw error;
      problem = `${error.message}; what was in force before stands`;
    }
    log.error("waiting for the kernel, trying again", { problem, attempt: ++tries, pauseMs });
    notifyService(`STATUS=waiting: ${problem}\nEXTEND_TIMEOUT_USEC=${2_000 * RETRY_LONGEST_MS}`);
    if (tries === 1) {
      answering.use(await serve(createWaitingView(options, () => ({ problem, tries })), config.api.socket, log));
    }
    await systemClock.sleep(pauseMs, signal).catch(() => {});
  }
  return undefined;
}

function createWaitingView(
  { config, plugins, startedMs }: WaitingOptions,
  now: () => { readonly problem: string; readonly tries: number },
): HostView {
  const refuse = (): Promise<never> => Promise.reject(new UnavailableError(now().problem));
  const none = createTimings().view();
  const use = config.dataplanes.map(({ use }) => use).join(" ");
  return {
    resources: { kinds: [], apply: refuse, delete: refuse, list: refuse, get: refuse, remove: refuse },
    attachments: { add: refuse, del: refuse, check: refuse, gc: refuse, ready: refuse },
    explainer: { explain: refuse, policies: refuse },
    wait: refuse,
    logs() {
      throw new UnavailableError(now().problem);
    },
    dataplanes: { diff: refuse, switch: refuse },
    plugins: () => pluginViews(plugins),
    ipam: refuse,
    status(): StatusView {
      const { problem, tries } = now();
      return {
        version: VERSION,
        node: config.node,
        addresses: [],
        pid: process.pid,
        uptimeMs: Math.round(performance.now() - startedMs),
        config: config.file,
        socket: config.api.socket,
        datastore: { use: config.datastore.use, inSync: false },
        ipam: { use: config.ipam.use },
        generation: { wanted: 0, applied: 0 },
        dataplane: { use, converged: false, lastApply: null, problems: [problem] },
        routing: { use: config.routing.use, converged: false, problems: [] },
        endpoints: 0,
        problems: [{ subject: "dataplane", path: "", message: problem, effect: "not-in-force" }],
        counters: {
          changes: 0,
          rounds: 0,
          applies: 0,
          messages: 0,
          failures: tries,
          resyncs: 0,
          adds: 0,
          addFailures: 0,
          dels: 0,
        },
        timings: { add: none, lease: none, wiring: none, policy: none, del: none, round: none },
        memory: { rss: process.memoryUsage.rss() },
      };
    },
  };
}
