/**
 * A rehearsal: at its start the daemon attaches and removes pods the way it will have to, as a second daemon with a scratch
 * datastore, whose "node" is an empty network namespace. It finds out what the kernel lacks before a pod does, and it
 * warms the code that an ADD runs through.
 */
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { namespacedKernel } from "../kernel/namespaced_door.ts";
import { createNamespace, namespacePath } from "../kernel/netns.ts";
import { parseAddress } from "../model/address.ts";
import type { KernelDoor } from "../sdk/kernel_door.ts";
import { ManxError } from "../sdk/errors.ts";
import { systemClock } from "./clock.ts";
import type { Config, Slot } from "./config.ts";

/** After so many, the compiler of the runtime has seen the whole path often enough. */
const PODS = 150;
const START_DEADLINE_MS = 10_000;
const START_LOOK_MS = 5;
const CALL_DEADLINE_MS = 10_000;
/** Between two pods, for whoever really wants one meanwhile. */
const PAUSE_MS = 1;

/** Runs a daemon until its signal aborts. */
export type RunDaemon = (config: Config, kernel: KernelDoor, signal: AbortSignal) => Promise<void>;

/** Does nothing where a plugin is somebody's own: what that does elsewhere is not known. @throws whatever an ADD or DEL is refused with */
export async function rehearse(config: Config, run: RunDaemon, signal: AbortSignal): Promise<void> {
  const slots = [config.cni, config.ipam, ...config.dataplanes, ...config.policy];
  if (config.ipam.use !== "block" || slots.some((slot) => slot.use.startsWith("/"))) return;
  const directory = join(config.stateDirectory, "rehearsal");
  using stack = new DisposableStack();
  // What a killed daemon left, and what this one leaves.
  rmSync(directory, { recursive: true, force: true });
  stack.defer(() => rmSync(directory, { recursive: true, force: true }));
  const node = stack.use(createNamespace("rehearsal"));
  const stop = new AbortController();
  const scratch = scratchConfig(config, directory);
  // It ends after the one who calls it: a call that loses its daemon half-way is an error of nobody's.
  const daemon = run(scratch, namespacedKernel(node), stop.signal);
  const ended = daemon.then(() => {
    throw new ManxError("rehearsal", "the rehearsing daemon ended by itself");
  });
  ended.catch(() => {});
  try {
    await Promise.race([ended, perform(scratch.api.socket, signal)]);
  } finally {
    stop.abort();
    await daemon.catch(() => {});
  }
}

function scratchConfig(config: Config, directory: string): Config {
  const slot = (use: string, path: string, value?: unknown): Slot => ({ use, config: value, path });
  return {
    ...config,
    addresses: [parseAddress("192.0.2.1")],
    stateDirectory: directory,
    datastore: slot("sqlite", "datastore"),
    // RFC 5737 and RFC 3849: documentation's.
    ipam: slot("block", "ipam", {
      pools: [{ name: "rehearsal4", cidr: "198.51.100.0/24" }, { name: "rehearsal6", cidr: "2001:db8::/112" }],
      cooldownSeconds: 0,
    }),
    routing: slot("none", "routing"),
    api: { socket: join(directory, "s") },
    rehearsal: false,
  };
}

async function perform(socket: string, signal: AbortSignal): Promise<void> {
  const deadlineMs = systemClock.nowMs() + START_DEADLINE_MS;
  while (!existsSync(socket)) {
    if (systemClock.nowMs() > deadlineMs) throw new ManxError("rehearsal", `no socket within ${START_DEADLINE_MS} ms`);
    await systemClock.sleep(START_LOOK_MS, signal);
  }
  for (let pod = 0; pod < PODS; pod++) {
    using namespace = createNamespace("rehearsal pod");
    const containerId = `pod${pod}`;
    const variables = { CNI_CONTAINERID: containerId, CNI_IFNAME: "eth0", CNI_NETNS: namespacePath(namespace) };
    // Nearly all pods of nearly all nodes are IPv4; every fourth has both.
    const families = pod % 4 === 0 ? [4, 6] : [4];
    const config = {
      cniVersion: "1.0.0",
      name: "rehearsal",
      type: "manx",
      socket,
      families,
      args: { cni: { labels: [{ key: "app", value: "rehearsal" }] } },
    };
    const args = `K8S_POD_NAMESPACE=default;K8S_POD_NAME=${containerId}`;
    await call(socket, { CNI_COMMAND: "ADD", ...variables, CNI_ARGS: args }, config);
    await call(socket, { CNI_COMMAND: "DEL", ...variables }, config);
    await systemClock.sleep(PAUSE_MS, signal);
  }
}

/** As the plugin calls: src/cni/entry. */
async function call(socket: string, variables: Readonly<Record<string, string>>, config: unknown): Promise<void> {
  const lines = Object.entries({ MANX_SOCKET: socket, ...variables }).map(([name, value]) => `${name}=${value}\0`);
  const response = await fetch("http://manx/v1/cni/call", {
    unix: socket,
    method: "POST",
    body: `${lines.join("")}\0${JSON.stringify(config)}`,
    signal: AbortSignal.timeout(CALL_DEADLINE_MS),
  });
  const text = await response.text();
  if (text.startsWith("0")) return;
  const reason = text.startsWith("1") ? (JSON.parse(text.slice(1)) as { readonly msg: string }).msg : text;
  throw new ManxError("rehearsal", `${variables.CNI_COMMAND}: ${reason}`);
}
