/** Neighbours: RTM_NEWNEIGH and its kin, include/uapi/linux/neighbour.h. */
import type { Address, Family } from "../../../model/address.ts";
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import {
  address,
  attrs,
  be16,
  bytes,
  decodeMessage,
  encodeMessage,
  hardwareAddress,
  i32,
  type Infer,
  MessageFlag,
  messageSchema,
  pad,
  struct,
  u16,
  u32,
  u8,
} from "../codec.ts";
import { familyFrom, familyNumber, familyOf } from "./family.ts";

export const RTM_NEWNEIGH = 28;
export const RTM_DELNEIGH = 29;
export const RTM_GETNEIGH = 30;
/** Multicast group of neighbour changes. */
export const RTNLGRP_NEIGH = 3;
/** PF_BRIDGE: forwarding entries of bridges and vxlan links are neighbours of this family. */
export const AF_BRIDGE = 7;

/** NUD_*. */
export const NeighbourState = {
  Incomplete: 0x01,
  Reachable: 0x02,
  Stale: 0x04,
  Delay: 0x08,
  Probe: 0x10,
  Failed: 0x20,
  NoArp: 0x40,
  Permanent: 0x80,
} as const;
/** NTF_*: `Proxy` answers for the address on behalf of another, `Self` is the forwarding table of the link itself. */
export const NeighbourFlag = {
  Use: 0x01,
  Self: 0x02,
  Master: 0x04,
  Proxy: 0x08,
  ExternallyLearned: 0x10,
  Router: 0x80,
} as const;

/** struct ndmsg. */
const neighbourHeader = struct({ family: u8, pad1: pad(3), index: i32, state: u16, flags: u8, type: u8 });

/** NDA_*. */
export const neighbourAttributes = attrs({
  destination: [1, address],
  hardwareAddress: [2, hardwareAddress],
  cacheInfo: [3, bytes],
  probes: [4, u32],
  vlan: [5, u16],
  port: [6, be16],
  vni: [7, u32],
  index: [8, u32],
  master: [9, u32],
  linkNamespaceId: [10, i32],
  protocol: [12, u8],
  extendedFlags: [15, u32],
});
export type NeighbourAttributes = Infer<typeof neighbourAttributes>;
export const neighbourMessage = messageSchema("neighbour", neighbourHeader, neighbourAttributes);

export interface Neighbour {
  /** Interface index. */
  readonly index: number;
  /** Absent for forwarding entries of a bridge, which have a link-layer address alone. */
  readonly address?: Address;
  /** Absent for proxy entries. */
  readonly hardwareAddress?: string;
  /** `NeighbourState` bits; default: permanent. */
  readonly state?: number;
  /** `NeighbourFlag` bits. */
  readonly flags?: number;
  /** RTPROT_*: who made the entry; older kernels ignore it. */
  readonly protocol?: number;
  /** Default: of the address. `AF_BRIDGE` for forwarding entries. */
  readonly familyNumber?: number;
}

function neighbourOf(type: number, flags: number, spec: Neighbour): NetlinkMessage {
  const header = {
    family: spec.familyNumber ?? (spec.address === undefined ? AF_BRIDGE : familyNumber(spec.address)),
    index: spec.index,
    state: spec.state ?? NeighbourState.Permanent,
    flags: spec.flags,
  };
  return encodeMessage(neighbourMessage, type, flags, header, {
    destination: spec.address,
    hardwareAddress: spec.hardwareAddress,
    protocol: spec.protocol,
  });
}

/** RTM_NEWNEIGH; by default an entry that is there is overwritten. `flags` are `MessageFlag` bits. */
export const newNeighbour = (
  spec: Neighbour,
  flags: number = MessageFlag.Create | MessageFlag.Replace,
): NetlinkMessage => neighbourOf(RTM_NEWNEIGH, flags, spec);

/** RTM_DELNEIGH; ENOENT where there is none. */
export const delNeighbour = (spec: Neighbour): NetlinkMessage =>
  neighbourOf(RTM_DELNEIGH, 0, { ...spec, state: 0, protocol: undefined });

/** RTM_GETNEIGH of all neighbours, for `dump`. `proxy`: the proxy entries instead of the others. */
export const getNeighbours = (
  filter: {
    readonly family?: Family;
    readonly index?: number;
    readonly proxy?: boolean;
    readonly familyNumber?: number;
  } = {},
): NetlinkMessage =>
  encodeMessage(neighbourMessage, RTM_GETNEIGH, 0, {
    family: filter.familyNumber ?? familyOf(filter.family),
    flags: filter.proxy ? NeighbourFlag.Proxy : 0,
  }, { index: filter.index });

/** A neighbour as the kernel describes it. */
export interface ObservedNeighbour extends Neighbour {
  /** Undefined where it is not an IP neighbour. */
  readonly family: Family | undefined;
  readonly state: number;
  readonly flags: number;
  readonly attributes: NeighbourAttributes;
}

/** Reads RTM_NEWNEIGH and RTM_DELNEIGH. @throws {DecodeError} */
export function parseNeighbour(message: Pick<NetlinkMessage, "payload">): ObservedNeighbour {
  const { header, attributes } = decodeMessage(neighbourMessage, message);
  return {
    family: familyFrom(header.family),
    familyNumber: header.family,
    index: header.index,
    address: attributes.destination,
    hardwareAddress: attributes.hardwareAddress,
    state: header.state,
    flags: header.flags,
    protocol: attributes.protocol,
    attributes,
  };
}
