import type { ErrorReply } from "../sdk/attach.ts";

/** CNI SPEC section 5, "Error": numbers below 100 are the specification's, the others ours. */
export const CniErrorCode = {
  IncompatibleVersion: 1,
  UnsupportedField: 2,
  UnknownContainer: 3,
  InvalidEnvironment: 4,
  InputOutput: 5,
  DecodeFailure: 6,
  InvalidConfig: 7,
  /** The pod's namespace is the one this program runs in. Named by the reference library, not by the text. */
  InvalidNamespace: 8,
  TryAgainLater: 11,
  NotAvailable: 50,
  LimitedConnectivity: 51,
  /** A fault of the daemon or its host: see its log. */
  Internal: 100,
  /** No address is left in the pools asked. */
  Exhausted: 101,
  /** The datastore holds what cannot be ours. */
  Corrupt: 102,
  /** The kernel refused what the attachment needs. */
  Kernel: 103,
  /** CHECK: the attachment is not as it was made. */
  Differs: 104,
} as const;

/** A CNI call failed: `code` is a number of `CniErrorCode`, or one the daemon gave. */
export class CniError extends Error {
  override readonly name = "CniError";
  constructor(readonly code: number, message: string, readonly details?: string) {
    super(message);
  }
}

/** `ManxError.code` of the daemon, as a CNI number, where the daemon gave none. */
const NUMBER_OF: Readonly<Record<string, number>> = {
  unavailable: CniErrorCode.TryAgainLater,
  conflict: CniErrorCode.TryAgainLater,
  config: CniErrorCode.InvalidConfig,
  refused: CniErrorCode.InvalidConfig,
  exhausted: CniErrorCode.Exhausted,
  corrupt: CniErrorCode.Corrupt,
  kernel: CniErrorCode.Kernel,
  differs: CniErrorCode.Differs,
  "unknown-container": CniErrorCode.UnknownContainer,
  deadline: CniErrorCode.TryAgainLater,
};

/** What the daemon refused, as the runtime is to hear it. */
export function errorOfReply({ error }: ErrorReply): CniError {
  const details = error.details === undefined || error.details.length === 0 ? undefined : error.details.join("\n");
  return new CniError(error.cni ?? NUMBER_OF[error.code] ?? CniErrorCode.Internal, error.message, details);
}
