/** For tests: servers that say who they are, and clients that ask, over real sockets in namespaces, all in this process. */
import { type Address, formatAddress } from "../../src/model/address.ts";
import { errnoOf } from "../../src/kernel/errors.ts";
import {
  accept4,
  AF,
  bind,
  buffer,
  check,
  close,
  connect,
  Errno,
  getpeername,
  getsockoptInt,
  listen,
  MSG,
  POLL,
  poll,
  recv,
  recvfrom,
  send,
  sendto,
  setsockoptInt,
  SO,
  SOCK,
  socket,
  SOL,
} from "../../src/kernel/libc.ts";
import { inNamespace } from "../../src/kernel/netns.ts";
import { inetSockaddr, parseInetSockaddr } from "../../src/kernel/sockaddr.ts";
import { resetOnClose } from "../../src/lab/probe_socket.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { endpoint } from "../../src/model/testdata/services.ts";

/** Between namespaces of one machine an answer takes microseconds. */
export const SILENCE_MS = 150;
const ASK_TRIES = 3;
const REFUSED = errnoOf("ECONNREFUSED")!;
const TEXT = { encode: new TextEncoder(), decode: new TextDecoder() };

interface Server {
  readonly name: string;
  readonly fd: number;
  readonly isStream: boolean;
}

const familyOf = (address: Address): number => address.length === 4 ? AF.INET : AF.INET6;

function open(place: NetworkNamespace, address: Address, isStream: boolean): number {
  const type = (isStream ? SOCK.STREAM : SOCK.DGRAM) | SOCK.NONBLOCK | SOCK.CLOEXEC;
  return inNamespace(place, () => check("open socket", socket(familyOf(address), type, 0)));
}

export interface Held {
  /** Who took it. */
  readonly server: string | undefined;
  /** Whether bytes go both ways. */
  passes(): boolean;
  /** Ends it so that nobody remembers it for minutes. */
  reset(): void;
}

export class Conversation implements Disposable {
  private readonly servers: Server[] = [];
  private readonly clients = new Set<number>();

  /** So long without an answer is silence. */
  constructor(private readonly silenceMs = SILENCE_MS) {}

  /** `tcp 10.0.0.1:80`. */
  serve(name: string, place: NetworkNamespace, ...where: readonly string[]): void {
    for (const one of where) {
      const [protocol, at] = one.split(" ") as [string, string];
      const isStream = protocol === "tcp", here = endpoint(at);
      const fd = open(place, here.address, isStream);
      this.servers.push({ name, fd, isStream });
      check("reuse", setsockoptInt(fd, SOL.SOCKET, SO.REUSEADDR, 1));
      check(`bind ${one}`, bind(fd, inetSockaddr(here)));
      if (isStream) check("listen", listen(fd, 16));
    }
  }

  /** A client that goes on asking from one port, over UDP. */
  client(place: NetworkNamespace, to: string): { ask(): string } {
    const there = endpoint(to);
    const fd = open(place, there.address, false);
    this.clients.add(fd);
    check(`connect to ${to}`, connect(fd, inetSockaddr(there)));
    return { ask: () => this.hear(fd, false) };
  }

  /** A connection that stays open, once it is there; without a server it passes nothing. */
  hold(place: NetworkNamespace, to: string): Held {
    const there = endpoint(to);
    const fd = open(place, there.address, true);
    this.clients.add(fd);
    connect(fd, inetSockaddr(there));
    const doors = this.servers.filter(({ isStream }) => isStream);
    const at = poll(doors.map(({ fd }) => ({ fd, events: POLL.IN })), this.silenceMs).findIndex((events) =>
      events !== 0
    );
    const other = at < 0 ? undefined : accept4(doors[at]!.fd, SOCK.NONBLOCK | SOCK.CLOEXEC);
    if (other !== undefined) this.clients.add(other);
    const goes = (from: number, into: number): boolean => {
      if (send(from, TEXT.encode.encode("!"), MSG.NOSIGNAL) !== 1) return false;
      poll([{ fd: into, events: POLL.IN }], this.silenceMs);
      return recv(into, buffer(8), MSG.DONTWAIT) === 1;
    };
    return {
      server: doors[at]?.name,
      passes: () => other !== undefined && goes(fd, other) && goes(other, fd),
      reset: () => {
        this.clients.delete(fd);
        resetOnClose(fd);
        close(fd);
      },
    };
  }

  /** `tcp 10.96.0.1:80`: who answers, and whom the server saw: `b saw 10.0.0.1`; or `refused`, `silence`, `no route`. */
  ask(place: NetworkNamespace, what: string): string {
    const [protocol, to] = what.split(" ") as [string, string];
    const isStream = protocol === "tcp", there = endpoint(to);
    const fd = open(place, there.address, isStream);
    this.clients.add(fd);
    try {
      const returned = connect(fd, inetSockaddr(there));
      if (returned === -REFUSED) return "refused";
      if (returned < 0 && returned !== -Errno.EINPROGRESS) return `no route (${-returned})`;
      return this.hear(fd, isStream);
    } finally {
      this.clients.delete(fd);
      close(fd);
    }
  }

  /** Where an answer is wanted: whoever hears nothing asks again. A machine is slow at times. */
  askAgain(place: NetworkNamespace, what: string): string {
    for (let tries = 1;; tries++) {
      const answer = this.ask(place, what);
      if (answer !== "silence" || tries === ASK_TRIES) return answer;
    }
  }

  private hear(client: number, isStream: boolean): string {
    const into = buffer(256);
    if (!isStream) {
      const sent = send(client, TEXT.encode.encode("?"), MSG.NOSIGNAL);
      if (sent === -REFUSED) return "refused";
    }
    for (;;) {
      const fds = [client, ...this.servers.map(({ fd }) => fd)];
      const ready = poll(fds.map((fd) => ({ fd, events: POLL.IN })), this.silenceMs);
      if (ready.every((events) => events === 0)) return "silence";
      for (const [i, server] of this.servers.entries()) if (ready[i + 1] !== 0) answer(server);
      if (ready[0] === 0) continue;
      const failure = getsockoptInt(client, SOL.SOCKET, SO.ERROR);
      if (failure === REFUSED) return "refused";
      const count = recv(client, into, MSG.DONTWAIT);
      if (count > 0) return TEXT.decode.decode(into.subarray(0, count));
      if (count !== -Errno.EAGAIN) return count === -REFUSED ? "refused" : `error ${-count}`;
    }
  }

  [Symbol.dispose](): void {
    for (const { fd } of this.servers) close(fd);
    for (const fd of this.clients) close(fd);
  }
}

function answer({ name, fd, isStream }: Server): void {
  if (isStream) {
    const connection = accept4(fd, SOCK.CLOEXEC);
    if (connection < 0) return;
    const { address } = parseInetSockaddr(getpeername(connection));
    send(connection, TEXT.encode.encode(`${name} saw ${formatAddress(address)}`), MSG.NOSIGNAL);
    close(connection);
    return;
  }
  const { count, from } = recvfrom(fd, buffer(64), MSG.DONTWAIT);
  if (count < 0) return;
  const peer = parseInetSockaddr(from);
  sendto(fd, TEXT.encode.encode(`${name} saw ${formatAddress(peer.address)}`), MSG.NOSIGNAL, inetSockaddr(peer));
}
