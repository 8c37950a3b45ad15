/**
 * `DesiredState` as the table `inet manx`. Pure: equal states give equal rulesets, whatever came before. A renderer keeps
 * what the last state rendered to and follows what changed since, so that a changed pod costs work for that pod only.
 */
import type { Cidr, Family } from "../../src/model/address.ts";
import type { AddressSet, DesiredState, DesiredWorkload, PolicyList, SetId } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import { type MapEditor, persistentMap } from "../../src/model/persistent_map.ts";
import {
  type AddressForm,
  addressForm,
  countLengths,
  hasFamily,
  isHost,
  type LengthCounts,
  NetElements,
  PortElements,
  shortLengths,
} from "./address_elements.ts";
import { BaseChains, INTERFACE_NAME_MAX, type RenderOptions } from "./base_chains.ts";
import { type AddressSetUse, type Compiled, compileList, DROP, type Endings, FILTER_ENDINGS, goto } from "./compile.ts";
import {
  type ElementValue,
  interfaceKey,
  type KeyField,
  type NftChain,
  type NftSet,
  type Ruleset,
  sameRules,
  TrieElements,
} from "./ruleset.ts";

export interface Rendered {
  readonly ruleset: Ruleset;
  /** What of the state could not be rendered, or not in its best form; one line each. */
  readonly problems: readonly string[];
}

/** The sets that lead into the workloads' chains, by what their elements are. */
const DISPATCH = {
  workloads: { fields: ["ifname"], map: false },
  "from-workload": { fields: ["ifname"], map: true },
  "to-workload": { fields: ["ifname"], map: true },
  self: { fields: ["ifname", "ifname"], map: false },
  source4: { fields: ["ifname", "ipv4_addr"], map: false },
  source6: { fields: ["ifname", "ipv6_addr"], map: false },
} as const satisfies Readonly<Record<string, { readonly fields: readonly KeyField[]; readonly map: boolean }>>;
type DispatchName = keyof typeof DISPATCH;
const DISPATCH_NAMES = Object.keys(DISPATCH) as DispatchName[];

/** A list that something leads to. */
interface ListUse {
  readonly list: PolicyList;
  readonly endings: Endings;
  compiled: Compiled;
  users: number;
}
interface AddressSetUsers {
  readonly use: AddressSetUse;
  users: number;
}

const NO_SETS: DesiredState["sets"] = persistentMap();
const NO_WORKLOADS: DesiredState["workloads"] = persistentMap();
const NO_MEMBERS: AddressSet["members"] = persistentMap();
const emptySet = (id: SetId): AddressSet => ({ id, kind: "net", title: "", members: NO_MEMBERS });

/** A stateful shortcut to a pure function: what it gives does not depend on what it was given before. */
export class Renderer {
  private state: DesiredState | undefined;
  private chains: MapEditor<string, NftChain> = persistentMap<string, NftChain>().edit();
  private sets: MapEditor<string, NftSet> = persistentMap<string, NftSet>().edit();
  private readonly dispatch = new Map<DispatchName, MapEditor<string, ElementValue>>(
    DISPATCH_NAMES.map((name) => [name, persistentMap<string, ElementValue>().edit()]),
  );
  /** By id and endings. */
  private readonly lists = new Map<string, ListUse>();
  /** How many compiled lists, base chains included, have the chain or fixed set. */
  private readonly chainUsers = new Map<string, number>();
  private readonly setUsers = new Map<string, number>();
  private readonly addressSets = new Map<string, AddressSetUsers>();
  /** Names of address sets, and keys of lists, that an address set of the state has a part in. */
  private readonly addressSetsOf = new Map<SetId, Set<string>>();
  private readonly listsOf = new Map<SetId, Set<string>>();
  private readonly counts = new Map<SetId, LengthCounts>();
  private readonly claims = new Map<string, Map<string, DesiredWorkload>>();
  private readonly unusable = new Map<string, string>();
  private base: BaseChains | undefined;
  private baseLists: readonly string[] = [];

  constructor(readonly options: RenderOptions) {}

  render(state: DesiredState): Rendered {
    const before = this.state;
    this.state = state;
    if (before !== state) {
      this.followSets(before?.sets ?? NO_SETS, state);
      this.followWorkloads(before?.workloads ?? NO_WORKLOADS, state);
      this.followBase(before, state);
      for (const [id, counts] of this.counts) if (counts.packed) this.counts.set(id, { ...counts, packed: undefined });
    }
    return { ruleset: { sets: this.sets.finish(), chains: this.chains.finish() }, problems: this.problems() };
  }

  private problems(): readonly string[] {
    const problems = new Set([...this.unusable.values(), ...(this.base?.problems ?? [])]);
    for (const [name, claims] of this.claims) {
      for (const id of [...claims.keys()].sort().slice(1)) {
        problems.add(`workload ${id}: interface ${name} is another workload's too; its packets are dropped`);
      }
    }
    for (const { list, compiled } of this.lists.values()) {
      for (const note of compiled.notes) problems.add(`policy list ${list.id}: ${note}`);
    }
    return [...problems].sort();
  }

  // ----------------------------------------------------------------------------------------------------- address sets

  private followSets(before: DesiredState["sets"], state: DesiredState): void {
    const touched = new Set<SetId>();
    for (const { key } of state.sets.changesSince(before)) if (this.addressSetsOf.has(key)) touched.add(key);
    const names = new Set<string>(), lists = new Set<string>();
    for (const id of touched) {
      this.counts.set(id, countLengths(this.setOf(id), this.counts.get(id)));
      for (const name of this.addressSetsOf.get(id)!) names.add(name);
      for (const key of this.listsOf.get(id) ?? []) lists.add(key);
    }
    for (const key of lists) {
      const use = this.lists.get(key)!;
      if (this.stands(use.compiled)) continue;
      const old = use.compiled;
      use.compiled = this.compile(key, use.list, use.endings);
      this.retain(key, use.compiled);
      this.release(key, old);
    }
    for (const name of names) {
      const found = this.addressSets.get(name);
      if (found !== undefined) this.sets.set(name, this.renderAddressSet(found.use));
    }
  }

  private setOf(id: SetId): AddressSet {
    return this.state!.sets.get(id) ?? emptySet(id);
  }

  private countsOf(id: SetId): LengthCounts {
    let counts = this.counts.get(id);
    if (counts === undefined) this.counts.set(id, counts = countLengths(this.setOf(id), undefined));
    return counts;
  }

  private formOf(family: Family, ids: readonly SetId[], nets: readonly Cidr[]): AddressForm {
    return addressForm(family, ids.map((id) => this.countsOf(id)), nets);
  }

  /** Whether the sets it looks up still have the forms it was compiled for. */
  private stands(compiled: Compiled): boolean {
    for (const use of compiled.addressSets.values()) {
      if (use.kind !== "net" || use.ids.length === 0) continue;
      const form = this.formOf(use.family, use.ids, use.nets);
      if (form.interval !== use.form.interval || form.capacity !== use.form.capacity) return false;
    }
    return true;
  }

  private renderAddressSet(use: AddressSetUse): NftSet {
    if (use.kind === "port") {
      const elements = new PortElements(use.family, this.setOf(use.id).members);
      return { fields: [`ipv${use.family}_addr`, "inet_proto", "inet_service"], interval: false, map: false, elements };
    }
    const sources = use.ids.map((id) => this.setOf(id).members);
    const filled = sources.filter((_, i) => hasFamily(this.countsOf(use.ids[i]!), use.family));
    const lengths = new Set(use.ids.flatMap((id) => shortLengths(this.countsOf(id), use.family)));
    for (const net of use.nets) if (!isHost(net)) lengths.add(net.charCodeAt(net.length - 1));
    const sorted = [...lengths].sort((a, b) => a - b);
    const alone = sources.length === 1 && use.nets.length === 0 && !use.form.interval;
    const packed = alone ? this.countsOf(use.ids[0]!).packed?.[use.family] : undefined;
    const elements = new NetElements(use.family, sources, filled, use.nets, sorted, use.form.interval, packed);
    return { fields: [`ipv${use.family}_addr`], ...use.form, map: false, elements };
  }

  private retainAddressSet(name: string, use: AddressSetUse): void {
    const found = this.addressSets.get(name);
    if (found !== undefined) {
      found.users++;
      return;
    }
    this.addressSets.set(name, { use, users: 1 });
    for (const id of idsOf(use)) add(this.addressSetsOf, id, name);
    this.sets.set(name, this.renderAddressSet(use));
  }

  private releaseAddressSet(name: string): void {
    const found = this.addressSets.get(name)!;
    if (--found.users > 0) return;
    this.addressSets.delete(name);
    this.sets.delete(name);
    for (const id of idsOf(found.use)) {
      remove(this.addressSetsOf, id, name);
      if (!this.addressSetsOf.has(id)) this.counts.delete(id);
    }
  }

  // ------------------------------------------------------------------------------------------------------------ lists

  /** The key of the list; give it to `leave` when nothing leads there any more. */
  private enter(list: PolicyList, endings: Endings): string {
    const key = endings === FILTER_ENDINGS ? list.id : `${list.id}|${JSON.stringify(endings)}`;
    const found = this.lists.get(key);
    if (found !== undefined) {
      found.users++;
      return key;
    }
    const compiled = this.compile(key, list, endings);
    this.lists.set(key, { list, endings, compiled, users: 1 });
    this.retain(key, compiled);
    return key;
  }

  private leave(key: string): void {
    const found = this.lists.get(key)!;
    if (--found.users > 0) return;
    this.lists.delete(key);
    this.release(key, found.compiled);
  }

  private compile(key: string, list: PolicyList, endings: Endings): Compiled {
    const form = (family: Family, ids: readonly SetId[], nets: readonly Cidr[]) => this.formOf(family, ids, nets);
    return compileList(list, headName(key), { endings, form, logGroup: this.options.logGroup });
  }

  private retain(key: string, compiled: Compiled): void {
    for (const [name, chain] of compiled.chains) {
      const users = this.chainUsers.get(name) ?? 0;
      this.chainUsers.set(name, users + 1);
      // Others are named by their content.
      if (users === 0 || name === compiled.head) this.chains.set(name, chain);
    }
    for (const [name, set] of compiled.fixedSets) {
      const users = this.setUsers.get(name) ?? 0;
      this.setUsers.set(name, users + 1);
      if (users === 0) this.sets.set(name, set);
    }
    for (const [name, use] of compiled.addressSets) {
      this.retainAddressSet(name, use);
      for (const id of idsOf(use)) add(this.listsOf, id, key);
    }
  }

  /** `key` may be retained again in another form: what it then still uses stays its own. */
  private release(key: string, compiled: Compiled): void {
    const current = this.lists.get(key)?.compiled;
    const still = new Set([...(current?.addressSets.values() ?? [])].flatMap(idsOf));
    for (const name of compiled.chains.keys()) this.dropOne(this.chainUsers, this.chains, name);
    for (const name of compiled.fixedSets.keys()) this.dropOne(this.setUsers, this.sets, name);
    for (const [name, use] of compiled.addressSets) {
      for (const id of idsOf(use)) if (!still.has(id)) remove(this.listsOf, id, key);
      this.releaseAddressSet(name);
    }
  }

  private dropOne<V>(users: Map<string, number>, from: MapEditor<string, V>, name: string): void {
    const left = users.get(name)! - 1;
    if (left > 0) users.set(name, left);
    else {
      users.delete(name);
      from.delete(name);
    }
  }

  // -------------------------------------------------------------------------------------------------------- workloads

  private followWorkloads(before: DesiredState["workloads"], state: DesiredState): void {
    const changed = new Set<string>();
    const left: string[] = [];
    for (const change of state.workloads.changesSince(before)) {
      if (change.before !== undefined) {
        this.unusable.delete(change.key);
        const name = change.before.interfaceName;
        this.claims.get(name)?.delete(change.key);
        changed.add(name);
        // What it leads to goes after what comes is there, so that what both share is not made twice.
        left.push(change.before.egress.id, change.before.ingress.id);
      }
      if (change.after !== undefined) {
        const workload = change.after;
        const name = workload.interfaceName;
        this.enter(workload.egress, FILTER_ENDINGS);
        this.enter(workload.ingress, FILTER_ENDINGS);
        if (name === "" || name.length > INTERFACE_NAME_MAX) {
          const wanted = `wanted a name of 1 to ${INTERFACE_NAME_MAX} bytes`;
          this.unusable.set(change.key, `workload ${workload.id}: found interface ${JSON.stringify(name)}, ${wanted}`);
          continue;
        }
        const claims = this.claims.get(name) ?? new Map<string, DesiredWorkload>();
        this.claims.set(name, claims.set(change.key, workload));
        changed.add(name);
      }
    }
    for (const key of left) this.leave(key);
    for (const name of changed) this.dispatchTo(name);
    for (const name of DISPATCH_NAMES) {
      const elements = this.dispatch.get(name)!.finish();
      const set = this.sets.get(name);
      if (set !== undefined && (set.elements as TrieElements).entries === elements) continue;
      this.sets.set(name, { ...DISPATCH[name], interval: false, elements: new TrieElements(elements) });
    }
  }

  /** Brings the entries of one interface to who claims it: one workload, several (which cuts it off), or none. */
  private dispatchTo(name: string): void {
    const key = interfaceKey(name);
    const put = (set: DispatchName, element: string, value: ElementValue) =>
      this.dispatch.get(set)!.set(element, value);
    for (const set of DISPATCH_NAMES) {
      for (const element of this.entriesOf.get(`${set} ${name}`) ?? []) this.dispatch.get(set)!.delete(element);
    }
    for (const set of DISPATCH_NAMES) this.entriesOf.delete(`${set} ${name}`);
    const claims = this.claims.get(name);
    if (claims === undefined || claims.size === 0) {
      this.claims.delete(name);
      return;
    }
    const enter = (set: DispatchName, element: string, value: ElementValue) => {
      put(set, element, value);
      const entries = this.entriesOf.get(`${set} ${name}`) ?? [];
      this.entriesOf.set(`${set} ${name}`, [...entries, element]);
    };
    enter("workloads", key, true);
    if (claims.size > 1) {
      enter("from-workload", key, DROP);
      enter("to-workload", key, DROP);
      return;
    }
    const [workload] = claims.values();
    enter("from-workload", key, goto(headName(workload!.egress.id)));
    enter("to-workload", key, goto(headName(workload!.ingress.id)));
    enter("self", key + key, true);
    for (const address of workload!.addresses) enter(address.length === 4 ? "source4" : "source6", key + address, true);
  }
  /** Elements of a dispatch set, by its name and the interface's. */
  private readonly entriesOf = new Map<string, readonly string[]>();

  // ------------------------------------------------------------------------------------------------------ base chains

  private followBase(before: DesiredState | undefined, state: DesiredState): void {
    if (
      this.base !== undefined && before?.hostEndpoints === state.hostEndpoints && before.failsafe === state.failsafe &&
      before.masquerade === state.masquerade
    ) return;
    const lists: string[] = [];
    const base = new BaseChains(state, this.options, (list, endings) => {
      const key = this.enter(list, endings);
      lists.push(key);
      return headName(key);
    });
    for (const [name, chain] of base.chains) {
      this.chainUsers.set(name, (this.chainUsers.get(name) ?? 0) + 1);
      const there = this.chains.get(name);
      if (there === undefined || !sameRules(there.rules, chain.rules)) this.chains.set(name, chain);
    }
    for (const [name, set] of base.sets) {
      this.setUsers.set(name, (this.setUsers.get(name) ?? 0) + 1);
      this.sets.set(name, set);
    }
    for (const [name, use] of base.addressSets) this.retainAddressSet(name, use);
    const old = this.base;
    const oldLists = this.baseLists;
    this.base = base;
    this.baseLists = lists;
    for (const name of old?.chains.keys() ?? []) this.dropOne(this.chainUsers, this.chains, name);
    for (const name of old?.sets.keys() ?? []) this.dropOne(this.setUsers, this.sets, name);
    for (const name of old?.addressSets.keys() ?? []) this.releaseAddressSet(name);
    for (const key of oldLists) this.leave(key);
  }
}

/** The chain of a list, by its key; readable where the id is a plain word. */
const headName = (key: string): string => /^[A-Za-z0-9_-]{1,64}$/.test(key) ? `list-${key}` : `list-${digest(key)}`;

const idsOf = (use: AddressSetUse): readonly SetId[] => use.kind === "net" ? use.ids : [use.id];

function add<K>(index: Map<K, Set<string>>, key: K, value: string): void {
  const found = index.get(key);
  if (found === undefined) index.set(key, new Set([value]));
  else found.add(value);
}

function remove<K>(index: Map<K, Set<string>>, key: K, value: string): void {
  const found = index.get(key);
  if (found?.delete(value) && found.size === 0) index.delete(key);
}
