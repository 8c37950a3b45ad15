import { expect, test } from "bun:test";
import { parseAddress } from "../../model/address.ts";
import type { DesiredState, PolicyList } from "../../model/desired.ts";
import { persistentMap } from "../../model/persistent_map.ts";
import type { LoggedPacket, LostPackets } from "../../sdk/dataplane.ts";
import { UnavailableError } from "../../sdk/errors.ts";
import type { Clock } from "../../sdk/plugin.ts";
import type { Counters } from "../explain/counter.ts";
import { silentLog } from "../log.ts";
import { LOOK_MS } from "./denied_totals.ts";
import { READER_QUEUE_MAX } from "./log_reader.ts";
import type { LogEvent, LogQuery, NameView, PacketEvent } from "./packet_log_view.ts";
import { createPacketLogs, KEPT_MAX, type PacketLogs, READ_PER_SECOND_MAX, READERS_MAX } from "./packet_logs.ts";

/** 2026-03-01T12:00:00.000Z. */
const START_MS = Date.UTC(2026, 2, 1, 12);

/** Time passes when it is told to. */
class TestClock implements Clock {
  #nowMs = 0;
  readonly #sleepers = new Set<{ readonly atMs: number; readonly wake: () => void }>();

  nowMs = () => this.#nowMs;
  wallMs = () => START_MS + this.#nowMs;
  sleep = (ms: number, signal: AbortSignal): Promise<void> =>
    new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason);
      const sleeper = { atMs: this.#nowMs + ms, wake: resolve };
      this.#sleepers.add(sleeper);
      signal.addEventListener("abort", () => (this.#sleepers.delete(sleeper), reject(signal.reason)), { once: true });
    });

  /** Wakes whoever is due, in order, and lets everything run that then can. */
  async pass(ms: number): Promise<void> {
    const untilMs = this.#nowMs + ms;
    for (;;) {
      await idle();
      const next = [...this.#sleepers].sort((a, b) => a.atMs - b.atMs)[0];
      if (next === undefined || next.atMs > untilMs) break;
      this.#sleepers.delete(next);
      this.#nowMs = Math.max(this.#nowMs, next.atMs);
      next.wake();
    }
    this.#nowMs = untilMs;
  }
}

/** Promises that follow from each other, a few hundred deep, are through after it. */
const idle = () => new Promise<void>((resolve) => setImmediate(resolve));

/** A dataplane that logs what the test says. */
class Source {
  readonly #queue: (LoggedPacket | LostPackets | Error)[] = [];
  #wake = () => {};
  opened = 0;
  taken = 0;
  /** Thrown when it is asked for logs. */
  refusal: Error | undefined;

  push(...items: readonly (LoggedPacket | LostPackets | Error)[]): void {
    this.#queue.push(...items);
    this.#wake();
  }

  async *logs(signal: AbortSignal): AsyncGenerator<LoggedPacket | LostPackets> {
    this.opened++;
    if (this.refusal !== undefined) throw this.refusal;
    signal.addEventListener("abort", () => this.#wake(), { once: true });
    while (!signal.aborted) {
      const item = this.#queue.shift();
      if (item instanceof Error) throw item;
      if (item !== undefined) {
        this.taken++;
        yield item;
      } else await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }
}

const OWNERS: Readonly<Record<string, NameView>> = {
  "10.0.0.1": { kind: "pod", name: "prod/client" },
  "10.0.0.2": { kind: "pod", name: "prod/server" },
  "192.0.2.1": { kind: "node", name: "n1" },
};

const DESIRED: DesiredState = {
  generation: 1,
  sets: persistentMap(),
  workloads: persistentMap(),
  hostEndpoints: persistentMap(),
  failsafe: { inbound: [], outbound: [] },
  masquerade: { sources: [], inside: [] },
};

interface World extends AsyncDisposable {
  readonly clock: TestClock;
  readonly source: Source;
  readonly logs: PacketLogs;
  readonly warnings: string[];
}

function start(counters?: Counters, desired: DesiredState = DESIRED): World {
  const clock = new TestClock(), source = new Source(), warnings: string[] = [];
  const owners = new Map(Object.entries(OWNERS).map(([text, owner]) => [parseAddress(text), owner]));
  const logs = createPacketLogs({
    dataplanes: [{ name: "test", instance: { logs: (signal) => source.logs(signal) } }],
    desired: () => desired,
    ...counters === undefined ? {} : { counters },
    names: {
      ready: () => undefined,
      nameOf: (address) => owners.get(address),
      behind: (link) => link === "mx2" ? { id: "w2", name: OWNERS["10.0.0.2"]! } : undefined,
    },
    log: { ...silentLog, warn: (message, fields) => void warnings.push(`${message}: ${fields?.error}`) },
    clock,
  });
  const stop = new AbortController();
  const running = logs.run(stop.signal);
  return {
    clock,
    source,
    logs,
    warnings,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
    },
  };
}

const PREFIX = "manx deny ingress tier default rule 3 NetworkPolicy.networking.k8s.io/prod/web";

function packet(
  { from = "10.0.0.1", to = "10.0.0.2", port = 81, sourcePort = 40_000, ...more }:
    & Partial<Omit<LoggedPacket, "packet">>
    & { readonly from?: string; readonly to?: string; readonly port?: number; readonly sourcePort?: number } = {},
): LoggedPacket {
  const policy = "NetworkPolicy.networking.k8s.io/prod/web";
  return {
    atMs: START_MS,
    verdict: "deny",
    direction: "ingress",
    decision: { by: "rule", tier: "default", policy, origin: { policy, direction: "ingress", index: 3 } },
    prefix: PREFIX,
    packet: {
      protocol: 6,
      source: parseAddress(from),
      destination: parseAddress(to),
      sourcePort,
      destinationPort: port,
    },
    outInterface: "mx2",
    lengthBytes: 60,
    ...more,
  };
}

/** What can be read now, or until there are `count`. */
async function read(logs: PacketLogs, query: LogQuery = {}, count = Infinity): Promise<LogEvent[]> {
  const events: LogEvent[] = [];
  for await (const event of logs.read(query, new AbortController().signal)) {
    events.push(event);
    if (events.length >= count) break;
  }
  return events;
}

/** `12:00:00.000 10.0.0.1:40000 > 10.0.0.2:81 x1`, `denied 9 told 3`, `lost 3`, `skipped 2`. */
function text(event: LogEvent): string {
  switch (event.event) {
    case "packet": {
      const { time, source, destination, packets } = event;
      const ends = [source, destination].map(({ address, port }) => `${address}:${port}`).join(" > ");
      return `${time.slice(11, 23)} ${ends} x${packets}`;
    }
    case "denied":
      return `denied ${event.packets} told ${event.told}`;
    case "lost":
      return `lost ${event.packets}`;
    case "skipped":
      return `skipped ${event.events}`;
  }
}

test("a packet is told with the names of its ends, the endpoint whose policy it was, policy, rule and direction", async () => {
  await using world = start();
  world.source.push(packet());
  await world.clock.pass(0);
  expect(await read(world.logs)).toEqual([{
    event: "packet",
    time: "2026-03-01T12:00:00.000Z",
    packets: 1,
    verdict: "deny",
    direction: "ingress",
    protocol: "tcp",
    source: { address: "10.0.0.1", port: 40_000, owner: { kind: "pod", name: "prod/client" } },
    destination: { address: "10.0.0.2", port: 81, owner: { kind: "pod", name: "prod/server" } },
    endpoint: { kind: "pod", name: "prod/server" },
    by: "rule",
    tier: "default",
    policy: "NetworkPolicy.networking.k8s.io/prod/web",
    rule: 3,
    outInterface: "mx2",
    lengthBytes: 60,
  }]);
});

test("other decisions, strangers, protocols without ports and unknown prefixes are told as what they are", async () => {
  await using world = start();
  const { packet: tcp } = packet();
  const icmp = { protocol: 1, source: tcp.source, destination: tcp.destination, icmp: { type: 8, code: 0 } };
  world.source.push(
    packet({ decision: { by: "tier default", tier: "default" }, prefix: "a" }),
    packet({ decision: { by: "no profile" }, prefix: "b", from: "203.0.113.9" }),
    { ...packet({ decision: undefined, prefix: "theirs\x1b" }), packet: icmp },
    { ...packet({ prefix: "d" }), packet: { ...icmp, protocol: 47, icmp: undefined } as LoggedPacket["packet"] },
    packet({ prefix: "e", atMs: Number.NaN, outInterface: "eth9" }),
  );
  await world.clock.pass(0);
  const events = await read(world.logs) as PacketEvent[];
  expect(events[0]).toMatchObject({ by: "tier default", tier: "default" });
  expect(events[0]).not.toHaveProperty("policy");
  expect(events[1]).toMatchObject({ by: "no profile", source: { address: "203.0.113.9", port: 40_000 } });
  expect(events[1]!.source).not.toHaveProperty("owner");
  expect(events[2]).toMatchObject({
    by: "unknown",
    prefix: "theirs\x1b",
    protocol: "icmp",
    icmp: { type: 8, code: 0 },
  });
  expect(events[3]).toMatchObject({ protocol: "47" });
  // A time that is none is now.
  expect(events[4]).toMatchObject({ time: "2026-03-01T12:00:00.000Z" });
  expect(events[4]).not.toHaveProperty("endpoint");
});

test("packets of one flow and decision are one line at once and one for the rest of each second", async () => {
  await using world = start();
  const later = (ms: number) => packet({ atMs: START_MS + ms });
  world.source.push(packet(), later(1), later(2), packet({ sourcePort: 40_001 }), packet({ prefix: "other" }));
  await world.clock.pass(0);
  expect((await read(world.logs)).map(text)).toEqual([
    "12:00:00.000 10.0.0.1:40000 > 10.0.0.2:81 x1",
    "12:00:00.000 10.0.0.1:40001 > 10.0.0.2:81 x1",
    "12:00:00.000 10.0.0.1:40000 > 10.0.0.2:81 x1",
  ]);
  await world.clock.pass(1_000);
  expect((await read(world.logs)).slice(3).map(text)).toEqual(["12:00:00.002 10.0.0.1:40000 > 10.0.0.2:81 x2"]);
  // It goes on: told once a second.
  world.source.push(later(1_100), later(1_200), later(1_300));
  await world.clock.pass(1_000);
  expect((await read(world.logs)).slice(4).map(text)).toEqual(["12:00:01.300 10.0.0.1:40000 > 10.0.0.2:81 x3"]);
  await world.clock.pass(5_000);
  expect(await read(world.logs)).toHaveLength(5);
  // A second without any: the next one is the first again.
  world.source.push(later(9_000));
  await world.clock.pass(0);
  expect((await read(world.logs)).slice(5).map(text)).toEqual(["12:00:09.000 10.0.0.1:40000 > 10.0.0.2:81 x1"]);
  expect(world.logs.status()).toMatchObject({ packets: 9, kept: 6, lost: 0 });
});

test("lost packets are told once a second, and counted", async () => {
  await using world = start();
  world.source.push({ lost: 5 }, packet(), { lost: 7 });
  await world.clock.pass(1_000);
  expect((await read(world.logs)).map(text)).toEqual(["12:00:00.000 10.0.0.1:40000 > 10.0.0.2:81 x1", "lost 12"]);
  world.source.push({ lost: 1 });
  await world.clock.pass(1_000);
  expect((await read(world.logs)).slice(2).map(text)).toEqual(["lost 1"]);
  expect(world.logs.status().lost).toBe(13);
});

test("what is kept can be asked for by time, by pod, by verdict, and its end by number", async () => {
  await using world = start();
  world.source.push(
    packet({ sourcePort: 1 }),
    packet({ sourcePort: 2, from: "192.0.2.1", to: "10.0.0.1", verdict: "log", outInterface: "mx1" }),
    packet({ sourcePort: 3, from: "203.0.113.1", to: "203.0.113.2", outInterface: "eth0" }),
    // At the server's link, by whatever address.
    packet({ sourcePort: 4, from: "203.0.113.1", to: "203.0.113.2" }),
    packet({ sourcePort: 5, atMs: START_MS + 60_000 }),
  );
  await world.clock.pass(90_000);
  const ports = async (query: LogQuery) =>
    (await read(world.logs, query)).map((event) => (event as PacketEvent).source.port);
  expect(await ports({})).toEqual([1, 2, 3, 4, 5]);
  expect(await ports({ sinceMs: 60_000 })).toEqual([5]);
  expect(await ports({ sinceMs: 29_999 })).toEqual([]);
  expect(await ports({ limit: 2 })).toEqual([4, 5]);
  expect(await ports({ limit: 0 })).toEqual([]);
  expect(await ports({ limit: 99 })).toEqual([1, 2, 3, 4, 5]);
  expect(await ports({ pod: "prod/client" })).toEqual([1, 2, 5]);
  expect(await ports({ pod: "prod/server" })).toEqual([1, 4, 5]);
  expect(await ports({ pod: "n1" })).toEqual([]);
  expect(await ports({ verdict: "log" })).toEqual([2]);
  expect(await ports({ verdict: "deny", pod: "prod/client", limit: 1 })).toEqual([5]);
});

test("only the last so many are kept", async () => {
  await using world = start();
  for (let i = 0; i < KEPT_MAX + 10; i++) {
    world.source.push(packet({ sourcePort: i }));
    if (i % READ_PER_SECOND_MAX === 0) await world.clock.pass(2_000);
  }
  await world.clock.pass(10_000);
  const events = await read(world.logs) as PacketEvent[];
  expect(events).toHaveLength(KEPT_MAX);
  expect([events[0]!.source.port, events.at(-1)!.source.port]).toEqual([10, KEPT_MAX + 9]);
  expect(world.logs.status().kept).toBe(KEPT_MAX);
});

test("who follows gets what is kept, then what comes, as it comes", async () => {
  await using world = start();
  world.source.push(packet({ sourcePort: 1 }));
  await world.clock.pass(0);
  const reading = read(world.logs, { follow: true, verdict: "deny" }, 3);
  await world.clock.pass(10);
  expect(world.logs.status().readers).toBe(1);
  world.source.push(packet({ sourcePort: 2 }), packet({ sourcePort: 9, verdict: "log" }), packet({ sourcePort: 3 }));
  await world.clock.pass(10);
  expect((await reading).map((event) => (event as PacketEvent).source.port)).toEqual([1, 2, 3]);
  expect(world.logs.status().readers).toBe(0);
});

test("a reader that does not read skips, is told how much and where, and holds up nobody", async () => {
  await using world = start();
  const stop = new AbortController();
  const slow = world.logs.read({ follow: true }, stop.signal);
  const quick = read(world.logs, { follow: true }, READER_QUEUE_MAX + 101);
  let sent = 0;
  const send = async (count: number) => {
    for (let i = 0; i < count; i++) world.source.push(packet({ sourcePort: sent++ }));
    await world.clock.pass(5_000);
  };
  await send(READER_QUEUE_MAX + 100);
  const taken: LogEvent[] = [];
  const take = async (count: number) => {
    for (let i = 0; i < count; i++) taken.push((await slow.next()).value!);
  };
  await take(1);
  await send(1);
  await take(READER_QUEUE_MAX + 1);
  expect(taken.map((event) => event.event === "packet" ? event.source.port! : event)).toEqual([
    ...Array.from({ length: READER_QUEUE_MAX }, (_, i) => i),
    { event: "skipped", events: 100 },
    READER_QUEUE_MAX + 100,
  ]);
  expect((await quick).map((event) => (event as PacketEvent).source.port)).toEqual(
    Array.from({ length: READER_QUEUE_MAX + 101 }, (_, i) => i),
  );
  expect(world.logs.status()).toMatchObject({ skipped: 100, readers: 1 });
  // At the end of all that was sent as well.
  await send(READER_QUEUE_MAX + 1);
  taken.length = 0;
  await take(READER_QUEUE_MAX + 1);
  expect(taken.at(-1)).toEqual({ event: "skipped", events: 1 });
  const last = slow.next();
  stop.abort();
  expect(await last).toEqual({ value: undefined, done: true });
  expect(world.logs.status().readers).toBe(0);
});

test("so many readers and no more; one that leaves makes room", async () => {
  await using world = start();
  const stops = Array.from({ length: READERS_MAX }, () => new AbortController());
  const reading = stops.map((stop) => world.logs.read({ follow: true }, stop.signal).next());
  expect(() => world.logs.read({ follow: true }, new AbortController().signal)).toThrow(UnavailableError);
  stops[0]!.abort();
  await reading[0];
  stops.push(new AbortController());
  reading.push(world.logs.read({ follow: true }, stops.at(-1)!.signal).next());
  expect(world.logs.status().readers).toBe(READERS_MAX);
  world.logs.close();
  for (const next of reading) expect(await next).toEqual({ value: undefined, done: true });
  expect(world.logs.status().readers).toBe(0);
  expect(() => world.logs.read({}, new AbortController().signal)).toThrow("the daemon is stopping");
});

test("a reader that asked and never began is forgotten when its request ends", async () => {
  await using world = start();
  const stop = new AbortController();
  world.logs.read({ follow: true }, stop.signal);
  expect(world.logs.status().readers).toBe(1);
  stop.abort();
  expect(world.logs.status().readers).toBe(0);
});

test("of a flood no more than so much is read in a second", async () => {
  await using world = start();
  for (let i = 0; i < READ_PER_SECOND_MAX * 3; i++) world.source.push(packet({ sourcePort: i }));
  await world.clock.pass(0);
  expect(world.source.taken).toBe(READ_PER_SECOND_MAX);
  await world.clock.pass(999);
  expect(world.source.taken).toBe(READ_PER_SECOND_MAX);
  await world.clock.pass(1);
  expect(world.source.taken).toBe(READ_PER_SECOND_MAX * 2);
  await world.clock.pass(1_000);
  expect(world.source.taken).toBe(READ_PER_SECOND_MAX * 3);
});

test("logs that cannot be had are a problem, asked for again with growing pauses, and none when they are there", async () => {
  await using world = start();
  await world.clock.pass(1_000);
  expect([world.source.opened, world.logs.status().problems]).toEqual([1, []]);
  world.source.refusal = new UnavailableError("group 86 is somebody else's");
  world.source.push(new Error("the socket broke"));
  await world.clock.pass(0);
  expect(world.logs.status().problems).toEqual(["dataplane test: the socket broke"]);
  // After 1, 2, 4, 8, 16, 30 and 30 seconds.
  await world.clock.pass(1_000);
  expect(world.logs.status().problems).toEqual(["dataplane test: group 86 is somebody else's"]);
  await world.clock.pass(90_000);
  expect(world.source.opened).toBe(1 + 7);
  expect(world.warnings).toEqual([
    "dataplane test: no logged packets: the socket broke",
    "dataplane test: no logged packets: group 86 is somebody else's",
  ]);
  world.source.refusal = undefined;
  await world.clock.pass(31_000);
  expect(world.logs.status().problems).toEqual([]);
  world.source.push(packet());
  await world.clock.pass(0);
  expect(await read(world.logs)).toHaveLength(1);
});

test("a dataplane without logs is left alone", async () => {
  const logs = createPacketLogs({
    dataplanes: [{ name: "none", instance: {} }],
    desired: () => DESIRED,
    names: { ready: () => undefined, nameOf: () => undefined, behind: () => undefined },
    log: silentLog,
    clock: new TestClock(),
  });
  const stop = new AbortController();
  const running = logs.run(stop.signal);
  expect(await read(logs)).toEqual([]);
  stop.abort();
  await running;
});

// ------------------------------------------------------------------------------------------------- what was not logged

const POLICY = "NetworkPolicy.networking.k8s.io/prod/web";
const list = (id: string): PolicyList => ({
  id,
  tiers: [{ name: "default", policies: [{ id: POLICY, staged: false, rules: [] }], defaultAction: "deny" }],
  profiles: [],
  end: "deny",
});
/** The server's ingress is judged by `web`, the host endpoint on eth0 by `host`. */
const JUDGED: DesiredState = {
  ...DESIRED,
  workloads: persistentMap([
    ["w2", { id: "w2", interfaceName: "mx2", addresses: [], ingress: list("web"), egress: list("out") }],
  ]),
  hostEndpoints: persistentMap([
    ["h", { id: "h", interfaces: ["eth0"], ingress: list("host"), egress: list("host-out") }],
  ]),
};

/** Counts what it is told to have counted, by list, and who asked. */
function counting(packets: Readonly<Record<string, number>>, sharedWith = 0) {
  const asked: string[] = [];
  const counters: Counters = {
    async of(list, decision) {
      asked.push(`${list.id} ${decision.by}`);
      const found = packets[list.id];
      return found === undefined ? { absent: "not in force" } : { packets: found, bytes: 0, sharedWith };
    },
  };
  return { counters, asked };
}

const flood = (count: number, more: Parameters<typeof packet>[0] = {}) =>
  Array.from({ length: count }, (_, i) => packet({ ...more, sourcePort: i }));
const denials = async (logs: PacketLogs) => (await read(logs)).filter(({ event }) => event === "denied");

test("of a decision that logs as much as it may, it is told how much it denied in all", async () => {
  const { counters, asked } = counting({ web: 100_000 });
  await using world = start(counters, JUDGED);
  world.source.push(...flood(26));
  await world.clock.pass(LOOK_MS);
  expect(await denials(world.logs)).toEqual([{
    event: "denied",
    time: "2026-03-01T12:00:05.000Z",
    direction: "ingress",
    by: "rule",
    tier: "default",
    policy: POLICY,
    rule: 3,
    packets: 100_000,
    told: 26,
  }]);
  // It is over: nothing more is asked.
  await world.clock.pass(10 * LOOK_MS);
  expect(asked).toEqual(["web rule"]);
  // Repeats of one flow are as many packets.
  world.source.push(...Array.from({ length: 30 }, () => packet()));
  await world.clock.pass(LOOK_MS);
  expect((await denials(world.logs)).map(text)).toEqual(["denied 100000 told 26", "denied 100000 told 56"]);
});

test("nothing is said of decisions that log little, that have no counter or a shared one, or denied no more than was told", async () => {
  for (
    const [packets, count, sharedWith, asks] of [
      [{ web: 100 }, 19, 0, 0],
      [{ web: 26 }, 26, 0, 1],
      [{ web: 25 }, 26, 0, 1],
      [{ web: 100 }, 26, 1, 1],
      [{}, 26, 0, 1],
    ] as const
  ) {
    const { counters, asked } = counting(packets, sharedWith);
    await using world = start(counters, JUDGED);
    world.source.push(...flood(count));
    await world.clock.pass(2 * LOOK_MS);
    expect([asked.length, await denials(world.logs)]).toEqual([asks, []]);
  }
});

test("packets that only Log rules matched, and those of unknown judges, ask nothing", async () => {
  const { counters, asked } = counting({ web: 100 });
  await using world = start(counters, JUDGED);
  world.source.push(
    ...flood(30, { verdict: "log" }),
    ...flood(30, { outInterface: "eth9" }),
    ...flood(30, { decision: undefined }),
  );
  await world.clock.pass(LOOK_MS);
  expect(asked).toEqual([]);
});

test("a default's total is that of the endpoint, be it a workload or the host", async () => {
  const { counters, asked } = counting({ web: 500, host: 700 });
  await using world = start(counters, JUDGED);
  const end = { decision: { by: "tier default", tier: "default" }, prefix: "default" } as const;
  world.source.push(...flood(20, end), ...flood(20, { ...end, inInterface: "eth0", outInterface: "eth9" }));
  await world.clock.pass(LOOK_MS);
  expect(asked).toEqual(["web tier default", "host tier default"]);
  expect(await denials(world.logs)).toMatchObject([
    { by: "tier default", endpoint: { kind: "pod", name: "prod/server" }, packets: 500, told: 20 },
    { by: "tier default", endpoint: { kind: "hostEndpoint", name: "h" }, packets: 700, told: 20 },
  ]);
  expect(await read(world.logs, { pod: "prod/client", limit: 2 })).toMatchObject([{ event: "packet" }, {
    event: "packet",
  }]);
  expect(await read(world.logs, { pod: "prod/server", limit: 1 })).toMatchObject([{ event: "denied", packets: 500 }]);
  expect(await read(world.logs, { verdict: "log" })).toEqual([]);
});

test("however many decisions are flooded, few counters are read at a time, each in its turn", async () => {
  const { counters } = counting({ web: 1_000 });
  await using world = start(counters, JUDGED);
  const toldOf = new Set<number>();
  for (let look = 1; look <= 3; look++) {
    for (let i = 0; i < 10; i++) {
      const origin = { policy: POLICY, direction: "ingress", index: i } as const;
      const decision = { by: "rule", tier: "default", policy: POLICY, origin } as const;
      world.source.push(...flood(20, { prefix: `${PREFIX}${i}`, decision }));
    }
    await world.clock.pass(LOOK_MS);
    const all = await denials(world.logs);
    expect(all.length).toBe(4 * look);
    for (const event of all) toldOf.add((event as { readonly rule?: number }).rule!);
  }
  expect([...toldOf].sort()).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});

test("a packet at a link with a host endpoint and at a workload is of the one that has such a decision", async () => {
  const only = (id: string, policy: string): PolicyList => ({
    ...list(id),
    tiers: [{ name: "default", policies: [{ id: policy, staged: false, rules: [] }], defaultAction: "pass" }],
  });
  const host = JUDGED.hostEndpoints.get("h")!;
  const forward = { ...host, forwardIngress: only("forward", "GlobalNetworkPolicy.projectcalico.org//edge") };
  await using world = start(undefined, { ...JUDGED, hostEndpoints: persistentMap([["h", forward]]) });
  const policy = "GlobalNetworkPolicy.projectcalico.org//edge";
  const edge = { by: "rule", tier: "default", policy, origin: { policy, direction: "ingress", index: 0 } } as const;
  const links = { inInterface: "eth0", outInterface: "mx2" };
  world.source.push(packet({ ...links, decision: edge, prefix: "a" }), packet({ ...links, prefix: "b" }));
  await world.clock.pass(0);
  expect((await read(world.logs)).map((event) => (event as PacketEvent).endpoint)).toEqual([
    { kind: "hostEndpoint", name: "h" },
    { kind: "pod", name: "prod/server" },
  ]);
});
