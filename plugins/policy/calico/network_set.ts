import { NAMESPACE_LABEL } from "../../../src/model/endpoint_labels.ts";
import { keyText } from "../../../src/model/resource.ts";
import type { ResourceKey } from "../../../src/model/resource.ts";
import type { WorldObject } from "../../../src/model/world.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readMetadata } from "../../../src/sdk/object_metadata.ts";
import type { Field } from "../../../src/sdk/validation.ts";
import { CALICO_VERSIONS, TOP_FIELDS } from "./kinds.ts";

export const networkSet: KindReader = {
  definition: {
    kind: "NetworkSet.projectcalico.org",
    name: "NetworkSet",
    plural: "networksets",
    shortNames: ["netset", "netsets"],
    apiVersions: CALICO_VERSIONS,
    namespaced: true,
  },
  read: (root, key) => readSet(root, key, true),
};

export const globalNetworkSet: KindReader = {
  definition: {
    kind: "GlobalNetworkSet.projectcalico.org",
    name: "GlobalNetworkSet",
    plural: "globalnetworksets",
    shortNames: ["gns", "globalnetset"],
    apiVersions: CALICO_VERSIONS,
    namespaced: false,
  },
  read: (root, key) => readSet(root, key, false),
};

/** A set denies and allows nothing by itself: of one with faults, the members that can be read stay members. */
function readSet(root: Field, key: ResourceKey, namespaced: boolean): readonly WorldObject[] {
  root.object(TOP_FIELDS);
  const labels = readMetadata(root, { namespaced });
  const reserved = root.at("metadata").at("labels").at(NAMESPACE_LABEL);
  if (reserved.given) reserved.refuse("no such label: it says the namespace that something is really in");
  const spec = root.at("spec").object(["nets"]);
  const nets = spec.at("nets").items().flatMap((item) => item.required("an address or prefix").cidr("refused") ?? []);
  return [{
    kind: "networkSet",
    id: keyText(key),
    ...(namespaced ? { namespace: key.namespace } : {}),
    name: key.name,
    labels,
    nets,
  }];
}
