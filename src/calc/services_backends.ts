/** Which endpoints a service port has, and which of them traffic goes to. */
import type { Address, Family } from "../model/address.ts";
import type { BackendList, ServiceBackendTarget } from "../model/services.ts";
import type { ServiceBackend, ServiceBackendsObject, ServicePort } from "../model/world.ts";

/** Where this is. */
export interface Here {
  readonly node: string;
  /** Label topology.kubernetes.io/zone of the node. */
  readonly zone: string | undefined;
}

/** What may be sent to an endpoint; the greater of two is the better one. */
const Condition = { Down: 0, Draining: 1, Serving: 2, Ready: 3 } as const;
type Condition = (typeof Condition)[keyof typeof Condition];

/** One endpoint of a service port, as all slices together have it. */
export interface PortEndpoint {
  readonly address: Address;
  readonly port: number;
  readonly isLocal: boolean;
  readonly condition: Condition;
  readonly forZones: readonly string[];
  readonly forNodes: readonly string[];
}

/** What a list holds. */
export type Backends = Pick<BackendList, "backends" | "empty">;

export interface Choice {
  /** Traffic policy Cluster. */
  readonly cluster: Backends;
  /** Traffic policy Local. */
  readonly local: Backends;
  /** Whether the zone of the node may have a say. */
  readonly hasZoneHints: boolean;
}

/** By address, then port; each once. */
export function endpointsOf(
  slices: Iterable<ServiceBackendsObject>,
  { name, protocol }: Pick<ServicePort, "name" | "protocol">,
  family: Family,
  node: string,
): readonly PortEndpoint[] {
  const found: PortEndpoint[] = [];
  for (const slice of slices) {
    if (slice.family !== family) continue;
    const port = slice.ports.find((port) => port.name === name && port.protocol === protocol)?.port;
    if (port === undefined) continue;
    for (const backend of slice.backends) {
      const { address, forZones = [], forNodes = [] } = backend;
      const isLocal = backend.node === node;
      found.push({ address, port, isLocal, condition: conditionOf(backend), forZones, forNodes });
    }
  }
  found.sort((a, b) => a.address < b.address ? -1 : a.address > b.address ? 1 : a.port - b.port);
  const merged: PortEndpoint[] = [];
  for (const endpoint of found) {
    const last = merged.at(-1);
    if (last?.address !== endpoint.address || last.port !== endpoint.port) merged.push(endpoint);
    // An endpoint that moves from one slice to another is in both for a while, and one of them is out of date.
    else merged[merged.length - 1] = mergedEndpoint(last, endpoint);
  }
  return merged;
}

function conditionOf({ ready, serving, terminating }: ServiceBackend): Condition {
  if (ready) return Condition.Ready;
  return !terminating ? Condition.Down : serving ? Condition.Serving : Condition.Draining;
}

function mergedEndpoint(a: PortEndpoint, b: PortEndpoint): PortEndpoint {
  const better = a.condition >= b.condition ? a : b;
  const hints = (of: "forZones" | "forNodes") =>
    a.condition === b.condition ? [...new Set([...a[of], ...b[of]])] : better[of];
  return {
    ...better,
    isLocal: a.isLocal || b.isLocal,
    forZones: hints("forZones"),
    forNodes: hints("forNodes"),
  };
}

/**
 * The ready ones; of Cluster policy those near, where hints say which. Where none is ready, those that serve while they
 * terminate (KEP-1669), near or not. Hints count only where every ready endpoint has one and one names this place (KEP-2433,
 * KEP-3015): before all of them do, the few that have would carry everything.
 */
export function chooseBackends(endpoints: readonly PortEndpoint[], here: Here): Choice {
  const ready = endpoints.filter(({ condition }) => condition === Condition.Ready);
  const isAnywhere = endpoints.some(({ condition }) => condition >= Condition.Serving);
  return {
    cluster: pick(endpoints, nearby(ready, here), "reject"),
    local: pick(endpoints.filter(({ isLocal }) => isLocal), () => true, isAnywhere ? "drop" : "reject"),
    hasZoneHints: ready.some(({ forZones }) => forZones.length > 0),
  };
}

type Near = (endpoint: PortEndpoint) => boolean;

function nearby(ready: readonly PortEndpoint[], { node, zone }: Here): Near {
  const isForNode: Near = ({ forNodes }) => forNodes.includes(node);
  if (ready.every(({ forNodes }) => forNodes.length > 0) && ready.some(isForNode)) return isForNode;
  const isForZone: Near = ({ forZones }) => zone !== undefined && forZones.includes(zone);
  if (ready.every(({ forZones }) => forZones.length > 0) && ready.some(isForZone)) return isForZone;
  return () => true;
}

function pick(endpoints: readonly PortEndpoint[], near: Near, empty: BackendList["empty"]): Backends {
  const hasReady = endpoints.some(({ condition }) => condition === Condition.Ready);
  const backends: ServiceBackendTarget[] = [];
  let isEmpty = true;
  for (const endpoint of endpoints) {
    const { address, port, condition } = endpoint;
    const takesNew = hasReady ? condition === Condition.Ready && near(endpoint) : condition === Condition.Serving;
    if (takesNew) isEmpty = false;
    if (takesNew) backends.push({ address, port });
    else if (condition === Condition.Serving || condition === Condition.Draining) {
      backends.push({ address, port, draining: true });
    }
  }
  return { backends, empty: isEmpty ? empty : "reject" };
}

/** Addresses on this node that are ready, of the family that has more of them: both addresses of a pod are one endpoint. */
export function countLocal(slices: Iterable<ServiceBackendsObject>, node: string): number {
  const ready = { 4: new Set<Address>(), 6: new Set<Address>() };
  for (const { family, ports, backends } of slices) {
    if (ports.length === 0) continue;
    for (const backend of backends) if (backend.ready && backend.node === node) ready[family].add(backend.address);
  }
  return Math.max(ready[4].size, ready[6].size);
}
