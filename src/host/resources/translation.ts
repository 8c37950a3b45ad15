/** Stored resources → neutral objects. What cannot be read keeps its last good version; without one it fails closed. */
import { NAMESPACE_LABEL } from "../../model/endpoint_labels.ts";
import { keyText, type Problem, type Resource, type ResourceKey } from "../../model/resource.ts";
import { ALL, labelIs } from "../../model/selector.ts";
import type { WorldChange } from "../../model/world.ts";
import type { Change } from "../../sdk/datastore.ts";
import { explainError } from "../../sdk/errors.ts";
import { denyAllOf } from "../../sdk/fail_closed.ts";
import type { KindDefinition, Translation } from "../../sdk/policy_source.ts";
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
      const misnamed = change.value && misnaming(change.key, change.value, known.definition);
      if (change.value === undefined || misnamed !== undefined) {
        // Nothing is known but its name; its reader says what one of that name must deny that cannot be read.
        const stub = stubOf(change, known.definition.apiVersions[0]!, known.definition.name);
        const message = misnamed ?? change.problem!;
        const problem: Problem = { subject: change.key, path: "", message, effect: "fail-closed" };
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
    const closed = denyAllOf(key, known.definition.namespaced ? labelIs(NAMESPACE_LABEL, key.namespace) : ALL);
    return { objects: [closed], problems: [{ subject: key, path: "", message, effect: "fail-closed" }] };
  }
}

/** What stands under a key is what the key says: as something else it would be another object, and what belongs there gone. */
function misnaming(key: ResourceKey, resource: Resource, definition: KindDefinition): string | undefined {
  const { name, namespace } = resource.metadata ?? {};
  const found = [resource.kind, key.namespace === "" ? "" : namespace || "default", name];
  const wanted = [definition.name, key.namespace, key.name];
  if (found.every((part, i) => part === wanted[i])) return undefined;
  const text = ([kind, namespace, name]: readonly unknown[]) =>
    `${kind} ${namespace === "" ? "" : `${namespace}/`}${name}`;
  return `found ${text(found)} stored under ${keyText(key)}, wanted ${text(wanted)}`;
}

function stubOf(change: Change, apiVersion: string, kind: string): Resource {
  const { namespace, name } = change.key;
  const metadata = namespace === "" ? { name } : { name, namespace };
  // Not absent, which in most kinds is fine and means something: unreadable, which is a fault in all of them.
  return { apiVersion, kind, metadata, spec: "unreadable" };
}
