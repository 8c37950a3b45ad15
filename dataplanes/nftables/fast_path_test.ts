/** The short way of established flows, with real packets. */
import { expect, test } from "bun:test";
import { addressOf } from "../../src/host/testdata/pod_node.ts";
import { getFlows, markFlow, parseFlow } from "../../src/kernel/netlink/schema/conntrack.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { carries, type TcpFlow } from "../../src/lab/testdata/live_flow.ts";
import { formatAddress } from "../../src/model/address.ts";
import { state } from "../../src/model/testdata/small_states.ts";
import { parseConfig } from "./config.ts";
import { differences } from "./differences.ts";
import { LIFETIME_MS } from "./fast_path_table.ts";
import { Renderer } from "./render.ts";
import { fastNode, pod, PODS, PORT, short, shorten, SURELY_SEEN, talk, tcpFlow, Watch } from "./testdata/fast_node.ts";
import { FLAG, FrameSender, type Segment } from "./testdata/frames.ts";
import { openDataplane } from "./testdata/open.ts";
import { type TracedPacket, traceHook } from "./trace.ts";

const NETLINK_NETFILTER = 12;
const SILENCE_MS = 250;
const TEST_DEADLINE_MS = 30_000;
const FAMILIES = [4, 6] as const;

const heardAll = (flow: TcpFlow): void => {
  flow.listen();
  expect(flow.received).toEqual({ client: flow.sent.server, server: flow.sent.client });
};
const hasTable = (namespace: Parameters<typeof runIn>[0]) =>
  runIn(namespace, "nft", "list", "tables").includes("netdev");

for (const family of FAMILIES) {
  for (const [from, to] of [["a", "b"], ["out", "b"], ["b", "out"]] as const) {
    test(
      `IPv${family} ${from} → ${to}: both directions go past the rules, byte for byte, with one hop less`,
      async () => {
        await using node = await fastNode();
        using flow = tcpFlow(node, from, to, family);
        await shorten(node, flow, from, to, family);
        const here = new Watch(node.namespace, `tcp sport { ${PORT}, ${flow.clientPort} }`);
        const hops = family === 4 ? "ip ttl 63" : "ip6 hoplimit 63";
        const there = new Watch(node.places[to], `tcp sport ${flow.clientPort} ${hops}`);
        talk(flow, 300);
        expect(here.count()).toBe(0);
        expect(there.count()).toBeGreaterThanOrEqual(300);
        heardAll(flow);
      },
      TEST_DEADLINE_MS,
    );
  }

  test(
    `IPv${family}: back to the rules after megabytes that connection tracking has not seen, and short again`,
    async () => {
      await using node = await fastNode();
      using flow = tcpFlow(node, "a", "b", family);
      await shorten(node, flow, "a", "b", family);
      talk(flow, 10_000);
      node.dataplane.recheckFlows!();
      expect(short(node.namespace, flow, "a", "b", family)).toBe("");
      const here = new Watch(node.namespace, `tcp dport ${PORT}`);
      expect([await carries(flow, "server", SILENCE_MS), await carries(flow, "client", SILENCE_MS)]).toEqual([
        true,
        true,
      ]);
      expect(here.count()).toBeGreaterThan(0);
      await shorten(node, flow, "a", "b", family);
      heardAll(flow);
    },
    TEST_DEADLINE_MS,
  );

  test(`IPv${family}: all but plain packets in the midst of the flow, from its own link, go by the rules`, async () => {
    await using node = await fastNode();
    using flow = tcpFlow(node, "a", "b", family);
    await shorten(node, flow, "a", "b", family);
    using own = new FrameSender(node.places.a, node.namespace, "mxa");
    using strange = new FrameSender(node.places.c, node.namespace, "mxc");
    const ends = `${family === 4 ? "ip" : "ip6"} saddr ${formatAddress(addressOf("a", family))}`;
    const byRules = new Watch(node.namespace, `meta pkttype host ${ends}`), arrived = new Watch(node.places.b, ends);
    const plain: Segment = {
      source: addressOf("a", family),
      destination: addressOf("b", family),
      sourcePort: flow.clientPort,
      destinationPort: PORT,
    };
    /** Where it was seen: `short` = only at the other end, `rules` = by the rules, `nowhere`. */
    const way = (segment: Partial<Segment>, sender = own): string => {
      const before = [byRules.count(), arrived.count()];
      sender.send({ ...plain, ...segment });
      const after = [byRules.count(), arrived.count()];
      if (after[0]! > before[0]!) return `rules${after[1]! > before[1]! ? ", arrived" : ""}`;
      return after[1]! > before[1]! ? "short" : "nowhere";
    };
    expect(way({})).toBe("short");
    expect(way({ options: true })).toBe("rules, arrived");
    expect(way({ fragment: true })).toStartWith("rules");
    expect(way({ dscp: 10 })).toBe("rules, arrived");
    expect(way({ dscp: 1 })).toBe("rules, arrived");
    expect(way({ hops: 1 })).toBe("rules");
    expect(way({ hops: 2 })).toBe("short");
    expect(way({ destinationPort: PORT + 1 })).toStartWith("rules");
    expect(way({ sourcePort: flow.clientPort ^ 1 })).toStartWith("rules");
    // What is not for the node's own link ends there.
    expect(way({ vlan: 7 })).toBe("nowhere");
    expect(way({ to: "02:00:00:00:00:77" })).toBe("nowhere");
    // Another pod that says it is this one.
    expect(way({}, strange)).toBe("rules");
    for (const flags of [FLAG.syn, FLAG.syn | FLAG.ack, FLAG.fin | FLAG.ack, FLAG.rst, FLAG.rst | FLAG.ack]) {
      expect(way({ flags })).toStartWith("rules");
    }
    expect(way({})).toBe("short");
  }, TEST_DEADLINE_MS);
}

test("a cut flow passes no packet from the moment that it is cut, and does not get in again", async () => {
  await using node = await fastNode();
  using flow = tcpFlow(node, "a", "b", 4), other = tcpFlow(node, "c", "b", 4);
  await shorten(node, flow, "a", "b", 4);
  await shorten(node, other, "c", "b", 4);
  using socket = node.kernel.netlink(NETLINK_NETFILTER);
  const found = socket.dump("list flows", getFlows()).map(parseFlow).find(({ original }) =>
    original.sourcePort === flow.clientPort
  )!;
  const mark = node.dataplane.cutMark!;
  socket.request("cut", [markFlow(found, mark, mark)]);
  node.dataplane.recheckFlows!();
  const arrived = new Watch(node.places.b, `tcp sport ${flow.clientPort} tcp flags & rst == 0`);
  for (let i = 0; i < 50; i++) flow.say("client");
  expect(arrived.count()).toBe(0);
  expect(await carries(flow, "client", SILENCE_MS)).toBe(false);
  expect(flow.ended.client).toBe("ECONNRESET");
  await shorten(node, other, "c", "b", 4);
  expect(short(node.namespace, flow, "a", "b", 4)).toBe("");
  heardAll(other);
}, TEST_DEADLINE_MS);

test("whatever changes, all flows are out in the same transaction; where nothing changes, none", async () => {
  await using node = await fastNode();
  using flow = tcpFlow(node, "a", "b", 4);
  await shorten(node, flow, "a", "b", 4);
  const generation = () => Number(/# new generation (\d+)/.exec(events.join("\n"))?.[1] ?? 0);
  const monitor = Bun.spawn({
    cmd: ["nsenter", `--net=/proc/${process.pid}/fd/${node.namespace.fd}`, "nft", "monitor"],
    stdio: ["ignore", "pipe", "ignore"],
  });
  const events: string[] = [];
  const reading = (async () => {
    for await (const text of monitor.stdout.pipeThrough(new TextDecoderStream())) events.push(text);
  })();
  try {
    expect(await node.dataplane.apply({ ...PODS, generation: 2 })).toMatchObject({ messages: 0, converged: true });
    expect(short(node.namespace, flow, "a", "b", 4)).toBe("there back");
    // Events begin when the monitor listens: a table of a stranger says that it does.
    while (!events.join("").includes("add table inet ready")) {
      runIn(node.namespace, "nft", "add table inet ready; delete table inet ready");
      await Bun.sleep(10);
    }
    events.length = 0;
    await node.dataplane.apply({ ...state({ workloads: [pod("a"), pod("c")] }), generation: 3 });
    expect(hasTable(node.namespace)).toBe(false);
    while (generation() === 0) await Bun.sleep(5);
    // One generation, which ends with its number, has both.
    const [transaction] = events.join("").split("# new generation");
    expect(transaction).toContain("delete table netdev manx-fast");
    expect(transaction).toContain("inet manx");
  } finally {
    monitor.kill();
    await reading;
  }
  // The pod is nobody's now, and nothing reaches it.
  expect(await carries(flow, "client", SILENCE_MS)).toBe(true);
}, TEST_DEADLINE_MS);

test("packets that went by the rules of before let nothing in", async () => {
  await using node = await fastNode();
  using flow = tcpFlow(node, "a", "b", 4);
  // Seen, and not yet told of: nothing else runs until the change is in force.
  talk(flow, SURELY_SEEN);
  const changed = node.dataplane.apply({ ...state({ workloads: [pod("a"), pod("b")] }), generation: 2 });
  await changed;
  for (let i = 0; i < 20; i++) {
    await Bun.sleep(10);
    expect(hasTable(node.namespace)).toBe(false);
  }
  await shorten(node, flow, "a", "b", 4);
}, TEST_DEADLINE_MS);

test("flows that are translated do not get in", async () => {
  await using node = await fastNode();
  await node.dataplane.apply({
    ...state({
      workloads: [pod("a"), pod("b"), pod("c")],
      masquerade: { sources: ["10.0.0.0/24"], inside: ["10.0.0.0/24"] },
    }),
    generation: 2,
  });
  runIn(
    node.namespace,
    "nft",
    `add table inet lb { chain in { type nat hook prerouting priority -100; ip daddr 198.51.100.1 dnat ip to 10.0.0.2; }; }`,
  );
  using out = tcpFlow(node, "a", "out", 4);
  talk(out, SURELY_SEEN);
  await Bun.sleep(50);
  expect(hasTable(node.namespace)).toBe(false);
  heardAll(out);
}, TEST_DEADLINE_MS);

test("what others drop in FORWARD stops within seconds", async () => {
  await using node = await fastNode();
  using flow = tcpFlow(node, "a", "b", 4);
  await shorten(node, flow, "a", "b", 4);
  const startMs = performance.now();
  runIn(
    node.namespace,
    "nft",
    `add table inet strict { chain f { type filter hook forward priority 50; tcp dport ${PORT} drop; }; }`,
  );
  const seen = new Watch(node.places.b, `tcp dport ${PORT}`);
  for (let before = -1, now = 0; before !== now || performance.now() < startMs + LIFETIME_MS;) {
    for (let i = 0; i < 50; i++) flow.say("client");
    flow.listen();
    await Bun.sleep(SILENCE_MS);
    [before, now] = [now, seen.count()];
    expect(performance.now() - startMs).toBeLessThan(LIFETIME_MS + 8 * SILENCE_MS);
  }
}, TEST_DEADLINE_MS);

test("flows leave by themselves when the daemon is gone, and the next one takes away what is left", async () => {
  await using node = await fastNode();
  using flow = tcpFlow(node, "a", "b", 4);
  await shorten(node, flow, "a", "b", 4);
  const left = runIn(node.namespace, "nft", "list", "table", "netdev", "manx-fast");
  const times = [...left.matchAll(/expires (?:(\d+)s)?(?:(\d+)ms)?/g)];
  expect(times.length).toBeGreaterThan(1);
  for (const [, seconds = "0", ms = "0"] of times) {
    expect(Number(seconds) * 1_000 + Number(ms)).toBeLessThanOrEqual(LIFETIME_MS);
  }
  await node.dataplane[Symbol.asyncDispose]();
  expect(hasTable(node.namespace)).toBe(false);
  // As if it had been killed.
  const stale = () => runIn(node.namespace, "nft", "add table netdev manx-fast; add chain netdev manx-fast fast");
  for (const config of [undefined, { establishedFastPath: true }]) {
    stale();
    await using next = await openDataplane(node.namespace, config);
    expect((await next.apply(PODS)).converged).toBe(true);
    expect(hasTable(node.namespace)).toBe(false);
    stale();
    await next.sweep();
    expect(runIn(node.namespace, "nft", "list", "tables")).toBe("");
  }
  heardAll(flow);
}, TEST_DEADLINE_MS);

test("a table without flows goes away, and comes again with the next", async () => {
  await using node = await fastNode();
  using flow = tcpFlow(node, "a", "b", 4);
  await shorten(node, flow, "a", "b", 4);
  const endMs = performance.now() + 8 * LIFETIME_MS;
  while (hasTable(node.namespace)) {
    expect(performance.now()).toBeLessThan(endMs);
    await Bun.sleep(SILENCE_MS);
  }
  await shorten(node, flow, "a", "b", 4);
  heardAll(flow);
}, 2 * TEST_DEADLINE_MS);

test("a table that somebody takes away is made again", async () => {
  await using node = await fastNode();
  using flow = tcpFlow(node, "a", "b", 4);
  await shorten(node, flow, "a", "b", 4);
  runIn(node.namespace, "nft", "delete table netdev manx-fast");
  await shorten(node, flow, "a", "b", 4);
  heardAll(flow);
}, TEST_DEADLINE_MS);

test("without the group that shows packets flows go by the rules, and the report says why", async () => {
  await using node = await fastNode();
  await using second = await openDataplane(node.namespace, { establishedFastPath: true });
  await second.apply(PODS);
  const { converged, problems } = await second.apply({ ...PODS, generation: 2 });
  expect(converged).toBe(true);
  expect(problems.join()).toContain("another program reads NFLOG group 87");
}, TEST_DEADLINE_MS);

test("rules are those without it, and three chains that decide nothing", () => {
  const rendered = (sampleGroup?: number) =>
    new Renderer({ logGroup: 86, passedMark: 0x10000, sampleGroup }).render(PODS);
  const without = rendered().ruleset, { ruleset, problems } = rendered(87);
  expect(problems).toEqual([]);
  const added = differences(without, ruleset).filter((line) => !/^\+ {5}/.test(line));
  expect(added.map((line) => line.split(" {")[0])).toEqual([
    "+ chain sample with 1 rule",
    "+ chain sample-flow with 2 rules",
    "+ chain sampled",
  ]);
  const packet: TracedPacket = {
    source: addressOf("a", 4),
    destination: addressOf("b", 4),
    protocol: 6,
    sourcePort: 1000,
    destinationPort: PORT,
    inInterface: "mxa",
    outInterface: "mxb",
    state: "established",
  };
  // By chance the packet is looked at, or it is not.
  for (const random of [0, 1]) {
    for (const state of ["established", "new", "invalid", "untracked"] as const) {
      expect(traceHook(ruleset, "postrouting", { ...packet, state, random }).verdict).toBe("accept");
    }
  }
});

test("it is off unless asked for, and not beside services of another dataplane", () => {
  expect(parseConfig(undefined)).toMatchObject({ establishedFastPath: false, fastPathGroup: 87 });
  expect(parseConfig({ establishedFastPath: true, fastPathGroup: 90 })).toMatchObject({ fastPathGroup: 90 });
  expect(() => parseConfig({ establishedFastPath: "yes" })).toThrow(
    'establishedFastPath: found "yes", wanted true or false',
  );
  expect(() => parseConfig({ establishedFastPath: true, services: false })).toThrow("wanted services: true");
  expect(() => parseConfig({ establishedFastPath: true, logGroup: 87 })).toThrow("wanted another group than logGroup");
});
