/**
 * The differential fuzzer's fixed seeds in a real kernel: packets and connections go the way the oracle says, and rules that grew are
 * those of a fresh start. Call `dataplaneFuzz` in a test file of the dataplane.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { keep } from "../fuzz/found.ts";
import { type JudgedDataplane, KernelJudge } from "../fuzz/kernel/kernel_judge.ts";
import { runSeed } from "../fuzz/run.ts";

const FIRST_SEED = 1_001, STEPS = 4, PACKETS = 80;
const SEED_DEADLINE_MS = 120_000;
/** Of each seed, on average. */
const SENT_LEAST = 200, PROBES_LEAST = 10;

/** `judged` absent: nftables. */
export function dataplaneFuzz(name: string, seeds: number, judged?: JudgedDataplane): void {
  describe(`fuzzed packets by dataplane: ${name}`, () => {
    const totals = { sent: 0, allowed: 0, packets: 0, probes: 0 };
    let kernel: KernelJudge;
    beforeAll(async () => void (kernel = await KernelJudge.open(judged)));
    afterAll(async () => await kernel[Symbol.asyncDispose]());

    test.each(Array.from({ length: seeds }, (_, index) => FIRST_SEED + index))("seed %d", async (seed) => {
      const { failure, ...report } = await runSeed({ seed, steps: STEPS, packets: PACKETS, kernel, probes: true });
      for (const key of ["sent", "allowed", "packets", "probes"] as const) totals[key] += report[key];
      if (failure !== undefined) throw new Error(keep(failure));
    }, SEED_DEADLINE_MS);

    test("that were many packets, neither verdict was rare, and nothing arrived late", async () => {
      expect(await kernel.finish()).toEqual([]);
      expect(totals.sent).toBeGreaterThanOrEqual(SENT_LEAST * seeds);
      expect(totals.probes).toBeGreaterThanOrEqual(PROBES_LEAST * seeds);
      expect(totals.allowed / totals.packets).toBeGreaterThan(0.25);
      expect(totals.allowed / totals.packets).toBeLessThan(0.75);
    });
  });
}
