/** What the kernel says about a message we sent: NLMSG_ERROR and the code in NLMSG_DONE. */
import type { NetlinkMessage } from "../../sdk/kernel_door.ts";
import { DecodeError, KernelError } from "../errors.ts";
import { attributePath, attrs, decode, type Infer, MESSAGE_HEADER_BYTES, str, u32 } from "./codec.ts";

/** Message types below NLMSG_MIN_TYPE, include/uapi/linux/netlink.h. */
export const NLMSG_NOOP = 1;
export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;
export const NLMSG_OVERRUN = 4;
/** nlmsg_flags of an acknowledgement. */
const NLM_F_CAPPED = 0x100;
const NLM_F_ACK_TLVS = 0x200;

/** enum nlmsgerr_attrs, include/uapi/linux/netlink.h; cookie and policy are of no use to us and stay unknown. */
const extendedAck = attrs({ text: [1, str], offset: [2, u32], missingType: [5, u32], missingNest: [6, u32] });
type ExtendedAck = Infer<typeof extendedAck>;

export interface Acknowledgement {
  /** Positive; 0 is success. */
  readonly errno: number;
  readonly extended: ExtendedAck;
}

const nothing: ExtendedAck = {};

/** struct nlmsgerr and what follows it. @throws {DecodeError} */
export function parseAcknowledgement(flags: number, payload: Uint8Array): Acknowledgement {
  if (payload.length < 4 + MESSAGE_HEADER_BYTES) {
    throw new DecodeError(0, `an acknowledgement of ${payload.length} bytes`, `at least ${4 + MESSAGE_HEADER_BYTES}`);
  }
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
  const errno = -view.getInt32(0, true);
  if ((flags & NLM_F_ACK_TLVS) === 0) return { errno, extended: nothing };
  // Uncapped, the kernel repeats our whole message (its length is in the copied header) before the attributes.
  const whole = (flags & NLM_F_CAPPED) === 0 && errno !== 0;
  const echoedBytes = whole ? view.getUint32(4, true) : MESSAGE_HEADER_BYTES;
  if (echoedBytes > payload.length - 4) {
    throw new DecodeError(4, `an echo of ${echoedBytes} bytes`, `at most ${payload.length - 4}`);
  }
  return { errno, extended: extendedAt(payload, 4 + (echoedBytes + 3 & ~3)) };
}

/** The end of a dump. @throws {DecodeError} */
export function parseDone(flags: number, payload: Uint8Array): Acknowledgement {
  if (payload.length < 4) return { errno: 0, extended: nothing };
  const errno = -new DataView(payload.buffer, payload.byteOffset, payload.length).getInt32(0, true);
  // A positive number there is a count some families give, not an error.
  return { errno: Math.max(0, errno), extended: (flags & NLM_F_ACK_TLVS) === 0 ? nothing : extendedAt(payload, 4) };
}

function extendedAt(payload: Uint8Array, start: number): ExtendedAck {
  return decode(extendedAck, payload.subarray(Math.min(start, payload.length)), start);
}

/** The error of the message at `messageIndex` of those sent together; of none of them where there is no such message. */
export function kernelError(
  operation: string,
  { errno, extended }: Acknowledgement,
  messages: readonly NetlinkMessage[],
  messageIndex: number,
): KernelError {
  const message = messages[messageIndex];
  const missing = extended.missingType !== undefined;
  let attribute: string | undefined;
  if (message !== undefined && (missing || extended.offset !== undefined)) {
    const at = missing ? extended.missingNest : extended.offset;
    attribute = attributePath(message, at, extended.missingType) + (missing ? " missing" : "");
  }
  return new KernelError(operation, errno, {
    kernelText: extended.text,
    attribute,
    messageIndex: message === undefined ? undefined : messageIndex,
    messageCount: messages.length,
  });
}
