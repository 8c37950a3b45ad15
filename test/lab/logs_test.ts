/** What policy logs, as `manx logs` of the compiled binary tells it: real packets, real daemons. */
import { beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { buildBinary } from "../../scripts/build.ts";
import { buffer, close, sendto } from "../../src/kernel/libc.ts";
import { createNamespace, inNamespace } from "../../src/kernel/netns.ts";
import { NETLINK_NETFILTER, openNetlink } from "../../src/kernel/netlink/socket.ts";
import { bindLogGroup, unbindLogGroup } from "../../src/kernel/netlink/schema/nflog.ts";
import { inetSockaddr } from "../../src/kernel/sockaddr.ts";
import { NodeDaemon } from "../../src/lab/node_daemon.ts";
import { openSocket } from "../../src/lab/probe_socket.ts";
import { Sandbox } from "../../src/lab/sandbox.ts";
import { parseWorld } from "../../src/lab/scenario_parser.ts";
import { childEnvironment } from "../../src/lab/self.ts";
import type { LogEvent, PacketEvent } from "../../src/host/logs/packet_log_view.ts";
import { type Address, addressFamily, formatAddress, parseAddress } from "../../src/model/address.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";

const TEST_DEADLINE_MS = 60_000;
const DEADLINE_MS = 10_000;
const LOOK_MS = 20;
const GROUP = 86;
/** All that log. */
const DATAPLANES = ["nftables", "iptables"];

let binary = "";
beforeAll(async () => void (binary = await buildBinary()), TEST_DEADLINE_MS);

const WORLD = `
families: [4, 6]
nodes: [ { name: kube-01 }, { name: kube-02 } ]
pods:
  - { name: client, node: kube-01, labels: { app: client } }
  - { name: web, node: kube-01, labels: { app: web } }
  - { name: far, node: kube-02, labels: { app: far } }
hosts:
  - { name: partner, node: kube-01, address: 203.0.113.9, link: eth0 }
`;

/** The sandbox with one of its nodes to ask. */
class Cluster implements AsyncDisposable {
  readonly #open = new AsyncDisposableStack();
  private constructor(readonly sandbox: Sandbox, readonly directory: string) {
    this.#open.defer(() => rmSync(directory, { recursive: true, force: true }));
    this.#open.use(sandbox);
  }

  static async open(dataplane = "nftables"): Promise<Cluster> {
    const directory = mkdtempSync("/tmp/manx-logs-");
    const world = parseWorld("logs.yaml", WORLD);
    try {
      return new Cluster(
        await Sandbox.open(world, { directory, self: [binary], dataplane }),
        directory,
      );
    } catch (error) {
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  socket = (node: 0 | 1): string => join(this.directory, `n${node}`, "manx.sock");
  pod = (name: string): NetworkNamespace => this.sandbox.pods.get(`default/${name}`)!.namespace;
  addressOf = (name: string, family: 4 | 6 = 4): Address =>
    this.sandbox.podAddresses(`default/${name}`).find((address) => addressFamily(address) === family)!;

  apply = (...manifests: readonly object[]) =>
    this.sandbox.change("apply", manifests.map((manifest) => JSON.stringify(manifest)).join("\n---\n"), "policy.json");

  status = async (node: 0 | 1) => (await this.sandbox.statuses())[node]!;

  /** `manx logs -o json`, parsed. */
  async logs(node: 0 | 1, ...args: readonly string[]): Promise<readonly LogEvent[]> {
    const child = Bun.spawn([binary, "--socket", this.socket(node), "logs", "-o", "json", ...args], {
      env: childEnvironment(),
      stderr: "pipe",
    });
    const [out, err, status] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    if (status !== 0) throw new Error(`manx logs: status ${status}: ${err}`);
    return out.split("\n").filter((line) => line !== "").map((line) => JSON.parse(line));
  }

  /** Packet events once there are `count` that are wanted. */
  async events(
    node: 0 | 1,
    count: number,
    wanted: (event: PacketEvent) => boolean = () => true,
  ): Promise<readonly PacketEvent[]> {
    let events: readonly PacketEvent[] = [];
    await until(`${count} packets are logged`, async () => {
      events = (await this.logs(node)).filter((event) => event.event === "packet").filter(wanted);
      return events.length >= count;
    });
    return events;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#open.disposeAsync();
  }
}

async function until(what: string, holds: () => boolean | Promise<boolean>, deadlineMs = DEADLINE_MS): Promise<void> {
  for (const endMs = performance.now() + deadlineMs; !await holds();) {
    if (performance.now() > endMs) throw new Error(`after ${deadlineMs} ms it is still not so that ${what}`);
    await Bun.sleep(LOOK_MS);
  }
}

/** UDP datagrams, all of one flow. */
function send(from: NetworkNamespace, to: Address, port: number, count = 1): void {
  const fd = openSocket(from, addressFamily(to), "datagram", 0);
  const address = inetSockaddr({ address: to, port });
  const payload = buffer(16);
  for (let i = 0; i < count; i++) sendto(fd, payload, 0, address);
  close(fd);
}

const calico = (kind: string, metadata: object, spec: object) => ({
  apiVersion: "projectcalico.org/v3",
  kind,
  metadata,
  spec,
});
const udp = (action: string, ...ports: readonly number[]) => ({ action, protocol: "UDP", destination: { ports } });

test.each(DATAPLANES)(
  "a Log rule's packets are told with pods, policy, rule and direction, in both families, on the node that judged them: %s",
  async (use) => {
    await using cluster = await Cluster.open(use);
    await cluster.apply(
      calico("NetworkPolicy", { name: "web", namespace: "default" }, {
        selector: "app == 'web'",
        types: ["Ingress"],
        ingress: [udp("Allow", 80), udp("Log", 81), udp("Deny", 81)],
      }),
      calico("NetworkPolicy", { name: "far", namespace: "default" }, {
        selector: "app == 'far'",
        types: ["Ingress", "Egress"],
        ingress: [udp("Log", 90), udp("Allow", 90)],
        egress: [udp("Allow", 1), udp("Allow", 2), udp("Log", 81), { action: "Allow" }],
      }),
      calico("NetworkSet", { name: "partners", namespace: "default", labels: { role: "partner" } }, {
        nets: ["203.0.113.0/24"],
      }),
    );
    // One after the other, so that it is known in which order they come.
    send(cluster.pod("client"), cluster.addressOf("web"), 80);
    send(cluster.pod("client"), cluster.addressOf("web"), 81);
    await cluster.events(0, 1);
    send(cluster.pod("client"), cluster.addressOf("web", 6), 81);
    await cluster.events(0, 2);
    send(cluster.pod("far"), cluster.addressOf("web"), 81);
    await Promise.all([cluster.events(0, 3), cluster.events(1, 1)]);
    send(cluster.sandbox.hosts.get("partner")!.namespace, cluster.addressOf("web"), 81);
    send(cluster.pod("client"), cluster.addressOf("far"), 90);

    const here = await cluster.events(0, 4);
    const end = (name: string, family: 4 | 6 = 4) => ({
      address: formatAddress(cluster.addressOf(name, family)),
      owner: { kind: "pod", name: `default/${name}` },
    });
    const web = {
      verdict: "log",
      direction: "ingress",
      protocol: "udp",
      endpoint: { kind: "pod", name: "default/web" },
      by: "rule",
      tier: "default",
      policy: "NetworkPolicy.projectcalico.org/default/web",
      rule: 1,
      packets: 1,
    };
    expect(here).toMatchObject([
      { ...web, source: end("client"), destination: { ...end("web"), port: 81 } },
      { ...web, source: end("client", 6), destination: { ...end("web", 6), port: 81 } },
      { ...web, source: end("far"), destination: { ...end("web"), port: 81 }, inInterface: "eth0" },
      {
        ...web,
        source: { address: "203.0.113.9", owner: { kind: "networkSet", name: "default/partners" } },
        destination: { ...end("web"), port: 81 },
      },
    ]);
    // The other node tells of its own judgements, and of nothing else.
    const far = { ...web, endpoint: { kind: "pod", name: "default/far" }, policy: web.policy.replace("web", "far") };
    const there = await cluster.events(1, 2);
    expect(there).toMatchObject([
      { ...far, direction: "egress", rule: 2, source: end("far"), destination: { ...end("web"), port: 81 } },
      { ...far, rule: 0, source: end("client"), destination: { ...end("far"), port: 90 } },
    ]);
    expect([here.length, there.length]).toEqual([4, 2]);

    expect(await cluster.logs(0, "--pod", "far")).toMatchObject([{ source: end("far") }]);
    expect(await cluster.logs(0, "--pod", "default/web", "--limit", "1")).toMatchObject([{ packets: 1 }]);
    expect(await cluster.logs(0, "--verdict", "deny")).toEqual([]);
    expect((await cluster.logs(0, "--since", "1h")).length).toBe(4);
    expect((await cluster.status(0)).logs).toMatchObject({ packets: 4, kept: 4, lost: 0, problems: [] });
  },
  TEST_DEADLINE_MS,
);

test("--follow tells a packet as it comes, a flow that goes on once a second, and ends at an interrupt", async () => {
  await using cluster = await Cluster.open();
  await cluster.apply(
    calico("GlobalNetworkPolicy", { name: "watch" }, {
      selector: "app == 'web'",
      types: ["Ingress"],
      ingress: [udp("Log", 81), { action: "Allow" }],
    }),
  );
  const child = Bun.spawn([binary, "--socket", cluster.socket(0), "logs", "--follow"], {
    env: { ...childEnvironment(), TZ: "UTC" },
    stderr: "pipe",
  });
  const lines = linesOf(child.stdout);
  await until("it reads", async () => (await cluster.status(0)).logs?.readers === 1);
  const sentMs = performance.now();
  send(cluster.pod("client"), cluster.addressOf("web"), 81, 8);
  const first = (await lines.next()).value!;
  expect(performance.now() - sentMs).toBeLessThan(1_000);
  const [client, web] = ["client", "web"].map((name) => formatAddress(cluster.addressOf(name)));
  expect(first).toMatch(
    new RegExp(
      `^\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d\\.\\d{3}  log   ingress  udp  default/client\\(${client}\\):\\d+ → ` +
        `default/web\\(${web}\\):81  tier default, GlobalNetworkPolicy watch, rule 0$`,
    ),
  );
  expect((await lines.next()).value).toEndWith("rule 0  ×7");
  child.kill("SIGINT");
  expect([(await lines.next()).done, await child.exited, await new Response(child.stderr).text()]).toEqual([
    true,
    0,
    "",
  ]);
  await until("nobody reads", async () => (await cluster.status(0)).logs?.readers === 0);
}, TEST_DEADLINE_MS);

/** A daemon by itself, its node an empty namespace. */
async function openDaemon(namespace: NetworkNamespace, directory: string): Promise<NodeDaemon> {
  return await NodeDaemon.start({
    node: "alone",
    namespace,
    addresses: [parseAddress("192.0.2.1")],
    families: [4],
    directory,
    datastore: join(directory, "datastore.db"),
    dataplane: "nftables",
    self: [binary],
  });
}

const outcomeOf = async (child: Bun.Subprocess<"ignore" | "inherit" | null, "pipe", "pipe">) => ({
  err: await new Response(child.stderr).text(),
  status: await child.exited,
});

test("a group that somebody else reads is a problem in the status, and read when that one has left", async () => {
  using directory = scratch();
  using namespace = createNamespace("taken");
  const other = openNetlink(NETLINK_NETFILTER, {
    namespace,
    subscriptions: [{
      begin: bindLogGroup({ group: GROUP, copyBytes: 64, timeoutMs: 100, queueLength: 1 }),
      end: unbindLogGroup(GROUP),
    }],
  });
  await using daemon = await openDaemon(namespace, directory.path);
  await until("the problem is told", async () => (await daemon.status()).problems.length > 0);
  const status = await daemon.status();
  expect(status.problems).toEqual([{
    subject: "logs",
    path: "",
    message: expect.stringContaining("NFLOG group 86: found that another program reads this group"),
    effect: "not-in-force",
  }]);
  // Policy is in force all the same.
  expect(status.dataplane).toMatchObject({ converged: true, problems: [] });
  other[Symbol.dispose]();
  await until("the problem is gone", async () => (await daemon.status()).problems.length === 0);
  const groups = inNamespace(namespace, () => readFileSync("/proc/thread-self/net/netfilter/nfnetlink_log", "utf8"));
  expect(groups.trim()).toStartWith(`${GROUP} `);
}, TEST_DEADLINE_MS);

test(
  "a daemon that stops does not wait for its readers, and they say that it has stopped; or that it has gone",
  async () => {
    for (const [signal, words] of [["SIGTERM", "has stopped"], ["SIGKILL", "has gone away"]] as const) {
      using directory = scratch();
      using namespace = createNamespace("stops");
      await using daemon = await openDaemon(namespace, directory.path);
      const followers = [0, 1].map(() =>
        Bun.spawn([binary, "--socket", daemon.socket, "logs", "--follow"], {
          env: childEnvironment(),
          stdin: "ignore",
          stdout: "pipe",
          stderr: "pipe",
        })
      );
      await until("both read", async () => (await daemon.status()).logs?.readers === 2);
      const sinceMs = performance.now();
      process.kill((await daemon.status()).pid, signal);
      for (const follower of followers) {
        const { err, status } = await outcomeOf(follower);
        expect([err.split("\n").length, status]).toEqual([2, 1]);
        expect(err).toContain(`the manx daemon at ${daemon.socket} ${words}`);
      }
      await daemon[Symbol.asyncDispose]();
      expect(performance.now() - sinceMs).toBeLessThan(2_000);
    }
  },
  TEST_DEADLINE_MS,
);

const LOGGED = { annotations: { "manx.io/log-denied": "true" } };
const kubernetes = (name: string, app: string, metadata: object, spec: object) => ({
  apiVersion: "networking.k8s.io/v1",
  kind: "NetworkPolicy",
  metadata: { name, namespace: "default", ...metadata },
  spec: { podSelector: { matchLabels: { app } }, ...spec },
});

test.each(DATAPLANES)("denied packets are told where tier or policy asks for it, and nowhere else: %s", async (use) => {
  await using cluster = await Cluster.open(use);
  await cluster.apply(
    calico("Tier", { name: "sec", ...LOGGED }, { order: 100 }),
    calico("NetworkPolicy", { name: "sec.web", namespace: "default" }, {
      tier: "sec",
      selector: "app == 'web'",
      types: ["Ingress"],
      ingress: [udp("Allow", 80), udp("Deny", 82), udp("Pass", 86)],
    }),
    calico("NetworkPolicy", { name: "web", namespace: "default" }, {
      selector: "app == 'web'",
      types: ["Ingress"],
      ingress: [udp("Deny", 86)],
    }),
    kubernetes("client", "client", {}, { policyTypes: ["Ingress"] }),
    kubernetes("far", "far", LOGGED, { policyTypes: ["Ingress", "Egress"] }),
  );
  const addressOf = cluster.addressOf;
  // Denied by a policy and a tier that do not ask for it.
  send(cluster.pod("web"), addressOf("client"), 99);
  send(cluster.pod("client"), addressOf("web"), 86);
  send(cluster.pod("client"), addressOf("web"), 80);
  // Denied by those that do, one after the other, so that it is known in which order they come.
  send(cluster.pod("client"), addressOf("web"), 82);
  await cluster.events(0, 1);
  send(cluster.pod("client"), addressOf("web"), 83);
  await cluster.events(0, 2);
  send(cluster.pod("client"), addressOf("web", 6), 83);
  send(cluster.pod("client"), addressOf("far"), 84);
  await cluster.events(1, 1);
  send(cluster.pod("far"), addressOf("web"), 85);

  const web = { verdict: "deny", direction: "ingress", tier: "sec", endpoint: { kind: "pod", name: "default/web" } };
  const here = await cluster.events(0, 3);
  expect(here).toMatchObject([
    {
      ...web,
      by: "rule",
      policy: "NetworkPolicy.projectcalico.org/default/sec.web",
      rule: 1,
      destination: { port: 82 },
    },
    { ...web, by: "tier default", destination: { port: 83, address: formatAddress(addressOf("web")) } },
    { ...web, by: "tier default", destination: { port: 83, address: formatAddress(addressOf("web", 6)) } },
  ]);
  expect(here.every(({ source }) => source.owner?.name === "default/client")).toBe(true);
  const far = { verdict: "deny", by: "tier default", tier: "default", endpoint: { kind: "pod", name: "default/far" } };
  const there = await cluster.events(1, 2);
  expect(there).toMatchObject([
    { ...far, direction: "ingress", source: { owner: { name: "default/client" } }, destination: { port: 84 } },
    { ...far, direction: "egress", destination: { port: 85, owner: { name: "default/web" } } },
  ]);
  expect([here.length, there.length]).toEqual([3, 2]);
}, TEST_DEADLINE_MS);

/** Rules that log datagrams to `LOUD` of `web`, by what is denied there and by a Log rule. */
const LOUD = 81;
const LOUD_POLICIES: Readonly<Record<string, object>> = {
  "a Log rule matches": calico("NetworkPolicy", { name: "web", namespace: "default" }, {
    selector: "app == 'web'",
    types: ["Ingress"],
    ingress: [udp("Log", LOUD), udp("Deny", LOUD)],
  }),
  "are denied and logged": calico("NetworkPolicy", { name: "web", namespace: "default", ...LOGGED }, {
    selector: "app == 'web'",
    types: ["Ingress"],
    ingress: [udp("Deny", LOUD)],
  }),
};

for (const [what, policy] of Object.entries(LOUD_POLICIES)) {
  test(`100,000 packets that ${what} are a few lines, and cost the daemon next to nothing`, async () => {
    await using cluster = await Cluster.open();
    await cluster.apply(policy);
    const cpuMs = async () => {
      // utime and stime of proc(5), in hundredths of a second, behind the name in parentheses.
      const stat = readFileSync(`/proc/${(await cluster.status(0)).pid}/stat`, "utf8").replace(/^.*\) /, "").split(" ");
      return (Number(stat[11]) + Number(stat[12])) * 10;
    };
    const logged = async () => (await cluster.status(0)).logs!.packets;
    // Names are looked up, code is compiled.
    send(cluster.pod("client"), cluster.addressOf("web"), LOUD);
    await cluster.events(0, 1);
    const [before, beforeCpuMs, beforeMs] = [await cluster.status(0), await cpuMs(), performance.now()];
    const count = 100_000;
    send(cluster.pod("client"), cluster.addressOf("web"), LOUD, count);
    await until("the first are told", async () => await logged() > 1);
    for (let was = 0; was !== await logged();) {
      was = await logged();
      // Longer than the kernel holds any back.
      await Bun.sleep(100);
    }
    const [after, spentCpuMs] = [await cluster.status(0), await cpuMs() - beforeCpuMs];
    const seconds = (performance.now() - beforeMs) / 1_000;
    // Ten a second, and twenty at once.
    expect(after.logs!.packets).toBeLessThanOrEqual(1 + 20 + 10 * seconds);
    expect(after.logs!.lost).toBe(0);
    expect(after.memory.rss - before.memory.rss).toBeLessThan(24e6);
    expect(spentCpuMs).toBeLessThan(500);
    if (what === "a Log rule matches") return;
    const told = after.logs!.packets;
    await until("the total is told", async () => (await cluster.logs(0)).some(({ event }) => event === "denied"));
    expect((await cluster.logs(0)).find(({ event }) => event === "denied")).toMatchObject({
      by: "rule",
      policy: "NetworkPolicy.projectcalico.org/default/web",
      rule: 0,
      packets: count + 1,
      told,
    });
  }, TEST_DEADLINE_MS);
}

function scratch(): Disposable & { readonly path: string } {
  const path = mkdtempSync("/tmp/manx-logs-");
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string, void, undefined> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of stream) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop()!;
    yield* lines;
  }
}
