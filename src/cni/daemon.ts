import type { ErrorReply } from "../sdk/attach.ts";
import { CniError, CniErrorCode, errorOfReply } from "./errors.ts";
import { decodeAnswer, encodeRequest, type HttpAnswer } from "./http.ts";

/** Past this the runtime is told to try again; its own patience is usually longer. */
export const ANSWER_DEADLINE_MS = 110_000;
export const ANSWER_LIMIT_BYTES = 16 * 1024 * 1024;

/**
 * Sends `request` to a unix socket and returns what comes back, until `enough` says that it is whole, or the end.
 * @throws {Error} with the `errno` of what the kernel refused, or of the name `DeadlineError`
 */
export type Exchange = (
  socket: string,
  request: Uint8Array,
  limits: { readonly deadlineMs: number; readonly bytes: number; readonly enough: (answer: Uint8Array) => boolean },
) => Uint8Array | Promise<Uint8Array>;

/**
 * One request to the daemon; its answer's body, undefined where that is empty.
 * @throws {CniError} 11 where the daemon is away or does not answer, else what it refused
 */
export async function callDaemon(exchange: Exchange, socket: string, path: string, body?: unknown): Promise<unknown> {
  let answer: HttpAnswer | undefined;
  try {
    const bytes = exchange(socket, encodeRequest(path, body), {
      deadlineMs: ANSWER_DEADLINE_MS,
      bytes: ANSWER_LIMIT_BYTES,
      enough: (bytes) => (answer = decodeAnswer(bytes)) !== undefined,
    });
    answer ??= decodeAnswer(bytes instanceof Promise ? await bytes : bytes);
    if (answer === undefined) throw new Error("it closed the connection before it answered");
  } catch (cause) {
    throw new CniError(
      CniErrorCode.TryAgainLater,
      `the manx daemon cannot be reached at ${socket}: ${whyAway(cause)}`,
    );
  }
  const { status, text } = answer;
  const content = text === "" ? undefined : decode(text);
  if (status < 400) return content;
  if (isErrorReply(content)) throw errorOfReply(content);
  throw new CniError(CniErrorCode.TryAgainLater, `the manx daemon at ${socket} answered ${path} with status ${status}`);
}

/** Where the executable's entry has asked already and got no answer (entry/entry.c): says so, for who asks twice may get two. */
export const unansweredExchange = (errno: number): Exchange => () => {
  throw Object.assign(new Error(`errno ${errno}`), errno === ETIMEDOUT ? { name: "DeadlineError" } : { errno });
};

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

const ETIMEDOUT = 110;
/** errno numbers, include/uapi/asm-generic/errno-base.h and errno.h. */
const WHY: Readonly<Record<number, string>> = {
  2: "nobody listens there; start it with manx daemon",
  11: "more wait for it than it lets wait; try again",
  13: "permission is denied; only root may ask it",
  32: "it closed the connection before it answered",
  104: "it closed the connection before it answered",
  111: "nobody listens there; start it with manx daemon",
};

function whyAway(cause: unknown): string {
  const { name, errno, message } = cause as { name?: string; errno?: number; message: string };
  if (name === "DeadlineError") return `no answer within ${ANSWER_DEADLINE_MS / 1000} s`;
  return (errno === undefined ? undefined : WHY[errno]) ?? message;
}
