import {
  NAMESPACE_LABEL,
  namespaceLabels,
  SERVICE_ACCOUNT_LABEL,
  serviceAccountLabels,
} from "../../../src/model/endpoint_labels.ts";
import { dnsLabelFault } from "../../../src/model/kubernetes_names.ts";
import { andSelectors, labelIs } from "../../../src/model/selector.ts";
import { denyAllOf } from "../../../src/sdk/fail_closed.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readMetadata } from "../../../src/sdk/object_metadata.ts";

/**
 * core/v1 Namespace: its labels. The profile that leaves its pods open needs no Namespace to be there. Policies select by the labels, so
 * where they cannot be read, all that inherits them is denied.
 */
export const namespace: KindReader = {
  definition: {
    kind: "Namespace",
    name: "Namespace",
    plural: "namespaces",
    shortNames: ["ns"],
    apiVersions: ["v1"],
    namespaced: false,
  },
  read(root, key) {
    root.object(["apiVersion", "kind", "metadata", "spec", "status"]);
    const labels = namespaceLabels(key.name, readMetadata(root, { namespaced: false, nameFault: dnsLabelFault }));
    root.at("spec").openObject();
    const object = { kind: "namespace", id: key.name, labels } as const;
    return root.findings.count === 0 ? [object] : [object, denyAllOf(key, labelIs(NAMESPACE_LABEL, key.name))];
  },
};

/** core/v1 ServiceAccount: its labels; where they cannot be read, all that runs as it is denied. */
export const serviceAccount: KindReader = {
  definition: {
    kind: "ServiceAccount",
    name: "ServiceAccount",
    plural: "serviceaccounts",
    shortNames: ["sa"],
    apiVersions: ["v1"],
    namespaced: true,
  },
  read(root, key) {
    root.object(["apiVersion", "kind", "metadata", "secrets", "imagePullSecrets", "automountServiceAccountToken"]);
    const labels = serviceAccountLabels(key.name, readMetadata(root, { namespaced: true }));
    const { namespace, name } = key;
    const object = { kind: "serviceAccount", id: `${namespace}/${name}`, namespace, name, labels } as const;
    if (root.findings.count === 0) return [object];
    const runsAsIt = andSelectors(labelIs(NAMESPACE_LABEL, namespace), labelIs(SERVICE_ACCOUNT_LABEL, name));
    return [object, denyAllOf(key, runsAsIt)];
  },
};
