/** Resident memory of the daemon: idle, and with 1,000 endpoints attached through the real CNI path. */
import { createNamespace } from "../../src/kernel/netns.ts";
import { manxNetwork } from "./cni_peers.ts";
import { startDaemon } from "./daemon.ts";
import { atMost, type Goal, inParallel, table } from "./measure.ts";

const ENDPOINTS = 1000;
const WIDTH = 8;

const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(0)} MB`;

export async function benchMemory(binary: string): Promise<Goal[]> {
  await using daemon = await startDaemon(binary);
  // The start's own garbage is collected by then.
  await Bun.sleep(3000);
  const idle = daemon.residentBytes();
  const network = manxNetwork(binary, daemon.socket);
  using stack = new DisposableStack();
  const namespaces = Array.from({ length: ENDPOINTS }, (_, i) => stack.use(createNamespace(`bench-${i}`)));
  await inParallel(ENDPOINTS, WIDTH, (i) => network.add(`pod-${i}`, `/proc/${process.pid}/fd/${namespaces[i]!.fd}`));
  await Bun.sleep(3000);
  const full = daemon.residentBytes();
  console.log("\nResident memory of the daemon");
  console.log(table(["state", "VmRSS"], [["idle", megabytes(idle)], [`${ENDPOINTS} endpoints`, megabytes(full)]]));
  return [atMost("idle daemon, resident", idle, 60e6, megabytes)];
}
