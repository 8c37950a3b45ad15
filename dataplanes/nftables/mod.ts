/** The nftables dataplane: policy and masquerading as the table `inet manx`, one transaction a generation. */
import type { DesiredState, PolicyList } from "../../src/model/desired.ts";
import type { Aspect, Dataplane, DecisionCount, LoggedPacket, LostPackets, Report } from "../../src/sdk/dataplane.ts";
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { definePlugin, type Host } from "../../src/sdk/plugin.ts";
import { explainError } from "../../src/sdk/errors.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import {
  deleteTable,
  GROUP_NFTABLES,
  NETLINK_NETFILTER,
  SUBSYSTEM_NFTABLES,
  tableOf,
} from "../../src/kernel/netlink/schema/nftables.ts";
import { lowestBit, type NftablesConfig, parseConfig, secondBit, thirdBit } from "./config.ts";
import { decisionCounts } from "./counters.ts";
import { diff, TABLE, transactions } from "./diff.ts";
import { differences } from "./differences.ts";
import { createPrefixResolver } from "./log_prefix.ts";
import { readPacketLog } from "./packet_log.ts";
import { probe, probeCut, probeServices } from "./probe.ts";
import { type Found, readCounts, readGeneration, readTable } from "./read.ts";
import { type Rendered, Renderer } from "./render.ts";
import type { Ruleset } from "./ruleset.ts";
import { ServiceFlows } from "./services_flows.ts";

/** Somebody who keeps writing to nftables makes a transaction stale (ERESTART) so often at most before it is reported. */
const STALE_TRIES = 8;
/** Any other refusal: once for what we thought was there, once for what is. */
const REFUSED_TRIES = 2;
/** Foreign changes come in bursts (`nft -f`): wait this long for the rest before the alarm. */
const DRIFT_SETTLE_MS = 20;
/** Above this, our own transaction would flood the listener with events of its own. */
const QUIET_MESSAGES_BYTES = 512 * 1024;

export default definePlugin({
  api: "1.0",
  kind: "dataplane",
  name: "nftables",
  parseConfig,
  async open(config: NftablesConfig, host: Host): Promise<Dataplane> {
    const socket = host.kernel.netlink(NETLINK_NETFILTER);
    try {
      const capabilities = probe(socket);
      const services = config.services && thirdBit(config.markMask) !== 0 && probeServices(socket);
      const aspects = new Set<Aspect>([...capabilities.aspects, ...services ? ["services" as const] : []]);
      return new NftablesDataplane(config, host, socket, { ...capabilities, aspects });
    } catch (error) {
      socket[Symbol.dispose]();
      throw error;
    }
  },
});

class NftablesDataplane implements Dataplane {
  readonly cutMark: number | undefined;
  readonly judgesForwardMark: number | undefined;
  private renderer: Renderer;
  /** What the table holds as far as we know; undefined: it must be read. */
  private there: { readonly ruleset: Ruleset | undefined; readonly replace: boolean } | undefined;
  /** NFTA_GEN_ID right after our last transaction or read. */
  private generation: number | undefined;
  /** Somebody wrote to nftables after `generation`; whether to our table, only events or reading can tell. */
  private othersWrote = false;
  private desired: DesiredState | undefined;
  private listener: Listener | undefined;
  private readonly serviceFlows: ServiceFlows | undefined;
  private readonly prefixes = createPrefixResolver(() => this.desired);

  constructor(
    private readonly config: NftablesConfig,
    private readonly host: Host,
    private readonly socket: NetlinkSocket,
    readonly capabilities: Dataplane["capabilities"],
  ) {
    const cut = probeCut(socket, secondBit(config.markMask));
    const { logGroup, form: shape } = config;
    const services = capabilities.aspects.has("services") ? { masqueradeMark: thirdBit(config.markMask) } : undefined;
    // Services that are another dataplane's may be forwarded by it, past FORWARD.
    const forwardMark = config.services ? undefined : config.forwardMark;
    this.judgesForwardMark = forwardMark;
    const passedMark = lowestBit(config.markMask);
    this.renderer = new Renderer({ logGroup, passedMark, cut, services, shape, forwardMark });
    this.serviceFlows = services && new ServiceFlows(host);
    this.cutMark = cut?.mark;
  }

  async apply(desired: DesiredState): Promise<Report> {
    this.desired = desired;
    return this.bring(desired);
  }

  async resync(): Promise<Report> {
    this.there = undefined;
    if (this.desired === undefined) return { generation: 0, converged: true, messages: 0, problems: [] };
    return this.bring(this.desired);
  }

  private render(desired: DesiredState): Rendered {
    try {
      return this.renderer.render(desired);
    } catch (error) {
      // It may have stopped half-way: the next one starts from nothing.
      this.renderer = new Renderer(this.renderer.options);
      throw error;
    }
  }

  private bring(desired: DesiredState): Report {
    const { ruleset, problems } = this.render(desired);
    for (let stale = 0, refused = 0;;) {
      try {
        const messages = this.write(desired, ruleset);
        const ofFlows = this.serviceFlows?.problems() ?? [];
        return { generation: desired.generation, converged: true, messages, problems: [...problems, ...ofFlows] };
      } catch (error) {
        // The state of the table is not what we thought; the kernel has done nothing. Look, and try again.
        this.there = undefined;
        if (isErrno(error, "ERESTART") ? ++stale >= STALE_TRIES : ++refused >= REFUSED_TRIES) {
          const problem = explainError(error);
          this.host.log.error("nftables transaction failed", { generation: desired.generation, error: problem });
          return { generation: desired.generation, converged: false, messages: 0, problems: [...problems, problem] };
        }
      }
    }
  }

  /** One transaction, two for new sets of intervals; none where nothing differs. Returns how many messages they had. @throws {KernelError} */
  private write(desired: DesiredState, ruleset: Ruleset): number {
    const known = this.there !== undefined && this.generation !== undefined;
    const found = known ? { ...this.there!, generation: readGeneration(this.socket) } : readTable(this.socket);
    if (!known) this.othersWrote = false;
    else if (found.generation !== this.generation) this.othersWrote = true;
    const batches = batchesFor(found, ruleset);
    this.generation = found.generation;
    for (const messages of batches) {
      this.send(`apply generation ${desired.generation} to table inet ${TABLE.table}`, messages, this.generation);
    }
    this.there = { ruleset, replace: false };
    this.serviceFlows?.follow(desired.services, known ? undefined : { found: found.ruleset });
    return batches.reduce((sum, messages) => sum + messages.length, 0);
  }

  private send(operation: string, messages: readonly NetlinkMessage[], generation: number): void {
    const listener = messages.reduce((sum, message) => sum + message.payload.length, 0) > QUIET_MESSAGES_BYTES
      ? this.listener
      : undefined;
    listener?.pause();
    try {
      // With the generation: nobody else's write comes between what was compared and this.
      this.socket.transaction(operation, SUBSYSTEM_NFTABLES, messages, generation);
    } finally {
      listener?.resume();
    }
    this.generation = nextGeneration(generation);
    // While the listener was away: whoever wrote then went unheard.
    if (listener !== undefined && readGeneration(this.socket) !== this.generation) {
      listener.alarm("somebody wrote to nftables meanwhile");
    }
  }

  async *drift(signal: AbortSignal): AsyncIterable<string> {
    const listener = new Listener(this.host, this.socket.portId, () => this.eventsLost());
    this.listener = listener;
    try {
      for (;;) {
        const reason = await listener.next(signal);
        if (reason === undefined) return;
        await this.host.clock.sleep(DRIFT_SETTLE_MS, signal).catch(() => {});
        if (signal.aborted) return;
        listener.settle();
        this.there = undefined;
        yield reason;
      }
    } finally {
      listener[Symbol.dispose]();
      if (this.listener === listener) this.listener = undefined;
    }
  }

  /** Whether lost events may have told of somebody else's write. */
  private eventsLost(): boolean {
    return this.othersWrote || this.there === undefined || readGeneration(this.socket) !== this.generation;
  }

  async diff(): Promise<readonly string[]> {
    if (this.desired === undefined) return [];
    const { ruleset: wanted } = this.render(this.desired);
    const { ruleset, replace } = readTable(this.socket);
    const table = `table inet ${TABLE.table}`;
    if (replace) return [`- ${table} as it is: dormant, or owned by a process`, `+ ${table}`];
    if (ruleset === undefined) return [`+ ${table}`];
    return differences(ruleset, wanted);
  }

  counts(list: PolicyList): Promise<readonly DecisionCount[]> {
    const counters = this.renderer.counters(list);
    return Promise.resolve(
      counters === undefined ? [] : decisionCounts(counters, readCounts(this.socket, counters.keys())),
    );
  }

  logs(signal: AbortSignal): AsyncIterable<LoggedPacket | LostPackets> {
    return readPacketLog(this.host, this.config.logGroup, this.prefixes, signal);
  }

  async sweep(): Promise<Report> {
    this.there = undefined;
    this.desired = undefined;
    try {
      this.socket.transaction(`delete table inet ${TABLE.table}`, SUBSYSTEM_NFTABLES, [deleteTable(TABLE)]);
      return { generation: 0, converged: true, messages: 1, problems: [] };
    } catch (error) {
      if (isErrno(error, "ENOENT")) return { generation: 0, converged: true, messages: 0, problems: [] };
      return { generation: 0, converged: false, messages: 0, problems: [explainError(error)] };
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.listener?.[Symbol.dispose]();
    await this.serviceFlows?.[Symbol.asyncDispose]();
    this.socket[Symbol.dispose]();
  }
}

const batchesFor = (
  found: Pick<Found, "ruleset" | "replace">,
  ruleset: Ruleset,
): readonly (readonly NetlinkMessage[])[] =>
  found.replace ? [[deleteTable(TABLE), ...diff(undefined, ruleset)]] : transactions(found.ruleset, ruleset);

/** nft_base_seq counts up with each commit and leaves out 0. */
const nextGeneration = (generation: number): number => (generation + 1) >>> 0 || 1;

/** Events of our table that we did not cause. */
class Listener {
  private socket: NetlinkSocket | undefined;
  private stop: AbortController | undefined;
  private reason: string | undefined;
  private wake: () => void = () => {};
  private closed = false;

  constructor(
    private readonly host: Host,
    private readonly ownPortId: number,
    private readonly lossMatters: () => boolean,
  ) {
    this.resume();
  }

  /** The first reason since the last `settle`; undefined when the signal aborts or the listener is closed. */
  async next(signal: AbortSignal): Promise<string | undefined> {
    const wake = () => this.wake();
    signal.addEventListener("abort", wake, { once: true });
    try {
      while (this.reason === undefined && !this.closed && !signal.aborted) {
        await new Promise<void>((resolve) => this.wake = resolve);
      }
    } finally {
      signal.removeEventListener("abort", wake);
    }
    return signal.aborted || this.closed ? undefined : this.reason;
  }

  settle(): void {
    this.reason = undefined;
  }

  alarm(reason: string): void {
    this.reason ??= reason;
    this.wake();
  }

  pause(): void {
    this.stop?.abort();
    this.socket?.[Symbol.dispose]();
    this.socket = undefined;
  }

  resume(): void {
    if (this.closed) return;
    const socket = this.host.kernel.netlink(NETLINK_NETFILTER, { groups: [GROUP_NFTABLES] });
    const stop = new AbortController();
    this.socket = socket;
    this.stop = stop;
    void this.listen(socket, stop.signal);
  }

  private async listen(socket: NetlinkSocket, signal: AbortSignal): Promise<void> {
    try {
      for await (const messages of socket.events(signal)) {
        for (const message of messages) {
          if (message.portId === this.ownPortId) continue;
          const table = tableOf(message);
          if (table?.table !== TABLE.table || table.family !== TABLE.family) continue;
          this.alarm(`table inet ${TABLE.table} was changed by somebody else (netlink port ${message.portId ?? 0})`);
          break;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      this.pause();
      if (!isErrno(error, "ENOBUFS")) this.host.log.warn("nftables events failed", { error: explainError(error) });
      try {
        this.resume();
        if (this.lossMatters()) this.alarm("events of nftables were lost");
      } catch (failure) {
        this.host.log.error("nftables events cannot be had", { error: explainError(failure) });
        this.alarm("events of nftables cannot be had");
      }
    }
  }

  [Symbol.dispose](): void {
    this.closed = true;
    this.pause();
    this.wake();
  }
}
