/** Links: RTM_NEWLINK and its kin, include/uapi/linux/rtnetlink.h and if_link.h. */
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import {
  address,
  attrs,
  be16,
  bytes,
  decodeMessage,
  encodeMessage,
  hardwareAddress,
  headed,
  i32,
  type Infer,
  list,
  MessageFlag,
  messageSchema,
  pad,
  padding,
  str,
  struct,
  switched,
  u16,
  u32,
  u8,
} from "../codec.ts";

export const RTM_NEWLINK = 16;
export const RTM_DELLINK = 17;
export const RTM_GETLINK = 18;
export const RTM_SETLINK = 19;
/** Multicast group of link changes. */
export const RTNLGRP_LINK = 1;

/** enum net_device_flags, include/uapi/linux/if.h. */
export const LinkFlag = {
  Up: 0x1,
  Broadcast: 0x2,
  Loopback: 0x8,
  Running: 0x40,
  NoArp: 0x80,
  Promiscuous: 0x100,
  Multicast: 0x1000,
  LowerUp: 0x10000,
} as const;

/** IF_OPER_* of IFLA_OPERSTATE, include/uapi/linux/if.h. */
export const OperState = {
  Unknown: 0,
  NotPresent: 1,
  Down: 2,
  LowerLayerDown: 3,
  Testing: 4,
  Dormant: 5,
  Up: 6,
} as const;

/** enum in6_addr_gen_mode, include/uapi/linux/if_link.h: `None` makes no link-local address of its own accord. */
export const AddrGenMode = { Eui64: 0, None: 1, StablePrivacy: 2, Random: 3 } as const;

/** struct ifinfomsg. */
export const linkHeader = struct({ family: u8, pad: pad(1), type: u16, index: i32, flags: u32, change: u32 });

/** IFLA_INET6_*. */
export const linkInet6 = attrs({ flags: [1, u32], token: [7, address], addrGenMode: [8, u8] });

/** IFLA_AF_SPEC: by address family. */
const linkFamilies = attrs({ inet: [2, bytes], inet6: [10, linkInet6] });

/** IFLA_PROP_LIST: IFLA_ALT_IFNAME as often as there are other names. */
const alternativeNames = list(() => str, 53);

/** IFLA_* but what kind of link it is. */
const linkShape = {
  address: [1, hardwareAddress],
  broadcast: [2, hardwareAddress],
  name: [3, str],
  mtu: [4, u32],
  link: [5, i32],
  qdisc: [6, str],
  master: [10, u32],
  txQueueLength: [13, u32],
  operState: [16, u8],
  linkMode: [17, u8],
  namespacePid: [19, u32],
  alias: [20, str],
  families: [26, linkFamilies],
  group: [27, u32],
  namespaceFd: [28, u32],
  extMask: [29, u32],
  promiscuity: [30, u32],
  txQueues: [31, u32],
  rxQueues: [32, u32],
  carrier: [33, u8],
  linkNamespaceId: [37, i32],
  gsoMaxSegments: [40, u32],
  gsoMaxBytes: [41, u32],
  padding: [42, padding],
  newNamespaceId: [45, i32],
  targetNamespaceId: [46, i32],
  newIndex: [49, i32],
  minMtu: [50, u32],
  maxMtu: [51, u32],
  alternativeNames: [52, alternativeNames],
} as const;
/** VETH_INFO_PEER, include/uapi/linux/veth.h: the other end as a link of its own. */
export const vethData = attrs({ peer: [1, headed(linkHeader, () => peerLink)] });
const peerLink = attrs(linkShape);

/** IFLA_BR_*; times in hundredths of a second. */
export const bridgeData = attrs({
  forwardDelay: [1, u32],
  helloTime: [2, u32],
  maxAge: [3, u32],
  ageingTime: [4, u32],
  stpState: [5, u32],
  priority: [6, u16],
  vlanFiltering: [7, u8],
  vlanProtocol: [8, be16],
  groupForwardMask: [9, u16],
  multicastRouter: [22, u8],
  multicastSnooping: [23, u8],
  multicastQuerier: [25, u8],
  callIptables: [36, u8],
  callIp6tables: [37, u8],
  callArptables: [38, u8],
  vlanDefaultPvid: [39, u16],
  padding: [40, padding],
});

/** IFLA_BRPORT_*: a link whose master is a bridge. */
export const bridgePortData = attrs({
  state: [1, u8],
  priority: [2, u16],
  cost: [3, u32],
  hairpin: [4, u8],
  guard: [5, u8],
  protect: [6, u8],
  fastLeave: [7, u8],
  learning: [8, u8],
  unicastFlood: [9, u8],
  proxyArp: [10, u8],
  multicastFlood: [27, u8],
  broadcastFlood: [30, u8],
  neighbourSuppress: [32, u8],
  isolated: [33, u8],
  padding: [26, padding],
});

/** IFLA_VXLAN_*; `remote` is a group or one address. */
export const vxlanData = attrs({
  vni: [1, u32],
  remote: [2, address],
  link: [3, u32],
  local: [4, address],
  ttl: [5, u8],
  tos: [6, u8],
  learning: [7, u8],
  ageingSeconds: [8, u32],
  limit: [9, u32],
  proxy: [11, u8],
  l2Miss: [13, u8],
  l3Miss: [14, u8],
  port: [15, be16],
  remote6: [16, address],
  local6: [17, address],
  udpChecksum: [18, u8],
  udpZeroChecksum6Tx: [19, u8],
  udpZeroChecksum6Rx: [20, u8],
});

/** IFLA_VLAN_*: only the id and protocol (0x8100 for 802.1Q). */
export const vlanData = attrs({ id: [1, u16], protocol: [5, be16] });
/** IFLA_MACVLAN_*: mode 1 private, 2 vepa, 4 bridge, 8 passthru. */
export const macvlanData = attrs({ mode: [1, u32], flags: [2, u16] });
/** IFLA_VRF_TABLE. */
export const vrfData = attrs({ table: [1, u32] });
const emptyData = attrs({});

/** IFLA_INFO_*. */
export const linkInfo = attrs({
  kind: [1, str],
  data: [
    2,
    switched("kind", () => ({
      veth: vethData,
      bridge: bridgeData,
      vxlan: vxlanData,
      vlan: vlanData,
      macvlan: macvlanData,
      vrf: vrfData,
      dummy: emptyData,
    })),
  ],
  memberKind: [4, str],
  memberData: [5, switched("memberKind", () => ({ bridge: bridgePortData }))],
});
export type LinkInfo = Infer<typeof linkInfo>;

/** IFLA_*. */
export const link = attrs({ ...linkShape, info: [18, linkInfo] });
export type LinkAttributes = Infer<typeof link>;

export const linkMessage = messageSchema("link", linkHeader, link);

/** One end of a link as it shall be. */
export interface LinkSpec {
  readonly name?: string;
  /** Interface index wanted; the kernel chooses where absent. */
  readonly index?: number;
  /** `02:00:5e:10:00:01`. */
  readonly hardwareAddress?: string;
  readonly mtu?: number;
  /** Index of the bridge or vrf it belongs to; 0 takes it out. */
  readonly master?: number;
  /** IFLA_GROUP: a number by which many links are deleted at once. */
  readonly group?: number;
  readonly up?: boolean;
  /** The namespace it is put into. */
  readonly namespaceFd?: number;
  readonly txQueueLength?: number;
  /** IFLA_IFALIAS, which like `addrGenMode` the kernel takes of a link that exists, not while one is made. */
  readonly alias?: string;
  /** An `AddrGenMode`. */
  readonly addrGenMode?: number;
  /** Further attributes, as they are. */
  readonly more?: LinkAttributes;
}

/** A link to make. The kernel refuses to make a veth's peer up (ENOTCONN): use `setLink` in its namespace. */
export type NewLinkSpec =
  & LinkSpec
  & (
    | { readonly kind: "veth"; readonly peer: Omit<LinkSpec, "up"> }
    | { readonly kind: string; readonly data?: LinkInfo["data"] }
  );

/** Which link: by name or by index. */
export type LinkReference = { readonly name: string } | { readonly index: number };

function attributesOf(spec: LinkSpec): LinkAttributes {
  return {
    name: spec.name,
    address: spec.hardwareAddress,
    mtu: spec.mtu,
    master: spec.master,
    group: spec.group,
    namespaceFd: spec.namespaceFd,
    txQueueLength: spec.txQueueLength,
    alias: spec.alias,
    families: spec.addrGenMode === undefined ? undefined : { inet6: { addrGenMode: spec.addrGenMode } },
    ...spec.more,
  };
}

const headerOf = (spec: LinkSpec) => ({
  index: spec.index,
  flags: spec.up === true ? LinkFlag.Up : 0,
  change: spec.up === undefined ? 0 : LinkFlag.Up,
});

/** RTM_NEWLINK that makes a link, EEXIST where its name is taken. A veth's `peer` may be put into another namespace. */
export function newLink(spec: NewLinkSpec): NetlinkMessage {
  const data = "peer" in spec
    ? { peer: { header: headerOf(spec.peer), attributes: attributesOf(spec.peer) } }
    : spec.data;
  return encodeMessage(linkMessage, RTM_NEWLINK, MessageFlag.Create | MessageFlag.Exclusive, headerOf(spec), {
    ...attributesOf(spec),
    info: { kind: spec.kind, data },
  });
}

/** RTM_SETLINK of the link `which`; a `name` in `change` renames it (by index only: a name finds the link otherwise). */
export function setLink(which: LinkReference, change: LinkSpec): NetlinkMessage {
  const attributes = attributesOf(change);
  if ("index" in which) {
    return encodeMessage(linkMessage, RTM_SETLINK, 0, { ...headerOf(change), index: which.index }, attributes);
  }
  return encodeMessage(linkMessage, RTM_SETLINK, 0, headerOf(change), { ...attributes, name: which.name });
}

/** RTM_DELLINK; ENODEV where there is none. */
export const delLink = (which: LinkReference): NetlinkMessage =>
  encodeMessage(
    linkMessage,
    RTM_DELLINK,
    0,
    { index: "index" in which ? which.index : 0 },
    { name: "name" in which ? which.name : undefined },
  );

/** RTM_DELLINK of all links of the group: the kernel's long wait is then paid once for all of them. */
export const delLinkGroup = (group: number): NetlinkMessage =>
  encodeMessage(linkMessage, RTM_DELLINK, 0, {}, { group });

/** IFLA_EXT_MASK: no statistics, which are most of a link's answer. */
const RTEXT_FILTER_SKIP_STATS = 8;

/** RTM_GETLINK of one link, for `request`; ENODEV where there is none. */
export const getLink = (which: LinkReference): NetlinkMessage =>
  encodeMessage(
    linkMessage,
    RTM_GETLINK,
    0,
    { index: "index" in which ? which.index : 0 },
    { name: "name" in which ? which.name : undefined, extMask: RTEXT_FILTER_SKIP_STATS },
  );

/** RTM_GETLINK of all links, for `dump`; the kernel filters by `kind` and `master`. */
export const getLinks = (filter: { readonly kind?: string; readonly master?: number } = {}): NetlinkMessage =>
  encodeMessage(linkMessage, RTM_GETLINK, 0, {}, {
    master: filter.master,
    info: filter.kind === undefined ? undefined : { kind: filter.kind },
    extMask: RTEXT_FILTER_SKIP_STATS,
  });

/** Whom a message about a link is about, without reading the rest of it. */
export const linkIndexOf = ({ payload }: Pick<NetlinkMessage, "payload">): number =>
  new DataView(payload.buffer, payload.byteOffset, payload.length).getInt32(4, true);

/** A link as the kernel describes it. */
export interface Link {
  readonly index: number;
  readonly name: string;
  /** IFF_UP: what was asked for, not whether a carrier is there. */
  readonly up: boolean;
  /** `LinkFlag` bits. */
  readonly flags: number;
  /** ARPHRD_*: 1 Ethernet, 772 loopback. */
  readonly type: number;
  /** `02:00:5e:10:00:01`; empty where there is none. */
  readonly hardwareAddress: string;
  readonly mtu: number;
  readonly kind: string | undefined;
  /** Index of the bridge or vrf it belongs to. */
  readonly master: number | undefined;
  /** Index of the lower link or veth peer, in the namespace `linkNamespaceId` where that is given. */
  readonly peerIndex: number | undefined;
  /** The peer's namespace by this namespace's numbering (RTM_GETNSID); undefined where it is the same. */
  readonly linkNamespaceId: number | undefined;
  readonly group: number;
  readonly operState: number;
  readonly attributes: LinkAttributes;
}

/** Reads RTM_NEWLINK and RTM_DELLINK. @throws {DecodeError} */
export function parseLink(message: Pick<NetlinkMessage, "payload">): Link {
  const { header, attributes } = decodeMessage(linkMessage, message);
  return {
    index: header.index,
    name: attributes.name ?? "",
    up: (header.flags & LinkFlag.Up) !== 0,
    flags: header.flags,
    type: header.type,
    hardwareAddress: attributes.address ?? "",
    mtu: attributes.mtu ?? 0,
    kind: attributes.info?.kind,
    master: attributes.master,
    peerIndex: attributes.link,
    linkNamespaceId: attributes.linkNamespaceId,
    group: attributes.group ?? 0,
    operState: attributes.operState ?? OperState.Unknown,
    attributes,
  };
}
