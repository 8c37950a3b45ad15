/** A real daemon from the compiled binary, in the namespace the benchmark runs in. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface BenchDaemon extends AsyncDisposable {
  readonly socket: string;
  readonly pid: number;
  readonly directory: string;
  /** Resident memory in bytes: VmRSS of proc(5). */
  residentBytes(): number;
}

const START_DEADLINE_MS = 20_000;
const STOP_DEADLINE_MS = 10_000;

/** The database of `datastore/sqlite` inside a daemon's directory. */
export const stateDirectory = (directory: string): string => join(directory, "state");

export const newDirectory = (): string => mkdtempSync(join(tmpdir(), "manx-bench-"));

/** Starts a daemon on `directory` (new where absent; removed at the end) and waits until it answers on its socket. */
export async function startDaemon(binary: string, directory: string = newDirectory()): Promise<BenchDaemon> {
  mkdirSync(stateDirectory(directory), { recursive: true, mode: 0o700 });
  const socket = join(directory, "manx.sock");
  const config = join(directory, "manx.yaml");
  writeFileSync(
    config,
    JSON.stringify({
      node: "bench",
      addresses: ["192.0.2.1"],
      stateDirectory: stateDirectory(directory),
      ipam: { use: "block", config: { pools: [{ name: "bench", cidr: "10.90.0.0/16" }] } },
      api: { socket },
      log: { level: "warn" },
    }),
  );
  const child = Bun.spawn({
    cmd: [binary, "daemon", "--config", config],
    // The limit that deploy/manx.service sets: JavaScriptCore sizes its heap by it.
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", BUN_JSC_forceRAMSize: "134217728" },
    stdio: ["ignore", "inherit", "inherit"],
  });
  const deadlineMs = performance.now() + START_DEADLINE_MS;
  while (!(existsSync(socket) && await answers(socket))) {
    if (child.exitCode !== null) throw new Error(`the daemon ended with status ${child.exitCode} before it was ready`);
    if (performance.now() > deadlineMs) throw new Error(`the daemon was not ready within ${START_DEADLINE_MS} ms`);
    await Bun.sleep(10);
  }
  return {
    socket,
    pid: child.pid,
    directory,
    residentBytes: () => 1024 * Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${child.pid}/status`, "utf8"))?.[1]),
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      const ended = await Promise.race([child.exited.then(() => true), Bun.sleep(STOP_DEADLINE_MS).then(() => false)]);
      if (!ended) child.kill("SIGKILL");
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

async function answers(socket: string): Promise<boolean> {
  try {
    return (await fetch("http://manx/v1/status", { unix: socket })).ok;
  } catch {
    return false;
  }
}
