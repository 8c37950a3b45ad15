import type { Problem, Resource, ResourceKey, ResourceKind } from "../model/resource.ts";
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
  /** Kinds that its resources may need. */
  readonly needs?: readonly ResourceKind[];
}

/** A resource that another one needs to be there, and the field that names it. */
export interface Need {
  readonly key: ResourceKey;
  /** For example `spec.tier`. */
  readonly path: string;
}

/** Pure translation of one API dialect into neutral objects. */
export interface PolicySource {
  readonly kinds: readonly KindDefinition[];
  /** Everything wrong with it, as its API would say it; empty = may be stored. Never throws. */
  validate(resource: Resource): readonly Problem[];
  /** Never throws, whatever the resource holds: what cannot be read fails closed. */
  translate(resource: Resource): Translation;
  /** What it needs to be there when somebody applies it, and for as long as nobody deletes it. Never throws. */
  needs?(resource: Resource): readonly Need[];
}
