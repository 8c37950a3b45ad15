/** What the kernel sends of logged packets, as captured; and against the real kernel, in namespaces of the test's own. */
import { expect, test } from "bun:test";
import { parseAddress } from "../../../model/address.ts";
import type { NetlinkSocket, NetworkNamespace } from "../../../sdk/kernel_door.ts";
import { DecodeError, isErrno } from "../../errors.ts";
import * as c from "../../libc.ts";
import { createNamespace, inNamespace } from "../../netns.ts";
import { setLinkUp } from "../../rtnetlink.ts";
import { inetSockaddr } from "../../sockaddr.ts";
import { runIn, thrownBy } from "../../testdata/tool_fixture.ts";
import { NETLINK_NETFILTER, NETLINK_ROUTE, openNetlink } from "../socket.ts";
import captured from "../testdata/captured_nflog.json";
import { bindLogGroup, type GroupPacket, NFULNL_MSG_PACKET, parseGroupPacket, unbindLogGroup } from "./nflog.ts";

const DEADLINE_MS = 5_000;
const LOOPBACK = 1;
const bytesOf = (hex: string) => Uint8Array.from(hex.match(/../g)!, (pair) => parseInt(pair, 16));

test("every captured packet is read: its rule's prefix, its hook and its link, and where it begins", () => {
  for (const [index, { what, payload }] of captured.packets.entries()) {
    const leaving = what.endsWith("leaving");
    const packet = parseGroupPacket({ payload: bytesOf(payload) });
    expect([what, packet]).toEqual([what, {
      family: what.startsWith("IPv4") ? 2 : 10,
      group: 86,
      hook: leaving ? 3 : 0,
      prefix: leaving ? "out" : "manx deny ingress end",
      sequence: packet.sequence,
      timestampMs: packet.timestampMs,
      inIndex: leaving ? undefined : LOOPBACK,
      outIndex: leaving ? LOOPBACK : undefined,
      payload: packet.payload,
    }]);
    expect(packet.sequence!).toBeGreaterThanOrEqual(index);
    // The kernel stamps what comes in, not what the host itself sends.
    expect(packet.timestampMs === undefined).toBe(leaving);
    if (!leaving) expect(new Date(packet.timestampMs!).getUTCFullYear()).toBe(2026);
    expect(packet.payload[0]! >> 4).toBe(what.startsWith("IPv4") ? 4 : 6);
  }
});

test("a prefix is read to its end, whatever bytes it has and whether it has one", () => {
  const { payload } = captured.packets[0]!;
  const bytes = bytesOf(payload);
  // NFULA_PREFIX of "out" and its NUL.
  const at = Buffer.from(bytes).indexOf("out\0", 0, "latin1");
  const withPrefix = (...text: readonly number[]) => {
    const changed = bytes.slice();
    changed.set(text, at);
    return parseGroupPacket({ payload: changed }).prefix;
  };
  expect(withPrefix(0xff, 0x1b, 0x80, 0)).toBe("\xff\x1b\x80");
  expect(withPrefix(0x61, 0, 0x62, 0x63)).toBe("a");
  expect(withPrefix(0x61, 0x62, 0x63, 0x64)).toBe("abcd");
});

test("a message cut off anywhere is refused or read, nothing else", () => {
  for (const { payload } of captured.packets) {
    const bytes = bytesOf(payload);
    let refused = 0;
    for (let length = 0; length < bytes.length; length++) {
      try {
        parseGroupPacket({ payload: bytes.subarray(0, length) });
      } catch (error) {
        expect(error).toBeInstanceOf(DecodeError);
        refused++;
      }
    }
    expect(refused).toBeGreaterThan(bytes.length / 2);
  }
});

// ----------------------------------------------------------------------------------------------------------- the kernel

const GROUP = { group: 86, copyBytes: 64, timeoutMs: 30, queueLength: 16 };
const open = (namespace: NetworkNamespace, of: Partial<typeof GROUP> = {}, eventBufferBytes?: number): NetlinkSocket =>
  openNetlink(NETLINK_NETFILTER, {
    namespace,
    subscriptions: [{ begin: bindLogGroup({ ...GROUP, ...of }), end: unbindLogGroup(of.group ?? GROUP.group) }],
    ...eventBufferBytes === undefined ? {} : { eventBufferBytes },
  });

/** Loopback up; datagrams to port 9 are logged to group 86. */
function loggingNamespace(title: string): NetworkNamespace {
  const namespace = createNamespace(title);
  using socket = openNetlink(NETLINK_ROUTE, { namespace });
  setLinkUp(socket, { name: "lo" });
  const rule = 'udp dport 9 log group 86 prefix "in"';
  runIn(namespace, "nft", `table inet t { chain c { type filter hook input priority 0; ${rule}\n }\n }\n`);
  return namespace;
}

function send(namespace: NetworkNamespace, count: number, payloadBytes = 4): void {
  const fd = inNamespace(namespace, () => c.check("socket", c.socket(c.AF.INET, c.SOCK.DGRAM | c.SOCK.CLOEXEC, 0)));
  const to = inetSockaddr({ address: parseAddress("127.0.0.1"), port: 9 });
  const payload = c.buffer(payloadBytes);
  // Nobody listens: an earlier datagram's refusal may be told by a later send.
  for (let i = 0; i < count; i++) c.sendto(fd, payload, 0, to);
  c.close(fd);
}

/** Packets that come until there are `count`, or the deadline. */
async function receive(socket: NetlinkSocket, count: number): Promise<GroupPacket[]> {
  const packets: GroupPacket[] = [];
  for await (const messages of socket.events(AbortSignal.timeout(DEADLINE_MS))) {
    for (const message of messages) if (message.type === NFULNL_MSG_PACKET) packets.push(parseGroupPacket(message));
    if (packets.length >= count) break;
  }
  return packets;
}

test("packets of the group come to the socket that bound it: counted, stamped, cut at the size asked for, and soon", async () => {
  using namespace = loggingNamespace("nflog");
  using socket = open(namespace);
  const sentMs = Date.now();
  send(namespace, 40, 200);
  const packets = await receive(socket, 40);
  expect(packets.map(({ sequence }) => sequence)).toEqual(packets.map((_, i) => i));
  expect(packets).toHaveLength(40);
  for (const packet of packets) {
    expect(packet).toMatchObject({ family: 2, group: 86, hook: 1, prefix: "in", inIndex: 1, outIndex: undefined });
    expect(packet.payload).toHaveLength(GROUP.copyBytes);
    expect(Math.abs(packet.timestampMs! - sentMs)).toBeLessThan(DEADLINE_MS);
  }
  const fields = runIn(namespace, "cat", "/proc/net/netfilter/nfnetlink_log").trim().split(/\s+/);
  // Group, port, packets waiting, NFULNL_COPY_PACKET, bytes copied, hundredths of a second.
  expect([fields[0], fields[3], fields[4], fields[5]]).toEqual(["86", "2", "64", "3"]);
});

test("a single packet does not wait for company longer than asked", async () => {
  using namespace = loggingNamespace("latency");
  using socket = open(namespace);
  const startMs = performance.now();
  send(namespace, 1);
  expect(await receive(socket, 1)).toHaveLength(1);
  expect(performance.now() - startMs).toBeLessThan(500);
});

test("a group is one socket's: another is refused with EPERM until the first is closed", async () => {
  using namespace = loggingNamespace("taken");
  {
    using _ = open(namespace);
    expect(isErrno(thrownBy(() => open(namespace)), "EPERM")).toBe(true);
    // Another group is free.
    open(namespace, { group: 87 })[Symbol.dispose]();
  }
  using again = open(namespace);
  send(namespace, 1);
  expect((await receive(again, 1))[0]!.sequence).toBe(0);
});

test("a group is free as soon as its reader is closed, in the midst of its packets", async () => {
  using namespace = loggingNamespace("rebound");
  for (let round = 0; round < 30; round++) {
    using socket = open(namespace, { timeoutMs: 10 });
    send(namespace, 1);
    expect(await receive(socket, 1)).toHaveLength(1);
  }
});

test("the same group in two namespaces is two groups", async () => {
  using a = loggingNamespace("a");
  using b = loggingNamespace("b");
  using inA = open(a);
  using inB = open(b);
  send(a, 3);
  send(b, 2);
  expect(await receive(inA, 3)).toHaveLength(3);
  expect(await receive(inB, 2)).toHaveLength(2);
  send(a, 1);
  // Were the second namespace's group fed by the first one's packets, this would not be number 2.
  send(b, 1);
  expect((await receive(inB, 1))[0]!.sequence).toBe(2);
});

test("what a full buffer could not take is told by ENOBUFS, and its number by the next packet's", async () => {
  using namespace = loggingNamespace("overrun");
  using socket = open(namespace, {}, 8 * 1024);
  const count = 2_000;
  send(namespace, count);
  let lost = 0, seen = 0, expected = 0, overruns = 0;
  const deadline = AbortSignal.timeout(DEADLINE_MS);
  while (!deadline.aborted && seen + lost <= count) {
    try {
      for await (const messages of socket.events(deadline)) {
        for (const message of messages) {
          const { sequence } = parseGroupPacket(message);
          lost += sequence! - expected;
          expected = sequence! + 1;
          seen++;
        }
        if (seen + lost > count) break;
      }
    } catch (error) {
      if (!isErrno(error, "ENOBUFS")) throw error;
      overruns++;
      // One more, which says how many there were before it.
      send(namespace, 1);
    }
  }
  expect(overruns).toBeGreaterThan(0);
  expect(lost).toBeGreaterThan(0);
  expect(seen + lost).toBe(count + overruns);
});
