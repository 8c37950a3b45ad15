/** From the configuration's slots to open plugins. A refusal names the file, what was found and what was wanted. */
import { createHash } from "node:crypto";
import {
  closeSync,
  fstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  realpathSync,
  rmSync,
  type Stats,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, extname, join } from "node:path";
import { explainError, ManxError } from "../sdk/errors.ts";
import { API_VERSION, type Host, type Instances, type Plugin, type PluginKind } from "../sdk/plugin.ts";
import { BUILTIN } from "./builtin.ts";
import { describe, inSlot, type Slot } from "./config.ts";

export const IMPORT_DEADLINE_MS = 10_000;
export const OPEN_DEADLINE_MS = 30_000;
const EXTENSIONS = [".ts", ".js", ".mjs"];
/** `O_NOCTTY | O_NONBLOCK`: a fifo or a terminal must not hold the start up; include/uapi/asm-generic/fcntl.h. */
const O_SAFE = 0o400 | 0o4000;

export interface LoadedPlugin<K extends PluginKind = PluginKind> {
  readonly slot: Slot;
  readonly kind: K;
  readonly plugin: Plugin<K>;
  /** `built-in`, or the path of its file. */
  readonly source: string;
  readonly sha256?: string;
  /** What its `parseConfig` made of the slot's `config`. */
  readonly config: unknown;
}

/** A plugin cannot be used. */
export class PluginRefusedError extends ManxError {
  override readonly name = "PluginRefusedError";
  constructor(message: string, options?: ErrorOptions) {
    super("plugin", message, options);
  }
}

/** Everything but `parseConfig` and `open`: hash, import, shape, API version, kind. @throws {PluginRefusedError} {ManxError} */
export async function importPlugin<K extends PluginKind>(
  slot: Slot,
  kind: K,
  scratchDirectory: string,
): Promise<Omit<LoadedPlugin<K>, "config">> {
  if (!slot.use.startsWith("/")) {
    const load = Object.hasOwn(BUILTIN[kind], slot.use) ? BUILTIN[kind][slot.use] : undefined;
    if (load === undefined) {
      throw new ManxError(
        "config",
        `${slot.path}.use: found ${describe(slot.use)}, wanted one of ${
          Object.keys(BUILTIN[kind]).join(", ")
        }, or the absolute path of a plugin file`,
      );
    }
    return { slot, kind, plugin: (await load()).default as unknown as Plugin<K>, source: "built-in" };
  }
  const { plugin, sha256 } = await inspectPlugin(slot.use, scratchDirectory, slot);
  if (plugin.kind !== kind) {
    throw new PluginRefusedError(`plugin ${slot.use}: found kind ${plugin.kind}, wanted ${kind} for ${slot.path}`);
  }
  return { slot, kind, plugin: plugin as unknown as Plugin<K>, source: slot.use, sha256 };
}

/** A plugin file by itself: owner, hash, import, shape, API version. @throws {PluginRefusedError} */
export async function inspectPlugin(
  path: string,
  scratchDirectory: string,
  slot?: Slot,
): Promise<{ plugin: Plugin; sha256: string }> {
  const { content, sha256 } = readPluginFile(path);
  if (slot?.sha256 !== undefined && slot.sha256 !== sha256) {
    throw new PluginRefusedError(
      `plugin ${path}: found sha256 ${sha256}, wanted ${slot.sha256} as ${slot.path}.sha256 says`,
    );
  }
  const module = await importContent(path, content, sha256, scratchDirectory);
  return { plugin: checkShape(path, module.default), sha256 };
}

/** @throws {ManxError} code `config`, naming file and key path */
export function parsePluginConfig<K extends PluginKind>(
  imported: Omit<LoadedPlugin<K>, "config">,
  configFile: string,
): LoadedPlugin<K> {
  const { slot, plugin } = imported;
  try {
    return { ...imported, config: plugin.parseConfig(slot.config) };
  } catch (error) {
    // By its shape: an external plugin has its own classes.
    if (error instanceof Error && typeof (error as { path?: unknown }).path === "string") {
      throw inSlot(error as Error & { path: string }, slot, configFile);
    }
    throw new ManxError("config", `config ${configFile}: ${slot.path}.config: ${explainError(error)}`, {
      cause: error,
    });
  }
}

/** Opens it under a deadline and looks at what came. @throws {ManxError} */
export async function openPlugin<K extends PluginKind>(
  loaded: LoadedPlugin<K>,
  host: Host,
  signal: AbortSignal,
): Promise<Instances[K]> {
  const { plugin, slot, source } = loaded;
  const title = source === "built-in" ? `${loaded.kind} ${plugin.name}` : `plugin ${source}`;
  const deadline = AbortSignal.timeout(OPEN_DEADLINE_MS);
  let instance: Instances[K];
  try {
    instance = await within(plugin.open(loaded.config, host, AbortSignal.any([signal, deadline])), OPEN_DEADLINE_MS);
  } catch (error) {
    const code = (error as { code?: unknown } | null)?.code;
    throw new ManxError(
      typeof code === "string" ? code : "plugin",
      `${slot.path}: ${title} cannot be opened: ${explainError(error)}`,
      { cause: error },
    );
  }
  const missing = METHODS[loaded.kind].filter((method) =>
    typeof (instance as unknown as Record<string | symbol, unknown> | undefined)?.[method] !== "function"
  );
  if (missing.length > 0) {
    throw new PluginRefusedError(
      `${title}: open() gave an object without ${
        missing.map(String).join(", ")
      }, wanted a ${loaded.kind} with all of its methods`,
    );
  }
  return instance;
}

/** What the host calls, by kind. */
const METHODS: Readonly<Record<PluginKind, readonly (string | symbol)[]>> = {
  datastore: ["watch", "get", "list", "reached", "commit", Symbol.asyncDispose],
  ipam: ["acquire", "release", "collect", "usage", "ready", Symbol.asyncDispose],
  cni: ["apply", "observe", "remove", "collect", Symbol.asyncDispose],
  policy: ["validate", "translate"],
  dataplane: ["apply", "resync", "drift", "sweep", Symbol.asyncDispose],
  routing: ["apply", "drift", "sweep", Symbol.asyncDispose],
};

/**
 * A configuration that names code to run as root must be root's alone.
 * @throws {ManxError} code `config`
 */
export function refuseForeignConfig(file: string): void {
  refuseForeign(
    statSync(file),
    "the file",
    (found, wanted) =>
      new ManxError("config", `config ${file}: names a plugin file, and found ${found}, wanted ${wanted}`),
  );
}

/** Read once; what was hashed is what runs. */
export function readPluginFile(path: string): { content: Uint8Array; sha256: string } {
  const refuse = (found: string, wanted: string) =>
    new PluginRefusedError(`plugin ${path}: found ${found}, wanted ${wanted}`);
  if (!EXTENSIONS.includes(extname(path))) {
    throw refuse(`the extension ${JSON.stringify(extname(path))}`, EXTENSIONS.join(", "));
  }
  let fd: number;
  let resolved: string;
  try {
    resolved = realpathSync(path);
    fd = openSync(resolved, O_SAFE);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    throw refuse(code === "ENOENT" ? "no such file" : code ?? message, "a file owned by root");
  }
  try {
    const stats = fstatSync(fd);
    if (!stats.isFile()) {
      throw refuse(stats.isDirectory() ? "a directory" : "something that is not a file", "a file owned by root");
    }
    refuseForeign(stats, "the file", refuse);
    for (const directory of new Set([...ancestors(path), ...ancestors(resolved)])) {
      refuseForeign(statSync(directory), `its directory ${directory}`, refuse);
    }
    const content = new Uint8Array(readFileSync(fd));
    return { content, sha256: createHash("sha256").update(content).digest("hex") };
  } finally {
    closeSync(fd);
  }
}

function refuseForeign(stats: Stats, what: string, refuse: (found: string, wanted: string) => Error): void {
  if (stats.uid !== 0) throw refuse(`${what} owned by user ${stats.uid}`, "root (user 0)");
  if ((stats.mode & 0o022) !== 0) {
    throw refuse(
      `${what} with mode ${(stats.mode & 0o7777).toString(8).padStart(4, "0")}`,
      "nobody but root to have write permission (chmod go-w)",
    );
  }
}

function ancestors(path: string): string[] {
  const all: string[] = [];
  for (let at = dirname(path); !all.includes(at); at = dirname(at)) all.push(at);
  return all;
}

/** Imports a private copy, so that nobody can exchange the file between the hash and the import. */
async function importContent(
  path: string,
  content: Uint8Array,
  sha256: string,
  scratchDirectory: string,
): Promise<{ default?: unknown }> {
  mkdirSync(scratchDirectory, { recursive: true, mode: 0o700 });
  const copy = join(scratchDirectory, `${sha256}${extname(path)}`);
  writeFileSync(copy, content, { mode: 0o600 });
  try {
    return await within(import(copy) as Promise<{ default?: unknown }>, IMPORT_DEADLINE_MS);
  } catch (error) {
    const reason = explainError(error).replaceAll(copy, path);
    const hint = /cannot find (module|package)/i.test(reason) ? " (a plugin is one file: bundle what it imports)" : "";
    throw new PluginRefusedError(`plugin ${path}: cannot be imported: ${reason}${hint}`, { cause: error });
  } finally {
    rmSync(copy, { force: true });
  }
}

function checkShape(path: string, found: unknown): Plugin {
  const refuse = (what: string, wanted: string) =>
    new PluginRefusedError(`plugin ${path}: found ${what}, wanted ${wanted}`);
  if (found === undefined) throw refuse("no default export", "export default { api, kind, name, parseConfig, open }");
  if (found === null || typeof found !== "object") {
    throw refuse(`${describe(found)} as default export`, "an object { api, kind, name, parseConfig, open }");
  }
  const plugin = found as Partial<Record<keyof Plugin, unknown>>;
  const version = typeof plugin.api === "string" ? /^(\d+)\.(\d+)$/.exec(plugin.api) : null;
  if (version === null) throw refuse(`api ${describe(plugin.api)}`, `"major.minor", such as "${API_VERSION}"`);
  const [major, minor] = API_VERSION.split(".").map(Number);
  if (Number(version[1]) !== major || Number(version[2]) > minor!) {
    throw refuse(`api ${plugin.api}`, `${major}.0 to ${API_VERSION}, what this version of manx offers`);
  }
  const kinds = Object.keys(METHODS);
  if (typeof plugin.kind !== "string" || !kinds.includes(plugin.kind)) {
    throw refuse(`kind ${describe(plugin.kind)}`, `one of ${kinds.join(", ")}`);
  }
  if (typeof plugin.name !== "string" || !/^[a-z0-9][a-z0-9_-]*$/.test(plugin.name)) {
    throw refuse(`name ${describe(plugin.name)}`, "lower-case letters, digits, - and _");
  }
  for (const method of ["parseConfig", "open"] as const) {
    if (typeof plugin[method] !== "function") throw refuse(`${method} ${describe(plugin[method])}`, "a function");
  }
  return found as Plugin;
}

/** @throws after `deadlineMs`, whether or not the promise heeds its signal */
async function within<T>(promise: Promise<T>, deadlineMs: number): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new ManxError("deadline", `found no answer after ${deadlineMs} ms, wanted one by then`)),
      deadlineMs,
    );
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
