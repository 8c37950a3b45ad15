/** The executable reference: holds the desired state and answers for packets, and touches no kernel. */
import { persistentMap } from "../../src/model/persistent_map.ts";
import type { PersistentMap } from "../../src/model/persistent_map.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { judgePath } from "../../src/model/evaluate.ts";
import type { Path, PathJudgement } from "../../src/model/evaluate.ts";
import type { Dataplane, Report } from "../../src/sdk/dataplane.ts";
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
  /** What becomes of a new connection's first packet on this node, and why. */
  verdict(path: Path): PathJudgement;
}

export function openMemory(): MemoryDataplane {
  let applied: DesiredState | undefined;
  const report = (messages: number): Promise<Report> =>
    Promise.resolve({ generation: applied?.generation ?? 0, converged: true, messages, problems: [] });
  return {
    capabilities: { aspects: new Set(["policy"]), families: new Set([4, 6]), atomicity: "all" },
    get applied() {
      return applied;
    },
    verdict: (path) => applied === undefined ? { verdict: "allow", steps: [] } : judgePath(applied, path),
    apply(desired) {
      const messages = differences(applied, desired);
      applied = desired;
      return report(messages);
    },
    resync: () => report(0),
    // deno-lint-ignore require-yield
    async *drift(signal) {
      // Nobody else can reach what it holds.
      if (signal.aborted) return;
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    },
    sweep() {
      const messages = applied === undefined ? 0 : 1;
      applied = undefined;
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
