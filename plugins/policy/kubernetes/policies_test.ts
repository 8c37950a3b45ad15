import { expect, test } from "bun:test";
import { parse } from "yaml";
import type { Resource } from "../../../src/model/resource.ts";
import { formatPolicy } from "../../../src/model/rule_format.ts";
import plugin, { kubernetesSource } from "./mod.ts";

const policy = (spec: string): Resource => ({
  apiVersion: "networking.k8s.io/v1",
  kind: "NetworkPolicy",
  metadata: { name: "p", namespace: "shop" },
  spec: parse(spec),
});
const clusterPolicy = (spec: string): Resource => ({
  apiVersion: "policy.networking.k8s.io/v1alpha2",
  kind: "ClusterNetworkPolicy",
  metadata: { name: "p" },
  spec: parse(spec),
});

function textOf(resource: Resource): string {
  const { objects } = kubernetesSource.translate(resource);
  return objects.map((object) => object.kind === "policy" ? formatPolicy(object) : object.kind).join("\n");
}
const problemsOf = (resource: Resource): string[] =>
  kubernetesSource.translate(resource).problems.map(({ path, message }) => `${path}: ${message}`);

const SHOP = 'projectcalico.org/namespace == "shop"';
const POD = "has(projectcalico.org/orchestrator)";
const HEAD = "policy NetworkPolicy.networking.k8s.io/shop/p tier default order 1000 selects";

const READ: readonly (readonly [name: string, spec: string, text: string])[] = [
  ["an empty spec isolates the namespace for ingress", "{}", `${HEAD} ${SHOP}\n  ingress nothing`],
  [
    "a podSelector selects in its own namespace",
    "{ podSelector: { matchLabels: { b: x, a: y }, matchExpressions: [{ key: c, operator: NotIn, values: [w, v] }] } }",
    `${HEAD} (${SHOP} && a == "y" && b == "x" && c not in {"v", "w"})\n  ingress nothing`,
  ],
  ["an empty rule allows all", "{ ingress: [{}] }", `${HEAD} ${SHOP}\n  ingress allow`],
  ["from: [] allows all", "{ ingress: [{ from: [] }] }", `${HEAD} ${SHOP}\n  ingress allow`],
  ["ingress: [] allows nothing", "{ ingress: [] }", `${HEAD} ${SHOP}\n  ingress nothing`],
  [
    "egress rules without policyTypes cover egress too",
    "{ egress: [{}] }",
    `${HEAD} ${SHOP}\n  ingress nothing\n  egress allow`,
  ],
  ["egress: [] without policyTypes covers ingress alone", "{ egress: [] }", `${HEAD} ${SHOP}\n  ingress nothing`],
  ["null is absence", "{ podSelector: null, ingress: null, policyTypes: null }", `${HEAD} ${SHOP}\n  ingress nothing`],
  [
    "rules of a direction that policyTypes leaves out mean nothing",
    "{ policyTypes: [Egress], ingress: [{}] }",
    `${HEAD} ${SHOP}\n  egress nothing`,
  ],
  [
    "peers are alternatives, the selectors in one are not",
    `{ ingress: [{ from: [
        { podSelector: { matchLabels: { a: x } } },
        { namespaceSelector: { matchLabels: { team: t } } },
        { namespaceSelector: {}, podSelector: { matchLabels: { a: x } } },
        { ipBlock: { cidr: 172.17.0.0/16, except: [172.17.1.0/24] } },
        { ipBlock: { cidr: "fd00::1/64" } } ] }] }`,
    `${HEAD} ${SHOP}
  ingress allow from (${POD} && ${SHOP} && a == "x")
  ingress allow from (${POD} && pcns.team == "t")
  ingress allow from (${POD} && a == "x")
  ingress allow from nets 172.17.0.0/16 and not nets 172.17.1.0/24
  ingress allow from nets fd00::/64`,
  ],
  [
    "an empty namespaceSelector is every pod",
    "{ ingress: [{ from: [{ namespaceSelector: {} }] }] }",
    `${HEAD} ${SHOP}\n  ingress allow from ${POD}`,
  ],
  [
    "ports are TCP by default, merged, and ranged by endPort",
    `{ ingress: [{ ports: [{ port: 443 }, { port: 80, endPort: 90, protocol: TCP }, { port: 85 }, { port: http },
        { port: 53, protocol: UDP }, { protocol: SCTP }] }] }`,
    `${HEAD} ${SHOP}
  ingress allow sctp
  ingress allow tcp to ports 80-90,443,http
  ingress allow udp to ports 53`,
  ],
  [
    "ports of egress rules are the peers'",
    "{ policyTypes: [Egress], egress: [{ to: [{ ipBlock: { cidr: 10.0.0.0/24 } }], ports: [{ port: dns, protocol: UDP }] }] }",
    `${HEAD} ${SHOP}\n  egress allow udp to nets 10.0.0.0/24 and ports dns`,
  ],
];
test.each(READ)("NetworkPolicy: %s", (_, spec, text) => {
  expect(problemsOf(policy(spec))).toEqual([]);
  expect(kubernetesSource.validate(policy(spec))).toEqual([]);
  expect(textOf(policy(spec))).toBe(text);
});

const DENY_ONE = "\n  ingress deny";
const DENY_BOTH = "\n  ingress deny\n  egress deny";
const REFUSED: readonly (readonly [spec: string, problem: string, text: string])[] = [
  [
    "{ ingress: [{ ports: [{ port: 1 }, { port: 90, endPort: 80 }] }] }",
    "spec.ingress[0].ports[1].endPort: found 80, wanted at least port, 90",
    SHOP + DENY_ONE,
  ],
  [
    "{ ingress: [{ ports: [{ port: http, endPort: 80 }] }] }",
    "spec.ingress[0].ports[0].endPort: found 80, wanted none beside a named port",
    SHOP + DENY_ONE,
  ],
  [
    "{ ingress: [{ ports: [{ endPort: 80 }] }] }",
    "spec.ingress[0].ports[0].port: found nothing, wanted a number, because endPort is given",
    SHOP + DENY_ONE,
  ],
  [
    "{ ingress: [{ ports: [{ port: 0 }] }] }",
    "spec.ingress[0].ports[0].port: found 0, wanted a whole number from 1 to 65535",
    SHOP + DENY_ONE,
  ],
  [
    '{ ingress: [{ ports: [{ port: "80" }] }] }',
    'spec.ingress[0].ports[0].port: found "80", wanted a port name: 1 to 15 lower case letters, digits and single -, with a letter among them',
    SHOP + DENY_ONE,
  ],
  [
    "{ ingress: [{ ports: [{ port: 80, protocol: tcp }] }] }",
    'spec.ingress[0].ports[0].protocol: found "tcp", wanted TCP or UDP or SCTP',
    SHOP + DENY_ONE,
  ],
  [
    "{ ingress: [{ from: [{}] }] }",
    "spec.ingress[0].from[0]: found a peer without any of them, wanted podSelector, namespaceSelector or ipBlock",
    SHOP + DENY_ONE,
  ],
  [
    "{ ingress: [{ from: [{ podSelector: {}, ipBlock: { cidr: 10.0.0.0/8 } }] }] }",
    "spec.ingress[0].from[0].ipBlock: found an object, wanted no ipBlock beside podSelector or namespaceSelector",
    SHOP + DENY_ONE,
  ],
  [
    "{ egress: [{ to: [{ ipBlock: { cidr: 10.0.0.0/33 } }] }] }",
    'spec.egress[0].to[0].ipBlock.cidr: found "10.0.0.0/33", wanted a prefix length from 0 to 32',
    SHOP + DENY_BOTH,
  ],
  [
    "{ ingress: [{ from: [{ ipBlock: { cidr: 10.0.0.1 } }] }] }",
    'spec.ingress[0].from[0].ipBlock.cidr: found "10.0.0.1", wanted a prefix with its length, such as 10.0.0.0/8',
    SHOP + DENY_ONE,
  ],
  [
    "{ ingress: [{ form: [] }] }",
    "spec.ingress[0].form: found an unknown field, wanted from, perhaps; the fields are from, ports",
    SHOP + DENY_ONE,
  ],
  [
    "{ podselector: { matchLabels: { a: x } }, policyTypes: [Egress] }",
    "spec.podselector: found an unknown field, wanted podSelector, perhaps; the fields are podSelector, policyTypes, ingress, egress",
    SHOP + DENY_BOTH,
  ],
  [
    "{ podSelector: { matchLabels: { a: 1 } } }",
    "spec.podSelector.matchLabels.a: found 1, wanted a string (in quotes)",
    SHOP + DENY_ONE,
  ],
  [
    "{ podSelector: { matchLabels: { b: x } }, policyTypes: [Egress], egress: all }",
    'spec.egress: found "all", wanted a list',
    `(${SHOP} && b == "x")\n  egress deny`,
  ],
  [
    "{ podSelector: { matchExpressions: [{ key: a, operator: In }] } }",
    "spec.podSelector.matchExpressions[0].values: found nothing, wanted at least one value for In",
    SHOP + DENY_ONE,
  ],
  [
    "{ policyTypes: [Ingres] }",
    'spec.policyTypes[0]: found "Ingres", wanted Ingress or Egress',
    SHOP + DENY_BOTH,
  ],
  ["[]", "spec: found a list, wanted an object", SHOP + DENY_BOTH],
];
test.each(REFUSED)(
  "NetworkPolicy %s is refused, and met in a store it denies what it selects",
  (spec, problem, text) => {
    expect(problemsOf(policy(spec))).toEqual([problem]);
    expect(kubernetesSource.validate(policy(spec)).map(({ effect }) => effect)).toEqual(["refused"]);
    expect(textOf(policy(spec))).toBe(`${HEAD} ${text}`);
  },
);

test("a policy without a namespace is in default, one of another API version is refused", () => {
  const resource = { ...policy("{}"), metadata: { name: "p" } };
  expect(textOf(resource)).toContain('selects projectcalico.org/namespace == "default"');
  expect(problemsOf({ ...resource, apiVersion: "extensions/v1beta1" })).toEqual([
    'apiVersion: found "extensions/v1beta1", wanted networking.k8s.io/v1',
  ]);
});

const CLUSTER = "policy ClusterNetworkPolicy.policy.networking.k8s.io//p tier";
const CLUSTER_READ: readonly (readonly [name: string, spec: string, text: string])[] = [
  [
    "subject, peers and protocols",
    `tier: Admin
priority: 7
subject: { namespaces: { matchLabels: { team: t } } }
ingress:
- name: monitoring
  action: Accept
  from: [{ namespaces: { matchLabels: { kubernetes.io/metadata.name: mon } } }]
  protocols: [{ tcp: { destinationPort: { number: 9100 } } }, { udp: { destinationPort: { range: { start: 1, end: 9 } } } }]
- action: Deny
  from: [{ pods: { namespaceSelector: {}, podSelector: { matchLabels: { a: x } } } }]
- { action: Pass, from: [{ namespaces: {} }] }`,
    `${CLUSTER} kube-admin order 7 selects (${POD} && pcns.team == "t")
  ingress allow tcp from (${POD} && pcns.kubernetes.io/metadata.name == "mon") to ports 9100
  ingress allow udp from (${POD} && pcns.kubernetes.io/metadata.name == "mon") to ports 1-9
  ingress deny from (${POD} && a == "x")
  ingress pass from ${POD}`,
  ],
  [
    "networks, and named ports in each protocol that has ports",
    `tier: Baseline
priority: 0
subject: { pods: { podSelector: { matchLabels: { a: x } } } }
egress:
- { action: Deny, to: [{ networks: [10.0.0.0/8, "fd00::/8"] }] }
- { action: Accept, to: [{ namespaces: {} }], protocols: [{ destinationNamedPort: http }] }`,
    `${CLUSTER} kube-baseline order 0 selects (${POD} && a == "x")
  egress deny to nets 10.0.0.0/8,fd00::/8
  egress allow tcp to ${POD} and ports http
  egress allow udp to ${POD} and ports http
  egress allow sctp to ${POD} and ports http`,
  ],
  [
    "nodes by their labels",
    `tier: Admin
priority: 5
subject: { namespaces: {} }
egress:
- { action: Accept, to: [{ nodes: { matchLabels: { zone: a } } }, { nodes: {} }], protocols: [{ tcp: { destinationPort: { number: 1 } } }] }`,
    `${CLUSTER} kube-admin order 5 selects ${POD}
  egress allow tcp to nodes zone == "a" and ports 1
  egress allow tcp to nodes all() and ports 1`,
  ],
  [
    "without rules it covers no direction",
    "{ tier: Admin, priority: 1000, subject: { namespaces: {} }, ingress: [] }",
    `${CLUSTER} kube-admin order 1000 selects ${POD}`,
  ],
];
test.each(CLUSTER_READ)("ClusterNetworkPolicy: %s", (_, spec, text) => {
  expect(problemsOf(clusterPolicy(spec))).toEqual([]);
  expect(textOf(clusterPolicy(spec))).toBe(text);
});

test("ClusterNetworkPolicy: peers other than pods are for egress", () => {
  const spec = (peer: string) =>
    `{ tier: Admin, priority: 1, subject: { namespaces: {} }, ingress: [{ action: Accept, from: [${peer}] }] }`;
  for (const [name, peer] of [["nodes", "{ nodes: {} }"], ["networks", "{ networks: [10.0.0.0/8] }"]] as const) {
    expect(problemsOf(clusterPolicy(spec(peer)))).toEqual([
      `spec.ingress[0].from[0].${name}: found ${name}, wanted namespaces or pods: the API has other peers for egress only`,
    ]);
  }
});

const rule = (to: string) =>
  `{ tier: Admin, priority: 1, subject: { namespaces: {} }, egress: [{ action: Accept, ${to} }] }`;
const CLUSTER_REFUSED: readonly (readonly [spec: string, problem: string])[] = [
  [
    rule("to: [{ domainNames: [example.org] }]"),
    "spec.egress[0].to[0].domainNames: found domain names, wanted namespaces, pods, nodes or networks: domain names need FQDN policy, which this version does not have",
  ],
  [
    rule("to: [{ nodes: { matchLabels: { a: 1 } } }]"),
    "spec.egress[0].to[0].nodes.matchLabels.a: found 1, wanted a string (in quotes)",
  ],
  [rule("to: [{ networks: [] }]"), "spec.egress[0].to[0].networks: found an empty list, wanted at least one network"],
  [
    rule("to: [{ networks: [10.0.0.0/8, 10.0.0.0/8] }]"),
    'spec.egress[0].to[0].networks[1]: found "10.0.0.0/8", wanted each network once',
  ],
  [
    rule("to: [{ nodes: {}, pods: { podSelector: {} } }]"),
    "spec.egress[0].to[0]: found pods and nodes, wanted one of namespaces, pods, nodes, networks, domainNames",
  ],
  [rule("to: []"), "spec.egress[0].to: found an empty list, wanted at least one peer"],
  [
    rule("to: [{}]"),
    "spec.egress[0].to[0]: found none of them, wanted one of namespaces, pods, nodes, networks, domainNames",
  ],
  [
    rule("to: [{ networks: [10.0.0.0/8] }], protocols: [{ destinationNamedPort: http }]"),
    "spec.egress[0].protocols: found destinationNamedPort, wanted numbered ports: only pods and namespaces have named ones",
  ],
  [
    rule("to: [{ namespaces: {} }], protocols: [{ tcp: { destinationPort: { range: { start: 9, end: 9 } } } }]"),
    "spec.egress[0].protocols[0].tcp.destinationPort.range.end: found 9, wanted more than start, 9",
  ],
  [
    "{ tier: Admin, priority: 1001, subject: { namespaces: {} }, egress: [{ action: Accept, to: [{ namespaces: {} }] }] }",
    "spec.priority: found 1001, wanted a whole number from 0 to 1000",
  ],
];
test.each(CLUSTER_REFUSED)("ClusterNetworkPolicy %s is refused, and met in a store it denies", (spec, problem) => {
  expect(problemsOf(clusterPolicy(spec))).toEqual([problem]);
  expect(textOf(clusterPolicy(spec))).toEndWith(` selects ${POD}\n  egress deny`);
});

test("manx.io/log-denied asks for logs of what a policy denies, in every kind; other texts are refused", () => {
  const annotated = (value: unknown) => ({ name: "p", annotations: { "manx.io/log-denied": value } }) as never;
  const rules = "{ tier: Admin, priority: 1, subject: { namespaces: {} }, ingress: [] }";
  for (const from of [policy("{}"), clusterPolicy(rules)]) {
    expect(textOf({ ...from, metadata: annotated("true") })).toContain(" log-denied selects");
    expect(textOf({ ...from, metadata: annotated("false") })).not.toContain("log-denied");
    for (const bad of ["yes", "True", "", 1, true]) {
      const [problem] = problemsOf({ ...from, metadata: annotated(bad) });
      expect(problem).toStartWith('metadata.annotations["manx.io/log-denied"]: found ');
      expect(textOf({ ...from, metadata: annotated(bad) })).not.toContain("log-denied");
    }
  }
});

test("the plugin takes no settings and says so", async () => {
  expect(plugin.parseConfig(undefined)).toBeUndefined();
  expect(plugin.parseConfig({})).toBeUndefined();
  expect(() => plugin.parseConfig({ mode: "strict" })).toThrow("mode: found an unknown key");
  expect(() => plugin.parseConfig([])).toThrow("found a list");
  expect(await plugin.open(undefined, {} as never, AbortSignal.timeout(1000))).toBe(kubernetesSource);
});
