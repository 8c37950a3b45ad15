/** The kinds that belong to the house itself, whatever policy dialects are configured: endpoints, nodes, pools, blocks. */
import {
  type Address,
  addressFamily,
  type Cidr,
  cidrAddress,
  cidrFamily,
  cidrPrefix,
  cidrsOverlap,
  familyBits,
  formatCidr,
  parseCidr,
} from "../../model/address.ts";
import { type NamedPort, PROTOCOLS } from "../../model/ports.ts";
import type { Problem, Resource, ResourceKey } from "../../model/resource.ts";
import { keyText } from "../../model/resource.ts";
import { mentionsGlobal } from "../../model/selector.ts";
import { parseSelector, SelectorSyntaxError } from "../../model/selector_parse.ts";
import type { WorkloadObject, WorldObject } from "../../model/world.ts";
import { closedEndpoint } from "../../sdk/fail_closed.ts";
import type { KindDefinition, PolicySource, Translation } from "../../sdk/policy_source.ts";
import { Findings } from "./shape.ts";

export const WORKLOAD_ENDPOINT = "WorkloadEndpoint.projectcalico.org";
export const NODE = "Node";
export const IP_POOL = "IPPool.projectcalico.org";
export const IPAM_BLOCK = "IPAMBlock.ipam.manx";

const CALICO_VERSIONS = ["projectcalico.org/v3", "crd.projectcalico.org/v1"] as const;

const KINDS: readonly KindDefinition[] = [
  {
    kind: WORKLOAD_ENDPOINT,
    name: "WorkloadEndpoint",
    plural: "workloadendpoints",
    shortNames: ["wep", "weps"],
    apiVersions: CALICO_VERSIONS,
    namespaced: true,
  },
  { kind: NODE, name: "Node", plural: "nodes", shortNames: ["no"], apiVersions: ["v1"], namespaced: false },
  {
    kind: IP_POOL,
    name: "IPPool",
    plural: "ippools",
    shortNames: ["pool", "pools"],
    apiVersions: CALICO_VERSIONS,
    namespaced: false,
  },
  {
    kind: IPAM_BLOCK,
    name: "IPAMBlock",
    plural: "ipamblocks",
    shortNames: ["block", "blocks"],
    apiVersions: ["ipam.manx/v1"],
    namespaced: false,
  },
];

interface Reading {
  readonly findings: Findings;
  readonly objects: readonly WorldObject[];
}

/** Pure; every reader is total. */
export const coreSource: PolicySource = {
  kinds: KINDS,
  validate: (resource) => problems(resource, read(resource).findings, "refused"),
  translate(resource): Translation {
    const { findings, objects } = read(resource);
    // A pool or node that cannot be read gives nothing.
    return findings.all.length === 0 ? { objects, problems: [] } : {
      objects: objects.flatMap((object) => object.kind === "workload" ? closedWorkload(object, keyOf(resource)) : []),
      problems: problems(resource, findings, "fail-closed"),
    };
  },
};

const keyOf = (resource: Resource): ResourceKey => {
  const kind = KINDS.find((definition) => definition.name === resource.kind)!;
  const namespace = kind.namespaced ? String(resource.metadata?.namespace ?? "default") : "";
  return { kind: kind.kind, namespace, name: String(resource.metadata?.name) };
};

function problems(resource: Resource, findings: Findings, effect: Problem["effect"]): readonly Problem[] {
  return findings.all.map(({ path, message }) => ({ subject: keyOf(resource), path, message, effect }));
}

/** Denied whatever policies say. Left out, a link that is not named as ours are would be nobody's, and open. */
function closedWorkload(workload: WorkloadObject, key: ResourceKey): readonly WorldObject[] {
  if (workload.node === "" || !INTERFACE_NAME.test(workload.interfaceName)) return [];
  const { pod: _, ...alone } = workload;
  const { labels, policy } = closedEndpoint(key);
  return [{ ...alone, labels }, policy];
}

function read(resource: Resource): Reading {
  switch (resource.kind) {
    case "WorkloadEndpoint":
      return readWorkload(resource);
    case "Node":
      return readNode(resource);
    case "IPPool":
      return readPool(resource);
    default:
      return readBlock(resource);
  }
}

const TOP_FIELDS = ["apiVersion", "kind", "metadata", "spec", "status"];

/** IFNAMSIZ, include/uapi/linux/if.h: 16 bytes with the terminator. */
const INTERFACE_NAME = /^[^\s/:]{1,15}$/;

/** projectcalico.org/v3 WorkloadEndpointSpec. */
function readWorkload(resource: Resource): Reading {
  const findings = new Findings();
  findings.fields(resource, "", TOP_FIELDS);
  const spec = findings.fields(resource.spec, "spec", [
    "orchestrator",
    "workload",
    "node",
    "containerID",
    "pod",
    "endpoint",
    "serviceAccountName",
    "ipNetworks",
    "ipNATs",
    "ipv4Gateway",
    "ipv6Gateway",
    "profiles",
    "interfaceName",
    "mac",
    "ports",
    "allowSpoofedSourcePrefixes",
    "qosControls",
  ]);
  const node = findings.text(spec.node, "spec.node") ?? "";
  if (node === "") findings.note("spec.node", spec.node, "the name of the node it is on");
  const interfaceName = findings.text(spec.interfaceName, "spec.interfaceName") ?? "";
  if (!INTERFACE_NAME.test(interfaceName)) {
    findings.note("spec.interfaceName", spec.interfaceName, "the host's link, 1 to 15 characters");
  }
  const addresses = findings.list(spec.ipNetworks, "spec.ipNetworks").map((raw, i) => {
    const path = `spec.ipNetworks[${i}]`;
    const cidr = findings.cidr(raw ?? "", path, true);
    if (cidr !== undefined && cidrPrefix(cidr) !== familyBits(cidrFamily(cidr))) {
      findings.note(path, raw, "one address: a prefix of full length");
    }
    return cidr === undefined ? undefined : cidrAddress(cidr);
  }).filter((address): address is Address => address !== undefined);
  const mac = findings.text(spec.mac, "spec.mac");
  if (mac !== undefined && !/^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$/.test(mac)) {
    findings.note("spec.mac", spec.mac, "aa:bb:cc:dd:ee:ff");
  }
  const profiles = spec.profiles === undefined || spec.profiles === null
    ? undefined
    : findings.list(spec.profiles, "spec.profiles").map((raw, i) =>
      findings.text(raw ?? 0, `spec.profiles[${i}]`) ?? ""
    );
  const ports = findings.list(spec.ports, "spec.ports").flatMap((raw, i) =>
    readPort(findings, raw, `spec.ports[${i}]`)
  );
  const pod = findings.text(spec.pod, "spec.pod");
  const serviceAccount = findings.text(spec.serviceAccountName, "spec.serviceAccountName");
  const orchestrator = findings.text(spec.orchestrator, "spec.orchestrator") ?? "cni";
  const labels = findings.labels(resource.metadata?.labels, "metadata.labels");
  const key = keyOf(resource);
  return {
    findings,
    objects: [{
      kind: "workload",
      id: keyText(key),
      node,
      namespace: key.namespace,
      interfaceName,
      addresses,
      labels,
      ports,
      orchestrator,
      ...(mac === undefined ? {} : { mac: mac.toLowerCase() }),
      ...(serviceAccount === undefined || serviceAccount === "" ? {} : { serviceAccount }),
      ...(pod === undefined || pod === "" ? {} : { pod }),
      ...(profiles === undefined ? {} : { profiles }),
    }],
  };
}

/** projectcalico.org/v3 WorkloadEndpointPort. */
function readPort(findings: Findings, raw: unknown, path: string): NamedPort[] {
  const fields = findings.fields(raw, path, ["name", "port", "protocol", "hostPort", "hostIP"]);
  const name = findings.text(fields.name, `${path}.name`) ?? "";
  const port = findings.integer(fields.port, `${path}.port`, 1, 65535) ?? 0;
  if (fields.port === undefined) findings.note(`${path}.port`, undefined, "a whole number from 1 to 65535");
  const spelled = fields.protocol ?? "TCP";
  const entry = Object.entries(PROTOCOLS).find(([protocol, number]) =>
    (typeof spelled === "string" && protocol.toUpperCase() === spelled.toUpperCase()) || number === spelled
  );
  if (entry === undefined) findings.note(`${path}.protocol`, spelled, "TCP, UDP, SCTP or UDPLite");
  return name === "" || entry === undefined ? [] : [{ name, port, protocol: entry[1] }];
}

/** core/v1 Node: status.addresses, labels. */
function readNode(resource: Resource): Reading {
  const findings = new Findings();
  findings.fields(resource, "", TOP_FIELDS);
  const labels = findings.labels(resource.metadata?.labels, "metadata.labels");
  const status = findings.fields(resource.status, "status");
  const addresses = new Set<Address>();
  for (const [i, raw] of findings.list(status.addresses, "status.addresses").entries()) {
    const path = `status.addresses[${i}]`;
    const { type, address } = findings.fields(raw, path, ["type", "address"]);
    if (type !== "InternalIP" && type !== "ExternalIP") {
      if (findings.text(type ?? 0, `${path}.type`) !== undefined) findings.text(address ?? 0, `${path}.address`);
      continue;
    }
    const parsed = findings.address(address ?? "", `${path}.address`);
    if (parsed !== undefined) addresses.add(parsed);
  }
  return { findings, objects: [{ kind: "node", id: keyOf(resource).name, addresses: [...addresses], labels }] };
}

/** Smallest and largest block sizes: projectcalico.org/v3 IPPoolSpec.blockSize. */
const BLOCK_SIZES = { 4: [20, 32], 6: [116, 128] } as const;

/** RFC 3927 and RFC 4291 section 2.5.6. */
const LINK_LOCAL = { 4: parseCidr("169.254.0.0/16"), 6: parseCidr("fe80::/10") } as const;

/** projectcalico.org/v3 IPPoolSpec. */
function readPool(resource: Resource): Reading {
  const findings = new Findings();
  findings.fields(resource, "", TOP_FIELDS);
  const spec = findings.fields(resource.spec, "spec", [
    "cidr",
    "blockSize",
    "natOutgoing",
    "disabled",
    "nodeSelector",
    "namespaceSelector",
    "ipipMode",
    "vxlanMode",
    "allowedUses",
    "disableBGPExport",
    "assignmentMode",
  ]);
  const cidr = findings.cidr(spec.cidr ?? undefined, "spec.cidr", true);
  if (spec.cidr === undefined || spec.cidr === null) findings.note("spec.cidr", spec.cidr, "an IPv4 or IPv6 prefix");
  const natOutgoing = findings.flag(spec.natOutgoing, "spec.natOutgoing") ?? false;
  findings.flag(spec.disabled, "spec.disabled");
  findings.flag(spec.disableBGPExport, "spec.disableBGPExport");
  const [least, most] = BLOCK_SIZES[cidr === undefined ? 4 : cidrFamily(cidr)];
  const blockSize = findings.integer(spec.blockSize, "spec.blockSize", least, most);
  if (cidr !== undefined && blockSize !== undefined && blockSize < cidrPrefix(cidr)) {
    findings.note("spec.blockSize", blockSize, `at least ${cidrPrefix(cidr)}, the pool's own prefix length`);
  }
  const link = cidr === undefined ? undefined : LINK_LOCAL[cidrFamily(cidr)];
  if (cidr !== undefined && cidrsOverlap(cidr, link!)) {
    findings.note("spec.cidr", spec.cidr, `addresses outside ${formatCidr(link!)}, which means the link itself`);
  }
  readPoolSelector(findings, spec.nodeSelector, "spec.nodeSelector");
  const namespaces = readPoolSelector(findings, spec.namespaceSelector, "spec.namespaceSelector");
  const uses = findings.list(spec.allowedUses, "spec.allowedUses");
  if (namespaces !== undefined && uses.length > 0 && !uses.includes("Workload")) {
    findings.note("spec.namespaceSelector", namespaces, "none where allowedUses has no Workload");
  }
  const assignment = spec.assignmentMode ?? "Automatic";
  if (assignment !== "Automatic" && assignment !== "Manual") {
    findings.note("spec.assignmentMode", assignment, "Automatic or Manual");
  }
  for (const field of ["ipipMode", "vxlanMode"] as const) {
    const mode = spec[field] ?? "Never";
    if (mode !== "Never") findings.note(`spec.${field}`, mode, "Never: this version routes and does not encapsulate");
  }
  for (const [i, use] of uses.entries()) {
    if (use !== "Workload" && use !== "Tunnel") findings.note(`spec.allowedUses[${i}]`, use, "Workload or Tunnel");
  }
  return {
    findings,
    objects: cidr === undefined ? [] : [{ kind: "pool", id: keyOf(resource).name, cidr: cidr as Cidr, natOutgoing }],
  };
}

/** A selector over labels of nodes or namespaces, which global() says nothing of; gives its text. */
function readPoolSelector(findings: Findings, raw: unknown, path: string): string | undefined {
  const text = findings.text(raw, path, "a selector");
  if (text === undefined) return undefined;
  try {
    if (mentionsGlobal(parseSelector(text))) findings.note(path, text, "a selector without global()");
  } catch (error) {
    if (!(error instanceof SelectorSyntaxError)) throw error;
    findings.all.push({ path, message: error.message });
  }
  return text;
}

/** Written by `ipam/block`: spec.cidr, spec.node. */
function readBlock(resource: Resource): Reading {
  const findings = new Findings();
  const spec = findings.fields(resource.spec, "spec");
  const cidr = findings.cidr(spec.cidr ?? "", "spec.cidr", true);
  const node = findings.text(spec.node, "spec.node");
  return {
    findings,
    objects: cidr === undefined || node === undefined || node === ""
      ? []
      : [{ kind: "block", id: keyOf(resource).name, cidr, node }],
  };
}

/** An address as `ipNetworks` spells it. */
export const hostPrefixText = (address: Address, text: string): string =>
  `${text}/${familyBits(addressFamily(address))}`;

/** The pool's prefix, where it can be read. */
export function poolCidr(resource: Resource): Cidr | undefined {
  const cidr = (resource.spec as { cidr?: unknown } | undefined)?.cidr;
  try {
    return typeof cidr === "string" ? parseCidr(cidr) : undefined;
  } catch {
    return undefined;
  }
}
