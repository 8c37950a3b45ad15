/** The daemon as its API sees it. */
import type { Calc } from "../calc/mod.ts";
import { type Address, formatAddress, formatCidr } from "../model/address.ts";
import { keyText } from "../model/resource.ts";
import { explainError, UnavailableError } from "../sdk/errors.ts";
import type { KernelDoor } from "../sdk/kernel_door.ts";
import { VERSION } from "../version.ts";
import type { Attachments } from "./attachments.ts";
import { systemClock } from "./clock.ts";
import type { FlowCuts } from "./cuts/flow_cuts.ts";
import { createExplainer } from "./explain/explain.ts";
import type { HealthChecks } from "./health_checks.ts";
import { isInForce } from "./in_force.ts";
import type { LoadedPlugin } from "./loader.ts";
import type { PacketLogs } from "./logs/packet_logs.ts";
import { readSurroundings } from "./node_surroundings.ts";
import type { Parts } from "./parts.ts";
import type { Reconciler } from "./reconcile.ts";
import { createResources } from "./resources/resources.ts";
import type { LeftDataplanes, SwitchDataplane } from "./switch/run.ts";
import type { HostView, PluginView, StatusView } from "./view.ts";

export interface ViewParts {
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

export const pluginViews = (plugins: readonly LoadedPlugin[]): readonly PluginView[] =>
  plugins.map(({ slot, plugin, source, sha256 }) => ({
    slot: slot.path,
    name: plugin.name,
    source,
    api: plugin.api,
    ...(sha256 === undefined ? {} : { sha256 }),
  }));

export function createView(view: ViewParts): HostView {
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
    plugins: () => pluginViews(inUse()),
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
      const { lastRepair, ...ofDataplane } = now.dataplane;
      const daemonProblems = [
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
          ...ofDataplane,
          ...lastRepair === undefined ? {} : {
            lastRepair: {
              agoMs: Math.round(systemClock.nowMs() - lastRepair.atMs),
              reason: lastRepair.reason,
              notes: lastRepair.notes,
            },
          },
        },
        routing: { use: config.routing.use, ...now.routing },
        ...(logStatus === undefined ? {} : { logs: logStatus }),
        endpoints: now.endpoints,
        problems: [
          ...now.dataplane.problems.map((message) => ({
            subject: "dataplane",
            path: "",
            message,
            effect: now.dataplane.converged ? "in-force" as const : "not-in-force" as const,
          })),
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
