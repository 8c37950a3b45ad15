import type { Problem, Resource, ResourceKind } from "../model/resource.ts";
import type { WorldObject } from "../model/world.ts";

export interface Translation {
  readonly objects: readonly WorldObject[];
  /** Not empty: `objects` is the fail-closed reading, and whoever holds a last good version may keep that instead. */
  readonly problems: readonly Problem[];
}

/** A kind of resource as its API defines it. */
export interface KindDefinition {
  readonly kind: ResourceKind;
  /** As in manifests: `NetworkPolicy`. */
  readonly name: string;
  /** Lower case, for `manx get`: `networkpolicies`. */
  readonly plural: string;
  readonly shortNames: readonly string[];
  /** Accepted in manifests; the first is the one stored and shown. */
  readonly apiVersions: readonly string[];
  readonly namespaced: boolean;
}

/** Pure translation of one API dialect into neutral objects. */
export interface PolicySource {
  readonly kinds: readonly KindDefinition[];
  /** Everything wrong with it, as its API would say it; empty = may be stored. Never throws. */
  validate(resource: Resource): readonly Problem[];
  /** Never throws, whatever the resource holds: what cannot be read fails closed. */
  translate(resource: Resource): Translation;
}
