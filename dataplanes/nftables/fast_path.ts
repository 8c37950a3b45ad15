/**
 * The short way for packets of established TCP flows (`establishedFastPath`): from the link that they come in by straight to the
 * neighbour that they go to, past connection tracking, routing and every rule, ours and others'.
 *
 * Rules let one in some hundred packets of what they let through be seen here, after the last of them. Nothing but this
 * process lets a direction of a flow in, one at a time, and it does so in one piece, without an await: what it has asked of
 * connection tracking still holds. `Dataplane.apply` takes all out in the transaction that changes anything, and so does
 * who cuts or removes flows, right after (`recheckFlows`). Let in again is what is still established and not cut. So a packet that
 * takes the short way is one that the rules, asked now, would let through as established.
 *
 * Connection tracking sees some packets of the flow every few seconds and misses those between, so it is told before not to expect
 * every sequence number of it. That stays when the short way is gone.
 */
import { isErrno } from "../../src/kernel/errors.ts";
import {
  type Flow,
  FlowStatus,
  type FlowTuple,
  freeSequence,
  getFlow,
  parseFlow,
} from "../../src/kernel/netlink/schema/conntrack.ts";
import {
  bindLogGroup,
  NFULNL_MSG_PACKET,
  parseGroupPacket,
  unbindLogGroup,
} from "../../src/kernel/netlink/schema/nflog.ts";
import { getTable, NETLINK_NETFILTER } from "../../src/kernel/netlink/schema/nftables.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { explainError } from "../../src/sdk/errors.ts";
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import type { Host } from "../../src/sdk/plugin.ts";
import { admission, FAST_TABLE, isPlainHeader, LIFETIME_MS, withoutTable } from "./fast_path_table.ts";
import { Ways } from "./fast_path_way.ts";
import { readPacketHeader } from "../../src/model/packet_header.ts";

/** Of each packet: network and TCP header. */
const COPY_BYTES = 64;
/** Room for a second of packets at the rate that the rules allow: late ones are of no use. */
const BUFFER_BYTES = 256 * 1024;
/** Directions of flows that are remembered for a second packet. */
const SEEN_MAX = 4_096;
/** Flows that go on are let in again sooner. */
const IDLE_MS = 1.5 * LIFETIME_MS;
/** One is a link that has just gone; so many are worth a word. */
const REFUSALS_MAX = 10;
/** The group may be an earlier daemon's that is about to end. */
const RETRY_MS = 5_000;
/** TCP_CONNTRACK_ESTABLISHED, include/uapi/linux/netfilter/nf_conntrack_tcp.h. */
const ESTABLISHED = 3;
/** Chains of links and neighbours; with more, it begins anew. */
const CHAINS_MAX = 1_024;

export interface FastPathParts {
  readonly host: Pick<Host, "kernel" | "log" | "clock">;
  /** NFLOG group of the packets that are seen. */
  readonly group: number;
  /** `Dataplane.cutMark`: what carries it is not let in. */
  readonly cutMark: number;
  /** One nf_tables transaction. @throws {KernelError} */
  readonly write: (operation: string, messages: readonly NetlinkMessage[]) => void;
}

export class FastPath implements Disposable {
  readonly #parts: FastPathParts;
  readonly #flows: NetlinkSocket;
  readonly #ways: Ways;
  readonly #stop = new AbortController();
  /** Aborted where packets that wait to be read went by other rules than those of now. */
  #round = new AbortController();
  /** There may be a table. */
  #isThere = false;
  /** Its chains of links and neighbours; undefined: not known. */
  #chains: Set<string> | undefined;
  /** Directions of flows of which a packet was seen, the longest ago first. */
  readonly #seen = new Set<string>();
  /** Admissions so far: to learn whether there were any. */
  #admitted = 0;
  /** Why no packets come. */
  #problem: string | undefined;
  /** Flows refused one after another, and why the last. */
  #refusals = 0;
  #refusal = "";

  /** @throws {KernelError} */
  constructor(parts: FastPathParts) {
    this.#parts = parts;
    const { kernel } = parts.host;
    using open = new DisposableStack();
    this.#flows = open.use(kernel.netlink(NETLINK_NETFILTER));
    this.#ways = open.use(new Ways(parts.host));
    void this.#run();
    open.move();
  }

  problems(): readonly string[] {
    const problem = this.#problem ?? (this.#refusals < REFUSALS_MAX ? undefined : this.#refusal);
    return problem === undefined ? [] : [`established flows take no short way: ${problem}`];
  }

  /** What takes all flows out, for a transaction with other changes; `takenOut` says that it went through. */
  takeOut(): readonly NetlinkMessage[] {
    return this.#isThere ? withoutTable() : [];
  }

  /** After that transaction, whether it had to take any out: packets that came by the rules before it are forgotten. */
  takenOut(): void {
    this.#forgetTable();
    this.#round.abort();
  }

  #forgetTable(): void {
    this.#isThere = false;
    this.#chains = undefined;
  }

  /** Takes all flows out at once. @throws {KernelError} */
  recheck(): void {
    if (!this.#isThere) return;
    this.#parts.write("take flows off the short way", withoutTable());
    this.#forgetTable();
  }

  /** Runs until `end`. Never rejects. */
  async #run(): Promise<void> {
    const { host: { clock, log }, group } = this.#parts;
    const signal = this.#stop.signal;
    while (!signal.aborted) {
      try {
        this.#round = new AbortController();
        await this.#listen(AbortSignal.any([signal, this.#round.signal]));
      } catch (error) {
        if (signal.aborted) return;
        this.#problem = isErrno(error, "EPERM")
          ? `found that another program reads NFLOG group ${group}, wanted it for this daemon alone: set another fastPathGroup`
          : explainError(error);
        log.warn("established flows take no short way, trying again", { error: this.#problem, pauseMs: RETRY_MS });
        await clock.sleep(RETRY_MS, signal).catch(() => {});
      }
    }
  }

  /** @throws {Error} where the packets cannot be had */
  async #listen(signal: AbortSignal): Promise<void> {
    const { host: { kernel }, group } = this.#parts;
    const begin = bindLogGroup({ group, copyBytes: COPY_BYTES, timeoutMs: 10, queueLength: 1 });
    using socket = kernel.netlink(NETLINK_NETFILTER, {
      subscriptions: [{ begin, end: unbindLogGroup(group) }],
      eventBufferBytes: BUFFER_BYTES,
    });
    this.#problem = undefined;
    try {
      for await (const messages of socket.events(signal)) {
        for (const message of messages) {
          if (signal.aborted) return;
          if (message.type === NFULNL_MSG_PACKET) this.#consider(message);
        }
      }
    } catch (error) {
      // Some were lost: the next packets will do.
      if (!signal.aborted && !isErrno(error, "ENOBUFS")) throw error;
    }
  }

  /** A packet of an established flow has left by all rules. */
  #consider(message: NetlinkMessage): void {
    try {
      this.#letIn(message);
      this.#refusals = 0;
    } catch (error) {
      // A link that has just gone, a table that somebody deleted: the flow goes on by the rules.
      this.#chains = undefined;
      this.#refusals++;
      this.#refusal = explainError(error);
      this.#parts.host.log.debug("a flow goes on by the rules", { error: this.#refusal });
    }
  }

  /** No await from here to the end: what is asked must still hold when the flow is let in. @throws {Error} */
  #letIn(message: NetlinkMessage): void {
    const { inIndex, outIndex, payload } = parseGroupPacket(message);
    const { source, destination, protocol, sourcePort, destinationPort } = readPacketHeader(payload)?.packet ?? {};
    if (inIndex === undefined || outIndex === undefined || source === undefined || destination === undefined) return;
    if (
      !isPlainHeader(payload) || protocol !== PROTOCOLS.TCP || sourcePort === undefined || destinationPort === undefined
    ) return;
    const flow = this.#find({ source, destination, protocol, sourcePort, destinationPort });
    if (flow === undefined || !this.#isPlain(flow)) return;
    // Short connections end before a second of their packets is seen. Later ones of the same ports have another id.
    if (!this.#isSeenAgain(`${flow.id} ${sourcePort} ${source}`)) return;
    const way = this.#ways.find({ source, destination, inIndex, outIndex });
    if (way === undefined) return;
    this.#flows.request("let a flow's sequence numbers be any", [freeSequence(flow)]);
    if (this.#chains !== undefined && this.#chains.size >= CHAINS_MAX) this.#chains = undefined;
    const made: string[] = [];
    const fast = {
      source,
      destination,
      sourcePort,
      destinationPort,
      input: way.input,
      outputIndex: outIndex,
      nextHop: way.nextHop,
    };
    const messages = admission(fast, this.#chains, made);
    this.#isThere = true;
    this.#parts.write("let a flow take the short way", messages);
    this.#chains ??= new Set();
    for (const name of made) this.#chains.add(name);
    if (++this.#admitted === 1) void this.#endWhenIdle();
  }

  #isSeenAgain(direction: string): boolean {
    const isKnown = this.#seen.delete(direction);
    this.#seen.add(direction);
    if (this.#seen.size > SEEN_MAX) this.#seen.delete(this.#seen.values().next().value!);
    return isKnown;
  }

  /** A table without flows still costs every packet a look. */
  async #endWhenIdle(): Promise<void> {
    const { signal } = this.#stop, { clock, log } = this.#parts.host;
    try {
      for (let before = 0; before !== this.#admitted;) {
        before = this.#admitted;
        await clock.sleep(IDLE_MS, signal);
      }
      this.recheck();
    } catch (error) {
      if (!signal.aborted) {
        log.warn("the short way of established flows stays without flows", { error: explainError(error) });
      }
    } finally {
      this.#admitted = 0;
    }
  }

  /** By either direction. Undefined: it has ended. @throws {KernelError} */
  #find(tuple: FlowTuple): Flow | undefined {
    try {
      return this.#flows.request("look up an established flow", [getFlow(tuple)]).map(parseFlow)[0];
    } catch (error) {
      if (isErrno(error, "ENOENT")) return undefined;
      throw error;
    }
  }

  /** Established, and of those that connection tracking does nothing else to. */
  #isPlain({ status, mark, tcpState, zone, master, timeoutSeconds = 0, attributes }: Flow): boolean {
    return timeoutSeconds * 1_000 > 2 * LIFETIME_MS &&
      (status & WANTED) === WANTED && (status & UNWANTED) === 0 && (mark & this.#parts.cutMark) === 0 &&
      tcpState === ESTABLISHED && zone === 0 && master === undefined && attributes.helper === undefined;
  }

  /** Whether an earlier daemon's table is there. @throws {KernelError} */
  static isThere(socket: NetlinkSocket): boolean {
    try {
      socket.request(`look for table netdev ${FAST_TABLE.table}`, [getTable(FAST_TABLE)]);
      return true;
    } catch (error) {
      if (isErrno(error, "ENOENT")) return false;
      throw error;
    }
  }

  /** The last thing: what is left would run out by itself. */
  end(): void {
    try {
      this.recheck();
    } catch (error) {
      this.#parts.host.log.warn("the short way of established flows stays for some seconds", {
        error: explainError(error),
      });
    }
    this[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.#stop.abort();
    this.#flows[Symbol.dispose]();
    this.#ways[Symbol.dispose]();
  }
}

const WANTED = FlowStatus.SeenReply | FlowStatus.Assured | FlowStatus.Confirmed;
const UNWANTED = FlowStatus.SourceNat | FlowStatus.DestinationNat | FlowStatus.Dying | FlowStatus.FixedTimeout |
  FlowStatus.Offload;
