/** For tests: traffic that must go on, and traffic that must never begin, while dataplanes change. */
import {
  accept4,
  buffer,
  check,
  close,
  connect,
  Errno,
  listen,
  MSG,
  POLL,
  poll,
  recv,
  send,
  SOCK,
} from "../../src/kernel/libc.ts";
import { inetSockaddr } from "../../src/kernel/sockaddr.ts";
import { openBound, openSocket, resetOnClose } from "../../src/lab/probe_socket.ts";
import { type Address, addressFamily, parseAddress } from "../../src/model/address.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { ALLOWED, DENIED, type LiveNode } from "./dataplane_live_node.ts";

const DEADLINE_MS = 15_000;
/** Connections that are tried at once; a denied one is given up after that. */
const TRIES_AT_ONCE = 8;

const ANY: Readonly<Record<4 | 6, Address>> = { 4: parseAddress("0.0.0.0"), 6: parseAddress("::") };

/** Bytes that go on and on from the client to the server and back, over TCP. */
export class Transfer implements Disposable {
  readonly #near: number;
  readonly #far: number;
  /** Lengths of what was sent, and came: of each byte its value is its place. */
  readonly #counts = { out: 0, there: 0, back: 0, home: 0 };
  readonly #chunk = buffer(4_096);
  readonly #inbox = buffer(16_384);

  constructor(node: LiveNode, to: Address) {
    const listening = openBound(node.pod("server"), "stream", 0, ANY[addressFamily(to)], ALLOWED);
    check("listen", listen(listening, 1));
    this.#near = openSocket(node.pod("client"), addressFamily(to), "stream", 0);
    connect(this.#near, inetSockaddr({ address: to, port: ALLOWED }));
    poll([{ fd: listening, events: POLL.IN }], DEADLINE_MS);
    this.#far = check("accept", accept4(listening, SOCK.NONBLOCK | SOCK.CLOEXEC));
    close(listening);
  }

  get bytes(): number {
    return this.#counts.home;
  }

  /** As much as goes without waiting, both ways. @throws {Error} where the connection breaks, or bytes are others than were sent */
  pump(): void {
    this.#send(this.#near, "out");
    this.#receive(this.#far, "there");
    this.#send(this.#far, "back");
    this.#receive(this.#near, "home");
  }

  #send(fd: number, count: "out" | "back"): void {
    for (let i = 0; i < this.#chunk.length; i++) this.#chunk[i] = (this.#counts[count] + i) & 0xff;
    const sent = send(fd, this.#chunk, MSG.NOSIGNAL | MSG.DONTWAIT);
    if (sent === -Errno.EAGAIN) return;
    this.#counts[count] += check("send on the long connection", sent);
  }

  #receive(fd: number, count: "there" | "home"): void {
    for (;;) {
      const received = recv(fd, this.#inbox, MSG.DONTWAIT);
      if (received === -Errno.EAGAIN) return;
      if (check("receive on the long connection", received) === 0) throw new Error("the long connection has ended");
      for (let i = 0; i < received; i++) {
        if (this.#inbox[i] !== ((this.#counts[count] + i) & 0xff)) {
          throw new Error("bytes of the long connection are lost");
        }
      }
      this.#counts[count] += received;
    }
  }

  [Symbol.dispose](): void {
    close(this.#near);
    close(this.#far);
  }
}

/** Tries, without a pause, what policy denies: datagrams, and connections. */
export class Forbidden implements Disposable {
  tries = 0;
  readonly #to: Address;
  readonly #client: NetworkNamespace;
  readonly #heard: number;
  readonly #listening: number;
  readonly #sender: number;
  readonly #open: number[] = [];
  readonly #inbox = buffer(64);

  constructor(node: LiveNode, to: Address) {
    const family = addressFamily(to);
    this.#to = to;
    this.#client = node.pod("client");
    this.#heard = openBound(node.pod("server"), "datagram", 0, ANY[family], DENIED);
    this.#listening = openBound(node.pod("server"), "stream", 0, ANY[family], DENIED);
    check("listen", listen(this.#listening, 128));
    this.#sender = openSocket(this.#client, family, "datagram", 0);
  }

  /** What has got through, a line each. */
  pump(): readonly string[] {
    const { family, to } = { family: addressFamily(this.#to), to: inetSockaddr({ address: this.#to, port: DENIED }) };
    // Connected anew each time: an error that came for the last one would be told instead of sending.
    connect(this.#sender, to);
    send(this.#sender, this.#inbox.subarray(0, 8), MSG.NOSIGNAL | MSG.DONTWAIT);
    const fd = openSocket(this.#client, family, "stream", 0);
    connect(fd, to);
    this.#open.push(fd);
    if (this.#open.length > TRIES_AT_ONCE) this.#giveUp(this.#open.shift()!);
    this.tries += 2;
    return this.leaked();
  }

  leaked(): readonly string[] {
    const leaks: string[] = [];
    const family = addressFamily(this.#to);
    if (recv(this.#heard, this.#inbox, MSG.DONTWAIT) >= 0) {
      leaks.push(`a datagram over IPv${family} at try ${this.tries}`);
    }
    const accepted = accept4(this.#listening, SOCK.NONBLOCK | SOCK.CLOEXEC);
    if (accepted >= 0) {
      leaks.push(`a connection over IPv${family} at try ${this.tries}`);
      this.#giveUp(accepted);
    }
    return leaks;
  }

  #giveUp(fd: number): void {
    resetOnClose(fd);
    close(fd);
  }

  [Symbol.dispose](): void {
    for (const fd of this.#open) this.#giveUp(fd);
    for (const fd of [this.#heard, this.#listening, this.#sender]) close(fd);
  }
}
