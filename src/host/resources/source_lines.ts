/**
 * Where rules stand in the manifest that they were applied with. Kept in the datastore beside the object, under a kind of its
 * own that no command shows, and written in the same commit; so it survives restarts and `manx get` prints what was applied.
 */
import { digest } from "../../model/digest.ts";
import type { Resource, ResourceKey } from "../../model/resource.ts";
import { keyText } from "../../model/resource.ts";
import type { Direction } from "../../model/rule.ts";
import type { KindRegistry } from "./kinds.ts";
import type { ManifestEntry } from "./manifest.ts";

export const SOURCE_LINES = "SourceLines.manx";

/** What `apply` calls standard input, and what is kept of it. */
const STANDARD_INPUT = "standard input";
const STDIN = "stdin";

export interface SourceLines {
  /** As it was named to `manx apply`; `stdin` for standard input. */
  readonly file: string;
  /** Of the document, from 1. */
  readonly line: number;
  /** Of each rule, by its index. */
  readonly ingress: readonly number[];
  readonly egress: readonly number[];
  /** Of the object's content: another content has other lines. */
  readonly content: string;
}

/** A line of a manifest. */
export interface SourcePlace {
  readonly file: string;
  readonly line: number;
}

export const sourceLinesKey = (key: ResourceKey): ResourceKey => ({
  kind: SOURCE_LINES,
  namespace: key.namespace,
  name: `${key.kind}/${key.name}`,
});

/** Undefined for what decides nothing: only policies, profiles and tiers are asked for their place. */
export function sourceLinesOf(entry: ManifestEntry, registry: KindRegistry): SourceLines | undefined {
  const { key, resource } = entry;
  const known = registry.byKind(key.kind);
  if (known === undefined) return undefined;
  let decides: boolean;
  try {
    decides = known.source.translate(resource).objects.some(({ kind }) => DECIDING.has(kind));
  } catch {
    // A plugin of somebody's that breaks its contract: the watch says so; there is nothing to point at.
    return undefined;
  }
  if (!decides) return undefined;
  const rulesOf = (direction: Direction): number[] => {
    const list = (resource.spec as Record<string, unknown> | null | undefined)?.[direction];
    return Array.isArray(list) ? list.map((_, index) => entry.line(`spec.${direction}[${index}]`)) : [];
  };
  return {
    file: entry.file === STANDARD_INPUT ? STDIN : entry.file,
    line: entry.line(""),
    ingress: rulesOf("ingress"),
    egress: rulesOf("egress"),
    content: contentOf(resource),
  };
}

const DECIDING: ReadonlySet<string> = new Set(["policy", "profile", "tier"]);

/** Through JSON, as the datastore has it: what is undefined is not there. */
const contentOf = (resource: Resource): string => digest(JSON.stringify(resource.spec ?? null));

export const sourceLinesResource = (key: ResourceKey, lines: SourceLines): Resource => ({
  apiVersion: "manx/v1",
  kind: "SourceLines",
  metadata: { name: sourceLinesKey(key).name, ...key.namespace === "" ? {} : { namespace: key.namespace } },
  spec: lines,
});

/** What was kept for `object` as it is now; undefined where somebody wrote it without a manifest since, or where it is damaged. */
export function readSourceLines(kept: Resource | undefined, object: Resource | undefined): SourceLines | undefined {
  const spec = kept?.spec as Partial<SourceLines> | null | undefined;
  if (spec === undefined || spec === null || object === undefined) return undefined;
  const { file, line, ingress, egress, content } = spec;
  const areLines = (list: unknown): list is readonly number[] =>
    Array.isArray(list) && list.every((line) => Number.isInteger(line));
  if (typeof file !== "string" || !Number.isInteger(line) || !areLines(ingress) || !areLines(egress)) return undefined;
  return content === contentOf(object) ? { file, line: line!, ingress, egress, content } : undefined;
}

/** Of a rule, or of the whole document. */
export function placeIn(
  lines: SourceLines,
  rule?: { readonly direction: Direction; readonly index: number },
): SourcePlace {
  const line = rule === undefined ? lines.line : lines[rule.direction][rule.index] ?? lines.line;
  return { file: lines.file, line };
}

/** As editors and compilers write it: `web.yaml:12`. */
export const placeText = ({ file, line }: SourcePlace): string => `${file}:${line}`;

/** The places of a manifest that is not stored, by key text. */
export function sourceLinesOfAll(
  entries: readonly ManifestEntry[],
  registry: KindRegistry,
): ReadonlyMap<string, SourceLines> {
  return new Map(entries.flatMap((entry) => {
    const lines = sourceLinesOf(entry, registry);
    return lines === undefined ? [] : [[keyText(entry.key), lines] as const];
  }));
}
