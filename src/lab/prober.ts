/**
 * Tries with real packets who reaches whom: one process, sockets opened inside the namespaces of both ends.
 *
 * Every probe names itself in its packets (a source port or echo identifier of its own, and a token in what it says), so that
 * thousands run at once and an arrival is told apart from everybody else's, even behind address translation. Every tried port has
 * a responder that answers with its name: silence is never for want of somebody who would have answered.
 */
import { type Address, addressFamily, type Family, formatAddress } from "../model/address.ts";
import type { NetworkNamespace } from "../sdk/kernel_door.ts";
import { errnoName, errnoText, KernelError } from "../kernel/errors.ts";
import {
  buffer,
  close,
  connect,
  Errno,
  getsockoptInt,
  IPPROTO,
  MSG,
  POLL,
  recv,
  send,
  sendto,
  SO,
  SOL,
} from "../kernel/libc.ts";
import { inetSockaddr, parseInetSockaddr } from "../kernel/sockaddr.ts";
import type { ProbeProtocol } from "./expectation.ts";
import {
  echoRequest,
  ipv4Payload,
  ipv4Source,
  protocolNumber,
  readIcmp,
  readSctp,
  readToken,
  SCTP_CHUNK,
  sctpInit,
  writeToken,
} from "./packets.ts";
import {
  bindTo,
  drain,
  echoProtocol,
  openBound,
  openSocket,
  PollSet,
  type Received,
  resetOnClose,
} from "./probe_socket.ts";
import { type ProbeEnd, Responders } from "./responders.ts";

/**
 * How long silence is watched before it counts as denied. Inside one machine a packet arrives within a millisecond or not at all:
 * the kernel hands it from namespace to namespace in the sender's own time. The rest is for a machine with other work to do.
 */
export const DENY_WINDOW_MS = 300;
/** How long an answer that must come is waited for. Only what fails takes this long. */
export const ALLOW_DEADLINE_MS = 2_000;
/** When an unanswered probe tries again, counted from its start: a denial that lets the second packet through is none. */
export const RETRY_AT_MS: readonly number[] = [150, 500, 1_000];
/** Probes at once; each holds up to a handful of descriptors. */
export const MAX_IN_FLIGHT = 1_000;
/** So long at a stretch are probes started: on a slow machine the first ones would wait for all the others, past their deadline. */
const START_SLICE_MS = 20;
/** The JS thread is given back this often, for signals and the output of children. */
const POLL_SLICE_MS = 10;
/** Source ports and echo identifiers, used in turn: as Linux's own ephemeral ports, so that no served port is among them. */
const FLOWS = { first: 32_768, count: 28_000 } as const;
const BIND_ATTEMPTS = 64;

export type { ProbeEnd } from "./responders.ts";

export interface Probe {
  readonly from: ProbeEnd;
  /** One of `from`'s addresses. */
  readonly source: Address;
  /** Where packets are sent; of the same family. */
  readonly to: Address;
  readonly protocol: ProbeProtocol;
  /** 0 for icmp and icmpv6. */
  readonly port: number;
  /** Who has to answer there. Behind address translation, that end's own address and port. */
  readonly target: { readonly end: ProbeEnd; readonly address: Address; readonly port: number };
  readonly expect: "allow" | "deny";
}

/**
 * `answered`: the target's own answer came back. `wrong-answer`: somebody else's did. `arrived`: the target saw it, no answer came
 * back. `refused`: a reset or abort came. `unreachable`: an ICMP error or no route. `blocked`: the sender's own node refused to send
 * it (EPERM). `silent`: nothing was seen anywhere.
 */
export type Observation = "answered" | "wrong-answer" | "arrived" | "refused" | "unreachable" | "blocked" | "silent";

export interface ProbeResult {
  readonly probe: Probe;
  readonly observed: Observation;
  /** Whether it is as expected: `answered` where allowed, `silent` or `blocked` where denied. */
  readonly holds: boolean;
  /** The attempt that was answered, 1 = the first; else how many were made. */
  readonly attempts: number;
  /** Milliseconds from the first packet to what was observed. */
  readonly afterMs: number;
  /** What was seen, where, for people; "" where there is nothing to add. */
  readonly detail: string;
}

interface Flight {
  readonly index: number;
  readonly probe: Probe;
  readonly serial: number;
  readonly family: Family;
  readonly startMs: number;
  readonly deadlineMs: number;
  /** Source ports or identifiers in use. */
  readonly flows: number[];
  readonly sockets: number[];
  attempts: number;
  arrivedAt: string | undefined;
  blocked: boolean;
}

/** Opens responders, sends probes, sees what comes of them. Not reentrant: one `run` at a time. */
export class Prober implements Disposable {
  readonly #polled = new PollSet();
  readonly #id = crypto.getRandomValues(new Uint32Array(1))[0]!;
  readonly #inbox = buffer(1_024);
  readonly #responders = new Responders(this.#polled, this.#id, {
    token: (end, token) => this.#arrived(end, this.#own(token)),
    opening: (end, sourcePort) => {
      const flight = this.#byFlow.get(sourcePort);
      if (flight?.probe.protocol === "tcp") this.#arrived(end, flight);
    },
  });
  /** Raw sockets, by namespace: protocol and address. */
  readonly #raw = new Map<NetworkNamespace, Map<string, number>>();
  readonly #flights = new Map<number, Flight>();
  /** Flights by source port or echo identifier. */
  readonly #byFlow = new Map<number, Flight>();
  #nextFlow = Math.floor(Math.random() * FLOWS.count);
  #nextSerial = 1;
  #results: (ProbeResult | undefined)[] = [];
  #running = false;

  /**
   * Tries all of `probes`, up to `MAX_IN_FLIGHT` at once, and tells what came of each, in their order.
   * @throws {KernelError} where a socket cannot be had; the signal's reason where it aborts
   */
  async run(probes: readonly Probe[], signal?: AbortSignal): Promise<readonly ProbeResult[]> {
    if (this.#running) throw new Error("a prober runs one set of probes at a time");
    this.#running = true;
    this.#results = new Array(probes.length).fill(undefined);
    try {
      for (const probe of probes) this.#prepare(probe);
      let started = 0;
      while (started < probes.length || this.#flights.size > 0) {
        signal?.throwIfAborted();
        const startUntilMs = performance.now() + START_SLICE_MS;
        while (started < probes.length && this.#flights.size < MAX_IN_FLIGHT && performance.now() < startUntilMs) {
          this.#start(started, probes[started++]!);
        }
        // What is due is judged only after a look at the sockets that began when it was due: a late process is no silence.
        const lookedAtMs = performance.now();
        const untilDueMs = started < probes.length ? 0 : this.#nextDueMs() - lookedAtMs;
        this.#polled.poll(Math.max(0, Math.min(POLL_SLICE_MS, Math.ceil(untilDueMs))));
        this.#turnClock(lookedAtMs);
        await new Promise((resolve) => setImmediate(resolve));
      }
      return this.#results as ProbeResult[];
    } finally {
      for (const flight of [...this.#flights.values()]) this.#land(flight);
      this.#running = false;
    }
  }

  /** Closes every socket; the namespaces are the caller's. */
  [Symbol.dispose](): void {
    this.#polled[Symbol.dispose]();
    this.#raw.clear();
  }

  #prepare(probe: Probe): void {
    const { target, protocol, from, source } = probe;
    if (addressFamily(source) !== addressFamily(probe.to)) {
      throw new Error(`a probe from ${formatAddress(source)} to ${formatAddress(probe.to)} mixes families`);
    }
    this.#responders.serve(target.end, protocol, target.address, target.port);
    this.#rawIcmp(from, source);
    if (protocol === "sctp") this.#rawSctp(from, source);
  }

  #start(index: number, probe: Probe): void {
    const startMs = performance.now();
    const flight: Flight = {
      index,
      probe,
      serial: this.#nextSerial,
      family: addressFamily(probe.source),
      startMs,
      deadlineMs: startMs + (probe.expect === "deny" ? DENY_WINDOW_MS : ALLOW_DEADLINE_MS),
      flows: [],
      sockets: [],
      attempts: 0,
      arrivedAt: undefined,
      blocked: false,
    };
    this.#nextSerial = this.#nextSerial % 0x7fffffff + 1;
    this.#flights.set(flight.serial, flight);
    this.#attempt(flight);
  }

  #attempt(flight: Flight): void {
    flight.attempts++;
    const { protocol } = flight.probe;
    if (protocol === "tcp") this.#connectTcp(flight);
    else if (protocol === "udp") this.#sendUdp(flight);
    else this.#sendRaw(flight);
  }

  #nextDueMs(): number {
    let due = Infinity;
    for (const flight of this.#flights.values()) {
      const retryAt = RETRY_AT_MS[flight.attempts - 1];
      due = Math.min(due, flight.deadlineMs, retryAt === undefined ? Infinity : flight.startMs + retryAt);
    }
    return due;
  }

  #turnClock(nowMs: number): void {
    for (const flight of [...this.#flights.values()]) {
      const retryAt = RETRY_AT_MS[flight.attempts - 1];
      if (nowMs >= flight.deadlineMs) this.#concludeSilence(flight);
      else if (retryAt !== undefined && nowMs >= flight.startMs + retryAt) this.#attempt(flight);
    }
  }

  #concludeSilence(flight: Flight): void {
    const { arrivedAt, blocked, probe } = flight;
    if (arrivedAt !== undefined) {
      this.#conclude(flight, "arrived", `seen to arrive at ${arrivedAt}; no answer came back`);
    } else if (blocked) this.#conclude(flight, "blocked", `${probe.from.name}'s own kernel refused to send it`);
    else this.#conclude(flight, "silent", "");
  }

  #conclude(flight: Flight, observed: Observation, detail: string): void {
    if (this.#flights.get(flight.serial) !== flight) return;
    const { probe, attempts, startMs } = flight;
    const holds = probe.expect === "allow" ? observed === "answered" : observed === "silent" || observed === "blocked";
    this.#results[flight.index] = { probe, observed, holds, attempts, afterMs: performance.now() - startMs, detail };
    this.#land(flight);
  }

  #land(flight: Flight): void {
    this.#flights.delete(flight.serial);
    for (const flow of flight.flows) if (this.#byFlow.get(flow) === flight) this.#byFlow.delete(flow);
    for (const fd of flight.sockets) this.#polled.close(fd);
  }

  #token(flight: Flight, attempt: number): Uint8Array<ArrayBuffer> {
    return writeToken({ prober: this.#id, probe: flight.serial, attempt });
  }

  /** An answer to `attempt` that carries `identity` of whoever gave it. */
  #answered(flight: Flight, attempt: number, identity: string): void {
    flight.attempts = Math.min(attempt, flight.attempts);
    const wanted = flight.probe.target.end.name;
    if (identity === wanted) this.#conclude(flight, "answered", "");
    else this.#conclude(flight, "wrong-answer", `${identity} answered, not ${wanted}`);
  }

  #failed(flight: Flight, errno: number): void {
    const name = errnoName(errno);
    if (name === "EPERM") flight.blocked = true;
    else if (name === "ECONNREFUSED" || name === "ECONNRESET") {
      this.#conclude(flight, "refused", "a reset or port unreachable came back");
    } else this.#conclude(flight, "unreachable", errnoText(errno));
  }

  #arrived(end: ProbeEnd, flight: Flight | undefined): void {
    if (flight !== undefined && !this.#isFrom(end, flight)) flight.arrivedAt ??= end.name;
  }

  #takeFlow(flight: Flight): number {
    // Never more in flight than flows, so there is one that is free.
    for (;;) {
      const flow = FLOWS.first + this.#nextFlow;
      this.#nextFlow = (this.#nextFlow + 1) % FLOWS.count;
      if (this.#byFlow.has(flow)) continue;
      this.#byFlow.set(flow, flight);
      flight.flows.push(flow);
      return flow;
    }
  }

  /** A client socket bound to a source port of its own. */
  #clientSocket(flight: Flight, type: "stream" | "datagram"): number {
    const { from, source, protocol } = flight.probe;
    const fd = openSocket(from.namespace, flight.family, type, protocolNumber(protocol));
    for (let attempt = 0; attempt < BIND_ATTEMPTS; attempt++) {
      const bound = bindTo(fd, source, this.#takeFlow(flight));
      if (bound >= 0) return fd;
      if (errnoName(-bound) !== "EADDRINUSE") {
        close(fd);
        throw new KernelError(`bind ${formatAddress(source)} in ${from.namespace.title}`, -bound);
      }
    }
    close(fd);
    throw new KernelError(`find a free source port in ${from.namespace.title}`, Errno.EAGAIN);
  }

  #connectTcp(flight: Flight): void {
    const { probe: { to, port }, attempts: attempt } = flight;
    const fd = this.#clientSocket(flight, "stream");
    resetOnClose(fd);
    flight.sockets.push(fd);
    this.#polled.watch(fd, POLL.OUT, () => {
      const errno = getsockoptInt(fd, SOL.SOCKET, SO.ERROR);
      if (errno !== 0) return this.#dropAttempt(flight, fd, Math.abs(errno));
      const sent = send(fd, this.#token(flight, attempt), MSG.NOSIGNAL);
      if (sent < 0) return this.#dropAttempt(flight, fd, -sent);
      this.#polled.watch(fd, POLL.IN, () => this.#readAnswer(flight, fd));
    });
    const connected = connect(fd, inetSockaddr({ address: to, port }));
    if (connected < 0 && connected !== -Errno.EINPROGRESS) this.#dropAttempt(flight, fd, -connected);
  }

  #sendUdp(flight: Flight): void {
    const { to, port } = flight.probe;
    // Retries go out on the same socket: the second packet of one flow.
    let fd = flight.sockets[0];
    if (fd === undefined) {
      const opened = fd = this.#clientSocket(flight, "datagram");
      flight.sockets.push(fd);
      this.#polled.watch(fd, POLL.IN, () => this.#readAnswer(flight, opened));
      const connected = connect(fd, inetSockaddr({ address: to, port }));
      if (connected < 0) return this.#dropAttempt(flight, fd, -connected);
    }
    const sent = send(fd, this.#token(flight, flight.attempts), MSG.NOSIGNAL);
    if (sent < 0) this.#failed(flight, -sent);
  }

  #readAnswer(flight: Flight, fd: number): void {
    const count = recv(fd, this.#inbox, MSG.DONTWAIT);
    if (count === -Errno.EAGAIN) return;
    if (count < 0) return this.#dropAttempt(flight, fd, -count);
    const token = readToken(this.#inbox.subarray(0, count));
    if (token !== undefined && token.prober === this.#id && token.probe === flight.serial) {
      this.#answered(flight, token.attempt, token.identity);
    } else if (count === 0) this.#conclude(flight, "refused", "the connection was closed without an answer");
    else this.#conclude(flight, "wrong-answer", `${count} bytes that answer something else`);
  }

  #dropAttempt(flight: Flight, fd: number, errno: number): void {
    this.#polled.close(fd);
    const at = flight.sockets.indexOf(fd);
    if (at >= 0) flight.sockets.splice(at, 1);
    this.#failed(flight, errno);
  }

  #sendRaw(flight: Flight): void {
    const { probe, serial, family, attempts } = flight;
    const flow = flight.flows[0] ?? this.#takeFlow(flight);
    const sctp = probe.protocol === "sctp";
    const fd = sctp ? this.#rawSctp(probe.from, probe.source) : this.#rawIcmp(probe.from, probe.source);
    const packet = sctp
      ? sctpInit({ sourcePort: flow, destinationPort: probe.port, initiateTag: serial, initialTsn: attempts })
      : echoRequest(family, flow, attempts, this.#token(flight, attempts));
    const sent = sendto(fd, packet, MSG.NOSIGNAL, inetSockaddr({ address: probe.to, port: 0 }));
    if (sent < 0) this.#failed(flight, -sent);
  }

  #own(token: { readonly prober: number; readonly probe: number }): Flight | undefined {
    return token.prober === this.#id ? this.#flights.get(token.probe) : undefined;
  }

  /** Sends echo requests, and sees answers to them and errors about anything sent from `address`. */
  #rawIcmp(end: ProbeEnd, address: Address): number {
    const family = addressFamily(address);
    return this.#rawSocket(end, echoProtocol(family), address, (data, from) => {
      const news = readIcmp(family, family === 4 ? ipv4Payload(data) : data);
      if (news === undefined || news.kind === "request") return;
      const source = family === 4 ? ipv4Source(data) : parseInetSockaddr(from()).address;
      if (news.kind === "error") return this.#complaint(end, source, news);
      const flight = this.#own(news.token);
      if (flight === undefined || !this.#isFrom(end, flight)) return;
      // The kernel of whoever has the address answers; its name is the address.
      const identity = source === flight.probe.to ? flight.probe.target.end.name : formatAddress(source);
      this.#answered(flight, news.token.attempt, identity);
    });
  }

  /**
   * An ICMP error about a packet of ours. Raw sockets are not told of them by the kernel, and a connecting TCP socket is not where the
   * error is back before `connect` has returned, as is usual between namespaces.
   */
  #complaint(
    end: ProbeEnd,
    source: Address,
    news: { readonly protocol: number; readonly flow: number; readonly reason: string },
  ): void {
    const flight = this.#byFlow.get(news.flow);
    if (flight === undefined || !this.#isFrom(end, flight) || protocolNumber(flight.probe.protocol) !== news.protocol) {
      return;
    }
    this.#conclude(flight, "unreachable", `${formatAddress(source)} says: ${news.reason}`);
  }

  #rawSctp(end: ProbeEnd, address: Address): number {
    const family = addressFamily(address);
    return this.#rawSocket(end, IPPROTO.SCTP, address, (data) => {
      const news = readSctp(family === 4 ? ipv4Payload(data) : data);
      const flight = news && this.#flights.get(news.verificationTag);
      if (flight === undefined || !this.#isFrom(end, flight) || flight.flows[0] !== news!.destinationPort) return;
      if (news!.chunk === SCTP_CHUNK.ABORT) return this.#conclude(flight, "refused", "an ABORT came back");
      const token = news!.chunk === SCTP_CHUNK.INIT_ACK ? readToken(news!.cookie) : undefined;
      if (token !== undefined && this.#own(token) === flight) this.#answered(flight, token.attempt, token.identity);
    });
  }

  #isFrom(end: ProbeEnd, flight: Flight): boolean {
    return flight.probe.from.namespace === end.namespace;
  }

  /** Bound to `address`: sends from it, and sees what comes to it. */
  #rawSocket(end: ProbeEnd, protocol: number, address: Address, received: Received): number {
    let sockets = this.#raw.get(end.namespace);
    if (sockets === undefined) this.#raw.set(end.namespace, sockets = new Map());
    const key = `${protocol} ${address}`;
    let fd = sockets.get(key);
    if (fd === undefined) {
      const opened = fd = openBound(end.namespace, "raw", protocol, address, 0);
      sockets.set(key, fd);
      this.#polled.watch(fd, POLL.IN, () => drain(opened, received));
    }
    return fd;
  }
}
