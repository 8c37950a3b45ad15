/** Address translation on a node as a hostPort or NodePort makes it, in a table that is not the product's: somebody else's rules. */
import { type Address, addressBytes, type Family } from "../model/address.ts";
import type { NetworkNamespace } from "../sdk/kernel_door.ts";
import {
  appendRule,
  type BaseChain,
  newChain,
  newTable,
  ProtocolFamily,
  SUBSYSTEM_NFTABLES,
  type TableName,
  type WireExpression,
} from "../kernel/netlink/schema/nftables.ts";
import { NETLINK_NETFILTER, openNetlink } from "../kernel/netlink/socket.ts";

export interface HostPort {
  readonly family: Family;
  /** IANA number. */
  readonly protocol: number;
  readonly port: number;
  readonly to: Address;
  readonly toPort: number;
}

const CHAINS: readonly BaseChain[] = [
  // NF_IP_PRI_NAT_DST, include/uapi/linux/netfilter_ipv4.h
  { type: "nat", hook: "prerouting", priority: -100, policy: "accept" },
  { type: "nat", hook: "output", priority: -100, policy: "accept" },
];

/** Registers of 16 bytes, enum nft_registers. */
const REG_1 = 1, REG_2 = 2;
/** NFT_META_L4PROTO, enum nft_meta_keys. */
const META_L4PROTO = 16;
/** NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR; RTN_LOCAL of linux/rtnetlink.h. */
const FIB_ADDRTYPE = 3, FIB_DADDR = 2, RTN_LOCAL = 2;
/** NFT_PAYLOAD_TRANSPORT_HEADER; where both TCP and UDP have the destination port. */
const TRANSPORT = 2, DESTINATION_PORT = { offset: 2, length: 2 };
/** NFT_NAT_DNAT, enum nft_nat_types. */
const DNAT = 1;

/** Makes the table `lab-hostports` of `node` with all of `ports`. @throws {KernelError} */
export function translatePorts(node: NetworkNamespace, ports: readonly HostPort[]): void {
  const messages = ([4, 6] as const).flatMap((family) => {
    const own = ports.filter((port) => port.family === family);
    if (own.length === 0) return [];
    const at: TableName = { family: family === 4 ? ProtocolFamily.Ipv4 : ProtocolFamily.Ipv6, table: "lab-hostports" };
    return [
      newTable(at),
      ...CHAINS.flatMap((base) => [
        newChain(at, base.hook, base),
        ...own.map((port) => appendRule(at, base.hook, translation(port))),
      ]),
    ];
  });
  if (messages.length === 0) return;
  using socket = openNetlink(NETLINK_NETFILTER, { namespace: node });
  socket.transaction("translate host ports", SUBSYSTEM_NFTABLES, messages);
}

function translation({ family, protocol, port, to, toPort }: HostPort): readonly WireExpression[] {
  const equals = (bytes: string): WireExpression => ({
    name: "cmp",
    data: { sreg: REG_1, operation: 0, data: { value: bytes } },
  });
  const big = (value: number) => String.fromCharCode(value >> 8, value & 0xff);
  // The kernel's own byte order, which is little-endian on all that Bun runs on.
  const little = (value: number) => String.fromCharCode(value, 0, 0, 0);
  return [
    { name: "meta", data: { key: META_L4PROTO, dreg: REG_1 } },
    equals(String.fromCharCode(protocol)),
    { name: "fib", data: { dreg: REG_1, result: FIB_ADDRTYPE, flags: FIB_DADDR } },
    equals(little(RTN_LOCAL)),
    { name: "payload", data: { base: TRANSPORT, ...DESTINATION_PORT, dreg: REG_1 } },
    equals(big(port)),
    { name: "immediate", data: { dreg: REG_1, data: { value: String.fromCharCode(...addressBytes(to)) } } },
    { name: "immediate", data: { dreg: REG_2, data: { value: big(toPort) } } },
    {
      name: "nat",
      data: {
        type: DNAT,
        family: family === 4 ? ProtocolFamily.Ipv4 : ProtocolFamily.Ipv6,
        addressMinReg: REG_1,
        portMinReg: REG_2,
      },
    },
  ];
}
