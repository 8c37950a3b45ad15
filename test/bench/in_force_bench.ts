/** From a stored policy to the kernel's acknowledgement, on a node of many pods and policies. */
import { join } from "node:path";
import type { ChangeKind, InForceMeasurement } from "./in_force_process.ts";
import { atMost, type Goal, median, ms, percentile, table } from "./measure.ts";

const ROUNDS = 3;
const TITLES: Readonly<Record<ChangeKind, string>> = {
  port: "a policy's port",
  peer: "a policy's peers and port",
  "new policy": "a policy more",
  "deleted policy": "a policy less",
  "new peer pod": "a pod more among a policy's peers",
};
const POLICY_CHANGES = ["port", "peer", "new policy", "deleted policy"] as const;

export async function benchInForce(): Promise<Goal[]> {
  const rounds: InForceMeasurement[] = [];
  for (let round = 0; round < ROUNDS; round++) rounds.push(await measureOnce());
  const of = (pick: (one: InForceMeasurement) => number) => median(rounds.map(pick));
  const percentileOf = (kinds: readonly ChangeKind[], fraction: number) =>
    of(({ samples }) => percentile(kinds.flatMap((kind) => samples[kind]), fraction));
  console.log(
    `\nFrom the datastore's event to the kernel's acknowledgement: 100 local pods, each selected by 100 policies of its own (10,000); ` +
      `median of ${ROUNDS} processes`,
  );
  console.log(`  everything in force for the first time: ${(of(({ startMs }) => startMs) / 1000).toFixed(2)} s`);
  console.log(table(
    ["change", "p50 ms", "p99 ms"],
    Object.entries(TITLES).map(([kind, title]) => [
      title,
      ms(percentileOf([kind as ChangeKind], 0.5)),
      ms(percentileOf([kind as ChangeKind], 0.99)),
    ]),
  ));
  const milliseconds = (value: number) => `${ms(value)} ms`;
  return [
    atMost("policy change to in force, p50", percentileOf(POLICY_CHANGES, 0.5), 3, milliseconds),
    atMost("policy change to in force, p99", percentileOf(POLICY_CHANGES, 0.99), 20, milliseconds),
  ];
}

async function measureOnce(): Promise<InForceMeasurement> {
  const child = Bun.spawn({
    cmd: [process.execPath, "--no-install", join(import.meta.dir, "in_force_process.ts")],
    // The limit that deploy/manx.service sets.
    env: { ...process.env, BUN_JSC_forceRAMSize: "134217728" },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const text = await new Response(child.stdout).text();
  if (await child.exited !== 0) throw new Error(`the measurement ended with status ${child.exitCode}`);
  return JSON.parse(text) as InForceMeasurement;
}
