import type { Direction, NeutralPolicy, NeutralRule } from "../model/rule.ts";

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
