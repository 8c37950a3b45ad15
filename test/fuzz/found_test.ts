/** Everything that was ever found, replayed: on all judges, step by step, and in a real kernel where its packet can be sent. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { foundScenarios } from "./found.ts";
import { disagreementText } from "./judges.ts";
import { KernelJudge } from "./kernel/kernel_judge.ts";
import { isReal } from "./make_packet.ts";
import { disagreementIn, driftIn, JUDGES, kernelDriftIn, surpriseIn, verdictIn } from "./run.ts";

let kernel: KernelJudge;
beforeAll(async () => void (kernel = await KernelJudge.open()));
afterAll(async () => await kernel[Symbol.asyncDispose]());

describe.each(foundScenarios())("$name", ({ scenario }) => {
  const { packet } = scenario;

  test("followed step by step it is as from scratch, in the kernel too", async () => {
    expect(driftIn(scenario)).toBeUndefined();
    expect(await kernelDriftIn(scenario, kernel)).toBeUndefined();
  });

  if (packet === undefined) return;

  test("all judges say what is expected", () => {
    const found = disagreementIn(scenario, JUDGES);
    expect(found && disagreementText(found)).toBeUndefined();
    expect(verdictIn(scenario, JUDGES[0]!)).toBe(scenario.expect!);
  });

  test.skipIf(!isReal(packet))("the kernel does it", async () => {
    expect((await surpriseIn(scenario, kernel, JUDGES))?.text).toBeUndefined();
  });
});
