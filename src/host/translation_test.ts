import { expect, test } from "bun:test";
import type { Resource } from "../model/resource.ts";
import type { NeutralPolicy } from "../model/rule.ts";
import { testRegistry } from "./test_registry.ts";
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

test("what cannot be read at all keeps its last good version", () => {
  const translator = createTranslator(registry);
  translator.translate({ key, value: GOOD });
  expect(translator.translate({ key, problem: "found no JSON" })).toBeUndefined();
  expect(translator.problems()).toMatchObject([{ message: "found no JSON", effect: "last-good" }]);
});

test("a policy that cannot be read at all closes its namespace", () => {
  const translator = createTranslator(registry);
  const [closed] = translator.translate({ key, problem: "found no JSON" })!.objects as NeutralPolicy[];
  expect(allowing([closed])).toBe(0);
  expect(JSON.stringify(closed!.selects)).toContain('"default"');
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
