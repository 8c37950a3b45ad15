/** The tables of one family while chains are made for them. Pure. */
import type { Family } from "../../src/model/address.ts";
import type { PolicyList } from "../../src/model/desired.ts";
import type { Direction } from "../../src/model/rule.ts";
import { chainName, type Compiled, type Endings, FILTER_ENDINGS } from "./compile.ts";
import { dispatch, type DispatchOptions } from "./dispatch.ts";
import { goto, OURS, type Rule, type Table, type TableName, type Target } from "./ruleset.ts";
import type { SetUse } from "./set_names.ts";

export type Compile = (list: PolicyList, direction: Direction, endings: Endings) => Compiled;

export class GrowingTables {
  /** Sets that the rules ask for, by name. */
  readonly uses = new Map<string, SetUse>();
  /** What of the lists is not as wanted, or slower than it might be, one line each. */
  readonly problems = new Set<string>();
  private readonly grown = new Map<TableName, { chains: Map<string, readonly Rule[]>; hooks: Map<string, string> }>();

  constructor(readonly family: Family, private readonly compile: Compile) {}

  *tables(): Iterable<Table> {
    for (const [table, { chains, hooks }] of this.grown) yield { family: this.family, table, chains, hooks };
  }

  private table(table: TableName) {
    let grown = this.grown.get(table);
    if (grown === undefined) this.grown.set(table, grown = { chains: new Map(), hooks: new Map() });
    return grown;
  }

  /** The name of a chain of these rules; equal ones share it. */
  chain(table: TableName, rules: readonly Rule[]): string {
    const name = chainName(rules);
    this.table(table).chains.set(name, rules);
    return name;
  }

  to(table: TableName, rules: readonly Rule[]): Target {
    return goto(this.chain(table, rules));
  }

  /** What one of the kernel's own chains is to jump to. */
  hook(table: TableName, hook: string, name: string, rules: readonly Rule[]): void {
    const grown = this.table(table);
    grown.chains.set(`${OURS}${name}`, rules);
    grown.hooks.set(hook, `${OURS}${name}`);
  }

  list(table: TableName, list: PolicyList, direction: Direction, endings: Endings = FILTER_ENDINGS): Target {
    const { head, chains, sets, notes } = this.compile(list, direction, endings);
    const grown = this.table(table);
    for (const [name, rules] of chains) grown.chains.set(name, rules);
    for (const [name, use] of sets) this.uses.set(name, use);
    for (const note of notes) this.problems.add(`policy list ${list.id}: ${note}`);
    return goto(head);
  }

  tree(table: TableName, options: Omit<DispatchOptions, "chain">): readonly Rule[] {
    return dispatch({ ...options, chain: (rules) => this.chain(table, rules) });
  }
}
