/**
 * The links that have the addresses of services, so that packets to them are the node's own and meet IPVS: `manx-ipvs0`, and more where
 * there are many addresses.
 */
import { type Address, addressFamily, familyBits, formatAddress } from "../../src/model/address.ts";
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { explainError } from "../../src/sdk/errors.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import {
  AddressFlag,
  delAddress,
  getAddresses,
  newAddress,
  parseAddressMessage,
} from "../../src/kernel/netlink/schema/rt_addr.ts";
import {
  AddrGenMode,
  delLink,
  getLinks,
  newLink,
  parseLink,
  setLink,
} from "../../src/kernel/netlink/schema/rt_link.ts";
import { linkByName } from "../../src/kernel/rtnetlink.ts";
import type { Claims } from "./claims.ts";
import type { WriteReport } from "./virtual_servers.ts";

export const SERVICE_LINK = "manx-ipvs";
const NUMBERED = new RegExp(`^${SERVICE_LINK}(0|[1-9][0-9]{0,3})$`);
const LINK_KIND = "dummy";
/**
 * The kernel walks all IPv4 addresses of a link for each one that comes or goes (__inet_insert_ifa of net/ipv4/devinet.c): ten thousand
 * on one link cost eight times as much as on twenty.
 */
const ADDRESSES_PER_LINK = 512;
const SCOPE_UNIVERSE = 0;
const PROBLEMS_TOLD = 20;

/** A link of such a name is not one that we make. */
class ForeignLinkError extends Error {
  override readonly name = "ForeignLinkError";
}

/** One of ours. */
export interface ServiceLink {
  readonly name: string;
  readonly index: number;
  isUp: boolean;
  /** How many addresses it has. */
  count: number;
}

/** An address where none is wanted: with another prefix, or on two links. */
export interface StrayAddress {
  readonly link: ServiceLink;
  readonly address: Address;
  readonly prefix: number;
}

export class ServiceLinks {
  /** By their numbers. */
  private links = new Map<number, ServiceLink>();
  private there = new Map<Address, ServiceLink>();
  private strays: readonly StrayAddress[] = [];
  /** Addresses of the node's other links, sorted; without loopback and link-local ones. */
  local: readonly Address[] = [];

  constructor(private readonly socket: NetlinkSocket) {}

  /** @throws {KernelError} */
  read(): void {
    this.links = this.found();
    const byIndex = new Map([...this.links.values()].map((link) => [link.index, link]));
    const there = new Map<Address, ServiceLink>(), local = new Set<Address>(), strays: StrayAddress[] = [];
    for (const message of this.socket.dump("list addresses", getAddresses())) {
      const { index, address, prefix } = parseAddressMessage(message);
      const link = byIndex.get(index);
      if (!isServing(address)) continue;
      if (link === undefined) local.add(address);
      else {
        link.count++;
        if (prefix === familyBits(addressFamily(address)) && !there.has(address)) there.set(address, link);
        else strays.push({ link, address, prefix });
      }
    }
    this.there = there;
    this.strays = strays;
    this.local = [...local].sort();
  }

  private found(): Map<number, ServiceLink> {
    const links = new Map<number, ServiceLink>();
    // The kernel leaves out links of other kinds, unless it does not know this one.
    for (const message of this.socket.dump("list links", getLinks({ kind: LINK_KIND }))) {
      const { name, index, kind, up } = parseLink(message);
      const number = NUMBERED.exec(name)?.[1];
      if (number !== undefined && kind === LINK_KIND) links.set(Number(number), { name, index, isUp: up, count: 0 });
    }
    return links;
  }

  keys(): Iterable<Address> {
    return this.there.keys();
  }

  /** What `keys` does not tell of: links that are down, addresses that are not as we write them. */
  oddities(): { readonly down: readonly ServiceLink[]; readonly strays: readonly StrayAddress[] } {
    return { down: [...this.links.values()].filter(({ isUp }) => !isUp), strays: this.strays };
  }

  linkOf(address: Address): ServiceLink | undefined {
    return this.there.get(address);
  }

  /** Whether an event of the link with this index is about one of ours. */
  has(index: number): boolean {
    for (const link of this.links.values()) if (link.index === index) return true;
    return false;
  }

  /** Makes the links that are missing, and brings the addresses of `keys` to what `wanted` says. @throws {KernelError}; {Error} where a link of such a name is somebody else's */
  write(keys: Iterable<string>, wanted: Pick<Claims<true>, "get">): WriteReport {
    const add: Address[] = [], messages: NetlinkMessage[] = [], settled: ((done: boolean) => void)[] = [];
    const about: string[] = [];
    const remove = (link: ServiceLink, address: Address, prefix: number) => {
      messages.push(delAddress({ index: link.index, address, prefix }));
      about.push(`remove address ${formatAddress(address)}/${prefix} of ${link.name}`);
      link.count--;
    };
    for (const { link, address, prefix } of this.strays) {
      remove(link, address, prefix);
      settled.push(() => {});
    }
    this.strays = [];
    for (const key of keys) {
      const address = key as Address, link = this.there.get(address);
      if ((wanted.get(key) === true) === (link !== undefined)) continue;
      if (link === undefined) {
        add.push(address);
        continue;
      }
      remove(link, address, familyBits(addressFamily(address)));
      settled.push((done) => void (done ? this.there.delete(address) : link.count++));
    }
    const made = this.prepare(add.length);
    const room = this.withRoom();
    for (const address of add) {
      const link = room.next().value!;
      messages.push(newAddress({
        index: link.index,
        address,
        prefix: familyBits(addressFamily(address)),
        // No duplicate is looked for: every node has it. No route but the local one is wanted.
        flags: AddressFlag.NoDad | AddressFlag.NoPrefixRoute,
        scope: SCOPE_UNIVERSE,
      }));
      about.push(`add address ${formatAddress(address)} to ${link.name}`);
      link.count++;
      settled.push((done) => void (done ? this.there.set(address, link) : link.count--));
    }
    return { messages: made + messages.length, problems: this.send(messages, about, settled) };
  }

  private send(
    messages: readonly NetlinkMessage[],
    about: readonly string[],
    settled: readonly ((done: boolean) => void)[],
  ): readonly string[] {
    const problems: string[] = [];
    let refused = 0;
    this.socket.attempt("write addresses of services", messages).forEach((error, i) => {
      const done = error === undefined || isErrno(error, "EEXIST") || isErrno(error, "EADDRNOTAVAIL");
      settled[i]!(done);
      if (!done && refused++ < PROBLEMS_TOLD) problems.push(`${about[i]!}: ${explainError(error)}`);
    });
    if (refused > PROBLEMS_TOLD) problems.push(`${refused - PROBLEMS_TOLD} more addresses were refused`);
    return problems;
  }

  /** Links with room for so many addresses more, all of them up. Returns how many messages it took. */
  private prepare(addresses: number): number {
    const messages: NetlinkMessage[] = [], links = [...this.links.values()];
    let room = links.reduce((sum, { count }) => sum + Math.max(0, ADDRESSES_PER_LINK - count), 0);
    for (const { index, isUp } of links) if (!isUp) messages.push(setLink({ index }, { up: true }));
    const names = links.filter(({ isUp }) => !isUp).map(({ name }) => name);
    for (let number = 0; room < addresses; number++) {
      if (this.links.has(number)) continue;
      const name = this.freeName(number);
      names.push(name);
      messages.push(newLink({ name, kind: LINK_KIND }));
      // In this order: a link that comes up first gives itself a link-local address.
      messages.push(setLink({ name }, { addrGenMode: AddrGenMode.None }), setLink({ name }, { up: true }));
      room += ADDRESSES_PER_LINK;
    }
    if (messages.length === 0) return 0;
    this.socket.request(`bring up links ${names.join(", ")}`, messages);
    for (const [number, link] of this.found()) if (!this.links.has(number)) this.links.set(number, link);
    for (const link of links) link.isUp = true;
    return messages.length;
  }

  private freeName(number: number): string {
    const name = `${SERVICE_LINK}${number}`, link = linkByName(this.socket, name);
    if (link === undefined) return name;
    throw new ForeignLinkError(
      `create link ${name}: found one of kind ${link.kind ?? "none"}, wanted none or ${LINK_KIND}; it is left alone`,
    );
  }

  /** The one that is to take the next address, again and again; lower numbers first. */
  private *withRoom(): Generator<ServiceLink, never> {
    const links = [...this.links].sort(([a], [b]) => a - b).map(([, link]) => link);
    for (;;) {
      const link = links.find(({ count }) => count < ADDRESSES_PER_LINK);
      if (link === undefined) throw new Error("no link has room for an address");
      while (link.count < ADDRESSES_PER_LINK) yield link;
    }
  }

  /** Deletes the links, and with them the addresses. Returns how many there were. @throws {KernelError} */
  sweep(): number {
    const links = [...this.found().values()];
    this.links.clear();
    this.there.clear();
    this.strays = [];
    if (links.length === 0) return 0;
    this.socket.request("delete the links of services", links.map(({ index }) => delLink({ index })));
    return links.length;
  }
}

/** Whether a node port can answer on it. */
export const isServing = (address: Address): boolean => !isLoopback(address) && !isLinkLocal(address);

const isLoopback = (address: Address): boolean =>
  address.length === 4 ? address.charCodeAt(0) === 127 : address === "\0".repeat(15) + "\x01";
/** fe80::/10 and 169.254.0.0/16. */
const isLinkLocal = (address: Address): boolean =>
  address.length === 4
    ? address.startsWith("\xa9\xfe")
    : address.charCodeAt(0) === 0xfe && (address.charCodeAt(1) & 0xc0) === 0x80;
