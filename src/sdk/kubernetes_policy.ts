/**
 * networking.k8s.io/v1 NetworkPolicySpec → neutral rules. Here, because two dialects hold one: Kubernetes' own and
 * Calico's StagedKubernetesNetworkPolicy.
 */
import { cidrAddress, cidrContains, cidrPrefix } from "../model/address.ts";
import { NAMESPACE_LABEL, NAMESPACE_PREFIX, ORCHESTRATOR_LABEL } from "../model/endpoint_labels.ts";
import { portNameFault } from "../model/kubernetes_names.ts";
import { PROTOCOLS } from "../model/ports.ts";
import type { PortRange } from "../model/ports.ts";
import type { Direction, NeutralPolicy, NeutralRule, PeerMatch } from "../model/rule.ts";
import { andSelectors, hasLabel, labelIs, prefixLabels } from "../model/selector.ts";
import type { Selector } from "../model/selector.ts";
import { denyAll } from "./fail_closed.ts";
import { readLabelSelector } from "./label_selector.ts";
import type { Field } from "./validation.ts";

const SPEC_FIELDS = ["podSelector", "policyTypes", "ingress", "egress"];
/** policy-semantics, "Order of judgement": where Kubernetes policies stand in the tier `default`. */
export const NETWORK_POLICY_ORDER = 1000;
const POLICY_PROTOCOLS = ["TCP", "UDP", "SCTP"] as const;
const POLICY_TYPES = ["Ingress", "Egress"] as const;

export interface NetworkPolicyPlace {
  readonly id: string;
  readonly namespace: string;
  readonly sortName: string;
  readonly logDenied?: true;
}

/**
 * The policy, or where any fault was noted, in `spec` or before, the one that denies what it selects. `moreFields` are
 * fields of `spec` that the caller reads.
 */
export function readNetworkPolicySpec(
  field: Field,
  place: NetworkPolicyPlace,
  moreFields: readonly string[] = [],
): NeutralPolicy {
  const findings = field.findings;
  const shape = findings.attempt(() => field.object([...SPEC_FIELDS, ...moreFields]));
  const spec = shape ?? field;
  const inNamespace = labelIs(NAMESPACE_LABEL, place.namespace);
  const pods = findings.attempt(() => readLabelSelector(spec.at("podSelector")));
  const types = findings.attempt(() => readTypes(spec));
  const ingress = readRules(spec.at("ingress"), "ingress", place);
  const egress = readRules(spec.at("egress"), "egress", place);
  const policy = {
    id: place.id,
    tier: "default",
    order: NETWORK_POLICY_ORDER,
    selects: andSelectors(inNamespace, ...(pods === undefined ? [] : [pods])),
    stage: "normal",
    ...(place.logDenied ? { logDenied: true as const } : {}),
  } as const;
  if (findings.count > 0) {
    // Before all others of its kind: whatever they allow, what this one would have said about it is not known.
    return denyAll(
      { ...policy, sortName: "" },
      shape === undefined || types === undefined ? ["ingress", "egress"] : types,
    );
  }
  return {
    kind: "policy",
    ...policy,
    sortName: place.sortName,
    staged: false,
    ...(types!.includes("ingress") ? { ingress } : {}),
    ...(types!.includes("egress") ? { egress } : {}),
  };
}

/** Absent or empty: Ingress, and Egress where there are egress rules. */
function readTypes(spec: Field): readonly Direction[] {
  const field = spec.at("policyTypes");
  const types = field.items(POLICY_TYPES.length).flatMap((item) =>
    item.required("Ingress or Egress").oneOf(POLICY_TYPES) ?? []
  );
  if (types.length > 0) return (["ingress", "egress"] as const).filter((_, i) => types.includes(POLICY_TYPES[i]!));
  const egress = spec.at("egress");
  return egress.given && egress.items().length > 0 ? ["ingress", "egress"] : ["ingress"];
}

/** One neutral rule for each peer and protocol of each rule. */
function readRules(list: Field, direction: Direction, place: NetworkPolicyPlace): readonly NeutralRule[] {
  return list.items().flatMap((item, index) => {
    const peersName = direction === "ingress" ? "from" : "to";
    const rule = item.required("a rule").object([peersName, "ports"]);
    const services = readPorts(rule.at("ports"));
    const peers = rule.at(peersName).items().map((peer) => readPeer(peer, place.namespace));
    return services.flatMap(({ protocol, ...ports }) =>
      (peers.length === 0 ? [{}] : peers).map((peer): NeutralRule => ({
        action: "allow",
        ...(protocol === undefined ? {} : { protocol }),
        source: direction === "ingress" ? peer : {},
        destination: direction === "ingress" ? ports : { ...peer, ...ports },
        origin: { policy: place.id, direction, index },
      }))
    );
  });
}

interface Service {
  readonly protocol?: number;
  readonly ports?: readonly PortRange[];
  readonly portNames?: readonly string[];
}

/** networking.k8s.io/v1 NetworkPolicyPort, grouped by protocol; no list is everything, an entry without port every port of its protocol. */
function readPorts(list: Field): readonly Service[] {
  const items = list.items();
  if (items.length === 0) return [{}];
  const groups = new Map<string, { everyPort: boolean; ranges: PortRange[]; names: Set<string> }>();
  for (const item of items) {
    const entry = item.required("a port").object(["protocol", "port", "endPort"]);
    const protocol = entry.at("protocol").oneOf(POLICY_PROTOCOLS) ?? "TCP";
    const group = groups.get(protocol) ?? { everyPort: false, ranges: [], names: new Set() };
    groups.set(protocol, group);
    const port = entry.at("port"), endPort = entry.at("endPort");
    const last = endPort.integer(1, 65535);
    if (typeof port.value === "string") {
      const name = port.name(portNameFault);
      if (name !== undefined) group.names.add(name);
      if (endPort.given) endPort.refuse("none beside a named port");
    } else if (port.given) {
      const first = port.integer(1, 65535);
      if (first === undefined) continue;
      if (last !== undefined && last < first) endPort.refuse(`at least port, ${first}`);
      group.ranges.push({ first, last: last ?? first });
    } else {
      if (endPort.given) port.refuse("a number, because endPort is given");
      group.everyPort = true;
    }
  }
  return [...groups].toSorted(([a], [b]) => a < b ? -1 : 1).map(([name, { everyPort, ranges, names }]) => ({
    protocol: PROTOCOLS[name as (typeof POLICY_PROTOCOLS)[number]],
    ...(everyPort || ranges.length === 0 ? {} : { ports: mergeRanges(ranges) }),
    ...(everyPort || names.size === 0 ? {} : { portNames: [...names].sort() }),
  }));
}

/** Sorted, with those that touch or overlap made one. */
export function mergeRanges(ranges: readonly PortRange[]): readonly PortRange[] {
  const merged: PortRange[] = [];
  for (const range of ranges.toSorted((a, b) => a.first - b.first || a.last - b.last)) {
    const before = merged.at(-1);
    if (before === undefined || range.first > before.last + 1) merged.push(range);
    else if (range.last > before.last) merged[merged.length - 1] = { first: before.first, last: range.last };
  }
  return merged;
}

/** networking.k8s.io/v1 NetworkPolicyPeer. */
function readPeer(field: Field, namespace: string): PeerMatch {
  const peer = field.required("a peer").object(["podSelector", "namespaceSelector", "ipBlock"]);
  const pods = peer.at("podSelector"), namespaces = peer.at("namespaceSelector"), block = peer.at("ipBlock");
  if (!field.given) return {};
  if (block.given) {
    if (pods.given || namespaces.given) block.refuse("no ipBlock beside podSelector or namespaceSelector");
    return readBlock(block);
  }
  if (!pods.given && !namespaces.given) {
    field.refuse("podSelector, namespaceSelector or ipBlock", "a peer without any of them");
  }
  return { selector: podsOf(namespaces.given ? readLabelSelector(namespaces) : namespace, readLabelSelector(pods)) };
}

/**
 * Pods of one namespace by name, or of those whose labels match. Every workload has an orchestrator and nothing else
 * has one, so that network sets with the same labels are left out.
 */
export const podsOf = (namespaces: string | Selector, pods: Selector): Selector =>
  andSelectors(
    hasLabel(ORCHESTRATOR_LABEL),
    typeof namespaces === "string" ? labelIs(NAMESPACE_LABEL, namespaces) : prefixLabels(namespaces, NAMESPACE_PREFIX),
    pods,
  );

/** networking.k8s.io/v1 IPBlock: bits past the prefix are cleared, as Kubernetes allows them. */
function readBlock(field: Field): PeerMatch {
  const block = field.object(["cidr", "except"]);
  const cidr = prefixOf(block.at("cidr").required("a prefix such as 10.0.0.0/8"));
  const except = block.at("except").items().flatMap((item) => {
    const inner = prefixOf(item.required("a prefix"));
    const inside = cidr === undefined || inner === undefined ||
      cidrPrefix(inner) > cidrPrefix(cidr) && cidrContains(cidr, cidrAddress(inner));
    return inside ? inner ?? [] : item.refuse("a prefix inside cidr and smaller than it") ?? [];
  });
  return cidr === undefined ? {} : { nets: [cidr], ...(except.length === 0 ? {} : { notNets: except }) };
}

function prefixOf(field: Field) {
  if (typeof field.value === "string" && !field.value.includes("/")) {
    return field.refuse("a prefix with its length, such as 10.0.0.0/8");
  }
  return field.cidr("cleared");
}
