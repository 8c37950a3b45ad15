import { hostCidr } from "../model/address.ts";
import type { Address } from "../model/address.ts";
import type { AddressSet, SetId, SetMember } from "../model/desired.ts";
import { digest } from "../model/digest.ts";
import { persistentMap } from "../model/persistent_map.ts";
import type { MapEditor, PersistentMap } from "../model/persistent_map.ts";
import type { ServiceReference } from "../model/rule.ts";
import type { Labels, Selector } from "../model/selector.ts";
import type { NodeObject, ServiceBackendsObject } from "../model/world.ts";
import type { Endpoint, LabelClass } from "./label_class.ts";
import { SelectorIndex } from "./selector_index.ts";
import type { IndexedSelector, Subject } from "./selector_index.ts";
import { SetMap } from "./set_map.ts";

/** The sets that are fed by a peer selector. */
export interface PeerData {
  readonly sets: MemberSet[];
}
type PeerSelector = IndexedSelector<LabelClass, PeerData>;
type NodeSelector = IndexedSelector<NodeSubject, PeerData>;

/** A node as a peer. In an index of its own: no selector over endpoints may ever find it. */
class NodeSubject implements Subject<NodeSubject, PeerData> {
  readonly matched: NodeSelector[] = [];
  readonly namespace = undefined;
  constructor(readonly labels: Labels, readonly addresses: readonly Address[]) {}
}

/** A set in the making: members with the number of those who contribute them. */
export interface MemberSet {
  readonly id: SetId;
  readonly key: string;
  readonly kind: "net" | "port";
  readonly title: string;
  readonly source: SetSource;
  readonly members: MapEditor<SetMember, true>;
  /** Contributors beyond the first, so two with one address never remove each other; nearly always empty. */
  readonly repeats: Map<SetMember, number>;
  /** Active rules that refer to it. */
  uses: number;
  published: AddressSet | undefined;
}

type SetSource =
  /** Without `port`, addresses; with it, ports of that name. */
  | { readonly kind: "selector"; readonly peer: PeerSelector; readonly port?: string }
  | { readonly kind: "nodes"; readonly nodes: NodeSelector }
  | { readonly kind: "service"; readonly service: string; readonly ports: boolean };

/** A member of a `port` set: the address, a protocol character, two port characters. */
export function portMember(address: Address, protocol: number, port: number): SetMember {
  return address + String.fromCharCode(protocol & 0xff, port >> 8 & 0xff, port & 0xff);
}

/** The sets that active rules refer to, by content of what they stand for. */
export class AddressSets {
  /** All label classes of the world against the selectors of active rules. */
  readonly peers: SelectorIndex<LabelClass, PeerData>;
  readonly #nodes: SelectorIndex<NodeSubject, PeerData>;
  readonly #nodeOf = new Map<string, NodeSubject>();
  readonly #sets = new Map<string, MemberSet>();
  readonly #byService = new SetMap<string, MemberSet>();
  readonly #backends = new Map<string, Map<string, ServiceBackendsObject>>();
  readonly #touched = new Set<MemberSet>();
  readonly #idle = new Set<MemberSet>();
  #published: PersistentMap<SetId, AddressSet> = persistentMap();
  /** Members added and removed since the beginning. */
  memberChanges = 0;

  /** How much it keeps. */
  get held(): number {
    const own = this.#sets.size + this.#byService.size + this.#backends.size + this.#nodeOf.size;
    return own + this.peers.held + this.#nodes.held;
  }

  /** Selectors tried against labels since the beginning. */
  get evaluations(): number {
    return this.peers.evaluations + this.#nodes.evaluations;
  }

  /** `onAsk` is told what labels the selectors of rules ask for, as `SelectorIndex` says. */
  constructor(onAsk: SelectorIndex<LabelClass, PeerData>["onAsk"]) {
    this.peers = new SelectorIndex<LabelClass, PeerData>(
      () => ({ sets: [] }),
      ({ data }, labelClass) => data.sets.forEach((set) => this.#contribute(set, labelClass.endpoints, 1)),
      ({ data }, labelClass) => data.sets.forEach((set) => this.#contribute(set, labelClass.endpoints, -1)),
      onAsk,
    );
    const contributeNode = (sign: 1 | -1) => ({ data }: NodeSelector, node: NodeSubject) =>
      data.sets.forEach((set) => this.#contributeNode(set, node, sign));
    this.#nodes = new SelectorIndex<NodeSubject, PeerData>(
      () => ({ sets: [] }),
      contributeNode(1),
      contributeNode(-1),
    );
  }

  /** Addresses of what the selector matches. */
  acquireAddresses(selector: Selector): MemberSet {
    const peer = this.peers.addSelector(selector);
    return this.#acquire(`net ${peer.text}`, "net", peer.text, { kind: "selector", peer });
  }

  /** (Address, protocol, port) of the ports so named of what the selector matches. */
  acquireNamedPort(selector: Selector, name: string): MemberSet {
    const peer = this.peers.addSelector(selector);
    const key = `port ${name.length}:${name} ${peer.text}`;
    return this.#acquire(key, "port", `port ${name} of ${peer.text}`, { kind: "selector", peer, port: name });
  }

  /** Addresses of the nodes that the selector matches. */
  acquireNodes(selector: Selector): MemberSet {
    const nodes = this.#nodes.addSelector(selector);
    const title = `nodes ${nodes.text}`;
    return this.#acquire(title, "net", title, { kind: "nodes", nodes });
  }

  /** Endpoints of a service, with their ports or without. */
  acquireService(reference: ServiceReference, ports: boolean): MemberSet {
    const service = `${reference.namespace}/${reference.name}`;
    const title = ports ? `service ${service}` : `addresses of service ${service}`;
    return this.#acquire(title, ports ? "port" : "net", title, { kind: "service", service, ports });
  }

  /** Takes effect with the next `publish`, so a set that is let go and taken up again stays as it is. */
  release(set: MemberSet): void {
    if (--set.uses === 0) this.#idle.add(set);
  }

  /** An endpoint appears in (1) or leaves (-1) the sets that its class is in. */
  contributeEndpoint(endpoint: Endpoint, sign: 1 | -1): void {
    for (const { data } of endpoint.labelClass.matched) {
      for (const set of data.sets) this.#contribute(set, [endpoint], sign);
    }
  }

  /** Replaces one node; undefined = gone. */
  setNode(id: string, node: NodeObject | undefined): void {
    const before = this.#nodeOf.get(id);
    // The new one first, as everywhere: what both have stays.
    if (node === undefined) this.#nodeOf.delete(id);
    else {
      const after = new NodeSubject(node.labels, node.addresses);
      this.#nodeOf.set(id, after);
      this.#nodes.addSubject(after);
    }
    if (before !== undefined) this.#nodes.removeSubject(before);
  }

  /** Replaces one slice of a service's endpoints; undefined = gone. */
  setBackends(
    sliceId: string,
    before: ServiceBackendsObject | undefined,
    after: ServiceBackendsObject | undefined,
  ): void {
    if (after !== undefined) {
      let slices = this.#backends.get(after.service);
      if (slices === undefined) this.#backends.set(after.service, slices = new Map());
      slices.set(sliceId, after);
      for (const set of this.#byService.get(after.service)) this.#contributeBackends(set, after, 1);
    }
    if (before !== undefined) {
      const slices = this.#backends.get(before.service)!;
      if (after?.service !== before.service) slices.delete(sliceId);
      if (slices.size === 0) this.#backends.delete(before.service);
      for (const set of this.#byService.get(before.service)) this.#contributeBackends(set, before, -1);
    }
  }

  /** The sets in use now; unchanged ones are the objects of the time before. */
  publish(): PersistentMap<SetId, AddressSet> {
    const sets = this.#published.edit();
    for (const set of this.#idle) {
      if (set.uses > 0) continue;
      this.#remove(set);
      sets.delete(set.id);
    }
    this.#idle.clear();
    for (const set of this.#touched) {
      const { id, kind, title, published } = set;
      const members = set.members.finish();
      if (members !== published?.members) set.published = { id, kind, title, members };
      sets.set(id, set.published!);
    }
    this.#touched.clear();
    return this.#published = sets.finish();
  }

  #acquire(key: string, kind: "net" | "port", title: string, source: SetSource): MemberSet {
    let set = this.#sets.get(key);
    if (set === undefined) {
      set = {
        id: digest(key) as SetId,
        key,
        kind,
        title,
        source,
        members: persistentMap<SetMember, true>().edit(),
        repeats: new Map(),
        uses: 0,
        published: undefined,
      };
      this.#sets.set(key, set);
      this.#fill(set);
    }
    set.uses++;
    return set;
  }

  #fill(set: MemberSet): void {
    this.#touched.add(set);
    const { source } = set;
    if (source.kind === "selector") {
      source.peer.data.sets.push(set);
      for (const labelClass of source.peer.subjects) this.#contribute(set, labelClass.endpoints, 1);
    } else if (source.kind === "nodes") {
      source.nodes.data.sets.push(set);
      for (const node of source.nodes.subjects) this.#contributeNode(set, node, 1);
    } else {
      this.#byService.add(source.service, set);
      const slices = this.#backends.get(source.service);
      for (const slice of slices?.values() ?? []) this.#contributeBackends(set, slice, 1);
    }
  }

  #remove(set: MemberSet): void {
    this.#sets.delete(set.key);
    this.#touched.delete(set);
    const { source } = set;
    if (source.kind === "selector") {
      if (dropFrom(source.peer.data, set)) this.peers.removeSelector(source.peer);
    } else if (source.kind === "nodes") {
      if (dropFrom(source.nodes.data, set)) this.#nodes.removeSelector(source.nodes);
    } else this.#byService.delete(source.service, set);
  }

  #contribute(set: MemberSet, endpoints: readonly Endpoint[], sign: 1 | -1): void {
    const { source } = set;
    if (source.kind !== "selector") return;
    for (const endpoint of endpoints) {
      if (source.port === undefined) {
        for (const address of endpoint.addresses) this.#count(set, hostCidr(address), sign);
        for (const net of endpoint.nets) this.#count(set, net, sign);
        continue;
      }
      for (const port of endpoint.ports) {
        if (port.name !== source.port) continue;
        for (const address of endpoint.addresses) {
          this.#count(set, portMember(address, port.protocol, port.port), sign);
        }
      }
    }
  }

  #contributeNode(set: MemberSet, { addresses }: NodeSubject, sign: 1 | -1): void {
    for (const address of addresses) this.#count(set, hostCidr(address), sign);
  }

  #contributeBackends(set: MemberSet, slice: ServiceBackendsObject, sign: 1 | -1): void {
    for (const { address } of slice.backends) {
      if (set.kind === "net") this.#count(set, hostCidr(address), sign);
      else for (const port of slice.ports) this.#count(set, portMember(address, port.protocol, port.port), sign);
    }
  }

  #count(set: MemberSet, member: SetMember, sign: 1 | -1): void {
    this.memberChanges++;
    this.#touched.add(set);
    const { members, repeats } = set;
    if (sign === 1) {
      if (members.has(member)) repeats.set(member, (repeats.get(member) ?? 0) + 1);
      else members.set(member, true);
      return;
    }
    const repeated = repeats.get(member);
    if (repeated === undefined) members.delete(member);
    else if (repeated === 1) repeats.delete(member);
    else repeats.set(member, repeated - 1);
  }
}

/** Whether the selector feeds nothing any more. */
function dropFrom({ sets }: PeerData, set: MemberSet): boolean {
  sets.splice(sets.indexOf(set), 1);
  return sets.length === 0;
}
