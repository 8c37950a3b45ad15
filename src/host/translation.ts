/** Stored resources → neutral objects. What cannot be read keeps its last good version; without one it fails closed. */
import { keyText, type Problem, type Resource, type ResourceKey } from "../model/resource.ts";
import type { WorldChange } from "../model/world.ts";
import type { Change } from "../sdk/datastore.ts";
import { explainError } from "../sdk/errors.ts";
import { denyAll, FIRST_ORDER } from "../sdk/fail_closed.ts";
import type { Translation } from "../sdk/policy_source.ts";
import type { KindRegistry, KnownKind } from "./kinds.ts";

export interface Translator {
  /** The change of the world, or undefined where there is none: the last good version stands. */
  translate(change: Change): WorldChange | undefined;
  /** Of everything that is there now. */
  problems(): readonly Problem[];
}

export function createTranslator(registry: KindRegistry): Translator {
  /** Origins whose objects, as calc has them, come from a version without fault. */
  const good = new Set<string>();
  const problems = new Map<string, readonly Problem[]>();

  function fault(origin: string, found: readonly Problem[], closed: WorldChange): WorldChange | undefined {
    const effect = good.has(origin) ? "last-good" : "fail-closed";
    problems.set(origin, found.map((problem) => ({ ...problem, effect })));
    return good.has(origin) ? undefined : closed;
  }

  return {
    translate(change) {
      const origin = keyText(change.key);
      const known = registry.byKind(change.key.kind);
      if (known === undefined) return undefined;
      if (change.value === undefined && change.problem === undefined) {
        good.delete(origin);
        problems.delete(origin);
        return { origin, objects: [] };
      }
      if (change.value === undefined) {
        // Nothing is known but its name; its reader says what an empty one of that name must deny.
        const stub = stubOf(change, known.definition.apiVersions[0]!, known.definition.name);
        const problem: Problem = { subject: change.key, path: "", message: change.problem!, effect: "fail-closed" };
        return fault(origin, [problem], { origin, objects: read(known, change.key, stub).objects });
      }
      const { objects, problems: found } = read(known, change.key, change.value);
      if (found.some((problem) => problem.effect !== "ignored")) return fault(origin, found, { origin, objects });
      good.add(origin);
      if (found.length > 0) problems.set(origin, found);
      else problems.delete(origin);
      return { origin, objects };
    },
    problems: () => [...problems.values()].flat(),
  };
}

/** A reader that breaks its contract and throws must not open anything: its namespace is closed. */
function read(known: KnownKind, key: ResourceKey, resource: Resource): Translation {
  try {
    return known.source.translate(resource);
  } catch (error) {
    const message = `its reader failed: ${explainError(error)}`;
    const closed = denyAll({
      id: keyText(key),
      tier: "default",
      order: FIRST_ORDER,
      sortName: key.name,
      selects: known.definition.namespaced
        ? { op: "eq", label: "projectcalico.org/namespace", value: key.namespace }
        : { op: "all" },
      stage: "normal",
    }, ["ingress", "egress"]);
    return { objects: [closed], problems: [{ subject: key, path: "", message, effect: "fail-closed" }] };
  }
}

function stubOf(change: Change, apiVersion: string, kind: string): Resource {
  const { namespace, name } = change.key;
  return { apiVersion, kind, metadata: namespace === "" ? { name } : { name, namespace } };
}
