/** rtnetlink schemas against the real kernel, checked by `ip`. */
import { expect, test } from "bun:test";
import { formatAddress, formatCidr, parseAddress, parseCidr } from "../../../model/address.ts";
import type { NetlinkSocket, NetworkNamespace } from "../../../sdk/kernel_door.ts";
import * as c from "../../libc.ts";
import { createNamespace, inNamespace } from "../../netns.ts";
import { isErrno } from "../../errors.ts";
import { findLink, linkByName, setLinkUp } from "../../rtnetlink.ts";
import { inetSockaddr, parseInetSockaddr } from "../../sockaddr.ts";
import { runIn, thrownBy } from "../../testdata/tool_fixture.ts";
import { MessageFlag } from "../codec.ts";
import { NETLINK_ROUTE, openNetlink } from "../socket.ts";
import { AddressFlag, delAddress, getAddresses, newAddress, parseAddressMessage } from "./rt_addr.ts";
import { AddrGenMode, delLink, delLinkGroup, getLinks, newLink, parseLink, setLink } from "./rt_link.ts";
import {
  delNeighbour,
  getNeighbours,
  NeighbourFlag,
  NeighbourState,
  newNeighbour,
  parseNeighbour,
} from "./rt_neigh.ts";
import { getNamespaceId, parseNamespaceId } from "./rt_nsid.ts";
import {
  delRoute,
  getRoutes,
  lookUpRoute,
  newRoute,
  parseRoute,
  RouteProtocol,
  RouteTable,
  RouteType,
} from "./rt_route.ts";
import { delRule, getRules, newRule, parseRule, RuleAction } from "./rt_rule.ts";

const ip = parseAddress;
const json = (namespace: NetworkNamespace, ...argv: readonly string[]) =>
  JSON.parse(runIn(namespace, "ip", "-d", "-j", ...argv) || "[]") as Record<string, unknown>[];

/** A pod-like pair: `mx0` here, `eth0` in another namespace, both up. */
class Pair implements Disposable {
  readonly host = createNamespace("host");
  readonly pod = createNamespace("pod");
  readonly hostSocket: NetlinkSocket = openNetlink(NETLINK_ROUTE, { namespace: this.host });
  readonly podSocket: NetlinkSocket = openNetlink(NETLINK_ROUTE, { namespace: this.pod });
  readonly hostIndex: number;
  readonly podIndex: number;
  constructor() {
    this.hostSocket.request("create pair", [
      newLink({
        kind: "veth",
        name: "mx0",
        up: true,
        mtu: 1400,
        peer: { name: "eth0", mtu: 1400, namespaceFd: this.pod.fd },
      }),
    ]);
    setLinkUp(this.podSocket, { name: "eth0" });
    this.hostIndex = linkByName(this.hostSocket, "mx0")!.index;
    this.podIndex = linkByName(this.podSocket, "eth0")!.index;
  }
  [Symbol.dispose](): void {
    for (const held of [this.hostSocket, this.podSocket, this.host, this.pod]) held[Symbol.dispose]();
  }
}

test("a veth pair across namespaces has what was asked for on both ends", () => {
  using host = createNamespace("host");
  using pod = createNamespace("pod");
  using socket = openNetlink(NETLINK_ROUTE, { namespace: host });
  using podSocket = openNetlink(NETLINK_ROUTE, { namespace: pod });
  socket.request("create pair", [newLink({
    kind: "veth",
    name: "mx0123456789a",
    mtu: 1430,
    group: 77,
    up: true,
    hardwareAddress: "ee:ee:ee:ee:ee:ee",
    txQueueLength: 10,
    peer: { name: "eth0", mtu: 1420, hardwareAddress: "02:00:00:00:00:07", namespaceFd: pod.fd },
  })]);
  socket.request("describe", [setLink({ name: "mx0123456789a" }, { alias: "pod a" })]);
  const here = linkByName(socket, "mx0123456789a")!;
  const there = linkByName(podSocket, "eth0")!;
  expect([here.kind, here.mtu, here.group, here.up, here.hardwareAddress]).toEqual([
    "veth",
    1430,
    77,
    true,
    "ee:ee:ee:ee:ee:ee",
  ]);
  expect([there.kind, there.mtu, there.up, there.hardwareAddress]).toEqual(["veth", 1420, false, "02:00:00:00:00:07"]);
  expect([here.peerIndex, there.peerIndex]).toEqual([there.index, here.index]);
  expect(here.attributes.alias).toBe("pod a");
  const [seen] = json(host, "link", "show", "dev", "mx0123456789a");
  expect([seen!.mtu, seen!.group, seen!.address, seen!.ifalias, seen!.txqlen]).toEqual([
    1430,
    "77",
    "ee:ee:ee:ee:ee:ee",
    "pod a",
    10,
  ]);
  // The peer's namespace by number, as the link reports it.
  const [answer] = socket.request("number of the pod's namespace", [getNamespaceId(pod.fd)]);
  expect(parseNamespaceId(answer!)).toBe(here.linkNamespaceId!);
  expect(findLink(podSocket, { index: there.index })?.name).toBe("eth0");
});

test("links change: renamed, moved to another namespace, enslaved, up and down", () => {
  using pair = new Pair();
  const { hostSocket, podSocket, pod, hostIndex, podIndex } = pair;
  podSocket.request("rename", [
    setLink({ index: podIndex }, { up: false }),
    setLink({ index: podIndex }, { name: "net1", up: true }),
  ]);
  expect(linkByName(podSocket, "eth0")).toBeUndefined();
  expect(linkByName(podSocket, "net1")?.up).toBe(true);
  hostSocket.request("create bridge", [
    newLink({ kind: "bridge", name: "br0", data: { ageingTime: 30_000, forwardDelay: 200 } }),
  ]);
  const bridge = linkByName(hostSocket, "br0")!;
  hostSocket.request("enslave", [setLink({ index: hostIndex }, { master: bridge.index })]);
  const member = linkByName(hostSocket, "mx0")!;
  expect([member.master, member.attributes.info?.memberKind]).toEqual([bridge.index, "bridge"]);
  expect(hostSocket.dump("members", getLinks({ master: bridge.index })).map((each) => parseLink(each).name)).toEqual([
    "mx0",
  ]);
  expect(hostSocket.dump("bridges", getLinks({ kind: "bridge" })).map((each) => parseLink(each).name)).toEqual(["br0"]);
  hostSocket.request("free and move", [
    setLink({ index: hostIndex }, { master: 0 }),
    setLink({ index: hostIndex }, { namespaceFd: pod.fd }),
  ]);
  expect(linkByName(hostSocket, "mx0")).toBeUndefined();
  expect(linkByName(podSocket, "mx0")?.kind).toBe("veth");
});

test("no link-local address appears on a link whose address generation is off", () => {
  using host = createNamespace("host");
  using socket = openNetlink(NETLINK_ROUTE, { namespace: host });
  socket.request("create pair", [newLink({ kind: "veth", name: "a", peer: { name: "b" } })]);
  socket.request("no link-local", [setLink({ name: "a" }, { addrGenMode: AddrGenMode.None })]);
  socket.request("up", [setLink({ name: "a" }, { up: true }), setLink({ name: "b" }, { up: true })]);
  expect(linkByName(socket, "a")!.attributes.families?.inet6?.addrGenMode).toBe(AddrGenMode.None);
  const addressesOf = (name: string) =>
    socket.dump("addresses", getAddresses({ family: 6, index: linkByName(socket, name)!.index })).map(
      parseAddressMessage,
    );
  expect(addressesOf("a")).toEqual([]);
  expect(addressesOf("b").map((each) => formatAddress(each.address).slice(0, 6))).toEqual(["fe80::"]);
});

test("many links go in one request by their group, others stay", () => {
  using host = createNamespace("host");
  using socket = openNetlink(NETLINK_ROUTE, { namespace: host });
  socket.request(
    "create pairs",
    Array.from(
      { length: 10 },
      (_, i) => newLink({ kind: "veth", name: `g${i}`, group: i < 8 ? 86 : 87, peer: { name: `p${i}` } }),
    ),
  );
  socket.request("delete group", [delLinkGroup(86)]);
  expect(socket.dump("list", getLinks({ kind: "veth" })).map((each) => parseLink(each).name).sort()).toEqual([
    "g8",
    "g9",
    "p8",
    "p9",
  ]);
  expect(isErrno(thrownBy(() => socket.request("again", [delLinkGroup(86)])), "ENODEV")).toBe(true);
  expect(isErrno(thrownBy(() => socket.request("delete g0", [delLink({ name: "g0" })])), "ENODEV")).toBe(true);
});

test("a vxlan link keeps its settings", () => {
  using host = createNamespace("host");
  using socket = openNetlink(NETLINK_ROUTE, { namespace: host });
  socket.request("create vxlan", [newLink({
    kind: "vxlan",
    name: "vx0",
    data: { vni: 4096, local: ip("192.0.2.1"), port: 4789, learning: 0 },
  })]);
  const data = linkByName(socket, "vx0")!.attributes.info!.data!;
  expect("vni" in data ? [data.vni, formatAddress(data.local!), data.port, data.learning] : data).toEqual([
    4096,
    "192.0.2.1",
    4789,
    0,
  ]);
  const [seen] = json(host, "link", "show", "dev", "vx0");
  expect(seen).toMatchObject({
    linkinfo: { info_kind: "vxlan", info_data: { id: 4096, local: "192.0.2.1", port: 4789, learning: false } },
  });
});

test("addresses are added, read and removed; a v6 one without duplicate detection is usable at once", () => {
  using pair = new Pair();
  const { podSocket, podIndex, pod } = pair;
  const v4 = { index: podIndex, address: ip("10.65.0.7"), prefix: 32, flags: AddressFlag.NoPrefixRoute };
  const v6 = {
    index: podIndex,
    address: ip("fd00:65::7"),
    prefix: 128,
    flags: AddressFlag.NoDad | AddressFlag.NoPrefixRoute,
  };
  podSocket.request("add addresses", [newAddress(v4), newAddress(v6)]);
  const found = podSocket.dump("list", getAddresses({ index: podIndex })).map(parseAddressMessage).filter((each) =>
    each.scope === 0
  );
  expect(found.map((each) => [formatAddress(each.address), each.prefix, each.index])).toEqual([
    ["10.65.0.7", 32, podIndex],
    ["fd00:65::7", 128, podIndex],
  ]);
  expect(found.every((each) => (each.flags & AddressFlag.Tentative) === 0)).toBe(true);
  expect(found.every((each) => (each.flags & AddressFlag.Permanent) !== 0)).toBe(true);
  expect(runIn(pod, "ip", "-6", "address", "show", "dev", "eth0", "scope", "global")).toContain(
    "fd00:65::7/128 scope global nodad noprefixroute",
  );
  expect(isErrno(thrownBy(() => podSocket.request("again", [newAddress(v4)])), "EEXIST")).toBe(true);
  podSocket.request("replace", [newAddress(v4, MessageFlag.Create | MessageFlag.Replace)]);
  podSocket.request("remove", [delAddress(v4), delAddress(v6)]);
  expect(isErrno(thrownBy(() => podSocket.request("remove", [delAddress(v4)])), "EADDRNOTAVAIL")).toBe(true);
  const peer = {
    index: podIndex,
    address: ip("10.1.1.1"),
    prefix: 32,
    peer: ip("10.1.1.2"),
    broadcast: ip("10.1.1.255"),
    label: "eth0:x",
  };
  podSocket.request("point to point", [newAddress(peer)]);
  const [again] = podSocket.dump("list", getAddresses({ family: 4 })).map(parseAddressMessage);
  expect(again).toMatchObject(peer);
});

test("the routes of a pod: a link route to a gateway that is nowhere, and a default through it, in both families", () => {
  using pair = new Pair();
  const { podSocket, podIndex, pod } = pair;
  podSocket.request("addresses", [
    newAddress({ index: podIndex, address: ip("10.65.0.7"), prefix: 32 }),
    newAddress({ index: podIndex, address: ip("fd00:65::7"), prefix: 128, flags: AddressFlag.NoDad }),
  ]);
  podSocket.request("routes", [
    newRoute({ destination: parseCidr("169.254.1.1/32"), outputIndex: podIndex }),
    newRoute({
      destination: parseCidr("0.0.0.0/0"),
      gateway: ip("169.254.1.1"),
      outputIndex: podIndex,
      preferredSource: ip("10.65.0.7"),
      mtu: 1300,
    }),
    newRoute({ destination: parseCidr("fe80::1/128"), outputIndex: podIndex }),
    newRoute({ destination: parseCidr("::/0"), gateway: ip("fe80::1"), outputIndex: podIndex }),
  ]);
  expect(json(pod, "-4", "route", "show")).toMatchObject([
    { dst: "default", gateway: "169.254.1.1", dev: "eth0", prefsrc: "10.65.0.7", metrics: [{ mtu: 1300 }] },
    { dst: "169.254.1.1", dev: "eth0", scope: "link", protocol: "static" },
  ]);
  const [way] = podSocket.request("look up", [lookUpRoute(ip("8.8.8.8"))]).map(parseRoute);
  expect([formatAddress(way!.gateway!), way!.outputIndex, formatAddress(way!.preferredSource!)]).toEqual([
    "169.254.1.1",
    podIndex,
    "10.65.0.7",
  ]);
  const [way6] = podSocket.request("look up", [lookUpRoute(ip("2001:db8::1"))]).map(parseRoute);
  expect(formatAddress(way6!.gateway!)).toBe("fe80::1");
});

test("routes of every shape come back as they were made, and the kernel filters by protocol, table and link", () => {
  using pair = new Pair();
  const { hostSocket, hostIndex } = pair;
  hostSocket.request("address", [newAddress({ index: hostIndex, address: ip("10.0.0.1"), prefix: 24 })]);
  const protocol = RouteProtocol.Manx;
  const made = [
    { destination: parseCidr("10.65.0.7/32"), outputIndex: hostIndex, protocol, mtu: 1300, advertisedMss: 1200 },
    { destination: parseCidr("10.66.0.0/26"), gateway: ip("10.0.0.9"), outputIndex: hostIndex, protocol, priority: 5 },
    {
      destination: parseCidr("10.67.0.0/26"),
      gateway: ip("192.0.2.5"),
      outputIndex: hostIndex,
      protocol,
      onLink: true,
      table: 1000,
    },
    { destination: parseCidr("10.68.0.0/26"), gateway: ip("fe80::9"), outputIndex: hostIndex, protocol },
    { destination: parseCidr("10.69.0.0/26"), protocol, type: RouteType.Blackhole },
    {
      destination: parseCidr("10.70.0.0/26"),
      protocol,
      nextHops: [{ gateway: ip("10.0.0.8"), outputIndex: hostIndex, weight: 3, onLink: false }, {
        gateway: ip("10.0.0.9"),
        outputIndex: hostIndex,
        weight: 1,
        onLink: true,
      }],
    },
    { destination: parseCidr("fd00:66::/64"), outputIndex: hostIndex, protocol },
    { destination: parseCidr("fd00:67::/64"), gateway: ip("fe80::9"), outputIndex: hostIndex, protocol, table: 1000 },
  ];
  hostSocket.request("add routes", made.map((each) => newRoute(each)));
  const found = hostSocket.dump("list", getRoutes({ protocol })).map(parseRoute);
  const byDestination = new Map(found.map((each) => [each.destination, each]));
  expect(found).toHaveLength(made.length);
  for (const each of made) {
    expect(byDestination.get(each.destination)).toMatchObject({ table: RouteTable.Main, ...each });
  }
  expect(
    hostSocket.dump("table", getRoutes({ table: 1000 })).map((each) => formatCidr(parseRoute(each).destination)).sort(),
  )
    .toEqual(["10.67.0.0/26", "fd00:67::/64"]);
  expect(hostSocket.dump("family", getRoutes({ protocol, family: 6, outputIndex: hostIndex })).length).toBe(2);
  expect(isErrno(thrownBy(() => hostSocket.request("again", [newRoute(made[0]!)])), "EEXIST")).toBe(true);
  hostSocket.request("replace", [newRoute({ ...made[0]!, mtu: 1250 }, MessageFlag.Create | MessageFlag.Replace)]);
  expect(
    hostSocket.dump("list", getRoutes({ protocol, family: 4 })).map(parseRoute).find((each) =>
      each.destination === made[0]!.destination
    )?.mtu,
  ).toBe(1250);
  hostSocket.request("delete", made.map(({ destination, table }) => delRoute({ destination, table, protocol })));
  expect(hostSocket.dump("list", getRoutes({ protocol }))).toEqual([]);
  expect(isErrno(thrownBy(() => hostSocket.request("delete again", [delRoute(made[0]!)])), "ESRCH")).toBe(true);
});

test("permanent and proxy neighbours are made, listed apart and removed", () => {
  using pair = new Pair();
  const { hostSocket, hostIndex, host } = pair;
  const fixed = [
    { index: hostIndex, address: ip("10.65.0.7"), hardwareAddress: "02:00:00:00:00:07" },
    { index: hostIndex, address: ip("fd00::7"), hardwareAddress: "02:00:00:00:00:07" },
  ];
  const proxies = ["169.254.1.1", "fe80::1"].map((text) => ({
    index: hostIndex,
    address: ip(text),
    flags: NeighbourFlag.Proxy,
  }));
  hostSocket.request("add", [...fixed, ...proxies].map((each) => newNeighbour(each)));
  const permanent = hostSocket.dump("list", getNeighbours({ index: hostIndex })).map(parseNeighbour)
    .filter((each) => each.state === NeighbourState.Permanent);
  expect(permanent.map((each) => [formatAddress(each.address!), each.hardwareAddress])).toEqual([
    ["10.65.0.7", "02:00:00:00:00:07"],
    ["fd00::7", "02:00:00:00:00:07"],
  ]);
  const proxied = (family: 4 | 6) =>
    hostSocket.dump("list", getNeighbours({ family, proxy: true })).map(parseNeighbour).map((each) =>
      formatAddress(each.address!)
    );
  expect([proxied(4), proxied(6)]).toEqual([["169.254.1.1"], ["fe80::1"]]);
  expect(json(host, "neigh", "show", "proxy").map((each) => each.dst)).toContain("169.254.1.1");
  hostSocket.request("remove", [...fixed, ...proxies].map((each) => delNeighbour(each)));
  expect([proxied(4), proxied(6)]).toEqual([[], []]);
  expect(isErrno(thrownBy(() => hostSocket.request("remove", [delNeighbour(proxies[0]!)])), "ENOENT")).toBe(true);
});

test("rules come back as they were made and go by what is given", () => {
  using host = createNamespace("host");
  using socket = openNetlink(NETLINK_ROUTE, { namespace: host });
  const made = [
    {
      family: 4,
      priority: 100,
      table: 1000,
      mark: 0x10000,
      markMask: 0xff0000,
      source: parseCidr("10.0.0.0/8"),
      protocol: 86,
    },
    {
      family: 4,
      priority: 101,
      table: RouteTable.Main,
      suppressPrefixLength: 0,
      inputName: "mx0",
      invert: true,
      protocol: 86,
    },
    {
      family: 6,
      priority: 102,
      action: RuleAction.Blackhole,
      destination: parseCidr("fd00::/8"),
      outputName: "mx1",
      protocol: 86,
    },
  ] as const;
  socket.request("add rules", made.map((each) => newRule(each)));
  const found = socket.dump("list", getRules()).map(parseRule).filter((each) => each.protocol === 86);
  expect(found).toHaveLength(made.length);
  made.forEach((each, i) => expect(found[i]).toMatchObject(each));
  expect(isErrno(thrownBy(() => socket.request("again", [newRule(made[0])])), "EEXIST")).toBe(true);
  socket.request("delete", made.map((each) => delRule(each)));
  expect(socket.dump("list", getRules()).map(parseRule).filter((each) => each.protocol === 86)).toEqual([]);
});

test("a packet really goes from the pod to the host and back over what was built", () => {
  using pair = new Pair();
  const { hostSocket, hostIndex, podSocket, podIndex, host, pod } = pair;
  const there = ip("192.0.2.1"), here = ip("10.65.0.7");
  hostSocket.request("host side", [
    newAddress({ index: 1, address: there, prefix: 32 }),
    setLink({ index: 1 }, { up: true }),
    newRoute({ destination: parseCidr("10.65.0.7/32"), outputIndex: hostIndex, protocol: RouteProtocol.Manx }),
  ]);
  podSocket.request("pod side", [
    newAddress({ index: podIndex, address: here, prefix: 32 }),
    newNeighbour({
      index: podIndex,
      address: ip("169.254.1.1"),
      hardwareAddress: linkByName(hostSocket, "mx0")!.hardwareAddress,
    }),
    newRoute({ destination: parseCidr("169.254.1.1/32"), outputIndex: podIndex }),
    newRoute({ destination: parseCidr("0.0.0.0/0"), gateway: ip("169.254.1.1"), outputIndex: podIndex }),
  ]);
  const datagram = () => c.check("open socket", c.socket(c.AF.INET, c.SOCK.DGRAM | c.SOCK.CLOEXEC, 0));
  const server = inNamespace(host, datagram), client = inNamespace(pod, datagram);
  for (const fd of [server, client]) c.check("bound the wait", c.setsockoptTimeout(fd, c.SO.RCVTIMEO, 3000));
  c.check("bind", c.bind(server, inetSockaddr({ address: there, port: 0 })));
  c.check("send", c.sendto(client, c.cString("ask"), 0, c.getsockname(server)));
  const { count, from } = c.recvfrom(server, c.buffer(16), 0);
  expect(count).toBe(4);
  expect(parseInetSockaddr(from).address).toBe(here);
  c.check("answer", c.sendto(server, c.cString("answer"), 0, from));
  expect(c.recv(client, c.buffer(16), 0)).toBe(7);
  c.close(server);
  c.close(client);
});
