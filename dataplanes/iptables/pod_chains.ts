/** Chains that judge what pods send and receive. Pure. */
import type { DesiredWorkload, PolicyList } from "../../src/model/desired.ts";
import type { Direction } from "../../src/model/rule.ts";
import type { LeafRules } from "./dispatch.ts";
import type { GrowingTables } from "./growing_tables.ts";
import type { Interfaces } from "./interfaces.ts";
import { besideNeighbours, neighbourSources } from "./neighbours.ts";
import { DROP, INVALID_FLOWS, jump, type Match, RETURN, type Rule, rule, type Target } from "./ruleset.ts";
import { sourceSetName } from "./set_names.ts";

/** Whether a pod's packet has an address of that pod; unknown pods have none. */
export function sourceCheck(tables: GrowingTables): Target {
  const set: Match = { match: "set", set: sourceSetName(tables.family), ends: ["source", "source"], not: false };
  return tables.to("raw", [rule(RETURN, set), ...neighbourSources(tables), rule(DROP)]);
}

/** `in`: what forwarded packets come from, and its egress; `out`: what they go to, and its ingress. */
export function podForward(tables: GrowingTables, workloads: Interfaces["workloads"], way: "in" | "out"): Rule {
  const direction = way === "in" ? "egress" : "ingress";
  const names = new Map([...workloads].map(([name, workload]): [string, LeafRules] => {
    if (workload === undefined) return [name, (matches) => [rule(DROP, ...matches)]];
    const list = tables.to("filter", judged(tables, workload[direction], direction));
    // What a pod sends to itself meets no policy.
    const itself: Match = { match: "interface", way: way === "in" ? "out" : "in", name, prefix: false };
    return [name, (matches) => [rule(RETURN, ...matches, itself), rule(list, ...matches)]];
  }));
  const rules = tables.tree("filter", { way, names, otherPods: DROP, others: undefined });
  return rule(jump(tables.chain("filter", rules)));
}

/** What a pod sends to its node. */
export const podInput = (tables: GrowingTables, workload: DesiredWorkload | undefined): Target =>
  workload === undefined
    ? DROP
    : tables.to("filter", besideNeighbours(tables, "filter", judged(tables, workload.egress, "egress")));

const judged = (tables: GrowingTables, list: PolicyList, direction: Direction): readonly Rule[] => [
  INVALID_FLOWS,
  rule(tables.list("filter", list, direction)),
];
