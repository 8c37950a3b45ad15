/** A kernel door whose "host" is another network namespace than the process's own: for rehearsals and tests. */
import type { KernelDoor, NetworkNamespace } from "../sdk/kernel_door.ts";
import { createKernelDoor } from "./door.ts";
import { inNamespace } from "./netns.ts";

/** What says no namespace means `home`; all goes through `door`. */
export function namespacedKernel(home: NetworkNamespace, door: KernelDoor = createKernelDoor()): KernelDoor {
  let elsewhere = 0;
  return {
    netlink: (protocol, options) => door.netlink(protocol, { namespace: home, ...options }),
    xtables: (family, namespace = home) => door.xtables(family, namespace),
    tryLock: (path) => door.tryLock(path),
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
