/**
 * Services as a dataplane sees them: addresses and ports that stand for others. A value, like the rest of the desired state:
 * unchanged parts are the same objects from one generation to the next.
 */
import type { Address, Cidr, Family } from "./address.ts";
import type { PersistentMap } from "./persistent_map.ts";

export interface ServiceState {
  /** By `frontendKey`. */
  readonly frontends: PersistentMap<string, ServiceFrontend>;
  /** By port, as text: answered with 200 where a backend of the service is on this node, else 503. */
  readonly healthChecks: PersistentMap<string, ServiceHealthCheck>;
  /** Addresses of this node that node ports answer on: those inside; empty = every local address but loopback. Of the configuration. */
  readonly nodePortAddresses: readonly Cidr[];
  /** Where pods are: what comes from elsewhere to an external address or node port is "outside". Empty: unknown, everything not a local pod is. */
  readonly podNets: readonly Cidr[];
}

/** One address (or every address of the node), protocol and port. */
export interface ServiceFrontend {
  readonly key: string;
  /** Absent: a node port. */
  readonly address?: Address;
  readonly family: Family;
  /** IP protocol number: TCP, UDP or SCTP. */
  readonly protocol: number;
  readonly port: number;
  /** `cluster`: a ClusterIP. `external`: an external or load balancer address. `node`: a node port. */
  readonly scope: "cluster" | "external" | "node";
  /** For people: `namespace/name:port name`. */
  readonly title: string;
  /**
   * For traffic from pods and from the node itself; of `cluster` ones also from elsewhere. Of the others it is chosen from all
   * nodes even where externalTrafficPolicy is Local: who is inside takes the short way.
   */
  readonly backends: BackendList;
  /** For traffic from outside, where it is another list (externalTrafficPolicy Local); `cluster` ones never have it. */
  readonly outside?: BackendList;
  /**
   * Traffic to the frontend from outside leaves for its backend with the node's address, so that answers come back this way.
   * External addresses and node ports with externalTrafficPolicy Cluster; with Local never, and never of `cluster` ones.
   */
  readonly masqueradeOutside: boolean;
  /** Only packets from these reach it (loadBalancerSourceRanges), all of its family; absent: all do; empty: none does. */
  readonly sources?: readonly Cidr[];
  /** Seconds that a client stays with its backend (sessionAffinity ClientIP); absent: none. */
  readonly affinitySeconds?: number;
}

/**
 * Equal content, equal id, one object: the frontends of a service port share it, and those of other services with the same backends.
 * The id is the same on every node and after every restart. A backend that reaches itself is masqueraded (hairpin).
 */
export interface BackendList {
  readonly id: string;
  /** By address, then port. One family, each once. */
  readonly backends: readonly ServiceBackendTarget[];
  /**
   * Where no backend takes new connections (none, or all draining): `reject` (no endpoint at all) or `drop` (there are some, not on
   * this node, and the policy is Local). `reject` where there are backends.
   */
  readonly empty: "reject" | "drop";
}

export interface ServiceBackendTarget {
  readonly address: Address;
  readonly port: number;
  /**
   * Terminating: takes no new connections, keeps the established ones (IPVS: weight 0). Other dataplanes skip it. An endpoint that
   * terminates and has to serve all the same, because no other is ready, is not draining.
   */
  readonly draining?: true;
}

export interface ServiceHealthCheck {
  readonly port: number;
  /** `namespace/name` */
  readonly service: string;
  /** Ready ones on this node; those that terminate do not count. */
  readonly localEndpoints: number;
}

/** Not for people: the address is packed. */
export const frontendKey = (
  { address, protocol, port, family }: Pick<ServiceFrontend, "address" | "protocol" | "port" | "family">,
): string => `${address ?? `node${family}`}/${protocol}/${port}`;
