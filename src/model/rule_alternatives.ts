/**
 * A policy rule as alternatives of plain tests: what a rule means in one family, before anything is said about how it is
 * looked up. A rule matches when one of its alternatives does; an alternative, when all its tests hold.
 */
import { type Cidr, cidrFamily, cidrPrefix, type Family } from "./address.ts";
import type { Rule as PolicyRule, RuleMatch, SetId } from "./desired.ts";
import { hasPorts, type PortRange, PROTOCOLS } from "./ports.ts";
import { maximalNets, subtractNets } from "./prefixes.ts";
import { ALL_PORTS, subtractPorts, unitePorts } from "./port_ranges.ts";

export type End = "source" | "destination";

export type Test =
  | { readonly test: "protocol"; readonly protocol: number; readonly not: boolean }
  /** None of the protocols that have ports. */
  | { readonly test: "portless" }
  /** Only beside a protocol that has ports. */
  | { readonly test: "ports"; readonly end: End; readonly ranges: readonly PortRange[] }
  | { readonly test: "icmp"; readonly type: number; readonly code: number | null; readonly not: boolean }
  /** In any of the `net` sets or prefixes. */
  | {
    readonly test: "address";
    readonly end: End;
    readonly ids: readonly SetId[];
    readonly nets: readonly Cidr[];
    readonly not: boolean;
  }
  /** (address, protocol, port) in the `port` set. */
  | { readonly test: "addressPort"; readonly end: End; readonly id: SetId; readonly not: boolean };

export interface Alternative {
  readonly protocol?: number;
  /** Destination ports, united; only with a protocol that has them. */
  readonly ports?: readonly PortRange[];
  /** Everything else, in canonical order. */
  readonly tests: readonly Test[];
}

export const PORT_PROTOCOLS = [PROTOCOLS.TCP, PROTOCOLS.UDP, PROTOCOLS.SCTP, PROTOCOLS.UDPLite] as const;
export const icmpProtocol = (family: Family): number => family === 4 ? PROTOCOLS.ICMP : PROTOCOLS.ICMPv6;

export const testText = (test: Test): string => JSON.stringify(test);
export const matchesAll = (one: Alternative): boolean =>
  one.protocol === undefined && one.ports === undefined && one.tests.length === 0;

/** What was found for each rule: rules outlive the lists they are in. */
const known: Readonly<Record<Family, WeakMap<PolicyRule, readonly Alternative[]>>> = {
  4: new WeakMap(),
  6: new WeakMap(),
};

/** Empty: the rule matches nothing in this family. */
export function alternativesOf(rule: PolicyRule, family: Family): readonly Alternative[] {
  let found = known[family].get(rule);
  if (found === undefined) known[family].set(rule, found = findAlternatives(rule, family));
  return found;
}

function findAlternatives(rule: PolicyRule, family: Family): readonly Alternative[] {
  if (rule.family !== undefined && rule.family !== family) return [];
  const addresses = [
    ...addressTests(rule.source, "source", family),
    ...addressTests(rule.destination, "destination", family),
  ];
  if (addresses.includes(undefined)) return [];
  const fixed = addresses as Test[];
  const alternatives: Alternative[] = [];
  for (const { protocol, tests } of protocolVariants(rule, family)) {
    const portTests = portVariants(rule, protocol);
    for (const { ports, tests: more } of portTests) {
      const all = [...fixed, ...tests, ...more];
      alternatives.push({
        ...(typeof protocol === "number" ? { protocol } : {}),
        ...(ports === undefined ? {} : { ports }),
        tests: all.length > 1 ? inCanonicalOrder(all) : all,
      });
    }
  }
  return alternatives;
}

function inCanonicalOrder(tests: readonly Test[]): readonly Test[] {
  const byText = new Map(tests.map((test) => [testText(test), test]));
  return [...byText.keys()].sort().map((text) => byText.get(text)!);
}

// -------------------------------------------------------------------------------------------------------------- protocol

/** `any`: whatever; `portless`: any without ports. */
type ProtocolChoice = number | "any" | "portless";

function protocolVariants(rule: PolicyRule, family: Family): { protocol: ProtocolChoice; tests: Test[] }[] {
  const icmp = icmpProtocol(family);
  if (rule.icmp !== undefined && rule.protocol !== undefined && rule.protocol !== icmp) return [];
  const protocol = rule.icmp !== undefined ? icmp : rule.protocol;
  const ends = [rule.source, rule.destination];
  const wantsPorts = ends.some((end) =>
    end.ports !== undefined || end.portSets !== undefined || end.serviceSet !== undefined
  );
  const numbersPorts = ends.some((end) =>
    end.ports !== undefined || end.notPorts !== undefined || end.notPortSets !== undefined
  );
  let choices: ProtocolChoice[];
  if (protocol !== undefined) choices = wantsPorts && !hasPorts(protocol) ? [] : [protocol];
  else if (numbersPorts) choices = wantsPorts ? [...PORT_PROTOCOLS] : [...PORT_PROTOCOLS, "portless"];
  else choices = ["any"];

  const variants: { protocol: ProtocolChoice; tests: Test[] }[] = [];
  for (const choice of choices) {
    const tests: Test[] = [];
    if (choice === "portless") tests.push({ test: "portless" });
    if (rule.notProtocol !== undefined) {
      if (choice === rule.notProtocol) continue;
      if (typeof choice !== "number") tests.push({ test: "protocol", protocol: rule.notProtocol, not: true });
    }
    if (rule.icmp !== undefined) {
      tests.push({ test: "icmp", type: rule.icmp.type, code: rule.icmp.code ?? null, not: false });
    }
    if (rule.notIcmp !== undefined && (choice === icmp || typeof choice !== "number")) {
      const other: Test = { test: "icmp", type: rule.notIcmp.type, code: rule.notIcmp.code ?? null, not: true };
      if (choice === icmp) tests.push(other);
      else {
        if (rule.notProtocol !== icmp) variants.push({ protocol: icmp, tests: [other] });
        tests.push({ test: "protocol", protocol: icmp, not: true });
      }
    }
    variants.push({ protocol: choice, tests });
  }
  return variants;
}

// ----------------------------------------------------------------------------------------------------------------- ports

interface PortVariant {
  /** Destination. */
  readonly ports?: readonly PortRange[];
  readonly tests: readonly Test[];
}

function portVariants(rule: PolicyRule, protocol: ProtocolChoice): readonly PortVariant[] {
  const ported = typeof protocol === "number" && hasPorts(protocol);
  const variants: PortVariant[] = [];
  for (const from of endVariants(rule.source, "source", ported)) {
    for (const to of endVariants(rule.destination, "destination", ported)) {
      const tests: Test[] = [...from.tests, ...to.tests];
      if (from.ports !== undefined) tests.push({ test: "ports", end: "source", ranges: from.ports });
      variants.push({ ports: to.ports, tests });
    }
  }
  return variants;
}

/** `ported`: the protocol is known and has ports, so that numbers may be asked for. */
function endVariants(match: RuleMatch, end: End, ported: boolean): readonly PortVariant[] {
  const always: Test[] = [];
  if (match.serviceSet !== undefined) always.push({ test: "addressPort", end, id: match.serviceSet, not: false });
  if (ported) { for (const id of match.notPortSets ?? []) always.push({ test: "addressPort", end, id, not: true }); }
  const without = ported && match.notPorts !== undefined ? subtractPorts(ALL_PORTS, match.notPorts) : undefined;
  const variants: PortVariant[] = [];
  if (match.ports !== undefined) {
    variants.push({
      ports: without === undefined ? unitePorts(match.ports) : subtractPorts(unitePorts(match.ports), match.notPorts!),
      tests: always,
    });
  }
  for (const id of match.portSets ?? []) {
    variants.push({ ports: without, tests: [...always, { test: "addressPort", end, id, not: false }] });
  }
  if (match.ports === undefined && match.portSets === undefined) variants.push({ ports: without, tests: always });
  return variants.filter((variant) => variant.ports === undefined || variant.ports.length > 0);
}

// ------------------------------------------------------------------------------------------------------------- addresses

/** Undefined among them: nothing in this family can match. */
function addressTests(match: RuleMatch, end: End, family: Family): (Test | undefined)[] {
  const tests: (Test | undefined)[] = [];
  const ours = (nets: readonly Cidr[] | undefined) => (nets ?? []).filter((net) => cidrFamily(net) === family);
  const holes = ours(match.notNets);
  if (match.nets !== undefined) {
    const left = subtractNets(ours(match.nets), holes);
    if (left.length === 0) tests.push(undefined);
    else if (!coversAll(left)) tests.push({ test: "address", end, ids: [], nets: left, not: false });
  } else if (holes.length > 0) {
    const nets = maximalNets(holes);
    tests.push(coversAll(nets) ? undefined : { test: "address", end, ids: [], nets, not: true });
  }
  for (const id of match.sets ?? []) tests.push({ test: "address", end, ids: [id], nets: [], not: false });
  for (const id of match.notSets ?? []) tests.push({ test: "address", end, ids: [id], nets: [], not: true });
  return tests;
}

const coversAll = (nets: readonly Cidr[]): boolean => nets.length === 1 && cidrPrefix(nets[0]!) === 0;
