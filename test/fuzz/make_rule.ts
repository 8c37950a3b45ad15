/** Random parts of rules: ports, prefixes, Calico's rules. Valid by construction: what Calico refuses is not made. */
import { formatAddress, formatCidr, makeCidr } from "../../src/model/address.ts";
import type { Random } from "../../src/calc/testing/random_world.ts";
import { ACCOUNTS, NAMESPACES, selectorText } from "./make_selector.ts";
import { ALL_ADDRESSES } from "./plan.ts";

/** First and last, failsafe ports, neighbours, translated ports. */
export const PORTS = [
  1,
  2,
  22,
  53,
  68,
  79,
  80,
  81,
  179,
  443,
  1023,
  1024,
  6443,
  8000,
  8079,
  8080,
  8999,
  9000,
  30053,
  30080,
  65534,
  65535,
];
export const PORT_NAMES = ["http", "dns", "metrics", "nobody"];
/**
 * Where rules cut source ports: never between 32,768 and 60,767, so that a probe whose source port is any of those is one packet.
 */
const SOURCE_PORTS = [1, 53, 1023, 1024, 20000, 32766, 60768, 65535];
const LENGTHS = {
  4: [0, 1, 8, 9, 15, 16, 17, 23, 24, 25, 30, 31, 32, 32],
  6: [0, 1, 8, 16, 48, 63, 64, 65, 120, 127, 128, 128],
};
/** Protocols beyond those with names, or named ones by number. */
const NUMBERS = [6, 17, 132, 136, 1, 58, 2, 47, 89, 254, 255];

export const some = <T>(random: Random, most: number, make: () => T): T[] =>
  Array.from({ length: 1 + random.below(most) }, make);
/** `{ [name]: make() }`, or nothing; to be spread. */
export const maybe = <T>(random: Random, percent: number, name: string, make: () => T): Record<string, T> =>
  random.chance(percent) ? { [name]: make() } : {};

/** A prefix around somebody's address. `least`: the shortest length. */
export function someNet(random: Random, family: 4 | 6, least = 0): string {
  const ours = ALL_ADDRESSES.filter((address) => address.length === (family === 4 ? 4 : 16));
  const lengths = LENGTHS[family].filter((length) => length >= least);
  return formatCidr(makeCidr(random.pick(ours), random.pick(lengths)));
}

/** Somebody's address with a length: bits past the prefix are set. */
export function looseNet(random: Random, family: 4 | 6): string {
  const ours = ALL_ADDRESSES.filter((address) => address.length === (family === 4 ? 4 : 16));
  return `${formatAddress(random.pick(ours))}/${random.pick(LENGTHS[family])}`;
}

/** One or a range, as `first:last`; `names` too where they may stand. */
function calicoPort(random: Random, from: readonly number[], names: boolean): number | string {
  if (names && random.chance(25)) return random.pick(PORT_NAMES);
  const first = random.pick(from);
  if (random.chance(60)) return random.chance(95) ? first : String(first);
  const last = random.chance(30) ? first + 1 : random.pick(from);
  return `${Math.min(first, last)}:${Math.min(65535, Math.max(first, last))}`;
}

export const somePorts = (random: Random, most = 3): (number | string)[] =>
  some(random, most, () => calicoPort(random, PORTS, true));

const NAMED_PROTOCOLS = ["TCP", "TCP", "TCP", "TCP", "UDP", "UDP", "SCTP", "UDPLite"];

export interface CalicoRuleScope {
  readonly direction: "ingress" | "egress";
  readonly namespaced: boolean;
}

type Rule = Record<string, unknown>;

/** projectcalico.org/v3 Rule. `density`: how many times more of its fields are there than usual. */
export function calicoRule(random: Random, scope: CalicoRuleScope, action: string, density = 1): Rule {
  const family = random.chance(70) ? 4 : 6;
  const roll = random.below(100);
  let protocol: string | number | undefined, ported = false, icmp = false;
  if (roll < 50) protocol = random.pick(NAMED_PROTOCOLS), ported = true;
  else if (roll < 62) protocol = family === 4 ? "ICMP" : "ICMPv6", icmp = true;
  else if (roll < 70) {
    const number = random.pick(NUMBERS);
    ported = [6, 17, 132, 136].includes(number);
    icmp = number === 1 || number === 58;
    protocol = random.chance(90) ? number : String(number);
  }
  const notProtocol = random.chance(7 * density)
    ? random.pick<string | number>([
      "TCP",
      "UDP",
      "SCTP",
      "UDPLite",
      47,
      254,
      ...(family === 4 ? ["ICMP"] : ["ICMPv6"]),
    ])
    : undefined;
  const speaksOf = (...names: (string | number)[]) => [protocol, notProtocol].some((one) => names.includes(one ?? ""));
  const icmpFamily = speaksOf("ICMP", 1, "1") ? 4 : speaksOf("ICMPv6", 58, "58") ? 6 : undefined;
  const icmpMatch = () => ({
    type: random.pick(family === 4 ? [0, 8, 8, 13, 254] : [128, 128, 129, 135, 1, 254]),
    ...maybe(random, 60, "code", () => random.pick([0, 0, 1, 255])),
  });
  const version = random.chance(8 * density) ? icmpFamily ?? family : undefined;
  const entity = (side: "source" | "destination") =>
    someEntity(random, {
      ...scope,
      side,
      family: version ?? family,
      ported,
      anyProtocol: protocol === undefined,
      density,
    });
  return {
    action,
    ...(version === undefined ? {} : { ipVersion: version }),
    ...(protocol === undefined ? {} : { protocol }),
    ...(notProtocol === undefined ? {} : { notProtocol }),
    ...(icmp ? maybe(random, 60, "icmp", icmpMatch) : {}),
    ...(icmp ? maybe(random, 15 * density, "notICMP", icmpMatch) : {}),
    ...maybe(random, 55 * density, "source", () => entity("source")),
    ...maybe(random, 60 * density, "destination", () => entity("destination")),
    ...maybe(random, 3, "metadata", () => ({ annotations: { ticket: `T-${random.below(9)}` } })),
  };
}

interface EntityScope extends CalicoRuleScope {
  readonly side: "source" | "destination";
  readonly family: 4 | 6;
  /** The rule's protocol has ports. */
  readonly ported: boolean;
  readonly anyProtocol: boolean;
  readonly density: number;
}

/** projectcalico.org/v3 EntityRule. */
function someEntity(random: Random, scope: EntityScope): Rule {
  const { family, ported, density } = scope;
  const isSource = scope.side === "source";
  const isPeer = isSource === (scope.direction === "ingress");
  const fields: Rule = {};
  const field = (percent: number, name: string, make: () => unknown) => {
    if (random.chance(percent * density)) fields[name] = make();
  };
  if (isPeer && random.chance(10)) {
    const namespace = scope.namespaced && random.chance(50) ? {} : { namespace: random.pick(NAMESPACES) };
    fields.services = { name: `svc-${random.below(2)}`, ...namespace };
    if (isSource && ported && random.chance(20)) fields.ports = somePorts(random, 2);
    return fields;
  }
  if (ported) {
    const ports = () => isSource ? some(random, 2, () => calicoPort(random, SOURCE_PORTS, false)) : somePorts(random);
    field(isSource ? 12 : 65, "ports", ports);
    field(isSource ? 5 : 12, "notPorts", ports);
    if (isSource) field(6, "ports", () => [random.pick(PORT_NAMES)]);
  } else if (scope.anyProtocol) field(5, "ports", () => [random.pick(PORT_NAMES)]);
  field(22, "nets", () => random.chance(6) ? [] : some(random, 3, () => someNet(random, family)));
  field(10, "notNets", () => some(random, 2, () => someNet(random, family, 1)));
  field(isPeer ? 38 : 8, "selector", () => random.chance(5) ? "" : selectorText(random, "endpoint"));
  field(8, "notSelector", () => random.chance(5) ? "" : selectorText(random, "endpoint"));
  field(
    isPeer ? 16 : 4,
    "namespaceSelector",
    () => random.chance(20) ? "global()" : selectorText(random, "namespace"),
  );
  field(isPeer ? 9 : 2, "serviceAccounts", () => ({
    ...maybe(random, 60, "names", () => random.chance(10) ? [] : some(random, 2, () => random.pick(ACCOUNTS))),
    ...maybe(random, 45, "selector", () => selectorText(random, "account")),
  }));
  return fields;
}

/** A rule with one field or two of all that there are, each as likely: what it alone says is seen. */
function plainRule(random: Random, scope: CalicoRuleScope, action: string): Rule {
  const { protocol, ...rich } = calicoRule(random, scope, action, 4);
  const fields = Object.entries(rich).flatMap(([name, value]): [string, string | undefined, unknown][] =>
    name === "source" || name === "destination"
      ? Object.entries(value as object).map(([field, inner]) => [name, field, inner])
      : ["action", "metadata"].includes(name)
      ? []
      : [[name, undefined, value]]
  );
  const kept = random.shuffle(fields).slice(0, random.chance(35) ? 2 : 1);
  const needsProtocol = kept.some(([name, field]) => /^(icmp|notICMP|ports|notPorts)$/.test(field ?? name));
  const rule: Rule = { action };
  if (protocol !== undefined && (needsProtocol || kept.length === 0 || random.chance(40))) rule.protocol = protocol;
  for (const [name, field, value] of kept) {
    rule[name] = field === undefined ? value : { ...rule[name] as object | undefined, [field]: value };
  }
  return rule;
}

/** A rule that asks for a port, and for at most one thing more: many of them with one action become a port map. */
function portRule(random: Random, scope: CalicoRuleScope, action: string, protocol: string): Rule {
  const peer = scope.direction === "ingress" ? "source" : "destination";
  const family = random.chance(75) ? 4 : 6;
  const who = random.below(10);
  const entity = who < 4
    ? { selector: selectorText(random, "endpoint") }
    : who < 7
    ? { nets: some(random, 2, () => someNet(random, family)) }
    : {};
  const ports = some(random, 2, () => random.chance(80) ? calicoPort(random, PORTS, true) : 1 + random.below(65535));
  const destination = { ...(peer === "destination" ? entity : {}), ports };
  return { action, protocol, ...(peer === "source" ? { source: entity } : {}), destination };
}

/**
 * A list of rules: a few of any kind, or runs of one action, long enough to be flattened, with others between them. `plain`: how
 * likely it is a few that say little, in percent.
 */
export function calicoRules(
  random: Random,
  scope: CalicoRuleScope,
  actions: readonly string[],
  plain = 0,
): Rule[] {
  if (random.chance(plain)) return some(random, 3, () => plainRule(random, scope, random.pick(actions)));
  const roll = random.below(100);
  if (roll < 10) return [];
  if (roll < 75) return some(random, 4, () => calicoRule(random, scope, random.pick(actions)));
  const rules: Rule[] = [];
  const runs = 1 + random.below(3);
  for (let run = 0; run < runs; run++) {
    const action = random.pick(actions.filter((action) => action !== "Log"));
    const length = random.chance(15) ? 30 + random.below(15) : 4 + random.below(9);
    const protocol = random.pick(["TCP", "TCP", "UDP", "SCTP"]);
    for (let i = 0; i < length; i++) {
      rules.push(
        random.chance(85)
          ? portRule(random, scope, action, random.chance(85) ? protocol : random.pick(NAMED_PROTOCOLS))
          : calicoRule(random, scope, action),
      );
    }
    if (random.chance(20)) rules.push(calicoRule(random, scope, "Log"));
  }
  return rules;
}
