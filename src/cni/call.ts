/** A CNI call that the executable's entry (entry/entry.c) has handed to the daemon whole: read and answered here, in the daemon's process. */
import type { Environment } from "./environment.ts";
import { type Ask, runCni } from "./run.ts";
import { readStdin } from "./stdio.ts";

/** What a call wrote to its standard output, and its exit status. */
export interface CallAnswer {
  readonly status: 0 | 1;
  readonly output: string;
}

const NUL = 0;
/** The entry's own variable: the socket that it took the network configuration to name. */
const SOCKET_VARIABLE = "MANX_SOCKET";

/**
 * Answers the call in `body`: `NAME=value` with a NUL behind each, another NUL, then the standard input. Undefined where `body` is none, or where
 * its configuration names another socket than the entry found there: then nothing was asked.
 */
export async function answerCall(
  body: Uint8Array,
  ask: (path: string, body?: unknown) => Promise<unknown>,
): Promise<CallAnswer | undefined> {
  const call = readCall(body);
  if (call === undefined) return undefined;
  const { env, input } = call;
  let isMisdirected = false;
  const askHere: Ask = (socket, path, body) => {
    isMisdirected = socket !== env[SOCKET_VARIABLE];
    return isMisdirected ? Promise.reject(new Error("misdirected")) : ask(path, body);
  };
  let output = "";
  const status = await runCni(env, {
    readStdin: () => readStdin(() => input),
    write: (line) => output += `${line}\n`,
    ask: askHere,
  });
  return isMisdirected ? undefined : { status, output };
}

function readCall(body: Uint8Array): { readonly env: Environment; readonly input: Uint8Array } | undefined {
  const decoder = new TextDecoder();
  const env: Record<string, string> = Object.create(null);
  for (let from = 0;;) {
    const end = body.indexOf(NUL, from);
    if (end < 0) return undefined;
    if (end === from) return { env, input: body.subarray(end + 1) };
    const variable = decoder.decode(body.subarray(from, end));
    const equals = variable.indexOf("=");
    if (equals < 0) return undefined;
    // As getenv(3): the first of a name.
    env[variable.slice(0, equals)] ??= variable.slice(equals + 1);
    from = end + 1;
  }
}
