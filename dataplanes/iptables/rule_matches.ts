/** What a policy rule asks for → matches of x_tables, and the sets that they look in. Pure. */
import { type Cidr, cidrFamily, type Family } from "../../src/model/address.ts";
import type { SetId } from "../../src/model/desired.ts";
import type { PortRange } from "../../src/model/ports.ts";
import { type End, icmpProtocol, type Test } from "../../src/model/rule_alternatives.ts";
import { type Conjunction, protocolsOf } from "./conjunction.ts";
import { type Match, MULTIPORT_MAX, type Rule, type Target } from "./ruleset.ts";
import { netSetName, portSetName, type SetUse } from "./set_names.ts";

/** ICMP type 255 stands for every type in ip_tables. */
const EVERY_ICMP_TYPE = 255;

/** Thousands of rules ask for the same few. */
const PROTOCOL_MATCHES = new Map<number, Match>();
export function isProtocol(protocol: number): Match {
  let found = PROTOCOL_MATCHES.get(protocol);
  if (found === undefined) PROTOCOL_MATCHES.set(protocol, found = { match: "protocol", protocol, not: false });
  return found;
}

export const atPorts = (protocol: number, first: number, last: number): readonly Match[] => [
  isProtocol(protocol),
  { match: "ports", protocol, end: "destination", ranges: [{ first, last }] },
];

/** As many matches as the numbers fill; each by itself is enough. */
export function portMatches(
  protocol: number,
  end: End,
  ranges: readonly PortRange[],
): readonly (readonly Match[])[] {
  if (ranges.length === 1) return [[{ match: "ports", protocol, end, ranges }]];
  const matches: Match[][] = [];
  let part: PortRange[] = [], room = MULTIPORT_MAX;
  const flush = () => {
    if (part.length > 0) matches.push([{ match: "ports", protocol, end, ranges: part }]);
    part = [];
    room = MULTIPORT_MAX;
  };
  for (const range of ranges) {
    const numbers = range.first === range.last ? 1 : 2;
    if (numbers > room) flush();
    part.push(range);
    room -= numbers;
  }
  flush();
  return matches;
}

/** Makes the rules of one family, and gathers what they look in. */
export class RuleMatches {
  readonly sets = new Map<string, SetUse>();
  readonly notes = new Set<string>();

  constructor(private readonly family: Family) {}

  /**
   * Adds the rules that ask for `one` and lead to `target`: none where nothing can match, several where its ports do not fit into one.
   * `protocol`, `ports`: in the place of its own. Of several protocols that it must not be, none is asked for.
   */
  put(
    rules: Rule[],
    one: Conjunction,
    target: Target,
    protocol: number | undefined = one.protocol,
    ports: readonly PortRange[] | undefined = one.ports,
  ): void {
    const { tests, causes } = one;
    const matches: Match[] = [];
    const protocols = protocol === 0 || tests.some(isOfProtocol) ? protocolsOf({ tests, protocol }) : undefined;
    if (protocols === "never") return;
    const only = protocols === undefined ? protocol : protocols.only;
    if (only !== undefined) matches.push(isProtocol(only));
    else if (protocols?.without.length === 1) {
      matches.push({ match: "protocol", protocol: protocols.without[0]!, not: true });
    }
    let sourcePorts: readonly PortRange[] | undefined;
    let hasSource = false, hasDestination = false;
    for (const test of tests) {
      switch (test.test) {
        case "icmp":
          if (only !== icmpProtocol(this.family)) return;
          if (this.family === 4 && test.type === EVERY_ICMP_TYPE) {
            this.notes.add("ICMP type 255 is no type to ip_tables: it is never met");
            if (!test.not) return;
            break;
          }
          matches.push({ match: "icmp", type: test.type, code: test.code, not: test.not });
          break;
        case "address": {
          const { end, ids, nets, not } = test;
          // The entry itself has room for one prefix of each end.
          if (ids.length === 0 && nets.length === 1 && !(end === "source" ? hasSource : hasDestination)) {
            if (end === "source") hasSource = true;
            else hasDestination = true;
            matches.push({ match: "net", end, net: nets[0]!, not });
          } else matches.push(this.inSet(ids, nets, end, not));
          break;
        }
        case "addressPort":
          matches.push(this.atPort(test.id, test.end, test.not));
          break;
        case "ports":
          sourcePorts = test.ranges;
          break;
      }
    }
    if (sourcePorts === undefined && (ports === undefined || ports.length === 1)) {
      if (ports !== undefined) matches.push({ match: "ports", protocol: only!, end: "destination", ranges: ports });
      rules.push({ matches, target, causes });
      return;
    }
    const from = sourcePorts === undefined ? NO_PORTS : portMatches(only!, "source", sourcePorts);
    const to = ports === undefined ? NO_PORTS : portMatches(only!, "destination", ports);
    for (const source of from) {
      for (const destination of to) rules.push({ matches: [...matches, ...source, ...destination], target, causes });
    }
  }

  private inSet(ids: readonly SetId[], nets: readonly Cidr[], end: End, not: boolean): Match {
    const { family } = this;
    const set = netSetName(family, ids, nets);
    this.sets.set(set, { kind: "net", family, ids, nets: nets.filter((net) => cidrFamily(net) === family) });
    return { match: "set", set, ends: [end], not };
  }

  private atPort(id: SetId, end: End, not: boolean): Match {
    const { family } = this;
    const set = portSetName(family, id);
    this.sets.set(set, { kind: "port", family, ids: [id], nets: [] });
    return { match: "set", set, ends: [end, end], not };
  }
}

const isOfProtocol = ({ test }: Test): boolean => test === "protocol" || test === "portless";
const NO_PORTS: readonly (readonly Match[])[] = [[]];
