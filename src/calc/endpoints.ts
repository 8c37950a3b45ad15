import type { Labels } from "../model/selector.ts";
import type { AddressSets } from "./address_sets.ts";
import type { ContextSpec, Endpoint, LabelClasses } from "./label_class.ts";
import { LayeredLabels } from "./own_labels.ts";
import type { OwnLabels } from "./own_labels.ts";
import { SetMap } from "./set_map.ts";
import type { WorldStore } from "./store.ts";

export type EndpointKind = "workload" | "pod" | "hostEndpoint" | "networkSet";

/** Something with labels and addresses, for whoever explains. */
export interface EndpointView extends Pick<Endpoint, "addresses" | "nets" | "ports"> {
  readonly kind: EndpointKind;
  /** Of the object; of pods `namespace/name`. */
  readonly id: string;
  /** Its own and those that it inherits. */
  readonly labels: Labels;
}

interface EndpointSpec extends Pick<Endpoint, "own" | "addresses" | "nets" | "ports"> {
  readonly context: ContextSpec;
}

/** Everything with labels and addresses, in its class and in the sets that the class is in. */
export class Endpoints {
  readonly #endpoints: Readonly<Record<EndpointKind, Map<string, Endpoint>>> = {
    workload: new Map(),
    pod: new Map(),
    hostEndpoint: new Map(),
    networkSet: new Map(),
  };
  /** Pod id → workloads that stand for it, and back. */
  readonly #joined = new SetMap<string, string>();
  readonly #podOf = new Map<string, string>();

  constructor(readonly store: WorldStore, readonly classes: LabelClasses, readonly sets: AddressSets) {}

  /** How much it keeps. */
  get held(): number {
    const endpoints = Object.values(this.#endpoints).reduce((sum, map) => sum + map.size, 0);
    return endpoints + this.#joined.size + this.#podOf.size;
  }

  get(kind: EndpointKind, id: string): Endpoint | undefined {
    return this.#endpoints[kind].get(id);
  }

  /** All of them, with the labels that selectors see. */
  *views(): IterableIterator<EndpointView> {
    for (const [kind, endpoints] of Object.entries(this.#endpoints) as [EndpointKind, Map<string, Endpoint>][]) {
      for (const [id, { labelClass, own, addresses, nets, ports }] of endpoints) {
        const labels = new LayeredLabels(own.visible, labelClass.context.inherited);
        yield { kind, id, labels, addresses, nets, ports };
      }
    }
  }

  /** Adds to both what depends on them: a workload on its pod's labels, a pod on whether a workload stands for it. */
  join(workloads: Set<string>, pods: Set<string>): void {
    for (const id of workloads) {
      const workload = this.store.get("workload", id);
      const before = this.#podOf.get(id);
      const after = workload?.pod === undefined ? undefined : `${workload.namespace}/${workload.pod}`;
      if (before === after) continue;
      if (before !== undefined) {
        this.#joined.delete(before, id);
        this.#podOf.delete(id);
        pods.add(before);
      }
      if (after !== undefined) {
        this.#joined.add(after, id);
        this.#podOf.set(id, after);
        pods.add(after);
      }
    }
    for (const pod of pods) for (const id of this.#joined.get(pod)) workloads.add(id);
  }

  /** Brings one endpoint in line with the world. */
  refresh(kind: EndpointKind, id: string): void {
    const endpoints = this.#endpoints[kind];
    const before = endpoints.get(id);
    const spec = this.#specOf(kind, id);
    const labelClass = spec && this.classes.classOf(this.classes.contextOf(spec.context), spec.own);
    if (
      before !== undefined && spec !== undefined && before.labelClass === labelClass && before.ports === spec.ports &&
      sameItems(before.addresses, spec.addresses)
    ) {
      // Another label perhaps, though none that a selector asks for; or some prefixes of many.
      before.own = spec.own;
      this.#setNets(before, spec.nets);
      return;
    }
    // The new one first: members that both have are then counted up and down, never taken out and put back.
    if (spec !== undefined && labelClass !== undefined) {
      const { own, addresses, nets, ports } = spec;
      const after: Endpoint = { labelClass, at: labelClass.endpoints.length, own, addresses, nets, ports };
      labelClass.endpoints.push(after);
      endpoints.set(id, after);
      this.sets.contributeEndpoint(after, 1);
    } else endpoints.delete(id);
    if (before !== undefined) this.#remove(before);
  }

  /** Both lists are without repeats: the store sees to it. */
  #setNets(endpoint: Endpoint, nets: Endpoint["nets"]): void {
    if (sameItems(endpoint.nets, nets)) return;
    const gone = new Set(endpoint.nets);
    const come = nets.filter((net) => !gone.delete(net));
    const only = (nets: Endpoint["nets"]): Endpoint => ({ ...endpoint, addresses: NONE, ports: NONE, nets });
    this.sets.contributeEndpoint(only(come), 1);
    this.sets.contributeEndpoint(only([...gone]), -1);
    endpoint.nets = nets;
  }

  #remove(endpoint: Endpoint): void {
    this.sets.contributeEndpoint(endpoint, -1);
    const { endpoints } = endpoint.labelClass;
    const last = endpoints.pop()!;
    if (last !== endpoint) {
      endpoints[endpoint.at] = last;
      last.at = endpoint.at;
    }
    if (endpoints.length === 0) this.classes.drop(endpoint.labelClass, endpoint.own);
  }

  #specOf(kind: EndpointKind, id: string): EndpointSpec | undefined {
    switch (kind) {
      case "workload": {
        const workload = this.store.get("workload", id);
        if (workload === undefined) return undefined;
        const { namespace, orchestrator, addresses, profiles } = workload;
        const pod = workload.pod === undefined ? undefined : this.store.get("pod", `${namespace}/${workload.pod}`);
        const { labels, ports, serviceAccount } = pod ?? workload;
        const context = { kind: "workload", namespace, serviceAccount, orchestrator, profiles } as const;
        return { context, own: pooled(labels), addresses, nets: NONE, ports };
      }
      case "pod": {
        const pod = this.store.get("pod", id);
        if (pod === undefined || pod.addresses.length === 0 || this.#joined.get(id).size > 0) return undefined;
        const { namespace, serviceAccount, labels, ports, addresses } = pod;
        const context = { kind: "workload", namespace, serviceAccount, orchestrator: "k8s" } as const;
        return { context, own: pooled(labels), addresses, nets: NONE, ports };
      }
      case "hostEndpoint": {
        const host = this.store.get("hostEndpoint", id);
        if (host === undefined) return undefined;
        const { profiles, labels, expectedAddresses: addresses, ports } = host;
        return { context: { kind: "host", profiles }, own: pooled(labels), addresses, nets: NONE, ports };
      }
      case "networkSet": {
        const set = this.store.get("networkSet", id);
        if (set === undefined) return undefined;
        const { namespace, name, labels, nets } = set;
        const context = { kind: "set", namespace, name, profiles: NONE } as const;
        return { context, own: pooled(labels), addresses: NONE, nets, ports: NONE };
      }
    }
  }
}

const NONE: readonly never[] = [];

/** As the store keeps the labels of what it is asked for here. */
const pooled = (labels: Labels): OwnLabels => labels as OwnLabels;

function sameItems<T>(a: readonly T[], b: readonly T[]): boolean {
  return a.length === b.length && a.every((item, i) => item === b[i]);
}
