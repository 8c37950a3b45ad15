/**
 * The oracle: says slowly and obviously what becomes of one packet in a world of manifests. It is an independent reading of
 * the policy languages, held against the product's own evaluator, its rendered rules and the kernel, so it shares no code
 * with them.
 */
import { readAddress, sameAddress } from "./address.ts";
import { readCalicoPolicy, readProfiles, readTiers } from "./calico_policy.ts";
import { readClusterPolicy } from "./cluster_policy.ts";
import type { Endpoint, Resource } from "./holder.ts";
import { readKubernetesPolicy } from "./kubernetes_policy.ts";
import { type Identity, readFields, readIdentity, refuse } from "./manifest.ts";
import { type Failsafe, type Node, type Place, travel } from "./path.ts";
import { readPopulation } from "./population.ts";
import { PROTOCOLS } from "./protocol.ts";
import type { Packet } from "./rule.ts";

export interface FailsafePort {
  /** `tcp` or `udp`, in either case. */
  readonly protocol: string;
  readonly port: number;
}

export interface OracleWorld {
  /** Parsed manifests, in any order; of two with one identity the later one counts. */
  readonly resources: readonly unknown[];
  /** The node on which packets are judged. */
  readonly node: string;
  readonly failsafe?: { readonly inbound: readonly FailsafePort[]; readonly outbound: readonly FailsafePort[] };
  /** Addresses of the node's interfaces by name, for host endpoints that name an address instead of an interface. */
  readonly interfaces?: Readonly<Record<string, readonly string[]>>;
}

/** Addresses and ports after DNAT and before SNAT. */
export interface OraclePacket {
  /** IANA number. */
  readonly protocol: number;
  readonly source: string;
  readonly destination: string;
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  /** Of ICMP and ICMPv6. */
  readonly icmp?: { readonly type: number; readonly code: number };
  /** Where it was going before DNAT. */
  readonly beforeDnat?: { readonly destination: string; readonly destinationPort?: number };
  /** Absent: sent by a process of the node. */
  readonly inInterface?: string;
  /** Absent: for the node itself. */
  readonly outInterface?: string;
}

export interface OracleVerdict {
  readonly verdict: "allow" | "deny";
  /** A transcript: who was asked, and what each policy said. */
  readonly why: readonly string[];
}

export interface Oracle {
  /** Of a new connection's first packet. @throws {ManifestError} on an address that is none */
  judge(packet: OraclePacket): OracleVerdict;
  /** What of the policies could not be read, each of which denies whatever it selects. */
  readonly problems: readonly string[];
}

const TCP_BOTH_WAYS = [179, 2379, 2380, 5473, 6443, 6666, 6667];
const DEFAULT_FAILSAFE: Required<OracleWorld>["failsafe"] = {
  inbound: [...[22, ...TCP_BOTH_WAYS].map((port) => ({ protocol: "tcp", port })), { protocol: "udp", port: 68 }],
  outbound: [
    ...TCP_BOTH_WAYS.map((port) => ({ protocol: "tcp", port })),
    ...[53, 67].map((port) => ({ protocol: "udp", port })),
  ],
};

/** Interfaces of pods: what begins so and belongs to no endpoint is dropped. */
const POD_LINK_PREFIX = "mx";
/** Not one of `*`, or else a node could not talk to itself. */
const LOOPBACK = "lo";

/** Kinds that say nothing about enforcement here. */
const IGNORED = [
  "StagedNetworkPolicy",
  "StagedGlobalNetworkPolicy",
  "StagedKubernetesNetworkPolicy",
  "Service",
  "IPPool",
  "IPReservation",
];
const READ: Readonly<Record<Identity["group"], readonly string[]>> = {
  core: ["Namespace", "Pod", "ServiceAccount", "Node"],
  networking: ["NetworkPolicy"],
  cluster: ["ClusterNetworkPolicy"],
  discovery: ["EndpointSlice"],
  calico: [
    "NetworkPolicy",
    "GlobalNetworkPolicy",
    "Tier",
    "NetworkSet",
    "GlobalNetworkSet",
    "HostEndpoint",
    "WorkloadEndpoint",
    "Profile",
  ],
};

/** @throws {ManifestError} on a resource other than a policy that cannot be read, or on a kind that it does not know */
export function createOracle(world: OracleWorld): Oracle {
  const resources = readResources(world.resources);
  const of = (group: Identity["group"], ...kinds: string[]) =>
    resources.filter(({ identity }) => identity.group === group && kinds.includes(identity.kind));
  const population = readPopulation(resources);
  const read = [
    ...of("networking", "NetworkPolicy").map((resource) => readKubernetesPolicy(resource, population)),
    ...of("cluster", "ClusterNetworkPolicy").map((resource) => readClusterPolicy(resource, population)),
    ...of("calico", "NetworkPolicy", "GlobalNetworkPolicy").map((resource) => readCalicoPolicy(resource, population)),
  ];
  const endpoints = population.endpoints.filter(({ node }) => node === world.node);
  const node: Node = {
    policies: read.map(({ policy }) => policy),
    tiers: readTiers(of("calico", "Tier")),
    profile: readProfiles(of("calico", "Profile"), population),
    failsafe: readFailsafe(world.failsafe ?? DEFAULT_FAILSAFE),
    endpointAt: (name) => findEndpoint(endpoints, name, world.interfaces?.[name] ?? []),
    hostOfAll: byName(endpoints, "host endpoint").find(({ interfaceName }) => interfaceName === "*"),
  };
  return {
    problems: read.flatMap(({ problems }) => problems),
    judge(packet) {
      const why: string[] = [];
      const after = readPacket(packet);
      const original = packet.beforeDnat === undefined ? after : readPacket({ ...packet, ...packet.beforeDnat });
      const { inInterface, outInterface } = packet;
      const allowed = travel(node, { packet: after, original, inInterface, outInterface }, why);
      return { verdict: allowed ? "allow" : "deny", why };
    },
  };
}

function readResources(values: readonly unknown[]): Resource[] {
  const resources = new Map<string, Resource>();
  for (const value of values) {
    const identity = readIdentity(value);
    if (identity === undefined || IGNORED.includes(identity.kind)) continue;
    const { kind, group, namespace, name, where } = identity;
    if (!READ[group].includes(kind)) refuse(where, kind, `one of ${READ[group].join(", ")}`);
    const isClusterWide = /^(Namespace|Node|Cluster.*|Global.*|Tier|HostEndpoint|Profile)$/.test(kind);
    const key = [group, kind, isClusterWide ? "" : namespace, name].join(" ");
    resources.set(key, { identity, fields: readFields(value, where) });
  }
  return [...resources.values()];
}

function readPacket(packet: OraclePacket): Packet {
  const source = readAddress(packet.source, "packet.source");
  const destination = readAddress(packet.destination, "packet.destination");
  if (source.family !== destination.family) refuse("packet", packet, "both addresses of one family");
  const { protocol, sourcePort, destinationPort, icmp } = packet;
  return { protocol, source, destination, sourcePort, destinationPort, icmp };
}

function readFailsafe({ inbound, outbound }: Required<OracleWorld>["failsafe"]): Failsafe {
  const numbered = (ports: readonly FailsafePort[]) =>
    ports.map(({ protocol, port }) => ({
      protocol: PROTOCOLS[protocol.toUpperCase() as "TCP" | "UDP"] ?? refuse("failsafe", protocol, "tcp or udp"),
      port,
    }));
  return { inbound: numbered(inbound), outbound: numbered(outbound) };
}

/** A workload's link; else a host endpoint by the interface's name, by an address that it holds, or for all interfaces. */
function findEndpoint(endpoints: readonly Endpoint[], name: string, addresses: readonly string[]): Place {
  const workload = byName(endpoints, "workload").find(({ interfaceName }) => interfaceName === name);
  if (workload !== undefined) return workload;
  if (name.startsWith(POD_LINK_PREFIX)) return "unknown pod link";
  const held = addresses.map((address) => readAddress(address, `interface ${name}`));
  const hosts = byName(endpoints, "host endpoint");
  return hosts.find(({ interfaceName }) => interfaceName === name) ??
    hosts.find(({ interfaceName, nets }) =>
      interfaceName === undefined && nets.some((net) => held.some((address) => sameAddress(net, address)))
    ) ??
    (name === LOOPBACK ? undefined : hosts.find(({ interfaceName }) => interfaceName === "*")) ?? "nothing";
}

/** Of several that claim one interface, the first by name has it. */
const byName = (endpoints: readonly Endpoint[], kind: Endpoint["kind"]): readonly Endpoint[] =>
  endpoints.filter((endpoint) => endpoint.kind === kind).sort((a, b) => a.name < b.name ? -1 : 1);
