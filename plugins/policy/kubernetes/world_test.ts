/** The kinds that describe the world: what endpoints, namespaces and services they stand for. */
import { expect, test } from "bun:test";
import { parse } from "yaml";
import { formatAddress, formatCidr } from "../../../src/model/address.ts";
import type { Resource } from "../../../src/model/resource.ts";
import { formatPolicy } from "../../../src/model/rule_format.ts";
import type { WorldObject } from "../../../src/model/world.ts";
import { kubernetesSource } from "./mod.ts";

const read = (text: string): Resource => parse(text);

/** Addresses and labels as people read them. */
function plain(object: WorldObject | undefined): unknown {
  if (object?.kind === "policy") return formatPolicy(object);
  return JSON.parse(JSON.stringify(object, (key, value) => {
    if (value instanceof Map) return Object.fromEntries(value);
    if (/ddresses$/.test(key)) return value.map(formatAddress);
    if (key === "sourceRanges") return value.map(formatCidr);
    return key === "address" ? formatAddress(value) : value;
  }));
}

function only(text: string): unknown {
  const { objects, problems } = kubernetesSource.translate(read(text));
  expect(problems).toEqual([]);
  expect(kubernetesSource.validate(read(text))).toEqual([]);
  expect(objects.length).toBe(1);
  return plain(objects[0]);
}

test("a namespace has its labels and its name among them", () => {
  expect(
    only(
      "{ apiVersion: v1, kind: Namespace, metadata: { name: a, labels: { t: x } }, spec: { finalizers: [kubernetes] } }",
    ),
  )
    .toEqual({
      kind: "namespace",
      id: "a",
      labels: { t: "x", "kubernetes.io/metadata.name": "a", "projectcalico.org/name": "a" },
    });
});

test("a service account has its labels and its name among them", () => {
  expect(only("{ apiVersion: v1, kind: ServiceAccount, metadata: { name: sa, namespace: a, labels: { t: x } } }"))
    .toEqual({
      kind: "serviceAccount",
      id: "a/sa",
      namespace: "a",
      name: "sa",
      labels: { t: "x", "projectcalico.org/name": "sa" },
    });
});

test("what cannot be read of a namespace or a service account denies all that is in it or runs as it", () => {
  const texts = (text: string) => kubernetesSource.translate(read(text)).objects.map(plain);
  const deny = (id: string, selects: string) =>
    `policy ${id} tier kube-admin order ${-Number.MAX_VALUE} forward selects ${selects}\n  ingress deny\n  egress deny`;
  expect(texts("{ apiVersion: v1, kind: Namespace, metadata: { name: a, labels: { t: x, u: 1 } } }")).toEqual([
    expect.objectContaining({ labels: expect.objectContaining({ t: "x" }) }),
    deny("Namespace//a", 'projectcalico.org/namespace == "a"'),
  ]);
  expect(texts("{ apiVersion: v1, kind: ServiceAccount, metadata: { name: sa, namespace: a, labels: all } }")).toEqual([
    expect.objectContaining({ id: "a/sa" }),
    deny(
      "ServiceAccount/a/sa",
      '(projectcalico.org/namespace == "a" && projectcalico.org/serviceaccount == "sa")',
    ),
  ]);
  // Not where there is nothing to read from it: others may add to what it says.
  expect(texts("{ apiVersion: v1, kind: Namespace, metadata: { name: a }, spec: { unknown: 1 } }").length).toBe(1);
});

const POD = `
apiVersion: v1
kind: Pod
metadata: { name: p, namespace: a, labels: { app: w } }
spec:
  nodeName: n1
  serviceAccountName: robot
  containers:
  - { name: c, image: i, ports: [{ name: http, containerPort: 8080 }, { containerPort: 9 }, { name: dns, containerPort: 53, protocol: UDP }] }
  initContainers:
  - { name: once, ports: [{ name: no, containerPort: 1 }] }
  - { name: sidecar, restartPolicy: Always, ports: [{ name: mesh, containerPort: 15000 }] }
status: { phase: Running, podIP: 10.0.0.1, podIPs: [{ ip: 10.0.0.1 }, { ip: "fd00::1" }] }
`;

test("a pod has its own labels, its named ports, its account and its addresses", () => {
  expect(only(POD)).toEqual({
    kind: "pod",
    id: "a/p",
    namespace: "a",
    name: "p",
    labels: { app: "w" },
    serviceAccount: "robot",
    node: "n1",
    ports: [
      { name: "http", protocol: 6, port: 8080 },
      { name: "dns", protocol: 17, port: 53 },
      { name: "mesh", protocol: 6, port: 15000 },
    ],
    addresses: ["10.0.0.1", "fd00::1"],
  });
});

test.each([
  ["on the host's network", "  nodeName: n1", "  nodeName: n1\n  hostNetwork: true"],
  ["that has finished", "phase: Running", "phase: Succeeded"],
  ["that has failed", "phase: Running", "phase: Failed"],
])("a pod %s has no addresses of its own", (_, from, to) => {
  expect(POD).toContain(from);
  expect(only(POD.replace(from, to))).toHaveProperty("addresses", []);
});

test("a pod that is labels alone runs as the default account and has no address yet", () => {
  expect(only("{ apiVersion: v1, kind: Pod, metadata: { name: p, labels: { a: b } } }")).toEqual({
    kind: "pod",
    id: "default/p",
    namespace: "default",
    name: "p",
    labels: { a: "b" },
    serviceAccount: "default",
    ports: [],
    addresses: [],
  });
});

test("a pod whose labels cannot be read is denied both ways, and nothing else is", () => {
  const { objects, problems } = kubernetesSource.translate(read(POD.replace("app: w", "app: 1")));
  expect(problems.map(({ path, effect }) => [path, effect])).toEqual([["metadata.labels.app", "fail-closed"]]);
  expect(plain(objects[0])).toMatchObject({ kind: "pod", id: "a/p", labels: { "manx/unreadable": "Pod/a/p" } });
  expect(plain(objects[1])).toBe(
    `policy Pod/a/p tier kube-admin order ${-Number
      .MAX_VALUE} forward selects manx/unreadable == "Pod/a/p"\n  ingress deny\n  egress deny`,
  );
});

test("a service has its addresses, ports and traffic policies", () => {
  expect(only(`
apiVersion: v1
kind: Service
metadata: { name: web, namespace: a }
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00:96::1"]
  externalIPs: [192.0.2.1]
  selector: { app: web }
  sessionAffinity: ClientIP
  externalTrafficPolicy: Local
  healthCheckNodePort: 30001
  ports: [{ name: http, port: 80, targetPort: http, nodePort: 30080 }, { name: dns, port: 53, protocol: UDP }]
status: { loadBalancer: { ingress: [{ ip: 192.0.2.9 }, { ip: 192.0.2.10, ipMode: Proxy }] } }
`)).toEqual({
    kind: "service",
    id: "a/web",
    namespace: "a",
    name: "web",
    clusterAddresses: ["10.96.0.1", "fd00:96::1"],
    externalAddresses: ["192.0.2.1"],
    loadBalancerAddresses: ["192.0.2.9"],
    ports: [{ name: "http", protocol: 6, port: 80, nodePort: 30080 }, { name: "dns", protocol: 17, port: 53 }],
    affinitySeconds: 10800,
    internalLocal: false,
    externalLocal: true,
    healthCheckNodePort: 30001,
  });
});

test("a headless service has no address, one for an external name is none at all", () => {
  expect(
    only("{ apiVersion: v1, kind: Service, metadata: { name: h }, spec: { clusterIP: None, ports: [{ port: 80 }] } }"),
  )
    .toMatchObject({ id: "default/h", clusterAddresses: [] });
  const external = read(
    "{ apiVersion: v1, kind: Service, metadata: { name: e }, spec: { type: ExternalName, externalName: example.org } }",
  );
  expect(kubernetesSource.translate(external)).toEqual({ objects: [], problems: [] });
});

const LOAD_BALANCER = `
apiVersion: v1
kind: Service
metadata: { name: web, namespace: a, creationTimestamp: "2026-01-02T03:04:05Z" }
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  loadBalancerSourceRanges: [" 203.0.113.0/24 ", "2001:db8::1/32"]
  externalTrafficPolicy: Local
  healthCheckNodePort: 30001
  ports: [{ port: 80 }]
`;

test("a service says when it was made and who may use its load balancer", () => {
  expect(only(LOAD_BALANCER)).toMatchObject({
    createdMs: Date.UTC(2026, 0, 2, 3, 4, 5),
    sourceRanges: ["203.0.113.0/24", "2001:db8::/32"],
    healthCheckNodePort: 30001,
  });
  const bad = kubernetesSource.validate(read(LOAD_BALANCER.replace("2001:db8::1/32", "all")));
  expect(bad.map(({ path }) => path)).toEqual(["spec.loadBalancerSourceRanges[1]"]);
});

test.each([
  ["type: LoadBalancer", "type: NodePort"],
  ["externalTrafficPolicy: Local", "externalTrafficPolicy: Cluster"],
  ["healthCheckNodePort: 30001", "healthCheckNodePort: 0"],
])("only a load balancer for local endpoints is checked: %s → %s", (from, to) => {
  expect(LOAD_BALANCER).toContain(from);
  expect(only(LOAD_BALANCER.replace(from, to))).not.toHaveProperty("healthCheckNodePort");
});

test("labels say that a service is headless, or that another proxy forwards for it", () => {
  const labelled = (label: string) => only(LOAD_BALANCER.replace("name: web", `labels: { ${label} }, name: web`));
  expect(labelled('service.kubernetes.io/headless: ""')).toMatchObject({ clusterAddresses: [] });
  expect(labelled("service.kubernetes.io/service-proxy-name: other")).toMatchObject({ proxiedElsewhere: true });
  expect(labelled("a: b")).not.toHaveProperty("proxiedElsewhere");
});

const SLICE = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-1, namespace: a, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [{ name: http, port: 8080 }]
endpoints:
- { addresses: [10.0.0.1], nodeName: n1 }
- { addresses: [10.0.0.2], conditions: { ready: false, serving: true, terminating: true } }
`;

test("an endpoint slice gives its service backends; unknown readiness is readiness", () => {
  expect(only(SLICE)).toEqual({
    kind: "serviceBackends",
    id: "EndpointSlice.discovery.k8s.io/a/web-1",
    service: "a/web",
    family: 4,
    ports: [{ name: "http", protocol: 6, port: 8080 }],
    backends: [
      { address: "10.0.0.1", node: "n1", ready: true, serving: true, terminating: false },
      { address: "10.0.0.2", ready: false, serving: true, terminating: true },
    ],
  });
});

test("hints of an endpoint are the zones and nodes that it is meant for", () => {
  const hinted = (hints: string) =>
    kubernetesSource.translate(read(SLICE.replace("nodeName: n1", `nodeName: n1, zone: far, hints: ${hints}`)));
  const { objects, problems } = hinted("{ forZones: [{ name: east }, { name: west }], forNodes: [{ name: n1 }] }");
  expect(problems).toEqual([]);
  expect(plain(objects[0])).toMatchObject({ backends: [{ forZones: ["east", "west"], forNodes: ["n1"] }, {}] });
  expect(plain(hinted("{ forZones: [] }").objects[0])).toEqual(
    plain(kubernetesSource.translate(read(SLICE)).objects[0]),
  );
  expect(hinted("{ forZones: [{ zone: east }] }").problems.map(({ path }) => path)).toEqual([
    "endpoints[0].hints.forZones[0].zone",
    "endpoints[0].hints.forZones[0].name",
  ]);
});

test.each([
  ["of no service", "kubernetes.io/service-name: web", "other: web", undefined],
  ["of names", "addressType: IPv4", "addressType: FQDN", undefined],
  ["of two families", "[10.0.0.2]", '["fd00::2"]', "endpoints[1].addresses[0]"],
  ["without a type", "addressType: IPv4", "", "addressType"],
])("an endpoint slice %s gives no backends", (_, from, to, path) => {
  expect(SLICE).toContain(from);
  const { objects, problems } = kubernetesSource.translate(read(SLICE.replace(from, to)));
  expect(objects).toEqual([]);
  expect(problems.map((problem) => problem.path)).toEqual(path === undefined ? [] : [path]);
});

test.each([
  ["{ apiVersion: v1, kind: Namespace, metadata: { name: Shop } }", "metadata.name"],
  ["{ apiVersion: v1, kind: Namespace, metadata: { name: a, namespace: b } }", "metadata.namespace"],
  ["{ apiVersion: v1, kind: Namespace, metadata: { name: a, label: {} } }", "metadata.label"],
  ["{ apiVersion: v1, kind: Namespace, metadata: { name: a, labels: { -x: y } } }", 'metadata.labels["-x"]'],
  ["{ apiVersion: v1, kind: Namespace }", "metadata"],
  ["{ apiVersion: v1, kind: Namespace, metadata: {} }", "metadata.name"],
  [
    "{ apiVersion: v1, kind: Pod, metadata: { name: a }, spec: { containers: [{ ports: [{ containerPort: 0 }] }] } }",
    "spec.containers[0].ports[0].containerPort",
  ],
  [
    "{ apiVersion: v1, kind: Pod, metadata: { name: a }, status: { podIPs: [{ ip: 10.0.0.256 }] } }",
    "status.podIPs[0].ip",
  ],
  [
    "{ apiVersion: v1, kind: Service, metadata: { name: a }, spec: { ports: [{ port: 80, protocl: TCP }] } }",
    "spec.ports[0].protocl",
  ],
  ["{ apiVersion: v1, kind: Secret, metadata: { name: a } }", "kind"],
])("%s is refused at %s", (text, path) => {
  expect(kubernetesSource.validate(read(text)).map((problem) => problem.path)).toEqual([path]);
});
