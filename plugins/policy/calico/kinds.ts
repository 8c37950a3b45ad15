/** Accepted in manifests; the first is stored and shown. */
export const CALICO_VERSIONS = ["projectcalico.org/v3", "crd.projectcalico.org/v1"] as const;

export const TOP_FIELDS = ["apiVersion", "kind", "metadata", "spec", "status"];
