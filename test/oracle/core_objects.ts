/** What Kubernetes' own objects say: Pods, Nodes and EndpointSlices. */
import { type Address, type Net, readAddress, readNet } from "./address.ts";
import type { NamedPort, Resource } from "./holder.ts";
import { readFields, readFlag, readGivenText, readLabels, readList, readText, readTexts, refuse } from "./manifest.ts";
import { hasPorts, readPortNumber, readPortProtocol, readProtocol } from "./protocol.ts";
import type { Labels } from "./selector.ts";

export const specOf = ({ identity, fields }: Resource) => readFields(fields.spec, `${identity.where}: spec`);

export function labelsOf({ identity, fields }: Resource): Labels {
  return readLabels(readFields(fields.metadata, identity.where).labels, `${identity.where}: metadata.labels`);
}

/** Of a list of `{name, port, protocol}`; the Kubernetes form calls the number `containerPort`. Those without a name are none. */
export function readNamedPorts(value: unknown, where: string): readonly NamedPort[] {
  return readList(value, where).flatMap((entry, i) => {
    const at = `${where}[${i}]`;
    const { name, port, containerPort, protocol } = readFields(entry, at);
    const given = readGivenText(name, `${at}.name`);
    return given === undefined ? [] : [{
      name: given,
      protocol: readPortedProtocol(protocol ?? "TCP", `${at}.protocol`),
      port: readPortNumber(port ?? containerPort, `${at}.port`),
    }];
  });
}

function readPortedProtocol(value: unknown, where: string): number {
  const protocol = readProtocol(value, where);
  return hasPorts(protocol) ? protocol : refuse(where, value, "TCP, UDP, SCTP or UDPLite");
}

/** Pod.spec.containers, and the init containers that keep running beside them. */
export function podPorts(pod: Resource): readonly NamedPort[] {
  const { where } = pod.identity;
  const spec = specOf(pod);
  const sidecars = readList(spec.initContainers, `${where}: spec.initContainers`).filter((entry) =>
    readFields(entry, where).restartPolicy === "Always"
  );
  return [...readList(spec.containers, `${where}: spec.containers`), ...sidecars].flatMap((container) =>
    readNamedPorts(readFields(container, where).ports, `${where}: ports`)
  );
}

/** Admission gives a pod that names none the account `default`. */
export function podAccount(pod: Resource): string {
  const { serviceAccountName, serviceAccount } = specOf(pod);
  // The second name is the older one for the same (core/v1 PodSpec).
  return readGivenText(serviceAccountName ?? serviceAccount, `${pod.identity.where}: spec.serviceAccountName`) ??
    "default";
}

/** Its addresses in the pod network: none of a pod that is over, or that lives in its node's network. */
export function podAddresses(pod: Resource): readonly Net[] {
  const { where } = pod.identity;
  const status = readFields(pod.fields.status, `${where}: status`);
  if (readFlag(specOf(pod).hostNetwork, `${where}: spec.hostNetwork`)) return [];
  if (status.phase === "Succeeded" || status.phase === "Failed") return [];
  const listed = readList(status.podIPs, `${where}: status.podIPs`).map((entry) => readFields(entry, where).ip);
  return (listed.length === 0 ? [status.podIP] : listed).flatMap((ip) => {
    const text = readGivenText(ip, `${where}: status.podIPs`);
    return text === undefined ? [] : [readNet(text, `${where}: status.podIPs`)];
  });
}

/** Node.status.addresses that are a node's own: InternalIP and ExternalIP. */
export function nodeAddresses(node: Resource): readonly Address[] {
  const { where } = node.identity;
  const status = readFields(node.fields.status, `${where}: status`);
  return readList(status.addresses, `${where}: status.addresses`).flatMap((entry) => {
    const { type, address } = readFields(entry, where);
    return type === "InternalIP" || type === "ExternalIP" ? [readAddress(readText(address, where) ?? "", where)] : [];
  });
}

export interface ServiceEndpoint {
  readonly address: Address;
  readonly ports: readonly { readonly protocol: number; readonly port: number }[];
}

/** `namespace/name` of the service, and what the slice adds to it. */
export function sliceEndpoints(slice: Resource): readonly [service: string, endpoints: readonly ServiceEndpoint[]] {
  const { where, namespace } = slice.identity;
  const { addressType, ports, endpoints } = slice.fields;
  const numbered = readList(ports, `${where}: ports`).flatMap((entry, i) => {
    const { port, protocol } = readFields(entry, `${where}: ports[${i}]`);
    return port === undefined || port === null ? [] : [{
      protocol: readPortProtocol(protocol ?? "TCP", `${where}: ports[${i}].protocol`),
      port: readPortNumber(port, `${where}: ports[${i}].port`),
    }];
  });
  const found = addressType === "FQDN"
    ? []
    : readList(endpoints, `${where}: endpoints`).flatMap((entry) =>
      readTexts(readFields(entry, where).addresses, `${where}: addresses`).map((address) => ({
        address: readAddress(address, `${where}: addresses`),
        ports: numbered,
      }))
    );
  return [`${namespace}/${labelsOf(slice).get("kubernetes.io/service-name")}`, found];
}
