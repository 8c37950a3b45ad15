/** Rows of the database and what they say: resources as JSON text, tombstones, damage. */
import { keyText, type Resource, type ResourceKey } from "../../../src/model/resource.ts";
import type { Change, Revision, Write } from "../../../src/sdk/datastore.ts";
import { RefusedError } from "../../../src/sdk/errors.ts";

/** One resource's JSON. */
const VALUE_MAX_BYTES = 8 * 1024 * 1024;

export interface Row {
  /** Absent: not read back. */
  readonly id?: number;
  readonly kind: string;
  readonly namespace: string;
  readonly name: string;
  readonly revision: number;
  /** JSON; null = a tombstone. */
  readonly value: string | null;
}

export interface PreparedWrite {
  readonly key: ResourceKey;
  readonly text: string;
  readonly json: string | null;
  readonly expect: Revision | null | undefined;
}

/** Checked and turned to text, before any lock is taken. @throws {RefusedError} */
export function prepareWrite({ key, value, expect }: Write): PreparedWrite {
  const text = keyText(key);
  if (key.kind === "" || key.name === "" || /[/\0]/.test(key.kind + key.namespace) || key.name.includes("\0")) {
    throw new RefusedError([
      `commit of ${JSON.stringify(text)}: wanted kind/namespace/name, only namespace may be empty`,
    ]);
  }
  if (value === null) return { key, text, json: null, expect };
  if (typeof value !== "object") {
    throw new RefusedError([`commit of ${text}: found no object, wanted a resource or null`]);
  }
  const json = JSON.stringify(value);
  if (Buffer.byteLength(json) > VALUE_MAX_BYTES) {
    throw new RefusedError([
      `commit of ${text}: found ${Buffer.byteLength(json)} bytes, wanted at most ${VALUE_MAX_BYTES}`,
    ]);
  }
  return { key, text, json, expect };
}

/** The resource, or what is wrong with the text. */
export function parseValue(json: string): Resource | string {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (error) {
    return `found ${JSON.stringify(String(json).slice(0, 40))}, wanted JSON: ${(error as Error).message}`;
  }
  const found = value as Partial<Resource> | null;
  if (
    typeof found !== "object" || found === null || typeof found.apiVersion !== "string" ||
    typeof found.kind !== "string" || typeof found.metadata?.name !== "string"
  ) return `found ${JSON.stringify(value).slice(0, 40)}, wanted an object with apiVersion, kind and metadata.name`;
  return found as Resource;
}

export function parseKeyText(text: string): ResourceKey {
  const [kind, namespace, ...name] = text.split("/") as [string, string, ...string[]];
  return { kind, namespace, name: name.join("/") };
}

/** What a watcher that has delivered `known` is told; brings `known` up to date. */
export function toChanges(
  { rows, vanished }: { readonly rows: readonly Row[]; readonly vanished: readonly ResourceKey[] },
  known: Set<string>,
): Change[] {
  const changes: Change[] = [];
  const gone = new Set(vanished.map(keyText));
  for (const { kind, namespace, name, revision, value } of rows) {
    const key = { kind, namespace, name };
    const text = keyText(key);
    gone.delete(text);
    if (value === null) {
      if (known.delete(text)) changes.push({ key, revision: String(revision) as Revision });
      continue;
    }
    known.add(text);
    const parsed = parseValue(value);
    changes.push({
      key,
      revision: String(revision) as Revision,
      ...(typeof parsed === "string" ? { problem: `${text}: ${parsed}` } : { value: parsed }),
    });
  }
  for (const text of gone) if (known.delete(text)) changes.push({ key: parseKeyText(text) });
  return changes;
}
