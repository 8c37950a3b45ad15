import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createKernelDoor } from "../../src/kernel/door.ts";
import { holderOf } from "./lock_holder.ts";

test("who holds a lock is named by process, and nobody where nobody does, or we do", async () => {
  const directory = mkdtempSync(join(tmpdir(), "manx-holder-"));
  try {
    const path = join(directory, "lock");
    expect(holderOf(path)).toBeUndefined();
    writeFileSync(path, "");
    expect(holderOf(path)).toBeUndefined();
    {
      using _ours = createKernelDoor().tryLock(path)!;
      expect(holderOf(path)).toBeUndefined();
    }
    const child = Bun.spawn({ cmd: ["flock", "-F", path, "sleep", "1000"] });
    try {
      for (const endMs = performance.now() + 5_000; holderOf(path) !== `process ${child.pid}, sleep`;) {
        if (performance.now() > endMs) throw new Error(`found ${holderOf(path)}`);
        await Bun.sleep(5);
      }
    } finally {
      child.kill("SIGKILL");
      await child.exited;
    }
    expect(holderOf(path)).toBeUndefined();
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
