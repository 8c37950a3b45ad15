/** The world of a scenario as the manifests that a cluster would hold. Pure. */
import { type Address, formatAddress } from "../model/address.ts";
import type { ScenarioPod, ScenarioWorld } from "./scenario.ts";

/** Namespaces, service accounts, nodes and pods, one YAML document each. */
export function worldManifest(world: ScenarioWorld, nodeAddresses: (node: string) => readonly Address[]): string {
  const namespaces = [...world.namespaces].map(([name, labels]) => ({
    apiVersion: "v1",
    kind: "Namespace",
    metadata: { name, labels },
  }));
  const accounts = new Map(
    world.pods.flatMap(({ namespace, serviceAccount }) =>
      serviceAccount === undefined
        ? []
        : [[`${namespace}/${serviceAccount}`, { name: serviceAccount, namespace }] as const]
    ),
  );
  const serviceAccounts = [...accounts.values()].map((metadata) => ({
    apiVersion: "v1",
    kind: "ServiceAccount",
    metadata,
  }));
  const nodes = world.nodes.map(({ name }) => ({
    apiVersion: "v1",
    kind: "Node",
    metadata: { name },
    status: {
      addresses: nodeAddresses(name).map((address) => ({ type: "InternalIP", address: formatAddress(address) })),
    },
  }));
  const documents = [...namespaces, ...serviceAccounts, ...nodes, ...world.pods.map(podManifest)];
  return documents.map((document) => JSON.stringify(document)).join("\n---\n");
}

/** The Pod object of a pod: labels, named ports and service account. */
export function podManifest(pod: ScenarioPod): unknown {
  const ports = pod.serves.map(({ protocol, port, name }) => ({
    containerPort: port,
    protocol: protocol.toUpperCase(),
    ...(name === undefined ? {} : { name }),
  }));
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: pod.name, namespace: pod.namespace, labels: pod.labels },
    spec: {
      nodeName: pod.node,
      ...(pod.serviceAccount === undefined ? {} : { serviceAccountName: pod.serviceAccount }),
      containers: [{ name: "main", image: "lab", ports }],
    },
  };
}
