/** For tests: flows that live on while policy changes, with both ends in hand. */
import { errnoName } from "../../kernel/errors.ts";
import {
  accept4,
  buffer,
  check,
  close,
  connect,
  getsockname,
  getsockoptInt,
  listen,
  MSG,
  POLL,
  poll,
  recv,
  send,
  sendto,
  SO,
  SOCK,
  SOL,
} from "../../kernel/libc.ts";
import { inetSockaddr, parseInetSockaddr } from "../../kernel/sockaddr.ts";
import { type Address, addressFamily } from "../../model/address.ts";
import type { NetworkNamespace } from "../../sdk/kernel_door.ts";
import { echoRequest, ipv4Payload, protocolNumber, readSctp, SCTP_CHUNK, sctpInit, sctpInitAck } from "../packets.ts";
import { drain, echoProtocol, openBound, openSocket } from "../probe_socket.ts";

export type End = "client" | "server";
export const otherEnd = (end: End): End => end === "client" ? "server" : "client";

/** A connection that is answered at all is answered well within it. */
const OPEN_MS = 2_000;
const CHUNK_BYTES = 1_000;
const LOOK_MS = 5;

export interface LiveFlow extends Disposable {
  /** Sends something; what the socket said: a count, or the name of an errno. */
  say(from: End): number | string;
  /** Takes in what has arrived. */
  listen(): void;
  /** What has arrived so far: bytes of TCP, packets of the others. */
  readonly received: Readonly<Record<End, number>>;
}

/** Whether what `from` says now arrives within the time. */
export async function carries(flow: LiveFlow, from: End, waitMs: number): Promise<boolean> {
  flow.listen();
  const to = otherEnd(from), before = flow.received[to], endMs = performance.now() + waitMs;
  flow.say(from);
  for (;;) {
    flow.listen();
    if (flow.received[to] > before) return true;
    if (performance.now() > endMs) return false;
    await Bun.sleep(LOOK_MS);
  }
}

/** A TCP connection. Every byte is its place in the stream, and what arrives is held against that. */
export class TcpFlow implements LiveFlow {
  readonly sent = { client: 0, server: 0 };
  readonly received = { client: 0, server: 0 };
  /** What ended it for this end: an errno's name, or `end` where the other end closed. */
  readonly ended: { client?: string; server?: string } = {};
  readonly clientPort: number;
  readonly #fds: Readonly<Record<End, number>>;

  /** `to`: where the client dials, if that is not where the server listens. @throws {KernelError} */
  constructor(
    client: NetworkNamespace,
    server: NetworkNamespace,
    address: Address,
    port: number,
    to: { readonly address: Address; readonly port: number } = { address, port },
  ) {
    const listening = openBound(server, "stream", 0, address, port);
    const near = openSocket(client, addressFamily(address), "stream", 0);
    try {
      check("listen", listen(listening, 16));
      connect(near, inetSockaddr(to));
      poll([{ fd: near, events: POLL.OUT }], OPEN_MS);
      const failed = getsockoptInt(near, SOL.SOCKET, SO.ERROR);
      if (failed !== 0) throw new Error(`dial port ${to.port}: ${errnoName(failed)}`);
      poll([{ fd: listening, events: POLL.IN }], OPEN_MS);
      this.#fds = { client: near, server: check("accept", accept4(listening, SOCK.NONBLOCK | SOCK.CLOEXEC)) };
      this.clientPort = parseInetSockaddr(getsockname(near)).port;
    } catch (error) {
      close(near);
      throw error;
    } finally {
      close(listening);
    }
  }

  say(from: End): number | string {
    const data = buffer(CHUNK_BYTES);
    for (let i = 0; i < data.length; i++) data[i] = this.sent[from] + i & 0xff;
    const count = send(this.#fds[from], data, MSG.NOSIGNAL | MSG.DONTWAIT);
    if (count < 0) return this.#end(from, -count);
    this.sent[from] += count;
    return count;
  }

  listen(): void {
    const into = buffer(64 * 1024);
    for (const end of ["client", "server"] as const) {
      for (;;) {
        const count = recv(this.#fds[end], into, MSG.DONTWAIT);
        if (count <= 0) {
          this.#end(end, -count);
          break;
        }
        for (let i = 0; i < count; i++) {
          if (into[i] !== (this.received[end] + i & 0xff)) {
            throw new Error(`byte ${this.received[end] + i} of the ${otherEnd(end)} is another`);
          }
        }
        this.received[end] += count;
      }
    }
  }

  #end(end: End, errno: number): string {
    const name = errno === 0 ? "end" : errnoName(errno);
    if (name !== "EAGAIN") this.ended[end] ??= name;
    return name;
  }

  [Symbol.dispose](): void {
    close(this.#fds.client);
    close(this.#fds.server);
  }
}

/** Datagrams there and back between two sockets that know one another. */
export class UdpFlow implements LiveFlow {
  readonly received = { client: 0, server: 0 };
  readonly clientPort: number;
  readonly #fds: Readonly<Record<End, number>>;

  /** Until the client has said something that arrived, the server has nobody to speak to. */
  constructor(client: NetworkNamespace, server: NetworkNamespace, address: Address, port: number) {
    const far = openBound(server, "datagram", 0, address, port);
    const near = openSocket(client, addressFamily(address), "datagram", 0);
    check("connect", connect(near, inetSockaddr({ address, port })));
    const own = parseInetSockaddr(getsockname(near));
    check("connect back", connect(far, inetSockaddr(own)));
    this.clientPort = own.port;
    this.#fds = { client: near, server: far };
  }

  say(from: End): number | string {
    const count = send(this.#fds[from], buffer(16), MSG.NOSIGNAL | MSG.DONTWAIT);
    return count < 0 ? errnoName(-count) : count;
  }

  listen(): void {
    const into = buffer(64);
    for (const end of ["client", "server"] as const) {
      while (recv(this.#fds[end], into, MSG.DONTWAIT) > 0) this.received[end]++;
    }
  }

  [Symbol.dispose](): void {
    close(this.#fds.client);
    close(this.#fds.server);
  }
}

/** Echo requests; the server's kernel answers, so the server says nothing by itself. */
export class EchoFlow implements LiveFlow {
  readonly received = { client: 0, server: 0 };
  readonly #fds: Readonly<Record<End, number>>;
  readonly #to: Address;
  readonly #identifier: number;
  #sequence = 0;

  constructor(client: NetworkNamespace, server: NetworkNamespace, address: Address, identifier: number) {
    const family = addressFamily(address);
    this.#fds = {
      client: openSocket(client, family, "raw", echoProtocol(family)),
      server: openSocket(server, family, "raw", echoProtocol(family)),
    };
    this.#to = address;
    this.#identifier = identifier;
  }

  say(from: End): number | string {
    if (from === "server") throw new Error("the server of an echo flow only answers");
    const packet = echoRequest(addressFamily(this.#to), this.#identifier, this.#sequence++, buffer(8));
    return sendto(this.#fds.client, packet, MSG.DONTWAIT, inetSockaddr({ address: this.#to, port: 0 }));
  }

  listen(): void {
    const v4 = this.#to.length === 4;
    for (const end of ["client", "server"] as const) {
      const wanted = end === "server" ? (v4 ? 8 : 128) : (v4 ? 0 : 129);
      drain(this.#fds[end], (data) => {
        const message = v4 ? ipv4Payload(data) : data;
        if (message[0] === wanted && (message[4]! << 8 | message[5]!) === this.#identifier) this.received[end]++;
      });
    }
  }

  [Symbol.dispose](): void {
    close(this.#fds.client);
    close(this.#fds.server);
  }
}

/** The opening of an SCTP association, which connection tracking takes for one: INIT there, INIT ACK back. */
export class SctpFlow implements LiveFlow {
  readonly received = { client: 0, server: 0 };
  readonly #fds: Readonly<Record<End, number>>;
  readonly #ends: Readonly<Record<End, Address>>;
  readonly #init: Uint8Array<ArrayBuffer>;

  constructor(client: NetworkNamespace, server: NetworkNamespace, from: Address, to: Address, port: number) {
    const family = addressFamily(to), protocol = protocolNumber("sctp");
    this.#fds = {
      client: openSocket(client, family, "raw", protocol),
      server: openSocket(server, family, "raw", protocol),
    };
    this.#ends = { client: from, server: to };
    this.#init = sctpInit({ sourcePort: 40_000, destinationPort: port, initiateTag: 77, initialTsn: 1 });
  }

  say(from: End): number | string {
    const packet = from === "client" ? this.#init : sctpInitAck(readSctp(this.#init)!, 99, buffer(4));
    return sendto(
      this.#fds[from],
      packet,
      MSG.DONTWAIT,
      inetSockaddr({ address: this.#ends[otherEnd(from)], port: 0 }),
    );
  }

  listen(): void {
    for (const end of ["client", "server"] as const) {
      const wanted = end === "server" ? SCTP_CHUNK.INIT : SCTP_CHUNK.INIT_ACK;
      drain(this.#fds[end], (data) => {
        const packet = readSctp(this.#ends.client.length === 4 ? ipv4Payload(data) : data);
        if (packet?.chunk === wanted) this.received[end]++;
      });
    }
  }

  [Symbol.dispose](): void {
    close(this.#fds.client);
    close(this.#fds.server);
  }
}
