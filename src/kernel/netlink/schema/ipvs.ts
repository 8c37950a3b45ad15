/** IP virtual servers by generic netlink: include/uapi/linux/ip_vs.h. */
import type { Address, Family } from "../../../model/address.ts";
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import { DecodeError } from "../../errors.ts";
import {
  type AttributeType,
  attrs,
  be16,
  decodeMessage,
  encodeMessage,
  type Infer,
  messageSchema,
  padding,
  str,
  struct,
  u16,
  u32,
  u8,
} from "../codec.ts";
import { genericHeader } from "../generic.ts";
import { familyFrom, familyOf } from "./family.ts";

/** IPVS_GENL_NAME. */
export const IPVS_FAMILY = "IPVS";
const VERSION = 1;

/** IPVS_CMD_*. */
export const IpvsCommand = {
  NewService: 1,
  SetService: 2,
  DeleteService: 3,
  GetService: 4,
  NewDestination: 5,
  SetDestination: 6,
  DeleteDestination: 7,
  GetDestination: 8,
  SetConfig: 12,
  GetConfig: 13,
  SetInfo: 14,
  GetInfo: 15,
} as const;

/** IP_VS_SVC_F_*. The three of the schedulers: `sh` and `mh` know the first (fallback) and the second (port); the third means nothing to any. */
export const ServiceFlag = {
  Persistent: 0x1,
  Hashed: 0x2,
  OnePacket: 0x4,
  Scheduler1: 0x8,
  Scheduler2: 0x10,
  Scheduler3: 0x20,
} as const;
/** IP_VS_CONN_F_FWD_MASK and what it covers. */
export const ForwardMethod = { Masquerade: 0, LocalNode: 1, Tunnel: 2, DirectRoute: 3, Bypass: 4 } as const;
const FORWARD_MASK = 0x7;

/** union nf_inet_addr: 16 bytes, of which IPv4 uses the first four. Packed; its family is beside it. */
const unionAddress: AttributeType<string> = {
  encode(writer, value) {
    writer.latin1(value);
    writer.zeros(16 - value.length);
  },
  decode(reader, start, end) {
    reader.need(start, end, 4, "an address");
    return reader.latin1(start, end);
  },
};

/** IPVS_SVC_ATTR_*. Statistics are left unread: there are twenty numbers of them for each service. */
const service = attrs({
  family: [1, u16],
  protocol: [2, u16],
  address: [3, unionAddress],
  port: [4, be16],
  firewallMark: [5, u32],
  scheduler: [6, str],
  flags: [7, struct({ flags: u32, mask: u32 })],
  timeoutSeconds: [8, u32],
  /** IPv4: a mask, all of it or it is in network order. IPv6: a prefix length. */
  netmask: [9, u32],
  statistics: [10, padding],
  persistenceEngine: [11, str],
  statistics64: [12, padding],
});

/** IPVS_DEST_ATTR_*. */
const destination = attrs({
  address: [1, unionAddress],
  port: [2, be16],
  forwardMethod: [3, u32],
  weight: [4, u32],
  upperThreshold: [5, u32],
  lowerThreshold: [6, u32],
  activeConnections: [7, u32],
  inactiveConnections: [8, u32],
  persistentConnections: [9, u32],
  statistics: [10, padding],
  family: [11, u16],
  statistics64: [12, padding],
  tunnelType: [13, u8],
  tunnelPort: [14, be16],
  tunnelFlags: [15, u16],
});

/** IPVS_CMD_ATTR_*. */
const command = attrs({
  service: [1, service],
  destination: [2, destination],
  tcpTimeoutSeconds: [4, u32],
  tcpFinTimeoutSeconds: [5, u32],
  udpTimeoutSeconds: [6, u32],
});
export const ipvsMessage = messageSchema("ipvs", genericHeader, command);
/** IPVS_INFO_ATTR_*. */
const infoMessage = messageSchema("ipvs info", genericHeader, attrs({ version: [1, u32], tableSize: [2, u32] }));

/** Which service: by address, protocol and port, or by the mark that packets carry. */
export type ServiceReference =
  | { readonly family: Family; readonly protocol: number; readonly address: Address; readonly port: number }
  | { readonly family: Family; readonly firewallMark: number };

export type VirtualService = ServiceReference & {
  readonly scheduler: string;
  /** `ServiceFlag` bits besides `Persistent` and `Hashed`. */
  readonly flags: number;
  /** A client stays with its server for so long after its last connection; absent: it need not. */
  readonly persistenceSeconds?: number;
};

export interface RealServer {
  readonly address: Address;
  readonly port: number;
  /** `ForwardMethod`. */
  readonly forwardMethod: number;
  /** 0: keeps the connections it has, takes no new ones. */
  readonly weight: number;
}

/** A real server as the kernel tells of it. */
export interface FoundServer extends RealServer {
  readonly activeConnections: number;
  readonly inactiveConnections: number;
  readonly persistentConnections: number;
}

type ServiceAttributes = Infer<typeof service>;

const referenceOf = (which: ServiceReference): ServiceAttributes =>
  "firewallMark" in which
    ? { family: familyOf(which.family), firewallMark: which.firewallMark }
    : { family: familyOf(which.family), protocol: which.protocol, address: which.address, port: which.port };

/** A client is one address: /32 and /128. */
const wholeNetmask = (family: Family): number => family === 4 ? 0xffffffff : 128;
const ALL_FLAGS = 0xffffffff;

const serviceOf = (wanted: VirtualService): ServiceAttributes => ({
  ...referenceOf(wanted),
  scheduler: wanted.scheduler,
  flags: {
    flags: wanted.flags | (wanted.persistenceSeconds === undefined ? 0 : ServiceFlag.Persistent),
    mask: ALL_FLAGS,
  },
  timeoutSeconds: wanted.persistenceSeconds ?? 0,
  netmask: wholeNetmask(wanted.family),
});

const serverOf = ({ address, port, forwardMethod, weight }: RealServer): Infer<typeof destination> => ({
  address,
  port,
  forwardMethod,
  weight,
  upperThreshold: 0,
  lowerThreshold: 0,
  family: familyOf(address.length === 4 ? 4 : 6),
});

/** `id`: of the family `IPVS_FAMILY`. */
const message = (id: number, number: number, attributes: Infer<typeof command>, flags = 0): NetlinkMessage =>
  encodeMessage(ipvsMessage, id, flags, { command: number, version: VERSION }, attributes);

/** EEXIST where there is one; ENOENT where the kernel has no such scheduler. */
export const newService = (id: number, wanted: VirtualService): NetlinkMessage =>
  message(id, IpvsCommand.NewService, { service: serviceOf(wanted) });
/** ESRCH where there is none. */
export const setService = (id: number, wanted: VirtualService): NetlinkMessage =>
  message(id, IpvsCommand.SetService, { service: serviceOf(wanted) });
/** And its servers; ESRCH where there is none. */
export const deleteService = (id: number, which: ServiceReference): NetlinkMessage =>
  message(id, IpvsCommand.DeleteService, { service: referenceOf(which) });
/** To be dumped: every service of the namespace. */
export const getServices = (id: number): NetlinkMessage => message(id, IpvsCommand.GetService, {});

/** EEXIST where the service has it. */
export const newServer = (id: number, of: ServiceReference, wanted: RealServer): NetlinkMessage =>
  message(id, IpvsCommand.NewDestination, { service: referenceOf(of), destination: serverOf(wanted) });
/** ENOENT where the service has none such. */
export const setServer = (id: number, of: ServiceReference, wanted: RealServer): NetlinkMessage =>
  message(id, IpvsCommand.SetDestination, { service: referenceOf(of), destination: serverOf(wanted) });
/** ENOENT where the service has none such. */
export const deleteServer = (
  id: number,
  of: ServiceReference,
  { address, port }: Pick<RealServer, "address" | "port">,
): NetlinkMessage =>
  message(id, IpvsCommand.DeleteDestination, {
    service: referenceOf(of),
    destination: { address, port, family: familyOf(address.length === 4 ? 4 : 6) },
  });
/** To be dumped: the servers of one service; ESRCH, or nothing, where there is no such service. */
export const getServers = (id: number, of: ServiceReference): NetlinkMessage =>
  message(id, IpvsCommand.GetDestination, { service: referenceOf(of) });

/** How long the kernel remembers silent connections; 0 leaves one as it is. */
export const setTimeouts = (
  id: number,
  seconds: { readonly tcp: number; readonly tcpFin: number; readonly udp: number },
): NetlinkMessage =>
  message(id, IpvsCommand.SetConfig, {
    tcpTimeoutSeconds: seconds.tcp,
    tcpFinTimeoutSeconds: seconds.tcpFin,
    udpTimeoutSeconds: seconds.udp,
  });
export const getTimeouts = (id: number): NetlinkMessage => message(id, IpvsCommand.GetConfig, {});
export const getInfo = (id: number): NetlinkMessage => message(id, IpvsCommand.GetInfo, {});

/** A service as the kernel tells of it. @throws {DecodeError} */
export function parseService(received: Pick<NetlinkMessage, "payload">): VirtualService {
  const { service: found } = decodeMessage(ipvsMessage, received).attributes;
  const family = familyFrom(found?.family ?? 0);
  if (found === undefined || family === undefined) throw new DecodeError(4, "no service of IPv4 or IPv6", "one");
  const flags = found.flags?.flags ?? 0;
  const rest = {
    family,
    scheduler: found.scheduler ?? "",
    flags: flags & ~(ServiceFlag.Persistent | ServiceFlag.Hashed),
    ...(flags & ServiceFlag.Persistent) === 0 ? {} : { persistenceSeconds: found.timeoutSeconds ?? 0 },
  };
  if (found.firewallMark !== undefined) return { ...rest, firewallMark: found.firewallMark };
  const { protocol, address, port } = found;
  if (protocol === undefined || address === undefined || port === undefined) {
    throw new DecodeError(4, "a service without address, protocol or port", "all of them, or a mark");
  }
  return { ...rest, protocol, address: cut(address, family), port };
}

/** @throws {DecodeError} */
export function parseServer(received: Pick<NetlinkMessage, "payload">): FoundServer {
  const { destination: found } = decodeMessage(ipvsMessage, received).attributes;
  if (found?.address === undefined || found.port === undefined) {
    throw new DecodeError(4, "a server without address or port", "both");
  }
  // Kernels before 4.1 do not say it: it is the service's then, and an IPv4 address has nothing after its four bytes.
  const family = familyFrom(found.family ?? 0) ?? (/^[^]{4}\0{12}$/.test(found.address) ? 4 : 6);
  return {
    address: cut(found.address, family),
    port: found.port,
    forwardMethod: (found.forwardMethod ?? 0) & FORWARD_MASK,
    weight: found.weight ?? 0,
    activeConnections: found.activeConnections ?? 0,
    inactiveConnections: found.inactiveConnections ?? 0,
    persistentConnections: found.persistentConnections ?? 0,
  };
}

/** @throws {DecodeError} */
export function parseTimeouts(received: Pick<NetlinkMessage, "payload">): { tcp: number; tcpFin: number; udp: number } {
  const { attributes } = decodeMessage(ipvsMessage, received);
  const { tcpTimeoutSeconds: tcp = 0, tcpFinTimeoutSeconds: tcpFin = 0, udpTimeoutSeconds: udp = 0 } = attributes;
  return { tcp, tcpFin, udp };
}

/** `version` as 0x010201; `tableSize`: buckets of the connection table. @throws {DecodeError} */
export function parseInfo(received: Pick<NetlinkMessage, "payload">): { version: number; tableSize: number } {
  const { version = 0, tableSize = 0 } = decodeMessage(infoMessage, received).attributes;
  return { version, tableSize };
}

const cut = (address: string, family: Family): Address => address.slice(0, family === 4 ? 4 : 16) as Address;
