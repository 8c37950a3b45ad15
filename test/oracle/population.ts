/** Who is in the world: endpoints and network sets, each label map worked out once. */
import { type Address, holds, readNet } from "./address.ts";
import {
  labelsOf,
  nodeAddresses,
  podAccount,
  podAddresses,
  podPorts,
  readNamedPorts,
  type ServiceEndpoint,
  sliceEndpoints,
  specOf,
} from "./core_objects.ts";
import type { Endpoint, Holder, Resource } from "./holder.ts";
import { type Inheritance, readInheritance } from "./inheritance.ts";
import { isGiven, readFields, readGivenText, readTexts, refuse } from "./manifest.ts";
import type { LabelQuestion } from "./selector.ts";

export interface Population {
  readonly endpoints: readonly Endpoint[];
  /** Everybody who has the address, network sets included. */
  holdersOf(address: Address): readonly Holder[];
  /** Behind a service, as its EndpointSlices say. */
  service(namespace: string, name: string): readonly ServiceEndpoint[];
  addressesOfNodes(selects: LabelQuestion): readonly Address[];
}

/** @throws {ManifestError} */
export function readPopulation(resources: readonly Resource[]): Population {
  const of = (kind: string) => resources.filter(({ identity }) => identity.kind === kind);
  const inheritance = readInheritance(resources);

  const pods = new Map(of("Pod").map((pod) => [`${pod.identity.namespace}/${pod.identity.name}`, pod]));
  const attached = new Set<Resource>();
  const workloads = of("WorkloadEndpoint").map((resource) => {
    const pod = podOf(resource, pods);
    if (pod !== undefined) attached.add(pod);
    return readWorkload(resource, pod, inheritance);
  });
  const elsewhere = [...pods.values()].filter((pod) => !attached.has(pod) && podAddresses(pod).length > 0);
  const endpoints = [
    ...workloads,
    ...elsewhere.map((pod) => readPod(pod, inheritance)),
    ...of("HostEndpoint").map((resource) => readHostEndpoint(resource, inheritance)),
  ];
  const holders: Holder[] = [
    ...endpoints,
    ...[...of("NetworkSet"), ...of("GlobalNetworkSet")].map((resource) => readNetworkSet(resource, inheritance)),
  ];
  const services = Map.groupBy(of("EndpointSlice").map(sliceEndpoints), ([service]) => service);
  const nodes = of("Node").map((node) => ({ labels: labelsOf(node), addresses: nodeAddresses(node) }));

  const known = new Map<string, readonly Holder[]>();
  return {
    endpoints,
    holdersOf(address) {
      const key = `${address.family} ${address.bits}`;
      const found = known.get(key) ?? holders.filter(({ nets }) => nets.some((net) => holds(net, address)));
      known.set(key, found);
      return found;
    },
    service: (namespace, name) => (services.get(`${namespace}/${name}`) ?? []).flatMap(([, members]) => members),
    addressesOfNodes: (selects) => nodes.filter(({ labels }) => selects(labels)).flatMap(({ addresses }) => addresses),
  };
}

/** The Pod that a WorkloadEndpoint attaches: its labels, ports and account are then the Pod's. */
function podOf({ identity, fields }: Resource, pods: ReadonlyMap<string, Resource>): Resource | undefined {
  return pods.get(`${identity.namespace}/${readFields(fields.spec, identity.where).pod}`);
}

function readWorkload(resource: Resource, pod: Resource | undefined, inheritance: Inheritance): Endpoint {
  const { where, namespace, name } = resource.identity;
  const spec = specOf(resource);
  return {
    ...workload(inheritance, {
      of: pod ?? resource,
      account: pod === undefined
        ? readGivenText(spec.serviceAccountName, `${where}: spec.serviceAccountName`)
        : podAccount(pod),
      orchestrator: readGivenText(spec.orchestrator, `${where}: spec.orchestrator`) ?? "cni",
      // Pods get the profile of their namespace, and who writes no profiles means that one.
      profiles: isGiven(spec.profiles) ? readTexts(spec.profiles, `${where}: spec.profiles`) : [`kns.${namespace}`],
    }),
    name: `${namespace}/${name}`,
    node: readGivenText(spec.node, `${where}: spec.node`) ?? refuse(`${where}: spec.node`, spec.node, "a node"),
    interfaceName: readGivenText(spec.interfaceName, `${where}: spec.interfaceName`),
    nets: readTexts(spec.ipNetworks, `${where}: spec.ipNetworks`).map((net) => readNet(net, `${where}: ipNetworks`)),
    ports: pod === undefined ? readNamedPorts(spec.ports, `${where}: spec.ports`) : podPorts(pod),
  };
}

/** A pod of another node, of which only the Pod object is known. */
function readPod(pod: Resource, inheritance: Inheritance): Endpoint {
  const { namespace, name } = pod.identity;
  const profiles = [`kns.${namespace}`];
  return {
    ...workload(inheritance, { of: pod, account: podAccount(pod), orchestrator: "k8s", profiles }),
    name: `${namespace}/${name}`,
    node: "",
    nets: podAddresses(pod),
    ports: podPorts(pod),
  };
}

function workload(
  inheritance: Inheritance,
  { of, account, orchestrator, profiles }: {
    readonly of: Resource;
    readonly account?: string;
    readonly orchestrator: string;
    readonly profiles: readonly string[];
  },
) {
  const namespace = inheritance.namespace(of.identity.namespace);
  const serviceAccount = account === undefined ? undefined : inheritance.serviceAccount(of.identity.namespace, account);
  return {
    kind: "workload",
    title: `workload ${namespace.name}/${of.identity.name}`,
    namespace,
    serviceAccount,
    labels: inheritance.labels({ own: labelsOf(of), namespace, serviceAccount, orchestrator, profiles }),
    profiles,
  } as const;
}

function readHostEndpoint(resource: Resource, inheritance: Inheritance): Endpoint {
  const { where, name } = resource.identity;
  const spec = specOf(resource);
  const profiles = readTexts(spec.profiles, `${where}: spec.profiles`);
  return {
    kind: "host endpoint",
    title: `host endpoint ${name}`,
    name,
    labels: inheritance.labels({ own: labelsOf(resource), profiles }),
    nets: readTexts(spec.expectedIPs, `${where}: spec.expectedIPs`).map((ip) => readNet(ip, `${where}: expectedIPs`)),
    ports: readNamedPorts(spec.ports, `${where}: spec.ports`),
    node: readGivenText(spec.node, `${where}: spec.node`) ?? refuse(`${where}: spec.node`, spec.node, "a node"),
    interfaceName: readGivenText(spec.interfaceName, `${where}: spec.interfaceName`),
    profiles,
  };
}

function readNetworkSet(resource: Resource, inheritance: Inheritance): Holder {
  const { where, kind, name } = resource.identity;
  const namespace = kind === "NetworkSet" ? inheritance.namespace(resource.identity.namespace) : undefined;
  return {
    kind: "network set",
    title: `${kind} ${name}`,
    namespace,
    labels: inheritance.labels({ own: labelsOf(resource), namespace, name, profiles: [] }),
    nets: readTexts(specOf(resource).nets, `${where}: spec.nets`).map((net) => readNet(net, `${where}: spec.nets`)),
    ports: [],
  };
}
