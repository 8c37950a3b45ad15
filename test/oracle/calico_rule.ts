/** A rule of Calico's policies and profiles (projectcalico.org/v3 Rule, EntityRule). */
import { type Address, type Family, holds, type Net, readNet, sameAddress } from "./address.ts";
import type { Holder } from "./holder.ts";
import { isGiven, readFields, readGivenText, readList, readNumber, readTexts, readWord, refuse } from "./manifest.ts";
import type { Population } from "./population.ts";
import { namedPort, type PortMatch, portRange } from "./port_match.ts";
import { hasPorts, PROTOCOLS, readProtocol } from "./protocol.ts";
import { type Condition, type Direction, type Packet, portOf, type Rule, type Side } from "./rule.ts";
import { readPlainSelector, readSelector } from "./selector.ts";

export interface RuleContext {
  readonly population: Population;
  readonly direction: Direction;
  /** Of a namespaced policy: what its selectors are confined to. */
  readonly namespace?: string;
  /** Who may be at the policy's own end, where that is not just anybody. */
  readonly selects?: HolderQuestion;
}

type HolderQuestion = (holder: Holder) => boolean;

const ICMP_PROTOCOLS: readonly number[] = [PROTOCOLS.ICMP, PROTOCOLS.ICMPv6];
const RULE_FIELDS = [
  "action",
  "ipVersion",
  "protocol",
  "icmp",
  "notProtocol",
  "notICMP",
  "source",
  "destination",
  "metadata",
];
const ENTITY_FIELDS = [
  "nets",
  "notNets",
  "selector",
  "notSelector",
  "namespaceSelector",
  "serviceAccounts",
  "services",
  "ports",
  "notPorts",
];

/** @throws {ManifestError} */
export function readCalicoRule(value: unknown, where: string, context: RuleContext): Rule {
  const rule = readFields(value, where);
  if (isGiven(rule.http)) refuse(`${where}.http`, rule.http, "none: no oracle of packets can judge a request");
  onlyFields(rule, RULE_FIELDS, where);
  const action = readWord(rule.action, ["Allow", "Deny", "Pass", "Log"], `${where}.action`);
  const protocol = isGiven(rule.protocol) ? readProtocol(rule.protocol, `${where}.protocol`) : undefined;
  const conditions: Condition[] = [];

  const version = readNumber(rule.ipVersion, `${where}.ipVersion`);
  if (version !== undefined) {
    if (version !== 4 && version !== 6) refuse(`${where}.ipVersion`, version, "4 or 6");
    conditions.push({ field: "ipVersion", holds: (packet) => packet.source.family === version });
  }
  if (protocol !== undefined) {
    const family = familyOf(protocol);
    if (version !== undefined && family !== undefined && family !== version) {
      refuse(`${where}.ipVersion`, version, `${family}, for that is where the protocol belongs`);
    }
    conditions.push({
      field: "protocol",
      holds: (packet) => packet.protocol === protocol && (family === undefined || packet.source.family === family),
    });
  }
  if (isGiven(rule.notProtocol)) {
    const unwanted = readProtocol(rule.notProtocol, `${where}.notProtocol`);
    conditions.push({ field: "notProtocol", holds: (packet) => packet.protocol !== unwanted });
  }
  const icmp = readIcmp(rule.icmp, `${where}.icmp`);
  if (icmp !== undefined) {
    if (!ICMP_PROTOCOLS.includes(protocol ?? 0)) {
      refuse(`${where}.icmp`, rule.icmp, "protocol ICMP or ICMPv6 beside it");
    }
    conditions.push({ field: "icmp", holds: icmp });
  }
  const notIcmp = readIcmp(rule.notICMP, `${where}.notICMP`);
  if (notIcmp !== undefined) conditions.push({ field: "notICMP", holds: (packet) => !notIcmp(packet) });
  for (const side of ["source", "destination"] as const) {
    conditions.push(...readEntity(rule[side], side, `${where}.${side}`, protocol, context));
  }
  return { where, action: action.toLowerCase() as Rule["action"], conditions };
}

/** ICMP is IPv4's and ICMPv6 is IPv6's; the others are of both. */
function familyOf(protocol: number): Family | undefined {
  return protocol === PROTOCOLS.ICMP ? 4 : protocol === PROTOCOLS.ICMPv6 ? 6 : undefined;
}

/** @returns undefined where no type is given */
function readIcmp(value: unknown, where: string): ((packet: Packet) => boolean) | undefined {
  const fields = readFields(value, where);
  const type = readNumber(fields.type, `${where}.type`);
  const code = readNumber(fields.code, `${where}.code`);
  if (type === undefined) return code === undefined ? undefined : refuse(`${where}.code`, code, "a type beside it");
  return ({ protocol, icmp }) =>
    ICMP_PROTOCOLS.includes(protocol) && icmp?.type === type && (code === undefined || icmp.code === code);
}

function readEntity(
  value: unknown,
  side: Side,
  where: string,
  protocol: number | undefined,
  context: RuleContext,
): Condition[] {
  const entity = readFields(value, where);
  onlyFields(entity, ENTITY_FIELDS, where);
  const { population } = context;
  const conditions: Condition[] = [];
  const add = (field: string, holds: Condition["holds"]) => conditions.push({ field: `${side}.${field}`, holds });

  const nets = readTexts(entity.nets, `${where}.nets`).map((net) => readNet(net, `${where}.nets`));
  const notNets = readTexts(entity.notNets, `${where}.notNets`).map((net) => readNet(net, `${where}.notNets`));
  if (nets.length > 0) add("nets", (packet) => nets.some((net) => holds(net, packet[side])));
  if (notNets.length > 0) {
    // Nets of one family make the whole rule one of that family.
    add("notNets", (packet) => speaksOf(notNets, packet[side]) && !notNets.some((net) => holds(net, packet[side])));
  }

  const selected = readSelected(entity, where, context);
  if (selected !== undefined) {
    add(selected.fields, (packet) => population.holdersOf(packet[side]).some(selected.holds));
  }
  const notSelector = readGivenText(entity.notSelector, `${where}.notSelector`);
  if (notSelector !== undefined) {
    const unwanted = readPlainSelector(notSelector, `${where}.notSelector`);
    add("notSelector", (packet) => !population.holdersOf(packet[side]).some(({ labels }) => unwanted(labels)));
  }

  const isOwnEnd = (side === "destination") === (context.direction === "ingress");
  const named = selected?.holds ?? (isOwnEnd ? context.selects : undefined) ?? (() => true);
  const portAt = (ports: readonly PortMatch[]) => (packet: Packet) =>
    ports.some((port) => port(packet, side, population.holdersOf(packet[side]).filter(named)));
  const ports = readPorts(entity.ports, `${where}.ports`, protocol);
  const notPorts = readPorts(entity.notPorts, `${where}.notPorts`, protocol);
  if (ports.length > 0) add("ports", portAt(ports));
  if (notPorts.length > 0) {
    const unwanted = portAt(notPorts);
    add("notPorts", (packet) => !unwanted(packet));
  }
  if (isGiven(entity.services)) add("services", readService(entity, side, where, context));
  return conditions;
}

const speaksOf = (nets: readonly Net[], address: Address): boolean =>
  nets.some(({ family }) => family === address.family);

/**
 * Who the selectors of one side mean together. Any of them confines a namespaced policy to its namespace, and so does a
 * `notSelector` alone, unless `namespaceSelector` says which namespaces are meant.
 */
function readSelected(
  entity: Readonly<Record<string, unknown>>,
  where: string,
  { namespace }: RuleContext,
): { readonly fields: string; readonly holds: HolderQuestion } | undefined {
  const fields: string[] = [];
  const questions: HolderQuestion[] = [];
  const selector = readGivenText(entity.selector, `${where}.selector`);
  if (selector !== undefined) {
    const matches = readPlainSelector(selector, `${where}.selector`);
    fields.push("selector");
    questions.push(({ labels }) => matches(labels));
  }
  const accounts = readFields(entity.serviceAccounts, `${where}.serviceAccounts`);
  const names = readTexts(accounts.names, `${where}.serviceAccounts.names`);
  const accountSelector = readGivenText(accounts.selector, `${where}.serviceAccounts.selector`);
  if (names.length > 0) {
    fields.push("serviceAccounts");
    questions.push(({ serviceAccount }) => serviceAccount !== undefined && names.includes(serviceAccount.name));
  }
  if (accountSelector !== undefined) {
    fields.push("serviceAccounts");
    questions.push(accountQuestion(accountSelector, `${where}.serviceAccounts.selector`));
  }
  const namespaceSelector = readGivenText(entity.namespaceSelector, `${where}.namespaceSelector`);
  if (namespaceSelector !== undefined) {
    fields.push("namespaceSelector");
    questions.push(namespaceQuestion(namespaceSelector, `${where}.namespaceSelector`));
  } else if (
    namespace !== undefined && (questions.length > 0 || readGivenText(entity.notSelector, where) !== undefined)
  ) {
    fields.push("namespace");
    questions.push((holder) => holder.namespace?.name === namespace);
  }
  if (questions.length === 0) return undefined;
  return {
    fields: [...new Set(fields)].join("+"),
    holds: (holder) => questions.every((question) => question(holder)),
  };
}

/** A selector over service accounts: who runs under none is not selected. */
export function accountQuestion(selector: string, where: string): HolderQuestion {
  const matches = readPlainSelector(selector, where);
  return ({ serviceAccount }) => serviceAccount !== undefined && matches(serviceAccount.labels);
}

/** A selector over namespaces: `global()` alone means those in none, anything else only those in one. */
function namespaceQuestion(text: string, where: string): HolderQuestion {
  if (/^\s*global\(\s*\)\s*$/.test(text)) return ({ namespace }) => namespace === undefined;
  const { matches, global } = readSelector(text, where);
  if (global) refuse(where, text, "global() alone");
  return ({ namespace }) => namespace !== undefined && matches(namespace.labels);
}

/** A number, a range `first:last`, or a name that stands for another number at each endpoint. */
function readPorts(value: unknown, where: string, protocol: number | undefined): PortMatch[] {
  return readList(value, where).map((entry) => {
    const range = /^(\d+)(?::(\d+))?$/.exec(String(entry));
    if (protocol !== undefined && !hasPorts(protocol)) refuse(where, entry, "no ports, which the protocol has not");
    if (range === null) return namedPort(typeof entry === "string" ? entry : refuse(where, entry, "a port"));
    if (protocol === undefined) refuse(where, entry, "a protocol with ports beside it");
    const first = Number(range[1]);
    const last = Number(range[2] ?? range[1]);
    if (first < 1 || last > 65535 || first > last) refuse(where, entry, "1 to 65535");
    return portRange(first, last);
  });
}

/** As source the addresses behind the service, as destination these with its ports. */
function readService(
  entity: Readonly<Record<string, unknown>>,
  side: Side,
  where: string,
  { population, direction, namespace }: RuleContext,
): Condition["holds"] {
  const { services } = entity;
  const fields = readFields(services, `${where}.services`);
  const name = readGivenText(fields.name, `${where}.services.name`) ?? refuse(`${where}.services`, services, "a name");
  const inNamespace = readGivenText(fields.namespace, `${where}.services.namespace`) ?? namespace ??
    refuse(`${where}.services`, services, "a namespace");
  if ((side === "source") !== (direction === "ingress")) {
    refuse(`${where}.services`, services, "an ingress rule's source or an egress rule's destination");
  }
  const excluded = ["nets", "notNets", "selector", "notSelector", "namespaceSelector", "serviceAccounts"];
  if (side === "destination") excluded.push("ports", "notPorts");
  for (const field of excluded) {
    if (isGiven(entity[field])) refuse(`${where}.${field}`, entity[field], "nothing beside services");
  }
  const members = population.service(inNamespace, name);
  return (packet) =>
    members.some(({ address, ports }) =>
      sameAddress(address, packet[side]) &&
      (side === "source" ||
        ports.some(({ protocol, port }) => protocol === packet.protocol && port === portOf(packet, side)))
    );
}

function onlyFields(fields: Readonly<Record<string, unknown>>, known: readonly string[], where: string): void {
  for (const name of Object.keys(fields)) {
    if (!known.includes(name)) refuse(`${where}.${name}`, fields[name], `one of ${known.join(", ")}`);
  }
}
