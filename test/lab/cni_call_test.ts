/** The executable, called as a CNI plugin: by its entry (src/cni/entry) where a daemon answers, by its program where none does. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFileSync, linkSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { whyNoEntry } from "../../scripts/attach_entry.ts";
import { buildBinary } from "../../scripts/build.ts";
import { SUPPORTED_VERSIONS } from "../../src/cni/version.ts";

const directory = mkdtempSync(join(tmpdir(), "manx-cni-call-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
let binary = "";
beforeAll(async () => void (binary = await buildBinary()));

const socket = join(directory, "manx.sock");
const CONFIG = { cniVersion: "1.0.0", name: "pods", type: "manx", socket };
const ENV = {
  CNI_COMMAND: "DEL",
  CNI_CONTAINERID: "c",
  CNI_NETNS: "/run/netns/x",
  CNI_IFNAME: "eth0",
  CNI_PATH: "/opt/cni/bin",
};

async function call(input: unknown, env: Readonly<Record<string, string>> = ENV, path = binary) {
  const bytes = input instanceof Uint8Array
    ? input
    : new TextEncoder().encode(typeof input === "string" ? input : JSON.stringify(input));
  const child = Bun.spawn([path], { env, stdin: bytes, stdout: "pipe", stderr: "pipe" });
  const [output, errors, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { status, errors, result: output === "" ? undefined : JSON.parse(output) };
}

const why = whyNoEntry();
/** A test of what the entry does. */
const entryTest = (title: string, run: () => Promise<void>) =>
  test.skipIf(why !== undefined)(why === undefined ? title : `${title} (skipped: ${why})`, run);

/** A daemon that notes what it is asked and answers with `answer`, or leaves. */
function daemon(answer: (path: string) => Response | "leave"): Disposable & { readonly asked: string[] } {
  const asked: string[] = [];
  const server = Bun.serve({
    unix: socket,
    fetch: async (request) => {
      const path = new URL(request.url).pathname;
      asked.push(path);
      await request.arrayBuffer();
      const given = answer(path);
      if (given !== "leave") return given;
      void server.stop(true);
      return new Promise<Response>(() => {});
    },
  });
  return { asked, [Symbol.dispose]: () => void server.stop(true) };
}

entryTest("one request carries the call, and the answer is what the runtime reads", async () => {
  using listener = daemon(() => new Response('1{"cniVersion":"1.0.0","code":101,"msg":"full"}\n'));
  expect(await call(CONFIG)).toEqual({
    status: 1,
    errors: "",
    result: { cniVersion: "1.0.0", code: 101, msg: "full" },
  });
  expect(listener.asked).toEqual(["/v1/cni/call"]);
});

entryTest("a daemon of a release without that request is asked as before", async () => {
  using listener = daemon((path) =>
    path === "/v1/cni/call" ? new Response("not found", { status: 404 }) : Response.json({})
  );
  expect(await call(CONFIG)).toEqual({ status: 0, errors: "", result: undefined });
  expect(listener.asked).toEqual(["/v1/cni/call", "/v1/cni/del"]);
});

entryTest("a daemon that leaves in the middle is not asked twice, and the runtime is told to try again", async () => {
  using listener = daemon(() => "leave");
  const { status, result } = await call(CONFIG, { ...ENV, CNI_COMMAND: "ADD" });
  expect(status).toBe(1);
  expect(result).toEqual({
    cniVersion: "1.0.0",
    code: 11,
    msg: `the manx daemon cannot be reached at ${socket}: it closed the connection before it answered`,
  });
  expect(listener.asked).toEqual(["/v1/cni/call"]);
});

test("without a daemon: error 11, in the caller's version", async () => {
  const { status, result } = await call(CONFIG);
  expect([status, result.cniVersion, result.code]).toEqual([1, "1.0.0", 11]);
  expect(result.msg).toContain("nobody listens there; start it with manx daemon");
});

test("VERSION needs no daemon", async () => {
  const { status, result } = await call({ cniVersion: "0.4.0" }, { ...ENV, CNI_COMMAND: "VERSION" });
  expect([status, result]).toEqual([0, { cniVersion: "0.4.0", supportedVersions: [...SUPPORTED_VERSIONS] }]);
});

test("input that is no configuration is named, with a daemon and without", async () => {
  const codes = async () => [
    (await call("{")).result.code,
    (await call("")).result.code,
    (await call(new Uint8Array([0xff, 0xfe]))).result.code,
    (await call(new Uint8Array(17 << 20).fill(0x20))).result.code,
    (await call({ ...CONFIG, socket: 5 })).result.code,
    (await call({ ...CONFIG, socket: "relative" })).result.code,
  ];
  const without = await codes();
  expect(without).toEqual([6, 6, 6, 5, 7, 7]);
  using _ = daemon(() => new Response("none", { status: 421 }));
  expect(await codes()).toEqual(without);
});

entryTest("by another name, as a copy or a hard link, it is the same plugin", async () => {
  using _ = daemon(() => new Response("0"));
  const copy = join(directory, "copy"), link = join(binary, "..", `link-${process.pid}`);
  copyFileSync(binary, copy);
  linkSync(binary, link);
  try {
    expect(await call(CONFIG, ENV, copy)).toEqual({ status: 0, errors: "", result: undefined });
    expect(await call(CONFIG, ENV, link)).toEqual({ status: 0, errors: "", result: undefined });
  } finally {
    rmSync(link);
  }
});
