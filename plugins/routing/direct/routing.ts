import type { Cidr, Family } from "../../../src/model/address.ts";
import type { RouteState } from "../../../src/model/desired.ts";
import { isErrno } from "../../../src/kernel/errors.ts";
import {
  parseAddressMessage,
  RTM_DELADDR,
  RTM_NEWADDR,
  RTNLGRP_IPV4_IFADDR,
  RTNLGRP_IPV6_IFADDR,
} from "../../../src/kernel/netlink/schema/rt_addr.ts";
import { parseLink, RTM_DELLINK, RTM_NEWLINK, RTNLGRP_LINK } from "../../../src/kernel/netlink/schema/rt_link.ts";
import {
  getRoutes,
  type ObservedRoute,
  parseRoute,
  RouteProtocol,
  RouteScope,
  RouteTable,
  RTM_DELROUTE,
  RTM_NEWROUTE,
  RTNLGRP_IPV4_ROUTE,
  RTNLGRP_IPV6_ROUTE,
} from "../../../src/kernel/netlink/schema/rt_route.ts";
import type { Report, Routing } from "../../../src/sdk/dataplane.ts";
import { explainError } from "../../../src/sdk/errors.ts";
import type { NetlinkMessage, NetlinkSocket } from "../../../src/sdk/kernel_door.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import {
  addWay,
  changeWay,
  isOurs,
  removeObserved,
  removeWay,
  sameWay,
  titleOf,
  Wanted,
  type Way,
  wayOf,
} from "./plan.ts";

const NETLINK_ROUTE = 0;
const FAMILIES = [4, 6] as const;
/** Pods' links come and go all the time and carry none of our routes. */
const POD_LINK = /^mx[0-9a-f]{11}$/;
/** Flushing many routes makes many events; they are one reason to look. */
const EVENTS_AGAIN_MS = 100;

interface Step {
  readonly message: NetlinkMessage;
  readonly title: string;
  /** The kernel's state at this destination if it succeeds. */
  readonly destination: Cidr;
  readonly way: Way | undefined;
  readonly removes: boolean;
}

/** Keeps the kernel's routes of our protocol as wanted. */
export class DirectRouting implements Routing {
  readonly #host: Host;
  readonly #socket: NetlinkSocket;
  readonly #wanted = new Wanted();
  #generation = 0;
  /** What the kernel has of ours; undefined when it has to be looked at first. */
  #known: Map<Cidr, Way> | undefined;
  /** Why a wanted way is not there. */
  readonly #problems = new Map<Cidr, string>();

  constructor(host: Host) {
    this.#host = host;
    this.#socket = host.kernel.netlink(NETLINK_ROUTE);
  }

  async apply(desired: RouteState, signal?: AbortSignal): Promise<Report> {
    signal?.throwIfAborted();
    let touched = new Set(this.#wanted.move(desired));
    this.#generation = desired.generation;
    const steps: Step[] = [];
    if (this.#known === undefined) {
      const { known, strange } = this.#look();
      this.#known = known;
      touched = new Set([...known.keys(), ...this.#wanted.destinations()]);
      for (const route of strange) {
        const { destination } = route;
        const step = { message: removeObserved(route), title: "route of ours that nothing asks for", destination };
        steps.push({ ...step, way: known.get(destination), removes: true });
      }
    }
    // Those that failed are tried again: a link may have come up since.
    for (const destination of this.#problems.keys()) touched.add(destination);
    this.#problems.clear();
    for (const destination of touched) {
      const step = stepTo(destination, this.#known.get(destination), this.#wanted.at(destination));
      if (step !== undefined) steps.push(...step);
    }
    this.#carryOut(steps, this.#known);
    return this.#report(steps.length);
  }

  async sweep(signal?: AbortSignal): Promise<Report> {
    signal?.throwIfAborted();
    const steps = this.#dump().filter(isOurs).map((route) => ({
      message: removeObserved(route),
      title: "route of ours",
      destination: route.destination,
      way: undefined,
      removes: true,
    }));
    this.#problems.clear();
    this.#known = undefined;
    this.#carryOut(steps, new Map());
    return this.#report(steps.length);
  }

  async *drift(signal: AbortSignal): AsyncIterable<string> {
    const groups = [
      RTNLGRP_LINK,
      RTNLGRP_IPV4_IFADDR,
      RTNLGRP_IPV6_IFADDR,
      RTNLGRP_IPV4_ROUTE,
      RTNLGRP_IPV6_ROUTE,
    ];
    while (!signal.aborted) {
      using socket = this.#host.kernel.netlink(NETLINK_ROUTE, { groups });
      try {
        for await (const messages of socket.events(signal)) {
          const reason = messages.map((message) => this.#reasonOf(message)).find((text) => text !== undefined);
          if (reason === undefined) continue;
          this.#known = undefined;
          yield reason;
        }
      } catch (error) {
        if (!isErrno(error, "ENOBUFS")) throw error;
        this.#known = undefined;
        yield "route events were lost";
        await this.#host.clock.sleep(EVENTS_AGAIN_MS, signal).catch(() => {});
      }
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#socket[Symbol.dispose]();
    return Promise.resolve();
  }

  #report(messages: number): Report {
    const problems = [...this.#problems.values()].sort();
    return { generation: this.#generation, converged: problems.length === 0, messages, problems };
  }

  #carryOut(steps: readonly Step[], known: Map<Cidr, Way>): void {
    if (steps.length === 0) return;
    let errors: readonly (Error | undefined)[];
    try {
      errors = this.#socket.attempt("write routes", steps.map(({ message }) => message));
    } catch (error) {
      this.#known = undefined;
      throw error;
    }
    steps.forEach((step, i) => {
      const error = errors[i];
      // Gone by itself, with its link say.
      const done = error === undefined || step.removes && isErrno(error, "ESRCH", "ENOENT");
      if (!done) {
        this.#problems.set(step.destination, problemOf(step.title, error));
        // Whatever is there now, it is not what was believed.
        if (step.way === undefined || isErrno(error, "EEXIST")) known.delete(step.destination);
      } else if (step.way === undefined) known.delete(step.destination);
      else known.set(step.destination, step.way);
    });
  }

  #dump(): readonly ObservedRoute[] {
    return FAMILIES.flatMap((family: Family) =>
      // Not by table: the kernel has an error for a main table that holds nothing yet.
      this.#socket.dump(`list IPv${family} routes`, getRoutes({ family, protocol: RouteProtocol.Manx })).map(parseRoute)
    );
  }

  /** `strange`: ours, but none that we would write, or a second one for its destination. */
  #look(): { readonly known: Map<Cidr, Way>; readonly strange: readonly ObservedRoute[] } {
    const known = new Map<Cidr, Way>();
    const strange: ObservedRoute[] = [];
    for (const route of this.#dump().filter(isOurs)) {
      const way = wayOf(route);
      if (way === undefined || known.has(route.destination)) strange.push(route);
      else known.set(route.destination, way);
    }
    return { known, strange };
  }

  /** Why an event that others caused concerns us. */
  #reasonOf(message: NetlinkMessage): string | undefined {
    if (message.portId === this.#socket.portId) return undefined;
    switch (message.type) {
      case RTM_NEWROUTE:
      case RTM_DELROUTE: {
        const route = parseRoute(message);
        const known = this.#known?.has(route.destination) ?? true;
        if (route.table !== RouteTable.Main || !(isOurs(route) || known && this.#mayHideOurs(route))) return undefined;
        return message.type === RTM_NEWROUTE ? "a route was written over ours" : "a route of ours was deleted";
      }
      // A link that goes down takes its IPv4 routes along without an event for each.
      case RTM_NEWLINK:
      case RTM_DELLINK: {
        const link = parseLink(message);
        if (POD_LINK.test(link.name)) return undefined;
        const gone = message.type === RTM_DELLINK || !link.up;
        return gone || this.#problems.size > 0 ? `link ${link.name} changed` : undefined;
      }
      case RTM_NEWADDR:
      case RTM_DELADDR: {
        if (parseAddressMessage(message).scope !== RouteScope.Universe) return undefined;
        return message.type === RTM_DELADDR || this.#problems.size > 0 ? "an address of the node changed" : undefined;
      }
      default:
        return undefined;
    }
  }

  #mayHideOurs(route: ObservedRoute): boolean {
    return route.protocol !== RouteProtocol.Manx && this.#wanted.at(route.destination) !== undefined;
  }
}

/** From what the kernel has to what it shall have; undefined where that is the same. */
function stepTo(destination: Cidr, found: Way | undefined, wanted: Way | undefined): readonly Step[] | undefined {
  if (sameWay(found, wanted)) return undefined;
  const remove = found === undefined
    ? []
    : [{ message: removeWay(found), title: titleOf(found), destination, way: undefined, removes: true }];
  if (wanted === undefined) return remove;
  const step = { title: titleOf(wanted), destination, way: wanted, removes: false };
  if (found?.kind === "node" && wanted.kind === "node") return [{ ...step, message: changeWay(wanted) }];
  // They differ in metric, so both can stand; the new one first.
  return [{ ...step, message: addWay(wanted) }, ...remove.map((other) => ({ ...other, way: wanted }))];
}

function problemOf(title: string, error: Error): string {
  if (isErrno(error, "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN")) {
    return `${title}: ${explainError(error)}; routing direct wants the node on a subnet shared with this one`;
  }
  if (isErrno(error, "EEXIST")) return `${title}: a route that is not ours is in its place`;
  return `${title}: ${explainError(error)}`;
}
