import { expect, test } from "bun:test";
import { MemoryStorage } from "../../../test/contract/memory_datastore.ts";
import { keyText } from "../../model/resource.ts";
import { systemClock } from "../clock.ts";
import { parseManifest } from "./manifest.ts";
import { createResources } from "./resources.ts";
import { placeIn, placeText, readSourceLines, SOURCE_LINES, sourceLinesKey, sourceLinesOf } from "./source_lines.ts";
import { testRegistry } from "../test_registry.ts";

const registry = await testRegistry();

const MANIFEST = `# a comment first
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: web, namespace: prod }
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress:
  # one
  - from: [ { podSelector: {} } ]

  - ports:
    - port: 80
  egress: [ { to: [] }, { to: [] } ]
---
apiVersion: v1
kind: List
items:
- apiVersion: projectcalico.org/v3
  kind: GlobalNetworkPolicy
  metadata: { name: all }
  spec: { selector: all(), ingress: [ { action: Log },
    { action: Deny } ] }
- apiVersion: v1
  kind: Namespace
  metadata: { name: prod }
- apiVersion: projectcalico.org/v3
  kind: Tier
  metadata: { name: t }
  spec: { order: 1 }
- { apiVersion: projectcalico.org/v3, kind: Profile, metadata: { name: p }, spec: { egress: [ { action: Allow } ] } }
`;

test("every rule of what decides has its line, in lists of documents, in flow style and past comments", () => {
  const entries = parseManifest(MANIFEST, "m.yaml", registry, true);
  const found = entries.map((entry) => {
    const lines = sourceLinesOf(entry, registry);
    return `${entry.key.kind} ${
      lines === undefined ? "none" : `${lines.line} in ${lines.ingress} out ${lines.egress}`
    }`;
  });
  expect(found).toEqual([
    "NetworkPolicy.networking.k8s.io 2 in 10,12 out 14,14",
    "GlobalNetworkPolicy.projectcalico.org 19 in 22,23 out ",
    "Namespace none",
    "Tier.projectcalico.org 27 in  out ",
    "Profile.projectcalico.org 31 in  out 31",
  ]);
  const lines = sourceLinesOf(entries[0]!, registry)!;
  expect(placeText(placeIn(lines))).toBe("m.yaml:2");
  expect(placeText(placeIn(lines, { direction: "ingress", index: 1 }))).toBe("m.yaml:12");
  // A rule that a dialect made of something else than a list of rules.
  expect(placeText(placeIn(lines, { direction: "ingress", index: 9 }))).toBe("m.yaml:2");
});

const POLICY = MANIFEST.slice(0, MANIFEST.indexOf("---"));
const KEY = { kind: "NetworkPolicy.networking.k8s.io", namespace: "prod", name: "web" };

function opened() {
  const storage = new MemoryStorage(), datastore = storage.client();
  const resources = createResources({ datastore, registry, clock: systemClock, programmed: () => Promise.resolve() });
  const lines = async () =>
    readSourceLines(
      (await datastore.get(sourceLinesKey(KEY)))?.value,
      (await datastore.get(KEY))?.value,
    );
  return { storage, datastore, resources, lines };
}

test("they are written in the commit of the object and go with it; nothing of them is shown", async () => {
  const { storage, datastore, resources, lines } = opened();
  await resources.apply({ text: POLICY, file: "a.yaml" });
  expect([storage.commits, storage.revision]).toEqual([1, 1]);
  expect(await lines()).toMatchObject({ file: "a.yaml", line: 2, ingress: [10, 12] });
  expect(JSON.stringify(await resources.list("networkpolicies", undefined))).not.toContain("a.yaml");
  expect(resources.list("sourcelines", undefined)).rejects.toThrow("found no kind");
  await resources.delete({ text: POLICY, file: "a.yaml" });
  expect(storage.commits).toBe(2);
  expect([await datastore.list(SOURCE_LINES), await datastore.list(KEY.kind)]).toEqual([[], []]);
  await resources.apply({ text: POLICY, file: "a.yaml" });
  await resources.remove("netpol", "prod", "web", 0);
  expect(await datastore.list(SOURCE_LINES)).toEqual([]);
});

test("an unchanged object that stands elsewhere now is unchanged, at its new place", async () => {
  const { datastore, resources, lines } = opened();
  await resources.apply({ text: POLICY, file: "a.yaml" });
  const { results } = await resources.apply({ text: `\n\n${POLICY}`, file: "standard input" });
  expect(results[0]).toMatchObject({ outcome: "unchanged", revision: (await datastore.get(KEY))!.revision as string });
  expect(await lines()).toMatchObject({ file: "stdin", line: 4, ingress: [12, 14] });
});

test("a dry run, or a refused manifest, writes none", async () => {
  const { datastore, resources } = opened();
  await resources.apply({ text: POLICY, file: "a.yaml", dryRun: true });
  await resources.apply({ text: `${POLICY}---\nkind: Frob`, file: "a.yaml" }).catch(() => {});
  expect(await datastore.list(SOURCE_LINES)).toEqual([]);
});

test("lines of what somebody has written otherwise since, and lines that are damaged, are none", async () => {
  const { datastore, resources, lines } = opened();
  await resources.apply({ text: POLICY, file: "a.yaml" });
  const { value } = (await datastore.get(KEY))!;
  const kept = (await datastore.get(sourceLinesKey(KEY)))!.value;
  const spec = kept.spec as Record<string, unknown>;
  for (
    const broken of [undefined, { ...kept, spec: undefined }, { ...kept, spec: { ...spec, ingress: ["1"] } }, {
      ...kept,
      spec: { ...spec, file: 1 },
    }]
  ) {
    expect(readSourceLines(broken as typeof kept, value)).toBeUndefined();
  }
  await datastore.commit([{ key: KEY, value: { ...value, spec: { podSelector: {} } } }]);
  expect(await lines()).toBeUndefined();
  expect(keyText(sourceLinesKey(KEY))).toBe("SourceLines.manx/prod/NetworkPolicy.networking.k8s.io/web");
});
