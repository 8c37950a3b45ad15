/** What the kernel's routes say of addresses: which are the node's own, and which link leads to the others. */
import { KernelError } from "../kernel/errors.ts";
import { getLinks, parseLink } from "../kernel/netlink/schema/rt_link.ts";
import { getRoutes, lookUpRoute, parseRoute, RouteTable, RouteType } from "../kernel/netlink/schema/rt_route.ts";
import {
  type Address,
  type Cidr,
  cidrAddress,
  cidrContains,
  cidrFamily,
  cidrPrefix,
  familyBits,
} from "../model/address.ts";
import type { NodeSurroundings } from "../model/flow_judgement.ts";
import type { KernelDoor, NetlinkSocket } from "../sdk/kernel_door.ts";

const NETLINK_ROUTE = 0;
/** Ways that are remembered. */
const WAYS_MAX = 65_536;

/** As of now; ways are looked up when they are asked for. Close it. @throws {KernelError} */
export function readSurroundings(kernel: KernelDoor): NodeSurroundings & Disposable {
  const socket = kernel.netlink(NETLINK_ROUTE);
  try {
    const own = new Set<Address>(), ownNets: Cidr[] = [];
    const local = getRoutes({ table: RouteTable.Local, type: RouteType.Local });
    for (const { family, destination } of socket.dump("list local addresses", local).map(parseRoute)) {
      if (family === undefined) continue;
      if (cidrPrefix(destination) === familyBits(cidrFamily(destination))) own.add(cidrAddress(destination));
      else ownNets.push(destination);
    }
    let names: ReadonlyMap<number, string> | undefined;
    const ways = new Map<Address, string>();
    return {
      isNode: (address) => own.has(address) || ownNets.some((net) => cidrContains(net, address)),
      linkTo(address) {
        let name = ways.get(address);
        if (name !== undefined) return name;
        names ??= linkNames(socket);
        if (ways.size >= WAYS_MAX) ways.clear();
        ways.set(address, name = wayTo(socket, names, address));
        return name;
      },
      [Symbol.dispose]: () => socket[Symbol.dispose](),
    };
  } catch (error) {
    socket[Symbol.dispose]();
    throw error;
  }
}

const linkNames = (socket: NetlinkSocket): ReadonlyMap<number, string> =>
  new Map(socket.dump("list links", getLinks()).map(parseLink).map(({ index, name }) => [index, name]));

function wayTo(socket: NetlinkSocket, names: ReadonlyMap<number, string>, address: Address): string {
  try {
    const [route] = socket.request("look up a route", [lookUpRoute(address)]).map(parseRoute);
    return names.get(route?.outputIndex ?? -1) ?? "";
  } catch (error) {
    // Unreachable, prohibited, not routable: no link leads there.
    if (error instanceof KernelError) return "";
    throw error;
  }
}
