/** Start to exit of the binary, beside plugins written in Go. */
import { join } from "node:path";
import { callPlugin, PLUGIN_DIRECTORY } from "./cni_peers.ts";
import { atMost, type Goal, median, ms, percentile, table, timed } from "./measure.ts";

const ROUNDS = 100;
const VERSION_CALL = { command: "VERSION", containerId: "", netns: "" } as const;
const VERSION_CONFIG = { cniVersion: "1.0.0" };

export async function benchStartup(binary: string): Promise<Goal[]> {
  const version = async () => {
    const child = Bun.spawn({ cmd: [binary, "version"], env: {}, stdio: ["ignore", "pipe", "inherit"] });
    await new Response(child.stdout).text();
    await child.exited;
  };
  const subjects: readonly (readonly [string, () => Promise<unknown>])[] = [
    ["/bin/true", () => Bun.spawn({ cmd: ["/bin/true"], stdio: ["ignore", "ignore", "ignore"] }).exited],
    ["ptp VERSION (Go)", () => callPlugin(join(PLUGIN_DIRECTORY, "ptp"), VERSION_CALL, VERSION_CONFIG)],
    ["host-local VERSION (Go)", () => callPlugin(join(PLUGIN_DIRECTORY, "host-local"), VERSION_CALL, VERSION_CONFIG)],
    ["manx CNI VERSION", () => callPlugin(binary, VERSION_CALL, VERSION_CONFIG)],
    ["manx version", version],
  ];
  const samples = new Map<string, number[]>();
  // Taken in turns, so that a noisy moment of the machine meets them all.
  for (let round = 0; round < ROUNDS; round++) {
    for (const [title, run] of subjects) {
      const [sample] = await timed(1, run);
      samples.set(title, [...samples.get(title) ?? [], sample!]);
    }
  }
  console.log(`\nStart to exit, ${ROUNDS} rounds in turns`);
  console.log(table(
    ["process", "median ms", "p99 ms"],
    subjects.map(([title]) => [title, ms(median(samples.get(title)!)), ms(percentile(samples.get(title)!, 0.99))]),
  ));
  const milliseconds = (value: number) => `${ms(value)} ms`;
  return [
    atMost("start of `manx version`, median", median(samples.get("manx version")!), 10, milliseconds),
    atMost("start of CNI VERSION, median", median(samples.get("manx CNI VERSION")!), 10, milliseconds),
  ];
}
