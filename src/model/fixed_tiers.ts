/** A tier that is always there, and not for anybody to change. */
export interface FixedTier {
  readonly order: number;
  readonly defaultAction: "deny" | "pass";
}

/** By name; policy-semantics, "Order of judgement", 4. */
export const FIXED_TIERS: ReadonlyMap<string, FixedTier> = new Map([
  ["kube-admin", { order: 1_000, defaultAction: "pass" }],
  ["default", { order: 1_000_000, defaultAction: "deny" }],
  ["kube-baseline", { order: 10_000_000, defaultAction: "pass" }],
]);
