/** A network namespace with what a machine has: links, addresses, routes. All through our own rtnetlink code. */
import {
  type Address,
  addressFamily,
  type Cidr,
  familyBits,
  formatCidr,
  hostCidr,
  parseCidr,
} from "../model/address.ts";
import type { NetlinkMessage, NetworkNamespace } from "../sdk/kernel_door.ts";
import { AddressFlag, newAddress } from "../kernel/netlink/schema/rt_addr.ts";
import { newLink, setLink } from "../kernel/netlink/schema/rt_link.ts";
import { newRoute } from "../kernel/netlink/schema/rt_route.ts";
import { NETLINK_ROUTE, openNetlink } from "../kernel/netlink/socket.ts";
import { createNamespace, inNamespace } from "../kernel/netns.ts";
import { linkByName } from "../kernel/rtnetlink.ts";
import { setSysctl } from "../kernel/sysctl.ts";

const DEFAULT_ROUTES = { 4: parseCidr("0.0.0.0/0"), 6: parseCidr("::/0") } as const;

export class Machine implements Disposable {
  readonly name: string;
  readonly namespace: NetworkNamespace;

  /** A new machine, its loopback up. @throws {KernelError} EPERM without CAP_SYS_ADMIN */
  constructor(name: string, title: string) {
    this.name = name;
    this.namespace = createNamespace(title);
    try {
      this.#request("bring lo up", (socket) => [setLink({ index: linkByName(socket, "lo")!.index }, { up: true })]);
    } catch (error) {
      this.namespace[Symbol.dispose]();
      throw error;
    }
  }

  /** Below `/proc/sys/net`. @throws {KernelError} */
  setSysctls(settings: Readonly<Record<string, string>>): void {
    inNamespace(this.namespace, () => {
      for (const [path, value] of Object.entries(settings)) setSysctl(path, value);
    });
  }

  /** A switch: no spanning tree, no snooping, so that it forwards from the first packet on. */
  addBridge(name: string): void {
    const data = { stpState: 0, multicastSnooping: 0 };
    this.#request(`create bridge ${name}`, () => [newLink({ kind: "bridge", name, up: true, data })]);
  }

  /** A cable from `link` here to a port `port` of `bridge` on the machine `wire`, both ends up. */
  plugInto(wire: Machine, bridge: string, port: string, link: string): void {
    // An end of a veth cannot be up before the other is there.
    const peer = { name: port, namespaceFd: wire.namespace.fd };
    this.#request(`create link ${link}`, () => [newLink({ kind: "veth", name: link, peer })]);
    wire.#request(`put ${port} into ${bridge}`, (socket) => [
      setLink({ index: linkByName(socket, port)!.index }, { master: linkByName(socket, bridge)!.index, up: true }),
    ]);
    this.#request(`bring ${link} up`, (socket) => [setLink({ index: linkByName(socket, link)!.index }, { up: true })]);
  }

  /** `prefix` in bits: what is on the link with it. */
  addAddress(link: string, address: Address, prefix: number = familyBits(addressFamily(address))): void {
    const flags = addressFamily(address) === 6 ? AddressFlag.NoDad : 0;
    this.#request(`give ${link} an address`, (socket) => [
      newAddress({ index: linkByName(socket, link)!.index, address, prefix, flags }),
    ]);
  }

  /** `destination` is on `link` itself. */
  addLinkRoute(link: string, destination: Cidr, preferredSource?: Address): void {
    this.#request(`route ${formatCidr(destination)} to ${link}`, (socket) => [
      newRoute({ destination, outputIndex: linkByName(socket, link)!.index, preferredSource }),
    ]);
  }

  /** `destination` is behind `gateway` on `link`; the gateway need not be in a net of the link. */
  addRoute(link: string, destination: Cidr, gateway: Address): void {
    this.#request(`route ${formatCidr(destination)} through ${link}`, (socket) => [
      newRoute({ destination, outputIndex: linkByName(socket, link)!.index, gateway, onLink: true }),
    ]);
  }

  addDefaultRoute(link: string, gateway: Address): void {
    this.addRoute(link, DEFAULT_ROUTES[addressFamily(gateway)], gateway);
  }

  addHostRoute(link: string, address: Address, gateway: Address): void {
    this.addRoute(link, hostCidr(address), gateway);
  }

  [Symbol.dispose](): void {
    this.namespace[Symbol.dispose]();
  }

  #request(operation: string, messages: (socket: ReturnType<typeof openNetlink>) => readonly NetlinkMessage[]): void {
    using socket = openNetlink(NETLINK_ROUTE, { namespace: this.namespace });
    const wanted = messages(socket);
    if (wanted.length > 0) socket.request(`${operation} in ${this.namespace.title}`, wanted);
  }
}
