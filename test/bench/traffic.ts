/**
 * A process of its own that sends real traffic from the namespace it was started in to listeners that it opened in others:
 * both ends in one thread, so that what is measured is the way between them and not two processes' turns. Reads a JSON line for
 * each order and answers it with one.
 */
import { createInterface } from "node:readline";
import { parseAddress } from "../../src/model/address.ts";
import {
  accept4,
  AF,
  buffer,
  check,
  close,
  connect,
  Errno,
  IPPROTO,
  listen,
  MSG,
  POLL,
  poll,
  recv,
  send,
  setsockopt,
  setsockoptInt,
  SO,
  SOCK,
  socket,
  SOL,
  TCP,
} from "../../src/kernel/libc.ts";
import { bind } from "../../src/kernel/libc.ts";
import { inNamespace, openNamespace } from "../../src/kernel/netns.ts";
import { inetSockaddr } from "../../src/kernel/sockaddr.ts";

export interface Target {
  /** Path of the network namespace that listens. */
  readonly namespace: string;
  readonly address: string;
  readonly port: number;
  /** Whom clients ask for it; absent: itself. */
  readonly via?: { readonly address: string; readonly port: number };
}

export type Order =
  | { readonly kind: "listen"; readonly targets: readonly Target[] }
  /** `at`: index of the target. */
  | { readonly kind: "connections" | "stream"; readonly at: number; readonly durationMs: number };

export interface Answer {
  /** Connections, or bytes, each second. */
  readonly perSecond: number;
  /** Of that, how much time of a processor it took: 1 = all of one. */
  readonly cpu: number;
}

const BACKLOG = 1024;
const CONNECT_TIMEOUT_MS = 2_000;
const CHUNK_BYTES = 256 * 1024;
/** So many between two looks at the clock. */
const BATCH = 32;

const listeners: { readonly fd: number; readonly address: Uint8Array }[] = [];
/** SO_LINGER on, 0 seconds: close is a reset, and the port is free again at once. */
const resetOnClose = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);

function listenAt({ namespace: path, address, port, via = { address, port } }: Target): void {
  using namespace = openNamespace(path);
  const sockaddr = inetSockaddr({ address: parseAddress(address), port });
  const fd = inNamespace(namespace, () => check("socket", socket(AF.INET, SOCK.STREAM | SOCK.CLOEXEC, IPPROTO.TCP)));
  check("reuse", setsockoptInt(fd, SOL.SOCKET, SO.REUSEADDR, 1));
  check(`bind ${address}`, bind(fd, sockaddr));
  check("listen", listen(fd, BACKLOG));
  listeners.push({ fd, address: inetSockaddr({ address: parseAddress(via.address), port: via.port }) });
}

/** A connected pair: the end here and the end there. */
function open(at: number): readonly [number, number] {
  const { fd: listener, address } = listeners[at]!;
  const near = check("socket", socket(AF.INET, SOCK.STREAM | SOCK.CLOEXEC, IPPROTO.TCP));
  check("linger", setsockopt(near, SOL.SOCKET, SO.LINGER, resetOnClose));
  // A policy that drops must not hang the benchmark.
  check("timeout", setsockoptInt(near, SOL.TCP, TCP.USER_TIMEOUT, CONNECT_TIMEOUT_MS));
  check("connect", connect(near, address));
  const far = check("accept", accept4(listener, SOCK.CLOEXEC));
  return [near, far];
}

function connections(at: number, durationMs: number): number {
  const startMs = performance.now();
  let count = 0;
  do {
    for (let i = 0; i < BATCH; i++) {
      const [near, far] = open(at);
      close(near);
      close(far);
    }
    count += BATCH;
  } while (performance.now() - startMs < durationMs);
  return count * 1000 / (performance.now() - startMs);
}

function stream(at: number, durationMs: number): number {
  const [near, far] = open(at);
  try {
    const out = buffer(CHUNK_BYTES), into = buffer(CHUNK_BYTES);
    const startMs = performance.now();
    let bytes = 0;
    do {
      for (let i = 0; i < BATCH; i++) {
        const sent = send(near, out, MSG.DONTWAIT | MSG.NOSIGNAL);
        if (sent < 0 && sent !== -Errno.EAGAIN) check("send", sent);
        for (let got = recv(far, into, MSG.DONTWAIT); got > 0; got = recv(far, into, MSG.DONTWAIT)) bytes += got;
        if (sent === -Errno.EAGAIN) poll([{ fd: near, events: POLL.OUT }, { fd: far, events: POLL.IN }], 100);
      }
    } while (performance.now() - startMs < durationMs);
    return bytes * 1000 / (performance.now() - startMs);
  } finally {
    close(near);
    close(far);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line) as Order;
  let perSecond = 0;
  const startMs = performance.now(), before = process.cpuUsage();
  if (order.kind === "listen") order.targets.forEach(listenAt);
  else perSecond = (order.kind === "connections" ? connections : stream)(order.at, order.durationMs);
  const { user, system } = process.cpuUsage(before);
  const cpu = (user + system) / 1000 / (performance.now() - startMs);
  console.log(JSON.stringify({ perSecond, cpu } satisfies Answer));
}
