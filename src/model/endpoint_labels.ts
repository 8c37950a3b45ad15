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

/** Says the name of a network set, and of a namespace or service account among its labels. */
export const NAME_LABEL = "projectcalico.org/name";
/** Set by the API server on every namespace; here also where the namespace object does not say it. */
export const KUBERNETES_NAME_LABEL = "kubernetes.io/metadata.name";

/** All labels of a namespace, unprefixed: its own, its name, and the name label that a Kubernetes API server adds. */
export const namespaceLabels = (name: string, own: Labels): Labels =>
  new Map([...own, [KUBERNETES_NAME_LABEL, name], [NAME_LABEL, name]]);

/** All labels of a service account, unprefixed. */
export const serviceAccountLabels = (name: string, own: Labels): Labels => new Map([...own, [NAME_LABEL, name]]);

/** Calico's built-in profile for host endpoints that should be open where no policy selects them. */
export const DEFAULT_ALLOW_PROFILE = "projectcalico-default-allow";

const IDENTITY_LABELS: ReadonlySet<string> = new Set([
  NAMESPACE_LABEL,
  ORCHESTRATOR_LABEL,
  SERVICE_ACCOUNT_LABEL,
  NAME_LABEL,
]);

/**
 * Whether a label says what something is, where it lives or as whom it runs. Such a label is never its owner's to write:
 * whoever may make a pod, or name labels when starting a container, could otherwise give itself the `pcns.team=admin` or
 * the namespace that a policy grants access by (a Kubernetes `namespaceSelector` asks for `pcns.…`). So among own labels, and those of profiles,
 * it counts for nothing, and "its own win" holds for all others.
 */
export const isReservedLabel = (name: string): boolean =>
  IDENTITY_LABELS.has(name) || name.startsWith(NAMESPACE_PREFIX) || name.startsWith(SERVICE_ACCOUNT_PREFIX);

/** The labels that their owner may write; the same map where that is all. */
export function ownLabels(labels: Labels): Labels {
  for (const name of labels.keys()) {
    if (isReservedLabel(name)) return new Map([...labels].filter(([name]) => !isReservedLabel(name)));
  }
  return labels;
}
