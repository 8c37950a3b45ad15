/** For tests: the dataplane inside a namespace of the test's own. */
import type { Dataplane } from "../../../src/sdk/dataplane.ts";
import type { NetlinkSocket, NetworkNamespace } from "../../../src/sdk/kernel_door.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import { errnoOf, KernelError } from "../../../src/kernel/errors.ts";
import { createKernelDoor } from "../../../src/kernel/door.ts";
import nftables from "../mod.ts";

/** What a test does to the dataplane's way to the kernel. */
export interface Hooks {
  /** Right before each transaction that applies something. */
  readonly beforeApply?: () => void;
  /** Each time events come: true = they are lost, as when the socket's buffer overflows. */
  readonly losesEvents?: () => boolean;
  /** Each time a socket for events is opened. */
  readonly listens?: () => void;
}

function intercepted(socket: NetlinkSocket, hooks: Hooks): NetlinkSocket {
  const transaction = socket.transaction.bind(socket), events = socket.events.bind(socket);
  socket.transaction = (operation, ...rest) => {
    if (operation.startsWith("apply ")) hooks.beforeApply?.();
    transaction(operation, ...rest);
  };
  socket.events = async function* (signal) {
    hooks.listens?.();
    for await (const messages of events(signal)) {
      if (hooks.losesEvents?.()) throw new KernelError("listen for netlink events", errnoOf("ENOBUFS")!);
      yield messages;
    }
  };
  return socket;
}

/** The dataplane, inside the namespace. */
export function openDataplane(namespace: NetworkNamespace, config?: unknown, hooks: Hooks = {}): Promise<Dataplane> {
  const door = createKernelDoor();
  const host: Host = {
    node: "test",
    log: { debug() {}, info() {}, warn() {}, error() {} },
    clock: {
      nowMs: () => performance.now(),
      wallMs: () => Date.now(),
      sleep: (ms, signal) =>
        new Promise((resolve, reject) => {
          const timer = setTimeout(resolve, ms);
          signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
        }),
    },
    kernel: {
      ...door,
      netlink: (protocol, options) => intercepted(door.netlink(protocol, { ...options, namespace }), hooks),
    },
    get datastore(): never {
      throw new Error("the dataplane has no use for a datastore");
    },
    stateDirectory: "/nonexistent",
  };
  return nftables.open(nftables.parseConfig(config), host, new AbortController().signal);
}
