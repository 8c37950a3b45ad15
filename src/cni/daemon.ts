import type { ErrorReply } from "../sdk/attach.ts";
import { CniError, CniErrorCode, errorOfReply } from "./errors.ts";

/** Past this the runtime is told to try again; its own patience is usually longer. */
const ANSWER_DEADLINE_MS = 110_000;

/**
 * One request to the daemon; its answer's body, undefined where that is empty.
 * @throws {CniError} 11 where the daemon is away or does not answer, else what it refused
 */
export async function callDaemon(socket: string, path: string, body?: unknown): Promise<unknown> {
  let status: number, text: string;
  try {
    const response = await fetch(`http://manx${path}`, {
      unix: socket,
      method: body === undefined ? "GET" : "POST",
      // One process, one request: neither a connection to keep nor bytes worth compressing.
      headers: { "content-type": "application/json", "accept-encoding": "identity" },
      keepalive: false,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(ANSWER_DEADLINE_MS),
    });
    status = response.status;
    text = await response.text();
  } catch (cause) {
    throw new CniError(
      CniErrorCode.TryAgainLater,
      `the manx daemon cannot be reached at ${socket}: ${whyAway(cause)}`,
    );
  }
  const answer = text === "" ? undefined : decode(text);
  if (status < 400) return answer;
  if (isErrorReply(answer)) throw errorOfReply(answer);
  throw new CniError(CniErrorCode.TryAgainLater, `the manx daemon at ${socket} answered ${path} with status ${status}`);
}

function decode(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const isErrorReply = (answer: unknown): answer is ErrorReply =>
  typeof answer === "object" && answer !== null && "error" in answer && typeof answer.error === "object" &&
  answer.error !== null && "code" in answer.error && "message" in answer.error &&
  typeof answer.error.message === "string";

/** Bun says "FailedToOpenSocket" for everything that connect(2) refuses. */
function whyAway(cause: unknown): string {
  const { name, code } = cause as { name?: string; code?: string };
  if (name === "TimeoutError") return `no answer within ${ANSWER_DEADLINE_MS / 1000} s`;
  if (code === "FailedToOpenSocket" || code === "ENOENT" || code === "ECONNREFUSED") {
    return "nobody listens there; start it with manx daemon";
  }
  if (code === "ConnectionClosed" || code === "ECONNRESET") return "it closed the connection before it answered";
  return code ?? (cause as Error).message;
}
