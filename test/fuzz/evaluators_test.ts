/** The fixed seeds: oracle, evaluator and tracer agree on every packet, and a world followed step by step is that of a fresh start. */
import { expect, test } from "bun:test";
import { keep } from "./found.ts";
import { runSeed } from "./run.ts";

const SEEDS = 40, STEPS = 5, PACKETS = 120;
const PACKETS_LEAST = 20_000;
const totals = { packets: 0, allowed: 0 };

test.each(Array.from({ length: SEEDS }, (_, index) => index + 1))("seed %d", async (seed) => {
  const { packets, allowed, failure } = await runSeed({ seed, steps: STEPS, packets: PACKETS });
  totals.packets += packets;
  totals.allowed += allowed;
  if (failure !== undefined) throw new Error(keep(failure));
}, 120_000);

test("that were many packets, and neither verdict was rare", () => {
  expect(totals.packets).toBeGreaterThanOrEqual(PACKETS_LEAST);
  expect(totals.allowed / totals.packets).toBeGreaterThan(0.25);
  expect(totals.allowed / totals.packets).toBeLessThan(0.75);
});
