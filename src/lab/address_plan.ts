/** Which addresses the lab hands out: a fixed plan, so that scenarios can name them and reports read the same each time. */
import {
  type Address,
  addressFromBigInt,
  addressToBigInt,
  type Cidr,
  cidrAddress,
  type Family,
  parseCidr,
} from "../model/address.ts";

/** The interface of every node on the segment that joins them. */
export const SHARED_LINK = "eth0";

/** Pods' addresses come from these, through the daemons' own IPAM. */
export const POOLS: readonly { readonly family: Family; readonly text: string; readonly cidr: Cidr }[] = [
  { family: 4, text: "10.244.0.0/16", cidr: parseCidr("10.244.0.0/16") },
  { family: 6, text: "fd00:10:244::/48", cidr: parseCidr("fd00:10:244::/48") },
];

interface NodePlan {
  /** The segment of `eth0`. */
  readonly shared: Cidr;
  /** Of the node's other links, one address each. */
  readonly links: Cidr;
  /** Address on the shared segment of the node with `index` from 0. */
  readonly node: (index: number) => Address;
  /** Address of the link with `index` from 0, counted over all nodes. */
  readonly link: (index: number) => Address;
}

const plan = (family: Family, shared: Cidr, links: Cidr): NodePlan => ({
  shared,
  links,
  node: (index) => nth(shared, index + 1, family),
  link: (index) => nth(links, index + 1, family),
});
const nth = (cidr: Cidr, n: number, family: Family): Address =>
  addressFromBigInt(addressToBigInt(cidrAddress(cidr)) + BigInt(n), family);

/** kube-01 is 192.168.2.1 and fd02::1, the next node 192.168.2.2 and fd02::2; the first other link is 192.168.3.1 and fd02:3::1. */
export const NODE_ADDRESSES: Readonly<Record<Family, NodePlan>> = {
  4: plan(4, parseCidr("192.168.2.0/24"), parseCidr("192.168.3.0/24")),
  6: plan(6, parseCidr("fd02::/64"), parseCidr("fd02:3::/64")),
};
