import { afterAll, expect, test } from "bun:test";
import { closeSync, constants, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CniError } from "./errors.ts";
import { readStdin, writeStdout } from "./stdio.ts";

const directory = mkdtempSync(join(tmpdir(), "manx-stdio-"));
afterAll(() => rmSync(directory, { recursive: true }));

function reading<T>(path: string, body: (fd: number) => T): T {
  const fd = openSync(path, constants.O_RDONLY);
  try {
    return body(fd);
  } finally {
    closeSync(fd);
  }
}
function caught(body: () => unknown): CniError {
  try {
    body();
  } catch (cause) {
    return cause as CniError;
  }
  throw new Error("nothing was thrown");
}

test("all of a file larger than the first buffer is read", () => {
  const text = "ä".repeat(100_000);
  writeFileSync(join(directory, "large"), text);
  expect(reading(join(directory, "large"), readStdin)).toBe(text);
});

test("bytes that are no UTF-8 are error 6", () => {
  writeFileSync(join(directory, "latin"), new Uint8Array([0x7b, 0xe4, 0x7d]));
  expect(caught(() => reading(join(directory, "latin"), readStdin))).toMatchObject({ code: 6 });
});

test("more than the limit is error 5", () => {
  writeFileSync(join(directory, "huge"), new Uint8Array(16 * 1024 * 1024 + 1).fill(0x20));
  expect(caught(() => reading(join(directory, "huge"), readStdin))).toMatchObject({ code: 5 });
});

test("a closed descriptor and a directory are error 5", () => {
  const fd = openSync(directory, constants.O_RDONLY);
  expect(caught(() => readStdin(fd))).toMatchObject({ code: 5 });
  closeSync(fd);
  expect(caught(() => readStdin(fd))).toMatchObject({ code: 5 });
});

test("a character device is empty: nobody types a configuration", () => {
  expect(reading("/dev/zero", readStdin)).toBe("");
});

test("a pipe whose writer is slow is read to its end", async () => {
  const source = `import { readStdin, writeStdout } from ${JSON.stringify(join(import.meta.dir, "stdio.ts"))};
    writeStdout(readStdin().toUpperCase());`;
  const child = Bun.spawn([process.execPath, "--no-install", "-e", source], { stdin: "pipe", stdout: "pipe" });
  child.stdin.write("{ slow");
  await child.stdin.flush();
  child.stdin.write("ly }");
  await child.stdin.end();
  expect(await new Response(child.stdout).text()).toBe("{ SLOWLY }");
});

test("all is written to a file", () => {
  const path = join(directory, "out");
  const fd = openSync(path, constants.O_WRONLY | constants.O_CREAT);
  writeStdout("x".repeat(300_000), fd);
  closeSync(fd);
  expect(readFileSync(path, "utf8")).toHaveLength(300_000);
});
