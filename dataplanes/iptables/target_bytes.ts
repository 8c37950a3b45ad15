/**
 * Targets of x_tables as bytes: for each its name, revision and data. Layouts: include/uapi/linux/netfilter, one header for each of them.
 * Revisions are those that `iptables` itself writes. Pure.
 */
import type { Family } from "../../src/model/address.ts";
import { type Block, putText, VERDICT } from "./entry_layout.ts";
import type { Target } from "./ruleset.ts";

/** IPT_TCP_RESET, IP6T_TCP_RESET. */
const TCP_RESET: Readonly<Record<Family, number>> = { 4: 7, 6: 6 };
/** IPT_ICMP_PORT_UNREACHABLE, IP6T_ICMP6_PORT_UNREACH. */
const PORT_UNREACHABLE: Readonly<Record<Family, number>> = { 4: 3, 6: 4 };
/** NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED of nf_nat.h. */
const MAP_ADDRESS_AND_PORT = 3;
/** XT_CT_NOTRACK. */
const CT_NOTRACK = 1;

/** XT_STANDARD_TARGET has no name. */
export const targetName = ({ target }: Target): string => TARGET_NAMES[target] ?? "";
const TARGET_NAMES: Readonly<Partial<Record<Target["target"], string>>> = {
  log: "NFLOG",
  mark: "MARK",
  noTrack: "CT",
  masquerade: "MASQUERADE",
  tcpReset: "REJECT",
  portUnreachable: "REJECT",
  dnat: "DNAT",
};
export const targetRevision = ({ target }: Target): number => TARGET_REVISIONS[target] ?? 0;
const TARGET_REVISIONS: Readonly<Partial<Record<Target["target"], number>>> = { mark: 2, noTrack: 2, dnat: 2 };

/** Of what follows the header. */
export function targetBytes({ target }: Target, family: Family): number {
  switch (target) {
    case "log":
      return 76;
    case "mark":
      return 8;
    case "noTrack":
      return 72;
    case "masquerade":
      return family === 4 ? 20 : 40;
    case "dnat":
      return 44;
    default:
      return 4;
  }
}

/** Into zeros, at `at`: what follows the header. The place of a chain is not known yet. */
export function writeTarget({ bytes, view }: Block, at: number, target: Target, family: Family): void {
  switch (target.target) {
    case "accept":
    case "drop":
    case "return":
      return view.setInt32(at, VERDICT[target.target], true);
    case "log":
      // struct xt_nflog_info: length, group, threshold (the group's reader sets its own), flags, padding, prefix.
      view.setUint16(at + 4, target.group, true);
      return putText(bytes, at + 12, target.prefix);
    case "mark":
      // struct xt_mark_tginfo2: mark = mark & ~mask ^ value.
      view.setUint32(at, target.value, true);
      return view.setUint32(at + 4, target.mask, true);
    case "noTrack":
      // struct xt_ct_target_info_v1.
      return view.setUint16(at, CT_NOTRACK, true);
    case "masquerade":
      // struct nf_nat_ipv4_multi_range_compat of one range, struct nf_nat_range: no addresses, no ports.
      if (family === 4) view.setUint32(at, 1, true);
      return;
    case "tcpReset":
      return view.setUint32(at, TCP_RESET[family], true);
    case "portUnreachable":
      return view.setUint32(at, PORT_UNREACHABLE[family], true);
    case "dnat": {
      // struct nf_nat_range2: flags, addresses and ports from and to, base port.
      const { address, port } = target;
      view.setUint32(at, MAP_ADDRESS_AND_PORT, true);
      putText(bytes, at + 4, address);
      putText(bytes, at + 20, address);
      view.setUint16(at + 36, port);
      view.setUint16(at + 38, port);
      return;
    }
  }
}
