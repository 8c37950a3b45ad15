import type { Problem, Resource, ResourceKey } from "../model/resource.ts";
import type { WorldObject } from "../model/world.ts";
import type { KindDefinition, Need, PolicySource } from "./policy_source.ts";
import { describe, Field, Findings } from "./validation.ts";

/** How one kind is read: once, for validation and for translation alike. */
export interface KindReader {
  readonly definition: KindDefinition;
  /**
   * Notes every fault in `root.findings` and gives the objects that the resource stands for; with faults, those that fail
   * closed. Never throws.
   */
  read(root: Field, key: ResourceKey): readonly WorldObject[];
  /** With faults, what becomes of it; absent = `fail-closed`. */
  readonly faultEffect?: Problem["effect"];
  /** What the resource needs to be there. */
  needs?(root: Field): readonly Need[];
}

/** A policy source from its readers. */
export function policySource(readers: readonly KindReader[]): PolicySource {
  const read = (resource: Resource, effect?: Problem["effect"]) => {
    const findings = new Findings();
    const root = new Field(findings, resource);
    const name = root.at("kind").value, apiVersion = root.at("apiVersion").value;
    const reader = readers.find(({ definition }) => definition.name === name);
    const key = resourceKey(root, reader?.definition);
    let objects: readonly WorldObject[] = [];
    if (reader === undefined) root.at("kind").refuse(readers.map(({ definition }) => definition.name).join(" or "));
    else {
      const { apiVersions } = reader.definition;
      if (!apiVersions.some((known) => known === apiVersion)) root.at("apiVersion").refuse(apiVersions.join(" or "));
      objects = reader.read(root, key);
    }
    const problems = findings.all.map((finding): Problem => ({
      subject: key,
      ...finding,
      effect: effect ?? reader?.faultEffect ?? "fail-closed",
    }));
    return { objects, problems };
  };
  return {
    kinds: readers.map(({ definition }) => definition),
    validate: (resource) => read(resource, "refused").problems,
    translate: (resource) => read(resource),
    needs(resource) {
      const root = new Field(new Findings(), resource);
      const name = root.at("kind").value;
      return readers.find(({ definition }) => definition.name === name)?.needs?.(root) ?? [];
    },
  };
}

/** A namespaced resource that names no namespace is in `default`. */
function resourceKey(root: Field, definition: KindDefinition | undefined): ResourceKey {
  const text = (name: string) => {
    const value = root.at("metadata").at(name).value;
    return typeof value === "string" ? value : "";
  };
  return {
    kind: definition?.kind ?? describe(root.at("kind").value),
    namespace: definition?.namespaced === true ? text("namespace") || "default" : "",
    name: text("name"),
  };
}
