/** The executable reference: holds the desired state and answers for packets, and touches no kernel. */
import { persistentMap } from "../../src/model/persistent_map.ts";
import type { PersistentMap } from "../../src/model/persistent_map.ts";
import type { DesiredHostEndpoint, DesiredState, DesiredWorkload, PolicyList } from "../../src/model/desired.ts";
import { judgePath } from "../../src/model/evaluate.ts";
import type { Decision, Judgement, Path, PathJudgement } from "../../src/model/evaluate.ts";
import type { Dataplane, DecisionCount, Report } from "../../src/sdk/dataplane.ts";
import { ConfigError } from "../../src/sdk/errors.ts";
import { definePlugin } from "../../src/sdk/plugin.ts";

export default definePlugin({
  api: "1.0",
  kind: "dataplane",
  name: "memory",
  parseConfig(raw): undefined {
    const keys = typeof raw === "object" && raw !== null && !Array.isArray(raw) ? Object.keys(raw) : undefined;
    if (raw === undefined || raw === null || keys?.length === 0) return undefined;
    if (keys !== undefined) {
      throw new ConfigError(
        `dataplane.config.${keys[0]}`,
        "an unknown key",
        "no keys: the memory dataplane has no settings",
      );
    }
    throw new ConfigError("dataplane.config", JSON.stringify(raw), "nothing: the memory dataplane has no settings");
  },
  open: () => Promise.resolve<Dataplane>(openMemory()),
});

export interface MemoryDataplane extends Dataplane {
  /** What is in force; undefined before the first `apply` and after `sweep`: then nothing is filtered. */
  readonly applied: DesiredState | undefined;
  /** What becomes of a new connection's first packet on this node, and why. The packet is counted; it has no bytes. */
  verdict(path: Path): PathJudgement;
  counts(list: PolicyList): Promise<readonly DecisionCount[]>;
}

export function openMemory(): MemoryDataplane {
  let applied: DesiredState | undefined;
  const counters = new Counters();
  const report = (messages: number): Promise<Report> =>
    Promise.resolve({ generation: applied?.generation ?? 0, converged: true, messages, problems: [] });
  return {
    capabilities: { aspects: new Set(["policy"]), families: new Set([4, 6]), atomicity: "all" },
    get applied() {
      return applied;
    },
    verdict(path) {
      if (applied === undefined) return { verdict: "allow", steps: [] };
      const judged = judgePath(applied, path);
      for (const step of judged.steps) if (step.kind === "judgement") counters.add(applied, step.judgement);
      return judged;
    },
    counts: (list) => Promise.resolve(counters.of(list)),
    apply(desired) {
      const messages = differences(applied, desired);
      applied = desired;
      counters.keep(desired);
      return report(messages);
    },
    resync: () => report(0),
    // What it holds is what it was given.
    diff: () => Promise.resolve([]),
    // It has no rules but what it was given.
    tracer() {
      const state = applied;
      return Promise.resolve((path: Path) => state === undefined ? "allow" : judgePath(state, path).verdict);
    },
    // deno-lint-ignore require-yield
    async *drift(signal) {
      // Nobody else can reach what it holds.
      if (signal.aborted) return;
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    },
    sweep() {
      const messages = applied === undefined ? 0 : 1;
      applied = undefined;
      counters.keep(undefined);
      return report(messages);
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
}

/** How many entries another dataplane would have had to write: found by identity, as theirs are. */
function differences(before: DesiredState | undefined, after: DesiredState): number {
  if (before === after) return 0;
  const count = <K extends string, V>(was: PersistentMap<K, V> | undefined, is: PersistentMap<K, V>) =>
    [...is.changesSince(was ?? persistentMap())].length;
  return count(before?.sets, after.sets) + count(before?.workloads, after.workloads) +
    count(before?.hostEndpoints, after.hostEndpoints) + (before?.failsafe === after.failsafe ? 0 : 1);
}

/** Packets by list and decision, as long as the list is in force. */
class Counters {
  private readonly lists = new Map<string, Map<string, { readonly decision: Decision; packets: number }>>();

  /** What decided, and what staged policies on the way to it would have. */
  add(state: DesiredState, { endpoint, stage, tiers, decision }: Judgement): void {
    const found: Partial<DesiredHostEndpoint & DesiredWorkload> | undefined = "workload" in endpoint
      ? state.workloads.get(endpoint.workload)
      : state.hostEndpoints.get(endpoint.hostEndpoint);
    const list = found?.[stage];
    if (list === undefined) return;
    this.count(list, decision);
    for (const { name: tier, policies } of tiers) {
      for (const { id: policy, staged, outcome, rules } of policies) {
        if (!staged || outcome === "no match") continue;
        this.count(list, { by: "rule", tier, policy, origin: rules.at(-1)!.origin, staged: true });
      }
    }
  }

  of(list: PolicyList): readonly DecisionCount[] {
    const counts = this.lists.get(list.id)?.values() ?? [];
    return [...counts].map(({ decision, packets }) => ({ decisions: [decision], packets, bytes: 0 }));
  }

  /** Forgets lists that are not in force any more. */
  keep(state: DesiredState | undefined): void {
    if (this.lists.size === 0) return;
    const inForce = new Set<string>();
    for (const endpoint of [...state?.workloads.values() ?? [], ...state?.hostEndpoints.values() ?? []]) {
      for (const value of Object.values(endpoint)) if (isList(value)) inForce.add(value.id);
    }
    for (const id of this.lists.keys()) if (!inForce.has(id)) this.lists.delete(id);
  }

  private count(list: PolicyList, decision: Decision): void {
    let counts = this.lists.get(list.id);
    if (counts === undefined) this.lists.set(list.id, counts = new Map());
    const key = JSON.stringify(decision);
    const count = counts.get(key);
    if (count === undefined) counts.set(key, { decision, packets: 1 });
    else count.packets++;
  }
}

const isList = (value: unknown): value is PolicyList => typeof value === "object" && value !== null && "tiers" in value;
