/** What the kernel tells of generic netlink families and of IPVS, as captured; and messages that read back as they were written. */
import { expect, test } from "bun:test";
import { parseAddress } from "../../../model/address.ts";
import { DecodeError } from "../../errors.ts";
import { decodeMessage } from "../codec.ts";
import { findFamily, getFamily, NETLINK_GENERIC, parseFamily } from "../generic.ts";
import { openNetlink } from "../socket.ts";
import captured from "../testdata/captured_ipvs.json";
import {
  deleteServer,
  ForwardMethod,
  ipvsMessage,
  newServer,
  newService,
  parseServer,
  parseService,
  ServiceFlag,
  type VirtualService,
} from "./ipvs.ts";

const bytesOf = (hex: string) => Uint8Array.from(hex.match(/../g)!, (pair) => parseInt(pair, 16));

test("captured services and servers are read as ipvsadm was told to make them", () => {
  const found = captured.services.map(({ payload, servers }) => ({
    service: parseService({ payload: bytesOf(payload) }),
    servers: servers.map((one) => parseServer({ payload: bytesOf(one) })),
  }));
  const none = { activeConnections: 0, inactiveConnections: 0, persistentConnections: 0 };
  const order = (one: typeof found[number]) => one.service.scheduler;
  expect(found.sort((a, b) => order(a) < order(b) ? -1 : 1)).toEqual([
    { service: { family: 4, firewallMark: 18193, scheduler: "lc", flags: ServiceFlag.Scheduler3 }, servers: [] },
    {
      service: { family: 4, protocol: 6, address: parseAddress("10.96.0.1"), port: 80, scheduler: "rr", flags: 0 },
      servers: [{
        address: parseAddress("10.0.0.2"),
        port: 8080,
        forwardMethod: ForwardMethod.Masquerade,
        weight: 3,
        ...none,
      }],
    },
    {
      service: {
        family: 6,
        protocol: 17,
        address: parseAddress("fd00:96::a"),
        port: 53,
        scheduler: "sh",
        flags: ServiceFlag.Scheduler2,
        persistenceSeconds: 300,
      },
      // Direct routing keeps the port.
      servers: [{
        address: parseAddress("fd00::1"),
        port: 53,
        forwardMethod: ForwardMethod.DirectRoute,
        weight: 0,
        ...none,
      }],
    },
  ]);
});

test("a message cut off anywhere is refused or read, nothing else", () => {
  const payload = bytesOf(captured.services[0]!.payload);
  let refused = 0;
  for (let length = 0; length < payload.length; length++) {
    try {
      parseService({ payload: payload.subarray(0, length) });
    } catch (error) {
      expect(error).toBeInstanceOf(DecodeError);
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(payload.length / 2);
});

test("what is written is read back, and an address fills the union that the kernel takes", () => {
  const service: VirtualService = {
    family: 6,
    protocol: 6,
    address: parseAddress("fd00:96::1"),
    port: 443,
    scheduler: "mh",
    flags: ServiceFlag.Scheduler3,
    persistenceSeconds: 10_800,
  };
  expect(parseService(newService(31, service))).toEqual(service);
  const marked: VirtualService = { family: 4, firewallMark: 0xffee_0000, scheduler: "rr", flags: 0 };
  expect(parseService(newService(31, marked))).toEqual(marked);
  const server = { address: parseAddress("10.0.0.9"), port: 80, forwardMethod: 0, weight: 7 };
  expect(parseServer(newServer(31, marked, server))).toMatchObject(server);
  expect(decodeMessage(ipvsMessage, deleteServer(31, marked, server)).attributes.destination?.address).toBe(
    parseAddress("10.0.0.9") + "\0".repeat(12),
  );
  expect(newService(31, marked).type).toBe(31);
});

test("the captured family has its number, and the kernel knows the family of families and none that nobody made", () => {
  expect(parseFamily({ payload: bytesOf(captured.family) })).toMatchObject({ name: "IPVS", version: 1 });
  using socket = openNetlink(NETLINK_GENERIC);
  const [control] = socket.request("look up nlctrl", [getFamily("nlctrl")]);
  const family = parseFamily(control!);
  expect([family.id, family.name, family.groups.has("notify")]).toEqual([16, "nlctrl", true]);
  expect(findFamily(socket, "manx-no-family")).toBeUndefined();
});
