/** The calculation: changes of the world in, the state that this node should have out. Pure, incremental, without failure. */
import type {
  AddressSet,
  DesiredHostEndpoint,
  DesiredState,
  DesiredWorkload,
  Failsafe,
  Masquerade,
  RouteState,
  SetId,
} from "../model/desired.ts";
import { persistentMap } from "../model/persistent_map.ts";
import type { PersistentMap } from "../model/persistent_map.ts";
import type { Problem } from "../model/resource.ts";
import type { ServiceState } from "../model/services.ts";
import type { HostEndpointObject, ServiceBackendsObject, WorkloadObject, WorldChange } from "../model/world.ts";
import { AddressSets } from "./address_sets.ts";
import { Endpoints } from "./endpoints.ts";
import type { EndpointKind, EndpointView } from "./endpoints.ts";
import { NO_FAILSAFE } from "./failsafe.ts";
import { interfacesOf, sameInterfaces } from "./host_endpoints.ts";
import { LabelClasses, namespaceSource, profileSource, serviceAccountSource } from "./label_class.ts";
import { LocalPolicies } from "./local_policies.ts";
import type { LocalClass } from "./local_policies.ts";
import { masqueradeOf, Routes, sameMasquerade } from "./routes.ts";
import { Services } from "./services.ts";
import type { ServicesOptions } from "./services.ts";
import { SetMap } from "./set_map.ts";
import { WorldStore } from "./store.ts";
import type { ObjectOf, WorldKind } from "./store.ts";

export type { EndpointView } from "./endpoints.ts";
export { DEFAULT_FAILSAFE } from "./failsafe.ts";

export interface CalcOptions {
  /** Name of the node this runs on. */
  readonly node: string;
  /** Ports that host endpoints keep open. */
  readonly failsafe: Failsafe;
  /** Absent: services are somebody else's. */
  readonly services?: ServicesOptions;
}

export interface CalcResult {
  readonly desired: DesiredState;
  readonly routes: RouteState;
}

/** What the calculation has done since the beginning; for metrics, and for tests of "work proportional to the change". */
export interface CalcWork {
  /** Selectors tried against label classes. */
  readonly evaluations: number;
  /** Endpoints looked at because a label was asked for that nobody asked for before, or nobody does any more. */
  readonly regrouped: number;
  /** Members added to and removed from sets. */
  readonly memberChanges: number;
  /** Directions of policies and profiles compiled. */
  readonly compiled: number;
  /** Policy lists put together. */
  readonly lists: number;
  /** Frontends of services put together. */
  readonly frontends: number;
}

export interface Calc {
  /** Takes changes in; the same object as before where they change nothing. Never throws. */
  step(changes: readonly WorldChange[]): CalcResult;
  /** The latest result; empty with generation 0 before the first step. */
  readonly current: CalcResult;
  readonly work: CalcWork;
  /** Entries in all its tables: 0 for an empty world, whatever there was before. For metrics and for finding leaks. */
  readonly held: number;
  /** Ids of the local workloads and host endpoints that a policy (by its id) applies to, sorted. */
  selectedBy(policyId: string): readonly string[];
  /**
   * What is not wrong in itself but does not fit together: policies in tiers that nobody has described, services that want the
   * same address and port.
   */
  problems(): readonly Problem[];
  /** The object that counts for (kind, id): of policies also what is for people alone, the names and annotations of rules. */
  object<K extends WorldKind>(kind: K, id: string): ObjectOf<K> | undefined;
  /** The world as it was told, origin by origin; not to be walked across a step. */
  world(): IterableIterator<WorldChange>;
  /** Everything that has labels and addresses; not to be walked across a step. */
  endpoints(): IterableIterator<EndpointView>;
}

export function createCalc(options: CalcOptions): Calc {
  return new Graph(options);
}

class Graph implements Calc {
  readonly #node: string;
  readonly #failsafe: Failsafe;
  readonly #store = new WorldStore();
  readonly #sets = new AddressSets((labels, where, sign) => this.#classes.asked(labels, where, sign));
  readonly #local = new LocalPolicies(this.#store, this.#sets);
  readonly #classes = new LabelClasses(this.#store, this.#sets.peers);
  readonly #endpoints = new Endpoints(this.#store, this.#classes, this.#sets);
  readonly #routes: Routes;
  readonly #services: Services | undefined;
  /** Local endpoints and the class that their lists come from. */
  readonly #workloadClass = new Map<string, LocalClass>();
  readonly #hostClass = new Map<string, LocalClass>();
  /** Local workloads by interface name. */
  readonly #interfaceOf = new Map<string, string>();
  readonly #onInterface = new SetMap<string, string>();
  readonly #slices = new Map<string, ServiceBackendsObject>();
  #current: CalcResult;

  constructor({ node, failsafe, services }: CalcOptions) {
    this.#node = node;
    this.#failsafe = failsafe;
    this.#routes = new Routes(this.#store, node);
    this.#services = services && new Services(this.#store, node, services);
    this.#current = {
      desired: {
        generation: 0,
        sets: persistentMap(),
        workloads: persistentMap(),
        hostEndpoints: persistentMap(),
        failsafe: NO_FAILSAFE,
        masquerade: { sources: [], inside: [] },
        ...withServices(this.#services?.state),
      },
      routes: this.#routes.state,
    };
  }

  get current(): CalcResult {
    return this.#current;
  }

  get work(): CalcWork {
    return {
      evaluations: this.#sets.evaluations + this.#local.selections.evaluations,
      regrouped: this.#classes.regrouped,
      memberChanges: this.#sets.memberChanges,
      compiled: this.#local.compiled,
      lists: this.#local.lists.built,
      frontends: this.#services?.built ?? 0,
    };
  }

  get held(): number {
    const own = this.#workloadClass.size + this.#hostClass.size + this.#interfaceOf.size + this.#onInterface.size;
    const parts = [this.#store, this.#sets, this.#local, this.#classes, this.#endpoints, this.#routes];
    return parts.reduce((sum, { held }) => sum + held, own + this.#slices.size + (this.#services?.held ?? 0));
  }

  selectedBy(policyId: string): readonly string[] {
    return this.#local.selectedBy(policyId);
  }

  problems(): readonly Problem[] {
    return [...this.#local.problems(), ...this.#services?.problems() ?? []];
  }

  object<K extends WorldKind>(kind: K, id: string): ObjectOf<K> | undefined {
    return this.#store.get(kind, id);
  }

  world(): IterableIterator<WorldChange> {
    return this.#store.changes();
  }

  endpoints(): IterableIterator<EndpointView> {
    return this.#endpoints.views();
  }

  step(changes: readonly WorldChange[]): CalcResult {
    const touched = new Touched();
    for (const change of changes) this.#store.replace(change, touched.add);
    if (touched.nothing) return this.#current;

    // What is inherited, then what inherits it; then policies, which find all labels as they should be.
    this.#inheritAnew(touched);
    const { workloads, hosts } = this.#refreshEndpoints(touched);
    for (const id of touched.of("serviceBackends")) this.#refreshSlice(id);
    for (const id of touched.of("node")) this.#sets.setNode(id, this.#store.get("node", id));
    for (const name of touched.of("tier")) this.#local.tierChanged(name);
    for (const id of touched.of("policy")) this.#local.policyChanged(id);
    for (const name of touched.of("profile")) this.#local.profileChanged(name);
    let hostsChanged = hosts || touched.of("interface").size > 0;
    for (const localClass of this.#local.flush()) {
      if (localClass.isHost) hostsChanged = true;
      else for (const id of localClass.endpointIds) workloads.add(id);
    }

    const before = this.#current.desired;
    const masquerade = touched.of("pool").size > 0 ? masqueradeOf(this.#store) : before.masquerade;
    return this.#publish({
      sets: this.#sets.publish(),
      workloads: this.#desiredWorkloads(before.workloads, workloads),
      hostEndpoints: hostsChanged ? this.#desiredHosts(before.hostEndpoints) : before.hostEndpoints,
      masquerade,
      ...withServices(this.#services?.update(touched.of("service"), masquerade.inside)),
    }, this.#routes.update(touched.of("block"), touched.of("node")));
  }

  #inheritAnew(touched: Touched): void {
    const sources = [
      ...[...touched.of("namespace")].map(namespaceSource),
      ...[...touched.of("serviceAccount")].map(serviceAccountSource),
      ...[...touched.of("profile")].map(profileSource),
    ];
    for (const context of this.#classes.inheritAnew(sources)) {
      this.#local.relabel(context);
    }
  }

  /** Answers the local workloads to look at, and whether there is a local host endpoint to look at. */
  #refreshEndpoints(touched: Touched): { workloads: Set<string>; hosts: boolean } {
    const workloads = new Set(touched.of("workload")), pods = new Set(touched.of("pod"));
    this.#endpoints.join(workloads, pods);
    let hosts = false;
    for (const id of pods) this.#endpoints.refresh("pod", id);
    for (const id of touched.of("networkSet")) this.#endpoints.refresh("networkSet", id);
    for (const id of workloads) {
      this.#endpoints.refresh("workload", id);
      if (this.#settleInterface(id, workloads)) hosts = true;
    }
    for (const id of workloads) this.#settle(this.#workloadClass, "workload", id, this.#guarded(id) !== undefined);
    for (const id of touched.of("hostEndpoint")) {
      this.#endpoints.refresh("hostEndpoint", id);
      const isLocal = this.#store.get("hostEndpoint", id)?.node === this.#node;
      if (isLocal || this.#hostClass.has(id)) hosts = true;
      this.#settle(this.#hostClass, "hostEndpoint", id, isLocal);
    }
    return { workloads, hosts };
  }

  /** Keeps the policies told of which classes have endpoints here. */
  #settle(settled: Map<string, LocalClass>, kind: EndpointKind, id: string, isLocal: boolean): void {
    const before = settled.get(id);
    const endpoint = isLocal ? this.#endpoints.get(kind, id) : undefined;
    const context = endpoint?.labelClass.context, own = endpoint?.own;
    if (before?.context === context && before?.own === own) return;
    if (context !== undefined) settled.set(id, this.#local.addEndpoint(id, context, own!));
    else settled.delete(id);
    if (before !== undefined) this.#local.removeEndpoint(id, before);
  }

  /** Adds to `workloads` those that share an interface with it, before or now; answers whether a host endpoint does. */
  #settleInterface(id: string, workloads: Set<string>): boolean {
    const workload = this.#store.get("workload", id);
    const before = this.#interfaceOf.get(id);
    const after = workload?.node === this.#node && workload.interfaceName !== "" ? workload.interfaceName : undefined;
    if (before === after) return false;
    if (before !== undefined) {
      this.#interfaceOf.delete(id);
      this.#onInterface.delete(before, id);
      for (const other of this.#onInterface.get(before)) workloads.add(other);
    }
    if (after !== undefined) {
      this.#interfaceOf.set(id, after);
      for (const other of this.#onInterface.get(after)) workloads.add(other);
      this.#onInterface.add(after, id);
    }
    return [before, after].some((name) => name !== undefined && this.#isForHost(name));
  }

  /** Whether a local host endpoint would have the interface, were it not a workload's. */
  #isForHost(interfaceName: string): boolean {
    for (const id of this.#hostClass.keys()) {
      const host = this.#store.get("hostEndpoint", id);
      if (host?.interfaceName === interfaceName) return true;
      if (host === undefined || host.interfaceName !== undefined) continue;
      const held = this.#store.get("interface", interfaceName)?.addresses ?? [];
      if (held.some((address) => host.expectedAddresses.includes(address))) return true;
    }
    return false;
  }

  /** A workload of this node. An interface has one, that with the smallest id; without an interface there is nothing to guard. */
  #guarded(id: string): WorkloadObject | undefined {
    const interfaceName = this.#interfaceOf.get(id);
    if (interfaceName === undefined) return undefined;
    for (const other of this.#onInterface.get(interfaceName)) if (other < id) return undefined;
    return this.#store.get("workload", id);
  }

  #refreshSlice(id: string): void {
    const before = this.#slices.get(id), after = this.#store.get("serviceBackends", id);
    this.#sets.setBackends(id, before, after);
    this.#services?.setSlice(id, before, after);
    if (after === undefined) this.#slices.delete(id);
    else this.#slices.set(id, after);
  }

  #desiredWorkloads(
    before: PersistentMap<string, DesiredWorkload>,
    ids: Iterable<string>,
  ): PersistentMap<string, DesiredWorkload> {
    const workloads = before.edit();
    for (const id of ids) {
      const desired = this.#desiredWorkload(id);
      if (desired === undefined) workloads.delete(id);
      else if (!sameWorkload(desired, workloads.get(id))) workloads.set(id, desired);
    }
    return workloads.finish();
  }

  #desiredWorkload(id: string): DesiredWorkload | undefined {
    const workload = this.#guarded(id);
    if (workload === undefined) return undefined;
    const { interfaceName, addresses, mac } = workload;
    const { ingress, egress } = this.#workloadClass.get(id)!.lists!;
    return { id, interfaceName, addresses, ...mac === undefined ? {} : { mac }, ingress, egress };
  }

  #desiredHosts(before: PersistentMap<string, DesiredHostEndpoint>): PersistentMap<string, DesiredHostEndpoint> {
    const hosts: HostEndpointObject[] = [...this.#hostClass.keys()].map((id) => this.#store.get("hostEndpoint", id)!);
    const after = before.edit();
    for (const id of before.keys()) if (!this.#hostClass.has(id)) after.delete(id);
    for (const [id, interfaces] of interfacesOf(hosts, this.#store, (name) => this.#onInterface.get(name).size > 0)) {
      const desired = { id, interfaces, ...this.#hostClass.get(id)!.lists! };
      if (!sameHost(desired, before.get(id))) after.set(id, desired);
    }
    return after.finish();
  }

  #publish(now: Omit<DesiredState, "generation" | "failsafe">, routes: RouteState): CalcResult {
    const { desired: before, routes: routesBefore } = this.#current;
    const failsafe = now.hostEndpoints.size > 0 ? this.#failsafe : NO_FAILSAFE;
    const masquerade: Masquerade = sameMasquerade(now.masquerade, before.masquerade)
      ? before.masquerade
      : now.masquerade;
    const sets: PersistentMap<SetId, AddressSet> = now.sets;
    const same = sets === before.sets && now.workloads === before.workloads &&
      now.hostEndpoints === before.hostEndpoints && masquerade === before.masquerade && failsafe === before.failsafe &&
      now.services === before.services;
    if (same && routes === routesBefore) return this.#current;
    const desired = same ? before : { ...now, generation: before.generation + 1, failsafe, masquerade };
    return this.#current = { desired, routes };
  }
}

/** The (kind, id) pairs that a step is about. */
class Touched {
  readonly #ids = new Map<WorldKind, Set<string>>();

  readonly add = (kind: WorldKind, id: string): void => {
    const ids = this.#ids.get(kind);
    if (ids === undefined) this.#ids.set(kind, new Set([id]));
    else ids.add(id);
  };
  of(kind: WorldKind): ReadonlySet<string> {
    return this.#ids.get(kind) ?? NONE;
  }
  get nothing(): boolean {
    return this.#ids.size === 0;
  }
}

const NONE: ReadonlySet<string> = new Set();

const withServices = (services: ServiceState | undefined): Pick<DesiredState, "services"> =>
  services === undefined ? {} : { services };

function sameWorkload(a: DesiredWorkload, b: DesiredWorkload | undefined): boolean {
  return b !== undefined && a.interfaceName === b.interfaceName && a.mac === b.mac && a.ingress === b.ingress &&
    a.egress === b.egress && a.addresses.length === b.addresses.length &&
    a.addresses.every((address, i) => address === b.addresses[i]);
}

function sameHost(a: DesiredHostEndpoint, b: DesiredHostEndpoint | undefined): boolean {
  return b !== undefined && sameInterfaces(a.interfaces, b.interfaces) && a.ingress === b.ingress &&
    a.egress === b.egress && a.forwardIngress === b.forwardIngress && a.forwardEgress === b.forwardEgress &&
    a.preDnat === b.preDnat && a.untrackedIngress === b.untrackedIngress && a.untrackedEgress === b.untrackedEgress;
}
