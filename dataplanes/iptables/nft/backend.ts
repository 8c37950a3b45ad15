/** The tables that `iptables-nft` shows: read, compared and written over nfnetlink, all of them in one transaction. */
import type { Family } from "../../../src/model/address.ts";
import { isErrno, KernelError } from "../../../src/kernel/errors.ts";
import {
  getGeneration,
  getTables,
  parseGeneration,
  parseTable,
  SUBSYSTEM_NFTABLES,
} from "../../../src/kernel/netlink/schema/nftables.ts";
import { familyNumber, type Touched } from "../../../src/kernel/netlink/schema/nftables_compat.ts";
import { explainError } from "../../../src/sdk/errors.ts";
import type { NetlinkSocket } from "../../../src/sdk/kernel_door.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import {
  type Backend,
  type Change,
  keyOf,
  type Place,
  type ShownTable,
  type Watch,
  type WriteOptions,
  type Written,
} from "../backend.ts";
import type { EncodedRule } from "../entry.ts";
import { HOOK_NAMES, type Table, TABLES } from "../ruleset.ts";
import { TableError, type WantedTable } from "../table.ts";
import { Bounder } from "./bounded.ts";
import { type FoundChain, type FoundTable, isOurs, readRules, readTables } from "./found.ts";
import { type Plan, planChains, planHooks, planTable, type Recognised } from "./plan.ts";
import { refusal } from "./probe.ts";
import { NftWatch } from "./watch.ts";

/** Somebody who keeps writing to nf_tables makes a transaction stale (ERESTART) so often at most before it is reported. */
const STALE_TRIES = 16;
/** Where more chains change, the whole table is read. */
const QUICK_CHAINS_MAX = 64;

/** What a table has of ours since we last wrote or compared it. */
interface Known {
  readonly wanted: WantedTable;
  /** Chains that a tool has made anew since we made them. */
  readonly restored: ReadonlySet<string>;
}

interface Part {
  readonly change: Change;
  readonly plan: Plan;
  readonly known: Known;
  /** By memory: what we do not know of may make the kernel refuse it. */
  readonly isQuick: boolean;
}

export class NftTables implements Backend {
  readonly locks = false;
  private readonly known = new Map<string, Known>();
  /** What was written to each last, whatever has become of it. */
  private readonly last = new Map<string, WantedTable>();
  /** Of each table as it was read last, by its handle: rules that need not be read again. */
  private readonly recognised = new Map<string, { readonly table: bigint; readonly rules: Map<bigint, EncodedRule> }>();
  private there: readonly Place[] | undefined;
  /** NFTA_GEN_ID right after we last wrote. */
  private generation: number | undefined;
  /** Tables that others have touched since they were compared; `hooks`: rules of the kernel's own chains only. */
  private readonly touched = new Map<string, "hooks" | "all">();

  private readonly bounder: Bounder;

  /**
   * @param socket stays its opener's
   * @param freeMark bits of the packet mark that nothing else uses
   */
  constructor(
    private readonly host: Host,
    private readonly socket: NetlinkSocket,
    private readonly families: ReadonlySet<Family>,
    freeMark: number,
  ) {
    this.bounder = new Bounder(freeMark);
  }

  fit(table: Table): Table {
    return this.bounder.table(table);
  }

  places(): readonly Place[] {
    return this.there ??= [...this.families].flatMap((family) => {
      const number = familyNumber(family);
      const names = this.socket.dump("list tables", getTables(number)).map(parseTable)
        .filter(({ header }) => header.family === number).map(({ attributes }) => attributes.name);
      return TABLES.filter((table) => names.includes(table)).map((table) => ({ family, table }));
    });
  }

  read(place: Place): ShownTable {
    const [found] = readTables(this.socket, place.family, [place]);
    return {
      family: place.family,
      info: { table: place.table },
      chains: [...found!.chains.values()].map(({ name, rules }) => ({ name, rules: rules.map(({ entry }) => entry) })),
    };
  }

  forget(): void {
    this.known.clear();
    this.there = undefined;
  }

  write(changes: readonly Change[], options: WriteOptions, operation: string): Written {
    const failed = new Map<string, string>();
    const fail = (some: readonly Change[], why: string) => {
      for (const { place } of some) failed.set(keyOf(place), why);
    };
    for (let stale = 0;;) {
      const todo = changes.filter(({ place }) => !failed.has(keyOf(place)));
      const generation = readGeneration(this.socket);
      try {
        const parts = this.plan(todo, options, fail);
        const messages = parts.flatMap(({ plan }) => plan.messages);
        const sent = this.send(operation, parts, generation);
        if (sent === "again") continue;
        if (sent !== "done") {
          fail([sent.part.change], sent.why);
          continue;
        }
        if (messages.length === 0 && readGeneration(this.socket) !== generation && ++stale < STALE_TRIES) continue;
        for (const { change, known } of parts) {
          this.known.set(keyOf(change.place), known);
          this.last.set(keyOf(change.place), change.wanted);
        }
        if (messages.length > 0) this.there = undefined;
        return { messages: messages.length, notes: parts.flatMap(({ plan }) => plan.notes), failed };
      } catch (error) {
        // What was read went away meanwhile, or the generation did.
        if (!isErrno(error, "ERESTART", "ENOENT", "EINTR")) throw error;
        if (++stale < STALE_TRIES) continue;
        fail(
          todo,
          isErrno(error, "ENOENT")
            ? `${operation}: tried ${stale} times: ${explainError(error)}`
            : `${operation}: found nf_tables changed by somebody else ${stale} times between reading and writing, ` +
              "wanted it unchanged: tried again later",
        );
        return { messages: 0, notes: [], failed };
      }
    }
  }

  private plan(
    changes: readonly Change[],
    options: WriteOptions,
    fail: (some: readonly Change[], why: string) => void,
  ): readonly Part[] {
    const parts: Part[] = [];
    const attempt = (change: Change, plan: () => Omit<Part, "change"> | undefined): boolean => {
      try {
        const planned = plan();
        if (planned !== undefined) parts.push({ change, ...planned });
        return planned !== undefined;
      } catch (error) {
        if (!(error instanceof TableError)) throw error;
        fail([change], error.message);
        return true;
      }
    };
    const slow = changes.filter((change) => !attempt(change, () => this.quick(change, options)));
    for (const family of this.families) {
      const ofFamily = slow.filter(({ place }) => place.family === family);
      if (ofFamily.length === 0) continue;
      const tables = readTables(this.socket, family, ofFamily.map(({ place }) => place));
      ofFamily.forEach((change, i) => {
        const found = tables[i]!;
        const restored = [...found.chains.values()].filter(({ name, isMarked }) => isOurs(name) && !isMarked);
        attempt(change, () => ({
          plan: this.planWhole(found, change.wanted, options),
          known: { wanted: change.wanted, restored: new Set(restored.map(({ name }) => name)) },
          isQuick: false,
        }));
      });
    }
    // In the order in which they were asked for.
    return parts.sort((a, b) => changes.indexOf(a.change) - changes.indexOf(b.change));
  }

  /** From what we remember, reading only chains that are to change; undefined where that is not enough. */
  private quick({ place, wanted }: Change, options: WriteOptions): Omit<Part, "change"> | undefined {
    const known = this.known.get(keyOf(place));
    if (known === undefined || wanted.chains.size === 0 || !sameHooks(known.wanted, wanted)) return undefined;
    const changed = new Map<string, WantedTable["chains"] extends ReadonlyMap<string, infer R> ? R : never>();
    const looked = new Set<string>();
    for (const [name, rules] of wanted.chains) {
      const before = known.wanted.chains.get(name);
      if (before === rules) continue;
      changed.set(name, rules);
      if (before !== undefined) looked.add(name);
    }
    for (const name of known.wanted.chains.keys()) if (!wanted.chains.has(name)) looked.add(name);
    if (looked.size > QUICK_CHAINS_MAX) return undefined;
    const rules = readRules(this.socket, place, looked);
    const chains = new Map([...looked].map((name): [string, FoundChain] => [name, {
      name,
      base: undefined,
      isMarked: !known.restored.has(name),
      use: undefined,
      rules: rules.get(name) ?? [],
    }]));
    const found = { place, isThere: true, flags: 0, isMarked: false, use: 0, handle: 0n, chains };
    const plan = planChains(
      found,
      { chains: changed, hooks: new Map() },
      { ...options, before: known.wanted },
      this.recognisedIn(place),
    );
    return { plan, known: { wanted, restored: known.restored }, isQuick: true };
  }

  /** One transaction. @throws {KernelError} ERESTART where somebody else wrote since `generation` */
  private send(
    operation: string,
    parts: readonly Part[],
    generation: number,
  ): "done" | "again" | { readonly part: Part; readonly why: string } {
    const messages = parts.flatMap(({ plan }) => plan.messages);
    if (messages.length === 0) return "done";
    try {
      this.socket.transaction(`${operation} to iptables (nft)`, SUBSYSTEM_NFTABLES, messages, generation);
    } catch (error) {
      if (!(error instanceof KernelError) || error.errnoName === "ERESTART") throw error;
      const quick = parts.some(({ isQuick }) => isQuick);
      this.forget();
      // The tables are not as we thought: look, and try again.
      if (quick) return "again";
      let last = 0;
      const part = parts.find(({ plan }) => (error.messageIndex ?? -1) < (last += plan.messages.length));
      if (part === undefined || error.messageIndex === undefined) throw error;
      return { part, why: explainError(error) };
    }
    this.generation = nextGeneration(generation);
    return "done";
  }

  differs({ place, wanted }: Change, options: WriteOptions, thorough: boolean): boolean {
    const key = keyOf(place);
    const touched = thorough ? "all" : this.touched.get(key);
    this.touched.delete(key);
    if (touched === undefined) return false;
    if (touched === "hooks" && wanted.hooks.size > 0) {
      const rules = readRules(this.socket, place, new Set(HOOK_NAMES));
      const chains = new Map([...rules].map(([name, found]): [string, FoundChain] => [name, {
        name,
        base: undefined,
        isMarked: false,
        use: undefined,
        rules: found,
      }]));
      const found = { place, isThere: true, flags: 0, isMarked: false, use: 0, handle: 0n, chains };
      return planHooks(found, wanted, options, this.recognisedIn(place)).messages.length > 0;
    }
    const [found] = readTables(this.socket, place.family, [place]);
    return this.planWhole(found!, wanted, options).messages.length > 0;
  }

  private recognisedIn(place: Place): Recognised | undefined {
    const known = this.recognised.get(keyOf(place));
    return known && { before: known.rules, now: known.rules };
  }

  private planWhole(found: FoundTable, wanted: WantedTable, options: WriteOptions): Plan {
    const key = keyOf(found.place);
    const known = this.recognised.get(key);
    const before = known?.table === found.handle ? known.rules : new Map<bigint, EncodedRule>();
    const now = new Map<bigint, EncodedRule>();
    this.recognised.set(key, { table: found.handle, rules: now });
    return planTable(found, wanted, { ...options, before: this.last.get(key) }, { before, now });
  }

  /** The kernel disposes of rules later, but before it takes an extension into use. */
  settle(): void {
    for (const family of [...this.families].slice(0, 1)) refusal(this.socket, family);
  }

  watch(): Watch {
    // Whoever wrote before we listened went unheard.
    this.touchAll();
    return new NftWatch(this.host, this.socket.portId, (one) => this.touch(one), () => {
      if (readGeneration(this.socket) === this.generation) return false;
      this.touchAll();
      return true;
    });
  }

  private touchAll(): void {
    for (const key of this.known.keys()) this.touched.set(key, "all");
  }

  /** Whether it may be about ours. */
  private touch({ family: number, table, chain, isRule }: Touched): boolean {
    const family = ([4, 6] as const).find((one) => familyNumber(one) === number);
    const name = TABLES.find((one) => one === table);
    if (family === undefined || name === undefined) return false;
    const isHook = (HOOK_NAMES as readonly string[]).includes(chain ?? "");
    if (chain !== undefined && !isHook && !isOurs(chain)) return false;
    const key = keyOf({ family, table: name });
    if (!isHook || !isRule) this.touched.set(key, "all");
    else if (!this.touched.has(key)) this.touched.set(key, "hooks");
    return true;
  }

  [Symbol.dispose](): void {}
}

/** @throws {KernelError} */
export function readGeneration(socket: NetlinkSocket): number {
  for (const answer of socket.request("read the nftables generation", [getGeneration()])) {
    const { id } = parseGeneration(answer).attributes;
    if (id !== undefined) return id;
  }
  throw new Error("read the nftables generation: found no NFTA_GEN_ID in the answer");
}

/** nft_base_seq counts up with each commit and leaves out 0. */
const nextGeneration = (generation: number): number => (generation + 1) >>> 0 || 1;

const sameHooks = (one: WantedTable, other: WantedTable): boolean =>
  one.hooks.size === other.hooks.size &&
  [...one.hooks].every(([hook, { chain }]) => other.hooks.get(hook)?.chain === chain);
