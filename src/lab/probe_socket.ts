/** Non-blocking inet sockets inside a namespace, and a poll loop over many of them. */
import { type Address, addressFamily, type Family } from "../model/address.ts";
import type { NetworkNamespace } from "../sdk/kernel_door.ts";
import { KernelError } from "../kernel/errors.ts";
import {
  AF,
  bind,
  buffer,
  check,
  close,
  IPPROTO,
  IPV6,
  MSG,
  poll,
  type PollInterest,
  recvfrom,
  setsockopt,
  setsockoptInt,
  SO,
  SOCK,
  socket,
  SOL,
} from "../kernel/libc.ts";
import { inNamespace } from "../kernel/netns.ts";
import { inetSockaddr } from "../kernel/sockaddr.ts";

/** Bytes that raw and datagram sockets may queue for us before we look; the kernel grants what it allows. */
const RECEIVE_QUEUE_BYTES = 4 << 20;

export type SocketType = "stream" | "datagram" | "raw";
const TYPES: Readonly<Record<SocketType, number>> = { stream: SOCK.STREAM, datagram: SOCK.DGRAM, raw: SOCK.RAW };

/** A socket of `namespace`; lives there from then on. @throws {KernelError} */
export function openSocket(namespace: NetworkNamespace, family: Family, type: SocketType, protocol: number): number {
  const operation = `open a ${type} socket of protocol ${protocol} in ${namespace.title}`;
  const domain = family === 4 ? AF.INET : AF.INET6;
  const fd = inNamespace(namespace, () => socket(domain, TYPES[type] | SOCK.NONBLOCK | SOCK.CLOEXEC, protocol));
  check(operation, fd);
  if (type !== "stream") {
    // The forced form ignores net.core.rmem_max, and needs CAP_NET_ADMIN of the machine itself: not had in a user namespace.
    if (setsockoptInt(fd, SOL.SOCKET, SO.RCVBUFFORCE, RECEIVE_QUEUE_BYTES) < 0) {
      setsockoptInt(fd, SOL.SOCKET, SO.RCVBUF, RECEIVE_QUEUE_BYTES);
    }
  }
  if (family === 6 && type !== "raw") setsockoptInt(fd, SOL.IPV6, IPV6.V6ONLY, 1);
  return fd;
}

/** Binds; 0 or -errno. */
export const bindTo = (fd: number, address: Address, port: number): number => bind(fd, inetSockaddr({ address, port }));

/** A socket bound to one of `namespace`'s addresses. @throws {KernelError} EADDRNOTAVAIL where it has no such address */
export function openBound(
  namespace: NetworkNamespace,
  type: SocketType,
  protocol: number,
  address: Address,
  port: number,
): number {
  const fd = openSocket(namespace, addressFamily(address), type, protocol);
  if (type === "stream") setsockoptInt(fd, SOL.SOCKET, SO.REUSEADDR, 1);
  const bound = bindTo(fd, address, port);
  if (bound < 0) {
    close(fd);
    throw new KernelError(`bind protocol ${protocol} port ${port} in ${namespace.title}`, -bound);
  }
  return fd;
}

/** Makes `close` send a reset, so that neither end keeps the connection's state. SO_LINGER with a time of 0, socket(7). */
export function resetOnClose(fd: number): void {
  const linger = buffer(8);
  linger[0] = 1;
  setsockopt(fd, SOL.SOCKET, SO.LINGER, linger);
}

/** Gives what `fd` is ready for, POLL bits. */
export type Ready = (events: number) => void;

/** Many descriptors, one poll. */
export class PollSet {
  readonly #watched = new Map<number, { events: number; ready: Ready }>();
  #interests: PollInterest[] | undefined;

  /** Watches `fd` for `events` (POLL bits), instead of what was watched before. */
  watch(fd: number, events: number, ready: Ready): void {
    this.#watched.set(fd, { events, ready });
    this.#interests = undefined;
  }

  /** Stops watching and closes. */
  close(fd: number): void {
    if (!this.#watched.delete(fd)) return;
    this.#interests = undefined;
    close(fd);
  }

  /** Calls whoever is ready, waiting at most `timeoutMs` for the first. Returns how many there were. @throws {KernelError} */
  poll(timeoutMs: number): number {
    const interests = this.#interests ??= [...this.#watched].map(([fd, { events }]) => ({ fd, events }));
    const ready = poll(interests, timeoutMs);
    let count = 0;
    for (let i = 0; i < ready.length; i++) {
      if (ready[i] === 0) continue;
      count++;
      // A handler before this one may have closed it.
      this.#watched.get(interests[i]!.fd)?.ready(ready[i]!);
    }
    return count;
  }

  [Symbol.dispose](): void {
    for (const fd of this.#watched.keys()) close(fd);
    this.#watched.clear();
    this.#interests = undefined;
  }
}

const inbox = buffer(4_096);

/** One datagram; `from` gives the sender's socket address, fit to be sent to. Neither outlives the call. */
export type Received = (data: Uint8Array, from: () => Uint8Array<ArrayBuffer>) => void;

/** Takes in all that a datagram or raw socket holds. */
export function drain(fd: number, received: Received): void {
  for (;;) {
    const { count, from } = recvfrom(fd, inbox, MSG.DONTWAIT);
    // Errors are ICMP's about earlier answers, told once each; anything else shows on the next look.
    if (count < 0) return;
    received(inbox.subarray(0, count), () => {
      const copy = buffer(from.length);
      copy.set(from);
      return copy;
    });
  }
}

/** Protocols of raw sockets, by family. */
export const echoProtocol = (family: Family): number => family === 4 ? IPPROTO.ICMP : IPPROTO.ICMPV6;
