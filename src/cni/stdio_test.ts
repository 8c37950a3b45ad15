import { afterAll, expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CniError } from "./errors.ts";
import { readStdin } from "./stdio.ts";

const directory = mkdtempSync(join(tmpdir(), "manx-stdio-"));
afterAll(() => rmSync(directory, { recursive: true }));

const reading = (path: string): Promise<string> => readStdin(() => Bun.file(path).stream());
const caught = (reading: Promise<unknown>): Promise<CniError> =>
  reading.then(() => Promise.reject(new Error("nothing was thrown")), (cause) => cause as CniError);

/** Starts a program that writes what it read, in capitals. */
function shout(stdin: "pipe" | "ignore", stdout: "pipe" | number) {
  const source = `import { readStdin, writeStdout } from ${JSON.stringify(join(import.meta.dir, "stdio.ts"))};
    readStdin().then((text) => writeStdout(text.toUpperCase()));`;
  return Bun.spawn([process.execPath, "--no-install", "-e", source], { stdin, stdout });
}

test("all of a large file is read, characters across its chunks included", async () => {
  const text = "aä€".repeat(100_000);
  writeFileSync(join(directory, "large"), text);
  expect(await reading(join(directory, "large"))).toBe(text);
});

test("bytes that are no UTF-8 are error 6", async () => {
  writeFileSync(join(directory, "latin"), new Uint8Array([0x7b, 0xe4, 0x7d]));
  expect(await caught(reading(join(directory, "latin")))).toMatchObject({ code: 6 });
  writeFileSync(join(directory, "cut"), new Uint8Array([0x7b, 0xc3]));
  expect(await caught(reading(join(directory, "cut")))).toMatchObject({ code: 6 });
});

test("more than the limit is error 5", async () => {
  writeFileSync(join(directory, "huge"), new Uint8Array(16 * 1024 * 1024 + 1).fill(0x20));
  expect(await caught(reading(join(directory, "huge")))).toMatchObject({ code: 5 });
});

test("what cannot be read is error 5", async () => {
  expect(await caught(reading(directory))).toMatchObject({ code: 5 });
});

test("an absent input is empty", async () => {
  expect(await new Response(shout("ignore", "pipe").stdout as ReadableStream).text()).toBe("\n");
});

test("a pipe whose writer is slow is read to its end", async () => {
  const child = shout("pipe", "pipe");
  const stdin = child.stdin as import("bun").FileSink;
  stdin.write("{ slow");
  await stdin.flush();
  stdin.write("ly }");
  await stdin.end();
  expect(await new Response(child.stdout as ReadableStream).text()).toBe("{ SLOWLY }\n");
});

test("a large output is written whole, to a file and to a pipe", async () => {
  const path = join(directory, "out");
  const fd = openSync(path, "w");
  for (const stdout of [fd, "pipe"] as const) {
    const child = shout("pipe", stdout);
    const stdin = child.stdin as import("bun").FileSink;
    stdin.write("x".repeat(300_000));
    await stdin.end();
    const piped = stdout === "pipe" ? await new Response(child.stdout as ReadableStream).text() : undefined;
    await child.exited;
    expect(piped ?? readFileSync(path, "utf8")).toBe("X".repeat(300_000) + "\n");
  }
  closeSync(fd);
});
