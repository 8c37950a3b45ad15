import type { Clock } from "../../src/sdk/plugin.ts";

/** At most that long at a stretch on the thread that answers pods. */
const TURN_MS = 3;

/** Long work on the thread that everybody shares, cut into turns: `if (turns.isOver()) await turns.next()` between two steps. */
export class Turns {
  private endMs: number;

  constructor(private readonly clock: Pick<Clock, "nowMs">) {
    this.endMs = clock.nowMs() + TURN_MS;
  }

  isOver(): boolean {
    return this.clock.nowMs() >= this.endMs;
  }

  /** Lets everybody else have a turn. */
  async next(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.endMs = this.clock.nowMs() + TURN_MS;
  }
}
