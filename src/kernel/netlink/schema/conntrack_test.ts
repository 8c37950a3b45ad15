/** Connection tracking against the real kernel: real flows over the loopback of a namespace. */
import { expect, test } from "bun:test";
import { type Address, formatAddress, parseAddress } from "../../../model/address.ts";
import type { NetworkNamespace } from "../../../sdk/kernel_door.ts";
import { isErrno } from "../../errors.ts";
import * as c from "../../libc.ts";
import { createNamespace, inNamespace } from "../../netns.ts";
import { setLinkUp } from "../../rtnetlink.ts";
import { inetSockaddr, parseInetSockaddr } from "../../sockaddr.ts";
import { runIn, thrownBy } from "../../testdata/tool_fixture.ts";
import { NETLINK_NETFILTER, NETLINK_ROUTE, openNetlink } from "../socket.ts";
import {
  delFlow,
  expireFlow,
  type Flow,
  flowEnds,
  FlowStatus,
  getFlow,
  getFlowCount,
  getFlows,
  markFlow,
  NFNLGRP_CONNTRACK_DESTROY,
  NFNLGRP_CONNTRACK_NEW,
  parseFlow,
  parseFlowCount,
  tupleMatches,
} from "./conntrack.ts";

const UDP = 17;

/** Loopback up, and a ruleset that makes the kernel track. */
function trackingNamespace(title: string, ruleset = ""): NetworkNamespace {
  const namespace = createNamespace(title);
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  setLinkUp(socket, { name: "lo" });
  runIn(
    namespace,
    "nft",
    `table inet t { chain c { type filter hook output priority 0; ct state new counter\n ${ruleset}\n }\n }\n`,
  );
  return namespace;
}

/** One datagram each way over the loopback; the ports. */
function udpFlow(namespace: NetworkNamespace, address: Address): { clientPort: number; serverPort: number } {
  const family = address.length === 4 ? c.AF.INET : c.AF.INET6;
  const [client, server] = inNamespace(
    namespace,
    () => [0, 1].map(() => c.check("socket", c.socket(family, c.SOCK.DGRAM | c.SOCK.CLOEXEC, 0))),
  );
  for (const fd of [client!, server!]) {
    c.check("bind", c.bind(fd, inetSockaddr({ address, port: 0 })));
    c.check("timeout", c.setsockoptTimeout(fd, c.SO.RCVTIMEO, 2000));
  }
  const from = parseInetSockaddr(c.getsockname(client!)), to = parseInetSockaddr(c.getsockname(server!));
  c.check("send", c.sendto(client!, c.cString("ask"), 0, inetSockaddr(to)));
  const { count, from: seen } = c.recvfrom(server!, c.buffer(16), 0);
  c.check("receive", count);
  c.check("answer", c.sendto(server!, c.cString("say"), 0, seen));
  c.check("receive answer", c.recv(client!, c.buffer(16), 0));
  c.close(client!);
  c.close(server!);
  return { clientPort: from.port, serverPort: to.port };
}

for (const text of ["127.0.0.1", "::1"]) {
  test(`a real flow on ${text} is listed, looked up, deleted, and then gone`, () => {
    using namespace = trackingNamespace("flow");
    using socket = openNetlink(NETLINK_NETFILTER, { namespace });
    const address = parseAddress(text);
    const family = address.length === 4 ? 4 : 6;
    const { clientPort, serverPort } = udpFlow(namespace, address);
    udpFlow(namespace, address);
    const flows = socket.dump("list flows", getFlows({ family })).map(parseFlow);
    expect(flows).toHaveLength(2);
    const flow = flows.find((each) => each.original.sourcePort === clientPort)!;
    expect(flow).toMatchObject({
      family,
      original: {
        source: address,
        destination: address,
        protocol: UDP,
        sourcePort: clientPort,
        destinationPort: serverPort,
      },
      reply: {
        source: address,
        destination: address,
        protocol: UDP,
        sourcePort: serverPort,
        destinationPort: clientPort,
      },
      mark: 0,
      zone: 0,
    });
    expect(flow.status & FlowStatus.SeenReply).toBe(FlowStatus.SeenReply);
    expect(flow.timeoutSeconds).toBeGreaterThan(0);
    const [again] = socket.request("look up flow", [getFlow(flow.original)]).map(parseFlow);
    expect(again!.id).toBe(flow.id!);
    // The wrong id is another flow of the same tuple: it must stay.
    expect(isErrno(thrownBy(() => socket.request("delete", [delFlow({ ...flow, id: flow.id! ^ 1 })])), "ENOENT")).toBe(
      true,
    );
    socket.request("delete flow", [delFlow(flow)]);
    expect(isErrno(thrownBy(() => socket.request("look up flow", [getFlow(flow.original)])), "ENOENT")).toBe(true);
    expect(socket.dump("list flows", getFlows({ family }))).toHaveLength(1);
  });
}

test("the kernel filters a dump by family, tuple, mark and status", () => {
  using namespace = trackingNamespace("filter", "ip daddr 127.0.0.2 ct mark set 0x50000");
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  const one = udpFlow(namespace, parseAddress("127.0.0.1"));
  udpFlow(namespace, parseAddress("127.0.0.2"));
  udpFlow(namespace, parseAddress("::1"));
  const destinations = (filter: Parameters<typeof getFlows>[0]) =>
    socket.dump("list flows", getFlows(filter)).map(parseFlow).map((each) => formatAddress(each.original.destination))
      .sort();
  expect(destinations({})).toEqual(["127.0.0.1", "127.0.0.2", "::1"]);
  expect(destinations({ family: 6 })).toEqual(["::1"]);
  expect(destinations({ family: 4, original: { destination: parseAddress("127.0.0.2") } })).toEqual(["127.0.0.2"]);
  expect(destinations({ family: 4, original: { protocol: UDP, sourcePort: one.clientPort } })).toEqual(["127.0.0.1"]);
  expect(destinations({ family: 4, reply: { source: parseAddress("127.0.0.9") } })).toEqual([]);
  expect(destinations({ mark: { value: 0x50000, mask: 0xff0000 } })).toEqual(["127.0.0.2"]);
  expect(destinations({ status: { value: FlowStatus.SourceNat, mask: FlowStatus.SourceNat } })).toEqual([]);
  expect(destinations({ family: 4, status: { value: FlowStatus.SeenReply, mask: FlowStatus.SeenReply } })).toHaveLength(
    2,
  );
});

test("a flow in a zone of its own is found and deleted by that zone", () => {
  using namespace = createNamespace("zone");
  using routes = openNetlink(NETLINK_ROUTE, { namespace });
  setLinkUp(routes, { name: "lo" });
  runIn(
    namespace,
    "nft",
    `table inet t {
    chain o { type filter hook output priority raw; ct zone set 7; }
    chain p { type filter hook prerouting priority raw; ct zone set 7; }
    chain c { type filter hook input priority 0; ct state new counter; }
  }`,
  );
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  udpFlow(namespace, parseAddress("127.0.0.1"));
  const zoned = (zone: number): readonly Flow[] =>
    socket.dump("list flows", getFlows({ family: 4, zone })).map(parseFlow).filter((each) => each.zone === zone);
  const [flow] = zoned(7);
  expect(flow?.zone).toBe(7);
  expect(zoned(8)).toEqual([]);
  expect(isErrno(thrownBy(() => socket.request("delete", [delFlow({ original: flow!.original })])), "ENOENT")).toBe(
    true,
  );
  socket.request("delete flow", [delFlow(flow!)]);
  expect(zoned(7)).toEqual([]);
});

for (const text of ["127.0.0.1", "::1"]) {
  test(`a flow on ${text} is marked bit by bit, and its end is fixed`, () => {
    using namespace = trackingNamespace("change");
    using socket = openNetlink(NETLINK_NETFILTER, { namespace });
    const address = parseAddress(text), before = udpFlow(namespace, address);
    const list = () => socket.dump("list flows", getFlows()).map(parseFlow);
    const [flow] = list();
    expect(flow).toMatchObject({ mark: 0, master: undefined });
    socket.request("mark", [markFlow(flow!, 0xdead, 0xffff), markFlow(flow!, 0x20000, 0x20000)]);
    expect(list()[0]).toMatchObject({ mark: 0x2dead, original: { sourcePort: before.clientPort } });
    socket.request("unmark", [markFlow(flow!, 0, 0x20000)]);
    expect(list()[0]!.mark).toBe(0xdead);
    socket.request("end", [expireFlow(flow!, 500)]);
    const ending = list()[0]!;
    expect(ending.status & FlowStatus.FixedTimeout).toBe(FlowStatus.FixedTimeout);
    expect(ending.timeoutSeconds).toBeGreaterThan(490);
    expect(isErrno(thrownBy(() => socket.request("end", [expireFlow(ending, 5)])), "EPERM")).toBe(true);
    const gone = { ...flow!, original: { ...flow!.original, sourcePort: 1 } };
    expect(isErrno(thrownBy(() => socket.request("mark", [markFlow(gone, 1, 1)])), "ENOENT")).toBe(true);
  });
}

test("flows are counted, and their ends are read as all of a flow is", () => {
  using namespace = trackingNamespace("ends");
  using socket = openNetlink(NETLINK_NETFILTER, { namespace });
  const count = () => socket.request("count flows", [getFlowCount()]).map(parseFlowCount);
  expect(count()).toEqual([0]);
  udpFlow(namespace, parseAddress("127.0.0.1"));
  udpFlow(namespace, parseAddress("::1"));
  expect(count()).toEqual([2]);
  const messages = socket.dump("list flows", getFlows());
  expect(messages.map(flowEnds)).toEqual(
    messages.map(parseFlow).map(({ original, reply }) => ({
      source: original.source,
      destination: original.destination,
      replySource: reply.source,
      replyDestination: reply.destination,
    })),
  );
});

test("flows are told as they come and go", async () => {
  using namespace = trackingNamespace("events");
  using socket = openNetlink(NETLINK_NETFILTER, {
    namespace,
    groups: [NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_DESTROY],
  });
  const events = socket.events(AbortSignal.timeout(4000))[Symbol.asyncIterator]();
  const { clientPort } = udpFlow(namespace, parseAddress("127.0.0.1"));
  const [flow] = socket.dump("list flows", getFlows({ family: 4 })).map(parseFlow);
  socket.request("delete flow", [delFlow(flow!)]);
  const seen: string[] = [];
  while (seen.length < 2) {
    const { value, done } = await events.next();
    if (done) break;
    for (const message of value) {
      if (parseFlow(message).original.sourcePort === clientPort) {
        seen.push((message.type & 0xff) === 2 ? "gone" : "new");
      }
    }
  }
  expect(seen).toEqual(["new", "gone"]);
  await events.return?.();
});

test("tuples compare by the fields that are given", () => {
  const tuple = {
    source: parseAddress("10.0.0.1"),
    destination: parseAddress("10.0.0.2"),
    protocol: 6,
    sourcePort: 1,
    destinationPort: 80,
  };
  expect(tupleMatches(tuple, {})).toBe(true);
  expect(tupleMatches(tuple, { destinationPort: 80, protocol: 6 })).toBe(true);
  expect(tupleMatches(tuple, { destinationPort: 81 })).toBe(false);
  expect(tupleMatches(tuple, { sourcePort: undefined })).toBe(true);
});
