/** The kernel's counters of decisions, as a dataplane reads them. */
import type { PolicyList } from "../../model/desired.ts";
import type { Decision } from "../../model/evaluate.ts";
import type { Dataplane } from "../../sdk/dataplane.ts";
import { explainError } from "../../sdk/errors.ts";
import type { Log } from "../../sdk/plugin.ts";
import type { CounterView } from "./view.ts";

const DEADLINE_MS = 5_000;

export interface Counters {
  of(list: PolicyList, decision: Decision, signal?: AbortSignal): Promise<CounterView>;
}

/** Asks the dataplane that enforces policy. */
export function createCounters(
  dataplanes: readonly { readonly name: string; readonly instance: Dataplane }[],
  log: Log,
): Counters {
  const owner = dataplanes.find(({ instance }) => instance.capabilities.aspects.has("policy"));
  return {
    async of(list, decision, signal) {
      if (owner === undefined) return { absent: "no dataplane enforces policy" };
      const { name, instance } = owner;
      if (instance.counts === undefined) return { absent: `the dataplane ${name} does not count` };
      const deadline = AbortSignal.timeout(DEADLINE_MS);
      try {
        const counts = await instance.counts(
          list,
          signal === undefined ? deadline : AbortSignal.any([signal, deadline]),
        );
        if (counts.length === 0) return { absent: "not in force yet" };
        const found = counts.filter(({ decisions }) => decisions.some((one) => sameDecision(one, decision)));
        if (found.length === 0) return { absent: `the dataplane ${name} keeps no counter for it` };
        const others = new Set(
          found.flatMap(({ decisions }) => decisions.filter((one) => !sameDecision(one, decision)).map(nameOf)),
        );
        const sum = (of: "packets" | "bytes") => found.reduce((total, count) => total + count[of], 0);
        return { packets: sum("packets"), bytes: sum("bytes"), sharedWith: others.size };
      } catch (error) {
        signal?.throwIfAborted();
        log.debug("explain: counters cannot be read", { error: explainError(error) });
        return { absent: `cannot be read: ${explainError(error)}` };
      }
    },
  };
}

const sameDecision = (a: Decision, b: Decision): boolean => nameOf(a) === nameOf(b);

/** Equal for equal decisions. */
function nameOf(decision: Decision): string {
  const staged = "staged" in decision && decision.staged === true;
  if (decision.by === "tier default") return JSON.stringify([decision.by, decision.tier, staged]);
  if (decision.by !== "rule") return JSON.stringify([decision.by, staged]);
  const { tier, policy, origin } = decision;
  return JSON.stringify([decision.by, tier, policy, origin.direction, origin.index, staged]);
}
