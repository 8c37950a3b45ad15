import type { TimingView } from "./view.ts";

/** Durations that are remembered for the percentiles. */
const REMEMBERED = 1_000;

export interface Timings {
  add(ms: number): void;
  view(): TimingView;
}

/** The last durations of one operation. */
export function createTimings(): Timings {
  const ring: number[] = [];
  let count = 0;
  return {
    add(ms) {
      ring[count++ % REMEMBERED] = ms;
    },
    view() {
      const sorted = ring.toSorted((a, b) => a - b);
      const at = (share: number) => round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0);
      return { count, p50Ms: at(0.5), p99Ms: at(0.99), maxMs: round(sorted.at(-1) ?? 0) };
    },
  };
}

/** Milliseconds to the microsecond. */
export const round = (ms: number): number => Math.round(ms * 1000) / 1000;
