import { expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { createNamespace } from "../netns.ts";
import { linkByName } from "../rtnetlink.ts";
import { getRoutes, newRoute, parseRoute } from "./schema/rt_route.ts";
import { setLink } from "./schema/rt_link.ts";
import type { NetlinkSocket, NetworkNamespace } from "../../sdk/kernel_door.ts";
import { type Address, hostCidr } from "../../model/address.ts";
import { NETLINK_ROUTE, openNetlink } from "./socket.ts";

const TABLE = 77;
const ROUTES = 2_000;
const routes = getRoutes({ family: 4, table: TABLE });

function routed(): { readonly namespace: NetworkNamespace; readonly socket: NetlinkSocket } & Disposable {
  const namespace = createNamespace("dump behind");
  const socket = openNetlink(NETLINK_ROUTE, { namespace });
  const { index } = linkByName(socket, "lo")!;
  socket.request("bring lo up", [setLink({ index }, { up: true })]);
  socket.request(
    "make routes",
    Array.from({ length: ROUTES }, (_, i) =>
      newRoute({
        destination: hostCidr(String.fromCharCode(10, 0, i >> 8, i & 255) as Address),
        outputIndex: index,
        table: TABLE,
      })),
  );
  return {
    namespace,
    socket,
    [Symbol.dispose]() {
      socket[Symbol.dispose]();
      namespace[Symbol.dispose]();
    },
  };
}

const descriptors = () => readdirSync("/proc/self/fd").length;

test("a dump behind gives what a dump gives, in several parts, and the socket serves on", async () => {
  using here = routed();
  const { socket } = here;
  const seen: string[] = [];
  let parts = 0, turnsBetween = 0, turns = 0, done = false;
  const walked = (async () => {
    for await (const messages of socket.dumpBehind("list routes", routes)) {
      parts++;
      turnsBetween = turns;
      seen.push(...messages.map((message) => parseRoute(message).destination));
    }
    done = true;
  })();
  while (!done) {
    await new Promise((resolve) => setImmediate(resolve));
    turns++;
  }
  await walked;
  expect(parts).toBeGreaterThan(3);
  // How many depends on the machine's load; but what comes last comes in a later turn than the call.
  expect(turnsBetween).toBeGreaterThan(0);
  expect(seen).toEqual(socket.dump("list routes", routes).map((message) => parseRoute(message).destination));
  expect(seen).toHaveLength(ROUTES);
  expect(linkByName(socket, "lo")).toBeDefined();
});

test("using the socket meanwhile is a bug that says so", async () => {
  using here = routed();
  for await (const _ of here.socket.dumpBehind("list routes", routes)) {
    expect(() => linkByName(here.socket, "lo")).toThrow("busy with a request behind");
  }
  expect(linkByName(here.socket, "lo")).toBeDefined();
});

test("a dump that is left early closes the socket, and one that is closed early ends; no descriptor stays", async () => {
  using here = routed();
  const before = descriptors();
  {
    const socket = openNetlink(NETLINK_ROUTE, { namespace: here.namespace });
    for await (const _ of socket.dumpBehind("list routes", routes)) break;
    expect(() => linkByName(socket, "lo")).toThrow("closed");
    socket[Symbol.dispose]();
  }
  {
    const socket = openNetlink(NETLINK_ROUTE, { namespace: here.namespace });
    let parts = 0;
    for await (const _ of socket.dumpBehind("list routes", routes)) {
      parts++;
      socket[Symbol.dispose]();
    }
    expect(parts).toBe(1);
  }
  {
    const socket = openNetlink(NETLINK_ROUTE, { namespace: here.namespace });
    const dump = socket.dumpBehind("list routes", routes)[Symbol.asyncIterator]();
    const first = dump.next();
    socket[Symbol.dispose]();
    expect(await first).toEqual({ done: true, value: undefined });
  }
  expect(descriptors()).toBe(before);
});

test("a dump that the kernel refuses throws its reason", async () => {
  using here = routed();
  const bad = { ...routes, payload: routes.payload.slice(0, 4) };
  const all = async () => {
    for await (const _ of here.socket.dumpBehind("list routes", bad));
  };
  const refusal = await all().then(() => "none", (error: Error) => error.message);
  expect(refusal).toStartWith("list routes: EINVAL");
  expect(linkByName(here.socket, "lo")).toBeDefined();
});
