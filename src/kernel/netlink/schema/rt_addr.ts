/** Addresses of links: RTM_NEWADDR and its kin, include/uapi/linux/if_addr.h. */
import type { Address, Family } from "../../../model/address.ts";
import { DecodeError } from "../../errors.ts";
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import {
  address,
  attrs,
  decodeMessage,
  encodeMessage,
  i32,
  type Infer,
  MessageFlag,
  messageSchema,
  str,
  struct,
  u32,
  u8,
} from "../codec.ts";
import { familyNumber, familyOf } from "./family.ts";

export const RTM_NEWADDR = 20;
export const RTM_DELADDR = 21;
export const RTM_GETADDR = 22;
/** Multicast groups of address changes. */
export const RTNLGRP_IPV4_IFADDR = 5;
export const RTNLGRP_IPV6_IFADDR = 9;

/** IFA_F_*: `NoDad` makes a v6 address usable at once; `NoPrefixRoute` leaves the routing table alone. */
export const AddressFlag = {
  Secondary: 0x01,
  NoDad: 0x02,
  Optimistic: 0x04,
  DadFailed: 0x08,
  Deprecated: 0x20,
  Tentative: 0x40,
  Permanent: 0x80,
  NoPrefixRoute: 0x200,
} as const;

/** struct ifaddrmsg. */
const addressHeader = struct({ family: u8, prefix: u8, flags: u8, scope: u8, index: u32 });

/** struct ifa_cacheinfo: seconds, 0xffffffff is for ever; stamps in hundredths since boot. */
const addressCacheInfo = struct({ preferredSeconds: u32, validSeconds: u32, created: u32, updated: u32 });

/** IFA_*. */
export const linkAddress = attrs({
  address: [1, address],
  local: [2, address],
  label: [3, str],
  broadcast: [4, address],
  anycast: [5, address],
  cacheInfo: [6, addressCacheInfo],
  multicast: [7, address],
  flags: [8, u32],
  priority: [9, u32],
  targetNamespaceId: [10, i32],
  protocol: [11, u8],
});
export type LinkAddressAttributes = Infer<typeof linkAddress>;
export const addressMessage = messageSchema("address", addressHeader, linkAddress);

export interface LinkAddress {
  /** Interface index. */
  readonly index: number;
  readonly address: Address;
  readonly prefix: number;
  /** The other end of a point-to-point link. */
  readonly peer?: Address;
  /** `AddressFlag` bits. */
  readonly flags?: number;
  /** rt_scope_t: 0 universe, 253 link, 254 host. */
  readonly scope?: number;
  readonly broadcast?: Address;
  /** IFA_LABEL, v4 only. */
  readonly label?: string;
}

function addressOf(type: number, flags: number, spec: LinkAddress): NetlinkMessage {
  const header = { family: familyNumber(spec.address), prefix: spec.prefix, scope: spec.scope, index: spec.index };
  return encodeMessage(addressMessage, type, flags, header, {
    address: spec.peer ?? spec.address,
    local: spec.address,
    label: spec.label,
    broadcast: spec.broadcast,
    flags: spec.flags,
  });
}

/** RTM_NEWADDR; `flags` are `MessageFlag` bits, EEXIST by default where the link has it. */
export const newAddress = (
  spec: LinkAddress,
  flags: number = MessageFlag.Create | MessageFlag.Exclusive,
): NetlinkMessage => addressOf(RTM_NEWADDR, flags, spec);

/** RTM_DELADDR; EADDRNOTAVAIL where the link does not have it. */
export const delAddress = (spec: LinkAddress): NetlinkMessage =>
  addressOf(RTM_DELADDR, 0, { ...spec, flags: undefined });

/**
 * RTM_GETADDR of all addresses, of one link and family where given, for `dump`. With `index` Linux (6.18) does not say when
 * the dump was interrupted by a change: take it for a look at a link that nobody else changes.
 */
export const getAddresses = (filter: { readonly family?: Family; readonly index?: number } = {}): NetlinkMessage =>
  encodeMessage(addressMessage, RTM_GETADDR, 0, { family: familyOf(filter.family), index: filter.index }, {});

/** Reads RTM_NEWADDR and RTM_DELADDR. @throws {DecodeError} */
export function parseAddressMessage(
  message: Pick<NetlinkMessage, "payload">,
): LinkAddress & { readonly flags: number; readonly scope: number; readonly attributes: LinkAddressAttributes } {
  const { header, attributes } = decodeMessage(addressMessage, message);
  // v6 has IFA_LOCAL only beside a peer; v4 always.
  const local = attributes.local ?? attributes.address;
  if (local === undefined) throw new DecodeError(8, "neither IFA_LOCAL nor IFA_ADDRESS", "one of them");
  return {
    index: header.index,
    address: local,
    prefix: header.prefix,
    peer: attributes.address === undefined || attributes.address === local ? undefined : attributes.address,
    flags: attributes.flags ?? header.flags,
    scope: header.scope,
    broadcast: attributes.broadcast,
    label: attributes.label,
    attributes,
  };
}
