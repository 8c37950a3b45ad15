/** The iptables dataplane: policy, masquerading and services as chains of xtables and ip sets. */
import type { Family } from "../../src/model/address.ts";
import type { DesiredState, PolicyList } from "../../src/model/desired.ts";
import { isErrno } from "../../src/kernel/errors.ts";
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
import { type Backend, keyOf, type Place, type Watch, type WriteOptions } from "./backend.ts";
import { type IptablesConfig, lowestBit, parseConfig, secondBit, serviceMarks } from "./config.ts";
import { type CountingTable, decisionCounts } from "./counters.ts";
import { setDifferences, tableDifferences } from "./differences.ts";
import { type EncodedRule, encodeRule } from "./entry.ts";
import { IpSets } from "./ip_sets.ts";
import { holderOf } from "./lock_holder.ts";
import { createPrefixResolver } from "./log_prefix.ts";
import { readPacketLog } from "./packet_log.ts";
import { type Rendered, Renderer, type RenderOptions } from "./render.ts";
import { servicePlaces } from "./services_places.ts";
import { type IpSet, jump, OURS, type Rule, rule, type Table, type TableName } from "./ruleset.ts";
import type { WantedTable } from "./table.ts";
import { judgePacket } from "./trace.ts";
import { type Opened, openVariant } from "./variant.ts";

/** Between two tries for the lock. */
const LOCK_RETRY_MS = 10;
/** In which the kernel usually disposes of rules. */
const RELEASE_MS = 25;
/** Every so many looks large tables are compared whole. */
const THOROUGH_EVERY = 10;
/** What closes first: rules that open (what is allowed before tracking, before DNAT) are written after those that deny. */
const ORDER: readonly TableName[] = ["nat", "filter", "mangle", "raw"];

const NOTHING: WantedTable = { chains: new Map(), hooks: new Map() };

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
  /** The one that is not written to: what an earlier process has left there goes once ours is in force. */
  private readonly other: Backend;
  private isOtherSwept = false;
  private readonly sets: IpSets;
  private readonly renderOptions: RenderOptions;
  private renderer: Renderer;
  private readonly encoder = new Encoder();
  /** What each table holds of ours as far as we know; absent: it must be read. */
  private readonly there = new Map<string, Table | undefined>();
  private desired: DesiredState | undefined;
  private readonly prefixes = createPrefixResolver(() => this.desired);
  private readonly serviceFlows: ServiceFlows | undefined;
  /** Services that tables were found with when nobody knew; undefined: what was written last is there. */
  private foundServices: ServicePlace[] | undefined;
  /** As it was written last. */
  private wanted: ReadonlyMap<string, readonly [Place, Table | undefined]> = new Map();

  constructor(
    private readonly config: IptablesConfig,
    private readonly host: Host,
    private readonly netlink: NetlinkSocket,
    { backend, other, abilities: { families, nat, cut, services } }: Opened,
  ) {
    this.backend = backend;
    this.other = other;
    this.sets = new IpSets(netlink);
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
    this.forget();
    if (this.desired === undefined) return { generation: 0, converged: true, messages: 0, problems: [] };
    return await this.bring(this.desired, signal);
  }

  private forget(): void {
    this.there.clear();
    this.backend.forget();
    this.sets.forget();
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
    const report = (messages: number, wrong: readonly string[], notes: readonly string[] = []): Report => {
      if (wrong.length > 0) this.host.log.error("iptables are not as wanted", { generation, problems: wrong });
      else this.followFlows(desired);
      const ofFlows = this.serviceFlows?.problems() ?? [];
      return {
        generation,
        converged: wrong.length === 0,
        messages,
        problems: [...problems, ...notes, ...wrong, ...ofFlows],
      };
    };
    try {
      const places = this.placesOf(ruleset.tables);
      const isThere = ([key, [, table]]: [string, readonly [Place, Table | undefined]]) =>
        this.there.has(key) && this.there.get(key) === table;
      if ([...places].every(isThere) && this.isOtherSwept) {
        if (!this.sets.needs(ruleset.sets)) return report(0, []);
        // Sets are changed without the lock: no table changes with them.
        const messages = this.sets.bring(ruleset.sets);
        const cleaned = await this.cleanSets(ruleset.sets);
        return report(messages + cleaned.messages, [], cleaned.problems);
      }
      using lock = await this.lock(this.backend, signal);
      if (lock === undefined) return report(0, [this.lockProblem]);
      let messages = this.sets.bring(ruleset.sets);
      this.wanted = places;
      const todo = [...places].filter((one) => !isThere(one)).map(([, one]) => one);
      for (const [place] of todo) if (!this.there.delete(keyOf(place))) this.findServices(place);
      const written = this.backend.write(
        todo.map(([place, table]) => ({ place, wanted: this.encoder.table(table) })),
        this.writeOptions,
        `apply generation ${generation}`,
      );
      messages += written.messages;
      for (const [place, table] of todo) if (!written.failed.has(keyOf(place))) this.there.set(keyOf(place), table);
      const notes = [...written.notes], wrong = [...new Set(written.failed.values())];
      if (wrong.length > 0) return report(messages, wrong, notes);
      if (!this.isOtherSwept) {
        lock[Symbol.dispose]();
        const swept = await this.sweepTables(this.other, signal);
        messages += swept.messages;
        notes.push(...swept.problems);
        this.isOtherSwept = swept.problems.length === 0;
      }
      const cleaned = await this.cleanSets(ruleset.sets);
      return report(messages + cleaned.messages, [], [...notes, ...cleaned.problems]);
    } catch (error) {
      this.forget();
      return report(0, [explainError(error)]);
    }
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

  private get writeOptions(): WriteOptions {
    return { position: this.config.position, indexOf: (set) => this.sets.indexOf(set) };
  }

  /** What is to be where: the tables that are wanted, and those that there are, which may have something of ours from before. */
  private placesOf(tables: readonly Table[]): ReadonlyMap<string, readonly [Place, Table | undefined]> {
    const places = new Map<string, readonly [Place, Table | undefined]>();
    const byOrder = [...tables].sort((a, b) => ORDER.indexOf(a.table) - ORDER.indexOf(b.table) || a.family - b.family);
    for (const table of byOrder) places.set(keyOf(table), [table, table]);
    for (const place of this.backend.places()) {
      const key = keyOf(place);
      if (!places.has(key)) places.set(key, [{ family: place.family, table: place.table }, undefined]);
    }
    return places;
  }

  /** Undefined: somebody else held it all the time. */
  private async lock({ locks }: Backend, signal?: AbortSignal): Promise<Disposable | undefined> {
    if (!locks) return NO_LOCK;
    const { lockFile, lockWaitMs } = this.config;
    const { clock, kernel } = this.host;
    const untilMs = clock.nowMs() + lockWaitMs;
    for (;;) {
      const held = kernel.tryLock(lockFile);
      if (held !== undefined) return held;
      if (clock.nowMs() >= untilMs || signal?.aborted) return undefined;
      await clock.sleep(LOCK_RETRY_MS, signal ?? NEVER).catch(() => {});
    }
  }

  private get lockProblem(): string {
    const { lockFile, lockWaitMs } = this.config;
    const holder = holderOf(lockFile), named = holder === undefined ? "" : ` (${holder})`;
    return `lock ${lockFile}: found it held by somebody else${named} for ${lockWaitMs} ms, wanted it to write iptables: nothing was written; tried again later`;
  }

  async *drift(signal: AbortSignal): AsyncIterable<string> {
    using watch = this.backend.watch?.();
    for (let look = 1; !signal.aborted; look++) {
      await this.untilLook(watch, signal);
      if (signal.aborted) return;
      let reason: string | undefined;
      try {
        // Who is told of changes need not look for them.
        reason = this.drifted(watch === undefined && look % THOROUGH_EVERY === 0);
      } catch (error) {
        reason = explainError(error);
      }
      if (reason === undefined) continue;
      this.forget();
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

  private drifted(thorough: boolean): string | undefined {
    for (const [key, [place, table]] of this.wanted) {
      if (!this.there.has(key)) continue;
      if (this.backend.differs({ place, wanted: this.encoder.table(table) }, this.writeOptions, thorough)) {
        return `table ${place.table} of ip${place.family === 6 ? "6" : ""}tables was changed by somebody else`;
      }
    }
    return this.sets.drifted();
  }

  async diff(): Promise<readonly string[]> {
    if (this.desired === undefined) return [];
    const { ruleset: { tables, sets } } = this.render(this.desired);
    const there = new Set(this.backend.places().map(keyOf));
    const indexOf = (set: string) => {
      try {
        return this.sets.indexOf(set);
      } catch (error) {
        // A set that is not there is in no rule.
        if (isErrno(error, "ENOENT")) return -1;
        throw error;
      }
    };
    const options = { ...this.writeOptions, indexOf };
    return [
      ...setDifferences(this.netlink, sets),
      ...[...this.placesOf(tables)].flatMap(([key, [place, table]]) =>
        tableDifferences(
          there.has(key) ? this.backend.read(place) : undefined,
          table,
          this.encoder.table(table),
          options,
          () => !this.backend.differs({ place, wanted: this.encoder.table(table) }, options, true),
        )
      ),
    ];
  }

  /** By the tables as rendered: the kernel's are bytes, which `diff` compares. */
  async tracer(): Promise<PacketJudge> {
    if (this.desired === undefined) throw new UnavailableError("trace: found nothing applied yet, wanted rules");
    const { ruleset } = this.render(this.desired);
    return (path) => judgePacket(ruleset, path);
  }

  async counts(list: PolicyList): Promise<readonly DecisionCount[]> {
    const heads = this.renderer.headsOf(list);
    const tables = [...this.wanted].flatMap(([key, [place, table]]): CountingTable[] => {
      if (table === undefined || this.there.get(key) !== table || !hasAny(table, heads)) return [];
      return [{ family: place.family, chains: table.chains, found: this.backend.read(place).chains }];
    });
    return decisionCounts(tables, heads);
  }

  logs(signal: AbortSignal): AsyncIterable<LoggedPacket | LostPackets> {
    return readPacketLog(this.host, this.config.logGroup, this.prefixes, signal);
  }

  async sweep(signal?: AbortSignal): Promise<Report> {
    this.forget();
    this.desired = undefined;
    this.wanted = new Map();
    const report = (messages: number, problems: readonly string[]): Report => ({
      generation: 0,
      converged: problems.length === 0,
      messages,
      problems,
    });
    try {
      let messages = 0;
      const problems: string[] = [];
      for (const backend of [this.backend, this.other]) {
        const swept = await this.sweepTables(backend, signal);
        messages += swept.messages;
        problems.push(...swept.problems);
      }
      this.sets.bring(new Map());
      const cleaned = await this.cleanSets(new Map());
      return report(messages + cleaned.messages, [...problems, ...cleaned.problems]);
    } catch (error) {
      return report(0, [explainError(error)]);
    } finally {
      this.forget();
    }
  }

  /** Sets that were asked until now may be held a moment longer, by rules that the kernel has not yet disposed of. */
  private async cleanSets(wanted: ReadonlyMap<string, IpSet>): Promise<ReturnType<IpSets["clean"]>> {
    const { messages, problems } = this.sets.clean(wanted);
    if (problems.length === 0 || this.backend.settle === undefined) return { messages, problems };
    await this.host.clock.sleep(RELEASE_MS, NEVER).catch(() => {});
    this.backend.settle();
    const again = this.sets.clean(wanted);
    return { messages: messages + again.messages, problems: again.problems };
  }

  /** Takes everything of ours from the tables. @throws {KernelError} */
  private async sweepTables(
    backend: Backend,
    signal?: AbortSignal,
  ): Promise<{ readonly messages: number; readonly problems: readonly string[] }> {
    // Nobody waits for the lock where nothing of ours is: a dataplane that never got it has left nothing.
    const places = backend.places().filter((place) => this.mayHaveOurs(backend, place));
    if (places.length === 0) return { messages: 0, problems: [] };
    using lock = await this.lock(backend, signal);
    if (lock === undefined) return { messages: 0, problems: [this.lockProblem] };
    const nothing = places.map((place) => ({ place, wanted: NOTHING }));
    const { messages, notes, failed } = backend.write(nothing, this.writeOptions, "sweep");
    return { messages, problems: [...notes, ...new Set(failed.values())] };
  }

  private mayHaveOurs(backend: Backend, place: Place): boolean {
    try {
      return backend.differs({ place, wanted: NOTHING }, this.writeOptions, true);
    } catch {
      // It cannot be read: whoever writes says why.
      return true;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.serviceFlows?.[Symbol.asyncDispose]();
    this.backend[Symbol.dispose]();
    this.other[Symbol.dispose]();
    this.netlink[Symbol.dispose]();
  }
}

const NEVER = new AbortController().signal;
const hasAny = ({ chains }: Table, names: ReadonlySet<string>): boolean => [...names].some((name) => chains.has(name));
const NO_LOCK: Disposable = { [Symbol.dispose]() {} };

/** As `chainName` of compile.ts names chains. */
const CONTENT_NAMED = `${OURS}c-`;

/** Encodes what it has not encoded before: chains that stay are the same objects. */
class Encoder {
  private readonly chains: Readonly<Record<Family, WeakMap<readonly Rule[], readonly EncodedRule[]>>> = {
    4: new WeakMap(),
    6: new WeakMap(),
  };
  private readonly tables = new WeakMap<Table, WantedTable>();
  /** By place, the last one. */
  private readonly last = new Map<string, WantedTable>();

  table(table: Table | undefined): WantedTable {
    if (table === undefined) return NOTHING;
    let wanted = this.tables.get(table);
    if (wanted === undefined) {
      const { family, chains, hooks } = table;
      const before = this.last.get(keyOf(table))?.chains;
      wanted = {
        // Where the name says what is in it, it need not be looked at.
        chains: new Map([...chains].map(([name, rules]) => [
          name,
          name.startsWith(CONTENT_NAMED) && before?.get(name) || this.chain(family, rules),
        ])),
        hooks: new Map([...hooks].map(([hook, chain]) => [hook, encodeRule(rule(jump(chain)), family)])),
      };
      this.tables.set(table, wanted);
      this.last.set(keyOf(table), wanted);
    }
    return wanted;
  }

  private chain(family: Family, rules: readonly Rule[]): readonly EncodedRule[] {
    let encoded = this.chains[family].get(rules);
    if (encoded === undefined) {
      this.chains[family].set(rules, encoded = rules.map((one) => encodeRule(one, family)));
    }
    return encoded;
  }
}
