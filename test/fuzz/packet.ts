/** A packet as the oracle is asked about it, and as the others are. */
import { type Address, addressFamily, parseAddress } from "../../src/model/address.ts";
import type { Packet } from "../../src/model/desired.ts";
import type { Path } from "../../src/model/evaluate.ts";
import { hasPorts, PROTOCOLS } from "../../src/model/ports.ts";
import type { TracedPath } from "../../src/model/traced.ts";

/** First packet of a new connection, addresses as text: the question of `test/oracle`. */
export interface FuzzPacket {
  /** IANA number. */
  readonly protocol: number;
  readonly source: string;
  readonly destination: string;
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly icmp?: { readonly type: number; readonly code: number };
  /** As it came in, where DNAT changed it. */
  readonly beforeDnat?: { readonly destination: string; readonly destinationPort?: number };
  /** Absent: a process of the node sent it. */
  readonly inInterface?: string;
  /** Absent: it is for the node itself. */
  readonly outInterface?: string;
}

export function pathOf({ inInterface, outInterface, beforeDnat, ...rest }: FuzzPacket): Path {
  const packet: Packet = { ...rest, source: parseAddress(rest.source), destination: parseAddress(rest.destination) };
  const before: Packet | undefined = beforeDnat && {
    ...packet,
    destination: parseAddress(beforeDnat.destination),
    ...(beforeDnat.destinationPort === undefined ? {} : { destinationPort: beforeDnat.destinationPort }),
  };
  return { packet, beforeDnat: before, inInterface, outInterface };
}

/** Neighbour discovery and listener messages, which the kernel leaves untracked: net/netfilter/nf_conntrack_proto_icmpv6.c. */
export const isUntracked = ({ protocol, icmp }: Pick<Packet, "protocol" | "icmp">): boolean =>
  protocol === PROTOCOLS.ICMPv6 && icmp !== undefined && (icmp.type >= 130 && icmp.type <= 136 || icmp.type === 143);

export function tracedPathOf(packet: FuzzPacket): TracedPath {
  const { packet: after, beforeDnat, inInterface, outInterface } = pathOf(packet);
  const state = isUntracked(after) ? "untracked" as const : "new" as const;
  return {
    packet: { ...after, state },
    ...(beforeDnat === undefined ? {} : { beforeDnat: { ...beforeDnat, state } }),
    inInterface,
    outInterface,
  };
}

/** Fields in the order that people read them, and none that is undefined. */
export function tidyPacket(packet: FuzzPacket): FuzzPacket {
  const { protocol, source, destination, sourcePort, destinationPort, icmp, beforeDnat, inInterface, outInterface } =
    packet;
  const all = {
    inInterface,
    outInterface,
    protocol,
    source,
    sourcePort,
    destination,
    destinationPort,
    icmp: icmp && { type: icmp.type, code: icmp.code },
    beforeDnat,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined)) as unknown as FuzzPacket;
}

const NAMES: Readonly<Record<number, string>> = {
  1: "icmp",
  6: "tcp",
  17: "udp",
  58: "icmpv6",
  132: "sctp",
  136: "udplite",
};

/** `mx00000000a00 > eth0: 10.65.0.1:40000 > 1.1.1.1:53 udp`; `-` for the node itself. */
export function packetText(packet: FuzzPacket): string {
  const { protocol, source, destination, sourcePort, destinationPort, icmp, beforeDnat } = packet;
  const end = (address: string, port: number | undefined) =>
    port === undefined ? address : address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
  const what = icmp === undefined ? "" : ` type ${icmp.type} code ${icmp.code}`;
  const was = beforeDnat === undefined
    ? ""
    : ` (sent to ${end(beforeDnat.destination, beforeDnat.destinationPort ?? destinationPort)})`;
  return `${packet.inInterface ?? "-"} > ${packet.outInterface ?? "-"}: ${end(source, sourcePort)} > ` +
    `${end(destination, destinationPort)} ${NAMES[protocol] ?? `protocol ${protocol}`}${what}${was}`;
}

/** What makes two packets one flow to the kernel: equal for a packet and what would be taken for its answer. */
export function flowText({ protocol, icmp, beforeDnat, ...packet }: FuzzPacket): string {
  const from = `${packet.source} ${packet.sourcePort}`, to = `${packet.destination} ${packet.destinationPort}`;
  return [protocol, ...[from, to].sort(), icmp?.type, icmp?.code, beforeDnat?.destination].join(" ");
}

export const icmpOf = (address: Address): number => addressFamily(address) === 4 ? PROTOCOLS.ICMP : PROTOCOLS.ICMPv6;
export { hasPorts };
