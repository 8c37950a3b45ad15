/**
 * Packets that tell two dataplanes apart if anything does: for each rule of each list those that just match it and those that just miss
 * it, for each endpoint some of its own, and what no rule names. Pure. The caller decides how many it takes: they come by turns from
 * all lists and endpoints, so that the first few are of all of them.
 */
import { type Address, addressFamily, type Family, parseAddress } from "../../model/address.ts";
import type {
  DesiredHostEndpoint,
  DesiredState,
  DesiredWorkload,
  Packet,
  PolicyList,
  ProtocolPort,
  Rule,
} from "../../model/desired.ts";
import type { Path, Stage } from "../../model/evaluate.ts";
import { hasPorts, PROTOCOLS } from "../../model/ports.ts";
import { CLIENT_PORT } from "../explain/packet.ts";
import { rulesOf } from "../what_if/lists.ts";
import { edgesOf, isPort } from "./rule_edges.ts";

const FAMILIES: readonly Family[] = [4, 6];
/** For each family of an endpoint whose list another one's packets cover already. */
const OF_SHARED_LIST = 4;
/** That a rule which names none is tried with. */
const PROTOCOLS_OF_LIST = 4;
const SERVER_PORT = 80;
/** RFC 5737 and RFC 3849: nobody's. */
const OUTSIDE: Readonly<Record<Family, Address>> = { 4: parseAddress("198.51.100.7"), 6: parseAddress("2001:db8::7") };
const NODE: Readonly<Record<Family, Address>> = { 4: parseAddress("192.0.2.254"), 6: parseAddress("2001:db8:fe::1") };
/** RFC 3692: for experiments. */
const STRANGE_PROTOCOL = 253;
/** ICMP's and ICMPv6's echo request. */
const ECHO: Readonly<Record<Family, number>> = { 4: 8, 6: 128 };
/** xtables takes 255 for every type (README of dataplanes/iptables); nobody sends it. */
const ICMP_LAST = 254;

type Links = Pick<Path, "inInterface" | "outInterface">;

/** One direction of one endpoint: which packets meet its list. */
interface Way {
  readonly list: PolicyList | undefined;
  readonly family: Family;
  /** The endpoint is the packet's source. */
  readonly isSender: boolean;
  /** Its address; undefined: any, as of a host that is passed by. */
  readonly own: Address | undefined;
  /** `other`: the address at the other end. */
  readonly links: (other: Address) => Links;
}

/** Ends when it has no more to say; each packet once. */
export function* tellingPackets(state: DesiredState): Generator<Path> {
  const seen = new Set<string>();
  const covered = new Set<string>();
  const surroundings = new Surroundings(state);
  const sources: Iterator<Path>[] = [];
  for (const way of waysOf(state, surroundings)) {
    const key = way.list === undefined ? undefined : `${way.list.id} ${way.family} ${way.isSender}`;
    const isFirst = key === undefined || covered.size < covered.add(key).size;
    const packets = packetsOf(state, way, surroundings);
    sources.push(isFirst ? packets : take(packets, OF_SHARED_LIST));
  }
  sources.push(strangers(state, surroundings));
  while (sources.length > 0) {
    for (let i = 0; i < sources.length; i++) {
      const { value: path, done } = sources[i]!.next();
      if (done) {
        sources.splice(i--, 1);
        continue;
      }
      const { protocol, source, destination, sourcePort, destinationPort, icmp } = path.packet;
      const key = [
        protocol,
        source,
        destination,
        sourcePort,
        destinationPort,
        icmp?.type,
        icmp?.code,
        path.inInterface,
        path.outInterface,
      ].join("|");
      if (seen.size < seen.add(key).size) yield path;
    }
  }
}

function* take<T>(from: Iterable<T>, count: number): Generator<T> {
  let taken = 0;
  for (const one of from) {
    if (taken++ === count) return;
    yield one;
  }
}

/** Links and addresses of the node's own pods, and a link that is nobody's. */
class Surroundings {
  /** A link that no endpoint has by name. */
  readonly outside: string;
  /** As the daemon names links of pods, and of none. */
  readonly unknown: string;
  readonly #byAddress = new Map<Address, string>();
  readonly #pods: Readonly<Record<Family, Address[]>> = { 4: [], 6: [] };

  constructor({ workloads, hostEndpoints }: DesiredState) {
    const taken = new Set<string>();
    workloads.forEach(({ interfaceName, addresses }) => {
      taken.add(interfaceName);
      for (const address of addresses) {
        this.#byAddress.set(address, interfaceName);
        this.#pods[addressFamily(address)].push(address);
      }
    });
    hostEndpoints.forEach(({ interfaces }) => {
      if (interfaces !== "*") { for (const name of interfaces) taken.add(name); }
    });
    const free = (prefix: string) => {
      for (let i = 0;; i++) if (!taken.has(`${prefix}${i}`)) return `${prefix}${i}`;
    };
    this.outside = free("eth");
    this.unknown = free("mxffffffffff");
  }

  linkOf = (address: Address): string => this.#byAddress.get(address) ?? this.outside;

  /** An address of another pod. */
  otherPod(family: Family, than: Address | undefined): Address | undefined {
    return this.#pods[family].find((address) => address !== than);
  }
}

function* waysOf({ workloads, hostEndpoints }: DesiredState, at: Surroundings): Generator<Way> {
  for (const workload of workloads.values()) yield* waysOfWorkload(workload, at);
  for (const host of hostEndpoints.values()) yield* waysOfHost(host, at);
}

function* waysOfWorkload(workload: DesiredWorkload, at: Surroundings): Generator<Way> {
  const { interfaceName: link, addresses, ingress, egress } = workload;
  for (const family of FAMILIES) {
    const own = addresses.find((address) => addressFamily(address) === family);
    if (own === undefined) continue;
    yield {
      list: ingress,
      family,
      own,
      isSender: false,
      links: (other) => ({ inInterface: at.linkOf(other), outInterface: link }),
    };
    yield {
      list: egress,
      family,
      own,
      isSender: true,
      links: (other) => ({ inInterface: link, outInterface: at.linkOf(other) }),
    };
    // Its node: the one that it speaks to, the one that speaks to it, and an address that is not its own.
    yield { list: undefined, family, own, isSender: true, links: () => ({ inInterface: link }) };
    yield { list: undefined, family, own, isSender: false, links: () => ({ outInterface: link }) };
    yield {
      list: undefined,
      family,
      own: OUTSIDE[family],
      isSender: true,
      links: () => ({ inInterface: link, outInterface: at.outside }),
    };
  }
}

const STAGES: Readonly<Record<Stage, { readonly isSender: boolean; readonly isForwarded: boolean }>> = {
  ingress: { isSender: false, isForwarded: false },
  preDnat: { isSender: false, isForwarded: false },
  untrackedIngress: { isSender: false, isForwarded: false },
  egress: { isSender: true, isForwarded: false },
  untrackedEgress: { isSender: true, isForwarded: false },
  forwardIngress: { isSender: false, isForwarded: true },
  forwardEgress: { isSender: true, isForwarded: true },
};

function* waysOfHost(host: DesiredHostEndpoint, at: Surroundings): Generator<Way> {
  const link = host.interfaces === "*" ? at.outside : host.interfaces[0]!;
  const elsewhere = host.interfaces === "*" ? `${at.outside}1` : at.outside;
  for (const [stage, { isSender, isForwarded }] of Object.entries(STAGES)) {
    const list = host[stage as Stage];
    if (list === undefined && stage !== "forwardIngress" && stage !== "forwardEgress") continue;
    const [inInterface, outInterface] = isSender ? [elsewhere, link] : [link, elsewhere];
    for (const family of FAMILIES) {
      yield {
        list,
        family,
        isSender,
        own: isForwarded ? undefined : NODE[family],
        links: () =>
          isForwarded ? { inInterface, outInterface } : isSender ? { outInterface: link } : { inInterface: link },
      };
    }
  }
}

/** What neither a list nor an endpoint is about: links that nobody knows, failsafe ports and their neighbours. */
function* strangers({ hostEndpoints, failsafe }: DesiredState, at: Surroundings): Generator<Path> {
  for (const family of FAMILIES) {
    const there = packet(PROTOCOLS.TCP, OUTSIDE[family], NODE[family], SERVER_PORT);
    const back = packet(PROTOCOLS.TCP, NODE[family], OUTSIDE[family], SERVER_PORT);
    yield { packet: back, inInterface: at.unknown, outInterface: at.outside };
    yield { packet: back, inInterface: at.unknown };
    yield { packet: there, inInterface: at.outside, outInterface: at.unknown };
    yield { packet: there, inInterface: at.outside };
    yield { packet: back, outInterface: at.outside };
    for (const { interfaces } of hostEndpoints.values()) {
      const link = interfaces === "*" ? at.outside : interfaces[0]!;
      const near = ({ port }: ProtocolPort) => [port, port - 1, port + 1].filter(isPort);
      for (const one of failsafe.inbound) {
        for (const port of near(one)) {
          yield { packet: packet(one.protocol, OUTSIDE[family], NODE[family], port), inInterface: link };
        }
      }
      for (const one of failsafe.outbound) {
        for (const port of near(one)) {
          yield { packet: packet(one.protocol, NODE[family], OUTSIDE[family], port), outInterface: link };
        }
      }
    }
  }
}

function packet(
  protocol: number,
  source: Address,
  destination: Address,
  destinationPort: number,
  sourcePort = CLIENT_PORT,
): Packet {
  if (hasPorts(protocol)) return { protocol, source, destination, sourcePort, destinationPort };
  if (protocol !== PROTOCOLS.ICMP && protocol !== PROTOCOLS.ICMPv6) return { protocol, source, destination };
  return { protocol, source, destination, icmp: { type: ECHO[addressFamily(destination)], code: 0 } };
}

/** First of all some that no rule names, then those of one rule after another. */
function* packetsOf(state: DesiredState, way: Way, at: Surroundings): Generator<Path> {
  const { list, family, own } = way;
  const mine = own ?? NODE[family];
  const pod = at.otherPod(family, own);
  for (const other of pod === undefined ? [OUTSIDE[family]] : [OUTSIDE[family], pod]) {
    yield pathOf(way, mine, other, (ends) => packet(PROTOCOLS.TCP, ...ends, SERVER_PORT));
  }
  if (list === undefined) return;
  const rules = rulesOf(list).filter((rule) => rule.family === undefined || rule.family === family);
  const named = [...new Set(rules.flatMap(({ protocol }) => protocol ?? []))].slice(0, PROTOCOLS_OF_LIST);
  for (const rule of rules) yield* packetsOfRule(state, way, rule, named, pod ?? OUTSIDE[family]);
}

/** `usual`: where a rule asks nothing about the address at the other end. */
function* packetsOfRule(
  state: DesiredState,
  way: Way,
  rule: Rule,
  protocolsOfList: readonly number[],
  usual: Address,
): Generator<Path> {
  const { family, isSender, own } = way;
  const source = edgesOf(state, family, rule.source), destination = edgesOf(state, family, rule.destination);
  const [ours, theirs] = isSender ? [source, destination] : [destination, source];
  const other = theirs.inside[0] ?? usual;
  // An endpoint has the addresses that it has; what is passed by has any.
  const mine = own ?? ours.inside[0] ?? NODE[family];
  const [sourcePort = CLIENT_PORT, ...sourcePorts] = source.ports;
  const [destinationPort = SERVER_PORT, ...destinationPorts] = destination.ports;
  const at = (mine: Address, other: Address, protocol: number, to = destinationPort, from = sourcePort) =>
    pathOf(way, mine, other, (ends) => packet(protocol, ...ends, to, from));

  const ofFamily = family === 4 ? PROTOCOLS.ICMP : PROTOCOLS.ICMPv6;
  const icmp = rule.icmp ?? rule.notIcmp;
  for (const near of icmp === undefined ? [] : icmpNear(icmp)) {
    yield pathOf(way, mine, other, ([source, destination]) => ({
      protocol: ofFamily,
      source,
      destination,
      icmp: near,
    }));
  }
  // What a rule says of every protocol shows where another rule says otherwise of one.
  const protocols = rule.protocol === undefined ? new Set([PROTOCOLS.TCP, ...protocolsOfList]) : [rule.protocol];
  for (const protocol of protocols) {
    for (const port of [destinationPort, ...destinationPorts]) yield at(mine, other, protocol, port);
    for (const port of sourcePorts) yield at(mine, other, protocol, destinationPort, port);
    for (const another of [...theirs.inside.slice(1), ...theirs.beside, OUTSIDE[family]]) {
      yield at(mine, another, protocol);
    }
    if (own !== undefined) continue;
    for (const passedBy of [...ours.inside.slice(1), ...ours.beside, NODE[family]]) {
      yield at(passedBy, other, protocol);
    }
  }
  for (const another of [PROTOCOLS.TCP, PROTOCOLS.UDP, ofFamily, STRANGE_PROTOCOL]) yield at(mine, other, another);
}

function pathOf(
  { isSender, links }: Way,
  mine: Address,
  other: Address,
  between: (ends: readonly [source: Address, destination: Address]) => Packet,
): Path {
  return { packet: between(isSender ? [mine, other] : [other, mine]), ...links(other) };
}

function icmpNear({ type, code = 0 }: NonNullable<Rule["icmp"]>): readonly NonNullable<Packet["icmp"]>[] {
  const near = [[type, code], [type, code + 1], [type - 1, code], [type + 1, code]] as const;
  return near.map(([type, code]) => ({ type, code })).filter(({ type, code }) =>
    type >= 0 && type <= ICMP_LAST && code <= 255
  );
}
