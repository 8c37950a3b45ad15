/** Real sockets, in namespaces of their own. */
import { expect, test } from "bun:test";
import { createKernelDoor } from "../kernel/door.ts";
import { createNamespace, inNamespace } from "../kernel/netns.ts";
import { runIn } from "../kernel/testdata/tool_fixture.ts";
import { parseCidr } from "../model/address.ts";
import { persistentMap } from "../model/persistent_map.ts";
import type { ServiceState } from "../model/services.ts";
import type { Clock } from "../sdk/plugin.ts";
import { systemClock } from "./clock.ts";
import { CONNECTIONS_MAX, HealthChecks } from "./health_checks.ts";
import { silentLog } from "./log.ts";

const DEADLINE_MS = 5_000;

type Wanted = readonly (readonly [port: number, service: string, localEndpoints: number])[];
const stateOf = (wanted: Wanted, nodePortAddresses: readonly string[] = []): ServiceState => ({
  frontends: persistentMap(),
  healthChecks: persistentMap(
    wanted.map(([port, service, localEndpoints]) => [String(port), { port, service, localEndpoints }] as const),
  ),
  nodePortAddresses: nodePortAddresses.map(parseCidr),
  podNets: [],
});

/** A node with loopback alone, its health checks, and a client on it. */
class CheckedNode implements AsyncDisposable {
  readonly namespace = createNamespace("health checks test");
  /** Pauses that were asked for; each ends at once when `awake` is called. */
  readonly pausesMs: number[] = [];
  readonly checks: HealthChecks;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  #awake: () => void = () => {};

  constructor() {
    runIn(this.namespace, "ip", "link", "set", "lo", "up");
    const clock: Clock = {
      ...systemClock,
      sleep: (ms, signal) => {
        this.pausesMs.push(ms);
        return new Promise((resolve) => {
          this.#awake = resolve;
          signal.addEventListener("abort", () => resolve(), { once: true });
        });
      },
    };
    this.checks = new HealthChecks({ kernel: createKernelDoor(), clock, log: silentLog, namespace: this.namespace });
    this.#running = this.checks.run(this.#stop.signal);
  }

  /** The pause under way is over, and what was to be done after it is done. */
  async awake(): Promise<void> {
    const { length } = this.pausesMs;
    this.#awake();
    await until(
      "it pauses again or is content",
      () => this.pausesMs.length > length || this.checks.problems().length === 0,
    );
  }

  listening(): readonly number[] {
    const lines = runIn(this.namespace, "ss", "-Hltn").trim().split("\n").filter((line) => line !== "");
    return lines.map((line) => Number(/:(\d+)\s/.exec(line)![1])).sort();
  }

  /** What comes back until the connection ends; "" where it is reset, undefined where it is refused. */
  ask(port: number, { host = "127.0.0.1", request = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" } = {}) {
    const { promise, resolve } = Promise.withResolvers<string | undefined>();
    let text = "";
    inNamespace(this.namespace, () => {
      Bun.connect({
        hostname: host,
        port,
        socket: {
          open: (socket) => void socket.write(request),
          data: (_, bytes) => void (text += bytes.toString()),
          close: () => resolve(text),
          error: () => resolve(text),
          connectError: () => resolve(undefined),
        },
      }).catch(() => resolve(undefined));
    });
    return promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
    this.checks[Symbol.dispose]();
    expect(this.listening()).toEqual([]);
    this.namespace[Symbol.dispose]();
  }
}

async function until(what: string, condition: () => boolean): Promise<void> {
  const endMs = performance.now() + DEADLINE_MS;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`after ${DEADLINE_MS} ms it is still not so that ${what}`);
    await Bun.sleep(2);
  }
}

test("a port says over both families how many endpoints are here, by status, body and weight", async () => {
  await using node = new CheckedNode();
  node.checks.follow(stateOf([[30001, "default/web", 2], [30002, "shop/api", 0]]));
  expect(node.listening()).toEqual([30001, 30002]);
  for (const host of ["127.0.0.1", "::1"]) {
    expect(await node.ask(30001, { host })).toBe([
      "HTTP/1.1 200 OK",
      "Content-Type: application/json",
      "Content-Length: 68",
      "X-Content-Type-Options: nosniff",
      "X-Load-Balancing-Endpoint-Weight: 2",
      "Connection: close",
      "",
      '{"service":{"namespace":"default","name":"web"},"localEndpoints":2}\n',
    ].join("\r\n"));
    expect(await node.ask(30002, { host })).toMatch(/^HTTP\/1.1 503 [^]*"name":"api"},"localEndpoints":0}\n$/);
  }
});

test("what speaks HTTP understands the answer", async () => {
  await using node = new CheckedNode();
  node.checks.follow(stateOf([[30001, "default/web", 2]]));
  // Its own connection goes through ours: that of fetch would begin in another namespace.
  using relay = Bun.listen<{ text: string }>({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open: (socket) => void (socket.data = { text: "" }),
      async data(socket, bytes) {
        socket.data.text += bytes.toString();
        if (!socket.data.text.endsWith("\r\n\r\n")) return;
        socket.write(await node.ask(30001, { request: socket.data.text }) ?? "");
        socket.end();
      },
    },
  });
  const response = await fetch(`http://127.0.0.1:${relay.port}/healthz`);
  expect([response.status, await response.json()]).toEqual([
    200,
    { service: { namespace: "default", name: "web" }, localEndpoints: 2 },
  ]);
});

test("ports open and close with the state, and a new count needs no new socket", async () => {
  await using node = new CheckedNode();
  node.checks.follow(stateOf([[30001, "default/web", 1], [30002, "default/api", 1]]));
  const waiting = node.ask(30001, { request: "GET / HTTP/1.1\r\n" });
  const closing = node.ask(30002, { request: "GET / HTTP/1.1\r\n" });
  // Whoever comes later is answered later.
  expect([await node.ask(30001), await node.ask(30002)]).toEqual(Array(2).fill(expect.stringContaining("200 OK")));
  let isOver = false;
  void waiting.then(() => isOver = true);
  node.checks.follow(stateOf([[30001, "default/web", 0], [30003, "default/new", 1]]));
  expect(node.listening()).toEqual([30001, 30003]);
  expect(await closing).toBe("");
  expect(await node.ask(30001)).toStartWith("HTTP/1.1 503");
  expect(await node.ask(30002)).toBeUndefined();
  expect(isOver).toBe(false);
  node.checks.follow(stateOf([]));
  expect(node.listening()).toEqual([]);
  expect(await waiting).toBe("");
});

test("a port in use is a problem, tried again after pauses that grow to a bound, and had once it is free", async () => {
  await using node = new CheckedNode();
  const taken = inNamespace(node.namespace, () => Bun.listen({ hostname: "::", port: 30001, socket: { data() {} } }));
  node.checks.follow(stateOf([[30001, "default/web", 1], [30002, "default/api", 1]]));
  const problem = "health check node port 30001 of default/web: found it in use, wanted it free, trying again";
  expect(node.checks.problems()).toEqual([problem]);
  expect(await node.ask(30002)).toStartWith("HTTP/1.1 200");
  await until("it pauses", () => node.pausesMs.length === 1);
  for (let i = 0; i < 8; i++) await node.awake();
  expect(node.pausesMs).toEqual([500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
  expect(node.checks.problems()).toEqual([problem]);
  taken.stop(true);
  await node.awake();
  expect(node.checks.problems()).toEqual([]);
  expect(await node.ask(30001)).toStartWith("HTTP/1.1 200");
});

test("a port that cannot be had is forgotten with its service", async () => {
  await using node = new CheckedNode();
  using taken = inNamespace(node.namespace, () => Bun.listen({ hostname: "::", port: 30001, socket: { data() {} } }));
  node.checks.follow(stateOf([[30001, "default/web", 1]]));
  expect(node.checks.problems().length).toBe(1);
  node.checks.follow(stateOf([]));
  expect(node.checks.problems()).toEqual([]);
  taken.stop(true);
});

test("where node ports answer on some addresses only, so do these", async () => {
  await using node = new CheckedNode();
  runIn(node.namespace, "ip", "address", "add", "192.0.2.1/32", "dev", "lo");
  node.checks.follow(stateOf([[30001, "default/web", 1]], ["192.0.2.0/24", "::1/128"]));
  expect(await node.ask(30001, { host: "192.0.2.1" })).toStartWith("HTTP/1.1 200");
  expect(await node.ask(30001, { host: "::1" })).toStartWith("HTTP/1.1 200");
  expect(await node.ask(30001, { host: "127.0.0.1" })).toBe("");
});

test("a request in pieces is answered when it is whole; one without an end is not read on", async () => {
  await using node = new CheckedNode();
  node.checks.follow(stateOf([[30001, "default/web", 1]]));
  expect(await node.ask(30001, { request: "x".repeat(100_000) })).toBe("");
  const piecewise = Promise.withResolvers<string>();
  inNamespace(node.namespace, () => {
    Bun.connect({
      hostname: "127.0.0.1",
      port: 30001,
      socket: {
        open(socket) {
          socket.write("GET / HTTP/1.0\r\n\r");
          setTimeout(() => socket.write("\n"), 20);
        },
        data: (_, bytes) => piecewise.resolve(bytes.toString()),
        close: () => piecewise.resolve(""),
      },
    });
  });
  expect(await piecewise.promise).toStartWith("HTTP/1.1 200");
});

test("clients that say nothing cannot keep others out", async () => {
  await using node = new CheckedNode();
  node.checks.follow(stateOf([[30001, "default/web", 1]]));
  const silent = Array.from({ length: CONNECTIONS_MAX + 10 }, () => node.ask(30001, { request: "G" }));
  expect(await Promise.all(silent.slice(0, 5))).toEqual(Array(5).fill(""));
  expect(await node.ask(30001)).toStartWith("HTTP/1.1 200");
});
