/** Against the real kernel, in namespaces of the test's own. */
import { expect, test } from "bun:test";
import { type Address, parseAddress, parseCidr } from "../../model/address.ts";
import type { NetlinkMessage, NetlinkSocket } from "../../sdk/kernel_door.ts";
import { createKernelDoor } from "../door.ts";
import { isErrno, KernelError } from "../errors.ts";
import { setsockoptInt, SO, SOL } from "../libc.ts";
import { createNamespace, namespacePath } from "../netns.ts";
import { linkByName, setLinkUp } from "../rtnetlink.ts";
import { runIn, thrownBy } from "../testdata/tool_fixture.ts";
import { attrs, be32, bytes, decodeMessage, encodeMessage, list, MessageFlag, messageSchema, str } from "./codec.ts";
import { nfgenHeader } from "./schema/conntrack.ts";
import { getAddresses, newAddress, parseAddressMessage } from "./schema/rt_addr.ts";
import {
  delLink,
  getLink,
  getLinks,
  newLink,
  parseLink,
  RTM_NEWLINK,
  RTNLGRP_LINK,
  setLink,
} from "./schema/rt_link.ts";
import { getRoutes, newRoute, parseRoute } from "./schema/rt_route.ts";
import { NETLINK_NETFILTER, NETLINK_ROUTE, openNetlink } from "./socket.ts";

const DEADLINE_MS = 4_000;

// Enough of nf_tables to make transactions: the real schema is somebody else's.
const NFNL_SUBSYS_NFTABLES = 10;
const NFNLGRP_NFTABLES = 7;
const NFPROTO_INET = 1;
const tableMessage = messageSchema("table", nfgenHeader, attrs({ name: [1, str], flags: [2, be32] }));
const setMessage = messageSchema(
  "set",
  nfgenHeader,
  attrs({
    table: [1, str],
    name: [2, str],
    flags: [3, be32],
    keyType: [4, be32],
    keyLength: [5, be32],
    id: [10, be32],
  }),
);
const elementsMessage = messageSchema(
  "elements",
  nfgenHeader,
  attrs({
    table: [1, str],
    set: [2, str],
    elements: [3, list(() => attrs({ key: [1, attrs({ value: [1, bytes] })] }))],
  }),
);
const generationMessage = messageSchema("generation", nfgenHeader, attrs({ id: [1, be32] }));
const nft = (type: number) => NFNL_SUBSYS_NFTABLES << 8 | type;
const inet = { family: NFPROTO_INET };
const newTable = (name: string, flags: number = MessageFlag.Create) =>
  encodeMessage(tableMessage, nft(0), flags, inet, { name });
const delTable = (name: string) => encodeMessage(tableMessage, nft(2), 0, inet, { name });
const generationOf = (socket: NetlinkSocket) =>
  decodeMessage(
    generationMessage,
    socket.request("read generation", [encodeMessage(generationMessage, nft(16), 0, {}, {})])[0]!,
  )
    .attributes.id!;
const refusal = (body: () => unknown): KernelError => {
  const error = thrownBy(body);
  expect(error).toBeInstanceOf(KernelError);
  return error as KernelError;
};

test("the socket's port is its own and differs from another's", () => {
  using namespace = createNamespace("ports");
  using a = openNetlink(NETLINK_ROUTE, { namespace });
  using b = openNetlink(NETLINK_ROUTE, { namespace });
  expect(a.portId).toBeGreaterThan(0);
  expect(a.portId).not.toBe(b.portId);
});

test("a socket works in the namespace it was opened in, long after the switch", () => {
  using a = createNamespace("a");
  using b = createNamespace("b");
  using inA = openNetlink(NETLINK_ROUTE, { namespace: a });
  using inB = openNetlink(NETLINK_ROUTE, { namespace: b });
  inA.request("create pair", [newLink({ kind: "veth", name: "left", peer: { name: "right", namespaceFd: b.fd } })]);
  expect(inA.dump("list", getLinks()).map((each) => parseLink(each).name)).toEqual(["lo", "left"]);
  expect(inB.dump("list", getLinks()).map((each) => parseLink(each).name)).toEqual(["lo", "right"]);
  expect(runIn(b, "ip", "-o", "link", "show", "dev", "right")).toContain("right");
});

test("a request of more messages than the receive buffer would acknowledge at once is carried out whole", () => {
  using namespace = createNamespace("many");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  setLinkUp(socket, { name: "lo" });
  const count = 3000;
  const messages = Array.from(
    { length: count },
    (_, i) => newAddress({ index: 1, address: String.fromCharCode(10, 0, i >> 8, i & 255) as Address, prefix: 32 }),
  );
  expect(socket.request("add addresses", messages)).toEqual([]);
  expect(socket.dump("list routes", getRoutes({ family: 4, table: 255 })).length).toBeGreaterThanOrEqual(count);
  const again = socket.attempt("add addresses again", messages);
  expect(again.filter((error) => isErrno(error, "EEXIST"))).toHaveLength(count);
});

test("request answers a get, and throws the first refusal while later messages are carried out", () => {
  using namespace = createNamespace("first");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  const [answer] = socket.request("get lo", [getLink({ name: "lo" })]);
  expect(answer!.type).toBe(RTM_NEWLINK);
  expect(parseLink(answer!).index).toBe(1);
  const error = refusal(() =>
    socket.request("three things", [
      setLink({ name: "lo" }, { mtu: 1400 }),
      delLink({ name: "none" }),
      delLink({ name: "neither" }),
      setLink({ name: "lo" }, { up: true }),
    ])
  );
  expect(error.message).toBe("three things: ENODEV (No such device), message 2 of 4");
  const lo = linkByName(socket, "lo")!;
  expect([lo.mtu, lo.up]).toEqual([1400, true]);
  expect(linkByName(socket, "none")).toBeUndefined();
});

test("attempt tells for each message whether it was refused", () => {
  using namespace = createNamespace("attempt");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  const errors = socket.attempt("three things", [
    setLink({ name: "lo" }, { up: true }),
    delLink({ name: "none" }),
    setLink({ name: "lo" }, { mtu: 1300 }),
  ]);
  expect(errors.map((error) => error === undefined ? "done" : (error as KernelError).errnoName)).toEqual([
    "done",
    "ENODEV",
    "done",
  ]);
  expect(socket.attempt("nothing", [])).toEqual([]);
  expect(socket.request("nothing", [])).toEqual([]);
});

test("attempt finds each refusal among hundreds, wherever it stands, and carries out all the others", () => {
  using namespace = createNamespace("scattered");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  const count = 700;
  const messages = Array.from(
    { length: count },
    (_, i) => newAddress({ index: 1, address: String.fromCharCode(10, 0, i >> 8, i & 255) as Address, prefix: 32 }),
  );
  // The ends of the parts that it is sent in, and of the whole, among them.
  const bad = new Set([0, 1, 254, 255, 256, 300, 511, 512, count - 1]);
  const errors = socket.attempt(
    "add addresses",
    messages.map((message, i) => bad.has(i) ? delLink({ name: `none${i}` }) : message),
  );
  expect(errors.flatMap((error, i) => error === undefined ? [] : [i])).toEqual([...bad]);
  for (const i of bad) {
    expect((errors[i] as KernelError).message).toBe(
      `add addresses: ENODEV (No such device), message ${i + 1} of ${count}`,
    );
  }
  expect(socket.dump("list addresses", getAddresses()).length).toBe(count - bad.size);
  expect(socket.request("get lo", [getLink({ name: "lo" })])).toHaveLength(1);
});

test("errors carry the kernel's own text and the name of the attribute it points at", () => {
  using namespace = createNamespace("errors");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  setLinkUp(socket, { name: "lo" });
  const unknownKind = refusal(() => socket.request("create link x", [newLink({ kind: "nonsense", name: "x" })]));
  expect(unknownKind.message).toBe("create link x: EOPNOTSUPP (Operation not supported): Unknown device type");

  const route = newRoute({ destination: parseCidr("10.7.0.0/16"), gateway: parseAddress("192.0.2.1"), outputIndex: 1 });
  expect(refusal(() => socket.request("add route", [route])).kernelText).toBe("Nexthop has invalid gateway");

  const longName = refusal(() =>
    socket.request("create link", [newLink({ kind: "veth", name: "x".repeat(40), peer: {} })])
  );
  expect(longName.attribute).toBe("link.name");
  expect(longName.errnoName).toBe("ERANGE");

  const deep = refusal(() =>
    socket.request("create link", [newLink({ kind: "veth", name: "ok", peer: { name: "y".repeat(40) } })])
  );
  expect(deep.attribute).toBe("link.info.data.peer.name");
});

test("an attribute that the kernel misses is named", () => {
  using namespace = createNamespace("missing");
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  const set = encodeMessage(setMessage, nft(9), MessageFlag.Create, inet, { name: "s" });
  const error = refusal(() => socket.transaction("create set", NFNL_SUBSYS_NFTABLES, [newTable("t"), set]));
  expect(error.errnoName).toBe("EINVAL");
  expect(error.messageIndex).toBe(1);
});

test("a transaction is all or nothing, and names the message and attribute refused", () => {
  using namespace = createNamespace("atomic");
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  socket.transaction("one table", NFNL_SUBSYS_NFTABLES, [newTable("first")]);
  expect(runIn(namespace, "nft", "list", "tables")).toBe("table inet first\n");
  const error = refusal(() =>
    socket.transaction("bad", NFNL_SUBSYS_NFTABLES, [newTable("second"), delTable("third"), newTable("fourth")])
  );
  expect(error.message).toBe("bad: ENOENT (No such file or directory), attribute table.name, message 2 of 3");
  expect(runIn(namespace, "nft", "list", "tables")).toBe("table inet first\n");
  socket.transaction("nothing", NFNL_SUBSYS_NFTABLES, []);
  socket.transaction("swap", NFNL_SUBSYS_NFTABLES, [delTable("first"), newTable("second")]);
  expect(runIn(namespace, "nft", "list", "tables")).toBe("table inet second\n");
});

test("a transaction of a stale generation is ERESTART and changes nothing", () => {
  using namespace = createNamespace("generation");
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  const before = generationOf(socket);
  socket.transaction("first", NFNL_SUBSYS_NFTABLES, [newTable("a")], before);
  expect(generationOf(socket)).not.toBe(before);
  const error = refusal(() => socket.transaction("second", NFNL_SUBSYS_NFTABLES, [newTable("b")], before));
  expect(error.errnoName).toBe("ERESTART");
  expect(error.messageIndex).toBeUndefined();
  expect(runIn(namespace, "nft", "list", "tables")).toBe("table inet a\n");
  socket.transaction("third", NFNL_SUBSYS_NFTABLES, [newTable("b")], generationOf(socket));
});

test("a transaction for a subsystem that is not there is refused, not lost", () => {
  using namespace = createNamespace("subsystem");
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  // nfnetlink's subsystem 0 takes no batches.
  const error = refusal(() => socket.transaction("nowhere", 0, [newTable("a")]));
  expect(["EOPNOTSUPP", "EINVAL"]).toContain(error.errnoName);
});

test("a batch of megabytes goes in one send: 100,000 set elements", () => {
  using namespace = createNamespace("large");
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  const messages: NetlinkMessage[] = [
    newTable("t"),
    encodeMessage(setMessage, nft(9), MessageFlag.Create, inet, {
      table: "t",
      name: "s",
      flags: 0,
      keyType: 7,
      keyLength: 4,
      id: 1,
    }),
  ];
  const total = 100_000, each = 3000;
  for (let start = 0; start < total; start += each) {
    const elements = Array.from({ length: Math.min(each, total - start) }, (_, i) => {
      const n = start + i;
      return { key: { value: Uint8Array.of(10, n >> 16, n >> 8 & 255, n & 255) } };
    });
    messages.push(
      encodeMessage(elementsMessage, nft(12), MessageFlag.Create, inet, { table: "t", set: "s", elements }),
    );
  }
  socket.transaction("fill set", NFNL_SUBSYS_NFTABLES, messages);
  const query = encodeMessage(elementsMessage, nft(13), 0, inet, { table: "t", set: "s" });
  let count = 0;
  for (const answer of socket.dump("list elements", query)) {
    count += decodeMessage(elementsMessage, answer).attributes.elements!.length;
  }
  expect(count).toBe(total);
});

test("a transaction of which every message is refused still tells the first, though not all refusals fit", () => {
  using namespace = createNamespace("refused");
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  const messages = Array.from({ length: 20_000 }, (_, i) => delTable(`none${i}`));
  const error = refusal(() => socket.transaction("delete all", NFNL_SUBSYS_NFTABLES, messages));
  expect([error.errnoName, error.messageIndex]).toEqual(["ENOENT", 0]);
  socket.transaction("afterwards", NFNL_SUBSYS_NFTABLES, [newTable("fine")]);
});

test("a request whose acknowledgements overran the buffer is ENOBUFS, and the next request is answered", () => {
  using namespace = createNamespace("overrun");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  setsockoptInt(Reflect.get(socket, "fd") as number, SOL.SOCKET, SO.RCVBUF, 4096);
  const many = Array.from({ length: 200 }, () => getLink({ name: "lo" }));
  expect(refusal(() => socket.request("get lo often", many)).errnoName).toBe("ENOBUFS");
  expect(linkByName(socket, "lo")?.name).toBe("lo");
});

test("a dump for which nothing is there is empty, one that is refused throws", () => {
  using namespace = createNamespace("dumps");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  expect(socket.dump("list routes", getRoutes({ family: 4, protocol: 86 }))).toEqual([]);
  const wrong = encodeMessage(tableMessage, 26, 0, { family: 2 }, { name: "x" });
  expect(refusal(() => socket.dump("list badly", wrong)).errnoName).toBe("EINVAL");
});

test("a dump of thousands arrives whole and each message once", () => {
  using namespace = createNamespace("dump");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  setLinkUp(socket, { name: "lo" });
  const routes = Array.from(
    { length: 5000 },
    (_, i) => newRoute({ destination: parseCidr(`10.${i >> 8}.${i & 255}.0/24`), outputIndex: 1, protocol: 86 }),
  );
  socket.request("add routes", routes);
  const found = socket.dump("list routes", getRoutes({ family: 4, protocol: 86 })).map(parseRoute);
  expect(new Set(found.map((each) => each.destination)).size).toBe(5000);
  expect(found).toHaveLength(5000);
});

test("a dump amid changes by another process is complete and has nothing twice, or says that it was interrupted", async () => {
  using namespace = createNamespace("churn");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  setLinkUp(socket, { name: "lo" });
  const steady = Array.from({ length: 2000 }, (_, i) => String.fromCharCode(10, 0, i >> 8, i & 255) as Address);
  socket.request("add addresses", steady.map((address) => newAddress({ index: 1, address, prefix: 32 })));
  const lines = Array.from({ length: 1500 }, (_, i) => {
    const what = `10.9.${i >> 8}.${i & 255}/32 dev lo`;
    return `address add ${what}\naddress del ${what}\n`;
  });
  const other = Bun.spawn(["nsenter", `--net=${namespacePath(namespace)}`, "ip", "-batch", "-"], {
    stdin: new Blob(lines),
    stdout: "ignore",
    stderr: "ignore",
  });
  let ended = false;
  const exited = other.exited.then((code) => (ended = true, code));
  let complete = 0;
  while (!ended) {
    try {
      const found = socket.dump("list addresses", getAddresses({ family: 4 })).map((each) =>
        parseAddressMessage(each).address
      );
      const wanted = found.filter((address) => address.startsWith("\n\0"));
      expect([wanted.length, new Set(wanted).size]).toEqual([steady.length, steady.length]);
      complete++;
    } catch (error) {
      if (!isErrno(error, "EINTR")) throw error;
    }
    await Bun.sleep(1);
  }
  expect(await exited).toBe(0);
  expect(complete).toBeGreaterThan(0);
});

async function takeUntil(
  events: AsyncIterable<readonly NetlinkMessage[]>,
  enough: (message: NetlinkMessage) => boolean,
): Promise<NetlinkMessage[]> {
  const taken: NetlinkMessage[] = [];
  for await (const messages of events) {
    for (const message of messages) {
      taken.push(message);
      if (enough(message)) return taken;
    }
  }
  return taken;
}

test("events made before listening are not lost, and listening again goes on where it stopped", async () => {
  using namespace = createNamespace("events");
  const door = createKernelDoor();
  using watcher = door.netlink(NETLINK_ROUTE, { namespace, groups: [RTNLGRP_LINK] });
  using other = door.netlink(NETLINK_ROUTE, { namespace });
  setLinkUp(watcher, { name: "lo" });
  other.request("create pair", [newLink({ kind: "veth", name: "late", peer: { name: "peer" } })]);
  const taken = await takeUntil(
    watcher.events(AbortSignal.timeout(DEADLINE_MS)),
    (message) => parseLink(message).name === "late",
  );
  expect(taken.map((message) => parseLink(message).name)).toEqual(["lo", "peer", "late"]);
  other.request("delete", [delLink({ name: "late" })]);
  const more = await takeUntil(watcher.events(AbortSignal.timeout(DEADLINE_MS)), (message) => message.type === 17);
  expect(more.length).toBeGreaterThan(0);
});

test("a burst of thousands of events is delivered completely", async () => {
  using namespace = createNamespace("burst");
  using watcher = openNetlink(NETLINK_NETFILTER, { namespace, groups: [NFNLGRP_NFTABLES] });
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  const names = Array.from({ length: 2000 }, (_, i) => `table${i}`);
  socket.transaction("create many", NFNL_SUBSYS_NFTABLES, names.map((name) => newTable(name)));
  const taken = await takeUntil(
    watcher.events(AbortSignal.timeout(DEADLINE_MS)),
    (message) => message.type === nft(15),
  );
  const tables = taken.filter((message) => message.type === nft(0));
  expect(tables.map((message) => decodeMessage(tableMessage, message).attributes.name!)).toEqual(names);
  expect(tables.every((message) => message.portId === socket.portId)).toBe(true);
});

test("aborting ends the events quietly: before, while waiting, and when the socket is closed", async () => {
  using namespace = createNamespace("abort");
  const watcher = openNetlink(NETLINK_ROUTE, { namespace, groups: [RTNLGRP_LINK] });
  expect(await takeUntil(watcher.events(AbortSignal.abort()), () => false)).toEqual([]);
  const stop = new AbortController();
  const waiting = takeUntil(watcher.events(stop.signal), () => false);
  setTimeout(() => stop.abort(), 5);
  expect(await waiting).toEqual([]);
  const untilClosed = takeUntil(watcher.events(new AbortController().signal), () => false);
  setTimeout(() => watcher[Symbol.dispose](), 5);
  expect(await untilClosed).toEqual([]);
  watcher[Symbol.dispose]();
  expect(() => watcher.request("late", [getLink({ name: "lo" })])).toThrow("is closed");
});

test("lost events are ENOBUFS, and listening again works", async () => {
  using namespace = createNamespace("overrun");
  using watcher = openNetlink(NETLINK_NETFILTER, { namespace, groups: [NFNLGRP_NFTABLES] });
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  let error: unknown;
  const signal = AbortSignal.timeout(DEADLINE_MS);
  // So small a buffer that a burst which nobody reads overruns it.
  setsockoptInt(Reflect.get(watcher, "eventFd") as number, SOL.SOCKET, SO.RCVBUF, 4096);
  for (let round = 0; round < 100; round++) {
    socket.transaction("create", NFNL_SUBSYS_NFTABLES, [newTable(`table${round}`)]);
  }
  try {
    await takeUntil(watcher.events(signal), () => false);
  } catch (caught) {
    error = caught;
  }
  expect(isErrno(error, "ENOBUFS")).toBe(true);
  socket.transaction("afterwards", NFNL_SUBSYS_NFTABLES, [newTable("after")]);
  const taken = await takeUntil(
    watcher.events(signal),
    (message) => message.type === nft(0) && decodeMessage(tableMessage, message).attributes.name === "after",
  );
  expect(taken.map((message) => decodeMessage(tableMessage, message).attributes.name).slice(-1)).toEqual(["after"]);
});

test("a socket without groups has no events", () => {
  using namespace = createNamespace("none");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  expect(socket.events(AbortSignal.timeout(1000))[Symbol.asyncIterator]().next()).rejects.toThrow(
    "joined no multicast group",
  );
});

test("requests behind run beside the event loop, report the first refusal and free the socket again", async () => {
  using namespace = createNamespace("behind");
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  socket.request("create", [
    newLink({ kind: "veth", name: "a", peer: { name: "b" } }),
    newLink({ kind: "veth", name: "c", peer: { name: "d" } }),
  ]);
  const both = socket.requestBehind("delete", [
    delLink({ name: "a" }),
    delLink({ name: "none" }),
    delLink({ name: "c" }),
  ]);
  expect(() => socket.request("meanwhile", [getLink({ name: "lo" })])).toThrow();
  const error = await both.then(() => undefined, (caught) => caught);
  expect(isErrno(error, "ENODEV")).toBe(true);
  expect(socket.dump("list", getLinks()).map((each) => parseLink(each).name)).toEqual(["lo"]);
});

test("opening and closing sockets leaves no file descriptor behind", async () => {
  using namespace = createNamespace("leak");
  const count = () => Array.from(new Bun.Glob("*").scanSync({ cwd: "/proc/self/fd", onlyFiles: false })).length;
  const cycle = async () => {
    using socket = openNetlink(NETLINK_ROUTE, { namespace, groups: [RTNLGRP_LINK] });
    setLinkUp(socket, { name: "lo" });
    expect(() => openNetlink(NETLINK_ROUTE, { namespace, groups: [9999] })).toThrow(KernelError);
    expect(() => openNetlink(77)).toThrow(KernelError);
    await takeUntil(socket.events(AbortSignal.timeout(DEADLINE_MS)), () => true);
    socket.request("down", [setLink({ name: "lo" }, { up: false })]);
  };
  await cycle();
  const before = count();
  for (let i = 0; i < 20; i++) await cycle();
  // The runtime closes its duplicates on a thread of its own.
  const deadline = performance.now() + DEADLINE_MS;
  while (count() > before && performance.now() < deadline) await Bun.sleep(5);
  expect(count()).toBeLessThanOrEqual(before);
});
