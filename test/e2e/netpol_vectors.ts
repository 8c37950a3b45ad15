/**
 * Replays test/vectors/netpol-e2e.yaml, the connectivity cases of Kubernetes' own end-to-end tests, with real packets: nine
 * pods on two nodes, in IPv4 and IPv6, every pair in every step. Call `netpolVectors` in a test file of a dataplane.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import type { ServiceProtocol } from "../../src/lab/expectation.ts";
import type { ScenarioPod, ScenarioWorld } from "../../src/lab/scenario.ts";
import { podManifest } from "../../src/lab/world_manifest.ts";
import {
  type Address,
  addressFamily,
  type Family,
  formatAddress,
  formatCidr,
  makeCidr,
} from "../../src/model/address.ts";
import { type Manifest, PolicyLab, type Question } from "./policy_lab.ts";

const CASE_DEADLINE_MS = 60_000;

/** `namespace/name`, with `*` for any. */
type Pattern = string;
type PatternPair = readonly [from: Pattern, to: Pattern];

interface Step {
  readonly setLabels?: readonly {
    kind: "Namespace" | "Pod";
    namespace?: string;
    name: string;
    labels: Record<string, string>;
  }[];
  readonly apply?: readonly Manifest[];
  readonly delete?: readonly { kind: "NetworkPolicy"; namespace: string; name: string }[];
  readonly probe: { readonly protocol: "TCP" | "UDP" | "SCTP"; readonly port: number };
  readonly denied: readonly PatternPair[];
  readonly except?: readonly PatternPair[];
}
interface Vectors {
  readonly layout: {
    readonly namespaces: readonly { name: string; labels: Record<string, string> }[];
    readonly pods: { readonly perNamespace: readonly string[] };
    readonly ports: readonly { port: number; protocol: "TCP" | "UDP" | "SCTP"; name: string }[];
  };
  readonly cases: readonly { readonly id: string; readonly title: string; readonly steps: readonly Step[] }[];
}

const vectors: Vectors = parse(readFileSync(join(import.meta.dir, "../vectors/netpol-e2e.yaml"), "utf8"));
const { namespaces, ports } = vectors.layout;
const lower = (protocol: string): ServiceProtocol => protocol.toLowerCase() as ServiceProtocol;

/** Taken in turn, so that every namespace, and every pair of them, has neighbours on its own node and on the other. */
const NODES = ["n1", "n2"] as const;
const pods: readonly ScenarioPod[] = namespaces.flatMap(({ name: namespace }, i) =>
  vectors.layout.pods.perNamespace.map((name, j): ScenarioPod => ({
    id: `${namespace}/${name}`,
    namespace,
    name,
    node: NODES[(i + j) % NODES.length]!,
    labels: { pod: name },
    serves: ports.map(({ port, protocol, name }) => ({ port, protocol: lower(protocol), name })),
  }))
);
const world: ScenarioWorld = {
  families: [4, 6],
  nodes: NODES.map((name) => ({ name, serves: [] })),
  namespaces: new Map([["default", {}], ...namespaces.map(({ name, labels }) => [name, labels] as const)]),
  pods,
  hosts: [],
  dnat: [],
};

const namespaceManifest = (name: string, labels: Record<string, string>): Manifest => ({
  apiVersion: "v1",
  kind: "Namespace",
  metadata: { name, labels },
});
const LAYOUT: readonly Manifest[] = [
  ...namespaces.map(({ name, labels }) => namespaceManifest(name, labels)),
  ...pods.map((pod) => podManifest(pod) as Manifest),
];

const relabelled = ({ kind, namespace, name, labels }: NonNullable<Step["setLabels"]>[number]): Manifest =>
  kind === "Namespace"
    ? namespaceManifest(name, labels)
    : podManifest({ ...pods.find(({ id }) => id === `${namespace}/${name}`)!, labels }) as Manifest;

const deleted = ({ kind, namespace, name }: NonNullable<Step["delete"]>[number]): Manifest => ({
  apiVersion: "networking.k8s.io/v1",
  kind,
  metadata: { name, namespace },
});

const PLACEHOLDERS = /\$\{ip:([^}]+)\}(\/32)?|\$\{net:([^}]+)\/(\d+)\}/g;
const hasPlaceholders = (steps: readonly Step[]): boolean => /\$\{(ip|net):/.test(JSON.stringify(steps));

/** `${ip:x/b}` and `${net:x/b/4}` by the addresses of `family`. */
function filled(manifest: Manifest, family: Family, addressOf: (pod: string) => Address): Manifest {
  const text = JSON.stringify(manifest).replace(PLACEHOLDERS, (_, pod, whole, netPod, prefix) => {
    if (netPod !== undefined) return formatCidr(makeCidr(addressOf(netPod), Number(prefix)));
    return formatAddress(addressOf(pod)) + (whole === undefined ? "" : family === 4 ? "/32" : "/128");
  });
  return JSON.parse(text);
}

const fits = (pattern: Pattern, pod: ScenarioPod): boolean => {
  const [namespace, name] = pattern.split("/");
  return (namespace === "*" || namespace === pod.namespace) && (name === "*" || name === pod.name);
};

/** Every pod to every other; which of them `denied` closes. */
function matrix(step: Step, families: readonly Family[]): readonly Question[] {
  const protocol = lower(step.probe.protocol), port = step.probe.port;
  return pods.flatMap((from) =>
    pods.filter((to) => to !== from).map((to): Question => {
      const isAmong = (pairs: readonly PatternPair[] = []) => pairs.some(([a, b]) => fits(a, from) && fits(b, to));
      const allow = !isAmong(step.denied) || isAmong(step.except);
      const party = ({ id }: ScenarioPod) => ({ kind: "pod", id }) as const;
      return { from: party(from), to: party(to), families, protocol, port, allow };
    })
  );
}

/** All steps of a case from the bare layout on. */
async function replay(lab: PolicyLab, steps: readonly Step[], families: readonly Family[]): Promise<readonly string[]> {
  const [family] = families;
  const addressOf = (pod: string) =>
    lab.sandbox.podAddresses(pod).find((address) => addressFamily(address) === family)!;
  const wrong: string[] = [];
  await lab.reset(LAYOUT);
  for (const [index, step] of steps.entries()) {
    await lab.apply((step.setLabels ?? []).map(relabelled));
    await lab.delete((step.delete ?? []).map(deleted));
    await lab.apply((step.apply ?? []).map((manifest) => filled(manifest, family!, addressOf)));
    wrong.push(...(await lab.wrong(matrix(step, families))).map((line) => `step ${index + 1}: ${line}`));
    if (hasPlaceholders(steps)) {
      // A block of one family holds no address of the other: who is selected by it reaches nobody there.
      const other: Step = { probe: step.probe, denied: [["x/a", "*/*"]] };
      const crossed = await lab.wrong(matrix(other, family === 4 ? [6] : [4]));
      wrong.push(...crossed.map((line) => `step ${index + 1}, blocks of the other family: ${line}`));
    }
  }
  return wrong;
}

/** `dataplane`: a built-in name. */
export function netpolVectors(dataplane: string): void {
  describe(`network policy e2e cases: ${dataplane}`, () => {
    let lab: Promise<PolicyLab> | undefined;
    afterAll(async () => await (await lab)?.[Symbol.asyncDispose]());

    for (const { id, title, steps } of vectors.cases) {
      test(`${id}: ${title}`, async () => {
        const opened = await (lab ??= PolicyLab.open(world, dataplane));
        const runs: readonly (readonly Family[])[] = hasPlaceholders(steps) ? [[4], [6]] : [[4, 6]];
        for (const families of runs) expect(await replay(opened, steps, families)).toEqual([]);
      }, CASE_DEADLINE_MS);
    }

    test("the file holds all 48 cases and 65 steps", () => {
      expect(vectors.cases.length).toBe(48);
      expect(vectors.cases.flatMap(({ steps }) => steps).length).toBe(65);
      expect(pods.length).toBe(9);
    });
  });
}
