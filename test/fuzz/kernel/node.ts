/**
 * The plan laid out in real namespaces: a node that routes, and a place behind each of its links. Packets are put on a place's wire
 * as bytes, or sent by a raw socket of the node; they arrive where a wire or a raw socket sees them, or they do not.
 */
import {
  type Address,
  addressFamily,
  addressFromBytes,
  formatAddress,
  parseAddress,
  parseCidr,
} from "../../../src/model/address.ts";
import { encodeMessage } from "../../../src/kernel/netlink/codec.ts";
import { flowMessage, IPCTNL_MSG_CT_DELETE } from "../../../src/kernel/netlink/schema/conntrack.ts";
import { newAddress } from "../../../src/kernel/netlink/schema/rt_addr.ts";
import { newLink, setLink } from "../../../src/kernel/netlink/schema/rt_link.ts";
import { newNeighbour } from "../../../src/kernel/netlink/schema/rt_neigh.ts";
import { newRoute } from "../../../src/kernel/netlink/schema/rt_route.ts";
import { NETLINK_ROUTE, openNetlink } from "../../../src/kernel/netlink/socket.ts";
import {
  AF,
  buffer,
  check,
  close,
  Errno,
  MSG,
  POLL,
  poll,
  recvfrom,
  sendto,
  setsockoptInt,
  SO,
  SOCK,
  socket,
  SOL,
} from "../../../src/kernel/libc.ts";
import { inNamespace } from "../../../src/kernel/netns.ts";
import { linkByName } from "../../../src/kernel/rtnetlink.ts";
import { inetSockaddr } from "../../../src/kernel/sockaddr.ts";
import { translatePorts } from "../../../src/lab/host_port.ts";
import { Machine } from "../../../src/lab/machine.ts";
import type { ProbeEnd } from "../../../src/lab/prober.ts";
import type { NetworkNamespace } from "../../../src/sdk/kernel_door.ts";
import { type FuzzPacket, packetText } from "../packet.ts";
import { NODE_LINKS, SECOND_LINK_NETS, SLOTS, TRANSLATIONS } from "../plan.ts";
import { ETHERTYPE, frame, ipPacket, serialOf, serialOfTransport } from "./frames.ts";
import { Wire } from "./wire.ts";

const NETLINK_NETFILTER = 12;
/** On every link of every place, and of the node: neighbours are known beforehand, so nobody has to ask. */
const NODE_MAC = "02:00:00:00:00:01", PLACE_MAC = "02:00:00:00:00:02";
const GATEWAYS = { toPlace: { 4: "169.254.1.2", 6: "fe80::2" }, toNode: { 4: "169.254.1.1", 6: "fe80::1" } } as const;
/** Within it a machine, however busy, has dealt with what was put on a wire. */
const MARK_DEADLINE_MS = 10_000;
/** How long what must arrive is waited for after the node has dealt with everything; only what fails takes it. */
export const GRACE_MS = 1_000;
/** An experimental ethertype of IEEE 802: nobody handles it, so it says only that what was before it has been dealt with. */
const MARK_ETHERTYPE = 0x88b5;
const POLL_MS = 20;
/** How many packets, at least, are known when they come late. */
const REMEMBERED = 10_000;

/** Links without addresses of their own accord, so nothing is sent that nobody asked for. `addr_gen_mode`: IN6_ADDR_GEN_MODE_NONE. */
const QUIET = {
  "ipv6/conf/all/accept_dad": "0",
  "ipv6/conf/default/accept_dad": "0",
  "ipv6/conf/default/addr_gen_mode": "1",
};
const ROUTER = {
  ...QUIET,
  "ipv4/ip_forward": "1",
  "ipv6/conf/all/forwarding": "1",
  "ipv4/conf/all/rp_filter": "0",
  "ipv4/conf/default/rp_filter": "0",
  "ipv4/conf/all/send_redirects": "0",
  "ipv4/conf/default/send_redirects": "0",
};

const macBytes = (text: string): Uint8Array => Uint8Array.from(text.split(":"), (part) => parseInt(part, 16));
const NODE_BYTES = macBytes(NODE_MAC), PLACE_BYTES = macBytes(PLACE_MAC);

interface Place {
  readonly link: string;
  readonly machine: Machine;
  readonly wire: Wire;
  /** The node's end of the same link, where what comes from the place is seen before anything is done with it. */
  readonly tap: Wire;
}

/** Where a packet was seen: a link of the node, by which it went out, or the node itself. */
export type Arrival = string;
export const AT_NODE: Arrival = "the node";

export class KernelNode implements Disposable {
  readonly #open = new DisposableStack();
  readonly #machine: Machine;
  readonly #places = new Map<string, Place>();
  /** Raw sockets that hear what has come to the node, by protocol and family; those that send for it, by family. */
  readonly #heard = new Map<string, number>();
  readonly #senders = new Map<4 | 6, number>();
  readonly #inbox = buffer(4_096);
  /** By serial: the latest sent, and where what has come since the last call was seen. */
  readonly #sent = new Map<number, FuzzPacket>();
  readonly #arrived = new Map<number, Arrival>();
  #serial = 1;

  /** @throws {KernelError} EPERM without CAP_SYS_ADMIN */
  constructor() {
    using building = new DisposableStack();
    building.use(this.#open);
    this.#machine = this.#open.use(new Machine("node", "node of the fuzzer"));
    this.#machine.setSysctls(ROUTER);
    for (const { link, addresses } of SLOTS) this.#addPlace(link, [], addresses);
    for (const { link, addresses, outside } of NODE_LINKS) this.#addPlace(link, addresses, outside);
    this.#addNetRoutes();
    translatePorts(
      this.#machine.namespace,
      TRANSLATIONS.map(({ to, ...rest }) => ({ family: addressFamily(to), to, ...rest })),
    );
    for (const family of [4, 6] as const) this.#senders.set(family, this.#rawSocket(family, 255));
    building.move();
  }

  get namespace(): NetworkNamespace {
    return this.#machine.namespace;
  }

  /** Who is behind a link, for a prober; absent = the node itself. */
  end(link: string | undefined): ProbeEnd {
    return link === undefined
      ? { name: "node", namespace: this.#machine.namespace }
      : { name: link, namespace: this.#places.get(link)!.machine.namespace };
  }

  [Symbol.dispose](): void {
    this.#open.dispose();
  }

  // ---------------------------------------------------------------------------------------------------------------- layout

  /** `own`: the node's addresses on the link; `beyond`: those behind it. */
  #addPlace(link: string, own: readonly Address[], beyond: readonly Address[]): void {
    const machine = this.#open.use(new Machine(link, `place behind ${link} of the fuzzer`));
    machine.setSysctls(QUIET);
    using here = openNetlink(NETLINK_ROUTE, { namespace: this.#machine.namespace });
    using there = openNetlink(NETLINK_ROUTE, { namespace: machine.namespace });
    const peer = { name: "eth0", hardwareAddress: PLACE_MAC, namespaceFd: machine.namespace.fd };
    here.request(`create ${link}`, [
      newLink({ kind: "veth", name: link, hardwareAddress: NODE_MAC, peer }),
      setLink({ name: link }, { up: true }),
    ]);
    const far = linkByName(there, "eth0")!.index, near = linkByName(here, link)!.index;
    there.request("bring eth0 up", [setLink({ index: far }, { up: true })]);
    const isNode = own.length > 0;
    here.request(`lay out ${link}`, [
      ...own.map((address) => newAddress({ index: near, address, prefix: address.length * 8 })),
      ...([4, 6] as const).map((family) => neighbour(near, GATEWAYS.toPlace[family], PLACE_MAC)),
      ...isNode ? [] : beyond.flatMap((address) => [
        newRoute({ destination: parseCidr(formatAddress(address)), outputIndex: near }),
        neighbour(near, formatAddress(address), PLACE_MAC),
      ]),
    ]);
    there.request("lay out eth0", [
      ...beyond.map((address) => newAddress({ index: far, address, prefix: address.length * 8 })),
      ...([4, 6] as const).flatMap((family) => [
        neighbour(far, GATEWAYS.toNode[family], NODE_MAC),
        newRoute({
          destination: parseCidr(family === 4 ? "0.0.0.0/0" : "::/0"),
          outputIndex: far,
          gateway: parseAddress(GATEWAYS.toNode[family]),
          onLink: true,
        }),
      ]),
    ]);
    const wire = this.#open.use(new Wire(machine.namespace, far));
    const tap = this.#open.use(new Wire(this.#machine.namespace, near));
    this.#places.set(link, { link, machine, wire, tap });
  }

  #addNetRoutes(): void {
    using here = openNetlink(NETLINK_ROUTE, { namespace: this.#machine.namespace });
    const [first, second] = NODE_LINKS.map(({ link }) => linkByName(here, link)!.index) as [number, number];
    const through = (text: string, outputIndex: number) => {
      const destination = parseCidr(text);
      const gateway = parseAddress(GATEWAYS.toPlace[text.includes(":") ? 6 : 4]);
      return newRoute({ destination, outputIndex, gateway, onLink: true });
    };
    here.request("route the rest", [
      through("0.0.0.0/0", first),
      through("::/0", first),
      ...SECOND_LINK_NETS.map((destination) =>
        newRoute({
          destination,
          outputIndex: second,
          gateway: parseAddress(GATEWAYS.toPlace[destination.length === 5 ? 4 : 6]),
          onLink: true,
        })
      ),
    ]);
  }

  /** A raw socket of the node: 255 sends whole packets, others hear those of their protocol. */
  #rawSocket(family: 4 | 6, protocol: number): number {
    const domain = family === 4 ? AF.INET : AF.INET6;
    const fd = check(
      `open a raw socket of protocol ${protocol}`,
      inNamespace(this.#machine.namespace, () => socket(domain, SOCK.RAW | SOCK.NONBLOCK | SOCK.CLOEXEC, protocol)),
    );
    this.#open.defer(() => void close(fd));
    setsockoptInt(fd, SOL.SOCKET, SO.RCVBUFFORCE, 8 << 20);
    return fd;
  }

  // --------------------------------------------------------------------------------------------------------------- packets

  /** Forgets every flow, so that no packet belongs to an old one. @throws {KernelError} */
  forgetFlows(): void {
    using socket = openNetlink(NETLINK_NETFILTER, { namespace: this.#machine.namespace });
    // Without a tuple it is all of them: ctnetlink_del_conntrack, net/netfilter/nf_conntrack_netlink.c.
    socket.request("forget all flows", [encodeMessage(flowMessage, IPCTNL_MSG_CT_DELETE, 0, { family: 0 }, {})]);
  }

  /**
   * Sends each packet once and tells where each was seen. Those of `expected` are waited for; of the others nothing is said before
   * everything sent has been dealt with. What still comes later is told by the next call's `late`.
   * @throws {KernelError}
   */
  async send(packets: readonly FuzzPacket[], expected: ReadonlySet<FuzzPacket>, graceMs = GRACE_MS): Promise<{
    readonly seen: ReadonlyMap<FuzzPacket, Arrival>;
    readonly late: readonly string[];
  }> {
    const late = this.#late();
    for (const serial of this.#sent.keys()) {
      if (serial >= this.#serial - REMEMBERED) break;
      this.#sent.delete(serial);
    }
    const bySerial = new Map<number, FuzzPacket>();
    for (const packet of packets) if (packet.outInterface === undefined) this.#listen(packet);
    for (const packet of packets) {
      const serial = this.#serial++;
      bySerial.set(serial, packet);
      this.#sent.set(serial, packet);
      this.#sendOne(packet, serial);
    }
    const missing = new Set([...bySerial].filter(([, packet]) => expected.has(packet)).map(([serial]) => serial));
    await this.#settle(missing, graceMs);
    const seen = new Map<FuzzPacket, Arrival>();
    for (const [serial, packet] of bySerial) {
      const arrival = this.#arrived.get(serial);
      if (arrival !== undefined) seen.set(packet, arrival);
      this.#arrived.delete(serial);
    }
    return { seen, late };
  }

  /** Everything sent has been dealt with: what arrived after its call had ended. */
  async finish(): Promise<readonly string[]> {
    await this.#settle(new Set(), GRACE_MS);
    return this.#late();
  }

  #late(): readonly string[] {
    this.#look();
    const late = [...this.#arrived].map(([serial, where]) =>
      `${packetText(this.#sent.get(serial)!)} arrived late, at ${where}`
    );
    this.#arrived.clear();
    return late;
  }

  #sendOne(packet: FuzzPacket, serial: number): void {
    const bytes = ipPacket(packet, serial);
    const family = bytes[0]! >> 4 === 6 ? 6 : 4;
    if (packet.inInterface !== undefined) {
      this.#places.get(packet.inInterface)!.wire.send(frame(NODE_BYTES, PLACE_BYTES, ETHERTYPE[family], bytes));
      return;
    }
    const address = parseAddress(packet.destination);
    const sent = sendto(this.#senders.get(family)!, bytes, MSG.NOSIGNAL, inetSockaddr({ address, port: 0 }));
    // EPERM is policy's answer to a sender of the node itself.
    if (sent < 0 && sent !== -Errno.EPERM) check(`send ${packetText(packet)}`, sent);
  }

  #listen({ protocol, source }: FuzzPacket): void {
    const family = source.includes(":") ? 6 : 4;
    const key = `${protocol} ${family}`;
    if (!this.#heard.has(key)) this.#heard.set(key, this.#rawSocket(family, protocol));
  }

  /** Until all of `missing` have been seen, and what every place sent has gone through the node. */
  async #settle(missing: Set<number>, graceMs: number): Promise<void> {
    const mark = this.#serial++;
    const unmarked = new Set<string>();
    for (const { link, wire } of this.#places.values()) {
      const bytes = new Uint8Array(new ArrayBuffer(46));
      new DataView(bytes.buffer).setUint32(0, mark);
      wire.send(frame(NODE_BYTES, PLACE_BYTES, MARK_ETHERTYPE, bytes));
      unmarked.add(link);
    }
    let deadlineMs = performance.now() + MARK_DEADLINE_MS, isMarked = false;
    for (;;) {
      for (const { link, tap } of this.#places.values()) {
        tap.receive((bytes) => {
          const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
          if (view.getUint16(12) === MARK_ETHERTYPE && view.getUint32(14) === mark) unmarked.delete(link);
        });
      }
      this.#look();
      for (const serial of missing) if (this.#arrived.has(serial)) missing.delete(serial);
      if (missing.size === 0 && unmarked.size === 0) return;
      if (unmarked.size === 0 && !isMarked) isMarked = true, deadlineMs = performance.now() + graceMs;
      if (performance.now() >= deadlineMs) {
        if (unmarked.size > 0) throw new Error(`no mark from ${[...unmarked].join(", ")} came through the node`);
        return;
      }
      const fds = [...this.#places.values()].flatMap(({ wire, tap }) => [wire.fd, tap.fd]).concat([
        ...this.#heard.values(),
      ]);
      poll(fds.map((fd) => ({ fd, events: POLL.IN })), POLL_MS);
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  #look(): void {
    for (const { link, wire } of this.#places.values()) {
      wire.receive((bytes) => {
        const type = bytes[12]! << 8 | bytes[13]!;
        if (type !== ETHERTYPE[4] && type !== ETHERTYPE[6]) return;
        const packet = bytes.subarray(14);
        this.#note(serialOf(packet), link, headerOf(packet));
      });
    }
    for (const [key, fd] of this.#heard) {
      const [protocol, family] = key.split(" ").map(Number) as [number, number];
      for (;;) {
        const { count } = recvfrom(fd, this.#inbox, MSG.DONTWAIT);
        if (count < 0) break;
        const bytes = this.#inbox.subarray(0, count);
        // Raw IPv4 sockets see the IP header, those of IPv6 do not: raw(7), ipv6(7).
        if (family === 4) this.#note(serialOf(bytes), AT_NODE, headerOf(bytes));
        else this.#note(serialOfTransport(protocol, bytes), AT_NODE, undefined);
      }
    }
  }

  /** Answers and complaints carry the serial of what they are about: they go somewhere else, or are of another protocol. */
  #note(serial: number | undefined, where: Arrival, header: IpHeader | undefined): void {
    const packet = serial === undefined ? undefined : this.#sent.get(serial);
    if (packet === undefined) return;
    if (header === undefined) {
      if (packet.outInterface !== undefined) return;
    } else if (header.protocol !== packet.protocol || header.destination !== parseAddress(packet.destination)) return;
    this.#arrived.set(serial!, where);
  }
}

interface IpHeader {
  readonly protocol: number;
  readonly destination: Address;
}

const headerOf = (packet: Uint8Array): IpHeader =>
  packet[0]! >> 4 === 6
    ? { protocol: packet[6]!, destination: addressFromBytes(packet.subarray(24, 40)) }
    : { protocol: packet[9]!, destination: addressFromBytes(packet.subarray(16, 20)) };

const neighbour = (index: number, address: string, hardwareAddress: string) =>
  newNeighbour({ index, address: parseAddress(address), hardwareAddress });

/** Whether wires and raw sockets can carry it as it is: 255 is the number of sockets that send, and hears nothing. */
export const isSendable = ({ protocol, outInterface, inInterface }: FuzzPacket): boolean =>
  protocol !== 255 || (outInterface !== undefined && inInterface !== undefined);
