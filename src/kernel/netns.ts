/**
 * Network namespaces: the only file that calls `setns` and `unshare`.
 *
 * Namespaces belong to threads and FFI calls run on the JS thread, so a switch is sound as long as it is synchronous: enter,
 * work, leave, with nothing of the event loop in between. What a body opens inside (sockets above all) stays in that namespace.
 */
import type { NetworkNamespace } from "../sdk/kernel_door.ts";
import { KernelError } from "./errors.ts";
import { abort, check, CLONE, close, Errno, F, fcntl, fileSystemType, ioctl, O, open, setns, unshare } from "./libc.ts";

/** NSFS_MAGIC, include/uapi/linux/magic.h. */
const NSFS_MAGIC = 0x6e736673;
/** _IO(NSIO, 3): which kind a namespace file is; include/uapi/linux/nsfs.h. */
const NS_GET_NSTYPE = 0xb703;
/** Not /proc/self: that is the main thread, and this may run in a worker. */
const OWN_PATH = "/proc/thread-self/ns/net";

class HeldNamespace implements NetworkNamespace {
  private held = true;
  private readonly heldFd: number;
  constructor(fd: number, readonly title: string) {
    this.heldFd = fd;
  }
  /** A use after dispose is a bug: its number may already be somebody else's file. */
  get fd(): number {
    if (!this.held) throw new Error(`network namespace ${this.title} is used after it was closed`);
    return this.heldFd;
  }
  [Symbol.dispose](): void {
    if (!this.held) return;
    this.held = false;
    close(this.heldFd);
  }
}

/**
 * Holds the namespace that `path` names: a bind mount such as /run/netns/NAME, or /proc/PID/ns/net.
 * @throws {KernelError} ENOENT where the path is missing, EINVAL where it is not a network namespace
 */
export function openNamespace(path: string): NetworkNamespace {
  const operation = `open network namespace ${path}`;
  if (path.includes("\0")) throw new KernelError(operation, Errno.EINVAL, { kernelText: "the path holds a NUL" });
  // O_PATH first: opening a fifo or a device for reading can block or do things, and the path came from outside.
  const probe = check(operation, open(path, O.PATH | O.CLOEXEC));
  try {
    const kind = check(operation, fileSystemType(probe));
    if (kind !== NSFS_MAGIC) throw new KernelError(operation, Errno.EINVAL, { kernelText: "not a namespace file" });
    const fd = check(operation, open(`/proc/thread-self/fd/${probe}`, O.RDONLY | O.CLOEXEC));
    const type = ioctl(fd, NS_GET_NSTYPE, null);
    if (type !== CLONE.NEWNET) {
      close(fd);
      throw new KernelError(operation, Errno.EINVAL, { kernelText: "a namespace, but not a network namespace" });
    }
    return new HeldNamespace(fd, path);
  } finally {
    close(probe);
  }
}

/** Holds the namespace the calling thread is in. @throws {KernelError} */
export function currentNamespace(title = "own"): NetworkNamespace {
  return new HeldNamespace(check("open own network namespace", open(OWN_PATH, O.RDONLY | O.CLOEXEC)), title);
}

/**
 * A new, empty namespace (its loopback is down) that lives while somebody holds it. Other processes reach it as
 * `namespacePath` while this process holds it. @throws {KernelError} EPERM without CAP_SYS_ADMIN
 */
export function createNamespace(title: string): NetworkNamespace {
  const operation = `create network namespace ${title}`;
  const home = check(operation, open(OWN_PATH, O.RDONLY | O.CLOEXEC));
  try {
    check(operation, unshare(CLONE.NEWNET));
    const fd = open(OWN_PATH, O.RDONLY | O.CLOEXEC);
    goBack(home, title);
    return new HeldNamespace(check(operation, fd), title);
  } finally {
    close(home);
  }
}

/** A second, independent hold. @throws {KernelError} EMFILE */
export function duplicateNamespace(namespace: NetworkNamespace): NetworkNamespace {
  const fd = check(`hold network namespace ${namespace.title}`, fcntl(namespace.fd, F.DUPFD_CLOEXEC, 0));
  return new HeldNamespace(fd, namespace.title);
}

/** A path by which another process may open the namespace while this process holds it. */
export const namespacePath = (namespace: NetworkNamespace): string => `/proc/${process.pid}/fd/${namespace.fd}`;

/**
 * Runs `body` with the calling thread inside `namespace` and returns its value. Synchronous: a body that returns a promise is a
 * bug and throws. May be nested. @throws {KernelError} where the namespace cannot be entered, and whatever `body` throws
 */
export function inNamespace<T>(namespace: NetworkNamespace, body: () => T): T {
  const operation = `enter network namespace ${namespace.title}`;
  const home = check(operation, open(OWN_PATH, O.RDONLY | O.CLOEXEC));
  try {
    check(operation, setns(namespace.fd, CLONE.NEWNET));
    let value: T;
    try {
      value = body();
    } finally {
      goBack(home, namespace.title);
    }
    if (value instanceof Promise || typeof (value as { then?: unknown } | null | undefined)?.then === "function") {
      throw new Error(
        `the body run in network namespace ${namespace.title} returned a promise: it must be synchronous`,
      );
    }
    return value;
  } finally {
    close(home);
  }
}

/** A thread lost in a foreign namespace would do harm there with every further call: better no process than that. */
function goBack(home: number, from: string): void {
  const returned = setns(home, CLONE.NEWNET);
  if (returned < 0) abort(`cannot leave network namespace ${from}: errno ${-returned}`);
}
