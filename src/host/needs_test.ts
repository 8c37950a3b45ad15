import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Datastore } from "../sdk/datastore.ts";
import type { RefusedError } from "../sdk/errors.ts";
import type { Host } from "../sdk/plugin.ts";
import { BUILTIN } from "./builtin.ts";
import { systemClock } from "./clock.ts";
import { silentLog } from "./log.ts";
import { createResources } from "./resources/resources.ts";
import { testRegistry } from "./test_registry.ts";

const registry = await testRegistry();
let directory: string;
let datastore: Datastore;
let resources: ReturnType<typeof createResources>;
beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "manx-needs-"));
  const plugin = (await BUILTIN.datastore.sqlite!()).default;
  datastore = await plugin.open(
    plugin.parseConfig(undefined),
    { log: silentLog, stateDirectory: directory } as unknown as Host,
    new AbortController().signal,
  ) as Datastore;
  resources = createResources({ datastore, registry, clock: systemClock, programmed: () => Promise.resolve() });
});
afterEach(async () => {
  await datastore[Symbol.asyncDispose]();
  rmSync(directory, { recursive: true });
});

const TIER = "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: { name: early }\nspec: { order: 1 }";
const policy = (kind: string, name: string, tier: string) =>
  `apiVersion: projectcalico.org/v3\nkind: ${kind}\nmetadata: { name: ${name} }\nspec: { tier: ${tier} }`;
const request = (...texts: string[]) => ({ text: texts.join("\n---\n"), file: "m.yaml" });
async function reasons(attempt: Promise<unknown>): Promise<readonly string[]> {
  try {
    await attempt;
  } catch (error) {
    return (error as RefusedError).reasons;
  }
  return [];
}

test("a policy needs its tier to be there, or to come with it in any order", async () => {
  expect(await reasons(resources.apply(request(policy("NetworkPolicy", "a", "early"))))).toEqual([
    'm.yaml: document 1, line 4: spec.tier: found "early", wanted a Tier that is there or comes in the same manifest',
  ]);
  expect(await datastore.list("NetworkPolicy.projectcalico.org")).toEqual([]);
  expect(await reasons(resources.apply(request(policy("GlobalNetworkPolicy", "a", "early"), TIER)))).toEqual([]);
  expect(await reasons(resources.apply(request(policy("StagedNetworkPolicy", "a", "early"))))).toEqual([]);
});

test("fixed tiers are always there", async () => {
  for (const tier of ["default", "kube-admin", "kube-baseline", '""']) {
    expect(await reasons(resources.apply(request(policy("NetworkPolicy", "a", tier))))).toEqual([]);
  }
});

test("a tier goes with or after its policies, never before them", async () => {
  const policies = ["a", "b", "c", "d"].map((name) => policy("GlobalNetworkPolicy", name, "early"));
  await resources.apply(request(TIER, ...policies));
  const named = ["a", "b", "c"].map((name) => `GlobalNetworkPolicy.projectcalico.org//${name}`).join(", ");
  const refusal =
    `Tier.projectcalico.org//early: found in use by ${named} and 1 more, wanted none that needs it: delete these first, or with it`;
  expect(await reasons(resources.delete(request(TIER)))).toEqual([refusal]);
  expect(await reasons(resources.remove("tiers", "", "early", 0))).toEqual([refusal]);
  expect(await reasons(resources.delete(request(...policies.slice(1))))).toEqual([]);
  expect(await reasons(resources.delete(request(TIER, policies[0]!)))).toEqual([]);
  expect(await datastore.list("Tier.projectcalico.org")).toEqual([]);
});
