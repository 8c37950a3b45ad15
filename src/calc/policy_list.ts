import type { CompiledPolicy, PolicyList, PolicyTier } from "../model/desired.ts";
import { digest } from "../model/digest.ts";
import { FIXED_TIERS } from "../model/fixed_tiers.ts";
import type { NeutralPolicy } from "../model/rule.ts";
import type { TierObject } from "../model/world.ts";
import type { Compiled } from "./compile.ts";

/** A tier as lists see it. */
export interface Tier {
  readonly name: string;
  /** Infinity = last. */
  readonly order: number;
  readonly defaultAction: "deny" | "pass";
  /** Its policies deny what they select. */
  readonly closed?: true;
  readonly logDenied?: true;
}

/** A tier that nobody has described comes last and denies: what it selects stays closed. */
export function tierOf(name: string, object: TierObject | undefined): Tier {
  const fixed = FIXED_TIERS.get(name);
  const tier: Tier = fixed !== undefined
    ? { name, ...fixed }
    : object?.closed
    ? { name, order: -Infinity, defaultAction: "deny", closed: true }
    : { name, order: orderOf(object?.order), defaultAction: object?.defaultAction ?? "deny" };
  return object?.logDenied ? { ...tier, logDenied: true } : tier;
}

const orderOf = (order: number | undefined): number => order === undefined || Number.isNaN(order) ? Infinity : order;
const byText = (a: string, b: string): number => a < b ? -1 : a > b ? 1 : 0;
/** Infinity minus itself is no number. */
const byNumber = (a: number, b: number): number => a < b ? -1 : a > b ? 1 : 0;

export interface RankedPolicy {
  readonly policy: NeutralPolicy;
  readonly tier: Tier;
}

/** Tier order, tier name, order, name; then the id, so that there is always one answer. */
export function comparePolicies(a: RankedPolicy, b: RankedPolicy): number {
  return byNumber(a.tier.order, b.tier.order) || byText(a.tier.name, b.tier.name) ||
    byNumber(orderOf(a.policy.order), orderOf(b.policy.order)) || byText(a.policy.sortName, b.policy.sortName) ||
    byText(a.policy.id, b.policy.id);
}

export interface ListPart {
  readonly tier: Tier;
  readonly compiled: Compiled;
}

export interface ListSpec {
  /** In order of judgement. */
  readonly policies: readonly ListPart[];
  readonly profiles: readonly Compiled[];
  readonly end: "deny" | "next";
  /** Whether tiers have a default action here at all. */
  readonly tierDefaults: boolean;
}

/** Lists by content: one object each, as long as somebody holds it. */
export class PolicyLists {
  readonly #lists = new Map<string, { readonly list: PolicyList; uses: number }>();
  readonly #idle = new Set<string>();
  /** Lists put together since the beginning. */
  built = 0;

  get held(): number {
    return this.#lists.size;
  }

  acquire(spec: ListSpec): PolicyList {
    this.built++;
    const tiers: { tier: Tier; defaultAction: "deny" | "pass"; policies: Compiled[] }[] = [];
    for (const { tier, compiled } of spec.policies) {
      const last = tiers.at(-1);
      if (last?.tier.name === tier.name) last.policies.push(compiled);
      else tiers.push({ tier, defaultAction: "pass", policies: [compiled] });
    }
    for (const part of tiers) {
      // Staged policies must not close anything: a tier of nothing else has nothing to end with.
      const enforced = part.policies.some(({ policy }) => !policy.staged);
      if (spec.tierDefaults && enforced) part.defaultAction = part.tier.defaultAction;
    }
    let content = spec.end;
    for (const { tier, defaultAction, policies } of tiers) {
      content += `\n${JSON.stringify(tier.name)} ${defaultAction}${tier.logDenied ? " logged" : ""}`;
      for (const compiled of policies) content += ` ${compiled.digest}`;
    }
    content += "\n";
    for (const compiled of spec.profiles) content += ` ${compiled.digest}`;
    const id = digest(content);
    let entry = this.#lists.get(id);
    if (entry === undefined) {
      const list: PolicyList = {
        id,
        tiers: tiers.map(({ tier, defaultAction, policies }): PolicyTier => ({
          name: tier.name,
          policies: policies.map(policyOf),
          defaultAction,
          ...tier.logDenied ? { logDenied: true } : {},
        })),
        profiles: spec.profiles.map(policyOf),
        end: spec.end,
      };
      this.#lists.set(id, entry = { list, uses: 0 });
    }
    entry.uses++;
    return entry.list;
  }

  /** Takes effect with the next `sweep`, so a list that is let go and taken up again stays the same object. */
  release(list: PolicyList): void {
    if (--this.#lists.get(list.id)!.uses === 0) this.#idle.add(list.id);
  }

  sweep(): void {
    for (const id of this.#idle) if (this.#lists.get(id)!.uses === 0) this.#lists.delete(id);
    this.#idle.clear();
  }
}

const policyOf = ({ policy }: Compiled): CompiledPolicy => policy;
