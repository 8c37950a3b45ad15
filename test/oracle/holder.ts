/** Everything that has labels and addresses. */
import type { Net } from "./address.ts";
import type { Fields, Identity } from "./manifest.ts";
import type { Labels } from "./selector.ts";

export interface Resource {
  readonly identity: Identity;
  readonly fields: Fields;
}

export interface NamedPort {
  readonly name: string;
  readonly protocol: number;
  readonly port: number;
}

/** A namespace or a service account: what endpoints inherit labels from. */
export interface Group {
  readonly name: string;
  readonly labels: Labels;
}

/** What a rule's selector can select. */
export interface Holder {
  readonly kind: "workload" | "host endpoint" | "network set";
  /** For people. */
  readonly title: string;
  /** Absent: belongs to none. */
  readonly namespace?: Group;
  readonly serviceAccount?: Group;
  /** Its own, then the inherited ones: what selectors see. */
  readonly labels: Labels;
  /** Single addresses, except for network sets. */
  readonly nets: readonly Net[];
  readonly ports: readonly NamedPort[];
}

/** What policy applies to. */
export interface Endpoint extends Holder {
  readonly kind: "workload" | "host endpoint";
  readonly name: string;
  readonly node: string;
  /** Of a host endpoint: `*` for all, absent for the one that holds an expected address. */
  readonly interfaceName?: string;
  /** In order. */
  readonly profiles: readonly string[];
}
