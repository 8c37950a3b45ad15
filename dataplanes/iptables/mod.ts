/** The iptables dataplane: policy and masquerading as chains of xtables and ip sets. */
import type { Family } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import { NETLINK_NETFILTER } from "../../src/kernel/netlink/schema/nftables.ts";
import type { Aspect, Dataplane, Report } from "../../src/sdk/dataplane.ts";
import { explainError } from "../../src/sdk/errors.ts";
import type { NetlinkSocket, XtablesSocket } from "../../src/sdk/kernel_door.ts";
import { definePlugin, type Host } from "../../src/sdk/plugin.ts";
import type { Backend, Place, WriteOptions } from "./backend.ts";
import { type IptablesConfig, lowestBit, parseConfig, secondBit } from "./config.ts";
import { setDifferences, tableDifferences } from "./differences.ts";
import { type EncodedRule, encodeRule } from "./entry.ts";
import { IpSets } from "./ip_sets.ts";
import { LegacyTables } from "./legacy.ts";
import { type Abilities, hostVariant, probe } from "./probe.ts";
import { type Rendered, Renderer, type RenderOptions } from "./render.ts";
import { jump, type Rule, rule, type Table, type TableName } from "./ruleset.ts";
import type { WantedTable } from "./table.ts";

/** Between two tries for the lock. */
const LOCK_RETRY_MS = 10;
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
    const abilities = probe(sockets, netlink);
    const backend = new LegacyTables(sockets);
    if (hostVariant() === "nft") {
      host.log.info(
        "the host's own iptables is the nft one: it does not list what is in the legacy tables, iptables-legacy does",
      );
    }
    undo.move();
    return new IptablesDataplane(config, host, netlink, backend, abilities);
  },
});

class IptablesDataplane implements Dataplane {
  readonly capabilities: Dataplane["capabilities"];
  readonly cutMark: number | undefined;
  private readonly sets: IpSets;
  private readonly renderOptions: RenderOptions;
  private renderer: Renderer;
  private readonly encoder = new Encoder();
  /** What each table holds of ours as far as we know; absent: it must be read. */
  private readonly there = new Map<string, Table | undefined>();
  private desired: DesiredState | undefined;
  /** As it was written last. */
  private wanted: ReadonlyMap<string, readonly [Place, Table | undefined]> = new Map();

  constructor(
    private readonly config: IptablesConfig,
    private readonly host: Host,
    private readonly netlink: NetlinkSocket,
    private readonly backend: Backend,
    { families, nat, cut }: Abilities,
  ) {
    this.sets = new IpSets(netlink);
    const mark = secondBit(config.markMask);
    this.cutMark = cut && mark !== 0 ? mark : undefined;
    this.renderOptions = {
      logGroup: config.logGroup,
      passedMark: lowestBit(config.markMask),
      cutMark: this.cutMark,
      families: [...families],
      nat,
    };
    this.renderer = new Renderer(this.renderOptions);
    this.capabilities = {
      aspects: new Set<Aspect>(nat ? ["policy", "nat"] : ["policy"]),
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
    this.sets.forget();
  }

  private render(desired: DesiredState): Rendered {
    try {
      return this.renderer.render(desired);
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
      return { generation, converged: wrong.length === 0, messages, problems: [...problems, ...notes, ...wrong] };
    };
    try {
      const places = this.placesOf(ruleset.tables);
      const isThere = ([key, [, table]]: [string, readonly [Place, Table | undefined]]) =>
        this.there.has(key) && this.there.get(key) === table;
      if ([...places].every(isThere)) {
        if (!this.sets.needs(ruleset.sets)) return report(0, []);
        // Sets are changed without the lock: no table changes with them.
        const messages = this.sets.bring(ruleset.sets);
        const cleaned = this.sets.clean(ruleset.sets);
        return report(messages + cleaned.messages, [], cleaned.problems);
      }
      using lock = await this.lock(signal);
      if (lock === undefined) return report(0, [this.lockProblem]);
      let messages = this.sets.bring(ruleset.sets);
      const wrong: string[] = [], notes: string[] = [];
      this.wanted = places;
      for (const [key, [place, table]] of places) {
        if (this.there.has(key) && this.there.get(key) === table) continue;
        this.there.delete(key);
        try {
          const { table: name, family } = place;
          const operation = `apply generation ${generation} to table ${name} of ip${family === 6 ? "6" : ""}tables`;
          const written = this.backend.write(place, this.encoder.table(table), this.writeOptions, operation);
          messages += written.messages;
          notes.push(...written.notes);
          this.there.set(key, table);
        } catch (error) {
          wrong.push(explainError(error));
        }
      }
      if (wrong.length > 0) return report(messages, wrong, notes);
      const cleaned = this.sets.clean(ruleset.sets);
      return report(messages + cleaned.messages, [], [...notes, ...cleaned.problems]);
    } catch (error) {
      this.forget();
      return report(0, [explainError(error)]);
    }
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
  private async lock(signal?: AbortSignal): Promise<Disposable | undefined> {
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
    return `lock ${lockFile}: found it held by somebody else for ${lockWaitMs} ms, wanted it to write iptables: nothing was written; tried again later`;
  }

  async *drift(signal: AbortSignal): AsyncIterable<string> {
    for (let look = 1; !signal.aborted; look++) {
      await this.host.clock.sleep(this.config.pollMs, signal).catch(() => {});
      if (signal.aborted) return;
      let reason: string | undefined;
      try {
        reason = this.drifted(look % THOROUGH_EVERY === 0);
      } catch (error) {
        reason = explainError(error);
      }
      if (reason === undefined) continue;
      this.forget();
      yield reason;
    }
  }

  private drifted(thorough: boolean): string | undefined {
    for (const [key, [place, table]] of this.wanted) {
      if (!this.there.has(key)) continue;
      if (this.backend.differs(place, this.encoder.table(table), this.writeOptions, thorough)) {
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
        )
      ),
    ];
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
      using lock = await this.lock(signal);
      if (lock === undefined) return report(0, [this.lockProblem]);
      let messages = 0;
      const problems: string[] = [];
      for (const place of this.backend.places()) {
        try {
          messages += this.backend.write(place, NOTHING, this.writeOptions, `sweep table ${place.table}`).messages;
        } catch (error) {
          problems.push(explainError(error));
        }
      }
      this.sets.bring(new Map());
      const cleaned = this.sets.clean(new Map());
      return report(messages + cleaned.messages, [...problems, ...cleaned.problems]);
    } catch (error) {
      return report(0, [explainError(error)]);
    } finally {
      this.forget();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.backend[Symbol.dispose]();
    this.netlink[Symbol.dispose]();
  }
}

const NEVER = new AbortController().signal;
const keyOf = ({ family, table }: Place): string => `${family} ${table}`;

/** Encodes what it has not encoded before: chains that stay are the same objects. */
class Encoder {
  private readonly chains: Readonly<Record<Family, WeakMap<readonly Rule[], readonly EncodedRule[]>>> = {
    4: new WeakMap(),
    6: new WeakMap(),
  };
  private readonly tables = new WeakMap<Table, WantedTable>();

  table(table: Table | undefined): WantedTable {
    if (table === undefined) return NOTHING;
    let wanted = this.tables.get(table);
    if (wanted === undefined) {
      const { family, chains, hooks } = table;
      wanted = {
        chains: new Map([...chains].map(([name, rules]) => [name, this.chain(family, rules)])),
        hooks: new Map([...hooks].map(([hook, chain]) => [hook, encodeRule(rule(jump(chain)), family)])),
      };
      this.tables.set(table, wanted);
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
