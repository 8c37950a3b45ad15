/** For tests: the registry of kinds as it is by default. */
import type { Host } from "../sdk/plugin.ts";
import { BUILTIN } from "./builtin.ts";
import { coreSource } from "./resources/core_source.ts";
import { type KindRegistry, kindRegistry } from "./resources/kinds.ts";
import type { PolicySource } from "../sdk/policy_source.ts";

export async function testRegistry(): Promise<KindRegistry> {
  const named = [];
  for (const name of ["kubernetes", "calico"]) {
    const plugin = (await BUILTIN.policy[name]!()).default;
    named.push({
      name,
      source: await plugin.open(
        plugin.parseConfig(undefined),
        {} as Host,
        new AbortController().signal,
      ) as PolicySource,
    });
  }
  return kindRegistry(named, coreSource);
}
