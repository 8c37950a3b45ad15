/** The daemon: opens the plugins, keeps the kernel as the datastore wants it, attaches pods. */
import { type Calc, createCalc } from "../calc/mod.ts";
import { createKernelDoor } from "../kernel/door.ts";
import { formatAddress } from "../model/address.ts";
import { explainError, ManxError } from "../sdk/errors.ts";
import type { KernelDoor } from "../sdk/kernel_door.ts";
import type { Log } from "../sdk/plugin.ts";
import { VERSION } from "../version.ts";
import { checkAspects } from "./aspects.ts";
import { type Attachments, createAttachments } from "./attachments.ts";
import { systemClock } from "./clock.ts";
import type { Config } from "./config.ts";
import { FlowCuts } from "./cuts/flow_cuts.ts";
import { createView } from "./daemon_view.ts";
import { createAddressNames } from "./explain/address_names.ts";
import { createCounters } from "./explain/counter.ts";
import { releaseStartPages } from "./footprint.ts";
import { HealthChecks } from "./health_checks.ts";
import { isInForce, untilInForce } from "./in_force.ts";
import { createLog } from "./log.ts";
import { createPacketLogs, type PacketLogs } from "./logs/packet_logs.ts";
import { loadPlugins, type Parts } from "./parts.ts";
import { aborted, persist } from "./persist.ts";
import { Reconciler } from "./reconcile.ts";
import { createRegistration, type Registration } from "./registration.ts";
import { rehearse } from "./rehearsal.ts";
import { createTranslator } from "./resources/translation.ts";
import { notifyService } from "./service_notify.ts";
import { DataplaneRecord } from "./switch/record.ts";
import { createDataplaneSwitch, LeftDataplanes, type SwitchParts } from "./switch/run.ts";
import type { HostView } from "./view.ts";
import { openPartsPatiently } from "./waiting.ts";

const WATCH_RETRY_FIRST_MS = 100;
const WATCH_RETRY_LONGEST_MS = 10_000;
/** The start is over when the first state is in force, or after that. */
const START_PAGES_DEADLINE_MS = 10_000;

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

/** Runs until `signal` aborts. @throws {ManxError} where it cannot start */
export async function runDaemon(configured: Config, options: DaemonOptions): Promise<void> {
  const startedMs = performance.now();
  const record = DataplaneRecord.read(configured.stateDirectory);
  const config = record.effective(configured);
  const log = options.log ?? createLog({ ...config.log, priorities: process.env.JOURNAL_STREAM !== undefined });
  const loaded = await loadPlugins(config);
  await using open = new AsyncDisposableStack();
  const kernel = options.kernel ?? createKernelDoor();
  const parts = await openPartsPatiently({
    config,
    plugins: loaded,
    kernel,
    log,
    record,
    open,
    serve: options.isRehearsal ? undefined : options.serve,
    startedMs,
    signal: options.signal,
  });
  if (parts === undefined) return;
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
    kernel,
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

/** Undefined where the dataplane cannot cut. In a rehearsal there are no flows. */
function createFlowCuts({ config, dataplanes, log }: Parts, kernel: KernelDoor, options: DaemonOptions) {
  const policy = dataplanes.find(({ instance }) => instance.capabilities.aspects.has("policy"))?.instance;
  const mark = policy?.cutMark;
  if (options.isRehearsal) return undefined;
  if (mark === undefined) {
    if (config.cutEstablishedFlows) log.info("established flows outlive policy: the dataplane cannot cut them");
    return undefined;
  }
  const recheck = () => policy?.recheckFlows?.();
  return new FlowCuts({ kernel, clock: systemClock, log, mark, isOn: config.cutEstablishedFlows, recheck });
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
