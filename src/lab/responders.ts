/** Those who answer probes with their name, and see what arrives even where nothing comes of it. */
import { type Address, addressFamily, type Family } from "../model/address.ts";
import type { NetworkNamespace } from "../sdk/kernel_door.ts";
import { accept4, buffer, check, Errno, IPPROTO, listen, MSG, POLL, recv, send, sendto, SOCK } from "../kernel/libc.ts";
import { inetSockaddr, parseInetSockaddr } from "../kernel/sockaddr.ts";
import { attachFilter } from "../kernel/socket_filter.ts";
import type { ProbeProtocol } from "./expectation.ts";
import {
  ipv4Payload,
  readIcmp,
  readSctp,
  readToken,
  SCTP_CHUNK,
  sctpInitAck,
  synFilter,
  tcpSourcePort,
  type Token,
  writeToken,
} from "./packets.ts";
import { drain, echoProtocol, openBound, openSocket, type PollSet, type Received } from "./probe_socket.ts";

const LISTEN_BACKLOG = 1_024;

/** Somebody with a network namespace who sends and answers. */
export interface ProbeEnd {
  /** In reports, and what a responder answers. */
  readonly name: string;
  readonly namespace: NetworkNamespace;
}

/** Told of everything that arrives. */
export interface Witness {
  /** A packet that carries this token reached `end`. */
  token(end: ProbeEnd, token: Token): void;
  /** A TCP connection from this source port was asked for at `end`. */
  opening(end: ProbeEnd, sourcePort: number): void;
}

/** Opened once for each place that is tried, and kept. The sockets belong to `polled`, which closes them. */
export class Responders {
  readonly #polled: PollSet;
  readonly #prober: number;
  readonly #witness: Witness;
  readonly #inbox = buffer(1_024);
  /** By namespace: protocol, address and port. */
  readonly #serving = new Map<NetworkNamespace, Set<string>>();
  /** SCTP: who answers at an address, by namespace and address. */
  readonly #sctpPorts = new Map<NetworkNamespace, Map<Address, Set<number>>>();

  /** `prober` is the number in the tokens that are answered for. */
  constructor(polled: PollSet, prober: number, witness: Witness) {
    this.#polled = polled;
    this.#prober = prober;
    this.#witness = witness;
  }

  /** Answers on `port` of `address` of `end` from now on. Repeatable. @throws {KernelError} EADDRINUSE */
  serve(end: ProbeEnd, protocol: ProbeProtocol, address: Address, port: number): void {
    const family = addressFamily(address);
    this.#once(end, `${protocol} ${port} ${address}`, () => {
      if (protocol === "tcp") {
        this.#once(end, `tcp openings ${family}`, () => this.#watchOpenings(end, family));
        this.#serveTcp(end, address, port);
      } else if (protocol === "udp") this.#serveUdp(end, address, port);
      else if (protocol === "sctp") this.#serveSctp(end, address, port);
      // Echo requests are answered by the kernel of the end.
      else this.#once(end, `echo requests ${family}`, () => this.#watchEchoRequests(end, family));
    });
  }

  #once(end: ProbeEnd, what: string, open: () => void): void {
    let serving = this.#serving.get(end.namespace);
    if (serving === undefined) this.#serving.set(end.namespace, serving = new Set());
    if (serving.has(what)) return;
    open();
    serving.add(what);
  }

  #serveTcp(end: ProbeEnd, address: Address, port: number): void {
    const fd = openBound(end.namespace, "stream", IPPROTO.TCP, address, port);
    this.#polled.watch(fd, POLL.IN, () => {
      for (;;) {
        const accepted = accept4(fd, SOCK.NONBLOCK | SOCK.CLOEXEC);
        if (accepted < 0) return;
        this.#polled.watch(accepted, POLL.IN, () => this.#answerTcp(end, accepted));
      }
    });
    check(`listen in ${end.namespace.title}`, listen(fd, LISTEN_BACKLOG));
  }

  #answerTcp(end: ProbeEnd, fd: number): void {
    const count = recv(fd, this.#inbox, MSG.DONTWAIT);
    if (count === -Errno.EAGAIN) return;
    const token = count > 0 ? readToken(this.#inbox.subarray(0, count)) : undefined;
    if (token === undefined) return this.#polled.close(fd);
    this.#witness.token(end, token);
    send(fd, writeToken(token, end.name), MSG.NOSIGNAL);
  }

  #serveUdp(end: ProbeEnd, address: Address, port: number): void {
    const fd = openBound(end.namespace, "datagram", IPPROTO.UDP, address, port);
    this.#receive(fd, (data, from) => {
      const token = readToken(data);
      if (token === undefined) return;
      this.#witness.token(end, token);
      sendto(fd, writeToken(token, end.name), MSG.NOSIGNAL, from());
    });
  }

  /** One raw socket for each address, bound to it so that answers come from it. */
  #serveSctp(end: ProbeEnd, address: Address, port: number): void {
    let byAddress = this.#sctpPorts.get(end.namespace);
    if (byAddress === undefined) this.#sctpPorts.set(end.namespace, byAddress = new Map());
    const ports = byAddress.get(address);
    if (ports === undefined) byAddress.set(address, this.#answerSctp(end, address, new Set([port])));
    else ports.add(port);
  }

  #answerSctp(end: ProbeEnd, address: Address, ports: Set<number>): Set<number> {
    const family = addressFamily(address);
    const fd = openBound(end.namespace, "raw", IPPROTO.SCTP, address, 0);
    this.#receive(fd, (data, from) => {
      const init = readSctp(family === 4 ? ipv4Payload(data) : data);
      if (init?.chunk !== SCTP_CHUNK.INIT) return;
      const token = { prober: this.#prober, probe: init.initiateTag, attempt: init.initialTsn };
      this.#witness.token(end, token);
      if (!ports.has(init.destinationPort)) return;
      const peer = inetSockaddr({ address: parseInetSockaddr(from()).address, port: 0 });
      const ownTag = init.initiateTag ^ 0x55555555 || 1;
      sendto(fd, sctpInitAck(init, ownTag, writeToken(token, end.name)), MSG.NOSIGNAL, peer);
    });
    return ports;
  }

  #watchOpenings(end: ProbeEnd, family: Family): void {
    const fd = openSocket(end.namespace, family, "raw", IPPROTO.TCP);
    this.#receive(fd, (data) => {
      const sourcePort = tcpSourcePort(family === 4 ? ipv4Payload(data) : data);
      if (sourcePort !== undefined) this.#witness.opening(end, sourcePort);
    });
    check("filter a raw socket", attachFilter(fd, synFilter(family)));
  }

  #watchEchoRequests(end: ProbeEnd, family: Family): void {
    this.#receive(openSocket(end.namespace, family, "raw", echoProtocol(family)), (data) => {
      const news = readIcmp(family, family === 4 ? ipv4Payload(data) : data);
      if (news?.kind === "request") this.#witness.token(end, news.token);
    });
  }

  #receive(fd: number, received: Received): void {
    this.#polled.watch(fd, POLL.IN, () => drain(fd, received));
  }
}
