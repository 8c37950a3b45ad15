/** Bodies of requests, checked: whoever reads on finds what the types say. */
import type { ExplainRequest, WhatIfRequest } from "../host/explain/view.ts";
import type { LogQuery } from "../host/logs/packet_log_view.ts";
import type { ManifestRequest, WaitKey } from "../host/view.ts";
import type { AddRequest, AttachmentName, CheckRequest, GcRequest } from "../sdk/attach.ts";
import { RefusedError } from "../sdk/errors.ts";
import type { DataplaneSwitchRequest, WaitRequest } from "./protocol.ts";

/** Longest wait that a client may ask for. */
const WAIT_MAX_MS = 3_600_000;

type Fields = Readonly<Record<string, unknown>>;

export function describe(value: unknown): string {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length > 80 ? `${text.slice(0, 77)}…` : text;
}

function refuse(field: string, found: unknown, wanted: string): never {
  throw new RefusedError([`request: ${field}: found ${describe(found)}, wanted ${wanted}`]);
}

function fieldsOf(body: unknown, field = "body"): Fields {
  if (body === null || typeof body !== "object" || Array.isArray(body)) refuse(field, body, "an object");
  return body as Fields;
}

const text = (fields: Fields, field: string): string => {
  const value = fields[field];
  return typeof value === "string" && value !== "" ? value : refuse(field, value, "text");
};
const optional = <T>(fields: Fields, field: string, read: (fields: Fields, field: string) => T): Record<string, T> =>
  fields[field] === undefined ? {} : { [field]: read(fields, field) };
const number = (fields: Fields, field: string): number => {
  const value = fields[field];
  return typeof value === "number" && Number.isFinite(value) ? value : refuse(field, value, "a number");
};
const list = (fields: Fields, field: string): readonly unknown[] => {
  const value = fields[field];
  return Array.isArray(value) ? value : refuse(field, value, "a list");
};
const texts = (fields: Fields, field: string): readonly string[] =>
  list(fields, field).map((value, i) => typeof value === "string" ? value : refuse(`${field}[${i}]`, value, "text"));
const textMap = (fields: Fields, field: string): Readonly<Record<string, string>> => {
  const map = fields[field] === undefined ? {} : fieldsOf(fields[field], field);
  for (const [key, value] of Object.entries(map)) {
    if (typeof value !== "string") refuse(`${field}.${key}`, value, "text");
  }
  return map as Record<string, string>;
};

/** @throws {RefusedError} */
export function readAttachmentName(body: unknown): AttachmentName {
  const fields = fieldsOf(body);
  return { network: text(fields, "network"), containerId: text(fields, "containerId"), ifName: text(fields, "ifName") };
}

/** @throws {RefusedError} */
export function readAddRequest(body: unknown): AddRequest {
  const fields = fieldsOf(body);
  return {
    ...readAttachmentName(body),
    netns: text(fields, "netns"),
    args: textMap(fields, "args"),
    labels: textMap(fields, "labels"),
    ...optional(fields, "ips", texts),
    ...optional(fields, "mac", text),
    ...optional(fields, "mtu", number),
    ...optional(fields, "pools", texts),
    ...optional(fields, "families", (from, field) => list(from, field) as readonly (4 | 6)[]),
    ...optional(fields, "routes", (from, field) =>
      list(from, field).map((route, i) => {
        const parts = fieldsOf(route, `${field}[${i}]`);
        return { dst: text(parts, "dst"), ...optional(parts, "gw", text) };
      })),
  };
}

/** @throws {RefusedError} */
export function readCheckRequest(body: unknown): CheckRequest {
  const fields = fieldsOf(body);
  return { ...readAttachmentName(body), netns: text(fields, "netns"), addresses: texts(fields, "addresses") };
}

/** @throws {RefusedError} */
export function readGcRequest(body: unknown): GcRequest {
  const fields = fieldsOf(body);
  const valid = list(fields, "valid").map((entry, i) => {
    const parts = fieldsOf(entry, `valid[${i}]`);
    return { containerId: text(parts, "containerId"), ifName: text(parts, "ifName") };
  });
  return { network: text(fields, "network"), valid };
}

/** @throws {RefusedError} */
export function readManifestRequest(body: unknown): ManifestRequest {
  const fields = fieldsOf(body);
  const manifest = fields.text;
  if (typeof manifest !== "string") refuse("text", manifest, "a manifest's text");
  const wait = fields.wait === undefined ? 0 : number(fields, "wait");
  if (wait < 0 || wait > WAIT_MAX_MS) refuse("wait", wait, `milliseconds, at most ${WAIT_MAX_MS}`);
  return {
    text: manifest as string,
    file: fields.file === undefined ? "manifest" : text(fields, "file"),
    dryRun: fields.dryRun === true,
    wait,
  };
}

/** @throws {RefusedError} */
export function readWaitRequest(body: unknown): WaitRequest {
  const fields = fieldsOf(body);
  const deadlineMs = number(fields, "deadlineMs");
  if (deadlineMs < 0 || deadlineMs > WAIT_MAX_MS) {
    refuse("deadlineMs", deadlineMs, `milliseconds, at most ${WAIT_MAX_MS}`);
  }
  const keys = list(fields, "keys").map((entry, i): WaitKey => {
    const parts = fieldsOf(entry, `keys[${i}]`);
    const { namespace, revision, outcome } = parts;
    return {
      kind: text(parts, "kind"),
      namespace: typeof namespace === "string" ? namespace : "",
      name: text(parts, "name"),
      revision: typeof revision === "string" ? revision : "",
      ...(typeof outcome === "string" ? { outcome: outcome as WaitKey["outcome"] } : {}),
    };
  });
  return { keys, deadlineMs };
}

/** @throws {RefusedError} */
export function readDataplaneSwitchRequest(body: unknown): DataplaneSwitchRequest {
  const fields = fieldsOf(body);
  const use = text(fields, "use");
  return fields.config === undefined || fields.config === null ? { use } : { use, config: fields.config };
}

/** @throws {RefusedError} */
export function readExplainRequest(body: unknown): ExplainRequest {
  const fields = fieldsOf(body);
  const question = (from: Fields, field: string) => {
    const asked = fieldsOf(from[field], field);
    const { family } = asked;
    if (family !== undefined && family !== 4 && family !== 6) refuse(`${field}.family`, family, "4 or 6");
    return {
      from: text(asked, "from"),
      to: text(asked, "to"),
      protocol: text(asked, "protocol"),
      ...family === undefined ? {} : { family: family as 4 | 6 },
    };
  };
  const whatIf = (from: Fields, field: string): WhatIfRequest => {
    const change = fieldsOf(from[field], field);
    const manifests = (change.manifests === undefined ? [] : list(change, "manifests")).map((entry, i) => {
      const { text, file } = readManifestRequest(fieldsOf(entry, `${field}.manifests[${i}]`));
      return { text, file };
    });
    return { manifests, without: change.without === undefined ? [] : texts(change, "without") };
  };
  return {
    ...optional(fields, "namespace", text),
    ...optional(fields, "question", question),
    ...optional(fields, "whatIf", whatIf),
  };
}

const LOG_QUERY = ["follow", "since", "limit", "pod", "verdict"];

/** Of the query's text values. @throws {RefusedError} */
export function readLogQuery(query: Readonly<Record<string, string>>): LogQuery {
  const refuseQuery = (name: string, wanted: string): never => {
    throw new RefusedError([`query: ${name}: found ${describe(query[name])}, wanted ${wanted}`]);
  };
  for (const name of Object.keys(query)) {
    if (!LOG_QUERY.includes(name)) {
      throw new RefusedError([`query: found ${name}, wanted one of ${LOG_QUERY.join(", ")}`]);
    }
  }
  const one = <T extends string>(name: string, ...choices: readonly T[]): T | undefined =>
    query[name] === undefined || choices.includes(query[name] as T)
      ? query[name] as T | undefined
      : refuseQuery(name, choices.join(" or "));
  const whole = (name: string, wanted: string): number | undefined => {
    const text = query[name];
    if (text === undefined) return undefined;
    return /^[0-9]{1,15}$/.test(text) ? Number(text) : refuseQuery(name, wanted);
  };
  const { pod } = query;
  if (pod !== undefined && !/^[^/]+\/[^/]+$/.test(pod)) refuseQuery("pod", "NAMESPACE/NAME");
  const sinceMs = whole("since", "milliseconds back from now"), limit = whole("limit", "a number of lines");
  const verdict = one("verdict", "log", "deny");
  return {
    follow: one("follow", "true", "false") === "true",
    ...sinceMs === undefined ? {} : { sinceMs },
    ...limit === undefined ? {} : { limit },
    ...pod === undefined ? {} : { pod },
    ...verdict === undefined ? {} : { verdict },
  };
}
