/** Policies in neutral form: what every dialect is translated to, before selectors are resolved. */
import type { Cidr, Family } from "./address.ts";
import type { PortRange } from "./ports.ts";
import type { Selector } from "./selector.ts";

export type Action = "allow" | "deny" | "pass" | "log";
export type Direction = "ingress" | "egress";

/** Where a rule was written. `policy` is the key text of the resource, `index` counts from 0 in its direction's list. */
export interface RuleOrigin {
  readonly policy: string;
  readonly direction: Direction;
  readonly index: number;
}

/** `code` absent: every code of the type. */
export interface IcmpMatch {
  readonly type: number;
  readonly code?: number;
}

/** A service as a peer: the addresses and ports of its endpoints. */
export interface ServiceReference {
  readonly namespace: string;
  readonly name: string;
}

/**
 * One end of a rule. All given fields must hold; inside one list any member will do; `not…` lists: no member may match.
 * `ports`, `portNames` and `anyOf` belong together: a port matches by number range or by name.
 */
export interface PeerMatch {
  readonly nets?: readonly Cidr[];
  readonly notNets?: readonly Cidr[];
  /** Over endpoint and network-set labels; already ANDed with whatever namespace the dialect implies. */
  readonly selector?: Selector;
  readonly notSelector?: Selector;
  /** Over node labels: the addresses of these nodes. */
  readonly nodes?: Selector;
  readonly ports?: readonly PortRange[];
  readonly portNames?: readonly string[];
  readonly notPorts?: readonly PortRange[];
  readonly notPortNames?: readonly string[];
  /** Address and port of an endpoint of this service; with `servicePorts: false` the address alone (as a source). */
  readonly service?: ServiceReference;
  readonly servicePorts?: boolean;
}

export interface NeutralRule {
  readonly action: Action;
  readonly family?: Family;
  readonly protocol?: number;
  readonly notProtocol?: number;
  readonly icmp?: IcmpMatch;
  readonly notIcmp?: IcmpMatch;
  readonly source: PeerMatch;
  readonly destination: PeerMatch;
  readonly origin: RuleOrigin;
  /** What its author calls it (ClusterNetworkPolicy `name`); to be shown, without meaning. */
  readonly name?: string;
  /** Calico `metadata.annotations`; to be shown, without meaning. */
  readonly annotations?: Readonly<Record<string, string>>;
}

/**
 * `normal`: traffic that starts or ends at a workload, or in the host itself behind a host endpoint.
 * `forward`: also what host endpoints forward. `preDnat`, `untracked`: host endpoints only, see policy-semantics.
 */
export type PolicyStage = "normal" | "forward" | "preDnat" | "untracked";

export interface NeutralPolicy {
  readonly kind: "policy";
  /** Key text of the resource it came from. */
  readonly id: string;
  readonly tier: string;
  /** Position in its tier, lowest first; absent = last. Then by `sortName`. */
  readonly order?: number;
  readonly sortName: string;
  readonly selects: Selector;
  readonly stage: PolicyStage;
  /** Evaluated and counted, never enforced. */
  readonly staged: boolean;
  /** What its deny rules deny is logged, and what its tier denies by default where it applies. */
  readonly logDenied?: true;
  /** Absent: the policy does not cover the direction. Empty: it covers it and matches nothing. */
  readonly ingress?: readonly NeutralRule[];
  readonly egress?: readonly NeutralRule[];
}
