/** What has to be done, and may fail for a while. */
import { explainError } from "../sdk/errors.ts";
import type { Log } from "../sdk/plugin.ts";
import { systemClock } from "./clock.ts";

const RETRY_MS = 1_000;

/** Tries until it works or `signal` aborts. */
export async function persist(what: string, log: Log, signal: AbortSignal, body: () => Promise<void>): Promise<void> {
  while (!signal.aborted) {
    try {
      return await body();
    } catch (error) {
      if (signal.aborted) return;
      log.error(`cannot ${what}, trying again`, { error: explainError(error), pauseMs: RETRY_MS });
      await systemClock.sleep(RETRY_MS, signal).catch(() => {});
    }
  }
}

/** Resolves when `signal` aborts. */
export const aborted = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) =>
    signal.aborted ? resolve() : signal.addEventListener("abort", () => resolve(), { once: true })
  );
