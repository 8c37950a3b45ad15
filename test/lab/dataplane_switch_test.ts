/** `manx dataplane switch` and `diff` on a live node: while one takes over from the other, what flows flows on, and what is denied stays denied. */
import { beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { buildBinary } from "../../scripts/build.ts";
import {
  accept4,
  buffer,
  check,
  close,
  connect,
  Errno,
  listen,
  MSG,
  POLL,
  poll,
  recv,
  send,
  SOCK,
} from "../../src/kernel/libc.ts";
import { inNamespace } from "../../src/kernel/netns.ts";
import { inetSockaddr } from "../../src/kernel/sockaddr.ts";
import { openBound, openSocket, resetOnClose } from "../../src/lab/probe_socket.ts";
import { Sandbox } from "../../src/lab/sandbox.ts";
import { parseWorld } from "../../src/lab/scenario_parser.ts";
import { childEnvironment } from "../../src/lab/self.ts";
import { type Address, addressFamily, parseAddress } from "../../src/model/address.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";

const TEST_DEADLINE_MS = 90_000;
const DEADLINE_MS = 15_000;
const LOOK_MS = 10;
const SWITCHES = 6;
const ALLOWED = 8080, DENIED = 8081;
/** Of a connection that is tried; a denied one is given up after that. */
const TRIES_AT_ONCE = 8;

const WORLD = `
families: [4, 6]
nodes: [ { name: node } ]
pods:
  - { name: client, labels: { app: client } }
  - { name: server, labels: { app: server } }
  - { name: late, labels: { app: client } }
`;
const policy = (port: number) =>
  JSON.stringify({
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name: "server", namespace: "default" },
    spec: {
      podSelector: { matchLabels: { app: "server" } },
      policyTypes: ["Ingress"],
      ingress: [{ from: [{ podSelector: { matchLabels: { app: "client" } } }], ports: [{ protocol: "TCP", port }] }],
    },
  });

let binary = "";
beforeAll(async () => void (binary = await buildBinary()), TEST_DEADLINE_MS);

class Node implements AsyncDisposable {
  readonly #open = new AsyncDisposableStack();

  private constructor(readonly sandbox: Sandbox, readonly directory: string) {
    this.#open.defer(() => rmSync(directory, { recursive: true, force: true }));
    this.#open.use(sandbox);
  }

  static async open(): Promise<Node> {
    const directory = mkdtempSync("/tmp/manx-switch-");
    try {
      const world = parseWorld("switch.yaml", WORLD);
      const sandbox = await Sandbox.open({ ...world, pods: world.pods.slice(0, 2) }, {
        directory,
        self: [binary],
        dataplane: "nftables",
      });
      const node = new Node(sandbox, directory);
      await sandbox.change("apply", policy(ALLOWED), "policy.json");
      return node;
    } catch (error) {
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  get namespace(): NetworkNamespace {
    return this.sandbox.nodes.get("node")!.namespace;
  }
  readonly pod = (name: string): NetworkNamespace => this.sandbox.pods.get(`default/${name}`)!.namespace;
  get server(): readonly Address[] {
    return this.sandbox.podAddresses("default/server");
  }
  get configFile(): string {
    return join(this.directory, "n0", "manx.yaml");
  }
  get recordFile(): string {
    return join(this.directory, "n0", "state", "dataplanes.json");
  }
  status = async () => (await this.sandbox.statuses())[0]!;

  async manx(...args: readonly string[]): Promise<{ status: number; output: string; errors: string }> {
    const child = inNamespace(this.namespace, () =>
      Bun.spawn({
        cmd: [binary, "--socket", join(this.directory, "n0", "manx.sock"), ...args],
        env: childEnvironment(),
        stdin: "ignore",
        stdout: "pipe",
        stderr: "pipe",
      }));
    const [output, errors, status] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    return { status, output, errors };
  }

  run(...cmd: readonly string[]): string {
    const ran = inNamespace(this.namespace, () => Bun.spawnSync({ cmd: [...cmd] }));
    if (!ran.success) throw new Error(`${cmd.join(" ")}: ${ran.stderr.toString()}`);
    return ran.stdout.toString();
  }

  /** Which dataplanes have something in the kernel. */
  there(): readonly string[] {
    const tables = this.run("nft", "list", "tables").includes("table inet manx") ? ["nftables"] : [];
    const rules = ["iptables", "ip6tables"].map((tool) => this.run(`${tool}-legacy-save`)).join("");
    return rules.includes("manx-") || this.run("ipset", "list", "-n").includes("manx-")
      ? [...tables, "iptables"]
      : tables;
  }

  /** kill -9, and another daemon; returns when it has everything in force. */
  async restart(): Promise<void> {
    await this.kill();
    await this.start();
  }

  async kill(): Promise<void> {
    const { pid } = await this.status();
    process.kill(pid, "SIGKILL");
    await until("the daemon is gone", () => !existsSync(`/proc/${pid}`));
  }

  async start(): Promise<void> {
    const daemon = inNamespace(this.namespace, () =>
      Bun.spawn({
        cmd: [binary, "daemon", "--config", this.configFile, "--die-with-parent"],
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
    await until("the restarted daemon has everything in force", async () => {
      const status = await this.status().catch(() => undefined);
      return status?.pid === daemon.pid && status.dataplane.converged && status.generation.applied >= 1 &&
        status.generation.applied === status.generation.wanted;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#open.disposeAsync();
  }
}

async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (const endMs = performance.now() + DEADLINE_MS; !await holds();) {
    if (performance.now() > endMs) throw new Error(`after ${DEADLINE_MS} ms it is still not so that ${what}`);
    await Bun.sleep(LOOK_MS);
  }
}

const ANY: Readonly<Record<4 | 6, Address>> = { 4: parseAddress("0.0.0.0"), 6: parseAddress("::") };

/** Bytes that go on and on from the client to the server and back, over TCP. */
class Transfer implements Disposable {
  readonly #near: number;
  readonly #far: number;
  /** Lengths of what was sent, and came: of each byte its value is its place. */
  readonly #counts = { out: 0, there: 0, back: 0, home: 0 };
  readonly #chunk = buffer(4_096);
  readonly #inbox = buffer(16_384);

  constructor(node: Node, to: Address) {
    const listening = openBound(node.pod("server"), "stream", 0, ANY[addressFamily(to)], ALLOWED);
    check("listen", listen(listening, 1));
    this.#near = openSocket(node.pod("client"), addressFamily(to), "stream", 0);
    connect(this.#near, inetSockaddr({ address: to, port: ALLOWED }));
    poll([{ fd: listening, events: POLL.IN }], DEADLINE_MS);
    this.#far = check("accept", accept4(listening, SOCK.NONBLOCK | SOCK.CLOEXEC));
    close(listening);
  }

  get bytes(): number {
    return this.#counts.home;
  }

  /** As much as goes without waiting, both ways. @throws {Error} where the connection breaks, or bytes are others than were sent */
  pump(): void {
    this.#send(this.#near, "out");
    this.#receive(this.#far, "there");
    this.#send(this.#far, "back");
    this.#receive(this.#near, "home");
  }

  #send(fd: number, count: "out" | "back"): void {
    for (let i = 0; i < this.#chunk.length; i++) this.#chunk[i] = (this.#counts[count] + i) & 0xff;
    const sent = send(fd, this.#chunk, MSG.NOSIGNAL | MSG.DONTWAIT);
    if (sent === -Errno.EAGAIN) return;
    this.#counts[count] += check("send on the long connection", sent);
  }

  #receive(fd: number, count: "there" | "home"): void {
    for (;;) {
      const received = recv(fd, this.#inbox, MSG.DONTWAIT);
      if (received === -Errno.EAGAIN) return;
      if (check("receive on the long connection", received) === 0) throw new Error("the long connection has ended");
      for (let i = 0; i < received; i++) {
        if (this.#inbox[i] !== ((this.#counts[count] + i) & 0xff)) {
          throw new Error("bytes of the long connection are lost");
        }
      }
      this.#counts[count] += received;
    }
  }

  [Symbol.dispose](): void {
    close(this.#near);
    close(this.#far);
  }
}

/** Tries, without a pause, what policy denies: datagrams, and connections. */
class Forbidden implements Disposable {
  tries = 0;
  readonly #to: Address;
  readonly #client: NetworkNamespace;
  readonly #heard: number;
  readonly #listening: number;
  readonly #sender: number;
  readonly #open: number[] = [];
  readonly #inbox = buffer(64);

  constructor(node: Node, to: Address) {
    const family = addressFamily(to);
    this.#to = to;
    this.#client = node.pod("client");
    this.#heard = openBound(node.pod("server"), "datagram", 0, ANY[family], DENIED);
    this.#listening = openBound(node.pod("server"), "stream", 0, ANY[family], DENIED);
    check("listen", listen(this.#listening, 128));
    this.#sender = openSocket(this.#client, family, "datagram", 0);
  }

  /** What has got through, a line each. */
  pump(): readonly string[] {
    const { family, to } = { family: addressFamily(this.#to), to: inetSockaddr({ address: this.#to, port: DENIED }) };
    // Connected anew each time: an error that came for the last one would be told instead of sending.
    connect(this.#sender, to);
    send(this.#sender, this.#inbox.subarray(0, 8), MSG.NOSIGNAL | MSG.DONTWAIT);
    const fd = openSocket(this.#client, family, "stream", 0);
    connect(fd, to);
    this.#open.push(fd);
    if (this.#open.length > TRIES_AT_ONCE) this.#giveUp(this.#open.shift()!);
    this.tries += 2;
    return this.leaked();
  }

  leaked(): readonly string[] {
    const leaks: string[] = [];
    const family = addressFamily(this.#to);
    if (recv(this.#heard, this.#inbox, MSG.DONTWAIT) >= 0) {
      leaks.push(`a datagram over IPv${family} at try ${this.tries}`);
    }
    const accepted = accept4(this.#listening, SOCK.NONBLOCK | SOCK.CLOEXEC);
    if (accepted >= 0) {
      leaks.push(`a connection over IPv${family} at try ${this.tries}`);
      this.#giveUp(accepted);
    }
    return leaks;
  }

  #giveUp(fd: number): void {
    resetOnClose(fd);
    close(fd);
  }

  [Symbol.dispose](): void {
    for (const fd of this.#open) this.#giveUp(fd);
    for (const fd of [this.#heard, this.#listening, this.#sender]) close(fd);
  }
}

test(
  "six times to and fro: long connections lose nothing, nothing denied gets through, one dataplane is left each time",
  async () => {
    await using node = await Node.open();
    using stack = new DisposableStack();
    const transfers = node.server.map((to) => stack.use(new Transfer(node, to)));
    const forbidden = node.server.map((to) => stack.use(new Forbidden(node, to)));
    const leaks: string[] = [];
    let isOver = false, rounds = 0;
    const traffic = (async () => {
      while (!isOver) {
        for (const transfer of transfers) transfer.pump();
        for (const one of forbidden) leaks.push(...one.pump());
        rounds++;
        await new Promise((resolve) => setImmediate(resolve));
      }
    })();
    traffic.catch(() => {});
    try {
      expect(node.there()).toEqual(["nftables"]);
      for (let i = 0; i < SWITCHES; i++) {
        const to = i % 2 === 0 ? "iptables" : "nftables";
        const [bytes, before] = [transfers.map((transfer) => transfer.bytes), rounds];
        const switched = await node.manx("dataplane", "switch", to);
        expect(switched.errors + switched.output).toContain(
          `switched from ${i % 2 === 0 ? "nftables" : "iptables"} to ${to}`,
        );
        expect(switched.status).toBe(0);
        expect(node.there()).toEqual([to]);
        expect((await node.status()).dataplane).toMatchObject({ use: to, converged: true, problems: [] });
        expect((await node.status()).dataplane.configured).toBe(i % 2 === 0 ? "nftables" : undefined);
        expect(await node.manx("dataplane", "diff")).toEqual({ status: 0, output: "", errors: "" });
        await until("the traffic has gone on", () => rounds > before + 10);
        transfers.forEach((transfer, j) => expect(transfer.bytes).toBeGreaterThan(bytes[j]!));
        expect(leaks).toEqual([]);
      }
    } finally {
      isOver = true;
    }
    await traffic;
    // Both ways are open and shut still: what is allowed by now gets through, so the loop could have seen it.
    await node.sandbox.change("apply", policy(DENIED), "policy.json");
    for (const one of forbidden) await until("what is allowed is seen", () => one.pump().length > 0);
    expect(forbidden.every(({ tries }) => tries > 1_000)).toBe(true);
  },
  TEST_DEADLINE_MS,
);

test(
  "what was switched to follows policy and new pods, outlives kill -9, and gives way to an edited configuration",
  async () => {
    await using node = await Node.open();
    const late = parseWorld("switch.yaml", WORLD).pods[2]!;
    expect((await node.manx("dataplane", "switch", "iptables")).status).toBe(0);
    expect(JSON.parse(readFileSync(node.recordFile, "utf8"))).toMatchObject({
      written: [{ use: "iptables" }],
      switched: { configured: ["nftables"], from: "nftables", to: { use: "iptables" } },
    });
    await node.sandbox.attach(late);
    expect(node.run("ipset", "save")).toMatch(/mx[0-9a-f]{11}/);
    expect(node.there()).toEqual(["iptables"]);

    await node.restart();
    expect(node.there()).toEqual(["iptables"]);
    const status = await node.manx("status");
    expect(status.output).toContain("iptables (switched: the configuration says nftables)");

    // Killed in the middle: both may be there, and nothing was decided.
    await node.kill();
    writeFileSync(node.recordFile, JSON.stringify({ version: 1, written: [{ use: "nftables" }, { use: "iptables" }] }));
    await node.start();
    await until("the one that was not configured is gone", () => node.there().join() === "nftables");
    await until("that is recorded", () => JSON.parse(readFileSync(node.recordFile, "utf8")).written.length === 1);

    // Switched, then edited: the configuration has the last word, whatever it says.
    expect((await node.manx("dataplane", "switch", "iptables")).status).toBe(0);
    await node.kill();
    const config = JSON.parse(readFileSync(node.configFile, "utf8"));
    writeFileSync(node.configFile, JSON.stringify({ ...config, dataplane: { use: "iptables" } }));
    await node.start();
    expect((await node.status()).dataplane).toMatchObject({ use: "iptables" });
    expect((await node.status()).dataplane.configured).toBeUndefined();
    expect(node.there()).toEqual(["iptables"]);
  },
  TEST_DEADLINE_MS,
);

test("what cannot be switched to is refused, and what was in force stays as it was", async () => {
  await using node = await Node.open();
  const before = node.run("nft", "list", "ruleset");
  const refused = async (name: string, config?: unknown) => {
    const file = join(node.directory, "slot.yaml");
    if (config !== undefined) writeFileSync(file, JSON.stringify(config));
    const { status, errors } = await node.manx(
      "dataplane",
      "switch",
      name,
      ...config === undefined ? [] : ["-c", file],
    );
    expect(status).toBe(1);
    return errors;
  };
  expect(await refused("nftables")).toContain("found nftables in force already");
  expect(await refused("iptable")).toContain('found "iptable", wanted one of');
  expect(await refused("/tmp/x.ts")).toContain("wanted the name of a built-in dataplane");
  expect(await refused("memory")).toContain("without nat, wanted all that nftables does");
  expect(await refused("iptables", { positions: "insert" })).toContain(
    "dataplane.config.positions: found an unknown key",
  );
  expect(await refused("iptables", { markMask: 0xff00 })).toContain("cut flows would go on");
  expect(node.there()).toEqual(["nftables"]);
  expect(node.run("nft", "list", "ruleset")).toBe(before);
  expect(existsSync(node.recordFile) && JSON.parse(readFileSync(node.recordFile, "utf8"))).toEqual({
    version: 1,
    written: [{ use: "nftables" }],
  });
}, TEST_DEADLINE_MS);

test(
  "diff tells what somebody else did while the daemon is held still, and says nothing once it is mended",
  async () => {
    await using node = await Node.open();
    const { pid } = await node.status();
    expect(await node.manx("dataplane", "diff")).toEqual({ status: 0, output: "", errors: "" });
    process.kill(pid, "SIGSTOP");
    const asked = node.manx("dataplane", "diff", "-o", "json");
    node.run("nft", "insert", "rule", "inet", "manx", "forward-to", "accept");
    process.kill(pid, "SIGCONT");
    // Whichever it came to first, the repair or the question.
    const { status, output } = await asked;
    const { dataplanes } = JSON.parse(output);
    expect(dataplanes[0].name).toBe("nftables");
    expect([[0, 0], [1, 1]]).toContainEqual([status, dataplanes[0].lines.length]);
    await until("it is mended", async () => (await node.manx("dataplane", "diff")).status === 0);
    await node.kill();
    expect((await node.manx("dataplane", "diff")).status).toBe(2);
  },
  TEST_DEADLINE_MS,
);
