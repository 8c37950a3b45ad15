import { expect, test } from "bun:test";
import { parse } from "yaml";
import { formatAddress, formatCidr } from "../../../src/model/address.ts";
import type { Resource } from "../../../src/model/resource.ts";
import type { NeutralPolicy } from "../../../src/model/rule.ts";
import type { HostEndpointObject } from "../../../src/model/world.ts";
import { formatPolicy, formatRule } from "../../../src/model/rule_format.ts";
import plugin, { calicoSource } from "./mod.ts";

const resource = (kind: string, spec: string, metadata: object = {}): Resource => ({
  apiVersion: "crd.projectcalico.org/v1",
  kind,
  metadata: { name: "p", ...metadata },
  spec: parse(spec),
});
const namespaced = (spec: string) => resource("NetworkPolicy", spec, { namespace: "shop" });
const global = (spec: string) => resource("GlobalNetworkPolicy", spec);

const textOf = (from: Resource): string =>
  calicoSource.translate(from).objects.map((object) => object.kind === "policy" ? formatPolicy(object) : object.kind)
    .join("\n");
const problemsOf = (from: Resource): string[] =>
  calicoSource.translate(from).problems.map(({ path, message }) => `${path}: ${message}`);
/** The text of what must be without fault. */
function good(from: Resource): string {
  expect(problemsOf(from)).toEqual([]);
  expect(calicoSource.validate(from)).toEqual([]);
  return textOf(from);
}

const SHOP = 'projectcalico.org/namespace == "shop"';
const NAMESPACED = "has(projectcalico.org/namespace)";
const IN_SHOP = "policy NetworkPolicy.projectcalico.org/shop/p tier default order last";
const GLOBAL = "policy GlobalNetworkPolicy.projectcalico.org//p tier default order last";

const SUBJECTS: readonly (readonly [name: string, from: Resource, head: string])[] = [
  ["no selector: all of its namespace", namespaced("{}"), `${IN_SHOP} selects ${SHOP}`],
  ["no spec at all", { ...namespaced("{}"), spec: undefined }, `${IN_SHOP} selects ${SHOP}`],
  [
    "a selector of its namespace",
    namespaced("{ selector: a == 'x' || has(b) }"),
    `${IN_SHOP} selects (${SHOP} && (a == "x" || has(b)))`,
  ],
  [
    "service accounts",
    namespaced("{ selector: has(a), serviceAccountSelector: role != 'x' }"),
    `${IN_SHOP} selects (${SHOP} && has(projectcalico.org/serviceaccount) && pcsa.role != "x" && has(a))`,
  ],
  ["everything", global("{}"), `${GLOBAL} selects all()`],
  ["everything, said", global("{ selector: all() }"), `${GLOBAL} selects all()`],
  [
    "namespaces",
    global("{ namespaceSelector: env != 'prod' }"),
    `${GLOBAL} selects (${NAMESPACED} && pcns.env != "prod")`,
  ],
  [
    "any namespace",
    global("{ namespaceSelector: all(), selector: has(a) }"),
    `${GLOBAL} selects (${NAMESPACED} && has(a))`,
  ],
  [
    "tier and order",
    global("{ tier: security, order: 12.5, performanceHints: [AssumeNeededOnEveryNode] }"),
    "policy GlobalNetworkPolicy.projectcalico.org//p tier security order 12.5 selects all()",
  ],
  ["forwarded traffic", global("{ applyOnForward: true }"), `${GLOBAL} forward selects all()`],
  ["before DNAT", global("{ applyOnForward: true, preDNAT: true }"), `${GLOBAL} preDnat selects all()`],
  ["untracked", global("{ applyOnForward: true, doNotTrack: true }"), `${GLOBAL} untracked selects all()`],
];
test.each(SUBJECTS)("a policy applies to %s", (_, from, head) => {
  expect(good(from)).toBe(`${head}\n  ingress nothing`);
});

test.each([
  ["{}", ["ingress nothing"]],
  ["{ types: [] }", ["ingress nothing"]],
  ["{ ingress: [{ action: Allow }] }", ["ingress allow"]],
  ["{ egress: [{ action: Allow }] }", ["egress allow"]],
  ["{ ingress: [{ action: Allow }], egress: [{ action: Deny }] }", ["ingress allow", "egress deny"]],
  ["{ types: [Egress], ingress: [{ action: Allow }] }", ["egress nothing"]],
  ["{ types: [Egress, Ingress] }", ["ingress nothing", "egress nothing"]],
])("types of %s are given or inferred: %j", (spec, lines) => {
  expect(good(global(spec)).split("\n  ").slice(1)).toEqual([...lines]);
});

const RULES: readonly (readonly [rule: string, texts: readonly string[]])[] = [
  ["{ action: Log }", ["log"]],
  ["{ action: Pass }", ["pass"]],
  ["{ action: Allow, protocol: TCP }", ["allow tcp"]],
  ["{ action: Allow, protocol: 47 }", ["allow protocol 47"]],
  ["{ action: Allow, protocol: '17' }", ["allow udp"]],
  ["{ action: Allow, notProtocol: UDPLite }", ["allow not udplite"]],
  ["{ action: Allow, ipVersion: 6 }", ["allow ipv6"]],
  ["{ action: Deny, protocol: ICMP }", ["deny ipv4 icmp"]],
  ["{ action: Deny, protocol: 58 }", ["deny ipv6 icmpv6"]],
  ["{ action: Deny, protocol: ICMP, icmp: { type: 8, code: 0 } }", ["deny ipv4 icmp type 8/0"]],
  ["{ action: Deny, protocol: ICMPv6, notICMP: { type: 128 } }", ["deny ipv6 icmpv6 not type 128"]],
  ["{ action: Deny, notICMP: { type: 8 } }", ["deny not type 8"]],
  ["{ action: Deny, protocol: ICMP, icmp: {} }", ["deny ipv4 icmp"]],
  [
    "{ action: Allow, source: { nets: [10.0.0.0/8, 192.168.0.0/16], notNets: [10.1.0.0/16] } }",
    ["allow from nets 10.0.0.0/8,192.168.0.0/16 and not nets 10.1.0.0/16"],
  ],
  [
    "{ action: Allow, protocol: TCP, source: { notPorts: [1, '3:4'] }, destination: { ports: [80, '8000:8080', '443', http] } }",
    ["allow tcp from not ports 1,3-4 to ports 80,8000-8080,443,http"],
  ],
  [
    "{ action: Allow, destination: { ports: [http] } }",
    ["allow tcp to ports http", "allow udp to ports http", "allow sctp to ports http", "allow udplite to ports http"],
  ],
  ["{ action: Allow, source: {}, destination: {} }", ["allow"]],
  ["{ action: Allow, source: { selector: '', ports: [], nets: [] } }", ["allow"]],
  ["{ action: Allow, metadata: { annotations: { Why.example/Text: because } } }", ["allow"]],
];
test.each(RULES)("the rule %s reads as %j", (rule, texts) => {
  expect(good(global(`{ ingress: [${rule}] }`)).split("\n").slice(1)).toEqual(texts.map((text) => `  ingress ${text}`));
});

const PEERS: readonly (readonly [peer: string, inNamespace: string, inGlobal: string])[] = [
  ["selector: has(a)", `(${SHOP} && has(a))`, "has(a)"],
  ["selector: all()", SHOP, "all()"],
  ["notSelector: has(a)", `${SHOP} and not has(a)`, "not has(a)"],
  ["namespaceSelector: all()", NAMESPACED, NAMESPACED],
  ["namespaceSelector: ' global() '", `!${NAMESPACED}`, `!${NAMESPACED}`],
  ["namespaceSelector: t != 'x'", `(${NAMESPACED} && pcns.t != "x")`, `(${NAMESPACED} && pcns.t != "x")`],
  [
    "namespaceSelector: has(t), selector: has(a)",
    `(${NAMESPACED} && has(pcns.t) && has(a))`,
    `(${NAMESPACED} && has(pcns.t) && has(a))`,
  ],
  ["namespaceSelector: global(), selector: has(a)", `(!${NAMESPACED} && has(a))`, `(!${NAMESPACED} && has(a))`],
  [
    "namespaceSelector: has(t), notSelector: has(a)",
    `(${NAMESPACED} && has(pcns.t)) and not has(a)`,
    `(${NAMESPACED} && has(pcns.t)) and not has(a)`,
  ],
  [
    "serviceAccounts: { names: [b, a] }",
    `(${SHOP} && projectcalico.org/serviceaccount in {"a", "b"})`,
    `projectcalico.org/serviceaccount in {"a", "b"}`,
  ],
  [
    "serviceAccounts: { selector: has(r), names: [a] }",
    `(${SHOP} && has(projectcalico.org/serviceaccount) && has(pcsa.r) && projectcalico.org/serviceaccount in {"a"})`,
    `(has(projectcalico.org/serviceaccount) && has(pcsa.r) && projectcalico.org/serviceaccount in {"a"})`,
  ],
  ["nets: [10.0.0.0/8]", "nets 10.0.0.0/8", "nets 10.0.0.0/8"],
  ["services: { name: web, namespace: z }", "service z/web at any port", "service z/web at any port"],
];
test.each(PEERS)(
  "the peer { %s } is %s in a namespaced policy and %s in a global one",
  (peer, inNamespace, inGlobal) => {
    const spec = `{ ingress: [{ action: Allow, source: { ${peer} } }] }`;
    expect(good(namespaced(spec)).split("\n")[1]).toBe(`  ingress allow from ${inNamespace}`);
    expect(good(global(spec)).split("\n")[1]).toBe(`  ingress allow from ${inGlobal}`);
  },
);

test("a service is the destination of egress rules with its ports, in the policy's namespace by default", () => {
  expect(good(namespaced("{ egress: [{ action: Allow, destination: { services: { name: web } } }] }")).split("\n")[1])
    .toBe("  egress allow to service shop/web");
});

const REFUSED: readonly (readonly [spec: string, problem: string])[] = [
  [
    "{ selector: a = 'x' }",
    `spec.selector: selector, character 3: found "=", wanted ==, !=, in, not in, contains, starts with or ends with: a ▸= 'x'`,
  ],
  ["{ ingress: [{ action: allow }] }", 'spec.ingress[0].action: found "allow", wanted Allow or Deny or Log or Pass'],
  [
    "{ ingress: [{ action: Allow, protocol: TCP, source: { ports: ['9:1'] } }] }",
    'spec.ingress[0].source.ports[0]: found "9:1", wanted ports from 1 to 65535, the lower one first',
  ],
  [
    "{ ingress: [{ action: Allow, protocol: TCP, source: { ports: [1.5] } }] }",
    'spec.ingress[0].source.ports[0]: found 1.5, wanted a number from 1 to 65535, a range such as "80:90" or the name of a port',
  ],
  [
    "{ ingress: [{ action: Allow, source: { nets: [10.0.0.1/8] } }] }",
    'spec.ingress[0].source.nets[0]: found "10.0.0.1/8", wanted the network itself, 10.0.0.0/8',
  ],
  [
    "{ ingress: [{ action: Allow, source: { nets: [10.0.0.1] } }] }",
    'spec.ingress[0].source.nets[0]: found "10.0.0.1", wanted a prefix: 10.0.0.1/32 for this address alone',
  ],
  [
    "{ ingress: [{ action: Allow, http: { methods: [GET] } }] }",
    "spec.ingress[0].http: found an http match, wanted none: matching HTTP needs the L7 plugin, which this version does not have",
  ],
  [
    "{ ingress: [{ action: Allow, icmp: { type: 1 } }] }",
    "spec.ingress[0].icmp: found icmp without that protocol, wanted none, or protocol ICMP or ICMPv6 in the same rule",
  ],
  [
    "{ ingress: [{ action: Allow, notICMP: { code: 1 } }] }",
    "spec.ingress[0].notICMP.code: found a code alone, wanted a type beside it",
  ],
  [
    "{ performanceHints: [AssumeNeededOnEveryNode, AssumeNeededOnEveryNode] }",
    'spec.performanceHints[1]: found "AssumeNeededOnEveryNode", wanted each hint once',
  ],
  ["{ performanceHints: [Fast] }", 'spec.performanceHints[0]: found "Fast", wanted AssumeNeededOnEveryNode'],
  [
    "{ egres: [] }",
    "spec.egres: found an unknown field, wanted egress, perhaps; the fields are tier, order, selector, types, ingress, egress, serviceAccountSelector, performanceHints, namespaceSelector, doNotTrack, preDNAT, applyOnForward",
  ],
  ["{ order: high }", 'spec.order: found "high", wanted a number'],
  [
    "{ tier: Net.Sec }",
    'spec.tier: found "Net.Sec", wanted lower case letters, digits and - with a letter or digit at both ends, at most 63 characters',
  ],
];
test.each(REFUSED)("%s is refused with the place and what is wanted", (spec, problem) => {
  expect(problemsOf(global(spec))).toEqual([problem]);
});

const FIRST = -Number.MAX_VALUE;
const CLOSED: readonly (readonly [name: string, from: Resource, text: string])[] = [
  [
    "a bad rule: what it selects, where it stands, in its direction",
    namespaced("{ selector: has(a), order: 5, ingress: [{ action: Nope }] }"),
    `policy NetworkPolicy.projectcalico.org/shop/p tier default order 5 selects (${SHOP} && has(a))\n  ingress deny`,
  ],
  [
    "an unreadable selector: the whole namespace",
    namespaced("{ selector: 'a =', egress: [{ action: Allow }] }"),
    `${IN_SHOP} selects ${SHOP}\n  egress deny`,
  ],
  [
    "an unreadable selector of a global policy: everything",
    global("{ selector: 7 }"),
    `${GLOBAL} selects all()\n  ingress deny`,
  ],
  [
    "unreadable types: both directions",
    global("{ types: [In] }"),
    `${GLOBAL} selects all()\n  ingress deny\n  egress deny`,
  ],
  [
    "an unknown field: both directions",
    global("{ typ: [Ingress] }"),
    `${GLOBAL} selects all()\n  ingress deny\n  egress deny`,
  ],
  [
    "an unreadable order: before all others of the tier",
    global("{ order: [], selector: has(a) }"),
    `policy GlobalNetworkPolicy.projectcalico.org//p tier default order ${FIRST} selects has(a)\n  ingress deny`,
  ],
  [
    "an unreadable tier: the first fixed one",
    global("{ tier: 3, order: 3 }"),
    `policy GlobalNetworkPolicy.projectcalico.org//p tier kube-admin order ${FIRST} selects all()\n  ingress deny`,
  ],
  [
    "a bad rule before DNAT: there",
    global("{ preDNAT: true, applyOnForward: true, ingress: [{}] }"),
    `${GLOBAL} preDnat selects all()\n  ingress deny`,
  ],
  [
    "an unclear stage: what ends here and what is forwarded",
    global("{ preDNAT: true }"),
    `${GLOBAL} forward selects all()\n  ingress deny`,
  ],
];
test.each(CLOSED)("met in a store, %s is denied", (_, from, text) => {
  expect(calicoSource.translate(from).problems.map(({ effect }) => effect)).toEqual(["fail-closed"]);
  expect(textOf(from)).toBe(text);
});

test.each([
  [
    "StagedNetworkPolicy",
    "{ stagedAction: Set, selector: has(a) }",
    `staged selects (${SHOP} && has(a))\n  ingress nothing`,
  ],
  ["StagedNetworkPolicy", "{ selector: has(a) }", `staged selects (${SHOP} && has(a))\n  ingress nothing`],
  [
    "StagedGlobalNetworkPolicy",
    "{ selector: has(a), ingress: [{ action: Deny }] }",
    "staged selects has(a)\n  ingress deny",
  ],
  [
    "StagedKubernetesNetworkPolicy",
    "{ podSelector: { matchLabels: { a: x } }, ingress: [{}] }",
    `order 1000 staged selects (${SHOP} && a == "x")\n  ingress allow`,
  ],
])("%s %s is evaluated and not enforced", (kind, spec, text) => {
  const staged = resource(kind, spec, kind.includes("Global") ? {} : { namespace: "shop" });
  expect(good(staged)).toEndWith(text);
});

test.each([
  ["StagedNetworkPolicy", "{ stagedAction: Delete, tier: x }"],
  ["StagedNetworkPolicy", "{ stagedAction: Ignore, selector: has(a) }"],
  ["StagedKubernetesNetworkPolicy", "{ stagedAction: Delete, podSelector: {} }"],
])("%s %s stands for nothing", (kind, spec) => {
  expect(calicoSource.translate(resource(kind, spec))).toEqual({ objects: [], problems: [] });
});

test("a staged policy with faults denies nothing", () => {
  const { objects, problems } = calicoSource.translate(resource("StagedNetworkPolicy", "{ selector: 7 }"));
  expect(objects).toEqual([]);
  expect(problems.map(({ path, effect }) => [path, effect])).toEqual([["spec.selector", "ignored"]]);
});

test.each([
  ["foo", "{}", { kind: "tier", id: "foo", defaultAction: "deny" }],
  ["foo", "{ order: 7, defaultAction: Pass }", { kind: "tier", id: "foo", order: 7, defaultAction: "pass" }],
  ["kube-admin", "{ order: 1000 }", { kind: "tier", id: "kube-admin", order: 1000, defaultAction: "pass" }],
  ["default", "{ order: 1000000 }", { kind: "tier", id: "default", order: 1000000, defaultAction: "deny" }],
])("the tier %s %s", (name, spec, tier) => {
  expect(calicoSource.translate(resource("Tier", spec, { name }))).toEqual({ objects: [tier as never], problems: [] });
});

test("a fixed tier stays what it is whatever a store says", () => {
  const { objects, problems } = calicoSource.translate(
    resource("Tier", "{ order: 1, defaultAction: Pass }", { name: "default" }),
  );
  expect(problems.map(({ path }) => path)).toEqual(["spec.order", "spec.defaultAction"]);
  expect(objects).toEqual([{ kind: "tier", id: "default", order: 1_000_000, defaultAction: "deny" }]);
});

test("network sets have prefixes, labels, and a namespace or none", () => {
  const spec = "{ nets: [10.0.0.1, 10.1.0.0/16, 'dead:beef::/96'] }";
  const labels = { a: "x" };
  for (const kind of ["NetworkSet", "GlobalNetworkSet"]) {
    const [set] = calicoSource.translate(resource(kind, spec, { labels })).objects;
    if (set?.kind !== "networkSet") throw new Error("no set");
    expect(set.nets.map(formatCidr)).toEqual(["10.0.0.1/32", "10.1.0.0/16", "dead:beef::/96"]);
    expect([...set.labels]).toEqual([["a", "x"]]);
    expect(set.namespace).toBe(kind === "NetworkSet" ? "default" : undefined);
  }
});

test("of a network set with faults the members that can be read stay", () => {
  const { objects, problems } = calicoSource.translate(resource("GlobalNetworkSet", "{ nets: [junk, 10.0.0.0/8] }"));
  expect(problems.map(({ path }) => path)).toEqual(["spec.nets[0]"]);
  expect(objects[0]?.kind === "networkSet" && objects[0].nets.map(formatCidr)).toEqual(["10.0.0.0/8"]);
});

test("a host endpoint has its node, interface or addresses, ports and profiles", () => {
  const spec = `{ node: n1, interfaceName: eth0, expectedIPs: [192.168.2.2], profiles: [open],
    ports: [{ name: ssh, protocol: TCP, port: 22 }] }`;
  const from = resource("HostEndpoint", spec, { labels: { role: "node" } });
  expect(calicoSource.validate(from)).toEqual([]);
  const [endpoint] = calicoSource.translate(from).objects;
  if (endpoint?.kind !== "hostEndpoint") throw new Error("no host endpoint");
  expect({
    ...endpoint,
    labels: [...endpoint.labels],
    expectedAddresses: endpoint.expectedAddresses.map(formatAddress),
  }).toEqual({
    kind: "hostEndpoint",
    id: "p",
    node: "n1",
    interfaceName: "eth0",
    expectedAddresses: ["192.168.2.2"],
    labels: [["role", "node"]],
    ports: [{ name: "ssh", protocol: 6, port: 22 }],
    profiles: ["open"],
  });
});

test.each([
  ["{ node: n1, interfaceName: a b }", { interfaceName: "*", profiles: [] }],
  ["{ node: n1, interfaceName: eth0, profiles: [open], ports: [{}] }", { interfaceName: "eth0", profiles: [] }],
  ["{ node: n1, expectedIPs: [junk] }", { interfaceName: "*" }],
])("a host endpoint with faults, %s, protects what it may have meant", (spec, part) => {
  const { objects, problems } = calicoSource.translate(resource("HostEndpoint", spec));
  expect(problems.length).toBeGreaterThan(0);
  expect(objects[0]).toMatchObject(part);
});

test("a host endpoint whose labels cannot be read is denied, whatever policies say", () => {
  const from = resource("HostEndpoint", "{ node: n1, interfaceName: eth0, profiles: [open] }", { labels: { a: 1 } });
  const [host, policy] = calicoSource.translate(from).objects;
  expect(host).toMatchObject({ interfaceName: "eth0", profiles: [] });
  expect(textOf(from)).toEndWith(
    ' forward selects manx/unreadable == "HostEndpoint.projectcalico.org//p"\n  ingress deny\n  egress deny',
  );
  expect([...(host as HostEndpointObject).labels.keys()]).toEqual(["manx/unreadable"]);
  expect(policy).toMatchObject({ tier: "kube-admin", staged: false });
});

test("what says who or where something is cannot come from a profile, nor can the built-in profile be another", () => {
  const spec = "{ labelsToApply: { pcns.team: x, projectcalico.org/namespace: y, a: z } }";
  expect(calicoSource.validate(resource("Profile", spec)).map(({ path }) => path)).toEqual([
    'spec.labelsToApply["pcns.team"]',
    'spec.labelsToApply["projectcalico.org/namespace"]',
  ]);
  const open = resource("Profile", "{}", { name: "projectcalico-default-allow" });
  expect(problemsOf(open)).toEqual([
    'metadata.name: found "projectcalico-default-allow", wanted another name: this profile is built in, and allows everything',
  ]);
  expect(calicoSource.translate(open).objects).toEqual([]);
});

test("a profile has labels and rules, and with faults no rules", () => {
  const spec = "{ labelsToApply: { a: x }, ingress: [{ action: Allow, source: { selector: has(a) } }] }";
  const [profile] = calicoSource.translate(resource("Profile", spec)).objects;
  if (profile?.kind !== "profile") throw new Error("no profile");
  expect([...profile.labelsToApply]).toEqual([["a", "x"]]);
  expect(profile.ingress.map(formatRule)).toEqual(["allow from has(a)"]);
  const faulty = calicoSource.translate(resource("Profile", "{ ingress: [{ action: Allow }, {}] }"));
  expect(faulty.objects).toMatchObject([{ kind: "profile", ingress: [], egress: [] }]);
  expect(calicoSource.validate(resource("Profile", "{}", { name: "kns.a" })).map(({ path }) => path)).toEqual([
    "metadata.name",
  ]);
});

test("both API groups are read, and the first is shown", () => {
  for (const apiVersion of ["projectcalico.org/v3", "crd.projectcalico.org/v1"]) {
    expect(calicoSource.validate({ ...global("{}"), apiVersion })).toEqual([]);
  }
  expect(calicoSource.kinds.every(({ apiVersions }) => apiVersions[0] === "projectcalico.org/v3")).toBe(true);
  expect(calicoSource.validate({ ...global("{}"), apiVersion: "projectcalico.org/v4" }).length).toBe(1);
});

test("a policy of 1,024 rules and a long selector are read", () => {
  const rules = Array.from(
    { length: 1024 },
    (_, i) => ({ action: "Allow", protocol: "TCP", destination: { ports: [i + 1] } }),
  );
  const selector = Array.from({ length: 200 }, (_, i) => `k${i} == 'v'`).join(" || ");
  const from = { ...global("{}"), spec: { selector, ingress: rules } };
  expect(good(from).split("\n").length).toBe(1025);
});

test("a tier whose place cannot be read closes what is in it, one with another fault stands where it says", () => {
  const tierOf = (spec: string, metadata = {}) => {
    const { objects, problems } = calicoSource.translate(resource("Tier", spec, metadata));
    expect(problems.length).toBeGreaterThan(0);
    return objects;
  };
  for (const spec of ['{ order: "5" }', "{ ordr: 5 }", "[]", "text"]) {
    expect(tierOf(spec)).toEqual([{ kind: "tier", id: "p", defaultAction: "deny", closed: true }]);
  }
  expect(tierOf("{ order: 5, defaultAction: Allow }")).toEqual([
    { kind: "tier", id: "p", order: 5, defaultAction: "deny" },
  ]);
  expect(tierOf("{ order: text }", { name: "default" })).toEqual([
    { kind: "tier", id: "default", order: 1_000_000, defaultAction: "deny" },
  ]);
});

test("manx.io/log-denied asks for logs of what a policy or tier denies, in every kind; other texts are refused", () => {
  const annotated = (value: unknown) => ({ annotations: { "manx.io/log-denied": value } });
  const kinds = ["NetworkPolicy", "GlobalNetworkPolicy", "Tier", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"];
  for (const kind of [...kinds, "StagedKubernetesNetworkPolicy"]) {
    const logged = (value: unknown) =>
      calicoSource.translate(resource(kind, "{}", annotated(value))).objects.map((object) =>
        (object as { logDenied?: true }).logDenied
      );
    expect(logged("true")).toEqual([true]);
    expect(logged("false")).toEqual([undefined]);
    for (const bad of ["yes", "True", "", 1, true]) {
      expect(problemsOf(resource(kind, "{}", annotated(bad)))[0]).toStartWith(
        'metadata.annotations["manx.io/log-denied"]: found ',
      );
    }
  }
});

test("names and annotations of rules are kept for people", () => {
  const [policy] = calicoSource.translate(global(`{ ingress: [
    { action: Allow, metadata: { annotations: { ticket: "A-1" } } }, { action: Deny } ] }`)).objects as [NeutralPolicy];
  expect(policy.ingress!.map(({ annotations }) => annotations)).toEqual([{ ticket: "A-1" }, undefined]);
});

test("the plugin takes no settings and says so", async () => {
  expect(plugin.parseConfig(undefined)).toBeUndefined();
  expect(() => plugin.parseConfig({ mode: "strict" })).toThrow("mode: found an unknown key");
  expect(await plugin.open(undefined, {} as never, AbortSignal.timeout(1000))).toBe(calicoSource);
});
