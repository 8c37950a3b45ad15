import type { Family } from "../model/address.ts";
import type { DesiredState, Packet, PolicyList, RouteState } from "../model/desired.ts";
import type { Decision, Path } from "../model/evaluate.ts";
import type { Direction } from "../model/rule.ts";

export type Aspect = "policy" | "services" | "nat";

export interface Report {
  /** The generation that is in force on return. */
  readonly generation: number;
  /** Everything of that generation is in force. */
  readonly converged: boolean;
  /** Messages sent to the kernel; 0 = it was as wanted. */
  readonly messages: number;
  /** What is not as wanted, one line each. */
  readonly problems: readonly string[];
}

/**
 * One counter in the kernel, and the decisions that it counts together: rules that the dataplane has united, or whose verdict
 * is its tier's default anyway. Packets are first packets of flows: those of established ones are let through before. A
 * decision may have several counters. Where rules of one action match the same packet, the one that was looked up first counts
 * it, not always the first in order.
 */
export interface DecisionCount {
  readonly decisions: readonly Decision[];
  readonly packets: number;
  /** With the network header. */
  readonly bytes: number;
}

/** A packet that a `Log` rule matched, or that was denied where denied packets are logged. Rate-limited where it was decided. */
export interface LoggedPacket {
  /** Milliseconds since 1970. */
  readonly atMs: number;
  readonly verdict: "log" | "deny";
  /** Of the judgement, seen from the endpoint. */
  readonly direction: Direction;
  /** Undefined: `prefix` is not one of ours, or of a policy that is no more. */
  readonly decision: Decision | undefined;
  /** As the kernel had it. */
  readonly prefix: string;
  readonly packet: Packet;
  /** Absent: a process of the node sent it, or its link has gone. */
  readonly inInterface?: string;
  /** Absent: it is for the node itself, it was not yet routed, or its link has gone. */
  readonly outInterface?: string;
  /** With the network header. */
  readonly lengthBytes: number;
}

/** Packets that were logged and could not be told of. */
export interface LostPackets {
  readonly lost: number;
}

/**
 * What becomes of a new connection's first packet on its way through this node, by rules that are walked as the kernel walks them.
 * @throws {Error} where a rule has no known meaning: a guess would be worse than none
 */
export type PacketJudge = (path: Path) => "allow" | "deny";

export interface Dataplane extends AsyncDisposable {
  /** Probed at open, never guessed from a version. */
  readonly capabilities: {
    readonly aspects: ReadonlySet<Aspect>;
    readonly families: ReadonlySet<Family>;
    /** `all`: a generation is one transaction. */
    readonly atomicity: "all" | "object";
  };
  /** Brings the kernel to the whole of `desired`; identity against the last one applied shows what to look at. Repeatable. */
  apply(desired: DesiredState, signal?: AbortSignal): Promise<Report>;
  /** Compares with the kernel and mends; what `apply` does after a restart or a foreign change. */
  resync(signal?: AbortSignal): Promise<Report>;
  /** Yields when something foreign touched what is ours: time to `resync`. */
  drift(signal: AbortSignal): AsyncIterable<string>;
  /**
   * How the kernel differs from the state last given to `apply`, a line each for people: `+ ` is wanted and not there, `- ` is
   * there of ours and not wanted, `~ ` says how much more there is. Empty: it is as wanted, and a `resync` would send nothing. Changes
   * nothing. Absent: it cannot tell. @throws {Error} where the kernel cannot be read
   */
  diff?(signal?: AbortSignal): Promise<readonly string[]>;
  /**
   * Judges packets by the rules of the moment; later changes do not change its answers. By the rules that the kernel has, where they can be
   * read back as such, otherwise by those that were rendered and that `diff` holds against the kernel. Either way by the rules alone: never by
   * `DesiredState`, whose reading of policy it is there to check (`manx dataplane switch` compares two dataplanes so). Translation of addresses
   * is the asker's: packets are given as they are after it. Absent: it does not judge packets, or cannot tell. @throws {Error} where the
   * kernel cannot be read
   */
  tracer?(signal?: AbortSignal): Promise<PacketJudge>;
  /**
   * What the rules of a list have decided since they came into force. A rule's counter is one for all endpoints that the rule
   * applies to, and survives changes of other rules; the defaults of a list (of a tier, and where no profile matches) are
   * counted for the list, from its last change on. Staged policies count what they would have decided. Absent: it does not
   * count. Empty: the list is not in force.
   */
  counts?(list: PolicyList, signal?: AbortSignal): Promise<readonly DecisionCount[]>;
  /**
   * Logged packets from now on, within a fraction of a second; ends when `signal` aborts. Absent: it logs none.
   * @throws {ManxError} code `unavailable` where they cannot be had, by whose fault is in its message
   */
  logs?(signal: AbortSignal): AsyncIterable<LoggedPacket | LostPackets>;
  /**
   * One bit of the connection mark (nf_conntrack): while a flow carries it, no packet of the flow passes, either way, whatever
   * policy says. Who sets it: src/host/cuts/flow_cuts.ts. Absent: it cannot.
   */
  readonly cutMark?: number | undefined;
  /**
   * Packets of established flows that go past rules and connection tracking meet both again from the next one on. Who marks or removes flows
   * calls it right after. Absent: none go past. @throws {Error} where the kernel refuses
   */
  recheckFlows?(): void;
  /**
   * One bit of the packet mark: what carries it, this dataplane has forwarded (a service's packet to its backend) and it never meets the
   * FORWARD hook, only OUTPUT and POSTROUTING. The owner of policy must judge it there. Absent: all that is forwarded meets FORWARD.
   */
  readonly forwardMark?: number | undefined;
  /** Of the owner of policy: packets with this bit of the mark are judged on their way out, as the forwarded ones that they are. Absent: none. */
  readonly judgesForwardMark?: number | undefined;
  /** Removes everything that is ours, and nothing else. */
  sweep(signal?: AbortSignal): Promise<Report>;
}

export interface Routing extends AsyncDisposable {
  apply(desired: RouteState, signal?: AbortSignal): Promise<Report>;
  drift(signal: AbortSignal): AsyncIterable<string>;
  sweep(signal?: AbortSignal): Promise<Report>;
}
