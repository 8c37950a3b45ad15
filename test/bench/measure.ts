/** Samples, percentiles and the tables that `npm run bench` prints. */

/** Linear interpolation between closest ranks; `fraction` from 0 to 1. NaN of no samples. */
export function percentile(samples: readonly number[], fraction: number): number {
  const sorted = [...samples].sort((a, b) => a - b);
  const at = (sorted.length - 1) * fraction;
  const low = sorted[Math.floor(at)] ?? NaN;
  const high = sorted[Math.ceil(at)] ?? NaN;
  return low + (high - low) * (at - Math.floor(at));
}

export const median = (samples: readonly number[]): number => percentile(samples, 0.5);

/** Milliseconds of each of `rounds` runs of `body`, one after another. */
export async function timed(rounds: number, body: (round: number) => Promise<unknown> | unknown): Promise<number[]> {
  const samples: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const startMs = performance.now();
    await body(round);
    samples.push(performance.now() - startMs);
  }
  return samples;
}

/** Runs `body` for 0 … count-1, `width` at a time. Returns the wall time of all in milliseconds. */
export async function inParallel(
  count: number,
  width: number,
  body: (index: number) => Promise<unknown>,
): Promise<number> {
  const startMs = performance.now();
  let next = 0;
  await Promise.all(Array.from({ length: width }, async () => {
    while (next < count) await body(next++);
  }));
  return performance.now() - startMs;
}

export const ms = (value: number): string => value.toFixed(value < 10 ? 2 : 1);
export const ratio = (value: number): string => `${value.toFixed(2)} ×`;

/** One claim of the benchmark: what was measured, as a ratio or a number, and the goal it is held against. */
export interface Goal {
  readonly title: string;
  readonly measured: string;
  readonly wanted: string;
  readonly met: boolean;
}

export const atMost = (
  title: string,
  measured: number,
  limit: number,
  show: (value: number) => string = ratio,
): Goal => ({
  title,
  measured: show(measured),
  wanted: `≤ ${show(limit)}`,
  met: measured <= limit,
});

export const atLeast = (
  title: string,
  measured: number,
  limit: number,
  show: (value: number) => string = ratio,
): Goal => ({
  title,
  measured: show(measured),
  wanted: `≥ ${show(limit)}`,
  met: measured >= limit,
});

/** A table with a ruled head; the first column is left, the others right aligned. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((cell, column) => Math.max(cell.length, ...rows.map((row) => (row[column] ?? "").length)));
  const line = (cells: readonly string[]) =>
    "  " +
    widths.map((
      width,
      column,
    ) => (column === 0 ? (cells[column] ?? "").padEnd(width) : (cells[column] ?? "").padStart(width))).join("   ");
  return [line(head), "  " + "─".repeat(widths.reduce((sum, width) => sum + width + 3, -3)), ...rows.map(line)].join(
    "\n",
  );
}
