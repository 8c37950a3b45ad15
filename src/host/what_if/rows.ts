/**
 * What a list says about every class of packets at once, for one source and one destination: a row of bits. The conditions of
 * rules that concern packets alone are held against each class once, by the product's own evaluator; those that concern
 * addresses once for each address. Addresses that a list cannot tell apart share their rows. Pure.
 */
import { type Address, cidrAddress, cidrContains } from "../../model/address.ts";
import type { Cidr } from "../../model/address.ts";
import type { DesiredState, PolicyList, Rule, RuleMatch, SetId } from "../../model/desired.ts";
import { missesOf } from "../../model/evaluate.ts";
import {
  addBits,
  allBits,
  andBits,
  type Bits,
  hasBit,
  isEmpty,
  moveBits,
  noBits,
  setBit,
  withoutBits,
} from "../bits.ts";
import { isHostCidr } from "./lists.ts";
import type { PacketClasses } from "./packets.ts";

/** Classes of packets by what becomes of them; what is in neither goes on. */
export interface Row {
  readonly allow: Bits;
  readonly deny: Bits;
}

type Side = "source" | "destination";

/** What each condition of a `RuleMatch` is about. A new one has to be put here before this compiles. */
const ABOUT: Readonly<Record<keyof RuleMatch, "address" | "address and port" | "packet">> = {
  nets: "address",
  notNets: "address",
  sets: "address",
  notSets: "address",
  portSets: "address and port",
  notPortSets: "address and port",
  serviceSet: "address and port",
  ports: "packet",
  notPorts: "packet",
};
const fieldsAbout = (...about: readonly string[]): readonly (keyof RuleMatch)[] =>
  (Object.keys(ABOUT) as (keyof RuleMatch)[]).filter((field) => about.includes(ABOUT[field]));
const ADDRESS_FIELDS = fieldsAbout("address");
const ADDRESS_PORT_FIELDS = fieldsAbout("address and port");

interface PreparedRule {
  readonly rule: Rule;
  /** Addresses that its conditions hold for, by side; undefined = all. */
  readonly source: Bits | undefined;
  readonly destination: Bits | undefined;
  /** Classes that its conditions on packets hold for; undefined where that depends on the address as well. */
  readonly packets: Bits | undefined;
  /** Addresses that its sets of ports know at all, by side; undefined where it has none. */
  readonly portHolders: Readonly<Record<Side, Bits | undefined>>;
}

/** One list, its rules prepared, its addresses by what it knows of them. */
interface PreparedList {
  readonly list: PolicyList;
  readonly tiers: readonly { readonly policies: readonly PreparedRule[][]; readonly denies: boolean }[];
  readonly profiles: readonly PreparedRule[][];
  readonly all: readonly PreparedRule[];
  /** By side and address: a number that equal ones share; −1 = not looked at yet. */
  readonly kinds: Readonly<Record<Side, Int32Array>>;
  readonly kindIds: Map<string, number>;
  /** By kind of source and of destination. */
  readonly rows: (Row | undefined)[][];
}

export class Rows {
  readonly #everything: Bits;
  readonly #addressAt: ReadonlyMap<Address, number>;
  readonly #lists = new Map<PolicyList, PreparedList>();
  readonly #rules = new Map<Rule, PreparedRule>();
  readonly #netSets = new Map<SetId, Bits>();
  readonly #nets = new Map<string, Bits>();
  readonly #packets = new Map<string, Bits>();
  readonly #portPackets = new Map<string, Bits>();
  readonly #inPortSet = new Map<SetId, Bits>();

  /** `addresses`: of the family of `packets`, each once. */
  constructor(
    readonly state: DesiredState,
    readonly packets: PacketClasses,
    readonly addresses: readonly Address[],
  ) {
    this.#everything = allBits(packets.size);
    this.#addressAt = new Map(addresses.map((address, at) => [address, at]));
  }

  get everything(): Bits {
    return this.#everything;
  }

  /** `source` and `destination` count in `addresses`. */
  row(list: PolicyList, source: number, destination: number): Row {
    const prepared = this.#prepare(list);
    const from = this.#kindOf(prepared, "source", source), to = this.#kindOf(prepared, "destination", destination);
    const rows = prepared.rows[from] ??= [];
    return rows[to] ??= this.#judge(prepared, source, destination);
  }

  /** Equal for addresses that no rule of the list tells apart. */
  kindOf(list: PolicyList, side: Side, address: number): number {
    return this.#kindOf(this.#prepare(list), side, address);
  }

  /** As `judgeList` of src/model/evaluate.ts, for all classes at once. */
  #judge({ list, tiers, profiles }: PreparedList, source: number, destination: number): Row {
    const allow = noBits(this.packets.size), deny = noBits(this.packets.size);
    let left: Bits = this.#everything.slice();
    /** What the policy decides leaves `open`. */
    const judge = (policy: readonly PreparedRule[], open: Bits, passed: Bits): void => {
      for (const prepared of policy) {
        const { action } = prepared.rule;
        if (action === "log" || !this.#isAt(prepared, source, destination)) continue;
        const packets = this.#packetsOf(prepared, source, destination);
        moveBits(packets, open, action === "allow" ? allow : action === "deny" ? deny : passed);
      }
    };
    for (const { policies, denies } of tiers) {
      const passed = noBits(this.packets.size);
      for (const policy of policies) judge(policy, left, passed);
      addBits(denies ? deny : passed, left);
      left = passed;
      if (isEmpty(left)) break;
    }
    for (const profile of profiles) {
      // Pass ends the profile, and the next one is asked.
      const passed = noBits(this.packets.size);
      judge(profile, left, passed);
      addBits(left, passed);
    }
    if (list.end === "deny") addBits(deny, left);
    return { allow, deny };
  }

  #isAt({ source: sources, destination: destinations }: PreparedRule, source: number, destination: number): boolean {
    return (sources === undefined || hasBit(sources, source)) &&
      (destinations === undefined || hasBit(destinations, destination));
  }

  #prepare(list: PolicyList): PreparedList {
    let prepared = this.#lists.get(list);
    if (prepared !== undefined) return prepared;
    const all: PreparedRule[] = [];
    const rulesOf = (rules: readonly Rule[]) => {
      const own = rules.map((rule) => this.#prepareRule(rule));
      all.push(...own);
      return own;
    };
    const tiers = list.tiers.map(({ policies, defaultAction }) => {
      const enforced = policies.filter(({ staged }) => !staged);
      return {
        policies: enforced.map(({ rules }) => rulesOf(rules)),
        denies: enforced.length > 0 && defaultAction === "deny",
      };
    });
    const profiles = list.profiles.map(({ rules }) => rulesOf(rules));
    prepared = {
      list,
      tiers,
      profiles,
      all,
      kinds: {
        source: new Int32Array(this.addresses.length).fill(-1),
        destination: new Int32Array(this.addresses.length).fill(-1),
      },
      kindIds: new Map(),
      rows: [],
    };
    this.#lists.set(list, prepared);
    return prepared;
  }

  #prepareRule(rule: Rule): PreparedRule {
    let prepared = this.#rules.get(rule);
    if (prepared !== undefined) return prepared;
    const perAddress = [rule.source, rule.destination].some((match) =>
      ADDRESS_PORT_FIELDS.some((field) => match[field] !== undefined)
    );
    prepared = {
      rule,
      source: this.#addressesOf(rule.source),
      destination: this.#addressesOf(rule.destination),
      packets: perAddress ? undefined : this.#packetsAnywhere(rule),
      portHolders: { source: this.#portHolders(rule.source), destination: this.#portHolders(rule.destination) },
    };
    this.#rules.set(rule, prepared);
    return prepared;
  }

  #kindOf({ all, kinds, kindIds }: PreparedList, side: Side, address: number): number {
    const found = kinds[side][address]!;
    if (found >= 0) return found;
    const known: string[] = [];
    for (const [at, prepared] of all.entries()) {
      const holds = prepared[side], portHolders = prepared.portHolders[side];
      if (holds !== undefined && hasBit(holds, address)) known.push(String(at));
      // Where its ports count, nobody is like anybody but those that the set does not know at all.
      if (portHolders !== undefined && hasBit(portHolders, address)) known.push(`${at}:${address}`);
    }
    const text = known.join();
    const kind = kindIds.get(text) ?? kindIds.size;
    kindIds.set(text, kind);
    return kinds[side][address] = kind;
  }

  #portHolders(match: RuleMatch): Bits | undefined {
    const ids = [...match.portSets ?? [], ...match.notPortSets ?? [], ...match.serviceSet ? [match.serviceSet] : []];
    if (ids.length === 0) return undefined;
    const all = noBits(this.addresses.length);
    for (const id of ids) {
      let holders = this.#inPortSet.get(id);
      if (holders === undefined) {
        const found = holders = noBits(this.addresses.length);
        this.state.sets.get(id)?.members.forEach((_, member) => {
          const at = this.#addressAt.get(member.slice(0, -3) as Address);
          if (at !== undefined) setBit(found, at);
        });
        this.#inPortSet.set(id, holders);
      }
      addBits(all, holders);
    }
    return all;
  }

  /** Addresses that the conditions on addresses hold for. */
  #addressesOf(match: RuleMatch): Bits | undefined {
    if (ADDRESS_FIELDS.every((field) => match[field] === undefined)) return undefined;
    let bits = allBits(this.addresses.length);
    if (match.nets !== undefined) bits = andBits(bits, this.#within(match.nets));
    if (match.notNets !== undefined) bits = withoutBits(bits, this.#within(match.notNets));
    for (const id of match.sets ?? []) bits = andBits(bits, this.#members(id));
    for (const id of match.notSets ?? []) bits = withoutBits(bits, this.#members(id));
    return bits;
  }

  #within(nets: readonly Cidr[]): Bits {
    const key = nets.join("");
    let bits = this.#nets.get(key);
    if (bits === undefined) {
      bits = noBits(this.addresses.length);
      for (const [at, address] of this.addresses.entries()) {
        if (nets.some((net) => cidrContains(net, address))) setBit(bits, at);
      }
      this.#nets.set(key, bits);
    }
    return bits;
  }

  /** From the members' side: nearly all are single addresses. */
  #members(id: SetId): Bits {
    let bits = this.#netSets.get(id);
    if (bits !== undefined) return bits;
    const found = bits = noBits(this.addresses.length);
    const nets: Cidr[] = [];
    this.state.sets.get(id)?.members.forEach((_, member) => {
      const at = isHostCidr(member as Cidr) ? this.#addressAt.get(cidrAddress(member as Cidr)) : undefined;
      if (at !== undefined) setBit(found, at);
      else if (!isHostCidr(member as Cidr)) nets.push(member as Cidr);
    });
    if (nets.length > 0) {
      for (const [at, address] of this.addresses.entries()) {
        if (nets.some((net) => cidrContains(net, address))) setBit(found, at);
      }
    }
    this.#netSets.set(id, bits);
    return bits;
  }

  /** Classes that what is left of the rule without addresses holds for. */
  #packetsAnywhere(rule: Rule): Bits {
    const [address] = this.addresses;
    const bare = this.#bare(rule, [...ADDRESS_FIELDS, ...ADDRESS_PORT_FIELDS]);
    const { origin: _, action: __, ...conditions } = bare;
    const key = JSON.stringify(conditions);
    let bits = this.#packets.get(key);
    if (bits === undefined) this.#packets.set(key, bits = this.#holds(bare, address!, address!));
    return bits;
  }

  #packetsOf({ rule, packets, portHolders }: PreparedRule, source: number, destination: number): Bits {
    if (packets !== undefined) return packets;
    const place = (side: Side, address: number) =>
      portHolders[side] !== undefined && hasBit(portHolders[side], address) ? address : -1;
    const bare = this.#bare(rule, ADDRESS_FIELDS);
    const { origin: _, action: __, ...conditions } = bare;
    const key = `${place("source", source)} ${place("destination", destination)} ${JSON.stringify(conditions)}`;
    let bits = this.#portPackets.get(key);
    if (bits === undefined) {
      bits = this.#holds(bare, this.addresses[source]!, this.addresses[destination]!);
      this.#portPackets.set(key, bits);
    }
    return bits;
  }

  #bare(rule: Rule, fields: readonly (keyof RuleMatch)[]): Rule {
    const without = (match: RuleMatch): RuleMatch =>
      Object.fromEntries(Object.entries(match).filter(([field]) => !(fields as readonly string[]).includes(field)));
    return { ...rule, source: without(rule.source), destination: without(rule.destination) };
  }

  #holds(rule: Rule, source: Address, destination: Address): Bits {
    const bits = noBits(this.packets.size);
    const hold = (at: number) => {
      if (missesOf(this.state, rule, this.packets.packet(at, source, destination)).length === 0) setBit(bits, at);
    };
    const { ports, portSets } = rule.destination;
    // Most rules are for a port or two: no other packet needs to be asked about.
    if (ports !== undefined && portSets === undefined) { for (const at of this.packets.towards(ports)) hold(at); }
    else for (let at = 0; at < this.packets.size; at++) hold(at);
    return bits;
  }
}
