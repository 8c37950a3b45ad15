/** The daemon dies and comes back, and somebody else tears at its tables: what is decided stays decided. With real packets. */
import { beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { buildBinary } from "../../scripts/build.ts";
import { PATHS } from "../../src/api/protocol.ts";
import {
  accept4,
  buffer,
  check,
  close,
  connect,
  getsockoptInt,
  listen,
  MSG,
  POLL,
  poll,
  recv,
  send,
  SO,
  SOCK,
  SOL,
} from "../../src/kernel/libc.ts";
import { inNamespace } from "../../src/kernel/netns.ts";
import { inetSockaddr } from "../../src/kernel/sockaddr.ts";
import { parseExpectation } from "../../src/lab/expectation.ts";
import { openBound, openSocket, resetOnClose } from "../../src/lab/probe_socket.ts";
import { Prober } from "../../src/lab/prober.ts";
import { Sandbox } from "../../src/lab/sandbox.ts";
import type { ScenarioPod, ScenarioWorld } from "../../src/lab/scenario.ts";
import { parseScenario } from "../../src/lab/scenario_parser.ts";
import { childEnvironment } from "../../src/lab/self.ts";
import { type Address, addressFamily, parseAddress } from "../../src/model/address.ts";
import type { ManxError } from "../../src/sdk/errors.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";

const TEST_DEADLINE_MS = 60_000;
const DEADLINE_MS = 10_000;
/** Within this time of a disturbance everything is in force again. */
const REPAIR_MS = 1_000;
/** A connection that is answered at all is answered well within it. */
const ANSWER_MS = 100;
const LOOK_MS = 5;
/** Allowed, besides tcp/80; for connections of our own. */
const LONG_PORT = 8080;
/** Denied, with a listener of our own. */
const DENIED_PORT = 8081;

let binary = "";
beforeAll(async () => void (binary = await buildBinary()));

const WORLD = `
scenario: one node
world:
  families: [4, 6]
  nodes: [ { name: node } ]
  pods:
    - { name: client, labels: { app: client } }
    - { name: server, labels: { app: server }, serves: [tcp/80, tcp/81] }
    - { name: late, labels: { app: late } }
steps:
  - expect: client -> server tcp/80 allow
`;

const POLICY = JSON.stringify({
  apiVersion: "networking.k8s.io/v1",
  kind: "NetworkPolicy",
  metadata: { name: "server", namespace: "default" },
  spec: {
    podSelector: { matchLabels: { app: "server" } },
    policyTypes: ["Ingress"],
    ingress: [{
      from: [{ podSelector: { matchLabels: { app: "client" } } }],
      ports: [{ protocol: "TCP", port: 80 }, { protocol: "TCP", port: LONG_PORT }],
    }],
  },
});

/** One node with its daemon, `client` and `server` attached, the policy in force. */
class Cluster implements AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly world: ScenarioWorld;
  readonly late: ScenarioPod;
  readonly #directory: string;
  readonly #open = new AsyncDisposableStack();

  private constructor(sandbox: Sandbox, late: ScenarioPod, directory: string) {
    this.sandbox = sandbox;
    this.world = sandbox.world;
    this.late = late;
    this.#directory = directory;
    this.#open.defer(() => rmSync(directory, { recursive: true, force: true }));
    this.#open.use(sandbox);
  }

  static async open(): Promise<Cluster> {
    const directory = mkdtempSync("/tmp/manx-test-");
    const { world } = parseScenario("daemon.yaml", WORLD);
    const [client, server, late] = world.pods;
    try {
      const options = { directory, self: [binary], dataplane: "nftables" };
      const sandbox = await Sandbox.open({ ...world, pods: [client!, server!] }, options);
      const cluster = new Cluster(sandbox, late!, directory);
      await sandbox.change("apply", POLICY, "policy.json");
      return cluster;
    } catch (error) {
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  get node(): NetworkNamespace {
    return this.sandbox.nodes.get("node")!.namespace;
  }

  get client(): NetworkNamespace {
    return this.sandbox.pods.get("default/client")!.namespace;
  }

  get server(): NetworkNamespace {
    return this.sandbox.pods.get("default/server")!.namespace;
  }

  /** IPv4 first. */
  get serverAddresses(): readonly Address[] {
    return this.sandbox.podAddresses("default/server");
  }

  async status() {
    return (await this.sandbox.statuses())[0]!;
  }

  /** Who has which address, as the daemon knows it. */
  async leases(): Promise<unknown> {
    const reply = await fetch(`http://manx${PATHS.ipam}`, { unix: join(this.#directory, "n0", "manx.sock") });
    return await reply.json();
  }

  /** kill -9; returns when it is gone. */
  async kill(): Promise<void> {
    const { pid } = await this.status();
    process.kill(pid, "SIGKILL");
    await until("the daemon is gone", DEADLINE_MS, () => !existsSync(`/proc/${pid}`));
  }

  /** A further daemon on the same state; returns when it has applied a generation. */
  async restart(): Promise<void> {
    const cmd = [binary, "daemon", "--config", join(this.#directory, "n0", "manx.yaml"), "--die-with-parent"];
    const daemon = inNamespace(this.node, () =>
      Bun.spawn({
        cmd,
        detached: true,
        env: childEnvironment(),
        stdin: "ignore",
        stdout: "ignore",
        stderr: "ignore",
      }));
    this.#open.defer(async () => {
      daemon.kill("SIGTERM");
      await daemon.exited;
    });
    await until("the restarted daemon has applied a generation", DEADLINE_MS, async () => {
      const status = await this.status().catch(() => undefined);
      return status?.pid === daemon.pid && status.datastore.inSync && status.dataplane.converged &&
        status.generation.applied >= 1 && status.generation.applied === status.generation.wanted;
    });
  }

  /** The output of a command inside the node. */
  inNode(cmd: readonly string[], input = ""): string {
    return output(this.node, cmd, input);
  }

  /** Our table with every handle, whatever it has counted. */
  table(): string {
    return uncounted(this.inNode(["nft", "-a", "list", "table", "inet", "manx"]));
  }

  /**
   * Our table's sets, maps and chains, or what is said where there is none. Objects and elements are in an order of the kernel's
   * own, which is not kept over a repair; the order of rules in a chain is.
   */
  rules(): readonly string[] {
    try {
      const text = uncounted(this.inNode(["nft", "list", "table", "inet", "manx"]));
      return text.replaceAll(
        /elements = \{([^}]*)\}/g,
        (_, elements: string) => elements.split(",").map((element) => element.trim()).sort().join(", "),
      ).split("\n\n").map((object) => object.replace(/^table inet manx \{\n|\}\n$/g, "").trim()).sort();
    } catch (error) {
      return [String(error)];
    }
  }

  links(): readonly string[] {
    return this.inNode(["ip", "-o", "link", "show"]).trim().split("\n").map((line) => line.split(": ")[1]!).sort();
  }

  /** What of the policy does not hold with real packets: tcp/80 goes, tcp/81 does not, in both families. */
  async wrong(): Promise<readonly string[]> {
    using prober = new Prober();
    const lines = ["client -> server tcp/80 allow", "client -> server tcp/81 deny"];
    const probes = lines.flatMap((line) => this.sandbox.probes(parseExpectation(line, this.world, 1)));
    expect(probes.length).toBe(4);
    return (await prober.run(probes)).filter(({ holds }) => !holds).map(({ probe, observed }) =>
      `${probe.protocol}/${probe.port} IPv${addressFamily(probe.to)}: ${observed}, wanted ${probe.expect}`
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#open.disposeAsync();
  }
}

const uncounted = (listing: string): string => listing.replaceAll(/counter packets \d+ bytes \d+/g, "counter");

function output(namespace: NetworkNamespace, cmd: readonly string[], input = ""): string {
  const run = inNamespace(namespace, () => Bun.spawnSync({ cmd: [...cmd], stdin: new TextEncoder().encode(input) }));
  if (!run.success) throw new Error(`${cmd.join(" ")}: ${run.stderr.toString()}`);
  return run.stdout.toString();
}

async function until(what: string, deadlineMs: number, condition: () => boolean | Promise<boolean>): Promise<void> {
  const endMs = performance.now() + deadlineMs;
  while (!await condition()) {
    if (performance.now() > endMs) throw new Error(`after ${deadlineMs} ms it is still not so that ${what}`);
    await Bun.sleep(LOOK_MS);
  }
}

const errorOf = async (call: Promise<unknown>): Promise<string> =>
  await call.then(() => "no error", (error: ManxError) => error.message);

/** Listens in `server` on every address of the family. */
function listenAt(cluster: Cluster, family: 4 | 6, port: number): number {
  const fd = openBound(cluster.server, "stream", 0, parseAddress(family === 4 ? "0.0.0.0" : "::"), port);
  check("listen", listen(fd, 128));
  return fd;
}

/** A connected socket of `client`, or undefined where nothing answered in time. */
function dial(cluster: Cluster, to: Address, port: number, timeoutMs: number): number | undefined {
  const fd = openSocket(cluster.client, addressFamily(to), "stream", 0);
  connect(fd, inetSockaddr({ address: to, port }));
  const [events] = poll([{ fd, events: POLL.OUT }], timeoutMs);
  if (events !== 0 && getsockoptInt(fd, SOL.SOCKET, SO.ERROR) === 0) return fd;
  close(fd);
  return undefined;
}

/** Both ends of a TCP connection from `client` to `server`. */
class Connection implements Disposable {
  readonly #ends: readonly [number, number];

  constructor(cluster: Cluster, to: Address) {
    const listening = listenAt(cluster, addressFamily(to), LONG_PORT);
    const near = dial(cluster, to, LONG_PORT, DEADLINE_MS);
    if (near === undefined) throw new Error("the long connection could not be opened");
    poll([{ fd: listening, events: POLL.IN }], DEADLINE_MS);
    this.#ends = [near, check("accept", accept4(listening, SOCK.NONBLOCK | SOCK.CLOEXEC))];
    close(listening);
  }

  /** Says `words` there and back; what came through, each way. */
  say(words: string): readonly string[] {
    const [near, far] = this.#ends;
    return ([[near, far], [far, near]] as const).map(([from, to]) => {
      const data = new TextEncoder().encode(words);
      const sent = send(from, data, MSG.NOSIGNAL);
      if (sent !== data.length) return `send: ${sent}`;
      // Below the shortest time after which TCP sends a segment again, 200 ms.
      poll([{ fd: to, events: POLL.IN }], ANSWER_MS);
      const into = buffer(256);
      const received = recv(to, into, MSG.DONTWAIT);
      return received < 0 ? `receive: ${received}` : new TextDecoder().decode(into.subarray(0, received));
    });
  }

  [Symbol.dispose](): void {
    for (const fd of this.#ends) close(fd);
  }
}

test("without its daemon a node goes on as it was, refuses attachments, and a new daemon changes nothing", async () => {
  await using cluster = await Cluster.open();
  const { sandbox, late } = cluster;
  expect(await cluster.wrong()).toEqual([]);
  using connections = new DisposableStack();
  const long = cluster.serverAddresses.map((to) => connections.use(new Connection(cluster, to)));
  const says = (words: string) => long.map((connection) => connection.say(words));
  const through = (words: string) => long.map(() => [words, words]);
  expect(says("before")).toEqual(through("before"));
  const [table, links, leases] = [cluster.table(), cluster.links(), await cluster.leases()];
  expect(table).toContain("chain");

  await cluster.kill();
  expect(await cluster.wrong()).toEqual([]);
  expect(says("meanwhile")).toEqual(through("meanwhile"));
  expect(await errorOf(sandbox.attach(late))).toContain("error 11:");
  expect(await errorOf(sandbox.detach(late))).toContain("error 11:");
  expect(cluster.links()).toEqual(links);
  const lateNamespace = sandbox.pods.get(late.id)!.namespace;
  expect(output(lateNamespace, ["ip", "-o", "link", "show"]).trim().split("\n").length).toBe(1);
  expect(cluster.table()).toBe(table);

  await cluster.restart();
  const status = await cluster.status();
  expect(status.generation.applied).toBe(status.generation.wanted);
  expect(status.generation.applied).toBeGreaterThanOrEqual(1);
  expect(status.endpoints).toBe(2);
  expect(cluster.table()).toBe(table);
  expect(cluster.links()).toEqual(links);
  expect(await cluster.leases()).toEqual(leases);
  expect(says("after")).toEqual(through("after"));
  expect(await cluster.wrong()).toEqual([]);

  // What was refused is possible again, and leaves nothing behind either.
  await sandbox.attach(late);
  expect(cluster.links().length).toBe(links.length + 1);
  await sandbox.detach(late);
  // A link that is down already may be deleted later.
  await until("its link is gone", DEADLINE_MS, () => cluster.links().length === links.length);
  expect(cluster.links()).toEqual(links);
  expect(await cluster.leases()).toEqual(leases);
  expect(says("at last")).toEqual(through("at last"));
}, TEST_DEADLINE_MS);

const FOREIGN = `
table inet foreign {
  set s { type ipv4_addr; flags interval; elements = { 192.0.2.0/24, 198.51.100.7 }; }
  chain c {
    type filter hook forward priority 10; policy accept;
    ip saddr @s drop comment "theirs"
  }
}
table ip manx-not {
  chain manx { tcp dport 81 accept; }
}
`;
const foreign = (cluster: Cluster): string =>
  ["inet foreign", "ip manx-not"].map((name) => cluster.inNode(["nft", "-a", "list", "table", ...name.split(" ")]))
    .join("");

test("rules that somebody else removes are back within a second, and nothing of theirs is touched", async () => {
  await using cluster = await Cluster.open();
  using listening = new DisposableStack();
  for (const family of [4, 6] as const) listening.adopt(listenAt(cluster, family, DENIED_PORT), close);
  /** Whether a denied connection goes through, in any family. */
  const leaks = () =>
    cluster.serverAddresses.some((to) => {
      const fd = dial(cluster, to, DENIED_PORT, ANSWER_MS);
      if (fd === undefined) return false;
      resetOnClose(fd);
      close(fd);
      return true;
    });
  /** Denied again for whoever begins a connection within the time; then everything as it was. */
  const repaired = async (what: string, sinceMs: number) => {
    let deniedFromMs = performance.now();
    await until(`the denied connection is denied again after ${what}`, DEADLINE_MS, () => {
      deniedFromMs = performance.now();
      return !leaks();
    });
    expect(deniedFromMs - sinceMs, what).toBeLessThan(REPAIR_MS);
    await until(`all rules are back after ${what}`, DEADLINE_MS, () => Bun.deepEquals(cluster.rules(), rules));
    // Two attempts have been waited for in between.
    expect(performance.now() - sinceMs, what).toBeLessThan(REPAIR_MS + 3 * ANSWER_MS);
  };
  const rules = cluster.rules();
  expect(leaks()).toBe(false);
  expect(await cluster.wrong()).toEqual([]);

  cluster.inNode(["nft", "-f", "-"], FOREIGN);
  cluster.inNode(["nft", "flush", "ruleset"]);
  let sinceMs = performance.now();
  cluster.inNode(["nft", "-f", "-"], FOREIGN);
  let theirs = foreign(cluster);
  await repaired("a flush", sinceMs);
  expect(foreign(cluster)).toBe(theirs);
  expect(await cluster.wrong()).toEqual([]);

  // With the daemon held still it is seen that the flush does open what was denied: the repair is what closes it.
  const { pid } = await cluster.status();
  process.kill(pid, "SIGSTOP");
  try {
    cluster.inNode(["nft", "-f", "-"], `flush ruleset\n${FOREIGN}`);
    theirs = foreign(cluster);
    expect(leaks()).toBe(true);
  } finally {
    process.kill(pid, "SIGCONT");
    sinceMs = performance.now();
  }
  await repaired("a flush unseen at first", sinceMs);
  expect(foreign(cluster)).toBe(theirs);
  expect(await cluster.wrong()).toEqual([]);

  const chains = rules.flatMap((object) => /^chain (\S+) \{/.exec(object)?.[1] ?? []);
  expect(chains.length).toBeGreaterThan(1);
  for (const chain of chains) {
    sinceMs = performance.now();
    cluster.inNode(["nft", "flush", "chain", "inet", "manx", chain]);
    await repaired(`chain ${chain} was emptied`, sinceMs);
  }
  expect(foreign(cluster)).toBe(theirs);
  expect(await cluster.wrong()).toEqual([]);
}, TEST_DEADLINE_MS);
