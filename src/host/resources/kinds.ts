/** Which kinds of resource this daemon knows, and who translates each. */
import type { ResourceKind } from "../../model/resource.ts";
import { ManxError } from "../../sdk/errors.ts";
import type { KindDefinition, PolicySource } from "../../sdk/policy_source.ts";

export interface KnownKind {
  readonly definition: KindDefinition;
  readonly source: PolicySource;
}

export interface KindRegistry {
  readonly definitions: readonly KindDefinition[];
  /** As in a manifest: `networking.k8s.io/v1`, `NetworkPolicy`. */
  byManifest(apiVersion: string, name: string): KnownKind | undefined;
  byKind(kind: ResourceKind): KnownKind | undefined;
  /** As a person writes it: plural, singular or short name, in any case, optionally with `.group`. */
  byName(text: string): readonly KnownKind[];
  /** What is wanted instead of an unknown kind, for a message. */
  wanted(apiVersion: string, name: string): string;
}

/** The API group of a kind, "" for the core one. */
export const kindGroup = (kind: ResourceKind): string => kind.includes(".") ? kind.slice(kind.indexOf(".") + 1) : "";

/**
 * `named`: sources from the configuration, with the name each is called by; two of them must not claim one kind.
 * `core` serves what none of them does.
 * @throws {ManxError} code `config`
 */
export function kindRegistry(
  named: readonly { name: string; source: PolicySource }[],
  core: PolicySource,
): KindRegistry {
  const byKind = new Map<ResourceKind, KnownKind & { owner: string }>();
  for (const { name, source } of named) {
    for (const definition of source.kinds) {
      const other = byKind.get(definition.kind);
      if (other !== undefined) {
        throw new ManxError(
          "config",
          `policy: found kind ${definition.kind} in both ${other.owner} and ${name}, wanted one reader for each kind`,
        );
      }
      byKind.set(definition.kind, { definition, source, owner: name });
    }
  }
  for (const definition of core.kinds) {
    if (!byKind.has(definition.kind)) byKind.set(definition.kind, { definition, source: core, owner: "manx" });
  }
  const known = [...byKind.values()].sort((a, b) => a.definition.kind < b.definition.kind ? -1 : 1);
  const byManifest = new Map<string, KnownKind>();
  const byName = new Map<string, KnownKind[]>();
  for (const entry of known) {
    const { kind, name, plural, shortNames, apiVersions } = entry.definition;
    for (const apiVersion of apiVersions) byManifest.set(`${apiVersion}/${name}`, entry);
    const group = kindGroup(kind);
    for (const spelling of new Set([plural, name.toLowerCase(), ...shortNames])) {
      byName.set(spelling, [...byName.get(spelling) ?? [], entry]);
      if (group !== "") byName.set(`${spelling}.${group}`, [entry]);
    }
  }
  return {
    definitions: known.map((entry) => entry.definition),
    byManifest: (apiVersion, name) => byManifest.get(`${apiVersion}/${name}`),
    byKind: (kind) => byKind.get(kind),
    byName: (text) => byName.get(text.toLowerCase()) ?? [],
    wanted(apiVersion, name) {
      const sameName = known.filter((entry) => entry.definition.name === name);
      if (sameName.length > 0) {
        return `apiVersion ${sameName.flatMap((entry) => entry.definition.apiVersions).join(" or ")}`;
      }
      const sameGroup = known.filter((entry) => entry.definition.apiVersions.includes(apiVersion));
      const choices = sameGroup.length > 0 ? sameGroup : known;
      return `kind ${[...new Set(choices.map((entry) => entry.definition.name))].sort().join(", ")}`;
    },
  };
}
