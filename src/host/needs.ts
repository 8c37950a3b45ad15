/** Resources that need others to be there: policies their tier. Checked where people write; on a watch anything may come. */
import { keyText, type Resource, type ResourceKey, type ResourceKind } from "../model/resource.ts";
import type { Datastore } from "../sdk/datastore.ts";
import type { KindRegistry } from "./resources/kinds.ts";
import type { ManifestEntry } from "./resources/manifest.ts";

/** Names that one message lists. */
const NAMED_MAX = 3;

export interface Needs {
  /** Why the manifest cannot be applied: one reason for each field that names what neither it nor the datastore holds. */
  unmet(entries: readonly ManifestEntry[], signal?: AbortSignal): Promise<readonly string[]>;
  /** Why the keys cannot be deleted together: one reason for each that something needs that stays. */
  standing(keys: readonly ResourceKey[], signal?: AbortSignal): Promise<readonly string[]>;
}

export function createNeeds(datastore: Datastore, registry: KindRegistry): Needs {
  const needsOf = (kind: ResourceKind, resource: Resource) => registry.byKind(kind)?.source.needs?.(resource) ?? [];

  return {
    async unmet(entries, signal) {
      const there = new Map(entries.map(({ key }) => [keyText(key), true]));
      const reasons: string[] = [];
      for (const entry of entries) {
        for (const { key, path } of needsOf(entry.key.kind, entry.resource)) {
          const text = keyText(key);
          if (!there.has(text)) there.set(text, await datastore.get(key, signal) !== undefined);
          if (there.get(text)) continue;
          const name = registry.byKind(key.kind)?.definition.name ?? key.kind;
          reasons.push(
            `${entry.where(path)}: ${path}: found ${
              JSON.stringify(key.name)
            }, wanted a ${name} that is there or comes in the same manifest`,
          );
        }
      }
      return reasons;
    },

    async standing(keys, signal) {
      const gone = new Set(keys.map(keyText));
      const users = new Map<string, string[]>();
      for (const { kind, needs } of registry.definitions) {
        if (!needs?.some((needed) => keys.some((key) => key.kind === needed))) continue;
        for (const { key, value } of await datastore.list(kind, signal)) {
          if (gone.has(keyText(key))) continue;
          for (const need of needsOf(kind, value)) {
            const text = keyText(need.key);
            if (gone.has(text)) users.set(text, [...users.get(text) ?? [], keyText(key)]);
          }
        }
      }
      return [...users].map(([text, names]) => {
        const more = names.length > NAMED_MAX ? ` and ${names.length - NAMED_MAX} more` : "";
        return `${text}: found in use by ${
          names.slice(0, NAMED_MAX).join(", ")
        }${more}, wanted none that needs it: delete these first, or with it`;
      });
    },
  };
}
