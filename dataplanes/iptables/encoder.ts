/** Tables as values → tables of encoded rules. Encodes what it has not encoded before. */
import type { Family } from "../../src/model/address.ts";
import { keyOf } from "./backend.ts";
import { type EncodedRule, encodeRule } from "./entry.ts";
import { jump, OURS, type Rule, rule, type Table } from "./ruleset.ts";
import type { WantedTable } from "./table.ts";

export const NOTHING: WantedTable = { chains: new Map(), hooks: new Map() };

/** As `chainName` of compile.ts names chains. */
const CONTENT_NAMED = `${OURS}c-`;

/** Chains that stay are the same objects. */
export class Encoder {
  private readonly chains: Readonly<Record<Family, WeakMap<readonly Rule[], readonly EncodedRule[]>>> = {
    4: new WeakMap(),
    6: new WeakMap(),
  };
  private readonly tables = new WeakMap<Table, WantedTable>();
  /** By place, the last one. */
  private readonly last = new Map<string, WantedTable>();

  table(table: Table | undefined): WantedTable {
    if (table === undefined) return NOTHING;
    let wanted = this.tables.get(table);
    if (wanted === undefined) {
      const { family, chains, hooks } = table;
      const before = this.last.get(keyOf(table))?.chains;
      wanted = {
        // Where the name says what is in it, it need not be looked at.
        chains: new Map([...chains].map(([name, rules]) => [
          name,
          name.startsWith(CONTENT_NAMED) && before?.get(name) || this.chain(family, rules),
        ])),
        hooks: new Map([...hooks].map(([hook, chain]) => [hook, encodeRule(rule(jump(chain)), family)])),
      };
      this.tables.set(table, wanted);
      this.last.set(keyOf(table), wanted);
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
