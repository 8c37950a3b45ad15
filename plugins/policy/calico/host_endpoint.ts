import { parseAddress } from "../../../src/model/address.ts";
import { dnsSubdomainFault, portNameFault } from "../../../src/model/kubernetes_names.ts";
import { hasPorts } from "../../../src/model/ports.ts";
import type { NamedPort } from "../../../src/model/ports.ts";
import { closedEndpoint } from "../../../src/sdk/fail_closed.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readMetadata } from "../../../src/sdk/object_metadata.ts";
import type { Field } from "../../../src/sdk/validation.ts";
import { CALICO_VERSIONS, TOP_FIELDS } from "./kinds.ts";
import { readProtocol } from "./rule.ts";

/** projectcalico.org/v3 HostEndpoint. */
export const hostEndpoint: KindReader = {
  definition: {
    kind: "HostEndpoint.projectcalico.org",
    name: "HostEndpoint",
    plural: "hostendpoints",
    shortNames: ["hep", "heps"],
    apiVersions: CALICO_VERSIONS,
    namespaced: false,
  },
  read(root, key) {
    root.object(TOP_FIELDS);
    const metadata = root.findings.attempt(() => readMetadata(root, { namespaced: false }));
    // Other faults leave it its labels: policies that select it hold.
    const closed = metadata === undefined ? closedEndpoint(key) : undefined;
    const spec = root.at("spec").object(["node", "interfaceName", "expectedIPs", "profiles", "ports"]);
    const node = spec.at("node").name((text) => text === "" ? undefined : dnsSubdomainFault(text));
    if (!spec.at("node").value) spec.at("node").refuse("the name of a node");
    const name = spec.at("interfaceName").name((text) =>
      text === "" || text === "*" || /^[a-zA-Z0-9_.-]{1,15}$/.test(text)
        ? undefined
        : "the name of an interface, at most 15 characters, or * for all of them"
    );
    const wanted = "an IPv4 or IPv6 address";
    const expectedAddresses = eachOnce(spec.at("expectedIPs")).flatMap((item) =>
      item.required(wanted).parsed(wanted, parseAddress) ?? []
    );
    const hasExpected = spec.at("expectedIPs").items().length > 0;
    if (!spec.at("interfaceName").value && !hasExpected) {
      spec.at("interfaceName").refuse("the name of an interface, *, or expectedIPs beside none");
    }
    const profiles = eachOnce(spec.at("profiles")).flatMap((item) =>
      item.required("a profile's name").name(dnsSubdomainFault) ?? []
    );
    const ports = spec.at("ports").items().flatMap(readPort);
    if (node === undefined || node === "") return [];
    // Where neither interface nor addresses could be read, it is all interfaces: some were to be protected.
    const interfaceName = name || (expectedAddresses.length === 0 ? "*" : undefined);
    return [{
      kind: "hostEndpoint",
      id: key.name,
      node,
      ...(interfaceName === undefined ? {} : { interfaceName }),
      expectedAddresses,
      labels: closed?.labels ?? metadata!,
      ports,
      // With faults no profile opens it.
      profiles: root.findings.count > 0 ? [] : profiles,
    }, ...(closed === undefined ? [] : [closed.policy])];
  },
};

/** The members of a list that the API keeps as a set. */
function eachOnce(list: Field): readonly Field[] {
  const seen = new Set<unknown>();
  for (const item of list.items()) if (seen.size === seen.add(item.value).size) item.refuse("each one once");
  return list.items();
}

/** projectcalico.org/v3 EndpointPort. */
function readPort(item: Field): readonly NamedPort[] {
  const entry = item.required("a port").object(["name", "protocol", "port"]);
  if (!item.given) return [];
  const name = entry.at("name").required("the port's name").name(portNameFault);
  const protocol = readProtocol(entry.at("protocol").required("TCP, UDP, SCTP or UDPLite"));
  if (protocol !== undefined && !hasPorts(protocol)) entry.at("protocol").refuse("TCP, UDP, SCTP or UDPLite");
  const port = entry.at("port").required("a port number").integer(1, 65535);
  return name === undefined || protocol === undefined || port === undefined ? [] : [{ name, protocol, port }];
}
