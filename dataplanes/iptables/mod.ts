/** The iptables dataplane: policy, masquerading and services as chains of xtables and ip sets. */
import type { Family } from "../../src/model/address.ts";
import type { DesiredState, PolicyList } from "../../src/model/desired.ts";
import { ServiceFlows, type ServicePlace } from "../../src/kernel/service_flows.ts";
import { NETLINK_NETFILTER } from "../../src/kernel/netlink/schema/nftables.ts";
import type {
  Aspect,
  Dataplane,
  DecisionCount,
  LoggedPacket,
  LostPackets,
  PacketJudge,
  Report,
} from "../../src/sdk/dataplane.ts";
import { explainError, UnavailableError } from "../../src/sdk/errors.ts";
import type { NetlinkSocket, XtablesSocket } from "../../src/sdk/kernel_door.ts";
import { definePlugin, type Host } from "../../src/sdk/plugin.ts";
import type { Backend, Place, Watch } from "./backend.ts";
import { type IptablesConfig, lowestBit, parseConfig, secondBit, serviceMarks } from "./config.ts";
import { decisionCounts } from "./counters.ts";
import { InForce } from "./in_force.ts";
import { createPrefixResolver } from "./log_prefix.ts";
import { readPacketLog } from "./packet_log.ts";
import { type Rendered, Renderer, type RenderOptions } from "./render.ts";
import { servicePlaces } from "./services_places.ts";
import { judgePacket } from "./trace.ts";
import { type Opened, openVariant } from "./variant.ts";

/** Every so many looks large tables are compared whole. */
const THOROUGH_EVERY = 10;

export default definePlugin({
  api: "1.0",
  kind: "dataplane",
  name: "iptables",
  parseConfig,
  async open(config: IptablesConfig, host: Host): Promise<Dataplane> {
    using undo = new DisposableStack();
    const netlink = undo.use(host.kernel.netlink(NETLINK_NETFILTER));
    const sockets = new Map<Family, XtablesSocket>();
    for (const family of [4, 6] as const) {
      try {
        sockets.set(family, undo.use(host.kernel.xtables(family)));
      } catch (error) {
        // A kernel without IPv6 has no packets of it.
        if (family === 4) throw error;
        host.log.warn("no IPv6 for iptables", { error: explainError(error) });
      }
    }
    const opened = openVariant(config, host, netlink, sockets);
    host.log.info("iptables variant", { variant: opened.variant, why: opened.why });
    undo.move();
    return new IptablesDataplane(config, host, netlink, opened);
  },
});

class IptablesDataplane implements Dataplane {
  readonly capabilities: Dataplane["capabilities"];
  readonly cutMark: number | undefined;
  private readonly backend: Backend;
  private readonly inForce: InForce;
  private readonly renderOptions: RenderOptions;
  private renderer: Renderer;
  private desired: DesiredState | undefined;
  private readonly prefixes = createPrefixResolver(() => this.desired);
  private readonly serviceFlows: ServiceFlows | undefined;
  /** Services that tables were found with when nobody knew; undefined: what was written last is there. */
  private foundServices: ServicePlace[] | undefined;

  constructor(
    private readonly config: IptablesConfig,
    private readonly host: Host,
    private readonly netlink: NetlinkSocket,
    { backend, other, abilities: { families, nat, cut, services } }: Opened,
  ) {
    this.backend = backend;
    this.inForce = new InForce(config, host, netlink, backend, other);
    const mark = secondBit(config.markMask);
    this.cutMark = cut && mark !== 0 ? mark : undefined;
    this.renderOptions = {
      logGroup: config.logGroup,
      passedMark: lowestBit(config.markMask),
      cutMark: this.cutMark,
      families: [...families],
      nat,
      services: services && config.services ? serviceMarks(config.markMask) : undefined,
    };
    if (this.renderOptions.services !== undefined) this.serviceFlows = new ServiceFlows(host);
    this.renderer = new Renderer(this.renderOptions);
    this.capabilities = {
      aspects: new Set<Aspect>([
        "policy",
        ...nat ? ["nat" as const] : [],
        ...this.serviceFlows === undefined ? [] : ["services" as const],
      ]),
      families,
      atomicity: "object",
    };
  }

  apply(desired: DesiredState, signal?: AbortSignal): Promise<Report> {
    this.desired = desired;
    return this.bring(desired, signal);
  }

  async resync(signal?: AbortSignal): Promise<Report> {
    this.inForce.forget();
    if (this.desired === undefined) return { generation: 0, converged: true, messages: 0, problems: [] };
    return await this.bring(this.desired, signal);
  }

  private render(desired: DesiredState): Rendered {
    try {
      const { ruleset: { tables, sets }, problems } = this.renderer.render(desired);
      return { ruleset: { tables: tables.map((table) => this.backend.fit?.(table) ?? table), sets }, problems };
    } catch (error) {
      // It may have stopped half-way: the next one starts from nothing.
      this.renderer = new Renderer(this.renderOptions);
      throw error;
    }
  }

  private async bring(desired: DesiredState, signal?: AbortSignal): Promise<Report> {
    const { generation } = desired;
    const { ruleset, problems } = this.render(desired);
    const { messages, notes, wrong } = await this.inForce.bring(
      ruleset,
      `apply generation ${generation}`,
      (place) => this.findServices(place),
      signal,
    );
    if (wrong.length > 0) this.host.log.error("iptables are not as wanted", { generation, problems: wrong });
    else this.followFlows(desired);
    const ofFlows = this.serviceFlows?.problems() ?? [];
    return {
      generation,
      converged: wrong.length === 0,
      messages,
      problems: [...problems, ...notes, ...wrong, ...ofFlows],
    };
  }

  /** Before an unknown table is written: which services it had. */
  private findServices({ family, table }: Place): void {
    if (this.serviceFlows === undefined || table !== "nat") return;
    this.foundServices ??= [];
    const place = this.backend.places().find((one) => one.family === family && one.table === table);
    if (place !== undefined) this.foundServices.push(...servicePlaces(family, this.backend.read(place).chains));
  }

  /** What is wanted is in force. */
  private followFlows({ services }: DesiredState): void {
    this.serviceFlows?.follow(services, this.foundServices);
    this.foundServices = undefined;
  }

  async *drift(signal: AbortSignal): AsyncIterable<string> {
    using watch = this.backend.watch?.();
    for (let look = 1; !signal.aborted; look++) {
      await this.untilLook(watch, signal);
      if (signal.aborted) return;
      let reason: string | undefined;
      try {
        // Who is told of changes need not look for them.
        reason = this.inForce.drifted(watch === undefined && look % THOROUGH_EVERY === 0);
      } catch (error) {
        reason = explainError(error);
      }
      if (reason === undefined) continue;
      this.inForce.forget();
      yield reason;
    }
  }

  /** It is time to look, or something has happened. */
  private async untilLook(watch: Watch | undefined, signal: AbortSignal): Promise<void> {
    const either = new AbortController();
    const stop = AbortSignal.any([signal, either.signal]);
    await Promise.race([
      this.host.clock.sleep(this.config.pollMs, stop).catch(() => {}),
      ...watch === undefined ? [] : [watch.changed(stop)],
    ]);
    either.abort();
  }

  async diff(): Promise<readonly string[]> {
    return this.desired === undefined ? [] : this.inForce.differences(this.render(this.desired).ruleset);
  }

  /** By the tables as rendered: the kernel's are bytes, which `diff` compares. */
  async tracer(): Promise<PacketJudge> {
    if (this.desired === undefined) throw new UnavailableError("trace: found nothing applied yet, wanted rules");
    const { ruleset } = this.render(this.desired);
    return (path) => judgePacket(ruleset, path);
  }

  async counts(list: PolicyList): Promise<readonly DecisionCount[]> {
    const heads = this.renderer.headsOf(list);
    return decisionCounts(this.inForce.tablesWith(heads), heads);
  }

  logs(signal: AbortSignal): AsyncIterable<LoggedPacket | LostPackets> {
    return readPacketLog(this.host, this.config.logGroup, this.prefixes, signal);
  }

  async sweep(signal?: AbortSignal): Promise<Report> {
    this.desired = undefined;
    const { messages, wrong } = await this.inForce.sweep(signal);
    return { generation: 0, converged: wrong.length === 0, messages, problems: wrong };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.serviceFlows?.[Symbol.asyncDispose]();
    this.inForce[Symbol.dispose]();
    this.netlink[Symbol.dispose]();
  }
}
