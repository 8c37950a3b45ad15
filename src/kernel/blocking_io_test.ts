import { afterAll, expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connectUnix, DeadlineError, exchange, IoError, readAll, writeAll } from "./blocking_io.ts";

const directory = mkdtempSync(join(tmpdir(), "manx-blocking-"));
afterAll(() => rmSync(directory, { recursive: true }));

function withFile<T>(path: string, flags: string, run: (fd: number) => T): T {
  const fd = openSync(path, flags);
  try {
    return run(fd);
  } finally {
    closeSync(fd);
  }
}

/** A server in a process of its own, since calls here block this one. */
async function serving(name: string, data: string): Promise<AsyncDisposable & { readonly path: string }> {
  const path = join(directory, name);
  const source = `Bun.listen({ unix: ${JSON.stringify(path)}, socket: { data(c, d) { ${data} } } }); console.log("on")`;
  const child = Bun.spawn([process.execPath, "--no-install", "-e", source], { stdout: "pipe" });
  await child.stdout.getReader().read();
  return {
    path,
    async [Symbol.asyncDispose]() {
      child.kill();
      await child.exited;
    },
  };
}

const caught = (run: () => unknown): unknown => {
  try {
    run();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
};

test("all of a large file is read, and no more than is wanted of an endless one", () => {
  const content = new Uint8Array(1_000_003).map((_, i) => i * 31);
  writeFileSync(join(directory, "large"), content);
  withFile(join(directory, "large"), "r", (fd) => expect(readAll(fd, 2_000_000)).toEqual(content));
  const length = withFile("/dev/zero", "r", (fd) => readAll(fd, 100_000).length);
  expect(length).toBeGreaterThan(100_000);
  expect(length).toBeLessThan(1_000_000);
  withFile("/dev/null", "r", (fd) => expect(readAll(fd, 100)).toEqual(new Uint8Array()));
});

test("all of a large text is written", () => {
  const content = new TextEncoder().encode("x".repeat(300_000));
  withFile(join(directory, "out"), "w", (fd) => writeAll(fd, content));
  expect(readFileSync(join(directory, "out")).length).toBe(300_000);
});

test("a directory cannot be read: EISDIR", () => {
  withFile(
    directory,
    "r",
    (fd) => expect(caught(() => readAll(fd, 100))).toMatchObject({ operation: "read", errno: 21 }),
  );
});

test("an exchange ends when enough has come, though the other end stays open", async () => {
  await using server = await serving("echo", "c.write(d)");
  const request = new TextEncoder().encode("ping".repeat(50_000));
  const answer = exchange(server.path, request, {
    deadlineMs: 5_000,
    bytes: 1_000_000,
    enough: (bytes) => bytes.length === request.length,
  });
  expect(answer).toEqual(request);
});

test("an exchange ends with its deadline where nothing comes", async () => {
  await using server = await serving("silent", "");
  const error = caught(() =>
    exchange(server.path, new Uint8Array(1), { deadlineMs: 30, bytes: 10, enough: () => false })
  );
  expect(error).toBeInstanceOf(DeadlineError);
});

test("an exchange ends with the other end's close", async () => {
  await using server = await serving("closing", "c.end()");
  const answer = exchange(server.path, new Uint8Array(1), { deadlineMs: 5_000, bytes: 10, enough: () => false });
  expect(answer).toEqual(new Uint8Array());
});

test("nobody there: ENOENT; nobody listening: ECONNREFUSED; a name too long: ENAMETOOLONG", async () => {
  expect(caught(() => connectUnix(join(directory, "nobody")))).toMatchObject({ errno: 2 });
  const path = join(directory, "dead");
  {
    await using _ = await serving("dead", "");
  }
  const error = caught(() => connectUnix(path));
  expect(error).toBeInstanceOf(IoError);
  expect([2, 111]).toContain((error as IoError).errno);
  expect(caught(() => connectUnix(`/${"x".repeat(107)}`))).toMatchObject({ errno: 36 });
});
