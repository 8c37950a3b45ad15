import { parseAddress } from "../../../src/model/address.ts";
import { portNameFault } from "../../../src/model/kubernetes_names.ts";
import { PROTOCOLS } from "../../../src/model/ports.ts";
import type { NamedPort } from "../../../src/model/ports.ts";
import { closedEndpoint } from "../../../src/sdk/fail_closed.ts";
import type { KindReader } from "../../../src/sdk/kind_reader.ts";
import { readMetadata } from "../../../src/sdk/object_metadata.ts";
import type { Field } from "../../../src/sdk/validation.ts";

/** core/v1 Pod; of `spec` and `status` only what names, places and addresses it. */
export const pod: KindReader = {
  definition: {
    kind: "Pod",
    name: "Pod",
    plural: "pods",
    shortNames: ["po"],
    apiVersions: ["v1"],
    namespaced: true,
  },
  read(root, key) {
    root.object(["apiVersion", "kind", "metadata", "spec", "status"]);
    const labels = readMetadata(root, { namespaced: true });
    const spec = root.at("spec").openObject(), status = root.at("status").openObject();
    const hostNetwork = spec.at("hostNetwork").flag() ?? false;
    const phase = status.at("phase").text();
    const serviceAccount = spec.at("serviceAccountName").text() ?? spec.at("serviceAccount").text();
    const node = spec.at("nodeName").text();
    const ports = readPorts(spec);
    const addresses = readAddresses(status);
    const object = {
      kind: "pod",
      id: `${key.namespace}/${key.name}`,
      namespace: key.namespace,
      name: key.name,
      serviceAccount: serviceAccount || "default",
      ports,
      addresses: hostNetwork || phase === "Succeeded" || phase === "Failed" ? [] : addresses,
      ...(node === undefined || node === "" ? {} : { node }),
    } as const;
    if (root.findings.count === 0) return [{ ...object, labels }];
    const closed = closedEndpoint(key);
    return [{ ...object, labels: closed.labels }, closed.policy];
  },
};

/** Named ports of containers and of init containers that go on running. */
function readPorts(spec: Field): readonly NamedPort[] {
  const containers = spec.at("containers").items();
  const sidecars = spec.at("initContainers").items().filter((item) => item.at("restartPolicy").value === "Always");
  return [...containers, ...sidecars].flatMap((item) => item.required("a container").openObject().at("ports").items())
    .flatMap((item) => {
      const entry = item.required("a port").object(["name", "containerPort", "protocol", "hostPort", "hostIP"]);
      const name = entry.at("name").name((text) => text === "" ? undefined : portNameFault(text));
      const protocol = entry.at("protocol").oneOf(["TCP", "UDP", "SCTP"]) ?? "TCP";
      const port = entry.at("containerPort").required("a port number").integer(1, 65535);
      return name === undefined || name === "" || port === undefined
        ? []
        : [{ name, protocol: PROTOCOLS[protocol], port }];
    });
}

/** status.podIPs, and status.podIP where an older writer gave that alone. */
function readAddresses(status: Field) {
  const wanted = "an IPv4 or IPv6 address";
  const list = status.at("podIPs").items().map((item) => item.openObject().at("ip"));
  const first = status.at("podIP");
  const fields = list.length > 0 ? list : first.given && first.value !== "" ? [first] : [];
  return [...new Set(fields.flatMap((field) => field.required(wanted).parsed(wanted, parseAddress) ?? []))];
}
