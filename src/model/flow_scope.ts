/**
 * Which established flows a change of the desired state may have made denied: the little that has to be looked at, instead of
 * every flow of the node. It may name too many, never too few. Pure.
 */
import { type Address, type Cidr, cidrAddress, cidrPrefix } from "./address.ts";
import type { AddressSet, CompiledPolicy, DesiredState, PolicyList, RuleMatch, SetId } from "./desired.ts";

/** Flows with an end (any of the four addresses of their two tuples) among `addresses` or in one of `nets`; or all. */
export interface FlowScope {
  readonly everything: boolean;
  readonly addresses: ReadonlySet<Address>;
  readonly nets: readonly Cidr[];
}

/** Beyond so many it is everything: to compare with that many costs as much as to judge. */
const ADDRESSES_MAX = 65_536;
const NETS_MAX = 64;

export const EVERYTHING: FlowScope = { everything: true, addresses: new Set(), nets: [] };

/** What is in any of them. */
export function uniteScopes(scopes: Iterable<FlowScope>): FlowScope {
  const addresses = new Set<Address>(), nets = new Set<Cidr>();
  for (const scope of scopes) {
    if (scope.everything) return EVERYTHING;
    for (const address of scope.addresses) addresses.add(address);
    for (const net of scope.nets) nets.add(net);
    if (addresses.size > ADDRESSES_MAX || nets.size > NETS_MAX) return EVERYTHING;
  }
  return { everything: false, addresses, nets: [...nets] };
}

export const isEmptyScope = ({ everything, addresses, nets }: FlowScope): boolean =>
  !everything && addresses.size === 0 && nets.length === 0;

/**
 * From one state to the one that came into force next: where states were in force in between, a flow may have begun that
 * neither of the two allows. `uses` has learnt the lists of the newest state of all. `isSealed`: before such an interface had its workload it let nothing through, so
 * that a new workload behind it has no flows yet.
 */
export function flowScope(
  before: DesiredState,
  after: DesiredState,
  uses: SetUses,
  isSealed: (interfaceName: string) => boolean,
): FlowScope {
  if (before === after) return { everything: false, addresses: new Set(), nets: [] };
  // Host endpoints see what passes through the node, whoever the ends are.
  if (before.hostEndpoints !== after.hostEndpoints) return EVERYTHING;
  if (after.hostEndpoints.size > 0 && before.failsafe !== after.failsafe) return EVERYTHING;
  const addresses = new Set<Address>(), nets: Cidr[] = [];
  for (const { before: was, after: is } of after.workloads.changesSince(before.workloads)) {
    if (is === undefined || was === undefined && isSealed(is.interfaceName)) continue;
    if (
      was === undefined || was.ingress !== is.ingress || was.egress !== is.egress ||
      was.interfaceName !== is.interfaceName
    ) {
      for (const address of is.addresses) addresses.add(address);
    } else for (const address of is.addresses) if (!was.addresses.includes(address)) addresses.add(address);
  }
  for (const { key, before: was, after: is } of after.sets.changesSince(before.sets)) {
    const use = uses.of(key);
    if (use === 0) continue;
    for (const member of changedMembers(was, is, use)) {
      const cidr = member as Cidr;
      if ((is ?? was)!.kind === "port") addresses.add(member.slice(0, -3) as Address);
      else if (cidrPrefix(cidr) === (cidr.length - 1) * 8) addresses.add(cidrAddress(cidr));
      else nets.push(cidr);
      if (addresses.size > ADDRESSES_MAX || nets.length > NETS_MAX) return EVERYTHING;
    }
  }
  return { everything: false, addresses, nets };
}

function* changedMembers(was: AddressSet | undefined, is: AddressSet | undefined, use: number): Iterable<string> {
  if (was === undefined || is === undefined) {
    const only = is ?? was!;
    if ((use & (is === undefined ? LOSS : GAIN)) !== 0) yield* only.members.keys();
    return;
  }
  for (const { key, before } of is.members.changesSince(was.members)) {
    if ((use & (before === undefined ? GAIN : LOSS)) !== 0) yield key;
  }
}

/**
 * Addresses that a workload had and has no more, of interfaces that are sealed: what is established there belonged to a workload
 * that is gone. One that stays on its own with another interface is another (a pod made anew under its name).
 */
export function* releasedAddresses(
  before: DesiredState | undefined,
  after: DesiredState,
  isSealed: (interfaceName: string) => boolean,
): Iterable<Address> {
  if (before === undefined) return;
  for (const { before: was, after: is } of after.workloads.changesSince(before.workloads)) {
    if (was === undefined || !isSealed(was.interfaceName)) continue;
    for (const address of was.addresses) {
      if (is?.interfaceName !== was.interfaceName || !is.addresses.includes(address)) yield address;
    }
  }
}

/** Addresses that a workload has now and that it, or this very one, had not before. */
export function* takenAddresses(before: DesiredState | undefined, after: DesiredState): Iterable<Address> {
  if (before === undefined) return;
  for (const { before: was, after: is } of after.workloads.changesSince(before.workloads)) {
    for (const address of is?.addresses ?? []) {
      if (was?.interfaceName !== is!.interfaceName || !was.addresses.includes(address)) yield address;
    }
  }
}

/** Members that leave can make a packet denied. */
const LOSS = 1;
/** Members that come can. */
const GAIN = 2;

/**
 * In which way each set can make a packet denied. A rule that matches less tightens where it allowed or passed on, one that
 * matches more where it denies or passes on: below a pass everything may be stricter.
 */
export class SetUses {
  readonly #uses = new Map<SetId, number>();
  readonly #lists = new WeakSet<PolicyList>();
  readonly #policies = new WeakSet<CompiledPolicy>();

  /** How many sets it knows; what is gone from the state is not forgotten. */
  get size(): number {
    return this.#uses.size;
  }

  /** Looks at the lists that it has not seen yet; yields after each, because there may be many of many thousand rules. */
  *learn(state: DesiredState): Iterable<void> {
    for (const list of listsOf(state)) {
      if (this.#lists.has(list)) continue;
      this.#lists.add(list);
      for (const { policies } of list.tiers) for (const policy of policies) this.#see(policy);
      for (const profile of list.profiles) this.#see(profile);
      yield;
    }
  }

  /** Bits: 1 = members that leave can make a packet denied, 2 = members that come can. */
  of(id: SetId): number {
    return this.#uses.get(id) ?? 0;
  }

  #see(policy: CompiledPolicy): void {
    if (this.#policies.has(policy)) return;
    this.#policies.add(policy);
    if (policy.staged) return;
    for (const { action, source, destination } of policy.rules) {
      if (action === "log") continue;
      const less = action === "deny" ? 0 : LOSS, more = action === "allow" ? 0 : GAIN;
      for (const match of [source, destination]) {
        for (const id of positive(match)) this.#add(id, less | more);
        // What is asked not to be in there: the other way round.
        const turned = (less === 0 ? 0 : GAIN) | (more === 0 ? 0 : LOSS);
        for (const id of [...match.notSets ?? [], ...match.notPortSets ?? []]) this.#add(id, turned);
      }
    }
  }

  #add(id: SetId, use: number): void {
    this.#uses.set(id, (this.#uses.get(id) ?? 0) | use);
  }
}

function* positive({ sets, portSets, serviceSet }: RuleMatch): Iterable<SetId> {
  if (sets !== undefined) yield* sets;
  if (portSets !== undefined) yield* portSets;
  if (serviceSet !== undefined) yield serviceSet;
}

function* listsOf(state: DesiredState): Iterable<PolicyList> {
  for (const { ingress, egress } of state.workloads.values()) yield* [ingress, egress];
  for (const host of state.hostEndpoints.values()) {
    const { ingress, egress, forwardIngress, forwardEgress, preDnat, untrackedIngress, untrackedEgress } = host;
    for (const list of [ingress, egress, forwardIngress, forwardEgress, preDnat, untrackedIngress, untrackedEgress]) {
      if (list !== undefined) yield list;
    }
  }
}
