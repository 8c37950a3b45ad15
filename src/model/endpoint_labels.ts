/** Labels that endpoints carry beyond their own, by which policies tell where they stand. Calico's names for them. */
import type { Labels } from "./selector.ts";

/** Of everything in a namespace: workloads, pods, namespaced network sets. */
export const NAMESPACE_LABEL = "projectcalico.org/namespace";
/** Of every workload and pod, and of nothing else: what a Kubernetes `podSelector` can mean. */
export const ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator";
/** Of workloads and pods that run as a service account. */
export const SERVICE_ACCOUNT_LABEL = "projectcalico.org/serviceaccount";

/** Before the labels that an endpoint inherits from its namespace. */
export const NAMESPACE_PREFIX = "pcns.";
/** Before the labels that an endpoint inherits from its service account. */
export const SERVICE_ACCOUNT_PREFIX = "pcsa.";

/** Says the name of a namespace or service account beside its own labels. */
export const NAME_LABEL = "projectcalico.org/name";

/** All labels of a namespace, unprefixed: its own, its name, and the name label that a Kubernetes API server adds. */
export const namespaceLabels = (name: string, own: Labels): Labels =>
  new Map([...own, ["kubernetes.io/metadata.name", name], [NAME_LABEL, name]]);

/** All labels of a service account, unprefixed. */
export const serviceAccountLabels = (name: string, own: Labels): Labels => new Map([...own, [NAME_LABEL, name]]);

/** Whether a label says where something lives or as whom it runs: not for its owner to write, since access is granted by it. */
export const isReservedLabel = (name: string): boolean =>
  [NAMESPACE_LABEL, ORCHESTRATOR_LABEL, SERVICE_ACCOUNT_LABEL].includes(name) || name.startsWith(NAMESPACE_PREFIX) ||
  name.startsWith(SERVICE_ACCOUNT_PREFIX);

/** The labels that their owner may write. */
export const ownLabels = (labels: Labels): Labels => new Map([...labels].filter(([name]) => !isReservedLabel(name)));
