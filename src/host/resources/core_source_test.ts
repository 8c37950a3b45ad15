import { expect, test } from "bun:test";
import type { Resource } from "../../model/resource.ts";
import { type Address, type Cidr, formatAddress, formatCidr } from "../../model/address.ts";
import type { WorkloadObject } from "../../model/world.ts";
import { coreSource } from "./core_source.ts";

const resource = (kind: string, spec: unknown, more: object = {}): Resource =>
  ({
    apiVersion: "projectcalico.org/v3",
    kind,
    metadata: { name: "x", namespace: "prod", labels: { app: "web" } },
    spec,
    ...more,
  }) as Resource;

test("an endpoint becomes a workload", () => {
  const { objects, problems } = coreSource.translate(resource("WorkloadEndpoint", {
    node: "kube-01",
    interfaceName: "mx0",
    ipNetworks: ["10.0.0.1/32", "fd00::1/128"],
    mac: "02:AA:00:00:00:01",
    pod: "web-1",
    orchestrator: "k8s",
    serviceAccountName: "sa",
    profiles: ["kns.prod"],
    ports: [{ name: "http", port: 80 }, { name: "dns", port: 53, protocol: "UDP" }],
  }));
  expect(problems).toEqual([]);
  expect(objects).toMatchObject([{
    kind: "workload",
    id: "WorkloadEndpoint.projectcalico.org/prod/x",
    node: "kube-01",
    namespace: "prod",
    interfaceName: "mx0",
    mac: "02:aa:00:00:00:01",
    pod: "web-1",
    serviceAccount: "sa",
    profiles: ["kns.prod"],
    orchestrator: "k8s",
    ports: [{ name: "http", port: 80, protocol: 6 }, { name: "dns", port: 53, protocol: 17 }],
  }]);
  const [workload] = objects as unknown as { addresses: Address[]; labels: Map<string, string> }[];
  expect(workload!.addresses.map(formatAddress)).toEqual(["10.0.0.1", "fd00::1"]);
  expect([...workload!.labels]).toEqual([["app", "web"]]);
});

test("a node has its internal and external addresses, each once", () => {
  const addresses = [["Hostname", "kube-01"], ["InternalIP", "192.0.2.1"], ["ExternalIP", "203.0.113.1"], [
    "InternalIP",
    "192.0.2.1",
  ]].map(([type, address]) => ({ type, address }));
  const { objects } = coreSource.translate(resource("Node", undefined, { status: { addresses, capacity: {} } }));
  expect((objects[0] as unknown as { addresses: Address[] }).addresses.map(formatAddress)).toEqual([
    "192.0.2.1",
    "203.0.113.1",
  ]);
});

test("pools and blocks keep their prefix", () => {
  const [pool] = coreSource.translate(resource("IPPool", { cidr: "10.0.0.0/16", natOutgoing: true }))
    .objects as unknown as { cidr: Cidr; natOutgoing: boolean }[];
  expect([formatCidr(pool!.cidr), pool!.natOutgoing]).toEqual(["10.0.0.0/16", true]);
  expect(coreSource.translate(resource("IPAMBlock", { cidr: "10.0.1.0/26", node: "a", leases: [] })).objects)
    .toMatchObject([{ kind: "block", node: "a" }]);
});

const faults: readonly [string, Resource, string, string][] = [
  [
    "an endpoint without a node",
    resource("WorkloadEndpoint", { interfaceName: "mx0" }),
    "spec.node",
    "found nothing, wanted the name of the node",
  ],
  [
    "an endpoint without an interface",
    resource("WorkloadEndpoint", { node: "a" }),
    "spec.interfaceName",
    "found nothing, wanted the host's link",
  ],
  [
    "an interface name too long",
    resource("WorkloadEndpoint", { node: "a", interfaceName: "x".repeat(16) }),
    "spec.interfaceName",
    "wanted the host's link, 1 to 15 characters",
  ],
  [
    "a prefix as an endpoint's address",
    resource("WorkloadEndpoint", { node: "a", interfaceName: "mx0", ipNetworks: ["10.0.0.0/24"] }),
    "spec.ipNetworks[0]",
    "wanted one address",
  ],
  [
    "a bad MAC",
    resource("WorkloadEndpoint", { node: "a", interfaceName: "mx0", mac: "x" }),
    "spec.mac",
    'found "x", wanted aa:bb:cc:dd:ee:ff',
  ],
  [
    "a port without a number",
    resource("WorkloadEndpoint", { node: "a", interfaceName: "mx0", ports: [{ name: "http" }] }),
    "spec.ports[0].port",
    "wanted a whole number from 1 to 65535",
  ],
  [
    "an unknown protocol",
    resource("WorkloadEndpoint", { node: "a", interfaceName: "mx0", ports: [{ name: "h", port: 1, protocol: "GRE" }] }),
    "spec.ports[0].protocol",
    "wanted TCP, UDP, SCTP or UDPLite",
  ],
  [
    "an unknown field",
    resource("WorkloadEndpoint", { node: "a", interfaceName: "mx0", iface: 1 }),
    "spec.iface",
    "found an unknown field",
  ],
  ["a spec that is text", resource("IPPool", "x"), "spec", 'found "x", wanted a mapping'],
  ["a pool without a prefix", resource("IPPool", {}), "spec.cidr", "found nothing, wanted an IPv4 or IPv6 prefix"],
  [
    "a block larger than its pool",
    resource("IPPool", { cidr: "10.0.0.0/28", blockSize: 26 }),
    "spec.blockSize",
    "found 26, wanted at least 28",
  ],
  [
    "a v6 block size for v4",
    resource("IPPool", { cidr: "10.0.0.0/16", blockSize: 122 }),
    "spec.blockSize",
    "wanted a whole number from 20 to 32",
  ],
  [
    "a bad node selector",
    resource("IPPool", { cidr: "10.0.0.0/16", nodeSelector: "a ==" }),
    "spec.nodeSelector",
    "selector, character",
  ],
  [
    "an encapsulation",
    resource("IPPool", { cidr: "10.0.0.0/16", ipipMode: "Always" }),
    "spec.ipipMode",
    'found "Always", wanted Never',
  ],
  [
    "a node's bad address",
    resource("Node", undefined, { status: { addresses: [{ type: "InternalIP", address: "x" }] } }),
    "status.addresses[0].address",
    "wanted an IPv4 or IPv6 address",
  ],
];
for (const [subject, value, path, message] of faults) {
  const closed = value.kind === "WorkloadEndpoint" && !/^spec\.(node|interfaceName)$/.test(path);
  const met = closed ? "denies its link" : "gives nothing";
  test(`${subject} is refused at its field, and ${met} when it is met`, () => {
    expect(coreSource.validate(value)).toContainEqual(
      expect.objectContaining({ path, message: expect.stringContaining(message), effect: "refused" }),
    );
    const { objects, problems } = coreSource.translate(value);
    expect(objects).toMatchObject(
      !closed ? [] : [{ kind: "workload", node: "a", interfaceName: "mx0" }, {
        kind: "policy",
        tier: "kube-admin",
        selects: { op: "eq", label: "manx/unreadable", value: "WorkloadEndpoint.projectcalico.org/prod/x" },
        ingress: [{ action: "deny" }],
        egress: [{ action: "deny" }],
      }],
    );
    if (closed) expect([...(objects[0] as WorkloadObject).labels.keys()]).toEqual(["manx/unreadable"]);
    expect(problems).toContainEqual(expect.objectContaining({ path, effect: "fail-closed" }));
  });
}

test("nothing that can be stored makes a reader throw", () => {
  const junk: unknown[] = [undefined, null, 0, "", "x", true, [], [null], {}, { a: 1 }, [[1]], { addresses: 1 }, {
    addresses: [null],
  }];
  for (const { name } of coreSource.kinds) {
    for (const spec of junk) {
      for (const status of junk) {
        for (const metadata of [{ name: "x" }, { name: "x", labels: 7 }]) {
          const value = { apiVersion: "v1", kind: name, metadata, spec, status } as unknown as Resource;
          coreSource.validate(value);
          coreSource.translate(value);
        }
      }
    }
  }
  expect(coreSource.kinds.length).toBe(4);
});
