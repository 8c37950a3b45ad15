/** The node's own links and their addresses, as the calculation wants them, followed for as long as the daemon runs. */
import { isErrno } from "../kernel/errors.ts";
import {
  getLinks,
  LinkFlag,
  parseLink,
  RTM_DELLINK,
  RTM_NEWLINK,
  RTNLGRP_LINK,
} from "../kernel/netlink/schema/rt_link.ts";
import {
  AddressFlag,
  getAddresses,
  parseAddressMessage,
  RTM_DELADDR,
  RTM_NEWADDR,
  RTNLGRP_IPV4_IFADDR,
  RTNLGRP_IPV6_IFADDR,
} from "../kernel/netlink/schema/rt_addr.ts";
import { getRoutes, parseRoute, RouteTable } from "../kernel/netlink/schema/rt_route.ts";
import { type Address, addressFamily, cidrPrefix, type Family } from "../model/address.ts";
import type { WorldChange } from "../model/world.ts";
import { explainError } from "../sdk/errors.ts";
import type { KernelDoor, NetlinkMessage, NetlinkSocket } from "../sdk/kernel_door.ts";
import type { Clock, Log } from "../sdk/plugin.ts";

const NETLINK_ROUTE = 0;
/** rt_scope_t RT_SCOPE_UNIVERSE. */
const SCOPE_UNIVERSE = 0;
const RESTART_PAUSE_MS = 200;
const GATHER_MS = 20;
/**
 * Links of pods: they come and go with endpoints, which say all there is to say of them. And those with the addresses of services: every node
 * has these, thousands of them.
 */
const OUR_LINK = /^(mx[0-9a-f]{11}|manx-ipvs[0-9]+)$/;

interface NodeLink {
  readonly name: string;
  readonly addresses: ReadonlySet<Address>;
}

export interface Links {
  /** Every link there is now, as changes; after a restart of the stream also those that are gone. */
  snapshot(): readonly WorldChange[];
  /** At most one a family: of the link with the default route, else of the first link that has one. */
  nodeAddresses(): readonly Address[];
  /** Calls `report` for each change until `signal` aborts. Never rejects. */
  follow(report: (changes: readonly WorldChange[]) => void, signal: AbortSignal): Promise<void>;
}

export function createLinks(kernel: KernelDoor, log: Log, clock: Clock): Links {
  /** By interface index; neither pod links nor loopback. */
  let links = new Map<number, NodeLink>();

  const changeOf = (name: string, addresses: Iterable<Address> | undefined): WorldChange => ({
    origin: `interface/${name}`,
    objects: addresses === undefined ? [] : [{ kind: "interface", id: name, addresses: [...addresses].sort() }],
  });

  function read(socket: NetlinkSocket): readonly WorldChange[] {
    const before = links;
    links = new Map();
    for (const message of socket.dump("list links", getLinks())) noteLink(message);
    for (const message of socket.dump("list addresses", getAddresses())) noteAddress(message);
    const names = new Set([...links.values()].map((link) => link.name));
    const gone = [...before.values()].filter((link) => !names.has(link.name)).map((link) =>
      changeOf(link.name, undefined)
    );
    return [...gone, ...[...links.values()].map((link) => changeOf(link.name, link.addresses))];
  }

  function noteLink(message: NetlinkMessage): readonly WorldChange[] {
    const { index, name, flags } = parseLink(message);
    const before = links.get(index);
    if (message.type === RTM_DELLINK) {
      links.delete(index);
      return before === undefined ? [] : [changeOf(before.name, undefined)];
    }
    if (before?.name === name || OUR_LINK.test(name) || (flags & LinkFlag.Loopback) !== 0) return [];
    const link = { name, addresses: before?.addresses ?? new Set<Address>() };
    links.set(index, link);
    return [...before === undefined ? [] : [changeOf(before.name, undefined)], changeOf(name, link.addresses)];
  }

  function noteAddress(message: NetlinkMessage): readonly WorldChange[] {
    const { index, address } = parseAddressMessage(message);
    const link = links.get(index);
    if (link === undefined || link.addresses.has(address) === (message.type === RTM_NEWADDR)) return [];
    const addresses = new Set(link.addresses);
    if (message.type === RTM_NEWADDR) addresses.add(address);
    else addresses.delete(address);
    links.set(index, { name: link.name, addresses });
    return [changeOf(link.name, addresses)];
  }

  function note(message: NetlinkMessage): readonly WorldChange[] {
    if (message.type === RTM_NEWLINK || message.type === RTM_DELLINK) return noteLink(message);
    if (message.type === RTM_NEWADDR || message.type === RTM_DELADDR) return noteAddress(message);
    return [];
  }

  return {
    snapshot() {
      using socket = kernel.netlink(NETLINK_ROUTE);
      return read(socket);
    },

    nodeAddresses() {
      using socket = kernel.netlink(NETLINK_ROUTE);
      const candidates = socket.dump("list addresses", getAddresses()).map((message) => parseAddressMessage(message))
        .filter(({ index, scope, flags }) =>
          scope === SCOPE_UNIVERSE && links.has(index) &&
          (flags & (AddressFlag.Tentative | AddressFlag.Deprecated)) === 0
        );
      const families: readonly Family[] = [4, 6];
      return families.flatMap((family) => {
        const preferred = defaultRouteIndex(socket, family);
        const own = candidates.filter((candidate) => addressFamily(candidate.address) === family).sort((a, b) =>
          a.index - b.index
        );
        return (own.find((candidate) => candidate.index === preferred) ?? own[0])?.address ?? [];
      });
    },

    async follow(report, signal) {
      while (!signal.aborted) {
        try {
          using socket = kernel.netlink(NETLINK_ROUTE, {
            groups: [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR],
          });
          report(read(socket));
          const gathered = gather(clock, signal, (messages) => {
            const changes = messages.flatMap(note);
            if (changes.length > 0) report(changes);
          });
          for await (const messages of socket.events(signal)) gathered(messages);
        } catch (error) {
          if (signal.aborted) return;
          // ENOBUFS among them: what was missed is read anew.
          log.warn("links: events lost, reading anew", { error: explainError(error) });
          await clock.sleep(RESTART_PAUSE_MS, signal).catch(() => {});
        }
      }
    },
  };
}

/** Every pod's link makes events of its own: they are read when the ADD that caused them is likely over, not in its way. */
function gather(
  clock: Clock,
  signal: AbortSignal,
  take: (messages: readonly NetlinkMessage[]) => void,
): (messages: readonly NetlinkMessage[]) => void {
  const waiting: NetlinkMessage[] = [];
  return (messages) => {
    if (waiting.length === 0) void clock.sleep(GATHER_MS, signal).then(() => take(waiting.splice(0)), () => {});
    waiting.push(...messages);
  };
}

function defaultRouteIndex(socket: NetlinkSocket, family: Family): number | undefined {
  let messages: readonly NetlinkMessage[];
  try {
    messages = socket.dump("list routes", getRoutes({ family, table: RouteTable.Main }));
  } catch (error) {
    // A namespace that never had a route has no table either.
    if (isErrno(error, "ENOENT")) return undefined;
    throw error;
  }
  return messages.map((message) => parseRoute(message))
    .filter((route) => route.family === family && cidrPrefix(route.destination) === 0)
    .sort((a, b) => (a.priority ?? 0) - (b.priority ?? 0))[0]?.outputIndex;
}
