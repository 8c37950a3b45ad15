/**
 * The product's central claim with real packets: a pod is never reachable without its policy, not even while it is being attached,
 * and what the policy allows works from the moment ADD has returned.
 *
 * A pod that is not allowed connects in a tight loop to an address that is about to be given to `target`, where a listener is
 * ready beforehand. A raw socket in target's namespace sees every SYN that arrives, so a lost answer hides nothing.
 */
import { beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { buildBinary } from "../../scripts/build.ts";
import {
  accept4,
  check,
  close,
  connect,
  Errno,
  getpeername,
  getsockoptInt,
  IPPROTO,
  listen,
  POLL,
  poll,
  SO,
  SOCK,
  SOL,
} from "../../src/kernel/libc.ts";
import { inNamespace, namespacePath } from "../../src/kernel/netns.ts";
import { inetSockaddr, parseInetSockaddr } from "../../src/kernel/sockaddr.ts";
import { Machine } from "../../src/lab/machine.ts";
import { drain, openBound, openSocket, resetOnClose } from "../../src/lab/probe_socket.ts";
import { Sandbox } from "../../src/lab/sandbox.ts";
import { parseScenario } from "../../src/lab/scenario_parser.ts";
import { childEnvironment } from "../../src/lab/self.ts";
import { podManifest } from "../../src/lab/world_manifest.ts";
import { type Address, addressFamily, type Family, formatAddress, parseAddress } from "../../src/model/address.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";

const TEST_DEADLINE_MS = 90_000;
const ADD_DEADLINE_MS = 20_000;
/** How long the loop goes on after ADD has returned. */
const WATCH_AFTER_MS = 300;
/** Below the first retransmission of a SYN, which comes after a second: in this time only the first one can have been answered. */
const FIRST_SYN_MS = 800;
const ATTEMPTS_MIN = 100;
/** While ADD itself runs, which may be quick. */
const ATTEMPTS_DURING_MIN = 20;
const ROUNDS = 10;
const CONTROL_ROUNDS = 2;
const BURST = 16;
/** Sockets in flight; the oldest is given up for the next. */
const IN_FLIGHT_MAX = 256;
const FAMILIES: readonly Family[] = [4, 6];
const PORT = 80;
const SYN = 0x02;
const ACK = 0x10;

let binary = "";
beforeAll(async () => void (binary = await buildBinary()));

const WORLD = `
scenario: the window of an attachment
world:
  families: [4, 6]
  nodes: [ { name: node } ]
  pods:
    - { name: friend, labels: { app: friend } }
    - { name: foe, labels: { app: foe } }
    - { name: target, labels: { app: target }, serves: [tcp/80] }
steps:
  - expect: friend -> target tcp/80 allow
`;

const policyFor = (allowed: readonly string[]): string =>
  JSON.stringify({
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name: "target", namespace: "default" },
    spec: {
      podSelector: { matchLabels: { app: "target" } },
      policyTypes: ["Ingress"],
      ingress: [{
        from: allowed.map((app) => ({ podSelector: { matchLabels: { app } } })),
        ports: [{ protocol: "TCP", port: PORT }],
      }],
    },
  });

/** What arrives in target's namespace, by the sender's address as text. */
class Listener implements Disposable {
  readonly syns = new Map<string, number>();
  readonly accepts = new Map<string, number>();
  readonly #listening: readonly number[];
  readonly #raw: readonly (readonly [Family, number])[];

  constructor(namespace: NetworkNamespace) {
    const any = { 4: parseAddress("0.0.0.0"), 6: parseAddress("::") };
    this.#listening = FAMILIES.map((family) => {
      const fd = openBound(namespace, "stream", 0, any[family], PORT);
      check("listen", listen(fd, 4_096));
      return fd;
    });
    this.#raw = FAMILIES.map((family) => [family, openSocket(namespace, family, "raw", IPPROTO.TCP)]);
  }

  /** Takes in all there is. */
  look(): void {
    for (const fd of this.#listening) {
      const next = () => accept4(fd, SOCK.NONBLOCK | SOCK.CLOEXEC);
      for (let peer = next(); peer >= 0; peer = next()) {
        try {
          count(this.accepts, formatAddress(parseInetSockaddr(getpeername(peer)).address));
        } catch {
          // Reset since: who it was is known from its SYN.
        }
        close(peer);
      }
    }
    for (const [family, fd] of this.#raw) {
      drain(fd, (data, from) => {
        // Raw IPv4 sockets see the IP header, IPv6 ones do not: raw(7).
        const tcp = family === 4 ? data.subarray((data[0]! & 0xf) * 4) : data;
        const toPort = tcp[2]! << 8 | tcp[3]!;
        if (toPort !== PORT || (tcp[13]! & (SYN | ACK)) !== SYN) return;
        count(this.syns, formatAddress(parseInetSockaddr(from()).address));
      });
    }
  }

  of(addresses: readonly Address[]): Seen {
    const sum = (counts: ReadonlyMap<string, number>) =>
      addresses.map((address) => counts.get(formatAddress(address)) ?? 0);
    return { syns: sum(this.syns), accepts: sum(this.accepts) };
  }

  [Symbol.dispose](): void {
    for (const fd of this.#listening) close(fd);
    for (const [, fd] of this.#raw) close(fd);
  }
}

/** IPv4 first. */
interface Seen {
  readonly syns: readonly number[];
  readonly accepts: readonly number[];
}

const count = (counts: Map<string, number>, key: string) => void counts.set(key, (counts.get(key) ?? 0) + 1);

/** A connection attempt under way, or undefined where it was refused at once. */
function begin(from: NetworkNamespace, to: Address): number | undefined {
  const fd = openSocket(from, addressFamily(to), "stream", 0);
  resetOnClose(fd);
  const begun = connect(fd, inetSockaddr({ address: to, port: PORT }));
  if (begun >= 0 || begun === -Errno.EINPROGRESS) return fd;
  close(fd);
  return undefined;
}

/** Connects in a tight loop, IPv4 and IPv6 in turn; gives the event loop its turns in between. */
class Hammer implements Disposable {
  /** Attempts in each family. */
  readonly attempts = [0, 0];
  completed = 0;
  readonly #from: NetworkNamespace;
  readonly #to: readonly Address[];
  #flying: number[] = [];

  constructor(from: NetworkNamespace, to: readonly Address[]) {
    this.#from = from;
    this.#to = to;
  }

  /** Until `done`, or `deadlineMs` from now. */
  async run(listener: Listener, done: () => boolean, deadlineMs: number): Promise<void> {
    const endMs = performance.now() + deadlineMs;
    while (!done()) {
      if (performance.now() > endMs) throw new Error(`the loop had no end after ${deadlineMs} ms`);
      for (let i = 0; i < BURST; i++) {
        const which = i % this.#to.length;
        const fd = begin(this.#from, this.#to[which]!);
        this.attempts[which]!++;
        if (fd !== undefined) this.#flying.push(fd);
      }
      if (this.#flying.length > IN_FLIGHT_MAX) this.#land(this.#flying.length - IN_FLIGHT_MAX);
      listener.look();
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  #land(amount: number): void {
    const landing = this.#flying.splice(0, amount);
    for (const [i, events] of poll(landing.map((fd) => ({ fd, events: POLL.OUT })), 0).entries()) {
      const fd = landing[i]!;
      if ((events & POLL.OUT) !== 0 && (events & (POLL.ERR | POLL.HUP)) === 0) this.completed++;
      close(fd);
    }
  }

  [Symbol.dispose](): void {
    this.#land(this.#flying.length);
  }
}

/** One attempt. What came of its first SYN; waits no longer than that can take. */
function connectOnce(from: NetworkNamespace, to: Address): string {
  const fd = begin(from, to);
  if (fd === undefined) return "refused at once";
  try {
    const [events] = poll([{ fd, events: POLL.OUT }], FIRST_SYN_MS);
    if (events === 0) return "silence";
    const error = getsockoptInt(fd, SOL.SOCKET, SO.ERROR);
    return error === 0 ? "connected" : `errno ${error}`;
  } finally {
    close(fd);
  }
}

class Cluster implements AsyncDisposable {
  readonly sandbox: Sandbox;
  readonly #directory: string;

  private constructor(sandbox: Sandbox, directory: string) {
    this.sandbox = sandbox;
    this.#directory = directory;
  }

  /** `friend` and `foe` attached, `target` known and yet to be attached. */
  static async open(): Promise<Cluster> {
    const directory = mkdtempSync("/tmp/manx-test-");
    const { world } = parseScenario("window.yaml", WORLD);
    const [friend, foe, target] = world.pods;
    try {
      const sandbox = await Sandbox.open({ ...world, pods: [friend!, foe!] }, {
        directory,
        self: [binary],
        dataplane: "nftables",
      });
      const cluster = new Cluster(sandbox, directory);
      await sandbox.change("apply", JSON.stringify(podManifest(target!)), "target.json");
      return cluster;
    } catch (error) {
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  /** Gives the addresses of the result. */
  async cni(
    verb: "ADD" | "DEL",
    container: string,
    target: Machine,
    ips: readonly Address[],
  ): Promise<readonly string[]> {
    const config = {
      cniVersion: "1.1.0",
      name: "manx",
      type: "manx",
      socket: join(this.#directory, "n0", "manx.sock"),
      args: { cni: { ips: ips.map(formatAddress) } },
    };
    const child = inNamespace(this.sandbox.nodes.get("node")!.namespace, () =>
      Bun.spawn({
        cmd: [binary],
        env: childEnvironment({
          CNI_COMMAND: verb,
          CNI_CONTAINERID: container,
          CNI_NETNS: namespacePath(target.namespace),
          CNI_IFNAME: "eth0",
          CNI_PATH: "/opt/cni/bin",
          CNI_ARGS: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=target",
        }),
        stdin: new TextEncoder().encode(JSON.stringify(config)),
        stdout: "pipe",
        stderr: "inherit",
      }));
    const [output, status] = await Promise.all([new Response(child.stdout).text(), child.exited]);
    expect(status, `${verb}: ${output}`).toBe(0);
    if (output.trim() === "") return [];
    const { ips: given = [] } = JSON.parse(output) as { readonly ips?: readonly { readonly address: string }[] };
    return given.map(({ address }) => address.split("/")[0]!);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.sandbox[Symbol.asyncDispose]();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

interface Round {
  /** Attempts of `foe` in each family: before ADD was called, while it ran, after it had returned. */
  readonly attempts: readonly (readonly number[])[];
  readonly completed: number;
  readonly foe: Seen;
  readonly friend: Seen;
  /** Of friend's one attempt in each family. */
  readonly friendFirst: readonly string[];
}

/** One attachment of `target` under fire, and its end. */
async function attachUnderFire(cluster: Cluster, round: number): Promise<Round> {
  const { sandbox } = cluster;
  // Every address is given twice, the second time while what was decided about the first may linger.
  const host = 10 + (round >> 1);
  const ips = [parseAddress(`10.244.200.${host}`), parseAddress(`fd00:10:244::c8:${host.toString(16)}`)];
  const container = `window-${round}`;
  using target = new Machine("target", "pod target of the sandbox");
  target.setSysctls({ "ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0" });
  using listener = new Listener(target.namespace);
  using hammer = new Hammer(sandbox.pods.get("default/foe")!.namespace, ips);

  const enough = (since: readonly number[]) => hammer.attempts.every((n, i) => n - since[i]! > ATTEMPTS_MIN);
  await hammer.run(listener, () => enough([0, 0]), ADD_DEADLINE_MS);
  const before = [...hammer.attempts];

  let given: readonly string[] | undefined, failure: unknown;
  const friend = sandbox.pods.get("default/friend")!.namespace;
  let during: readonly number[] = before, returnedMs = 0;
  let friendFirst: readonly string[] = [];
  const add = cluster.cni("ADD", container, target, ips).then((addresses) => {
    returnedMs = performance.now();
    during = [...hammer.attempts];
    // At once, with foe's attempts still in flight.
    friendFirst = ips.map((to) => connectOnce(friend, to));
    given = addresses;
  }).catch((error) => void (failure = error));
  await hammer.run(listener, () => given !== undefined || failure !== undefined, ADD_DEADLINE_MS);
  await add;
  if (failure !== undefined) throw failure;
  expect(given).toEqual(ips.map(formatAddress));
  await hammer.run(
    listener,
    () => performance.now() - returnedMs > WATCH_AFTER_MS && enough(during),
    ADD_DEADLINE_MS,
  );
  listener.look();
  const result: Round = {
    attempts: [
      before,
      during.map((n, i) => n - before[i]!),
      hammer.attempts.map((n, i) => n - during[i]!),
    ],
    completed: hammer.completed,
    foe: listener.of(sandbox.podAddresses("default/foe")),
    friend: listener.of(sandbox.podAddresses("default/friend")),
    friendFirst,
  };
  await cluster.cni("DEL", container, target, ips);
  return result;
}

const atLeast = (counts: readonly number[], minimum: number) => counts.every((n) => n >= minimum);

test(
  "who is not allowed never gets a packet to a pod being attached, and who is allowed gets through at the first attempt",
  async () => {
    await using cluster = await Cluster.open();
    await cluster.sandbox.change("apply", policyFor(["friend"]), "policy.json");
    for (let round = 0; round < ROUNDS; round++) {
      const result = await attachUnderFire(cluster, round);
      const seen = `round ${round}: ${JSON.stringify(result)}`;
      expect(result.foe, seen).toEqual({ syns: [0, 0], accepts: [0, 0] });
      expect(result.completed, seen).toBe(0);
      expect(result.friendFirst, seen).toEqual(["connected", "connected"]);
      expect(result.friend.syns, seen).toEqual([1, 1]);
      const [before, during, after] = result.attempts;
      expect(atLeast(before!, ATTEMPTS_MIN + 1), seen).toBe(true);
      expect(atLeast(during!, ATTEMPTS_DURING_MIN), seen).toBe(true);
      expect(atLeast(after!, ATTEMPTS_MIN + 1), seen).toBe(true);
    }
  },
  TEST_DEADLINE_MS,
);

test("control: the same loop does get through, and is seen, where the policy allows it", async () => {
  await using cluster = await Cluster.open();
  await cluster.sandbox.change("apply", policyFor(["friend", "foe"]), "policy.json");
  for (let round = 0; round < CONTROL_ROUNDS; round++) {
    const result = await attachUnderFire(cluster, round);
    const seen = `round ${round}: ${JSON.stringify(result)}`;
    expect(atLeast(result.foe.syns, 1), seen).toBe(true);
    expect(atLeast(result.foe.accepts, 1), seen).toBe(true);
    expect(result.completed, seen).toBeGreaterThan(0);
    expect(result.friendFirst, seen).toEqual(["connected", "connected"]);
  }
}, TEST_DEADLINE_MS);
