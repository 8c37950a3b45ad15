/** Reading a parsed manifest field by field. What is absent or null counts as not given. */

/** A manifest says something that has no meaning here; the message tells where, what was found and what is wanted. */
export class ManifestError extends Error {
  override readonly name = "ManifestError";
}

export type Fields = Readonly<Record<string, unknown>>;

export function refuse(where: string, found: unknown, wanted: string): never {
  throw new ManifestError(`${where}: found ${JSON.stringify(found) ?? String(found)}, wanted ${wanted}`);
}

export const isGiven = (value: unknown): boolean => value !== undefined && value !== null;

export function readFields(value: unknown, where: string): Fields {
  if (!isGiven(value)) return {};
  if (typeof value !== "object" || Array.isArray(value)) return refuse(where, value, "fields");
  return value as Fields;
}

export function readList(value: unknown, where: string): readonly unknown[] {
  if (!isGiven(value)) return [];
  return Array.isArray(value) ? value : refuse(where, value, "a list");
}

export function readText(value: unknown, where: string): string | undefined {
  if (!isGiven(value)) return undefined;
  return typeof value === "string" ? value : refuse(where, value, "text");
}

/** A text that is not empty: Calico's API takes an empty one for none. */
export function readGivenText(value: unknown, where: string): string | undefined {
  const text = readText(value, where);
  return text === "" ? undefined : text;
}

export function readNumber(value: unknown, where: string): number | undefined {
  if (!isGiven(value)) return undefined;
  return typeof value === "number" && Number.isFinite(value) ? value : refuse(where, value, "a number");
}

export function readFlag(value: unknown, where: string): boolean {
  if (!isGiven(value)) return false;
  return typeof value === "boolean" ? value : refuse(where, value, "true or false");
}

export function readWord<Word extends string>(value: unknown, words: readonly Word[], where: string): Word {
  return words.includes(value as Word) ? value as Word : refuse(where, value, words.join(", "));
}

export function readTexts(value: unknown, where: string): readonly string[] {
  return readList(value, where).map((entry, i) => readText(entry, `${where}[${i}]`) ?? refuse(where, entry, "text"));
}

/** A map, for a label may be called `constructor`. */
export function readLabels(value: unknown, where: string): ReadonlyMap<string, string> {
  return new Map(
    Object.entries(readFields(value, where)).map(([name, text]) => [name, readText(text, `${where}.${name}`) ?? ""]),
  );
}

/** One resource's identity. Both of Calico's API groups name the same objects. */
export interface Identity {
  readonly kind: string;
  readonly group: "core" | "networking" | "cluster" | "discovery" | "calico";
  /** Of namespaced kinds; `default` where the manifest gives none. */
  readonly namespace: string;
  readonly name: string;
  readonly where: string;
}

const GROUPS: Readonly<Record<string, Identity["group"]>> = {
  "v1": "core",
  "networking.k8s.io/v1": "networking",
  "policy.networking.k8s.io/v1alpha2": "cluster",
  "discovery.k8s.io/v1": "discovery",
  "projectcalico.org/v3": "calico",
  "crd.projectcalico.org/v1": "calico",
};

/** @returns undefined for a resource of a group that says nothing about policy */
export function readIdentity(resource: unknown): Identity | undefined {
  const { apiVersion, kind, metadata } = readFields(resource, "resource");
  const group = GROUPS[String(apiVersion)];
  if (group === undefined) return undefined;
  const { name, namespace } = readFields(metadata, "metadata");
  const where = `${kind} ${namespace === undefined ? "" : `${namespace}/`}${name}`;
  return {
    kind: readText(kind, "kind") ?? refuse("resource", resource, "a kind"),
    group,
    namespace: readGivenText(namespace, `${where}: metadata.namespace`) ?? "default",
    name: readGivenText(name, `${where}: metadata.name`) ?? refuse(where, name, "a name"),
    where,
  };
}
