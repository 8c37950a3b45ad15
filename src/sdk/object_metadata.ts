import { dnsLabelFault, dnsSubdomainFault, labelValueFault, qualifiedNameFault } from "../model/kubernetes_names.ts";
import type { Labels } from "../model/selector.ts";
import type { Field } from "./validation.ts";

/** meta/v1 ObjectMeta. */
const METADATA_FIELDS = [
  "name",
  "generateName",
  "namespace",
  "labels",
  "annotations",
  "uid",
  "creationTimestamp",
  "resourceVersion",
  "generation",
  "deletionTimestamp",
  "deletionGracePeriodSeconds",
  "finalizers",
  "ownerReferences",
  "managedFields",
  "selfLink",
];

/** apimachinery, TotalAnnotationSizeLimitB: keys and values together. */
const ANNOTATIONS_LIMIT_BYTES = 256 * 1024;

export interface MetadataRules {
  readonly namespaced: boolean;
  /** What is wrong with a name; absent = a DNS subdomain. */
  readonly nameFault?: (name: string) => string | undefined;
}

/** Checks `metadata` and gives the good ones of its labels. */
export function readMetadata(root: Field, rules: MetadataRules): Labels {
  const metadata = root.at("metadata").required("an object with a name").object(METADATA_FIELDS);
  if (metadata.given) metadata.at("name").required("a name").name(rules.nameFault ?? dnsSubdomainFault);
  const namespace = metadata.at("namespace");
  if (rules.namespaced) namespace.name((text) => text === "" ? undefined : dnsLabelFault(text));
  else if (namespace.given && namespace.value !== "") namespace.refuse("none: the kind belongs to no namespace");
  readAnnotations(metadata.at("annotations"));
  return readLabels(metadata.at("labels"));
}

/** On a tier or a policy: what it denies is logged. */
export const LOG_DENIED_ANNOTATION = "manx.io/log-denied";

/** Reads the wish to log what is denied; to be spread into the neutral object. */
export function readLogDenied(root: Field): { readonly logDenied?: true } {
  const annotation = root.at("metadata").at("annotations").at(LOG_DENIED_ANNOTATION);
  if (annotation.value === "true") return { logDenied: true };
  if (annotation.given && annotation.value !== "false") annotation.refuse('"true" or "false", in quotes');
  return {};
}

/** A map of labels; what is no label is noted and left out. */
export function readLabels(field: Field): Labels {
  const labels = new Map<string, string>();
  for (const [key, value] of field.entries()) {
    const keyFault = qualifiedNameFault(key);
    if (keyFault !== undefined) value.refuse(keyFault, `the key ${JSON.stringify(key)}`);
    const text = value.given ? value.name(labelValueFault) : value.refuse("a string");
    if (keyFault === undefined && text !== undefined) labels.set(key, text);
  }
  return labels;
}

/** A map of annotations: keys as those of labels in any case, values any text. Those that can be read; of none `undefined`. */
export function readAnnotations(field: Field): Readonly<Record<string, string>> | undefined {
  let bytes = 0;
  const annotations: [string, string][] = [];
  for (const [key, value] of field.entries()) {
    const keyFault = qualifiedNameFault(key.toLowerCase());
    if (keyFault !== undefined) value.refuse(keyFault, `the key ${JSON.stringify(key)}`);
    const text = value.required("a string").text();
    bytes += key.length + (text?.length ?? 0);
    if (keyFault === undefined && text !== undefined) annotations.push([key, text]);
  }
  if (bytes > ANNOTATIONS_LIMIT_BYTES) field.refuse(`at most ${ANNOTATIONS_LIMIT_BYTES}`, `${bytes} bytes`);
  return annotations.length === 0 ? undefined : Object.fromEntries(annotations);
}
