/** What `manx get` shows of each kind, between NAME and AGE. Reads whatever is stored: nothing here may throw. */
import type { Resource } from "../model/resource.ts";

export interface Column {
  readonly title: string;
  /** Shown with `-o wide` only. */
  readonly wide?: boolean;
  /** "" = none. */
  cell(resource: Resource): string;
}

type Path = readonly (string | number)[];

function at(value: unknown, ...path: Path): unknown {
  let found = value;
  for (const step of path) {
    found = found === null || typeof found !== "object" ? undefined : (found as Record<string | number, unknown>)[step];
  }
  return found;
}

function text(value: unknown): string {
  if (value === undefined || value === null) return "";
  if (Array.isArray(value)) return value.map(text).join(",");
  return typeof value === "object" ? pairs(value) : String(value);
}

const pairs = (value: unknown): string =>
  value === null || typeof value !== "object"
    ? ""
    : Object.entries(value).map(([key, item]) => `${key}=${text(item)}`).sort().join(",");

const list = (value: unknown): readonly unknown[] => Array.isArray(value) ? value : [];

/** A column that shows one field. */
const field = (title: string, ...path: Path): Column => ({ title, cell: (resource) => text(at(resource, ...path)) });
const column = (title: string, cell: (resource: Resource) => string): Column => ({ title, cell });
const wide = (one: Column): Column => ({ ...one, wide: true });

const LABELS = wide(column("LABELS", (resource) => pairs(resource.metadata.labels)));

/** metav1.LabelSelector, as kubectl prints it. */
function labelSelector(selector: unknown): string {
  if (selector === undefined || selector === null) return "";
  const parts = Object.entries(at(selector, "matchLabels") ?? {}).map(([key, value]) => `${key}=${text(value)}`);
  for (const expression of list(at(selector, "matchExpressions"))) {
    const key = text(at(expression, "key")),
      operator = text(at(expression, "operator")),
      values = text(at(expression, "values"));
    parts.push(
      operator === "Exists"
        ? key
        : operator === "DoesNotExist"
        ? `!${key}`
        : `${key} ${operator === "In" ? "in" : "notin"} (${values})`,
    );
  }
  return parts.length === 0 ? "<all>" : parts.join(",");
}

const ports = (value: unknown): string =>
  list(value).map((port) =>
    [text(at(port, "port")), text(at(port, "nodePort"))].filter((part) => part !== "").join(":") +
    `/${text(at(port, "protocol")) || "TCP"}`
  ).join(",");

const addressesOfType = (type: string) => (resource: Resource): string =>
  list(at(resource, "status", "addresses")).filter((entry) => at(entry, "type") === type).map((entry) =>
    text(at(entry, "address"))
  ).join(",");

const SELECTOR = column("SELECTOR", (resource) => text(at(resource, "spec", "selector")) || "all()");
const CALICO_POLICY: readonly Column[] = [
  column("TIER", (resource) => text(at(resource, "spec", "tier")) || "default"),
  field("ORDER", "spec", "order"),
  SELECTOR,
  wide(field("TYPES", "spec", "types")),
];
const NETWORK_SET: readonly Column[] = [field("NETS", "spec", "nets"), LABELS];

const COLUMNS: Readonly<Record<string, readonly Column[]>> = {
  Pod: [
    column(
      "IP",
      (resource) =>
        list(at(resource, "status", "podIPs")).map((entry) => text(at(entry, "ip"))).join(",") ||
        text(at(resource, "status", "podIP")),
    ),
    field("NODE", "spec", "nodeName"),
    wide(field("SERVICEACCOUNT", "spec", "serviceAccountName")),
    LABELS,
  ],
  Namespace: [column("LABELS", (resource) => pairs(resource.metadata.labels))],
  ServiceAccount: [LABELS],
  Node: [
    column("INTERNAL-IP", addressesOfType("InternalIP")),
    wide(column("EXTERNAL-IP", addressesOfType("ExternalIP"))),
    LABELS,
  ],
  Service: [
    column("TYPE", (resource) => text(at(resource, "spec", "type")) || "ClusterIP"),
    column(
      "CLUSTER-IP",
      (resource) => text(at(resource, "spec", "clusterIPs")) || text(at(resource, "spec", "clusterIP")),
    ),
    column("PORTS", (resource) => ports(at(resource, "spec", "ports"))),
    wide(column("SELECTOR", (resource) => pairs(at(resource, "spec", "selector")))),
  ],
  "EndpointSlice.discovery.k8s.io": [
    field("ADDRESSTYPE", "addressType"),
    column("PORTS", (resource) => ports(at(resource, "ports"))),
    column(
      "ENDPOINTS",
      (resource) => list(at(resource, "endpoints")).map((endpoint) => text(at(endpoint, "addresses"))).join(","),
    ),
  ],
  "NetworkPolicy.networking.k8s.io": [
    column("POD-SELECTOR", (resource) => labelSelector(at(resource, "spec", "podSelector") ?? {})),
    column(
      "TYPES",
      (resource) =>
        text(at(resource, "spec", "policyTypes")) ||
        (at(resource, "spec", "egress") === undefined ? "Ingress" : "Ingress,Egress"),
    ),
  ],
  "ClusterNetworkPolicy.policy.networking.k8s.io": [
    field("TIER", "spec", "tier"),
    field("PRIORITY", "spec", "priority"),
    column("SUBJECT", (resource) => {
      const pods = at(resource, "spec", "subject", "pods");
      return pods === undefined
        ? labelSelector(at(resource, "spec", "subject", "namespaces"))
        : `${labelSelector(at(pods, "namespaceSelector"))} / ${labelSelector(at(pods, "podSelector"))}`;
    }),
  ],
  "NetworkPolicy.projectcalico.org": CALICO_POLICY,
  "GlobalNetworkPolicy.projectcalico.org": CALICO_POLICY,
  "StagedNetworkPolicy.projectcalico.org": CALICO_POLICY,
  "StagedGlobalNetworkPolicy.projectcalico.org": CALICO_POLICY,
  "StagedKubernetesNetworkPolicy.projectcalico.org": [
    column("POD-SELECTOR", (resource) => labelSelector(at(resource, "spec", "podSelector") ?? {})),
  ],
  "Tier.projectcalico.org": [
    field("ORDER", "spec", "order"),
    column("DEFAULT", (resource) => text(at(resource, "spec", "defaultAction")) || "Deny"),
  ],
  "NetworkSet.projectcalico.org": NETWORK_SET,
  "GlobalNetworkSet.projectcalico.org": NETWORK_SET,
  "Profile.projectcalico.org": [column("LABELS-TO-APPLY", (resource) => pairs(at(resource, "spec", "labelsToApply")))],
  "HostEndpoint.projectcalico.org": [
    field("NODE", "spec", "node"),
    field("INTERFACE", "spec", "interfaceName"),
    field("IPS", "spec", "expectedIPs"),
    LABELS,
  ],
  "WorkloadEndpoint.projectcalico.org": [
    column(
      "WORKLOAD",
      (resource) => text(at(resource, "spec", "pod")) || text(at(resource, "spec", "workload")).slice(0, 12),
    ),
    field("NODE", "spec", "node"),
    field("NETWORKS", "spec", "ipNetworks"),
    field("INTERFACE", "spec", "interfaceName"),
    wide(column("CONTAINER", (resource) => text(at(resource, "spec", "containerID")).slice(0, 12))),
    wide(field("PROFILES", "spec", "profiles")),
    LABELS,
  ],
  "IPPool.projectcalico.org": [
    field("CIDR", "spec", "cidr"),
    column("NAT", (resource) => String(at(resource, "spec", "natOutgoing") === true)),
    column("NODES", (resource) => text(at(resource, "spec", "nodeSelector")) || "all()"),
    wide(field("BLOCKSIZE", "spec", "blockSize")),
    wide(column("DISABLED", (resource) => String(at(resource, "spec", "disabled") === true))),
  ],
  "IPAMBlock.ipam.manx": [
    field("CIDR", "spec", "cidr"),
    field("NODE", "spec", "node"),
    column("LEASES", (resource) => {
      const leases = at(resource, "spec", "leases");
      return String(leases === null || typeof leases !== "object" ? 0 : Object.keys(leases).length);
    }),
  ],
};

/** None but NAME and AGE for a kind that is not listed here. */
export const columnsOf = (kind: string): readonly Column[] => COLUMNS[kind] ?? [];
