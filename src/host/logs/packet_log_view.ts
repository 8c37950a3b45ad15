/**
 * Logged packets as the daemon tells of them: `manx logs -o json` prints these, a line each. Fields may be added, none changes
 * its meaning or goes away. Addresses and names are text, indexes count from 0.
 */
/** Who has an address. `name`: of pods, other workloads and network sets of a namespace `namespace/name`. */
export interface NameView {
  readonly kind: "pod" | "workload" | "node" | "hostEndpoint" | "networkSet";
  readonly name: string;
}

/** One end of a logged packet. */
export interface LoggedEnd {
  readonly address: string;
  readonly port?: number;
  readonly owner?: NameView;
}

/** A packet that policy logged, or several alike within a second of the first, which has an event of its own. */
export interface PacketEvent {
  readonly event: "packet";
  /** RFC 3339, of the last of them. */
  readonly time: string;
  /** How many this stands for. */
  readonly packets: number;
  readonly verdict: "log" | "deny";
  /** Seen from `endpoint`. */
  readonly direction: "ingress" | "egress";
  /** `tcp`, or a number. */
  readonly protocol: string;
  readonly source: LoggedEnd;
  readonly destination: LoggedEnd;
  readonly icmp?: { readonly type: number; readonly code: number };
  /** Whose policy decided. */
  readonly endpoint?: NameView;
  /** What decided: a rule, the default of a tier … `unknown`: see `prefix`. */
  readonly by: "rule" | "tier default" | "no profile" | "end" | "unknown endpoint" | "unknown";
  readonly tier?: string;
  /** Key text of the policy's resource. */
  readonly policy?: string;
  /** Its place in the policy's list for `direction`, from 0. */
  readonly rule?: number;
  /** What the rule said, where that names no decision of ours. */
  readonly prefix?: string;
  readonly inInterface?: string;
  readonly outInterface?: string;
  /** Of one packet, with its network header. */
  readonly lengthBytes: number;
}

/** What could not be told of. */
export interface LostEvent {
  readonly event: "lost";
  readonly time: string;
  readonly packets: number;
}

/**
 * How much a decision has denied of which only some was logged, because the kernel limits how much it logs. Told every few
 * seconds while that may be.
 */
export interface DeniedEvent extends Pick<PacketEvent, "time" | "direction" | "by" | "tier" | "policy" | "rule"> {
  readonly event: "denied";
  /** Of a default, one of its endpoints: those with equal policies count together. A rule counts for all that it applies to. */
  readonly endpoint?: NameView;
  /** Since the decision came into force: first packets of connections, with their repeats. */
  readonly packets: number;
  /** Of these, told of since the daemon's start. */
  readonly told: number;
}

/** Events that this reader was too slow for. */
export interface SkippedEvent {
  readonly event: "skipped";
  readonly events: number;
}

export type LogEvent = PacketEvent | DeniedEvent | LostEvent | SkippedEvent;

export interface LogQuery {
  /** What comes from now on as well. */
  readonly follow?: boolean;
  /** Of what is kept, no more than so many milliseconds back. */
  readonly sinceMs?: number;
  /** Of what is kept, the last so many. */
  readonly limit?: number;
  /** `namespace/name` of a pod at either end. */
  readonly pod?: string;
  readonly verdict?: "log" | "deny";
}

export interface LogsView {
  /** Events that can still be asked for. */
  readonly kept: number;
  readonly packets: number;
  readonly lost: number;
  /** Readers now, and events that readers were too slow for. */
  readonly readers: number;
  readonly skipped: number;
  readonly problems: readonly string[];
}
