/** Which endpoints claim one interface of one node. Pure. */
import { keyText, type Resource, type ResourceKey } from "../model/resource.ts";
import { WORKLOAD_ENDPOINT } from "./resources/core_source.ts";
import type { ManifestEntry } from "./resources/manifest.ts";

/**
 * Reasons against `entries`, of which those that are workload endpoints must each have their interface for themselves, among each other and
 * beside `standing`. The calculation would take the one whose name comes first, whatever policy selects the other.
 */
export function doubleClaims(
  entries: readonly Pick<ManifestEntry, "key" | "resource" | "where">[],
  standing: readonly { readonly key: ResourceKey; readonly value: Resource }[],
): readonly string[] {
  const endpoints = entries.filter(({ key }) => key.kind === WORKLOAD_ENDPOINT);
  const replaced = new Set(endpoints.map(({ key }) => keyText(key)));
  const owners = new Map<string, ResourceKey>();
  for (const { key, value } of standing) {
    const claim = claimOf(value);
    if (claim !== undefined && !replaced.has(keyText(key))) owners.set(claim.id, key);
  }
  const reasons: string[] = [];
  for (const { key, resource, where } of endpoints) {
    const claim = claimOf(resource);
    if (claim === undefined) continue;
    const owner = owners.get(claim.id);
    if (owner === undefined) {
      owners.set(claim.id, key);
      continue;
    }
    const found = `${claim.title}, which the endpoint ${owner.namespace}/${owner.name} has already`;
    const field = "spec.interfaceName";
    reasons.push(`${where(field)}: ${field}: found ${found}, wanted an interface of its own`);
  }
  return reasons;
}

function claimOf({ spec }: Resource): { readonly id: string; readonly title: string } | undefined {
  const { node, interfaceName } = (spec ?? {}) as { readonly node?: unknown; readonly interfaceName?: unknown };
  if (typeof node !== "string" || typeof interfaceName !== "string") return undefined;
  return { id: `${interfaceName} ${node}`, title: `${interfaceName} of ${node}` };
}
