/** What plugins get of the kernel: sockets and namespaces, opened for them. `src/kernel` implements it; schemas live there. */
import type { Family } from "../model/address.ts";

/** One netlink message without its header's length, sequence and port: a value. */
export interface NetlinkMessage {
  /** nlmsg_type. */
  readonly type: number;
  /** nlmsg_flags besides NLM_F_REQUEST, which is always set. */
  readonly flags: number;
  readonly payload: Uint8Array;
  /** nlmsg_pid of a received message: who caused the event. */
  readonly portId?: number;
  /** The message's schema where its builder knows it (`MessageSchema` of src/kernel): errors then name attributes. */
  readonly schema?: unknown;
}

/** A network namespace held open. */
export interface NetworkNamespace extends Disposable {
  readonly fd: number;
  /** How it was named, for messages. */
  readonly title: string;
}

/** A bound netlink socket. All calls are synchronous: the kernel answers before send returns. */
export interface NetlinkSocket extends Disposable {
  /** The kernel's address of this socket: events we caused ourselves carry it. */
  readonly portId: number;
  /**
   * Sends each message with NLM_F_ACK in one buffer, waits for every acknowledgement and returns what came besides them
   * (the echo of NLM_F_ECHO, the answer of a get). Messages after a failing one are still carried out by the kernel.
   * @throws {KernelError} of the first message that failed
   */
  request(operation: string, messages: readonly NetlinkMessage[]): readonly NetlinkMessage[];
  /** As `request` without answers, but never throws for a message the kernel refused: one entry for each message, its error or undefined. */
  attempt(operation: string, messages: readonly NetlinkMessage[]): readonly (Error | undefined)[];
  /**
   * As `request`, on a thread beside this one: for what the kernel takes long over, such as deleting links,
   * while the event loop goes on. Until it settles the socket may be used for nothing else: that is a bug and asserts.
   * @throws {KernelError} of the first message that failed
   */
  requestBehind(operation: string, messages: readonly NetlinkMessage[]): Promise<readonly NetlinkMessage[]>;
  /** NLM_F_DUMP; repeated when the kernel says the dump was interrupted. @throws {KernelError} */
  dump(operation: string, message: NetlinkMessage): readonly NetlinkMessage[];
  /**
   * As `dump`, on a thread beside this one, a datagram at a time: for tables of many thousands, which the kernel takes long to
   * walk, while the event loop goes on. Until it ends the socket may be used for nothing else: that is a bug and asserts. Left
   * early, the socket is closed. Not repeated where it is interrupted: that throws EINTR. @throws {KernelError}
   */
  dumpBehind(operation: string, message: NetlinkMessage): AsyncIterable<readonly NetlinkMessage[]>;
  /**
   * Sends an nfnetlink transaction: NFNL_MSG_BATCH_BEGIN (with `generation` where given), the messages, NFNL_MSG_BATCH_END.
   * All or nothing. @throws {KernelError} naming the first message refused; ERESTART where the generation is stale
   */
  transaction(operation: string, subsystem: number, messages: readonly NetlinkMessage[], generation?: number): void;
  /** Messages of the multicast groups and subscriptions the socket was opened with. @throws {KernelError} ENOBUFS: events were lost, look anew */
  events(signal: AbortSignal): AsyncIterable<readonly NetlinkMessage[]>;
}

/** Something that the kernel sends to the one who asked for it, not to a multicast group: packets of an NFLOG group, say. */
export interface NetlinkSubscription {
  /** Sent when the socket is opened, which throws where it is refused. */
  readonly begin: NetlinkMessage;
  /** Sent when it is closed, where the kernel is to know at once. */
  readonly end?: NetlinkMessage;
}

export interface NetlinkOptions {
  /** The daemon's own where absent. */
  readonly namespace?: NetworkNamespace;
  /** Multicast group numbers to join. */
  readonly groups?: readonly number[];
  /** What they bring are events as well. */
  readonly subscriptions?: readonly NetlinkSubscription[];
  /** Room for events that were not read yet, in bytes; 8 MiB where absent. */
  readonly eventBufferBytes?: number;
}

/** A table of legacy iptables as struct ipt_getinfo tells of it; offsets are in bytes from its first entry. */
export interface XtablesInfo {
  readonly table: string;
  /** Bits: 1 << hook, as of enum nf_inet_hooks. */
  readonly validHooks: number;
  /** By hook: its first rule, and the rule that stands for its policy. Only those of `validHooks` mean anything. */
  readonly hookEntry: readonly number[];
  readonly underflow: readonly number[];
  readonly entryCount: number;
  readonly sizeBytes: number;
}

/** The tables of legacy iptables (x_tables) of one family in one network namespace, by socket options. All calls are synchronous. */
export interface XtablesSocket extends Disposable {
  /** Those that exist: asking `info` for another one makes it. */
  tables(): readonly string[];
  /** IPT_SO_GET_INFO. @throws {KernelError} where the kernel has no such table */
  info(table: string): XtablesInfo;
  /** IPT_SO_GET_ENTRIES: struct ipt_entry or ip6t_entry one after another. @throws {KernelError} EAGAIN where the table has another size by now */
  entries(info: XtablesInfo): Uint8Array<ArrayBuffer>;
  /**
   * IPT_SO_SET_REPLACE: the whole table at once. `replaced`: how many entries it has now. Answers their last counters, 16 bytes each;
   * the new entries begin at zero. @throws {KernelError} EAGAIN where there are not so many entries by now
   */
  replace(
    operation: string,
    table: XtablesInfo,
    entries: Uint8Array<ArrayBuffer>,
    replaced: number,
  ): Uint8Array<ArrayBuffer>;
  /** IPT_SO_SET_ADD_COUNTERS: 16 bytes (packets, bytes) for each entry. @throws {KernelError} */
  addCounters(table: string, counters: Uint8Array): void;
  /** Whether the kernel has this revision of an extension. */
  supports(kind: "match" | "target", name: string, revision: number): boolean;
}

export interface KernelDoor {
  /** `protocol`: NETLINK_ROUTE 0, NETLINK_NETFILTER 12, NETLINK_GENERIC 16. @throws {KernelError} */
  netlink(protocol: number, options?: NetlinkOptions): NetlinkSocket;
  /** `namespace`: the daemon's own where absent. @throws {KernelError} */
  xtables(family: Family, namespace?: NetworkNamespace): XtablesSocket;
  /** flock(LOCK_EX) of a file, made (mode 0600) where it is missing; undefined where somebody else holds it. @throws {KernelError} */
  tryLock(path: string): Disposable | undefined;
  /** @throws {KernelError} ENOENT where the path is missing, EINVAL where it is not a network namespace */
  openNamespace(path: string): NetworkNamespace;
  /** Runs `body` inside `namespace`. Synchronous by contract; a returned promise is a bug and asserts. */
  inNamespace<T>(namespace: NetworkNamespace, body: () => T): T;
  /** Writes `/proc/sys/net/PATH` in the namespace of the calling thread, where its value differs. @throws {KernelError} */
  setSysctl(path: string, value: string): void;
}
