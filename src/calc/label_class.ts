import type { Address, Cidr } from "../model/address.ts";
import {
  isReservedLabel,
  KUBERNETES_NAME_LABEL,
  NAME_LABEL,
  NAMESPACE_LABEL,
  NAMESPACE_PREFIX,
  ORCHESTRATOR_LABEL,
  SERVICE_ACCOUNT_LABEL,
  SERVICE_ACCOUNT_PREFIX,
} from "../model/endpoint_labels.ts";
import type { NamedPort } from "../model/ports.ts";
import type { Labels } from "../model/selector.ts";
import type { PeerData } from "./address_sets.ts";
import { LayeredLabels, measured } from "./own_labels.ts";
import type { LabelShape, OwnLabels } from "./own_labels.ts";
import { EVERYWHERE } from "./selector_index.ts";
import type { IndexedSelector, Place, SelectorIndex, Subject } from "./selector_index.ts";
import { SetMap } from "./set_map.ts";
import type { WorldStore } from "./store.ts";

/** What all endpoints of one origin inherit: their namespace, service account, profiles and kind decide it. */
export interface LabelContext {
  readonly key: string;
  readonly spec: ContextSpec;
  inherited: Labels;
  readonly groups: Map<LabelShape, ClassGroup>;
}

/** Endpoints of one context that have the same labels, whatever their values. */
interface ClassGroup {
  readonly context: LabelContext;
  readonly shape: LabelShape;
  /** Places in the shape of the labels that selectors ask for, in order. */
  asked: readonly number[];
  /** By what `projection` gives. */
  readonly classes: Map<string, LabelClass>;
}

export interface ContextSpec {
  readonly kind: "workload" | "host" | "set";
  readonly namespace?: string;
  readonly serviceAccount?: string;
  readonly orchestrator?: string;
  /** Of a network set, which has a name that means something; pods of one template differ in nothing else. */
  readonly name?: string;
  /** In order; absent = the namespace's. */
  readonly profiles?: readonly string[];
}

/** The profiles that hold, by name and in order. */
export const profilesOf = ({ profiles, namespace }: ContextSpec): readonly string[] =>
  profiles ?? (namespace === undefined ? [] : [NAMESPACE_PROFILE_PREFIX + namespace]);

/**
 * Endpoints that no selector in use tells apart: equal in what they inherit, in which labels they have, and in the values of those
 * that selectors ask for. Selectors are evaluated once for all of them. Labels that nobody asks for, a number that each pod has for
 * itself, say, cost nothing here.
 */
export class LabelClass implements Subject<LabelClass, PeerData> {
  readonly matched: IndexedSelector<LabelClass, PeerData>[] = [];
  endpoints: Endpoint[] = [];
  /** Those asked for, and the inherited ones. */
  labels: Labels;
  constructor(readonly group: ClassGroup, own: OwnLabels) {
    this.labels = labelsOf(group, own);
  }
  get context(): LabelContext {
    return this.group.context;
  }
  get namespace(): string | undefined {
    return this.group.context.spec.namespace;
  }
}

/** Something that gives members to sets: a workload, a pod without one, a host endpoint, a network set. */
export interface Endpoint {
  labelClass: LabelClass;
  /** Its place in the class's list. */
  at: number;
  /** All of them, asked for or not. */
  own: OwnLabels;
  readonly addresses: readonly Address[];
  /** Prefixes of a network set. */
  nets: readonly Cidr[];
  readonly ports: readonly NamedPort[];
}

export const NAMESPACE_PROFILE_PREFIX = "kns.";

/** Contexts and classes by content; a class lives as long as it has endpoints, a context as long as it has classes. */
export class LabelClasses {
  readonly #contexts = new Map<string, LabelContext>();
  /** Contexts by the name of what they inherit from: `namespace/N`, `serviceAccount/N/S`, `profile/P`. */
  readonly #heirs = new SetMap<string, LabelContext>();
  /** Contexts by namespace; undefined: those of none. */
  readonly #inside = new SetMap<string | undefined, LabelContext>();
  readonly #asked = new AskedLabels();
  /** Endpoints looked at because their class was split, or merged into another. */
  regrouped = 0;

  constructor(readonly store: WorldStore, readonly index: SelectorIndex<LabelClass, PeerData>) {}

  /** How much it keeps. */
  get held(): number {
    let held = this.#contexts.size + this.#heirs.size + this.#inside.size + this.#asked.held;
    for (const { groups } of this.#contexts.values()) for (const { classes } of groups.values()) held += classes.size;
    return held;
  }

  contextOf(spec: ContextSpec): LabelContext {
    const key = contextKey(spec);
    let context = this.#contexts.get(key);
    if (context === undefined) {
      context = { key, spec, inherited: inheritedLabels(spec, this.store), groups: new Map() };
      this.#contexts.set(key, context);
      this.#inside.add(spec.namespace, context);
      for (const source of sourcesOf(spec)) this.#heirs.add(source, context);
    }
    return context;
  }

  classOf(context: LabelContext, own: OwnLabels): LabelClass {
    let group = context.groups.get(own.shape);
    if (group === undefined) {
      const { shape } = own;
      group = { context, shape, asked: this.#askedOf(shape, context), classes: new Map() };
      context.groups.set(shape, group);
    }
    const key = projection(own, group.asked);
    let found = group.classes.get(key);
    if (found === undefined) {
      group.classes.set(key, found = new LabelClass(group, own));
      this.index.addSubject(found);
    }
    return found;
  }

  /** The class has lost its last endpoint, which had these labels. */
  drop(labelClass: LabelClass, own: OwnLabels): void {
    const { context, shape, asked, classes } = labelClass.group;
    this.index.removeSubject(labelClass);
    classes.delete(projection(own, asked));
    if (classes.size > 0) return;
    context.groups.delete(shape);
    if (context.groups.size > 0) return;
    this.#contexts.delete(context.key);
    this.#inside.delete(context.spec.namespace, context);
    for (const source of sourcesOf(context.spec)) this.#heirs.delete(source, context);
  }

  /** What inherits from one of the sources gets its labels anew; answers the contexts where they differ. */
  inheritAnew(sources: Iterable<string>): ReadonlySet<LabelContext> {
    const changed = new Set<LabelContext>();
    for (const source of sources) {
      for (const context of this.#heirs.get(source)) {
        const inherited = inheritedLabels(context.spec, this.store);
        if (sameLabels(inherited, context.inherited)) continue;
        context.inherited = inherited;
        changed.add(context);
        for (const group of context.groups.values()) {
          for (const labelClass of group.classes.values()) {
            this.index.relabel(labelClass, labelsOf(group, labelClass.endpoints[0]!.own));
          }
        }
      }
    }
    return changed;
  }

  /**
   * A selector that asks for these labels is about to come (1) or has gone (-1). What asks for a label first splits the classes
   * where it looks, by the values of endpoints that have the label; what asked last has them made one again. All that the index
   * holds then says the same of every part, so nothing is tried anew and no set changes.
   */
  asked(labels: ReadonlySet<string>, where: readonly Place[], sign: 1 | -1): void {
    const turned = new Map<LabelContext, string[]>();
    for (const place of where) {
      for (const label of labels) {
        if (isReservedLabel(label) || !this.#asked.count(place, label, sign)) continue;
        const contexts = place === EVERYWHERE ? this.#contexts.values() : this.#inside.get(place.namespace);
        for (const context of contexts) {
          const list = turned.get(context);
          if (list === undefined) turned.set(context, [label]);
          else list.push(label);
        }
      }
    }
    for (const [context, names] of turned) {
      for (const group of context.groups.values()) {
        if (!names.some((name) => group.shape.places.has(name))) continue;
        const asked = this.#askedOf(group.shape, context);
        if (asked.length > group.asked.length) this.#split(group, asked);
        else if (asked.length < group.asked.length) this.#unite(group, asked);
      }
    }
  }

  #askedOf(shape: LabelShape, { spec }: LabelContext): readonly number[] {
    const asked: number[] = [];
    for (const [name, place] of shape.places) {
      // Reserved ones are nobody's own.
      if (!isReservedLabel(name) && this.#asked.has(spec.namespace, name)) asked.push(place);
    }
    return asked;
  }

  #split(group: ClassGroup, asked: readonly number[]): void {
    const whole = [...group.classes.values()];
    group.asked = asked;
    group.classes.clear();
    for (const labelClass of whole) {
      const parts = new Map<string, Endpoint[]>();
      this.regrouped += labelClass.endpoints.length;
      for (const endpoint of labelClass.endpoints) {
        const key = projection(endpoint.own, asked), part = parts.get(key);
        if (part === undefined) parts.set(key, [endpoint]);
        else part.push(endpoint);
      }
      // The largest stays what it is.
      let [largest] = parts.values();
      for (const part of parts.values()) if (part.length > largest!.length) largest = part;
      for (const [key, endpoints] of parts) {
        const { own } = endpoints[0]!;
        const part = endpoints === largest ? labelClass : new LabelClass(group, own);
        group.classes.set(key, part);
        part.endpoints = endpoints;
        for (const [at, endpoint] of endpoints.entries()) {
          endpoint.labelClass = part;
          endpoint.at = at;
        }
        if (part === labelClass) part.labels = labelsOf(group, own);
        else this.index.addTwin(part, labelClass);
      }
    }
  }

  #unite(group: ClassGroup, asked: readonly number[]): void {
    const parts = [...group.classes.values()];
    group.asked = asked;
    group.classes.clear();
    for (const part of parts) {
      const { own } = part.endpoints[0]!;
      const key = projection(own, asked), there = group.classes.get(key);
      if (there === undefined) {
        part.labels = labelsOf(group, own);
        group.classes.set(key, part);
        continue;
      }
      const [into, from] = there.endpoints.length < part.endpoints.length ? [part, there] : [there, part];
      into.labels = labelsOf(group, own);
      group.classes.set(key, into);
      this.index.forget(from);
      this.regrouped += from.endpoints.length;
      for (const endpoint of from.endpoints) {
        endpoint.labelClass = into;
        endpoint.at = into.endpoints.length;
        into.endpoints.push(endpoint);
      }
    }
  }
}

/** What selectors ask for, and where they look: everywhere, or in a namespace or none. */
class AskedLabels {
  readonly #everywhere = new Map<string, number>();
  readonly #inside = new Map<string | undefined, Map<string, number>>();

  get held(): number {
    let held = this.#everywhere.size + this.#inside.size;
    for (const counts of this.#inside.values()) held += counts.size;
    return held;
  }

  has(namespace: string | undefined, label: string): boolean {
    return this.#everywhere.has(label) || (this.#inside.get(namespace)?.has(label) ?? false);
  }

  /** Answers whether it is the first there to ask for it, or was the last. */
  count(place: Place, label: string, sign: 1 | -1): boolean {
    let counts = this.#everywhere;
    if (place !== EVERYWHERE) {
      const there = this.#inside.get(place.namespace);
      counts = there ?? new Map();
      if (there === undefined) this.#inside.set(place.namespace, counts);
    }
    const now = (counts.get(label) ?? 0) + sign;
    if (now > 0) counts.set(label, now);
    else counts.delete(label);
    if (place !== EVERYWHERE && counts.size === 0) this.#inside.delete(place.namespace);
    return sign === 1 ? now === 1 : now === 0;
  }
}

/** The values at these places, as a key. */
function projection(own: OwnLabels, places: readonly number[]): string {
  let key = "";
  for (const place of places) key += measured(own.at(place));
  return key;
}

function labelsOf({ shape, asked, context }: ClassGroup, own: OwnLabels): Labels {
  if (asked.length === 0) return context.inherited;
  return new LayeredLabels(new Map(asked.map((place) => [shape.names[place]!, own.at(place)])), context.inherited);
}

export const namespaceSource = (name: string): string => `namespace/${name}`;
export const serviceAccountSource = (id: string): string => `serviceAccount/${id}`;
export const profileSource = (name: string): string => `profile/${name}`;

function sourcesOf(spec: ContextSpec): string[] {
  const sources = profilesOf(spec).map(profileSource);
  if (spec.namespace !== undefined) sources.push(namespaceSource(spec.namespace));
  if (spec.serviceAccount !== undefined) {
    sources.push(serviceAccountSource(`${spec.namespace ?? ""}/${spec.serviceAccount}`));
  }
  return sources;
}

function contextKey({ kind, namespace, serviceAccount, orchestrator, name, profiles }: ContextSpec): string {
  const part = (text: string | undefined) => text === undefined ? "-" : measured(text);
  const key = kind + part(namespace) + part(serviceAccount) + part(orchestrator) + part(name);
  return profiles === undefined ? key : `${key} ${profiles.map(measured).join("")}`;
}

/** First given wins: who and where it is, then its namespace, its service account, its profiles in order. */
function inheritedLabels(spec: ContextSpec, store: WorldStore): Labels {
  const labels = new Map<string, string>();
  const add = (key: string, value: string | undefined) => {
    if (value !== undefined && !labels.has(key)) labels.set(key, value);
  };
  const { namespace, serviceAccount } = spec;
  add(NAMESPACE_LABEL, namespace);
  add(SERVICE_ACCOUNT_LABEL, serviceAccount);
  add(ORCHESTRATOR_LABEL, spec.orchestrator);
  add(NAME_LABEL, spec.name);
  if (namespace !== undefined) {
    // These two say which namespace it is; its own labels may not claim another.
    add(NAMESPACE_PREFIX + NAME_LABEL, namespace);
    add(NAMESPACE_PREFIX + KUBERNETES_NAME_LABEL, namespace);
    for (const [key, value] of store.get("namespace", namespace)?.labels ?? []) add(NAMESPACE_PREFIX + key, value);
  }
  if (serviceAccount !== undefined) {
    add(SERVICE_ACCOUNT_PREFIX + NAME_LABEL, serviceAccount);
    const object = store.get("serviceAccount", `${namespace ?? ""}/${serviceAccount}`);
    for (const [key, value] of object?.labels ?? []) add(SERVICE_ACCOUNT_PREFIX + key, value);
  }
  for (const profile of profilesOf(spec)) {
    for (const [key, value] of store.get("profile", profile)?.labelsToApply ?? []) {
      if (!isReservedLabel(key)) add(key, value);
    }
  }
  return labels;
}

function sameLabels(a: Labels, b: Labels): boolean {
  if (a.size !== b.size) return false;
  for (const [key, value] of a) if (b.get(key) !== value) return false;
  return true;
}
