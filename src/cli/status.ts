import { PATHS, type StatusReply, type TimingView } from "../api/protocol.ts";
import { call } from "./client.ts";
import { createPaint, duration, hasColour, type Paint, print } from "./output.ts";

/** `manx status`. @returns the exit status: 1 where policy is not in force */
export async function runStatus({ output, socket }: { output: "text" | "json"; socket: string }): Promise<number> {
  const status = await call<StatusReply>(socket, "GET", PATHS.status);
  print(output === "json" ? JSON.stringify(status, null, 2) : renderStatus(status, createPaint(hasColour())));
  return isInForce(status) ? 0 : 1;
}

const isInForce = (status: StatusReply): boolean =>
  status.datastore.inSync && status.dataplane.converged && status.generation.wanted === status.generation.applied;

export function renderStatus(status: StatusReply, paint: Paint): string {
  const { datastore, dataplane, routing, generation, counters, timings, problems } = status;
  const rows: [string, string][] = [
    ["node", `${paint.bold(status.node)}${status.addresses.length === 0 ? "" : ` (${status.addresses.join(", ")})`}`],
    [
      "daemon",
      `manx ${status.version}, process ${status.pid}, up ${duration(status.uptimeMs)}, ${
        Math.round(status.memory.rss / 1e6)
      } MB, ${status.config}`,
    ],
    ["datastore", `${datastore.use}, ${datastore.inSync ? paint.good("in sync") : paint.bad("not in sync")}`],
    [
      "policy",
      `${dataplane.use}${
        dataplane.configured === undefined ? "" : ` (switched: the configuration says ${dataplane.configured})`
      }, ${
        isInForce(status)
          ? paint.good(`generation ${generation.applied} in force`)
          : paint.bad(`generation ${generation.wanted} wanted, ${generation.applied} in force`)
      }${
        dataplane.lastApply === null
          ? ""
          : `, last change ${dataplane.lastApply.messages} messages in ${dataplane.lastApply.ms} ms`
      }`,
    ],
    ["routing", `${routing.use}, ${routing.converged ? paint.good("as wanted") : paint.bad("not as wanted")}`],
    ["endpoints", String(status.endpoints)],
    [
      "pods",
      `ADD ${timing(timings.add)}, DEL ${timing(timings.del)}${
        counters.addFailures === 0 ? "" : paint.bad(`, ${counters.addFailures} failed ADDs`)
      }`,
    ],
    [
      "kernel",
      `${counters.applies} changes, ${counters.messages} messages, ${counters.resyncs} repairs, ${counters.failures} failures`,
    ],
    ...(dataplane.lastRepair === undefined ? [] : [["repaired", repairText(dataplane.lastRepair)] as [string, string]]),
    ...(status.logs === undefined ? [] : [["logs", logsText(status.logs, paint)] as [string, string]]),
    ...(status.flowCuts === undefined ? [] : [["flows", flowsText(status.flowCuts)] as [string, string]]),
    ["problems", problems.length === 0 ? "none" : paint.bad(String(problems.length))],
  ];
  const lines = rows.map(([title, text]) => `${title.padEnd(11)}${text}`);
  for (const { subject, path, message, effect } of problems) {
    lines.push(`  ${subject}${path === "" ? "" : `: ${path}`}: ${message} ${paint.dim(`(${EFFECTS[effect]})`)}`);
  }
  return lines.join("\n");
}

const EFFECTS: Readonly<Record<StatusReply["problems"][number]["effect"], string>> = {
  refused: "not stored",
  "last-good": "its last good version stands",
  "fail-closed": "what it selects is denied",
  ignored: "left out",
  "not-in-force": "being tried again",
  "in-force": "policy is in force",
};

const repairText = ({ agoMs, reason, notes }: NonNullable<StatusReply["dataplane"]["lastRepair"]>): string =>
  [`${duration(agoMs)} ago: ${reason}`, ...notes].join("; ");

const logsText = (
  { packets, kept, lost, readers, skipped }: NonNullable<StatusReply["logs"]>,
  paint: Paint,
): string => {
  const losses = [lost === 0 ? "" : `${lost} lost`, skipped === 0 ? "" : `${skipped} skipped by slow readers`];
  const bad = losses.filter((text) => text !== "").join(", ");
  return `${packets} packets, ${kept} lines kept, ${readers} reading${bad === "" ? "" : `, ${paint.bad(bad)}`}`;
};

const flowsText = ({ state, cut, restored, pending }: NonNullable<StatusReply["flowCuts"]>): string =>
  state === "off"
    ? "established ones outlive policy (cutEstablishedFlows: false)"
    : `${cut} cut, ${restored} let go on${pending === 0 ? "" : `, ${pending} to do`}`;

const timing = ({ count, p50Ms, p99Ms }: TimingView): string =>
  count === 0 ? "0" : `${count} (median ${p50Ms.toFixed(1)} ms, p99 ${p99Ms.toFixed(1)} ms)`;
