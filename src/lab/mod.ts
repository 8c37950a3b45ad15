/** `manx lab run`: scenarios tried with real packets in a sandbox. */
import { readFileSync, writeSync } from "node:fs";
import { PR, prctl } from "../kernel/libc.ts";
import { namespacePath } from "../kernel/netns.ts";
import { explainError } from "../sdk/errors.ts";
import { lackOfKernel } from "./dataplanes.ts";
import { Machine } from "./machine.ts";
import {
  COLOURED,
  type Paint,
  PLAIN,
  renderBeforeAndAfter,
  renderOutcome,
  renderReady,
  renderStep,
  renderTitle,
  renderTotal,
  scenarioHolds,
  type ScenarioReport,
  toJson,
} from "./report.ts";
import { isPermission, runScenario } from "./run.ts";
import type { Sandbox } from "./sandbox.ts";
import { type Scenario, ScenarioError } from "./scenario.ts";
import { parseScenario } from "./scenario_parser.ts";
import { childEnvironment, type SelfCommand, selfCommand } from "./self.ts";

export interface LabOptions {
  readonly files: readonly string[];
  /** A built-in name, or the absolute path of a plugin file; default nftables. `ipvs`: services by it, policy by nftables. */
  readonly dataplane?: string;
  /** Leave each sandbox standing when its steps are done, until interrupted, and say how to enter it. */
  readonly keep?: boolean;
  /** Escape sequences for colour. */
  readonly color?: boolean;
  /** One JSON document on standard output instead of text. */
  readonly json?: boolean;
  /** The product as a command; default: this program. */
  readonly self?: SelfCommand;
  /** Where text goes; default: standard output. */
  readonly write?: (text: string) => void;
  /** Where problems go; default: standard error. */
  readonly complain?: (text: string) => void;
}

const DEFAULT_DATAPLANE = "nftables";

/** Exit statuses. */
export const LAB_HOLDS = 0;
export const LAB_DOES_NOT_HOLD = 1;
/** A scenario cannot be read, or this machine cannot run any. */
export const LAB_CANNOT_RUN = 2;
/** 128 + the signal's number, as shells count. */
const SIGNAL_STATUS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;
type EndingSignal = keyof typeof SIGNAL_STATUS;

/** In the environment of the copy of ourselves that runs in a user namespace: the second try is the last. */
const INSIDE = "MANX_LAB_USER_NAMESPACE";

const SIGTERM = 15;
/** One key press may reach us twice, from the terminal and from our other half. */
const INSIST_AFTER_MS = 500;

class Interrupted extends Error {
  constructor(readonly signal: EndingSignal) {
    super(`interrupted by ${signal}`);
  }
}

/**
 * Runs the scenarios one after another and returns the exit status: 0 only if every line of every file holds. Where this process may not
 * make network namespaces it runs itself again in a user namespace, where it may.
 */
export async function runLab(options: LabOptions): Promise<number> {
  const write = options.write ?? ((text: string) => writeWhole(1, text));
  const complain = options.complain ?? ((text: string) => writeWhole(2, text));
  const scenarios: Scenario[] = [];
  const problems = options.files.flatMap((file) => {
    try {
      scenarios.push(parseScenario(file, readText(file)));
      return [];
    } catch (error) {
      if (error instanceof ScenarioError) return error.problems;
      return [explainError(error)];
    }
  });
  if (options.files.length === 0) problems.push("found no scenario files, wanted at least one");
  if (options.keep === true && options.files.length > 1) {
    problems.push(`keep: found ${options.files.length} scenario files, wanted one`);
  }
  if (problems.length > 0) {
    complain(problems.map((problem) => `${problem}\n`).join(""));
    return LAB_CANNOT_RUN;
  }

  const lack = lackOfKernel(options.dataplane ?? DEFAULT_DATAPLANE);
  if (lack !== undefined) {
    complain(`${lack}\n`);
    return LAB_CANNOT_RUN;
  }

  const refusal = tryNamespaces();
  if (refusal !== undefined) {
    if (process.env[INSIDE] === undefined) return await runInUserNamespace(options, complain);
    complain(`${refusal}\n`);
    return LAB_CANNOT_RUN;
  }

  // The copy in a user namespace goes down with whoever started it.
  if (process.env[INSIDE] !== undefined) prctl(PR.SET_PDEATHSIG, SIGTERM);
  const stop = new AbortController();
  let stoppedMs = 0;
  using _ = onEndingSignals((signal) => {
    // Whoever asks again means it: children die with us, and namespaces with the last of them.
    if (stop.signal.aborted && performance.now() - stoppedMs > INSIST_AFTER_MS) process.exit(SIGNAL_STATUS[signal]);
    stoppedMs = performance.now();
    stop.abort(new Interrupted(signal));
  });
  try {
    const reports: ScenarioReport[] = [];
    for (const scenario of scenarios) {
      if (reports.length > 0 && options.json !== true) write("\n");
      reports.push(await runOne(scenario, options, write, stop.signal));
    }
    if (options.json === true) write(JSON.stringify(toJson(reports), null, 2) + "\n");
    else if (reports.length > 1) write(renderTotal(reports, paintOf(options)));
    return reports.every(scenarioHolds) ? LAB_HOLDS : LAB_DOES_NOT_HOLD;
  } catch (error) {
    if (error instanceof Interrupted) {
      complain(`${error.message}; the sandbox is taken down\n`);
      return SIGNAL_STATUS[error.signal];
    }
    complain(`${explainError(error)}\n`);
    return LAB_CANNOT_RUN;
  }
}

async function runOne(
  scenario: Scenario,
  options: LabOptions,
  write: (text: string) => void,
  signal: AbortSignal,
): Promise<ScenarioReport> {
  const paint = paintOf(options);
  const say = options.json === true ? () => {} : write;
  say(renderTitle(scenario, paint));
  const dataplane = options.dataplane ?? DEFAULT_DATAPLANE;
  const report = await runScenario(scenario, {
    dataplane,
    self: options.self ?? selfCommand(),
    signal,
    onReady: (_, readyMs) => say(renderReady(dataplane, readyMs, paint)),
    onStep: (step, index, before) => say(renderStep(step, index + 1, before, paint)),
    onEnd: async (sandbox, ended) => {
      if (options.keep !== true) return;
      say(renderBeforeAndAfter(ended, paint) + renderOutcome(ended, paint) + renderEntries(sandbox, paint));
      await aborted(signal);
    },
  });
  if (options.keep !== true || report.steps.length === 0) {
    say(renderBeforeAndAfter(report, paint) + renderOutcome(report, paint));
  }
  return report;
}

function onEndingSignals(listener: (signal: EndingSignal) => void): Disposable {
  const removers = (Object.keys(SIGNAL_STATUS) as EndingSignal[]).map((signal) => {
    const heard = () => listener(signal);
    process.on(signal, heard);
    return () => process.off(signal, heard);
  });
  return { [Symbol.dispose]: () => removers.forEach((remove) => remove()) };
}

/** All of it, before anything may end the process. A reader that went away is no error of ours. */
function writeWhole(fd: number, text: string): void {
  let bytes: Uint8Array = new TextEncoder().encode(text);
  while (bytes.length > 0) {
    try {
      bytes = bytes.subarray(writeSync(fd, bytes));
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === "EPIPE") return;
      if (code !== "EAGAIN") throw error;
      Bun.sleepSync(1);
    }
  }
}

const paintOf = ({ color }: LabOptions): Paint => color === true ? COLOURED : PLAIN;

/** How to get into a sandbox that is kept. */
function renderEntries(sandbox: Sandbox, paint: Paint): string {
  const machines = [...sandbox.nodes.values(), ...sandbox.pods.values(), ...sandbox.hosts.values()];
  const width = Math.max(...machines.map(({ name }) => name.length));
  const enter = process.env[INSIDE] === undefined
    ? "nsenter"
    : `nsenter --preserve-credentials --user=/proc/${process.pid}/ns/user`;
  const lines = machines.map(({ name, namespace }) =>
    `    ${name.padEnd(width)}  ${enter} --net=${namespacePath(namespace)} bash`
  );
  return `\n  The sandbox stands until you press Ctrl-C. To look inside, from another terminal:\n${
    paint.faint(lines.join("\n"))
  }\n`;
}

const aborted = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) =>
    signal.aborted ? resolve() : signal.addEventListener("abort", () => resolve(), { once: true })
  );

function readText(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    const found = code === "ENOENT" ? "no such file" : code === "EISDIR" ? "a directory" : (cause as Error).message;
    throw new Error(`${file}: found ${found}, wanted a scenario in YAML`);
  }
}

/** Why namespaces cannot be made here; undefined where they can. */
function tryNamespaces(): string | undefined {
  try {
    using _ = new Machine("trial", "a trial namespace");
    return undefined;
  } catch (error) {
    if (!isPermission(error)) throw error;
    return `${explainError(error)}: wanted root (CAP_SYS_ADMIN), or a kernel that lets users make user namespaces ` +
      "(sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)";
  }
}

/** The same command once more, as root of a user namespace and a network namespace of its own: unshare(1) of util-linux. */
async function runInUserNamespace(options: LabOptions, complain: (text: string) => void): Promise<number> {
  const unshare = Bun.which("unshare");
  if (unshare === null) {
    complain(
      "found no unshare program (util-linux) and no permission to make network namespaces, wanted one of them\n",
    );
    return LAB_CANNOT_RUN;
  }
  const flags = [
    ...(options.dataplane === undefined ? [] : ["--dataplane", options.dataplane]),
    ...(options.keep === true ? ["--keep"] : []),
    ...(options.json === true ? ["--json"] : []),
  ];
  const self = options.self ?? selfCommand();
  const colour: Record<string, string> = options.color === true ? {} : { NO_COLOR: "1" };
  const child = Bun.spawn({
    cmd: [unshare, "--user", "--map-root-user", "--net", "--", ...self, "lab", "run", ...flags, "--", ...options.files],
    env: childEnvironment({ [INSIDE]: "1", ...colour }),
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  });
  // It gets a terminal's signals itself; one sent to us alone is passed on. Our own end waits for its clean one.
  using _ = onEndingSignals((signal) => child.kill(signal));
  await child.exited;
  if (child.signalCode !== null) return LAB_CANNOT_RUN;
  return child.exitCode ?? LAB_CANNOT_RUN;
}
