/** The calculation: from nothing to the desired state of a large world, and single changes after. */
import { join } from "node:path";
import type { CalcMeasurement } from "./calc_process.ts";
import { atMost, type Goal, median, table } from "./measure.ts";
import { LOCALS, POLICIES, REMOTES, RULES } from "./policy_world.ts";

const ROUNDS = 3;
const KINDS = [
  ["the labels of a remote pod that sets speak of", "labelChange"],
  ["one remote pod more", "podAdded"],
  ["the port of a policy that applies here", "policyChange"],
] as const;

export async function benchCalc(): Promise<Goal[]> {
  const found: CalcMeasurement[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const child = Bun.spawn({
      cmd: [process.execPath, "--no-install", join(import.meta.dir, "calc_process.ts")],
      stdio: ["ignore", "pipe", "inherit"],
    });
    const text = await new Response(child.stdout).text();
    if (await child.exited !== 0) throw new Error(`the calculation ended with status ${child.exitCode}`);
    found.push(JSON.parse(text) as CalcMeasurement);
  }
  const of = (pick: (one: CalcMeasurement) => number) => median(found.map(pick));
  const snapshotSeconds = of((one) => one.snapshotMs) / 1000, heapMb = of((one) => one.heapBytes) / 1e6;
  console.log(
    `\nCalculation: ${POLICIES} policies of ${RULES} rules, ${REMOTES} remote endpoints, ${LOCALS} local; median of ${ROUNDS} processes`,
  );
  console.log(
    `  from nothing to the desired state: ${snapshotSeconds.toFixed(2)} s, ${
      heapMb.toFixed(0)
    } MB of heap with the world itself; ` +
      `${found[0]!.sets} sets of ${found[0]!.members} members`,
  );
  console.log(table(
    ["then", "p50 µs", "p99 µs"],
    KINDS.map(([title, kind]) => [
      title,
      of((one) => one[kind].p50Us).toFixed(0),
      of((one) => one[kind].p99Us).toFixed(0),
    ]),
  ));
  const micros = (value: number) => `${value.toFixed(0)} µs`;
  return [
    atMost("calculation from nothing", snapshotSeconds, 3, (value) => `${value.toFixed(2)} s`),
    atMost("heap of the calculation and its world", heapMb, 300, (value) => `${value.toFixed(0)} MB`),
    ...KINDS.map(([title, kind]) => atMost(`calculation, ${title}, p99`, of((one) => one[kind].p99Us), 1_000, micros)),
  ];
}
