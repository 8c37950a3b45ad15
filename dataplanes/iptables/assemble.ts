/** Chains put together to a table as the kernel takes it, with the counters that its rules go on with. Pure. */
import type { XtablesInfo } from "../../src/sdk/kernel_door.ts";
import { encodeChainEnd, encodeChainHead, type EncodedRule, nameChainHead } from "./entry.ts";
import { EXTENSION_HEADER_BYTES, LAYOUTS } from "./entry_layout.ts";
import { lastingKey } from "./counters.ts";
import type { Chain, Entry, ParsedTable, PlanOptions, WantedTable } from "./table.ts";

export interface NewTable {
  readonly info: XtablesInfo;
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** For each new entry, the old one whose counters it goes on with; -1 where it begins. */
  readonly counters: Int32Array;
  /** Further counters to go on with: new entry, old entry. */
  readonly more: readonly (readonly [number, number])[];
  /** What was found that should not be there, one line each. */
  readonly notes: readonly string[];
}

/** Chains and what is in them, before they have places. */
export interface Draft {
  readonly name: string;
  readonly hook: number | undefined;
  /** Undefined of a built-in chain, and of a new one. */
  readonly head: Entry | undefined;
  readonly rules: (Entry | OwnRule)[] | OwnRules;
  /** Undefined of a new one. */
  readonly tail: Entry | undefined;
}
export interface OwnRule {
  readonly rule: EncodedRule;
  /** Whose counters it goes on with. */
  readonly before: number;
}
/** Of a chain of ours. */
export interface OwnRules {
  readonly wanted: readonly EncodedRule[];
  /** For each of them, whose counters it goes on with; undefined: all begin. */
  readonly before: readonly number[] | undefined;
}

/** A rule that goes on with one more counter. */
interface MovedCounter {
  readonly rule: EncodedRule;
  /** Place of the old entry. */
  readonly old: number;
}

/** A list that changes has other chains: its rules that decide what others before have decided go on with their counters. */
export class CounterMoves {
  /** Counters of chains that go, by what they count. */
  private readonly left = new Map<string, number[]>();
  /** New rule, old entry. */
  readonly more: MovedCounter[] = [];

  constructor(found: ReadonlyMap<string, Chain>, wanted: WantedTable, before: WantedTable | undefined) {
    if (before === undefined) return;
    for (const [name, { rules }] of found) {
      const counted = before.chains.get(name);
      if (wanted.chains.has(name) || counted?.length !== rules.length) continue;
      counted.forEach(({ causes }, i) => {
        const key = causes === undefined ? undefined : lastingKey(causes);
        if (key === undefined) return;
        const { index } = rules[i]!, same = this.left.get(key);
        if (same === undefined) this.left.set(key, [index]);
        else same.push(index);
      });
    }
  }

  /** For each rule of a new chain, whose counter it goes on with; the first to ask has them all. */
  take(wanted: readonly EncodedRule[]): readonly number[] | undefined {
    if (this.left.size === 0) return undefined;
    return wanted.map((rule) => {
      const key = rule.causes === undefined ? undefined : lastingKey(rule.causes);
      const all = key === undefined ? undefined : this.left.get(key);
      if (all === undefined) return -1;
      this.left.delete(key!);
      for (const old of all.slice(1)) this.more.push({ rule, old });
      return all[0]!;
    });
  }
}

/** The table of these chains: places, bytes, and whose counters its entries go on with. */
export function assemble(
  { family, info, end }: ParsedTable,
  drafts: readonly Draft[],
  more: readonly MovedCounter[],
  { indexOf }: PlanOptions,
): Omit<NewTable, "notes"> {
  const layout = LAYOUTS[family];
  const newHead = encodeChainHead(family), newTail = encodeChainEnd(family);
  const starts = new Map<string, number>();
  const hookEntry = [...info.hookEntry], underflow = [...info.underflow];
  let sizeBytes = 0, entryCount = 0;
  for (const { name, hook, head, rules, tail } of drafts) {
    if (hook === undefined) {
      sizeBytes += head === undefined ? newHead.length : head.bytes.length;
      entryCount++;
    }
    starts.set(name, sizeBytes);
    if (hook !== undefined) hookEntry[hook] = sizeBytes;
    if ("wanted" in rules) {
      for (const rule of rules.wanted) sizeBytes += rule.sizeBytes;
      entryCount += rules.wanted.length + 1;
    } else {
      for (const one of rules) sizeBytes += "rule" in one ? one.rule.sizeBytes : one.bytes.length;
      entryCount += rules.length + 1;
    }
    if (hook !== undefined) underflow[hook] = sizeBytes;
    sizeBytes += tail === undefined ? newTail.length : tail.bytes.length;
  }
  sizeBytes += end.bytes.length;
  entryCount++;

  const bytes = new Uint8Array(new ArrayBuffer(sizeBytes));
  const view = new DataView(bytes.buffer);
  const counters = new Int32Array(entryCount).fill(-1);
  const moved = new Map(more.map(({ rule }) => [rule, -1]));
  let at = 0, index = 0;
  const placeOf = (chain: string) => {
    const place = starts.get(chain);
    if (place === undefined) throw new Error(`a rule leads to chain ${chain}, which is not in the table`);
    return place;
  };
  /** A standard target ends its rule, and its verdict is the first half of its last 8 bytes. */
  const fill = (start: number, { sizeBytes, chain, sets }: EncodedRule) => {
    if (chain !== undefined) view.setInt32(start + sizeBytes - 8, placeOf(chain), true);
    for (const { offset, set } of sets) view.setUint16(start + offset, indexOf(set), true);
  };
  const putEntry = ({ bytes: entry, index: before, leads }: Entry) => {
    bytes.set(entry, at);
    const targetAt = at + view.getUint16(at + layout.targetOffset, true) + EXTENSION_HEADER_BYTES;
    at += entry.length;
    counters[index++] = before;
    if (leads === "next") view.setInt32(targetAt, at, true);
    else if (leads !== undefined) view.setInt32(targetAt, placeOf(leads.name), true);
  };
  const putOwn = (rule: EncodedRule, before: number) => {
    bytes.set(rule.bytes, at);
    fill(at, rule);
    at += rule.sizeBytes;
    counters[index++] = before;
  };
  /** Rules that lie one behind the other are copied at once. */
  const putAll = ({ wanted, before }: OwnRules) => {
    for (let from = 0; from < wanted.length;) {
      const { block, start } = wanted[from]!;
      let to = from, last = start;
      for (; to < wanted.length && wanted[to]!.block === block && wanted[to]!.start === last; to++) {
        const rule = wanted[to]!;
        last += rule.sizeBytes;
        if (before !== undefined) counters[index] = before[to]!;
        if (moved.size > 0 && moved.has(rule)) moved.set(rule, index);
        index++;
      }
      bytes.set(block.subarray(start, last), at);
      for (let i = from; i < to; i++) fill(at + wanted[i]!.start - start, wanted[i]!);
      at += last - start;
      from = to;
    }
  };
  const putNew = (one: Uint8Array) => {
    bytes.set(one, at);
    at += one.length;
    index++;
  };
  for (const { name, hook, head, rules, tail } of drafts) {
    if (head !== undefined) putEntry(head);
    else if (hook === undefined) {
      const start = at;
      putNew(newHead);
      nameChainHead(bytes, start, name, family);
    }
    if ("wanted" in rules) putAll(rules);
    else for (const one of rules) "rule" in one ? putOwn(one.rule, one.before) : putEntry(one);
    if (tail !== undefined) putEntry(tail);
    else putNew(newTail);
  }
  putEntry(end);
  return {
    info: { ...info, hookEntry, underflow, entryCount, sizeBytes },
    bytes,
    counters,
    more: more.map(({ rule, old }) => [moved.get(rule)!, old] as const),
  };
}

const COUNTER_BYTES = 16;

/** What to add to the new table's counters, from those that the old one had at its end. Undefined: nothing has been counted. */
export function countersToAdd(
  { counters, more }: Pick<NewTable, "counters" | "more">,
  last: Uint8Array<ArrayBuffer>,
): Uint8Array<ArrayBuffer> | undefined {
  const from = new Int32Array(last.buffer, last.byteOffset, last.length >> 2);
  if (from.every((word) => word === 0)) return undefined;
  const bytes = new Uint8Array(new ArrayBuffer(counters.length * COUNTER_BYTES));
  const words = new Int32Array(bytes.buffer);
  for (let i = 0; i < counters.length; i++) {
    const before = counters[i]!;
    if (before >= 0) { for (let word = 0; word < 4; word++) words[4 * i + word] = from[4 * before + word]!; }
  }
  const old = new BigUint64Array(last.buffer, last.byteOffset, last.length >> 3),
    sums = new BigUint64Array(bytes.buffer);
  for (const [i, before] of more) {
    sums[2 * i]! += old[2 * before]!;
    sums[2 * i + 1]! += old[2 * before + 1]!;
  }
  return bytes;
}
