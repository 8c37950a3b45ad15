/** Numbers of nf_tables that rules of `iptables-nft` are made of: include/uapi/linux/netfilter/nf_tables.h. */
import type { Family } from "../../../src/model/address.ts";

/** NFT_REG_1, NFT_REG_VERDICT. */
export const REGISTER = 1;
export const REGISTER_VERDICT = 0;
/** enum nft_meta_keys. */
export const META = { mark: 3, iifname: 6, oifname: 7, l4proto: 16 } as const;
/** enum nft_payload_bases. */
export const NETWORK_HEADER = 1;
export const TRANSPORT_HEADER = 2;
/** enum nft_cmp_ops. */
export const COMPARE = { eq: 0, neq: 1, lte: 3, gte: 5 } as const;
/** enum nft_range_ops: in the range. */
export const RANGE_EQ = 0;
/** NF_* of netfilter.h and enum nft_verdicts. */
export const VERDICT_CODES = { drop: 0, accept: 1, jump: -3, goto: -4, return: -5 } as const;

/** Of source and destination within the network header. */
export const ADDRESS_OFFSETS: Readonly<Record<Family, readonly [number, number]>> = { 4: [12, 16], 6: [8, 24] };

/** IFNAMSIZ. */
export const INTERFACE_BYTES = 16;
/** IPT_INV_*, IP6T_INV_*; the same for both families. */
export const Invert = { In: 0x01, Out: 0x02, Source: 0x08, Destination: 0x10, Protocol: 0x40 } as const;
/** IP6T_F_PROTO. */
export const F_PROTO_V6 = 1;
