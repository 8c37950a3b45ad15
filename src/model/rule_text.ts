/** Compiled rules in words, for people: what a rule says, and why a condition of it does not hold for a packet. Pure. */
import { addressFamily, cidrContains, formatAddress, formatCidr } from "./address.ts";
import type { Address, Cidr } from "./address.ts";
import type { DesiredState, Packet, Rule, RuleMatch, SetId } from "./desired.ts";
import { missesOf } from "./evaluate.ts";
import type { RuleField } from "./evaluate.ts";
import { hasPorts } from "./ports.ts";
import type { NamedPort, PortRange } from "./ports.ts";
import type { IcmpMatch } from "./rule.ts";
import { formatProtocol } from "./rule_format.ts";
import type { Labels } from "./selector.ts";
import { parseSelector, SelectorSyntaxError } from "./selector_parse.ts";
import type { Selector } from "./selector.ts";
import { describeSelector, selectorMisses } from "./selector_text.ts";

/** Prefixes or port ranges of one list that are spelt out. */
const LISTED_MAX = 8;

/** Who holds an address. */
export interface Holder {
  /** For people: `default/web`, `network set offices`. */
  readonly name: string;
  /** All of them, as selectors see them. */
  readonly labels: Labels;
  readonly ports: readonly NamedPort[];
}

export interface MissContext {
  readonly state: Pick<DesiredState, "sets">;
  readonly packet: Packet;
  readonly holdersOf: (address: Address) => readonly Holder[];
}

type Side = "source" | "destination";

/** What a set stands for, from its title. */
type SetMeaning =
  | { readonly kind: "selector"; readonly selector: Selector; readonly port?: string }
  | { readonly kind: "other"; readonly text: string };

/** For example `allow tcp from pods in namespace default with app == "web" to port 80, 8080-8090`. */
export function describeRule(rule: Rule, state: Pick<DesiredState, "sets">): string {
  const words: string[] = [rule.action];
  if (rule.family !== undefined) words.push(`IPv${rule.family}`);
  if (rule.protocol !== undefined) words.push(formatProtocol(rule.protocol));
  if (rule.notProtocol !== undefined) words.push(`all but ${formatProtocol(rule.notProtocol)}`);
  if (rule.icmp !== undefined) words.push(`type ${icmpText(rule.icmp)}`);
  if (rule.notIcmp !== undefined) words.push(`but type ${icmpText(rule.notIcmp)}`);
  const source = describeMatch(rule.source, state), destination = describeMatch(rule.destination, state);
  if (source !== "") words.push(`from ${source}`);
  if (destination !== "") words.push(`to ${destination}`);
  return words.length === 1 ? `${rule.action} everything` : words.join(" ");
}

function describeMatch(match: RuleMatch, state: Pick<DesiredState, "sets">): string {
  const who = (ids: readonly SetId[]) => ids.map((id) => meaningText(meaningOf(state, id)));
  const all = [
    ...match.nets === undefined ? [] : [listed(match.nets.map(formatCidr))],
    ...who(match.sets ?? []),
    ...who(match.serviceSet === undefined ? [] : [match.serviceSet]),
  ];
  const parts = all.length === 0 ? [] : [all.join(" and ")];
  if (match.notNets !== undefined) parts.push(`but not ${listed(match.notNets.map(formatCidr))}`);
  if (match.notSets !== undefined) parts.push(`but not ${who(match.notSets).join(" nor ")}`);
  if (match.ports !== undefined || match.portSets !== undefined) parts.push(`port ${portsText(match, state)}`);
  if (match.notPorts !== undefined || match.notPortSets !== undefined) {
    parts.push(`but not port ${portsText({ ports: match.notPorts, portSets: match.notPortSets }, state)}`);
  }
  return parts.join(" ");
}

/** `80, 90-99, http`. */
const portsText = (
  { ports, portSets }: { ports?: readonly PortRange[]; portSets?: readonly SetId[] },
  state: Pick<DesiredState, "sets">,
): string => listed([...(ports ?? []).map(rangeText), ...(portSets ?? []).map((id) => portNameOf(state, id))]);

function portNameOf(state: Pick<DesiredState, "sets">, id: SetId): string {
  const meaning = meaningOf(state, id);
  return meaning.kind === "selector" ? meaning.port ?? describeSelector(meaning.selector) : meaning.text;
}

const rangeText = ({ first, last }: PortRange): string => first === last ? `${first}` : `${first}-${last}`;
const icmpText = ({ type, code }: IcmpMatch): string => code === undefined ? `${type}` : `${type}/${code}`;

const listed = (members: readonly string[]): string =>
  members.length <= LISTED_MAX
    ? members.join(", ")
    : `${members.slice(0, LISTED_MAX).join(", ")} and ${members.length - LISTED_MAX} more`;

/** The title of a set is a canonical selector, `port NAME of SELECTOR`, or text for people alone. */
function meaningOf(state: Pick<DesiredState, "sets">, id: SetId): SetMeaning {
  const title = state.sets.get(id)?.title ?? `the set ${id}`;
  const port = /^port (\S+) of (.+)$/s.exec(title);
  try {
    if (port !== null) return { kind: "selector", selector: parseSelector(port[2]!), port: port[1]! };
    return { kind: "selector", selector: parseSelector(title) };
  } catch (error) {
    if (!(error instanceof SelectorSyntaxError)) throw error;
    return { kind: "other", text: title };
  }
}

const meaningText = (meaning: SetMeaning): string =>
  meaning.kind === "selector" ? describeSelector(meaning.selector) : meaning.text;

/**
 * Why the condition `field` of the rule does not hold for the packet, in words and with values, one reason each: `the source
 * default/php has service=php, wanted service == "nodejs"`; `port 8080 is not 80-90`.
 */
export function describeMiss(rule: Rule, field: RuleField, context: MissContext): readonly string[] {
  const { packet } = context;
  const protocol = formatProtocol(packet.protocol);
  switch (field) {
    case "family":
      return [`the packet is IPv${addressFamily(packet.destination)}, the rule is for IPv${rule.family}`];
    case "protocol":
      return [`the packet is ${protocol}, wanted ${formatProtocol(rule.protocol!)}`];
    case "notProtocol":
      return [`the packet is ${protocol}, which the rule leaves out`];
    case "icmp":
      return [`${icmpOf(packet)}, wanted type ${icmpText(rule.icmp!)}`];
    case "notIcmp":
      return [`${icmpOf(packet)}, which the rule leaves out`];
  }
  const [side, part] = field.split(".") as [Side, string];
  const match = rule[side], address = packet[side], text = formatAddress(address);
  const port = side === "source" ? packet.sourcePort : packet.destinationPort;
  switch (part) {
    case "nets":
      return [`the ${side} ${text} is not in ${listed(match.nets!.map(formatCidr))}`];
    case "notNets": {
      const holding = match.notNets!.find((net) => cidrContains(net, address));
      return [`the ${side} ${text} is in ${formatCidr(holding as Cidr)}, which the rule leaves out`];
    }
    case "sets":
      return match.sets!.filter((id) => fails(rule, side, { sets: [id] }, context))
        .flatMap((id) => outsideOf(meaningOf(context.state, id), side, context));
    case "notSets":
      return match.notSets!.filter((id) => fails(rule, side, { notSets: [id] }, context)).map((id) => {
        const names = context.holdersOf(address).map(({ name }) => name);
        const who = names.length === 0 ? text : names.join(" and ");
        return `the ${side} ${who} is one of ${meaningText(meaningOf(context.state, id))}, which the rule leaves out`;
      });
    case "ports":
      return [portMiss(match, side, port, context)];
    case "notPorts": {
      const left = portsText({ ports: match.notPorts, portSets: match.notPortSets }, context.state);
      return [`${portWord(side)} ${port} is one of ${left}, which the rule leaves out`];
    }
    case "serviceSet": {
      const service = meaningText(meaningOf(context.state, match.serviceSet!));
      const at = port === undefined ? "" : ` at ${protocol}/${port}`;
      return [`the ${side} ${text}${at} is no endpoint of ${service}`];
    }
    default:
      return [`${field} does not hold`];
  }
}

/** Whether this part of the rule by itself does not hold. */
const fails = (rule: Rule, side: Side, part: RuleMatch, { state, packet }: MissContext): boolean => {
  const alone: Rule = { action: rule.action, origin: rule.origin, source: {}, destination: {}, [side]: part };
  return missesOf(state as DesiredState, alone, packet).length > 0;
};

const icmpOf = ({ protocol, icmp }: Packet): string =>
  icmp === undefined ? `the packet is ${formatProtocol(protocol)}` : `the packet is type ${icmpText(icmp)}`;

const portWord = (side: Side): string => side === "source" ? "source port" : "port";

function outsideOf(meaning: SetMeaning, side: Side, { packet, holdersOf }: MissContext): readonly string[] {
  const address = packet[side], text = formatAddress(address);
  const holders = holdersOf(address);
  if (meaning.kind === "other") return [`the ${side} ${text} is none of ${meaning.text}`];
  const wanted = describeSelector(meaning.selector);
  if (holders.length === 0) return [`the ${side} ${text} is no endpoint that is known, wanted ${wanted}`];
  return holders.map(({ name, labels }) => {
    const reasons = selectorMisses(meaning.selector, labels);
    return reasons.length === 0
      ? `the ${side} ${name} is not yet one of ${wanted}`
      : `the ${side} ${name} ${reasons.join("; ")}`;
  });
}

function portMiss(match: RuleMatch, side: Side, port: number | undefined, context: MissContext): string {
  const { packet, state, holdersOf } = context;
  const wanted = portsText(match, state);
  if (port === undefined || !hasPorts(packet.protocol)) {
    return `${formatProtocol(packet.protocol)} has no ports, wanted ${portWord(side)} ${wanted}`;
  }
  const names = (match.portSets ?? []).map((id) => portNameOf(state, id));
  const known = holdersOf(packet[side]).flatMap(({ name, ports }) =>
    names.map((wantedName) => {
      const found = ports.filter((one) => one.name === wantedName);
      return found.length === 0
        ? `${name} has no port named ${wantedName}`
        : `${wantedName} of ${name} is ${
          found.map((one) => `${formatProtocol(one.protocol)}/${one.port}`).join(" and ")
        }`;
    })
  );
  const some = (match.ports?.length ?? 0) + names.length > 1 ? "none of " : "not ";
  return `${portWord(side)} ${port} is ${some}${wanted}${known.length === 0 ? "" : ` (${known.join("; ")})`}`;
}
