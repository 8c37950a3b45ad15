import {
  type DeniedEvent,
  type LogEvent,
  type LoggedEnd,
  type NameView,
  type PacketEvent,
  PATHS,
} from "../api/protocol.ts";
import { callLines, CommandError } from "./client.ts";
import { createPaint, hasColour, type Paint, print } from "./output.ts";

export interface LogsOptions {
  readonly follow?: boolean;
  /** Milliseconds. */
  readonly since?: number;
  readonly limit?: number;
  /** `[NAMESPACE/]NAME` */
  readonly pod?: string;
  readonly verdict?: "log" | "deny";
  readonly output: "table" | "json";
  readonly socket: string;
}

/** `manx logs`: what is kept, then, with `follow`, what comes, until interrupted. @returns the exit status */
export async function runLogs(options: LogsOptions): Promise<number> {
  const interrupted = new AbortController();
  const stop = () => interrupted.abort();
  process.once("SIGINT", stop).once("SIGTERM", stop);
  try {
    const paint = createPaint(hasColour());
    for await (const line of callLines(options.socket, pathOf(options), interrupted.signal)) {
      print(options.output === "json" ? line : formatLogEvent(JSON.parse(line) as LogEvent, paint));
    }
  } finally {
    process.off("SIGINT", stop).off("SIGTERM", stop);
  }
  if (options.follow && !interrupted.signal.aborted) {
    throw new CommandError(`the manx daemon at ${options.socket} has stopped: there is nothing more to follow`);
  }
  return 0;
}

function pathOf({ follow, since, limit, pod, verdict }: LogsOptions): string {
  const query = new URLSearchParams();
  if (follow) query.set("follow", "true");
  if (since !== undefined) query.set("since", String(since));
  if (limit !== undefined) query.set("limit", String(limit));
  if (pod !== undefined) query.set("pod", pod.includes("/") ? pod : `default/${pod}`);
  if (verdict !== undefined) query.set("verdict", verdict);
  return query.size === 0 ? PATHS.logs : `${PATHS.logs}?${query}`;
}

/** One line, without its end. */
export function formatLogEvent(event: LogEvent, paint: Paint): string {
  switch (event.event) {
    case "packet":
      return formatPacket(event, paint);
    case "denied":
      return formatDenied(event, paint);
    case "lost":
      return paint.bad(
        `${localTime(event.time)} lost ${count(event.packets, "logged packet")}: more came than could be read`,
      );
    case "skipped":
      return paint.bad(`skipped ${count(event.events, "line")}: more came than were read here`);
  }
}

function formatPacket(event: PacketEvent, paint: Paint): string {
  const { time, verdict, direction, icmp, packets, endpoint } = event;
  const protocol = /^\d+$/.test(event.protocol) ? `protocol ${event.protocol}` : event.protocol;
  return [
    paint.dim(localTime(time)),
    (verdict === "deny" ? paint.bad : paint.bold)(verdict.padEnd(4)),
    direction.padEnd(7),
    icmp === undefined ? protocol : `${protocol} ${icmp.type}/${icmp.code}`,
    `${formatEnd(event.source)} → ${formatEnd(event.destination)}`,
    ...isWorkload(endpoint) ? [] : [`at ${formatName(endpoint)}`],
    decisionText(event),
    ...packets === 1 ? [] : [paint.bold(`×${packets}`)],
  ].join("  ");
}

function formatDenied(event: DeniedEvent, paint: Paint): string {
  const { time, direction, endpoint, packets, told } = event;
  return [
    paint.dim(localTime(time)),
    paint.bad("deny"),
    direction.padEnd(7),
    ...endpoint === undefined ? [] : [`at ${formatName(endpoint)} and those with the same policies`],
    decisionText(event),
    paint.bold(`${count(packets, "packet")} denied in all, ${told} of them told`),
  ].join("  ");
}

/** A workload is one of the ends; anything else has to be said. */
const isWorkload = (name: NameView | undefined): name is undefined =>
  name === undefined || name.kind === "pod" || name.kind === "workload";

function decisionText(
  { by, tier, policy, rule, prefix }: Pick<PacketEvent, "by" | "tier" | "policy" | "rule" | "prefix">,
): string {
  const within = tier === undefined ? "" : `tier ${tier}, `;
  switch (by) {
    case "rule":
      return `${clean(within + policyText(policy!))}, rule ${rule}`;
    case "tier default":
      return `${clean(within)}no rule matched`;
    case "no profile":
      return "no profile matched";
    case "end":
      return "nothing matched";
    case "unknown endpoint":
      return by;
    case "unknown":
      return `logged as ${JSON.stringify(prefix)}`;
  }
}

/** `NetworkPolicy.networking.k8s.io/prod/web` → `NetworkPolicy prod/web`. */
function policyText(key: string): string {
  const [kind = "", ...names] = key.split("/");
  return `${kind.split(".")[0]} ${names.filter((name) => name !== "").join("/")}`;
}

function formatEnd({ address, port, owner }: LoggedEnd): string {
  const at = port === undefined ? "" : `:${port}`;
  if (owner !== undefined) return `${formatName(owner)}(${address})${at}`;
  return port !== undefined && address.includes(":") ? `[${address}]${at}` : `${address}${at}`;
}

/** Pods and other workloads by their names alone, as they are most of what there is. */
function formatName({ kind, name }: NameView): string {
  switch (kind) {
    case "pod":
    case "workload":
      return clean(name);
    case "node":
      return `node/${clean(name)}`;
    case "hostEndpoint":
      return `host endpoint ${clean(name)}`;
    case "networkSet":
      return `set/${clean(name)}`;
  }
}

/** Names are what others wrote, and this goes to a terminal. */
const clean = (text: string): string => text.replace(/[\p{Cc}\p{Cf}]/gu, "?");

const count = (number: number, what: string): string => `${number} ${what}${number === 1 ? "" : "s"}`;

/** `2026-11-23 12:00:01.123` of where this runs. */
function localTime(text: string): string {
  const time = new Date(text);
  const two = (value: number, digits = 2) => String(value).padStart(digits, "0");
  return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${two(time.getHours())}:${
    two(time.getMinutes())
  }:${two(time.getSeconds())}.${two(time.getMilliseconds(), 3)}`;
}
