/**
 * Benchmarks run in a network and a mount namespace of their own, so that neither the plugins measured nor the rules they
 * leave reach the machine's.
 */
import { readlinkSync } from "node:fs";

const MARK = "MANX_BENCH_PARENT_NETNS";

/**
 * Runs `prepare` here, where the network is, then starts this very script again under `unshare` and ends with its status;
 * returns at once inside. @throws {Error} unless root
 */
export async function enterSandbox(prepare: () => Promise<void>): Promise<void> {
  const here = readlinkSync("/proc/self/ns/net");
  const parent = process.env[MARK];
  if (parent !== undefined) {
    // A variable set by hand must not make the benchmark run on the machine's own network.
    if (parent === here) throw new Error(`${MARK} is set, but this process is still in the namespace ${here}`);
    return;
  }
  if (process.getuid?.() !== 0) {
    throw new Error("the benchmark needs root: it makes network namespaces and loads rules");
  }
  await prepare();
  const { exitCode } = Bun.spawnSync({
    cmd: [
      "unshare",
      "--net",
      "--mount",
      "--propagation",
      "private",
      process.execPath,
      "--no-install",
      ...process.argv.slice(1),
    ],
    env: { ...process.env, [MARK]: here },
    stdio: ["ignore", "inherit", "inherit"],
  });
  process.exit(exitCode ?? 1);
}
