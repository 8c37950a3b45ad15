/** projectcalico.org/v3 NetworkPolicy and GlobalNetworkPolicy, and the staged forms of both and of Kubernetes' policy. */
import { NAMESPACE_LABEL } from "../../../src/model/endpoint_labels.ts";
import { dnsLabelFault } from "../../../src/model/kubernetes_names.ts";
import { keyText } from "../../../src/model/resource.ts";
import type { ResourceKey } from "../../../src/model/resource.ts";
import type { Direction, NeutralPolicy, PolicyStage } from "../../../src/model/rule.ts";
import { ALL, andSelectors, labelIs } from "../../../src/model/selector.ts";
import type { Selector } from "../../../src/model/selector.ts";
import { denyAll, FIRST_ORDER } from "../../../src/sdk/fail_closed.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readNetworkPolicySpec } from "../../../src/sdk/kubernetes_policy.ts";
import { readLogDenied, readMetadata } from "../../../src/sdk/object_metadata.ts";
import { describe } from "../../../src/sdk/validation.ts";
import type { Field } from "../../../src/sdk/validation.ts";
import { CALICO_VERSIONS, TOP_FIELDS } from "./kinds.ts";
import { inNamespaces, readRules, readSelector, runningAs } from "./rule.ts";
import { tier, tierNeeds } from "./tier.ts";

const SPEC_FIELDS = [
  "tier",
  "order",
  "selector",
  "types",
  "ingress",
  "egress",
  "serviceAccountSelector",
  "performanceHints",
];
const GLOBAL_SPEC_FIELDS = [...SPEC_FIELDS, "namespaceSelector", "doNotTrack", "preDNAT", "applyOnForward"];
const STAGED_ACTIONS = ["Set", "Delete", "Learn", "Ignore"] as const;
const BOTH: readonly Direction[] = ["ingress", "egress"];
const TIERS = [tier.definition.kind];

export const networkPolicy: KindReader = {
  definition: {
    kind: "NetworkPolicy.projectcalico.org",
    name: "NetworkPolicy",
    plural: "networkpolicies",
    shortNames: ["caliconetworkpolicy", "caliconetworkpolicies"],
    apiVersions: CALICO_VERSIONS,
    namespaced: true,
    needs: TIERS,
  },
  needs: (root) => tierNeeds(root.at("spec").at("tier").value),
  read(root, key) {
    readPolicyHead(root, true);
    return [readPolicy(root, key)];
  },
};

export const globalNetworkPolicy: KindReader = {
  definition: {
    kind: "GlobalNetworkPolicy.projectcalico.org",
    name: "GlobalNetworkPolicy",
    plural: "globalnetworkpolicies",
    shortNames: ["gnp", "gnps"],
    apiVersions: CALICO_VERSIONS,
    namespaced: false,
    needs: TIERS,
  },
  needs: (root) => tierNeeds(root.at("spec").at("tier").value),
  read(root, key) {
    readPolicyHead(root, false);
    return [readPolicy(root, key)];
  },
};

export const stagedNetworkPolicy: KindReader = {
  definition: {
    kind: "StagedNetworkPolicy.projectcalico.org",
    name: "StagedNetworkPolicy",
    plural: "stagednetworkpolicies",
    shortNames: ["snp"],
    apiVersions: CALICO_VERSIONS,
    namespaced: true,
    needs: TIERS,
  },
  needs: (root) => tierNeeds(root.at("spec").at("tier").value),
  faultEffect: "ignored",
  read(root, key) {
    readPolicyHead(root, true);
    return readStaged(root.at("spec"), ["tier"], () => readPolicy(root, key, ["stagedAction"]));
  },
};

export const stagedGlobalNetworkPolicy: KindReader = {
  definition: {
    kind: "StagedGlobalNetworkPolicy.projectcalico.org",
    name: "StagedGlobalNetworkPolicy",
    plural: "stagedglobalnetworkpolicies",
    shortNames: ["sgnp"],
    apiVersions: CALICO_VERSIONS,
    namespaced: false,
    needs: TIERS,
  },
  needs: (root) => tierNeeds(root.at("spec").at("tier").value),
  faultEffect: "ignored",
  read(root, key) {
    readPolicyHead(root, false);
    return readStaged(root.at("spec"), ["tier"], () => readPolicy(root, key, ["stagedAction"]));
  },
};

export const stagedKubernetesNetworkPolicy: KindReader = {
  definition: {
    kind: "StagedKubernetesNetworkPolicy.projectcalico.org",
    name: "StagedKubernetesNetworkPolicy",
    plural: "stagedkubernetesnetworkpolicies",
    shortNames: ["sknp"],
    apiVersions: CALICO_VERSIONS,
    namespaced: true,
  },
  faultEffect: "ignored",
  read(root, key) {
    root.object(TOP_FIELDS);
    readMetadata(root, { namespaced: true });
    const sortName = `${key.name} ${key.namespace}`;
    const place = { id: keyText(key), namespace: key.namespace, sortName, ...readLogDenied(root) };
    return readStaged(root.at("spec"), [], () => readNetworkPolicySpec(root.at("spec"), place, ["stagedAction"]));
  },
};

const PART = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
/** A name, perhaps behind its tier's and a dot. */
const GLOBAL_NAME = new RegExp(`^(${PART}\\.)?${PART}$`);
/** The same, or the name under which Calico shows a Kubernetes or OpenStack policy. */
const NAMESPACED_NAME = new RegExp(`^((${PART}\\.)?${PART}|(knp|ossg)\\.default\\.${PART}(\\.${PART})*)$`);
const NAME_LIMIT = 253;

function readPolicyHead(root: Field, namespaced: boolean): void {
  const pattern = namespaced ? NAMESPACED_NAME : GLOBAL_NAME;
  root.object(TOP_FIELDS);
  readMetadata(root, {
    namespaced,
    nameFault: (name) =>
      name.length <= NAME_LIMIT && pattern.test(name)
        ? undefined
        : `lower case letters, digits and -, with at most one dot (behind the tier), at most ${NAME_LIMIT} characters`,
  });
}

/** Only `Set` has anything to evaluate; what is staged is never enforced, so a fault in it denies nothing. */
function readStaged(spec: Field, keptByDelete: readonly string[], read: () => NeutralPolicy): readonly NeutralPolicy[] {
  const action = spec.at("stagedAction").oneOf(STAGED_ACTIONS) ?? "Set";
  if (action === "Delete") {
    for (const [name, field] of spec.entries()) {
      if (name === "stagedAction" || keptByDelete.includes(name) || isZero(field.value)) continue;
      field.refuse("none with stagedAction Delete", describe(field.value));
    }
    return [];
  }
  const policy = read();
  return spec.findings.count > 0 || action !== "Set" ? [] : [{ ...policy, staged: true }];
}

const isZero = (value: unknown): boolean =>
  value === undefined || value === null || value === "" || value === false || value === 0 ||
  typeof value === "object" && Object.keys(value).length === 0;

/** The policy, or where any fault was noted, here or before, the one that denies what it selects. */
function readPolicy(root: Field, key: ResourceKey, moreFields: readonly string[] = []): NeutralPolicy {
  const findings = root.findings, field = root.at("spec");
  const logDenied = readLogDenied(root);
  const namespace = key.namespace === "" ? undefined : key.namespace;
  const known = namespace === undefined ? GLOBAL_SPEC_FIELDS : SPEC_FIELDS;
  const shape = findings.attempt(() => field.object([...known, ...moreFields]));
  const spec = shape ?? field;
  const id = keyText(key);
  const tierField = spec.at("tier");
  const tierName = tierField.value === ""
    ? "default"
    : findings.attempt(() => tierField.name(dnsLabelFault) ?? "default");
  const order = findings.attempt(() => ({ value: spec.at("order").number() }));
  const selects = findings.attempt(() => readSubject(spec, namespace));
  const types = findings.attempt(() => readTypes(spec));
  const stage = findings.attempt(() => namespace === undefined ? readStage(spec, types) : "normal" as const);
  readHints(spec.at("performanceHints"));
  const scope = { policy: id, ...(namespace === undefined ? {} : { namespace }) };
  const ingress = readRules(spec.at("ingress"), { ...scope, direction: "ingress" });
  const egress = readRules(spec.at("egress"), { ...scope, direction: "egress" });
  const policy = {
    id,
    tier: tierName ?? "kube-admin",
    selects: selects ?? (namespace === undefined ? ALL : labelIs(NAMESPACE_LABEL, namespace)),
    stage: stage ?? "forward",
    ...logDenied,
  } as const;
  if (findings.count > 0) {
    const place = tierName === undefined || order === undefined
      ? { order: FIRST_ORDER, sortName: "" }
      : { ...(order.value === undefined ? {} : { order: order.value }), sortName: sortName(key) };
    const directions = shape === undefined || types === undefined ? BOTH : types;
    return denyAll({ ...policy, ...place }, policy.stage === "preDnat" ? ["ingress"] : directions);
  }
  return {
    kind: "policy",
    ...policy,
    ...(order?.value === undefined ? {} : { order: order.value }),
    sortName: sortName(key),
    staged: false,
    ...(types!.includes("ingress") ? { ingress } : {}),
    ...(types!.includes("egress") ? { egress } : {}),
  };
}

/** They never change what a policy means. */
function readHints(list: Field): void {
  const seen = new Set<unknown>();
  for (const item of list.items()) {
    item.required("a hint").oneOf(["AssumeNeededOnEveryNode"]);
    if (seen.size === seen.add(item.value).size) item.refuse("each hint once");
  }
}

const sortName = (key: ResourceKey): string => key.namespace === "" ? key.name : `${key.name} ${key.namespace}`;

/** Endpoints that the policy applies to. */
function readSubject(spec: Field, namespace: string | undefined): Selector {
  const selector = readSelector(spec.at("selector"));
  const accounts = readSelector(spec.at("serviceAccountSelector"));
  const namespaces = namespace === undefined ? readSelector(spec.at("namespaceSelector")) : undefined;
  return andSelectors(
    ...(namespace === undefined ? [] : [labelIs(NAMESPACE_LABEL, namespace)]),
    ...(namespaces === undefined ? [] : [inNamespaces(namespaces)]),
    ...(accounts === undefined ? [] : [runningAs(accounts)]),
    ...(selector === undefined ? [] : [selector]),
  );
}

/** Absent or empty: what there are rules for, and Ingress where there are none. */
function readTypes(spec: Field): readonly Direction[] {
  const list = spec.at("types");
  const seen = new Set<Direction>();
  for (const item of list.items()) {
    const type = item.required("Ingress or Egress").oneOf(["Ingress", "Egress"]);
    const direction = type === undefined ? undefined : type === "Ingress" ? "ingress" : "egress";
    if (direction === undefined) continue;
    if (seen.has(direction)) item.refuse("each type once");
    seen.add(direction);
  }
  if (seen.size > 0) return BOTH.filter((direction) => seen.has(direction));
  const ruled = BOTH.filter((direction) => spec.at(direction).items().length > 0);
  return ruled.length > 0 ? ruled : ["ingress"];
}

function readStage(spec: Field, types: readonly Direction[] | undefined): PolicyStage {
  const preDnat = spec.at("preDNAT").flag() ?? false, untracked = spec.at("doNotTrack").flag() ?? false;
  const forward = spec.at("applyOnForward").flag() ?? false;
  if (preDnat && untracked) spec.at("doNotTrack").refuse("only one of preDNAT and doNotTrack", "both");
  if ((preDnat || untracked) && !forward) {
    spec.at("applyOnForward").refuse(`true, because ${preDnat ? "preDNAT" : "doNotTrack"} is`);
  }
  if (preDnat && spec.at("egress").items().length > 0) {
    spec.at("egress").refuse("no egress rules with preDNAT", "egress rules");
  } else if (preDnat && types?.includes("egress")) spec.at("types").refuse("Ingress alone with preDNAT", "Egress");
  return preDnat ? "preDnat" : untracked ? "untracked" : forward ? "forward" : "normal";
}
