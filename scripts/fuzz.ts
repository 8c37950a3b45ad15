/**
 * `npm run fuzz [-- --seed N --minutes M]`: random worlds without end, a seed after the other, until two who judge a packet differ.
 * Ends with status 1 then, and says who said what and why, and where the smallest scenario is kept.
 */
import { parseArgs } from "node:util";
import { keep } from "../test/fuzz/found.ts";
import { KernelJudge } from "../test/fuzz/kernel/kernel_judge.ts";
import { type Failure, type RunReport, runSeed } from "../test/fuzz/run.ts";

const STEPS = { judges: 6, kernel: 3 } as const;
const PACKETS = { judges: 200, kernel: 120 } as const;
const SEED_LIMIT = 2 ** 31;

function refuse(reason: string): never {
  console.error(`fuzz: ${reason}`);
  process.exit(2);
}

function readOptions() {
  try {
    const { values } = parseArgs({ options: { seed: { type: "string" }, minutes: { type: "string" } } });
    const number = (name: "seed" | "minutes", wanted: string, isGood: (value: number) => boolean) => {
      const text = values[name];
      if (text === undefined) return undefined;
      const value = Number(text);
      return text.trim() !== "" && isGood(value) ? value : refuse(`--${name}: found ${text}, wanted ${wanted}`);
    };
    return {
      seed: number(
        "seed",
        `a whole number from 0 to ${SEED_LIMIT - 1}`,
        (value) => Number.isInteger(value) && value >= 0 && value < SEED_LIMIT,
      ),
      minutes: number("minutes", "a number above 0", (value) => value > 0),
    };
  } catch (error) {
    return refuse((error as Error).message);
  }
}

const { seed: first = crypto.getRandomValues(new Uint32Array(1))[0]! % SEED_LIMIT, minutes } = readOptions();
const startMs = performance.now();
const endMs = minutes === undefined ? Infinity : startMs + minutes * 60_000;

await using kernel = await openKernel();
let isStopped = false;
process.on("SIGINT", () => void (isStopped = true));

const totals = { seeds: 0, packets: 0, sent: 0, probes: 0 };
let failure: Failure | undefined;
for (
  let seed = first;
  !isStopped && performance.now() < endMs && failure === undefined;
  seed = (seed + 1) % SEED_LIMIT
) {
  const seedMs = performance.now();
  const add = (report: RunReport) => {
    totals.packets += report.packets;
    totals.sent += report.sent;
    totals.probes += report.probes;
    return report.failure;
  };
  const before = { ...totals };
  failure = add(await runSeed({ seed, steps: STEPS.judges, packets: PACKETS.judges }));
  if (failure === undefined && kernel !== undefined) {
    failure = add(await runSeed({ seed, steps: STEPS.kernel, packets: PACKETS.kernel, kernel, probes: true }));
  }
  totals.seeds++;
  const count = (key: "packets" | "sent" | "probes") => totals[key] - before[key];
  console.log(
    `seed ${seed}: ${count("packets")} packets judged, ${count("sent")} sent, ${count("probes")} connections tried, ` +
      `${((performance.now() - seedMs) / 1000).toFixed(1)} s`,
  );
  // So that an interrupt is heard between two seeds.
  await new Promise((resolve) => setImmediate(resolve));
}

const late = failure === undefined ? await kernel?.finish() ?? [] : [];
console.log(
  `${totals.seeds} seeds from ${first}: ${totals.packets} packets judged, ${totals.sent} sent, ${totals.probes} connections tried, ` +
    `${Math.round((performance.now() - startMs) / 1000)} s`,
);
if (failure !== undefined) console.error(keep(failure));
for (const line of late) console.error(line);
process.exitCode = failure === undefined && late.length === 0 ? 0 : 1;

async function openKernel(): Promise<KernelJudge | undefined> {
  if (process.getuid?.() === 0) return await KernelJudge.open();
  console.error("no packets are sent: that needs root, for network namespaces");
  return undefined;
}
