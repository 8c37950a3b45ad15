/** A `Host` for opening one plugin by itself. */
import { createKernelDoor } from "../../src/kernel/door.ts";
import type { Datastore } from "../../src/sdk/datastore.ts";
import type { KernelDoor } from "../../src/sdk/kernel_door.ts";
import type { Host, Log } from "../../src/sdk/plugin.ts";

const quiet: Log = { debug() {}, info() {}, warn: console.warn, error: console.error };

export function benchHost(
  node: string,
  stateDirectory: string,
  datastore?: Datastore,
  kernel: KernelDoor = createKernelDoor(),
): Host {
  return {
    node,
    log: quiet,
    clock: {
      nowMs: () => performance.now(),
      wallMs: () => Date.now(),
      sleep: (ms) => Bun.sleep(ms),
    },
    kernel,
    get datastore(): Datastore {
      if (datastore === undefined) throw new Error("this host was made without a datastore");
      return datastore;
    },
    stateDirectory,
  };
}
