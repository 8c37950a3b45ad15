/** Legacy iptables by socket options, on the real kernel. */
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isErrno } from "./errors.ts";
import { createNamespace } from "./netns.ts";
import { runIn, thrownBy } from "./testdata/tool_fixture.ts";
import { openXtables, tryLock } from "./xtables.ts";

test.each([4, 6] as const)("a table is made by asking for it, read, and put back: IPv%d", (family) => {
  using namespace = createNamespace("xtables");
  using socket = openXtables(family, namespace);
  expect(socket.tables()).toEqual([]);
  const info = socket.info("filter");
  expect(socket.tables()).toEqual(["filter"]);
  // Three policies and the end.
  expect(info).toMatchObject({ table: "filter", validHooks: 0b1110, entryCount: 4 });
  const entries = socket.entries(info);
  expect(entries.length).toBe(info.sizeBytes);
  expect([...socket.replace("put back", info, entries, info.entryCount)]).toEqual(Array(4 * 16).fill(0));
  const counters = new Uint8Array(4 * 16);
  counters.set([7], 0);
  counters.set([70], 8);
  socket.addCounters("filter", counters);
  expect(runIn(namespace, `ip${family === 6 ? "6" : ""}tables-legacy-save`, "-c")).toContain(":INPUT ACCEPT [7:70]");
});

test("what the kernel has is told apart, and what is stale or wrong is refused", () => {
  using namespace = createNamespace("refused");
  using socket = openXtables(4, namespace);
  expect(socket.supports("match", "tcp", 0)).toBe(true);
  expect(socket.supports("match", "tcp", 9)).toBe(false);
  expect(socket.supports("target", "no-such-target", 0)).toBe(false);
  const info = socket.info("filter"), entries = socket.entries(info);
  expect(isErrno(thrownBy(() => socket.info("nothing")), "ENOENT")).toBe(true);
  expect(isErrno(thrownBy(() => socket.info("x".repeat(32))), "ENAMETOOLONG")).toBe(true);
  runIn(namespace, "iptables-legacy", "-A", "INPUT", "-j", "DROP");
  expect(isErrno(thrownBy(() => socket.entries(info)), "EAGAIN")).toBe(true);
  expect(isErrno(thrownBy(() => socket.replace("stale", info, entries, info.entryCount)), "EAGAIN")).toBe(true);
  expect(runIn(namespace, "iptables-legacy", "-S", "INPUT")).toContain("-A INPUT -j DROP");
});

test("a lock is held by one at a time, and its file is nobody else's to read", () => {
  const directory = mkdtempSync(join(tmpdir(), "manx-lock-"));
  try {
    const path = join(directory, "lock");
    const held = tryLock(path)!;
    expect(tryLock(path)).toBeUndefined();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    held[Symbol.dispose]();
    held[Symbol.dispose]();
    using again = tryLock(path);
    expect(again).toBeDefined();
    expect(isErrno(thrownBy(() => tryLock(join(directory, "no", "lock"))), "ENOENT")).toBe(true);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
