import { readFileSync } from "node:fs";
import { parse } from "yaml";
import {
  type DataplaneDiffReply,
  type DataplaneSwitchReply,
  type DataplaneSwitchRequest,
  PATHS,
} from "../api/protocol.ts";
import { call, CommandError } from "./client.ts";
import { complain, createPaint, hasColour, print } from "./output.ts";

/** As diff(1) has it. */
const SAME = 0, DIFFERS = 1, TROUBLE = 2;

/** `manx dataplane diff`. @returns the exit status */
export async function runDataplaneDiff(
  { output, socket }: { output: "text" | "json"; socket: string },
): Promise<number> {
  let reply: DataplaneDiffReply;
  try {
    reply = await call<DataplaneDiffReply>(socket, "GET", PATHS.dataplaneDiff);
  } catch (error) {
    if (error instanceof CommandError) throw new CommandError(error.message, error.lines, TROUBLE, error.code);
    throw error;
  }
  const { dataplanes } = reply;
  if (output === "json") print(JSON.stringify(reply, null, 2));
  else {
    const paint = createPaint(hasColour());
    for (const { name, lines = [], cannot } of dataplanes) {
      if (cannot !== undefined) complain(`manx: ${cannot}`);
      if (lines.length === 0) continue;
      print(`dataplane ${name}: - found, + wanted`);
      for (const line of lines) {
        print(line.startsWith("+") ? paint.good(line) : line.startsWith("-") ? paint.bad(line) : line);
      }
    }
  }
  if (dataplanes.some(({ lines = [] }) => lines.length > 0)) return DIFFERS;
  return dataplanes.some(({ cannot }) => cannot !== undefined) ? TROUBLE : SAME;
}

/** `manx dataplane switch NAME`. @returns the exit status */
export async function runDataplaneSwitch(
  options: { name: string; config?: string; output: "text" | "json"; socket: string },
): Promise<number> {
  const config = options.config === undefined ? undefined : readConfig(options.config);
  const request: DataplaneSwitchRequest = { use: options.name, ...config === undefined ? {} : { config } };
  const reply = await call<DataplaneSwitchReply>(options.socket, "POST", PATHS.dataplaneSwitch, request);
  if (options.output === "json") print(JSON.stringify(reply, null, 2));
  else {
    print(switchText(reply));
    for (const line of reply.left) complain(`manx: ${line}; it is tried again`);
    if (reply.record !== undefined) {
      print(
        `${reply.config} still names ${reply.configured}: edit it (dataplane: { use: ${reply.to} }); until then ${reply.record} holds`,
      );
    }
  }
  return reply.left.length === 0 ? 0 : 1;
}

function switchText({ from, to, tookMs, generation, compared: { packets, complete } }: DataplaneSwitchReply): string {
  if (from === to) return `${to} is in force already: nothing to do`;
  const asked = packets === 0
    ? "neither could be asked about packets"
    : `they decided alike about ${complete ? "all" : "the first"} ${packets} packets that could tell them apart`;
  return `switched from ${from} to ${to} in ${
    Math.round(tookMs)
  } ms; ${asked}, and both were in force and as wanted at generation ${generation}`;
}

/** Of the slot, YAML. */
function readConfig(file: string): unknown {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new CommandError(
      `${file}: found ${(cause as NodeJS.ErrnoException).code}, wanted the dataplane's configuration in YAML`,
    );
  }
  try {
    return parse(text) ?? undefined;
  } catch (cause) {
    throw new CommandError(
      `${file}: found broken YAML (${(cause as Error).message}), wanted the dataplane's configuration`,
    );
  }
}
