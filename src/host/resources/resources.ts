/** Manifests and the datastore: apply, delete, list, get. */
import { isDeepStrictEqual } from "node:util";
import type { Resource, ResourceKey } from "../../model/resource.ts";
import type { Datastore, Revision, Versioned, Write } from "../../sdk/datastore.ts";
import { ManxError, RefusedError } from "../../sdk/errors.ts";
import type { Clock } from "../../sdk/plugin.ts";
import { IP_POOL, poolCidr, WORKLOAD_ENDPOINT } from "./core_source.ts";
import { doubleClaims } from "../interface_claims.ts";
import { kindGroup, type KindRegistry, type KnownKind } from "./kinds.ts";
import { type ManifestEntry, parseManifest, refusal } from "./manifest.ts";
import { createNeeds } from "../needs.ts";
import { overlappingPools } from "./pool_overlap.ts";
import type { Wanted } from "../reconcile.ts";
import { sourceLinesKey, sourceLinesOf, sourceLinesResource } from "./source_lines.ts";
import type {
  ApplyReply,
  HostView,
  ManifestRequest,
  Outcome,
  ResourceList,
  ResourceOutcome,
  WaitKey,
} from "../view.ts";

/** Times that a commit is tried again when somebody else wrote one of its keys. */
const CONFLICT_RETRIES = 5;

export interface ResourceParts {
  readonly datastore: Datastore;
  readonly registry: KindRegistry;
  readonly clock: Clock;
  readonly programmed: (wanted: readonly Wanted[], deadlineMs: number, signal?: AbortSignal) => Promise<void>;
}

/** What a manifest does to one key. */
interface Step {
  readonly key: ResourceKey;
  readonly outcome: Outcome;
  readonly before: Versioned | undefined;
  /** Absent: nothing to write. */
  readonly write?: Write;
  /** Where it stands in its manifest, written with it. */
  readonly lines?: Write;
}

export function createResources(parts: ResourceParts): HostView["resources"] & { wait: HostView["wait"] } {
  const { datastore, registry, clock } = parts;
  const needs = createNeeds(datastore, registry);
  /** One manifest at a time, so that what was checked still holds at the commit. */
  let turn: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(body: () => Promise<T>): Promise<T> => {
    const mine = turn.then(body);
    turn = mine.catch(() => {});
    return mine;
  };

  async function wait(keys: readonly WaitKey[], deadlineMs: number, signal?: AbortSignal): Promise<number> {
    const startedMs = clock.nowMs();
    await parts.programmed(keys.map(wantedOf), deadlineMs, signal);
    return Math.round(clock.nowMs() - startedMs);
  }

  async function carryOut(
    plan: () => Promise<readonly Step[]>,
    dryRun: boolean,
    waitMs: number,
    signal?: AbortSignal,
  ): Promise<ApplyReply> {
    const results = await inTurn(() => commit(plan, dryRun, signal));
    if (waitMs <= 0 || dryRun) return { results };
    const startedMs = clock.nowMs();
    let inForce = true;
    try {
      await wait(results, waitMs, signal);
    } catch (error) {
      if ((error as Partial<ManxError>).code !== "deadline") throw error;
      inForce = false;
    }
    return { results, inForce, waitedMs: Math.round(clock.nowMs() - startedMs) };
  }

  async function commit(
    plan: () => Promise<readonly Step[]>,
    dryRun: boolean,
    signal?: AbortSignal,
  ): Promise<readonly ResourceOutcome[]> {
    for (let attempt = 0;; attempt++) {
      const steps = await plan();
      const writes = steps.flatMap(({ write, lines }) => [...write ? [write] : [], ...lines ? [lines] : []]);
      let revision: Revision | undefined;
      if (writes.length > 0 && !dryRun) {
        try {
          revision = await datastore.commit(writes, signal);
        } catch (error) {
          if ((error as Partial<ManxError>).code === "conflict" && attempt < CONFLICT_RETRIES) continue;
          throw error;
        }
      }
      return steps.map(({ key, outcome, before, write }) => ({
        kind: key.kind,
        namespace: key.namespace,
        name: key.name,
        outcome,
        revision: dryRun ? "" : (write === undefined ? before?.revision : revision) ?? "",
      }));
    }
  }

  function apply(request: ManifestRequest, signal?: AbortSignal): Promise<ApplyReply> {
    const entries = parseManifest(request.text, request.file, registry, true);
    if (entries.length === 0) throw new RefusedError([`${request.file}: found no resource, wanted at least one`]);
    const plan = async () => {
      const steps: Step[] = [];
      for (const entry of entries) {
        const step = applyStep(entry, await datastore.get(entry.key, signal));
        steps.push({ ...step, ...await linesWrite(entry, signal) });
      }
      await checkPools(entries, steps, signal);
      const unmet = await needs.unmet(entries, signal);
      if (unmet.length > 0) throw refusal(unmet);
      await checkInterfaces(entries, signal);
      return steps;
    };
    return carryOut(plan, request.dryRun ?? false, request.wait ?? 0, signal);
  }

  function applyStep({ key, resource }: ManifestEntry, before: Versioned | undefined): Step {
    const value = storedForm(resource, before?.value, clock.wallMs());
    if (before === undefined) return { key, outcome: "created", before, write: { key, value, expect: null } };
    if (isDeepStrictEqual(value, before.value)) return { key, outcome: "unchanged", before };
    return { key, outcome: "configured", before, write: { key, value, expect: before.revision } };
  }

  /** Also of what is unchanged: it may stand in another file now, or further down. */
  async function linesWrite(entry: ManifestEntry, signal?: AbortSignal): Promise<Pick<Step, "lines">> {
    const lines = sourceLinesOf(entry, registry);
    if (lines === undefined) return {};
    const key = sourceLinesKey(entry.key), value = sourceLinesResource(entry.key, lines);
    const before = await datastore.get(key, signal);
    return isDeepStrictEqual(value.spec, before?.value.spec) ? {} : { lines: { key, value } };
  }

  /** Pools must not overlap, and keep their prefix and block size for as long as they are. */
  async function checkPools(
    entries: readonly ManifestEntry[],
    steps: readonly Step[],
    signal?: AbortSignal,
  ): Promise<void> {
    const pools = entries.filter((entry) => entry.key.kind === IP_POOL);
    if (pools.length === 0) return;
    const reasons: string[] = [];
    for (const entry of pools) {
      const before = steps.find((step) => step.key === entry.key)?.before?.value;
      for (const field of before === undefined ? [] : ["cidr", "blockSize"]) {
        const [was, is] = [before!, entry.resource].map((resource) =>
          (resource.spec as Record<string, unknown> | undefined)?.[field]
        );
        if (was !== is) {
          reasons.push(
            `${entry.where(`spec.${field}`)}: spec.${field}: found ${JSON.stringify(is)}, wanted ${
              JSON.stringify(was)
            } as it is: addresses are leased by it; make another pool`,
          );
        }
      }
    }
    const inManifest = new Set(pools.map((entry) => entry.key.name));
    const standing = (await datastore.list(IP_POOL, signal)).filter((pool) => !inManifest.has(pool.key.name));
    reasons.push(
      ...overlappingPools(pools, standing.map((pool) => ({ name: pool.key.name, cidr: poolCidr(pool.value) }))),
    );
    if (reasons.length > 0) throw refusal(reasons);
  }

  /** Nobody may claim an interface that another endpoint has, a pod's least of all. */
  async function checkInterfaces(entries: readonly ManifestEntry[], signal?: AbortSignal): Promise<void> {
    if (!entries.some(({ key }) => key.kind === WORKLOAD_ENDPOINT)) return;
    const reasons = doubleClaims(entries, await datastore.list(WORKLOAD_ENDPOINT, signal));
    if (reasons.length > 0) throw refusal(reasons);
  }

  function remove(request: ManifestRequest, signal?: AbortSignal): Promise<ApplyReply> {
    const entries = parseManifest(request.text, request.file, registry, false);
    if (entries.length === 0) throw new RefusedError([`${request.file}: found no resource, wanted at least one`]);
    const keys = entries.map((entry) => entry.key);
    return carryOut(() => deleteSteps(keys, signal), request.dryRun ?? false, request.wait ?? 0, signal);
  }

  async function deleteSteps(keys: readonly ResourceKey[], signal?: AbortSignal): Promise<readonly Step[]> {
    const standing = await needs.standing(keys, signal);
    if (standing.length > 0) throw refusal(standing);
    const steps: Step[] = [];
    for (const key of keys) {
      const before = await datastore.get(key, signal);
      steps.push(
        before === undefined ? { key, outcome: "absent", before } : {
          key,
          outcome: "deleted",
          before,
          write: { key, value: null, expect: before.revision },
          lines: { key: sourceLinesKey(key), value: null },
        },
      );
    }
    return steps;
  }

  function kindsNamed(text: string): readonly KnownKind[] {
    const found = registry.byName(text);
    if (found.length === 0) {
      const known = registry.definitions.map((definition) => definition.plural);
      throw new NotFoundError(
        `found no kind ${JSON.stringify(text)}, wanted one of ${[...new Set(known)].sort().join(", ")}`,
      );
    }
    return found;
  }

  async function getAll(
    kindName: string,
    namespace: string,
    name: string,
    signal?: AbortSignal,
  ): Promise<{ known: KnownKind; found: Versioned }[]> {
    const all: { known: KnownKind; found: Versioned }[] = [];
    const known = kindsNamed(kindName);
    for (const one of known) {
      const found = await datastore.get(keyOf(one, namespace, name), signal);
      if (found !== undefined) all.push({ known: one, found });
    }
    if (all.length === 0) {
      const place = known.some((one) => one.definition.namespaced) ? ` in namespace ${namespace}` : "";
      throw new NotFoundError(`found no ${known[0]!.definition.name} ${JSON.stringify(name)}${place}`);
    }
    return all;
  }

  return {
    kinds: registry.definitions,
    wait,
    apply: async (request, signal) => apply(request, signal),
    delete: async (request, signal) => remove(request, signal),
    async list(kindName, namespace, signal): Promise<ResourceList> {
      const groups = [];
      for (const { definition } of kindsNamed(kindName)) {
        const items = (await datastore.list(definition.kind, signal))
          .filter(({ key }) => namespace === undefined || !definition.namespaced || key.namespace === namespace).map(
            shown,
          );
        groups.push({ kind: definition, items });
      }
      return { groups };
    },
    async get(kindName, namespace, name, signal): Promise<ResourceList> {
      const all = await getAll(kindName, namespace, name, signal);
      return { groups: all.map(({ known, found }) => ({ kind: known.definition, items: [shown(found)] })) };
    },
    async remove(kindName, namespace, name, waitMs, signal): Promise<ApplyReply> {
      const all = await getAll(kindName, namespace, name, signal);
      if (all.length > 1) {
        const choices = all.map(({ known }) => `${known.definition.plural}.${kindGroup(known.definition.kind)}`);
        throw new ManxError(
          "ambiguous",
          `found ${JSON.stringify(name)} of ${all.length} kinds, wanted one named: ${choices.join(" or ")}`,
        );
      }
      return carryOut(() => deleteSteps([all[0]!.found.key], signal), false, waitMs, signal);
    },
  };
}

export class NotFoundError extends ManxError {
  override readonly name = "NotFoundError";
  constructor(message: string) {
    super("not-found", message);
  }
}

const keyOf = ({ definition }: KnownKind, namespace: string, name: string): ResourceKey => ({
  kind: definition.kind,
  namespace: definition.namespaced ? namespace : "",
  name,
});

const wantedOf = ({ kind, namespace, name, revision, outcome }: WaitKey): Wanted => ({
  key: { kind, namespace, name },
  ...(revision === "" ? {} : { revision: revision as Revision }),
  ...(outcome === "deleted" || outcome === "absent" ? { gone: true } : {}),
});

/** What the store writes itself and a manifest cannot say. */
const SERVER_FIELDS = ["resourceVersion", "generation", "managedFields", "selfLink"];

/** As it is stored: identity and birth are kept from before, and so is the status where the manifest has none. */
function storedForm(resource: Resource, before: Resource | undefined, nowMs: number): Resource {
  const metadata: Record<string, unknown> = { ...resource.metadata };
  for (const field of SERVER_FIELDS) delete metadata[field];
  metadata.uid = before?.metadata.uid ?? metadata.uid ?? crypto.randomUUID();
  metadata.creationTimestamp = before?.metadata.creationTimestamp ?? metadata.creationTimestamp ??
    new Date(nowMs).toISOString().replace(/\.\d+Z$/, "Z");
  const kept = resource.status === undefined && before?.status !== undefined ? { status: before.status } : {};
  // Through JSON, as the store does it: what is undefined is not there.
  return JSON.parse(JSON.stringify({ ...resource, ...kept, metadata }));
}

const shown = ({ value, revision }: Versioned): Resource => ({
  ...value,
  metadata: { ...value.metadata, resourceVersion: revision },
});
