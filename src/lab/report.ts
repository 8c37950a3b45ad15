/** What a lab run prints: each step as it is done, then a table of before and after; or everything as JSON. Pure: values in, text out. */
import { addressFamily, formatAddress } from "../model/address.ts";
import { type Expectation, partyName } from "./expectation.ts";
import type { Observation, ProbeResult } from "./prober.ts";
import type { Scenario, Step } from "./scenario.ts";

/** A line of a step with what came of it. */
export interface LineReport {
  readonly expectation: Expectation;
  /** One for each pair and family. */
  readonly results: readonly ProbeResult[];
}

export interface StepReport {
  readonly step: Step;
  /** What was applied or deleted: `NetworkPolicy default/allow-redis-nodejs created`. */
  readonly changes: readonly string[];
  /** Milliseconds until the change was in force on every node. */
  readonly inForceMs?: number;
  readonly lines: readonly LineReport[];
  /** What was observed for lines that other steps state and this one does not; by `lineKey`. */
  readonly unstated: ReadonlyMap<string, readonly ProbeResult[]>;
  /** Why the step could not be carried out. */
  readonly error?: string;
  /** What the daemons complained of, where a line does not hold. */
  readonly complaints: readonly string[];
}

export interface ScenarioReport {
  readonly scenario: Scenario;
  readonly dataplane: string;
  /** Milliseconds until the nodes were up and the pods attached. */
  readonly readyMs: number;
  readonly totalMs: number;
  readonly steps: readonly StepReport[];
  /** Why the scenario could not be run, or ended early. */
  readonly error?: string;
}

export const lineHolds = ({ results }: LineReport): boolean =>
  results.length > 0 && results.every(({ holds }) => holds);
export const stepHolds = ({ lines, error }: StepReport): boolean => error === undefined && lines.every(lineHolds);
export const scenarioHolds = ({ steps, error, scenario }: ScenarioReport): boolean =>
  error === undefined && steps.length === scenario.steps.length && steps.every(stepHolds);

/** The same question in two steps has the same key. */
export const lineKey = ({ source, target, protocol, port }: Expectation): string =>
  `${source} ${target} ${protocol} ${port}`;

/** Escape sequences, or nothing. */
export interface Paint {
  readonly good: (text: string) => string;
  readonly bad: (text: string) => string;
  readonly warn: (text: string) => string;
  readonly strong: (text: string) => string;
  readonly faint: (text: string) => string;
}

const sgr = (on: number, off: number) => (text: string): string => `\x1b[${on}m${text}\x1b[${off}m`;
const plain = (text: string): string => text;
export const COLOURED: Paint = {
  good: sgr(32, 39),
  bad: sgr(31, 39),
  warn: sgr(33, 39),
  strong: sgr(1, 22),
  faint: sgr(2, 22),
};
export const PLAIN: Paint = { good: plain, bad: plain, warn: plain, strong: plain, faint: plain };

const WORDS: Readonly<Record<Observation, string>> = {
  answered: "answered",
  silent: "silent",
  blocked: "not sent",
  arrived: "arrived, unanswered",
  refused: "refused",
  unreachable: "unreachable",
  "wrong-answer": "wrong answer",
};

/** Columns a grid of sources and targets may take. */
const GRID_COLUMNS = 100;
/** Probes of a failing line that are told one by one. */
const DETAILS_SHOWN = 8;
const INDENT = "     ";
const TABLE_TITLE = "before and after";

export function renderTitle(scenario: Scenario, paint: Paint): string {
  const { nodes, pods, hosts, dnat } = scenario.world;
  const parts = [
    count(nodes.length, "node"),
    count(pods.length, "pod"),
    ...(hosts.length > 0 ? [count(hosts.length, "outside host")] : []),
    ...(dnat.length > 0 ? [`${dnat.length} translated ${dnat.length === 1 ? "port" : "ports"}`] : []),
  ];
  return `${paint.strong(scenario.title)}\n${paint.faint(`${scenario.file} · ${parts.join(", ")}`)}\n`;
}

export const renderReady = (dataplane: string, readyMs: number, paint: Paint): string =>
  `${paint.faint(`daemons up, pods attached through CNI in ${seconds(readyMs)}, dataplane ${dataplane}`)}\n`;

/** `number` counts from 1; `before` is the step before, for what changed. */
export function renderStep(report: StepReport, number: number, before: StepReport | undefined, paint: Paint): string {
  const lines: string[] = ["", `  ${paint.strong(String(number))}  ${paint.strong(report.step.name)}`];
  if (report.changes.length > 0) {
    const took = report.inForceMs === undefined ? "" : `, in force after ${milliseconds(report.inForceMs)}`;
    lines.push(paint.faint(`${INDENT}${report.changes.join(", ")}${took}`));
  }
  if (report.error !== undefined) {
    for (const line of report.error.split("\n")) lines.push(`${INDENT}${paint.bad("✗")} ${line}`);
  }
  const rows = report.lines.map((line) => stepRow(line, before));
  const widths = [0, 1, 2, 3].map((column) => Math.max(0, ...rows.map((row) => row.cells[column]!.length)));
  report.lines.forEach((line, index) => {
    const { cells, remark, tone } = rows[index]!;
    const judged = tone === "bad" ? paint.bad : tone === "late" ? paint.warn : paint.good;
    const paints = [plain, plain, paint.faint, tone === "good" ? plain : judged];
    const [route, question, expected, observed] = cells.map((cell, column) =>
      padded(cell, widths[column]!, paints[column]!)
    );
    const row = `${INDENT}${judged(tone === "bad" ? "✗" : "✓")} ${route}  ${question}  ${expected}  ${observed}`;
    lines.push(remark === "" ? row.trimEnd() : `${row}  ${paint.faint(remark)}`);
    lines.push(...renderGrid(line, paint));
    if (tone === "bad") lines.push(...renderFailures(line, paint));
  });
  for (const complaint of report.complaints) lines.push(`${INDENT}${paint.warn("!")} ${complaint}`);
  return lines.join("\n") + "\n";
}

interface Row {
  /** Ends, protocol and port, expected, observed. */
  readonly cells: readonly [string, string, string, string];
  readonly remark: string;
  readonly tone: "good" | "late" | "bad";
}

function stepRow(line: LineReport, before: StepReport | undefined): Row {
  const { expectation, results } = line;
  const observed = observedWords(results);
  const was = before === undefined ? undefined : observedIn(before, lineKey(expectation));
  const retried = results.filter((result) => result.observed === "answered" && result.attempts > 1);
  const remarks: string[] = [];
  if (was !== undefined && was !== observed) remarks.push(`was ${was}`);
  if (retried.length > 0) {
    const worst = Math.max(...retried.map((result) => result.attempts));
    remarks.push(
      `only at attempt ${worst}${results.length > retried.length ? ` (${retried.length} of ${results.length})` : ""}`,
    );
  }
  return {
    cells: [
      ends(expectation),
      what(expectation),
      expectation.allow ? "allow" : "deny",
      observed,
    ],
    remark: remarks.join("; "),
    tone: !lineHolds(line) ? "bad" : retried.length > 0 ? "late" : "good",
  };
}

/** One word where all agree; else how many of each. */
export function observedWords(results: readonly ProbeResult[]): string {
  const counts = new Map<string, number>();
  for (const result of results) {
    const word = WORDS[result.observed];
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  if (counts.size === 1) return [...counts.keys()][0]!;
  return [...counts].map(([word, many]) => `${many} ${word}`).join(", ");
}

function observedIn(step: StepReport, key: string): string | undefined {
  const results = resultsIn(step, key);
  return results === undefined || results.length === 0 ? undefined : observedWords(results);
}

const resultsIn = (step: StepReport, key: string): readonly ProbeResult[] | undefined =>
  step.lines.find((line) => lineKey(line.expectation) === key)?.results ?? step.unstated.get(key);

/** Sources down, targets across, where one word would not tell all; nothing where that would be too wide. */
function renderGrid(line: LineReport, paint: Paint): readonly string[] {
  const { pairs, allow } = line.expectation;
  const cells = new Map<string, readonly ProbeResult[]>();
  let taken = 0;
  for (const { from, to, families } of pairs) {
    cells.set(`${partyName(from)} ${partyName(to)}`, line.results.slice(taken, taken += families.length));
  }
  const sources = [...new Set(pairs.map((pair) => partyName(pair.from)))];
  // Who is both stands in the same order down and across.
  const place = (name: string) => sources.includes(name) ? sources.indexOf(name) : sources.length;
  const targets = [...new Set(pairs.map((pair) => partyName(pair.to)))].sort((a, b) => place(a) - place(b));
  const needed = sources.length > 1 && targets.length > 1 || (pairs.length > 1 && !lineHolds(line));
  const first = Math.max(...sources.map((name) => name.length));
  if (!needed || first + targets.reduce((sum, name) => sum + name.length + 2, 0) > GRID_COLUMNS) return [];
  const rows = sources.map((source) => {
    const marks = targets.map((target) => {
      const results = cells.get(`${source} ${target}`) ?? [];
      const width = target.length;
      if (results.length === 0) return padded("·", width, paint.faint);
      if (!results.every((result) => result.holds)) return padded("✗", width, paint.bad);
      return padded(allow ? "●" : "○", width, paint.good);
    });
    return `${INDENT}  ${source.padEnd(first)}  ${marks.join("  ")}`.trimEnd();
  });
  return [paint.faint(`${INDENT}  ${"".padEnd(first)}  ${targets.join("  ")}`), ...rows];
}

function renderFailures(line: LineReport, paint: Paint): readonly string[] {
  const failed = line.results.filter((result) => !result.holds);
  const shown = failed.slice(0, DETAILS_SHOWN).map((result) => `${INDENT}    ${describeFailure(result)}`);
  if (failed.length > shown.length) shown.push(`${INDENT}    … and ${failed.length - shown.length} more`);
  shown.push(paint.faint(`${INDENT}    line ${line.expectation.line}: ${line.expectation.text}`));
  return shown;
}

function describeFailure({ probe, observed, detail, afterMs, attempts }: ProbeResult): string {
  const address = (text: string) => probe.port !== 0 && text.includes(":") ? `[${text}]` : text;
  const to = `${address(formatAddress(probe.to))}${probe.port === 0 ? "" : `:${probe.port}`}`;
  const route = `${probe.from.name} ${formatAddress(probe.source)} → ${probe.target.end.name} ${to}`;
  const seen = `${WORDS[observed]}${detail === "" ? "" : ` (${detail})`}`;
  return `IPv${addressFamily(probe.source)} ${route}: ${seen} after ${milliseconds(afterMs)}, ${
    count(attempts, "attempt")
  }`;
}

/** Lines down, steps across. ● answered, ○ silent; faint where the step does not state it; ✗ not as stated. */
export function renderBeforeAndAfter(report: ScenarioReport, paint: Paint): string {
  if (report.steps.length < 2) return "";
  const rows = new Map<string, Expectation>();
  for (const { lines } of report.steps) {
    for (const { expectation } of lines) rows.set(lineKey(expectation), expectation);
  }
  if (rows.size === 0) return "";
  const whatWidth = Math.max(...[...rows.values()].map((expectation) => what(expectation).length));
  const endsWidth = Math.max(
    TABLE_TITLE.length - whatWidth - 2,
    ...[...rows.values()].map((expectation) => ends(expectation).length),
  );
  const columns = report.steps.map((_, index) => String(index + 1));
  const lines = [
    "",
    paint.faint(`${INDENT}  ${TABLE_TITLE.padEnd(endsWidth + whatWidth + 2)}  ${columns.join("  ")}`),
  ];
  for (const [key, expectation] of rows) {
    const cells = report.steps.map((step, column) => {
      const width = columns[column]!.length;
      const stated = step.lines.find((line) => lineKey(line.expectation) === key);
      const mark = markOf(resultsIn(step, key) ?? []);
      if (stated === undefined) return padded(mark, width, paint.faint);
      return lineHolds(stated) ? padded(mark, width, paint.good) : padded("✗", width, paint.bad);
    });
    const question = `${ends(expectation).padEnd(endsWidth)}  ${what(expectation).padEnd(whatWidth)}`;
    lines.push(`${INDENT}  ${question}  ${cells.join("  ")}`.trimEnd());
  }
  lines.push(
    paint.faint(`${INDENT}  ● answered  ○ silent  ◐ mixed  ✗ not as stated; faint: not stated by that step`),
  );
  return lines.join("\n") + "\n";
}

function markOf(results: readonly ProbeResult[]): string {
  if (results.length === 0) return "·";
  if (results.every(({ observed }) => observed === "answered")) return "●";
  return results.every(({ observed }) => observed === "silent" || observed === "blocked") ? "○" : "◐";
}

export function renderOutcome(report: ScenarioReport, paint: Paint): string {
  const lines = report.steps.flatMap((step) => step.lines);
  const held = lines.filter(lineHolds).length;
  const probes = lines.reduce((sum, line) => sum + line.results.length, 0);
  const all = report.scenario.steps.reduce((sum, step) => sum + step.expect.length, 0);
  const verdict = scenarioHolds(report)
    ? paint.good(paint.strong("✓ holds"))
    : paint.bad(paint.strong("✗ does not hold"));
  const error = report.error === undefined
    ? ""
    : report.error.split("\n").map((line) => `  ${paint.bad("✗")} ${line}\n`).join("");
  return `\n${error}  ${verdict}  ${held} of ${count(all, "line")}, ${count(probes, "probe")}, ${
    seconds(report.totalMs)
  }\n`;
}

/** The last line of a run over several files. */
export function renderTotal(reports: readonly ScenarioReport[], paint: Paint): string {
  const held = reports.filter(scenarioHolds).length;
  const text = `${held} of ${count(reports.length, "scenario")} hold`;
  return `\n${held === reports.length ? paint.good(text) : paint.bad(text)}\n`;
}

/** The whole run as plain data, for programs: `manx lab run --json`. */
export function toJson(reports: readonly ScenarioReport[]): unknown {
  return {
    holds: reports.every(scenarioHolds),
    scenarios: reports.map((report) => ({
      file: report.scenario.file,
      scenario: report.scenario.title,
      holds: scenarioHolds(report),
      dataplane: report.dataplane,
      readyMs: round(report.readyMs),
      totalMs: round(report.totalMs),
      ...(report.error === undefined ? {} : { error: report.error }),
      steps: report.steps.map((step) => ({
        name: step.step.name,
        holds: stepHolds(step),
        changes: step.changes,
        ...(step.inForceMs === undefined ? {} : { inForceMs: round(step.inForceMs) }),
        ...(step.error === undefined ? {} : { error: step.error }),
        complaints: step.complaints,
        lines: step.lines.map((line) => ({
          line: line.expectation.line,
          text: line.expectation.text,
          expected: line.expectation.allow ? "allow" : "deny",
          holds: lineHolds(line),
          probes: line.results.map(({ probe, observed, holds, attempts, afterMs, detail }) => ({
            from: probe.from.name,
            source: formatAddress(probe.source),
            to: formatAddress(probe.to),
            target: probe.target.end.name,
            protocol: probe.protocol,
            ...(probe.port === 0 ? {} : { port: probe.port }),
            observed,
            holds,
            attempts,
            afterMs: round(afterMs),
            ...(detail === "" ? {} : { detail }),
          })),
        })),
      })),
    })),
  };
}

/** Spaces stand outside the escape sequences, so that a line's last ones can be cut off. */
const padded = (text: string, width: number, paint: (text: string) => string): string =>
  paint(text) + " ".repeat(Math.max(0, width - text.length));
const ends = ({ source, target }: Expectation): string => `${source} → ${target}`;
const what = ({ protocol, port }: Expectation): string => port === 0 ? protocol : `${protocol}/${port}`;
const count = (many: number, noun: string): string => `${many} ${noun}${many === 1 ? "" : "s"}`;
const seconds = (ms: number): string => `${(ms / 1_000).toFixed(1)} s`;
const milliseconds = (ms: number): string => `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
const round = (ms: number): number => Math.round(ms * 100) / 100;
