/**
 * Files and a unix socket without an event loop, for a process that lives for one request: the CNI personality. Its own few
 * symbols, since its start is most of a pod's ADD: opening them takes less than 0.1 ms, while `console.log` costs 0.5 ms, a stream
 * of standard input 0.4 to 0.7, `fetch` 0.5 and `node:fs` 0.8. Never for the daemon: every call blocks the thread.
 */
import { dlopen, type Pointer, read } from "bun:ffi";

const { symbols: c } = dlopen("libc.so.6", {
  __errno_location: { args: [], returns: "ptr" },
  connect: { args: ["i32", "ptr", "u32"], returns: "i32" },
  poll: { args: ["ptr", "u64", "i32"], returns: "i32" },
  read: { args: ["i32", "ptr", "u64"], returns: "i32" },
  socket: { args: ["i32", "i32", "i32"], returns: "i32" },
  write: { args: ["i32", "ptr", "u64"], returns: "i32" },
});
const errnoAt = c.__errno_location() as Pointer;

const EINTR = 4, ENAMETOOLONG = 36;
const AF_UNIX = 1, SOCK_STREAM = 1, SOCK_CLOEXEC = 0o2000000;
const POLLIN = 1;
/** sizeof(struct sockaddr_un.sun_path), include/uapi/linux/un.h, less the NUL at its end. */
const PATH_LIMIT_BYTES = 107;
/** A CNI configuration or the answer to an ADD fits at once. */
const FIRST_READ_BYTES = 16 * 1024;

/** The kernel refused. A number only: the table of names would be loaded by every call for the sake of the few that fail. */
export class IoError extends Error {
  override readonly name = "IoError";
  constructor(readonly operation: string, readonly errno: number) {
    super(`${operation}: errno ${errno}`);
  }
}

/** Nothing came within the time that the caller gave. */
export class DeadlineError extends Error {
  override readonly name = "DeadlineError";
}

/** Repeats what a signal interrupted. @throws {IoError} */
function call(operation: string, attempt: () => number): number {
  for (;;) {
    const returned = attempt();
    if (returned >= 0) return returned;
    const errno = read.i32(errnoAt, 0);
    if (errno !== EINTR) throw new IoError(operation, errno);
  }
}

/**
 * What a descriptor gives until its end, or until there is more than `limitBytes` of it, or until `enough` says so.
 * @throws {IoError} where it cannot be read
 * @throws {DeadlineError} where `deadlineMs` (of `performance.now`) has passed
 */
export function readAll(
  fd: number,
  limitBytes: number,
  { deadlineMs, enough }: { readonly deadlineMs?: number; readonly enough?: (bytes: Uint8Array) => boolean } = {},
): Uint8Array {
  let bytes = new Uint8Array(new ArrayBuffer(FIRST_READ_BYTES)), length = 0;
  while (length <= limitBytes) {
    if (length === bytes.length) {
      const larger = new Uint8Array(new ArrayBuffer(bytes.length * 4));
      larger.set(bytes);
      bytes = larger;
    }
    if (deadlineMs !== undefined) waitReadable(fd, deadlineMs);
    const room = bytes.subarray(length);
    const got = call("read", () => c.read(fd, room, room.length));
    length += got;
    if (got === 0 || enough?.(bytes.subarray(0, length))) break;
  }
  return bytes.subarray(0, length);
}

/** struct pollfd, include/uapi/asm-generic/poll.h */
function waitReadable(fd: number, deadlineMs: number): void {
  const asked = new Uint8Array(new ArrayBuffer(8));
  const view = new DataView(asked.buffer);
  view.setInt32(0, fd, true);
  view.setInt16(4, POLLIN, true);
  const ready = call("poll", () => c.poll(asked, 1, Math.max(0, Math.ceil(deadlineMs - performance.now()))));
  if (ready === 0) throw new DeadlineError("nothing came in time");
}

/** Writes all of `bytes`. @throws {IoError} */
export function writeAll(fd: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) {
    const rest = bytes.subarray(at);
    at += call("write", () => c.write(fd, rest, rest.length));
  }
}

/** A connection to a unix socket; it lives as long as the process. @throws {IoError} */
export function connectUnix(path: string): number {
  const name = new TextEncoder().encode(path);
  if (name.length > PATH_LIMIT_BYTES) throw new IoError(`connect to ${path}`, ENAMETOOLONG);
  // struct sockaddr_un
  const address = new Uint8Array(new ArrayBuffer(2 + name.length + 1));
  address[0] = AF_UNIX;
  address.set(name, 2);
  const fd = call("socket", () => c.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  call(`connect to ${path}`, () => c.connect(fd, address, address.length));
  return fd;
}

/**
 * Sends `request` to a unix socket and reads until `enough` of the answer is there, or its end.
 * @throws {IoError} where the kernel refuses
 * @throws {DeadlineError} where the whole takes longer than `deadlineMs`
 */
export function exchange(
  path: string,
  request: Uint8Array,
  limits: { readonly deadlineMs: number; readonly bytes: number; readonly enough: (answer: Uint8Array) => boolean },
): Uint8Array {
  const deadlineMs = performance.now() + limits.deadlineMs;
  const fd = connectUnix(path);
  writeAll(fd, request);
  return readAll(fd, limits.bytes, { deadlineMs, enough: limits.enough });
}
