/** For tests: the dataplane inside a namespace of the test's own. */
import { namespacedKernel } from "../../../src/kernel/namespaced_door.ts";
import type { Dataplane } from "../../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../../src/sdk/kernel_door.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import iptables from "../mod.ts";
import { lockFileOf } from "./tools.ts";

/** Legacy where `config` does not say otherwise. `slept`: each time it has waited for something. */
export function openDataplane(
  namespace: NetworkNamespace,
  config: Readonly<Record<string, unknown>> = {},
  slept: () => void = () => {},
): Promise<Dataplane> {
  const host: Host = {
    node: "test",
    log: { debug() {}, info() {}, warn() {}, error() {} },
    clock: {
      nowMs: () => performance.now(),
      wallMs: () => Date.now(),
      sleep: (ms, signal) =>
        new Promise((resolve, reject) => {
          const timer = setTimeout(() => (slept(), resolve()), ms);
          signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
        }),
    },
    kernel: namespacedKernel(namespace),
    get datastore(): never {
      throw new Error("the dataplane has no use for a datastore");
    },
    stateDirectory: "/nonexistent",
  };
  const given = { variant: "legacy", lockFile: lockFileOf(namespace), lockWaitMs: 200, pollMs: 50, ...config };
  return iptables.open(iptables.parseConfig(given), host, new AbortController().signal);
}
