/** Connection tracking: include/uapi/linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h. */
import { type Address, type Family } from "../../../model/address.ts";
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import {
  address,
  attrs,
  be16,
  be32,
  be64,
  bytes,
  decodeMessage,
  encodeMessage,
  type Infer,
  messageSchema,
  padding,
  str,
  struct,
  u32,
  u8,
} from "../codec.ts";
import { familyFrom, familyNumber, familyOf } from "./family.ts";

/** NFNL_SUBSYS_CTNETLINK << 8 | enum cntl_msg_types. */
export const IPCTNL_MSG_CT_NEW = 0x100;
export const IPCTNL_MSG_CT_GET = 0x101;
export const IPCTNL_MSG_CT_DELETE = 0x102;
export const IPCTNL_MSG_CT_GET_STATS = 0x105;
/** Multicast groups of flows, enum nfnetlink_groups. */
export const NFNLGRP_CONNTRACK_NEW = 1;
export const NFNLGRP_CONNTRACK_UPDATE = 2;
export const NFNLGRP_CONNTRACK_DESTROY = 3;

/** enum ip_conntrack_status. */
export const FlowStatus = {
  Expected: 1 << 0,
  SeenReply: 1 << 1,
  Assured: 1 << 2,
  Confirmed: 1 << 3,
  SourceNat: 1 << 4,
  DestinationNat: 1 << 5,
  Dying: 1 << 9,
  /** Its timeout runs down whatever packets come. Can be set and never taken away. */
  FixedTimeout: 1 << 10,
  Offload: 1 << 14,
} as const;

/** struct nfgenmsg. */
export const nfgenHeader = struct({ family: u8, version: u8, resourceId: be16 });

/** enum ctattr_ip. */
const tupleAddresses = attrs({
  source4: [1, address],
  destination4: [2, address],
  source6: [3, address],
  destination6: [4, address],
});

/** enum ctattr_l4proto. */
const tupleProtocol = attrs({
  number: [1, u8],
  sourcePort: [2, be16],
  destinationPort: [3, be16],
  icmpId: [4, be16],
  icmpType: [5, u8],
  icmpCode: [6, u8],
  icmp6Id: [7, be16],
  icmp6Type: [8, u8],
  icmp6Code: [9, u8],
});

/** enum ctattr_tuple. */
const tuple = attrs({ addresses: [1, tupleAddresses], protocol: [2, tupleProtocol], zone: [3, be16] });

/** enum ctattr_counters; the 32 bit ones are of old kernels. */
const counters = attrs({
  packets: [1, be64],
  bytes: [2, be64],
  packets32: [3, be32],
  bytes32: [4, be32],
  padding: [5, padding],
});

/** enum ctattr_protoinfo. */
const tcpState = attrs({
  state: [1, u8],
  scaleOriginal: [2, u8],
  scaleReply: [3, u8],
  flagsOriginal: [4, bytes],
  flagsReply: [5, bytes],
});
const protocolInfo = attrs({ tcp: [1, tcpState], dccp: [2, bytes], sctp: [3, bytes] });

/** enum ctattr_type. */
export const flow = attrs({
  original: [1, tuple],
  reply: [2, tuple],
  status: [3, be32],
  protocolInfo: [4, protocolInfo],
  helper: [5, attrs({ name: [1, str], info: [2, bytes] })],
  timeoutSeconds: [7, be32],
  mark: [8, be32],
  countersOriginal: [9, counters],
  countersReply: [10, counters],
  use: [11, be32],
  id: [12, be32],
  master: [14, tuple],
  zone: [18, be16],
  timestamp: [20, attrs({ start: [1, be64], stop: [2, be64], padding: [3, padding] })],
  markMask: [21, be32],
  labels: [22, bytes],
  labelsMask: [23, bytes],
  filter: [25, attrs({ originalFlags: [1, u32], replyFlags: [2, u32] })],
  statusMask: [26, be32],
});
export type FlowAttributes = Infer<typeof flow>;
export const flowMessage = messageSchema("flow", nfgenHeader, flow);

/** One direction of a flow. Ports are those of TCP, UDP, SCTP and the like; the three `icmp` fields are of ICMP and ICMPv6. */
export interface FlowTuple {
  readonly source: Address;
  readonly destination: Address;
  /** IPPROTO number. */
  readonly protocol: number;
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly icmpId?: number;
  readonly icmpType?: number;
  readonly icmpCode?: number;
}

export interface Flow {
  readonly family: Family | undefined;
  readonly original: FlowTuple;
  readonly reply: FlowTuple;
  /** `FlowStatus` bits. */
  readonly status: number;
  readonly mark: number;
  readonly zone: number;
  /** Changes when another flow gets the same tuple. */
  readonly id: number | undefined;
  readonly timeoutSeconds: number | undefined;
  /** enum tcp_conntrack, include/uapi/linux/netfilter/nf_conntrack_tcp.h: 3 is established. */
  readonly tcpState: number | undefined;
  /** Of a flow that another one announced (`FlowStatus.Expected`): the other's original tuple. */
  readonly master: FlowTuple | undefined;
  /** Nanoseconds since 1970, where net.netfilter.nf_conntrack_timestamp was on when it began. */
  readonly startNs: bigint | undefined;
  readonly attributes: FlowAttributes;
}

const IPPROTO_ICMPV6 = 58;

function tupleAttributes(of: Partial<FlowTuple>): FlowAttributes["original"] {
  const sixth = (of.source ?? of.destination)?.length === 16;
  const addresses = sixth
    ? { source6: of.source, destination6: of.destination }
    : { source4: of.source, destination4: of.destination };
  const icmp = of.protocol === IPPROTO_ICMPV6
    ? { icmp6Id: of.icmpId, icmp6Type: of.icmpType, icmp6Code: of.icmpCode }
    : { icmpId: of.icmpId, icmpType: of.icmpType, icmpCode: of.icmpCode };
  const protocol = { number: of.protocol, sourcePort: of.sourcePort, destinationPort: of.destinationPort, ...icmp };
  return {
    addresses: of.source === undefined && of.destination === undefined ? undefined : addresses,
    protocol: of.protocol === undefined ? undefined : protocol,
  };
}

const noAddress = "\0\0\0\0" as Address;

function tupleFrom(value: FlowAttributes["original"]): FlowTuple {
  const { addresses = {}, protocol = {} } = value ?? {};
  return {
    source: addresses.source4 ?? addresses.source6 ?? noAddress,
    destination: addresses.destination4 ?? addresses.destination6 ?? noAddress,
    protocol: protocol.number ?? 0,
    sourcePort: protocol.sourcePort,
    destinationPort: protocol.destinationPort,
    icmpId: protocol.icmpId ?? protocol.icmp6Id,
    icmpType: protocol.icmpType ?? protocol.icmp6Type,
    icmpCode: protocol.icmpCode ?? protocol.icmp6Code,
  };
}

/** Reads IPCTNL_MSG_CT_NEW and _DELETE. A tuple without addresses has zero ones. @throws {DecodeError} */
export function parseFlow(message: Pick<NetlinkMessage, "payload">): Flow {
  const { header, attributes } = decodeMessage(flowMessage, message);
  return {
    family: familyFrom(header.family),
    original: tupleFrom(attributes.original),
    reply: tupleFrom(attributes.reply),
    status: attributes.status ?? 0,
    mark: attributes.mark ?? 0,
    zone: attributes.zone ?? attributes.original?.zone ?? 0,
    id: attributes.id,
    timeoutSeconds: attributes.timeoutSeconds,
    tcpState: attributes.protocolInfo?.tcp?.state,
    master: attributes.master === undefined ? undefined : tupleFrom(attributes.master),
    startNs: attributes.timestamp?.start,
    attributes,
  };
}

/** enum ctattr_type again, and of it only what `flowEnds` wants: the rest is not even looked at. */
const endsTuple = attrs({ addresses: [1, tupleAddresses], protocol: [2, padding], zone: [3, padding] });
const endsMessage = messageSchema(
  "flow",
  nfgenHeader,
  attrs({
    original: [1, endsTuple],
    reply: [2, endsTuple],
    ...Object.fromEntries(Array.from({ length: 24 }, (_, i) => [`other${i + 3}`, [i + 3, padding]] as const)),
  }),
);

/** The four addresses of a flow, for a look at very many: a fifth of the work of `parseFlow`. @throws {DecodeError} */
export function flowEnds(
  message: Pick<NetlinkMessage, "payload">,
): {
  readonly source: Address;
  readonly destination: Address;
  readonly replySource: Address;
  readonly replyDestination: Address;
} {
  const { original, reply } = decodeMessage(endsMessage, message).attributes as Pick<
    FlowAttributes,
    "original" | "reply"
  >;
  const { addresses: there = {} } = original ?? {}, { addresses: back = {} } = reply ?? {};
  return {
    source: there.source4 ?? there.source6 ?? noAddress,
    destination: there.destination4 ?? there.destination6 ?? noAddress,
    replySource: back.source4 ?? back.source6 ?? noAddress,
    replyDestination: back.destination4 ?? back.destination6 ?? noAddress,
  };
}

/** CTA_FILTER_F_*, net/netfilter/nf_conntrack_netlink.c: which parts of a tuple the kernel compares. */
const FilterField = {
  source: 1 << 0,
  destination: 1 << 1,
  zone: 1 << 2,
  protocol: 1 << 3,
  sourcePort: 1 << 4,
  destinationPort: 1 << 5,
} as const;

function filterFlags(of: Partial<FlowTuple> | undefined): number {
  if (of === undefined) return 0;
  return (of.source === undefined ? 0 : FilterField.source) |
    (of.destination === undefined ? 0 : FilterField.destination) |
    (of.protocol === undefined ? 0 : FilterField.protocol) |
    (of.sourcePort === undefined ? 0 : FilterField.sourcePort) |
    (of.destinationPort === undefined ? 0 : FilterField.destinationPort);
}

/** All that is given must hold. Ports need `protocol`, tuples need `family`. */
export interface FlowFilter {
  readonly family?: Family;
  readonly original?: Partial<FlowTuple>;
  readonly reply?: Partial<FlowTuple>;
  readonly mark?: { readonly value: number; readonly mask: number };
  /** `FlowStatus` bits. */
  readonly status?: { readonly value: number; readonly mask: number };
  /** Kernels before 6.8 ignore it: compare `Flow.zone` too. */
  readonly zone?: number;
}

function filterAttributes(filter: FlowFilter): FlowAttributes {
  const originalFlags = filterFlags(filter.original), replyFlags = filterFlags(filter.reply);
  return {
    original: filter.original === undefined ? undefined : tupleAttributes(filter.original),
    reply: filter.reply === undefined ? undefined : tupleAttributes(filter.reply),
    status: filter.status?.value,
    mark: filter.mark?.value,
    zone: filter.zone,
    markMask: filter.mark?.mask,
    filter: originalFlags === 0 && replyFlags === 0 ? undefined : { originalFlags, replyFlags },
    statusMask: filter.status?.mask,
  };
}

/** IPCTNL_MSG_CT_GET of all flows that pass the filter, for `dump`; the kernel filters. */
export const getFlows = (filter: FlowFilter = {}): NetlinkMessage =>
  encodeMessage(flowMessage, IPCTNL_MSG_CT_GET, 0, { family: familyOf(filter.family) }, filterAttributes(filter));

/** IPCTNL_MSG_CT_GET of the flow with this original tuple, for `request`; ENOENT where there is none. */
export const getFlow = (original: FlowTuple, zone?: number): NetlinkMessage =>
  encodeMessage(flowMessage, IPCTNL_MSG_CT_GET, 0, { family: familyNumber(original.source) }, {
    original: tupleAttributes(original),
    zone,
  });

/**
 * IPCTNL_MSG_CT_DELETE of the flow with this original tuple; ENOENT where there is none. With `id` only that very flow, not a
 * later one of the same tuple.
 */
export const delFlow = (
  { original, zone, id }: { readonly original: FlowTuple; readonly zone?: number; readonly id?: number },
): NetlinkMessage =>
  encodeMessage(flowMessage, IPCTNL_MSG_CT_DELETE, 0, { family: familyNumber(original.source) }, {
    original: tupleAttributes(original),
    zone: zone === 0 ? undefined : zone,
    id,
  });

/** Which flow a change is about: its original tuple, and its zone. */
export interface FlowName {
  readonly original: FlowTuple;
  readonly zone?: number;
}

const changeFlow = ({ original, zone }: FlowName, change: FlowAttributes): NetlinkMessage =>
  encodeMessage(flowMessage, IPCTNL_MSG_CT_NEW, 0, { family: familyNumber(original.source) }, {
    original: tupleAttributes(original),
    zone: zone === 0 ? undefined : zone,
    ...change,
  });

/** IPCTNL_MSG_CT_NEW of a flow that is there: sets the bits of its mark that are in `mask`. ENOENT where there is none. */
export const markFlow = (flow: FlowName, value: number, mask: number): NetlinkMessage =>
  changeFlow(flow, { mark: value, markMask: mask });

/**
 * IPCTNL_MSG_CT_NEW of a flow that is there: it ends after `seconds`, whatever packets come. ENOENT where there is none, EBUSY
 * where its status is no longer `flow.status`, EPERM where its end was fixed before.
 */
export const expireFlow = (flow: FlowName & { readonly status: number }, seconds: number): NetlinkMessage =>
  changeFlow(flow, { timeoutSeconds: seconds, status: (flow.status | FlowStatus.FixedTimeout) >>> 0 });

/** IP_CT_TCP_FLAG_BE_LIBERAL of include/uapi/linux/netfilter/nf_conntrack_tcp.h, as struct nf_ct_tcp_flags: flags, mask. */
const BE_LIBERAL = Uint8Array.of(0x08, 0x08);

/**
 * IPCTNL_MSG_CT_NEW of a TCP flow that is there: from now on its sequence numbers may be any, both ways, as those of a flow
 * that was not seen from its beginning. ENOENT where there is none.
 */
export const freeSequence = (flow: FlowName): NetlinkMessage =>
  changeFlow(flow, { protocolInfo: { tcp: { flagsOriginal: BE_LIBERAL, flagsReply: BE_LIBERAL } } });

/** enum ctattr_stats_global. */
const statistics = messageSchema(
  "conntrack statistics",
  nfgenHeader,
  attrs({ entries: [1, be32], maximum: [2, be32] }),
);

/** IPCTNL_MSG_CT_GET_STATS, for `request`. */
export const getFlowCount = (): NetlinkMessage => encodeMessage(statistics, IPCTNL_MSG_CT_GET_STATS, 0, {}, {});

/** How many flows the namespace has, of the answer to `getFlowCount`. @throws {DecodeError} */
export const parseFlowCount = (message: Pick<NetlinkMessage, "payload">): number =>
  decodeMessage(statistics, message).attributes.entries ?? 0;

/** Whether `flow` has all that `wanted` gives: for kernels and fields that the dump's filter does not know. */
export const tupleMatches = (tuple: FlowTuple, wanted: Partial<FlowTuple>): boolean =>
  (Object.keys(wanted) as (keyof FlowTuple)[]).every((key) => wanted[key] === undefined || wanted[key] === tuple[key]);
