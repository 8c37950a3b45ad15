/**
 * The output of the calculation: everything a dataplane needs, and nothing about any dataplane. A value: unchanged parts
 * are the same objects from one generation to the next, so identity shows change.
 */
import type { Address, Cidr, Family } from "./address.ts";
import type { PersistentMap } from "./persistent_map.ts";
import type { PortRange } from "./ports.ts";
import type { Action, IcmpMatch, RuleOrigin } from "./rule.ts";
import type { ServiceState } from "./services.ts";

declare const setIdBrand: unique symbol;
export type SetId = string & { readonly [setIdBrand]: true };

export interface DesiredState {
  /** Counts up by one with each change of content. */
  readonly generation: number;
  readonly sets: PersistentMap<SetId, AddressSet>;
  /** Local workloads by id. */
  readonly workloads: PersistentMap<string, DesiredWorkload>;
  /** Local host endpoints by name. */
  readonly hostEndpoints: PersistentMap<string, DesiredHostEndpoint>;
  /** Of local host endpoints; empty where there are none. */
  readonly failsafe: Failsafe;
  readonly masquerade: Masquerade;
  /** Absent: services are somebody else's, and nothing is done about them. */
  readonly services?: ServiceState;
}

/** A member is a `Cidr` (kind `net`), or an `Address`, a protocol character and two port characters, high byte first (kind `port`). */
export type SetMember = string;

export interface AddressSet {
  readonly id: SetId;
  readonly kind: "net" | "port";
  /** What it stands for, for people: a canonical selector, say. */
  readonly title: string;
  /** Both families. Members may overlap (10.0.0.0/8 and 10.0.0.1/32). The values mean nothing. */
  readonly members: PersistentMap<SetMember, true>;
}

export interface DesiredWorkload {
  readonly id: string;
  readonly interfaceName: string;
  /** Source addresses it may use; it owns these. */
  readonly addresses: readonly Address[];
  readonly mac?: string;
  /** Packets towards the workload. */
  readonly ingress: PolicyList;
  /** Packets from the workload. */
  readonly egress: PolicyList;
}

export interface DesiredHostEndpoint {
  readonly id: string;
  /** Names of links; `"*"` = every link of the node but those of local workloads and `lo`. */
  readonly interfaces: readonly string[] | "*";
  readonly ingress: PolicyList;
  readonly egress: PolicyList;
  /** Forwarded traffic; absent = allowed. */
  readonly forwardIngress?: PolicyList;
  readonly forwardEgress?: PolicyList;
  /** Before DNAT; nothing matched = goes on. */
  readonly preDnat?: PolicyList;
  /** Before connection tracking; nothing matched = goes on. */
  readonly untrackedIngress?: PolicyList;
  readonly untrackedEgress?: PolicyList;
}

/** What applies to one direction of an endpoint, in order. Equal lists are one object: endpoints share them. */
export interface PolicyList {
  /** Equal content, equal id, on every node and after every restart: a hash of the content. */
  readonly id: string;
  readonly tiers: readonly PolicyTier[];
  /** Judged after the last tier. */
  readonly profiles: readonly CompiledPolicy[];
  /** Where nothing decided: `deny`; `next` for the stages that have no default drop. */
  readonly end: "deny" | "next";
}

export interface PolicyTier {
  readonly name: string;
  /** Never empty; staged policies are in their place and must not decide. */
  readonly policies: readonly CompiledPolicy[];
  /** Where no rule of the tier decided. */
  readonly defaultAction: "deny" | "pass";
  /** Every deny of the tier is logged: that of its rules and its default. */
  readonly logDenied?: true;
}

export interface CompiledPolicy {
  /** Key text of the resource. */
  readonly id: string;
  readonly staged: boolean;
  /** Its deny rules are logged, and its tier's default deny in the lists that name this policy. */
  readonly logDenied?: true;
  readonly rules: readonly Rule[];
}

/** A rule whose selectors are sets. Same reading as `NeutralRule`. */
export interface Rule {
  readonly action: Action;
  readonly family?: Family;
  readonly protocol?: number;
  readonly notProtocol?: number;
  readonly icmp?: IcmpMatch;
  readonly notIcmp?: IcmpMatch;
  readonly source: RuleMatch;
  readonly destination: RuleMatch;
  readonly origin: RuleOrigin;
}

/** All given fields must hold. An empty list is never present: `undefined` says that nothing is asked. */
export interface RuleMatch {
  /** In any of these. */
  readonly nets?: readonly Cidr[];
  readonly notNets?: readonly Cidr[];
  /** The address is a member of each of these `net` sets. */
  readonly sets?: readonly SetId[];
  readonly notSets?: readonly SetId[];
  /** The port is in one of the ranges, or (address, protocol, port) is a member of one of `portSets`. */
  readonly ports?: readonly PortRange[];
  readonly portSets?: readonly SetId[];
  readonly notPorts?: readonly PortRange[];
  readonly notPortSets?: readonly SetId[];
  /** (address, protocol, port) is a member of this `port` set, besides everything else: a service. */
  readonly serviceSet?: SetId;
}

export interface ProtocolPort {
  readonly protocol: number;
  readonly port: number;
}

export interface Failsafe {
  readonly inbound: readonly ProtocolPort[];
  readonly outbound: readonly ProtocolPort[];
}

/** Packets from `sources` to anything outside `inside` leave with the node's address. */
export interface Masquerade {
  readonly sources: readonly Cidr[];
  readonly inside: readonly Cidr[];
}

/** Routes to other nodes' blocks. */
export interface RouteState {
  readonly generation: number;
  readonly routes: PersistentMap<string, DesiredRoute>;
  /** Blocks of this node: packets to addresses nobody has are answered, not sent to the default route. */
  readonly localBlocks: readonly Cidr[];
}

export interface DesiredRoute {
  readonly destination: Cidr;
  readonly node: string;
  readonly via: Address;
}

/** A packet as policy sees it; addresses after DNAT and before SNAT unless the stage says otherwise. */
export interface Packet {
  readonly protocol: number;
  readonly source: Address;
  readonly destination: Address;
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly icmp?: { readonly type: number; readonly code: number };
}
