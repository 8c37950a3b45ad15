/**
 * What `manx explain` and `manx policies` ask of the daemon, and what they are told: the shape of their `-o json`. It is
 * stable: fields may be added, none changes its meaning or goes away. Addresses and names are text, lines count from 1, indexes from 0.
 */
import type { Family } from "../../model/address.ts";
import type { Stage } from "../../model/evaluate.ts";
import type { Action, Direction } from "../../model/rule.ts";
import type { SourcePlace } from "../resources/source_lines.ts";

export interface ExplainRequest {
  /** Of names that say none; absent = `default`. */
  readonly namespace?: string;
  /** Absent: only what changes. */
  readonly question?: ExplainQuestion;
  readonly whatIf?: WhatIfRequest;
}

export interface ExplainQuestion {
  /** `[NAMESPACE/]POD`, `node/NAME`, an address, `host` … (`manx help explain`). */
  readonly from: string;
  readonly to: string;
  /** `tcp/80`, `tcp/http`, `icmp/8/0`, `47` … */
  readonly protocol: string;
  /** Absent: IPv4 where both have it. */
  readonly family?: Family;
}

/** As if these had been applied and those deleted. */
export interface WhatIfRequest {
  readonly manifests: readonly { readonly file: string; readonly text: string }[];
  /** `KIND/[NAMESPACE/]NAME` of what would be deleted. */
  readonly without: readonly string[];
}

export interface ExplainReply {
  /** Who answers. */
  readonly node: string;
  /** One; of a service one for each backend; none where nothing was asked. */
  readonly explanations: readonly Explanation[];
  readonly whatIf?: WhatIfReply;
}

export type VerdictWord = "allow" | "deny";

export interface Explanation {
  readonly verdict: VerdictWord;
  /** With what-if: as things are. */
  readonly verdictNow?: VerdictWord;
  readonly from: EndView;
  readonly to: EndView;
  readonly packet: PacketView;
  /** In the order of the packet's way. */
  readonly steps: readonly StepView[];
  /** The other family, where both ends have addresses of it. */
  readonly otherFamily?: {
    readonly family: Family;
    readonly verdict: VerdictWord;
    /** And for the same reason. */
    readonly same: boolean;
    readonly reason: string;
  };
  /** What the answer assumes, and what could not be known. */
  readonly notes: readonly string[];
}

export interface EndView {
  /** `default/web`; a node's or address's own. */
  readonly name: string;
  readonly kind: "pod" | "endpoint" | "node" | "outside";
  readonly address: string;
  readonly node?: string;
  /** Own and inherited. */
  readonly labels: Readonly<Record<string, string>>;
}

export interface PacketView {
  readonly family: Family;
  /** `tcp`, `icmp`, `protocol 47`. */
  readonly protocol: string;
  readonly protocolNumber: number;
  readonly port?: number;
  readonly portName?: string;
  /** Assumed. */
  readonly sourcePort?: number;
  readonly icmp?: { readonly type: number; readonly code: number };
  /** `tcp/80` */
  readonly text: string;
}

/** One thing that was asked on the way. */
export interface StepView {
  /** Where it is enforced. */
  readonly node: string;
  /** `default/web`, `host endpoint eth0-n1`. */
  readonly endpoint: string;
  readonly direction: Direction;
  readonly stage: Stage;
  /** `next`: nothing decided, and nothing had to. */
  readonly verdict: VerdictWord | "next";
  /** False: the packet was denied before; this is what would come next. */
  readonly reached: boolean;
  /** One line: who decided and how. */
  readonly reason: string;
  /** Absent: policy was not asked, `reason` says why. */
  readonly decision?: DecisionView;
  /** Up to the one that decided. */
  readonly tiers: readonly TierView[];
  /** Likewise; empty where a tier decided. */
  readonly profiles: readonly PolicyView[];
  /** The rules that would have turned the verdict round, those that failed by least first. */
  readonly near: readonly NearView[];
  /** How many more would have, had all their conditions held. */
  readonly nearMore: number;
  readonly staged: readonly StagedView[];
  readonly counter: CounterView;
}

export interface PolicyReference {
  /** `NetworkPolicy.networking.k8s.io` */
  readonly kind: string;
  readonly namespace: string;
  readonly name: string;
  /** `NetworkPolicy default/web` */
  readonly title: string;
  /** Of its document. */
  readonly place?: SourcePlace;
}

export interface RuleView {
  /** `spec.ingress[0]` */
  readonly path: string;
  readonly direction: Direction;
  readonly index: number;
  readonly action: Action;
  /** `allow tcp from … to port 80` */
  readonly text: string;
  readonly name?: string;
  readonly annotations?: Readonly<Record<string, string>>;
  readonly place?: SourcePlace;
}

export interface DecisionView {
  readonly by: "rule" | "tier default" | "no profile" | "end" | "unknown endpoint";
  readonly tier?: string;
  readonly policy?: PolicyReference;
  readonly rule?: RuleView;
}

export interface TierView {
  readonly name: string;
  /** null = last. */
  readonly order: number | null;
  readonly defaultAction: "deny" | "pass";
  readonly outcome: "allow" | "deny" | "pass";
  /** In order, up to the one that decided; the first and last ones where they are many. */
  readonly policies: readonly PolicyView[];
  /** Policies that were looked at and are not listed. */
  readonly more: number;
}

export interface PolicyView extends PolicyReference {
  /** null = last in its tier. */
  readonly order: number | null;
  readonly staged: boolean;
  readonly outcome: "allow" | "deny" | "pass" | "no match";
  /** Of this direction. */
  readonly rules: number;
  /** What it applies to, in words. */
  readonly selects: string;
}

export interface NearView {
  readonly policy: PolicyReference;
  readonly tier?: string;
  readonly rule: RuleView;
  /** Why it did not decide, one reason each. */
  readonly because: readonly string[];
}

/** What a staged policy would have said, had it been in force. */
export interface StagedView {
  readonly policy: PolicyReference;
  readonly tier: string;
  readonly outcome: "allow" | "deny" | "pass" | "no match";
  readonly rule?: RuleView;
  /** Of the packet's verdict at this step. */
  readonly changes: boolean;
}

/** First packets of flows that the decision met since the kernel got it: of a rule, at every endpoint of this node that it applies to. */
export type CounterView =
  | {
    readonly packets: number;
    readonly bytes: number;
    /** Further decisions that the same counter counts. */
    readonly sharedWith: number;
  }
  /** Why there is none. */
  | { readonly absent: string };

export interface WhatIfReply {
  readonly changes: readonly {
    readonly kind: string;
    readonly namespace: string;
    readonly name: string;
    readonly outcome: "created" | "configured" | "unchanged" | "deleted";
  }[];
  /** Groups of pairs with one change. Every pair of a source and a target, those of `except` left out. */
  readonly groups: readonly WhatIfGroup[];
  /** Pairs in all groups. */
  readonly pairs: number;
  /** Pods and other endpoints, nodes, and networks outside that were compared with one another. */
  readonly compared: { readonly endpoints: number; readonly nodes: number; readonly networks: number };
  /** Endpoints that only one of the two worlds has: they are not compared. */
  readonly added: readonly string[];
  readonly removed: readonly string[];
  readonly notes: readonly string[];
}

export interface WhatIfGroup {
  readonly from: readonly string[];
  readonly to: readonly string[];
  /** `[from, to]` pairs that are not meant: nobody meets itself, a node always reaches its own pods. */
  readonly except: readonly (readonly [string, string])[];
  /** That each pair has addresses of on both ends. */
  readonly families: readonly Family[];
  readonly packets: readonly PacketChange[];
}

export interface PacketChange {
  /** `tcp/80`, `udp`, `icmp/8`, `everything`. */
  readonly what: readonly string[];
  /** Of `what`, those that are not listed. */
  readonly more: number;
  readonly families: readonly Family[];
  readonly now: VerdictWord;
  readonly then: VerdictWord;
}

export interface PoliciesReply {
  readonly endpoint: string;
  readonly node: string;
  /** Where the endpoint is another node's: who enforces it. */
  readonly lists: readonly PolicyListView[];
}

/** What applies to one direction, in order. */
export interface PolicyListView {
  /** Names the host endpoint where there are several. */
  readonly endpoint: string;
  readonly direction: Direction;
  readonly stage: Stage;
  readonly tiers: readonly {
    readonly name: string;
    readonly order: number | null;
    readonly defaultAction: "deny" | "pass";
    readonly policies: readonly AppliedPolicy[];
  }[];
  readonly profiles: readonly AppliedPolicy[];
  readonly end: "deny" | "next";
}

export interface AppliedPolicy extends PolicyReference {
  readonly order: number | null;
  readonly staged: boolean;
  readonly rules: number;
  readonly selects: string;
}
