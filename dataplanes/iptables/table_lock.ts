/** The lock that everybody holds who writes legacy iptables. */
import type { Host } from "../../src/sdk/plugin.ts";
import type { IptablesConfig } from "./config.ts";
import { holderOf } from "./lock_holder.ts";

/** Between two tries. */
const LOCK_RETRY_MS = 10;

type LockConfig = Pick<IptablesConfig, "lockFile" | "lockWaitMs">;

/** Undefined: somebody else held it all the time. */
export async function takeLock(
  { clock, kernel }: Host,
  { lockFile, lockWaitMs }: LockConfig,
  signal: AbortSignal = new AbortController().signal,
): Promise<Disposable | undefined> {
  const untilMs = clock.nowMs() + lockWaitMs;
  for (;;) {
    const held = kernel.tryLock(lockFile);
    if (held !== undefined) return held;
    if (clock.nowMs() >= untilMs || signal.aborted) return undefined;
    await clock.sleep(LOCK_RETRY_MS, signal).catch(() => {});
  }
}

/** What to say where it was not to be had. */
export function lockProblem({ lockFile, lockWaitMs }: LockConfig): string {
  const holder = holderOf(lockFile), named = holder === undefined ? "" : ` (${holder})`;
  return `lock ${lockFile}: found it held by somebody else${named} for ${lockWaitMs} ms, wanted it to write iptables: nothing was written; tried again later`;
}
