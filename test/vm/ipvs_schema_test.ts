/** What the schema of IPVS says, against the kernel and against ipvsadm. */
import { expect } from "bun:test";
import { parseAddress } from "../../src/model/address.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import { findFamily, NETLINK_GENERIC } from "../../src/kernel/netlink/generic.ts";
import {
  deleteServer,
  deleteService,
  ForwardMethod,
  getInfo,
  getServers,
  getServices,
  getTimeouts,
  IPVS_FAMILY,
  newServer,
  newService,
  parseInfo,
  parseServer,
  parseService,
  parseTimeouts,
  ServiceFlag,
  setServer,
  setService,
  setTimeouts,
  type VirtualService,
} from "../../src/kernel/netlink/schema/ipvs.ts";
import { openNetlink } from "../../src/kernel/netlink/socket.ts";
import { createNamespace } from "../../src/kernel/netns.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { guestTest } from "./guest.ts";

const server = (address: string, port: number, weight = 1) => ({
  address: parseAddress(address),
  port,
  forwardMethod: ForwardMethod.Masquerade,
  weight,
});

const WEB: VirtualService = {
  family: 4,
  protocol: 6,
  address: parseAddress("10.96.0.1"),
  port: 80,
  scheduler: "rr",
  flags: 0,
};
const DNS: VirtualService = {
  family: 6,
  protocol: 17,
  address: parseAddress("fd00:96::a"),
  port: 53,
  scheduler: "sh",
  flags: ServiceFlag.Scheduler2,
  persistenceSeconds: 300,
};
const MARKED: VirtualService = { family: 4, firewallMark: 0x4711, scheduler: "lc", flags: ServiceFlag.Scheduler3 };

guestTest("services and servers that we write are those that ipvsadm lists and the kernel gives back", () => {
  using namespace = createNamespace("ipvs schema");
  // Without a local routing table no IPv4 address is one that a server can have.
  runIn(namespace, "ip", "link", "set", "lo", "up");
  using socket = openNetlink(NETLINK_GENERIC, { namespace });
  const family = findFamily(socket, IPVS_FAMILY)!;
  expect(family.name).toBe("IPVS");
  const { id } = family;
  expect(parseInfo(socket.request("info", [getInfo(id)])[0]!).version).toBe(0x010201);
  expect(findFamily(socket, "no-such-family")).toBeUndefined();

  socket.request("fill", [
    newService(id, WEB),
    newServer(id, WEB, server("10.0.0.1", 8080)),
    newServer(id, WEB, server("10.0.0.2", 8080, 0)),
    newService(id, DNS),
    newServer(id, DNS, server("fd00::1", 5353, 7)),
    newService(id, MARKED),
  ]);
  const listed = runIn(namespace, "ipvsadm", "-Ln");
  expect(listed).toMatch(/TCP {2}10\.96\.0\.1:80 rr\n {2}-> 10\.0\.0\.1:8080 +Masq +1 +0 +0/);
  expect(listed).toMatch(/-> 10\.0\.0\.2:8080 +Masq +0 +0 +0/);
  expect(listed).toMatch(/UDP {2}\[fd00:96::a\]:53 sh \(sh-port\) persistent 300\n {2}-> \[fd00::1\]:5353 +Masq +7/);
  expect(listed).toMatch(/FWM {2}18193 lc/);

  const key = (one: VirtualService) => JSON.stringify(Object.entries(one).sort());
  const services = socket.dump("list services", getServices(id)).map(parseService);
  expect(services.map(key).sort()).toEqual([WEB, DNS, MARKED].map(key).sort());
  const servers = socket.dump("list servers", getServers(id, DNS)).map(parseServer);
  expect(servers).toEqual([{
    ...server("fd00::1", 5353, 7),
    activeConnections: 0,
    inactiveConnections: 0,
    persistentConnections: 0,
  }]);
  expect(socket.dump("list servers", getServers(id, WEB)).map(parseServer).map(({ weight }) => weight).sort())
    .toEqual([0, 1]);

  socket.request("change", [
    setServer(id, WEB, server("10.0.0.1", 8080, 3)),
    deleteServer(id, WEB, server("10.0.0.2", 8080)),
    setService(id, { ...WEB, scheduler: "wrr", persistenceSeconds: 60 }),
    deleteService(id, MARKED),
  ]);
  const changed = runIn(namespace, "ipvsadm", "-Ln");
  expect(changed).toMatch(/10\.96\.0\.1:80 wrr persistent 60\n {2}-> 10\.0\.0\.1:8080 +Masq +3/);
  expect(changed).not.toMatch(/10\.0\.0\.2|FWM/);

  // What others made is read as well.
  runIn(namespace, "ipvsadm", "-A", "-t", "10.96.0.9:443", "-s", "mh", "-b", "mh-port");
  runIn(namespace, "ipvsadm", "-a", "-t", "10.96.0.9:443", "-r", "10.0.0.9", "-g");
  const foreign = socket.dump("list", getServices(id)).map(parseService).find(({ scheduler }) => scheduler === "mh")!;
  expect(foreign.flags).toBe(ServiceFlag.Scheduler2);
  expect(parseServer(socket.dump("list", getServers(id, foreign))[0]!).forwardMethod).toBe(ForwardMethod.DirectRoute);

  const [errors] = [socket.attempt("again", [newService(id, DNS), deleteService(id, MARKED)])];
  expect(isErrno(errors[0], "EEXIST")).toBe(true);
  expect(isErrno(errors[1], "ESRCH")).toBe(true);
});

guestTest("the timeouts that we set are those that ipvsadm shows", () => {
  using namespace = createNamespace("ipvs timeouts");
  using socket = openNetlink(NETLINK_GENERIC, { namespace });
  const { id } = findFamily(socket, IPVS_FAMILY)!;
  socket.request("set", [setTimeouts(id, { tcp: 600, tcpFin: 0, udp: 60 })]);
  expect(runIn(namespace, "ipvsadm", "-L", "--timeout")).toContain("600 120 60");
  expect(parseTimeouts(socket.request("get", [getTimeouts(id)])[0]!)).toEqual({ tcp: 600, tcpFin: 120, udp: 60 });
});

guestTest("a dump of thousands of services is whole", () => {
  using namespace = createNamespace("ipvs many");
  using socket = openNetlink(NETLINK_GENERIC, { namespace });
  const { id } = findFamily(socket, IPVS_FAMILY)!;
  const address = (i: number) => parseAddress(`10.96.${i >> 8}.${i & 255}`);
  const services = Array.from({ length: 3_000 }, (_, i): VirtualService => ({ ...WEB, address: address(i) }));
  socket.request("fill", services.map((one) => newService(id, one)));
  const found = socket.dump("list services", getServices(id)).map(parseService);
  const addresses = new Set(found.map((one) => "address" in one ? one.address : ""));
  expect([found.length, addresses.size]).toEqual([3_000, 3_000]);
});
