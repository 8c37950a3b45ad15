/** policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy. */
import { ORCHESTRATOR_LABEL } from "../../../src/model/endpoint_labels.ts";
import { portNameFault } from "../../../src/model/kubernetes_names.ts";
import { PROTOCOLS } from "../../../src/model/ports.ts";
import type { PortRange } from "../../../src/model/ports.ts";
import { keyText } from "../../../src/model/resource.ts";
import type { Action, Direction, NeutralRule, PeerMatch } from "../../../src/model/rule.ts";
import { ALL, hasLabel } from "../../../src/model/selector.ts";
import type { Selector } from "../../../src/model/selector.ts";
import { denyAll, FIRST_ORDER } from "../../../src/sdk/fail_closed.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readLabelSelector } from "../../../src/sdk/label_selector.ts";
import { mergeRanges, podsOf } from "../../../src/sdk/kubernetes_policy.ts";
import { readLogDenied, readMetadata } from "../../../src/sdk/object_metadata.ts";
import type { Field } from "../../../src/sdk/validation.ts";

const TIERS = { Admin: "kube-admin", Baseline: "kube-baseline" } as const;
const ACTIONS: Readonly<Record<string, Action>> = { Accept: "allow", Deny: "deny", Pass: "pass" };
/** Rules of a direction, peers and protocols of a rule, networks of a peer. */
const LIST_LIMIT = 25;
const RULE_NAME_LIMIT = 100;

export const clusterNetworkPolicy: KindReader = {
  definition: {
    kind: "ClusterNetworkPolicy.policy.networking.k8s.io",
    name: "ClusterNetworkPolicy",
    plural: "clusternetworkpolicies",
    shortNames: ["cnp"],
    apiVersions: ["policy.networking.k8s.io/v1alpha2"],
    namespaced: false,
  },
  read(root, key) {
    const findings = root.findings;
    root.object(["apiVersion", "kind", "metadata", "spec", "status"]);
    readMetadata(root, { namespaced: false });
    const id = keyText(key);
    const logDenied = readLogDenied(root);
    const field = root.at("spec").required("a spec");
    const shape = findings.attempt(() => field.object(["tier", "priority", "subject", "ingress", "egress"]));
    const spec = shape ?? field;
    const tier = spec.at("tier").required("Admin or Baseline").oneOf(["Admin", "Baseline"]);
    const priority = spec.at("priority").required("a whole number from 0 to 1000").integer(0, 1000);
    const selects = findings.attempt(() => readPods(spec.at("subject").required("namespaces or pods")));
    const ingress = readRules(spec.at("ingress"), "ingress", id);
    const egress = readRules(spec.at("egress"), "egress", id);
    const policy = {
      id,
      tier: TIERS[tier ?? "Admin"],
      selects: selects ?? hasLabel(ORCHESTRATOR_LABEL),
      sortName: key.name,
      stage: "normal",
      ...logDenied,
    } as const;
    const directions = (["ingress", "egress"] as const).filter((direction) => {
      const list = spec.at(direction);
      return list.given && !(Array.isArray(list.value) && list.value.length === 0);
    });
    if (findings.count > 0) {
      const order = tier === undefined ? FIRST_ORDER : priority ?? FIRST_ORDER;
      return [denyAll({ ...policy, order }, shape === undefined ? ["ingress", "egress"] : directions)];
    }
    return [{
      kind: "policy",
      ...policy,
      order: priority,
      staged: false,
      ...(directions.includes("ingress") ? { ingress } : {}),
      ...(directions.includes("egress") ? { egress } : {}),
    }];
  },
};

function readRules(list: Field, direction: Direction, id: string): readonly NeutralRule[] {
  const peersName = direction === "ingress" ? "from" : "to";
  return list.items(LIST_LIMIT).flatMap((item, index) => {
    const rule = item.required("a rule").object(["name", "action", peersName, "protocols"]);
    if (!item.given) return [];
    const name = rule.at("name").name((text) =>
      text.length <= RULE_NAME_LIMIT ? undefined : `at most ${RULE_NAME_LIMIT} characters`
    );
    const action = rule.at("action").required("Accept, Deny or Pass").oneOf(["Accept", "Deny", "Pass"]);
    const peersField = rule.at(peersName).required("at least one peer");
    const peers = peersField.items(LIST_LIMIT);
    if (Array.isArray(peersField.value) && peers.length === 0) peersField.refuse("at least one peer", "an empty list");
    const services = readProtocols(rule.at("protocols"));
    const matches = peers.flatMap((peer) => readPeer(peer, direction));
    const byName = services.some(({ portNames }) => portNames !== undefined);
    if (
      direction === "egress" && byName && peers.some((peer) => !peer.at("pods").given && !peer.at("namespaces").given)
    ) {
      rule.at("protocols").refuse("numbered ports: only pods and namespaces have named ones", "destinationNamedPort");
    }
    return services.flatMap(({ protocol, ...ports }) =>
      matches.map((peer): NeutralRule => ({
        action: ACTIONS[action ?? "Deny"]!,
        ...(protocol === undefined ? {} : { protocol }),
        source: direction === "ingress" ? peer : {},
        destination: direction === "ingress" ? ports : { ...peer, ...ports },
        origin: { policy: id, direction, index },
        ...(name ? { name } : {}),
      }))
    );
  });
}

/** The one field of a union that is given. */
function oneGiven(field: Field, names: readonly string[]): string | undefined {
  const union = field.required(names.join(" or ")).object(names);
  if (!field.given) return undefined;
  const given = names.filter((name) => union.at(name).given);
  if (given.length === 1) return given[0];
  const found = given.length === 0 ? "none of them" : given.join(" and ");
  return field.refuse(`one of ${names.join(", ")}`, found);
}

const POD_FIELDS = ["namespaces", "pods"] as const;
const PEER_FIELDS = [...POD_FIELDS, "nodes", "networks", "domainNames"] as const;

/** A subject, or a peer that can be pods only. */
function readPods(field: Field): Selector | undefined {
  const name = oneGiven(field, POD_FIELDS);
  return name === undefined ? undefined : podsAt(field, name);
}

function podsAt(field: Field, name: string): Selector | undefined {
  if (name === "namespaces") return podsOf(readLabelSelector(field.at("namespaces")), ALL);
  if (name !== "pods") return undefined;
  const pods = field.at("pods").object(["namespaceSelector", "podSelector"]);
  return podsOf(
    readLabelSelector(pods.at("namespaceSelector")),
    readLabelSelector(pods.at("podSelector").required("a selector")),
  );
}

function readPeer(field: Field, direction: Direction): readonly PeerMatch[] {
  if (direction === "ingress") {
    for (const name of PEER_FIELDS.slice(POD_FIELDS.length)) {
      if (!field.at(name).given) continue;
      return field.at(name).refuse("namespaces or pods: the API has other peers for egress only", name) ?? [];
    }
    return peerOf(readPods(field));
  }
  const name = oneGiven(field, PEER_FIELDS);
  switch (name) {
    case undefined:
      return [];
    case "nodes":
      return [{ nodes: readLabelSelector(field.at(name)) }];
    case "networks":
      return readNetworks(field.at(name));
    case "domainNames":
      field.at(name).refuse(
        "namespaces, pods, nodes or networks: domain names need FQDN policy, which this version does not have",
        "domain names",
      );
      return [];
    default:
      return peerOf(podsAt(field, name));
  }
}

function readNetworks(list: Field): readonly PeerMatch[] {
  const items = list.items(LIST_LIMIT);
  if (Array.isArray(list.value) && items.length === 0) list.refuse("at least one network", "an empty list");
  const texts = new Set<unknown>();
  const nets = items.flatMap((item) => {
    const text = item.required("a prefix such as 10.0.0.0/8").value;
    if (texts.size === texts.add(text).size) item.refuse("each network once");
    return typeof text === "string" && !text.includes("/")
      ? item.refuse("a prefix with its length, such as 10.0.0.0/8") ?? []
      : item.cidr("cleared") ?? [];
  });
  return nets.length === 0 ? [] : [{ nets }];
}

const peerOf = (selector: Selector | undefined): readonly PeerMatch[] => selector === undefined ? [] : [{ selector }];

interface Service {
  readonly protocol?: number;
  readonly ports?: readonly PortRange[];
  readonly portNames?: readonly string[];
}

/** A named port counts under each of these: the pod's own port says which it is. */
const PORTED = [PROTOCOLS.TCP, PROTOCOLS.UDP, PROTOCOLS.SCTP];

/** No list is everything. */
function readProtocols(list: Field): readonly Service[] {
  if (!list.given) return [{}];
  const items = list.items(LIST_LIMIT);
  if (Array.isArray(list.value) && items.length === 0) list.refuse("at least one protocol", "an empty list");
  const groups = new Map<number, { ranges: PortRange[]; names: Set<string> }>();
  const groupOf = (protocol: number) => {
    const group = groups.get(protocol) ?? { ranges: [], names: new Set<string>() };
    groups.set(protocol, group);
    return group;
  };
  for (const item of items) {
    const name = oneGiven(item, ["tcp", "udp", "sctp", "destinationNamedPort"]);
    if (name === undefined) continue;
    if (name === "destinationNamedPort") {
      const portName = item.at(name).name(portNameFault);
      if (portName !== undefined) { for (const protocol of PORTED) groupOf(protocol).names.add(portName); }
      continue;
    }
    const group = groupOf(PROTOCOLS[name.toUpperCase() as "TCP" | "UDP" | "SCTP"]);
    const port = item.at(name).object(["destinationPort"]).at("destinationPort").required("a port");
    const kind = port.given ? oneGiven(port, ["number", "range"]) : undefined;
    if (kind === "number") {
      const number = port.at("number").integer(1, 65535);
      if (number !== undefined) group.ranges.push({ first: number, last: number });
    } else if (kind === "range") {
      const range = port.at("range").object(["start", "end"]);
      const first = range.at("start").required("a port").integer(1, 65535);
      const last = range.at("end").required("a port").integer(1, 65535);
      if (first === undefined || last === undefined) continue;
      if (first >= last) range.at("end").refuse(`more than start, ${first}`);
      group.ranges.push({ first, last });
    }
  }
  return [...groups].toSorted(([a], [b]) => a - b).map(([protocol, { ranges, names }]) => ({
    protocol,
    ...(ranges.length === 0 ? {} : { ports: mergeRanges(ranges) }),
    ...(names.size === 0 ? {} : { portNames: [...names].sort() }),
  }));
}
