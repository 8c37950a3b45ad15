import type { PolicyList } from "../model/desired.ts";
import { DEFAULT_ALLOW_PROFILE } from "../model/endpoint_labels.ts";
import { FIXED_TIERS } from "../model/fixed_tiers.ts";
import { parseKeyText } from "../model/resource.ts";
import type { Problem } from "../model/resource.ts";
import type { Direction, NeutralPolicy, NeutralRule } from "../model/rule.ts";
import { ALL } from "../model/selector.ts";
import type { Labels } from "../model/selector.ts";
import type { AddressSets } from "./address_sets.ts";
import { compile, release } from "./compile.ts";
import type { Compiled } from "./compile.ts";
import { NAMESPACE_PROFILE_PREFIX, profilesOf } from "./label_class.ts";
import type { LabelContext } from "./label_class.ts";
import { LayeredLabels } from "./own_labels.ts";
import type { OwnLabels } from "./own_labels.ts";
import { comparePolicies, PolicyLists, tierOf } from "./policy_list.ts";
import type { ListPart, Tier } from "./policy_list.ts";
import { SelectorIndex } from "./selector_index.ts";
import type { IndexedSelector, Subject } from "./selector_index.ts";
import { SetMap } from "./set_map.ts";
import type { WorldStore } from "./store.ts";

/** The policies that one selector applies. */
export interface SelectionData {
  readonly policies: Set<ActivePolicy>;
}
type Selection = IndexedSelector<LocalClass, SelectionData>;

/** A policy of the world; compiled while it applies to something local. */
export interface ActivePolicy {
  policy: NeutralPolicy;
  tier: Tier;
  selection: Selection;
  ingress: Compiled | undefined;
  egress: Compiled | undefined;
}

/** What the endpoints of a class share. The optional ones are of host endpoints. */
export interface ClassLists {
  readonly ingress: PolicyList;
  readonly egress: PolicyList;
  readonly forwardIngress?: PolicyList;
  readonly forwardEgress?: PolicyList;
  readonly preDnat?: PolicyList;
  readonly untrackedIngress?: PolicyList;
  readonly untrackedEgress?: PolicyList;
}

/** Endpoints of this node with all labels equal: policies are selected, and lists put together, once for all of them. */
export class LocalClass implements Subject<LocalClass, SelectionData> {
  readonly matched: Selection[] = [];
  readonly endpointIds = new Set<string>();
  labels: Labels;
  lists: ClassLists | undefined;
  constructor(
    readonly context: LabelContext,
    readonly own: OwnLabels,
    readonly profiles: readonly ActiveProfile[],
  ) {
    this.labels = labelsNow(context, own);
  }
  get namespace(): string | undefined {
    return this.context.spec.namespace;
  }
  get isHost(): boolean {
    return this.context.spec.kind === "host";
  }
}

/** Here they are looked at often, and there are few of them. */
const labelsNow = ({ inherited }: LabelContext, own: OwnLabels): Labels =>
  new LayeredLabels(new Map(own.visible), inherited);

interface ActiveProfile {
  readonly key: string;
  readonly name: string;
  /** The profile of its own namespace, there without anybody having described it. */
  readonly implied: boolean;
  readonly users: Set<LocalClass>;
  ingress: Compiled | undefined;
  egress: Compiled | undefined;
}

/** Which policies apply to what is on this node, and the lists that come of it. */
export class LocalPolicies {
  readonly selections: SelectorIndex<LocalClass, SelectionData>;
  readonly lists = new PolicyLists();
  readonly #policies = new Map<string, ActivePolicy>();
  readonly #tierPolicies = new SetMap<string, ActivePolicy>();
  readonly #profiles = new Map<string, ActiveProfile>();
  readonly #classes = new Map<LabelContext, Map<OwnLabels, LocalClass>>();
  /** To look at in the next `flush`. */
  readonly #dirtyPolicies = new Set<ActivePolicy>();
  readonly #dirtyProfiles = new Set<ActiveProfile>();
  readonly #dirtyClasses = new Set<LocalClass>();
  /** Policy and profile directions compiled since the beginning. */
  compiled = 0;

  constructor(readonly store: WorldStore, readonly sets: AddressSets) {
    const changed = ({ data }: Selection, localClass: LocalClass) => {
      this.#dirtyClasses.add(localClass);
      for (const active of data.policies) this.#dirtyPolicies.add(active);
    };
    this.selections = new SelectorIndex<LocalClass, SelectionData>(() => ({ policies: new Set() }), changed, changed);
  }

  /** How much it keeps. */
  get held(): number {
    const own = this.#policies.size + this.#tierPolicies.size + this.#profiles.size;
    const classes = [...this.#classes.values()].reduce((sum, { size }) => sum + 1 + size, 0);
    return own + classes + this.lists.held + this.selections.held;
  }

  /** Ids of the endpoints that the policy applies to, sorted. */
  selectedBy(policyId: string): string[] {
    const active = this.#policies.get(policyId);
    if (active === undefined) return [];
    return subjectsOf(active).flatMap((localClass) => [...localClass.endpointIds]).sort();
  }

  /** Policies, other than staged ones, in tiers that nobody has described. */
  problems(): Problem[] {
    const homeless = [...this.#tierPolicies.keys()].filter((name) =>
      !FIXED_TIERS.has(name) && this.store.get("tier", name) === undefined
    );
    return homeless.flatMap((name) =>
      [...this.#tierPolicies.get(name)].filter(({ policy }) => !policy.staged).map(({ policy }): Problem => ({
        subject: parseKeyText(policy.id),
        path: "spec.tier",
        message: `found ${
          JSON.stringify(name)
        }, wanted a tier that somebody has described: until then it is judged last, and denies by default`,
        effect: "fail-closed",
      }))
    );
  }

  addEndpoint(id: string, context: LabelContext, own: OwnLabels): LocalClass {
    let classes = this.#classes.get(context);
    if (classes === undefined) this.#classes.set(context, classes = new Map());
    let localClass = classes.get(own);
    if (localClass === undefined) {
      const { spec } = context;
      const profiles = profilesOf(spec).map((name) => this.#profile(name, spec.namespace));
      localClass = new LocalClass(context, own, profiles);
      for (const profile of localClass.profiles) profile.users.add(localClass);
      classes.set(own, localClass);
      this.#dirtyClasses.add(localClass);
      this.selections.addSubject(localClass);
    }
    localClass.endpointIds.add(id);
    return localClass;
  }

  removeEndpoint(id: string, localClass: LocalClass): void {
    localClass.endpointIds.delete(id);
    if (localClass.endpointIds.size > 0) return;
    this.selections.removeSubject(localClass);
    const classes = this.#classes.get(localClass.context)!;
    classes.delete(localClass.own);
    if (classes.size === 0) this.#classes.delete(localClass.context);
    this.#dirtyClasses.add(localClass);
    for (const profile of localClass.profiles) {
      profile.users.delete(localClass);
      this.#dirtyProfiles.add(profile);
    }
  }

  /** What the context inherits has changed. */
  relabel(context: LabelContext): void {
    for (const localClass of this.#classes.get(context)?.values() ?? []) {
      this.selections.relabel(localClass, labelsNow(context, localClass.own));
    }
  }

  policyChanged(id: string): void {
    const policy = this.store.get("policy", id);
    const active = this.#policies.get(id);
    if (policy === active?.policy) return;
    if (active !== undefined) {
      this.#markUsers(active);
      this.#dirtyPolicies.add(active);
      this.#tierPolicies.delete(active.policy.tier, active);
    }
    const before = active?.selection;
    if (policy === undefined) {
      this.#policies.delete(id);
      before!.data.policies.delete(active!);
    } else {
      const selection = this.selections.addSelector(policy.selects);
      const tier = tierOf(policy.tier, this.store.get("tier", policy.tier));
      const now: ActivePolicy = active ?? { policy, tier, selection, ingress: undefined, egress: undefined };
      now.policy = policy, now.tier = tier, now.selection = selection;
      this.#policies.set(id, now);
      this.#tierPolicies.add(policy.tier, now);
      if (before !== selection) before?.data.policies.delete(now);
      selection.data.policies.add(now);
      this.#markUsers(now);
      this.#dirtyPolicies.add(now);
    }
    if (before !== undefined && before.data.policies.size === 0) this.selections.removeSelector(before);
  }

  tierChanged(name: string): void {
    const tier = tierOf(name, this.store.get("tier", name));
    for (const active of this.#tierPolicies.get(name)) {
      if (active.tier.closed !== tier.closed) this.#dirtyPolicies.add(active);
      active.tier = tier;
      this.#markUsers(active);
    }
  }

  profileChanged(name: string): void {
    for (const implied of [true, false]) {
      const profile = this.#profiles.get(profileKey(name, implied));
      if (profile !== undefined) this.#dirtyProfiles.add(profile);
    }
  }

  /** Compiles what applies now, lets go what does not any more; answers the classes with other lists than before. */
  flush(): LocalClass[] {
    for (const active of this.#dirtyPolicies) {
      const applies = this.#policies.get(active.policy.id) === active && subjectsOf(active).length > 0;
      // Whoever made it dirty has marked the classes: those it selects, or the one that came.
      this.#recompile(active, "ingress", applies);
      this.#recompile(active, "egress", applies);
    }
    this.#dirtyPolicies.clear();
    for (const profile of this.#dirtyProfiles) {
      if (profile.users.size === 0) {
        this.#profiles.delete(profile.key);
        release(profile.ingress, this.sets);
        release(profile.egress, this.sets);
      } else {
        this.#compileProfile(profile);
        for (const user of profile.users) this.#dirtyClasses.add(user);
      }
    }
    this.#dirtyProfiles.clear();
    const changed: LocalClass[] = [];
    for (const localClass of this.#dirtyClasses) {
      const before = localClass.lists;
      const lives = localClass.endpointIds.size > 0;
      localClass.lists = lives ? this.#putTogether(localClass) : undefined;
      for (const list of Object.values(before ?? {})) this.lists.release(list);
      if (lives && !sameLists(before, localClass.lists)) changed.push(localClass);
    }
    this.#dirtyClasses.clear();
    this.lists.sweep();
    return changed;
  }

  #markUsers(active: ActivePolicy): void {
    for (const localClass of active.selection.subjects) this.#dirtyClasses.add(localClass);
  }

  #recompile(active: ActivePolicy, direction: Direction, applies: boolean): void {
    const before = active[direction];
    const { id, staged, logDenied, selects, stage, [direction]: written } = active.policy;
    const rules = active.tier.closed && written !== undefined ? [everything("deny", id, direction)] : written;
    if (!applies || rules === undefined || (stage === "preDnat" && direction === "egress")) {
      active[direction] = undefined;
    } else {
      this.compiled++;
      // Forwarded packets go to others than the endpoint itself; their named ports are anybody's.
      const own = stage === "normal" ? selects : ALL;
      active[direction] = compile({ id, staged, logDenied, direction, rules, selects: own }, this.sets, before);
    }
    if (active[direction] !== before) release(before, this.sets);
  }

  #profile(name: string, namespace: string | undefined): ActiveProfile {
    const implied = namespace !== undefined && name === NAMESPACE_PROFILE_PREFIX + namespace;
    const key = profileKey(name, implied);
    let profile = this.#profiles.get(key);
    if (profile === undefined) {
      profile = { key, name, implied, users: new Set(), ingress: undefined, egress: undefined };
      this.#profiles.set(key, profile);
      this.#dirtyProfiles.add(profile);
    }
    return profile;
  }

  #compileProfile(profile: ActiveProfile): void {
    const { name } = profile;
    const id = `Profile.projectcalico.org//${name}`;
    const object = this.store.get("profile", name);
    for (const direction of ["ingress", "egress"] as const) {
      const before = profile[direction];
      const open = profile.implied || name === DEFAULT_ALLOW_PROFILE;
      const rules = object?.[direction] ?? (open ? [everything("allow", id, direction)] : []);
      this.compiled++;
      // A profile without rules decides nothing, so lists need not name it.
      profile[direction] = rules.length === 0
        ? undefined
        : compile({ id, staged: false, direction, rules, selects: ALL }, this.sets, before);
      if (profile[direction] !== before) release(before, this.sets);
    }
  }

  #putTogether(localClass: LocalClass): ClassLists {
    const applying: ActivePolicy[] = [];
    for (const { data } of localClass.matched) {
      for (const active of data.policies) if (appliesTo(active, localClass)) applying.push(active);
    }
    applying.sort(comparePolicies);
    const parts = (direction: Direction, stages: readonly string[]): ListPart[] =>
      applying.flatMap((active) => {
        const compiled = active[direction];
        return compiled !== undefined && stages.includes(active.policy.stage) ? [{ tier: active.tier, compiled }] : [];
      });
    const profiles = (direction: Direction): Compiled[] =>
      localClass.profiles.flatMap((profile) => profile[direction] ?? []);
    const full = (direction: Direction): PolicyList =>
      this.lists.acquire({
        policies: parts(direction, ["normal", "forward"]),
        profiles: profiles(direction),
        end: "deny",
        tierDefaults: true,
      });
    const stage = (direction: Direction, stage: string, tierDefaults: boolean): PolicyList | undefined => {
      const policies = parts(direction, [stage]);
      if (policies.length === 0) return undefined;
      return this.lists.acquire({ policies, profiles: [], end: "next", tierDefaults });
    };
    const lists: ClassLists = { ingress: full("ingress"), egress: full("egress") };
    if (!localClass.isHost) return lists;
    /** Where a policy applies to it, forwarded traffic is judged like any other; where none does (staged ones do not), it is allowed. */
    const forward = (direction: Direction): PolicyList | undefined => {
      const policies = parts(direction, ["forward"]);
      if (!policies.some(({ compiled }) => !compiled.policy.staged)) return stage(direction, "forward", true);
      return this.lists.acquire({ policies, profiles: profiles(direction), end: "deny", tierDefaults: true });
    };
    const host = {
      forwardIngress: forward("ingress"),
      forwardEgress: forward("egress"),
      preDnat: stage("ingress", "preDnat", false),
      untrackedIngress: stage("ingress", "untracked", false),
      untrackedEgress: stage("egress", "untracked", false),
    };
    return { ...lists, ...Object.fromEntries(Object.entries(host).filter(([, list]) => list !== undefined)) };
  }
}

/** Policies before DNAT and before connection tracking are for host endpoints only. */
const appliesTo = ({ policy }: ActivePolicy, localClass: LocalClass): boolean =>
  policy.stage === "normal" || policy.stage === "forward" || localClass.isHost;

const subjectsOf = (active: ActivePolicy): LocalClass[] =>
  [...active.selection.subjects].filter((localClass) => appliesTo(active, localClass));

const profileKey = (name: string, implied: boolean): string => `${implied ? "implied" : "named"} ${name}`;

const everything = (action: "allow" | "deny", policy: string, direction: Direction): NeutralRule => ({
  action,
  source: {},
  destination: {},
  origin: { policy, direction, index: 0 },
});

function sameLists(a: ClassLists | undefined, b: ClassLists | undefined): boolean {
  const keys = [
    "ingress",
    "egress",
    "forwardIngress",
    "forwardEgress",
    "preDnat",
    "untrackedIngress",
    "untrackedEgress",
  ] as const;
  return keys.every((key) => a?.[key] === b?.[key]);
}
