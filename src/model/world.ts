/**
 * The input of the calculation: the world as neutral objects. A policy source translates each stored resource to some of
 * these; a change replaces everything that came from one resource (`origin`).
 */
import type { Address, Cidr, Family } from "./address.ts";
import type { NamedPort } from "./ports.ts";
import type { NeutralPolicy, NeutralRule } from "./rule.ts";
import type { Labels } from "./selector.ts";

export type WorldObject =
  | WorkloadObject
  | PodObject
  | NamespaceObject
  | ServiceAccountObject
  | HostEndpointObject
  | NetworkSetObject
  | NeutralPolicy
  | TierObject
  | ProfileObject
  | NodeObject
  | BlockObject
  | PoolObject
  | InterfaceObject
  | ServiceObject
  | ServiceBackendsObject;

/** All objects of one origin, replacing what it gave before; none = the origin is gone. */
export interface WorldChange {
  /** Key text of the resource. */
  readonly origin: string;
  readonly objects: readonly WorldObject[];
}

/** An attached interface: a pod's, a container's or a VM's. Written by the daemon that wired it, or by a person. */
export interface WorkloadObject {
  readonly kind: "workload";
  readonly id: string;
  readonly node: string;
  readonly namespace: string;
  /** Host side: where the node sees the workload's packets. */
  readonly interfaceName: string;
  readonly addresses: readonly Address[];
  readonly mac?: string;
  /** Own labels. Where a `PodObject` of `pod` exists, that object's labels, ports and service account hold instead. */
  readonly labels: Labels;
  readonly ports: readonly NamedPort[];
  readonly serviceAccount?: string;
  /** Name of the Pod object in `namespace`. */
  readonly pod?: string;
  /** Names of profiles; absent = the namespace's. */
  readonly profiles?: readonly string[];
  /** For example `k8s`, `cni`. */
  readonly orchestrator: string;
}

/** A Kubernetes Pod. With addresses and no workload object of its own it is a remote endpoint by itself. */
export interface PodObject {
  readonly kind: "pod";
  /** `namespace/name` */
  readonly id: string;
  readonly namespace: string;
  readonly name: string;
  readonly labels: Labels;
  readonly serviceAccount?: string;
  readonly ports: readonly NamedPort[];
  /** status.podIPs; empty for host-network and finished pods. */
  readonly addresses: readonly Address[];
  readonly node?: string;
}

export interface NamespaceObject {
  readonly kind: "namespace";
  /** Its name. */
  readonly id: string;
  readonly labels: Labels;
}

export interface ServiceAccountObject {
  readonly kind: "serviceAccount";
  /** `namespace/name` */
  readonly id: string;
  readonly namespace: string;
  readonly name: string;
  readonly labels: Labels;
}

export interface HostEndpointObject {
  readonly kind: "hostEndpoint";
  /** Its name. */
  readonly id: string;
  readonly node: string;
  /** `*` = every interface of the node but pod links; absent = found by `expectedAddresses`. */
  readonly interfaceName?: string;
  readonly expectedAddresses: readonly Address[];
  readonly labels: Labels;
  readonly ports: readonly NamedPort[];
  readonly profiles: readonly string[];
}

/** NetworkSet, GlobalNetworkSet: prefixes with labels. */
export interface NetworkSetObject {
  readonly kind: "networkSet";
  readonly id: string;
  /** Absent for a global one. */
  readonly namespace?: string;
  readonly name: string;
  readonly labels: Labels;
  readonly nets: readonly Cidr[];
}

export interface TierObject {
  readonly kind: "tier";
  /** Its name. */
  readonly id: string;
  /** Absent = last. */
  readonly order?: number;
  readonly defaultAction: "deny" | "pass";
  /** Its place is not known, so what its policies select is denied, before all other tiers. */
  readonly closed?: true;
  /** What any rule or the default of the tier denies is logged. */
  readonly logDenied?: true;
}

export interface ProfileObject {
  readonly kind: "profile";
  /** Its name; a namespace's is `kns.NAME`. */
  readonly id: string;
  readonly labelsToApply: Labels;
  readonly ingress: readonly NeutralRule[];
  readonly egress: readonly NeutralRule[];
}

export interface NodeObject {
  readonly kind: "node";
  /** Its name. */
  readonly id: string;
  readonly addresses: readonly Address[];
  readonly labels: Labels;
}

/** An address block held by a node: where its pods' addresses are routed. */
export interface BlockObject {
  readonly kind: "block";
  readonly id: string;
  readonly cidr: Cidr;
  readonly node: string;
}

export interface PoolObject {
  readonly kind: "pool";
  readonly id: string;
  readonly cidr: Cidr;
  /** Pod traffic that leaves all pools is masqueraded. */
  readonly natOutgoing: boolean;
}

/** A link of this node, as the kernel has it. */
export interface InterfaceObject {
  readonly kind: "interface";
  /** Its name. */
  readonly id: string;
  readonly addresses: readonly Address[];
}

export interface ServicePort {
  readonly name: string;
  readonly protocol: number;
  readonly port: number;
  readonly nodePort?: number;
}

/** core/v1 Service. */
export interface ServiceObject {
  readonly kind: "service";
  /** `namespace/name` */
  readonly id: string;
  readonly namespace: string;
  readonly name: string;
  /** Milliseconds since 1970; absent: not known. Of two services with one address and port the older has it. */
  readonly createdMs?: number;
  /** Somebody else forwards for it: label service.kubernetes.io/service-proxy-name. */
  readonly proxiedElsewhere?: true;
  /** Empty for headless ones. At most one a family. */
  readonly clusterAddresses: readonly Address[];
  readonly externalAddresses: readonly Address[];
  readonly loadBalancerAddresses: readonly Address[];
  /** Who may use the load balancer addresses (loadBalancerSourceRanges); absent: all. */
  readonly sourceRanges?: readonly Cidr[];
  readonly ports: readonly ServicePort[];
  /** Seconds; absent = no affinity. */
  readonly affinitySeconds?: number;
  readonly internalLocal: boolean;
  readonly externalLocal: boolean;
  /** Only of load balancers with `externalLocal`. */
  readonly healthCheckNodePort?: number;
}

export interface ServiceBackend {
  readonly address: Address;
  readonly node?: string;
  readonly ready: boolean;
  readonly serving: boolean;
  readonly terminating: boolean;
  /** Zones and nodes that it is meant for: hints.forZones, hints.forNodes. Absent: not said. Never empty. */
  readonly forZones?: readonly string[];
  readonly forNodes?: readonly string[];
}

/** discovery.k8s.io/v1 EndpointSlice. */
export interface ServiceBackendsObject {
  readonly kind: "serviceBackends";
  readonly id: string;
  /** `namespace/name` of the service. */
  readonly service: string;
  readonly family: Family;
  readonly ports: readonly NamedPort[];
  readonly backends: readonly ServiceBackend[];
}
