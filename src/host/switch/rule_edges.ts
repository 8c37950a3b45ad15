/** Addresses and ports at the edges of what a rule asks: where one that is read wrongly is found out. Pure. */
import {
  type Address,
  addressFromBigInt,
  addressToBigInt,
  type Cidr,
  cidrAddress,
  cidrFamily,
  cidrLast,
  type Family,
  familyBits,
} from "../../model/address.ts";
import type { DesiredState, RuleMatch, SetId } from "../../model/desired.ts";
import type { PortRange } from "../../model/ports.ts";

/** That are tried of one set, of one rule's prefixes and of its ranges of ports. */
const MEMBERS = 2, NETS = 3, RANGES = 3;
/** Members of another family that are passed over. */
const LOOKED_AT = 64;
const LAST_PORT = 65_535;

export const isPort = (port: number): boolean => port >= 1 && port <= LAST_PORT;

export interface Edges {
  /** What one of the conditions asks for. */
  readonly inside: readonly Address[];
  /** Next to it, and what is excepted. */
  readonly beside: readonly Address[];
  /** The first is one that is asked for, where any is. */
  readonly ports: readonly number[];
}

export function edgesOf({ sets }: DesiredState, family: Family, match: RuleMatch): Edges {
  const inside: Address[] = [], beside: Address[] = [], ports: number[] = [];
  const members = (ids: readonly SetId[] | undefined, kind: "net" | "port") =>
    (ids ?? []).flatMap((id) => someMembers(sets, id, kind, family));
  const nets = (named: readonly Cidr[] | undefined, ids: readonly SetId[] | undefined) => [
    ...(named ?? []).filter((net) => cidrFamily(net) === family).slice(0, NETS),
    ...members(ids, "net") as Cidr[],
  ];
  const ended = (ids: readonly SetId[] | undefined) =>
    members(ids, "port").map((member) => ({
      address: member.slice(0, -3) as Address,
      port: member.charCodeAt(member.length - 2) << 8 | member.charCodeAt(member.length - 1),
    }));

  for (const net of nets(match.nets, match.sets)) {
    inside.push(cidrLast(net), cidrAddress(net));
    beside.push(...around(net));
  }
  for (const net of nets(match.notNets, match.notSets)) beside.push(...around(net), cidrAddress(net), cidrLast(net));

  const asked = [...ended(match.portSets), ...ended(match.serviceSet && [match.serviceSet])];
  inside.push(...asked.map(({ address }) => address));
  const ranges: readonly PortRange[] = [
    ...(match.ports ?? []).slice(0, RANGES),
    ...asked.map(({ port }) => ({ first: port, last: port })),
  ];
  for (const { first, last } of ranges) ports.push(first, last, first - 1, last + 1);
  for (const { address, port } of ended(match.notPortSets)) {
    beside.push(address);
    ports.push(port - 1, port, port + 1);
  }
  for (const { first, last } of (match.notPorts ?? []).slice(0, RANGES)) ports.push(first - 1, last + 1, first, last);
  return { inside: [...new Set(inside)], beside: [...new Set(beside)], ports: [...new Set(ports)].filter(isPort) };
}

function someMembers(
  sets: DesiredState["sets"],
  id: SetId,
  kind: "net" | "port",
  family: Family,
): readonly string[] {
  const set = sets.get(id), found: string[] = [];
  if (set === undefined || set.kind !== kind) return found;
  // An address, and a prefix length or a protocol and a port.
  const length = familyBits(family) / 8 + (kind === "net" ? 1 : 3);
  let looked = 0;
  for (const member of set.members.keys()) {
    if (member.length === length) found.push(member);
    if (found.length === MEMBERS || ++looked === LOOKED_AT) break;
  }
  return found;
}

/** The address before a prefix and the one after it. */
function around(net: Cidr): readonly Address[] {
  const family = cidrFamily(net), end = 1n << BigInt(familyBits(family));
  return [addressToBigInt(cidrAddress(net)) - 1n, addressToBigInt(cidrLast(net)) + 1n]
    .filter((value) => value >= 0n && value < end).map((value) => addressFromBigInt(value, family));
}
