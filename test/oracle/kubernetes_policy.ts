/** networking.k8s.io/v1 NetworkPolicy. */
import { holds, readNet } from "./address.ts";
import { specOf } from "./core_objects.ts";
import type { Holder, Resource } from "./holder.ts";
import { type Fields, isGiven, readFields, readList, readText, readTexts, readWord, refuse } from "./manifest.ts";
import { type Peer, PEER_FIELD, PEER_SIDE, peerConditions } from "./peers.ts";
import type { Population } from "./population.ts";
import { namedPort, type PortMatch, portRange } from "./port_match.ts";
import { readPortNumber, readPortProtocol } from "./protocol.ts";
import { createReading, type Direction, DIRECTIONS, finish, type Policy, type Rule } from "./rule.ts";
import { readLabelSelector } from "./selector.ts";

/** All of them sit in the tier `default`, at this order. */
const ORDER = 1_000;

/** Never throws: what it cannot read denies. */
export function readKubernetesPolicy(
  resource: Resource,
  population: Population,
): { readonly policy: Policy; readonly problems: readonly string[] } {
  const { kind, namespace, name, where } = resource.identity;
  const reading = createReading();
  const spec = reading.attempt(() => specOf(resource), {});
  const selected = reading.attempt(
    () => readLabelSelector(spec.podSelector ?? {}, `${where}: spec.podSelector`),
    () => true,
  );
  const selects = ({ kind, namespace: own, labels }: Holder) =>
    kind === "workload" && own?.name === namespace && selected(labels);
  const rules = (direction: Direction) =>
    reading.attempt(
      () =>
        readList(spec[direction], `${where}: spec.${direction}`).map((rule, i) => ({
          ...readRule(readFields(rule, `${where}: ${direction}[${i}]`), `${where}: ${direction}[${i}]`, {
            population,
            namespace,
            direction,
            selects,
          }),
          where: `${direction}[${i}]`,
        })),
      [],
    );
  const policy: Policy = {
    title: `Kubernetes ${where}`,
    kind,
    namespace,
    // "By order, then name": its own. The `knp.default.` that Calico once put before it is no part of that.
    name,
    tier: "default",
    order: ORDER,
    directions: reading.attempt(() => readPolicyTypes(spec, where), DIRECTIONS),
    stage: "normal",
    applyOnForward: false,
    selects,
    rules: { ingress: rules("ingress"), egress: rules("egress") },
  };
  // All of them allow, so their order means nothing, and the one that denies comes before the others.
  return { policy: finish(policy, reading, { name: "" }), problems: reading.problems };
}

/** Absent: Ingress always, Egress where there are egress rules. */
function readPolicyTypes(spec: Fields, where: string): readonly Direction[] {
  const types = readList(spec.policyTypes, `${where}: spec.policyTypes`).map((type) =>
    readWord(type, ["Ingress", "Egress"], `${where}: spec.policyTypes`) === "Ingress" ? "ingress" : "egress"
  );
  if (types.length > 0) return types;
  return readList(spec.egress, `${where}: spec.egress`).length > 0 ? DIRECTIONS : ["ingress"];
}

interface Context {
  readonly population: Population;
  readonly namespace: string;
  readonly direction: Direction;
  /** Who may be at the policy's own end. */
  selects(holder: Holder): boolean;
}

/** Any of the peers, and any of the ports. */
function readRule(rule: Fields, where: string, context: Context): Rule {
  const field = PEER_FIELD[context.direction];
  return {
    where,
    action: "allow",
    conditions: peerConditions({
      peers: readList(rule[field], `${where}.${field}`).map((peer, i) =>
        readPeer(readFields(peer, `${where}.${field}[${i}]`), `${where}.${field}[${i}]`, context)
      ),
      ports: readList(rule.ports, `${where}.ports`).map((port, i) =>
        readPort(readFields(port, `${where}.ports[${i}]`), `${where}.ports[${i}]`)
      ),
      portField: "ports",
      ...context,
    }),
  };
}

function readPeer(peer: Fields, where: string, { namespace, direction }: Context): Peer {
  const given = Object.keys(peer).filter((field) => isGiven(peer[field])).sort().join("+");
  switch (given) {
    case "ipBlock": {
      const { cidr, except } = readFields(peer.ipBlock, `${where}.ipBlock`);
      const net = readNet(readText(cidr, `${where}.ipBlock.cidr`) ?? "", `${where}.ipBlock.cidr`);
      const exceptions = readTexts(except, `${where}.ipBlock.except`).map((text) => readNet(text, `${where}.except`));
      return (packet) => {
        const address = packet[PEER_SIDE[direction]];
        return holds(net, address) && !exceptions.some((exception) => holds(exception, address)) ? "the address" : [];
      };
    }
    case "podSelector":
    case "namespaceSelector":
    case "namespaceSelector+podSelector": {
      const pods = readLabelSelector(peer.podSelector ?? {}, `${where}.podSelector`);
      const namespaces = isGiven(peer.namespaceSelector)
        ? readLabelSelector(peer.namespaceSelector, `${where}.namespaceSelector`)
        : undefined;
      return (_, holders) =>
        holders.filter((holder) =>
          holder.kind === "workload" && pods(holder.labels) &&
          (namespaces === undefined
            ? holder.namespace?.name === namespace
            : holder.namespace !== undefined && namespaces(holder.namespace.labels))
        );
    }
    default:
      return refuse(where, peer, "ipBlock, or podSelector and namespaceSelector, one or both");
  }
}

function readPort({ protocol, port, endPort }: Fields, where: string): PortMatch {
  const wanted = readPortProtocol(protocol ?? "TCP", `${where}.protocol`);
  const matches = readPortValue(port, endPort, where);
  return (packet, side, holders) => packet.protocol === wanted && matches(packet, side, holders);
}

/** Without a port: every one of the protocol. */
function readPortValue(port: unknown, endPort: unknown, where: string): PortMatch {
  if (isGiven(endPort) && typeof port !== "number") {
    refuse(`${where}.endPort`, endPort, "a port with a number beside it");
  }
  if (!isGiven(port)) return () => true;
  if (typeof port === "string") return namedPort(port);
  const first = readPortNumber(port, `${where}.port`);
  const last = isGiven(endPort) ? readPortNumber(endPort, `${where}.endPort`) : first;
  return last < first ? refuse(`${where}.endPort`, endPort, `${first} or more`) : portRange(first, last);
}
