/** The policy lists that something leads to, compiled, and everything that they share. */
import type { DesiredState, DesiredWorkload, PolicyList, SetId } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import type { MapEditor } from "../../src/model/persistent_map.ts";
import type { Direction } from "../../src/model/rule.ts";
import { AddressSets } from "./address_sets.ts";
import type { RenderOptions } from "./base_chains.ts";
import { compileList, FILTER_ENDINGS } from "./compile.ts";
import { commentOf } from "./counters.ts";
import type { WorkloadChains } from "./dispatch.ts";
import type { Cause } from "../../src/model/flat_list.ts";
import type { Compiled, Endings } from "./output.ts";
import { PoolBlocks } from "./pool_blocks.ts";
import { POOL_KEY } from "./pools.ts";
import { type KeyField, type NftSet, TrieElements } from "./ruleset.ts";
import { type Chains, SharedEntries } from "./shared_entries.ts";
import { Slots } from "./slots.ts";

interface ListUse {
  readonly list: PolicyList;
  readonly direction: Direction;
  readonly endings: Endings;
  /** Undefined until it is settled for the first time. */
  compiled: Compiled | undefined;
}

export class Lists {
  /** By key. */
  private readonly uses = new Map<string, ListUse>();
  private readonly slots = new Slots();
  private readonly addressSets = new AddressSets();
  private readonly pools = new PoolBlocks();
  /** Elements of the sets so named. */
  private readonly hits = new SharedEntries<string>();
  private readonly counts = new SharedEntries<string>();
  private readonly listSets = new SharedEntries<NftSet>();
  /** Keys of lists that depend on an address set. */
  private readonly listsOf = new Map<SetId, Set<string>>();
  private sets: DesiredState["sets"] | undefined;
  private touched: ReadonlySet<SetId> = new Set();
  /** How often host endpoints have a list, by its key. */
  private readonly hostUsers = new Map<string, number>();
  /** Keys of lists to compile. */
  private readonly stale = new Set<string>();
  private readonly gone: (readonly [string, Compiled])[] = [];

  /** `chains`, `rendered`: where what is rendered goes. */
  constructor(
    private readonly options: RenderOptions,
    private readonly chains: Chains,
    private readonly rendered: MapEditor<string, NftSet>,
  ) {}

  /** A workload has the list. */
  enter(workload: DesiredWorkload, direction: Direction): void {
    const { id, [direction]: list } = workload;
    const key = keyOf(list, direction);
    if (!this.slots.add(key, list, direction, id) && this.uses.has(key)) return;
    this.uses.set(key, { list, direction, endings: FILTER_ENDINGS, compiled: undefined });
    this.stale.add(key);
  }

  /** It has it no more. */
  leave(workload: DesiredWorkload, direction: Direction): void {
    const { id, [direction]: list } = workload;
    this.slots.remove(keyOf(list, direction), id);
  }

  /** A list of a host endpoint. Answers its key; give it to `leaveHost` when nothing leads there any more. */
  enterHost(list: PolicyList, direction: Direction, endings: Endings): string {
    const key = `host ${keyOf(list, direction)} ${JSON.stringify(endings)}`;
    this.hostUsers.set(key, (this.hostUsers.get(key) ?? 0) + 1);
    if (!this.uses.has(key)) {
      this.uses.set(key, { list, direction, endings, compiled: undefined });
      this.stale.add(key);
    }
    return key;
  }

  leaveHost(key: string): void {
    this.hostUsers.set(key, this.hostUsers.get(key)! - 1);
  }

  /** Takes the sets of a state; lists whose sets have another form are compiled anew by `settle`. */
  followSets(sets: DesiredState["sets"]): void {
    this.sets = sets;
    this.touched = this.addressSets.follow(sets, (id) => this.listsOf.has(id));
    for (const id of this.touched) {
      for (const key of this.listsOf.get(id) ?? []) {
        if (!this.stands(this.uses.get(key)!.compiled!, id)) this.stale.add(key);
      }
    }
  }

  /** Compiles what came and lets go what went. Answers the workloads whose lists, though not new, have other chains now. */
  settle(): readonly string[] {
    const { gone, moved } = this.slots.settle();
    for (const key of gone) this.drop(key);
    for (const [key, users] of this.hostUsers) if (users === 0 && this.hostUsers.delete(key)) this.drop(key);
    const movedUsers: string[] = [];
    for (const key of moved) {
      if (this.uses.get(key)!.compiled !== undefined) movedUsers.push(...this.slots.usersOf(key));
      this.stale.add(key);
    }
    for (const key of this.stale) {
      const use = this.uses.get(key)!;
      const old = use.compiled;
      use.compiled = this.compile(key, use);
      this.retain(key, use.compiled);
      if (old !== undefined) this.gone.push([key, old]);
    }
    this.stale.clear();
    // After what comes, so that what both share stays as it is.
    for (const [key, compiled] of this.gone) {
      this.release(compiled);
      this.forget(key, compiled.ids, this.uses.get(key)?.compiled?.ids ?? NO_IDS);
    }
    this.gone.length = 0;
    this.publish();
    return movedUsers;
  }

  private drop(key: string): void {
    const { compiled } = this.uses.get(key)!;
    this.uses.delete(key);
    this.stale.delete(key);
    if (compiled !== undefined) this.gone.push([key, compiled]);
  }

  /** The chain of a host endpoint's list, by its key. */
  headOfHost(key: string): string {
    return `list-${digest(key)}`;
  }

  chainsOf({ ingress, egress }: DesiredWorkload): WorkloadChains {
    return {
      ingress: `list-${this.slots.of(keyOf(ingress, "ingress"))}`,
      egress: `list-${this.slots.of(keyOf(egress, "egress"))}`,
    };
  }

  *notes(): Iterable<string> {
    for (const { list, compiled } of this.uses.values()) {
      for (const note of compiled!.notes) yield `policy list ${list.id}: ${note}`;
    }
  }

  counters(list: PolicyList): ReadonlyMap<string, readonly Cause[]> | undefined {
    let found: Map<string, readonly Cause[]> | undefined;
    for (const use of this.uses.values()) {
      if (use.list.id !== list.id || use.compiled === undefined) continue;
      found ??= new Map();
      for (const [key, causes] of use.compiled.counts) found.set(key, causes);
      for (const [key, causes] of use.compiled.hits) found.set(key, causes);
    }
    return found;
  }

  retainAddressSets(uses: Compiled["addressSets"]): void {
    this.addressSets.retain(uses);
  }

  releaseAddressSets(uses: Compiled["addressSets"]): void {
    this.addressSets.release(uses);
  }

  // ------------------------------------------------------------------------------------------------------------ compiled

  private compile(key: string, { list, direction, endings }: ListUse): Compiled {
    return compileList(list, this.hostUsers.has(key) ? digest(key) : this.slots.of(key), {
      endings,
      direction,
      shape: this.options.shape ?? "flat",
      logGroup: this.options.logGroup,
      form: (family, ids, nets) => this.addressSets.form(family, ids, nets),
      sizeOf: (family, id) => this.addressSets.sizeOf(family, id),
      hasMembers: (family, id) => this.addressSets.hasMembers(family, id),
    });
  }

  /** Whether what it was compiled for still holds of the set. */
  private stands(compiled: Compiled, id: SetId): boolean {
    for (const family of [4, 6] as const) {
      const size = compiled.sizes.get(`${family}${id}`);
      if (size !== undefined && size !== this.addressSets.sizeOf(family, id)) return false;
      const isAbsent = compiled.absent.includes(family);
      const has = this.addressSets.hasMembers(family, id);
      if (isAbsent && has) return false;
      if (!isAbsent && !has && ![...compiled.ids].some((other) => this.addressSets.hasMembers(family, other))) {
        return false;
      }
    }
    for (const { family, ids, nets, form } of compiled.addressSets.values()) {
      if (!ids.includes(id)) continue;
      const now = this.addressSets.form(family, ids, nets);
      if (form.interval !== now.interval || form.capacity !== now.capacity) return false;
    }
    return true;
  }

  private retain(key: string, compiled: Compiled): void {
    for (const [name, chain] of compiled.chains) this.chains.retain(name, chain);
    for (const [name, set] of compiled.sets) {
      this.listSets.retain(name, set);
      this.rendered.set(name, set);
    }
    this.addressSets.retain(compiled.addressSets);
    this.pools.retain(compiled.blocks);
    for (const [element, causes] of compiled.hits) this.hits.retain(element, commentOf(causes));
    for (const [element, causes] of compiled.counts) this.counts.retain(element, commentOf(causes));
    for (const id of compiled.ids) {
      const keys = this.listsOf.get(id);
      if (keys === undefined) this.listsOf.set(id, new Set([key]));
      else keys.add(key);
    }
  }

  private release(compiled: Compiled): void {
    for (const name of compiled.chains.keys()) this.chains.release(name);
    for (const name of compiled.sets.keys()) if (this.listSets.release(name)) this.rendered.delete(name);
    this.addressSets.release(compiled.addressSets);
    this.pools.release(compiled.blocks);
    for (const element of compiled.hits.keys()) this.hits.release(element);
    for (const element of compiled.counts.keys()) this.counts.release(element);
  }

  /** The list depends on the sets `before` no more, but for those of `now`. */
  private forget(key: string, before: ReadonlySet<SetId>, now: ReadonlySet<SetId>): void {
    for (const id of before) {
      if (now.has(id)) continue;
      const keys = this.listsOf.get(id)!;
      keys.delete(key);
      if (keys.size > 0) continue;
      this.listsOf.delete(id);
      this.addressSets.forget(id);
    }
  }

  private publish(): void {
    this.addressSets.refresh(this.touched);
    for (const change of this.addressSets.changes()) {
      if (change.after === undefined) this.rendered.delete(change.key);
      else this.rendered.set(change.key, change.after);
    }
    for (const [name, set] of this.pools.sets(this.sets!)) this.rendered.set(name, set);
    const counted = (fields: readonly KeyField[], comments: SharedEntries<string>): NftSet => ({
      fields,
      interval: false,
      map: false,
      counted: true,
      elements: new TrieElements(comments.finish()),
    });
    this.rendered.set("hits", counted([POOL_KEY, "inet_proto", "inet_service"], this.hits));
    this.rendered.set("counts", counted([POOL_KEY], this.counts));
  }
}

const NO_IDS: ReadonlySet<SetId> = new Set();

/** What is logged depends on the direction. */
const keyOf = (list: PolicyList, direction: Direction): string => `${direction} ${list.id}`;
