/**
 * Replays test/vectors/k8s-conversion.yaml: a Kubernetes policy read by us means what the Calico policy that Calico makes
 * of it means when the Calico dialect reads that. Differences on purpose, beside the cases named in DIFFERS:
 * - Calico asks `orchestrator == 'k8s'` of endpoints; we ask any orchestrator of peers and nothing of those selected, so that
 *   workloads without Kubernetes are under the same policies.
 */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { NAMESPACE_LABEL, ORCHESTRATOR_LABEL } from "../../../src/model/endpoint_labels.ts";
import type { Resource } from "../../../src/model/resource.ts";
import type { NeutralPolicy, NeutralRule, PeerMatch } from "../../../src/model/rule.ts";
import { formatPolicy } from "../../../src/model/rule_format.ts";
import type { Selector } from "../../../src/model/selector.ts";
import { formatSelector } from "../../../src/model/selector_format.ts";
import { parseSelector } from "../../../src/model/selector_parse.ts";
import { readLabelSelector } from "../../../src/sdk/label_selector.ts";
import { mergeRanges } from "../../../src/sdk/kubernetes_policy.ts";
import { Field, Findings } from "../../../src/sdk/validation.ts";
import { calicoSource } from "../calico/mod.ts";
import { kubernetesSource } from "./mod.ts";

interface Vectors {
  readonly policies: readonly {
    id: string;
    title: string;
    input: Resource;
    expect: Record<string, unknown> & { name: string; namespace: string };
  }[];
  readonly selectors: readonly { for: "pod" | "namespace"; in: unknown; out: string }[];
  readonly peers: readonly { in: unknown; out: Record<string, unknown> }[];
  readonly ports: readonly { in: readonly (string | number)[]; out: readonly (string | number)[] }[];
  readonly profiles: readonly {
    input: { kind: string; name: string; namespace?: string; labels: Record<string, string> };
    expect: { name: string; labelsToApply: Record<string, string> };
  }[];
}
const vectors: Vectors = parse(
  readFileSync(join(import.meta.dir, "../../../test/vectors/k8s-conversion.yaml"), "utf8"),
);

const DIFFERS: Readonly<Record<string, { why: string; path: string }>> = {
  "bad-port": {
    why: "a policy that cannot be read in full is refused; met in a store, it denies",
    path: "spec.ingress[1].ports[1].port",
  },
  "bad-port-2": { why: "the same", path: "spec.egress[1].ports[1].port" },
  "both-directions": {
    why: "no API server takes an exception outside its block",
    path: "spec.egress[0].to[0].ipBlock.except[0]",
  },
};

/** Conjunctions sorted; the orchestrator asked for in one way; being in a namespace not asked of what is a workload. */
function normal(selector: Selector, selects: boolean): Selector {
  const parts = (selector.op === "and" ? selector.of : [selector]).map((part): Selector =>
    part.op === "eq" && part.label === ORCHESTRATOR_LABEL ? { op: "has", label: ORCHESTRATOR_LABEL } : part
  );
  const isHas = (part: Selector, label: string) => part.op === "has" && part.label === label;
  const kept = parts.filter((part) => !isHas(part, NAMESPACE_LABEL) && !(selects && isHas(part, ORCHESTRATOR_LABEL)));
  return { op: "and", of: kept.toSorted((a, b) => formatSelector(a) < formatSelector(b) ? -1 : 1) };
}
const normalPeer = (peer: PeerMatch): PeerMatch =>
  peer.selector === undefined ? peer : { ...peer, selector: normal(peer.selector, false) };
const normalRules = (rules?: readonly NeutralRule[]) =>
  rules?.map((rule) => ({ ...rule, source: normalPeer(rule.source), destination: normalPeer(rule.destination) }));
const textOf = (policy: NeutralPolicy) =>
  formatPolicy({
    ...policy,
    id: "it",
    selects: normal(policy.selects, true),
    ingress: normalRules(policy.ingress),
    egress: normalRules(policy.egress),
  });

for (const { id, title, input, expect: expected } of vectors.policies) {
  // Names as the API server demands them.
  const manifest = { ...input, metadata: { ...input.metadata, name: input.metadata.name.toLowerCase() } };
  const differs = DIFFERS[id];
  test(`${id}: ${title}${differs === undefined ? "" : ` (differs on purpose: ${differs.why})`}`, () => {
    const { objects, problems } = kubernetesSource.translate(manifest);
    if (differs !== undefined) {
      expect(problems[0]?.path).toBe(differs.path);
      const policy = objects[0] as NeutralPolicy;
      expect([...policy.ingress ?? [], ...policy.egress ?? []].map(({ action }) => action)).not.toContain("allow");
      return;
    }
    expect(problems).toEqual([]);
    const { name, namespace, droppedRules: _, ...spec } = expected;
    const calico = calicoSource.translate({
      apiVersion: "projectcalico.org/v3",
      kind: "NetworkPolicy",
      metadata: { name: name.toLowerCase(), namespace },
      spec,
    });
    expect(calico.problems).toEqual([]);
    expect(textOf(objects[0] as NeutralPolicy)).toBe(textOf(calico.objects[0] as NeutralPolicy));
  });
}

test.each(vectors.selectors.map((vector) => [vector.for, vector.in, vector.out] as const))(
  "%s selector %j reads as %s",
  (of, value, out) => {
    const findings = new Findings();
    const selector = readLabelSelector(new Field(findings, value));
    expect(findings.all).toEqual([]);
    const wanted = normal(parseSelector(out), of === "pod");
    expect(formatSelector(normal(selector, true))).toBe(formatSelector(wanted));
  },
);

test.each(vectors.peers.map((vector) => [vector.in, vector.out] as const))("peer %j", (peer, out) => {
  const translation = kubernetesSource.translate({
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name: "p" },
    spec: { ingress: [{ from: [peer] }] },
  });
  if (Object.keys(out).length === 0) {
    // Calico drops a block that it cannot read, and so its rule matches anyone; ours refuses it.
    expect(translation.problems[0]?.path).toBe("spec.ingress[0].from[0].ipBlock.cidr");
    return;
  }
  const { objects } = calicoSource.translate({
    apiVersion: "projectcalico.org/v3",
    kind: "NetworkPolicy",
    metadata: { name: "p" },
    spec: { ingress: [{ action: "Allow", source: out }] },
  });
  expect((translation.objects[0] as NeutralPolicy).ingress?.[0]?.source)
    .toEqual((objects[0] as NeutralPolicy).ingress![0]!.source);
});

test.each(vectors.ports.map((vector) => [vector.in, vector.out] as const))("ports %j merge to %j", (ports, out) => {
  const ranges = ports.flatMap((port) => {
    const [first, last] = String(port).split(":").map(Number);
    return Number.isNaN(first) ? [] : [{ first: first!, last: last ?? first! }];
  });
  const names = ports.filter((port) => typeof port === "string" && !/^[0-9]/.test(port));
  const merged = mergeRanges(ranges).map(({ first, last }) => first === last ? first : `${first}:${last}`);
  expect([...names, ...merged]).toEqual([...out]);
});

test.each(vectors.profiles.map((vector) => [vector.expect.name, vector] as const))(
  // The rules of kns.* profiles are the calculation's own: they hold where no Namespace was ever written, too.
  "%s: endpoints inherit its labels under the prefix that Calico gives them",
  (_, { input, expect: expected }) => {
    const { objects, problems } = kubernetesSource.translate({
      apiVersion: "v1",
      kind: input.kind,
      metadata: { name: input.name, labels: input.labels, ...(input.namespace ? { namespace: input.namespace } : {}) },
    });
    expect(problems).toEqual([]);
    const [object] = objects;
    if (object?.kind !== "namespace" && object?.kind !== "serviceAccount") {
      throw new Error("neither a namespace nor an account");
    }
    const prefix = object.kind === "namespace" ? "pcns." : "pcsa.";
    const inherited = Object.fromEntries([...object.labels].map(([label, value]) => [prefix + label, value]));
    // Beyond Calico's: the label that every API server puts on namespaces, which ours has no API server for.
    delete inherited["pcns.kubernetes.io/metadata.name"];
    expect(inherited).toEqual(expected.labelsToApply);
  },
);
