/** What connection tracking makes of a packet that belongs to no flow yet. */
import type { Packet } from "./desired.ts";
import { PROTOCOLS } from "./ports.ts";

/** ICMPV6_MGM_QUERY to NDISC_NEIGHBOUR_ADVERTISEMENT, and ICMPV6_MLD2_REPORT: noct_valid_new of net/netfilter/nf_conntrack_proto_icmpv6.c. */
const isUntracked = (type: number): boolean => type >= 130 && type <= 136 || type === 143;

/** Of a packet that nothing is wrong with. */
export const stateOfFirstPacket = ({ protocol, icmp }: Packet): "new" | "untracked" =>
  protocol === PROTOCOLS.ICMPv6 && icmp !== undefined && isUntracked(icmp.type) ? "untracked" : "new";
