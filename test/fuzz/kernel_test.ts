/** The fixed seeds in a real kernel: packets and connections go the way the oracle says, and rules that grew are those of a fresh start. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { keep } from "./found.ts";
import { KernelJudge } from "./kernel/kernel_judge.ts";
import { runSeed } from "./run.ts";

const FIRST_SEED = 1_001, SEEDS = 10, STEPS = 4, PACKETS = 80;
const SENT_LEAST = 2_000, PROBES_LEAST = 100;
const totals = { sent: 0, allowed: 0, packets: 0, probes: 0 };

let kernel: KernelJudge;
beforeAll(async () => void (kernel = await KernelJudge.open()));
afterAll(async () => await kernel[Symbol.asyncDispose]());

test.each(Array.from({ length: SEEDS }, (_, index) => FIRST_SEED + index))("seed %d", async (seed) => {
  const { failure, ...report } = await runSeed({ seed, steps: STEPS, packets: PACKETS, kernel, probes: true });
  for (const key of ["sent", "allowed", "packets", "probes"] as const) totals[key] += report[key];
  if (failure !== undefined) throw new Error(keep(failure));
}, 120_000);

test("that were many packets, neither verdict was rare, and nothing arrived late", async () => {
  expect(await kernel.finish()).toEqual([]);
  expect(totals.sent).toBeGreaterThanOrEqual(SENT_LEAST);
  expect(totals.probes).toBeGreaterThanOrEqual(PROBES_LEAST);
  expect(totals.allowed / totals.packets).toBeGreaterThan(0.25);
  expect(totals.allowed / totals.packets).toBeLessThan(0.75);
});
