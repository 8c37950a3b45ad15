/** Whatever a resource holds: the dialects never throw, name every fault, and open nothing. */
import { expect, test } from "bun:test";
import calico, { calicoSource } from "../plugins/policy/calico/mod.ts";
import kubernetes, { kubernetesSource } from "../plugins/policy/kubernetes/mod.ts";
import type { Resource } from "../src/model/resource.ts";
import { formatPolicy } from "../src/model/rule_format.ts";

const ROUNDS = 6_000;

/** Linear congruential, so that a seed is a test. */
function chance(seed: number): (bound: number) => number {
  let state = seed >>> 0;
  return (bound) => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0, Math.floor(state / 2 ** 32 * bound));
}

const JUNK: readonly unknown[] = [
  undefined,
  null,
  true,
  0,
  -1,
  1.5,
  65536,
  NaN,
  Infinity,
  10n,
  "",
  " ",
  "a",
  "all()",
  "global()",
  "a ==",
  "10.0.0.0/8",
  "::/0",
  "80:90",
  "TCP",
  "\0\ud800",
  "x".repeat(2000),
  [],
  [null],
  [[]],
  {},
  { a: {} },
  { constructor: 1, __proto__: { tier: "x" } },
  () => 1,
  Symbol.iterator,
];

const SELECTOR = { matchLabels: { a: "x" }, matchExpressions: [{ key: "b", operator: "In", values: ["c"] }] };
const RULE = {
  action: "Allow",
  protocol: "TCP",
  ipVersion: 4,
  source: {
    selector: "has(a)",
    notSelector: "has(b)",
    namespaceSelector: "all()",
    nets: ["10.0.0.0/8"],
    serviceAccounts: { names: ["s"], selector: "has(c)" },
  },
  destination: { ports: [80, "90:99", "http"], notNets: ["10.1.0.0/16"] },
  metadata: { annotations: { a: "b" } },
};
const SPEC = {
  tier: "t",
  order: 1,
  selector: "a == 'x'",
  types: ["Ingress", "Egress"],
  ingress: [RULE],
  egress: [{ action: "Deny", protocol: "ICMP", icmp: { type: 8, code: 0 } }],
};
const KUBERNETES_SPEC = {
  podSelector: SELECTOR,
  policyTypes: ["Ingress", "Egress"],
  ingress: [{
    from: [{ podSelector: SELECTOR, namespaceSelector: {} }, {
      ipBlock: { cidr: "10.0.0.0/8", except: ["10.1.0.0/16"] },
    }],
    ports: [{ port: 80, endPort: 90, protocol: "TCP" }, { port: "http" }],
  }],
  egress: [{}],
};
const CLUSTER_RULES = [{
  action: "Accept",
  to: [{ pods: { podSelector: SELECTOR, namespaceSelector: {} } }, { networks: ["10.0.0.0/8"] }, { nodes: SELECTOR }],
  protocols: [{ tcp: { destinationPort: { number: 1 } } }],
}];
const LABELS = { a: "x" };

/** A good one of each kind. */
const GOOD: readonly Resource[] = [
  { apiVersion: "v1", kind: "Namespace", metadata: { name: "a", labels: LABELS } },
  {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: "a", namespace: "b", labels: LABELS },
    spec: { nodeName: "n", containers: [{ ports: [{ name: "http", containerPort: 80, protocol: "TCP" }] }] },
    status: { phase: "Running", podIPs: [{ ip: "10.0.0.1" }] },
  },
  { apiVersion: "v1", kind: "ServiceAccount", metadata: { name: "a", labels: LABELS } },
  {
    apiVersion: "v1",
    kind: "Service",
    metadata: { name: "a" },
    spec: {
      clusterIPs: ["10.96.0.1"],
      ports: [{ name: "http", port: 80, nodePort: 30080 }],
      sessionAffinity: "ClientIP",
    },
  },
  {
    apiVersion: "discovery.k8s.io/v1",
    kind: "EndpointSlice",
    metadata: { name: "a", labels: { "kubernetes.io/service-name": "a" } },
    addressType: "IPv4",
    ports: [{ name: "http", port: 80 }],
    endpoints: [{ addresses: ["10.0.0.1"], conditions: { ready: true } }],
  },
  {
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name: "a", namespace: "b" },
    spec: KUBERNETES_SPEC,
  },
  {
    apiVersion: "policy.networking.k8s.io/v1alpha2",
    kind: "ClusterNetworkPolicy",
    metadata: { name: "a" },
    spec: { tier: "Admin", priority: 1, subject: { pods: { podSelector: SELECTOR } }, egress: CLUSTER_RULES },
  },
  { apiVersion: "projectcalico.org/v3", kind: "NetworkPolicy", metadata: { name: "a", namespace: "b" }, spec: SPEC },
  {
    apiVersion: "projectcalico.org/v3",
    kind: "GlobalNetworkPolicy",
    metadata: { name: "a" },
    spec: { ...SPEC, namespaceSelector: "has(t)", applyOnForward: true, preDNAT: false },
  },
  {
    apiVersion: "projectcalico.org/v3",
    kind: "Tier",
    metadata: { name: "a" },
    spec: { order: 1, defaultAction: "Pass" },
  },
  {
    apiVersion: "projectcalico.org/v3",
    kind: "NetworkSet",
    metadata: { name: "a", labels: LABELS },
    spec: { nets: ["10.0.0.0/8"] },
  },
  {
    apiVersion: "projectcalico.org/v3",
    kind: "GlobalNetworkSet",
    metadata: { name: "a", labels: LABELS },
    spec: { nets: ["10.0.0.1"] },
  },
  {
    apiVersion: "projectcalico.org/v3",
    kind: "HostEndpoint",
    metadata: { name: "a", labels: LABELS },
    spec: {
      node: "n",
      interfaceName: "eth0",
      expectedIPs: ["10.0.0.1"],
      ports: [{ name: "a", protocol: "TCP", port: 1 }],
    },
  },
  {
    apiVersion: "projectcalico.org/v3",
    kind: "Profile",
    metadata: { name: "a" },
    spec: { labelsToApply: LABELS, ingress: [RULE], egress: [{ action: "Allow" }] },
  },
  {
    apiVersion: "projectcalico.org/v3",
    kind: "StagedNetworkPolicy",
    metadata: { name: "a" },
    spec: { ...SPEC, stagedAction: "Set" },
  },
  {
    apiVersion: "projectcalico.org/v3",
    kind: "StagedGlobalNetworkPolicy",
    metadata: { name: "a" },
    spec: { ...SPEC, stagedAction: "Set" },
  },
  {
    apiVersion: "projectcalico.org/v3",
    kind: "StagedKubernetesNetworkPolicy",
    metadata: { name: "a" },
    spec: { ...KUBERNETES_SPEC, stagedAction: "Set" },
  },
];

const sourceOf = (resource: Resource) => /calico/.test(resource.apiVersion) ? calicoSource : kubernetesSource;

/** A copy with `count` places changed to junk, dropped, doubled or renamed. */
function damaged(resource: Resource, count: number, next: (bound: number) => number): unknown {
  let copy: unknown = structuredClone(resource);
  for (let i = 0; i < count; i++) copy = damageOne(copy, next, 0);
  return copy;
}

function damageOne(value: unknown, next: (bound: number) => number, depth: number): unknown {
  const junk = () => JUNK[next(JUNK.length)];
  if (typeof value !== "object" || value === null || depth > 0 && next(6) === 0) return junk();
  if (Array.isArray(value)) {
    const copy = [...value];
    if (copy.length === 0 || next(4) === 0) copy.push(junk());
    else {
      const at = next(copy.length);
      copy[at] = damageOne(copy[at], next, depth + 1);
    }
    return copy;
  }
  const copy: Record<string, unknown> = { ...value };
  const keys = Object.keys(copy).filter((key) => depth > 0 || key !== "kind" && key !== "apiVersion");
  const key = keys[next(keys.length)];
  const fate = next(12);
  if (key === undefined || fate === 0) copy[["", "x", "__proto__", "spec", "a/b"][next(5)]!] = junk();
  else if (fate === 1) delete copy[key];
  else copy[key] = damageOne(copy[key], next, depth + 1);
  return copy;
}

test.each(GOOD.map((resource) => [resource.apiVersion, resource.kind, resource] as const))(
  "the good %s %s is without fault",
  (_, __, resource) => {
    expect(sourceOf(resource).validate(resource)).toEqual([]);
    expect(sourceOf(resource).translate(resource).objects.length).toBeGreaterThan(0);
  },
);

test.each([1, 2, 3, 4])("damaged resources are read without a throw and open nothing (seed %d)", (seed) => {
  const next = chance(seed * 7919);
  let faulty = 0;
  for (let round = 0; round < ROUNDS / 4; round++) {
    const resource = GOOD[next(GOOD.length)]!;
    const source = sourceOf(resource);
    const input = damaged(resource, 1 + next(3), next) as Resource;
    const refusals = source.validate(input);
    const { objects, problems } = source.translate(input);
    expect(source.needs!(input).every(({ key, path }) => key.name !== "" && path !== "")).toBe(true);
    expect(problems.map(({ path, message }) => `${path} ${message}`)).toEqual(
      refusals.map(({ path, message }) => `${path} ${message}`),
    );
    for (const object of objects) {
      if (object.kind === "policy") {
        expect(formatPolicy(object)).toStartWith("policy ");
        if (problems.length > 0) {
          expect([...object.ingress ?? [], ...object.egress ?? []].map(({ action }) => action)).not.toContain("allow");
          expect([...object.ingress ?? [], ...object.egress ?? []].map(({ action }) => action)).not.toContain("pass");
        }
      }
      if (object.kind === "profile" && problems.length > 0) expect([...object.ingress, ...object.egress]).toEqual([]);
    }
    const enforces = ["NetworkPolicy", "GlobalNetworkPolicy", "ClusterNetworkPolicy"].includes(resource.kind);
    if (enforces) expect(objects.filter(({ kind }) => kind === "policy").length).toBe(1);
    if (resource.kind === "Pod") expect(objects.some(({ kind }) => kind === "policy")).toBe(problems.length > 0);
    for (const { message, path } of problems) {
      faulty++;
      expect(message.length).toBeLessThan(600);
      expect(path.length).toBeLessThan(4000);
      expect(message.includes("\n")).toBe(false);
    }
  }
  expect(faulty).toBeGreaterThan(ROUNDS / 8);
});

test("anything at all in place of a resource is refused", () => {
  for (const junk of [...JUNK, { kind: "Pod" }, { kind: { toString: 1 } }]) {
    for (const source of [kubernetesSource, calicoSource]) {
      expect(source.validate(junk as Resource).length).toBeGreaterThan(0);
      expect(source.needs!(junk as Resource)).toEqual([]);
      expect(source.translate(junk as Resource).problems.length).toBeGreaterThan(0);
    }
  }
});

test("a set with 100,000 bad members gives a bounded number of problems", () => {
  const nets = Array.from({ length: 100_000 }, (_, i) => `bad${i}`);
  const resource = {
    apiVersion: "projectcalico.org/v3",
    kind: "GlobalNetworkSet",
    metadata: { name: "a" },
    spec: { nets },
  };
  const problems = calicoSource.validate(resource);
  expect(problems.length).toBe(51);
  expect(problems.at(-1)!.message).toBe("found 99950 more faults");
});

test("no two dialects claim one kind", () => {
  expect([calico.name, kubernetes.name]).toEqual(["calico", "kubernetes"]);
  const kinds = [...calicoSource.kinds, ...kubernetesSource.kinds].map(({ kind }) => kind);
  expect(new Set(kinds).size).toBe(kinds.length);
});
