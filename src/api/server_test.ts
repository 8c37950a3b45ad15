import { afterAll, expect, test } from "bun:test";
import { existsSync, lstatSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { silentLog } from "../host/log.ts";
import type { HostView } from "../host/view.ts";
import { ConflictError, ExhaustedError, ManxError, RefusedError, UnavailableError } from "../sdk/errors.ts";
import { KernelError } from "../kernel/errors.ts";
import { serveApi } from "./server.ts";

const directory = mkdtempSync(join(tmpdir(), "manx-api-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
let count = 0;
const newPath = () => join(directory, `${count++}.sock`);

/** Every part refuses; a test replaces what it asks. */
function viewOf(
  parts: {
    attachments?: Partial<HostView["attachments"]>;
    resources?: Partial<HostView["resources"]>;
    wait?: HostView["wait"];
  },
): HostView {
  return {
    plugins: () => [],
    status: () => ({}),
    ipam: () => Promise.reject(new Error("none")),
    resources: {},
    attachments: {},
    ...parts,
  } as unknown as HostView;
}

async function call(
  socket: string,
  method: string,
  path: string,
  body?: unknown,
): Promise<{ status: number; body: any }> {
  const response = await fetch(`http://manx${path}`, {
    unix: socket,
    method,
    ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
    keepalive: false,
  });
  return { status: response.status, body: await response.json() };
}

const ADD = { network: "n", containerId: "c", ifName: "eth0", netns: "/n", args: {}, labels: {} };

test("the socket is for root alone and goes when the API does", async () => {
  const path = newPath();
  {
    await using _ = await serveApi(viewOf({}), path, silentLog);
    expect(lstatSync(path).mode & 0o777).toBe(0o600);
    expect(await call(path, "GET", "/v1/version")).toMatchObject({
      status: 200,
      body: { version: expect.stringMatching(/^\d+\.\d+\.\d+/), api: "1.0" },
    });
  }
  expect(existsSync(path)).toBe(false);
});

test("a socket that nobody answers on is taken over", async () => {
  const path = newPath();
  const bun = Bun.spawnSync([
    process.execPath,
    "-e",
    `Bun.serve({ unix: ${JSON.stringify(path)}, fetch: () => new Response() }); process.kill(process.pid, 9)`,
  ]);
  expect([bun.signalCode, existsSync(path)]).toEqual(["SIGKILL", true]);
  await using _ = await serveApi(viewOf({}), path, silentLog);
  expect((await call(path, "GET", "/v1/version")).status).toBe(200);
});

test("a socket that somebody answers on is refused and left alone", async () => {
  const path = newPath();
  await using _ = await serveApi(viewOf({}), path, silentLog);
  const refused = await serveApi(viewOf({}), path, silentLog).then(() => "", (error: Error) => error.message);
  expect(refused).toBe(
    `API socket ${path}: found another daemon that answers there, wanted a free path (api.socket in the configuration)`,
  );
  expect((await call(path, "GET", "/v1/version")).status).toBe(200);
});

test("a socket of another program is refused as well", async () => {
  const path = newPath();
  const server = createServer(() => {});
  await new Promise<void>((resolve) => server.listen(path, resolve));
  expect(serveApi(viewOf({}), path, silentLog)).rejects.toThrow("found another daemon that answers there");
  await new Promise((resolve) => server.close(resolve));
});

test("a file, a directory or a link in the socket's place is refused and left alone", async () => {
  const file = newPath(), folder = newPath(), link = newPath();
  writeFileSync(file, "mine");
  mkdirSync(folder);
  symlinkSync(file, link);
  for (
    const [path, found] of [[file, "something that is not a socket"], [folder, "a directory"], [
      link,
      "something that is not a socket",
    ]] as const
  ) {
    expect(await serveApi(viewOf({}), path, silentLog).then(() => "", (error: Error) => error.message)).toContain(
      `${path}: found ${found}, wanted`,
    );
    expect(existsSync(path)).toBe(true);
  }
});

test("a missing directory is made", async () => {
  const path = join(directory, "a", "b", "s.sock");
  await using _ = await serveApi(viewOf({}), path, silentLog);
  expect(existsSync(path)).toBe(true);
});

test("a request under way is answered before the API goes", async () => {
  const path = newPath();
  const { promise, resolve } = Promise.withResolvers<void>();
  const entered = Promise.withResolvers<void>();
  const api = await serveApi(viewOf({ attachments: { del: () => (entered.resolve(), promise) } }), path, silentLog);
  const answer = call(path, "POST", "/v1/cni/del", ADD);
  await entered.promise;
  const closed = api[Symbol.asyncDispose]();
  resolve();
  expect(await answer).toEqual({ status: 200, body: {} });
  await closed;
});

const errors: readonly [string, unknown, number, object][] = [
  ["refused, one reason", new RefusedError(["a: found 1, wanted 2"]), 400, {
    code: "refused",
    message: "a: found 1, wanted 2",
    cni: 7,
  }],
  ["refused, two reasons", new RefusedError(["a", "b"]), 400, {
    code: "refused",
    message: "2 faults, the first: a",
    details: ["a", "b"],
    cni: 7,
  }],
  ["exhausted", new ExhaustedError("pool a: 254 of 254"), 409, { code: "exhausted", message: "pool a: 254 of 254" }],
  ["conflict", new ConflictError(["k"]), 409, { code: "conflict", cni: 11 }],
  ["unavailable", new UnavailableError("away"), 503, { code: "unavailable", message: "away", cni: 11 }],
  ["deadline", new ManxError("deadline", "late"), 504, { code: "deadline", cni: 11 }],
  [
    "a signal's timeout",
    new DOMException("The operation timed out.", "TimeoutError"),
    504,
    { code: "deadline", cni: 11 },
  ],
  ["a kernel error", new KernelError("create link mx0", 1), 500, {
    code: "kernel",
    message: expect.stringContaining("create link mx0"),
  }],
  ["an error with its own CNI number", Object.assign(new ManxError("differs", "no link"), { cni: 104 }), 409, {
    code: "differs",
    message: "no link",
    cni: 104,
  }],
  ["a plugin's error of its own class", Object.assign(new Error("full"), { code: "exhausted" }), 409, {
    code: "exhausted",
    message: "full",
  }],
  ["a system error", Object.assign(new Error("ENOSPC: no space left"), { code: "ENOSPC" }), 500, {
    code: "internal",
    message: "ENOSPC: no space left",
  }],
  ["a bug", new TypeError("x is not a function"), 500, { code: "internal", message: "x is not a function" }],
  ["a thrown text", new Error("outer", { cause: new Error("inner") }), 500, {
    code: "internal",
    message: "outer: inner",
  }],
];
for (const [subject, error, status, body] of errors) {
  test(`${subject} becomes status ${status} with a reason and no stack`, async () => {
    const path = newPath();
    await using _ = await serveApi(viewOf({ attachments: { add: () => Promise.reject(error) } }), path, silentLog);
    const reply = await call(path, "POST", "/v1/cni/add", ADD);
    expect(reply).toMatchObject({ status, body: { error: body } });
    expect(JSON.stringify(reply.body)).not.toContain("    at ");
  });
}

const badRequests: readonly [string, string, unknown, string][] = [
  ["no JSON", "/v1/cni/add", "{", 'body of /v1/cni/add: found "{", wanted JSON'],
  ["no body", "/v1/apply", undefined, "body of /v1/apply: found nothing, wanted JSON"],
  ["a list", "/v1/cni/add", [], "request: body: found [], wanted an object"],
  ["no container", "/v1/cni/add", { ...ADD, containerId: "" }, 'request: containerId: found "", wanted text'],
  ["a label that is a number", "/v1/cni/add", { ...ADD, labels: { a: 1 } }, "request: labels.a: found 1, wanted text"],
  ["routes that are text", "/v1/cni/add", { ...ADD, routes: "x" }, 'request: routes: found "x", wanted a list'],
  ["no valid list", "/v1/cni/gc", { network: "n" }, "request: valid: found nothing, wanted a list"],
  ["no text", "/v1/apply", { file: "x" }, "request: text: found nothing, wanted a manifest's text"],
  [
    "a wait without end",
    "/v1/apply",
    { text: "", wait: 1e12 },
    "request: wait: found 1000000000000, wanted milliseconds",
  ],
  ["keys that are no list", "/v1/wait", { keys: 1, deadlineMs: 1 }, "request: keys: found 1, wanted a list"],
];
for (const [subject, path, body, message] of badRequests) {
  test(`a request with ${subject} is refused`, async () => {
    const socket = newPath();
    await using _ = await serveApi(viewOf({}), socket, silentLog);
    const reply = await call(socket, "POST", path, body);
    expect(reply.status).toBe(400);
    expect(reply.body.error.message).toContain(message);
  });
}

/** As src/cni/entry/entry.c writes it. */
async function callWhole(socket: string, variables: Readonly<Record<string, string>>, input: unknown) {
  const lines = Object.entries({ MANX_SOCKET: socket, ...variables }).map(([name, value]) => `${name}=${value}\0`);
  const body = `${lines.join("")}\0${JSON.stringify(input)}`;
  const response = await fetch("http://manx/v1/cni/call", { unix: socket, method: "POST", body, keepalive: false });
  return { status: response.status, length: response.headers.get("content-length"), text: await response.text() };
}
const CALL = { CNI_COMMAND: "DEL", CNI_CONTAINERID: "c", CNI_IFNAME: "eth0" };

test("a whole call of the plugin: its exit status and what it writes", async () => {
  const socket = newPath();
  const asked: unknown[] = [];
  const del = (request: unknown) => {
    asked.push(request);
    return asked.length === 1 ? Promise.resolve() : Promise.reject(new ExhaustedError("pool a is exhausted"));
  };
  await using _ = await serveApi(viewOf({ attachments: { del } }), socket, silentLog);
  const config = { cniVersion: "1.0.0", name: "n", type: "manx", socket };
  // The entry reads no answer without a length.
  expect(await callWhole(socket, CALL, config)).toEqual({ status: 200, length: "1", text: "0" });
  expect(asked).toEqual([{ network: "n", containerId: "c", ifName: "eth0" }]);
  const refused = await callWhole(socket, CALL, config);
  expect([refused.status, refused.text[0]]).toEqual([200, "1"]);
  expect(JSON.parse(refused.text.slice(1))).toEqual({
    cniVersion: "1.0.0",
    code: 101,
    msg: "pool a is exhausted",
  });
});

test("a whole call that was meant for another daemon, or is none, is refused", async () => {
  const socket = newPath();
  await using _ = await serveApi(viewOf({}), socket, silentLog);
  const elsewhere = { cniVersion: "1.0.0", name: "n", type: "manx", socket: "/run/other.sock" };
  const refused = await callWhole(socket, CALL, elsewhere);
  expect([refused.status, JSON.parse(refused.text).error.code]).toEqual([421, "misdirected"]);
  const none = await fetch("http://manx/v1/cni/call", { unix: socket, method: "POST", body: "{}", keepalive: false });
  expect(none.status).toBe(421);
});

test("an unknown path names those there are", async () => {
  const socket = newPath();
  await using _ = await serveApi(viewOf({}), socket, silentLog);
  expect(await call(socket, "GET", "/v2/x")).toMatchObject({
    status: 404,
    body: {
      error: { code: "not-found", message: expect.stringContaining("found no GET /v2/x, wanted one of /v1/apply") },
    },
  });
});

test("a wait of more than ten seconds' silence is not cut off by the server", async () => {
  const socket = newPath();
  await using _ = await serveApi(
    viewOf({ wait: () => new Promise((resolve) => setTimeout(resolve, 13_000, 13_000)) }),
    socket,
    silentLog,
  );
  expect(await call(socket, "POST", "/v1/wait", { keys: [], deadlineMs: 60_000 })).toEqual({
    status: 200,
    body: { waitedMs: 13_000 },
  });
}, 30_000);
