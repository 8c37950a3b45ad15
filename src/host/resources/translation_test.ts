import { expect, test } from "bun:test";
import type { Resource } from "../../model/resource.ts";
import type { NeutralPolicy } from "../../model/rule.ts";
import { formatSelector } from "../../model/selector_format.ts";
import { testRegistry } from "../test_registry.ts";
import { createTranslator } from "./translation.ts";

const registry = await testRegistry();
const key = { kind: "NetworkPolicy.networking.k8s.io", namespace: "default", name: "web" };
const policy = (spec: unknown): Resource => ({
  apiVersion: "networking.k8s.io/v1",
  kind: "NetworkPolicy",
  metadata: { name: "web", namespace: "default" },
  spec,
});
const GOOD = policy({ podSelector: { matchLabels: { app: "web" } }, ingress: [{ ports: [{ port: 80 }] }] });
const BAD = policy({ podSelector: { matchLabels: { app: "web" } }, ingress: [{ ports: [{ port: "not a port!" }] }] });
/** How many rules allow something; undefined where the direction is not covered. */
const allowing = (objects: readonly unknown[] | undefined) =>
  (objects?.[0] as NeutralPolicy | undefined)?.ingress?.filter((rule) => rule.action === "allow").length;

test("a good version is translated and has no problem", () => {
  const translator = createTranslator(registry);
  expect(allowing(translator.translate({ key, value: GOOD })?.objects)).toBe(1);
  expect(translator.problems()).toEqual([]);
});

test("a bad version after a good one changes nothing and is a problem", () => {
  const translator = createTranslator(registry);
  translator.translate({ key, value: GOOD });
  expect(translator.translate({ key, value: BAD })).toBeUndefined();
  expect(translator.problems()).toMatchObject([{
    subject: key,
    path: "spec.ingress[0].ports[0].port",
    effect: "last-good",
  }]);
  translator.translate({ key, value: GOOD });
  expect(translator.problems()).toEqual([]);
});

test("a bad version without a good one fails closed", () => {
  const translator = createTranslator(registry);
  expect(allowing(translator.translate({ key, value: BAD })?.objects)).toBe(0);
  expect(translator.problems()).toMatchObject([{ effect: "fail-closed" }]);
});

test("a bad version after a deletion finds no good one any more", () => {
  const translator = createTranslator(registry);
  translator.translate({ key, value: GOOD });
  expect(translator.translate({ key })).toEqual({ origin: "NetworkPolicy.networking.k8s.io/default/web", objects: [] });
  expect(allowing(translator.translate({ key, value: BAD })?.objects)).toBe(0);
  expect(translator.problems()).toMatchObject([{ effect: "fail-closed" }]);
});

test.each([
  ["another kind", { ...GOOD, kind: "Namespace", spec: undefined }, "found Namespace default/web stored under"],
  [
    "another name",
    { ...GOOD, metadata: { name: "other", namespace: "default" } },
    "found NetworkPolicy default/other stored under",
  ],
  [
    "another namespace",
    { ...GOOD, metadata: { name: "web", namespace: "prod" } },
    "found NetworkPolicy prod/web stored under",
  ],
])("%s under a key is a problem, not a deletion of what belongs there", (_, value, message) => {
  const translator = createTranslator(registry);
  expect(allowing(translator.translate({ key, value })?.objects)).toBe(0);
  translator.translate({ key, value: GOOD });
  expect(translator.translate({ key, value })).toBeUndefined();
  expect(translator.problems()).toMatchObject([{ subject: key, effect: "last-good" }]);
  expect(translator.problems()[0]!.message).toStartWith(message);
});

test("a resource that leaves its namespace unsaid is in default", () => {
  const translator = createTranslator(registry);
  expect(allowing(translator.translate({ key, value: { ...GOOD, metadata: { name: "web" } } })?.objects)).toBe(1);
  expect(translator.problems()).toEqual([]);
});

test("what cannot be read at all keeps its last good version", () => {
  const translator = createTranslator(registry);
  translator.translate({ key, value: GOOD });
  expect(translator.translate({ key, problem: "found no JSON" })).toBeUndefined();
  expect(translator.problems()).toMatchObject([{ message: "found no JSON", effect: "last-good" }]);
});

test.each([
  ["NetworkPolicy.networking.k8s.io", 'projectcalico.org/namespace == "default"'],
  ["NetworkPolicy.projectcalico.org", 'projectcalico.org/namespace == "default"'],
  ["GlobalNetworkPolicy.projectcalico.org", "all()"],
  ["ClusterNetworkPolicy.policy.networking.k8s.io", "has(projectcalico.org/orchestrator)"],
  ["Namespace", 'projectcalico.org/namespace == "web"'],
  ["ServiceAccount", '(projectcalico.org/namespace == "default" && projectcalico.org/serviceaccount == "web")'],
  ["Pod", 'manx/unreadable == "Pod/default/web"'],
])("of %s nothing can be read but its name: %s is denied, both ways", (kind, selects) => {
  const translator = createTranslator(registry);
  const namespace = registry.byKind(kind)!.definition.namespaced ? "default" : "";
  const { objects } = translator.translate({ key: { kind, namespace, name: "web" }, problem: "found no JSON" })!;
  const policies = objects.filter((object) => object.kind === "policy");
  expect(policies.map((policy) => formatSelector(policy.selects))).toEqual([selects]);
  expect(policies).toMatchObject([{ staged: false, ingress: [{ action: "deny" }], egress: [{ action: "deny" }] }]);
  expect(translator.problems()).toMatchObject([{ message: "found no JSON", effect: "fail-closed" }]);
});

test("what is never enforced, or gives peers alone, gives nothing where it cannot be read", () => {
  for (const kind of ["StagedNetworkPolicy.projectcalico.org", "Service", "EndpointSlice.discovery.k8s.io"]) {
    const translator = createTranslator(registry);
    const change = { key: { kind, namespace: "default", name: "web" }, problem: "found no JSON" };
    expect(translator.translate(change)!.objects).toEqual([]);
  }
});

test("a deleted problem is gone", () => {
  const translator = createTranslator(registry);
  translator.translate({ key, value: BAD });
  translator.translate({ key });
  expect(translator.problems()).toEqual([]);
});

test("a kind that nobody reads is left alone", () => {
  expect(createTranslator(registry).translate({ key: { ...key, kind: "Secret" } })).toBeUndefined();
});

test("a reader that throws closes the namespace, or everything for a kind without one", () => {
  const failing = (namespaced: boolean) => {
    const definition = { ...registry.byKind(key.kind)!.definition, namespaced };
    const source = {
      kinds: [definition],
      validate: () => [],
      translate: () => {
        throw new Error("oh");
      },
    };
    return createTranslator({ ...registry, byKind: () => ({ definition, source }) });
  };
  for (const namespaced of [true, false]) {
    const translator = failing(namespaced);
    const selects = namespaced ? { op: "eq", label: "projectcalico.org/namespace", value: "default" } : { op: "all" };
    expect(translator.translate({ key, value: GOOD })?.objects).toMatchObject([{
      selects,
      ingress: [{ action: "deny" }],
      egress: [{ action: "deny" }],
    }]);
    expect(translator.problems()).toMatchObject([{ message: "its reader failed: oh", effect: "fail-closed" }]);
  }
});
