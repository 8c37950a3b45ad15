/** What IPVS holds: read, and compared with what it was thought to hold, a turn at a time. */
import { formatAddress } from "../../src/model/address.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import {
  type FoundServer,
  getServers,
  getServices,
  parseServer,
  parseService,
  type RealServer,
  type ServiceReference,
  type VirtualService,
} from "../../src/kernel/netlink/schema/ipvs.ts";
import type { NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { OUR_FLAG, serverKey, serviceKey } from "./render.ts";
import type { Turns } from "./turns.ts";

export interface FoundService {
  readonly service: VirtualService;
  /** By `serverKey`. */
  readonly servers: Map<string, RealServer>;
}

export interface FoundServices {
  /** Ours, by `serviceKey`. */
  readonly ours: ReadonlyMap<string, FoundService>;
  /** Somebody else's. */
  readonly foreign: ReadonlySet<string>;
}

/** How IPVS is asked. */
export interface IpvsDoor {
  /** Number of the generic netlink family. */
  readonly family: number;
  /** A socket for as long as something is read. */
  open(): NetlinkSocket;
  turns(): Turns;
}

const NAMES = new Map<number, string>([[PROTOCOLS.TCP, "tcp"], [PROTOCOLS.UDP, "udp"], [PROTOCOLS.SCTP, "sctp"]]);
export const protocolText = (protocol: number): string => NAMES.get(protocol) ?? String(protocol);
/** `10.96.0.1:80`, `[fd00::1]:80`. */
export const endText = ({ address, port }: Pick<RealServer, "address" | "port">): string =>
  address.length === 4 ? `${formatAddress(address)}:${port}` : `[${formatAddress(address)}]:${port}`;
/** `tcp 10.96.0.1:80`, `mark 0x480000 IPv4`. */
export const serviceText = (one: ServiceReference): string =>
  "firewallMark" in one
    ? `mark 0x${one.firewallMark.toString(16)} IPv${one.family}`
    : `${protocolText(one.protocol)} ${endText(one)}`;

export const isOurs = ({ flags }: VirtualService): boolean => (flags & OUR_FLAG) !== 0;
export const sameService = (a: VirtualService, b: VirtualService): boolean =>
  a.scheduler === b.scheduler && a.flags === b.flags && a.persistenceSeconds === b.persistenceSeconds;
export const sameServer = (a: RealServer, b: RealServer): boolean =>
  a.weight === b.weight && a.forwardMethod === b.forwardMethod;

/** With its connections; none where there is no such service. @throws {KernelError} */
export function listServers(
  socket: NetlinkSocket,
  family: number,
  service: ServiceReference,
): readonly FoundServer[] {
  try {
    return socket.dump(`list IPVS servers of ${serviceText(service)}`, getServers(family, service)).map(parseServer);
  } catch (error) {
    // Gone between the two dumps.
    if (isErrno(error, "ESRCH")) return [];
    throw error;
  }
}

/** By `serverKey`. @throws {KernelError} */
export function serversOf(socket: NetlinkSocket, family: number, service: ServiceReference): Map<string, RealServer> {
  return new Map(
    listServers(socket, family, service).map(({ address, port, forwardMethod, weight }) => {
      const server: RealServer = { address, port, forwardMethod, weight };
      return [serverKey(server), server] as const;
    }),
  );
}

/** By `serviceKey`. */
async function listServices(
  socket: NetlinkSocket,
  { family }: IpvsDoor,
  turns: Turns,
): Promise<ReadonlyMap<string, VirtualService>> {
  const services = new Map<string, VirtualService>();
  for await (const messages of socket.dumpBehind("list IPVS services", getServices(family))) {
    for (const message of messages) {
      if (turns.isOver()) await turns.next();
      const service = parseService(message);
      services.set(serviceKey(service), service);
    }
  }
  return services;
}

/** One dump of services and one for each of ours. @throws {KernelError} */
export async function readServices(door: IpvsDoor): Promise<FoundServices> {
  const turns = door.turns();
  using socket = door.open();
  const ours = new Map<string, FoundService>(), foreign = new Set<string>();
  for (const [key, service] of await listServices(socket, door, turns)) {
    if (turns.isOver()) await turns.next();
    if (isOurs(service)) ours.set(key, { service, servers: serversOf(socket, door.family, service) });
    else foreign.add(key);
  }
  return { ours, foreign };
}

/** What is thought to be there. It may be another one in the next turn. */
export interface Expectation {
  readonly found: FoundServices;
  /** Another number after each write. */
  readonly version: number;
}

/** A list that was written to meanwhile is taken anew so often, and left for another time then. */
const LISTS_MAX = 3;

/** The first thing that the kernel has otherwise than `expected`; undefined where there is none. @throws {KernelError} */
export async function findDifference(
  door: IpvsDoor,
  expected: Expectation,
  signal: AbortSignal,
): Promise<string | undefined> {
  const turns = door.turns();
  using socket = door.open();
  const listed = await differenceOfLists(socket, door, expected, turns, signal);
  if (listed !== undefined) return listed;
  for (const key of [...expected.found.ours.keys()]) {
    if (turns.isOver()) await turns.next();
    if (signal.aborted) return undefined;
    // What is expected of one and what there is of it are looked at in one turn, in which nobody writes.
    const is = expected.found.ours.get(key);
    if (is === undefined) continue;
    const servers = serversOf(socket, door.family, is.service);
    const isSame = servers.size === is.servers.size && [...is.servers].every(([id, server]) => {
      const one = servers.get(id);
      return one !== undefined && sameServer(one, server);
    });
    if (!isSame) return `servers of ${serviceText(is.service)} were changed`;
  }
  return undefined;
}

async function differenceOfLists(
  socket: NetlinkSocket,
  door: IpvsDoor,
  expected: Expectation,
  turns: Turns,
  signal: AbortSignal,
): Promise<string | undefined> {
  for (let lists = 0; lists < LISTS_MAX; lists++) {
    const { version } = expected;
    const found = await listServices(socket, door, turns);
    const difference = await firstOfLists(found, expected.found, turns);
    if (signal.aborted) return undefined;
    if (expected.version === version) return difference;
  }
  return undefined;
}

async function firstOfLists(
  found: ReadonlyMap<string, VirtualService>,
  { ours, foreign }: FoundServices,
  turns: Turns,
): Promise<string | undefined> {
  for (const [key, { service }] of ours) {
    if (turns.isOver()) await turns.next();
    const is = found.get(key);
    if (is === undefined) return `${serviceText(service)} is gone`;
    if (!isOurs(is)) return `${serviceText(service)} became somebody else's`;
    if (!sameService(is, service)) return `${serviceText(service)} was changed`;
  }
  for (const [key, service] of found) {
    if (turns.isOver()) await turns.next();
    if (isOurs(service) && !ours.has(key)) return `${serviceText(service)} appeared`;
  }
  for (const key of foreign) if (!found.has(key)) return "somebody else's service is gone";
  return undefined;
}
