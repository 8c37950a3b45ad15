/** Reading IPVS a turn at a time, from a kernel that is a list. */
import { expect, test } from "bun:test";
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { parseAddress } from "../../src/model/address.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import {
  ForwardMethod,
  getServers,
  newServer,
  newService,
  type RealServer,
  type VirtualService,
} from "../../src/kernel/netlink/schema/ipvs.ts";
import { findDifference, type FoundService, type IpvsDoor, readServices } from "./found_servers.ts";
import { OUR_FLAG, serverKey, serviceKey } from "./render.ts";
import { Turns } from "./turns.ts";

const FAMILY = 30;
const DATAGRAM_SERVICES = 40;

const service = (port: number, flags: number = OUR_FLAG): VirtualService => ({
  family: 4,
  protocol: PROTOCOLS.TCP,
  address: parseAddress("10.96.0.1"),
  port,
  scheduler: "rr",
  flags,
});
const server = (port: number, weight = 1): RealServer => ({
  address: parseAddress("10.0.0.1"),
  port,
  forwardMethod: ForwardMethod.Masquerade,
  weight,
});
const many = (count: number): FoundService[] =>
  Array.from({ length: count }, (_, i) => ({
    service: service(i + 1),
    servers: new Map([[serverKey(server(i + 1)), server(i + 1)]]),
  }));
const byKey = (all: readonly FoundService[]): Map<string, FoundService> =>
  new Map(all.map((one) => [serviceKey(one.service), one]));

/** Its messages are those that make services: the kernel's answers have the same attributes. */
class ListedKernel {
  turns = 0;
  private nowMs = 0;
  /** Called with each datagram of services. */
  onDatagram: () => void = () => {};

  constructor(readonly holds: Map<string, FoundService>) {}

  readonly door: IpvsDoor = {
    family: FAMILY,
    open: () => this.socket(),
    // A millisecond goes by with each look at the clock.
    turns: () => new Turns({ nowMs: () => this.nowMs++ }),
  };

  private socket(): NetlinkSocket {
    const { holds } = this;
    const onDatagram = () => this.onDatagram();
    const part: Pick<NetlinkSocket, "dump" | "dumpBehind" | typeof Symbol.dispose> = {
      dump(_, message) {
        const asked = [...holds.values()].find((one) => sameBytes(getServers(FAMILY, one.service), message));
        return [...asked?.servers.values() ?? []].map((one) => newServer(FAMILY, asked!.service, one));
      },
      async *dumpBehind() {
        const all = [...holds.values()].map((one) => newService(FAMILY, one.service));
        for (let at = 0; at < all.length; at += DATAGRAM_SERVICES) {
          onDatagram();
          yield all.slice(at, at + DATAGRAM_SERVICES);
        }
      },
      [Symbol.dispose]() {},
    };
    return part as NetlinkSocket;
  }
}

const sameBytes = (a: NetlinkMessage, b: NetlinkMessage): boolean => Bun.deepEquals(a.payload, b.payload);
const live = new AbortController().signal;
const expecting = (all: readonly FoundService[], foreign: readonly string[] = []) => ({
  found: { ours: byKey(all), foreign: new Set(foreign) },
  version: 0,
});

test("what is read is ours with its servers, and which are somebody else's", async () => {
  const kernel = new ListedKernel(byKey([...many(3), { service: service(99, 0), servers: new Map() }]));
  const found = await readServices(kernel.door);
  expect(found.ours).toEqual(byKey(many(3)));
  expect([...found.foreign]).toEqual([serviceKey(service(99, 0))]);
});

test.each<[string, (holds: Map<string, FoundService>) => void, string | undefined]>([
  ["nothing", () => {}, undefined],
  ["a service that is gone", (holds) => holds.delete(serviceKey(service(2))), "tcp 10.96.0.1:2 is gone"],
  [
    "a service of another scheduler",
    (holds) => holds.set(serviceKey(service(2)), { ...many(2)[1]!, service: { ...service(2), scheduler: "lc" } }),
    "tcp 10.96.0.1:2 was changed",
  ],
  [
    "a service without our flag",
    (holds) => holds.set(serviceKey(service(2)), { ...many(2)[1]!, service: service(2, 0) }),
    "tcp 10.96.0.1:2 became somebody else's",
  ],
  [
    "a service with our flag",
    (holds) => holds.set(serviceKey(service(9)), { service: service(9), servers: new Map() }),
    "tcp 10.96.0.1:9 appeared",
  ],
  [
    "another server",
    (holds) => holds.get(serviceKey(service(3)))!.servers.set("x", server(7)),
    "servers of tcp 10.96.0.1:3 were changed",
  ],
  [
    "a server of another weight",
    (holds) => holds.get(serviceKey(service(3)))!.servers.set(serverKey(server(3)), server(3, 5)),
    "servers of tcp 10.96.0.1:3 were changed",
  ],
])("the difference is found: %s", async (_, change, wanted) => {
  const kernel = new ListedKernel(byKey(many(3)));
  change(kernel.holds);
  expect(await findDifference(kernel.door, expecting(many(3)), live)).toBe(wanted);
});

test("somebody else's service that is gone is a difference: the place is ours now", async () => {
  const kernel = new ListedKernel(byKey(many(3)));
  expect(await findDifference(kernel.door, expecting(many(3), ["theirs"]), live)).toBe(
    "somebody else's service is gone",
  );
});

test("thousands are compared a few at a time, and others have their turns in between", async () => {
  const COUNT = 600;
  const all = many(COUNT);
  const kernel = new ListedKernel(byKey(all));
  let turns = 0, isOver = false;
  const others = (): void => {
    turns++;
    if (!isOver) setImmediate(others);
  };
  setImmediate(others);
  expect(await findDifference(kernel.door, expecting(all), live)).toBeUndefined();
  isOver = true;
  // A turn is 3 ms, of a clock that goes on by one with each step; services are looked at twice.
  expect(turns).toBeGreaterThan(2 * COUNT / 4);
});

test("what is written while services are listed is no difference: they are listed anew, three times at most", async () => {
  const kernel = new ListedKernel(byKey(many(100)));
  const expected = expecting(many(99));
  let lists = 0;
  kernel.onDatagram = () => {
    // The hundredth is ours to have by the end of the first list.
    if (++lists > 2) return;
    expected.found = { ours: byKey(many(100)), foreign: new Set() };
    expected.version++;
  };
  expect(await findDifference(kernel.door, expected, live)).toBeUndefined();
  expect(lists).toBe(2 * Math.ceil(100 / DATAGRAM_SERVICES));

  const restless = expecting(many(99));
  let datagrams = 0;
  kernel.onDatagram = () => (datagrams++, restless.version++);
  expect(await findDifference(kernel.door, restless, live)).toBeUndefined();
  expect(datagrams).toBe(3 * Math.ceil(100 / DATAGRAM_SERVICES));
});

test("a service that went while others were compared is not asked for", async () => {
  const all = many(500);
  const kernel = new ListedKernel(byKey(all));
  const expected = expecting(all);
  const done = findDifference(kernel.door, expected, live);
  setImmediate(() => {
    kernel.holds.clear();
    (expected.found.ours as Map<string, FoundService>).clear();
    expected.version++;
  });
  expect(await done).toBeUndefined();
});
