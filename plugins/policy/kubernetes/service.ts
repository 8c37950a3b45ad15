import { addressFamily, parseAddress, parseCidr } from "../../../src/model/address.ts";
import type { Address } from "../../../src/model/address.ts";
import { dnsLabelFault } from "../../../src/model/kubernetes_names.ts";
import { PROTOCOLS } from "../../../src/model/ports.ts";
import { keyText } from "../../../src/model/resource.ts";
import type { ServicePort } from "../../../src/model/world.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readMetadata } from "../../../src/sdk/object_metadata.ts";
import type { Field } from "../../../src/sdk/validation.ts";

const ADDRESS = "an IPv4 or IPv6 address";
const RANGE = "a prefix such as 10.0.0.0/8 or fd00::/64";
const SERVICE_NAME_LABEL = "kubernetes.io/service-name";
/** core/v1 well-known labels: who forwards for the service is not the node's usual proxy; it is headless whatever its spec says. */
const PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name";
const HEADLESS_LABEL = "service.kubernetes.io/headless";
/** core/v1 ClientIPConfig.timeoutSeconds: what it is where not given, and at most. */
const AFFINITY_DEFAULT_SECONDS = 10_800;
const AFFINITY_LIMIT_SECONDS = 86_400;
/** discovery/v1 EndpointSlice. */
const SLICE_ENDPOINTS_LIMIT = 1000;
const SLICE_ADDRESSES_LIMIT = 100;
const SLICE_PORTS_LIMIT = 20_000;
/** discovery/v1 EndpointHints, as the API server validates it: maxZoneHints, maxNodeHints. */
const HINTS_LIMIT = 8;

const SERVICE_FIELDS = [
  "type",
  "clusterIP",
  "clusterIPs",
  "externalIPs",
  "externalName",
  "externalTrafficPolicy",
  "internalTrafficPolicy",
  "healthCheckNodePort",
  "ipFamilies",
  "ipFamilyPolicy",
  "allocateLoadBalancerNodePorts",
  "loadBalancerClass",
  "loadBalancerIP",
  "loadBalancerSourceRanges",
  "ports",
  "publishNotReadyAddresses",
  "selector",
  "sessionAffinity",
  "sessionAffinityConfig",
  "trafficDistribution",
];

/** core/v1 Service. */
export const service: KindReader = {
  definition: {
    kind: "Service",
    name: "Service",
    plural: "services",
    shortNames: ["svc"],
    apiVersions: ["v1"],
    namespaced: true,
  },
  read(root, key) {
    root.object(["apiVersion", "kind", "metadata", "spec", "status"]);
    const labels = readMetadata(root, { namespaced: true, nameFault: dnsLabelFault });
    // Of the API server; one that cannot be read says nothing.
    const createdMs = Date.parse(String(root.at("metadata").at("creationTimestamp").value));
    const spec = root.at("spec").object(SERVICE_FIELDS);
    const type = spec.at("type").oneOf(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]) ?? "ClusterIP";
    const list = spec.at("clusterIPs").items();
    const cluster = list.length > 0 ? list : [spec.at("clusterIP")];
    const clusterAddresses = addressesOf(cluster.filter((field) => field.value !== "None" && field.value !== ""));
    const externalAddresses = addressesOf(spec.at("externalIPs").items());
    const loadBalancerAddresses = addressesOf(
      root.at("status").openObject().at("loadBalancer").openObject().at("ingress").items()
        // core/v1 LoadBalancerIngress.ipMode: packets for a Proxy address must go out to it.
        .filter((item) => item.at("ipMode").value !== "Proxy").map((item) => item.openObject().at("ip")),
    );
    const sourceRanges = spec.at("loadBalancerSourceRanges").items().flatMap((item) =>
      // The API takes them with white space around.
      item.parsed(RANGE, (text) => parseCidr(text.trim())) ?? []
    );
    const ports = spec.at("ports").items().flatMap(readServicePort);
    const affinity = spec.at("sessionAffinity").oneOf(["None", "ClientIP"]);
    const seconds = spec.at("sessionAffinityConfig").object(["clientIP"]).at("clientIP").object(["timeoutSeconds"])
      .at("timeoutSeconds").integer(1, AFFINITY_LIMIT_SECONDS);
    const internal = spec.at("internalTrafficPolicy").oneOf(["Cluster", "Local"]);
    const external = spec.at("externalTrafficPolicy").oneOf(["Cluster", "Local"]);
    const healthCheckNodePort = spec.at("healthCheckNodePort").integer(0, 65535);
    const isChecked = type === "LoadBalancer" && external === "Local" && healthCheckNodePort;
    if (root.findings.count > 0 || type === "ExternalName") return [];
    return [{
      kind: "service",
      id: `${key.namespace}/${key.name}`,
      namespace: key.namespace,
      name: key.name,
      ...(Number.isNaN(createdMs) ? {} : { createdMs }),
      ...(labels.has(PROXY_NAME_LABEL) ? { proxiedElsewhere: true } : {}),
      clusterAddresses: labels.has(HEADLESS_LABEL) ? [] : clusterAddresses,
      externalAddresses,
      loadBalancerAddresses: type === "LoadBalancer" ? loadBalancerAddresses : [],
      ...(sourceRanges.length > 0 ? { sourceRanges } : {}),
      ports,
      ...(affinity === "ClientIP" ? { affinitySeconds: seconds ?? AFFINITY_DEFAULT_SECONDS } : {}),
      internalLocal: internal === "Local",
      externalLocal: external === "Local",
      ...(isChecked ? { healthCheckNodePort } : {}),
    }];
  },
};

function readServicePort(item: Field): readonly ServicePort[] {
  const entry = item.required("a port").object(["name", "protocol", "appProtocol", "port", "targetPort", "nodePort"]);
  const name = entry.at("name").name((text) => text === "" ? undefined : dnsLabelFault(text)) ?? "";
  const protocol = entry.at("protocol").oneOf(["TCP", "UDP", "SCTP"]) ?? "TCP";
  const port = entry.at("port").required("a port number").integer(1, 65535);
  const nodePort = entry.at("nodePort").integer(0, 65535);
  return port === undefined ? [] : [{ name, protocol: PROTOCOLS[protocol], port, ...(nodePort ? { nodePort } : {}) }];
}

/** discovery.k8s.io/v1 EndpointSlice. */
export const endpointSlice: KindReader = {
  definition: {
    kind: "EndpointSlice.discovery.k8s.io",
    name: "EndpointSlice",
    plural: "endpointslices",
    shortNames: [],
    apiVersions: ["discovery.k8s.io/v1"],
    namespaced: true,
  },
  read(root, key) {
    root.object(["apiVersion", "kind", "metadata", "addressType", "endpoints", "ports"]);
    const serviceName = readMetadata(root, { namespaced: true }).get(SERVICE_NAME_LABEL);
    const type = root.at("addressType").required("IPv4 or IPv6").oneOf(["IPv4", "IPv6", "FQDN"]);
    const family = type === "IPv6" ? 6 : 4;
    const backends = root.at("endpoints").items(SLICE_ENDPOINTS_LIMIT).flatMap((item) => {
      const endpoint = item.required("an endpoint").object([
        "addresses",
        "conditions",
        "hostname",
        "targetRef",
        "deprecatedTopology",
        "nodeName",
        "zone",
        "hints",
      ]);
      const fields = endpoint.at("addresses").required("at least one address").items(SLICE_ADDRESSES_LIMIT);
      const conditions = endpoint.at("conditions").object(["ready", "serving", "terminating"]);
      // discovery/v1 EndpointConditions: unknown readiness is readiness, and `serving` follows it.
      const ready = conditions.at("ready").flag() ?? true;
      const serving = conditions.at("serving").flag() ?? ready;
      const terminating = conditions.at("terminating").flag() ?? false;
      const node = endpoint.at("nodeName").text();
      const hints = endpoint.at("hints").object(["forZones", "forNodes"]);
      const forZones = readHints(hints.at("forZones")), forNodes = readHints(hints.at("forNodes"));
      if (type === "FQDN") return [];
      return addressesOf(fields, type).map((address) => ({
        address,
        ...(node === undefined ? {} : { node }),
        ready,
        serving,
        terminating,
        ...(forZones.length > 0 ? { forZones } : {}),
        ...(forNodes.length > 0 ? { forNodes } : {}),
      }));
    });
    const ports = root.at("ports").items(SLICE_PORTS_LIMIT).flatMap((item) => {
      const entry = item.required("a port").object(["name", "protocol", "port", "appProtocol"]);
      const name = entry.at("name").name((text) => text === "" ? undefined : dnsLabelFault(text)) ?? "";
      const protocol = entry.at("protocol").oneOf(["TCP", "UDP", "SCTP"]) ?? "TCP";
      const port = entry.at("port").integer(1, 65535);
      return port === undefined ? [] : [{ name, protocol: PROTOCOLS[protocol], port }];
    });
    if (root.findings.count > 0 || serviceName === undefined || type === "FQDN") return [];
    return [{
      kind: "serviceBackends",
      id: keyText(key),
      service: `${key.namespace}/${serviceName}`,
      family,
      ports,
      backends,
    }];
  },
};

/** discovery/v1 ForZone, ForNode. */
function readHints(field: Field): readonly string[] {
  return field.items(HINTS_LIMIT).flatMap((item) =>
    item.required("a hint").object(["name"]).at("name").required("a name").text() ?? []
  );
}

/** The given addresses, each once; of one family where `type` says so. */
function addressesOf(fields: readonly Field[], type?: "IPv4" | "IPv6"): readonly Address[] {
  return [
    ...new Set(fields.flatMap((field) => {
      const address = field.value === "" ? undefined : field.parsed(ADDRESS, parseAddress);
      if (address === undefined) return [];
      if (type === undefined || addressFamily(address) === (type === "IPv4" ? 4 : 6)) return [address];
      return field.refuse(`an ${type} address`) ?? [];
    })),
  ];
}
