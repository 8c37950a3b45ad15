/**
 * Input of a size or shape that nobody means well: it is refused with a reason or handled, in bounded time, and while that goes on and
 * afterwards what was denied stays denied and what was allowed goes through. By the real binary, with real packets.
 */
import { afterAll, expect, test } from "bun:test";
import type { ManxError } from "../../src/sdk/errors.ts";
import { type Manifest, PolicyLab, type Question } from "./policy_lab.ts";

const TEST_DEADLINE_MS = 120_000;
/** A refusal takes no longer, however large the manifest: the daemon has other work. */
const REFUSAL_DEADLINE_MS = 5_000;
/** From the request until it is in force on both nodes. */
const CHANGE_DEADLINE_MS = 10_000;
const LARGE_CHANGE_DEADLINE_MS = 30_000;

const WORLD = `
nodes: [ { name: n1, serves: [tcp/90] }, { name: n2 } ]
pods:
  - { name: client, node: n1, labels: { app: client }, serves: [tcp/80] }
  - { name: server, node: n1, labels: { app: server }, serves: [tcp/80, tcp/82] }
  - { name: stranger, node: n2, labels: { app: stranger }, serves: [tcp/80] }
hosts:
  - { name: out, address: 203.0.113.5, link: up0, serves: [tcp/443] }
  - { name: out6, address: "2001:db8:ffff::5", link: up0, serves: [tcp/443] }
`;
/** Stands through every test. */
const BASE: Manifest = {
  apiVersion: "networking.k8s.io/v1",
  kind: "NetworkPolicy",
  metadata: { name: "server", namespace: "default" },
  spec: {
    podSelector: { matchLabels: { app: "server" } },
    ingress: [{ from: [{ podSelector: { matchLabels: { app: "client" } } }], ports: [{ port: 80 }] }],
  },
};
/** A pod's object with other labels. */
const podLabelled = (name: string, node: string, labels: Record<string, string>, annotations = {}): Manifest => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name, namespace: "default", labels, annotations },
  spec: { nodeName: node, containers: [] },
} as Manifest);
const CLIENT = podLabelled("client", "n1", { app: "client" });

const GUARDS = [
  "stranger -> server tcp/80 deny",
  "client -> server tcp/81 deny",
  "client -> server tcp/80 allow",
];

let opened: Promise<PolicyLab> | undefined;
afterAll(async () => await (await opened)?.[Symbol.asyncDispose]());

/** With nothing but BASE in force. */
async function fresh(): Promise<PolicyLab> {
  const lab = await (opened ??= PolicyLab.open(WORLD));
  await lab.reset([BASE, CLIENT]);
  return lab;
}

/** Tries the guards for as long as `work` takes, at least once, and once more when it is done. */
async function guarded<T>(lab: PolicyLab, work: Promise<T>, guards: readonly string[] = GUARDS): Promise<T> {
  let isDone = false;
  const done = work.finally(() => isDone = true);
  // Told below, once the round under way is over.
  done.catch(() => {});
  do expect(await lab.wrongLines(guards)).toEqual([]); while (!isDone);
  const result = await done;
  expect(await lab.wrongLines(guards)).toEqual([]);
  return result;
}

/** The text is refused in time; nothing of it is stored, and so nothing in the kernel changes. Gives the reasons. */
async function refused(lab: PolicyLab, text: string): Promise<string> {
  const before = (await lab.sandbox.statuses()).map(({ generation }) => generation.wanted);
  const attempt = lab.sandbox.change("apply", text, "bad.yaml").then(
    () => "it was accepted",
    (error: ManxError) => error.code === "refused" ? error.message : `code ${error.code}: ${error.message}`,
  );
  const reasons = await within(REFUSAL_DEADLINE_MS, attempt);
  const statuses = await lab.sandbox.statuses();
  expect(statuses.map(({ generation }) => generation.wanted)).toEqual(before);
  expect(statuses.flatMap(({ problems, dataplane }) => [...problems, ...dataplane.problems])).toEqual([]);
  return reasons;
}

/** What `work` gives. @throws {Error} where it takes longer */
async function within<T>(deadlineMs: number, work: Promise<T>): Promise<T> {
  const startMs = performance.now();
  const result = await work;
  const tookMs = performance.now() - startMs;
  if (tookMs > deadlineMs) {
    throw new Error(`found it done after ${Math.round(tookMs)} ms, wanted at most ${deadlineMs}`);
  }
  return result;
}

const STRANGER = "app == 'stranger'";
const globalPolicy = (name: string, spec: Readonly<Record<string, unknown>>): Manifest => ({
  apiVersion: "projectcalico.org/v3",
  kind: "GlobalNetworkPolicy",
  metadata: { name },
  spec,
});
const policyWith = (selector: string): string => JSON.stringify(globalPolicy("bad", { selector }));
const podWith = (spec: string, head = ""): string =>
  `apiVersion: v1\nkind: Pod\nmetadata: { name: bad }\n${head}spec: ${spec}\n`;
const ingressWith = (ingress: string): string =>
  `apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: bad }\nspec: { podSelector: {}, ingress: ${ingress} }`;
/** Each level holds the one before it ten times. */
const laughs = (levels: number): string =>
  Array.from({ length: levels }, (_, i) => `\n  a${i}: &a${i} [${Array(10).fill(i === 0 ? "lol" : `*a${i - 1}`)}]`)
    .join("");
const NESTED = "beyond 100 levels, wanted at most 100";
const ALIASES = "found aliases that";

const REFUSED: readonly (readonly [title: string, text: string, says: string])[] = [
  ["10,000 lists inside one another", ingressWith("[".repeat(10_000) + "]".repeat(10_000)), NESTED],
  ["10,000 lists that nobody closes", ingressWith("[".repeat(10_000)), NESTED],
  ["200 lists inside one another", ingressWith("[".repeat(200) + "]".repeat(200)), NESTED],
  ["10,000 mappings inside one another", podWith("{a: ".repeat(10_000) + "1" + "}".repeat(10_000)), NESTED],
  ["10,000 lists in one line", podWith("\n  a:\n   " + "- ".repeat(10_000) + "1"), NESTED],
  ["200 mappings where anything may stand", podWith("{a: ".repeat(200) + "1" + "}".repeat(200)), NESTED],
  ["aliases of aliases of aliases", podWith(laughs(9)), ALIASES],
  ["101 aliases", podWith(`{ a: &a x, b: [${Array(101).fill("*a")}] }`), ALIASES],
  ["90 aliases of a megabyte", podWith(`{ a: &a "${"x".repeat(1e6)}", b: [${Array(90).fill("*a")}] }`), ALIASES],
  ["a merge key that merges itself", podWith("&a { <<: *a }"), ALIASES],
  ["an alias without an anchor", podWith("*nobody"), ALIASES],
  ["a mapping that holds itself", podWith("&a { containers: [], x: *a }"), NESTED],
  ["a list that holds itself", podWith("{ containers: [], x: &a [ *a ] }"), NESTED],
  ["a manifest that is its own spec", `&a\napiVersion: v1\nkind: Pod\nmetadata: { name: bad }\nspec: *a`, NESTED],
  ["10,000 times !", policyWith("!".repeat(10_000) + "has(a)"), "found deeper nesting, wanted at most 500 levels"],
  ["10,000 parentheses that nobody closes", policyWith("(".repeat(10_000) + "has(a)"), "found the end, wanted a )"],
  ["10,000 times (! without end", policyWith("(!".repeat(10_000)), "found the end"],
  ["and in or in and, 10,000 times", policyWith("(has(a) && (has(b) || ".repeat(10_000)), "found the end"],
  ["a string of 100,000 characters without end", policyWith(`a == "${"x".repeat(100_000)}`), "does not end"],
  ["a label name of 513 characters", policyWith(`has(${"x".repeat(513)})`), "wanted at most 512"],
  [
    "a list of lists of resources",
    JSON.stringify({ apiVersion: "v1", kind: "List", items: [{ apiVersion: "v1", kind: "List", items: [] }] }),
    "found List of v1, wanted kind",
  ],
  [
    "50,000 things that are no resources",
    `apiVersion: v1\nkind: List\nitems: [${Array(50_000).fill("1")}]`,
    "and 49980 more",
  ],
  [
    "the same policy twice",
    `${JSON.stringify(BASE)}\n---\n${JSON.stringify(BASE)}`,
    "a second time (first at document 1, line 1)",
  ],
  [
    "the same policy by two spellings of its API",
    ["projectcalico.org/v3", "crd.projectcalico.org/v1"].map((apiVersion) =>
      JSON.stringify({ ...globalPolicy("bad", { selector: "all()" }), apiVersion })
    ).join("\n---\n"),
    "a second time (first at document 1, line 1)",
  ],
  [
    "one policy with and without its namespace",
    `${JSON.stringify(BASE)}\n---\n${JSON.stringify({ ...BASE, metadata: { name: "server" } })}`,
    "a second time",
  ],
  ["a key twice", ingressWith("[], ingress: [ {} ]"), 'found key "ingress" a second time, wanted each once'],
  [
    "a tier that is of a fixed name and another order",
    JSON.stringify({
      apiVersion: "projectcalico.org/v3",
      kind: "Tier",
      metadata: { name: "default" },
      spec: { order: 1 },
    }),
    "spec.order",
  ],
  [
    "a policy of a tier that is not there",
    JSON.stringify(globalPolicy("late.bad", { tier: "late" })),
    'spec.tier: found "late", wanted a Tier that is there',
  ],
  [
    "a profile that the calculation makes by itself",
    JSON.stringify({
      apiVersion: "projectcalico.org/v3",
      kind: "Profile",
      metadata: { name: "kns.default" },
      spec: { ingress: [{ action: "Allow" }] },
    }),
    "metadata.name",
  ],
  [
    "a faulty policy among a thousand good ones",
    [
      ...Array.from(
        { length: 1_000 },
        (_, i) => JSON.stringify(globalPolicy(`open-${i}`, { order: 1, ingress: [{ action: "Allow" }] })),
      ),
      policyWith("("),
    ].join("\n---\n"),
    "document 1001",
  ],
];

/** One after another, each in time, with the guards tried all the while. */
const refuses = (cases: readonly (readonly [title: string, text: string, says: string])[]) => async () => {
  const lab = await fresh();
  const all = async () => {
    for (const [title, text, says] of cases) expect(await refused(lab, text), title).toContain(says);
  };
  await guarded(lab, all());
};

test(
  "what is too deep, too many, broken or there twice is refused; nothing is stored or opened",
  refuses(REFUSED),
  TEST_DEADLINE_MS,
);

const letters = (count: number): string => "x".repeat(count);
/** RFC 1123 subdomain of `count` characters, of labels of at most 63. */
const subdomain = (count: number): string =>
  Array.from({ length: Math.ceil(count / 64) }, (_, i) => letters(Math.min(63, count - i * 64))).join(".");
const namespaceWith = (metadata: Readonly<Record<string, unknown>>): string =>
  JSON.stringify({ apiVersion: "v1", kind: "Namespace", metadata });

const BEYOND: readonly (readonly [title: string, text: string, says: string])[] = [
  ["a name of 254 characters", podWith("{}").replace("name: bad", `name: ${subdomain(254)}`), "metadata.name: found"],
  ["a namespace's name of 64", namespaceWith({ name: letters(64) }), "metadata.name: found"],
  [
    "in a namespace of 64",
    podWith("{}").replace("name: bad", `name: a, namespace: ${letters(64)}`),
    "metadata.namespace: found",
  ],
  ["a label's value of 64", namespaceWith({ name: "bad", labels: { a: letters(64) } }), "metadata.labels.a: found"],
  ["a label's key of 64", namespaceWith({ name: "bad", labels: { [letters(64)]: "a" } }), "metadata.labels."],
  [
    "a label's prefix of 254",
    namespaceWith({ name: "bad", labels: { [`${subdomain(254)}/a`]: "a" } }),
    "metadata.labels.",
  ],
  [
    "annotations of more than 256 KiB",
    namespaceWith({ name: "bad", annotations: { a: letters(256 * 1024) } }),
    "metadata.annotations",
  ],
];
test("labels, names and annotations of one more than their limits are refused", refuses(BEYOND), TEST_DEADLINE_MS);

test("labels and names at their limits work in both dialects", async () => {
  const lab = await fresh();
  const key = `${subdomain(253)}/${letters(63)}`, value = letters(63);
  const many = Object.fromEntries(Array.from({ length: 500 }, (_, i) => [`label-${i}`, value]));
  await guarded(
    lab,
    lab.apply([
      podLabelled("client", "n1", { app: "client", [key]: value, ...many }, { a: letters(256 * 1024 - 1) }),
      {
        ...BASE,
        metadata: { name: subdomain(253), namespace: "default" },
        spec: {
          podSelector: { matchLabels: { app: "stranger" } },
          ingress: [{ from: [{ podSelector: { matchLabels: { [key]: value } } }] }],
        },
      },
      globalPolicy(letters(253), {
        selector: `app == 'server' && !has(${key})`,
        order: 1,
        ingress: [{
          action: "Allow",
          protocol: "TCP",
          source: { selector: `${key} == '${value}'` },
          destination: { ports: [82] },
        }],
      }),
    ]),
  );
  expect(
    await lab.wrongLines([
      "client -> stranger tcp/80 allow",
      "server -> stranger tcp/80 deny",
      "client -> server tcp/82 allow",
      "stranger -> server tcp/82 deny",
    ]),
  ).toEqual([]);
  await guarded(lab, lab.apply([CLIENT]));
  expect(await lab.wrongLines(["client -> stranger tcp/80 deny", "client -> server tcp/82 deny"])).toEqual([]);
}, TEST_DEADLINE_MS);

/** `client` to `stranger` in both families, at each of `ports`. */
const atPorts = (ports: readonly number[], isOpen: (port: number) => boolean): readonly Question[] =>
  ports.map((port) => ({
    from: { kind: "pod", id: "default/client" },
    to: { kind: "pod", id: "default/stranger" },
    families: [4, 6],
    protocol: "tcp",
    port,
    allow: isOpen(port),
  }));
const RULES = 1_024, FIRST_PORT = 10_000;
const ports = Array.from({ length: RULES + 1 }, (_, i) => FIRST_PORT + i);

test("1,024 rules of alternating actions are in force in their order", async () => {
  const lab = await fresh();
  // Each speaks of two ports, so that each port has two rules that disagree, and the first of them decides.
  const ingress = Array.from({ length: RULES }, (_, i) => ({
    action: i % 2 === 0 ? "Allow" : "Deny",
    protocol: "TCP",
    destination: { ports: [FIRST_PORT + i, FIRST_PORT + i + 1] },
  }));
  await guarded(lab, within(CHANGE_DEADLINE_MS, lab.apply([globalPolicy("long", { selector: STRANGER, ingress })])));
  const decides = (port: number) => Math.max(0, port - FIRST_PORT - 1);
  const questions = [...atPorts(ports, (port) => decides(port) % 2 === 0), ...atPorts([80, 20_000], () => false)];
  expect(await lab.wrong(questions)).toEqual([]);
}, TEST_DEADLINE_MS);

test("1,024 rules of a Kubernetes policy, each with other peers and ports, are in force", async () => {
  const lab = await fresh();
  const rule = (i: number) => ({
    from: [
      { podSelector: { matchLabels: { app: `x${i}` } } },
      { ipBlock: { cidr: `198.18.${i >> 8}.${i & 255}/32` } },
      ...i % 2 === 0
        ? [{ podSelector: { matchExpressions: [{ key: "app", operator: "NotIn", values: [`y${i}`] }] } }]
        : [],
    ],
    ports: [{ port: FIRST_PORT + i }],
  });
  const ingress = Array.from({ length: RULES }, (_, i) => rule(i));
  const spec = { podSelector: { matchLabels: { app: "stranger" } }, ingress };
  const policy: Manifest = { ...BASE, metadata: { name: "long", namespace: "default" }, spec };
  await guarded(lab, within(CHANGE_DEADLINE_MS, lab.apply([policy])));
  const questions = atPorts(ports, (port) => port < FIRST_PORT + RULES && (port - FIRST_PORT) % 2 === 0);
  expect(await lab.wrong([...questions, ...atPorts([80], () => false)])).toEqual([]);
}, TEST_DEADLINE_MS);

/** Of exactly `characters`, true of pods with `app == 'stranger'`. */
function longSelector(characters: number): string {
  const end = " || app == 'stranger'";
  let text = "app == 'nobody'";
  for (let i = 0; text.length + 60 + end.length < characters; i++) text += ` || app in {'x${i}', "y${i}"}`;
  return text + " ".repeat(characters - text.length - end.length) + end;
}
const SELECTORS: readonly (readonly [title: string, selector: string])[] = [
  ["1,024 characters", longSelector(1_024)],
  ["100,000 characters", longSelector(100_000)],
  ["10,000 pairs of parentheses", `${"(".repeat(10_000)}app == 'stranger'${")".repeat(10_000)}`],
  ["500 times !", `${"!".repeat(500)}app == 'stranger'`],
];
test.each(SELECTORS)("a selector of %s selects, and chooses peers", async (_, selector) => {
  const lab = await fresh();
  const subject = globalPolicy("subject", {
    selector,
    ingress: [{ action: "Allow", protocol: "TCP", source: { notSelector: selector, nets: ["10.244.0.0/16"] } }],
  });
  const peer = globalPolicy("peer", {
    selector: "app == 'client'",
    ingress: [{ action: "Deny", source: { selector } }, { action: "Allow" }],
  });
  await guarded(lab, within(CHANGE_DEADLINE_MS, lab.apply([subject, peer])));
  expect(
    await lab.wrong([
      { ...atPorts([80], () => true)[0]!, families: [4] },
      { ...atPorts([80], () => false)[0]!, families: [6] },
    ]),
  ).toEqual([]);
  expect(await lab.wrongLines(["stranger -> client tcp/80 deny", "server -> client tcp/80 allow"])).toEqual([]);
}, TEST_DEADLINE_MS);

const MEMBERS = 100_000;
const NETS: readonly string[] = Array.from(
  { length: MEMBERS - 2 },
  (_, i) => i % 2 === 0 ? `100.64.${i >> 9}.${i >> 1 & 255}` : `2001:db8:1::${(i >> 1).toString(16)}`,
);
const networkSet = (nets: readonly string[]): Manifest => ({
  apiVersion: "projectcalico.org/v3",
  kind: "GlobalNetworkSet",
  metadata: { name: "many", labels: { threat: "yes" } },
  spec: { nets },
} as Manifest);

test("a set of 100,000 members is applied, enforced, changed by one and taken away", async () => {
  const lab = await fresh();
  const tier: Manifest = {
    apiVersion: "projectcalico.org/v3",
    kind: "Tier",
    metadata: { name: "first" },
    spec: { order: 1 },
  };
  const block = globalPolicy("first.block", {
    tier: "first",
    selector: "app == 'server'",
    types: ["Ingress", "Egress"],
    ingress: [{ action: "Deny", source: { selector: "has(threat)" } }, { action: "Pass" }],
    egress: [{ action: "Deny", destination: { selector: "has(threat)" } }, { action: "Allow" }],
  });
  const times: number[] = [];
  /** From the request until it is in force on both nodes. */
  const timed = async (work: Promise<unknown>, guards: readonly string[]) => {
    const startMs = performance.now();
    await guarded(
      lab,
      within(LARGE_CHANGE_DEADLINE_MS, work.then(() => times.push(performance.now() - startMs))),
      guards,
    );
  };
  const inside = ["server -> out tcp/443 deny", "server -> out6 tcp/443 deny"];
  const outside = ["server -> out tcp/443 allow", "server -> out6 tcp/443 allow"];
  await lab.apply([tier, block]);
  await timed(lab.apply([networkSet([...NETS, "203.0.113.5/32", "2001:db8:ffff::/48"])]), GUARDS);
  expect(await lab.wrongLines([...GUARDS, ...inside])).toEqual([]);
  await timed(lab.apply([networkSet([...NETS, "203.0.113.5/32", "100.127.0.0/16"])]), [...GUARDS, inside[0]!]);
  expect(await lab.wrongLines([inside[0]!, outside[1]!])).toEqual([]);
  const status = (await lab.sandbox.statuses())[0]!;
  expect([status.problems, status.dataplane.problems, status.dataplane.converged]).toEqual([[], [], true]);
  await timed(lab.delete([networkSet([])]), GUARDS);
  expect(await lab.wrongLines(outside)).toEqual([]);
  const [all, one, none] = times.map((ms) => `${Math.round(ms)} ms`);
  console.log(`${MEMBERS} members: in force after ${all}, with another member after ${one}, gone after ${none}`);
}, TEST_DEADLINE_MS);

const calico = (kind: string, metadata: Manifest["metadata"], spec: unknown): Manifest => ({
  apiVersion: "projectcalico.org/v3",
  kind,
  metadata,
  spec,
});

test("one name in every kind and dialect is as many objects, and each of them holds", async () => {
  const lab = await fresh();
  const name = "same";
  await guarded(
    lab,
    lab.apply([
      calico("Tier", { name }, { order: 7 }),
      calico("GlobalNetworkPolicy", { name }, {
        selector: STRANGER,
        order: 1,
        types: ["Ingress"],
        ingress: [{ action: "Deny", protocol: "TCP", destination: { ports: [80] } }],
      }),
      calico("GlobalNetworkPolicy", { name: `${name}.${name}` }, {
        tier: name,
        selector: STRANGER,
        types: ["Ingress"],
        ingress: [{ action: "Deny", protocol: "TCP", destination: { ports: [81] } }, { action: "Pass" }],
      }),
      calico("NetworkPolicy", { name, namespace: "default" }, {
        selector: STRANGER,
        order: 2,
        types: ["Ingress"],
        ingress: [{
          action: "Allow",
          protocol: "TCP",
          destination: { ports: ["80:82"] },
          source: { selector: `has(${name})` },
        }],
      }),
      {
        ...BASE,
        metadata: { name, namespace: "default" },
        spec: { podSelector: { matchLabels: { app: "stranger" } }, ingress: [{ ports: [{ port: 83 }] }] },
      },
      calico("NetworkSet", { name, namespace: "default", labels: { [name]: "yes" } }, { nets: ["10.244.0.0/16"] }),
      calico("GlobalNetworkSet", { name, labels: { [name]: "no" } }, { nets: ["192.0.2.0/24"] }),
      calico("Profile", { name }, {
        labelsToApply: { [name]: name },
        ingress: [{ action: "Allow" }],
        egress: [{ action: "Allow" }],
      }),
      { apiVersion: "v1", kind: "Namespace", metadata: { name } },
      { apiVersion: "v1", kind: "ServiceAccount", metadata: { name, namespace: "default" } },
    ]),
  );
  // The tier of that name, the global policy, then the namespaced one, which knows the set by its label, and only in IPv4.
  const at = (port: number, families: readonly (4 | 6)[], allow: boolean) => ({
    ...atPorts([port], () => allow)[0]!,
    families,
  });
  expect(
    await lab.wrong([
      at(80, [4, 6], false),
      at(81, [4, 6], false),
      at(82, [4], true),
      at(82, [6], false),
      at(83, [4, 6], true),
      at(84, [4, 6], false),
    ]),
  ).toEqual([]);
}, TEST_DEADLINE_MS);

test("an endpoint that claims an interface that another one has is refused, a pod's as well", async () => {
  const lab = await fresh();
  const claim = (name: string, interfaceName: string): Manifest =>
    calico("WorkloadEndpoint", { name, namespace: "a" }, { node: "n1", interfaceName, ipNetworks: ["203.0.113.5/32"] });
  expect(
    await refused(
      lab,
      [claim("one", "tap0"), claim("two", "tap0")].map((each) => JSON.stringify(each)).join("\n---\n"),
    ),
  )
    .toContain("found tap0 of n1, which the endpoint a/one has already");
  const pod =
    /mx[0-9a-f]{11}/.exec(lab.inNode("n1", ["ip", "-o", "route", "get", lab.addressOf("default/server")]))![0];
  expect(await refused(lab, JSON.stringify(claim("thief", pod)))).toContain(
    `found ${pod} of n1, which the endpoint default/`,
  );
}, TEST_DEADLINE_MS);

test("of several host endpoints with one interface the first by name has it, whichever came first", async () => {
  const lab = await fresh();
  const host = (name: string, more: Readonly<Record<string, unknown>>): Manifest =>
    calico("HostEndpoint", { name, labels: { role: name } }, { node: "n1", ...more });
  const open = (role: string, order: number): Manifest =>
    globalPolicy(`open-${role}`, {
      selector: `role == '${role}'`,
      order,
      types: ["Ingress", "Egress"],
      ingress: [{ action: "Allow", protocol: "TCP", destination: { ports: [90] } }],
      egress: [{ action: "Allow" }],
    });
  const guards = [...GUARDS, "out -> node:n1@up0 tcp/91 deny"];
  await guarded(lab, lab.apply([host("b", { interfaceName: "up0" }), open("c", 1)]));
  expect(await lab.wrongLines(["out -> node:n1@up0 tcp/90 deny"])).toEqual([]);
  await guarded(
    lab,
    lab.apply([host("c", { interfaceName: "up0" }), host("d", { expectedIPs: ["192.168.3.1"] })]),
    guards,
  );
  expect(await lab.wrongLines(["out -> node:n1@up0 tcp/90 deny"])).toEqual([]);
  await guarded(lab, lab.apply([host("a", { interfaceName: "up0" }), open("a", 2)]), guards);
  expect(await lab.wrongLines(["out -> node:n1@up0 tcp/90 allow"])).toEqual([]);
}, TEST_DEADLINE_MS);

test("profiles that are named twice, that are not there and that speak of themselves come to an end", async () => {
  const lab = await fresh();
  const endpoint = (profiles: readonly string[]): Manifest =>
    calico("WorkloadEndpoint", { name: "vm", namespace: "default", labels: { vm: "yes" } }, {
      node: "n1",
      interfaceName: "up0",
      ipNetworks: ["203.0.113.5/32"],
      profiles,
    });
  const profile = (name: string, rule: unknown): Manifest =>
    calico("Profile", { name }, {
      labelsToApply: { [name]: "yes", vm: "no" },
      ingress: [rule],
      egress: [{ action: "Allow" }],
    });
  await guarded(
    lab,
    lab.apply([
      profile("self", { action: "Allow", source: { selector: "has(self) || app == 'server'" } }),
      profile("other", { action: "Deny", source: { selector: "app == 'server'" } }),
      endpoint(["nowhere", "self", "self", "other", "nowhere"]),
    ]),
  );
  expect(
    await lab.wrongLines(["server -> out tcp/443 allow", "client -> out tcp/443 deny", "node:n2 -> out tcp/443 deny"]),
  ).toEqual([]);
  await guarded(lab, lab.apply([endpoint(["other", "self"])]));
  expect(await lab.wrongLines(["server -> out tcp/443 deny", "client -> out tcp/443 deny"])).toEqual([]);
  await guarded(lab, lab.apply([endpoint(["nowhere"])]));
  expect(await lab.wrongLines(["server -> out tcp/443 deny"])).toEqual([]);
}, TEST_DEADLINE_MS);
