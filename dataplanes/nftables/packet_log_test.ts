/** Logged packets through the real kernel, each test in network namespaces of its own. */
import { describe, expect, test } from "bun:test";
import { createNamespace, namespacePath } from "../../src/kernel/netns.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { formatAddress } from "../../src/model/address.ts";
import type { Decision } from "../../src/model/evaluate.ts";
import type { Dataplane, LoggedPacket, LostPackets } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { dataplaneLogs, send } from "../../test/contract/dataplane_logs.ts";
import { logPrefix } from "./log_prefix.ts";
import { list, policy, rule, state, tier, workload } from "../../src/model/testdata/small_states.ts";
import { openDataplane } from "./testdata/open.ts";

describe.each(["flat", "linear"])(
  "nftables (%s)",
  (form) => dataplaneLogs((namespace, config) => openDataplane(namespace, { form, ...config })),
);

const DEADLINE_MS = 5_000;
const GROUP = 86;

interface Node extends AsyncDisposable {
  readonly node: NetworkNamespace;
  readonly pod: NetworkNamespace;
  readonly dataplane: Dataplane;
}

/** A pod 10.0.0.1 and fd00::1 behind `mxa` of a node 10.0.0.254 and fd00::fe. */
async function openNode(): Promise<Node> {
  const node = createNamespace("node"), pod = createNamespace("pod");
  runIn(node, "ip", "link", "add", "mxa", "type", "veth", "peer", "name", "eth0", "netns", namespacePath(pod));
  const up = (link: string, v4: string, v6: string, peer4: string, peer6: string) => `
    ip link set lo up; ip link set ${link} up
    ip addr add ${v4}/32 dev ${link}; ip -6 addr add ${v6}/128 dev ${link} nodad
    ip route add ${peer4} dev ${link}; ip -6 route add ${peer6} dev ${link}`;
  runIn(node, "sh", "-c", up("mxa", "10.0.0.254", "fd00::fe", "10.0.0.1", "fd00::1"));
  runIn(pod, "sh", "-c", up("eth0", "10.0.0.1", "fd00::1", "10.0.0.254", "fd00::fe"));
  const dataplane = await openDataplane(node);
  return {
    node,
    pod,
    dataplane,
    async [Symbol.asyncDispose]() {
      await dataplane[Symbol.asyncDispose]();
      pod[Symbol.dispose]();
      node[Symbol.dispose]();
    },
  };
}

/** A rule of somebody's own, beside our table, that logs datagrams to `port` with this prefix. */
function logPort(node: NetworkNamespace, port: number, prefix: string): void {
  const table = `table inet t${port} { chain c { type filter hook input priority -10;
    udp dport ${port} log group ${GROUP} prefix "${prefix}"\n }\n }`;
  runIn(node, "nft", table);
}

/** What comes until `enough`, or the deadline. */
async function logged(
  dataplane: Dataplane,
  enough: (items: readonly (LoggedPacket | LostPackets)[]) => boolean,
  listening: () => void | Promise<void>,
): Promise<(LoggedPacket | LostPackets)[]> {
  const stop = AbortSignal.timeout(DEADLINE_MS);
  const items: (LoggedPacket | LostPackets)[] = [];
  const stream = dataplane.logs!(stop)[Symbol.asyncIterator]();
  // The group is bound when the first item is asked for.
  let next = stream.next();
  const done = (async () => await listening())();
  while (!enough(items)) {
    const { value, done: ended } = await next;
    if (ended) break;
    items.push(value);
    if (!enough(items)) next = stream.next();
  }
  await stream.return?.();
  await done;
  return items;
}

const decision: Decision = {
  by: "rule",
  tier: "default",
  policy: "NetworkPolicy.projectcalico.org/prod/web",
  origin: { policy: "NetworkPolicy.projectcalico.org/prod/web", direction: "ingress", index: 2 },
};

test("a logged packet comes with the decision of its prefix, its links by name, its ends and its length", async () => {
  await using here = await openNode();
  logPort(here.node, 90, logPrefix(decision, "ingress", "deny"));
  const startMs = Date.now();
  const items = await logged(here.dataplane, (items) => items.length === 2, async () => {
    await here.dataplane.apply(state({ workloads: [workload("w", "mxa", ["10.0.0.1", "fd00::1"])] }));
    send(here.pod, "10.0.0.254", 90);
    send(here.pod, "fd00::fe", 90);
  }) as LoggedPacket[];
  const text = items.map(({ packet: { protocol, source, destination, sourcePort, destinationPort }, ...rest }) => ({
    ...rest,
    packet: `${protocol} ${formatAddress(source)} > ${formatAddress(destination)} ${destinationPort}`,
    hasSourcePort: sourcePort! > 0,
    atMs: Math.abs(rest.atMs - startMs) < DEADLINE_MS,
  }));
  const same = {
    atMs: true,
    verdict: "deny" as const,
    direction: "ingress" as const,
    decision,
    prefix: "manx deny ingress tier default rule 2 NetworkPolicy.projectcalico.org/prod/web",
    inInterface: "mxa",
    hasSourcePort: true,
  };
  expect(text).toEqual([
    { ...same, packet: "17 10.0.0.1 > 10.0.0.254 90", lengthBytes: 36 },
    { ...same, packet: "17 fd00::1 > fd00::fe 90", lengthBytes: 56 },
  ]);
});

test("a packet that the node itself sends has the link that it leaves by, and the time of its reading", async () => {
  await using here = await openNode();
  const prefix = logPrefix({ by: "no profile" }, "egress", "deny");
  runIn(
    here.node,
    "nft",
    `table inet out { chain c { type filter hook output priority 0; udp dport 90 log group ${GROUP} prefix "${prefix}"\n }\n }`,
  );
  const startMs = Date.now();
  const [item] = await logged(here.dataplane, (items) => items.length === 1, () => send(here.node, "10.0.0.1", 90));
  expect(item).toMatchObject({ direction: "egress", decision: { by: "no profile" }, outInterface: "mxa" });
  expect("inInterface" in item!).toBe(false);
  expect(Math.abs((item as LoggedPacket).atMs - startMs)).toBeLessThan(DEADLINE_MS);
});

test("somebody else's rule may write to the group: its packets come without a decision", async () => {
  await using here = await openNode();
  logPort(here.node, 90, "theirs: ");
  runIn(
    here.node,
    "nft",
    `table inet out { chain c { type filter hook output priority 0; udp dport 91 log group ${GROUP}\n }\n }`,
  );
  const items = await logged(here.dataplane, (items) => items.length === 2, () => {
    send(here.node, "10.0.0.254", 90);
    send(here.node, "10.0.0.1", 91);
  });
  expect(items).toMatchObject([
    { verdict: "log", direction: "ingress", prefix: "theirs: ", inInterface: "lo" },
    { verdict: "log", direction: "egress", prefix: "", outInterface: "mxa" },
  ]);
  expect(items.map((item) => (item as LoggedPacket).decision)).toEqual([undefined, undefined]);
});

test("what is no packet of IP is counted as lost, and the next packet is read", async () => {
  await using here = await openNode();
  runIn(
    here.node,
    "nft",
    `table netdev d { chain c { type filter hook ingress device mxa priority 0; ether type arp log group ${GROUP} prefix "arp"\n }\n }`,
  );
  logPort(here.node, 90, "in");
  const items = await logged(here.dataplane, (items) => items.some((item) => "packet" in item), () => {
    runIn(here.pod, "ip", "neigh", "flush", "all");
    send(here.pod, "10.0.0.254", 90);
  });
  expect(items.filter((item) => "lost" in item).length).toBeGreaterThan(0);
  expect(items.at(-1)).toMatchObject({ prefix: "in" });
});

test("a prefix that was cut is that of the policy in force, and stays so when the policy goes", async () => {
  await using here = await openNode();
  const id = `NetworkPolicy.projectcalico.org/${"n".repeat(63)}/${"p".repeat(200)}`;
  const origin = { policy: id, direction: "ingress", index: 0 } as const;
  const long: Decision = { by: "rule", tier: "default", policy: id, origin };
  const ingress = list([tier("default", "deny", policy(id, rule("deny", { origin })))]);
  logPort(here.node, 90, logPrefix(long, "ingress", "deny"));
  const decisions = async () =>
    (await logged(here.dataplane, (items) => items.length === 1, () => send(here.node, "10.0.0.254", 90)))
      .map((item) => (item as LoggedPacket).decision);
  expect(await decisions()).toEqual([undefined]);
  await here.dataplane.apply(state({ workloads: [workload("w", "mxa", ["10.0.0.1"], { ingress })] }));
  expect(await decisions()).toEqual([long]);
  await here.dataplane.apply(state({ generation: 2 }));
  expect(await decisions()).toEqual([long]);
});

test("a group that another program reads is refused in so many words, and can be had when that has ended", async () => {
  await using here = await openNode();
  logPort(here.node, 90, "in");
  const other = Bun.spawn(
    ["nsenter", `--net=${namespacePath(here.node)}`, "tcpdump", "-i", `nflog:${GROUP}`, "-n", "--immediate-mode"],
    { stdout: "ignore", stderr: "pipe" },
  );
  try {
    const groups = () => runIn(here.node, "cat", "/proc/net/netfilter/nfnetlink_log");
    await until(() => groups().includes(` ${GROUP} `));
    const refused = here.dataplane.logs!(AbortSignal.timeout(DEADLINE_MS))[Symbol.asyncIterator]().next();
    const error = await refused.then(() => undefined, (error: Error & { code?: string }) => error);
    expect(error?.code).toBe("unavailable");
    expect(error?.message).toBe(
      "read logged packets of NFLOG group 86: found that another program reads this group (/proc/net/netfilter/nfnetlink_log " +
        "names its netlink port), wanted it for this daemon alone: end that program, or set another logGroup for the dataplane",
    );
  } finally {
    other.kill();
    await other.exited;
  }
  const items = await logged(here.dataplane, (items) => items.length === 1, () => send(here.node, "10.0.0.254", 90));
  expect(items).toHaveLength(1);
});

test("two dataplanes in two namespaces read their own packets only", async () => {
  await using a = await openNode();
  await using b = await openNode();
  logPort(a.node, 90, "a");
  logPort(b.node, 90, "b");
  const [inA, inB] = await Promise.all([
    logged(a.dataplane, (items) => items.length === 3, () => send(a.node, "10.0.0.254", 90, 3)),
    logged(b.dataplane, (items) => items.length === 2, () => send(b.node, "10.0.0.254", 90, 2)),
  ]);
  expect(inA.map((item) => (item as LoggedPacket).prefix)).toEqual(["a", "a", "a"]);
  expect(inB.map((item) => (item as LoggedPacket).prefix)).toEqual(["b", "b"]);
});

test("a reader that leaves gives the group back", async () => {
  await using here = await openNode();
  const stop = new AbortController();
  const stream = here.dataplane.logs!(stop.signal)[Symbol.asyncIterator]();
  const first = stream.next();
  const held = () => runIn(here.node, "cat", "/proc/net/netfilter/nfnetlink_log") !== "";
  expect(held()).toBe(true);
  stop.abort();
  expect(await first).toEqual({ value: undefined, done: true });
  expect(held()).toBe(false);
});

test("of a flood, what was read and what was lost is all there was", async () => {
  await using here = await openNode();
  // Without a limit of its own, so that the buffer must overflow.
  logPort(here.node, 90, "flood");
  logPort(here.node, 91, "last");
  const count = 40_000;
  const items = await logged(
    here.dataplane,
    (items) => items.some((item) => "prefix" in item && item.prefix === "last"),
    async () => {
      send(here.node, "10.0.0.254", 90, count);
      // What was lost at the end is told by whatever comes after it, once there is room.
      await until(() => !waiting(here.node));
      send(here.node, "10.0.0.254", 91);
    },
  );
  const lost = items.reduce((sum, item) => sum + ("lost" in item ? item.lost : 0), 0);
  const read = items.filter((item) => "prefix" in item).length;
  expect(lost).toBeGreaterThan(0);
  expect(read + lost).toBe(count + 1);
});

/** Whether packets wait in the kernel: in the group (nfnetlink_log's third field) or in a socket (Rmem of netlink's). */
function waiting(node: NetworkNamespace): boolean {
  const fields = (path: string) => runIn(node, "cat", path).trim().split("\n").map((line) => line.trim().split(/\s+/));
  return fields("/proc/net/netfilter/nfnetlink_log").some(([, , queued]) => queued !== "0") ||
    fields("/proc/net/netlink").slice(1).some(([, protocol, , , rmem]) => protocol === "12" && rmem !== "0");
}

async function until(holds: () => boolean): Promise<void> {
  for (const deadline = performance.now() + DEADLINE_MS; !holds();) {
    if (performance.now() > deadline) throw new Error(`waited ${DEADLINE_MS} ms in vain`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
