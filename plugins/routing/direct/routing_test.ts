import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  AF,
  bind,
  buffer,
  check,
  close,
  POLL,
  poll,
  recvfrom,
  sendto,
  SOCK,
  socket,
} from "../../../src/kernel/libc.ts";
import { createNamespace, inNamespace } from "../../../src/kernel/netns.ts";
import { delAddress, newAddress } from "../../../src/kernel/netlink/schema/rt_addr.ts";
import { newLink, setLink } from "../../../src/kernel/netlink/schema/rt_link.ts";
import {
  delRoute,
  getRoutes,
  newRoute,
  parseRoute,
  RouteProtocol,
  RouteTable,
  RouteType,
} from "../../../src/kernel/netlink/schema/rt_route.ts";
import { linkByName } from "../../../src/kernel/rtnetlink.ts";
import { inetSockaddr } from "../../../src/kernel/sockaddr.ts";
import { type Cidr, formatAddress, formatCidr, parseAddress, parseCidr } from "../../../src/model/address.ts";
import type { DesiredRoute, RouteState } from "../../../src/model/desired.ts";
import { type PersistentMap, persistentMap } from "../../../src/model/persistent_map.ts";
import type { KernelDoor, NetlinkMessage, NetlinkSocket, NetworkNamespace } from "../../../src/sdk/kernel_door.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import { namespacedKernel } from "../../../src/kernel/namespaced_door.ts";
import { DirectRouting } from "./routing.ts";

let stack: AsyncDisposableStack;
let a: NetworkNamespace, b: NetworkNamespace;
let kernel: KernelDoor;
let routing: DirectRouting;
let ours: NetlinkSocket;

/** Two nodes on one wire: a is 192.0.2.1 and 2001:db8::1, b the same with 2. */
beforeEach(() => {
  stack = new AsyncDisposableStack();
  a = stack.use(createNamespace("a"));
  b = stack.use(createNamespace("b"));
  kernel = namespacedKernel(a);
  ours = stack.use(kernel.netlink(0));
  const theirs = stack.use(kernel.netlink(0, { namespace: b }));
  ours.request("wire", [newLink({ kind: "veth", name: "eth0", peer: { name: "eth0", namespaceFd: b.fd } })]);
  for (const [socket, number] of [[ours, 1], [theirs, 2]] as const) {
    const { index } = linkByName(socket, "eth0")!;
    socket.request("addresses", [
      setLink({ index }, { up: true }),
      newAddress({ index, address: parseAddress(`192.0.2.${number}`), prefix: 24 }),
      newAddress({ index, address: parseAddress(`2001:db8::${number}`), prefix: 64, flags: 2 }),
    ]);
  }
  routing = stack.use(new DirectRouting(hostOf(kernel)));
});
afterEach(() => stack.disposeAsync());

function hostOf(door: KernelDoor): Host {
  const quiet = () => {};
  return {
    node: "a",
    log: { debug: quiet, info: quiet, warn: quiet, error: quiet },
    clock: {
      nowMs: () => performance.now(),
      wallMs: () => 0,
      sleep: () => new Promise((resolve) => setImmediate(resolve)),
    },
    kernel: door,
    datastore: undefined as never,
    stateDirectory: "/nonexistent",
  };
}

/** `10.1.0.0/26 via 192.0.2.2`, one a line of what is wanted. */
function routesOf(
  lines: readonly string[],
  from: PersistentMap<string, DesiredRoute> = persistentMap(),
): PersistentMap<string, DesiredRoute> {
  let map = from;
  const keys = new Set<string>();
  for (const line of lines) {
    const [destination, , via] = line.split(" ") as [string, string, string];
    keys.add(destination);
    const route = { destination: parseCidr(destination), node: "b", via: parseAddress(via) };
    const before = map.get(destination);
    if (before === undefined || before.via !== route.via) map = map.set(destination, route);
  }
  for (const key of [...map.keys()]) if (!keys.has(key)) map = map.delete(key);
  return map;
}
let generation = 0;
const stateOf = (routes: PersistentMap<string, DesiredRoute>, blocks: readonly string[] = []): RouteState => ({
  generation: ++generation,
  routes,
  localBlocks: blocks.map((text) => parseCidr(text)),
});

/** Routes of the main table that are not the kernel's own. */
function table(): string[] {
  return ours.dump("routes", getRoutes()).map(parseRoute)
    .filter((route) => route.table === RouteTable.Main && route.protocol !== RouteProtocol.Kernel)
    .map((route) =>
      [
        route.type === RouteType.Unreachable ? "unreachable" : undefined,
        formatCidr(route.destination),
        route.gateway === undefined ? undefined : `via ${formatAddress(route.gateway)}`,
        route.gateway === undefined && route.type === RouteType.Unicast ? "on a link" : undefined,
        route.protocol === RouteProtocol.Manx ? undefined : `proto ${route.protocol}`,
      ].filter(Boolean).join(" ")
    ).sort();
}

const LINES = ["10.1.0.0/26 via 192.0.2.2", "10.1.0.64/26 via 192.0.2.2", "fd00:1::/122 via 2001:db8::2"];

describe("apply", () => {
  test("routes of both families are there and carry packets; a packet to nobody's address is answered", async () => {
    const report = await routing.apply(stateOf(routesOf(LINES), ["10.2.0.0/26", "fd00:2::/122"]));
    expect(report).toEqual({ generation, converged: true, messages: 5, problems: [] });
    expect(table()).toEqual([...LINES, "unreachable 10.2.0.0/26", "unreachable fd00:2::/122"].sort());

    const theirs = stack.use(kernel.netlink(0, { namespace: b }));
    const index = linkByName(theirs, "lo")!.index;
    theirs.request("pods of b", [
      setLink({ index }, { up: true }),
      newAddress({ index, address: parseAddress("10.1.0.5"), prefix: 32 }),
      newAddress({ index, address: parseAddress("fd00:1::5"), prefix: 128, flags: 2 }),
    ]);
    expect(await reaches("10.1.0.5")).toBe(true);
    expect(await reaches("fd00:1::5")).toBe(true);
    expect(sendTo("10.2.0.9")).toBe("EHOSTUNREACH");
    expect(sendTo("fd00:2::9")).toBe("EHOSTUNREACH");
  });

  function sendTo(text: string): string {
    const fd = check("socket", inNamespace(a, () => socket(text.includes(":") ? AF.INET6 : AF.INET, SOCK.DGRAM, 0)));
    try {
      const sent = sendto(fd, Uint8Array.of(1), 0, inetSockaddr({ address: parseAddress(text), port: 7 }));
      return sent === -113 ? "EHOSTUNREACH" : String(sent);
    } finally {
      close(fd);
    }
  }
  /** An IPv6 address is in use a moment after it was set: asked again until a deadline. */
  async function reaches(text: string): Promise<boolean> {
    const family = text.includes(":") ? AF.INET6 : AF.INET;
    const target = inetSockaddr({ address: parseAddress(text), port: 7 });
    const there = check("socket", inNamespace(b, () => socket(family, SOCK.DGRAM | SOCK.NONBLOCK, 0)));
    const here = check("socket", inNamespace(a, () => socket(family, SOCK.DGRAM | SOCK.NONBLOCK, 0)));
    try {
      check("bind", bind(there, target));
      for (const end = performance.now() + 3_000; performance.now() < end;) {
        if (sendto(here, Uint8Array.of(1), 0, target) === 1 && poll([{ fd: there, events: POLL.IN }], 100)[0] !== 0) {
          return recvfrom(there, buffer(8), 0).count === 1;
        }
        await new Promise((resolve) => setImmediate(resolve));
      }
      return false;
    } finally {
      close(here);
      close(there);
    }
  }

  test("the same state again sends nothing, also after a restart", async () => {
    const state = stateOf(routesOf(LINES), ["10.2.0.0/26"]);
    await routing.apply(state);
    expect((await routing.apply(state)).messages).toBe(0);
    expect((await routing.apply({ ...state, generation: ++generation })).messages).toBe(0);
    await using restarted = new DirectRouting(hostOf(kernel));
    expect(await restarted.apply(stateOf(routesOf(LINES), ["10.2.0.0/26"])))
      .toEqual({ generation, converged: true, messages: 0, problems: [] });
  });

  test("a change costs messages for that change only", async () => {
    const many = Array.from({ length: 500 }, (_, i) => `10.${100 + (i >> 8)}.${i & 255}.0/26 via 192.0.2.2`);
    let map = routesOf(many);
    expect((await routing.apply(stateOf(map))).messages).toBe(500);
    map = map.delete("10.100.7.0/26");
    expect((await routing.apply(stateOf(map))).messages).toBe(1);
    map = map.set("10.100.8.0/26", {
      destination: parseCidr("10.100.8.0/26"),
      node: "c",
      via: parseAddress("192.0.2.3"),
    });
    map = map.set("10.1.0.0/26", { destination: parseCidr("10.1.0.0/26"), node: "c", via: parseAddress("192.0.2.3") });
    expect(await routing.apply(stateOf(map, ["10.2.0.0/26"]))).toMatchObject({ messages: 3, problems: [] });
    expect(table()).toHaveLength(501);
    expect(table()).toContain("10.100.8.0/26 via 192.0.2.3");
    expect(table()).not.toContain("10.100.8.0/26 via 192.0.2.2");
  });

  test("a restart deletes routes of ours that nobody wants any more, and leaves pods' routes and foreign ones", async () => {
    const { index } = linkByName(ours, "eth0")!;
    ours.request("others", [
      newRoute({ destination: parseCidr("10.2.0.5/32"), outputIndex: index, protocol: RouteProtocol.Manx }),
      newRoute({ destination: parseCidr("fd00:2::5/128"), outputIndex: index, protocol: RouteProtocol.Manx }),
      newRoute({
        destination: parseCidr("10.9.0.0/16"),
        gateway: parseAddress("192.0.2.2"),
        protocol: RouteProtocol.Static,
      }),
      newRoute({ destination: parseCidr("10.8.0.0/16"), type: RouteType.Blackhole, protocol: RouteProtocol.Manx }),
      newRoute({
        destination: parseCidr("10.7.0.0/26"),
        gateway: parseAddress("192.0.2.2"),
        protocol: RouteProtocol.Manx,
        priority: 50,
      }),
      newRoute({
        destination: parseCidr("10.7.0.0/26"),
        gateway: parseAddress("192.0.2.3"),
        protocol: RouteProtocol.Manx,
        table: 100,
      }),
    ]);
    await routing.apply(stateOf(routesOf(LINES), ["10.2.0.0/26"]));
    await using restarted = new DirectRouting(hostOf(kernel));
    expect(await restarted.apply(stateOf(routesOf(LINES.slice(0, 1)), ["10.2.0.0/26"]))).toMatchObject({
      converged: true,
    });
    const kept = ["10.2.0.5/32 on a link", "10.9.0.0/16 via 192.0.2.2 proto 4", "fd00:2::5/128 on a link"];
    expect(table()).toEqual(["10.1.0.0/26 via 192.0.2.2", ...kept, "unreachable 10.2.0.0/26"].sort());
    expect(await restarted.sweep()).toMatchObject({ converged: true, messages: 2 });
    expect(table()).toEqual(kept.sort());
    expect(ours.dump("routes", getRoutes({ table: 100 }))).toHaveLength(1);
  });

  test("a node that is not directly reachable is a problem that names it, and the others go in", async () => {
    const report = await routing.apply(
      stateOf(routesOf([...LINES, "10.3.0.0/26 via 198.51.100.3", "fd00:3::/122 via 2001:db8:9::3"])),
    );
    expect(report.converged).toBe(false);
    expect(report.problems).toHaveLength(2);
    expect(report.problems[0]).toStartWith("route 10.3.0.0/26 to node b via 198.51.100.3: ");
    expect(report.problems[0]).toContain("subnet");
    expect(table()).toEqual(LINES.toSorted());
    // The way appears: the next round, of the same state, has only that to do.
    const { index } = linkByName(ours, "eth0")!;
    ours.request("address", [newAddress({ index, address: parseAddress("198.51.100.1"), prefix: 24 })]);
    const again = await routing.apply(stateOf(routesOf([...LINES, "10.3.0.0/26 via 198.51.100.3"])));
    expect(again).toMatchObject({ converged: true, messages: 1 });
    expect(table()).toContain("10.3.0.0/26 via 198.51.100.3");
  });

  test("a foreign route in the place of ours is a problem and stays", async () => {
    ours.request("foreign", [newRoute({ destination: parseCidr("10.1.0.0/26"), gateway: parseAddress("192.0.2.9") })]);
    const report = await routing.apply(stateOf(routesOf(LINES)));
    expect(report.problems).toEqual([
      "route 10.1.0.0/26 to node b via 192.0.2.2: a route that is not ours is in its place",
    ]);
    expect(table()).toContain("10.1.0.0/26 via 192.0.2.9 proto 4");
    ours.request("foreign", [delRoute({ destination: parseCidr("10.1.0.0/26") })]);
    expect(await routing.apply(stateOf(routesOf(LINES)))).toMatchObject({ converged: true });
  });

  test("a block that becomes ours, and away again, changes kind", async () => {
    const block = "10.1.0.0/26";
    await routing.apply(stateOf(routesOf([`${block} via 192.0.2.2`])));
    await routing.apply(stateOf(persistentMap(), [block]));
    expect(table()).toEqual([`unreachable ${block}`]);
    await routing.apply(stateOf(routesOf([`${block} via 192.0.2.2`])));
    expect(table()).toEqual([`${block} via 192.0.2.2`]);
  });

  test("two claims on one block: the same one wins in every order, and the other takes over", async () => {
    const claim = (via: string): DesiredRoute => ({
      destination: parseCidr("10.1.0.0/26"),
      node: via,
      via: parseAddress(via),
    });
    const [one, two] = [["k1", claim("192.0.2.2")], ["k2", claim("192.0.2.3")]] as const;
    for (const order of [[one, two], [two, one]]) {
      await using fresh = new DirectRouting(hostOf(kernel));
      let map: PersistentMap<string, DesiredRoute> = persistentMap();
      for (const [key, route] of order) {
        map = map.set(key, route);
        await fresh.apply(stateOf(map));
      }
      expect(table()).toEqual(["10.1.0.0/26 via 192.0.2.2"]);
      await fresh.apply(stateOf(map.delete("k1")));
      expect(table()).toEqual(["10.1.0.0/26 via 192.0.2.3"]);
      await fresh.sweep();
    }
  });

  test("a block of one address does not hide the pod that has it", async () => {
    const { index } = linkByName(ours, "eth0")!;
    await routing.apply(stateOf(persistentMap(), ["10.2.0.5/32"]));
    ours.request("pod", [
      newRoute({ destination: parseCidr("10.2.0.5/32") as Cidr, outputIndex: index, protocol: RouteProtocol.Manx }),
    ]);
    expect(table()).toEqual(["10.2.0.5/32 on a link", "unreachable 10.2.0.5/32"]);
  });

  test("an error of the socket is thrown, and the next round looks anew", async () => {
    let broken = true;
    const door: KernelDoor = {
      ...kernel,
      netlink(protocol, options) {
        const real = kernel.netlink(protocol, options);
        return Object.assign(Object.create(real) as NetlinkSocket, {
          attempt(operation: string, messages: readonly NetlinkMessage[]) {
            const errors = real.attempt(operation, messages.slice(0, broken ? 1 : undefined));
            if (broken) throw new Error("the answer is lost");
            return errors;
          },
          dump: real.dump.bind(real),
          [Symbol.dispose]: () => real[Symbol.dispose](),
        });
      },
    };
    await using fragile = new DirectRouting(hostOf(door));
    const state = stateOf(routesOf(LINES));
    expect(fragile.apply(state)).rejects.toThrow("lost");
    broken = false;
    expect(await fragile.apply(state)).toMatchObject({ converged: true, messages: 2 });
    expect(table()).toEqual(LINES.toSorted());
  });
});

describe("drift", () => {
  /** Runs `change` once the stream listens; the first reason it yields. */
  async function reasonFor(change: () => void): Promise<string> {
    const stop = new AbortController();
    const stream = routing.drift(stop.signal)[Symbol.asyncIterator]();
    try {
      const first = stream.next();
      // Joined by now: sockets are opened before the first wait.
      change();
      const late = new Promise<never>((_, reject) =>
        setTimeout(() => reject(new Error("no reason within 3 s")), 3_000).unref()
      );
      return (await Promise.race([first, late])).value as string;
    } finally {
      stop.abort();
      await stream.return?.();
    }
  }

  test.each<[string, () => void, string]>([
    [
      "a route of ours deleted",
      () => ours.request("x", [delRoute({ destination: parseCidr("10.1.0.0/26") })]),
      "a route of ours was deleted",
    ],
    [
      "an IPv6 one deleted",
      () => ours.request("x", [delRoute({ destination: parseCidr("fd00:1::/122") })]),
      "a route of ours was deleted",
    ],
    [
      "one added beside ours",
      () =>
        ours.request("x", [
          newRoute({
            destination: parseCidr("10.5.0.0/26"),
            gateway: parseAddress("192.0.2.7"),
            protocol: RouteProtocol.Manx,
          }),
        ]),
      "written over",
    ],
    ["the link down", () => {
      const { index } = linkByName(ours, "eth0")!;
      ours.request("x", [setLink({ index }, { up: false })]);
      ours.request("x", [
        setLink({ index }, { up: true }),
        newAddress({ index, address: parseAddress("2001:db8::1"), prefix: 64, flags: 2 }),
      ]);
    }, "link eth0 changed"],
    ["the node's address gone and back", () => {
      const { index } = linkByName(ours, "eth0")!;
      ours.request("x", [delAddress({ index, address: parseAddress("192.0.2.1"), prefix: 24 })]);
      ours.request("x", [newAddress({ index, address: parseAddress("192.0.2.1"), prefix: 24 })]);
    }, "an address of the node changed"],
  ])("%s is noticed and the next apply mends it", async (_title, change, text) => {
    const state = stateOf(routesOf(LINES), ["10.2.0.0/26"]);
    await routing.apply(state);
    expect(await reasonFor(change)).toContain(text);
    expect(await routing.apply(state)).toMatchObject({ converged: true });
    expect(table()).toEqual([...LINES, "unreachable 10.2.0.0/26"].sort());
  });

  test("what we do ourselves and what pods do is no drift", async () => {
    await routing.apply(stateOf(routesOf(LINES)));
    const { index } = linkByName(ours, "eth0")!;
    const reason = await reasonFor(() => {
      ours.request("pod", [
        newLink({ kind: "veth", name: "mx00000000001", peer: { name: "p", namespaceFd: b.fd } }),
        newRoute({ destination: parseCidr("10.2.0.5/32"), outputIndex: index, protocol: RouteProtocol.Manx }),
        delRoute({ destination: parseCidr("10.2.0.5/32"), outputIndex: index, protocol: RouteProtocol.Manx }),
        newRoute({ destination: parseCidr("203.0.113.0/24"), gateway: parseAddress("192.0.2.2") }),
      ]);
      void routing.apply(stateOf(routesOf(LINES.slice(1))));
      // The one thing that is drift, last: nothing before it was a reason.
      ours.request("x", [delRoute({ destination: parseCidr("fd00:1::/122") })]);
    });
    expect(reason).toBe("a route of ours was deleted");
  });

  test("ends when its signal aborts", async () => {
    const stop = new AbortController();
    const reading = (async () => {
      for await (const _ of routing.drift(stop.signal));
      return "ended";
    })();
    stop.abort();
    expect(await reading).toBe("ended");
  });
});
