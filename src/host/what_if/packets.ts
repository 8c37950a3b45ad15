/**
 * All packets between two addresses, cut into classes that no rule of given lists tells apart: one packet stands for each.
 * Ports are cut where any range begins or ends, ICMP by the types and codes that rules name. Pure.
 */
import type { Address, Family } from "../../model/address.ts";
import type { AddressSet, Packet, PolicyList, ProtocolPort, Rule, RuleMatch, SetId } from "../../model/desired.ts";
import type { PersistentMap } from "../../model/persistent_map.ts";
import { hasPorts, PROTOCOLS } from "../../model/ports.ts";
import type { PortRange } from "../../model/ports.ts";
import type { IcmpMatch } from "../../model/rule.ts";
import { formatProtocol } from "../../model/rule_format.ts";
import { type Bits, hasBit, noBits, setBit } from "../bits.ts";
import { CLIENT_PORT } from "../explain/packet.ts";

/** Classes at most; past them source ports are no longer told apart. */
const CLASSES_MAX = 100_000;
const LAST_PORT = 65_535;
const PORTED = [PROTOCOLS.TCP, PROTOCOLS.UDP, PROTOCOLS.SCTP, PROTOCOLS.UDPLite] as const;
/** Words that a change is told in; the rest is counted. */
const WORDS_MAX = 16;
/** "Everything but" may leave out so many. */
const EXCEPTIONS_MAX = 8;
/** Neighbour discovery and multicast listeners (RFC 4861, RFC 2710): talk of a link's two ends, no way from one to another. */
const isNeighbourDiscovery = (type: number): boolean => type >= 130 && type <= 136;

interface Interval {
  readonly first: number;
  readonly last: number;
}

interface PacketClass {
  readonly protocol: number;
  /** Of protocols with ports. */
  readonly ports?: { readonly source: Interval; readonly isClient: boolean; readonly destination: Interval };
  readonly icmp?: { readonly type: number; readonly code: number };
  /** `icmp/8`, `protocol 47`; of ports none. */
  readonly word: string;
}

export interface PacketClasses {
  readonly family: Family;
  readonly size: number;
  /** One packet of class `at`. */
  packet(at: number, source: Address, destination: Address): Packet;
  /** Those with ports whose destination may be in one of the ranges. */
  towards(ranges: readonly PortRange[]): readonly number[];
  /** The classes of `bits` in words, and how many words are left out. */
  words(bits: Bits): { readonly what: readonly string[]; readonly more: number };
  /** Whether source ports that rules name had to be left out. */
  readonly isCoarse: boolean;
}

export interface PacketSources {
  readonly lists: Iterable<PolicyList>;
  /** Named ports and services of the lists are found here. */
  readonly sets: readonly PersistentMap<SetId, AddressSet>[];
  /** Ports that count whatever the lists say. */
  readonly ports: readonly ProtocolPort[];
}

export function classifyPackets(family: Family, sources: PacketSources): PacketClasses {
  const marks = new Marks(sources.sets);
  for (const list of sources.lists) {
    for (const { policies } of list.tiers) for (const { rules } of policies) for (const rule of rules) marks.note(rule);
    for (const { rules } of list.profiles) for (const rule of rules) marks.note(rule);
  }
  for (const { protocol, port } of sources.ports) marks.destination(protocol, port, port);
  const { classes, isCoarse } = marks.classes(family);
  const blocks = blocksOf(classes);
  return {
    family,
    size: classes.length,
    isCoarse,
    packet: (at, source, destination) => packetOf(classes[at]!, source, destination),
    towards: (ranges) => towardsOf(classes, blocks, ranges),
    words: (bits) => wordsOf(classes, bits),
  };
}

/** Classes in a row that differ in their destination ports alone, in order of these. */
interface Block {
  readonly start: number;
  readonly size: number;
}

function blocksOf(classes: readonly PacketClass[]): readonly Block[] {
  const blocks: { start: number; size: number }[] = [];
  for (const [at, { ports }] of classes.entries()) {
    if (ports === undefined) continue;
    if (ports.destination.first === 1) blocks.push({ start: at, size: 1 });
    else blocks.at(-1)!.size++;
  }
  return blocks;
}

function towardsOf(classes: readonly PacketClass[], blocks: readonly Block[], ranges: readonly PortRange[]): number[] {
  const found: number[] = [];
  const destination = (at: number) => classes[at]!.ports!.destination;
  for (const { start, size } of blocks) {
    for (const { first, last } of ranges) {
      // The first one that does not end before the range.
      let low = 0, high = size;
      while (low < high) {
        const middle = low + high >>> 1;
        if (destination(start + middle).last < first) low = middle + 1;
        else high = middle;
      }
      for (; low < size && destination(start + low).first <= last; low++) found.push(start + low);
    }
  }
  return found;
}

function packetOf({ protocol, ports, icmp }: PacketClass, source: Address, destination: Address): Packet {
  if (icmp !== undefined) return { protocol, source, destination, icmp };
  if (ports === undefined) return { protocol, source, destination };
  return {
    protocol,
    source,
    destination,
    sourcePort: ports.isClient ? CLIENT_PORT : ports.source.first,
    destinationPort: ports.destination.first,
  };
}

/** Where rules make a difference. */
class Marks {
  /** First ports of intervals, by protocol. */
  readonly #sources = new Map<number, Set<number>>(PORTED.map((protocol) => [protocol, new Set([1])]));
  readonly #destinations = new Map<number, Set<number>>(PORTED.map((protocol) => [protocol, new Set([1])]));
  readonly #icmp: IcmpMatch[] = [];
  readonly #protocols = new Set<number>();
  readonly #seenSets = new Set<string>();
  readonly #seenRules = new Set<Rule>();

  constructor(readonly sets: PacketSources["sets"]) {}

  note(rule: Rule): void {
    if (this.#seenRules.has(rule)) return;
    this.#seenRules.add(rule);
    for (const number of [rule.protocol, rule.notProtocol]) if (number !== undefined) this.#protocols.add(number);
    for (const icmp of [rule.icmp, rule.notIcmp]) if (icmp !== undefined) this.#icmp.push(icmp);
    const protocols = rule.protocol === undefined ? PORTED : PORTED.filter((one) => one === rule.protocol);
    this.#match(rule.source, protocols, this.#sources);
    this.#match(rule.destination, protocols, this.#destinations);
  }

  destination(protocol: number, first: number, last: number): void {
    cut(this.#destinations.get(protocol), first, last);
  }

  #match(match: RuleMatch, protocols: readonly number[], cuts: ReadonlyMap<number, Set<number>>): void {
    for (const { first, last } of [...match.ports ?? [], ...match.notPorts ?? []]) {
      for (const protocol of protocols) cut(cuts.get(protocol), first, last);
    }
    const ids = [...match.portSets ?? [], ...match.notPortSets ?? [], ...match.serviceSet ? [match.serviceSet] : []];
    for (const id of ids) {
      const key = `${cuts === this.#sources ? "s" : "d"} ${id}`;
      if (this.#seenSets.has(key)) continue;
      this.#seenSets.add(key);
      for (const sets of this.sets) {
        sets.get(id)?.members.forEach((_, member) => {
          const end = member.length;
          const port = member.charCodeAt(end - 2) << 8 | member.charCodeAt(end - 1);
          cut(cuts.get(member.charCodeAt(end - 3)), port, port);
        });
      }
    }
  }

  classes(family: Family): { readonly classes: readonly PacketClass[]; readonly isCoarse: boolean } {
    const ported = PORTED.map((protocol) => ({
      protocol,
      sources: intervals(this.#sources.get(protocol)!),
      destinations: intervals(this.#destinations.get(protocol)!),
    }));
    const product = ported.reduce((sum, { sources, destinations }) => sum + sources.length * destinations.length, 0);
    const isCoarse = product > CLASSES_MAX;
    const classes: PacketClass[] = [];
    for (const { protocol, sources, destinations } of ported) {
      const told = isCoarse ? [{ first: 1, last: LAST_PORT }] : sources;
      for (const source of told) {
        const isClient = source.first <= CLIENT_PORT && CLIENT_PORT <= source.last;
        for (const destination of destinations) {
          classes.push({ protocol, ports: { source, isClient, destination }, word: "" });
        }
      }
    }
    const protocol = family === 4 ? PROTOCOLS.ICMP : PROTOCOLS.ICMPv6;
    classes.push(...icmpClasses(protocol, this.#icmp));
    const named = [...this.#protocols].filter((one) => !hasPorts(one) && one !== protocol).toSorted((a, b) => a - b);
    for (const number of named) classes.push({ protocol: number, word: formatProtocol(number) });
    // RFC 3692: two numbers for experiments, that nobody else means.
    const other = [253, 254, 252, 251].find((number) => !this.#protocols.has(number)) ?? 253;
    classes.push({ protocol: other, word: "other protocols" });
    return { classes, isCoarse };
  }
}

function cut(cuts: Set<number> | undefined, first: number, last: number): void {
  if (cuts === undefined) return;
  if (first > 1 && first <= LAST_PORT) cuts.add(first);
  if (last < LAST_PORT) cuts.add(last + 1);
}

function intervals(firsts: ReadonlySet<number>): readonly Interval[] {
  const sorted = [...firsts].filter((first) => first >= 1).toSorted((a, b) => a - b);
  return sorted.map((first, i) => ({ first, last: (sorted[i + 1] ?? LAST_PORT + 1) - 1 }));
}

function icmpClasses(protocol: number, named: readonly IcmpMatch[]): readonly PacketClass[] {
  const word = formatProtocol(protocol);
  const types = [...new Set(named.map(({ type }) => type))].filter((type) =>
    !isNeighbourDiscovery(type) || protocol === 1
  )
    .toSorted((a, b) => a - b);
  const classes: PacketClass[] = [];
  for (const type of types) {
    const codes = [...new Set(named.flatMap((one) => one.type === type && one.code !== undefined ? [one.code] : []))]
      .toSorted((a, b) => a - b);
    for (const code of codes) classes.push({ protocol, icmp: { type, code }, word: `${word}/${type}/${code}` });
    const other = firstWithout(codes);
    if (other === undefined) continue;
    const rest = codes.length === 0 ? `${word}/${type}` : `${word}/${type} with other codes`;
    classes.push({ protocol, icmp: { type, code: other }, word: rest });
  }
  const other = firstWithout(protocol === 1 ? types : [...types, 130, 131, 132, 133, 134, 135, 136]);
  if (other !== undefined) {
    classes.push({
      protocol,
      icmp: { type: other, code: 0 },
      word: types.length === 0 ? word : `${word} of other types`,
    });
  }
  return classes;
}

const firstWithout = (taken: readonly number[]): number | undefined => {
  for (let number = 0; number < 256; number++) if (!taken.includes(number)) return number;
  return undefined;
};

function wordsOf(classes: readonly PacketClass[], bits: Bits): { what: readonly string[]; more: number } {
  const words = listWords(classes, bits);
  const rest = noBits(classes.length);
  for (let at = 0; at < classes.length; at++) if (!hasBit(bits, at)) setBit(rest, at);
  const exceptions = listWords(classes, rest);
  if (exceptions.length === 0) return { what: ["everything"], more: 0 };
  if (exceptions.length <= EXCEPTIONS_MAX && exceptions.length < words.length) {
    return { what: [`everything but ${exceptions.join(", ")}`], more: 0 };
  }
  return { what: words.slice(0, WORDS_MAX), more: Math.max(0, words.length - WORDS_MAX) };
}

/** `tcp/80`, `tcp/90-99`, `udp`, `icmp/8` … */
function listWords(classes: readonly PacketClass[], bits: Bits): readonly string[] {
  const words: string[] = [];
  const byProtocol = new Map<number, number[]>();
  for (const [at, { protocol }] of classes.entries()) {
    const list = byProtocol.get(protocol);
    if (list === undefined) byProtocol.set(protocol, [at]);
    else list.push(at);
  }
  for (const [protocol, all] of byProtocol) {
    const chosen = all.filter((at) => hasBit(bits, at));
    if (chosen.length === 0) continue;
    const [first] = all.map((at) => classes[at]!), isWhole = chosen.length === all.length;
    if (first!.ports !== undefined) {
      words.push(
        ...isWhole
          ? [formatProtocol(protocol)]
          : portWords(formatProtocol(protocol), chosen.map((at) => classes[at]!.ports!)),
      );
    } else if (first!.icmp !== undefined && isWhole) words.push(formatProtocol(protocol));
    else words.push(...chosen.map((at) => classes[at]!.word));
  }
  return words;
}

function portWords(protocol: string, chosen: readonly NonNullable<PacketClass["ports"]>[]): readonly string[] {
  const fromClients = chosen.filter(({ isClient }) => isClient).map(({ destination }) => destination);
  const covered = new Set(fromClients.map(({ first }) => first));
  const others = new Map<string, { source: Interval; destinations: Interval[] }>();
  for (const { source, isClient, destination } of chosen) {
    if (isClient || covered.has(destination.first)) continue;
    const key = rangeText(source);
    const entry = others.get(key) ?? { source, destinations: [] };
    entry.destinations.push(destination);
    others.set(key, entry);
  }
  return [
    ...joined(fromClients).map((range) => `${protocol}/${rangeText(range)}`),
    ...[...others.values()].flatMap(({ source, destinations }) =>
      joined(destinations).map((range) => `${protocol}/${rangeText(range)} from port ${rangeText(source)}`)
    ),
  ];
}

/** Neighbours made one. */
function joined(intervals: readonly Interval[]): readonly Interval[] {
  const ranges: Interval[] = [];
  for (const interval of intervals.toSorted((a, b) => a.first - b.first)) {
    const before = ranges.at(-1);
    if (before !== undefined && before.last + 1 === interval.first) {
      ranges[ranges.length - 1] = { first: before.first, last: interval.last };
    } else ranges.push(interval);
  }
  return ranges;
}

const rangeText = ({ first, last }: Interval): string => first === last ? `${first}` : `${first}-${last}`;
