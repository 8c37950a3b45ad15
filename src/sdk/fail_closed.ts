import { keyText } from "../model/resource.ts";
import type { ResourceKey } from "../model/resource.ts";
import type { Direction, NeutralPolicy, NeutralRule } from "../model/rule.ts";
import { labelIs } from "../model/selector.ts";
import type { Labels, Selector } from "../model/selector.ts";

/** Before every order that an API can hold. */
export const FIRST_ORDER = -Number.MAX_VALUE;

/** The policy in place of one that cannot be read: the same place, and in each of `directions` one rule that denies everything. */
export function denyAll(
  policy: Omit<NeutralPolicy, "kind" | "ingress" | "egress" | "staged">,
  directions: readonly Direction[],
): NeutralPolicy {
  const rules = (direction: Direction): readonly NeutralRule[] => [{
    action: "deny",
    source: {},
    destination: {},
    origin: { policy: policy.id, direction, index: 0 },
  }];
  return {
    kind: "policy",
    ...policy,
    staged: false,
    ...(directions.includes("ingress") ? { ingress: rules("ingress") } : {}),
    ...(directions.includes("egress") ? { egress: rules("egress") } : {}),
  };
}

/**
 * A policy before all others that denies all of `selects`, both ways, because of what `key` names and nobody can read. Of host
 * endpoints it denies what is forwarded as well.
 */
export const denyAllOf = (key: ResourceKey, selects: Selector): NeutralPolicy =>
  denyAll({ id: keyText(key), tier: "kube-admin", order: FIRST_ORDER, sortName: "", selects, stage: "forward" }, [
    "ingress",
    "egress",
  ]);

/** In place of labels that cannot be read; its value says whose. */
const UNREADABLE_LABEL = "manx/unreadable";

/**
 * For an endpoint that cannot be read: with its labels unread no policy might select it, and what none selects is open. The
 * labels to give it instead, and the policy that denies it by them.
 */
export function closedEndpoint(key: ResourceKey): { readonly labels: Labels; readonly policy: NeutralPolicy } {
  const mark = keyText(key);
  return { labels: new Map([[UNREADABLE_LABEL, mark]]), policy: denyAllOf(key, labelIs(UNREADABLE_LABEL, mark)) };
}
