/** struct nlmsghdr framing: one datagram may hold many messages. */
import { DecodeError } from "../errors.ts";
import { MESSAGE_HEADER_BYTES } from "./codec.ts";

/** A message as it lies in the receive buffer; `payload` is a view of it. */
export interface Frame {
  readonly type: number;
  readonly flags: number;
  readonly sequence: number;
  readonly portId: number;
  readonly payload: Uint8Array;
}

/** @throws {DecodeError} where a length does not fit the datagram */
export function splitFrames(datagram: Uint8Array): readonly Frame[] {
  const view = new DataView(datagram.buffer, datagram.byteOffset, datagram.length);
  const frames: Frame[] = [];
  for (let at = 0; at < datagram.length;) {
    const left = datagram.length - at;
    if (left < MESSAGE_HEADER_BYTES) throw new DecodeError(at, `${left} bytes`, "a message header of 16 bytes");
    const length = view.getUint32(at, true);
    if (length < MESSAGE_HEADER_BYTES || length > left) {
      throw new DecodeError(at, `a message of ${length} bytes`, `${MESSAGE_HEADER_BYTES} to ${left}`);
    }
    frames.push({
      type: view.getUint16(at + 4, true),
      flags: view.getUint16(at + 6, true),
      sequence: view.getUint32(at + 8, true),
      portId: view.getUint32(at + 12, true),
      payload: datagram.subarray(at + MESSAGE_HEADER_BYTES, at + length),
    });
    at += length + 3 & ~3;
  }
  return frames;
}
