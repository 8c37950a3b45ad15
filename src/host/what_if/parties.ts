/** Who is compared in a what-if: endpoints and nodes that both worlds have, and networks outside that changed rules speak of. Pure. */
import {
  type Address,
  addressFamily,
  addressFromBigInt,
  addressToBigInt,
  type Cidr,
  cidrAddress,
  cidrContains,
  cidrFamily,
  cidrLast,
  cidrPrefix,
  type Family,
  formatAddress,
  formatCidr,
  parseAddress,
} from "../../model/address.ts";
import type { DesiredState, DesiredWorkload, PolicyList } from "../../model/desired.ts";
import type { Stage } from "../../model/evaluate.ts";
import { type Lookup, workloadName } from "../explain/end.ts";
import { standsFor } from "../explain/nodes.ts";
import { type ChangedLists, isHostCidr, rulesOf, STAGES } from "./lists.ts";

/** Prefixes of changed rules that stand for networks outside. */
const NETWORKS_MAX = 256;

/** One of the two worlds, as every node calculates it. */
export interface WorldSide {
  /** Of all nodes. */
  readonly desired: DesiredState;
  readonly lookup: Lookup;
  readonly stateOf: (node: string) => DesiredState;
  /** The node of a workload. */
  readonly homeOf: (id: string) => string | undefined;
  /** Of a node. */
  readonly addressesOf: (node: string) => readonly Address[];
}

/** Somebody who sends or is sent to. */
export interface Party {
  readonly name: string;
  readonly kind: "workload" | "node" | "network";
  /** Of a workload its id, of a node its name. */
  readonly id: string;
  /** "" where it has none, or nobody knows. */
  readonly node: Both<string>;
  /** By side and family. */
  readonly addresses: Both<ReadonlyMap<Family, Address>>;
  /** Of a workload. */
  readonly lists?: Both<Pick<DesiredWorkload, "ingress" | "egress">>;
}

export interface Both<T> {
  readonly now: T;
  readonly then: T;
}
export type SideName = keyof Both<unknown>;

/** Endpoints and nodes that both worlds have, and networks that changed rules speak of. */
export function partiesOf(
  { now, then }: Both<WorldSide>,
  changed: ChangedLists,
): { parties: readonly Party[]; added: readonly string[]; removed: readonly string[] } {
  const parties: Party[] = [], added: string[] = [], removed: string[] = [];
  const byFamily = (addresses: readonly Address[]) => {
    const map = new Map<Family, Address>();
    for (const address of addresses) if (!map.has(addressFamily(address))) map.set(addressFamily(address), address);
    return map;
  };
  const nameOf = (id: string, { lookup }: WorldSide) => {
    const workload = lookup.object("workload", id);
    return standsFor(id) ?? (workload === undefined ? id : workloadName(workload));
  };
  for (const [id, workload] of then.desired.workloads) {
    const before = now.desired.workloads.get(id);
    const name = nameOf(id, then);
    if (before === undefined) {
      added.push(name);
      continue;
    }
    parties.push({
      name,
      kind: "workload",
      id,
      node: { now: now.homeOf(id) ?? "", then: then.homeOf(id) ?? "" },
      addresses: { now: byFamily(before.addresses), then: byFamily(workload.addresses) },
      lists: { now: before, then: workload },
    });
  }
  for (const id of now.desired.workloads.keys()) if (!then.desired.workloads.has(id)) removed.push(nameOf(id, now));
  const nodesNow = nodesOf(now), nodesThen = nodesOf(then);
  for (const node of nodesThen) {
    if (!nodesNow.has(node)) added.push(`node/${node}`);
    else {
      const addresses = { now: byFamily(now.addressesOf(node)), then: byFamily(then.addressesOf(node)) };
      if (addresses.now.size > 0) {
        parties.push({ name: `node/${node}`, kind: "node", id: node, node: { now: node, then: node }, addresses });
      }
    }
  }
  for (const node of nodesNow) if (!nodesThen.has(node)) removed.push(`node/${node}`);
  return { parties: [...parties, ...networksOf({ now, then }, changed, parties)], added, removed };
}

/** Those with an address. */
function nodesOf({ lookup }: WorldSide): ReadonlySet<string> {
  const names = new Set<string>();
  for (const { objects } of lookup.world()) {
    for (const object of objects) {
      if (object.kind === "node" && object.addresses.length > 0) names.add(object.id);
      if (object.kind === "hostEndpoint" && object.expectedAddresses.length > 0) names.add(object.node);
    }
  }
  return names;
}

/** Candidates for an address that nobody speaks of: RFC 5737, RFC 3849, and further ones. */
const ELSEWHERE = [
  "192.0.2.1",
  "198.51.100.1",
  "203.0.113.1",
  "9.9.9.9",
  "2001:db8::1",
  "2620:fe::fe",
  "2001:db8:ffff::1",
]
  .map(parseAddress);

/** What rules of changed lists call by prefix, one address for each, and one that none of them means. */
function networksOf(sides: Both<WorldSide>, changed: ChangedLists, known: readonly Party[]): readonly Party[] {
  const lists = changedLists(sides, changed);
  if (lists.length === 0) return [];
  const nets = new Set<Cidr>();
  for (const list of lists) {
    for (const { source, destination } of rulesOf(list)) {
      for (const match of [source, destination]) {
        for (const net of [...match.nets ?? [], ...match.notNets ?? []]) nets.add(net);
      }
    }
  }
  for (const { lookup } of [sides.now, sides.then]) {
    for (const { objects } of lookup.world()) {
      for (const object of objects) if (object.kind === "networkSet") object.nets.forEach((net) => nets.add(net));
    }
  }
  // What everything is in tells nothing apart.
  const all = [...nets].filter((net) => cidrPrefix(net) > 0);
  const taken = new Set(known.flatMap(({ addresses }) => [...addresses.now.values(), ...addresses.then.values()]));
  const networks = all.slice(0, NETWORKS_MAX).flatMap((net) => {
    const address = freeAddress(net, all, taken);
    if (address === undefined) return [];
    return networkParty(isHostCidr(net) ? formatAddress(address) : formatCidr(net), address);
  });
  const others = ([4, 6] as const).flatMap((family) => {
    const free = ELSEWHERE.find((address) =>
      addressFamily(address) === family && !taken.has(address) && !all.some((net) => cidrContains(net, address))
    );
    return free === undefined ? [] : networkParty(family === 4 ? "any other address" : "any other IPv6 address", free);
  });
  return [...networks, ...others];
}

function networkParty(name: string, address: Address): Party {
  const addresses = new Map([[addressFamily(address), address]]);
  return {
    name,
    kind: "network",
    id: name,
    node: { now: "", then: "" },
    addresses: { now: addresses, then: addresses },
  };
}

function changedLists({ now, then }: Both<WorldSide>, changed: ChangedLists): readonly PolicyList[] {
  const lists = new Set<PolicyList>();
  const look = (
    a: Partial<Record<Stage, PolicyList>> | undefined,
    b: Partial<Record<Stage, PolicyList>> | undefined,
  ) => {
    for (const stage of STAGES) {
      if (!changed.differs(a?.[stage], b?.[stage])) continue;
      for (const list of [a?.[stage], b?.[stage]]) if (list !== undefined) lists.add(list);
    }
  };
  for (const [id, workload] of then.desired.workloads) look(now.desired.workloads.get(id), workload);
  for (const [id, host] of then.desired.hostEndpoints) look(now.desired.hostEndpoints.get(id), host);
  for (const [id, host] of now.desired.hostEndpoints) if (!then.desired.hostEndpoints.has(id)) look(host, undefined);
  return [...lists];
}

/** An address of the prefix that no smaller one of `nets` holds and nobody has. */
function freeAddress(net: Cidr, nets: readonly Cidr[], taken: ReadonlySet<Address>): Address | undefined {
  const family = cidrFamily(net), last = addressToBigInt(cidrLast(net));
  const inner = nets.filter((other) => cidrPrefix(other) > cidrPrefix(net) && cidrContains(net, cidrAddress(other)));
  // The network's own address is the last choice: it is nobody's where there are others.
  let at = addressToBigInt(cidrAddress(net));
  const first = at;
  if (at < last) at += 1n;
  for (let tries = 0; tries < 2 * NETWORKS_MAX && at <= last; tries++) {
    const address = addressFromBigInt(at, family);
    const holder = inner.find((other) => cidrContains(other, address));
    if (holder !== undefined) at = addressToBigInt(cidrLast(holder)) + 1n;
    else if (taken.has(address)) at += 1n;
    else return address;
  }
  const own = addressFromBigInt(first, family);
  return taken.has(own) || inner.some((other) => cidrContains(other, own)) ? undefined : own;
}
