import { expect, test } from "bun:test";
import type { KindDefinition, PolicySource } from "../../sdk/policy_source.ts";
import { coreSource } from "./core_source.ts";
import { kindRegistry } from "./kinds.ts";
import { testRegistry } from "../test_registry.ts";

const registry = await testRegistry();
const sourceOf = (definition: Partial<KindDefinition>): PolicySource => ({
  kinds: [{
    kind: "X.example.org",
    name: "X",
    plural: "xs",
    shortNames: [],
    apiVersions: ["example.org/v1"],
    namespaced: true,
    ...definition,
  }],
  validate: () => [],
  translate: () => ({ objects: [], problems: [] }),
});

test("every kind of the scenarios is known under its API's versions", () => {
  for (
    const line of [
      "v1 Namespace",
      "v1 Pod",
      "v1 ServiceAccount",
      "v1 Node",
      "v1 Service",
      "discovery.k8s.io/v1 EndpointSlice",
      "networking.k8s.io/v1 NetworkPolicy",
      "projectcalico.org/v3 NetworkPolicy",
      "crd.projectcalico.org/v1 GlobalNetworkPolicy",
      "crd.projectcalico.org/v1 HostEndpoint",
      "projectcalico.org/v3 WorkloadEndpoint",
      "crd.projectcalico.org/v1 IPPool",
    ]
  ) {
    const [apiVersion, name] = line.split(" ");
    expect([line, registry.byManifest(apiVersion!, name!)?.definition.name]).toEqual([line, name]);
  }
});

test("people may write plural, singular, short name, any case, and a group", () => {
  const kinds = (text: string) => registry.byName(text).map((known) => known.definition.kind);
  for (const text of ["pods", "pod", "Pod", "po"]) expect([text, kinds(text)]).toEqual([text, ["Pod"]]);
  expect(kinds("networkpolicies")).toEqual(["NetworkPolicy.networking.k8s.io", "NetworkPolicy.projectcalico.org"]);
  expect(kinds("networkpolicies.projectcalico.org")).toEqual(["NetworkPolicy.projectcalico.org"]);
  expect([kinds("nothing"), kinds("constructor")]).toEqual([[], []]);
});

test("two configured readers of one kind are refused; the house's own gives way", () => {
  const two = [{ name: "a", source: sourceOf({}) }, { name: "b", source: sourceOf({}) }];
  expect(() => kindRegistry(two, coreSource)).toThrow(
    "policy: found kind X.example.org in both a and b, wanted one reader for each kind",
  );
  const own = sourceOf({ kind: "Node", name: "Node", plural: "nodes", apiVersions: ["v1"] });
  expect(kindRegistry([{ name: "a", source: own }], coreSource).byKind("Node")?.source).toBe(own);
});

test("kinds whose stored forms would be taken for one another are told apart by kind", () => {
  const all = registry.definitions.map((definition) => definition.kind);
  expect(new Set(all).size).toBe(all.length);
});
