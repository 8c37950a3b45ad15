/** Sets of addresses that are no part of a pool, as lists come and go; and what lists need to know of address sets. */
import type { Cidr, Family } from "../../src/model/address.ts";
import type { AddressSet, DesiredState, SetId } from "../../src/model/desired.ts";
import { isHost } from "../../src/model/prefixes.ts";
import { type MapChange, type PersistentMap, persistentMap } from "../../src/model/persistent_map.ts";
import {
  type AddressForm,
  addressForm,
  countMembers,
  hasFamily,
  type MemberCounts,
  NetElements,
  shortLengths,
  SIZED_FROM,
} from "./address_elements.ts";
import type { AddressSetUse, Compiled, SetSize } from "./output.ts";
import type { NftSet } from "./ruleset.ts";
import { SharedEntries } from "./shared_entries.ts";

/** A set of so many addresses in a family may stand with each port that wants it. */
const SMALL_MAX = 64;

const NO_SETS: DesiredState["sets"] = persistentMap();
const NO_MEMBERS: AddressSet["members"] = persistentMap();
const emptySet = (id: SetId): AddressSet => ({ id, kind: "net", title: "", members: NO_MEMBERS });

export class AddressSets {
  private sets: DesiredState["sets"] = NO_SETS;
  private readonly counts = new Map<SetId, MemberCounts>();
  /** Those with ready-made keys. */
  private readonly packed = new Set<SetId>();
  private readonly uses = new SharedEntries<AddressSetUse>();
  private readonly rendered = persistentMap<string, NftSet>().edit();
  private published: PersistentMap<string, NftSet> = persistentMap();
  /** Names of the sets that show an address set. */
  private readonly showing = new Map<SetId, Set<string>>();

  /** Takes the sets of a state. Answers those that others know something about, and that have changed. */
  follow(sets: DesiredState["sets"], known: (id: SetId) => boolean): ReadonlySet<SetId> {
    const touched = new Set<SetId>();
    for (const { key: id } of sets.changesSince(this.sets)) if (this.counts.has(id) || known(id)) touched.add(id);
    this.sets = sets;
    for (const id of touched) {
      const before = this.counts.get(id);
      if (before !== undefined) this.counts.set(id, countMembers(this.setOf(id), before));
    }
    return touched;
  }

  /** Renders anew what shows one of them, once the lists are as they shall be. */
  refresh(touched: ReadonlySet<SetId>): void {
    const names = new Set<string>();
    for (const id of touched) for (const name of this.showing.get(id) ?? []) names.add(name);
    for (const name of names) this.rendered.set(name, this.render(this.uses.get(name)!));
  }

  retain(uses: Compiled["addressSets"]): void {
    for (const [name, use] of uses) {
      const isNew = this.uses.get(name) === undefined;
      this.uses.retain(name, use);
      if (!isNew) continue;
      for (const id of use.ids) {
        const names = this.showing.get(id);
        if (names === undefined) this.showing.set(id, new Set([name]));
        else names.add(name);
      }
      this.rendered.set(name, this.render(use));
    }
  }

  release(uses: Compiled["addressSets"]): void {
    for (const [name, { ids }] of uses) {
      if (!this.uses.release(name)) continue;
      this.rendered.delete(name);
      for (const id of ids) {
        const names = this.showing.get(id)!;
        names.delete(name);
        if (names.size === 0) this.showing.delete(id);
      }
    }
  }

  /** Nobody asks about the set any more. */
  forget(id: SetId): void {
    this.counts.delete(id);
  }

  /** The sets that are others since the last time. */
  changes(): Iterable<MapChange<string, NftSet>> {
    const before = this.published;
    this.published = this.rendered.finish();
    // Ready-made keys are for making a set; they are not worth keeping.
    for (const id of this.packed) {
      const counts = this.counts.get(id);
      if (counts?.packed !== undefined) this.counts.set(id, { members: counts.members, 4: counts[4], 6: counts[6] });
    }
    this.packed.clear();
    return this.published.changesSince(before);
  }

  form(family: Family, ids: readonly SetId[], nets: readonly Cidr[]): AddressForm {
    return addressForm(family, ids.map((id) => this.countsOf(id)), nets);
  }

  sizeOf(family: Family, id: SetId): SetSize {
    const { hosts, short } = this.countsOf(id)[family];
    if (short.size > 0) return "own";
    return hosts <= SMALL_MAX ? "small" : hosts < SIZED_FROM ? "pooled" : "own";
  }

  hasMembers(family: Family, id: SetId): boolean {
    return hasFamily(this.countsOf(id), family);
  }

  private setOf(id: SetId): AddressSet {
    return this.sets.get(id) ?? emptySet(id);
  }

  private countsOf(id: SetId): MemberCounts {
    let counts = this.counts.get(id);
    if (counts === undefined) {
      this.counts.set(id, counts = countMembers(this.setOf(id), undefined));
      if (counts.packed !== undefined) this.packed.add(id);
    }
    return counts;
  }

  private render({ family, ids, nets, form }: AddressSetUse): NftSet {
    const sources = ids.map((id) => this.setOf(id).members);
    const filled = sources.filter((_, i) => hasFamily(this.countsOf(ids[i]!), family));
    const lengths = new Set(ids.flatMap((id) => shortLengths(this.countsOf(id), family)));
    for (const net of nets) if (!isHost(net)) lengths.add(net.charCodeAt(net.length - 1));
    const sorted = [...lengths].sort((a, b) => a - b);
    const alone = sources.length === 1 && nets.length === 0 && !form.interval;
    const packed = alone ? this.countsOf(ids[0]!).packed?.[family] : undefined;
    const elements = new NetElements(family, sources, filled, nets, sorted, form.interval, packed);
    return { fields: [`ipv${family}_addr`], ...form, map: false, elements };
  }
}
