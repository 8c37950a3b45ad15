import { keyText } from "../../../src/model/resource.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readNetworkPolicySpec } from "../../../src/sdk/kubernetes_policy.ts";
import { readLogDenied, readMetadata } from "../../../src/sdk/object_metadata.ts";

export const networkPolicy: KindReader = {
  definition: {
    kind: "NetworkPolicy.networking.k8s.io",
    name: "NetworkPolicy",
    plural: "networkpolicies",
    shortNames: ["netpol", "netpols"],
    apiVersions: ["networking.k8s.io/v1"],
    namespaced: true,
  },
  read(root, key) {
    root.object(["apiVersion", "kind", "metadata", "spec", "status"]);
    readMetadata(root, { namespaced: true });
    // Among Calico policies of the same order it sorts by its name as they do, without the `knp.default.` of older Calicos.
    const sortName = `${key.name} ${key.namespace}`;
    const place = { id: keyText(key), namespace: key.namespace, sortName, ...readLogDenied(root) };
    return [readNetworkPolicySpec(root.at("spec"), place)];
  },
};
