/**
 * Rules that ask for a destination port, by port: the ports of each protocol are cut where any range begins or ends, and
 * each cell knows its rules, in order. A packet finds its cell by looking up its protocol and port. Pure.
 */
import { cidrAddress, type Family } from "../../src/model/address.ts";
import type { PortRange } from "../../src/model/ports.ts";
import { cutPorts, portBytes, unitePorts } from "../../src/model/port_ranges.ts";
import { isHost } from "../../src/model/prefixes.ts";
import { type End, PORT_PROTOCOLS } from "../../src/model/rule_alternatives.ts";
import { loadFlowAddress, loadPorts, verdict } from "./expressions.ts";
import type { Cause } from "../../src/model/flat_list.ts";
import type { Output } from "./output.ts";
import type { Source } from "./pools.ts";
import type { ElementKey, Expression, Rule, Verdict } from "./ruleset.ts";
import { type AddressTest, type Conjunction, isLogged, type RuleAction } from "./unite.ts";

/** A conjunction for some destination ports of one protocol. Its tests do not speak of these. */
export interface Ported {
  readonly protocol: number;
  readonly ports: readonly PortRange[];
  readonly conjunction: Conjunction;
}

/** What a region needs of the list that it is in. */
export interface Surroundings {
  readonly family: Family;
  readonly out: Output;
  /** What tells its keys from those of the list's other regions. */
  readonly name: string;
  readonly verdictOf: (action: RuleAction) => Verdict;
  /** A chain for the rules of one cell. */
  readonly cell: (conjunctions: readonly Conjunction[]) => Verdict;
}

/** Rules in all cells of one region: so many, or a multiple of the rules that there are. */
const CELL_BUDGET = 16_384;
const CELL_BUDGET_FACTOR = 4;
/** A cell of more ports is a range of an interval map; of fewer, an element for each. */
const NARROW_PORTS_MAX = 4;
/** Addresses stand with the ports that want them in so many columns: what one cell has, one after the other. */
const COLUMNS_MAX = 4;

/** One lookup of protocol, port and address; every cell has at most one source in it. */
interface Column {
  readonly action: RuleAction;
  readonly end: End;
  readonly sources: Map<string, Source>;
  readonly causes: Map<string, readonly Cause[]>;
}

/** Undefined where the cells would exceed their budget. */
export function regionRules(ported: readonly Ported[], here: Surroundings): readonly Rule[] | undefined {
  const cells = cellsOf(ported) ?? (mayMerge(ported) ? cellsOf(mergePorts(ported)) : undefined);
  if (cells === undefined) {
    here.out.notes.add(`port ranges overlap more than ${CELL_BUDGET} times: rules are walked one by one`);
    return undefined;
  }
  const { family, out, name, verdictOf } = here;
  const plan = new Plan(here);
  for (const cell of cells) plan.add(cell);
  const rules: Rule[] = [];
  const lookup = (set: string): Expression => ({ op: "lookup", set, sreg: 0, invert: false });
  plan.columns.forEach(({ action, end, sources, causes }, at) => {
    if (sources.size === 0) return;
    const key = out.slotKey(name, "column", at);
    out.block(`flows${family}`, key, sources);
    for (const [prefix, which] of causes) out.hits.set(key + prefix, which);
    const load = [...loadPorts(key), loadFlowAddress(family, end)];
    rules.push([...load, lookup(`flows${family}`), lookup("hits"), verdict(verdictOf(action))]);
  });
  for (const [action, anyone] of plan.anyone) {
    const key = out.slotKey(name, "anyone", action);
    for (const [prefix, which] of anyone) out.hits.set(key + prefix, which);
    rules.push([...loadPorts(key), lookup("hits"), verdict(verdictOf(action))]);
  }
  // No pool: when a rule comes, the kernel walks all that any map leads to.
  const loadCell: readonly Expression[] = [
    { op: "meta", key: "l4proto", dreg: 0 },
    { op: "payload", base: "transport", offset: 2, length: 2, dreg: 1 },
  ];
  const fields = ["inet_proto", "inet_service"] as const;
  if (plan.narrow.size > 0) {
    const set = out.slotSet("m", name, { fields, interval: false, map: true, elements: plan.narrow });
    rules.push([...loadCell, { op: "vmap", set, sreg: 0 }]);
  }
  if (plan.wide.length > 0) {
    const set = out.fixedSet("m", { fields, interval: true, map: true }, plan.wide);
    rules.push([...loadCell, { op: "vmap", set, sreg: 0 }]);
  }
  return rules;
}

// ----------------------------------------------------------------------------------------------------------------- cells

interface Cell {
  readonly protocol: number;
  readonly first: number;
  readonly last: number;
  /** In order, up to the first without a test. Equal cells have the same array. */
  readonly conjunctions: readonly Conjunction[];
}

function cellsOf(ported: readonly Ported[]): readonly Cell[] | undefined {
  const cells: Cell[] = [];
  let budget = Math.max(CELL_BUDGET, CELL_BUDGET_FACTOR * ported.length);
  for (const protocol of PORT_PROTOCOLS) {
    const mine = ported.filter((one) => one.protocol === protocol);
    if (mine.length === 0) continue;
    const cut = cutPorts(mine.map(({ ports }) => ports), budget);
    if (cut === undefined) return undefined;
    const settled = new Map<string | number, readonly Conjunction[]>();
    for (const { first, last, owners } of cut) {
      budget -= owners.length;
      const key = owners.length === 1 ? owners[0]! : owners.join();
      let conjunctions = settled.get(key);
      if (conjunctions === undefined) {
        settled.set(key, conjunctions = settle(owners.map((at) => mine[at]!.conjunction)));
      }
      cells.push({ protocol, first, last, conjunctions });
    }
  }
  return cells;
}

/** Without what never gets its turn. */
function settle(conjunctions: readonly Conjunction[]): readonly Conjunction[] {
  if (conjunctions.length === 1) return conjunctions;
  const texts = new Map<string, Conjunction>();
  for (const one of conjunctions) {
    if (!texts.has(one.text)) texts.set(one.text, one);
    if (one.tests.length === 0) break;
  }
  return [...texts.values()];
}

/** Of one action and unlogged: their order says nothing. */
function mayMerge(ported: readonly Ported[]): boolean {
  const { action } = ported[0]!.conjunction;
  return ported.every(({ conjunction }) => conjunction.action === action && !isLogged(conjunction));
}

/** Those that differ in ports only become one. */
function mergePorts(ported: readonly Ported[]): readonly Ported[] {
  const merged = new Map<string, Ported>();
  for (const one of ported) {
    const key = `${one.protocol} ${one.conjunction.text}`;
    const before = merged.get(key);
    const { conjunction } = one;
    merged.set(
      key,
      before === undefined ? one : {
        protocol: one.protocol,
        ports: unitePorts([...before.ports, ...one.ports]),
        conjunction: { ...conjunction, causes: [...new Set([...before.conjunction.causes, ...conjunction.causes])] },
      },
    );
  }
  return [...merged.values()];
}

// ------------------------------------------------------------------------------------------------------------------ plan

type Placed = Conjunction & { readonly test: AddressTest };

interface Placement {
  readonly placed: readonly (readonly [Column, Source, readonly Cause[]])[];
  readonly rest: readonly Conjunction[];
}

/** Where each cell is looked up. */
class Plan {
  readonly columns: Column[] = [];
  /** Cells that any packet matches, by action. */
  readonly anyone = new Map<RuleAction, Map<string, readonly Cause[]>>();
  readonly narrow = new Map<string, Verdict>();
  readonly wide: [ElementKey, Verdict][] = [];
  private readonly verdicts = new Map<readonly Conjunction[], Verdict>();
  private readonly placements = new Map<readonly Conjunction[], Placement>();

  constructor(private readonly here: Surroundings) {}

  add(cell: Cell): void {
    const { protocol, first, last, conjunctions } = cell;
    if (last - first + 1 > NARROW_PORTS_MAX) return this.addWide(cell);
    let placement = this.placements.get(conjunctions);
    if (placement === undefined) this.placements.set(conjunctions, placement = this.place(conjunctions));
    const { placed, rest } = placement;
    const [only] = rest;
    for (let port = first; port <= last; port++) {
      const prefix = portKey(protocol, port);
      for (const [column, source, causes] of placed) {
        column.sources.set(prefix, source);
        column.causes.set(prefix, causes);
      }
      if (only === undefined) continue;
      if (rest.length > 1 || only.tests.length > 0 || isLogged(only)) {
        this.narrow.set(prefix, this.chain(rest));
        continue;
      }
      let anyone = this.anyone.get(only.action);
      if (anyone === undefined) this.anyone.set(only.action, anyone = new Map());
      anyone.set(prefix, only.causes);
    }
  }

  private addWide({ protocol, first, last, conjunctions }: Cell): void {
    const to = this.chain(conjunctions);
    const before = this.wide[this.wide.length - 1];
    const from = portKey(protocol, first), until = portKey(protocol, last);
    const half = from.length;
    if (before?.[1] === to && before[0].slice(half) === portKey(protocol, first - 1)) {
      before[0] = before[0].slice(0, half) + until;
    } else this.wide.push([from + until, to]);
  }

  private chain(conjunctions: readonly Conjunction[]): Verdict {
    let to = this.verdicts.get(conjunctions);
    if (to === undefined) this.verdicts.set(conjunctions, to = this.here.cell(conjunctions));
    return to;
  }

  /** What of a cell goes to columns; the rest comes after them. */
  private place(conjunctions: readonly Conjunction[]): Placement {
    if (conjunctions.length === 1) return this.placeOne(conjunctions[0]!);
    const uniform = conjunctions.every((one) => one.action === conjunctions[0]!.action && !isLogged(one));
    const last = conjunctions[conjunctions.length - 1]!;
    // Of one action, and the last asks for nothing: the others cannot be told from it.
    if (uniform && last.tests.length === 0 && conjunctions.length > 1) {
      return { placed: [], rest: [{ ...last, causes: [...new Set(conjunctions.flatMap(({ causes }) => causes))] }] };
    }
    const plain: Placed[] = [];
    const others: Conjunction[] = [];
    for (const one of conjunctions) {
      const test = this.plainTest(one);
      if (test === undefined) others.push(one);
      else plain.push({ ...one, test });
    }
    // Where order matters, all but a last one without tests must be in columns, or none.
    if (!uniform && (others.length > 1 || others.length === 1 && (others[0] !== last || last.tests.length > 0))) {
      return { placed: [], rest: conjunctions };
    }
    const columns = this.columnsFor(plain, uniform);
    if (columns === undefined) return { placed: [], rest: conjunctions };
    const shares = new Map<Column, Placed[]>();
    plain.forEach((one, i) => {
      const share = shares.get(columns[i]!);
      if (share === undefined) shares.set(columns[i]!, [one]);
      else share.push(one);
    });
    const placed = [...shares].map(([column, share]) =>
      [column, sourceFor(share), [...new Set(share.flatMap(({ causes }) => causes))]] as const
    );
    return { placed, rest: others };
  }

  /** As most cells are. */
  private placeOne(one: Conjunction): Placement {
    const test = this.plainTest(one);
    const [column] = test === undefined ? [] : this.columnsFor([{ ...one, test }], true) ?? [];
    if (test === undefined || column === undefined) return { placed: [], rest: [one] };
    return { placed: [[column, sourceOf(test), one.causes]], rest: [] };
  }

  /** A column for each, in order; new ones where there is room, else the one before where that says the same. */
  private columnsFor(plain: readonly Placed[], uniform: boolean): readonly Column[] | undefined {
    const chosen: Column[] = [];
    const fresh: Column[] = [];
    let from = 0;
    for (const one of plain) {
      const { end } = one.test;
      const all = [...this.columns, ...fresh];
      const fits = (column: Column) => column.action === one.action && column.end === end;
      let at = all.findIndex((column, i) => i >= from && fits(column));
      if (at < 0 && all.length < COLUMNS_MAX) {
        at = all.length;
        fresh.push({ action: one.action, end, sources: new Map(), causes: new Map() });
        all.push(fresh[fresh.length - 1]!);
      }
      if (at < 0) at = uniform ? all.findLastIndex(fits) : from > 0 && fits(all[from - 1]!) ? from - 1 : -1;
      if (at < 0) return undefined;
      chosen.push(all[at]!);
      from = Math.max(from, at + 1);
    }
    this.columns.push(...fresh);
    return chosen;
  }

  /** Of a conjunction that asks for nothing but one of a few addresses. */
  private plainTest(one: Conjunction): AddressTest | undefined {
    if (one.tests.length !== 1 || isLogged(one)) return undefined;
    const test = one.tests[0]!;
    if (test.test !== "address" || test.not || !test.nets.every(isHost)) return undefined;
    const { family, out } = this.here;
    return test.ids.every((id) => out.sizeOf(family, id) === "small") ? test : undefined;
  }
}

const known = new WeakMap<AddressTest, Source>();

/** The union of what they ask for. */
function sourceFor(share: readonly Placed[]): Source {
  if (share.length === 1) return sourceOf(share[0]!.test);
  return {
    ids: [...new Set(share.flatMap((one) => one.test.ids))].sort(),
    addresses: [...new Set(share.flatMap((one) => one.test.nets.map(cidrAddress)))].sort(),
  };
}

function sourceOf(test: AddressTest): Source {
  let source = known.get(test);
  if (source === undefined) known.set(test, source = { ids: test.ids, addresses: test.nets.map(cidrAddress) });
  return source;
}

/** Protocol and port, each padded to a register. */
const portKey = (protocol: number, port: number): string =>
  String.fromCharCode(protocol) + "\0\0\0" + portBytes(port) + "\0\0";
