import { expect, test } from "bun:test";
import { isReservedLabel, namespaceLabels } from "./endpoint_labels.ts";
import {
  dnsLabelFault,
  dnsSubdomainFault,
  labelValueFault,
  portNameFault,
  qualifiedNameFault,
} from "./kubernetes_names.ts";

const CASES:
  readonly (readonly [string, (text: string) => string | undefined, readonly string[], readonly string[]])[] = [
    ["DNS label", dnsLabelFault, ["a", "a-1", "1a", "x".repeat(63)], [
      "",
      "-a",
      "a-",
      "A",
      "a.b",
      "a_b",
      "x".repeat(64),
      "a\n",
    ]],
    ["DNS subdomain", dnsSubdomainFault, ["a", "a.b-c.1"], ["", ".a", "a..b", "a.", "a.-b", "x".repeat(254), "a.b\n"]],
    ["qualified name", qualifiedNameFault, ["a", "A_1.x", "example.org/A", "a/b"], [
      "",
      "/a",
      "a/",
      "a/b/c",
      "Example.org/a",
      "-a",
      "x".repeat(64),
      "é",
    ]],
    ["label value", labelValueFault, ["", "a", "A_1.x-y", "x".repeat(63)], [
      "-a",
      "a b",
      "a/b",
      "x".repeat(64),
      'a"',
      "a\n",
    ]],
    ["port name", portNameFault, ["a", "http", "http-2", "1a", "x".repeat(15)], [
      "",
      "80",
      "HTTP",
      "a--b",
      "-a",
      "a-",
      "x".repeat(16),
    ]],
  ];

test.each(CASES)("%s syntax accepts and refuses what Kubernetes does", (_, fault, good, bad) => {
  expect(good.filter((text) => fault(text) !== undefined)).toEqual([]);
  expect(bad.filter((text) => fault(text) === undefined)).toEqual([]);
});

test("a namespace cannot be labelled with another's name, nor an endpoint with a namespace", () => {
  const own = new Map([["kubernetes.io/metadata.name", "b"], ["projectcalico.org/name", "b"], ["t", "x"]]);
  expect(Object.fromEntries(namespaceLabels("a", own))).toEqual({
    t: "x",
    "kubernetes.io/metadata.name": "a",
    "projectcalico.org/name": "a",
  });
  expect(["pcns.t", "pcsa.t", "projectcalico.org/namespace", "app", "pcnst"].map(isReservedLabel)).toEqual([
    true,
    true,
    true,
    false,
    false,
  ]);
});
