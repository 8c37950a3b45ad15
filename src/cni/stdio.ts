import { fstatSync, readSync, writeSync } from "node:fs";
import { CniError, CniErrorCode } from "./errors.ts";

/** A GC list of 20,000 attachments is about 3 MB. */
const STDIN_LIMIT_BYTES = 16 * 1024 * 1024;
const RETRY_MS = 1;
const STDIN_DEADLINE_MS = 30_000;

/** All of file descriptor 0, without the start-up cost of a stream; a terminal is taken as empty. @throws {CniError} 5 */
export function readStdin(fd = 0): string {
  try {
    if (fstatSync(fd).isCharacterDevice()) return "";
  } catch (cause) {
    throw unreadable(cause);
  }
  let bytes = new Uint8Array(64 * 1024);
  let length = 0;
  const deadlineMs = performance.now() + STDIN_DEADLINE_MS;
  for (;;) {
    let read: number;
    try {
      read = readSync(fd, bytes, length, bytes.length - length, null);
    } catch (cause) {
      // Some runtimes hand over a non-blocking pipe.
      const again = (cause as { code?: string }).code === "EAGAIN" && performance.now() < deadlineMs;
      if (!again) throw unreadable(cause);
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS);
      continue;
    }
    if (read === 0) return decode(bytes.subarray(0, length));
    length += read;
    if (length > STDIN_LIMIT_BYTES) {
      throw new CniError(
        CniErrorCode.InputOutput,
        `network configuration on stdin: found more than ${STDIN_LIMIT_BYTES} bytes, wanted at most that`,
      );
    }
    if (length === bytes.length) {
      const larger = new Uint8Array(length * 2);
      larger.set(bytes);
      bytes = larger;
    }
  }
}

/** All of `text` to file descriptor 1, whatever kind of file that is. */
export function writeStdout(text: string, fd = 1): void {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) {
    try {
      at += writeSync(fd, bytes, at, bytes.length - at);
    } catch (cause) {
      if ((cause as { code?: string }).code !== "EAGAIN") throw cause;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS);
    }
  }
}

function decode(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new CniError(
      CniErrorCode.DecodeFailure,
      "network configuration on stdin: found bytes that are no UTF-8, wanted JSON",
    );
  }
}

const unreadable = (cause: unknown) =>
  new CniError(
    CniErrorCode.InputOutput,
    `network configuration on stdin: ${(cause as Error).message}, wanted a readable file descriptor 0`,
  );
