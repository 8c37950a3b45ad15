import { namespaceLabels, serviceAccountLabels } from "../../../src/model/endpoint_labels.ts";
import { dnsLabelFault } from "../../../src/model/kubernetes_names.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readMetadata } from "../../../src/sdk/object_metadata.ts";

/** core/v1 Namespace: its labels. The profile that leaves its pods open needs no Namespace to be there. */
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
    root.at("spec").object(["finalizers"]);
    return [{ kind: "namespace", id: key.name, labels }];
  },
};

/** core/v1 ServiceAccount: its labels. */
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
    return [{
      kind: "serviceAccount",
      id: `${key.namespace}/${key.name}`,
      namespace: key.namespace,
      name: key.name,
      labels,
    }];
  },
};
