/** Runs one scenario: builds its sandbox, takes its steps, tries its lines. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Address, addressFamily, type Family } from "../model/address.ts";
import { explainError, ManxError } from "../sdk/errors.ts";
import { SHARED_LINK } from "./address_plan.ts";
import type { Expectation, Party } from "./expectation.ts";
import { Prober, type ProbeResult } from "./prober.ts";
import { lineKey, type LineReport, type ScenarioReport, stepHolds, type StepReport } from "./report.ts";
import { Sandbox } from "./sandbox.ts";
import { fillPlaceholders, type Scenario, type ScenarioWorld, type Step } from "./scenario.ts";
import type { SelfCommand } from "./self.ts";

/** Room for a node's directory and socket below the limit of sockaddr_un. */
const DIRECTORY_BYTES_MAX = 70;

export interface ScenarioRun {
  readonly dataplane: string;
  readonly self: SelfCommand;
  readonly signal: AbortSignal;
  /** Called when the sandbox is up. */
  readonly onReady?: (sandbox: Sandbox, readyMs: number) => void;
  /** Called after each step. */
  readonly onStep?: (step: StepReport, index: number, before: StepReport | undefined) => void;
  /** Called at the end, before the sandbox is taken down. */
  readonly onEnd?: (sandbox: Sandbox, report: ScenarioReport) => Promise<void>;
}

/** Never throws for what a scenario or daemon does: that is in the report. @throws {KernelError} EPERM where namespaces may not be made; the signal's reason */
export async function runScenario(scenario: Scenario, run: ScenarioRun): Promise<ScenarioReport> {
  const startMs = performance.now();
  await using cleanup = new AsyncDisposableStack();
  const directory = scratchDirectory();
  cleanup.defer(() => rmSync(directory, { recursive: true, force: true }));
  const steps: StepReport[] = [];
  const report = (readyMs: number, error?: string): ScenarioReport => ({
    scenario,
    dataplane: run.dataplane,
    readyMs,
    totalMs: performance.now() - startMs,
    steps,
    ...(error === undefined ? {} : { error }),
  });

  let sandbox: Sandbox;
  try {
    const { dataplane, self, signal } = run;
    sandbox = cleanup.use(await Sandbox.open(scenario.world, { directory, dataplane, self, signal }));
  } catch (error) {
    run.signal.throwIfAborted();
    if (isPermission(error)) throw error;
    return report(performance.now() - startMs, `the sandbox could not be built: ${explainError(error)}`);
  }
  run.signal.throwIfAborted();
  const readyMs = performance.now() - startMs;
  run.onReady?.(sandbox, readyMs);

  const prober = cleanup.use(new Prober());
  const questions = new Map(scenario.steps.flatMap((step) => step.expect).map((line) => [lineKey(line), line]));
  for (const [index, step] of scenario.steps.entries()) {
    const before = steps.at(-1);
    const taken = await takeStep(scenario, step, questions, sandbox, prober, run.signal);
    steps.push(taken);
    run.onStep?.(taken, index, before);
    // Later steps build on this one.
    if (taken.error !== undefined) break;
  }
  const ended = report(
    readyMs,
    steps.length < scenario.steps.length ? "the steps after the failed one were not taken" : undefined,
  );
  await run.onEnd?.(sandbox, ended);
  return ended;
}

async function takeStep(
  scenario: Scenario,
  step: Step,
  questions: ReadonlyMap<string, Expectation>,
  sandbox: Sandbox,
  prober: Prober,
  signal: AbortSignal,
): Promise<StepReport> {
  const taken: StepReport = { step, changes: [], lines: [], unstated: new Map(), complaints: [] };
  let changed: Pick<StepReport, "changes" | "inForceMs"> = { changes: [] };
  try {
    changed = await change(scenario, step, sandbox);
  } catch (error) {
    signal.throwIfAborted();
    return { ...taken, error: explainError(error), complaints: await complaintsOf(sandbox) };
  }
  const tried = await tryLines(step, questions, sandbox, prober, signal);
  const report: StepReport = { ...taken, ...changed, ...tried };
  return stepHolds(report) ? report : { ...report, complaints: await complaintsOf(sandbox) };
}

async function change(
  scenario: Scenario,
  { action }: Step,
  sandbox: Sandbox,
): Promise<Pick<StepReport, "changes" | "inForceMs">> {
  if (action === undefined) return { changes: [] };
  const filled = fillPlaceholders(
    action.manifest.text,
    (name, family) => addressNamed(name, family, scenario.world, sandbox),
  );
  // Blank lines before it, so that the daemon's errors name the lines of the scenario file.
  const text = "\n".repeat(action.manifest.line - 1) + filled;
  const { results, inForceMs } = await sandbox.change(action.verb, text, scenario.file);
  const changes = results.map(({ kind, namespace, name, outcome }) =>
    `${kind.split(".")[0]} ${namespace === "" ? "" : `${namespace}/`}${name} ${outcome}`
  );
  return { changes, inForceMs };
}

function addressNamed(
  name: string,
  family: Family | undefined,
  world: ScenarioWorld,
  sandbox: Sandbox,
): Address | undefined {
  const party: Party = name.startsWith("node:")
    ? { kind: "node", name: name.slice("node:".length), link: SHARED_LINK }
    : world.hosts.some((host) => host.name === name)
    ? { kind: "host", name }
    : { kind: "pod", id: name.includes("/") ? name : `default/${name}` };
  return sandbox.addressesOf(party).find((address) => family === undefined || addressFamily(address) === family);
}

/** The step's own lines, and beside them what other steps ask, for the table of before and after: only seen, not judged. */
async function tryLines(
  step: Step,
  questions: ReadonlyMap<string, Expectation>,
  sandbox: Sandbox,
  prober: Prober,
  signal: AbortSignal,
): Promise<Pick<StepReport, "lines" | "unstated">> {
  const stated = new Set(step.expect.map(lineKey));
  const others = [...questions].filter(([key]) => !stated.has(key)).map(([, line]) => ({ ...line, allow: false }));
  const sets = [...step.expect, ...others].map((line) => sandbox.probes(line));
  const results = await prober.run(sets.flat(), signal);
  let taken = 0;
  const bySet = sets.map((set) => results.slice(taken, taken += set.length));
  const lines = step.expect.map((expectation, index): LineReport => ({ expectation, results: bySet[index]! }));
  const unstated = new Map<string, readonly ProbeResult[]>(
    others.map((line, index) => [lineKey(line), bySet[step.expect.length + index]!]),
  );
  return { lines, unstated };
}

/** What the daemons know of that is not as it should be. */
async function complaintsOf(sandbox: Sandbox): Promise<readonly string[]> {
  try {
    return (await sandbox.statuses()).flatMap((status) => [
      ...status.problems.map(({ subject, path, message }) =>
        `${status.node}: ${subject}${path === "" ? "" : ` ${path}`}: ${message}`
      ),
      ...status.dataplane.problems.map((problem) => `${status.node}: dataplane: ${problem}`),
      ...status.routing.problems.map((problem) => `${status.node}: routing: ${problem}`),
    ]);
  } catch (error) {
    return [explainError(error)];
  }
}

/** @throws {ManxError} where it cannot be made */
function scratchDirectory(): string {
  const base = Buffer.byteLength(tmpdir()) + 20 <= DIRECTORY_BYTES_MAX ? tmpdir() : "/tmp";
  try {
    return mkdtempSync(join(base, "manx-lab-"));
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    throw new ManxError(
      "scratch",
      `make a scratch directory in ${base}: found ${code}, wanted one to write to (TMPDIR names it)`,
    );
  }
}

/** Whether the kernel does not let this process make namespaces. */
export const isPermission = (error: unknown): boolean =>
  error instanceof Error && "errnoName" in error && error.errnoName === "EPERM" &&
  error.message.includes("create network namespace");
