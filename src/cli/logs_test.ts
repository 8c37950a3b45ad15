import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { serveApi } from "../api/server.ts";
import { silentLog } from "../host/log.ts";
import type { LogEvent, LogQuery, PacketEvent } from "../host/logs/packet_log_view.ts";
import type { HostView } from "../host/view.ts";
import { formatLogEvent } from "./logs.ts";
import { createPaint } from "./output.ts";

const MANX = [process.execPath, "--no-install", join(import.meta.dir, "../main.ts")];
const directory = mkdtempSync(join(tmpdir(), "manx-cli-logs-"));
const children = new Set<Bun.Subprocess>();
afterAll(async () => {
  for (const child of children) child.kill("SIGKILL");
  await Promise.all([...children].map((child) => child.exited));
  rmSync(directory, { recursive: true, force: true });
});
let sockets = 0;

function manx(...args: readonly string[]) {
  const child = Bun.spawn([...MANX, ...args], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: { PATH: process.env.PATH!, HOME: "/root", TZ: "UTC" },
  });
  children.add(child);
  void child.exited.then(() => children.delete(child));
  return child;
}

const outcome = async (child: ReturnType<typeof manx>) => ({
  out: await new Response(child.stdout).text(),
  err: await new Response(child.stderr).text(),
  status: await child.exited,
});

async function serve(logs: (query: LogQuery, signal: AbortSignal) => AsyncGenerator<LogEvent>) {
  const socket = join(directory, `${sockets++}.sock`);
  const api = await serveApi({ logs } as unknown as HostView, socket, silentLog);
  return { socket, [Symbol.asyncDispose]: () => api[Symbol.asyncDispose]() };
}

const denied: PacketEvent = {
  event: "packet",
  time: "2026-03-01T12:00:00.042Z",
  packets: 1,
  verdict: "deny",
  direction: "ingress",
  protocol: "tcp",
  source: { address: "10.0.0.1", port: 40_000, owner: { kind: "pod", name: "prod/client" } },
  destination: { address: "10.0.0.2", port: 81, owner: { kind: "pod", name: "prod/web" } },
  endpoint: { kind: "pod", name: "prod/web" },
  by: "rule",
  tier: "default",
  policy: "NetworkPolicy.projectcalico.org/prod/web",
  rule: 3,
  lengthBytes: 60,
};
const DENIED_LINE = "2026-03-01 12:00:00.042  deny  ingress  tcp  " +
  "prod/client(10.0.0.1):40000 → prod/web(10.0.0.2):81  tier default, NetworkPolicy prod/web, rule 3";

const lines: readonly [string, LogEvent, string][] = [
  ["a tier's default", { ...denied, by: "tier default" }, "tier default, no rule matched"],
  ["no profile", { ...denied, by: "no profile" }, "no profile matched"],
  ["the end of a list", { ...denied, by: "end" }, "nothing matched"],
  ["an unknown endpoint", { ...denied, by: "unknown endpoint" }, "unknown endpoint"],
  [
    "a profile's rule",
    { ...denied, tier: undefined, policy: "Profile.projectcalico.org//kns.prod" } as PacketEvent,
    "→ prod/web(10.0.0.2):81  Profile kns.prod, rule 3",
  ],
  [
    "a prefix with control characters",
    { ...denied, by: "unknown", prefix: "a\x1b[31m\nb" },
    'logged as "a\\u001b[31m\\nb"',
  ],
  [
    "names that would speak to the terminal",
    {
      ...denied,
      source: { address: "10.0.0.1", owner: { kind: "workload", name: "prod/\x1b[2J\x9b\u202evm" } },
      policy: "NetworkPolicy/prod/\x07",
    },
    "prod/?[2J??vm(10.0.0.1) → prod/web(10.0.0.2):81  tier default, NetworkPolicy prod/?, rule 3",
  ],
  ["repeats", { ...denied, packets: 12 }, "rule 3  ×12"],
  ["a Log rule", { ...denied, verdict: "log" }, "042  log   ingress  tcp"],
  ["a direction", { ...denied, direction: "egress" }, "deny  egress   tcp"],
  ["a protocol by number", { ...denied, protocol: "47" }, "  protocol 47  "],
  ["ICMP", { ...denied, protocol: "icmp", icmp: { type: 8, code: 0 } }, "  icmp 8/0  "],
  [
    "strangers",
    {
      ...denied,
      source: { address: "2001:db8::1", port: 5 },
      destination: { address: "2001:db8::2" },
    },
    "  [2001:db8::1]:5 → 2001:db8::2  ",
  ],
  [
    "nodes, sets and other workloads",
    {
      ...denied,
      source: { address: "192.0.2.1", owner: { kind: "node", name: "n1" } },
      destination: { address: "203.0.113.1", port: 80, owner: { kind: "networkSet", name: "prod/partners" } },
      endpoint: { kind: "workload", name: "prod/vm" },
    },
    "  node/n1(192.0.2.1) → set/prod/partners(203.0.113.1):80  tier",
  ],
  ["a host endpoint", { ...denied, endpoint: { kind: "hostEndpoint", name: "eth0" } }, "  at host endpoint eth0  tier"],
  [
    "what was denied in all by a rule",
    {
      event: "denied",
      time: denied.time,
      direction: "ingress",
      by: "rule",
      tier: "default",
      policy: "NetworkPolicy.projectcalico.org/prod/web",
      rule: 3,
      packets: 100_000,
      told: 26,
    },
    "deny  ingress  tier default, NetworkPolicy prod/web, rule 3  100000 packets denied in all, 26 of them told",
  ],
  [
    "what was denied in all by a default",
    {
      event: "denied",
      time: denied.time,
      direction: "egress",
      by: "tier default",
      tier: "default",
      endpoint: { kind: "pod", name: "prod/web" },
      packets: 21,
      told: 20,
    },
    "deny  egress   at prod/web and those with the same policies  tier default, no rule matched  21 packets denied in all, 20 of them told",
  ],
  [
    "lost packets",
    { event: "lost", time: denied.time, packets: 1 },
    "12:00:00.042 lost 1 logged packet: more came than could be read",
  ],
  [
    "skipped lines",
    { event: "skipped", events: 20 },
    "skipped 20 lines: more came than were read here",
  ],
];

test("a line says when, what, which way, who to whom, and why", () => {
  using _ = inUtc();
  const plain = createPaint(false);
  expect(formatLogEvent(denied, plain)).toBe(DENIED_LINE);
  for (const [subject, event, part] of lines) {
    expect([subject, formatLogEvent(event, plain)]).toEqual([
      subject,
      expect.stringContaining(part),
    ]);
  }
});

/** What `Date` says is then the same everywhere. */
function inUtc(): Disposable {
  const before = process.env.TZ;
  process.env.TZ = "UTC";
  return {
    [Symbol.dispose]() {
      if (before === undefined) delete process.env.TZ;
      else process.env.TZ = before;
    },
  };
}

test("without --follow what is kept is printed, and that is all", async () => {
  const queries: LogQuery[] = [];
  await using api = await serve(async function* (query) {
    queries.push(query);
    yield denied;
    yield { event: "lost", time: denied.time, packets: 3 };
  });
  expect(await outcome(manx("--socket", api.socket, "logs"))).toEqual({
    out: `${DENIED_LINE}\n2026-03-01 12:00:00.042 lost 3 logged packets: more came than could be read\n`,
    err: "",
    status: 0,
  });
  const json = await outcome(
    manx(
      "--socket",
      api.socket,
      "logs",
      "-o",
      "json",
      "--since",
      "5m",
      "--limit",
      "7",
      "--pod",
      "web",
      "--verdict",
      "deny",
    ),
  );
  expect(json.out.trim().split("\n").map((line) => JSON.parse(line))).toEqual([
    denied,
    { event: "lost", time: denied.time, packets: 3 },
  ]);
  expect(queries).toEqual([
    { follow: false },
    { follow: false, sinceMs: 300_000, limit: 7, pod: "default/web", verdict: "deny" },
  ]);
});

test("--follow prints each line as it comes, and an interrupt ends it without a complaint", async () => {
  let left = false;
  await using api = await serve(async function* (query, signal) {
    expect(query).toEqual({ follow: true, pod: "prod/web" });
    yield denied;
    await new Promise((resolve) => signal.addEventListener("abort", resolve));
    left = true;
  });
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    left = false;
    const child = manx("--socket", api.socket, "logs", "--follow", "--pod", "prod/web");
    const reader = child.stdout.getReader();
    expect(new TextDecoder().decode((await reader.read()).value)).toBe(`${DENIED_LINE}\n`);
    child.kill(signal);
    expect([await child.exited, await new Response(child.stderr).text()]).toEqual([0, ""]);
    for (const deadline = performance.now() + 5_000; !left && performance.now() < deadline;) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    expect(left).toBe(true);
  }
});

test("a daemon that stops while it is followed is one line and a status", async () => {
  await using api = await serve(async function* () {
    yield denied;
  });
  expect(await outcome(manx("--socket", api.socket, "logs", "-f"))).toEqual({
    out: `${DENIED_LINE}\n`,
    err: `manx: the manx daemon at ${api.socket} has stopped: there is nothing more to follow\n`,
    status: 1,
  });
});

test("a daemon that dies in the midst of a line is one line and a status, and half a line is not printed", async () => {
  const socket = join(directory, "dies.sock");
  const { promise: asked, resolve } = Promise.withResolvers<void>();
  const server = Bun.listen({
    unix: socket,
    socket: {
      data(connection) {
        const chunk = `${JSON.stringify(denied)}\n{"event":"pa`;
        const head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        connection.write(`${head}${Buffer.byteLength(chunk).toString(16)}\r\n${chunk}\r\n`);
        connection.flush();
        resolve();
        setTimeout(() => connection.terminate(), 20);
      },
    },
  });
  const child = manx("--socket", socket, "logs", "--follow");
  await asked;
  expect(await outcome(child)).toEqual({
    out: `${DENIED_LINE}\n`,
    err: `manx: the manx daemon at ${socket} has gone away; its log says why\n`,
    status: 1,
  });
  server.stop(true);
});

test("a daemon that is not there, and one that refuses, are one line and a status", async () => {
  const gone = join(directory, "none.sock");
  expect(await outcome(manx("--socket", gone, "logs"))).toMatchObject({
    out: "",
    err: expect.stringMatching(/^manx: the manx daemon cannot be reached at \S+none\.sock: no such socket; .*\n$/),
    status: 1,
  });
  await using api = await serve(async function* () {});
  expect(await outcome(manx("--socket", api.socket, "logs", "--pod", "a/b/c"))).toEqual({
    out: "",
    err: 'manx: query: pod: found "a/b/c", wanted NAMESPACE/NAME\n',
    status: 1,
  });
});

test("a time or number that is none is a complaint about the command line", async () => {
  for (
    const [args, complaint] of [
      [["--since", "5"], "wanted a time such as 90s, 5m, 2h or 1d"],
      [["--since", "-5m"], "wanted a time such as 90s, 5m, 2h or 1d"],
      [["--limit", "x"], "wanted a whole number"],
      [["--verdict", "allow"], "wanted one of log, deny"],
      [["-o", "yaml"], "wanted one of table, json"],
    ] as const
  ) {
    const { status, err } = await outcome(manx("logs", ...args));
    expect([args, status, err]).toEqual([args, 64, expect.stringContaining(complaint)]);
  }
});

test("whoever closes the pipe ends it", async () => {
  await using api = await serve(async function* () {
    for (;;) yield denied;
  });
  const child = Bun.spawn(["sh", "-c", `"$@" | head -n 2`, "sh", ...MANX, "--socket", api.socket, "logs", "--follow"], {
    stdout: "pipe",
    stderr: "pipe",
    env: { PATH: process.env.PATH!, HOME: "/root", TZ: "UTC" },
  });
  expect(await new Response(child.stdout).text()).toBe(`${DENIED_LINE}\n${DENIED_LINE}\n`);
  expect([await child.exited, await new Response(child.stderr).text()]).toEqual([0, ""]);
});
