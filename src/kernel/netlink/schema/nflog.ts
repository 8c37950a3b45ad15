/** Packets that rules log to a group: include/uapi/linux/netfilter/nfnetlink_log.h. Groups are each network namespace's own. */
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import {
  attrs,
  be16,
  be32,
  be64,
  bytes,
  decodeMessage,
  encodeMessage,
  type Infer,
  messageSchema,
  pad,
  struct,
  u8,
} from "../codec.ts";
import { nfgenHeader } from "./conntrack.ts";

/** NFNL_SUBSYS_ULOG << 8 | enum nfulnl_msg_types. */
export const NFULNL_MSG_PACKET = 0x400;
export const NFULNL_MSG_CONFIG = 0x401;

/** enum nfulnl_msg_config_cmds. */
const NFULNL_CFG_CMD_BIND = 1;
const NFULNL_CFG_CMD_UNBIND = 2;
const NFULNL_COPY_PACKET = 2;
/** The group counts its packets: a gap says how many did not arrive. */
const NFULNL_CFG_F_SEQ = 1;

/** enum nfulnl_attr_config. */
const groupConfig = attrs({
  command: [1, struct({ command: u8 })],
  mode: [2, struct({ copyRangeBytes: be32, copyMode: u8, pad: pad(1) })],
  /** Bytes of one datagram, at most. */
  bufferBytes: [3, be32],
  /** Hundredths of a second. */
  timeout: [4, be32],
  queueLength: [5, be32],
  flags: [6, be16],
});
export const groupMessage = messageSchema("log group", nfgenHeader, groupConfig);

/** enum nfulnl_attr_type. `prefix` is whatever a rule says, ended by a NUL: not always UTF-8. */
const packetAttributes = attrs({
  header: [1, struct({ protocol: be16, hook: u8, pad: pad(1) })],
  mark: [2, be32],
  timestamp: [3, struct({ seconds: be64, microseconds: be64 })],
  inIndex: [4, be32],
  outIndex: [5, be32],
  bridgeInIndex: [6, be32],
  bridgeOutIndex: [7, be32],
  payload: [9, bytes],
  prefix: [10, bytes],
  sequence: [12, be32],
});
export const packetMessage = messageSchema("logged packet", nfgenHeader, packetAttributes);
export type PacketAttributes = Infer<typeof packetAttributes>;

export interface LogGroup {
  /** 0 … 65535. */
  readonly group: number;
  /** Of each packet from its network header on, at most. */
  readonly copyBytes: number;
  /** The kernel sends what it has after so long, in steps of 10 ms, or as soon as it has `queueLength` packets or a datagram full. */
  readonly timeoutMs: number;
  readonly queueLength: number;
}

/**
 * NFULNL_MSG_CONFIG that binds the group to the socket that sends it, which then receives the group's packets until it is
 * closed. EPERM: another socket has the group. EBUSY: this one has it already.
 */
export const bindLogGroup = ({ group, copyBytes, timeoutMs, queueLength }: LogGroup): NetlinkMessage =>
  encodeMessage(groupMessage, NFULNL_MSG_CONFIG, 0, { resourceId: group }, {
    command: { command: NFULNL_CFG_CMD_BIND },
    mode: { copyRangeBytes: copyBytes, copyMode: NFULNL_COPY_PACKET },
    timeout: Math.ceil(timeoutMs / 10),
    queueLength,
    flags: NFULNL_CFG_F_SEQ,
  });

/** NFULNL_MSG_CONFIG that gives the group back; from the socket that has it. */
export const unbindLogGroup = (group: number): NetlinkMessage =>
  encodeMessage(groupMessage, NFULNL_MSG_CONFIG, 0, { resourceId: group }, {
    command: { command: NFULNL_CFG_CMD_UNBIND },
  });

export interface GroupPacket {
  /** NFPROTO_* of the rule's hook: 2 and 10 are IPv4 and IPv6. */
  readonly family: number;
  readonly group: number;
  /** enum nf_inet_hooks, include/uapi/linux/netfilter.h: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting. */
  readonly hook: number | undefined;
  /** Latin-1, without the terminator. */
  readonly prefix: string;
  /** Counts from 0 at the binding. */
  readonly sequence: number | undefined;
  /** Milliseconds since 1970; the kernel gives none for what the host itself sends. */
  readonly timestampMs: number | undefined;
  readonly inIndex: number | undefined;
  readonly outIndex: number | undefined;
  /** The packet from its network header on, as far as it was copied. */
  readonly payload: Uint8Array;
}

/** NF_LOG_PREFIXLEN of include/net/netfilter/nf_log.h. */
const PREFIX_MAX_BYTES = 128;
const NOTHING = new Uint8Array(0);

/** Reads NFULNL_MSG_PACKET. @throws {DecodeError} */
export function parseGroupPacket(message: Pick<NetlinkMessage, "payload">): GroupPacket {
  const { header, attributes } = decodeMessage(packetMessage, message);
  const { prefix = NOTHING, timestamp } = attributes;
  const terminator = prefix.indexOf(0);
  const end = Math.min(terminator < 0 ? prefix.length : terminator, PREFIX_MAX_BYTES);
  return {
    family: header.family,
    group: header.resourceId,
    hook: attributes.header?.hook,
    prefix: String.fromCharCode(...prefix.subarray(0, end)),
    sequence: attributes.sequence,
    timestampMs: timestamp === undefined
      ? undefined
      : Number(timestamp.seconds) * 1000 + Number(timestamp.microseconds) / 1000,
    inIndex: attributes.inIndex,
    outIndex: attributes.outIndex,
    payload: attributes.payload ?? NOTHING,
  };
}
