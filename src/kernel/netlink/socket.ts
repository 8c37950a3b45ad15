/** Netlink sockets: requests, dumps, nfnetlink transactions and events over one protocol. */
import { read, write } from "node:fs";
import type { NetlinkMessage, NetlinkOptions, NetlinkSocket, NetlinkSubscription } from "../../sdk/kernel_door.ts";
import { errnoOf, isErrno, KernelError } from "../errors.ts";
import {
  AF,
  bind,
  buffer,
  check,
  close,
  Errno,
  getsockname,
  MSG,
  recv,
  send,
  setsockoptInt,
  setsockoptTimeout,
  SO,
  SOCK,
  socket,
  SOL,
} from "../libc.ts";
import { inNamespace } from "../netns.ts";
import { netlinkSockaddr } from "../sockaddr.ts";
import {
  type Acknowledgement,
  kernelError,
  NLMSG_DONE,
  NLMSG_ERROR,
  NLMSG_NOOP,
  NLMSG_OVERRUN,
  parseAcknowledgement,
  parseDone,
} from "./acknowledgement.ts";
import { attrs, be32, encode, MESSAGE_HEADER_BYTES, MessageFlag } from "./codec.ts";
import { type Frame, splitFrames } from "./frame.ts";

/** Netlink protocols, include/uapi/linux/netlink.h. */
export const NETLINK_ROUTE = 0;
export const NETLINK_NETFILTER = 12;
export const NETLINK_GENERIC = 16;

/** Socket options of level SOL_NETLINK, include/uapi/linux/netlink.h. */
const NETLINK_ADD_MEMBERSHIP = 1;
const NETLINK_CAP_ACK = 10;
const NETLINK_EXT_ACK = 11;
const NETLINK_GET_STRICT_CHK = 12;

/** Message types of include/uapi/linux/netfilter/nfnetlink.h; `res_id` of the begin names the subsystem. */
const NFNL_MSG_BATCH_BEGIN = 16;
const NFNL_MSG_BATCH_END = 17;
/** enum nfnl_batch_attributes: NFNL_BATCH_GENID. */
const batchAttributes = attrs({ generation: [1, be32] });

/** Answers lie ready when send returns; the bound is for a kernel that does not answer at all. */
const ANSWER_TIMEOUT_MS = 10_000;
/** A dump that others keep interrupting is started over this often. */
const DUMP_ATTEMPTS_MAX = 32;
/** So many acknowledgements fit the receive buffer at once, echoes included; longer requests go in parts. */
const REQUEST_PART_MESSAGES = 256;
const REQUEST_PART_BYTES = 1024 * 1024;
const RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024;
/** What a send needs besides the data, generously. */
const SEND_OVERHEAD_BYTES = 64 * 1024;
/** The kernel fills at most 32 KiB with a dump; single answers (a link with hundreds of virtual functions) may be larger. */
const DATAGRAM_MAX_BYTES = 512 * 1024;

/** A dump read elsewhere: the kernel fills at most 32 KiB at a time, or one message. */
const BEHIND_DATAGRAM_BYTES = 128 * 1024;

/** All sockets of the thread share it: calls are synchronous and what they return is copied out. */
let received: Uint8Array<ArrayBuffer> | undefined;
let outgoing = buffer(64 * 1024);
const OUTGOING_KEEP_BYTES = 4 * 1024 * 1024;

/** Opens a socket in `options.namespace`. @throws {KernelError} */
export function openNetlink(protocol: number, options: NetlinkOptions = {}): NetlinkSocket {
  const { namespace, groups = [], subscriptions = [], eventBufferBytes = RECEIVE_BUFFER_BYTES } = options;
  const openHere = () => {
    const fd = openSocket(protocol, 0, [], RECEIVE_BUFFER_BYTES);
    if (groups.length === 0 && subscriptions.length === 0) return { fd, eventFd: undefined };
    try {
      // Apart from the requests' socket, because events carry the sequence number of the request that caused them.
      return { fd, eventFd: openEvents(protocol, groups, subscriptions, eventBufferBytes) };
    } catch (error) {
      close(fd);
      throw error;
    }
  };
  const { fd, eventFd } = namespace === undefined ? openHere() : inNamespace(namespace, openHere);
  return new Socket(fd, eventFd, subscriptions.flatMap(({ end }) => end ?? []));
}

function openEvents(
  protocol: number,
  groups: readonly number[],
  subscriptions: readonly NetlinkSubscription[],
  bufferBytes: number,
): number {
  const fd = openSocket(protocol, SOCK.NONBLOCK, groups, bufferBytes);
  try {
    if (subscriptions.length > 0) {
      new Socket(fd, undefined).request("subscribe to netlink events", subscriptions.map(({ begin }) => begin));
    }
    return fd;
  } catch (error) {
    close(fd);
    throw error;
  }
}

function openSocket(protocol: number, flags: number, groups: readonly number[], receiveBytes: number): number {
  const operation = `open netlink socket of protocol ${protocol}`;
  const fd = check(operation, socket(AF.NETLINK, SOCK.RAW | SOCK.CLOEXEC | flags, protocol));
  try {
    check(operation, setsockoptInt(fd, SOL.NETLINK, NETLINK_EXT_ACK, 1));
    check(operation, setsockoptInt(fd, SOL.NETLINK, NETLINK_CAP_ACK, 1));
    // Makes rtnetlink honour the filters of a dump instead of ignoring them; older kernels lack it and lose only that.
    setsockoptInt(fd, SOL.NETLINK, NETLINK_GET_STRICT_CHK, 1);
    if (setsockoptInt(fd, SOL.SOCKET, SO.RCVBUFFORCE, receiveBytes) < 0) {
      setsockoptInt(fd, SOL.SOCKET, SO.RCVBUF, receiveBytes);
    }
    check(operation, setsockoptTimeout(fd, SO.RCVTIMEO, ANSWER_TIMEOUT_MS));
    check(operation, bind(fd, netlinkSockaddr()));
    for (const group of groups) {
      check(`join multicast group ${group}`, setsockoptInt(fd, SOL.NETLINK, NETLINK_ADD_MEMBERSHIP, group));
    }
    return fd;
  } catch (error) {
    close(fd);
    throw error;
  }
}

class Socket implements NetlinkSocket {
  readonly portId: number;
  private sequence = 1;
  private sendBufferBytes = 0;
  private disposed = false;
  /** A `requestBehind` or `dumpBehind` is under way. */
  private busyBehind = false;
  /** A call of another thread still holds the descriptor's number. */
  private heldBehind = false;
  /** Ends the event streams of a socket that is closed. */
  private readonly closing = new AbortController();

  constructor(
    private readonly fd: number,
    private readonly eventFd: number | undefined,
    private readonly unsubscriptions: readonly NetlinkMessage[] = [],
  ) {
    const name = getsockname(fd);
    this.portId = new DataView(name.buffer).getUint32(4, true);
  }

  request(operation: string, messages: readonly NetlinkMessage[]): readonly NetlinkMessage[] {
    const answers: NetlinkMessage[] = [];
    let first: KernelError | undefined;
    this.exchange(operation, messages, (index, acknowledgement) => {
      if (first === undefined && acknowledgement.errno !== 0) {
        first = kernelError(operation, acknowledgement, messages, index);
      }
    }, answers);
    if (first !== undefined) throw first;
    return answers;
  }

  /**
   * Acknowledged is only the last message of a part, as writing and reading an acknowledgement is a good part of what a message costs:
   * the kernel takes them in order, and a refusal is told whether it was asked for or not, with its message's number (netlink_rcv_skb of
   * net/netlink/af_netlink.c). So what has not been refused by the time the last one is answered has been done. A refusal
   * that finds no room is told as ENOBUFS, and there is room for as many as a part has messages.
   */
  attempt(operation: string, messages: readonly NetlinkMessage[]): readonly (Error | undefined)[] {
    const errors: (Error | undefined)[] = messages.map(() => undefined);
    for (let start = 0; start < messages.length;) {
      const end = partEnd(messages, start), last = messages[end - 1]!;
      const part = [...messages.slice(start, end - 1), { ...last, flags: last.flags | MessageFlag.Ack }];
      const firstSequence = this.sendMessages(operation, part, 0);
      for (let isAnswered = false; !isAnswered;) {
        this.receive(operation, 0, (frame) => {
          const index = start + frame.sequence - firstSequence;
          if (index < start || index >= end || frame.type !== NLMSG_ERROR) return;
          const acknowledgement = parseAcknowledgement(frame.flags, frame.payload);
          if (acknowledgement.errno !== 0) errors[index] = kernelError(operation, acknowledgement, messages, index);
          isAnswered ||= index === end - 1;
        });
      }
      start = end;
    }
    return errors;
  }

  /** Sends in parts that the receive buffer can answer, and hands out each acknowledgement once. */
  private exchange(
    operation: string,
    messages: readonly NetlinkMessage[],
    acknowledged: (index: number, acknowledgement: Acknowledgement) => void,
    answers: NetlinkMessage[],
  ): void {
    for (let start = 0; start < messages.length;) {
      const end = partEnd(messages, start);
      const firstSequence = this.sendMessages(operation, messages.slice(start, end), MessageFlag.Ack);
      const waiting = new Set<number>();
      for (let i = start; i < end; i++) waiting.add(i);
      while (waiting.size > 0) {
        this.receive(operation, 0, (frame) => {
          const index = start + frame.sequence - firstSequence;
          if (index < start || index >= end) return;
          if (frame.type === NLMSG_ERROR || frame.type === NLMSG_DONE) {
            if (!waiting.delete(index)) return;
            const parse = frame.type === NLMSG_ERROR ? parseAcknowledgement : parseDone;
            acknowledged(index, parse(frame.flags, frame.payload));
          } else if (frame.type !== NLMSG_NOOP) answers.push(messageOf(frame));
        });
      }
      start = end;
    }
  }

  async requestBehind(operation: string, messages: readonly NetlinkMessage[]): Promise<readonly NetlinkMessage[]> {
    if (messages.length === 0) return [];
    if (messages.length > REQUEST_PART_MESSAGES) {
      throw new Error(`${operation}: too many messages for a request behind`);
    }
    const { firstSequence, totalBytes } = this.layOut(operation, messages, MessageFlag.Ack);
    const bytes = outgoing.slice(0, totalBytes);
    this.busyBehind = true;
    try {
      await this.writeBehind(operation, bytes);
    } finally {
      this.busyBehind = false;
    }
    if (this.disposed) return [];
    const answers: NetlinkMessage[] = [];
    const waiting = new Set(messages.keys());
    let first: KernelError | undefined;
    while (waiting.size > 0) {
      this.receive(operation, 0, (frame) => {
        const index = frame.sequence - firstSequence;
        if (index < 0 || index >= messages.length) return;
        if (frame.type !== NLMSG_ERROR) return void answers.push(messageOf(frame));
        if (!waiting.delete(index)) return;
        const acknowledgement = parseAcknowledgement(frame.flags, frame.payload);
        if (acknowledgement.errno !== 0) first ??= kernelError(operation, acknowledgement, messages, index);
      });
    }
    if (first !== undefined) throw first;
    return answers;
  }

  async *dumpBehind(
    operation: string,
    message: NetlinkMessage,
  ): AsyncGenerator<readonly NetlinkMessage[], void, undefined> {
    const { firstSequence, totalBytes } = this.layOut(operation, [message], MessageFlag.Dump);
    const bytes = outgoing.slice(0, totalBytes), into = buffer(BEHIND_DATAGRAM_BYTES);
    this.busyBehind = true;
    let done = false, interrupted = false;
    let failure: KernelError | undefined;
    try {
      // The kernel walks its table within the send and within each receive.
      await this.writeBehind(operation, bytes);
      while (!done) {
        if (this.disposed) return;
        const count = await this.readBehind(operation, into);
        const messages: NetlinkMessage[] = [];
        for (const frame of splitFrames(into.subarray(0, count))) {
          if (frame.sequence !== firstSequence || done) continue;
          if ((frame.flags & MessageFlag.DumpInterrupted) !== 0) interrupted = true;
          if (frame.type === NLMSG_DONE || frame.type === NLMSG_ERROR) {
            const parse = frame.type === NLMSG_DONE ? parseDone : parseAcknowledgement;
            const acknowledgement = parse(frame.flags, frame.payload);
            if (acknowledgement.errno !== 0) failure = kernelError(operation, acknowledgement, [message], 0);
            done = true;
          } else if (frame.type !== NLMSG_NOOP) messages.push(messageOf(frame));
        }
        if (messages.length > 0) yield messages;
      }
    } finally {
      this.busyBehind = false;
      // What is left of the dump would meet the next request.
      if (!done) this[Symbol.dispose]();
    }
    if (failure !== undefined) throw failure;
    if (interrupted) throw new KernelError(operation, Errno.EINTR, { kernelText: "a change interrupted the dump" });
  }

  dump(operation: string, message: NetlinkMessage): readonly NetlinkMessage[] {
    for (let attempt = 1; attempt <= DUMP_ATTEMPTS_MAX; attempt++) {
      const answers: NetlinkMessage[] = [];
      let interrupted = false, done = false;
      let failure: KernelError | undefined;
      const sequence = this.sendMessages(operation, [message], MessageFlag.Dump);
      while (!done) {
        this.receive(operation, 0, (frame) => {
          if (frame.sequence !== sequence || done) return;
          if ((frame.flags & MessageFlag.DumpInterrupted) !== 0) interrupted = true;
          if (frame.type === NLMSG_DONE || frame.type === NLMSG_ERROR) {
            const parse = frame.type === NLMSG_DONE ? parseDone : parseAcknowledgement;
            const acknowledgement = parse(frame.flags, frame.payload);
            if (acknowledgement.errno !== 0) failure = kernelError(operation, acknowledgement, [message], 0);
            done = true;
          } else if (frame.type !== NLMSG_NOOP) answers.push(messageOf(frame));
        });
      }
      // EINTR is how nf_tables says that its generation changed under the dump.
      if (failure !== undefined && failure.errno !== Errno.EINTR) throw failure;
      if (failure === undefined && !interrupted) return answers;
    }
    throw new KernelError(operation, Errno.EINTR, {
      kernelText: `the dump was interrupted ${DUMP_ATTEMPTS_MAX} times by changes`,
    });
  }

  transaction(operation: string, subsystem: number, messages: readonly NetlinkMessage[], generation?: number): void {
    if (messages.length === 0) return;
    const header = Uint8Array.of(AF_UNSPEC, NFNETLINK_V0, subsystem >> 8, subsystem & 0xff);
    const attributes = generation === undefined ? new Uint8Array(0) : encode(batchAttributes, { generation });
    const beginPayload = new Uint8Array(header.length + attributes.length);
    beginPayload.set(header);
    beginPayload.set(attributes, header.length);
    const begin = { type: NFNL_MSG_BATCH_BEGIN, flags: 0, payload: beginPayload };
    const end = { type: NFNL_MSG_BATCH_END, flags: 0, payload: header };
    // The last message's acknowledgement proves that the kernel took the batch at all; one for each would drown us.
    const last = messages[messages.length - 1]!;
    const sent = [begin, ...messages.slice(0, -1), { ...last, flags: last.flags | MessageFlag.Ack }, end];
    const firstSequence = this.sendMessages(operation, sent, 0);
    let failure: KernelError | undefined;
    let failureIndex = Infinity;
    let taken = false;
    let overrun: KernelError | undefined;
    for (;;) {
      try {
        const more = this.receive(operation, MSG.DONTWAIT, (frame) => {
          const index = frame.sequence - firstSequence;
          if (frame.type !== NLMSG_ERROR || index < 0 || index >= sent.length) return;
          const acknowledgement = parseAcknowledgement(frame.flags, frame.payload);
          if (acknowledgement.errno === 0) taken ||= index === messages.length;
          else if (index < failureIndex) {
            failureIndex = index;
            // Index 0 and the end are of the batch itself: a stale generation, no such subsystem, a commit that failed.
            failure = kernelError(operation, acknowledgement, messages, index - 1);
          }
        });
        if (!more) break;
      } catch (error) {
        // More refusals than the receive buffer holds: the first ones are there, read them before giving up.
        if (!isErrno(error, "ENOBUFS")) throw error;
        if (overrun !== undefined) {
          discardQueued(this.fd);
          break;
        }
        overrun = error;
      }
    }
    if (failure !== undefined) throw failure;
    if (overrun !== undefined) throw overrun;
    if (!taken) {
      throw new KernelError(operation, errnoNoAnswer, { kernelText: "the kernel did not acknowledge the transaction" });
    }
  }

  async *events(signal: AbortSignal): AsyncGenerator<readonly NetlinkMessage[], void, undefined> {
    const operation = "listen for netlink events";
    if (this.eventFd === undefined) throw new Error(`${operation}: the socket joined no multicast group`);
    if (this.disposed) throw new Error(`${operation}: the netlink socket is closed`);
    const stop = AbortSignal.any([signal, this.closing.signal]);
    if (stop.aborted) return;
    // Bun polls and reads a duplicate of the descriptor, whole datagrams at a time, and closes only that.
    const reader = Bun.file(this.eventFd).stream().getReader();
    const cancel = () => void reader.cancel().catch(() => {});
    stop.addEventListener("abort", cancel, { once: true });
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (stop.aborted) return;
        if (done) throw new KernelError(operation, errnoBadFile, { kernelText: "the stream of events ended" });
        const messages: NetlinkMessage[] = [];
        for (const frame of splitFrames(value)) {
          if (frame.type === NLMSG_OVERRUN) throw new KernelError(operation, Errno.ENOBUFS);
          if (frame.type >= NLMSG_MIN_TYPE) messages.push(messageOf(frame));
        }
        if (messages.length > 0) yield messages;
      }
    } catch (error) {
      if (stop.aborted) return;
      const failure = streamError(operation, error);
      if (isErrno(failure, "ENOBUFS")) discardQueued(this.eventFd);
      throw failure;
    } finally {
      stop.removeEventListener("abort", cancel);
      cancel();
    }
  }

  [Symbol.dispose](): void {
    if (this.disposed) return;
    this.disposed = true;
    this.closing.abort();
    if (!this.heldBehind) close(this.fd);
    if (this.eventFd === undefined) return;
    this.unsubscribe(this.eventFd);
    close(this.eventFd);
  }

  /** The runtime closes its duplicate of the descriptor at a time of its own: until then the socket is open for the kernel. */
  private unsubscribe(eventFd: number): void {
    if (this.unsubscriptions.length === 0) return;
    try {
      new Socket(eventFd, undefined).sendMessages("unsubscribe from netlink events", this.unsubscriptions, 0);
    } catch (error) {
      // It ends with the socket at last.
      if (!(error instanceof KernelError)) throw error;
    }
  }

  /** Until a call of another thread has returned, closing waits. */
  private async holding<T>(call: Promise<T>): Promise<T> {
    this.heldBehind = true;
    const outcome = await call;
    this.heldBehind = false;
    if (this.disposed) close(this.fd);
    return outcome;
  }

  /** write(2) to a netlink socket is a send to the kernel, and node:fs does it on a thread of its pool. */
  private async writeBehind(operation: string, bytes: Uint8Array): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<NodeJS.ErrnoException | null>();
    write(this.fd, bytes, 0, bytes.length, null, resolve);
    const failed = await this.holding(promise);
    if (failed !== null) {
      throw new KernelError(operation, Math.abs(failed.errno ?? Errno.EINVAL), {}, { cause: failed });
    }
  }

  /** One datagram in; its length. */
  private async readBehind(operation: string, into: Uint8Array<ArrayBuffer>): Promise<number> {
    const { promise, resolve } = Promise.withResolvers<readonly [NodeJS.ErrnoException | null, number]>();
    read(this.fd, into, 0, into.length, null, (failed, count) => resolve([failed, count]));
    const [failed, count] = await this.holding(promise);
    if (failed === null) return count;
    const errno = Math.abs(failed.errno ?? Errno.EINVAL);
    if (errno !== Errno.EAGAIN) throw new KernelError(operation, errno, {}, { cause: failed });
    throw new KernelError(operation, errnoNoAnswer, { kernelText: `no answer within ${ANSWER_TIMEOUT_MS} ms` });
  }

  /** One datagram out; returns the sequence number of the first message, the others count up from it. */
  private sendMessages(operation: string, messages: readonly NetlinkMessage[], flags: number): number {
    const { firstSequence, totalBytes } = this.layOut(operation, messages, flags);
    let returned: number;
    do returned = send(this.fd, outgoing, 0, totalBytes); while (returned === -Errno.EINTR);
    if (outgoing.length > OUTGOING_KEEP_BYTES) outgoing = buffer(64 * 1024);
    check(operation, returned);
    return firstSequence;
  }

  /** The messages one after another at the start of `outgoing`, numbered, and room for them in the socket's send buffer. */
  private layOut(
    operation: string,
    messages: readonly NetlinkMessage[],
    flags: number,
  ): { readonly firstSequence: number; readonly totalBytes: number } {
    if (this.disposed) throw new Error(`${operation}: the netlink socket is closed`);
    if (this.busyBehind) throw new Error(`${operation}: the netlink socket is busy with a request behind`);
    let total = 0;
    for (const message of messages) total += messageBytes(message);
    if (outgoing.length < total) outgoing = buffer(Math.max(total, outgoing.length * 2));
    const view = new DataView(outgoing.buffer);
    // Sequence numbers stay well below 2^32; a batch never wraps in its midst.
    if (this.sequence + messages.length > 0x7fffffff) this.sequence = 1;
    const first = this.sequence;
    let at = 0;
    for (const { type, flags: own, payload } of messages) {
      view.setUint32(at, MESSAGE_HEADER_BYTES + payload.length, true);
      view.setUint16(at + 4, type, true);
      view.setUint16(at + 6, own | flags | MessageFlag.Request, true);
      view.setUint32(at + 8, this.sequence++, true);
      view.setUint32(at + 12, 0, true);
      outgoing.set(payload, at + MESSAGE_HEADER_BYTES);
      const next = at + (MESSAGE_HEADER_BYTES + payload.length + 3 & ~3);
      outgoing.fill(0, at + MESSAGE_HEADER_BYTES + payload.length, next);
      at = next;
    }
    this.ensureSendBuffer(total + SEND_OVERHEAD_BYTES);
    return { firstSequence: first, totalBytes: total };
  }

  private ensureSendBuffer(neededBytes: number): void {
    // The kernel's default (net.core.wmem_default) is 208 KiB; less is never set.
    if (neededBytes <= Math.max(this.sendBufferBytes, 2 * SEND_OVERHEAD_BYTES)) return;
    if (setsockoptInt(this.fd, SOL.SOCKET, SO.SNDBUFFORCE, neededBytes) < 0) {
      setsockoptInt(this.fd, SOL.SOCKET, SO.SNDBUF, neededBytes);
    }
    this.sendBufferBytes = neededBytes;
  }

  /** One datagram in, frame by frame; false where none is there and `flags` say not to wait. */
  private receive(operation: string, flags: number, each: (frame: Frame) => void): boolean {
    received ??= buffer(DATAGRAM_MAX_BYTES);
    let count: number;
    do count = recv(this.fd, received, flags | MSG.TRUNC); while (count === -Errno.EINTR);
    if (count === -Errno.EAGAIN) {
      if ((flags & MSG.DONTWAIT) !== 0) return false;
      throw new KernelError(operation, errnoNoAnswer, { kernelText: `no answer within ${ANSWER_TIMEOUT_MS} ms` });
    }
    // A transaction still reads what is there; anything else is over, and the next request must find room.
    if (count === -Errno.ENOBUFS && (flags & MSG.DONTWAIT) === 0) discardQueued(this.fd);
    check(operation, count);
    if (count > received.length) {
      throw new KernelError(operation, errnoTooLong, {
        kernelText: `an answer of ${count} bytes, room for ${received.length}`,
      });
    }
    for (const frame of splitFrames(received.subarray(0, count))) {
      if (frame.type === NLMSG_OVERRUN) {
        throw new KernelError(operation, Errno.ENOBUFS, { kernelText: "NLMSG_OVERRUN" });
      }
      each(frame);
    }
    return true;
  }
}

const AF_UNSPEC = 0;
const NFNETLINK_V0 = 0;
/** Lower types are netlink's own. */
const NLMSG_MIN_TYPE = 16;
/** EBADF, EMSGSIZE and ETIMEDOUT: what our own bounds report. */
const errnoBadFile = 9;
const errnoTooLong = 90;
const errnoNoAnswer = 110;

/**
 * An overrun socket takes nothing, and reports no further loss, until its queue is empty (netlink_overrun and
 * netlink_rcv_wake of net/netlink/af_netlink.c): emptied here, every event after the overrun was reported is either
 * delivered or reported lost.
 */
function discardQueued(fd: number): void {
  received ??= buffer(DATAGRAM_MAX_BYTES);
  let count: number;
  do count = recv(fd, received, MSG.DONTWAIT); while (count >= 0 || count === -Errno.EINTR || count === -Errno.ENOBUFS);
}

/** The runtime's stream reports the errno of its read as an Error with a `code`. */
function streamError(operation: string, error: unknown): unknown {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const errno = errnoOf(code);
  return errno === undefined ? error : new KernelError(operation, errno, {}, { cause: error });
}

/** The first message that goes with a later part than the one at `start`. */
function partEnd(messages: readonly NetlinkMessage[], start: number): number {
  let end = start, bytes = 0;
  while (end < messages.length && end - start < REQUEST_PART_MESSAGES) {
    const more = messageBytes(messages[end]!);
    if (end > start && bytes + more > REQUEST_PART_BYTES) break;
    bytes += more;
    end++;
  }
  return end;
}

const messageBytes = (message: NetlinkMessage): number => MESSAGE_HEADER_BYTES + message.payload.length + 3 & ~3;

const messageOf = ({ type, flags, portId, payload }: Frame): NetlinkMessage => ({
  type,
  flags,
  portId,
  payload: payload.slice(),
});
