/**
 * A change of policy reaches connections that are established: those that it denies stop within a deadline, in both directions, and
 * those that it allows lose nothing. With real daemons, pods and packets; bytes flow all the time.
 */
import { beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { buildBinary } from "../../scripts/build.ts";
import { PATHS, type StatusReply } from "../../src/api/protocol.ts";
import { makeFlows } from "../../src/host/testdata/made_flows.ts";
import { namespacedKernel } from "../../src/kernel/namespaced_door.ts";
import { getFlows, parseFlow } from "../../src/kernel/netlink/schema/conntrack.ts";
import { inNamespace } from "../../src/kernel/netns.ts";
import { Sandbox } from "../../src/lab/sandbox.ts";
import type { Labels, ScenarioWorld } from "../../src/lab/scenario.ts";
import { parseScenario } from "../../src/lab/scenario_parser.ts";
import { childEnvironment } from "../../src/lab/self.ts";
import { type End, type LiveFlow, otherEnd, TcpFlow, UdpFlow } from "../../src/lab/testdata/live_flow.ts";
import { podManifest } from "../../src/lab/world_manifest.ts";
import { type Address, addressFamily } from "../../src/model/address.ts";

const TEST_DEADLINE_MS = 60_000;
const DEADLINE_MS = 10_000;
/** Within this time of a change that denies it, a flow has stopped, however busy the machine is. */
const STOP_MS = 4_000;
/** How long a stopped flow is listened to: longer than TCP waits before it says something again. */
const SILENCE_MS = 600;
const LOOK_MS = 5;
const FAMILIES = [4, 6] as const;

let binary = "";
beforeAll(async () => void (binary = await buildBinary()));

const WORLD = `
scenario: two nodes
world:
  families: [4, 6]
  nodes: [ { name: north }, { name: south } ]
  namespaces: { default: {}, team: { labels: { team: red } } }
  pods:
    - { name: server, node: north, labels: { app: server }, serves: [tcp/80] }
    - { name: near, node: north, labels: { app: client } }
    - { name: far, node: south, namespace: team, labels: { app: client } }
steps:
  - expect: default/near -> default/server tcp/80 allow
`;

/** A policy of the server: ingress from these, to these TCP ports. */
const policy = (name: string, ports: readonly number[], from?: unknown): string =>
  JSON.stringify({
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name, namespace: "default" },
    spec: {
      podSelector: { matchLabels: { app: "server" } },
      policyTypes: ["Ingress"],
      ingress: [{
        ...(from === undefined ? {} : { from: [from] }),
        ports: ports.map((port) => ({ protocol: "TCP", port })),
      }],
    },
  });

/** A flow, and bytes in it. */
interface Talk {
  readonly name: string;
  readonly flow: LiveFlow;
  readonly speakers: readonly End[];
}

/** Two nodes with their daemons, and flows in which somebody talks all the time. */
class Cluster implements AsyncDisposable {
  readonly talks: Talk[] = [];
  readonly #directory: string;
  readonly #open = new AsyncDisposableStack();
  readonly #stop = new AbortController();

  private constructor(readonly sandbox: Sandbox, directory: string) {
    this.#directory = directory;
    this.#open.defer(() => rmSync(directory, { recursive: true, force: true }));
    this.#open.use(sandbox);
    const talking = this.#talk();
    this.#open.defer(async () => {
      this.#stop.abort();
      await talking;
    });
  }

  static async open(): Promise<Cluster> {
    const directory = mkdtempSync("/tmp/manx-test-");
    try {
      const { world } = parseScenario("cuts.yaml", WORLD);
      return new Cluster(
        await Sandbox.open(world, { directory, self: [binary], dataplane: "nftables" }),
        directory,
      );
    } catch (error) {
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  get world(): ScenarioWorld {
    return this.sandbox.world;
  }

  /** TCP or UDP from a pod to the server at a port, in one family. */
  begin(from: string, port: number, family: 4 | 6, speakers: readonly End[] = ["client", "server"], udp = false): Talk {
    const client = this.sandbox.pods.get(from)!.namespace, server = this.sandbox.pods.get("default/server")!.namespace;
    const address = this.#serverAddress(family);
    const flow = this.#open.use(
      udp ? new UdpFlow(client, server, address, port) : new TcpFlow(client, server, address, port),
    );
    const talk = {
      name: `${from} ${udp ? "udp" : "tcp"}/${port} IPv${family}${
        speakers.length === 1 ? ` (${speakers[0]} talks)` : ""
      }`,
      flow,
      speakers,
    };
    this.talks.push(talk);
    return talk;
  }

  #serverAddress(family: 4 | 6): Address {
    return this.sandbox.podAddresses("default/server").find((address) => addressFamily(address) === family)!;
  }

  async #talk(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      for (const { flow, speakers } of this.talks) {
        for (const end of speakers) flow.say(end);
        flow.listen();
      }
      await Bun.sleep(LOOK_MS);
    }
  }

  /** Those that are heard of, at every end that somebody speaks to. */
  async alive(waitMs: number): Promise<readonly string[]> {
    const before = this.talks.map(({ flow }) => ({ ...flow.received }));
    const isAlive = ({ flow, speakers }: Talk, i: number) =>
      speakers.some((end) => flow.received[otherEnd(end)] > before[i]![otherEnd(end)]);
    await Bun.sleep(waitMs);
    return this.talks.filter(isAlive).map(({ name }) => name);
  }

  /** Returns when only `wanted` are heard of, with the milliseconds until the last of the others was heard. */
  async onlyLives(wanted: readonly Talk[]): Promise<number> {
    const names = wanted.map(({ name }) => name);
    const startedMs = performance.now();
    const others = this.talks.filter((talk) => !wanted.includes(talk));
    const heard = () => others.reduce((sum, { flow }) => sum + flow.received.client + flow.received.server, 0);
    let lastMs = startedMs;
    // So many looks as well: a stall of this process is no silence.
    const looks = SILENCE_MS / LOOK_MS / 4;
    for (let count = heard(), quiet = 0; quiet < looks || performance.now() - lastMs < SILENCE_MS;) {
      await Bun.sleep(LOOK_MS);
      const now = heard();
      quiet = now === count ? quiet + 1 : 0;
      if (now !== count) lastMs = performance.now();
      count = now;
      if (lastMs - startedMs > STOP_MS) break;
    }
    expect(await this.alive(SILENCE_MS / 2)).toEqual(names);
    return lastMs - startedMs;
  }

  /** Everybody falls silent; what was said and not heard. */
  async lost(talks: readonly Talk[]): Promise<readonly string[]> {
    const silent = talks.map((talk) => ({ ...talk, speakers: [] }));
    for (const [i, talk] of talks.entries()) this.talks[this.talks.indexOf(talk)] = silent[i]!;
    const missing = () =>
      talks.flatMap(({ name, flow }) =>
        flow instanceof TcpFlow
          ? (["client", "server"] as const).filter((end) => flow.sent[end] !== flow.received[otherEnd(end)]).map((
            end,
          ) => `${name}: ${flow.sent[end] - flow.received[otherEnd(end)]} bytes of the ${end}`)
          : []
      );
    const endMs = performance.now() + DEADLINE_MS;
    while (missing().length > 0 && performance.now() < endMs) await Bun.sleep(LOOK_MS);
    for (const [i, talk] of talks.entries()) this.talks[this.talks.indexOf(silent[i]!)] = talk;
    return missing();
  }

  end(...talks: readonly Talk[]): void {
    for (const talk of talks) this.talks.splice(this.talks.indexOf(talk), 1);
  }

  async status(node: 0 | 1): Promise<StatusReply> {
    return await (await fetch(`http://manx${PATHS.status}`, { unix: join(this.#directory, `n${node}`, "manx.sock") }))
      .json() as StatusReply;
  }

  /** Through the daemon of the south alone: the north's may be away. */
  async applyInSouth(text: string): Promise<void> {
    const reply = await fetch(`http://manx${PATHS.apply}`, {
      unix: join(this.#directory, "n1", "manx.sock"),
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ text, file: "away.json" }),
    });
    expect([reply.status, await reply.text()]).toEqual([200, expect.any(String)]);
  }

  /** kill -9 of the north's daemon. */
  async kill(): Promise<void> {
    const { pid } = await this.status(0);
    process.kill(pid, "SIGKILL");
    await until("the daemon is gone", () => !existsSync(`/proc/${pid}`));
  }

  /** Another daemon in the north, with these keys of its configuration changed; returns when its first generation is in force. */
  async restart(changes: Readonly<Record<string, unknown>>): Promise<void> {
    const file = join(this.#directory, "n0", "manx.yaml");
    writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, "utf8")), ...changes }));
    const daemon = inNamespace(this.sandbox.nodes.get("north")!.namespace, () =>
      Bun.spawn({
        cmd: [binary, "daemon", "--config", file, "--die-with-parent"],
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
    await until("the restarted daemon has a generation in force", async () => {
      const status = await this.status(0).catch(() => undefined);
      return status?.pid === daemon.pid && status.dataplane.converged && status.generation.applied >= 1;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#open.disposeAsync();
  }
}

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  const endMs = performance.now() + DEADLINE_MS;
  while (!await condition()) {
    if (performance.now() > endMs) throw new Error(`after ${DEADLINE_MS} ms it is still not so that ${what}`);
    await Bun.sleep(LOOK_MS);
  }
}

const names = (talks: readonly Talk[]): readonly string[] => talks.map(({ name }) => name);
const flowsFrom = ["default/near", "team/far"];

test("policies, labels and namespaces: what they deny stops, what they allow goes on without a byte lost", async () => {
  await using cluster = await Cluster.open();
  const { sandbox, world } = cluster;
  const change = (text: string) => sandbox.change("apply", text, "change.yaml");
  const stopMs: number[] = [];
  const onlyLives = async (...wanted: readonly Talk[]) => void stopMs.push(await cluster.onlyLives(wanted));

  // Denied: TCP that talks both ways, TCP where one end only listens, UDP. Allowed: TCP of the same pods.
  const kept = FAMILIES.flatMap((family) => flowsFrom.map((from) => cluster.begin(from, 8080, family)));
  const ended = FAMILIES.flatMap((family) =>
    flowsFrom.flatMap((from, i) => [
      cluster.begin(from, 8081, family),
      cluster.begin(from, 8082, family, ["server"]),
      cluster.begin(from, 8083, family, ["client"]),
      cluster.begin(from, 9000 + i, family, ["client", "server"], true),
    ])
  );
  expect(await cluster.alive(200)).toEqual(names(cluster.talks));
  await change(policy("web", [8080]));
  await onlyLives(...kept);
  expect(await cluster.lost(kept)).toEqual([]);
  // Whoever talked has been told: it does not wait for minutes.
  for (const { flow, speakers, name } of ended) {
    if (flow instanceof TcpFlow) {
      expect([name, speakers.map((end) => flow.ended[end])]).toEqual([
        name,
        speakers.map(() => "ECONNRESET"),
      ]);
    }
  }
  expect((await cluster.status(0)).flowCuts).toMatchObject({ state: "on", cut: ended.length, pending: 0 });
  cluster.end(...ended);

  // A second policy opens another port; when it is deleted, that closes.
  await change(policy("more", [8081]));
  const more = FAMILIES.flatMap((family) => flowsFrom.map((from) => cluster.begin(from, 8081, family)));
  expect(await cluster.alive(200)).toEqual(names(cluster.talks));
  await sandbox.change("delete", policy("more", [8081]), "change.yaml");
  await onlyLives(...kept);
  cluster.end(...more);

  // Only clients may, then only those of the red team.
  const relabel = (id: string, labels: Labels) =>
    change(JSON.stringify(podManifest({ ...world.pods.find((pod) => pod.id === id)!, labels })));
  const namespace = (labels: Labels) =>
    change(JSON.stringify({ apiVersion: "v1", kind: "Namespace", metadata: { name: "team", labels } }));
  const of = (pod: string) => kept.filter(({ name }) => name.startsWith(pod));
  await change(policy("web", [8080], { namespaceSelector: {}, podSelector: { matchLabels: { app: "client" } } }));
  await onlyLives(...kept);
  await relabel("default/near", { app: "stranger" });
  await onlyLives(...of("team/far"));
  await change(policy("web", [8080], { namespaceSelector: { matchLabels: { team: "red" } } }));
  await onlyLives(...of("team/far"));
  expect(await cluster.lost(of("team/far"))).toEqual([]);
  await namespace({ team: "blue" });
  await onlyLives();

  const longest = Math.max(...stopMs);
  console.log(
    `cuts: the last byte of what a change denies came at most ${Math.round(longest)} ms after it was in force`,
  );
  expect(longest).toBeLessThan(STOP_MS);
}, TEST_DEADLINE_MS);

test(
  "a daemon that was away cuts when it is back, one that is told not to lets flows live, and both lose nothing else",
  async () => {
    await using cluster = await Cluster.open();
    const kept = FAMILIES.flatMap((family) => flowsFrom.map((from) => cluster.begin(from, 8080, family)));
    const denied = FAMILIES.flatMap((family) => flowsFrom.map((from) => cluster.begin(from, 8081, family)));
    expect(await cluster.alive(200)).toEqual(names(cluster.talks));

    await cluster.kill();
    await cluster.applyInSouth(policy("web", [8080]));
    await cluster.restart({ cutEstablishedFlows: false });
    expect((await cluster.status(0)).flowCuts).toMatchObject({ state: "off", cut: 0 });
    expect(await cluster.alive(SILENCE_MS)).toEqual(names(cluster.talks));
    // Of one that is off as well: a change that it has seen itself.
    await cluster.sandbox.change("apply", policy("web", [8080, 8082]), "change.json");
    expect(await cluster.alive(SILENCE_MS)).toEqual(names(cluster.talks));

    await cluster.kill();
    await cluster.restart({ cutEstablishedFlows: true });
    await cluster.onlyLives(kept);
    expect((await cluster.status(0)).flowCuts).toMatchObject({ state: "on", cut: denied.length });
    expect(await cluster.lost(kept)).toEqual([]);

    // The mark is the kernel's: without any daemon it still holds.
    await cluster.kill();
    await cluster.onlyLives(kept);
  },
  TEST_DEADLINE_MS,
);

test("50,000 flows of another pod cost one listing; a pod that is detached leaves no flow behind", async () => {
  await using cluster = await Cluster.open();
  const { sandbox, world } = cluster;
  const kernel = namespacedKernel(sandbox.nodes.get("north")!.namespace);
  const nearAddress = sandbox.podAddresses("default/near").find((address) => address.length === 4)!;
  const kept = cluster.begin("team/far", 8080, 4), denied = cluster.begin("team/far", 8081, 4);
  expect(await cluster.alive(200)).toEqual(names(cluster.talks));
  await makeFlows(kernel, nearAddress, 50_000);
  const before = (await cluster.status(0)).flowCuts!;
  const { inForceMs } = await sandbox.change("apply", policy("web", [8080]), "change.json");
  const stopMs = await cluster.onlyLives([kept]);
  const after = (await cluster.status(0)).flowCuts!;
  expect(after.judged - before.judged).toBeLessThan(10);
  expect(after.cut).toBe(1);
  console.log(
    `cuts: among 50,000 other flows: in force after ${inForceMs.toFixed(1)} ms, stopped ${
      Math.round(stopMs)
    } ms later, ` +
      `${after.judged - before.judged} of ${after.listed - before.listed} listed flows judged in ${
        Math.round(after.lastPassMs)
      } ms`,
  );
  expect(await cluster.lost([kept])).toEqual([]);
  cluster.end(denied);

  await sandbox.detach(world.pods.find(({ id }) => id === "default/near")!);
  await until("its flows are gone", async () => (await cluster.status(0)).flowCuts!.removed >= 50_000);
  using socket = kernel.netlink(12);
  const left = socket.dump("list flows", getFlows({})).map(parseFlow);
  expect(left.filter(({ original }) => original.destination === nearAddress)).toEqual([]);
  await cluster.onlyLives([kept]);
  expect(await cluster.lost([kept])).toEqual([]);
}, TEST_DEADLINE_MS);
