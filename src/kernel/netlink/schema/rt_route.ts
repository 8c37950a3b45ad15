/** Routes: RTM_NEWROUTE and its kin, include/uapi/linux/rtnetlink.h. */
import {
  type Address,
  type Cidr,
  cidrAddress,
  cidrFamily,
  cidrPrefix,
  type Family,
  makeCidr,
} from "../../../model/address.ts";
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import { EncodeError } from "../../errors.ts";
import {
  address,
  type AttributeType,
  attrs,
  bytes,
  decodeMessage,
  encodeMessage,
  type Infer,
  MessageFlag,
  messageSchema,
  padding,
  struct,
  u16,
  u32,
  u8,
} from "../codec.ts";
import { AF_INET, AF_INET6, familyFrom, familyOf } from "./family.ts";

export const RTM_NEWROUTE = 24;
export const RTM_DELROUTE = 25;
export const RTM_GETROUTE = 26;
/** Multicast groups of route changes. */
export const RTNLGRP_IPV4_ROUTE = 7;
export const RTNLGRP_IPV6_ROUTE = 11;

/** RTN_*: what becomes of the packet. */
export const RouteType = {
  Unspecified: 0,
  Unicast: 1,
  Local: 2,
  Broadcast: 3,
  Anycast: 4,
  Multicast: 5,
  Blackhole: 6,
  Unreachable: 7,
  Prohibit: 8,
  Throw: 9,
} as const;
/** RTPROT_*: who made the route. */
export const RouteProtocol = { Unspecified: 0, Redirect: 1, Kernel: 2, Boot: 3, Static: 4, Manx: 86 } as const;
/** enum rt_scope_t: `Link` is what a next hop without a gateway wants. */
export const RouteScope = { Universe: 0, Site: 200, Link: 253, Host: 254, Nowhere: 255 } as const;
/** enum rt_class_t. */
export const RouteTable = { Unspecified: 0, Default: 253, Main: 254, Local: 255 } as const;
/** RTNH_F_*: `OnLink` believes the gateway to be reachable without a route to it. */
export const NextHopFlag = { Dead: 1, Pervasive: 2, OnLink: 4, Offload: 8, LinkDown: 16 } as const;

/** struct rtmsg. */
const routeHeader = struct({
  family: u8,
  destinationPrefix: u8,
  sourcePrefix: u8,
  tos: u8,
  table: u8,
  protocol: u8,
  scope: u8,
  type: u8,
  flags: u32,
});

/** RTAX_*. */
export const routeMetrics = attrs({
  lock: [1, u32],
  mtu: [2, u32],
  window: [3, u32],
  advertisedMss: [8, u32],
  hopLimit: [10, u32],
});

/** struct rtvia: a gateway of the other address family. */
const via: AttributeType<Address> = {
  encode(writer, value) {
    writer.u16(value.length === 4 ? AF_INET : AF_INET6);
    writer.latin1(value);
  },
  decode(reader, start, end) {
    reader.need(start, end, 2, "rtvia");
    return address.decode(reader, start + 2, end, {});
  },
};

/** RTA_* within one next hop of RTA_MULTIPATH. */
const nextHopAttributes = attrs({
  gateway: [5, address],
  flow: [11, u32],
  via: [18, via],
  encapType: [21, u16],
  encap: [22, bytes],
});

/** struct rtnexthop and its attributes; `hops` is the weight less one. */
export interface NextHopEntry {
  readonly flags: number;
  readonly hops: number;
  readonly index: number;
  readonly attributes: Infer<typeof nextHopAttributes>;
}

const NEXT_HOP_BYTES = 8;

/** RTA_MULTIPATH: structures with lengths, laid out as attributes are but not attributes. */
const multipath: AttributeType<readonly NextHopEntry[]> = {
  encode(writer, hops) {
    for (const { flags, hops: weight, index, attributes } of hops) {
      const at = writer.reserve(NEXT_HOP_BYTES);
      nextHopAttributes.encode(writer, attributes, {});
      const length = writer.length - at;
      if (length > 0xffff) throw new EncodeError(`a next hop of ${length} bytes`, "at most 65535");
      writer.view.setUint16(at, length, true);
      writer.view.setUint8(at + 2, flags);
      writer.view.setUint8(at + 3, weight);
      writer.view.setInt32(at + 4, index, true);
    }
  },
  decode(reader, start, end) {
    const hops: NextHopEntry[] = [];
    for (let at = start; at < end;) {
      reader.need(at, end, NEXT_HOP_BYTES, "rtnexthop");
      const length = reader.view.getUint16(at, true);
      if (length < NEXT_HOP_BYTES || length > end - at) {
        throw reader.error(at, `a next hop of ${length} bytes`, `${NEXT_HOP_BYTES} to ${end - at}`);
      }
      hops.push({
        flags: reader.view.getUint8(at + 2),
        hops: reader.view.getUint8(at + 3),
        index: reader.view.getInt32(at + 4, true),
        attributes: nextHopAttributes.decode(reader, at + NEXT_HOP_BYTES, at + length, {}),
      });
      at += length + 3 & ~3;
    }
    return hops;
  },
};

/** RTA_*. */
export const routeAttributes = attrs({
  destination: [1, address],
  source: [2, address],
  inputIndex: [3, u32],
  outputIndex: [4, u32],
  gateway: [5, address],
  priority: [6, u32],
  preferredSource: [7, address],
  metrics: [8, routeMetrics],
  multipath: [9, multipath],
  flow: [11, u32],
  cacheInfo: [12, bytes],
  table: [15, u32],
  mark: [16, u32],
  via: [18, via],
  preference: [20, u8],
  encapType: [21, u16],
  encap: [22, bytes],
  expires: [23, u32],
  padding: [24, padding],
  uid: [25, u32],
  ipProtocol: [27, u8],
  nextHopId: [30, u32],
});
export type RouteAttributes = Infer<typeof routeAttributes>;
export const routeMessage = messageSchema("route", routeHeader, routeAttributes);

/** One way of several. */
export interface NextHop {
  readonly gateway?: Address;
  readonly outputIndex?: number;
  readonly onLink?: boolean;
  /** 1 to 256. */
  readonly weight?: number;
}

export interface Route {
  /** `0.0.0.0/0` and `::/0` are the default routes. */
  readonly destination: Cidr;
  /** Default: main. */
  readonly table?: number;
  /** A `RouteProtocol`; default: static. */
  readonly protocol?: number;
  /** A `RouteScope`; default: link for a v4 unicast route without gateway, host for local ones, else universe. */
  readonly scope?: number;
  /** A `RouteType`; default: unicast. */
  readonly type?: number;
  readonly outputIndex?: number;
  /** Of either family: RTA_VIA is used where it differs from the destination's. */
  readonly gateway?: Address;
  readonly onLink?: boolean;
  readonly preferredSource?: Address;
  /** The metric: lower wins. */
  readonly priority?: number;
  readonly mtu?: number;
  /** RTAX_ADVMSS. */
  readonly advertisedMss?: number;
  readonly nextHops?: readonly NextHop[];
}

function defaultScope(route: Route, type: number): number {
  if (cidrFamily(route.destination) === 6) return RouteScope.Universe;
  if (type === RouteType.Local) return RouteScope.Host;
  const direct = route.gateway === undefined && (route.nextHops ?? []).every((hop) => hop.gateway === undefined);
  const unicast = type === RouteType.Unicast || type === RouteType.Broadcast || type === RouteType.Multicast;
  return unicast && direct ? RouteScope.Link : RouteScope.Universe;
}

const gatewayOf = (family: Family, gateway: Address | undefined) =>
  gateway === undefined ? {} : (gateway.length === 4) === (family === 4) ? { gateway } : { via: gateway };

function routeOf(type: number, flags: number, route: Route, scope: (type: number) => number): NetlinkMessage {
  const family = cidrFamily(route.destination);
  const prefix = cidrPrefix(route.destination);
  const routeType = route.type ?? (type === RTM_DELROUTE ? RouteType.Unspecified : RouteType.Unicast);
  const table = route.table ?? RouteTable.Main;
  const metrics = route.mtu === undefined && route.advertisedMss === undefined
    ? undefined
    : { mtu: route.mtu, advertisedMss: route.advertisedMss };
  return encodeMessage(routeMessage, type, flags, {
    family: familyOf(family),
    destinationPrefix: prefix,
    table: table < 256 ? table : RouteTable.Unspecified,
    protocol: route.protocol ?? (type === RTM_DELROUTE ? RouteProtocol.Unspecified : RouteProtocol.Static),
    scope: route.scope ?? scope(routeType),
    type: routeType,
    flags: route.onLink ? NextHopFlag.OnLink : 0,
  }, {
    destination: prefix === 0 ? undefined : cidrAddress(route.destination),
    outputIndex: route.outputIndex,
    ...gatewayOf(family, route.gateway),
    priority: route.priority,
    preferredSource: route.preferredSource,
    metrics,
    multipath: route.nextHops?.map((hop) => ({
      flags: hop.onLink ? NextHopFlag.OnLink : 0,
      hops: (hop.weight ?? 1) - 1,
      index: hop.outputIndex ?? 0,
      attributes: gatewayOf(family, hop.gateway),
    })),
    table: table < 256 ? undefined : table,
  });
}

/** RTM_NEWROUTE; `flags` are `MessageFlag` bits: by default EEXIST where it is there, `Create | Replace` overwrites. */
export const newRoute = (route: Route, flags: number = MessageFlag.Create | MessageFlag.Exclusive): NetlinkMessage =>
  routeOf(RTM_NEWROUTE, flags, route, (type) => defaultScope(route, type));

/** RTM_DELROUTE of the first route that has what is given; ESRCH where there is none. */
export const delRoute = (route: Route): NetlinkMessage => routeOf(RTM_DELROUTE, 0, route, () => RouteScope.Nowhere);

/** RTM_GETROUTE of all routes, for `dump`; the kernel filters. */
export const getRoutes = (
  filter: {
    readonly family?: Family;
    readonly table?: number;
    readonly protocol?: number;
    readonly type?: number;
    readonly outputIndex?: number;
  } = {},
): NetlinkMessage =>
  encodeMessage(routeMessage, RTM_GETROUTE, 0, {
    family: familyOf(filter.family),
    protocol: filter.protocol,
    type: filter.type,
  }, { outputIndex: filter.outputIndex, table: filter.table });

/** RTM_GETROUTE: which way a packet to `destination` would take, for `request`. */
export const lookUpRoute = (
  destination: Address,
  from: { readonly source?: Address; readonly inputIndex?: number; readonly mark?: number } = {},
): NetlinkMessage =>
  encodeMessage(routeMessage, RTM_GETROUTE, 0, {
    family: destination.length === 4 ? AF_INET : AF_INET6,
    destinationPrefix: destination.length * 8,
    sourcePrefix: from.source === undefined ? 0 : from.source.length * 8,
  }, { destination, source: from.source, inputIndex: from.inputIndex, mark: from.mark });

/** A route as the kernel describes it. */
export interface ObservedRoute extends Route {
  readonly family: Family | undefined;
  readonly table: number;
  readonly protocol: number;
  readonly scope: number;
  readonly type: number;
  readonly onLink: boolean;
  readonly attributes: RouteAttributes;
}

/** Reads RTM_NEWROUTE and RTM_DELROUTE; families other than IP have an undefined family and a v4 destination of no meaning.
 * @throws {DecodeError} */
export function parseRoute(message: Pick<NetlinkMessage, "payload">): ObservedRoute {
  const { header, attributes } = decodeMessage(routeMessage, message);
  const family = familyFrom(header.family);
  const nothing = "\0".repeat(family === 6 ? 16 : 4) as Address;
  return {
    family,
    destination: makeCidr(attributes.destination ?? nothing, header.destinationPrefix),
    table: attributes.table ?? header.table,
    protocol: header.protocol,
    scope: header.scope,
    type: header.type,
    outputIndex: attributes.outputIndex,
    gateway: attributes.gateway ?? attributes.via,
    onLink: (header.flags & NextHopFlag.OnLink) !== 0,
    preferredSource: attributes.preferredSource,
    priority: attributes.priority,
    mtu: attributes.metrics?.mtu,
    advertisedMss: attributes.metrics?.advertisedMss,
    nextHops: attributes.multipath?.map((hop) => ({
      gateway: hop.attributes.gateway ?? hop.attributes.via,
      outputIndex: hop.index,
      onLink: (hop.flags & NextHopFlag.OnLink) !== 0,
      weight: hop.hops + 1,
    })),
    attributes,
  };
}
