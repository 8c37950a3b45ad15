/**
 * The table `netdev manx-fast`: packets of flows that are known to be established, taken from the link that they come in by
 * straight to the neighbour that they go to. Messages only; what is let in is decided in `fast_path.ts`. Pure.
 */
import { type Address, addressFamily, type Family, formatAddress } from "../../src/model/address.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import type { NetlinkMessage } from "../../src/sdk/kernel_door.ts";
import {
  appendRule,
  DATA_TYPE_VERDICT,
  deleteTable,
  ElementMessages,
  KeyType,
  newChain,
  newSet,
  newTable,
  ProtocolFamily,
  SetFlag,
  setKeyType,
  type TableName,
} from "../../src/kernel/netlink/schema/nftables.ts";
import { type Expression, expressionToWire } from "../../src/kernel/netlink/schema/nftables_expression.ts";
import { goto, loadAddress, verdict } from "./expressions.ts";
import { hostWord } from "./packet_tests.ts";
import { portBytes } from "../../src/model/port_ranges.ts";

export const FAST_TABLE: TableName = { family: ProtocolFamily.Netdev, table: "manx-fast" };
/**
 * So long a direction of a flow goes the short way, then at least one packet goes by all rules, connection tracking and routing again:
 * nothing that changes there is overlooked for longer, and no flow is forgotten, since the shortest time of an established one is far above.
 */
export const LIFETIME_MS = 5_000;
/** Directions of flows, of each family. */
export const FLOWS_MAX = 4_096;
/** After what others look at on the same links (`filter` is 0). */
const PRIORITY = 100;

/** One direction of an established TCP flow, and where it goes. */
export interface FastFlow {
  readonly source: Address;
  readonly destination: Address;
  readonly sourcePort: number;
  readonly destinationPort: number;
  readonly input: { readonly index: number; readonly name: string };
  readonly outputIndex: number;
  /** The neighbour at that link. */
  readonly nextHop: Address;
}

/** struct tcphdr: of the flags FIN, SYN and RST. These change what connection tracking knows of the flow. */
const TCP_FLAGS_AT = 13, ENDING_OR_BEGINNING = "\x07";
/** Offsets in the network header. */
const FAMILIES = {
  4: { etherType: "\x08\x00", hopsAt: 8, protocolAt: 9 },
  6: { etherType: "\x86\xdd", hopsAt: 7, protocolAt: 6 },
} as const;

const equals = (base: "link" | "network" | "transport", offset: number, data: string): readonly Expression[] => [
  { op: "payload", base, offset, length: data.length, dreg: 0 },
  { op: "cmp", sreg: 0, is: "eq", data },
];
const masked = (
  base: "network" | "transport",
  offset: number,
  mask: string,
  data = "\0".repeat(mask.length),
): readonly Expression[] => [
  { op: "payload", base, offset, length: mask.length, dreg: 0 },
  { op: "bitwise", sreg: 0, dreg: 0, mask, xor: "\0".repeat(mask.length) },
  { op: "cmp", sreg: 0, is: "eq", data },
];

/** The first two bytes of a plain header, and which bits of them say so: no IPv4 options, no DSCP, which routing may ask for. */
const BEGINNING = { 4: { mask: "\xff\xfc", data: "\x45\0" }, 6: { mask: "\xff\xc0", data: "\x60\0" } } as const;

/** Whether packets that begin so are among those that go the short way; `bytes` from the network header on. */
export function isPlainHeader(bytes: Uint8Array): boolean {
  const { mask, data } = BEGINNING[bytes[0] === 0x45 ? 4 : 6];
  return [0, 1].every((at) => ((bytes[at] ?? 0) & mask.charCodeAt(at)) === data.charCodeAt(at));
}

/** Plain TCP packets in the midst of a flow, for this node, looked up. All else goes on as if nothing were here. */
export function fastRule(family: Family): readonly Expression[] {
  const { etherType, hopsAt, protocolAt } = FAMILIES[family];
  const words = family === 4 ? 1 : 4;
  const { mask, data } = BEGINNING[family];
  // IPv6 has options and fragments as headers of their own, before that of TCP.
  const isWhole = family === 4 ? masked("network", 6, "\xbf\xff") : [];
  return [
    // As it was on the wire: a frame with a VLAN tag has another one there.
    ...equals("link", 12, etherType),
    // PACKET_HOST of include/uapi/linux/if_packet.h: sent to this node's own link address.
    { op: "meta", key: "packetType", dreg: 0 },
    { op: "cmp", sreg: 0, is: "eq", data: "\0" },
    ...masked("network", 0, mask, data),
    ...isWhole,
    ...equals("network", protocolAt, String.fromCharCode(PROTOCOLS.TCP)),
    { op: "payload", base: "network", offset: hopsAt, length: 1, dreg: 0 },
    { op: "cmp", sreg: 0, is: "gt", data: "\x01" },
    ...masked("transport", TCP_FLAGS_AT, ENDING_OR_BEGINNING),
    { op: "meta", key: "iif", dreg: 0 },
    loadAddress(family, "source", 1),
    loadAddress(family, "destination", 1 + words),
    { op: "payload", base: "transport", offset: 0, length: 2, dreg: 1 + 2 * words },
    { op: "payload", base: "transport", offset: 2, length: 2, dreg: 2 + 2 * words },
    { op: "vmap", set: `flows${family}`, sreg: 0 },
  ];
}

const flowKey = ({ input, source, destination, sourcePort, destinationPort }: FastFlow): string =>
  `${hostWord(input.index)}${source}${destination}${portBytes(sourcePort)}\0\0${portBytes(destinationPort)}\0\0`;

const rule = (chain: string, expressions: readonly Expression[], at = FAST_TABLE): NetlinkMessage =>
  appendRule(at, chain, expressions.map(expressionToWire));

function newFlows(family: Family, id: number, at: TableName): NetlinkMessage {
  const address = family === 4 ? KeyType.Ipv4Address : KeyType.Ipv6Address, addressBytes = family === 4 ? 4 : 16;
  return newSet(at, {
    name: `flows${family}`,
    flags: SetFlag.Map | SetFlag.Timeout,
    keyType: setKeyType([KeyType.InterfaceIndex, address, address, KeyType.Service, KeyType.Service]),
    keyLength: 4 + 2 * addressBytes + 2 * 4,
    dataType: DATA_TYPE_VERDICT,
    size: FLOWS_MAX,
    timeoutMs: LIFETIME_MS,
  }, id);
}

/** Takes the table away, whether it is there or not. */
export const withoutTable = (): readonly NetlinkMessage[] => [newTable(FAST_TABLE), deleteTable(FAST_TABLE)];

const emptyTable = (at = FAST_TABLE): readonly NetlinkMessage[] => [
  newTable(at),
  newFlows(4, 1, at),
  newFlows(6, 2, at),
  newChain(at, "fast"),
  rule("fast", fastRule(4), at),
  rule("fast", fastRule(6), at),
];

const forward = (outputIndex: number, nextHop: Address): readonly Expression[] => [
  { op: "immediate", dreg: 0, data: hostWord(outputIndex) },
  { op: "immediate", dreg: 4, data: nextHop },
  { op: "forward", family: addressFamily(nextHop), deviceSreg: 0, addressSreg: 4 },
];

/** A table with all that is ever in it but links. */
export function sampleTable(at: TableName): readonly NetlinkMessage[] {
  const hops = ["\x7f\0\0\x01" as Address, ("\0".repeat(15) + "\x01") as Address];
  return [...emptyTable(at), newChain(at, "to"), ...hops.map((hop) => rule("to", forward(1, hop), at))];
}

/**
 * What lets a flow in, where `chains` are there already; undefined: there may be no table. The chains that are there afterwards
 * besides go to `made`.
 */
export function admission(flow: FastFlow, chains: ReadonlySet<string> | undefined, made: string[]): NetlinkMessage[] {
  const messages = chains === undefined ? [...withoutTable(), ...emptyTable()] : [];
  const family = addressFamily(flow.destination);
  const input = `in-${flow.input.index}`;
  const hop = `to-${flow.outputIndex}-${formatAddress(flow.nextHop)}`;
  if (!chains?.has(hop)) {
    messages.push(newChain(FAST_TABLE, hop), rule(hop, forward(flow.outputIndex, flow.nextHop)));
    made.push(hop);
  }
  if (!chains?.has(input)) {
    const base = {
      type: "filter",
      hook: "ingress",
      priority: PRIORITY,
      policy: "accept",
      device: flow.input.name,
    } as const;
    messages.push(newChain(FAST_TABLE, input, base), rule(input, [verdict(goto("fast"))]));
    made.push(input);
  }
  const elements = new ElementMessages("add", FAST_TABLE, `flows${family}`);
  elements.add(flowKey(flow), goto(hop));
  return [...messages, ...elements.messages()];
}
