/**
 * Where things are in every fuzzed world: one node's links, who may be behind each, and which way a packet goes. Fixed, so that any
 * world can be laid out in real namespaces; what is random is which of it exists and what policy says.
 */
import {
  type Address,
  type Cidr,
  cidrContains,
  formatAddress,
  parseAddress,
  parseCidr,
} from "../../src/model/address.ts";

export const NODE = "node-a";
export const OTHER_NODES = ["node-b", "node-c"] as const;

/** A link that a local workload may be behind. */
export interface Slot {
  readonly link: string;
  /** What the workload may be given; both families, at the edges of prefixes that policies like to name. */
  readonly addresses: readonly Address[];
}

const slot = (link: string, ...addresses: readonly string[]): Slot => ({
  link,
  addresses: addresses.map(parseAddress),
});

/** Four as the daemon names pods' links, and two such as a person gives a virtual machine. */
export const SLOTS: readonly Slot[] = [
  slot("mx00000000a00", "10.65.0.1", "10.65.0.2", "fd65::1", "fd65::2"),
  slot("mx00000000a01", "10.65.0.255", "10.65.1.0", "fd65::ffff", "fd65::1:0"),
  slot("mx00000000a02", "10.65.127.255", "10.65.128.0", "fd65::ffff:ffff:ffff:ffff", "fd65:0:0:1::"),
  slot("mx00000000a03", "10.65.255.254", "10.65.255.255", "fd65:0:0:7fff::1", "fd65:0:0:8000::"),
  slot("tap0", "10.64.255.255", "10.67.0.0", "fd64:ffff::1", "fd67::"),
  slot("tap1", "172.16.0.1", "172.31.255.254", "fd00::1", "fdff::1"),
];

/** A link of the node itself: to everything else. */
export interface NodeLink {
  readonly link: string;
  /** The node's own. */
  readonly addresses: readonly Address[];
  /** Some of those that are behind it. */
  readonly outside: readonly Address[];
}

const nodeLink = (link: string, own: readonly string[], outside: readonly string[]): NodeLink => ({
  link,
  addresses: own.map(parseAddress),
  outside: outside.map(parseAddress),
});

export const NODE_LINKS: readonly NodeLink[] = [
  nodeLink("eth0", ["192.0.2.1", "2001:db8::1"], [
    "192.0.2.10",
    "192.0.2.255",
    "203.0.113.7",
    "1.1.1.1",
    "223.255.255.254",
    "2001:db8::10",
    "2001:db8:ffff:ffff::1",
    "2606:4700::1111",
  ]),
  nodeLink("eth1", ["192.168.2.1", "fd68::1"], [
    "10.66.0.0",
    "10.66.0.1",
    "10.66.0.2",
    "10.66.255.255",
    "10.65.64.7",
    "192.168.2.2",
    "192.168.2.3",
    "fd66::1",
    "fd66::2",
    "fd66:ffff::1",
    "fd68::2",
    "fd68::3",
  ]),
];

/** What is behind the second link; all the rest is behind the first. */
export const SECOND_LINK_NETS: readonly Cidr[] = [
  "10.66.0.0/16",
  "10.65.64.0/24",
  "192.168.0.0/16",
  "fd66::/16",
  "fd68::/16",
]
  .map(parseCidr);

export const NODE_ADDRESSES: readonly Address[] = NODE_LINKS.flatMap(({ addresses }) => addresses);
export const OUTSIDE: readonly Address[] = NODE_LINKS.flatMap(({ outside }) => outside);
/** Where remote pods and nodes are. */
export const REMOTE: readonly Address[] = NODE_LINKS[1]!.outside;
export const ALL_ADDRESSES: readonly Address[] = [
  ...SLOTS.flatMap(({ addresses }) => addresses),
  ...NODE_ADDRESSES,
  ...OUTSIDE,
];

/** What comes to any of the node's own addresses at `port` goes to `to` at `toPort`, as with a hostPort. */
export interface PortTranslation {
  readonly protocol: number;
  readonly port: number;
  readonly to: Address;
  readonly toPort: number;
}

export const TRANSLATIONS: readonly PortTranslation[] = [
  { protocol: 6, port: 30080, to: parseAddress("10.65.0.1"), toPort: 80 },
  { protocol: 17, port: 30053, to: parseAddress("10.65.0.255"), toPort: 53 },
  { protocol: 6, port: 30080, to: parseAddress("fd65::1"), toPort: 80 },
  { protocol: 17, port: 30053, to: parseAddress("fd65::ffff"), toPort: 53 },
];

/** Neither routed nor taken from a wire: RFC 1122 section 3.2.1.3, RFC 4291 section 2. */
const NOWHERE: readonly Cidr[] = [
  "0.0.0.0/8",
  "127.0.0.0/8",
  "169.254.0.0/16",
  "224.0.0.0/3",
  "::/96",
  "::ffff:0:0/96",
  "fe80::/10",
  "ff00::/8",
].map(parseCidr);

const slotOf = new Map(SLOTS.flatMap(({ link, addresses }) => addresses.map((address) => [address, link] as const)));
const ownAddresses: ReadonlySet<Address> = new Set(NODE_ADDRESSES);

export const isNodeAddress = (address: Address): boolean => ownAddresses.has(address);
export const isRoutable = (address: Address): boolean => !NOWHERE.some((net) => cidrContains(net, address));

/** The link that leads to an address; undefined: the node has it. */
export function linkTo(address: Address): string | undefined {
  if (ownAddresses.has(address)) return undefined;
  return slotOf.get(address) ??
    NODE_LINKS[SECOND_LINK_NETS.some((net) => cidrContains(net, address)) ? 1 : 0]!.link;
}

/** The node's links as the calculation is told of them. */
export const LINKS = NODE_LINKS.map(({ link, addresses }) => ({ name: link, addresses: addresses.map(formatAddress) }));
