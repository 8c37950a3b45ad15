import { expect, test } from "bun:test";
import { keyText } from "../../model/resource.ts";
import { RefusedError } from "../../sdk/errors.ts";
import { parseManifest } from "./manifest.ts";
import { testRegistry } from "../test_registry.ts";

const registry = await testRegistry();
const read = (text: string, validate = true) => parseManifest(text, "m.yaml", registry, validate);
const reasonsOf = (text: string): readonly string[] => {
  try {
    read(text);
  } catch (error) {
    if (error instanceof RefusedError) return error.reasons;
    throw error;
  }
  return [];
};

const NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: { name: a }\n";

test("several documents, empty ones between them, become keys with their namespace filled in", () => {
  const entries = read(`---
${NAMESPACE}---
# nothing here
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: web }
spec: { podSelector: {} }
---
`);
  expect(entries.map((entry) => keyText(entry.key))).toEqual([
    "Namespace//a",
    "NetworkPolicy.networking.k8s.io/default/web",
  ]);
  expect(entries[1]!.resource.metadata.namespace).toBe("default");
  expect(entries[1]!.where("spec.podSelector")).toBe("m.yaml: document 3, line 11");
});

test("a List holds resources, and JSON is read as well", () => {
  const list = JSON.stringify({
    apiVersion: "v1",
    kind: "List",
    items: [{ apiVersion: "v1", kind: "Namespace", metadata: { name: "a" } }],
  });
  expect(read(list).map((entry) => keyText(entry.key))).toEqual(["Namespace//a"]);
});

test("another version of an API is stored as the first one", () => {
  const [entry] = read(
    "apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: { name: a }\nspec: { cidr: 10.0.0.0/16 }",
  );
  expect(entry!.resource.apiVersion).toBe("projectcalico.org/v3");
});

test("merge keys and anchors are followed", () => {
  const entries = read(
    "apiVersion: v1\nkind: List\nitems:\n- &a { apiVersion: v1, kind: Namespace, metadata: { name: a } }\n- { <<: *a, metadata: { name: b } }",
  );
  expect(entries.map((entry) => entry.key.name)).toEqual(["a", "b"]);
});

test("deleting needs no more than names", () => {
  expect(read("apiVersion: v1\nkind: Namespace\nmetadata: { name: a, labels: { '!': 1 } }\nfoo: 1", false))
    .toHaveLength(1);
});

const faults: readonly [string, string, readonly string[]][] = [
  ["broken YAML", `${NAMESPACE}---\na: [`, ["m.yaml: document 2, line 5, column 5: broken YAML:"]],
  ["a key twice", "apiVersion: v1\napiVersion: v1", [
    'm.yaml: document 1, line 2, column 1: broken YAML: found key "apiVersion" a second time, wanted each once',
  ]],
  [
    "a key twice in the depth",
    "apiVersion: v1\nkind: Namespace\nmetadata: { name: a, labels: { x: y, z: '', x: y } }",
    [
      'm.yaml: document 1, line 3, column 45: broken YAML: found key "x" a second time, wanted each once',
    ],
  ],
  ["text", "hello", ['m.yaml: document 1, line 1: found "hello", wanted a resource']],
  ["a list of resources", "- a", ["m.yaml: document 1, line 1: found a list, wanted a resource"]],
  ["no apiVersion", "kind: Pod", ["m.yaml: document 1, line 1: apiVersion: found nothing, wanted text such as"]],
  ["no kind", "apiVersion: v1", ["m.yaml: document 1, line 1: kind: found nothing, wanted text such as"]],
  ["an unknown kind", "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: a }", [
    "m.yaml: document 1, line 2: kind: found Deployment of apps/v1, wanted kind ",
  ]],
  ["a kind of another API", "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: { name: a }", [
    "m.yaml: document 1, line 2: kind: found NetworkPolicy of extensions/v1beta1, wanted apiVersion networking.k8s.io/v1 or projectcalico.org/v3",
  ]],
  ["no metadata", "apiVersion: v1\nkind: Namespace", [
    "m.yaml: document 1, line 1: metadata: found nothing, wanted a mapping with a name",
  ]],
  ["no name", "apiVersion: v1\nkind: Namespace\nmetadata: {}", [
    "m.yaml: document 1, line 3: metadata.name: found nothing, wanted a name",
  ]],
  ["a bad name", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: A_b", [
    'm.yaml: document 1, line 4: metadata.name: found "A_b", wanted a name of lower-case',
  ]],
  ["an unknown field of metadata", "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  label: { a: b }", [
    "m.yaml: document 1, line 5: metadata.label: found an unknown field",
  ]],
  ["a namespace where there is none", "apiVersion: v1\nkind: Namespace\nmetadata: { name: a, namespace: b }", [
    'metadata.namespace: found "b", wanted none: Namespace belongs to no namespace',
  ]],
  ["a label that is a number", "apiVersion: v1\nkind: Namespace\nmetadata: { name: a, labels: { x: 1 } }", [
    "metadata.labels.x: found 1, wanted text",
  ]],
  ["a bad label value", "apiVersion: v1\nkind: Namespace\nmetadata: { name: a, labels: { x: a b } }", [
    'metadata.labels.x: found "a b", wanted a label value',
  ]],
  [
    "a bad prefix",
    "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: { name: a }\nspec:\n  cidr: 10.0.0.1/16",
    [
      'm.yaml: document 1, line 5: spec.cidr: found "10.0.0.1/16", wanted the network itself, 10.0.0.0/16',
    ],
  ],
  [
    "an unknown field of the spec",
    "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: { name: a }\nspec:\n  cidr: 10.0.0.0/16\n  nat: true",
    [
      "m.yaml: document 1, line 6: spec.nat: found an unknown field",
    ],
  ],
  [
    "a fault deep in a policy",
    `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: a }
spec:
  podSelector: {}
  ingress:
  - ports:
    - port: 80
      endPort: 70`,
    ["m.yaml: document 1, line 9: spec.ingress[0].ports[0].endPort: "],
  ],
  [
    "two faults in two documents",
    "apiVersion: v1\nkind: X\nmetadata: { name: a }\n---\napiVersion: v1\nkind: Namespace\nmetadata: { name: '' }",
    [
      "m.yaml: document 1, line 2: kind: found X of v1",
      'm.yaml: document 2, line 7: metadata.name: found ""',
    ],
  ],
  [
    "a fault in an item of a List",
    "apiVersion: v1\nkind: List\nitems:\n- { apiVersion: v1, kind: Namespace, metadata: { name: a } }\n- { apiVersion: v1, kind: Namespace, metadata: { name: _ } }",
    [
      'm.yaml: document 1, line 5: items[1].metadata.name: found "_"',
    ],
  ],
  ["a resource twice", `${NAMESPACE}---\n${NAMESPACE}`, [
    "m.yaml: document 2, line 7: metadata.name: found Namespace//a a second time (first at document 1, line 3), wanted each once",
  ]],
  [
    "aliases without end",
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: [*c, *c, *c, *c]",
    [
      "m.yaml: document 1, line 1: found aliases that cannot be expanded",
    ],
  ],
];
for (const [subject, text, expected] of faults) {
  test(`${subject} is refused with file, document, line and field`, () => {
    const reasons = reasonsOf(text);
    expect(reasons.length).toBeGreaterThanOrEqual(expected.length);
    expected.forEach((reason, i) => expect(reasons[i]).toContain(reason));
  });
}

test("many faults are counted, not all told", () => {
  const text = Array.from({ length: 50 }, () => "apiVersion: v1\nkind: X\nmetadata: { name: a }").join("\n---\n");
  const reasons = reasonsOf(text);
  expect(reasons).toHaveLength(21);
  expect(reasons[20]).toBe("… and 30 more");
});

test("a map of 50,000 keys with anchors is read", () => {
  const labels = Array.from({ length: 50_000 }, (_, i) => `    k${i}: &a${i} v\n`).join("");
  const [entry] = read(`apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels:\n${labels}`);
  expect(Object.keys(entry!.resource.metadata.labels ?? {})).toHaveLength(50_000);
});
