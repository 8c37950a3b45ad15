/** What plugins get of the kernel: sockets and namespaces, opened for them. `src/kernel` implements it; schemas live there. */

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
  /** As `request`, but never throws for a message the kernel refused: one entry for each message, its error or undefined. */
  attempt(operation: string, messages: readonly NetlinkMessage[]): readonly (Error | undefined)[];
  /**
   * As `request` without answers, on a thread beside this one: for what the kernel takes long over, such as deleting links,
   * while the event loop goes on. Until it settles the socket may be used for nothing else: that is a bug and asserts.
   * @throws {KernelError} of the first message that failed
   */
  requestBehind(operation: string, messages: readonly NetlinkMessage[]): Promise<void>;
  /** NLM_F_DUMP; repeated when the kernel says the dump was interrupted. @throws {KernelError} */
  dump(operation: string, message: NetlinkMessage): readonly NetlinkMessage[];
  /**
   * Sends an nfnetlink transaction: NFNL_MSG_BATCH_BEGIN (with `generation` where given), the messages, NFNL_MSG_BATCH_END.
   * All or nothing. @throws {KernelError} naming the first message refused; ERESTART where the generation is stale
   */
  transaction(operation: string, subsystem: number, messages: readonly NetlinkMessage[], generation?: number): void;
  /** Messages of the multicast groups the socket was opened with. @throws {KernelError} ENOBUFS: events were lost, look anew */
  events(signal: AbortSignal): AsyncIterable<readonly NetlinkMessage[]>;
}

export interface NetlinkOptions {
  /** The daemon's own where absent. */
  readonly namespace?: NetworkNamespace;
  /** Multicast group numbers to join. */
  readonly groups?: readonly number[];
}

export interface KernelDoor {
  /** `protocol`: NETLINK_ROUTE 0, NETLINK_NETFILTER 12, NETLINK_GENERIC 16. @throws {KernelError} */
  netlink(protocol: number, options?: NetlinkOptions): NetlinkSocket;
  /** @throws {KernelError} ENOENT where the path is missing, EINVAL where it is not a network namespace */
  openNamespace(path: string): NetworkNamespace;
  /** Runs `body` inside `namespace`. Synchronous by contract; a returned promise is a bug and asserts. */
  inNamespace<T>(namespace: NetworkNamespace, body: () => T): T;
  /** Writes `/proc/sys/net/PATH` in the namespace of the calling thread, where its value differs. @throws {KernelError} */
  setSysctl(path: string, value: string): void;
}
