/**
 * A table of legacy iptables as the kernel gives it, taken apart into chains and put together again with other chains of ours.
 * What is not ours is carried as bytes: of a foreign rule only the size, the target and where it jumps are read. Pure.
 */
import type { Family } from "../../src/model/address.ts";
import type { XtablesInfo } from "../../src/sdk/kernel_door.ts";
import {
  encodeChainEnd,
  encodeChainHead,
  type EncodedRule,
  EXTENSION_HEADER_BYTES,
  EXTENSION_NAME_BYTES,
  LAYOUTS,
  OWN_MARK,
} from "./entry.ts";
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

export interface NewTable {
  readonly info: XtablesInfo;
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** For each new entry, the old one whose counters it goes on with; -1 where it begins. */
  readonly counters: Int32Array;
  /** What was found that should not be there, one line each. */
  readonly notes: readonly string[];
}

/** Rules of strangers that were found in chains of ours go here; nothing leads to it. */
const KEPT_CHAIN = "kept-from-manx";
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
    | { name: string; hook: number | undefined; head: Entry | undefined; rules: Entry[]; start: number }
    | undefined;
  let end: Entry | undefined;
  const close = (at: number) => {
    if (open === undefined) return;
    const { start, ...chain } = open;
    const tail = chain.rules.pop();
    if (tail === undefined) throw wrong(at, `chain ${open.name} without an end`, "a rule that ends it");
    if (open.hook !== undefined && tail.bytes.byteOffset - bytes.byteOffset !== info.underflow[open.hook]) {
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
    const entry: Entry = { bytes: bytes.subarray(at, at + size), index, leads: undefined };
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
export function sameRules(one: ParsedTable, infoNow: XtablesInfo, bytesNow: Uint8Array): boolean {
  const { info, bytes, family } = one;
  if (
    info.sizeBytes !== infoNow.sizeBytes || info.entryCount !== infoNow.entryCount ||
    info.hookEntry.some((at, i) => at !== infoNow.hookEntry[i]) ||
    info.underflow.some((at, i) => at !== infoNow.underflow[i])
  ) return false;
  const { comefrom, headerBytes, nextOffset } = LAYOUTS[family];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0; at < bytes.length;) {
    const size = view.getUint16(at + nextOffset, true);
    for (let i = at; i < at + comefrom; i++) if (bytes[i] !== bytesNow[i]) return false;
    for (let i = at + headerBytes; i < at + size; i++) if (bytes[i] !== bytesNow[i]) return false;
    at += size;
  }
  return true;
}

/** Whether an entry says what the rule says. The mark by which we know our own is not looked at: whoever saves and restores a table loses it. */
export function isRule(
  family: Family,
  { bytes, leads }: Entry,
  rule: EncodedRule,
  indexOf: (set: string) => number,
): boolean {
  const wanted = rule.bytes;
  if (bytes.length !== wanted.length) return false;
  if ((leads === undefined ? undefined : leads === "next" ? "" : leads.name) !== rule.chain) return false;
  const { nfcache, targetOffset, headerBytes } = LAYOUTS[family];
  for (let i = 0; i < nfcache; i++) if (bytes[i] !== wanted[i]) return false;
  for (let i = targetOffset; i < targetOffset + 4; i++) if (bytes[i] !== wanted[i]) return false;
  // The place that a jump leads to is compared by name.
  const last = rule.chain === undefined ? bytes.length : bytes.length - 8;
  if (rule.sets.length === 0) {
    for (let i = headerBytes; i < last; i++) if (bytes[i] !== wanted[i]) return false;
    return true;
  }
  for (let i = headerBytes; i < last; i++) {
    if (bytes[i] === wanted[i]) continue;
    if (!rule.sets.some(({ offset }) => i === offset || i === offset + 1)) return false;
  }
  return rule.sets.every(({ offset, set }) => (bytes[offset]! | bytes[offset + 1]! << 8) === indexOf(set));
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
}

/** Chains and what is in them, before they have places. */
interface Draft {
  readonly name: string;
  readonly hook: number | undefined;
  readonly head: Entry | Uint8Array<ArrayBuffer> | undefined;
  readonly rules: (Entry | OwnRule)[];
  readonly tail: Entry | Uint8Array<ArrayBuffer>;
}
interface OwnRule {
  readonly rule: EncodedRule;
  /** Whose counters it goes on with. */
  readonly before: number;
}

/** The table with what is wanted of ours in the place of what is there of ours; undefined: it is so already. */
export function planTable(found: ParsedTable, wanted: WantedTable, options: PlanOptions): NewTable | undefined {
  const { family } = found;
  const notes: string[] = [];
  const strays: Entry[] = [];
  let changed = false;
  const kept = new Map<string, Chain>();
  for (const chain of found.chains) {
    if (!isOurs(chain.name)) continue;
    const rules = wanted.chains.get(chain.name);
    kept.set(chain.name, chain);
    if (rules === undefined) changed = true;
    else if (
      rules.length !== chain.rules.length ||
      !rules.every((rule, i) => isRule(family, chain.rules[i]!, rule, options.indexOf))
    ) changed = true;
    else continue;
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
  if (strays.length > 0) keep(drafts, strays, family);
  const ours = [...wanted.chains.keys()].sort().map((name): Draft => ({
    name,
    hook: undefined,
    head: kept.get(name)?.head ?? encodeChainHead(name, family),
    rules: ownRules(family, wanted.chains.get(name)!, kept.get(name), options),
    tail: kept.get(name)?.tail ?? encodeChainEnd(family),
  }));
  // Tools look for chains by name among sorted ones.
  let at = drafts.findIndex(({ name, hook }) => hook === undefined && name > OURS);
  if (at < 0) at = drafts.length;
  drafts.splice(at, 0, ...ours);
  return { ...assemble(found, drafts, options), notes };
}

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

function keep(drafts: Draft[], strays: readonly Entry[], family: Family): void {
  // A rule that leads to a chain of ours may lead nowhere soon.
  const rules = strays.filter(({ leads }) => typeof leads !== "object" || !isOurs(leads.name));
  const there = drafts.find(({ name }) => name === KEPT_CHAIN);
  if (there !== undefined) return void there.rules.push(...rules);
  let at = drafts.findIndex(({ name, hook }) => hook === undefined && name > KEPT_CHAIN);
  if (at < 0) at = drafts.length;
  drafts.splice(at, 0, {
    name: KEPT_CHAIN,
    hook: undefined,
    head: encodeChainHead(KEPT_CHAIN, family),
    rules: [...rules],
    tail: encodeChainEnd(family),
  });
}

/** Rules that stay keep their counters, wherever in the chain they go. */
function ownRules(
  family: Family,
  wanted: readonly EncodedRule[],
  before: Chain | undefined,
  { indexOf }: PlanOptions,
): OwnRule[] {
  if (before === undefined) return wanted.map((rule) => ({ rule, before: -1 }));
  const old = before.rules;
  let from = 0;
  return wanted.map((rule) => {
    // In order: a rule that was moved over another begins anew.
    for (let at = from; at < Math.min(old.length, from + LOOK_AHEAD); at++) {
      if (!isRule(family, old[at]!, rule, indexOf)) continue;
      from = at + 1;
      return { rule, before: old[at]!.index };
    }
    return { rule, before: -1 };
  });
}
const LOOK_AHEAD = 64;

// -------------------------------------------------------------------------------------------------------------- assembling

const bytesOf = (one: Entry | Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> =>
  one instanceof Uint8Array ? one : one.bytes;

function assemble(
  { family, info, end }: ParsedTable,
  drafts: readonly Draft[],
  { indexOf }: PlanOptions,
): Omit<NewTable, "notes"> {
  const layout = LAYOUTS[family];
  const starts = new Map<string, number>();
  const hookEntry = [...info.hookEntry], underflow = [...info.underflow];
  let sizeBytes = 0, entryCount = 0;
  for (const { name, hook, head, rules, tail } of drafts) {
    if (head !== undefined) {
      sizeBytes += bytesOf(head).length;
      entryCount++;
    }
    starts.set(name, sizeBytes);
    if (hook !== undefined) hookEntry[hook] = sizeBytes;
    for (const one of rules) sizeBytes += "rule" in one ? one.rule.bytes.length : one.bytes.length;
    if (hook !== undefined) underflow[hook] = sizeBytes;
    sizeBytes += bytesOf(tail).length;
    entryCount += rules.length + 1;
  }
  sizeBytes += end.bytes.length;
  entryCount++;

  const bytes = new Uint8Array(new ArrayBuffer(sizeBytes));
  const view = new DataView(bytes.buffer);
  const counters = new Int32Array(entryCount).fill(-1);
  let at = 0, index = 0;
  const put = (one: Uint8Array<ArrayBuffer>, before: number) => {
    bytes.set(one, at);
    counters[index++] = before;
    at += one.length;
  };
  const lead = (start: number, place: number) => {
    const targetAt = view.getUint16(start + layout.targetOffset, true);
    view.setInt32(start + targetAt + EXTENSION_HEADER_BYTES, place, true);
  };
  const putEntry = (entry: Entry) => {
    const start = at;
    put(entry.bytes, entry.index);
    if (entry.leads === "next") lead(start, at);
    else if (entry.leads !== undefined) lead(start, starts.get(entry.leads.name)!);
  };
  const putOther = (one: Entry | Uint8Array<ArrayBuffer>) => one instanceof Uint8Array ? put(one, -1) : putEntry(one);
  for (const { head, rules, tail } of drafts) {
    if (head !== undefined) putOther(head);
    for (const one of rules) {
      if (!("rule" in one)) {
        putEntry(one);
        continue;
      }
      const start = at;
      put(one.rule.bytes, one.before);
      if (one.rule.chain !== undefined) {
        const place = starts.get(one.rule.chain);
        if (place === undefined) throw new Error(`a rule leads to chain ${one.rule.chain}, which is not in the table`);
        lead(start, place);
      }
      for (const { offset, set } of one.rule.sets) view.setUint16(start + offset, indexOf(set), true);
    }
    putOther(tail);
  }
  putEntry(end);
  return { info: { ...info, hookEntry, underflow, entryCount, sizeBytes }, bytes, counters };
}

const COUNTER_BYTES = 16;

/** What to add to the new table's counters, from those that the old one had at its end. */
export function countersToAdd({ counters }: Pick<NewTable, "counters">, last: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(new ArrayBuffer(counters.length * COUNTER_BYTES));
  counters.forEach((before, i) => {
    if (before >= 0) bytes.set(last.subarray(before * COUNTER_BYTES, (before + 1) * COUNTER_BYTES), i * COUNTER_BYTES);
  });
  return bytes;
}

/** Whether there is anything of ours in it. */
export const hasOurs = ({ chains }: ParsedTable): boolean =>
  chains.some(({ name, rules }) =>
    isOurs(name) || rules.some(({ leads }) => typeof leads === "object" && isOurs(leads.name))
  );
