import { expect, test } from "bun:test";
import type { NetworkNamespace } from "../../sdk/kernel_door.ts";
import { createNamespace } from "../netns.ts";
import { linkByName } from "../rtnetlink.ts";
import { delLink, delLinkGroup, getLink, newLink, parseLink } from "./schema/rt_link.ts";
import { NETLINK_ROUTE, openNetlink } from "./socket.ts";

const GROUP = 77;

function linksIn(namespace: NetworkNamespace, names: readonly string[]): void {
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  for (const name of names) {
    socket.request(`make ${name}`, [newLink({ kind: "veth", name, group: GROUP, peer: { name: `${name}p` } })]);
  }
}

test("the kernel's work is done when it resolves, and the event loop went on meanwhile", async () => {
  using namespace = createNamespace("behind");
  linksIn(namespace, ["a", "b", "c"]);
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  let turns = 0, done = false;
  const deleted = socket.requestBehind("delete", [delLinkGroup(GROUP)]).then(() => done = true);
  while (!done) {
    await new Promise((resolve) => setImmediate(resolve));
    turns++;
  }
  await deleted;
  expect(turns).toBeGreaterThan(5);
  for (const name of ["a", "b", "c", "ap"]) expect(linkByName(socket, name)).toBeUndefined();
});

test("it resolves with the answers", async () => {
  using namespace = createNamespace("behind");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  const answers = await socket.requestBehind("make a", [
    newLink({ kind: "veth", name: "a", peer: { name: "b" } }),
    getLink({ name: "a" }),
    getLink({ name: "b" }),
  ]);
  expect(answers.map((answer) => parseLink(answer).name)).toEqual(["a", "b"]);
});

test("the first refusal is thrown, and later messages are carried out", async () => {
  using namespace = createNamespace("behind");
  linksIn(namespace, ["a"]);
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  const messages = [delLink({ name: "nobody" }), delLink({ name: "a" }), delLink({ name: "noone" })];
  const refusal = await socket.requestBehind("delete", messages).then(() => undefined, (error: Error) => error.message);
  expect(refusal).toStartWith("delete: ENODEV");
  expect(linkByName(socket, "a")).toBeUndefined();
});

test("using the socket meanwhile is a bug that says so", async () => {
  using namespace = createNamespace("behind");
  linksIn(namespace, ["a"]);
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  const deleted = socket.requestBehind("delete", [delLinkGroup(GROUP)]);
  expect(() => linkByName(socket, "a")).toThrow("busy with a request behind");
  await deleted;
  expect(linkByName(socket, "a")).toBeUndefined();
});

test("a socket closed meanwhile lets the request end", async () => {
  using namespace = createNamespace("behind");
  linksIn(namespace, ["a"]);
  const socket = openNetlink(NETLINK_ROUTE, { namespace });
  const deleted = socket.requestBehind("delete", [delLinkGroup(GROUP)]);
  socket[Symbol.dispose]();
  await deleted;
  using other = openNetlink(NETLINK_ROUTE, { namespace });
  expect(linkByName(other, "a")).toBeUndefined();
});
