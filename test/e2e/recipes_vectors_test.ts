/**
 * Replays test/vectors/recipes.yaml with real packets: for each recipe its pods are attached through CNI, its policies applied, its
 * probes tried in IPv4 and IPv6, and everything is taken away again.
 */
import { afterAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import type { Party, ServiceProtocol } from "../../src/lab/expectation.ts";
import type { ScenarioPod } from "../../src/lab/scenario.ts";
import { podManifest } from "../../src/lab/world_manifest.ts";
import { type Manifest, PolicyLab, type Question } from "./policy_lab.ts";

const RECIPE_DEADLINE_MS = 60_000;

type Protocol = "TCP" | "UDP" | "SCTP";
interface Recipe {
  readonly id: string;
  readonly title: string;
  readonly namespaces: readonly { name: string; labels: Record<string, string> }[];
  readonly pods: readonly {
    pod: string;
    labels: Record<string, string>;
    ports: readonly { port: number; protocol: Protocol; name?: string }[];
  }[];
  readonly policies: readonly Manifest[];
  readonly probes: readonly { from: string; to: string; protocol: Protocol; port: number; allowed: boolean }[];
}
const { recipes }: { recipes: readonly Recipe[] } = parse(
  readFileSync(join(import.meta.dir, "../vectors/recipes.yaml"), "utf8"),
);

const NODES = ["n1", "n2"] as const;
/** Who is meant by `external`, in either family. */
const EXTERNAL = { 4: "external", 6: "external6" } as const;
const WORLD = `
nodes: [ { name: n1 }, { name: n2 } ]
hosts:
  - { name: external, address: 203.0.113.5, link: up0 }
  - { name: external6, address: "2001:db8::5", link: up0 }
`;

let lab: Promise<PolicyLab> | undefined;
afterAll(async () => await (await lab)?.[Symbol.asyncDispose]());

const lower = (protocol: Protocol): ServiceProtocol => protocol.toLowerCase() as ServiceProtocol;

/** `first`: the index in NODES of its first pod's node; the others follow in turn. */
const podsOf = (recipe: Recipe, first: number): readonly ScenarioPod[] =>
  recipe.pods.map(({ pod, labels, ports }, index) => {
    const [namespace, name] = pod.split("/") as [string, string];
    return {
      id: pod,
      namespace,
      name,
      node: NODES[(first + index) % NODES.length]!,
      labels,
      serves: ports.map(({ port, protocol, name }) => ({ port, protocol: lower(protocol), ...(name && { name }) })),
    };
  });

const questionsOf = ({ probes }: Recipe): readonly Question[] =>
  probes.flatMap(({ from, to, protocol, port, allowed }) =>
    ([4, 6] as const).map((family): Question => {
      const party = (name: string): Party =>
        name === "external" ? { kind: "host", name: EXTERNAL[family] } : { kind: "pod", id: name };
      return {
        from: party(from),
        to: party(to),
        families: [family],
        protocol: lower(protocol),
        port,
        allow: allowed,
      };
    })
  );

for (const [index, recipe] of recipes.entries()) {
  test(`${recipe.id}: ${recipe.title}`, async () => {
    const opened = await (lab ??= PolicyLab.open(WORLD));
    const pods = podsOf(recipe, index);
    await using stack = new AsyncDisposableStack();
    stack.defer(() => opened.reset([{ apiVersion: "v1", kind: "Namespace", metadata: { name: "default" } }]));
    await opened.apply([
      ...recipe.namespaces.map((metadata) => ({ apiVersion: "v1", kind: "Namespace", metadata })),
      ...pods.map((pod) => podManifest(pod) as Manifest),
    ]);
    await opened.attach(pods, stack);
    await opened.apply(recipe.policies);
    expect(await opened.wrong(questionsOf(recipe))).toEqual([]);
  }, RECIPE_DEADLINE_MS);
}

test("the file holds all 20 recipes and 96 probes", () => {
  expect(recipes.length).toBe(20);
  expect(recipes.flatMap(({ probes }) => probes).length).toBe(96);
});
