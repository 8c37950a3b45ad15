import { cidrFamily } from "../model/address.ts";
import type { Family } from "../model/address.ts";
import type { CompiledPolicy, Rule, RuleMatch, SetId } from "../model/desired.ts";
import { digest } from "../model/digest.ts";
import type { PortRange } from "../model/ports.ts";
import type { Direction, IcmpMatch, NeutralRule, PeerMatch } from "../model/rule.ts";
import { ALL } from "../model/selector.ts";
import type { Selector } from "../model/selector.ts";
import type { AddressSets, MemberSet } from "./address_sets.ts";

/** One direction of a policy or profile, its selectors turned to sets. */
export interface Compiled {
  readonly policy: CompiledPolicy;
  /** Of the content. */
  readonly digest: string;
  /** In use as long as this is. */
  readonly sets: readonly MemberSet[];
}

export interface CompileInput {
  readonly id: string;
  readonly staged: boolean;
  readonly logDenied?: true;
  readonly direction: Direction;
  readonly rules: readonly NeutralRule[];
  /** What it applies to: named ports of the policy's own end are looked for there. */
  readonly selects: Selector;
}

/** Takes up the sets it needs; answers `previous` itself, which keeps its own, where the content is the same. */
export function compile(input: CompileInput, sets: AddressSets, previous: Compiled | undefined): Compiled {
  const used: MemberSet[] = [];
  const { direction, selects } = input;
  const possible = input.rules.filter((rule) => familyOf(rule) !== "none");
  const rules = possible.map((rule): Rule =>
    withoutUndefined({
      action: rule.action,
      family: familyOf(rule) as Family | undefined,
      protocol: rule.protocol,
      notProtocol: rule.notProtocol,
      icmp: icmp(rule.icmp),
      notIcmp: icmp(rule.notIcmp),
      source: compileMatch(rule.source, direction === "egress" ? selects : ALL, sets, used),
      destination: compileMatch(rule.destination, direction === "ingress" ? selects : ALL, sets, used),
      origin: { policy: rule.origin.policy, direction: rule.origin.direction, index: rule.origin.index },
    })
  );
  const policy: CompiledPolicy = {
    id: input.id,
    staged: input.staged,
    ...input.logDenied ? { logDenied: true } : {},
    rules,
  };
  const content = digest(JSON.stringify(policy));
  if (previous?.digest !== content) return { policy, digest: content, sets: used };
  release({ sets: used }, sets);
  return previous;
}

export function release(compiled: Pick<Compiled, "sets"> | undefined, sets: AddressSets): void {
  for (const set of compiled?.sets ?? []) sets.release(set);
}

/**
 * The one family that a rule can match. Prefixes of a single family make it a rule of that family, whether they say where
 * to match or where not to (policy-semantics: a rule with an IPv4-only field matches no IPv6 packet).
 */
function familyOf({ family, source, destination }: NeutralRule): Family | "none" | undefined {
  let only: Family | "none" | undefined = family;
  for (const nets of [source.nets, source.notNets, destination.nets, destination.notNets]) {
    const [first, ...rest] = nets ?? [];
    if (first === undefined || rest.some((net) => net.length !== first.length)) continue;
    const found = cidrFamily(first);
    if (only !== undefined && only !== found) return "none";
    only = found;
  }
  return only;
}

/** An empty list asks for nothing, as an absent one. */
function compileMatch(peer: PeerMatch, end: Selector, sets: AddressSets, used: MemberSet[]): RuleMatch {
  const take = (set: MemberSet): SetId => {
    used.push(set);
    return set.id;
  };
  const named = (names: readonly string[] | undefined) =>
    some(names)?.map((name) => take(sets.acquireNamedPort(peer.selector ?? end, name)));
  const { service, servicePorts } = peer;
  const addressSets = [
    ...peer.selector ? [take(sets.acquireAddresses(peer.selector))] : [],
    ...peer.nodes ? [take(sets.acquireNodes(peer.nodes))] : [],
    ...service && servicePorts === false ? [take(sets.acquireService(service, false))] : [],
  ];
  return withoutUndefined({
    nets: some(peer.nets),
    notNets: some(peer.notNets),
    sets: some(addressSets),
    notSets: peer.notSelector && [take(sets.acquireAddresses(peer.notSelector))],
    ports: ranges(peer.ports),
    portSets: named(peer.portNames),
    notPorts: ranges(peer.notPorts),
    notPortSets: named(peer.notPortNames),
    serviceSet: service && servicePorts !== false ? take(sets.acquireService(service, true)) : undefined,
  });
}

const some = <T>(list: readonly T[] | undefined): readonly T[] | undefined => list?.length ? list : undefined;

// Field by field, because the digest is of text, and the order of fields must not tell two equal rules apart.
const icmp = (match: IcmpMatch | undefined): IcmpMatch | undefined =>
  match && withoutUndefined({ type: match.type, code: match.code });
const ranges = (ports: readonly PortRange[] | undefined): readonly PortRange[] | undefined =>
  some(ports)?.map(({ first, last }) => ({ first, last }));

/** Equal rules look equal to whoever compares or prints them. */
function withoutUndefined<T extends object>(value: T): T {
  for (const key of Object.keys(value) as (keyof T)[]) if (value[key] === undefined) delete value[key];
  return value;
}
