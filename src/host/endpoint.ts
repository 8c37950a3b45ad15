/** An attachment as a WorkloadEndpoint resource, and back. Pure. */
import {
  type Address,
  addressFamily,
  AddressSyntaxError,
  type Cidr,
  cidrAddress,
  cidrPrefix,
  type Family,
  familyBits,
  formatAddress,
  formatCidr,
  parseAddress,
  parseCidr,
} from "../model/address.ts";
import type { Resource, ResourceKey } from "../model/resource.ts";
import type { AddRequest, AttachmentName } from "../sdk/attach.ts";
import { RefusedError } from "../sdk/errors.ts";
import type { Attachment } from "../sdk/wiring.ts";
import { WORKLOAD_ENDPOINT } from "./resources/core_source.ts";

/** Where the endpoint keeps what only the daemon reads: network, container, interface, MTU, routes. */
const ATTACHMENT_ANNOTATION = "cni.manx/attachment";
/** metadata.name of a Kubernetes object. */
const NAME_MAX = 253;
/** What the host interface takes of the identifier: IFNAMSIZ leaves 15, less `mx`, and room to tell by eye. */
const INTERFACE_HASH_DIGITS = 11;

/** All names of one attachment, from its three parts alone. */
export interface AttachmentIdentity {
  /** 40 hex digits. */
  readonly id: string;
  readonly hostInterface: string;
  readonly handle: string;
}

/** What is stored of an attachment of this node. */
export interface StoredAttachment extends AttachmentIdentity {
  readonly name: AttachmentName;
  readonly key: ResourceKey;
  readonly addresses: readonly Address[];
  readonly mac?: string;
  readonly mtu?: number;
  readonly routes?: Attachment["routes"];
}

/** What an ADD asks for, checked. */
export interface AttachmentPlan extends AttachmentIdentity {
  readonly name: AttachmentName;
  readonly netns: string;
  readonly key: ResourceKey;
  readonly orchestrator: "k8s" | "cni";
  readonly pod?: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly families: readonly Family[];
  /** Static ones. */
  readonly addresses?: readonly Address[];
  readonly pools?: readonly string[];
  readonly mac?: string;
  readonly mtu?: number;
  readonly routes?: Attachment["routes"];
}

export function identify({ network, containerId, ifName }: AttachmentName): AttachmentIdentity {
  const id = new Bun.CryptoHasher("sha1").update(`${network}\0${containerId}\0${ifName}`).digest("hex");
  return { id, hostInterface: `mx${id.slice(0, INTERFACE_HASH_DIGITS)}`, handle: `cni.${id}` };
}

/** @throws {RefusedError} naming each field that cannot be used */
export function planAttachment(request: AddRequest, node: string): AttachmentPlan {
  const reasons: string[] = [];
  const refuse = (field: string, found: unknown, wanted: string) => {
    reasons.push(`attachment: ${field}: found ${JSON.stringify(found)}, wanted ${wanted}`);
    return undefined;
  };
  const read = <T>(field: string, text: string, parse: (text: string) => T): T | undefined => {
    try {
      return parse(text);
    } catch (error) {
      if (!(error instanceof AddressSyntaxError)) throw error;
      return refuse(field, text, error.wanted);
    }
  };
  const { K8S_POD_NAMESPACE: argNamespace, K8S_POD_NAME: pod } = request.args;
  const namespace = argNamespace || request.labels["projectcalico.org/namespace"] || "default";
  if (!/^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(namespace)) refuse("namespace", namespace, "a namespace's name");
  if (pod && !/^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$/.test(pod)) refuse("K8S_POD_NAME", pod, "a pod's name");
  const addresses = request.ips?.map((text, i) => read(`ips[${i}]`, text, parseOneAddress));
  const families = request.families ?? [4, 6];
  if (families.length === 0 || families.some((family) => family !== 4 && family !== 6)) {
    refuse("families", families, "4, 6 or both");
  }
  if (addresses !== undefined) {
    const seen = new Set(addresses.map((address) => address === undefined ? 0 : addressFamily(address)));
    if (seen.size < addresses.length) refuse("ips", request.ips, "at most one address a family");
  }
  const { mac, mtu } = request;
  if (mac !== undefined && !/^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/i.test(mac)) {
    refuse("mac", mac, "a unicast address, aa:bb:cc:dd:ee:ff");
  }
  // 68: RFC 791's least; the kernel's own limits for the link come later.
  if (mtu !== undefined && (!Number.isInteger(mtu) || mtu < 68 || mtu > 65535)) refuse("mtu", mtu, "68 to 65535 bytes");
  const routes = request.routes?.map(({ dst, gw }, i) => {
    const destination = read(`routes[${i}].dst`, dst, parseCidr);
    const via = gw === undefined || gw === "" ? undefined : read(`routes[${i}].gw`, gw, parseAddress);
    return destination === undefined ? undefined : { destination, ...(via === undefined ? {} : { via }) };
  });
  for (const [label, value] of Object.entries(request.labels)) {
    if (typeof value !== "string") refuse(`labels.${label}`, value, "text");
  }
  if (reasons.length > 0) throw new RefusedError(reasons);
  const identity = identify(request);
  const { network, containerId, ifName } = request;
  const orchestrator = pod && argNamespace ? "k8s" : "cni";
  return {
    ...identity,
    name: { network, containerId, ifName },
    netns: request.netns,
    key: {
      kind: WORKLOAD_ENDPOINT,
      namespace,
      name: endpointName(node, orchestrator, pod || containerId.slice(0, 12), ifName, identity.id),
    },
    orchestrator,
    labels: request.labels,
    families: addresses === undefined ? families : (addresses as Address[]).map(addressFamily),
    ...(orchestrator === "k8s" ? { pod } : {}),
    ...(addresses === undefined ? {} : { addresses: addresses as Address[] }),
    ...(request.pools === undefined || request.pools.length === 0 ? {} : { pools: request.pools }),
    ...(mac === undefined ? {} : { mac: mac.toLowerCase() }),
    ...(mtu === undefined ? {} : { mtu }),
    ...(routes === undefined ? {} : { routes: routes as Attachment["routes"] }),
  };
}

/** What the wiring is told. */
export function wiringOf(stored: StoredAttachment, netns: string): Attachment {
  return {
    id: stored.id,
    netns,
    interfaceName: stored.name.ifName,
    hostInterface: stored.hostInterface,
    addresses: stored.addresses,
    ...(stored.mac === undefined ? {} : { mac: stored.mac }),
    ...(stored.mtu === undefined ? {} : { mtu: stored.mtu }),
    ...(stored.routes === undefined ? {} : { routes: stored.routes }),
  };
}

export function storedOf(plan: AttachmentPlan, addresses: readonly Address[]): StoredAttachment {
  const { id, hostInterface, handle, name, key, mac, mtu, routes } = plan;
  return { id, hostInterface, handle, name, key, addresses, mac, mtu, routes };
}

/** projectcalico.org/v3 WorkloadEndpoint. `createdMs`: milliseconds since 1970. */
export function endpointResource(
  plan: AttachmentPlan,
  addresses: readonly Address[],
  node: string,
  createdMs: number,
): Resource {
  const { name, mtu, routes, pod, mac } = plan;
  const kept = {
    network: name.network,
    ...(mtu === undefined ? {} : { mtu }),
    ...(routes === undefined ? {} : {
      routes: routes.map(({ destination, via }) => ({
        dst: formatCidr(destination),
        ...(via === undefined ? {} : { gw: formatAddress(via) }),
      })),
    }),
  };
  return {
    apiVersion: "projectcalico.org/v3",
    kind: "WorkloadEndpoint",
    metadata: {
      name: plan.key.name,
      namespace: plan.key.namespace,
      creationTimestamp: new Date(createdMs).toISOString().replace(/\.\d+Z$/, "Z"),
      labels: plan.labels,
      annotations: { [ATTACHMENT_ANNOTATION]: JSON.stringify(kept) },
    },
    spec: {
      node,
      orchestrator: plan.orchestrator,
      containerID: name.containerId,
      endpoint: name.ifName,
      ...(pod === undefined ? { workload: name.containerId } : { pod }),
      interfaceName: plan.hostInterface,
      ipNetworks: addresses.map((address) => `${formatAddress(address)}/${familyBits(addressFamily(address))}`),
      ...(mac === undefined ? {} : { mac }),
    },
  };
}

/** The attachment behind an endpoint of this node; undefined for one that a person wrote. */
export function attachmentOf(key: ResourceKey, resource: Resource, node: string): StoredAttachment | undefined {
  const spec = resource.spec as Record<string, unknown> | undefined;
  const annotation = resource.metadata.annotations?.[ATTACHMENT_ANNOTATION];
  if (spec === undefined || spec === null || spec.node !== node || typeof annotation !== "string") return undefined;
  try {
    const kept = JSON.parse(annotation) as { network: string; mtu?: number; routes?: { dst: string; gw?: string }[] };
    const name = { network: kept.network, containerId: String(spec.containerID), ifName: String(spec.endpoint) };
    const identity = identify(name);
    if (identity.hostInterface !== spec.interfaceName || !Array.isArray(spec.ipNetworks)) return undefined;
    return {
      ...identity,
      name,
      key,
      addresses: spec.ipNetworks.map((text) => parseOneAddress(String(text))),
      ...(typeof spec.mac === "string" ? { mac: spec.mac } : {}),
      ...(kept.mtu === undefined ? {} : { mtu: kept.mtu }),
      ...(kept.routes === undefined ? {} : {
        routes: kept.routes.map(({ dst, gw }) => ({
          destination: parseCidr(dst),
          ...(gw === undefined ? {} : { via: parseAddress(gw) }),
        })),
      }),
    };
  } catch {
    // Edited by hand beyond recognition: it is then a person's endpoint, and stands as that.
    return undefined;
  }
}

/** Where a person's endpoint is, for the links that must stay. */
export function interfaceOf(resource: Resource, node: string): string | undefined {
  const spec = resource.spec as Record<string, unknown> | undefined | null;
  return spec?.node === node && typeof spec.interfaceName === "string" ? spec.interfaceName : undefined;
}

/** An address, alone or with its full length. @throws {AddressSyntaxError} */
function parseOneAddress(text: string): Address {
  const cidr: Cidr = parseCidr(text);
  const address = cidrAddress(cidr);
  if (cidrPrefix(cidr) !== familyBits(addressFamily(address))) {
    throw new AddressSyntaxError(text, "one address, or a prefix of full length");
  }
  return address;
}

/** As Calico names them, and the first digits of the identifier, so that no two attachments share one. */
function endpointName(node: string, orchestrator: string, workload: string, ifName: string, id: string): string {
  const tail = `-${id.slice(0, INTERFACE_HASH_DIGITS)}`;
  const head = [node, orchestrator, workload, ifName].join("-").toLowerCase().replace(/[^a-z0-9.-]/g, "-").replace(
    /\.+/g,
    ".",
  )
    .replace(/\.-|-\./g, "-");
  return head.slice(0, NAME_MAX - tail.length).replace(/[.-]+$/, "") + tail;
}
