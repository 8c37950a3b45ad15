/**
 * What to send so that a table of nf_tables has what is wanted of ours: chains and rules that stay are not touched, and nothing of anybody
 * else's is. Pure.
 */
import { isErrno } from "../../../src/kernel/errors.ts";
import {
  deleteChain,
  deleteRule,
  deleteTable,
  flushChain,
  newChain,
  TableFlag,
} from "../../../src/kernel/netlink/schema/nftables.ts";
import {
  addRawRule,
  newMarkedChain,
  newMarkedTable,
  type RawRule,
} from "../../../src/kernel/netlink/schema/nftables_compat.ts";
import type { NetlinkMessage } from "../../../src/sdk/kernel_door.ts";
import { lastingKey } from "../counters.ts";
import type { EncodedRule } from "../entry.ts";
import { LAYOUTS } from "../entry_layout.ts";
import { isRule, KEPT_CHAIN, type PlanOptions, TableError, type WantedTable } from "../table.ts";
import { BASE_CHAINS, isSameBase, printBase } from "./base_chains.ts";
import { type FoundChain, type FoundRule, type FoundTable, isOurs, MARK, tableOf } from "./found.ts";
import { type Counts, expressionsOf } from "./to_expressions.ts";

export interface Plan {
  readonly messages: readonly NetlinkMessage[];
  /** What was found that should not be there, one line each. */
  readonly notes: readonly string[];
}

/** What `iptables-nft` can list; a table with others it refuses as a whole. */
const LISTED: ReadonlySet<string> = new Set(
  "match target payload meta cmp bitwise counter immediate lookup range limit log".split(" "),
);

/** @throws {TableError} where ours cannot be put into it without harm to others, or to no effect */
export function planTable(
  found: FoundTable,
  wanted: WantedTable,
  options: PlanOptions,
  recognised?: Recognised,
): Plan {
  return new Planner(found, wanted, options, recognised).whole();
}

/**
 * As `planTable` for chains of ours alone: `found` has those that are to change or to go, `wanted` those that are to change or are new.
 * Whether others lead to chains that are to go is not known: the kernel refuses it then.
 */
export function planChains(
  found: FoundTable,
  wanted: WantedTable,
  options: PlanOptions,
  recognised?: Recognised,
): Plan {
  return new Planner(found, wanted, options, recognised).chainsOnly();
}

/** As `planTable` for our jumps alone: `found` has the kernel's own chains of those that there are. */
export function planHooks(
  found: FoundTable,
  wanted: WantedTable,
  options: PlanOptions,
  recognised?: Recognised,
): Plan {
  return new Planner(found, wanted, options, recognised).hooksOnly();
}

/**
 * Rules by handle that were found to be these, and need not be read again: a rule is never changed, and a number never used again while
 * its table lasts.
 */
export interface Recognised {
  readonly before: ReadonlyMap<bigint, EncodedRule>;
  /** What is recognised now. */
  readonly now: Map<bigint, EncodedRule>;
}

class Planner {
  private readonly at;
  private readonly made: NetlinkMessage[] = [];
  private readonly edits: NetlinkMessage[] = [];
  private readonly gone: NetlinkMessage[] = [];
  private readonly notes: string[] = [];
  /** What rules of chains that go have counted for policy rules, by `lastingKey`: it goes on in chains that come. */
  private readonly counted = new Map<string, Counts>();
  /** How many of the verdicts that lead to a chain go. */
  private readonly released = new Map<string, number>();
  private chainsMade = 0;
  private chainsGone = 0;
  private keeps = false;

  constructor(
    private readonly found: FoundTable,
    private readonly wanted: WantedTable,
    private readonly options: PlanOptions,
    private readonly recognised?: Recognised,
  ) {
    this.at = tableOf(found.place);
    this.gatherCounts();
  }

  chainsOnly(): Plan {
    this.ourChains();
    this.dropChains();
    return this.plan();
  }

  hooksOnly(): Plan {
    this.hooks();
    return this.plan();
  }

  whole(): Plan {
    const { found, wanted } = this;
    if (wanted.chains.size === 0 && !this.hasOurs()) return { messages: [], notes: [] };
    this.refuse();
    if (!found.isThere) this.made.push(newMarkedTable(this.at, MARK));
    this.ourChains();
    this.hooks();
    this.dropChains();
    if (found.isMarked && this.chainsMade === 0 && found.use === this.chainsGone) this.gone.push(deleteTable(this.at));
    this.noteUnlisted();
    return this.plan();
  }

  private plan(): Plan {
    return { messages: [...this.made, ...this.edits, ...this.gone], notes: this.notes };
  }

  private get title(): string {
    const { family, table } = this.found.place;
    return `table ${table} of ip${family === 6 ? "6" : ""}tables (nft)`;
  }

  private hasOurs(): boolean {
    const { isMarked, isThere, chains } = this.found;
    if (isThere && isMarked) return true;
    return [...chains.values()].some(({ name, isMarked, rules }) =>
      isMarked || isOurs(name) || rules.some(({ leadsTo }) => leadsTo !== undefined && isOurs(leadsTo))
    );
  }

  /** @throws {TableError} */
  private refuse(): void {
    const { flags, chains, place } = this.found;
    const wrong = (what: string, wanted: string) =>
      new TableError(`write ${this.title}: found ${what}, wanted ${wanted}: it is left as it is`);
    if ((flags & TableFlag.Dormant) !== 0 && this.wanted.chains.size > 0) throw wrong("it dormant", "it in force");
    if ((flags & TableFlag.Owner) !== 0) throw wrong("it owned by a process", "it open to all");
    for (const chain of chains.values()) {
      if (isOurs(chain.name) && chain.base !== undefined) {
        throw wrong(`chain ${chain.name} at a hook of the kernel`, "no hook there");
      }
      const wanted = BASE_CHAINS[place.table][chain.name];
      if (wanted === undefined || !this.wanted.hooks.has(chain.name)) continue;
      if (!isSameBase(chain.base, wanted)) {
        throw wrong(`chain ${chain.name} ${printBase(chain.base)}`, `it ${printBase(wanted)}`);
      }
    }
  }

  // ------------------------------------------------------------------------------------------------------- chains of ours

  private ourChains(): void {
    for (const [name, rules] of this.wanted.chains) {
      const chain = this.found.chains.get(name);
      if (chain === undefined) {
        this.made.push(newMarkedChain(this.at, name, MARK));
        this.chainsMade++;
        for (const rule of rules) this.edits.push(addRawRule(this.at, name, this.encode(rule)));
      } else this.edit(chain, rules);
    }
  }

  /** Rules that are wanted and there stay, with their counters; others come before the one that they belong before. */
  private edit(chain: FoundChain, wanted: readonly EncodedRule[]): void {
    const { rules } = chain;
    const stays = this.align(rules, wanted);
    const kept = new Set(stays.filter((index) => index >= 0));
    if (kept.size === rules.length && kept.size === wanted.length) return;
    const removed = rules.filter((_, index) => !kept.has(index));
    for (const rule of removed) this.release(rule);
    this.keepStrays(chain, removed, wanted);
    if (kept.size === 0 && rules.length > 1) this.edits.push(flushChain(this.at, chain.name));
    else for (const { handle } of removed) this.edits.push(deleteRule(this.at, chain.name, handle));
    // From the end: each new rule is to know the next one that stays.
    let before: bigint | undefined;
    const befores: (bigint | undefined)[] = new Array(wanted.length);
    for (let i = wanted.length - 1; i >= 0; i--) {
      befores[i] = before;
      if (stays[i]! >= 0) before = rules[stays[i]!]!.handle;
    }
    wanted.forEach((rule, i) => {
      if (stays[i]! < 0) this.edits.push(addRawRule(this.at, chain.name, this.encode(rule), befores[i]));
    });
  }

  /** For each wanted rule the place of the one that is it already, in order; -1 where there is none. */
  private align(rules: readonly FoundRule[], wanted: readonly EncodedRule[]): number[] {
    const stays = new Array<number>(wanted.length).fill(-1);
    let start = 0, end = rules.length, wantedEnd = wanted.length;
    while (start < end && start < wantedEnd && this.isSame(rules[start]!, wanted[start]!)) stays[start] = start++;
    while (end > start && wantedEnd > start && this.isSame(rules[end - 1]!, wanted[wantedEnd - 1]!)) {
      stays[--wantedEnd] = --end;
    }
    for (let i = start, from = start; i < wantedEnd; i++) {
      for (let at = from; at < Math.min(end, from + LOOK_AHEAD); at++) {
        if (!this.isSame(rules[at]!, wanted[i]!)) continue;
        stays[i] = at;
        from = at + 1;
        break;
      }
    }
    return stays;
  }

  private isSame(rule: FoundRule, wanted: EncodedRule): boolean {
    const { recognised } = this;
    if (recognised?.before.get(rule.handle) !== wanted && !this.says(rule, wanted)) return false;
    recognised?.now.set(rule.handle, wanted);
    return true;
  }

  private says({ entry }: FoundRule, wanted: EncodedRule): boolean {
    try {
      return isRule(this.found.place.family, entry, wanted, this.options.indexOf);
    } catch (error) {
      // No rule can ask a set that is no more.
      if (isErrno(error, "ENOENT")) return false;
      throw error;
    }
  }

  private encode(rule: EncodedRule): RawRule {
    const key = rule.causes === undefined ? undefined : lastingKey(rule.causes);
    const counts = key === undefined ? undefined : this.counted.get(key);
    // Once: several rules may count for the same policy rule.
    if (counts !== undefined) this.counted.delete(key!);
    return { ...expressionsOf(rule, this.found.place.family, this.options.indexOf, counts), userdata: MARK };
  }

  private gatherCounts(): void {
    const { found: { place, chains }, wanted, options: { before } } = this;
    const { counters } = LAYOUTS[place.family];
    for (const { name, rules } of chains.values()) {
      const last = before?.chains.get(name);
      if (last === undefined || wanted.chains.has(name) || last.length !== rules.length) continue;
      last.forEach(({ causes }, i) => {
        const key = causes === undefined ? undefined : lastingKey(causes);
        const { bytes } = rules[i]!.entry;
        if (key === undefined || bytes.length < counters + 16) return;
        const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
        const packets = view.getBigUint64(counters, true), sum = this.counted.get(key) ?? NO_COUNTS;
        if (packets === 0n) return;
        const counted = view.getBigUint64(counters + 8, true);
        this.counted.set(key, { packets: sum.packets + packets, bytes: sum.bytes + counted });
      });
    }
  }

  /** What goes of a chain of ours and is not ours is put where it does nothing. @throws {TableError} where it cannot be moved */
  private keepStrays(
    chain: FoundChain,
    removed: readonly FoundRule[],
    wanted: readonly EncodedRule[] | undefined,
  ): void {
    // A chain that a tool has made anew holds what was saved of ours, unless it should hold something else.
    if (wanted === undefined && !chain.isMarked) return;
    const ours = [...wanted ?? [], ...this.options.before?.chains.get(chain.name) ?? []];
    const strays = removed.filter((rule) => !rule.isMarked && !ours.some((one) => this.isSame(rule, one)));
    if (strays.length === 0) return;
    if (strays.some(({ isBound }) => isBound)) {
      throw new TableError(
        `write ${this.title}: found a rule of somebody else in chain ${chain.name} that cannot be moved, because a set belongs to it alone; ` +
          "wanted no rules of others there: it is left as it is",
      );
    }
    if (!this.keeps && !this.found.chains.has(KEPT_CHAIN)) {
      this.made.push(newChain(this.at, KEPT_CHAIN));
      this.chainsMade++;
    }
    this.keeps = true;
    for (const { expressions, userdata, leadsTo } of strays) {
      this.edits.push(addRawRule(this.at, KEPT_CHAIN, { expressions, ...userdata === undefined ? {} : { userdata } }));
      if (leadsTo !== undefined) this.released.set(leadsTo, (this.released.get(leadsTo) ?? 0) - 1);
    }
    this.notes.push(
      `found ${strays.length} rules of somebody else in chain ${chain.name} of ${this.title}: ` +
        `moved to chain ${KEPT_CHAIN}, which nothing leads to`,
    );
  }

  private release({ leadsTo }: FoundRule): void {
    if (leadsTo !== undefined) this.released.set(leadsTo, (this.released.get(leadsTo) ?? 0) + 1);
  }

  private dropChains(): void {
    const dropped = [...this.found.chains.values()].filter(({ name }) => isOurs(name) && !this.wanted.chains.has(name));
    for (const chain of dropped) {
      for (const rule of chain.rules) this.release(rule);
      this.keepStrays(chain, chain.rules, undefined);
      if (chain.rules.length > 0) this.edits.push(flushChain(this.at, chain.name));
    }
    for (const { name, use, rules } of dropped) {
      const others = use === undefined ? 0 : use - rules.length - (this.released.get(name) ?? 0);
      if (others <= 0) {
        this.gone.push(deleteChain(this.at, name));
        this.chainsGone++;
      } else {
        this.notes.push(
          `delete chain ${name} of ${this.title}: found ${others} rules of somebody else that lead to it, wanted none: ` +
            "it stays, empty; tried again later",
        );
      }
    }
  }

  // ------------------------------------------------------------------------------------------------- chains of the kernel's hooks

  private hooks(): void {
    const { found, wanted } = this;
    for (const [name, jump] of wanted.hooks) {
      const chain = found.chains.get(name);
      if (chain !== undefined) this.hook(chain, jump);
      else {
        const definition = BASE_CHAINS[found.place.table][name];
        if (definition === undefined) throw new TableError(`write ${this.title}: it has no chain ${name}`);
        this.made.push(newMarkedChain(this.at, name, MARK, definition));
        this.chainsMade++;
        this.edits.push(addRawRule(this.at, name, this.encode(jump)));
      }
    }
    for (const chain of found.chains.values()) {
      if (!isOurs(chain.name) && !wanted.hooks.has(chain.name)) this.hook(chain, undefined);
    }
  }

  /** Our jump stands where it belongs, once, and what else leads to chains of ours that are no more goes. */
  private hook(chain: FoundChain, jump: EncodedRule | undefined): void {
    const { name, rules } = chain;
    const insert = this.options.position === "insert";
    const place = insert ? 0 : rules.length - 1;
    // Where it belongs, or else wherever it is.
    const own = rules.filter((rule) => jump !== undefined && this.isSame(rule, jump));
    const stays = rules[place] !== undefined && own.includes(rules[place]) ? rules[place] : undefined;
    const remaining: FoundRule[] = [];
    for (const rule of rules) {
      if (rule === stays || !own.includes(rule) && !this.isLeft(rule)) {
        remaining.push(rule);
        continue;
      }
      this.edits.push(deleteRule(this.at, name, rule.handle));
      this.release(rule);
    }
    if (jump !== undefined && stays === undefined) {
      // With its counters, where it is moved.
      const rule = own[0] === undefined ? this.encode(jump) : { expressions: own[0].expressions, userdata: MARK };
      this.edits.push(addRawRule(this.at, name, rule, insert ? remaining[0]?.handle : undefined));
    } else if (jump === undefined && chain.isMarked && remaining.length === 0 && chain.base?.policy === "accept") {
      this.gone.push(deleteChain(this.at, name));
      this.chainsGone++;
    }
  }

  /** Whether a rule of another chain is one of ours that is no longer wanted there. */
  private isLeft({ isMarked, leadsTo, names }: FoundRule): boolean {
    if (leadsTo === undefined || !isOurs(leadsTo)) return false;
    if (isMarked) return true;
    // A bare jump to a chain of ours that goes is ours too: whoever saved and restored the table has lost its mark.
    return !this.wanted.chains.has(leadsTo) && names?.join() === BARE_JUMP;
  }

  private noteUnlisted(): void {
    const others = [...this.found.chains.values()].filter(({ name }) => !isOurs(name));
    const unlisted = others.flatMap(({ name, rules }) =>
      rules.flatMap(({ names }) => (names ?? ["that cannot be read"]).filter((one) => !LISTED.has(one)))
        .map((one) => `${one} in chain ${name}`)
    );
    if (unlisted.length === 0) return;
    this.notes.push(
      `found an expression ${
        unlisted[0]
      } of ${this.title}, wanted only what iptables-nft can list: ours are in force all the same`,
    );
  }
}

const NO_COUNTS: Counts = { packets: 0n, bytes: 0n };
const BARE_JUMP = ["counter", "immediate"].join();
/** Rules that were moved further than this over others begin anew. */
const LOOK_AHEAD = 64;
