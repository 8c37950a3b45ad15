/**
 * Packets on the edges that a world's policies cut: next to and on every port, prefix, ICMP type and protocol that a manifest
 * names, between those who are there; and half of them aimed at one rule, so that deep rules are met.
 */
import {
  type Address,
  addressFamily,
  addressFromBigInt,
  addressToBigInt,
  type Cidr,
  cidrAddress,
  cidrFamily,
  cidrLast,
  formatAddress,
  hostCidr,
  parseAddress,
  parseCidr,
} from "../../src/model/address.ts";
import type { DesiredState, PolicyList, Rule, RuleMatch, SetId } from "../../src/model/desired.ts";
import { hasPorts, type PortRange, PROTOCOLS } from "../../src/model/ports.ts";
import type { Resource } from "../../src/model/resource.ts";
import { DEFAULT_FAILSAFE } from "../../src/calc/mod.ts";
import type { Random } from "../../src/calc/testing/random_world.ts";
import { judgePath, missesOf } from "../../src/model/evaluate.ts";
import { type FuzzPacket, icmpOf, pathOf, tidyPacket } from "./packet.ts";
import {
  ALL_ADDRESSES,
  isNodeAddress,
  isRoutable,
  linkTo,
  NODE_ADDRESSES,
  NODE_LINKS,
  SLOTS,
  TRANSLATIONS,
} from "./plan.ts";

/** What manifests name, to be met exactly and missed closely. */
interface Edges {
  readonly addresses: readonly Address[];
  readonly ports: readonly number[];
  readonly icmpTypes: readonly number[];
  readonly protocols: readonly number[];
}

const EXTRA_PORTS = [1, 22, 68, 179, 6443, 30053, 30080, 40000, 65535];

/** `address` moved by `by`, where that exists. */
function beside(address: Address, by: bigint): Address {
  const family = addressFamily(address);
  const value = addressToBigInt(address) + by;
  return value < 0n || value >= 1n << (family === 4 ? 32n : 128n) ? address : addressFromBigInt(value, family);
}

const edgesOfNet = (net: Cidr): Address[] => {
  const first = cidrAddress(net), last = cidrLast(net);
  return [first, last, beside(first, -1n), beside(last, 1n)];
};
const edgesOfPorts = ({ first, last }: PortRange): number[] => [first - 1, first, last, last + 1];
const isPort = (port: number): boolean => port >= 1 && port <= 65535;

export function edgesOf(resources: Iterable<Resource>): Edges {
  const addresses = new Set<Address>(),
    ports = new Set(EXTRA_PORTS),
    types = new Set([0, 8, 128]),
    protocols = new Set<number>();
  const text = (value: string) => {
    const range = /^(\d{1,5})(?::(\d{1,5}))?$/.exec(value);
    if (range !== null) return port({ first: Number(range[1]), last: Number(range[2] ?? range[1]) });
    if (!/^[0-9a-f:.]+(\/\d+)?$/i.test(value) || !/[.:]/.test(value)) return;
    for (const address of edgesOfNet(parseCidr(value))) addresses.add(address);
  };
  const port = (range: PortRange) => edgesOfPorts(range).filter(isPort).forEach((port) => ports.add(port));
  const walk = (value: unknown, key: string): void => {
    if (typeof value === "string") {
      if (!["order", "name", "interfaceName"].includes(key)) text(value);
    } else if (typeof value === "number") {
      if (key === "type") [value - 1, value, value + 1].forEach((type) => types.add(type));
      else if (/protocol/i.test(key)) protocols.add(value);
      else if (/port|number|start|end/i.test(key)) port({ first: value, last: value });
    } else if (Array.isArray(value)) { for (const item of value) walk(item, key); }
    else if (typeof value === "object" && value !== null) {
      for (const [name, item] of Object.entries(value)) walk(item, name);
    }
  };
  for (const { apiVersion: _, kind: __, metadata: ___, ...rest } of resources) walk(rest, "");
  return {
    // Those that somebody has count twice where they are also at an edge.
    addresses: [...ALL_ADDRESSES, ...addresses],
    ports: [...ports],
    icmpTypes: [...types].filter((type) => type >= 0 && type <= 255),
    protocols: [...protocols],
  };
}

export interface PacketChoice {
  /**
   * Only what real namespaces take: ICMP types that begin a flow, headers that are whole, addresses that are routed, ways that
   * lead where the packet goes.
   */
  readonly real: boolean;
}

/** Types that conntrack takes for the beginning of a flow, or does not track: nf_conntrack_proto_icmp.c, …_icmpv6.c. */
const FIRST_TYPES: Readonly<Record<4 | 6, readonly number[]>> = {
  4: [8, 8, 8, 13, 15, 17],
  6: [128, 128, 128, 128, 135, 136, 130, 143],
};
/** Next headers that are extensions, which the kernel looks behind: RFC 8200 section 4. */
const EXTENSIONS = [0, 43, 44, 50, 51, 59, 60, 135, 139, 140, 41, 4];

/** Drafts for each packet that is taken. */
const CHOICE = 2;

/**
 * As many packets as asked for, out of more: such that as many different rules as possible decide, each as often as the others.
 * Half are neighbours of such a packet, which differ from it in one thing.
 */
export function makePackets(
  random: Random,
  resources: Iterable<Resource>,
  state: DesiredState,
  count: number,
  { real }: PacketChoice,
): readonly FuzzPacket[] {
  const edges = edgesOf(resources);
  const aims = aimsOf(state);
  const fits = (packet: FuzzPacket | undefined): packet is FuzzPacket =>
    packet !== undefined && (!real || isReal(packet));
  const byDecision = new Map<string, FuzzPacket[]>();
  for (let tries = count * CHOICE; tries > 0; tries--) {
    const draft = !real && random.chance(1)
      ? onLink(random)
      : aims.length > 0 && random.chance(70)
      ? aimed(random, state, random.pick(aims), edges)
      : plain(random, state, edges);
    const packet = draft && finish(random, draft, edges, real);
    if (!fits(packet)) continue;
    const decision = decisionText(state, packet);
    byDecision.set(decision, [...byDecision.get(decision) ?? [], packet]);
  }
  const packets: FuzzPacket[] = [];
  const take = (packet: FuzzPacket | undefined) => {
    if (fits(packet) && packets.length < count) packets.push(packet);
  };
  for (let round = 0; packets.length < count && byDecision.size > 0; round++) {
    for (const [decision, choice] of byDecision) {
      const packet = choice[round];
      if (packet === undefined) {
        byDecision.delete(decision);
        continue;
      }
      take(packet);
      take(neighbourOf(random, packet));
    }
  }
  return packets;
}

/** Who decided, at each end. The product's own evaluator says so: it is a guide here, and no judge. */
const decisionText = (state: DesiredState, packet: FuzzPacket): string =>
  judgePath(state, pathOf(packet)).steps.map((step) =>
    step.kind === "judgement"
      ? `${step.judgement.stage} ${JSON.stringify(step.judgement.endpoint)} ${JSON.stringify(step.judgement.decision)}`
      : step.reason
  ).join("\n");

/** The packet with one thing a little other than it is; undefined where that would be another way. */
function neighbourOf(random: Random, packet: FuzzPacket): FuzzPacket | undefined {
  const { protocol, icmp, sourcePort, destinationPort, beforeDnat } = packet;
  const by = random.pick([-1, 1]);
  const candidates: FuzzPacket[] = [];
  if (sourcePort !== undefined && isPort(sourcePort + by)) candidates.push({ ...packet, sourcePort: sourcePort + by });
  if (destinationPort !== undefined && beforeDnat === undefined && isPort(destinationPort + by)) {
    candidates.push({ ...packet, destinationPort: destinationPort + by });
    candidates.push({ ...packet, protocol: random.pick([6, 17, 132, 136].filter((other) => other !== protocol)) });
  }
  if (icmp !== undefined) {
    candidates.push({ ...packet, icmp: { ...icmp, code: icmp.code === 0 ? 1 : 0 } });
    if (icmp.type + by >= 0 && icmp.type + by < 256) {
      candidates.push({ ...packet, icmp: { ...icmp, type: icmp.type + by } });
    }
  }
  for (const side of beforeDnat === undefined ? ["source", "destination"] as const : []) {
    const address = parseAddress(packet[side]), next = beside(address, BigInt(by));
    const link = side === "source" ? packet.inInterface : packet.outInterface;
    // The other address leads elsewhere: that is another packet altogether.
    if (next !== address && linkTo(next) === link) candidates.push({ ...packet, [side]: formatAddress(next) });
  }
  const chosen = candidates.length === 0 ? undefined : random.pick(candidates);
  return chosen !== undefined && isTranslated(chosen) ? undefined : chosen;
}

/** The node's own port that leads elsewhere: there it cannot stay as it is. */
const isTranslated = ({ protocol, destination, destinationPort, beforeDnat }: FuzzPacket): boolean => {
  const address = parseAddress(destination);
  return beforeDnat === undefined && isNodeAddress(address) &&
    TRANSLATIONS.some((one) =>
      one.protocol === protocol && one.port === destinationPort && one.to.length === address.length
    );
};

/** Ends, and what is known of the rest. */
interface Draft {
  readonly source: Address;
  readonly destination: Address;
  readonly inInterface?: string;
  readonly protocol?: number;
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly icmp?: { readonly type: number; readonly code: number };
}

// ---------------------------------------------------------------------------------------------------------------- drafts

const sameFamily = (address: Address) => (other: Address): boolean => other.length === address.length;

function addressesOfSlot(state: DesiredState, link: string): readonly Address[] {
  for (const workload of state.workloads.values()) {
    if (workload.interfaceName === link && workload.addresses.length > 0) return workload.addresses;
  }
  return SLOTS.find((slot) => slot.link === link)!.addresses;
}

const LINK_LOCAL = ["fe80::1", "::", "fd65::1"].map(parseAddress);
const ON_LINK = ["ff02::1", "ff02::16", "ff02::2", "fe80::1"].map(parseAddress);

/** What a machine says on its own link: neighbour discovery, listener reports, and what only looks like it. */
const onLink = (random: Random): Draft => ({
  source: random.pick(LINK_LOCAL),
  destination: random.pick(ON_LINK),
  inInterface: random.pick(SLOTS).link,
  protocol: 58,
  icmp: { type: random.pick([128, 130, 131, 133, 135, 136, 137, 143]), code: 0 },
});

/** Some two who may speak with one another through this node. */
function plain(random: Random, state: DesiredState, edges: Edges): Draft | undefined {
  const hosts = state.hostEndpoints.size > 0;
  const roll = random.below(hosts ? 100 : 80);
  const pod = () => random.pick(SLOTS).link;
  const wire = () => random.pick(NODE_LINKS).link;
  const from = roll < 45 || roll >= 75 && roll < 80 ? pod() : roll < 50 || roll >= 90 ? undefined : wire();
  const sources = from === undefined
    ? NODE_ADDRESSES
    : SLOTS.some(({ link }) => link === from)
    ? random.chance(94) ? addressesOfSlot(state, from) : edges.addresses
    : edges.addresses.filter((address) =>
      !isNodeAddress(address) && (random.chance(90) ? linkTo(address) === from : true)
    );
  if (sources.length === 0) return undefined;
  const source = random.pick(sources);
  const targets = roll < 30 || roll >= 45 && roll < 75
    ? addressesOfSlot(state, pod())
    : roll < 45
    ? edges.addresses
    : roll < 90
    ? NODE_ADDRESSES
    : edges.addresses;
  const fitting = targets.filter(sameFamily(source));
  if (fitting.length === 0) return undefined;
  return { source, destination: random.pick(fitting), ...(from === undefined ? {} : { inInterface: from }) };
}

/** A rule of a list, with whose list it is. */
interface Aim {
  readonly rules: readonly Rule[];
  readonly side: "source" | "destination";
  readonly own: readonly Address[];
  readonly link: string;
  /** Neither end is the endpoint's own: it passes through. */
  readonly forwarded: boolean;
}

function aimsOf(state: DesiredState): readonly Aim[] {
  const aims: Aim[] = [];
  const add = (
    list: PolicyList | undefined,
    side: Aim["side"],
    own: readonly Address[],
    link: string,
    forwarded = false,
  ) => {
    if (list === undefined) return;
    const rules = [...list.tiers.flatMap((tier) => tier.policies), ...list.profiles].flatMap((policy) => policy.rules);
    if (rules.length > 0) aims.push({ rules, side, own, link, forwarded });
  };
  for (const { interfaceName, addresses, ingress, egress } of state.workloads.values()) {
    if (addresses.length === 0) continue;
    add(ingress, "destination", addresses, interfaceName);
    add(egress, "source", addresses, interfaceName);
  }
  for (const host of state.hostEndpoints.values()) {
    for (const { link, addresses } of NODE_LINKS) {
      if (host.interfaces !== "*" && !host.interfaces.includes(link)) continue;
      add(host.ingress, "destination", addresses, link);
      add(host.egress, "source", addresses, link);
      add(host.preDnat, "destination", addresses, link);
      add(host.untrackedIngress, "destination", addresses, link);
      add(host.untrackedEgress, "source", addresses, link);
      add(host.forwardIngress, "destination", [], link, true);
      add(host.forwardEgress, "source", [], link, true);
    }
  }
  return aims;
}

/** How often a rule is aimed at before the best shot is taken: that which misses by one field or none. */
const SHOTS = 4;

function aimed(random: Random, state: DesiredState, aim: Aim, edges: Edges): Draft | undefined {
  const rule = random.pick(aim.rules);
  let best: Draft | undefined, fewest = Infinity;
  for (let shot = 0; shot < SHOTS && fewest > 1; shot++) {
    const draft = aimedAt(random, state, aim, rule, edges);
    const { source, destination, protocol = PROTOCOLS.TCP, ...rest } = draft;
    const misses = missesOf(state, rule, { source, destination, protocol, ...rest }).length;
    if (misses < fewest) fewest = misses, best = draft;
  }
  return best;
}

function aimedAt(random: Random, state: DesiredState, aim: Aim, rule: Rule, edges: Edges): Draft {
  const peerSide = aim.side === "source" ? "destination" : "source";
  const hits = { source: hitOf(random, state, rule.source), destination: hitOf(random, state, rule.destination) };
  const own = random.pick(aim.forwarded ? [...hits[aim.side].addresses, random.pick(edges.addresses)] : aim.own);
  const peers = hits[peerSide].addresses.filter(sameFamily(own));
  const anybody = edges.addresses.filter(sameFamily(own));
  const peer = peers.length > 0 && random.chance(85) ? random.pick(peers) : random.pick(anybody);
  const [source, destination] = aim.side === "source" ? [own, peer] : [peer, own];
  const isSlot = SLOTS.some(({ link }) => link === aim.link);
  const inInterface = aim.side === "source"
    ? aim.forwarded ? linkTo(source) : isSlot ? aim.link : undefined
    : aim.forwarded || !isSlot
    ? aim.link
    : linkTo(source);
  // The ports that stay open whatever policy says, from either end.
  const open = isSlot || !random.chance(30) ? undefined : random.pick(FAILSAFE_PORTS);
  const openSide = random.pick(["source", "destination"] as const);
  const protocol = open?.protocol ?? rule.protocol ?? hits.destination.protocol ?? hits.source.protocol ??
    (rule.icmp !== undefined ? icmpOf(source) : random.chance(50) ? rule.notProtocol : undefined);
  const portAt = (side: Aim["side"]) => open !== undefined && side === openSide ? open.port : hits[side].port;
  const sourcePort = portAt("source"), destinationPort = portAt("destination");
  const icmp = rule.icmp ?? rule.notIcmp;
  return {
    source,
    destination,
    ...(inInterface === undefined ? {} : { inInterface }),
    ...(protocol === undefined ? {} : { protocol }),
    ...(sourcePort === undefined ? {} : { sourcePort }),
    ...(destinationPort === undefined ? {} : { destinationPort }),
    ...(icmp === undefined ? {} : { icmp: { type: icmp.type, code: icmp.code ?? random.pick([0, 0, 1, 255]) } }),
  };
}

const FAILSAFE_PORTS = [...DEFAULT_FAILSAFE.inbound, ...DEFAULT_FAILSAFE.outbound];

/** What would please one end of a rule. */
interface Hit {
  /** Inside what it asks for or at its edge; empty: it asks nothing. */
  readonly addresses: readonly Address[];
  readonly protocol?: number;
  readonly port?: number;
}

function hitOf(random: Random, state: DesiredState, match: RuleMatch): Hit {
  const membersOf = (id: SetId): string[] => [...state.sets.get(id)?.members.keys() ?? []];
  const addresses: Address[] = [];
  const nets = match.nets ?? match.notNets ?? [];
  if (nets.length > 0) addresses.push(...edgesOfNet(random.pick(nets)));
  const sets = [...match.sets ?? [], ...match.notSets ?? []];
  const members = sets.length === 0 ? [] : membersOf(random.pick(sets));
  if (members.length > 0) addresses.push(...edgesOfNet(random.pick(members) as Cidr));

  const { serviceSet } = match;
  const portSets = [
    ...match.portSets ?? [],
    ...match.notPortSets ?? [],
    ...serviceSet === undefined ? [] : [serviceSet],
  ];
  const ranges = [...match.ports ?? [], ...match.notPorts ?? []];
  const named = portSets.length === 0 ? [] : membersOf(random.pick(portSets));
  if (named.length > 0 && (ranges.length === 0 || random.chance(50))) {
    // Address, protocol and port of one and the same.
    const member = random.pick(named);
    const [protocol, high, low] = [...member.slice(-3)].map((byte) => byte.charCodeAt(0)) as [number, number, number];
    return { addresses: [...addresses, member.slice(0, -3) as Address], protocol, port: high << 8 | low };
  }
  const ports = ranges.length === 0 ? [] : edgesOfPorts(random.pick(ranges)).filter(isPort);
  return { addresses, ...(ports.length === 0 ? {} : { port: random.pick(ports) }) };
}

// --------------------------------------------------------------------------------------------------------------- packets

function finish(random: Random, draft: Draft, edges: Edges, real: boolean): FuzzPacket | undefined {
  const { source, inInterface } = draft;
  const family = addressFamily(source);
  const to = random.chance(6) ? beside(draft.destination, random.pick([-1n, 1n])) : draft.destination;
  const translation = isNodeAddress(to) ? translationOf(draft, family, random) : undefined;
  const protocol = translation?.protocol ?? (random.chance(8) ? undefined : draft.protocol) ??
    someProtocol(random, edges, family);
  const ported = hasPorts(protocol);
  const near = (port: number) => {
    const moved = port + random.pick([-1, 1]);
    return random.chance(12) && isPort(moved) ? moved : port;
  };
  const somePort = () => random.chance(90) ? random.pick(edges.ports) : 1 + random.below(65535);
  const isEcho = protocol === icmpOf(source);
  const icmp = !isEcho ? undefined : draft.icmp !== undefined && !real ? draft.icmp : {
    type: real ? random.pick(FIRST_TYPES[family]) : random.pick(edges.icmpTypes),
    code: draft.icmp?.code ?? random.pick([0, 0, 0, 1, 255]),
  };
  const destination = translation?.to ?? to;
  const outInterface = ON_LINK.includes(destination)
    ? undefined
    : !real && random.chance(3)
    ? random.pick([...SLOTS, ...NODE_LINKS]).link
    : linkTo(destination);
  if (inInterface === undefined && outInterface === undefined) return undefined;
  const port = translation?.toPort ?? (ported ? near(draft.destinationPort ?? somePort()) : undefined);
  const packet = tidyPacket({
    protocol,
    source: formatAddress(source),
    destination: formatAddress(destination),
    ...(ported
      ? { sourcePort: near(draft.sourcePort ?? (random.chance(70) ? 40_000 + random.below(10_000) : somePort())) }
      : {}),
    ...(port === undefined ? {} : { destinationPort: port }),
    ...(icmp === undefined ? {} : { icmp }),
    ...(translation === undefined
      ? {}
      : { beforeDnat: { destination: formatAddress(to), destinationPort: translation.port } }),
    ...(inInterface === undefined ? {} : { inInterface }),
    ...(outInterface === undefined ? {} : { outInterface }),
  });
  return isTranslated(packet) ? undefined : packet;
}

/** Somebody outside or a pod speaks to a translated port of the node. */
function translationOf({ inInterface }: Draft, family: 4 | 6, random: Random) {
  if (inInterface === undefined || !random.chance(25)) return undefined;
  return random.pick(TRANSLATIONS.filter((one) => addressFamily(one.to) === family));
}

function someProtocol(random: Random, edges: Edges, family: 4 | 6): number {
  const roll = random.below(100);
  if (roll < 50) return 6;
  if (roll < 68) return 17;
  if (roll < 76) return 132;
  if (roll < 80) return 136;
  if (roll < 92) return family === 4 ? 1 : 58;
  return random.pick([...edges.protocols, 2, 47, 89, 253, 254, ...(family === 4 ? [58] : [1])]);
}

/** Whether real namespaces can carry it: it can come in by that link, goes where it says, and begins a flow. */
export function isReal(packet: FuzzPacket): boolean {
  const source = parseCidr(packet.source), destination = parseCidr(packet.destination);
  const from = cidrAddress(source), to = cidrAddress(destination);
  if (
    !isRoutable(from) || !isRoutable(to) || hostCidr(from) !== source || cidrFamily(source) !== cidrFamily(destination)
  ) return false;
  if (packet.inInterface === undefined ? !isNodeAddress(from) : isNodeAddress(from)) return false;
  if (linkTo(to) !== packet.outInterface) return false;
  const family = cidrFamily(source);
  if (packet.icmp === undefined ? [1, 58].includes(packet.protocol) : !FIRST_TYPES[family].includes(packet.icmp.type)) {
    return false;
  }
  return !(family === 6 && EXTENSIONS.includes(packet.protocol));
}
