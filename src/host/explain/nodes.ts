/**
 * The world as every node calculates it. One calculation, whose "node" is all of them: lists come from labels and policies,
 * not from where something runs, so only interfaces have to be kept apart by node.
 */
import { type Calc, createCalc, type EndpointView } from "../../calc/mod.ts";
import { type Address, cidrContains } from "../../model/address.ts";
import type { DesiredHostEndpoint, DesiredState, DesiredWorkload, Failsafe } from "../../model/desired.ts";
import { persistentMap } from "../../model/persistent_map.ts";
import type { PodObject, WorkloadObject, WorldChange, WorldObject } from "../../model/world.ts";

/** The one node of the calculation. No node is called so: it is no name of a resource. */
const EVERY_NODE = "*";
/** The link of another node that has the addresses of its Node object: what it is called is not known here. */
export const NODE_LINK = "?";
/** Changes in one step, between which others may run. */
const STEP_CHANGES = 500;

export interface NodesOptions {
  /** Whose links are known. */
  readonly node: string;
  readonly failsafe: Failsafe;
  /** Awaited between pieces of work, so that the rest of the daemon goes on. */
  readonly pause: () => Promise<void>;
}

/** Every node's desired state. */
export class Nodes {
  readonly calc: Calc;
  readonly #options: NodesOptions;
  /** Origins as they were told, untransformed: what a later change is held against. */
  readonly #told = new Map<string, readonly WorldObject[]>();
  /** How many workloads stand for a pod, by pod id. */
  readonly #standIns = new Map<string, number>();
  /** Origins of the pods, by pod id. */
  readonly #podOrigins = new Map<string, string>();
  /** The nodes of workloads and host endpoints, by id. */
  readonly #homes = new Map<string, string>();

  constructor(options: NodesOptions) {
    this.#options = options;
    this.calc = createCalc({ node: EVERY_NODE, failsafe: options.failsafe });
  }

  /** Takes changes in; the next view shares with the one before what has not changed. */
  async take(changes: readonly WorldChange[]): Promise<void> {
    const origins = new Set<string>();
    const retold = (podId: string) => {
      const origin = this.#podOrigins.get(podId);
      if (origin !== undefined) origins.add(origin);
    };
    const count = (object: WorldObject, sign: 1 | -1) => {
      const podId = object.kind === "workload" ? podOf(object) : undefined;
      if (podId === undefined) return;
      this.#standIns.set(podId, (this.#standIns.get(podId) ?? 0) + sign);
      retold(podId);
    };
    for (const { origin, objects } of changes) {
      origins.add(origin);
      for (const object of this.#told.get(origin) ?? []) count(object, -1);
      this.#told.set(origin, objects);
      for (const object of objects) {
        if (object.kind === "pod") this.#podOrigins.set(object.id, origin);
        count(object, 1);
      }
    }
    const all = [...origins];
    for (let at = 0; at < all.length; at += STEP_CHANGES) {
      this.calc.step(
        all.slice(at, at + STEP_CHANGES).map((origin) => ({
          origin,
          objects: (this.#told.get(origin) ?? []).flatMap((object) => this.#everywhere(object)),
        })),
      );
      await this.#options.pause();
    }
  }

  /** The world as it was told, with the labels that come of it. */
  get lookup(): Pick<Calc, "object" | "endpoints" | "world"> {
    return {
      object: (kind, id) => {
        const object = this.calc.object(kind, id);
        return (object === undefined ? undefined : this.#asTold(object)) as typeof object;
      },
      endpoints: () => this.#views(),
      world: () => this.#changes(),
    };
  }

  /** The states as they are now; later changes do not touch them. */
  view(): NodesView {
    return new NodesView(this.calc.current.desired, new Map(this.#homes), this.#options.failsafe);
  }

  *#changes(): IterableIterator<WorldChange> {
    for (const [origin, objects] of this.#told) yield { origin, objects };
  }

  *#views(): IterableIterator<EndpointView> {
    for (const view of this.calc.endpoints()) {
      yield view.kind === "workload" && view.id.startsWith(STAND_IN)
        ? { ...view, kind: "pod", id: view.id.slice(STAND_IN.length) }
        : view;
    }
  }

  #asTold(object: WorldObject): WorldObject {
    if (object.kind !== "workload" && object.kind !== "hostEndpoint") return object;
    const node = this.#homes.get(object.id)!;
    const { interfaceName } = object;
    return {
      ...object,
      node,
      ...interfaceName === undefined ? {} : { interfaceName: interfaceName.slice(node.length + 1) },
    };
  }

  #everywhere(object: WorldObject): readonly WorldObject[] {
    switch (object.kind) {
      case "workload":
        return [this.#at(object.node, object)];
      case "pod": {
        if (object.addresses.length === 0 || (this.#standIns.get(object.id) ?? 0) > 0) return [object];
        return [object, this.#at(object.node ?? "", standInFor(object))];
      }
      case "hostEndpoint": {
        const { node, interfaceName } = object;
        this.#homes.set(object.id, node);
        return [{
          ...object,
          node: EVERY_NODE,
          ...interfaceName === undefined ? {} : { interfaceName: `${node} ${interfaceName}` },
        }];
      }
      case "interface":
        return [{ ...object, id: `${this.#options.node} ${object.id}` }];
      case "node": {
        if (object.id === this.#options.node || object.addresses.length === 0) return [object];
        return [object, { kind: "interface", id: `${object.id} ${NODE_LINK}`, addresses: object.addresses }];
      }
      default:
        return [object];
    }
  }

  #at(node: string, workload: WorkloadObject): WorkloadObject {
    this.#homes.set(workload.id, node);
    return { ...workload, node: EVERY_NODE, interfaceName: `${node} ${workload.interfaceName}` };
  }
}

/** What every node has at one time. */
export class NodesView {
  readonly #byNode = new Map<string, { readonly workloads: string[]; readonly hostEndpoints: string[] }>();
  readonly #states = new Map<string, DesiredState>();

  constructor(
    /** Of all nodes; interfaces are named `NODE NAME`. */
    readonly desired: DesiredState,
    readonly homes: ReadonlyMap<string, string>,
    readonly failsafe: Failsafe,
  ) {
    const idsOf = (node: string) => {
      let ids = this.#byNode.get(node);
      if (ids === undefined) this.#byNode.set(node, ids = { workloads: [], hostEndpoints: [] });
      return ids;
    };
    for (const id of desired.workloads.keys()) idsOf(homes.get(id)!).workloads.push(id);
    for (const id of desired.hostEndpoints.keys()) idsOf(homes.get(id)!).hostEndpoints.push(id);
  }

  /** The node that has a workload or host endpoint; undefined where that is not known. */
  homeOf(id: string): string | undefined {
    return this.homes.get(id) || undefined;
  }

  /** As that node has it. */
  stateOf(node: string): DesiredState {
    let state = this.#states.get(node);
    if (state === undefined) this.#states.set(node, state = this.#stateOf(node));
    return state;
  }

  #stateOf(node: string): DesiredState {
    const { desired } = this;
    const local = (name: string) => name.slice(node.length + 1);
    const { workloads, hostEndpoints } = this.#byNode.get(node) ?? { workloads: [], hostEndpoints: [] };
    return {
      ...desired,
      workloads: persistentMap(workloads.map((id): [string, DesiredWorkload] => {
        const workload = desired.workloads.get(id)!;
        return [id, { ...workload, interfaceName: local(workload.interfaceName) }];
      })),
      hostEndpoints: persistentMap(hostEndpoints.map((id): [string, DesiredHostEndpoint] => {
        const host = desired.hostEndpoints.get(id)!;
        const names = host.interfaces === "*" ? [] : host.interfaces.map(local);
        return [id, { ...host, interfaces: names.includes("*") ? "*" : names }];
      })),
      failsafe: hostEndpoints.length > 0 ? this.failsafe : { inbound: [], outbound: [] },
    };
  }
}

const podOf = ({ namespace, pod }: WorkloadObject): string | undefined =>
  pod === undefined ? undefined : `${namespace}/${pod}`;

/** Of ids that no WorkloadEndpoint has: its key text begins with its kind. */
const STAND_IN = "Pod/";

/** Id of the workload that stands for a pod which has none of its own. */
export const standInId = (podId: string): string => STAND_IN + podId;

/** The pod that such a workload stands for; undefined for any other id. */
export const standsFor = (id: string): string | undefined =>
  id.startsWith(STAND_IN) ? id.slice(STAND_IN.length) : undefined;

/** What the node of a pod knows of it and we do not: an attachment. Its policy follows from the pod alone. */
function standInFor(
  { id, namespace, name, node, labels, serviceAccount, ports, addresses }: PodObject,
): WorkloadObject {
  return {
    kind: "workload",
    id: standInId(id),
    node: node ?? "",
    namespace,
    interfaceName: standInId(id),
    addresses,
    labels,
    ports,
    pod: name,
    orchestrator: "k8s",
    ...serviceAccount === undefined ? {} : { serviceAccount },
  };
}

/** The part of the world that bears on packets between `addresses`, with the workloads and pods that `ids` name. */
export function concerning(
  world: Iterable<WorldChange>,
  addresses: readonly Address[],
  ids: ReadonlySet<string>,
): WorldChange[] {
  const holds = (own: readonly Address[]) => own.some((address) => addresses.includes(address));
  const kept: WorldChange[] = [];
  const pods = new Set<string>(ids);
  const laterPods: WorldChange[] = [];
  const concerns = (object: WorldObject): WorldObject | undefined => {
    switch (object.kind) {
      case "workload": {
        if (!ids.has(object.id) && !holds(object.addresses)) return undefined;
        const pod = podOf(object);
        if (pod !== undefined) pods.add(pod);
        return object;
      }
      case "pod":
        return holds(object.addresses) || pods.has(object.id) ? object : undefined;
      case "networkSet":
        return object.nets.some((net) => addresses.some((address) => cidrContains(net, address))) ? object : undefined;
      case "serviceBackends":
        return { ...object, backends: object.backends.filter(({ address }) => addresses.includes(address)) };
      case "block":
        return undefined;
      default:
        return object;
    }
  };
  const add = ({ origin, objects }: WorldChange) => {
    const left = objects.flatMap((object) => concerns(object) ?? []);
    if (left.length > 0) kept.push({ origin, objects: left });
  };
  for (const change of world) {
    // A pod is known by the workload that stands for it: after all of those.
    if (change.objects.some(({ kind }) => kind === "pod")) laterPods.push(change);
    else add(change);
  }
  for (const change of laterPods) add(change);
  return kept;
}
