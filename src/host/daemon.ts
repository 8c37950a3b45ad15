/** The daemon: opens the plugins, keeps the kernel as the datastore wants it, attaches pods. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { type Calc, createCalc } from "../calc/mod.ts";
import { createKernelDoor } from "../kernel/door.ts";
import { type Address, formatAddress, formatCidr } from "../model/address.ts";
import { keyText } from "../model/resource.ts";
import type { Datastore } from "../sdk/datastore.ts";
import type { Aspect, Routing } from "../sdk/dataplane.ts";
import { explainError, ManxError, UnavailableError } from "../sdk/errors.ts";
import type { Ipam } from "../sdk/ipam.ts";
import type { KernelDoor } from "../sdk/kernel_door.ts";
import type { Host, Instances, Log, PluginKind } from "../sdk/plugin.ts";
import type { PolicySource } from "../sdk/policy_source.ts";
import type { PodWiring } from "../sdk/wiring.ts";
import { VERSION } from "../version.ts";
import { createAddressNames } from "./explain/address_names.ts";
import { type Attachments, createAttachments } from "./attachments.ts";
import { systemClock } from "./clock.ts";
import type { Config, Slot } from "./config.ts";
import { coreSource } from "./resources/core_source.ts";
import { type KindRegistry, kindRegistry } from "./resources/kinds.ts";
import { named, type NamedDataplane, type OpenDataplane, SwitchableDataplane } from "./switch/switch.ts";
import { DataplaneRecord } from "./switch/record.ts";
import { createDataplaneSwitch, LeftDataplanes, type SwitchDataplane, type SwitchParts } from "./switch/run.ts";
import { createCounters } from "./explain/counter.ts";
import { FlowCuts } from "./cuts/flow_cuts.ts";
import { createExplainer } from "./explain/explain.ts";
import { releaseStartPages } from "./footprint.ts";
import { HealthChecks } from "./health_checks.ts";
import { createLinks, type Links } from "./links.ts";
import { importPlugin, type LoadedPlugin, openPlugin, parsePluginConfig, refuseForeignConfig } from "./loader.ts";
import { createLog } from "./log.ts";
import { registerNode } from "./node.ts";
import { readSurroundings } from "./node_surroundings.ts";
import { createPacketLogs, type PacketLogs } from "./logs/packet_logs.ts";
import { Reconciler } from "./reconcile.ts";
import { rehearse } from "./rehearsal.ts";
import { createResources } from "./resources/resources.ts";
import { notifyService } from "./service_notify.ts";
import { createTranslator } from "./resources/translation.ts";
import type { HostView, StatusView } from "./view.ts";

const WATCH_RETRY_FIRST_MS = 100;
const WATCH_RETRY_LONGEST_MS = 10_000;
const START_RETRY_MS = 1_000;
/** The start is over when the first state is in force, or after that. */
const START_PAGES_DEADLINE_MS = 10_000;
const IN_FORCE_LOOK_MS = 100;

export interface DaemonOptions {
  /** Aborted by SIGTERM: sockets are closed, kernel state stays. */
  readonly signal: AbortSignal;
  /** Opens the API; called once everything is open and before anything is written. Disposed of first. */
  readonly serve?: (view: HostView, socket: string, log: Log) => Promise<AsyncDisposable>;
  /** Default: to stderr, as the configuration says. */
  readonly log?: Log;
  readonly kernel?: KernelDoor;
  /** This is a rehearsal itself: nobody is told of it, and it rehearses nothing. */
  readonly isRehearsal?: boolean;
}

/** Everything that is open. */
interface Parts {
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

/** Runs until `signal` aborts. @throws {ManxError} where it cannot start */
export async function runDaemon(configured: Config, options: DaemonOptions): Promise<void> {
  const startedMs = performance.now();
  const record = DataplaneRecord.read(configured.stateDirectory);
  const config = record.effective(configured);
  const log = options.log ?? createLog({ ...config.log, priorities: process.env.JOURNAL_STREAM !== undefined });
  const loaded = await loadPlugins(config);
  await using open = new AsyncDisposableStack();
  const kernel = options.kernel ?? createKernelDoor();
  const parts = await openParts(config, loaded, kernel, log, open, options.signal, record);
  if (!options.isRehearsal) record.willWrite(config.dataplanes);
  const switched = record.switchedIn(configured);
  if (switched !== undefined) {
    log.warn("the dataplane is not the configured one: it was switched", {
      configured: switched.from,
      use: switched.to.use,
      record: record.path,
    });
  }
  const calc = createCalc({
    node: config.node,
    failsafe: config.policyOptions.failsafe,
    ...(config.services === undefined ? {} : { services: config.services }),
  });
  const logs = followLogs(parts, calc, options.signal);
  const translator = createTranslator(parts.registry);
  const flowCuts = createFlowCuts(parts, kernel, options);
  const healthChecks = config.services === undefined || options.isRehearsal
    ? undefined
    : open.use(new HealthChecks({ kernel, clock: systemClock, log }));
  const reconciler = new Reconciler({
    ...parts,
    translator,
    calc: logs.calc,
    clock: systemClock,
    inForce(state) {
      if (state.desired.services !== undefined) healthChecks?.follow(state.desired.services);
      return flowCuts?.inForce(state);
    },
  });
  const attachments = createAttachments({
    ...parts,
    node: config.node,
    wiring: parts.wiring,
    reconciler,
    clock: systemClock,
  });
  const switching: SwitchParts = {
    config: configured,
    record,
    dataplanes: parts.dataplanes.map(({ instance }) => instance),
    clock: systemClock,
    log,
    isInForce: () => isInForce(reconciler),
    open: parts.openDataplane,
    checkAspects: (dataplanes) => checkAspects(dataplanes, config),
  };
  const left = new LeftDataplanes(switching);
  reconciler.local(parts.links.snapshot());
  const findAddresses = () => config.addresses ?? parts.links.nodeAddresses();
  const registration = createRegistration(parts, findAddresses(), findAddresses);

  // Plugins close after the loops that use them, and those after the API.
  const running = new AbortController();
  const stop = () => running.abort();
  const loops: Promise<void>[] = [];
  open.defer(async () => {
    stop();
    await Promise.all(loops);
  });
  const view = createView({
    parts,
    kernel,
    calc,
    reconciler,
    attachments,
    flowCuts,
    healthChecks,
    logs,
    left,
    configuredDataplane: () => record.switchedIn(configured)?.from,
    switchDataplane: createDataplaneSwitch(switching, left),
    addresses: () => registration.addresses,
    startedMs,
  });
  if (options.serve !== undefined) open.use(await options.serve(view, config.api.socket, log));

  const { promise: ended, resolve: end } = Promise.withResolvers<void>();
  if (options.signal.aborted) end();
  else options.signal.addEventListener("abort", () => end(), { once: true });
  loops.push(
    reconciler.run(running.signal),
    parts.links.follow((changes) => {
      reconciler.local(changes);
      registration.look();
    }, running.signal),
    followDatastore(parts, reconciler, running.signal),
    settleIn(parts, attachments, registration, reconciler, left, options, running.signal),
    ...flowCuts === undefined ? [] : [flowCuts.run(running.signal)],
    ...healthChecks === undefined ? [] : [healthChecks.run(running.signal)],
    ...options.isRehearsal ? [] : [logs.run(running.signal)],
  );
  const notify = options.isRehearsal ? () => {} : notifyService;
  log.info(`manx ${VERSION} runs`, {
    node: config.node,
    addresses: registration.addresses.map(formatAddress).join(" "),
    socket: config.api.socket,
  });
  notify("READY=1");
  await ended;
  log.info("stopping; policy and pods stay as they are");
  notify("STOPPING=1");
}

/** Logged packets, with the names of the world that `calc` has: they follow the steps of the `calc` of the answer. */
function followLogs(
  { config, dataplanes, log }: Parts,
  calc: Calc,
  stopping: AbortSignal,
): PacketLogs & { readonly calc: Pick<Calc, "step" | "current" | "problems"> } {
  const names = createAddressNames(calc, config.node, systemClock);
  const logs = createPacketLogs({
    dataplanes: dataplanes.map((dataplane) => ({
      get name() {
        return dataplane.name;
      },
      instance: { logs: (signal) => dataplane.instance.followLogs(signal) },
    })),
    names,
    counters: createCounters(dataplanes, log),
    desired: () => calc.current.desired,
    log,
    clock: systemClock,
  });
  // Before the API goes, which waits for the readers that it has.
  stopping.addEventListener("abort", () => logs.close(), { once: true });
  return {
    ...logs,
    calc: {
      step(changes) {
        const result = calc.step(changes);
        names.changed(changes);
        return result;
      },
      get current() {
        return calc.current;
      },
      problems: () => calc.problems(),
    },
  };
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

async function openParts(
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
    const instance = await openPlugin(loaded, hostOf(loaded), signal);
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

/** Policy has exactly one owner, and services where they are wanted; every other aspect at most one. @throws {ManxError} code `config` */
export function checkAspects(dataplanes: readonly NamedDataplane[], { services }: Config): void {
  const owners = new Map<Aspect, string[]>([["policy", []]]);
  if (services !== undefined) owners.set("services", []);
  for (const { name, instance } of dataplanes) {
    for (const aspect of instance.capabilities.aspects) owners.set(aspect, [...owners.get(aspect) ?? [], name]);
  }
  for (const [aspect, names] of owners) {
    if (names.length > 1) {
      throw new ManxError(
        "config",
        `dataplane: found ${names.join(" and ")} both for ${aspect}, wanted one owner of it`,
      );
    }
    if (names.length === 0) {
      throw new ManxError("config", `dataplane: found nobody for ${aspect}, wanted a dataplane that does it`);
    }
  }
  const policy = dataplanes.find(({ instance }) => instance.capabilities.aspects.has("policy"))!;
  for (const { name, instance: { forwardMark } } of dataplanes) {
    if (forwardMark === undefined || forwardMark === policy.instance.judgesForwardMark) continue;
    throw new ManxError(
      "config",
      `dataplane: found ${name}, which forwards packets past policy with the mark 0x${
        forwardMark.toString(16)
      }, and ${policy.name}, ` +
        `which does not judge those; wanted a dataplane for policy that does (judgesForwardMark)`,
    );
  }
}

/** Undefined where the dataplane cannot cut. In a rehearsal there are no flows. */
function createFlowCuts({ config, dataplanes, log }: Parts, kernel: KernelDoor, options: DaemonOptions) {
  const mark = dataplanes.find(({ instance }) => instance.capabilities.aspects.has("policy"))?.instance.cutMark;
  if (options.isRehearsal) return undefined;
  if (mark === undefined) {
    if (config.cutEstablishedFlows) log.info("established flows outlive policy: the dataplane cannot cut them");
    return undefined;
  }
  return new FlowCuts({ kernel, clock: systemClock, log, mark, isOn: config.cutEstablishedFlows });
}

/** Feeds the reconciler; a broken watch begins anew. Never rejects. */
async function followDatastore(
  { datastore, registry, log }: Parts,
  reconciler: Reconciler,
  signal: AbortSignal,
): Promise<void> {
  const kinds = registry.definitions.map((definition) => definition.kind);
  for (let pauseMs = WATCH_RETRY_FIRST_MS; !signal.aborted;) {
    try {
      reconciler.beginReplay();
      for await (const batch of datastore.watch(kinds, signal)) {
        if (batch.synced) pauseMs = WATCH_RETRY_FIRST_MS;
        const room = reconciler.put(batch);
        if (room !== undefined) await Promise.race([room, aborted(signal)]);
      }
      if (signal.aborted) return;
      throw new ManxError("unavailable", "the watch ended by itself");
    } catch (error) {
      if (signal.aborted) return;
      log.warn("datastore: cannot follow changes, trying again", { error: explainError(error), pauseMs });
    }
    await systemClock.sleep(pauseMs, signal).catch(() => {});
    pauseMs = Math.min(WATCH_RETRY_LONGEST_MS, pauseMs * 2);
  }
}

/** The Node resource and the addresses it should have. */
interface Registration {
  readonly addresses: readonly Address[];
  /** The links changed: the addresses may have. */
  look(): void;
  /** Writes the Node, and again whenever the addresses change. Never rejects. */
  keep(signal: AbortSignal): Promise<void>;
}

function createRegistration(
  { config, datastore, log }: Parts,
  initial: readonly Address[],
  find: () => readonly Address[],
): Registration {
  let addresses = initial;
  let wake = () => {};
  return {
    get addresses() {
      return addresses;
    },
    look() {
      try {
        const found = find();
        if (found.join() === addresses.join()) return;
        addresses = found;
        wake();
      } catch (error) {
        log.warn("node addresses cannot be read", { error: explainError(error) });
      }
    },
    async keep(signal) {
      while (!signal.aborted) {
        const changed = new Promise<void>((resolve) => wake = resolve);
        await persist("register the node", log, signal, async () => {
          const outcome = await registerNode(datastore, config.node, addresses, systemClock, signal);
          if (outcome !== "unchanged") {
            log.info(`node ${outcome}`, { node: config.node, addresses: addresses.map(formatAddress).join(" ") });
          }
        });
        await Promise.race([changed, aborted(signal)]);
      }
    },
  };
}

/** What is done when the datastore is in sync. Never rejects. */
async function settleIn(
  { config, log }: Parts,
  attachments: Attachments,
  registration: Registration,
  reconciler: Reconciler,
  left: LeftDataplanes,
  options: DaemonOptions,
  signal: AbortSignal,
): Promise<void> {
  await reconciler.whenSynced(signal).catch(() => {});
  await persist("take up attachments", log, signal, () => attachments.adopt(signal));
  await reconciler.programmed([], START_PAGES_DEADLINE_MS, signal).catch(() => {});
  await Promise.all([
    registration.keep(signal),
    untilInForce(reconciler, signal).then(() => left.sweep(signal)),
    options.isRehearsal ? undefined : prepare(config, options, log, signal),
  ]);
}

/** Returns when it is, or `signal` aborts. */
async function untilInForce(reconciler: Reconciler, signal: AbortSignal): Promise<void> {
  while (!signal.aborted && !isInForce(reconciler)) {
    await reconciler.programmed([], START_PAGES_DEADLINE_MS, signal).catch(() => {});
    if (!isInForce(reconciler)) await systemClock.sleep(IN_FORCE_LOOK_MS, signal).catch(() => {});
  }
}

function isInForce(reconciler: Reconciler): boolean {
  const { wanted, applied, dataplane } = reconciler.status();
  return dataplane.converged && applied >= wanted;
}

/** Rehearses, then lets go of the memory that only the start needed. Never rejects. */
async function prepare(config: Config, { serve }: DaemonOptions, log: Log, signal: AbortSignal): Promise<void> {
  if (config.rehearsal && serve !== undefined) {
    try {
      const run = (scratch: Config, kernel: KernelDoor, stop: AbortSignal) =>
        runDaemon(scratch, {
          signal: stop,
          serve,
          kernel,
          log: createLog({ level: "error", format: "text" }),
          isRehearsal: true,
        });
      await rehearse(config, run, signal);
    } catch (error) {
      if (signal.aborted) return;
      log.warn("the rehearsal failed: pods may fail the same way", { error: explainError(error) });
    }
  }
  if (signal.aborted) return;
  Bun.gc(true);
  releaseStartPages();
}

/** Tries until it works or `signal` aborts. */
async function persist(what: string, log: Log, signal: AbortSignal, body: () => Promise<void>): Promise<void> {
  while (!signal.aborted) {
    try {
      return await body();
    } catch (error) {
      if (signal.aborted) return;
      log.error(`cannot ${what}, trying again`, { error: explainError(error), pauseMs: START_RETRY_MS });
      await systemClock.sleep(START_RETRY_MS, signal).catch(() => {});
    }
  }
}

interface ViewParts {
  readonly parts: Parts;
  readonly kernel: KernelDoor;
  readonly calc: Calc;
  readonly reconciler: Reconciler;
  readonly attachments: Attachments;
  readonly flowCuts: FlowCuts | undefined;
  readonly healthChecks: HealthChecks | undefined;
  readonly logs: Pick<PacketLogs, "read" | "status">;
  readonly left: LeftDataplanes;
  /** Undefined: it is the one in use. */
  readonly configuredDataplane: () => string | undefined;
  readonly switchDataplane: SwitchDataplane;
  readonly addresses: () => readonly Address[];
  readonly startedMs: number;
}

function createView(view: ViewParts): HostView {
  const { parts, reconciler, attachments, flowCuts, healthChecks, logs, addresses, startedMs } = view;
  const { config, datastore, registry, ipam, plugins, dataplanes } = parts;
  /** The daemon's plugins, with the dataplanes of the moment; these are opened in the order of their slots. */
  const inUse = (): readonly LoadedPlugin[] => {
    const active = dataplanes.map(({ instance }) => instance.active.loaded);
    return plugins.map((plugin) => plugin.kind === "dataplane" ? active.shift()! : plugin);
  };
  const resources = createResources({
    datastore,
    registry,
    clock: systemClock,
    programmed: (wanted, ms, signal) => reconciler.programmed(wanted, ms, signal),
  });
  return {
    resources,
    wait: resources.wait,
    explainer: createViewExplainer(view),
    attachments,
    plugins: () =>
      inUse().map(({ slot, plugin, source, sha256 }) => ({
        slot: slot.path,
        name: plugin.name,
        source,
        api: plugin.api,
        ...(sha256 === undefined ? {} : { sha256 }),
      })),
    dataplanes: {
      switch: view.switchDataplane,
      async diff(signal) {
        if (dataplanes.some(({ instance }) => instance.desired === undefined)) {
          throw new UnavailableError("diff: found nothing in force yet: the datastore is not in sync");
        }
        const found = [];
        for (const { name, instance } of dataplanes) {
          const { diff } = instance;
          if (diff === undefined) found.push({ name, cannot: `dataplane ${name} cannot tell` });
          else found.push({ name, lines: await diff(signal) });
        }
        return { generation: reconciler.status().wanted, dataplanes: found };
      },
    },
    async ipam(signal) {
      const pools = await ipam.usage(signal);
      return {
        use: config.ipam.use,
        pools: pools.map((pool) => ({ ...pool, cidr: formatCidr(pool.cidr), capacity: String(pool.capacity) })),
      };
    },
    logs: (query, signal) => logs.read(query, signal),
    status(): StatusView {
      const now = reconciler.status();
      const configured = view.configuredDataplane();
      const logStatus = parts.dataplanes.some(({ instance }) => instance.logs !== undefined)
        ? logs.status()
        : undefined;
      const daemonProblems = [
        ...now.dataplane.problems.map((message) => ({ subject: "dataplane", message })),
        ...now.routing.problems.map((message) => ({ subject: "routing", message })),
        ...(flowCuts?.problems() ?? []).map((message) => ({ subject: "flow cuts", message })),
        ...(healthChecks?.problems() ?? []).map((message) => ({ subject: "services", message })),
        ...(logStatus?.problems ?? []).map((message) => ({ subject: "logs", message })),
        ...view.left.problems().map((message) => ({ subject: "dataplane", message })),
      ];
      return {
        version: VERSION,
        node: config.node,
        addresses: addresses().map(formatAddress),
        pid: process.pid,
        uptimeMs: Math.round(performance.now() - startedMs),
        config: config.file,
        socket: config.api.socket,
        datastore: { use: config.datastore.use, inSync: reconciler.synced },
        ipam: { use: config.ipam.use },
        generation: { wanted: now.wanted, applied: now.applied },
        dataplane: {
          use: dataplanes.map(({ instance }) => instance.active.loaded.slot.use).join(" "),
          ...configured === undefined ? {} : { configured },
          ...now.dataplane,
        },
        routing: { use: config.routing.use, ...now.routing },
        ...(logStatus === undefined ? {} : { logs: logStatus }),
        endpoints: now.endpoints,
        problems: [
          ...daemonProblems.map(({ subject, message }) => ({
            subject,
            path: "",
            message,
            effect: "not-in-force" as const,
          })),
          ...now.problems.map(({ subject, path, message, effect }) => ({
            subject: keyText(subject),
            path,
            message,
            effect,
          })),
        ],
        counters: { ...reconciler.counters, ...attachments.counters },
        ...(flowCuts === undefined ? {} : { flowCuts: flowCuts.view() }),
        timings: {
          add: attachments.timings.add.view(),
          lease: attachments.timings.lease.view(),
          wiring: attachments.timings.wiring.view(),
          policy: attachments.timings.policy.view(),
          del: attachments.timings.del.view(),
          round: reconciler.timings.view(),
        },
        memory: { rss: process.memoryUsage.rss() },
      };
    },
  };
}

function createViewExplainer({ parts, kernel, calc, reconciler, addresses }: ViewParts): HostView["explainer"] {
  const { config, log } = parts;
  return createExplainer({
    ...parts,
    node: config.node,
    failsafe: config.policyOptions.failsafe,
    calc,
    addresses,
    linkTowards(address) {
      try {
        using surroundings = readSurroundings(kernel);
        return surroundings.linkTo(address) || undefined;
      } catch (error) {
        log.debug("explain: routes cannot be read", { error: explainError(error) });
        return undefined;
      }
    },
    isSynced: () => reconciler.synced,
    isInForce: () => isInForce(reconciler),
  });
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

const aborted = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) =>
    signal.aborted ? resolve() : signal.addEventListener("abort", () => resolve(), { once: true })
  );
