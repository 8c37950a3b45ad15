/** Manifest text → resources, each with its place in the text. */
import { isMap, isNode, isScalar, LineCounter, parseAllDocuments } from "yaml";
import type { Document } from "yaml";
import { keyText, type Resource, type ResourceKey } from "../../model/resource.ts";
import { explainError, RefusedError } from "../../sdk/errors.ts";
import type { KindDefinition } from "../../sdk/policy_source.ts";
import { describe } from "../config.ts";
import type { KindRegistry } from "./kinds.ts";
import { Findings } from "./shape.ts";
import { repeatedKey } from "./unique_keys.ts";
import { boundsFault, nestingFault } from "./value_bounds.ts";

/** What one error reply lists; the rest are counted. */
const REASONS_MAX = 20;
/** Aliases that one document may expand, against "billion laughs". */
const ALIASES_MAX = 100;

export interface ManifestEntry {
  readonly key: ResourceKey;
  /** Its apiVersion is the stored one, its namespace filled in. */
  readonly resource: Resource;
  readonly definition: KindDefinition;
  /** As the manifest is called. */
  readonly file: string;
  /** `FILE: document 2, line 14`; with the path of a field, that field's line. */
  where(path: string): string;
  /** Line of a field in the file, from 1; of the deepest one on the way to it that is there. */
  line(path: string): number;
}

/** RFC 1123 subdomain, as most names must be. */
const NAME = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const NAMESPACE = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;
const LABEL_NAME = /^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/;
const LABEL_VALUE = /^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$/;
/** k8s.io/apimachinery ObjectMeta. */
const METADATA_FIELDS = [
  "name",
  "generateName",
  "namespace",
  "selfLink",
  "uid",
  "resourceVersion",
  "generation",
  "creationTimestamp",
  "deletionTimestamp",
  "deletionGracePeriodSeconds",
  "labels",
  "annotations",
  "ownerReferences",
  "finalizers",
  "managedFields",
];

/**
 * `validate`: hold each resource against its API; deleting needs no more than names.
 * @throws {RefusedError} one reason a line: file, document, line, field path, what was found and what is wanted
 */
export function parseManifest(
  text: string,
  file: string,
  registry: KindRegistry,
  validate: boolean,
): readonly ManifestEntry[] {
  const { entries, reasons } = readManifest(text, file, registry, validate);
  if (reasons.length > 0) throw refusal(reasons);
  return entries;
}

/** As `parseManifest`, with every reason, and the entries that have none. */
export function readManifest(
  text: string,
  file: string,
  registry: KindRegistry,
  validate: boolean,
): { readonly entries: readonly ManifestEntry[]; readonly reasons: readonly string[] } {
  const lines = new LineCounter();
  const parsed = parseAllDocuments(text, {
    lineCounter: lines,
    prettyErrors: false,
    merge: true,
    // Looked at below, by `repeatedKey`.
    uniqueKeys: false,
    // No warnings of its own on standard error.
    logLevel: "error",
  });
  const documents: readonly Document[] = Array.isArray(parsed) ? parsed : [];
  const reasons: string[] = [];
  const entries: ManifestEntry[] = [];
  const places = new Map<string, string>();
  for (const [index, document] of documents.entries()) {
    const lineOf = (node: unknown): number => {
      const offset = isNode(node) && node.range
        ? node.range[0]
        : document.contents?.range?.[0] ?? document.range?.[0] ?? 0;
      return lines.linePos(offset).line;
    };
    const place = (node: unknown) => `${file}: document ${index + 1}, line ${lineOf(node)}`;
    if (document.errors.length > 0) {
      const error = document.errors[0]!;
      const { line, col } = lines.linePos(error.pos[0]);
      // The reader's own stack may be the first to end.
      const found = error.code === "RESOURCE_EXHAUSTION" ? nestingFault() : `broken YAML: ${error.message}`;
      reasons.push(`${file}: document ${index + 1}, line ${line}, column ${col}: ${found}`);
      continue;
    }
    const repeated = repeatedKey(document);
    if (repeated !== undefined) {
      const { line, col } = lines.linePos(repeated.range?.[0] ?? 0);
      reasons.push(
        `${file}: document ${index + 1}, line ${line}, column ${col}: broken YAML: found key ${
          describe(repeated.value)
        } a second time, wanted each once`,
      );
      continue;
    }
    let value: unknown;
    try {
      value = document.toJS({ maxAliasCount: ALIASES_MAX });
    } catch (error) {
      reasons.push(
        `${place(undefined)}: found aliases that cannot be expanded (${
          (error as Error).message
        }), wanted each to have its anchor, and at most ${ALIASES_MAX}`,
      );
      continue;
    }
    const fault = boundsFault(value, text.length);
    if (fault !== undefined) {
      reasons.push(`${place(undefined)}: ${fault}`);
      continue;
    }
    if (value === null || value === undefined) continue;
    for (const { raw, path } of unfoldList(value)) {
      const node = (fieldPath: string) => nodeAt(document, [...path, ...splitPath(fieldPath)]);
      const where = (fieldPath: string) => place(node(fieldPath));
      const prefix = path.length === 0 ? "" : `items[${path[1]}].`;
      const read = readResource(raw, registry, validate);
      for (const { path: at, message } of read.findings) {
        reasons.push(`${where(at)}: ${at === "" ? "" : `${prefix}${at}: `}${message}`);
      }
      if (read.entry === undefined || read.findings.length > 0) continue;
      const id = keyText(read.entry.key);
      const earlier = places.get(id);
      if (earlier !== undefined) {
        reasons.push(
          `${
            where("metadata.name")
          }: ${prefix}metadata.name: found ${id} a second time (first at ${earlier}), wanted each once`,
        );
        continue;
      }
      places.set(id, where("metadata.name").slice(file.length + 2));
      entries.push({ ...read.entry, file, where, line: (fieldPath) => lineOf(node(fieldPath)) });
    }
  }
  return { entries, reasons };
}

/** @returns an error that lists the first reasons and counts the rest */
export function refusal(reasons: readonly string[]): RefusedError {
  const more = reasons.length - REASONS_MAX;
  return new RefusedError(more > 0 ? [...reasons.slice(0, REASONS_MAX), `… and ${more} more`] : reasons);
}

/** `kind: List` holds resources in `items`. */
function unfoldList(value: unknown): readonly { raw: unknown; path: readonly (string | number)[] }[] {
  const items = (value as { items?: unknown } | null)?.items;
  const kind = (value as { kind?: unknown } | null)?.kind;
  if (typeof kind !== "string" || !kind.endsWith("List") || !Array.isArray(items)) return [{ raw: value, path: [] }];
  return items.map((raw, i) => ({ raw, path: ["items", i] }));
}

function readResource(
  raw: unknown,
  registry: KindRegistry,
  validate: boolean,
): {
  entry?: Pick<ManifestEntry, "key" | "resource" | "definition">;
  findings: readonly { path: string; message: string }[];
} {
  const findings = new Findings();
  const fail = (path: string, found: unknown, wanted: string) => {
    findings.note(path, found, wanted);
    return { findings: findings.all };
  };
  if (raw === null || typeof raw !== "object" || Array.isArray(raw)) {
    return fail("", raw, "a resource: a mapping with apiVersion, kind and metadata");
  }
  const { apiVersion, kind, metadata: rawMetadata } = raw as Record<string, unknown>;
  if (typeof apiVersion !== "string") return fail("apiVersion", apiVersion, "text such as networking.k8s.io/v1");
  if (typeof kind !== "string") return fail("kind", kind, "text such as NetworkPolicy");
  const known = registry.byManifest(apiVersion, kind);
  if (known === undefined) {
    findings.all.push({
      path: "kind",
      message: `found ${kind} of ${apiVersion}, wanted ${registry.wanted(apiVersion, kind)}`,
    });
    return { findings: findings.all };
  }
  const { definition, source } = known;
  if (rawMetadata === undefined || rawMetadata === null) return fail("metadata", rawMetadata, "a mapping with a name");
  const metadata = findings.fields(rawMetadata, "metadata", METADATA_FIELDS);
  const name = metadata.name;
  if (typeof name !== "string" || name.length > 253 || !NAME.test(name)) {
    findings.note("metadata.name", name, "a name of lower-case letters, digits, - and ., at most 253");
  }
  const namespace = metadata.namespace === null ? undefined : metadata.namespace;
  if (!definition.namespaced && namespace !== undefined && namespace !== "") {
    findings.note("metadata.namespace", namespace, `none: ${definition.name} belongs to no namespace`);
  } else if (
    definition.namespaced && namespace !== undefined && (typeof namespace !== "string" || !NAMESPACE.test(namespace))
  ) {
    findings.note("metadata.namespace", namespace, "a name of lower-case letters, digits and -, at most 63");
  }
  if (validate) {
    for (const [label, value] of findings.labels(metadata.labels, "metadata.labels")) {
      if (!LABEL_NAME.test(label)) {
        findings.note(`metadata.labels.${label}`, label, "a label name, [prefix/]name, name at most 63");
      }
      if (!LABEL_VALUE.test(value)) {
        findings.note(`metadata.labels.${label}`, value, "a label value: letters, digits, -, _ and ., at most 63");
      }
    }
    findings.labels(metadata.annotations, "metadata.annotations");
  }
  if (findings.all.length > 0) return { findings: findings.all };
  const { namespace: _, ...ownMetadata } = metadata;
  const key: ResourceKey = {
    kind: definition.kind,
    namespace: definition.namespaced ? (namespace as string) || "default" : "",
    name: name as string,
  };
  const resource = {
    ...(raw as Record<string, unknown>),
    apiVersion: definition.apiVersions[0]!,
    kind,
    metadata: { ...ownMetadata, ...(definition.namespaced ? { namespace: key.namespace } : {}) },
  } as Resource;
  if (validate) {
    try {
      for (const { path, message } of source.validate(resource)) findings.all.push({ path, message });
    } catch (error) {
      findings.all.push({ path: "", message: `its reader failed: ${explainError(error)}` });
    }
  }
  return { entry: { key, resource, definition }, findings: findings.all };
}

/** `spec.ingress[0].ports` → ["spec", "ingress", 0, "ports"] */
function splitPath(path: string): (string | number)[] {
  return path.split(/[.[\]]+/).filter((part) => part !== "").map((part) => /^\d+$/.test(part) ? Number(part) : part);
}

/** The node at `path`, or the deepest there is on the way; a mapping's entry is its key's node. */
function nodeAt(document: Document, path: readonly (string | number)[]): unknown {
  let found: unknown = document.contents;
  for (let depth = 1; depth <= path.length; depth++) {
    const holder = depth === 1 ? document.contents : document.getIn(path.slice(0, depth - 1), true);
    if (isMap(holder)) {
      const pair = holder.items.find((item) =>
        isScalar(item.key) && String(item.key.value) === String(path[depth - 1])
      );
      if (pair === undefined) return found;
      found = pair.key;
    } else {
      const node = document.getIn(path.slice(0, depth), true);
      if (!isNode(node)) return found;
      found = node;
    }
  }
  return found;
}
