/** The daemon's configuration file: YAML, every key known, every error with its line and key path. */
import { readFileSync } from "node:fs";
import { hostname } from "node:os";
import { isMap, isNode, isScalar, LineCounter, parseDocument } from "yaml";
import type { Document } from "yaml";
import { DEFAULT_FAILSAFE } from "../calc/failsafe.ts";
import { type Address, AddressSyntaxError, type Cidr, parseAddress, parseCidrStrict } from "../model/address.ts";
import type { Failsafe, ProtocolPort } from "../model/desired.ts";
import { PROTOCOLS } from "../model/ports.ts";
import { ConfigError, ManxError } from "../sdk/errors.ts";
import { DEFAULT_SOCKET, DEFAULT_STATE_DIRECTORY } from "./defaults.ts";

/** sizeof(sockaddr_un.sun_path) less its terminator, include/uapi/linux/un.h. */
const SOCKET_PATH_BYTES = 107;

export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** One plugin: which, and what it is told. */
export interface Slot {
  /** A built-in name, or the absolute path of a file. */
  readonly use: string;
  /** The plugin's own; undefined where there is none. */
  readonly config: unknown;
  /** Lower-case hex, of the file. */
  readonly sha256?: string;
  /** Key path, for messages: `policy[1]`. */
  readonly path: string;
}

export interface Config {
  /** Where it was read from; for messages. */
  readonly file: string;
  readonly node: string;
  /** Of the node; absent = those of its links. */
  readonly addresses?: readonly Address[];
  readonly stateDirectory: string;
  readonly datastore: Slot;
  readonly ipam: Slot;
  readonly cni: Slot;
  readonly policy: readonly Slot[];
  readonly dataplanes: readonly Slot[];
  readonly routing: Slot;
  readonly api: { readonly socket: string };
  readonly log: { readonly level: LogLevel; readonly format: "text" | "json" };
  readonly policyOptions: { readonly failsafe: Failsafe };
  /** Absent: services are somebody else's. */
  readonly services?: { readonly nodePortAddresses: readonly Cidr[] };
  /** Whether the daemon rehearses at its start: see rehearsal.ts. */
  readonly rehearsal: boolean;
  /** Whether a change of policy cuts established flows: see flow_cuts.ts. */
  readonly cutEstablishedFlows: boolean;
}

/** @throws {ManxError} code `config`, naming the file, line and key path */
export function loadConfig(file: string): Config {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    const found = code === "ENOENT" ? "no such file" : code === "EISDIR" ? "a directory" : (cause as Error).message;
    throw new ManxError("config", `config ${file}: found ${found}, wanted a YAML file (--config names another one)`, {
      cause: code === "ENOENT" || code === "EISDIR" ? undefined : cause,
    });
  }
  return parseConfig(text, file);
}

/** @throws {ManxError} code `config`, naming the file, line and key path */
export function parseConfig(text: string, file: string): Config {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const broken = document.errors[0];
  if (broken !== undefined) {
    const { line, col } = lines.linePos(broken.pos[0]);
    throw new ManxError(
      "config",
      `config ${file}: line ${line}, column ${col}: found broken YAML (${broken.message}), wanted a mapping`,
    );
  }
  try {
    return readConfig(document.toJS({ maxAliasCount: 100 }), file);
  } catch (error) {
    if (!(error instanceof ConfigError)) {
      throw error instanceof ManxError ? error : new ManxError("config", `config ${file}: ${(error as Error).message}`);
    }
    throw locateConfigError(error, file, document, lines);
  }
}

/** A plugin's ConfigError says `pools[0].cidr`; this says which file, and which slot it belongs to. */
export function inSlot(error: Error & { readonly path: string }, slot: Slot, file: string): ManxError {
  const path = `${slot.path}.config${
    error.path === "" ? "" : error.path.startsWith("[") ? error.path : `.${error.path}`
  }`;
  const prefix = `${error.path === "" ? "config" : error.path}: `;
  const tail = error.message.startsWith(prefix) ? error.message.slice(prefix.length) : error.message;
  return new ManxError("config", `config ${file}: ${path}: ${tail}`, { cause: error.cause });
}

function locateConfigError(error: ConfigError, file: string, document: Document, lines: LineCounter): ManxError {
  const path = error.path.split(/[.[\]]+/).filter((part) => part !== "").map((part) =>
    /^\d+$/.test(part) ? Number(part) : part
  );
  // The key itself where its value is missing or unknown, else the nearest parent that is there.
  for (let depth = path.length; depth >= 0; depth--) {
    const holder = depth === 0 ? document.contents : document.getIn(path.slice(0, depth - 1), true);
    const pair = depth > 0 && isMap(holder)
      ? holder.items.find((item) => isScalar(item.key) && item.key.value === path[depth - 1])
      : undefined;
    const node = pair?.key ?? (depth === 0 ? holder : document.getIn(path.slice(0, depth), true));
    if (isNode(node) && node.range) {
      return new ManxError("config", `config ${file}: line ${lines.linePos(node.range[0]).line}: ${error.message}`);
    }
  }
  return new ManxError("config", `config ${file}: ${error.message}`);
}

function readConfig(raw: unknown, file: string): Config {
  const top = readMap(raw ?? {}, "", [
    "node",
    "addresses",
    "stateDirectory",
    "datastore",
    "ipam",
    "cni",
    "policy",
    "dataplane",
    "routing",
    "api",
    "log",
    "policyOptions",
    "services",
    "rehearsal",
    "cutEstablishedFlows",
  ]);
  const api = readMap(top.api ?? {}, "api", ["socket"]);
  const log = readMap(top.log ?? {}, "log", ["level", "format"]);
  const options = readMap(top.policyOptions ?? {}, "policyOptions", ["failsafe"]);
  const failsafe = readMap(options.failsafe ?? {}, "policyOptions.failsafe", ["inbound", "outbound"]);
  const services = readMap(top.services ?? {}, "services", ["enabled", "nodePortAddresses"]);
  const nodePortAddresses = readList(services.nodePortAddresses ?? [], "services.nodePortAddresses").map((item, i) =>
    readPrefix(item, `services.nodePortAddresses[${i}]`)
  );
  const socket = readAbsolute(api.socket ?? DEFAULT_SOCKET, "api.socket");
  if (Buffer.byteLength(socket) > SOCKET_PATH_BYTES) {
    throw new ConfigError(
      "api.socket",
      `a path of ${Buffer.byteLength(socket)} bytes`,
      `at most ${SOCKET_PATH_BYTES}, the kernel's limit`,
    );
  }
  const addresses = top.addresses === undefined
    ? undefined
    : readList(top.addresses, "addresses").map((item, i) => readAddress(item, `addresses[${i}]`));
  return {
    file,
    node: readNodeName(top.node),
    ...(addresses === undefined ? {} : { addresses }),
    stateDirectory: readAbsolute(top.stateDirectory ?? DEFAULT_STATE_DIRECTORY, "stateDirectory"),
    datastore: readSlot(top.datastore ?? { use: "sqlite" }, "datastore"),
    ipam: readSlot(top.ipam ?? { use: "block" }, "ipam"),
    cni: readSlot(top.cni ?? { use: "veth" }, "cni"),
    policy: readSlots(top.policy ?? [{ use: "kubernetes" }, { use: "calico" }], "policy", false),
    dataplanes: readSlots(top.dataplane ?? { use: "nftables" }, "dataplane", true),
    routing: readSlot(top.routing ?? { use: "none" }, "routing"),
    api: { socket },
    log: {
      level: readChoice(log.level ?? "info", "log.level", LOG_LEVELS),
      format: readChoice(log.format ?? "text", "log.format", ["text", "json"] as const),
    },
    policyOptions: {
      failsafe: {
        inbound: readPorts(failsafe.inbound, "policyOptions.failsafe.inbound", DEFAULT_FAILSAFE.inbound),
        outbound: readPorts(failsafe.outbound, "policyOptions.failsafe.outbound", DEFAULT_FAILSAFE.outbound),
      },
    },
    ...(readFlag(services.enabled ?? false, "services.enabled") ? { services: { nodePortAddresses } } : {}),
    rehearsal: readFlag(top.rehearsal ?? true, "rehearsal"),
    cutEstablishedFlows: readFlag(top.cutEstablishedFlows ?? true, "cutEstablishedFlows"),
  };
}

/** What a value is, for "found …". */
export function describe(value: unknown): string {
  if (value === undefined) return "nothing";
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object") return "a mapping";
  if (typeof value === "function") return "a function";
  const text = JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 77)}…` : text;
}

function readMap(raw: unknown, path: string, keys: readonly string[]): Record<string, unknown> {
  if (raw === null || typeof raw !== "object" || Array.isArray(raw)) {
    throw new ConfigError(path, describe(raw), "a mapping");
  }
  for (const key of Object.keys(raw)) {
    if (!keys.includes(key)) {
      throw new ConfigError(path === "" ? key : `${path}.${key}`, "an unknown key", `one of ${keys.join(", ")}`);
    }
  }
  return raw as Record<string, unknown>;
}

function readList(raw: unknown, path: string): readonly unknown[] {
  if (!Array.isArray(raw)) throw new ConfigError(path, describe(raw), "a list");
  return raw;
}

function readText(raw: unknown, path: string, wanted: string): string {
  if (typeof raw !== "string" || raw === "") throw new ConfigError(path, describe(raw), wanted);
  return raw;
}

function readAbsolute(raw: unknown, path: string): string {
  const text = readText(raw, path, "an absolute path");
  if (!text.startsWith("/") || text.includes("\0")) throw new ConfigError(path, describe(text), "an absolute path");
  return text;
}

function readFlag(raw: unknown, path: string): boolean {
  if (typeof raw !== "boolean") throw new ConfigError(path, describe(raw), "true or false");
  return raw;
}

function readChoice<T extends string>(raw: unknown, path: string, choices: readonly T[]): T {
  if (!choices.includes(raw as T)) throw new ConfigError(path, describe(raw), `one of ${choices.join(", ")}`);
  return raw as T;
}

const readAddress = (raw: unknown, path: string): Address =>
  readParsed(raw, path, "an IPv4 or IPv6 address", parseAddress);

const readPrefix = (raw: unknown, path: string): Cidr =>
  readParsed(raw, path, "a prefix such as 192.0.2.0/24 or 2001:db8::/32", parseCidrStrict);

function readParsed<T>(raw: unknown, path: string, wanted: string, parse: (text: string) => T): T {
  try {
    return parse(readText(raw, path, wanted));
  } catch (error) {
    if (error instanceof AddressSyntaxError) throw new ConfigError(path, describe(raw), error.wanted);
    throw error;
  }
}

function readNodeName(raw: unknown): string {
  const name = raw === undefined ? hostname().toLowerCase() : raw;
  const path = raw === undefined ? "node (absent, so the host name)" : "node";
  const wanted = "a name of lower-case letters, digits, - and ., at most 253";
  const text = readText(name, path, wanted);
  if (text.length > 253 || !/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/.test(text)) {
    throw new ConfigError(path, describe(text), wanted);
  }
  return text;
}

function readSlot(raw: unknown, path: string): Slot {
  const slot = readMap(raw, path, ["use", "config", "sha256"]);
  const use = readText(slot.use, `${path}.use`, "the name of a built-in plugin, or the absolute path of a file");
  const isFile = use.startsWith("/");
  if (!isFile && !/^[a-z0-9][a-z0-9_-]*$/.test(use)) {
    throw new ConfigError(
      `${path}.use`,
      describe(use),
      "the name of a built-in plugin, or the absolute path of a file",
    );
  }
  if (slot.sha256 === undefined) return { use, config: slot.config ?? undefined, path };
  if (!isFile) {
    throw new ConfigError(`${path}.sha256`, "a hash of a built-in plugin", "none: it is part of the executable");
  }
  const sha256 = readText(slot.sha256, `${path}.sha256`, "64 hex digits").toLowerCase();
  if (!/^[0-9a-f]{64}$/.test(sha256)) throw new ConfigError(`${path}.sha256`, describe(slot.sha256), "64 hex digits");
  return { use, config: slot.config ?? undefined, sha256, path };
}

/** A list of slots; `orOne`: a single one need not be a list. */
function readSlots(raw: unknown, path: string, orOne: boolean): readonly Slot[] {
  if (orOne && !Array.isArray(raw)) return [readSlot(raw, path)];
  const slots = readList(raw, path).map((item, i) => readSlot(item, `${path}[${i}]`));
  if (slots.length === 0) throw new ConfigError(path, "an empty list", "at least one plugin");
  for (const [i, slot] of slots.entries()) {
    if (slots.findIndex((other) => other.use === slot.use) < i) {
      throw new ConfigError(`${slot.path}.use`, `${describe(slot.use)} a second time`, "each plugin once");
    }
  }
  return slots;
}

/** `tcp/22`. */
function readPorts(raw: unknown, path: string, absent: readonly ProtocolPort[]): readonly ProtocolPort[] {
  if (raw === undefined) return absent;
  return readList(raw, path).map((item, i) => {
    const match = typeof item === "string" ? /^(tcp|udp|sctp)\/([1-9][0-9]{0,4})$/.exec(item) : null;
    const port = Number(match?.[2]);
    if (match === null || port > 65535) {
      throw new ConfigError(`${path}[${i}]`, describe(item), "tcp/PORT, udp/PORT or sctp/PORT");
    }
    return { protocol: PROTOCOLS[match[1]!.toUpperCase() as "TCP" | "UDP" | "SCTP"], port };
  });
}
