import { expect, test } from "bun:test";
import { readLabelSelector } from "./label_selector.ts";
import { readMetadata } from "./object_metadata.ts";
import { Field, Findings, FINDINGS_LIMIT } from "./validation.ts";

function noted(value: unknown, read: (root: Field) => unknown): string[] {
  const root = new Field(new Findings(), value);
  read(root);
  return root.findings.all.map(({ path, message }) => `${path}: ${message}`);
}

test("a path names fields, members and keys that are no words", () => {
  const root = new Field(new Findings(), { spec: { list: [{}, { a: { "b/c": 1 } }] } });
  expect(root.path).toBe("");
  expect(root.at("spec").at("list").items()[1]!.at("a").at("b/c").path).toBe('spec.list[1].a["b/c"]');
});

test("absent and null ask nothing, and inherited names are absent", () => {
  for (const value of [{}, { a: null }, undefined, null]) {
    expect(noted(value, (root) => {
      const field = root.at("a");
      return [
        field.text(),
        field.flag(),
        field.integer(0, 1),
        field.items(),
        field.entries(),
        field.object([]),
        field.selector(),
      ];
    })).toEqual([]);
  }
  expect(new Field(new Findings(), {}).at("constructor").given).toBe(false);
});

test.each([
  [{ podSelecter: 1 }, "podSelector, perhaps; the fields are podSelector, ports"],
  [{ PODSELECTOR: 1 }, "podSelector, perhaps; the fields are podSelector, ports"],
  [{ prots: 1 }, "ports, perhaps; the fields are podSelector, ports"],
  [{ port: 1 }, "ports, perhaps; the fields are podSelector, ports"],
  [{ opRts: 1 }, "ports, perhaps; the fields are podSelector, ports"],
  [{ porst: 1 }, "ports, perhaps; the fields are podSelector, ports"],
  [{ stropp: 1 }, "one of podSelector, ports"],
  [{ other: 1 }, "one of podSelector, ports"],
])("the unknown field in %j is told from what was perhaps meant", (value, wanted) => {
  const [name] = Object.keys(value);
  expect(noted(value, (root) => root.object(["podSelector", "ports"]))).toEqual([
    `${name}: found an unknown field, wanted ${wanted}`,
  ]);
});

test("values are found as they are, and wanted as they should be", () => {
  const value = {
    text: 1,
    flag: "yes",
    integer: 1.5,
    number: NaN,
    list: {},
    object: [],
    one: "B",
    cidr: "10.0.0.1/8",
    name: "UP",
  };
  expect(noted(value, (root) => [
    root.at("text").text(),
    root.at("flag").flag(),
    root.at("integer").integer(0, 9),
    root.at("number").number(),
    root.at("list").items(),
    root.at("object").object([]),
    root.at("one").oneOf(["A", "C"]),
    root.at("cidr").cidr("refused"),
    root.at("name").name((text) => text === "up" ? undefined : "up"),
    root.at("missing").required("something"),
  ])).toEqual([
    "text: found 1, wanted a string (in quotes)",
    'flag: found "yes", wanted true or false',
    "integer: found 1.5, wanted a whole number from 0 to 9",
    "number: found NaN, wanted a number",
    "list: found an object, wanted a list",
    "object: found a list, wanted an object",
    'one: found "B", wanted A or C',
    'cidr: found "10.0.0.1/8", wanted the network itself, 10.0.0.0/8',
    'name: found "UP", wanted up',
    "missing: found nothing, wanted something",
  ]);
});

test("the same finding twice is one, and beyond the limit findings are counted", () => {
  const findings = new Findings();
  for (let i = 0; i < FINDINGS_LIMIT + 10; i++) findings.add(`a[${i}]`, "bad");
  findings.add("a[0]", "bad");
  expect(findings.all.length).toBe(FINDINGS_LIMIT + 1);
  expect(findings.all.at(-1)).toEqual({ path: "", message: "found 10 more faults" });
});

test("an attempt tells whether what it read was without fault, even where the fault was noted before", () => {
  const root = new Field(new Findings(), { a: 1, b: "x" });
  root.at("a").text();
  expect(root.findings.attempt(() => root.at("a").text() ?? "")).toBeUndefined();
  expect(root.findings.attempt(() => root.at("b").text())).toBe("x");
});

test.each([
  [{ name: "a.b-c" }, []],
  [{ name: "a".repeat(253) }, []],
  [{ name: "a", labels: { "example.org/Key_1.x": "V-a_l.1" }, annotations: { "Example.org/Any": "any\ntext" } }, []],
  [{ name: "a", creationTimestamp: null, managedFields: [], ownerReferences: [{}], generation: 3 }, []],
  [{ name: "a".repeat(254) }, ["metadata.name"]],
  [{ name: "a_b" }, ["metadata.name"]],
  [{ name: "a", labels: { "Example.org/k": "v" } }, ['metadata.labels["Example.org/k"]']],
  [{ name: "a", labels: { k: "v".repeat(64) } }, ["metadata.labels.k"]],
  [{ name: "a", labels: { k: null } }, ["metadata.labels.k"]],
  [{ name: "a", labels: [] }, ["metadata.labels"]],
  [{ name: "a", annotations: { k: true } }, ["metadata.annotations.k"]],
  [{ name: "a", annotations: { k: "x".repeat(256 * 1024) } }, ["metadata.annotations"]],
  [{ name: "a", namespace: "B" }, ["metadata.namespace"]],
])("metadata %j", (metadata, paths) => {
  const root = new Field(new Findings(), { metadata });
  readMetadata(root, { namespaced: true });
  expect(root.findings.all.map(({ path }) => path)).toEqual([...paths]);
});

test.each([
  [{ matchExpressions: [{ key: "a", operator: "Exists", values: ["x"] }] }, "matchExpressions[0].values"],
  [{ matchExpressions: [{ key: "a", operator: "in", values: ["x"] }] }, "matchExpressions[0].operator"],
  [{ matchExpressions: [{ operator: "Exists" }] }, "matchExpressions[0].key"],
  [{ matchExpressions: [{ key: "a b", operator: "Exists" }] }, "matchExpressions[0].key"],
  [{ matchExpressions: [{ key: "a", operator: "In", values: ["a b"] }] }, "matchExpressions[0].values[0]"],
  [{ matchLabel: {} }, "matchLabel"],
])("the label selector %j is refused at %s", (value, path) => {
  const root = new Field(new Findings(), value);
  readLabelSelector(root);
  expect(root.findings.all.map((finding) => finding.path)).toEqual([path]);
});
