/** The plugins that a daemon consists of: loaded, then opened in the order in which they need one another. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { isErrno, KernelError } from "../kernel/errors.ts";
import type { Datastore } from "../sdk/datastore.ts";
import type { Routing } from "../sdk/dataplane.ts";
import { explainError, ManxError } from "../sdk/errors.ts";
import type { Ipam } from "../sdk/ipam.ts";
import type { KernelDoor } from "../sdk/kernel_door.ts";
import type { Host, Instances, Log, PluginKind } from "../sdk/plugin.ts";
import type { PolicySource } from "../sdk/policy_source.ts";
import type { PodWiring } from "../sdk/wiring.ts";
import { checkAspects } from "./aspects.ts";
import { systemClock } from "./clock.ts";
import type { Config, Slot } from "./config.ts";
import { createLinks, type Links } from "./links.ts";
import { importPlugin, type LoadedPlugin, openPlugin, parsePluginConfig, refuseForeignConfig } from "./loader.ts";
import { coreSource } from "./resources/core_source.ts";
import { type KindRegistry, kindRegistry } from "./resources/kinds.ts";
import type { DataplaneRecord } from "./switch/record.ts";
import type { SwitchParts } from "./switch/run.ts";
import { named, type NamedDataplane, type OpenDataplane, SwitchableDataplane } from "./switch/switch.ts";

/** Everything that is open. */
export interface Parts {
  readonly config: Config;
  readonly log: Log;
  readonly plugins: readonly LoadedPlugin[];
  readonly datastore: Datastore;
  readonly registry: KindRegistry;
  readonly ipam: Ipam;
  readonly wiring: PodWiring;
  readonly dataplanes: readonly NamedDataplane<SwitchableDataplane>[];
  readonly openDataplane: SwitchParts["open"];
  readonly routing: { readonly name: string; readonly instance: Routing };
  readonly links: Links;
}

/** In this order: hash, import and shape of every plugin, then the configuration of every plugin. Nothing is open yet. */
export async function loadPlugins(config: Config): Promise<readonly LoadedPlugin[]> {
  const scratch = join(config.stateDirectory, "loading");
  const slots: readonly { slot: Slot; kind: PluginKind }[] = [
    { slot: config.datastore, kind: "datastore" },
    ...config.policy.map((slot) => ({ slot, kind: "policy" as const })),
    { slot: config.ipam, kind: "ipam" },
    { slot: config.cni, kind: "cni" },
    ...config.dataplanes.map((slot) => ({ slot, kind: "dataplane" as const })),
    { slot: config.routing, kind: "routing" },
  ];
  if (slots.some(({ slot }) => slot.use.startsWith("/"))) refuseForeignConfig(config.file);
  const imported = [];
  for (const { slot, kind } of slots) imported.push(await importPlugin(slot, kind, scratch));
  return imported.map((plugin) => parsePluginConfig(plugin, config.file));
}

/** A dataplane finds the kernel without what it needs. It may come to have it: modules are loaded late, too. */
export class DataplaneLacksError extends ManxError {
  override readonly name = "DataplaneLacksError";
  constructor(message: string, cause: unknown) {
    super("unavailable", message, { cause });
  }
}

/** Whether it is for want of something in the kernel, and not of the right to use it. */
function isLack(error: unknown): boolean {
  let lacks = false;
  for (let at = error; at instanceof Error; at = at.cause) {
    if (isErrno(at, "EPERM", "EACCES")) return false;
    lacks ||= at instanceof KernelError || (at as { code?: unknown }).code === "unavailable";
  }
  return lacks;
}

/** @throws {DataplaneLacksError}; {ManxError} where one of them cannot be opened; what is open by then is in `open` */
export async function openParts(
  config: Config,
  plugins: readonly LoadedPlugin[],
  kernel: KernelDoor,
  log: Log,
  open: AsyncDisposableStack,
  signal: AbortSignal,
  record: DataplaneRecord,
): Promise<Parts> {
  const early: { datastore?: Datastore } = {};
  const hostOf = (plugin: LoadedPlugin, at = kernel): Host => {
    const stateDirectory = join(config.stateDirectory, plugin.kind, plugin.plugin.name);
    makeStateDirectory(stateDirectory);
    return {
      node: config.node,
      log: prefixed(log, `${plugin.kind} ${plugin.plugin.name}`),
      clock: systemClock,
      kernel: at,
      stateDirectory,
      get datastore() {
        if (early.datastore === undefined) {
          throw new ManxError("plugin", `${plugin.kind} ${plugin.plugin.name}: the datastore is not open yet`);
        }
        return early.datastore;
      },
    };
  };
  const openAll = async <K extends PluginKind>(kind: K): Promise<{ name: string; instance: Instances[K] }[]> => {
    const all = [];
    for (const plugin of plugins.filter((plugin): plugin is LoadedPlugin<K> => plugin.kind === kind)) {
      const instance = await openPlugin(plugin, hostOf(plugin), signal);
      if (Symbol.asyncDispose in instance) open.use(instance as AsyncDisposable);
      all.push({ name: plugin.plugin.name, instance });
    }
    return all;
  };
  const [{ instance: datastore }] = await openAll("datastore") as [{ name: string; instance: Datastore }];
  early.datastore = datastore;
  const sources = (await openAll("policy")).map(({ name, instance }) => ({ name, source: instance as PolicySource }));
  const registry = kindRegistry(sources, coreSource);
  const [{ instance: ipam }] = await openAll("ipam") as [{ name: string; instance: Ipam }];
  const [{ instance: wiring }] = await openAll("cni") as [{ name: string; instance: PodWiring }];
  const noteSwept = ({ loaded: { slot: { use } } }: OpenDataplane) => {
    try {
      record.swept(use);
    } catch (error) {
      // It is swept once more at the next start.
      log.warn(`dataplane ${use}: that nothing of it is left is not recorded`, { error: explainError(error) });
    }
  };
  const dataplanes: NamedDataplane<SwitchableDataplane>[] = [];
  for (const loaded of plugins.filter((plugin): plugin is LoadedPlugin<"dataplane"> => plugin.kind === "dataplane")) {
    let instance;
    try {
      instance = await openPlugin(loaded, hostOf(loaded), signal);
    } catch (error) {
      throw isLack(error) ? new DataplaneLacksError((error as Error).message, error) : error;
    }
    dataplanes.push(named(open.use(new SwitchableDataplane({ loaded, instance }, log, noteSwept))));
  }
  checkAspects(dataplanes, config);
  const [routing] = await openAll("routing") as [{ name: string; instance: Routing }];
  return {
    config,
    log,
    plugins,
    datastore,
    registry,
    ipam,
    wiring,
    dataplanes,
    async openDataplane(slot, signal, at) {
      const imported = await importPlugin(slot, "dataplane", join(config.stateDirectory, "loading"));
      const loaded = parsePluginConfig(imported, config.file);
      return { loaded, instance: await openPlugin(loaded, hostOf(loaded, at), signal) };
    },
    routing,
    links: createLinks(kernel, log, systemClock),
  };
}

/** @throws {ManxError} code `config` */
function makeStateDirectory(path: string): void {
  try {
    mkdirSync(path, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new ManxError(
      "config",
      `state directory ${path}: cannot be made (${
        (cause as NodeJS.ErrnoException).code
      }), wanted a directory that root may write`,
      { cause },
    );
  }
}

function prefixed(log: Log, prefix: string): Log {
  const line = (level: keyof Log) => (message: string, fields?: Readonly<Record<string, unknown>>) =>
    log[level](`${prefix}: ${message}`, fields);
  return { debug: line("debug"), info: line("info"), warn: line("warn"), error: line("error") };
}
