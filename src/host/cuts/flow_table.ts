/** The node's connection tracking: which flows there are, and what is done to them. */
import { isErrno } from "../../kernel/errors.ts";
import {
  delFlow,
  expireFlow,
  type Flow,
  type FlowFilter,
  FlowStatus,
  getFlow,
  getFlowCount,
  getFlows,
  markFlow,
  parseFlow,
  parseFlowCount,
} from "../../kernel/netlink/schema/conntrack.ts";
import type { EstablishedFlow } from "../../model/flow_judgement.ts";
import { type FlowScope, isEmptyScope } from "../../model/flow_scope.ts";
import { PROTOCOLS } from "../../model/ports.ts";
import type { KernelDoor, NetlinkMessage, NetlinkSocket } from "../../sdk/kernel_door.ts";

const NETLINK_NETFILTER = 12;

/** For each filter the kernel walks its whole table: that costs about as much as to hand out so many flows (measured). */
const FLOWS_PER_WALK = 6_000;
/**
 * How long a flow without connections of its own (UDP, ICMP) stays cut, whatever is sent. Long enough for both ends of a
 * connection above it to give it up (QUIC ends are idle for 30 s as a rule), and for late answers, which would begin the flow
 * anew from the other end. Not for ever: what policy allows the other end to begin must be able to begin.
 */
export const DATAGRAM_CUT_SECONDS = 120;

/** What a deed needs of a flow: thousands may wait. */
export type ListedFlow = Pick<Flow, "original" | "zone" | "id" | "status" | "startNs">;

/** `cut` and `restore` set and clear the mark, `remove` takes the flow from the table. */
export interface FlowDeed {
  readonly kind: "cut" | "restore" | "remove";
  readonly flow: ListedFlow;
}

export const flowDeed = (kind: FlowDeed["kind"], { original, zone, id, status, startNs }: Flow): FlowDeed => ({
  kind,
  flow: { original, zone, id, status, startNs },
});

/** One pass over the table. */
export class FlowTable implements Disposable {
  readonly #kernel: KernelDoor;
  readonly #mark: number;
  readonly #socket: NetlinkSocket;

  /** `mark`: the bit of the connection mark that cuts. @throws {KernelError} */
  constructor(kernel: KernelDoor, mark: number) {
    this.#kernel = kernel;
    this.#mark = mark;
    this.#socket = kernel.netlink(NETLINK_NETFILTER);
  }

  isCut(flow: Flow): boolean {
    return (flow.mark & this.#mark) !== 0;
  }

  /** All flows that are cut, in parts. @throws {KernelError} */
  async *cut(): AsyncIterable<readonly NetlinkMessage[]> {
    yield* this.#dump({ mark: { value: this.#mark, mask: this.#mark } });
  }

  /** All flows of the scope, in parts, and possibly others; one may come twice. @throws {KernelError} */
  async *of(scope: FlowScope): AsyncIterable<readonly NetlinkMessage[]> {
    if (isEmptyScope(scope)) return;
    const addresses = [...scope.addresses], four = addresses.filter((address) => address.length === 4);
    // Where answers come from is where it went after DNAT.
    const filters = four.flatMap((address): FlowFilter[] => [
      { family: 4, original: { source: address } },
      { family: 4, reply: { source: address } },
    ]);
    // Linux 6.18 (and whoever else has it so) takes an IPv6 address of a filter for the one it is not to list: all, then.
    if (four.length < addresses.length) filters.push({ family: 6 });
    const whole = scope.everything || scope.nets.length > 0 || filters.length * FLOWS_PER_WALK > this.#count();
    for (const filter of whole ? [{}] : filters) yield* this.#dump(filter);
  }

  /**
   * The flow whose first packet policy was asked about: itself, but of one that another flow announced (the data of FTP) the
   * other. @throws {KernelError}
   */
  judged(flow: Flow): EstablishedFlow {
    if (flow.master === undefined || (flow.status & FlowStatus.Expected) === 0) return flow;
    return this.#look(flow.master, flow.zone) ?? flow;
  }

  /** Does them; what has ended by itself needs nothing. Returns for each whether it was done. @throws {KernelError} */
  carryOut(deeds: readonly FlowDeed[]): readonly boolean[] {
    const done = this.#attempt("mark and remove flows", deeds.map((deed) => this.#message(deed)), ["ENOENT"]);
    const datagrams = deeds.filter(({ kind, flow }, i) => done[i] && kind === "cut" && !hasConnections(flow)).map((
      { flow },
    ) => flow);
    // The mark is set already. Whose end is fixed has been cut before.
    const ended = this.#expire(datagrams, ["ENOENT", "EPERM", "EBUSY"]);
    // A packet came since it was listed, and its status is another.
    const again = datagrams.filter((_, i) => !ended[i]).flatMap((flow) => this.#look(flow.original, flow.zone) ?? []);
    this.#expire(again, ["ENOENT", "EPERM", "EBUSY"]);
    return done;
  }

  #message({ kind, flow }: FlowDeed): NetlinkMessage {
    if (kind === "cut") return markFlow(flow, this.#mark, this.#mark);
    // A fixed end cannot be taken back: without it the flow begins anew, and is allowed to.
    const isEnding = (flow.status & FlowStatus.FixedTimeout) !== 0;
    return kind === "remove" || isEnding ? delFlow(flow) : markFlow(flow, 0, this.#mark);
  }

  #expire(flows: readonly ListedFlow[], expected: readonly string[]): readonly boolean[] {
    if (flows.length === 0) return [];
    return this.#attempt("end cut flows", flows.map((flow) => expireFlow(flow, DATAGRAM_CUT_SECONDS)), expected);
  }

  /** @throws {KernelError} of an error that is not expected */
  #attempt(operation: string, messages: readonly NetlinkMessage[], expected: readonly string[]): readonly boolean[] {
    return this.#socket.attempt(operation, messages).map((error) => {
      if (error !== undefined && !expected.some((name) => isErrno(error, name))) throw error;
      return error === undefined;
    });
  }

  #look(original: Flow["original"], zone: number): Flow | undefined {
    try {
      return this.#socket.request("look up a flow", [getFlow(original, zone === 0 ? undefined : zone)]).map(
        parseFlow,
      )[0];
    } catch (error) {
      if (isErrno(error, "ENOENT")) return undefined;
      throw error;
    }
  }

  #count(): number {
    return this.#socket.request("count flows", [getFlowCount()]).map(parseFlowCount)[0] ?? 0;
  }

  async *#dump(filter: FlowFilter): AsyncIterable<readonly NetlinkMessage[]> {
    // A socket of its own: meanwhile the other one is used for what is found.
    using socket = this.#kernel.netlink(NETLINK_NETFILTER);
    yield* socket.dumpBehind("list flows", getFlows(filter));
  }

  [Symbol.dispose](): void {
    this.#socket[Symbol.dispose]();
  }
}

/** Their ends know when one is broken, and do not begin in its midst. */
const hasConnections = ({ original }: ListedFlow): boolean =>
  original.protocol === PROTOCOLS.TCP || original.protocol === PROTOCOLS.SCTP;
