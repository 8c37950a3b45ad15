/** Long calculations beside everything else that the daemon has to do. */

/** How long one may hold the event loop. */
const HOLD_MS = 8;

/** Await it often: it lets others run when it is their turn. It throws the reason of `signal` once that is aborted. */
export function createPause(signal?: AbortSignal): () => Promise<void> {
  let sinceMs = performance.now();
  return async () => {
    signal?.throwIfAborted();
    if (performance.now() - sinceMs < HOLD_MS) return;
    await new Promise<void>((resolve) => setImmediate(resolve));
    signal?.throwIfAborted();
    sinceMs = performance.now();
  };
}
