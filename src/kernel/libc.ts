/**
 * libc by `bun:ffi`: the one `dlopen` of the house, but for the CNI client's few calls (`blocking_io.ts`).
 *
 * Every call returns what the C function returns, or the negated errno (`-2` for ENOENT), so that hot paths can branch on it;
 * `check` turns the latter into a `KernelError`. Buffers that the kernel reads or writes come from `buffer()`: small typed
 * arrays move when their `.buffer` is first touched, a fresh `ArrayBuffer` never does.
 */
import { dlopen, type Pointer, ptr, read } from "bun:ffi";
import { KernelError } from "./errors.ts";

const { symbols: c } = dlopen("libc.so.6", {
  __errno_location: { args: [], returns: "ptr" },
  abort: { args: [], returns: "void" },
  accept4: { args: ["i32", "ptr", "ptr", "i32"], returns: "i32" },
  bind: { args: ["i32", "ptr", "u32"], returns: "i32" },
  close: { args: ["i32"], returns: "i32" },
  connect: { args: ["i32", "ptr", "u32"], returns: "i32" },
  fcntl: { args: ["i32", "i32", "i64"], returns: "i32" },
  flock: { args: ["i32", "i32"], returns: "i32" },
  fstatfs: { args: ["i32", "ptr"], returns: "i32" },
  getpeername: { args: ["i32", "ptr", "ptr"], returns: "i32" },
  getsockname: { args: ["i32", "ptr", "ptr"], returns: "i32" },
  getsockopt: { args: ["i32", "i32", "i32", "ptr", "ptr"], returns: "i32" },
  getuid: { args: [], returns: "u32" },
  ioctl: { args: ["i32", "u64", "ptr"], returns: "i32" },
  listen: { args: ["i32", "i32"], returns: "i32" },
  madvise: { args: ["u64", "u64", "i32"], returns: "i32" },
  mount: { args: ["ptr", "ptr", "ptr", "u64", "ptr"], returns: "i32" },
  open: { args: ["ptr", "i32", "u32"], returns: "i32" },
  poll: { args: ["ptr", "u64", "i32"], returns: "i32" },
  prctl: { args: ["i32", "u64", "u64", "u64", "u64"], returns: "i32" },
  read: { args: ["i32", "ptr", "u64"], returns: "i32" },
  recv: { args: ["i32", "ptr", "u64", "i32"], returns: "i32" },
  recvfrom: { args: ["i32", "ptr", "u64", "i32", "ptr", "ptr"], returns: "i32" },
  recvmsg: { args: ["i32", "ptr", "i32"], returns: "i32" },
  send: { args: ["i32", "ptr", "u64", "i32"], returns: "i32" },
  sendmsg: { args: ["i32", "ptr", "i32"], returns: "i32" },
  sendto: { args: ["i32", "ptr", "u64", "i32", "ptr", "u32"], returns: "i32" },
  setns: { args: ["i32", "i32"], returns: "i32" },
  setsockopt: { args: ["i32", "i32", "i32", "ptr", "u32"], returns: "i32" },
  shutdown: { args: ["i32", "i32"], returns: "i32" },
  socket: { args: ["i32", "i32", "i32"], returns: "i32" },
  umask: { args: ["u32"], returns: "u32" },
  umount2: { args: ["ptr", "i32"], returns: "i32" },
  unshare: { args: ["i32"], returns: "i32" },
  write: { args: ["i32", "ptr", "u64"], returns: "i32" },
});

/** errno is per thread; so is this module's instance, one a JS thread. */
const errnoAt = c.__errno_location() as Pointer;
/** errno must be read before anything else runs: the runtime's own calls overwrite it. */
const outcome = (returned: number): number => returned < 0 ? -read.i32(errnoAt, 0) : returned;

/** Bytes for the kernel to read or write: `capacityBytes` zeros that never move. */
export const buffer = (capacityBytes: number): Uint8Array<ArrayBuffer> =>
  new Uint8Array(new ArrayBuffer(capacityBytes));

const utf8 = new TextEncoder();
/** NUL-terminated UTF-8. */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  const encoded = utf8.encode(text);
  const bytes = buffer(encoded.length + 1);
  bytes.set(encoded);
  return bytes;
}

/** The value a call returned. @throws {KernelError} where it is a negated errno; `operation` says what was attempted */
export function check(operation: string, returned: number): number {
  if (returned < 0) throw new KernelError(operation, -returned);
  return returned;
}

/** errno numbers that callers branch on, include/uapi/asm-generic/errno-base.h. */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EAGAIN: 11,
  EEXIST: 17,
  EINVAL: 22,
  ENOBUFS: 105,
  EINPROGRESS: 115,
} as const;

export const AF = { UNIX: 1, INET: 2, INET6: 10, NETLINK: 16, PACKET: 17 } as const;
/** Socket types, and the flags that may be added to them. */
export const SOCK = { STREAM: 1, DGRAM: 2, RAW: 3, NONBLOCK: 0o4000, CLOEXEC: 0o2000000 } as const;
export const IPPROTO = { IP: 0, ICMP: 1, TCP: 6, UDP: 17, IPV6: 41, ICMPV6: 58, SCTP: 132, RAW: 255 } as const;
/** Levels and names of socket options: include/uapi/asm-generic/socket.h, linux/in.h, linux/in6.h, linux/tcp.h, linux/netlink.h. */
export const SOL = { SOCKET: 1, IP: 0, TCP: 6, IPV6: 41, NETLINK: 270 } as const;
export const SO = {
  REUSEADDR: 2,
  ERROR: 4,
  SNDBUF: 7,
  RCVBUF: 8,
  LINGER: 13,
  REUSEPORT: 15,
  RCVTIMEO: 20,
  SNDTIMEO: 21,
  BINDTODEVICE: 25,
  SNDBUFFORCE: 32,
  RCVBUFFORCE: 33,
  MARK: 36,
} as const;
export const IP = { TTL: 2, HDRINCL: 3, RECVERR: 11, TRANSPARENT: 19, FREEBIND: 15 } as const;
export const IPV6 = { UNICAST_HOPS: 16, RECVERR: 25, V6ONLY: 26 } as const;
export const TCP = { NODELAY: 1, USER_TIMEOUT: 18, SYNCNT: 7 } as const;
export const MSG = { PEEK: 2, TRUNC: 0x20, DONTWAIT: 0x40, NOSIGNAL: 0x4000, ERRQUEUE: 0x2000 } as const;
export const POLL = { IN: 1, OUT: 4, ERR: 8, HUP: 0x10, NVAL: 0x20, RDHUP: 0x2000 } as const;
/** open(2) flags of x86-64 and arm64 that agree on both. */
export const O = {
  RDONLY: 0,
  WRONLY: 1,
  RDWR: 2,
  CREAT: 0o100,
  EXCL: 0o200,
  NOCTTY: 0o400,
  TRUNC: 0o1000,
  APPEND: 0o2000,
  NONBLOCK: 0o4000,
  CLOEXEC: 0o2000000,
  PATH: 0o10000000,
} as const;
export const F = { GETFD: 1, SETFD: 2, GETFL: 3, SETFL: 4, DUPFD_CLOEXEC: 1030 } as const;
export const LOCK = { SH: 1, EX: 2, NB: 4, UN: 8 } as const;
/** Namespaces for `setns` and `unshare`, include/uapi/linux/sched.h. */
export const CLONE = { NEWNS: 0x20000, NEWUSER: 0x10000000, NEWNET: 0x40000000 } as const;
export const PR = { SET_PDEATHSIG: 1, SET_DUMPABLE: 4, SET_NAME: 15, SET_NO_NEW_PRIVS: 38 } as const;
/** mount(2) flags. */
export const MS = { NOSUID: 2, NODEV: 4, NOEXEC: 8, BIND: 4096, REC: 16384, PRIVATE: 1 << 18, SLAVE: 1 << 19 } as const;
/** umount2(2) flags. */
export const MNT = { DETACH: 2 } as const;

type Bytes = Uint8Array<ArrayBufferLike>;

export const socket = (family: number, type: number, protocol: number): number =>
  outcome(c.socket(family, type, protocol));
export const bind = (fd: number, address: Bytes): number => outcome(c.bind(fd, address, address.length));
export const connect = (fd: number, address: Bytes): number => outcome(c.connect(fd, address, address.length));
export const listen = (fd: number, backlog: number): number => outcome(c.listen(fd, backlog));
/** The accepted socket; the peer's address is not asked for (`getpeername` has it). `flags`: SOCK.NONBLOCK, SOCK.CLOEXEC. */
export const accept4 = (fd: number, flags: number): number => outcome(c.accept4(fd, null, null, flags));
/** `how`: 0 no more reads, 1 no more writes, 2 neither. */
export const shutdown = (fd: number, how: number): number => outcome(c.shutdown(fd, how));
export const close = (fd: number): number => outcome(c.close(fd));

export const send = (fd: number, data: Bytes, flags: number, countBytes = data.length): number =>
  outcome(c.send(fd, data, countBytes, flags));
export const sendto = (fd: number, data: Bytes, flags: number, address: Bytes): number =>
  outcome(c.sendto(fd, data, data.length, flags, address, address.length));
export const recv = (fd: number, into: Bytes, flags: number): number => outcome(c.recv(fd, into, into.length, flags));

const nameScratch = buffer(128);
const lengthScratch = buffer(4);
const lengthView = new DataView(lengthScratch.buffer);

/** The count of bytes (or -errno) and the sender's socket address, empty where there is none. */
export function recvfrom(
  fd: number,
  into: Bytes,
  flags: number,
): { readonly count: number; readonly from: Uint8Array } {
  lengthView.setUint32(0, nameScratch.length, true);
  const count = outcome(c.recvfrom(fd, into, into.length, flags, nameScratch, lengthScratch));
  return { count, from: nameScratch.slice(0, count < 0 ? 0 : Math.min(128, lengthView.getUint32(0, true))) };
}

/** struct msghdr and all that it points at: keep the object for as long as the kernel may use it. */
export interface MessageHeader {
  readonly header: Uint8Array<ArrayBuffer>;
  readonly name: Bytes | undefined;
  readonly parts: readonly Bytes[];
  readonly control: Bytes | undefined;
  readonly vector: Uint8Array<ArrayBuffer>;
}

/** Buffers for `sendmsg` and `recvmsg`: socket address, data in parts, control messages. All from `buffer()`. */
export function messageHeader(parts: readonly Bytes[], name?: Bytes, control?: Bytes): MessageHeader {
  const vector = buffer(Math.max(16, parts.length * 16));
  const vectorView = new DataView(vector.buffer);
  parts.forEach((part, i) => {
    vectorView.setBigUint64(i * 16, part.length === 0 ? 0n : BigInt(ptr(part)), true);
    vectorView.setBigUint64(i * 16 + 8, BigInt(part.length), true);
  });
  const header = buffer(56);
  const view = new DataView(header.buffer);
  if (name !== undefined && name.length > 0) {
    view.setBigUint64(0, BigInt(ptr(name)), true);
    view.setUint32(8, name.length, true);
  }
  view.setBigUint64(16, BigInt(ptr(vector)), true);
  view.setBigUint64(24, BigInt(parts.length), true);
  if (control !== undefined && control.length > 0) {
    view.setBigUint64(32, BigInt(ptr(control)), true);
    view.setBigUint64(40, BigInt(control.length), true);
  }
  return { header, name, parts, control, vector };
}

export const sendmsg = (fd: number, message: MessageHeader, flags: number): number =>
  outcome(c.sendmsg(fd, message.header, flags));

/** The count (or -errno), and what the kernel wrote back into the header. */
export function recvmsg(
  fd: number,
  message: MessageHeader,
  flags: number,
): { readonly count: number; readonly nameBytes: number; readonly controlBytes: number; readonly flags: number } {
  const count = outcome(c.recvmsg(fd, message.header, flags));
  const view = new DataView(message.header.buffer);
  return {
    count,
    nameBytes: view.getUint32(8, true),
    controlBytes: Number(view.getBigUint64(40, true)),
    flags: view.getInt32(48, true),
  };
}

export const setsockopt = (fd: number, level: number, option: number, value: Bytes): number =>
  outcome(c.setsockopt(fd, level, option, value, value.length));

/** An option whose value is a C int. */
export function setsockoptInt(fd: number, level: number, option: number, value: number): number {
  lengthView.setInt32(0, value, true);
  return outcome(c.setsockopt(fd, level, option, lengthScratch, 4));
}

/** SO.RCVTIMEO or SO.SNDTIMEO. */
export function setsockoptTimeout(fd: number, option: number, timeoutMs: number): number {
  const value = buffer(16);
  const view = new DataView(value.buffer);
  view.setBigInt64(0, BigInt(Math.floor(timeoutMs / 1000)), true);
  view.setBigInt64(8, BigInt(Math.round(timeoutMs % 1000) * 1000), true);
  return outcome(c.setsockopt(fd, SOL.SOCKET, option, value, 16));
}

/** Fills `into`; returns how many bytes the option has, or -errno. */
export function getsockopt(fd: number, level: number, option: number, into: Bytes): number {
  lengthView.setUint32(0, into.length, true);
  const returned = outcome(c.getsockopt(fd, level, option, into, lengthScratch));
  return returned < 0 ? returned : lengthView.getUint32(0, true);
}

const intScratch = buffer(4);
const intView = new DataView(intScratch.buffer);
/** An option whose value is a C int that is never negative, SO.ERROR for one; or -errno of the call itself. */
export function getsockoptInt(fd: number, level: number, option: number): number {
  const returned = getsockopt(fd, level, option, intScratch);
  return returned < 0 ? returned : intView.getInt32(0, true);
}

/** The socket's own address. @throws {KernelError} */
export function getsockname(fd: number): Uint8Array {
  lengthView.setUint32(0, nameScratch.length, true);
  check("getsockname", outcome(c.getsockname(fd, nameScratch, lengthScratch)));
  return nameScratch.slice(0, Math.min(128, lengthView.getUint32(0, true)));
}

/** The peer's address. @throws {KernelError} ENOTCONN */
export function getpeername(fd: number): Uint8Array {
  lengthView.setUint32(0, nameScratch.length, true);
  check("getpeername", outcome(c.getpeername(fd, nameScratch, lengthScratch)));
  return nameScratch.slice(0, Math.min(128, lengthView.getUint32(0, true)));
}

export interface PollInterest {
  readonly fd: number;
  /** POLL bits. */
  readonly events: number;
}

let pollScratch = buffer(64 * 8);

/**
 * The POLL bits of each entry, in order; all zero when `timeoutMs` passed (or a signal came) with nothing to tell. 0 looks once,
 * -1 waits for ever. Blocks the JS thread. @throws {KernelError}
 */
export function poll(interests: readonly PollInterest[], timeoutMs: number): number[] {
  if (pollScratch.length < interests.length * 8) pollScratch = buffer(interests.length * 16);
  const view = new DataView(pollScratch.buffer);
  for (let i = 0; i < interests.length; i++) {
    view.setInt32(i * 8, interests[i]!.fd, true);
    view.setUint32(i * 8 + 4, interests[i]!.events, true);
  }
  const returned = outcome(c.poll(pollScratch, interests.length, timeoutMs));
  const ready: number[] = [];
  if (returned === -Errno.EINTR) {
    for (let i = 0; i < interests.length; i++) ready.push(0);
    return ready;
  }
  check("poll", returned);
  for (let i = 0; i < interests.length; i++) ready.push(view.getUint16(i * 8 + 6, true));
  return ready;
}

/** MADV_*, include/uapi/asm-generic/mman-common.h. */
export const MADV = { DONTNEED: 4 } as const;
/** `address`, `lengthBytes`: of whole pages of this process, as /proc/self/maps has them. */
export const madvise = (address: number, lengthBytes: number, advice: number): number =>
  outcome(c.madvise(address, lengthBytes, advice));
export const open = (path: string, flags: number, mode = 0): number => outcome(c.open(cString(path), flags, mode));
export const readFd = (fd: number, into: Bytes): number => outcome(c.read(fd, into, into.length));
export const writeFd = (fd: number, data: Bytes): number => outcome(c.write(fd, data, data.length));
export const fcntl = (fd: number, command: number, argument: number): number => outcome(c.fcntl(fd, command, argument));
/** `operation`: LOCK bits. */
export const flock = (fd: number, operation: number): number => outcome(c.flock(fd, operation));
export const ioctl = (fd: number, request: number, argument: Bytes | null): number =>
  outcome(c.ioctl(fd, request, argument));

const statfsScratch = buffer(256);
/** f_type of the file system that holds the open file (statfs(2)), or -errno. */
export function fileSystemType(fd: number): number {
  const returned = outcome(c.fstatfs(fd, statfsScratch));
  return returned < 0 ? returned : new DataView(statfsScratch.buffer).getUint32(0, true);
}

export const setns = (fd: number, kind: number): number => outcome(c.setns(fd, kind));
export const unshare = (kinds: number): number => outcome(c.unshare(kinds));
export const prctl = (option: number, a = 0, b = 0, d = 0, e = 0): number => outcome(c.prctl(option, a, b, d, e));
/** The mask before. */
export const umask = (mask: number): number => c.umask(mask);
export const getuid = (): number => c.getuid();

export function mount(source: string, target: string, fileSystem: string, flags: number, data = ""): number {
  return outcome(c.mount(cString(source), cString(target), cString(fileSystem), flags, cString(data)));
}
export const umount2 = (target: string, flags: number): number => outcome(c.umount2(cString(target), flags));

/** Ends the process at once, for states that no code may run in. Says why on standard error first. */
export function abort(reason: string): never {
  const text = cString(`manx: ${reason}\n`);
  c.write(2, text, text.length - 1);
  c.abort();
  throw new Error(reason);
}
