/** Standard input and output, as CNI uses them: all of the one, one line to the other. */
import { CniError, CniErrorCode } from "./errors.ts";

/** A GC list of 20,000 attachments is about 3 MB. */
export const STDIN_LIMIT_BYTES = 16 * 1024 * 1024;

/**
 * All of standard input. `read` gives its bytes, and may stop where there are more than it is told.
 * @throws {CniError} 5 where it cannot be read or is larger than the limit, 6 where it is not UTF-8
 */
export function readStdin(read: (limitBytes: number) => Uint8Array): string {
  let bytes: Uint8Array;
  try {
    bytes = read(STDIN_LIMIT_BYTES);
  } catch (cause) {
    throw new CniError(
      CniErrorCode.InputOutput,
      `network configuration on stdin: ${(cause as Error).message}, wanted a readable file descriptor 0`,
    );
  }
  if (bytes.length > STDIN_LIMIT_BYTES) {
    throw new CniError(
      CniErrorCode.InputOutput,
      `network configuration on stdin: found more than ${STDIN_LIMIT_BYTES} bytes, wanted at most that`,
    );
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new CniError(
      CniErrorCode.DecodeFailure,
      "network configuration on stdin: found bytes that are no UTF-8, wanted JSON",
    );
  }
}
