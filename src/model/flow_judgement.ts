/**
 * What the desired state says of a flow that is established already: would its first packet pass today? Answered by `judgePath`
 * as for any packet; what is of this file is who stands at the flow's ends, and lists cut down to what a flow can meet, so that
 * a hundred thousand flows can be judged against lists of many thousand rules. Pure.
 */
import { type Address, addressFamily, type Family } from "./address.ts";
import type {
  DesiredHostEndpoint,
  DesiredState,
  DesiredWorkload,
  Packet,
  PolicyList,
  PolicyTier,
  Rule,
} from "./desired.ts";
import { judgePath, type Path } from "./evaluate.ts";
import { persistentMap } from "./persistent_map.ts";
import { hasPorts, PROTOCOLS } from "./ports.ts";

/** One direction of a flow, as connection tracking keeps it. */
export interface FlowDirection {
  readonly source: Address;
  readonly destination: Address;
  /** IPPROTO number. */
  readonly protocol: number;
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly icmpType?: number;
  readonly icmpCode?: number;
}

export interface EstablishedFlow {
  /** As its first packet came in: before DNAT and SNAT. */
  readonly original: FlowDirection;
  /** Where answers come from is where the flow went after DNAT, where they go to is where it came from after SNAT. */
  readonly reply: FlowDirection;
}

/** What the node knows of addresses that no local workload has. */
export interface NodeSurroundings {
  /** Packets to it are for the node itself. */
  isNode(address: Address): boolean;
  /** The link that leads there; "" where none does. */
  linkTo(address: Address): string;
}

/** Lists with fewer rules are walked as they are. */
const NARROW_FROM_RULES = 64;
/** Narrowed lists that are kept. */
const NARROWED_MAX = 4_096;

/** Judges flows by one state. */
export class FlowJudge {
  readonly #owners: ReadonlyMap<Address, DesiredWorkload>;
  readonly #narrowed = new Map<string, PolicyList>();
  readonly #ruleCounts = new Map<PolicyList, number>();

  constructor(readonly state: DesiredState, readonly surroundings: NodeSurroundings) {
    this.#owners = workloadsByAddress(state);
  }

  /** Whether policy of this node has anything to say of a flow between these. */
  concerns(source: Address, replySource: Address): boolean {
    return this.state.hostEndpoints.size > 0 || this.#owners.has(source) || this.#owners.has(replySource);
  }

  /** Whether a workload of this node has the address. */
  isOwned(address: Address): boolean {
    return this.#owners.has(address);
  }

  denies(flow: EstablishedFlow): boolean {
    const path = this.pathOf(flow);
    const from = this.#owners.get(path.packet.source), to = this.#owners.get(path.packet.destination);
    const meant = [from, to].filter((workload) => workload !== undefined).map((workload) =>
      this.#narrowWorkload(workload, path.packet)
    );
    const { hostEndpoints } = this.state;
    const state = {
      ...this.state,
      workloads: persistentMap(meant.map((workload) => [workload.id, workload] as const)),
      hostEndpoints: hostEndpoints.size === 0
        ? hostEndpoints
        : persistentMap([...hostEndpoints].map(([id, host]) => [id, this.#narrowHost(host, path.packet)] as const)),
    };
    return judgePath(state, path).verdict === "deny";
  }

  /** The way of its first packet. */
  pathOf({ original, reply }: EstablishedFlow): Path {
    const packet = packetOf(original, reply.source, reply.sourcePort);
    const moved = original.destination !== reply.source ||
      hasPorts(original.protocol) && original.destinationPort !== reply.sourcePort;
    const inInterface = this.#linkOf(packet.source), outInterface = this.#linkOf(packet.destination);
    return {
      packet,
      ...moved ? { beforeDnat: packetOf(original, original.destination, original.destinationPort) } : {},
      ...inInterface === undefined ? {} : { inInterface },
      ...outInterface === undefined ? {} : { outInterface },
    };
  }

  #linkOf(address: Address): string | undefined {
    const owner = this.#owners.get(address);
    if (owner !== undefined) return owner.interfaceName;
    if (this.surroundings.isNode(address)) return undefined;
    // Only host endpoints ask which link it is.
    return this.state.hostEndpoints.size === 0 ? "" : this.surroundings.linkTo(address);
  }

  #narrowWorkload(workload: DesiredWorkload, packet: Packet): DesiredWorkload {
    const ingress = this.#narrow(workload.ingress, packet), egress = this.#narrow(workload.egress, packet);
    return ingress === workload.ingress && egress === workload.egress ? workload : { ...workload, ingress, egress };
  }

  /** Lists of stages that see the packet before DNAT stay as they are. */
  #narrowHost(host: DesiredHostEndpoint, packet: Packet): DesiredHostEndpoint {
    const { forwardIngress, forwardEgress } = host;
    return {
      ...host,
      ingress: this.#narrow(host.ingress, packet),
      egress: this.#narrow(host.egress, packet),
      ...forwardIngress === undefined ? {} : { forwardIngress: this.#narrow(forwardIngress, packet) },
      ...forwardEgress === undefined ? {} : { forwardEgress: this.#narrow(forwardEgress, packet) },
    };
  }

  #narrow(list: PolicyList, packet: Packet): PolicyList {
    let count = this.#ruleCounts.get(list);
    if (count === undefined) this.#ruleCounts.set(list, count = ruleCount(list));
    if (count < NARROW_FROM_RULES) return list;
    const family = addressFamily(packet.destination);
    const key = `${list.id} ${family} ${packet.protocol} ${packet.destinationPort ?? ""}`;
    let narrowed = this.#narrowed.get(key);
    if (narrowed === undefined) {
      if (this.#narrowed.size >= NARROWED_MAX) this.#narrowed.clear();
      this.#narrowed.set(key, narrowed = narrowList(list, family, packet.protocol, packet.destinationPort));
    }
    return narrowed;
  }
}

/** Local workloads by address. */
function workloadsByAddress(state: DesiredState): ReadonlyMap<Address, DesiredWorkload> {
  const owners = new Map<Address, DesiredWorkload>();
  for (const workload of state.workloads.values()) {
    for (const address of workload.addresses) owners.set(address, workload);
  }
  return owners;
}

function packetOf(original: FlowDirection, destination: Address, destinationPort: number | undefined): Packet {
  const { protocol, source, sourcePort, icmpType, icmpCode } = original;
  if (hasPorts(protocol)) {
    return {
      protocol,
      source,
      destination,
      ...sourcePort === undefined ? {} : { sourcePort },
      ...destinationPort === undefined ? {} : { destinationPort },
    };
  }
  const isIcmp = protocol === PROTOCOLS.ICMP || protocol === PROTOCOLS.ICMPv6;
  return {
    protocol,
    source,
    destination,
    ...isIcmp && icmpType !== undefined ? { icmp: { type: icmpType, code: icmpCode ?? 0 } } : {},
  };
}

const ruleCount = (list: PolicyList): number =>
  [...list.tiers.flatMap(({ policies }) => policies), ...list.profiles].reduce(
    (sum, { rules }) => sum + rules.length,
    0,
  );

/**
 * The same verdict for every packet of that family, protocol and destination port, in fewer rules: those that can match none
 * of them are left out, and staged policies and policies without rules as far as nothing hangs on their being there.
 */
export function narrowList(
  list: PolicyList,
  family: Family,
  protocol: number,
  destinationPort: number | undefined,
): PolicyList {
  const mayMatch = (rule: Rule): boolean =>
    (rule.family === undefined || rule.family === family) &&
    (rule.protocol === undefined || rule.protocol === protocol) && rule.notProtocol !== protocol &&
    portMayMatch(rule, protocol, destinationPort) && (rule.icmp === undefined || !hasPorts(protocol));
  const narrowPolicies = (policies: PolicyTier["policies"]) =>
    policies.flatMap((policy) => {
      if (policy.staged) return [];
      const rules = policy.rules.filter(mayMatch);
      return rules.length === 0 ? [] : rules.length === policy.rules.length ? [policy] : [{ ...policy, rules }];
    });
  const tiers = list.tiers.flatMap((tier) => {
    const first = tier.policies.find(({ staged }) => !staged);
    if (first === undefined) return [];
    const policies = narrowPolicies(tier.policies);
    // One that says nothing still has the tier's default follow.
    return [{ ...tier, policies: policies.length > 0 ? policies : [{ ...first, rules: [] }] }];
  });
  return { ...list, tiers, profiles: narrowPolicies(list.profiles) };
}

function portMayMatch({ destination }: Rule, protocol: number, port: number | undefined): boolean {
  const { ports, portSets } = destination;
  if (ports === undefined && portSets === undefined) return true;
  if (port === undefined || !hasPorts(protocol)) return false;
  return portSets !== undefined || ports!.some(({ first, last }) => first <= port && port <= last);
}
