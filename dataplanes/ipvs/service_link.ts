/** The link that has the addresses of services, so that packets to them are the node's own and meet IPVS. */
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
import { AddrGenMode, delLink, newLink, setLink } from "../../src/kernel/netlink/schema/rt_link.ts";
import { linkByName } from "../../src/kernel/rtnetlink.ts";
import type { Claims } from "./claims.ts";
import type { WriteReport } from "./virtual_servers.ts";

export const SERVICE_LINK = "manx-ipvs0";
const LINK_KIND = "dummy";
const SCOPE_UNIVERSE = 0;
const PROBLEMS_TOLD = 20;

/** The link of that name is not one that we make. */
export class ForeignLinkError extends Error {
  override readonly name = "ForeignLinkError";
}

export class ServiceLink {
  private index: number | undefined;
  private there = new Set<Address>();
  /** Addresses of the node's other links, sorted; without loopback and link-local ones. */
  local: readonly Address[] = [];

  constructor(private readonly socket: NetlinkSocket) {}

  /** @throws {KernelError}; {ForeignLinkError} */
  read(): void {
    const link = linkByName(this.socket, SERVICE_LINK);
    if (link !== undefined && link.kind !== LINK_KIND) {
      throw new ForeignLinkError(
        `link ${SERVICE_LINK}: found one of kind ${link.kind ?? "none"}, wanted ${LINK_KIND}; it is left alone`,
      );
    }
    this.index = link?.up === true ? link.index : undefined;
    const there = new Set<Address>(), local = new Set<Address>();
    for (const message of this.socket.dump("list addresses", getAddresses())) {
      const { index, address, prefix } = parseAddressMessage(message);
      if (index === link?.index) {
        if (prefix === familyBits(addressFamily(address))) there.add(address);
      } else if (isServing(address)) local.add(address);
    }
    this.there = there;
    this.local = [...local].sort();
  }

  keys(): Iterable<Address> {
    return this.there;
  }

  /** Makes the link where it is missing, and brings the addresses of `keys` to what `wanted` says. @throws {KernelError} */
  write(keys: Iterable<string>, wanted: Pick<Claims<true>, "get" | "size">): WriteReport {
    let made = 0;
    if (this.index === undefined) {
      if (wanted.size === 0) return { messages: 0, problems: [] };
      made = this.make();
    }
    const index = this.index!;
    const messages: NetlinkMessage[] = [];
    const about: (readonly [Address, boolean])[] = [];
    for (const key of keys) {
      const address = key as Address;
      const want = wanted.get(key) === true;
      if (want === this.there.has(address)) continue;
      const prefix = familyBits(addressFamily(address));
      // No duplicate is looked for: every node has it. No route but the local one is wanted.
      const flags = AddressFlag.NoDad | AddressFlag.NoPrefixRoute;
      messages.push(
        want
          ? newAddress({ index, address, prefix, flags, scope: SCOPE_UNIVERSE })
          : delAddress({ index, address, prefix }),
      );
      about.push([address, want]);
    }
    const problems: string[] = [];
    let refused = 0;
    this.socket.attempt(`write addresses of ${SERVICE_LINK}`, messages).forEach((error, i) => {
      const [address, want] = about[i]!;
      if (error === undefined || isErrno(error, want ? "EEXIST" : "EADDRNOTAVAIL")) {
        if (want) this.there.add(address);
        else this.there.delete(address);
      } else if (refused++ < PROBLEMS_TOLD) {
        problems.push(`${want ? "add" : "remove"} address ${formatAddress(address)}: ${explainError(error)}`);
      }
    });
    if (refused > PROBLEMS_TOLD) problems.push(`${refused - PROBLEMS_TOLD} more addresses were refused`);
    return { messages: made + messages.length, problems };
  }

  private make(): number {
    const link = linkByName(this.socket, SERVICE_LINK);
    const messages: NetlinkMessage[] = [];
    if (link === undefined) messages.push(newLink({ name: SERVICE_LINK, kind: LINK_KIND }));
    // In this order: a link that comes up first gives itself a link-local address.
    messages.push(setLink({ name: SERVICE_LINK }, { addrGenMode: AddrGenMode.None }));
    messages.push(setLink({ name: SERVICE_LINK }, { up: true }));
    this.socket.request(`create link ${SERVICE_LINK}`, messages);
    this.index = linkByName(this.socket, SERVICE_LINK)!.index;
    return messages.length;
  }

  /** Deletes the link, and with it the addresses. @throws {KernelError} */
  sweep(): number {
    const link = linkByName(this.socket, SERVICE_LINK);
    this.index = undefined;
    this.there.clear();
    if (link === undefined || link.kind !== LINK_KIND) return 0;
    this.socket.request(`delete link ${SERVICE_LINK}`, [delLink({ index: link.index })]);
    return 1;
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
