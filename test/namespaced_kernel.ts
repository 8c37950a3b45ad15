/** A kernel door whose "host" is a network namespace of the test's own: nothing of the machine's is ever touched. */
import { createKernelDoor } from "../src/kernel/door.ts";
import { inNamespace } from "../src/kernel/netns.ts";
import type { KernelDoor, NetworkNamespace } from "../src/sdk/kernel_door.ts";

/** What says no namespace means `home`. */
export function namespacedKernel(home: NetworkNamespace): KernelDoor {
  const door = createKernelDoor();
  let elsewhere = 0;
  return {
    netlink: (protocol, options) => door.netlink(protocol, { namespace: home, ...options }),
    openNamespace: (path) => door.openNamespace(path),
    inNamespace: (namespace, body) => {
      elsewhere++;
      try {
        return door.inNamespace(namespace, body);
      } finally {
        elsewhere--;
      }
    },
    setSysctl: (path, value) =>
      elsewhere > 0 ? door.setSysctl(path, value) : inNamespace(home, () => door.setSysctl(path, value)),
  };
}
