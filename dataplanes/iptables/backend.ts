/** What is written to: legacy iptables, or the tables of nf_tables that `iptables-nft` shows. */
import type { Family } from "../../src/model/address.ts";
import type { Table, TableName } from "./ruleset.ts";
import type { Chain, WantedTable } from "./table.ts";

export interface Place {
  readonly family: Family;
  readonly table: TableName;
}

export const keyOf = ({ family, table }: Place): string => `${family} ${table}`;

export interface WriteOptions {
  readonly position: "insert" | "append";
  /** The kernel's number of a set. */
  readonly indexOf: (set: string) => number;
}

/** What is wanted of ours in a table; without chains: nothing. */
export interface Change {
  readonly place: Place;
  readonly wanted: WantedTable;
}

export interface Written {
  /** 0: all was as wanted. */
  readonly messages: number;
  /** What was found that should not be there, one line each. */
  readonly notes: readonly string[];
  /** By `keyOf`: the tables that are not as wanted, and why. */
  readonly failed: ReadonlyMap<string, string>;
}

/** A table as it is, as far as ours is concerned. */
export interface ShownTable {
  readonly family: Family;
  readonly info: { readonly table: string };
  readonly chains: readonly Pick<Chain, "name" | "rules">[];
}

/** Notices that somebody else may have changed what is ours. */
export interface Watch extends Disposable {
  /** Settles when something has happened since it was last asked, or the signal aborts. */
  changed(signal: AbortSignal): Promise<void>;
}

/** Synchronous: within this process nobody comes between reading and writing. */
export interface Backend extends Disposable {
  /** Whether the lock of iptables is held while it writes. */
  readonly locks: boolean;
  /** A table as it can be written: the same one for the same one. Absent: as it is. */
  fit?(table: Table): Table;
  /** Tables that there are already, ours in them or not. */
  places(): readonly Place[];
  /** A table that there is. @throws {Error} naming the table */
  read(place: Place): ShownTable;
  /** Puts what is wanted of ours in the place of what is there of ours, in the order given, or all at once. */
  write(changes: readonly Change[], options: WriteOptions, operation: string): Written;
  /** Whether `write` would change something. `thorough`: cost what it may. @throws {Error} naming the table */
  differs(change: Change, options: WriteOptions, thorough: boolean): boolean;
  /** Waits until rules that are gone hold no set any more. Absent: they never do. @throws {KernelError} */
  settle?(): void;
  /** What it remembers of what there is, is to be read anew. */
  forget(): void;
  /** Absent: nobody tells, `differs` must be asked. */
  watch?(): Watch;
}
