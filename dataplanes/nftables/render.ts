/**
 * `DesiredState` as the table `inet manx`. Pure: equal states give equal rulesets, whatever came before. A renderer keeps
 * what the last state rendered to and follows what changed since, so that a changed pod costs work for that pod only.
 */
import type { DesiredState, DesiredWorkload, PolicyList } from "../../src/model/desired.ts";
import { type MapEditor, persistentMap } from "../../src/model/persistent_map.ts";
import type { Direction } from "../../src/model/rule.ts";
import { BaseChains, type RenderOptions } from "./base_chains.ts";
import { Dispatch } from "./dispatch.ts";
import type { Cause } from "../../src/model/flat_list.ts";
import { Lists } from "./lists.ts";
import type { Endings } from "./output.ts";
import { INTERFACE_NAME_MAX } from "./packet_tests.ts";
import type { NftSet, Ruleset } from "./ruleset.ts";
import { ServiceRules } from "./services.ts";
import { Chains } from "./shared_entries.ts";

export interface Rendered {
  readonly ruleset: Ruleset;
  /** What of the state could not be rendered, or not in its best form; one line each. */
  readonly problems: readonly string[];
}

const NO_WORKLOADS: DesiredState["workloads"] = persistentMap();

/** A stateful shortcut to a pure function: what it gives does not depend on what it was given before. */
export class Renderer {
  private state: DesiredState | undefined;
  private readonly lists: Lists;
  private readonly dispatch = new Dispatch();
  private readonly claims = new Map<string, Map<string, DesiredWorkload>>();
  private readonly services: ServiceRules | undefined;
  private readonly unusable = new Map<string, string>();
  private base: BaseChains | undefined;
  private baseLists: readonly string[] = [];
  private readonly chains = new Chains();
  private readonly sets: MapEditor<string, NftSet> = persistentMap<string, NftSet>().edit();

  constructor(readonly options: RenderOptions) {
    this.lists = new Lists(options, this.chains, this.sets);
    if (options.services !== undefined) this.services = new ServiceRules(options.services.masqueradeMark, this.chains);
  }

  render(state: DesiredState): Rendered {
    const before = this.state;
    this.state = state;
    if (before !== state) {
      this.lists.followSets(state.sets);
      const changed = this.followWorkloads(before?.workloads ?? NO_WORKLOADS, state);
      this.followBase(before, state);
      this.settle(changed);
      this.services?.follow(state.services, this.sets);
    }
    return { ruleset: { sets: this.sets.finish(), chains: this.chains.finish() }, problems: this.problems() };
  }

  /** What the counters of a list count, by their elements' keys; undefined where the list is not in the last state rendered. */
  counters(list: PolicyList): ReadonlyMap<string, readonly Cause[]> | undefined {
    return this.lists.counters(list);
  }

  private problems(): readonly string[] {
    const ofServices = this.services?.problems.values() ?? [];
    const problems = new Set([
      ...this.unusable.values(),
      ...(this.base?.problems ?? []),
      ...this.lists.notes(),
      ...ofServices,
    ]);
    for (const [name, claims] of this.claims) {
      if (claims.size < 2) continue;
      for (const id of [...claims.keys()].sort().slice(1)) {
        problems.add(`workload ${id}: interface ${name} is another workload's too; its packets are dropped`);
      }
    }
    return [...problems].sort();
  }

  /** Compiles what came, lets go what went, and points the interfaces there. */
  private settle(changed: Set<string>): void {
    for (const id of this.lists.settle()) changed.add(this.state!.workloads.get(id)!.interfaceName);
    for (const name of changed) {
      const claims = this.claims.get(name);
      this.dispatch.set(name, claims?.values() ?? [], (one) => this.lists.chainsOf(one));
      if (claims?.size === 0) this.claims.delete(name);
    }
    for (const [name, set] of this.dispatch.sets()) this.sets.set(name, set);
  }

  /** Answers the interfaces to look at. */
  private followWorkloads(before: DesiredState["workloads"], state: DesiredState): Set<string> {
    const changed = new Set<string>();
    for (const change of state.workloads.changesSince(before)) {
      if (change.before !== undefined) {
        this.unusable.delete(change.key);
        const name = change.before.interfaceName;
        this.claims.get(name)?.delete(change.key);
        changed.add(name);
        this.lists.leave(change.before, "ingress");
        this.lists.leave(change.before, "egress");
      }
      if (change.after !== undefined) {
        const workload = change.after;
        const name = workload.interfaceName;
        this.lists.enter(workload, "ingress");
        this.lists.enter(workload, "egress");
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
    return changed;
  }

  private followBase(before: DesiredState | undefined, state: DesiredState): void {
    if (
      this.base !== undefined && before?.hostEndpoints === state.hostEndpoints && before.failsafe === state.failsafe &&
      before.masquerade === state.masquerade
    ) return;
    const lists: string[] = [];
    const base = new BaseChains(state, this.options, (list: PolicyList, direction: Direction, endings: Endings) => {
      const key = this.lists.enterHost(list, direction, endings);
      lists.push(key);
      return this.lists.headOfHost(key);
    });
    for (const [name, chain] of base.chains) this.chains.retain(name, chain);
    for (const [name, set] of base.sets) this.sets.set(name, set);
    this.lists.retainAddressSets(base.addressSets);
    const old = this.base;
    const oldLists = this.baseLists;
    this.base = base;
    this.baseLists = lists;
    for (const name of old?.chains.keys() ?? []) this.chains.release(name);
    for (const name of old?.sets.keys() ?? []) if (!base.sets.has(name)) this.sets.delete(name);
    if (old !== undefined) this.lists.releaseAddressSets(old.addressSets);
    for (const key of oldLists) this.lists.leaveHost(key);
  }
}
