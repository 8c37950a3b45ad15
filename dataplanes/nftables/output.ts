/** What a list compiles to, gathered; everything is named by its content, or by the list's slot where that changes less. */
import { type Address, type Cidr, cidrAddress, type Family } from "../../src/model/address.ts";
import type { SetId } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import type { Direction } from "../../src/model/rule.ts";
import { isHost } from "../../src/model/prefixes.ts";
import type { AddressForm } from "./address_elements.ts";
import { countKey, keyOf } from "./counters.ts";
import type { Cause } from "../../src/model/flat_list.ts";
import type { Block, PoolName, Source } from "./pools.ts";
import {
  type ElementKey,
  elementsOf,
  type ElementValue,
  type Expression,
  type NftChain,
  type NftSet,
  type Rule,
  type Verdict,
} from "./ruleset.ts";

/** A set of addresses by itself, not in a pool; its elements come from the state. */
export interface AddressSetUse {
  readonly family: Family;
  readonly ids: readonly SetId[];
  readonly nets: readonly Cidr[];
  readonly form: AddressForm;
}

/**
 * How large an address set is in a family: its members may stand with each port that wants them (`small`), go to a pool once
 * (`pooled`), or make a set of their own, because they are many or no single addresses (`own`).
 */
export type SetSize = "small" | "pooled" | "own";

/** What becomes of a packet that the list allows, denies, or (lists whose end is `next`) does not decide. */
export interface Endings {
  readonly allow: Verdict;
  readonly deny: Verdict;
  readonly next: Verdict;
}

export interface CompileOptions {
  readonly endings: Endings;
  readonly direction: Direction;
  /** `linear`: rules one after another, as written. */
  readonly shape: "flat" | "linear";
  /** NFLOG group of what is logged. */
  readonly logGroup: number;
  readonly form: (family: Family, ids: readonly SetId[], nets: readonly Cidr[]) => AddressForm;
  readonly sizeOf: (family: Family, id: SetId) => SetSize;
  /** Whether an address or port set has members of the family. */
  readonly hasMembers: (family: Family, id: SetId) => boolean;
}

export interface Compiled {
  /** Name of the chain to go to. Every way through it ends in a verdict of `Endings`. */
  readonly head: string;
  readonly chains: ReadonlyMap<string, NftChain>;
  /** Named by their content, or by the slot. */
  readonly sets: ReadonlyMap<string, NftSet>;
  readonly addressSets: ReadonlyMap<string, AddressSetUse>;
  readonly blocks: ReadonlyMap<PoolName, ReadonlyMap<string, Block>>;
  /** Elements of `hits` and `counts`, and the decisions that each counts. */
  readonly hits: ReadonlyMap<ElementKey, readonly Cause[]>;
  readonly counts: ReadonlyMap<ElementKey, readonly Cause[]>;
  /** All sets that it depends on. */
  readonly ids: ReadonlySet<SetId>;
  /** Families in which no set of `ids` has a member: nothing of them is looked up there. */
  readonly absent: readonly Family[];
  /** The sizes that it was compiled for, by family and id. */
  readonly sizes: ReadonlyMap<string, SetSize>;
  /** Where a bound was reached and a slower form stands instead, one line each. */
  readonly notes: readonly string[];
}

/** A chain of more rules is worth a note. */
const NOTED_RULES = 64;
/** Sets that all unions of one list are made of. */
const UNION_BUDGET = 65_536;
/** A union of more addresses is none. */
const UNION_ADDRESSES_MAX = 1 << 20;
/** Unions of so many sources may be another list's as well; larger ones are the list's own, and change in place. */
const SHARED_SOURCES_MAX = 64;

export class Output {
  readonly chains = new Map<string, NftChain>();
  readonly sets = new Map<string, NftSet>();
  readonly addressSets = new Map<string, AddressSetUse>();
  readonly blocks = new Map<PoolName, Map<string, Block>>();
  readonly hits = new Map<ElementKey, readonly Cause[]>();
  readonly counts = new Map<ElementKey, readonly Cause[]>();
  readonly sizes = new Map<string, SetSize>();
  readonly notes = new Set<string>();
  private unionSources = 0;
  private ownUnions = 0;

  /** `slot`: whose it is; no other list has the same at the same time. */
  constructor(readonly options: CompileOptions, readonly slot: string) {}

  chain(rules: readonly Rule[]): string {
    const name = `c-${digest(JSON.stringify(rules))}`;
    this.setChain(name, rules);
    return name;
  }

  setChain(name: string, rules: readonly Rule[]): void {
    this.chains.set(name, { rules });
    if (rules.length > NOTED_RULES && this.options.shape === "flat") {
      this.notes.add(`${rules.length} rules are walked one by one`);
    }
  }

  fixedSet(
    prefix: string,
    set: Omit<NftSet, "elements">,
    entries: readonly (readonly [ElementKey, ElementValue])[],
  ): string {
    const name = `${prefix}-${digest(JSON.stringify([set.fields, set.interval, set.map, entries]))}`;
    if (!this.sets.has(name)) this.sets.set(name, { ...set, elements: elementsOf(entries) });
    return name;
  }

  /** A set of the list's own, whose elements may change. */
  slotSet(prefix: string, what: string, set: NftSet): string {
    const name = `${prefix}-${digest(JSON.stringify([this.slot, what]))}`;
    this.sets.set(name, set);
    return name;
  }

  sizeOf(family: Family, id: SetId): SetSize {
    const size = this.options.sizeOf(family, id);
    this.sizes.set(`${family}${id}`, size);
    return size;
  }

  /** Where the addresses are looked up: a set, or under a key of the pool `peers`. */
  addresses(family: Family, ids: readonly SetId[], nets: readonly Cidr[]): { set: string } | { key: string } {
    if (ids.length > 0 && nets.every(isHost) && ids.every((id) => this.sizeOf(family, id) !== "own")) {
      const text = JSON.stringify([ids, nets]);
      const key = ids.length > SHARED_SOURCES_MAX ? this.slotKey("union", family, this.ownUnions++) : keyOf(text);
      this.block(`peers${family}`, key, new Map([["", { ids, addresses: nets.map(cidrAddress) }]]));
      return { key };
    }
    const form = this.options.form(family, ids, nets);
    const set = netSetName(family, ids, nets, form);
    this.addressSets.set(set, { family, ids, nets, form });
    return { set };
  }

  /** The key of a `port` set in the pool `ports`. */
  addressPorts(family: Family, id: SetId): string {
    const key = keyOf(id);
    this.block(`ports${family}`, key, new Map([["", { ids: [id], addresses: NO_ADDRESSES }]]));
    return key;
  }

  block(pool: PoolName, key: string, block: Block): void {
    const blocks = this.blocks.get(pool);
    if (blocks === undefined) this.blocks.set(pool, new Map([[key, block]]));
    else blocks.set(key, block);
  }

  slotKey(...what: readonly (string | number)[]): string {
    return keyOf(JSON.stringify([this.slot, ...what]));
  }

  /** Counts the packet. `scope`: for this list alone, not for all that have the decisions. */
  counted(causes: readonly Cause[], scope = ""): readonly Expression[] {
    const key = countKey(causes, scope);
    this.counts.set(key, causes);
    return [{ op: "immediate", dreg: 0, data: key }, { op: "lookup", set: "counts", sreg: 0, invert: false }];
  }

  /** Whether one more union is within bounds. */
  mayUnite(family: Family, ids: readonly SetId[], nets: readonly Cidr[]): boolean {
    if (this.unionSources + ids.length > UNION_BUDGET) {
      this.notes.add(`more than ${UNION_BUDGET} selectors in unions: the rest is looked up one by one`);
      return false;
    }
    if ((this.options.form(family, ids, nets).capacity ?? 0) > UNION_ADDRESSES_MAX) {
      this.notes.add(`more than ${UNION_ADDRESSES_MAX} addresses in a union: its selectors are looked up one by one`);
      return false;
    }
    this.unionSources += ids.length;
    return true;
  }
}

const NO_ADDRESSES: Source["addresses"] = [] as readonly Address[];

/** `n` interval, `s` plain; `l` prefixes only. The form is in the name: a set that changes its form is another set. */
export function netSetName(
  family: Family,
  ids: readonly SetId[],
  nets: readonly Cidr[],
  { interval, capacity }: AddressForm,
): string {
  const form = ids.length === 0 ? "l" : interval ? "n" : "s";
  const content = ids.length === 1 && nets.length === 0 ? ids[0]! : JSON.stringify([ids, nets]);
  return `${form}${family}-${digest(content)}${capacity === undefined ? "" : `-${capacity}`}`;
}
