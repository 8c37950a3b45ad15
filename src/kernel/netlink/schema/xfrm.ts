/** IPsec policies, as far as one asks whether there are any: include/uapi/linux/xfrm.h. */
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import { attrs, decodeMessage, encodeMessage, messageSchema, struct, u32 } from "../codec.ts";

/** NETLINK_XFRM, include/uapi/linux/netlink.h. */
export const NETLINK_XFRM = 6;
/** XFRM_MSG_GETSPDINFO; it is answered with the number before. */
const XFRM_MSG_GETSPDINFO = 0x25;

/** struct xfrmu_spdinfo: policies of the namespace by direction, then those of single sockets. */
const counts = struct({
  inbound: u32,
  outbound: u32,
  forwarded: u32,
  inboundOfSockets: u32,
  outboundOfSockets: u32,
  forwardedOfSockets: u32,
});
/** enum xfrm_spdattr_type_t. */
const policyInfo = messageSchema("IPsec policies", struct({ flags: u32 }), attrs({ counts: [1, counts] }));

/** For `request`. */
export const getPolicyCount = (): NetlinkMessage => encodeMessage(policyInfo, XFRM_MSG_GETSPDINFO, 0, {}, {});

/** How many IPsec policies the namespace has, of the answer to `getPolicyCount`. @throws {DecodeError} */
export function parsePolicyCount(message: Pick<NetlinkMessage, "payload">): number {
  const found = decodeMessage(policyInfo, message).attributes.counts;
  return (found?.inbound ?? 0) + (found?.outbound ?? 0) + (found?.forwarded ?? 0);
}
