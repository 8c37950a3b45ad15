import type { ErrorReply } from "../sdk/attach.ts";
import { explainError } from "../sdk/errors.ts";
import type { Log } from "../sdk/plugin.ts";

/** HTTP status of each `ManxError.code`; what is not here is a fault of the daemon: 500. */
const STATUS_OF: Readonly<Record<string, number>> = {
  refused: 400,
  config: 400,
  "unknown-container": 404,
  "not-found": 404,
  ambiguous: 409,
  conflict: 409,
  exists: 409,
  differs: 409,
  exhausted: 409,
  unavailable: 503,
  deadline: 504,
};

/** CNI SPEC section 5, "Error": what a runtime is told where the error itself names no number. */
const CNI_NUMBER_OF: Readonly<Record<string, number>> = {
  deadline: 11,
  conflict: 11,
  unavailable: 11,
  refused: 7,
  config: 7,
};

/** By its shape, not its class: plugins from outside have their own. */
export function errorReply(error: unknown): { readonly status: number; readonly body: ErrorReply } {
  const { code: rawCode, reasons, cni, name } = (error ?? {}) as {
    code?: unknown;
    reasons?: unknown;
    cni?: unknown;
    name?: unknown;
  };
  const code = name === "KernelError" ? "kernel" : name === "TimeoutError" // of AbortSignal.timeout
    ? "deadline"
    : typeof rawCode === "string" && /^[a-z]+(-[a-z]+)*$/.test(rawCode)
    ? rawCode
    : "internal";
  const details = Array.isArray(reasons) && reasons.length > 1 ? reasons.map(String) : undefined;
  const message = details === undefined ? explainError(error) : `${details.length} faults, the first: ${details[0]}`;
  const number = typeof cni === "number" ? cni : CNI_NUMBER_OF[code];
  return {
    status: STATUS_OF[code] ?? 500,
    body: {
      error: {
        code,
        message,
        ...(details === undefined ? {} : { details }),
        ...(number === undefined ? {} : { cni: number }),
      },
    },
  };
}

/** As `errorReply`, and in the log: a fault of the daemon as an error, what it refused for whoever looks closely. */
export function replyWithError(error: unknown, asked: string, log: Log): ReturnType<typeof errorReply> {
  const reply = errorReply(error);
  const { code, message } = reply.body.error;
  if (code === "internal") {
    log.error(`${asked} failed`, { error: error instanceof Error ? error.stack ?? error.message : String(error) });
  } else {
    log.debug(`${asked} refused`, { code, message });
  }
  return reply;
}
