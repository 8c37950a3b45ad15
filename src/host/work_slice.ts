import type { Clock } from "../sdk/plugin.ts";

/** At most that long at a stretch on the thread that answers pods. */
const SLICE_MS = 3;

/** A stretch of long work on the thread that everybody shares: `if (slice.isOver()) await slice.next()` between two steps. */
export class WorkSlice {
  readonly #clock: Clock;
  #endMs: number;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#endMs = clock.nowMs() + SLICE_MS;
  }

  isOver(): boolean {
    return this.#clock.nowMs() >= this.#endMs;
  }

  /** Lets everybody else have a turn. */
  async next(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.#endMs = this.#clock.nowMs() + SLICE_MS;
  }
}
