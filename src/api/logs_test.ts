import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { silentLog } from "../host/log.ts";
import type { LogEvent, LogQuery } from "../host/logs/packet_log_view.ts";
import type { HostView } from "../host/view.ts";
import { UnavailableError } from "../sdk/errors.ts";
import { serveApi } from "./server.ts";

const DEADLINE_MS = 5_000;

const directory = mkdtempSync(join(tmpdir(), "manx-logs-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
let count = 0;

interface Api extends AsyncDisposable {
  readonly socket: string;
  readonly queries: readonly LogQuery[];
}

async function serve(
  logs: (query: LogQuery, signal: AbortSignal) => AsyncGenerator<LogEvent>,
): Promise<Api> {
  const socket = join(directory, `${count++}.sock`);
  const queries: LogQuery[] = [];
  const view = { logs: (query: LogQuery, signal: AbortSignal) => (queries.push(query), logs(query, signal)) };
  const api = await serveApi(view as unknown as HostView, socket, silentLog);
  return { socket, queries, [Symbol.asyncDispose]: () => api[Symbol.asyncDispose]() };
}

const lost = (packets: number): LogEvent => ({ event: "lost", time: "2026-03-01T12:00:00.000Z", packets });
const get = (socket: string, query = "") => fetch(`http://manx/v1/logs${query}`, { unix: socket, keepalive: false });

async function until(what: string, holds: () => boolean): Promise<void> {
  for (const deadline = performance.now() + DEADLINE_MS; !holds();) {
    if (performance.now() > deadline) throw new Error(`waited ${DEADLINE_MS} ms in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

test("events are lines of JSON", async () => {
  await using api = await serve(async function* () {
    yield lost(1);
    yield lost(2);
  });
  const response = await get(api.socket);
  expect(response.headers.get("content-type")).toBe("application/x-ndjson");
  expect(await response.text()).toBe(`\n${JSON.stringify(lost(1))}\n${JSON.stringify(lost(2))}\n`);
});

test("nothing is an empty answer", async () => {
  await using api = await serve(async function* () {});
  expect(await (await get(api.socket)).text()).toBe("\n");
});

test("an answer begins before there is an event", async () => {
  await using api = await serve(async function* (_, signal) {
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
    yield lost(1);
  });
  const leave = new AbortController();
  const response = await fetch("http://manx/v1/logs?follow=true", { unix: api.socket, signal: leave.signal });
  expect(response.status).toBe(200);
  leave.abort();
});

test("an event is sent when it comes, not when there are more", async () => {
  const { promise, resolve } = Promise.withResolvers<void>();
  await using api = await serve(async function* () {
    yield lost(1);
    await promise;
    yield lost(2);
  });
  const reader = (await get(api.socket, "?follow=true")).body!.getReader();
  let text = "";
  const untilThere = async (event: LogEvent) => {
    while (!text.endsWith(`${JSON.stringify(event)}\n`)) text += new TextDecoder().decode((await reader.read()).value);
  };
  await untilThere(lost(1));
  resolve();
  await untilThere(lost(2));
  expect(text).toBe(`\n${JSON.stringify(lost(1))}\n${JSON.stringify(lost(2))}\n`);
});

test("the query is what is asked of the logs", async () => {
  await using api = await serve(async function* () {});
  for (
    const query of [
      "",
      "?follow=true&since=300000&limit=20&pod=prod/web&verdict=deny",
      "?follow=false&verdict=log&limit=0&since=0",
    ]
  ) await (await get(api.socket, query)).text();
  expect(api.queries).toEqual([
    { follow: false },
    { follow: true, sinceMs: 300_000, limit: 20, pod: "prod/web", verdict: "deny" },
    { follow: false, sinceMs: 0, limit: 0, verdict: "log" },
  ]);
});

const refused: readonly [string, string][] = [
  ["?follow=yes", 'query: follow: found "yes", wanted true or false'],
  ["?since=5m", 'query: since: found "5m", wanted milliseconds back from now'],
  ["?since=-1", 'query: since: found "-1", wanted milliseconds back from now'],
  ["?limit=1e3", 'query: limit: found "1e3", wanted a number of lines'],
  ["?limit=", 'query: limit: found "", wanted a number of lines'],
  ["?pod=web", 'query: pod: found "web", wanted NAMESPACE/NAME'],
  ["?pod=a/b/c", 'query: pod: found "a/b/c", wanted NAMESPACE/NAME'],
  ["?verdict=allow", 'query: verdict: found "allow", wanted log or deny'],
  ["?tail=3", "query: found tail, wanted one of follow, since, limit, pod, verdict"],
];
for (const [query, message] of refused) {
  test(`the query ${query} is refused`, async () => {
    await using api = await serve(async function* () {});
    const response = await get(api.socket, query);
    expect([response.status, await response.json()]).toEqual([400, { error: { code: "refused", message, cni: 7 } }]);
    expect(api.queries).toEqual([]);
  });
}

test("too many readers are refused with the reason", async () => {
  await using api = await serve(() => {
    throw new UnavailableError("logs: found 32 readers already");
  });
  const response = await get(api.socket);
  expect([response.status, await response.json()]).toMatchObject([503, { error: { code: "unavailable" } }]);
});

test("a reader that does not read holds its events up, and one that leaves ends them", async () => {
  let given = 0, ended = false, aborted = false;
  await using api = await serve(async function* (_, signal) {
    signal.addEventListener("abort", () => aborted = true);
    try {
      for (;;) yield lost(given++);
    } finally {
      ended = true;
    }
  });
  const client = connect(api.socket);
  client.pause();
  client.write("GET /v1/logs?follow=true HTTP/1.1\r\nhost: manx\r\n\r\n");
  let before = -1;
  // The socket's buffers fill; then nothing more is asked for.
  await until("the events stop", () => given > 0 && given === before || (before = given, false));
  // net.core.wmem_default and what the runtime holds: a few thousand lines of 70 bytes.
  expect(given).toBeLessThan(50_000);
  client.destroy();
  await until("the reader is missed", () => ended && aborted);
});

test("a reader that waits for events and leaves is missed as well", async () => {
  let aborted = false;
  await using api = await serve(async function* (_, signal) {
    yield lost(1);
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => (aborted = true, resolve())));
  });
  const leave = new AbortController();
  const response = await fetch("http://manx/v1/logs?follow=true", { unix: api.socket, signal: leave.signal });
  const reader = response.body!.getReader();
  await reader.read();
  leave.abort();
  await reader.closed.catch(() => {});
  await until("the reader is missed", () => aborted);
});
