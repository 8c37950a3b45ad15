/**
 * Rules found by protocol, then by destination port: the ports of each protocol are cut where any range begins or ends, and each
 * cell has its own rules, in order, found in as many steps as the number of cells has binary digits. Pure.
 */
import { ALL_PORTS, cutPorts, type PortCell } from "../../src/model/port_ranges.ts";
import { PORT_PROTOCOLS } from "../../src/model/rule_alternatives.ts";
import { type Conjunction, isAlways, isLogged, mayBe, withoutPorts } from "./conjunction.ts";
import { atPorts, isProtocol, type RuleMatches } from "./rule_matches.ts";
import { goto, type Rule, rule, type Target } from "./ruleset.ts";
import { unite } from "./unite.ts";

/** What makes chains of rules. */
export interface ChainMaker {
  readonly matches: RuleMatches;
  chain(rules: readonly Rule[]): string;
  /** An unconditional rule that leads to the rules. */
  onward(rules: readonly Rule[]): Rule;
  linear(all: readonly Conjunction[], after: readonly Rule[], targetOf: TargetOf): readonly Rule[];
}
export type TargetOf = (one: Conjunction) => Target;

/** Rules in all cells of one tree: so many, or a multiple of the rules that there are. */
export const CELL_BUDGET = 16_384;
const CELL_BUDGET_FACTOR = 4;
/** Cells that stand side by side at the end of a branch. */
const LEAF_CELLS = 12;
/** Cells of so many rules need no chain of their own. */
const INLINE_MAX = 2;

/** Undefined: the ranges overlap too often. */
export function portTree(
  maker: ChainMaker,
  all: readonly Conjunction[],
  after: readonly Rule[],
  targetOf: TargetOf,
): readonly Rule[] | undefined {
  const { action } = all[0]!;
  const uniform = all.every((one) => one.action === action && !isLogged(one));
  // Of one action: what asks for no port may as well be looked up after all that do.
  const apart = uniform ? all.filter(({ ports }) => ports === undefined) : [];
  const listed = uniform ? all.filter(({ ports }) => ports !== undefined) : all;
  const rest = apart.length > 0 ? maker.linear(apart, after, targetOf) : after;
  const goOn = [maker.onward(rest)];
  let budget = Math.max(CELL_BUDGET, CELL_BUDGET_FACTOR * listed.length);
  const rules: Rule[] = [];
  for (const protocol of PORT_PROTOCOLS) {
    if (!listed.some((one) => one.protocol === protocol && one.ports !== undefined)) continue;
    const mine = listed.filter((one) => mayBe(one, protocol));
    const cells = cutPorts(mine.map(({ ports }) => ports ?? ALL_PORTS), budget);
    if (cells === undefined) return undefined;
    for (const { owners } of cells) budget -= owners.length;
    if (budget < 0) return undefined;
    const { target, causes } = new Tree(maker, protocol, mine, cells, goOn, targetOf).branch(0, cells.length);
    const matches = [isProtocol(protocol)];
    rules.push(causes === undefined ? { matches, target } : { matches, target, causes });
  }
  const others = listed.filter((one) => one.protocol === undefined || one.ports === undefined);
  return [...rules, ...maker.linear(others, goOn, targetOf)];
}

class Tree {
  /** Rules of cells with several owners, by those. */
  private readonly known = new Map<string, readonly Conjunction[]>();

  constructor(
    private readonly maker: ChainMaker,
    private readonly protocol: number,
    private readonly all: readonly Conjunction[],
    private readonly cells: readonly PortCell[],
    private readonly after: readonly Rule[],
    private readonly targetOf: TargetOf,
  ) {}

  /** Halves the cells until few are left. A port of no cell comes to the end of some branch, and so to `after`. */
  branch(from: number, to: number): Rule {
    const { maker, protocol, cells } = this;
    if (to - from <= LEAF_CELLS) return maker.onward(this.leaf(from, to));
    const middle = from + to >> 1;
    const low = this.branch(from, middle), high = this.branch(middle, to);
    const matches = atPorts(protocol, cells[from]!.first, cells[middle - 1]!.last);
    return rule(goto(maker.chain([{ ...low, matches }, high])));
  }

  private leaf(from: number, to: number): readonly Rule[] {
    const { maker, protocol, all, after, targetOf } = this;
    const rules: Rule[] = [];
    for (let i = from; i < to; i++) {
      const { first, last, owners } = this.cells[i]!;
      if (owners.length === 1) {
        const one = all[owners[0]!]!;
        maker.matches.put(rules, one, targetOf(one), protocol, rangeOf(one, first, last));
        continue;
      }
      const inside = this.inside(owners);
      if (inside.length <= INLINE_MAX && inside.every((one) => one.protocol === undefined)) {
        for (const one of inside) maker.matches.put(rules, one, targetOf(one), protocol, [{ first, last }]);
      } else {
        const onward = maker.onward(maker.linear(inside, after, targetOf));
        rules.push({ ...onward, matches: atPorts(protocol, first, last) });
      }
    }
    for (const one of after) rules.push(one);
    return rules;
  }

  private inside(owners: readonly number[]): readonly Conjunction[] {
    const key = owners.join();
    let inside = this.known.get(key);
    if (inside === undefined) {
      inside = settled(owners.map((at) => withoutPorts(this.all[at]!, this.protocol)));
      this.known.set(key, inside);
    }
    return inside;
  }
}

/** The same object where a rule's one range is the cell. */
function rangeOf({ ports }: Conjunction, first: number, last: number): NonNullable<Conjunction["ports"]> {
  const [range] = ports ?? ALL_PORTS;
  return ports?.length === 1 && range!.first === first && range!.last === last ? ports : [{ first, last }];
}

/** Without what never gets its turn. */
function settled(all: readonly Conjunction[]): readonly Conjunction[] {
  const always = all.findIndex(isAlways);
  if (always < 0) return unite(all);
  return [...unite(all.slice(0, always)), all[always]!];
}
