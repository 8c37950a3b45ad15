/** For tests: a little network, the manifests that describe it, and the nodes that a packet crosses in it. */
import { createOracle, type Oracle, type OracleVerdict, type OracleWorld } from "./mod.ts";
import { PROTOCOLS } from "./protocol.ts";

export interface Pod {
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
  /** The node's end of its link. */
  readonly link: string;
  readonly addresses: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
  readonly ports: readonly { readonly name?: string; readonly protocol: string; readonly port: number }[];
  readonly serviceAccount?: string;
}

export interface Machine {
  readonly name: string;
  /** Addresses by link; `eth0` joins all nodes. */
  readonly links: Readonly<Record<string, readonly string[]>>;
}

/** Outside the cluster, behind one link of one node; behind `eth0`, next to all of them. */
export interface Host {
  readonly name: string;
  readonly addresses: readonly string[];
  readonly node: string;
  readonly link: string;
}

export interface Network {
  readonly nodes: readonly Machine[];
  readonly pods: readonly Pod[];
  readonly hosts: readonly Host[];
  readonly dnat: readonly {
    readonly node: string;
    readonly protocol: string;
    readonly port: number;
    readonly to: Pod;
    readonly toPort: number;
  }[];
}

export type End =
  | { readonly pod: Pod }
  | { readonly host: Host }
  | { readonly machine: Machine; readonly link?: string };

export interface Probe {
  readonly from: End;
  readonly to: End;
  /** `tcp`, `udp`, `sctp`, `icmp` or `icmpv6`. */
  readonly protocol: string;
  readonly port?: number;
  readonly sourcePort?: number;
  readonly icmp?: { readonly type: number; readonly code: number };
}

const BACKBONE = "eth0";

/** Nodes, Pods, and the WorkloadEndpoints that a daemon stores for them. */
export function manifestsOf({ nodes, pods }: Network): unknown[] {
  return [
    ...nodes.map(({ name, links }) => ({
      apiVersion: "v1",
      kind: "Node",
      metadata: { name },
      status: { addresses: Object.values(links).flat().map((address) => ({ type: "InternalIP", address })) },
    })),
    ...pods.flatMap(({ namespace, name, node, link, addresses, labels, ports, serviceAccount }) => [
      {
        apiVersion: "v1",
        kind: "Pod",
        metadata: { namespace, name, labels },
        spec: {
          nodeName: node,
          ...(serviceAccount === undefined ? {} : { serviceAccountName: serviceAccount }),
          containers: [{
            name: "main",
            ports: ports.map((port) => ({
              ...(port.name === undefined ? {} : { name: port.name }),
              containerPort: port.port,
              protocol: port.protocol.toUpperCase(),
            })),
          }],
        },
      },
      {
        apiVersion: "projectcalico.org/v3",
        kind: "WorkloadEndpoint",
        metadata: { namespace, name: `${node}-k8s-${name}-eth0` },
        spec: {
          node,
          orchestrator: "k8s",
          pod: name,
          endpoint: "eth0",
          interfaceName: link,
          ipNetworks: addresses.map((address) => `${address}/${address.includes(":") ? 128 : 32}`),
        },
      },
    ]),
  ];
}

export interface Answer extends OracleVerdict {
  readonly family: 4 | 6;
}

const FAMILIES = [4, 6] as const;

export interface Judge {
  /** Every family that both ends have, or the one of the protocol. Empty where there is none. */
  judge(probe: Probe): readonly Answer[];
  readonly problems: readonly string[];
}

/** `resources`: everything, what `manifestsOf` says included. */
export function judgeIn(network: Network, resources: readonly unknown[], failsafe?: OracleWorld["failsafe"]): Judge {
  const oracles = new Map<string, Oracle>(
    network.nodes.map(({ name, links }) => [
      name,
      createOracle({ resources, node: name, interfaces: links, ...(failsafe === undefined ? {} : { failsafe }) }),
    ]),
  );
  return {
    judge: (probe) =>
      FAMILIES.flatMap((family): Answer[] => {
        const packet = packetOf(network, probe, family);
        if (packet === undefined) return [];
        const why: string[] = [];
        for (const [i, { node, ...interfaces }] of hops(probe.from, packet.target).entries()) {
          // The first node translates, so that the next ones see no more of it.
          const beforeDnat = i === 0 ? packet.beforeDnat : undefined;
          const answer = oracles.get(node)!.judge({ ...packet.packet, beforeDnat, ...interfaces });
          why.push(`on ${node}:`, ...answer.why);
          if (answer.verdict === "deny") return [{ verdict: "deny", why, family }];
        }
        return [{ verdict: "allow", why, family }];
      }),
    problems: [...new Set([...oracles.values()].flatMap(({ problems }) => problems))],
  };
}

const isFamily = (family: 4 | 6) => (address: string): boolean => address.includes(":") === (family === 6);

function addressesOf(end: End): readonly string[] {
  if ("pod" in end) return end.pod.addresses;
  if ("host" in end) return end.host.addresses;
  return end.link === undefined ? Object.values(end.machine.links).flat() : end.machine.links[end.link] ?? [];
}

/** The packet after DNAT, and whom it then goes to. */
function packetOf(network: Network, probe: Probe, family: 4 | 6) {
  const { protocol: name, port, sourcePort } = probe;
  if ((name === "icmp" && family === 6) || (name === "icmpv6" && family === 4)) return undefined;
  const source = addressesOf(probe.from).find(isFamily(family));
  const destination = addressesOf(probe.to).find(isFamily(family));
  if (source === undefined || destination === undefined) return undefined;
  const numbers = {
    tcp: PROTOCOLS.TCP,
    udp: PROTOCOLS.UDP,
    sctp: PROTOCOLS.SCTP,
    udplite: PROTOCOLS.UDPLite,
    icmp: PROTOCOLS.ICMP,
    icmpv6: PROTOCOLS.ICMPv6,
  };
  const protocol = numbers[name as keyof typeof numbers] ?? Number(name);
  const icmp = name.startsWith("icmp") ? probe.icmp ?? { type: family === 4 ? 8 : 128, code: 0 } : undefined;
  const base = { protocol, source, sourcePort: port === undefined ? undefined : sourcePort ?? 40_000, icmp };
  const rule = network.dnat.find(({ node, protocol, port: at }) =>
    "machine" in probe.to && node === probe.to.machine.name && protocol === name && at === port
  );
  const to = rule?.to.addresses.find(isFamily(family));
  if (rule === undefined || to === undefined) {
    return { target: probe.to, packet: { ...base, destination, destinationPort: port }, beforeDnat: undefined };
  }
  return {
    target: { pod: rule.to },
    packet: { ...base, destination: to, destinationPort: rule.toPort },
    beforeDnat: { destination, destinationPort: port },
  };
}

interface Hop {
  readonly node: string;
  readonly inInterface?: string;
  readonly outInterface?: string;
}

/** The nodes on the way, with the interfaces by which the packet comes and goes. */
function hops(from: End, to: End): Hop[] {
  const near = attachment(from);
  const far = attachment(to);
  // Who sits on the backbone reaches every node without another one between.
  const first = near.node ?? far.node!;
  const last = far.node ?? near.node ?? first;
  if (first === last) return [{ node: first, inInterface: near.link, outInterface: far.link }];
  return [
    { node: first, inInterface: near.link, outInterface: BACKBONE },
    { node: last, inInterface: BACKBONE, outInterface: far.link },
  ];
}

/** Where an end is attached; a host on the backbone is at no node in particular. */
function attachment(end: End): { readonly node?: string; readonly link?: string } {
  if ("pod" in end) return { node: end.pod.node, link: end.pod.link };
  if ("machine" in end) return { node: end.machine.name };
  return end.host.link === BACKBONE ? { link: BACKBONE } : { node: end.host.node, link: end.host.link };
}
