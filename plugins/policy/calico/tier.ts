import { dnsLabelFault } from "../../../src/model/kubernetes_names.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readMetadata } from "../../../src/sdk/object_metadata.ts";
import { CALICO_VERSIONS, TOP_FIELDS } from "./kinds.ts";

/** policy-semantics, "Order of judgement": tiers that are there always, and as they are. */
const FIXED: ReadonlyMap<string, { readonly order: number; readonly defaultAction: "Deny" | "Pass" }> = new Map([
  ["kube-admin", { order: 1_000, defaultAction: "Pass" }],
  ["default", { order: 1_000_000, defaultAction: "Deny" }],
  ["kube-baseline", { order: 10_000_000, defaultAction: "Pass" }],
]);

/** projectcalico.org/v3 Tier. */
export const tier: KindReader = {
  definition: {
    kind: "Tier.projectcalico.org",
    name: "Tier",
    plural: "tiers",
    shortNames: [],
    apiVersions: CALICO_VERSIONS,
    namespaced: false,
  },
  read(root, key) {
    root.object(TOP_FIELDS);
    readMetadata(root, { namespaced: false, nameFault: dnsLabelFault });
    const spec = root.at("spec").object(["order", "defaultAction"]);
    const order = spec.at("order").number();
    const action = spec.at("defaultAction").oneOf(["Deny", "Pass"]);
    const fixed = FIXED.get(key.name);
    if (fixed !== undefined) {
      if (order !== fixed.order) spec.at("order").refuse(`${fixed.order}, which is fixed for the tier ${key.name}`);
      if (spec.at("defaultAction").given && action !== fixed.defaultAction) {
        spec.at("defaultAction").refuse(`${fixed.defaultAction}, which is fixed for the tier ${key.name}`);
      }
    }
    const last = fixed?.order ?? order;
    return [{
      kind: "tier",
      id: key.name,
      ...(last === undefined ? {} : { order: last }),
      defaultAction: (fixed?.defaultAction ?? action) === "Pass" ? "pass" : "deny",
    }];
  },
};
