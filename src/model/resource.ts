/** API objects as people write them, and how they are named. */

/** `Kind.group`, or `Kind` alone for the core group: `Pod`, `NetworkPolicy.networking.k8s.io`. One for each stored kind. */
export type ResourceKind = string;

export interface ResourceKey {
  readonly kind: ResourceKind;
  /** "" for cluster-scoped kinds. */
  readonly namespace: string;
  readonly name: string;
}

export interface Metadata {
  readonly name: string;
  readonly namespace?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
  readonly uid?: string;
  readonly creationTimestamp?: string;
  readonly resourceVersion?: string;
  readonly [field: string]: unknown;
}

/** A parsed manifest. Beyond `metadata` its fields are as its kind defines them, and unread until a plugin translates it. */
export interface Resource {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: Metadata;
  readonly [field: string]: unknown;
}

/** `kind/namespace/name`, unique, sortable; the text of a key in logs and maps. */
export const keyText = (key: ResourceKey): string => `${key.kind}/${key.namespace}/${key.name}`;

/** Back from `keyText`: of the three parts only the name could hold a `/`, and no API lets it. */
export function parseKeyText(text: string): ResourceKey {
  const [kind, namespace, ...name] = text.split("/");
  return { kind: kind!, namespace: namespace ?? "", name: name.join("/") };
}

/** What is wrong with a resource, for `manx status` and for error messages. */
export interface Problem {
  readonly subject: ResourceKey;
  /** For example `spec.ingress[0].ports[1].endPort`; "" for the whole. */
  readonly path: string;
  /** What was found and what is wanted, one line. */
  readonly message: string;
  /** `refused`: not stored. `last-good`: an earlier version stands. `fail-closed`: what it selects is denied. */
  readonly effect: "refused" | "last-good" | "fail-closed" | "ignored";
}
