import { DEFAULT_ALLOW_PROFILE, isReservedLabel } from "../../../src/model/endpoint_labels.ts";
import { keyText } from "../../../src/model/resource.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readLabels, readMetadata } from "../../../src/sdk/object_metadata.ts";
import { CALICO_VERSIONS, TOP_FIELDS } from "./kinds.ts";
import { readRules } from "./rule.ts";

/** projectcalico.org/v3 Profile. */
export const profile: KindReader = {
  definition: {
    kind: "Profile.projectcalico.org",
    name: "Profile",
    plural: "profiles",
    shortNames: [],
    apiVersions: CALICO_VERSIONS,
    namespaced: false,
  },
  read(root, key) {
    root.object(TOP_FIELDS);
    readMetadata(root, { namespaced: false });
    if (/^k(ns|sa)\./.test(key.name)) {
      root.at("metadata").at("name").refuse(
        "another name: kns. and ksa. are made from namespaces and service accounts",
      );
      return [];
    }
    if (key.name === DEFAULT_ALLOW_PROFILE) {
      root.at("metadata").at("name").refuse("another name: this profile is built in, and allows everything");
      return [];
    }
    const spec = root.at("spec").object(["labelsToApply", "ingress", "egress"]);
    const labels = spec.at("labelsToApply"), labelsToApply = readLabels(labels);
    for (const name of labelsToApply.keys()) {
      if (isReservedLabel(name)) {
        labels.at(name).refuse("no such label: only the namespace or account itself says that");
      }
    }
    const policy = keyText(key);
    const ingress = readRules(spec.at("ingress"), { policy, direction: "ingress" });
    const egress = readRules(spec.at("egress"), { policy, direction: "egress" });
    // A profile without rules allows nothing: its endpoints are denied what no policy allows.
    const readable = root.findings.count === 0;
    return [{
      kind: "profile",
      id: key.name,
      labelsToApply,
      ingress: readable ? ingress : [],
      egress: readable ? egress : [],
    }];
  },
};
