/** The daemon's API, as the commands use it. */
import { accessSync, constants, existsSync } from "node:fs";
import type { ErrorReply } from "../sdk/attach.ts";

/** A command failed for a reason that its user can understand: `lines` are shown, `status` is the exit status. */
export class CommandError extends Error {
  override readonly name = "CommandError";
  constructor(
    message: string,
    readonly lines: readonly string[] = [],
    readonly status: number = 1,
    readonly code: string = "command",
  ) {
    super(message);
  }
}

/** @throws {CommandError} with the daemon's own words, or saying that it is away */
export async function call<T>(
  socket: string,
  method: "GET" | "POST" | "DELETE",
  path: string,
  body?: unknown,
): Promise<T> {
  let response: Response;
  let text: string;
  try {
    response = await fetch(`http://manx${path}`, {
      unix: socket,
      method,
      headers: { "content-type": "application/json", "accept-encoding": "identity" },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      keepalive: false,
      // A wait may be long; the daemon ends it.
      timeout: false,
    } as RequestInit);
    text = await response.text();
  } catch (cause) {
    throw new CommandError(`the manx daemon cannot be reached at ${socket}: ${whyAway(socket, cause)}`);
  }
  return readReply<T>(`${method} ${path} at ${socket}`, response, text);
}

/**
 * The lines of an answer as they come, without empty ones. Returns where the answer ends, or when `signal` aborts.
 * @throws {CommandError} as `call`, and where the daemon goes away before the answer's end
 */
export async function* callLines(socket: string, path: string, signal: AbortSignal): AsyncGenerator<string> {
  let response: Response;
  try {
    response = await fetch(`http://manx${path}`, {
      unix: socket,
      headers: { "accept-encoding": "identity" },
      keepalive: false,
      timeout: false,
      signal,
    } as RequestInit);
    if (!response.ok) readReply(`GET ${path} at ${socket}`, response, await response.text());
  } catch (cause) {
    if (signal.aborted) return;
    if (cause instanceof CommandError) throw cause;
    throw new CommandError(`the manx daemon cannot be reached at ${socket}: ${whyAway(socket, cause)}`);
  }
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for await (const bytes of response.body ?? []) {
      const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
      rest = lines.pop()!;
      yield* lines.filter((line) => line !== "");
      if (signal.aborted) return;
    }
  } catch {
    if (signal.aborted) return;
    throw new CommandError(`the manx daemon at ${socket} has gone away; its log says why`);
  }
}

/** What the daemon answered. @throws {CommandError} with its reason where it refused */
function readReply<T>(operation: string, response: Response, text: string): T {
  let reply: unknown;
  try {
    reply = JSON.parse(text);
  } catch {
    throw new CommandError(
      `${operation}: found an answer that is not JSON (status ${response.status}), wanted a manx daemon there`,
    );
  }
  if (response.ok) return reply as T;
  const error = (reply as Partial<ErrorReply>).error;
  if (error === undefined) {
    throw new CommandError(
      `${operation}: found status ${response.status} without a reason, wanted a manx daemon there`,
    );
  }
  throw new CommandError(error.message, error.details ?? [], 1, error.code);
}

function whyAway(socket: string, cause: unknown): string {
  const start =
    "start it with `systemctl start manx` or `manx daemon --config /etc/manx/manx.yaml`; --socket names another one";
  if (!existsSync(socket)) return `no such socket; ${start}`;
  try {
    accessSync(socket, constants.W_OK);
  } catch {
    return "permission denied; only root may use it";
  }
  const { code } = cause as { code?: string };
  if (code === "FailedToOpenSocket" || code === "ECONNREFUSED") return `nobody listens there; ${start}`;
  if (code === "ConnectionClosed" || code === "ECONNRESET") {
    return "it closed the connection before it answered; its log says why";
  }
  return code ?? (cause as Error).message;
}
