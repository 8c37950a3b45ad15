/** The nftables dataplane: policy and masquerading as the table `inet manx`, one transaction a generation. */
import type { DesiredState, PolicyList } from "../../src/model/desired.ts";
import type {
  Aspect,
  Dataplane,
  DecisionCount,
  LoggedPacket,
  LostPackets,
  PacketJudge,
  Report,
} from "../../src/sdk/dataplane.ts";
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { definePlugin, type Host } from "../../src/sdk/plugin.ts";
import { explainError, UnavailableError } from "../../src/sdk/errors.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import { ServiceFlows } from "../../src/kernel/service_flows.ts";
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
import { differences, repairsOf } from "./differences.ts";
import { FastPath } from "./fast_path.ts";
import { withoutTable } from "./fast_path_table.ts";
import { createPrefixResolver } from "./log_prefix.ts";
import { readPacketLog } from "./packet_log.ts";
import { probe, probeCut, probeFastPath, probeServices } from "./probe.ts";
import { type Found, readCounts, readGeneration, readTable } from "./read.ts";
import { type Rendered, Renderer } from "./render.ts";
import type { Ruleset } from "./ruleset.ts";
import { servicePlaces } from "./services_places.ts";
import { judgePacket } from "./trace.ts";

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
  /** What we last wrote, as against what somebody else may have made of it. */
  private written: Ruleset | undefined;
  private listener: Listener | undefined;
  private readonly serviceFlows: ServiceFlows | undefined;
  private readonly prefixes = createPrefixResolver(() => this.desired);
  /** From the first state in force on. */
  private fast: FastPath | undefined;
  private readonly fastProblems: readonly string[];
  /** The short way of an earlier daemon was looked for. */
  private looked = false;

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
    const lack = config.establishedFastPath ? probeFastPath(socket) : undefined;
    this.fastProblems = lack === undefined ? [] : [`established flows take no short way: ${lack}`];
    const sampleGroup = config.establishedFastPath && lack === undefined ? config.fastPathGroup : undefined;
    this.renderer = new Renderer({ logGroup, passedMark, cut, services, shape, forwardMark, sampleGroup });
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
        const { messages, repairs } = this.write(desired, ruleset);
        this.startFast();
        const others = [...this.serviceFlows?.problems() ?? [], ...this.fast?.problems() ?? [], ...this.fastProblems];
        return {
          generation: desired.generation,
          converged: true,
          messages,
          problems: [...problems, ...others, ...repairs],
        };
      } catch (error) {
        // The state of the table is not what we thought; the kernel has done nothing. Look, and try again.
        this.there = undefined;
        // Or half of it: what is otherwise then is our own doing.
        this.written = undefined;
        if (isErrno(error, "ERESTART") ? ++stale >= STALE_TRIES : ++refused >= REFUSED_TRIES) {
          const problem = explainError(error);
          this.host.log.error("nftables transaction failed", { generation: desired.generation, error: problem });
          return { generation: desired.generation, converged: false, messages: 0, problems: [...problems, problem] };
        }
      }
    }
  }

  /** One transaction, two for new sets of intervals; none where nothing differs. Returns how many messages they had, and what of others went with them. @throws {KernelError} */
  private write(
    desired: DesiredState,
    ruleset: Ruleset,
  ): { readonly messages: number; readonly repairs: readonly string[] } {
    const known = this.there !== undefined && this.generation !== undefined;
    const found = known ? { ...this.there!, generation: readGeneration(this.socket) } : readTable(this.socket);
    if (!known) this.othersWrote = false;
    else if (found.generation !== this.generation) this.othersWrote = true;
    const batches = batchesFor(found, ruleset);
    const past = this.takeOut(batches.length > 0);
    this.generation = found.generation;
    for (const [i, messages] of (batches.length === 0 && past.length > 0 ? [[]] : batches).entries()) {
      const isLast = i >= batches.length - 1;
      const all = isLast && past.length > 0 ? [...messages, ...past] : messages;
      this.send(`apply generation ${desired.generation} to table inet ${TABLE.table}`, all, this.generation);
    }
    if (batches.length > 0) this.fast?.takenOut();
    this.looked = true;
    const repairs = known || this.written === undefined || found.ruleset === undefined
      ? []
      : repairsOf(found.ruleset, this.written, `table inet ${TABLE.table}`);
    this.there = { ruleset, replace: false };
    this.written = ruleset;
    this.serviceFlows?.follow(desired.services, known ? undefined : servicePlaces(found.ruleset));
    return { messages: batches.reduce((sum, messages) => sum + messages.length, 0), repairs };
  }

  /** What takes flows off their short way: all of them where anything changes, and those of an earlier daemon. @throws {KernelError} */
  private takeOut(changes: boolean): readonly NetlinkMessage[] {
    if (!this.looked) return FastPath.isThere(this.socket) ? withoutTable() : [];
    return changes ? this.fast?.takeOut() ?? [] : [];
  }

  private startFast(): void {
    const { sampleGroup: group, cut } = this.renderer.options;
    if (group === undefined || this.fast !== undefined) return;
    const write = (operation: string, messages: readonly NetlinkMessage[]) => this.writeBeside(operation, messages);
    this.fast = new FastPath({ host: this.host, group, cutMark: cut?.mark ?? 0, write });
  }

  /** A transaction about another table than `TABLE`. @throws {KernelError} */
  private writeBeside(operation: string, messages: readonly NetlinkMessage[]): void {
    const before = readGeneration(this.socket);
    this.socket.transaction(operation, SUBSYSTEM_NFTABLES, messages);
    const after = readGeneration(this.socket);
    // Nobody else has written, neither since our last transaction nor meanwhile.
    if (before === this.generation && after === nextGeneration(before)) this.generation = after;
  }

  recheckFlows(): void {
    this.fast?.recheck();
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

  async tracer(): Promise<PacketJudge> {
    const { ruleset, replace } = readTable(this.socket);
    if (replace || ruleset === undefined) {
      throw new UnavailableError(`trace: found no table inet ${TABLE.table} of ours, wanted its rules`);
    }
    return (path) => judgePacket(ruleset, path);
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
    this.written = undefined;
    this.desired = undefined;
    try {
      this.fast?.[Symbol.dispose]();
      this.fast = undefined;
      if (FastPath.isThere(this.socket)) this.writeBeside("delete the short way", withoutTable());
      this.socket.transaction(`delete table inet ${TABLE.table}`, SUBSYSTEM_NFTABLES, [deleteTable(TABLE)]);
      return { generation: 0, converged: true, messages: 1, problems: [] };
    } catch (error) {
      if (isErrno(error, "ENOENT")) return { generation: 0, converged: true, messages: 0, problems: [] };
      return { generation: 0, converged: false, messages: 0, problems: [explainError(error)] };
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.listener?.[Symbol.dispose]();
    this.fast?.end();
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
