import { FIXED_TIERS } from "../../../src/model/fixed_tiers.ts";
import { dnsLabelFault } from "../../../src/model/kubernetes_names.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readLogDenied, readMetadata } from "../../../src/sdk/object_metadata.ts";
import type { Need } from "../../../src/sdk/policy_source.ts";
import { CALICO_VERSIONS, TOP_FIELDS } from "./kinds.ts";

const KIND = "Tier.projectcalico.org";
const ACTIONS = { deny: "Deny", pass: "Pass" } as const;

/** What a policy in the tier needs to be there; fixed tiers are. */
export const tierNeeds = (name: unknown): readonly Need[] =>
  typeof name !== "string" || name === "" || FIXED_TIERS.has(name)
    ? []
    : [{ key: { kind: KIND, namespace: "", name }, path: "spec.tier" }];

/** projectcalico.org/v3 Tier. */
export const tier: KindReader = {
  definition: {
    kind: KIND,
    name: "Tier",
    plural: "tiers",
    shortNames: [],
    apiVersions: CALICO_VERSIONS,
    namespaced: false,
  },
  read(root, key) {
    root.object(TOP_FIELDS);
    readMetadata(root, { namespaced: false, nameFault: dnsLabelFault });
    const logDenied = readLogDenied(root);
    const place = root.findings.attempt(() => {
      const spec = root.at("spec").object(["order", "defaultAction"]);
      return { order: spec.at("order").number() };
    });
    const spec = root.at("spec").openObject(), order = place?.order;
    const action = spec.at("defaultAction").oneOf(["Deny", "Pass"]);
    const fixed = FIXED_TIERS.get(key.name);
    if (fixed !== undefined) {
      if (order !== fixed.order) spec.at("order").refuse(`${fixed.order}, which is fixed for the tier ${key.name}`);
      const wanted = ACTIONS[fixed.defaultAction];
      if (spec.at("defaultAction").given && action !== wanted) {
        spec.at("defaultAction").refuse(`${wanted}, which is fixed for the tier ${key.name}`);
      }
    }
    const last = fixed?.order ?? order;
    return [{
      kind: "tier",
      id: key.name,
      ...(last === undefined ? {} : { order: last }),
      ...(fixed === undefined && place === undefined ? { closed: true as const } : {}),
      defaultAction: fixed?.defaultAction ?? (action === "Pass" ? "pass" : "deny"),
      ...logDenied,
    }];
  },
};
