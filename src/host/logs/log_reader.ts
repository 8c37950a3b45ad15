/** One who reads logged packets, at a pace of their own. */
import type { LogEvent, LogQuery, NameView } from "./packet_log_view.ts";

/** Events that wait for a reader; what comes beyond is skipped, and the reader is told how much. */
export const READER_QUEUE_MAX = 1_024;

export class LogReader {
  readonly #query: LogQuery;
  /** First what is kept, which is bounded by itself, then what came since. */
  readonly #past: readonly LogEvent[];
  readonly #queue: LogEvent[] = [];
  #skipped = 0;
  #ended = false;
  #wake = () => {};

  constructor(query: LogQuery, past: readonly LogEvent[]) {
    this.#query = query;
    this.#past = past;
  }

  /** False: it was skipped. */
  offer(event: LogEvent): boolean {
    if (this.#ended || !isWanted(event, this.#query)) return true;
    if (this.#queue.length >= READER_QUEUE_MAX) {
      this.#skipped++;
      return false;
    }
    this.#tellSkipped();
    this.#queue.push(event);
    this.#wake();
    return true;
  }

  /** Nothing more is offered; what waits is still read. */
  end(): void {
    this.#ended = true;
    this.#wake();
  }

  async *events(signal: AbortSignal, left: () => void): AsyncGenerator<LogEvent, void, undefined> {
    const wake = () => this.#wake();
    signal.addEventListener("abort", wake, { once: true });
    try {
      for (const event of this.#past) {
        if (signal.aborted) return;
        yield event;
      }
      while (!signal.aborted) {
        if (this.#queue.length === 0) this.#tellSkipped();
        const event = this.#queue.shift();
        if (event !== undefined) yield event;
        else if (this.#ended) return;
        else await new Promise<void>((resolve) => this.#wake = resolve);
      }
    } finally {
      signal.removeEventListener("abort", wake);
      left();
    }
  }

  #tellSkipped(): void {
    if (this.#skipped === 0) return;
    this.#queue.push({ event: "skipped", events: this.#skipped });
    this.#skipped = 0;
  }
}

/** Losses concern every reader. */
export function isWanted(event: LogEvent, { pod, verdict }: LogQuery): boolean {
  const isPod = (owner?: NameView) => pod === undefined || owner?.kind === "pod" && owner.name === pod;
  switch (event.event) {
    case "packet": {
      const { source, destination, endpoint } = event;
      return (verdict === undefined || event.verdict === verdict) &&
        [source.owner, destination.owner, endpoint].some(isPod);
    }
    case "denied":
      return verdict !== "log" && isPod(event.endpoint);
    default:
      return true;
  }
}
