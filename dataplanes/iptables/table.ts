/**
 * A table of legacy iptables as the kernel gives it, taken apart into chains and put together again with other chains of ours.
 * What is not ours is carried as bytes: of a foreign rule only the size, the target and where it jumps are read. Pure.
 */
import type { Family } from "../../src/model/address.ts";
import type { XtablesInfo } from "../../src/sdk/kernel_door.ts";
import type { EncodedRule } from "./entry.ts";
import { EXTENSION_HEADER_BYTES, EXTENSION_NAME_BYTES, LAYOUTS, OWN_MARK } from "./entry_layout.ts";
import { assemble, CounterMoves, type Draft, type NewTable, type OwnRule, type OwnRules } from "./assemble.ts";
import { HOOK_NAMES, OURS } from "./ruleset.ts";

/** The bytes of a table make no sense to us: it is not touched. */
export class TableError extends Error {
  override readonly name = "TableError";
}

type Leads =
  /** A target of its own, or a verdict that is no place. */
  | undefined
  /** On to the next rule: a rule without a target. */
  | "next"
  | Chain;

export interface Entry {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Place among all entries of the table: where its counters are. */
  readonly index: number;
  leads: Leads;
}

/** One of thousands: its bytes are looked at only where something has changed. */
class FoundEntry implements Entry {
  leads: Leads = undefined;
  private own: Uint8Array<ArrayBuffer> | undefined;

  constructor(
    private readonly table: Uint8Array<ArrayBuffer>,
    readonly start: number,
    readonly sizeBytes: number,
    readonly index: number,
  ) {}

  get bytes(): Uint8Array<ArrayBuffer> {
    return this.own ??= this.table.subarray(this.start, this.start + this.sizeBytes);
  }
}

export interface Chain {
  readonly name: string;
  /** Of enum nf_inet_hooks; undefined: a chain that somebody made. */
  readonly hook: number | undefined;
  readonly head: Entry | undefined;
  readonly rules: Entry[];
  /** The policy, or the return at the end. */
  readonly tail: Entry;
}

export interface ParsedTable {
  readonly family: Family;
  readonly info: XtablesInfo;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly chains: readonly Chain[];
  /** The error entry that ends a table. */
  readonly end: Entry;
}

/** What of ours is to be in a table. */
export interface WantedTable {
  readonly chains: ReadonlyMap<string, readonly EncodedRule[]>;
  /** Built-in chain → the rule that leads to a chain of ours. */
  readonly hooks: ReadonlyMap<string, EncodedRule>;
}

/** Rules of strangers that were found in chains of ours go here; nothing leads to it. */
export const KEPT_CHAIN = "kept-from-manx";
const ERROR = "ERROR";

/** @throws {TableError} */
export function parseTable(family: Family, info: XtablesInfo, bytes: Uint8Array<ArrayBuffer>): ParsedTable {
  const layout = LAYOUTS[family];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const wrong = (at: number, found: string, wanted: string) =>
    new TableError(
      `read table ${info.table} of ip${
        family === 6 ? "6" : ""
      }tables at byte ${at}: found ${found}, wanted ${wanted}: it is left as it is`,
    );
  const hooks = new Map<number, number>();
  info.hookEntry.forEach((offset, hook) => {
    if ((info.validHooks & 1 << hook) === 0) return;
    if (hooks.has(offset)) throw wrong(offset, "two hooks at one rule", "one");
    hooks.set(offset, hook);
  });
  const chains: Chain[] = [];
  const starts = new Map<number, Chain>();
  const jumps: { readonly entry: Entry; readonly at: number; readonly verdict: number }[] = [];
  let open:
    | { name: string; hook: number | undefined; head: Entry | undefined; rules: FoundEntry[]; start: number }
    | undefined;
  let end: Entry | undefined;
  const close = (at: number) => {
    if (open === undefined) return;
    const { start, ...chain } = open;
    const tail = chain.rules.pop();
    if (tail === undefined) throw wrong(at, `chain ${open.name} without an end`, "a rule that ends it");
    if (open.hook !== undefined && tail.start !== info.underflow[open.hook]) {
      throw wrong(at, `the policy of ${open.name} elsewhere than at its end`, "it there");
    }
    if (tail.leads !== undefined) throw wrong(at, `chain ${open.name} that ends in a jump`, "a verdict");
    const closed = { ...chain, tail };
    chains.push(closed);
    starts.set(start, closed);
    open = undefined;
  };

  for (let at = 0, index = 0; at < bytes.length; index++) {
    if (bytes.length - at < layout.headerBytes) throw wrong(at, `${bytes.length - at} bytes`, "a whole rule");
    const targetAt = view.getUint16(at + layout.targetOffset, true),
      size = view.getUint16(at + layout.nextOffset, true);
    if (
      size > bytes.length - at || targetAt < layout.headerBytes || targetAt + EXTENSION_HEADER_BYTES > size
    ) throw wrong(at, `a rule of ${size} bytes with its target at ${targetAt}`, `within ${bytes.length - at}`);
    const entry = new FoundEntry(bytes, at, size, index);
    const name = textAt(bytes, at + targetAt + 2, EXTENSION_NAME_BYTES);
    if (end !== undefined) throw wrong(at, "a rule after the end", "nothing");
    if (name === ERROR) {
      close(at);
      if (at + size === bytes.length) end = entry;
      else {
        const chain = textAt(bytes, at + targetAt + EXTENSION_HEADER_BYTES, size - targetAt - EXTENSION_HEADER_BYTES);
        open = { name: chain, hook: undefined, head: entry, rules: [], start: at + size };
      }
    } else {
      const hook = hooks.get(at);
      if (hook !== undefined) {
        close(at);
        open = { name: HOOK_NAMES[hook]!, hook, head: undefined, rules: [], start: at };
      }
      if (open === undefined) throw wrong(at, "a rule in no chain", "a chain");
      if (name === "") {
        const verdict = view.getInt32(at + targetAt + EXTENSION_HEADER_BYTES, true);
        if (verdict === at + size) entry.leads = "next";
        else if (verdict >= 0) jumps.push({ entry, at, verdict });
      }
      open.rules.push(entry);
    }
    at += size;
  }
  if (end === undefined) throw wrong(bytes.length, "no end", "an error entry there");
  for (const { entry, at, verdict } of jumps) {
    const chain = starts.get(verdict);
    if (chain === undefined) throw wrong(at, `a jump to byte ${verdict}`, "one to the beginning of a chain");
    entry.leads = chain;
  }
  // What ends a chain may have been read as a jump before that was known.
  for (const { tail, name } of chains) {
    if (tail.leads !== undefined) throw wrong(0, `chain ${name} that ends in a jump`, "a verdict");
  }
  return { family, info, bytes, chains, end };
}

function textAt(bytes: Uint8Array, at: number, roomBytes: number): string {
  let text = "";
  for (let i = at; i < at + roomBytes && bytes[i] !== 0; i++) text += String.fromCharCode(bytes[i]!);
  return text;
}

const isOurs = (name: string): boolean => name.startsWith(OURS);

// ------------------------------------------------------------------------------------------------------------- comparing

/** Whether two readings show the same rules; counters count on meanwhile. */
export function sameRules(
  one: Pick<ParsedTable, "family" | "info" | "bytes">,
  infoNow: XtablesInfo,
  bytesNow: Uint8Array<ArrayBuffer>,
): boolean {
  const { info, bytes, family } = one;
  if (
    info.sizeBytes !== infoNow.sizeBytes || info.entryCount !== infoNow.entryCount ||
    info.hookEntry.some((at, i) => at !== infoNow.hookEntry[i]) ||
    info.underflow.some((at, i) => at !== infoNow.underflow[i])
  ) return false;
  const { comefrom, headerBytes, nextOffset } = LAYOUTS[family];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  // Entries and their parts are aligned to 8 bytes; megabytes of them are compared in words.
  const words = wordsOf(bytes), wordsNow = wordsOf(bytesNow);
  for (let at = 0; at < bytes.length;) {
    const size = view.getUint16(at + nextOffset, true), end = at + size >> 2;
    for (let i = at >> 2; i < at + comefrom >> 2; i++) if (words[i] !== wordsNow[i]) return false;
    for (let i = at + headerBytes >> 2; i < end; i++) if (words[i] !== wordsNow[i]) return false;
    at += size;
  }
  return true;
}

const wordsOf = (bytes: Uint8Array<ArrayBuffer>): Int32Array =>
  new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);

/** Whether an entry says what the rule says. The mark by which we know our own is not looked at: whoever saves and restores a table loses it. */
export function isRule(
  family: Family,
  { bytes, leads }: Entry,
  rule: EncodedRule,
  indexOf: (set: string) => number,
): boolean {
  const { block: wanted, start, sizeBytes, chain, sets } = rule;
  if (bytes.length !== sizeBytes) return false;
  if ((leads === undefined ? undefined : leads === "next" ? "" : leads.name) !== chain) return false;
  const { nfcache, targetOffset, headerBytes } = LAYOUTS[family];
  for (let i = 0; i < nfcache; i++) if (bytes[i] !== wanted[start + i]) return false;
  for (let i = targetOffset; i < targetOffset + 4; i++) if (bytes[i] !== wanted[start + i]) return false;
  // The place that a jump leads to is compared by name.
  const last = chain === undefined ? sizeBytes : sizeBytes - 8;
  if (sets.length === 0) {
    for (let i = headerBytes; i < last; i++) if (bytes[i] !== wanted[start + i]) return false;
    return true;
  }
  for (let i = headerBytes; i < last; i++) {
    if (bytes[i] === wanted[start + i]) continue;
    if (!sets.some(({ offset }) => i === offset || i === offset + 1)) return false;
  }
  return sets.every(({ offset, set }) => (bytes[offset]! | bytes[offset + 1]! << 8) === indexOf(set));
}

const hasOwnMark = (family: Family, { bytes }: Entry): boolean => {
  const { nfcache } = LAYOUTS[family];
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(nfcache, true) === OWN_MARK;
};

// --------------------------------------------------------------------------------------------------------------- planning

export interface PlanOptions {
  /** Where in a built-in chain our jump stands. */
  readonly position: "insert" | "append";
  /** The kernel's number of a set. */
  readonly indexOf: (set: string) => number;
  /** What was written last: says what its counters count. Absent: not known. */
  readonly before?: WantedTable | undefined;
  /** The table to change is as `before` has made it: chains that stay need not be compared. */
  readonly isAsBefore?: boolean;
}

/** The table with what is wanted of ours in the place of what is there of ours; undefined: it is so already. */
export function planTable(found: ParsedTable, wanted: WantedTable, options: PlanOptions): NewTable | undefined {
  const { family } = found;
  const notes: string[] = [];
  const strays: Entry[] = [];
  let changed = false;
  const kept = new Map<string, Chain>();
  /** Those of them that stay as they are. */
  const same = new Set<string>();
  for (const chain of found.chains) {
    if (!isOurs(chain.name)) continue;
    const rules = wanted.chains.get(chain.name);
    kept.set(chain.name, chain);
    if (rules !== undefined && rules.length === chain.rules.length) {
      if (
        options.isAsBefore && options.before?.chains.get(chain.name) === rules ||
        rules.every((rule, i) => isRule(family, chain.rules[i]!, rule, options.indexOf))
      ) {
        same.add(chain.name);
        continue;
      }
    }
    changed = true;
    const foreign = chain.rules.filter((entry) =>
      !hasOwnMark(family, entry) && !(rules ?? []).some((rule) => isRule(family, entry, rule, options.indexOf))
    );
    if (foreign.length === 0) continue;
    notes.push(
      `found ${foreign.length} rules of somebody else in chain ${chain.name} of ip${
        family === 6 ? "6" : ""
      }tables table ` +
        `${found.info.table}: moved to chain ${KEPT_CHAIN}, which nothing leads to`,
    );
    strays.push(...foreign);
  }
  if ([...wanted.chains.keys()].some((name) => !kept.has(name))) changed = true;

  const drafts: Draft[] = [];
  for (const chain of found.chains) {
    if (isOurs(chain.name)) continue;
    const { rules, moved } = foreignRules(family, chain, wanted, options, notes);
    if (moved) changed = true;
    drafts.push({ ...chain, rules });
  }
  if (!changed) return undefined;
  if (strays.length > 0) keep(drafts, strays);
  const moves = new CounterMoves(kept, wanted, options.before);
  const ours = [...wanted.chains.keys()].sort().map((name): Draft => {
    const before = kept.get(name), rules = wanted.chains.get(name)!;
    const { head, tail } = before ?? NEW_CHAIN;
    const own = before !== undefined && same.has(name)
      ? { wanted: rules, before: before.rules.map(({ index }) => index) }
      : ownRules(family, rules, before, moves, options);
    return { name, hook: undefined, head, tail, rules: own };
  });
  // Tools look for chains by name among sorted ones.
  let at = drafts.findIndex(({ name, hook }) => hook === undefined && name > OURS);
  if (at < 0) at = drafts.length;
  drafts.splice(at, 0, ...ours);
  return { ...assemble(found, drafts, moves.more, options), notes };
}

const NEW_CHAIN = { head: undefined, tail: undefined } as const;

/** A foreign chain's rules: without what leads to chains of ours that are no more, and with our jump where it belongs. */
function foreignRules(
  family: Family,
  chain: Chain,
  wanted: WantedTable,
  { position, indexOf }: PlanOptions,
  notes: string[],
): { rules: (Entry | OwnRule)[]; moved: boolean } {
  const hook = chain.hook === undefined ? undefined : wanted.hooks.get(chain.name);
  let before = -1, moved = false;
  const rules: (Entry | OwnRule)[] = [];
  chain.rules.forEach((entry, i) => {
    const { leads } = entry;
    if (typeof leads !== "object" || !isOurs(leads.name)) return void rules.push(entry);
    if (hook !== undefined && isRule(family, entry, hook, indexOf)) {
      if (before >= 0) moved = true;
      else {
        before = entry.index;
        if (i !== (position === "insert" ? 0 : chain.rules.length - 1)) moved = true;
      }
    } else if (wanted.chains.has(leads.name) && !hasOwnMark(family, entry)) rules.push(entry);
    else {
      moved = true;
      if (!hasOwnMark(family, entry) && wanted.chains.size > 0) {
        notes.push(
          `removed a rule of somebody else in chain ${chain.name} that led to chain ${leads.name}, which is no more`,
        );
      }
    }
  });
  if (hook !== undefined) {
    if (before < 0) moved = true;
    const own = { rule: hook, before };
    if (position === "insert") rules.unshift(own);
    else rules.push(own);
  }
  return { rules, moved };
}

function keep(drafts: Draft[], strays: readonly Entry[]): void {
  // A rule that leads to a chain of ours may lead nowhere soon.
  const rules = strays.filter(({ leads }) => typeof leads !== "object" || !isOurs(leads.name));
  const there = drafts.find(({ name }) => name === KEPT_CHAIN);
  if (there !== undefined) return void (there.rules as Entry[]).push(...rules);
  let at = drafts.findIndex(({ name, hook }) => hook === undefined && name > KEPT_CHAIN);
  if (at < 0) at = drafts.length;
  drafts.splice(at, 0, { name: KEPT_CHAIN, hook: undefined, rules: [...rules], ...NEW_CHAIN });
}

/** Rules that stay keep their counters, wherever in the chain they go. */
function ownRules(
  family: Family,
  wanted: readonly EncodedRule[],
  chain: Chain | undefined,
  moves: CounterMoves,
  { indexOf }: PlanOptions,
): OwnRules {
  if (chain === undefined) return { wanted, before: moves.take(wanted) };
  const old = chain.rules;
  let from = 0;
  const before = wanted.map((rule) => {
    // In order: a rule that was moved over another begins anew.
    for (let at = from; at < Math.min(old.length, from + LOOK_AHEAD); at++) {
      if (!isRule(family, old[at]!, rule, indexOf)) continue;
      from = at + 1;
      return old[at]!.index;
    }
    return -1;
  });
  return { wanted, before };
}
const LOOK_AHEAD = 64;

/** Whether there is anything of ours in it. */
export const hasOurs = ({ chains }: ParsedTable): boolean =>
  chains.some(({ name, rules }) =>
    isOurs(name) || rules.some(({ leads }) => typeof leads === "object" && isOurs(leads.name))
  );
