/**
 * Tables whose chains nf_tables takes: it counts a goto as it counts a jump, and refuses ways of more than 16 chains, where legacy iptables
 * knows no bound. A list of policy that is longer is cut into pieces. A piece that would go on to the next one puts that one's number into the
 * packet's mark instead and returns; a chain in the list's place calls one piece after the other, and returns when no number is left. Pure.
 */
import { goto, jump, type Match, OURS, RETURN, type Rule, rule, type Table, type Target } from "../ruleset.ts";

/** NFT_JUMP_STACK_SIZE of include/net/netfilter/nf_tables.h, less the chain of the hook. */
export const LEVELS_MAX = 15;
/** Chains one below the other in a piece, where the list begins high enough. */
const PIECE_LEVELS = 5;
/** What stands around a piece: the chain that calls it, the one that chooses it, and the one that it leaves by. */
const FRAME_LEVELS = 3;

const LIST = `${OURS}l-`;
const LIST_CHARACTERS = 16;
/** Of those in the names of pieces, which leaves room for numbers. */
const PIECE_CHARACTERS = 12;

type Chains = ReadonlyMap<string, readonly Rule[]>;

interface Cut {
  /** In the place of the list's head. */
  readonly entry: readonly Rule[];
  /** The pieces, and chains that choose and leave them. */
  readonly chains: Chains;
}

export class Bounder {
  private readonly tables = new WeakMap<Table, Table>();
  /** By the rules of a chain: names say what is in the chains below it. */
  private readonly heights = new WeakMap<readonly Rule[], number>();
  private readonly cuts = new WeakMap<readonly Rule[], Map<number, Cut | undefined>>();

  /** @param mask bits of the packet's mark that nothing else uses, and that are 0 where a list begins */
  constructor(private readonly mask: number) {}

  /** The same table where its ways are short enough. A way that cannot be cut stays, and the kernel refuses it. */
  table(table: Table): Table {
    let bounded = this.tables.get(table);
    if (bounded === undefined) this.tables.set(table, bounded = this.bound(table));
    return bounded;
  }

  private bound(table: Table): Table {
    const { chains, hooks } = table;
    const roots = [...hooks.values()];
    if (roots.every((name) => this.height(chains, name) <= LEVELS_MAX)) return table;
    const levels = levelsOf(chains, roots);
    const cut = new Map(chains);
    for (const [name, rules] of chains) {
      const level = levels.get(name);
      if (level === undefined || !name.startsWith(LIST) || level + this.height(chains, name) - 1 <= LEVELS_MAX) {
        continue;
      }
      if (!isHead(chains, levels, name)) continue;
      const pieces = this.cutList(chains, name, rules, Math.min(PIECE_LEVELS, LEVELS_MAX - FRAME_LEVELS + 1 - level));
      if (pieces === undefined) continue;
      cut.set(name, pieces.entry);
      for (const [piece, rules] of pieces.chains) cut.set(piece, rules);
    }
    const used = levelsOf(cut, roots);
    return { ...table, chains: new Map([...cut].filter(([name]) => used.has(name))) };
  }

  private height(chains: Chains, name: string): number {
    const rules = chains.get(name);
    if (rules === undefined) return 0;
    let height = this.heights.get(rules);
    if (height === undefined) {
      height = 1;
      for (const { target } of rules) {
        if ("chain" in target) height = Math.max(height, 1 + this.height(chains, target.chain));
      }
      this.heights.set(rules, height);
    }
    return height;
  }

  private cutList(chains: Chains, head: string, rules: readonly Rule[], levels: number): Cut | undefined {
    let known = this.cuts.get(rules);
    if (known === undefined) this.cuts.set(rules, known = new Map());
    const prefix = `${OURS}k-${head.slice(LIST.length, LIST.length + PIECE_CHARACTERS)}-`;
    if (!known.has(levels)) known.set(levels, this.pieces(chains, head, levels, prefix));
    return known.get(levels);
  }

  /** Undefined: not to be cut so small, or into too many for the bits of the mark. */
  private pieces(chains: Chains, head: string, levels: number, prefix: string): Cut | undefined {
    const made = new Map<string, readonly Rule[]>();
    /** What is jumped to comes back: it belongs to the piece, in pieces of its own where it is long. */
    const jumps = new Map<string, string>();
    const order = inOrder(chains, head);
    /** How deep in its piece each chain is, and how many pieces are before it. */
    const depths = new Map<string, number>([[head, 1]]), rounds = new Map<string, number>([[head, 0]]);
    const begins = new Map<string, number>();
    for (const name of order) {
      let inside = 0;
      for (const one of jumpsOf(chains, name)) {
        const height = this.height(chains, one);
        inside = Math.max(inside, Math.min(height, levels - 1));
        if (height < levels || jumps.has(one)) continue;
        const within = `${prefix}J${jumps.size.toString(36)}`;
        const cut = levels - FRAME_LEVELS > 1 ? this.pieces(chains, one, levels - FRAME_LEVELS - 1, within) : undefined;
        if (cut === undefined) return undefined;
        jumps.set(one, within);
        made.set(within, cut.entry);
        for (const [piece, rules] of cut.chains) made.set(piece, rules);
      }
      if (depths.get(name)! + inside > levels) {
        begins.set(name, begins.size + 1);
        depths.set(name, 1);
        rounds.set(name, rounds.get(name)! + 1);
      }
      for (const next of gotosOf(chains, name)) {
        depths.set(next, Math.max(depths.get(next) ?? 0, depths.get(name)! + 1));
        rounds.set(next, Math.max(rounds.get(next) ?? 0, rounds.get(name)!));
      }
    }
    if (begins.size > numbersIn(this.mask)) return undefined;

    const named = (suffix: string) => `${prefix}${suffix}`;
    // A chain is made anew where it begins a piece, or leads to one that is made anew; the others stay as they are.
    const names = new Map<string, string>();
    for (const name of [...order].reverse()) {
      const leads = gotosOf(chains, name).some((next) => names.has(next)) ||
        jumpsOf(chains, name).some((one) => jumps.has(one));
      if (name === head || begins.has(name) || leads) {
        names.set(name, named(names.size.toString(36)));
      }
    }
    const onward = (target: Target): Target => {
      if (target.target === "jump") return jump(jumps.get(target.chain) ?? target.chain);
      if (target.target !== "goto") return target;
      const number = begins.get(target.chain);
      if (number !== undefined) return goto(named(`T${number.toString(36)}`));
      return goto(names.get(target.chain) ?? target.chain);
    };
    for (const [name, copy] of names) {
      const rules = chains.get(name)!.map((one) =>
        "chain" in one.target ? { ...one, target: onward(one.target) } : one
      );
      made.set(copy, begins.has(name) ? [this.forget, ...rules] : rules);
    }
    const choice = named("R");
    for (const [name, number] of begins) {
      made.set(named(`T${number.toString(36)}`), [
        rule({ target: "mark", value: spread(number, this.mask), mask: this.mask }),
      ]);
      made.set(choice, [...made.get(choice) ?? [], rule(goto(names.get(name)!), ...isNumber(number, this.mask))]);
    }
    const isDone = rule(RETURN, { match: "mark", mask: this.mask, not: true });
    const entry = [this.forget, rule(jump(names.get(head)!))];
    for (let round = Math.max(...rounds.values()); round > 0; round--) entry.push(isDone, rule(jump(choice)));
    return { entry: [...entry, isDone, rule({ target: "drop" })], chains: made };
  }

  private get forget(): Rule {
    return rule({ target: "mark", value: 0, mask: this.mask });
  }
}

/** Whether what leads to it is no part of its list. */
function isHead(chains: Chains, levels: ReadonlyMap<string, number>, name: string): boolean {
  const list = name.slice(0, LIST.length + LIST_CHARACTERS);
  for (const from of levels.keys()) {
    if (from.startsWith(list)) continue;
    if (chains.get(from)!.some(({ target }) => "chain" in target && target.chain === name)) return true;
  }
  return false;
}

const gotosOf = (chains: Chains, name: string): readonly string[] => ledTo(chains, name, "goto");
const jumpsOf = (chains: Chains, name: string): readonly string[] => ledTo(chains, name, "jump");

function ledTo(chains: Chains, name: string, way: "goto" | "jump"): readonly string[] {
  const found: string[] = [];
  for (const { target } of chains.get(name) ?? []) {
    if (target.target === way && "chain" in target && chains.has(target.chain)) found.push(target.chain);
  }
  return found;
}

/** Chains that gotos lead to from `head`, each after all that lead to it. */
function inOrder(chains: Chains, head: string): readonly string[] {
  const order: string[] = [], seen = new Set<string>();
  const visit = (name: string) => {
    if (seen.has(name)) return;
    seen.add(name);
    for (const next of gotosOf(chains, name)) visit(next);
    order.push(name);
  };
  visit(head);
  return order.reverse();
}

/** By chain, how many are above it at most on the way from a hook, itself included. */
function levelsOf(chains: Chains, roots: readonly string[]): ReadonlyMap<string, number> {
  const order: string[] = [], seen = new Set<string>();
  const next = (name: string) =>
    (chains.get(name) ?? []).flatMap(({ target }) =>
      "chain" in target && chains.has(target.chain) ? [target.chain] : []
    );
  const visit = (name: string) => {
    if (seen.has(name)) return;
    seen.add(name);
    for (const one of next(name)) visit(one);
    order.push(name);
  };
  for (const root of roots) visit(root);
  const levels = new Map(roots.map((root) => [root, 1]));
  for (const name of order.reverse()) {
    for (const one of next(name)) levels.set(one, Math.max(levels.get(one) ?? 0, levels.get(name)! + 1));
  }
  return levels;
}

// ------------------------------------------------------------------------------------------------------- numbers in the mark

/** The bits of a mask, the lowest first. */
function bitsOf(mask: number): readonly number[] {
  const bits: number[] = [];
  for (let bit = 0; bit < 32; bit++) if ((mask >>> bit & 1) !== 0) bits.push((1 << bit) >>> 0);
  return bits;
}

/** From 1 on: 0 is none. */
const numbersIn = (mask: number): number => 2 ** bitsOf(mask).length - 1;

/** A number in the bits of a mask. */
const spread = (number: number, mask: number): number =>
  bitsOf(mask).reduce((value, bit, i) => (number >>> i & 1) !== 0 ? (value | bit) >>> 0 : value, 0);

function isNumber(number: number, mask: number): readonly Match[] {
  const value = spread(number, mask), others = (mask & ~value) >>> 0;
  return [
    ...bitsOf(value).map((bit): Match => ({ match: "mark", mask: bit, not: false })),
    ...others === 0 ? [] : [{ match: "mark" as const, mask: others, not: true }],
  ];
}
