/** Which routes there are to be, and how they are told to the kernel: pure. */
import { type Address, type Cidr, cidrFamily, formatAddress, formatCidr } from "../../../src/model/address.ts";
import type { DesiredRoute, RouteState } from "../../../src/model/desired.ts";
import {
  delRoute,
  newRoute,
  type ObservedRoute,
  type Route,
  RouteProtocol,
  RouteTable,
  RouteType,
} from "../../../src/kernel/netlink/schema/rt_route.ts";
import { MessageFlag } from "../../../src/kernel/netlink/codec.ts";
import type { NetlinkMessage } from "../../../src/sdk/kernel_door.ts";

/** Where packets to a prefix go: to a node, or nowhere, with an answer that says so. */
export type Way =
  | { readonly kind: "node"; readonly destination: Cidr; readonly via: Address; readonly node: string }
  | { readonly kind: "unreachable"; readonly destination: Cidr };

/** Behind everything else for the same prefix: a block of one address must not hide the pod that has it. */
const UNREACHABLE_PRIORITY = 4096;
/** IP6_RT_PRIO_USER, what the kernel writes for none: include/net/ip6_fib.h. */
const IPV6_DEFAULT_PRIORITY = 1024;

const routeOf = (way: Way): Route =>
  way.kind === "node" ? { destination: way.destination, protocol: RouteProtocol.Manx, gateway: way.via } : {
    destination: way.destination,
    protocol: RouteProtocol.Manx,
    type: RouteType.Unreachable,
    priority: UNREACHABLE_PRIORITY,
  };

/** Where nothing of ours is: refuses to take the place of a route that is not ours. */
export const addWay = (way: Way): NetlinkMessage => newRoute(routeOf(way), MessageFlag.Create | MessageFlag.Exclusive);
/** Where ours is already, with another gateway: in one step, so that no packet falls between. */
export const changeWay = (way: Way): NetlinkMessage => newRoute(routeOf(way), MessageFlag.Create | MessageFlag.Replace);
export const removeWay = (way: Way): NetlinkMessage => delRoute(routeOf(way));
/** A route of ours as it was found. */
export const removeObserved = (route: ObservedRoute): NetlinkMessage =>
  delRoute({
    destination: route.destination,
    protocol: route.protocol,
    type: route.type,
    gateway: route.gateway,
    outputIndex: route.gateway === undefined ? undefined : route.outputIndex,
    priority: route.priority,
  });

/** Ours by protocol and table; the pods' own routes have our protocol too, but lead out of a link and have no gateway. */
export const isOurs = (route: ObservedRoute): boolean =>
  route.family !== undefined && route.protocol === RouteProtocol.Manx && route.table === RouteTable.Main &&
  (route.gateway !== undefined || route.nextHops !== undefined || route.type !== RouteType.Unicast);

/** The way that a route of ours is, `node` left empty; undefined for one that we would not write like this. */
export function wayOf(route: ObservedRoute): Way | undefined {
  const { destination, gateway, type, priority } = route;
  if (type === RouteType.Unreachable) {
    return priority === UNREACHABLE_PRIORITY ? { kind: "unreachable", destination } : undefined;
  }
  const usual = cidrFamily(destination) === 4 ? undefined : IPV6_DEFAULT_PRIORITY;
  if (type !== RouteType.Unicast || gateway === undefined || route.nextHops !== undefined || route.onLink) {
    return undefined;
  }
  return (priority ?? 0) === (usual ?? 0) ? { kind: "node", destination, via: gateway, node: "" } : undefined;
}

export const sameWay = (a: Way | undefined, b: Way | undefined): boolean =>
  a === b || a !== undefined && b !== undefined && a.kind === b.kind && a.destination === b.destination &&
    (a.kind !== "node" || b.kind !== "node" || a.via === b.via);

export const titleOf = (way: Way): string =>
  way.kind === "node"
    ? `route ${formatCidr(way.destination)} to node ${way.node} via ${formatAddress(way.via)}`
    : `unreachable route for block ${formatCidr(way.destination)}`;

/**
 * What is wanted, kept from one state to the next: a new state costs work for what differs.
 * Two entries may claim one destination (a block that changes hands): the one whose key sorts first has it.
 */
export class Wanted {
  #state: RouteState | undefined;
  #blocks: ReadonlySet<Cidr> = new Set();
  readonly #claims = new Map<Cidr, Map<string, DesiredRoute>>();

  /** Takes `next` in; returns the destinations for which it may say something else. */
  move(next: RouteState): ReadonlySet<Cidr> {
    const touched = new Set<Cidr>();
    const previous = this.#state?.routes;
    const changes = previous === undefined
      ? [...next.routes].map(([key, after]) => ({ key, before: undefined, after }))
      : next.routes.changesSince(previous);
    for (const { key, before, after } of changes) {
      if (before !== undefined) {
        const claims = this.#claims.get(before.destination);
        claims?.delete(key);
        if (claims?.size === 0) this.#claims.delete(before.destination);
        touched.add(before.destination);
      }
      if (after !== undefined) {
        let claims = this.#claims.get(after.destination);
        if (claims === undefined) this.#claims.set(after.destination, claims = new Map());
        claims.set(key, after);
        touched.add(after.destination);
      }
    }
    if (this.#state?.localBlocks !== next.localBlocks) {
      const blocks = new Set(next.localBlocks);
      for (const block of blocks.symmetricDifference(this.#blocks)) touched.add(block);
      this.#blocks = blocks;
    }
    this.#state = next;
    return touched;
  }

  at(destination: Cidr): Way | undefined {
    if (this.#blocks.has(destination)) return { kind: "unreachable", destination };
    const claims = this.#claims.get(destination);
    if (claims === undefined) return undefined;
    const [first] = [...claims.keys()].sort();
    const { via, node } = claims.get(first!)!;
    return { kind: "node", destination, via, node };
  }

  *destinations(): IterableIterator<Cidr> {
    yield* this.#claims.keys();
    yield* this.#blocks;
  }
}
