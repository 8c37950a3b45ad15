/** What a what-if changes: manifests as if applied, names as if deleted. Nothing is stored. */
import { isDeepStrictEqual } from "node:util";
import type { Calc } from "../../calc/mod.ts";
import { keyText, type ResourceKey } from "../../model/resource.ts";
import type { WorldChange } from "../../model/world.ts";
import { ManxError, RefusedError } from "../../sdk/errors.ts";
import { describe } from "../config.ts";
import type { WhatIfReply, WhatIfRequest } from "../explain/view.ts";
import { kindGroup, type KindRegistry } from "../resources/kinds.ts";
import { type ManifestEntry, parseManifest, refusal } from "../resources/manifest.ts";
import { NotFoundError } from "../resources/resources.ts";
import { type SourceLines, sourceLinesOfAll } from "../resources/source_lines.ts";

export interface WhatIf {
  readonly changes: readonly WorldChange[];
  readonly outcomes: WhatIfReply["changes"];
  /** Places in the manifests, by key text. */
  readonly lines: ReadonlyMap<string, SourceLines>;
}

/**
 * `namespace`: of names in `without` that say none.
 * @throws {RefusedError} as apply refuses; {NotFoundError} where there is nothing to take away
 */
export function readWhatIf(
  { manifests, without }: WhatIfRequest,
  namespace: string,
  registry: KindRegistry,
  calc: Pick<Calc, "world">,
): WhatIf {
  const entries = manifests.flatMap(({ file, text }) => {
    const found = parseManifest(text, file, registry, true);
    if (found.length === 0) throw new RefusedError([`${file}: found no resource, wanted at least one`]);
    return found;
  });
  refuseRepeats(entries);
  const standing = new Map<string, WorldChange>();
  for (const change of calc.world()) standing.set(change.origin, change);
  const unmet = entries.flatMap((entry) => unmetNeeds(entry, entries, standing, registry));
  if (unmet.length > 0) throw refusal(unmet);
  const gone = without.map((text) => keyNamed(text, namespace, registry, standing));
  const both = gone.find((key) => entries.some((entry) => keyText(entry.key) === keyText(key)));
  if (both !== undefined) {
    throw new RefusedError([
      `what-if: found ${keyText(both)} both in a manifest and to be left out, wanted one of them`,
    ]);
  }
  if (entries.length + gone.length === 0) throw new RefusedError(["what-if: found no change, wanted at least one"]);
  const changes: WorldChange[] = [];
  const outcomes: {
    kind: string;
    namespace: string;
    name: string;
    outcome: WhatIfReply["changes"][number]["outcome"];
  }[] = [];
  for (const { key, resource } of entries) {
    const origin = keyText(key);
    const { objects } = registry.byKind(key.kind)!.source.translate(resource);
    const before = standing.get(origin);
    const same = before !== undefined && isDeepStrictEqual(plain(before.objects), plain(objects));
    changes.push({ origin, objects });
    outcomes.push({ ...key, outcome: same ? "unchanged" : before === undefined ? "created" : "configured" });
  }
  for (const key of gone) {
    changes.push({ origin: keyText(key), objects: [] });
    outcomes.push({ ...key, outcome: "deleted" });
  }
  return { changes, outcomes, lines: sourceLinesOfAll(entries, registry) };
}

/** Without what is undefined, which the world may have and a translation leave out. */
const plain = (objects: WorldChange["objects"]): unknown =>
  objects.map((object) => Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)));

/** As apply refuses: a policy's tier must be there, or come with it. */
function unmetNeeds(
  { key, resource, where }: ManifestEntry,
  entries: readonly ManifestEntry[],
  standing: ReadonlyMap<string, WorldChange>,
  registry: KindRegistry,
): readonly string[] {
  const needs = registry.byKind(key.kind)?.source.needs?.(resource) ?? [];
  return needs.filter((need) =>
    !standing.has(keyText(need.key)) && !entries.some((entry) => keyText(entry.key) === keyText(need.key))
  ).map((need) =>
    `${where(need.path)}: ${need.path}: found ${JSON.stringify(need.key.name)}, wanted a ${
      registry.byKind(need.key.kind)?.definition.name ?? need.key.kind
    } that is there or comes in the same manifest`
  );
}

function refuseRepeats(entries: readonly ManifestEntry[]): void {
  const places = new Map<string, string>();
  for (const { key, where } of entries) {
    const id = keyText(key), earlier = places.get(id);
    if (earlier !== undefined) {
      throw new RefusedError([
        `${where("metadata.name")}: found ${id} a second time (first at ${earlier}), wanted each once`,
      ]);
    }
    places.set(id, where("metadata.name"));
  }
}

/** `KIND/NAME` or `KIND/NAMESPACE/NAME` of something that is there. */
function keyNamed(
  text: string,
  namespace: string,
  registry: KindRegistry,
  standing: ReadonlyMap<string, WorldChange>,
): ResourceKey {
  const [kind, ...rest] = text.split("/");
  if (rest.length < 1 || rest.length > 2 || rest.includes("") || kind === "") {
    throw new RefusedError([`without: found ${describe(text)}, wanted KIND/NAME or KIND/NAMESPACE/NAME`]);
  }
  const known = registry.byName(kind!);
  if (known.length === 0) {
    const plurals = [...new Set(registry.definitions.map(({ plural }) => plural))].sort();
    throw new NotFoundError(`without: found no kind ${describe(kind)}, wanted one of ${plurals.join(", ")}`);
  }
  const [name, within = namespace] = rest.toReversed() as [string, string?];
  const keys = known.map(({ definition }): ResourceKey => ({
    kind: definition.kind,
    namespace: definition.namespaced ? within : "",
    name,
  }));
  const there = keys.filter((key) => standing.has(keyText(key)));
  if (there.length === 1) return there[0]!;
  if (there.length === 0) throw new NotFoundError(`without: found no ${describe(text)} that has any effect now`);
  const choices = known.map(({ definition }) => `${definition.plural}.${kindGroup(definition.kind)}`);
  throw new ManxError(
    "ambiguous",
    `without: found ${describe(text)} of ${there.length} kinds, wanted one named: ${choices.join(" or ")}`,
  );
}
