/** policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy. */
import { holds, readNet, sameAddress } from "./address.ts";
import { specOf } from "./core_objects.ts";
import type { Holder, Resource } from "./holder.ts";
import {
  type Fields,
  isGiven,
  readFields,
  readGivenText,
  readList,
  readNumber,
  readTexts,
  readWord,
  refuse,
} from "./manifest.ts";
import { type Peer, PEER_FIELD, peerConditions } from "./peers.ts";
import type { Population } from "./population.ts";
import { namedPort, type PortMatch, portRange } from "./port_match.ts";
import { PROTOCOLS, readPortNumber } from "./protocol.ts";
import { createReading, type Direction, DIRECTIONS, finish, type Policy, type Rule } from "./rule.ts";
import { readLabelSelector } from "./selector.ts";

const ACTIONS = { Accept: "allow", Deny: "deny", Pass: "pass" } as const;

/** Never throws: what it cannot read denies. */
export function readClusterPolicy(
  resource: Resource,
  population: Population,
): { readonly policy: Policy; readonly problems: readonly string[] } {
  const { kind, name, where } = resource.identity;
  const reading = createReading();
  const spec = reading.attempt(() => specOf(resource), {});
  const tier = reading.attempt(() => readWord(spec.tier, ["Admin", "Baseline"], `${where}: spec.tier`), "Admin");
  const selected = reading.attempt(
    () => readPods(readFields(spec.subject, `${where}: spec.subject`), `${where}: spec.subject`),
    () => true,
  );
  const selects = (holder: Holder) => holder.kind === "workload" && selected(holder);
  const rules = (direction: Direction) =>
    reading.attempt(
      () =>
        readList(spec[direction], `${where}: spec.${direction}`).map((rule, i) => {
          const at = `${where}: ${direction}[${i}]`;
          return {
            ...readRule(readFields(rule, at), at, { direction, population, selects }),
            where: `${direction}[${i}]`,
          };
        }),
      [],
    );
  const policy: Policy = {
    title: where,
    kind,
    namespace: "",
    name,
    tier: tier === "Admin" ? "kube-admin" : "kube-baseline",
    order: reading.attempt(
      () => readNumber(spec.priority, `${where}: spec.priority`) ?? refuse(where, spec.priority, "a priority"),
      0,
    ),
    // Without rules for a direction it does not affect it.
    directions: DIRECTIONS.filter((direction) => isGiven(spec[direction])),
    stage: "normal",
    applyOnForward: false,
    selects,
    rules: { ingress: rules("ingress"), egress: rules("egress") },
  };
  return { policy: finish(policy, reading), problems: reading.problems };
}

/** `namespaces` or `pods`, just one of the two. */
function readPods(fields: Fields, where: string): (holder: Holder) => boolean {
  const given = Object.keys(fields).filter((field) => isGiven(fields[field]));
  if (given.length !== 1 || !["namespaces", "pods"].includes(given[0]!)) refuse(where, fields, "namespaces or pods");
  if (isGiven(fields.namespaces)) {
    const namespaces = readLabelSelector(fields.namespaces, `${where}.namespaces`);
    return ({ kind, namespace }) => kind === "workload" && namespaces(namespace!.labels);
  }
  const { namespaceSelector, podSelector } = readFields(fields.pods, `${where}.pods`);
  const namespaces = readLabelSelector(namespaceSelector ?? {}, `${where}.pods.namespaceSelector`);
  const pods = readLabelSelector(podSelector ?? {}, `${where}.pods.podSelector`);
  return ({ kind, namespace, labels }) => kind === "workload" && namespaces(namespace!.labels) && pods(labels);
}

interface Context {
  readonly direction: Direction;
  readonly population: Population;
  /** Who may be at the policy's own end. */
  selects(holder: Holder): boolean;
}

function readRule(rule: Fields, where: string, context: Context): Rule {
  const { direction, population } = context;
  const action = readWord(rule.action, ["Accept", "Deny", "Pass"], `${where}.action`);
  const peerField = PEER_FIELD[direction];
  const known = ["name", "action", peerField, "protocols"];
  for (const field of Object.keys(rule)) {
    if (!known.includes(field)) refuse(`${where}.${field}`, rule[field], `one of ${known.join(", ")}`);
  }
  const peers = readList(rule[peerField], `${where}.${peerField}`).map((peer, i) =>
    readPeer(readFields(peer, where), `${where}.${peerField}[${i}]`, direction, population)
  );
  if (peers.length === 0) refuse(`${where}.${peerField}`, rule[peerField], "at least one peer");
  const protocols = readList(rule.protocols, `${where}.protocols`).map((protocol, i) =>
    readProtocolMatch(readFields(protocol, where), `${where}.protocols[${i}]`)
  );
  return {
    where,
    action: ACTIONS[action],
    conditions: peerConditions({ peers, ports: protocols, portField: "protocols", ...context }),
  };
}

function readPeer(peer: Fields, where: string, direction: Direction, population: Population): Peer {
  const given = Object.keys(peer).filter((field) => isGiven(peer[field]));
  if (direction === "egress" && given.length === 1) {
    if (given[0] === "nodes") {
      const addresses = population.addressesOfNodes(readLabelSelector(peer.nodes, `${where}.nodes`));
      return ({ destination }) => addresses.some((address) => sameAddress(address, destination)) ? "the address" : [];
    }
    if (given[0] === "networks") {
      const nets = readTexts(peer.networks, `${where}.networks`).map((net) => readNet(net, `${where}.networks`));
      return ({ destination }) => nets.some((net) => holds(net, destination)) ? "the address" : [];
    }
    if (given[0] === "domainNames") refuse(where, peer, "a peer other than domainNames, which are not supported");
  }
  const selects = readPods(peer, where);
  return (_, holders) => holders.filter(selects);
}

const TRANSPORTS = { tcp: PROTOCOLS.TCP, udp: PROTOCOLS.UDP, sctp: PROTOCOLS.SCTP } as const;

function readProtocolMatch(fields: Fields, where: string): PortMatch {
  const [field, ...more] = Object.keys(fields).filter((name) => isGiven(fields[name]));
  if (more.length > 0) refuse(where, fields, "one protocol");
  if (field === "destinationNamedPort") {
    const name = readGivenText(fields.destinationNamedPort, `${where}.destinationNamedPort`) ??
      refuse(where, fields, "a name");
    return namedPort(name);
  }
  const protocol = TRANSPORTS[field as keyof typeof TRANSPORTS] ??
    refuse(where, fields, "tcp, udp, sctp or destinationNamedPort");
  const { destinationPort } = readFields(fields[field!], `${where}.${field}`);
  if (!isGiven(destinationPort)) return (packet) => packet.protocol === protocol;
  const { number, range } = readFields(destinationPort, `${where}.${field}.destinationPort`);
  const { start, end } = isGiven(range) ? readFields(range, where) : { start: number, end: number };
  const first = readPortNumber(start, `${where}.${field}.destinationPort`);
  const last = readPortNumber(end, `${where}.${field}.destinationPort`);
  const inRange = portRange(first, last);
  return (packet, side, holders) => packet.protocol === protocol && inRange(packet, side, holders);
}
