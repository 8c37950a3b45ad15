/** projectcalico.org/v3 Rule and its parts → neutral rules. */
import { cidrPrefix, formatAddress, parseAddress } from "../../../src/model/address.ts";
import type { Cidr, Family } from "../../../src/model/address.ts";
import {
  NAMESPACE_LABEL,
  NAMESPACE_PREFIX,
  SERVICE_ACCOUNT_LABEL,
  SERVICE_ACCOUNT_PREFIX,
} from "../../../src/model/endpoint_labels.ts";
import { dnsLabelFault, dnsSubdomainFault } from "../../../src/model/kubernetes_names.ts";
import { hasPorts, PROTOCOLS } from "../../../src/model/ports.ts";
import type { PortRange } from "../../../src/model/ports.ts";
import type { Action, Direction, IcmpMatch, NeutralRule, PeerMatch } from "../../../src/model/rule.ts";
import {
  andSelectors,
  hasLabel,
  labelIn,
  labelIs,
  mentionsGlobal,
  notSelector,
  prefixLabels,
} from "../../../src/model/selector.ts";
import type { Selector } from "../../../src/model/selector.ts";
import { readAnnotations } from "../../../src/sdk/object_metadata.ts";
import type { Field } from "../../../src/sdk/validation.ts";

/** What the rules of one list have in common. */
export interface RuleScope {
  /** Key text of the resource. */
  readonly policy: string;
  /** Of a namespaced policy: its rules' selectors mean this namespace unless they name others. */
  readonly namespace?: string;
  readonly direction: Direction;
}

const ACTIONS: Readonly<Record<string, Action>> = { Allow: "allow", Deny: "deny", Log: "log", Pass: "pass" };
const PORTED = [PROTOCOLS.TCP, PROTOCOLS.UDP, PROTOCOLS.SCTP, PROTOCOLS.UDPLite];
const NO_GLOBAL = "a selector without global(), which may stand only, and alone, in a rule's namespaceSelector";

export const readRules = (list: Field, scope: RuleScope): readonly NeutralRule[] =>
  list.items().flatMap((item, index) => readRule(item, scope, index));

/** One neutral rule, or where ports are named without a protocol, one for each protocol that has ports. */
function readRule(field: Field, scope: RuleScope, index: number): readonly NeutralRule[] {
  const rule = field.required("a rule").object([
    "action",
    "ipVersion",
    "protocol",
    "icmp",
    "notProtocol",
    "notICMP",
    "source",
    "destination",
    "http",
    "metadata",
  ]);
  if (!field.given) return [];
  const action = rule.at("action").required("Allow, Deny, Log or Pass").oneOf(["Allow", "Deny", "Log", "Pass"]);
  const protocol = readProtocol(rule.at("protocol")), notProtocol = readProtocol(rule.at("notProtocol"));
  const family = readFamily(rule, protocol, notProtocol);
  const icmp = readIcmp(rule.at("icmp")), notIcmp = readIcmp(rule.at("notICMP"));
  if (rule.at("icmp").given && protocol !== PROTOCOLS.ICMP && protocol !== PROTOCOLS.ICMPv6) {
    rule.at("icmp").refuse("none, or protocol ICMP or ICMPv6 in the same rule", "icmp without that protocol");
  }
  checkNetFamilies(rule);
  readHttp(rule.at("http"), scope, action, protocol);
  const metadata = rule.at("metadata").object(["annotations"]);
  const annotations = readAnnotations(metadata.at("annotations"));
  const source = readEntity(rule.at("source"), "source", scope, protocol);
  const destination = readEntity(rule.at("destination"), "destination", scope, protocol);
  const named = source.portNames !== undefined || destination.portNames !== undefined;
  return (protocol === undefined && named ? PORTED : [protocol]).map((number): NeutralRule => ({
    action: ACTIONS[action ?? "Deny"]!,
    ...(family === undefined ? {} : { family }),
    ...(number === undefined ? {} : { protocol: number }),
    ...(notProtocol === undefined ? {} : { notProtocol }),
    ...(icmp === undefined ? {} : { icmp }),
    ...(notIcmp === undefined ? {} : { notIcmp }),
    source,
    destination,
    origin: { policy: scope.policy, direction: scope.direction, index },
    ...(annotations === undefined ? {} : { annotations }),
  }));
}

/** A name as spelled by the API, or 1 … 255 as a number or a string of digits. */
export function readProtocol(field: Field): number | undefined {
  if (!field.given) return undefined;
  const value = field.value;
  const number = typeof value === "string" && /^[0-9]{1,3}$/.test(value) ? Number(value) : value;
  if (typeof number === "number" && Number.isInteger(number) && number >= 1 && number <= 255) return number;
  if (typeof value === "string" && Object.hasOwn(PROTOCOLS, value)) return PROTOCOLS[value as keyof typeof PROTOCOLS];
  return field.refuse(`${Object.keys(PROTOCOLS).join(", ")} or a number from 1 to 255`);
}

/** ICMP is IPv4's and ICMPv6 is IPv6's; a rule with one of them holds for that family alone. */
function readFamily(rule: Field, protocol: number | undefined, notProtocol: number | undefined): Family | undefined {
  const field = rule.at("ipVersion");
  if (field.given && field.value !== 4 && field.value !== 6) return field.refuse("4 or 6");
  const family = field.given ? field.value as Family : undefined;
  for (const [of, name, number] of [[4, "ICMP", PROTOCOLS.ICMP], [6, "ICMPv6", PROTOCOLS.ICMPv6]] as const) {
    if (family !== undefined && family !== of && (protocol === number || notProtocol === number)) {
      return field.refuse(`${of} with ${name}`);
    }
    if (protocol === number) return of;
  }
  return family;
}

/** projectcalico.org/v3 ICMPFields. */
function readIcmp(field: Field): IcmpMatch | undefined {
  const icmp = field.object(["type", "code"]);
  if (!field.given) return undefined;
  const type = icmp.at("type").integer(0, 254), code = icmp.at("code").integer(0, 255);
  if (!icmp.at("type").given) {
    return icmp.at("code").given ? icmp.at("code").refuse("a type beside it", "a code alone") : undefined;
  }
  return type === undefined ? undefined : { type, ...(code === undefined ? {} : { code }) };
}

/** No packet has addresses of both families, so neither may a rule. */
function checkNetFamilies(rule: Field): void {
  const version = rule.at("ipVersion").value;
  let family = version === 4 || version === 6 ? version : undefined;
  for (const side of ["source", "destination"]) {
    for (const name of ["nets", "notNets"]) {
      const list = rule.at(side).at(name);
      if (!Array.isArray(list.value)) continue;
      for (const text of list.value) {
        if (typeof text !== "string") continue;
        const own = text.includes(":") ? 6 : 4;
        if (family !== undefined && own !== family) {
          list.refuse(
            `IPv${family} prefixes, as the rest of the rule has`,
            `the IPv${own} prefix ${text.slice(0, 50)}`,
          );
          return;
        }
        family = own;
      }
    }
  }
}

/** Checked in full, then refused: nothing enforces it yet. */
function readHttp(
  field: Field,
  scope: RuleScope,
  action: string | undefined,
  protocol: number | undefined,
): void {
  if (!field.given) return;
  const http = field.object(["methods", "paths"]);
  const methods = http.at("methods");
  const seen = new Set<string>();
  for (const item of methods.items()) {
    const method = item.required("a method").text();
    if (method === undefined) continue;
    if (seen.has(method)) item.refuse("each method once");
    seen.add(method);
  }
  for (const item of http.at("paths").items()) {
    const path = item.required("exact or prefix").object(["exact", "prefix"]);
    const given = ["exact", "prefix"].filter((name) => path.at(name).given && path.at(name).value !== "");
    if (item.given && given.length !== 1) item.refuse("exact or prefix", given.length === 0 ? "neither" : "both");
    for (const name of given) {
      path.at(name).name((text) =>
        /^\/[^?# ]*$/.test(text) ? undefined : "a path that begins with / and holds no ?, # or blank"
      );
    }
  }
  if (action !== undefined && action !== "Allow") {
    field.refuse("none with this action: only Allow can have it", `http with ${action}`);
  }
  if (protocol !== undefined && protocol !== PROTOCOLS.TCP) {
    field.refuse("protocol TCP or none", "http with another protocol");
  }
  if (scope.direction === "egress") field.refuse("none: only ingress rules can have it", "http in an egress rule");
  field.refuse("none: matching HTTP needs the L7 plugin, which this version does not have", HTTP_FOUND);
}
/** What the refusal of a well-formed `http` says it found. */
export const HTTP_FOUND = "an http match";

/** projectcalico.org/v3 EntityRule. */
function readEntity(
  field: Field,
  side: "source" | "destination",
  scope: RuleScope,
  protocol: number | undefined,
): PeerMatch {
  const entity = field.object([
    "nets",
    "notNets",
    "selector",
    "notSelector",
    "namespaceSelector",
    "ports",
    "notPorts",
    "serviceAccounts",
    "services",
  ]);
  const nets = readNets(entity.at("nets")), notNets = readNets(entity.at("notNets"));
  const ports = readPorts(entity.at("ports"), protocol), notPorts = readPorts(entity.at("notPorts"), protocol);
  const service = readService(entity, side, scope);
  const { selector, notSelector } = readPeerSelectors(entity, scope);
  return {
    ...(nets.length === 0 ? {} : { nets }),
    ...(notNets.length === 0 ? {} : { notNets }),
    ...(selector === undefined ? {} : { selector }),
    ...(notSelector === undefined ? {} : { notSelector }),
    ...(ports.ranges.length === 0 ? {} : { ports: ports.ranges }),
    ...(ports.names.length === 0 ? {} : { portNames: ports.names }),
    ...(notPorts.ranges.length === 0 ? {} : { notPorts: notPorts.ranges }),
    ...(notPorts.names.length === 0 ? {} : { notPortNames: notPorts.names }),
    ...(service === undefined ? {} : { service, servicePorts: side === "destination" }),
  };
}

function readNets(list: Field): readonly Cidr[] {
  return list.items().flatMap((item) => {
    const text = item.required("a prefix such as 10.0.0.0/8").value;
    if (typeof text === "string" && !text.includes("/")) {
      const address = item.parsed("a prefix", parseAddress);
      return address === undefined
        ? []
        : item.refuse(`a prefix: ${formatAddress(address)}/${address.length * 8} for this address alone`) ?? [];
    }
    const net = item.cidr("refused");
    if (net === undefined) return [];
    if (list.key === "notNets" && cidrPrefix(net) === 0) {
      item.refuse("a smaller prefix: what is not in this one is nothing");
    }
    return net;
  });
}

/** projectcalico.org/v3 Port: a number, a range `first:last`, or a name. */
function readPorts(
  list: Field,
  protocol: number | undefined,
): { ranges: readonly PortRange[]; names: readonly string[] } {
  const ranges: PortRange[] = [], names = new Set<string>();
  for (const item of list.items()) {
    const value = item.required("a port").value;
    const text = typeof value === "number" ? String(value) : value;
    const match = typeof text === "string" ? /^([0-9]{1,5})(?::([0-9]{1,5}))?$/.exec(text) : null;
    if (match !== null) {
      const first = Number(match[1]), last = Number(match[2] ?? match[1]);
      if (first < 1 || last > 65535 || first > last) item.refuse("ports from 1 to 65535, the lower one first");
      else ranges.push({ first, last });
    } else if (typeof value === "string" && /^[a-zA-Z0-9_.-]{1,128}$/.test(value) && !/^[0-9]+$/.test(value)) {
      names.add(value);
    } else if (item.given) item.refuse('a number from 1 to 65535, a range such as "80:90" or the name of a port');
  }
  const negated = list.key === "notPorts";
  if (ranges.length + names.size > 0) {
    if (protocol !== undefined && !hasPorts(protocol)) {
      list.refuse("none, or protocol TCP, UDP, SCTP or UDPLite", "ports with a protocol that has none");
    } else if (protocol === undefined && (negated || ranges.length > 0)) {
      list.refuse("protocol TCP, UDP, SCTP or UDPLite in the same rule", "ports without a protocol");
    }
  }
  return { ranges, names: [...names].sort() };
}

/** projectcalico.org/v3 ServiceMatch: where the traffic goes to or comes from, never the policy's own end. */
function readService(entity: Field, side: "source" | "destination", scope: RuleScope) {
  const field = entity.at("services");
  const match = field.object(["name", "namespace"]);
  if (!field.given) return undefined;
  const name = match.at("name").required("the name of a service").name(dnsSubdomainFault);
  const given = match.at("namespace").name((text) => text === "" ? undefined : dnsLabelFault(text));
  const namespace = given || scope.namespace;
  if (namespace === undefined) {
    match.at("namespace").refuse("the namespace of the service: the policy has none of its own");
  }
  if (side !== (scope.direction === "ingress" ? "source" : "destination")) {
    field.refuse(
      `none: a service can be the ${side === "source" ? "destination" : "source"} of this rule only`,
      "a service",
    );
  }
  const others = ["selector", "notSelector", "namespaceSelector", "serviceAccounts", "nets", "notNets"];
  for (const other of side === "destination" ? [...others, "ports", "notPorts"] : others) {
    const { given, value } = entity.at(other);
    const empty = value === "" || Array.isArray(value) && value.length === 0;
    if (given && !empty) entity.at(other).refuse("none beside services", other);
  }
  return name === undefined || namespace === undefined ? undefined : { namespace, name };
}

/** `selector`, `notSelector`, `namespaceSelector` and `serviceAccounts`, as policy-semantics joins them. */
function readPeerSelectors(entity: Field, scope: RuleScope): { selector?: Selector; notSelector?: Selector } {
  const selector = readSelector(entity.at("selector"));
  const notSelector = readSelector(entity.at("notSelector"));
  const namespaces = readNamespaceSelector(entity.at("namespaceSelector"));
  const accounts = readServiceAccounts(entity.at("serviceAccounts"));
  const own =
    selector === undefined && notSelector === undefined && accounts === undefined || scope.namespace === undefined
      ? undefined
      : labelIs(NAMESPACE_LABEL, scope.namespace);
  const parts = [namespaces ?? own, accounts, selector].filter((part) => part !== undefined);
  return {
    ...(parts.length === 0 ? {} : { selector: andSelectors(...parts) }),
    ...(notSelector === undefined ? {} : { notSelector }),
  };
}

/** Empty text asks nothing. */
export function readSelector(field: Field): Selector | undefined {
  const selector = field.value === "" ? undefined : field.selector();
  return selector !== undefined && mentionsGlobal(selector) ? field.refuse(NO_GLOBAL) : selector;
}

/** What is in a namespace whose labels match; `global()`: what is in none. */
function readNamespaceSelector(field: Field): Selector | undefined {
  const selector = field.value === "" ? undefined : field.selector();
  if (selector?.op === "global") return notSelector(hasLabel(NAMESPACE_LABEL));
  if (selector === undefined) return undefined;
  return mentionsGlobal(selector) ? field.refuse(NO_GLOBAL) : inNamespaces(selector);
}

/** Endpoints in namespaces that match. What is in no namespace never matches, whatever a negation says. */
export const inNamespaces = (selector: Selector): Selector =>
  andSelectors(hasLabel(NAMESPACE_LABEL), prefixLabels(selector, NAMESPACE_PREFIX));

/** Endpoints that run as a service account that matches. */
export const runningAs = (selector: Selector): Selector =>
  andSelectors(hasLabel(SERVICE_ACCOUNT_LABEL), prefixLabels(selector, SERVICE_ACCOUNT_PREFIX));

/** projectcalico.org/v3 ServiceAccountMatch: names and selector are ANDed. */
function readServiceAccounts(field: Field): Selector | undefined {
  const match = field.object(["names", "selector"]);
  const names = match.at("names").items().flatMap((item) => item.required("a name").name(dnsSubdomainFault) ?? []);
  const selector = readSelector(match.at("selector"));
  const parts = [
    ...(selector === undefined ? [] : [runningAs(selector)]),
    ...(names.length === 0 ? [] : [labelIn("in", SERVICE_ACCOUNT_LABEL, names)]),
  ];
  return parts.length === 0 ? undefined : andSelectors(...parts);
}
