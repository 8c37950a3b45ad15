/** The lists of a desired state as wholes: which there are, what they ask, which differ between two states. Pure. */
import { type Address, type Cidr, cidrAddress, cidrContains, cidrPrefix } from "../../model/address.ts";
import type { DesiredState, PolicyList, Rule, RuleMatch, SetId } from "../../model/desired.ts";
import type { Stage } from "../../model/evaluate.ts";

/** Rules between two looks at the clock. */
const RULES_AT_ONCE = 64;

export const STAGES: readonly Stage[] = [
  "ingress",
  "egress",
  "forwardIngress",
  "forwardEgress",
  "preDnat",
  "untrackedIngress",
  "untrackedEgress",
];

/** Which lists and sets are not what they were. */
export class ChangedLists {
  readonly #sets = new Set<SetId>();
  readonly #known = new Map<string, boolean>();

  constructor(now: DesiredState, then: DesiredState) {
    for (const { key, before, after } of then.sets.changesSince(now.sets)) {
      if (before?.members !== after?.members) this.#sets.add(key);
    }
  }

  /** Whether the same packet may fare otherwise. */
  differs(now: PolicyList | undefined, then: PolicyList | undefined): boolean {
    if (now === undefined || then === undefined) return now !== then;
    return now.id !== then.id || this.#hasChangedSet(now);
  }

  #hasChangedSet(list: PolicyList): boolean {
    let found = this.#known.get(list.id);
    if (found === undefined) {
      found = rulesOf(list).some((rule) =>
        [rule.source, rule.destination].some((match) => setsOf(match).some((id) => this.#sets.has(id)))
      );
      this.#known.set(list.id, found);
    }
    return found;
  }
}

export const rulesOf = (list: PolicyList): readonly Rule[] => [
  ...list.tiers.flatMap(({ policies }) => policies.flatMap(({ rules }) => rules)),
  ...list.profiles.flatMap(({ rules }) => rules),
];

export const setsOf = (match: RuleMatch): readonly SetId[] => [
  ...match.sets ?? [],
  ...match.notSets ?? [],
  ...match.portSets ?? [],
  ...match.notPortSets ?? [],
  ...match.serviceSet === undefined ? [] : [match.serviceSet],
];

/** Each once. */
export function allLists({ workloads, hostEndpoints }: DesiredState): readonly PolicyList[] {
  const lists = new Map<string, PolicyList>();
  const add = (list: PolicyList | undefined) => list !== undefined && lists.set(list.id, list);
  workloads.forEach(({ ingress, egress }) => {
    add(ingress);
    add(egress);
  });
  hostEndpoints.forEach((host) => STAGES.forEach((stage) => add((host as Partial<Record<Stage, PolicyList>>)[stage])));
  return [...lists.values()];
}

/**
 * Everything that any of the lists asks about an address, as text: addresses with equal texts are alike to all lists. `pause` is
 * awaited often.
 */
export async function knowledge(
  lists: readonly PolicyList[],
  { sets }: DesiredState,
  addresses: readonly Address[],
  pause: () => Promise<void>,
): Promise<readonly string[]> {
  const known: string[][] = addresses.map(() => []);
  const at = new Map(addresses.map((address, index) => [address, index]));
  const seen = new Set<string>();
  let asked = 0;
  const once = (key: string) => seen.size < seen.add(key).size;
  const within = (nets: readonly Cidr[]) => {
    const number = asked++;
    for (const [index, address] of addresses.entries()) {
      if (nets.some((net) => cidrContains(net, address))) known[index]!.push(String(number));
    }
  };
  /** From the members' side: nearly all are single addresses, and most are nobody's here. */
  const members = (id: SetId) => {
    const number = asked++;
    const set = sets.get(id);
    const nets: Cidr[] = [], holders = new Set<number>();
    set?.members.forEach((_, member) => {
      if (set.kind === "port") {
        const index = at.get(member.slice(0, -3) as Address);
        if (index !== undefined) known[index]!.push(`${number}:${member.slice(-3)}`);
      } else if (isHostCidr(member as Cidr)) {
        const index = at.get(cidrAddress(member as Cidr));
        if (index !== undefined) holders.add(index);
      } else nets.push(member as Cidr);
    });
    if (nets.length > 0) {
      for (const [index, address] of addresses.entries()) {
        if (nets.some((net) => cidrContains(net, address))) holders.add(index);
      }
    }
    for (const index of holders) known[index]!.push(String(number));
  };
  let looked = 0;
  for (const list of lists) {
    for (const { source, destination } of rulesOf(list)) {
      if (++looked % RULES_AT_ONCE === 0) await pause();
      for (const match of [source, destination]) {
        for (const nets of [match.nets, match.notNets]) {
          if (nets !== undefined && once(`n${nets.join("")}`)) within(nets);
        }
        for (const id of setsOf(match)) if (once(`s${id}`)) members(id);
      }
    }
  }
  // In an order that does not depend on the order of a set's members.
  return known.map((list) => list.toSorted().join());
}

/** Whether it is one address. */
export const isHostCidr = (cidr: Cidr): boolean => cidrPrefix(cidr) === (cidr.length - 1) * 8;
