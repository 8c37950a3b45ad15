import type { Address, Cidr } from "../model/address.ts";
import type { NamedPort } from "../model/ports.ts";
import type { Labels } from "../model/selector.ts";
import { NAMESPACE_LABEL } from "../model/selector_match.ts";
import type { PeerData } from "./address_sets.ts";
import type { IndexedSelector, Subject } from "./selector_index.ts";
import { SetMap } from "./set_map.ts";
import type { WorldStore } from "./store.ts";

/** What all endpoints of one origin inherit: their namespace, service account, profiles and kind decide it. */
export interface LabelContext {
  readonly key: string;
  readonly spec: ContextSpec;
  inherited: Labels;
  readonly classes: Map<Labels, LabelClass>;
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

/** Endpoints with equal labels, own and inherited: selectors are evaluated once for all of them. */
export class LabelClass implements Subject<LabelClass, PeerData> {
  readonly matched: IndexedSelector<LabelClass, PeerData>[] = [];
  readonly endpoints: Endpoint[] = [];
  labels: Labels;
  constructor(readonly context: LabelContext, readonly own: Labels) {
    this.labels = new LayeredLabels(own, context.inherited);
  }
  get namespace(): string | undefined {
    return this.context.spec.namespace;
  }
}

/** Something that gives members to sets: a workload, a pod without one, a host endpoint, a network set. */
export interface Endpoint {
  readonly labelClass: LabelClass;
  /** Its place in the class's list. */
  at: number;
  readonly addresses: readonly Address[];
  /** Prefixes of a network set. */
  readonly nets: readonly Cidr[];
  readonly ports: readonly NamedPort[];
}

export const NAMESPACE_PROFILE_PREFIX = "kns.";
const SERVICE_ACCOUNT_LABEL = "projectcalico.org/serviceaccount";
const ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator";
const NAME_LABEL = "projectcalico.org/name";
/** Set by the API server on every namespace; here also where the namespace object does not say it. */
const KUBERNETES_NAME_LABEL = "kubernetes.io/metadata.name";

/** Contexts and classes by content; a class lives as long as it has endpoints, a context as long as it has classes. */
export class LabelClasses {
  readonly #contexts = new Map<string, LabelContext>();
  /** Contexts by the name of what they inherit from: `namespace/N`, `serviceAccount/N/S`, `profile/P`. */
  readonly #heirs = new SetMap<string, LabelContext>();

  constructor(
    readonly store: WorldStore,
    readonly onNewClass: (labelClass: LabelClass) => void,
    readonly onEmptyClass: (labelClass: LabelClass) => void,
  ) {}

  /** How much it keeps. */
  get held(): number {
    return this.#contexts.size + this.#heirs.size;
  }

  classOf(spec: ContextSpec, own: Labels): LabelClass {
    const context = this.#context(spec);
    let found = context.classes.get(own);
    if (found === undefined) {
      context.classes.set(own, found = new LabelClass(context, own));
      this.onNewClass(found);
    }
    return found;
  }

  /** The class has lost its last endpoint. */
  drop(labelClass: LabelClass): void {
    const { context } = labelClass;
    context.classes.delete(labelClass.own);
    this.onEmptyClass(labelClass);
    if (context.classes.size > 0) return;
    this.#contexts.delete(context.key);
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
      }
    }
    return changed;
  }

  #context(spec: ContextSpec): LabelContext {
    const key = contextKey(spec);
    let context = this.#contexts.get(key);
    if (context === undefined) {
      context = { key, spec, inherited: inheritedLabels(spec, this.store), classes: new Map() };
      this.#contexts.set(key, context);
      for (const source of sourcesOf(spec)) this.#heirs.add(source, context);
    }
    return context;
  }
}

/** The labels that a class has by what its context inherits now. */
export const relabelled = ({ own, context }: LabelClass): Labels => new LayeredLabels(own, context.inherited);

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

const contextKey = ({ kind, namespace, serviceAccount, orchestrator, name, profiles }: ContextSpec): string =>
  JSON.stringify([kind, namespace, serviceAccount, orchestrator, name, profiles]);

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
    add(`pcns.${NAME_LABEL}`, namespace);
    add(`pcns.${KUBERNETES_NAME_LABEL}`, namespace);
    for (const [key, value] of store.get("namespace", namespace)?.labels ?? []) add(`pcns.${key}`, value);
  }
  if (serviceAccount !== undefined) {
    add(`pcsa.${NAME_LABEL}`, serviceAccount);
    const object = store.get("serviceAccount", `${namespace ?? ""}/${serviceAccount}`);
    for (const [key, value] of object?.labels ?? []) add(`pcsa.${key}`, value);
  }
  for (const profile of profilesOf(spec)) {
    for (const [key, value] of store.get("profile", profile)?.labelsToApply ?? []) {
      if (!isIdentity(key)) add(key, value);
    }
  }
  return labels;
}

/** Where something lives and as whom it runs is not for its labels to say: selectors grant access by it. */
const IDENTITY: ReadonlySet<string> = new Set([
  NAMESPACE_LABEL,
  SERVICE_ACCOUNT_LABEL,
  `pcns.${NAME_LABEL}`,
  `pcns.${KUBERNETES_NAME_LABEL}`,
  `pcsa.${NAME_LABEL}`,
]);
const isIdentity = (key: string): boolean => IDENTITY.has(key);

function sameLabels(a: Labels, b: Labels): boolean {
  if (a.size !== b.size) return false;
  for (const [key, value] of a) if (b.get(key) !== value) return false;
  return true;
}

/** Own labels over inherited ones, without a copy. */
class LayeredLabels implements ReadonlyMap<string, string> {
  constructor(readonly own: Labels, readonly inherited: Labels) {}

  get(key: string): string | undefined {
    return (isIdentity(key) ? undefined : this.own.get(key)) ?? this.inherited.get(key);
  }
  has(key: string): boolean {
    return this.get(key) !== undefined;
  }
  get size(): number {
    let size = 0;
    for (const _ of this) size++;
    return size;
  }
  *[Symbol.iterator](): MapIterator<[string, string]> {
    for (const pair of this.own) if (!isIdentity(pair[0])) yield pair;
    for (const pair of this.inherited) if (isIdentity(pair[0]) || !this.own.has(pair[0])) yield pair;
  }
  entries(): MapIterator<[string, string]> {
    return this[Symbol.iterator]();
  }
  *keys(): MapIterator<string> {
    for (const [key] of this) yield key;
  }
  *values(): MapIterator<string> {
    for (const [, value] of this) yield value;
  }
  forEach(tell: (value: string, key: string, map: ReadonlyMap<string, string>) => void): void {
    for (const [key, value] of this) tell(value, key, this);
  }
}
