/** How an attachment is made of links, addresses, routes and neighbours: pure, from values to netlink messages and back. */
import {
  type Address,
  addressFamily,
  type Cidr,
  cidrFamily,
  type Family,
  formatAddress,
  formatCidr,
  hostCidr,
  makeCidr,
  parseAddress,
  parseCidr,
} from "../../../src/model/address.ts";
import { sha256 } from "../../../src/model/digest.ts";
import {
  attrs,
  encode,
  encodeMessage,
  MessageFlag,
  messageSchema,
  pad,
  str,
  struct,
  u32,
  u64,
  u8,
} from "../../../src/kernel/netlink/codec.ts";
import { AF_INET } from "../../../src/kernel/netlink/schema/family.ts";
import { AddressFlag, delAddress, type LinkAddress, newAddress } from "../../../src/kernel/netlink/schema/rt_addr.ts";
import { AddrGenMode, type Link, newLink, setLink } from "../../../src/kernel/netlink/schema/rt_link.ts";
import { NeighbourState, newNeighbour, type ObservedNeighbour } from "../../../src/kernel/netlink/schema/rt_neigh.ts";
import {
  delRoute,
  newRoute,
  type ObservedRoute,
  type Route,
  RouteProtocol,
  RouteScope,
  RouteType,
} from "../../../src/kernel/netlink/schema/rt_route.ts";
import { RefusedError } from "../../../src/sdk/errors.ts";
import type { NetlinkMessage } from "../../../src/sdk/kernel_door.ts";
import type { Attachment, Observed } from "../../../src/sdk/wiring.ts";

/** IFLA_GROUP of host sides: "manx" in ASCII. With the name it says that a link is ours. */
export const LIVE_GROUP = 0x6d616e78;
/** Links that are to go; one RTM_DELLINK takes them all. */
export const DOOMED_GROUP = 0x6d616e79;
/** Every host side has it, so that a pod's neighbour entry of its gateway holds whatever becomes of the link. */
export const HOST_MAC = "ee:ee:ee:ee:ee:ee";
/** What pods send to, the same for all; as Calico's for IPv4. The IPv6 one is an address of the host side. */
export const GATEWAYS: Readonly<Record<Family, Address>> = {
  4: parseAddress("169.254.1.1"),
  6: parseAddress("fe80::1"),
};
const DEFAULT_ROUTES: Readonly<Record<Family, Cidr>> = { 4: parseCidr("0.0.0.0/0"), 6: parseCidr("::/0") };
/** RFC 8200 section 5: below it there is no IPv6 on a link. */
const IPV6_MTU_MIN_BYTES = 1280;
const LINK_LOCAL_PREFIX = 64;

/** Host sides: `mx` and 11 hex digits. */
export const isHostInterface = (name: string): boolean => /^mx[0-9a-f]{11}$/.test(name);

/** An attachment with everything filled in. */
export interface Plan {
  /** For messages: `eth0 of /run/netns/a`. */
  readonly title: string;
  readonly hostInterface: string;
  readonly interfaceName: string;
  readonly netns: string;
  readonly mac: string;
  readonly mtu: number;
  readonly addresses: readonly Address[];
  readonly families: readonly Family[];
  /** In the pod, in order: to the gateways, then the others. */
  readonly routes: readonly Route[];
}

/** @throws {RefusedError} with every reason */
/** The part of a plan that needs no addresses. */
export const linkOf = (
  { id, hostInterface, interfaceName, mac, mtu }: Omit<Attachment, "addresses">,
  defaultMtu: number,
): Pick<Plan, "hostInterface" | "interfaceName" | "mac" | "mtu"> => ({
  hostInterface,
  interfaceName,
  mac: mac?.toLowerCase() ?? macOf(id),
  mtu: mtu ?? defaultMtu,
});

export function planAttachment(desired: Attachment, defaultMtu: number): Plan {
  const { hostInterface, interfaceName, netns, addresses } = desired;
  const mtu = desired.mtu ?? defaultMtu;
  const families = ([4, 6] as const).filter((family) => addresses.some((address) => addressFamily(address) === family));
  const reasons: string[] = [];
  if (!isHostInterface(hostInterface)) {
    reasons.push(`hostInterface: found ${JSON.stringify(hostInterface)}, wanted mx and 11 hex digits`);
  }
  if (addresses.length === 0) reasons.push("addresses: found none, wanted at least one");
  if (new Set(addresses).size !== addresses.length) reasons.push("addresses: found one twice, wanted each once");
  if (families.includes(6) && mtu < IPV6_MTU_MIN_BYTES) {
    reasons.push(`mtu: found ${mtu}, wanted at least ${IPV6_MTU_MIN_BYTES} for IPv6`);
  }
  const wanted: NonNullable<Attachment["routes"]> = desired.routes ??
    families.map((family) => ({ destination: DEFAULT_ROUTES[family] }));
  const seen = new Set<Cidr>();
  const routes = families.flatMap((family) => toGateway(family));
  for (const { destination, via } of wanted) {
    const family = cidrFamily(destination);
    if (via !== undefined && addressFamily(via) !== family) {
      reasons.push(
        `routes: found ${formatAddress(via)} for ${formatCidr(destination)}, wanted a gateway of its family`,
      );
    }
    // A configuration names routes for both families, and pools may serve one only.
    if (!families.includes(family) || seen.has(destination)) continue;
    seen.add(destination);
    const gateway = via ?? GATEWAYS[family];
    // Nothing but the gateway is on the link: others are believed, and the host answers for them (proxy ARP).
    routes.push(podRoute({ destination, gateway, onLink: gateway !== GATEWAYS[family] }));
  }
  if (reasons.length > 0) {
    throw new RefusedError(reasons.map((reason) => `attach ${interfaceName} of ${netns}: ${reason}`));
  }
  return {
    title: `${interfaceName} of ${netns}`,
    netns,
    ...linkOf(desired, defaultMtu),
    addresses,
    families,
    routes,
  };
}

/** The gateway is in no prefix of the pod's: it needs a route of its own. IPv6 link-local addresses have one. */
const toGateway = (family: Family): readonly Route[] =>
  family === 4 ? [podRoute({ destination: hostCidr(GATEWAYS[4]), scope: RouteScope.Link })] : [];
const podRoute = (route: Route): Route => ({ protocol: RouteProtocol.Boot, ...route });

/** A locally administered, individual address (IEEE 802c), the same for the same attachment. */
export function macOf(id: string): string {
  const hash = sha256(new TextEncoder().encode(`mac ${id}`));
  const bytes = [...new Uint8Array(hash.buffer, 0, 6)];
  bytes[0] = bytes[0]! & 0xfc | 2;
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

/** Both ends, down: the host's here, the pod's in the namespace of `namespaceFd`. */
export const makeLink = (
  plan: Pick<Plan, "hostInterface" | "interfaceName" | "mac" | "mtu">,
  namespaceFd: number,
): NetlinkMessage =>
  newLink({
    kind: "veth",
    name: plan.hostInterface,
    hardwareAddress: HOST_MAC,
    mtu: plan.mtu,
    group: LIVE_GROUP,
    peer: { name: plan.interfaceName, hardwareAddress: plan.mac, mtu: plan.mtu, namespaceFd },
  });

/** Cuts all traffic at once: with a side down there is no carrier, and the kernel drops its routes and neighbours. */
export const doomLink = (hostInterface: string): NetlinkMessage =>
  setLink({ name: hostInterface }, { up: false, group: DOOMED_GROUP });

/** What there is to do in one namespace once the link's index is known. `adopt`: what is there already is overwritten. */
export type Mode = "create" | "adopt";
const flagsOf = (mode: Mode) => MessageFlag.Create | (mode === "create" ? MessageFlag.Exclusive : MessageFlag.Replace);

/** The host's side: up, answering for the gateways, with the way to each of the pod's addresses. */
export function hostMessages(plan: Plan, index: number, mode: Mode): readonly NetlinkMessage[] {
  const messages = [
    setLink({ index }, {
      ...(mode === "adopt" ? { hardwareAddress: HOST_MAC, mtu: plan.mtu, group: LIVE_GROUP } : {}),
      more: {
        families: { inet: encode(inetSpec, { settings: HOST_SETTINGS }), inet6: { addrGenMode: AddrGenMode.None } },
      },
    }),
    // Apart: within one message the kernel brings a link up before it looks at the settings.
    setLink({ index }, { up: true }),
  ];
  if (plan.families.includes(4)) messages.push(setProxyDelay(index));
  if (plan.families.includes(6)) {
    const gateway = { index, address: GATEWAYS[6], prefix: LINK_LOCAL_PREFIX, flags: AddressFlag.NoDad };
    messages.push(newAddress(gateway, flagsOf(mode)));
  }
  for (const address of plan.addresses) {
    messages.push(
      newNeighbour({ index, address, hardwareAddress: plan.mac, state: NeighbourState.Permanent }),
      newRoute(hostRoute(address, index), flagsOf(mode)),
    );
  }
  return messages;
}

/** The pod's side: up, with its addresses usable at once, and its routes through the host. */
export function podMessages(plan: Plan, index: number, mode: Mode): readonly NetlinkMessage[] {
  const messages = [
    setLink({ index }, { ...(mode === "adopt" ? { hardwareAddress: plan.mac, mtu: plan.mtu } : {}), up: true }),
  ];
  for (const address of plan.addresses) messages.push(newAddress(podAddress(address, index), flagsOf(mode)));
  for (const family of plan.families) {
    const entry = { index, address: GATEWAYS[family], hardwareAddress: HOST_MAC, state: NeighbourState.Permanent };
    messages.push(newNeighbour(entry));
  }
  for (const route of plan.routes) messages.push(newRoute({ ...route, outputIndex: index }, flagsOf(mode)));
  return messages;
}

/** RTM_NEWADDR without duplicate address detection: the address is leased to this pod alone. */
const podAddress = (address: Address, index: number): LinkAddress => ({
  index,
  address,
  prefix: address.length * 8,
  flags: address.length === 16 ? AddressFlag.NoDad : undefined,
});

const hostRoute = (address: Address, index: number): Route => ({
  destination: hostCidr(address),
  outputIndex: index,
  protocol: RouteProtocol.Manx,
});

/** One namespace's part of an attachment as the kernel has it. */
export interface Side {
  readonly link: Link;
  readonly addresses: readonly LinkAddress[];
  /** Those out of the link. */
  readonly routes: readonly ObservedRoute[];
  readonly neighbours: readonly ObservedNeighbour[];
}

/** What is there beyond the plan and was made by us: messages that take it away. */
export function surplusOfHost(plan: Plan, host: Side): readonly NetlinkMessage[] {
  const wanted = new Set(plan.addresses.map(hostCidr));
  return host.routes.filter((route) => route.protocol === RouteProtocol.Manx && !wanted.has(route.destination))
    .map((route) =>
      delRoute({ destination: route.destination, outputIndex: host.link.index, protocol: RouteProtocol.Manx })
    );
}

export function surplusOfPod(plan: Plan, pod: Side): readonly NetlinkMessage[] {
  return surplusAddresses(plan, pod).map(({ address, prefix }) =>
    delAddress({ index: pod.link.index, address, prefix })
  );
}

const surplusAddresses = (plan: Plan, pod: Side) =>
  pod.addresses.filter(({ address, prefix, scope }) =>
    scope === RouteScope.Universe && !(plan.addresses.includes(address) && prefix === address.length * 8)
  );

/** One line for each thing that is not as planned: what CNI CHECK complains of. */
export function differencesOf(plan: Plan, host: Side, pod: Side | undefined): readonly string[] {
  const lines: string[] = [];
  const expect = (subject: string, found: unknown, wanted: unknown) => {
    if (found !== wanted) lines.push(`${subject}: found ${found}, wanted ${wanted}`);
  };
  const hasRoute = (side: Side, route: Route) =>
    side.routes.some((found) =>
      found.destination === route.destination && found.gateway === route.gateway &&
      (found.type === RouteType.Unicast)
    );
  const hasNeighbour = (side: Side, address: Address, mac: string) =>
    side.neighbours.some((found) =>
      found.address === address && found.hardwareAddress === mac && (found.state & NeighbourState.Permanent) !== 0
    );
  const check = (where: string, side: Side, mac: string) => {
    expect(`${where}: MAC address`, side.link.hardwareAddress, mac);
    expect(`${where}: MTU`, side.link.mtu, plan.mtu);
    expect(`${where}: state`, side.link.up ? "up" : "down", "up");
  };

  const hostTitle = plan.hostInterface;
  check(hostTitle, host, HOST_MAC);
  for (const address of plan.addresses) {
    const text = formatAddress(address);
    if (!hasRoute(host, { destination: hostCidr(address) })) {
      lines.push(`${hostTitle}: found no route to ${text}, wanted one`);
    }
    if (!hasNeighbour(host, address, plan.mac)) {
      lines.push(`${hostTitle}: found no permanent neighbour ${text} at ${plan.mac}`);
    }
  }
  if (plan.families.includes(6) && !host.addresses.some(({ address }) => address === GATEWAYS[6])) {
    lines.push(`${hostTitle}: found no gateway address ${formatAddress(GATEWAYS[6])}, wanted it`);
  }

  if (pod === undefined) return [...lines, `${plan.title}: found no such interface, wanted it`];
  check(plan.title, pod, plan.mac);
  for (const address of plan.addresses) {
    const found = pod.addresses.some((other) => other.address === address && other.prefix === address.length * 8);
    if (!found) lines.push(`${plan.title}: found no address ${formatCidr(hostCidr(address))}, wanted it`);
  }
  for (const { address, prefix } of surplusAddresses(plan, pod)) {
    lines.push(`${plan.title}: found address ${formatAddress(address)}/${prefix}, wanted none but its own`);
  }
  for (const route of plan.routes) {
    if (hasRoute(pod, route)) continue;
    const via = route.gateway === undefined ? "" : ` via ${formatAddress(route.gateway)}`;
    lines.push(`${plan.title}: found no route ${formatCidr(route.destination)}${via}, wanted it`);
  }
  return lines;
}

/** What the runtime is told right after it was made. */
export const madeOf = (plan: Plan): Observed => ({
  interfaceName: plan.interfaceName,
  mac: plan.mac,
  hostInterface: plan.hostInterface,
  hostMac: HOST_MAC,
  mtu: plan.mtu,
  addresses: plan.addresses.map(hostCidr),
  gateways: plan.families.map((family) => GATEWAYS[family]),
  differences: [],
});

/** What is found later, and how it differs. */
export const observedOf = (plan: Plan, host: Side, pod: Side | undefined): Observed => ({
  ...madeOf(plan),
  mac: pod?.link.hardwareAddress ?? "",
  hostMac: host.link.hardwareAddress,
  mtu: pod?.link.mtu ?? host.link.mtu,
  addresses: (pod?.addresses ?? []).filter(({ scope }) => scope === RouteScope.Universe)
    .map(({ address, prefix }) => makeCidr(address, prefix)),
  differences: differencesOf(plan, host, pod),
});

/** IPV4_DEVCONF_*, include/uapi/linux/ip.h. */
const inetSettings = attrs({
  forwarding: [1, u32],
  proxyArp: [3, u32],
  acceptRedirects: [4, u32],
  sendRedirects: [6, u32],
});
/** IFLA_INET_CONF of IFLA_AF_SPEC: what `/proc/sys/net/ipv4/conf/NAME` holds, without a file for each. */
const inetSpec = attrs({ settings: [1, inetSettings] });
/** A pod must not tell the host where to send things, nor be told. */
const HOST_SETTINGS = { forwarding: 1, proxyArp: 1, acceptRedirects: 0, sendRedirects: 0 };

/** RTM_SETNEIGHTBL, struct ndtmsg and NDTA_*, NDTPA_* of include/uapi/linux/neighbour.h. */
const RTM_SETNEIGHTBL = 67;
const neighbourTable = messageSchema(
  "neighbour table",
  struct({ family: u8, pad: pad(3) }),
  attrs({ name: [1, str], parameters: [6, attrs({ index: [1, u32], proxyDelayMs: [13, u64] })] }),
);
/** Otherwise the kernel lets a pod that asks for its gateway wait, up to 0.8 s at random. */
const setProxyDelay = (index: number): NetlinkMessage =>
  encodeMessage(neighbourTable, RTM_SETNEIGHTBL, 0, { family: AF_INET }, {
    name: "arp_cache",
    parameters: { index, proxyDelayMs: 0n },
  });
