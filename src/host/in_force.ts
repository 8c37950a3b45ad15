/** Whether everything that is known is in force. */
import { systemClock } from "./clock.ts";
import type { Reconciler } from "./reconcile.ts";

/** Of one wait for a report. */
const WAIT_MS = 10_000;
const LOOK_MS = 100;

export function isInForce(reconciler: Reconciler): boolean {
  const { wanted, applied, dataplane } = reconciler.status();
  return dataplane.converged && applied >= wanted;
}

/** Returns when it is, or `signal` aborts. */
export async function untilInForce(reconciler: Reconciler, signal: AbortSignal): Promise<void> {
  while (!signal.aborted && !isInForce(reconciler)) {
    await reconciler.programmed([], WAIT_MS, signal).catch(() => {});
    if (!isInForce(reconciler)) await systemClock.sleep(LOOK_MS, signal).catch(() => {});
  }
}
