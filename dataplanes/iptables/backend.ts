/** What is written to: legacy iptables, or the tables that `iptables-nft` shows. */
import type { Family } from "../../src/model/address.ts";
import type { TableName } from "./ruleset.ts";
import type { ParsedTable, WantedTable } from "./table.ts";

export interface Place {
  readonly family: Family;
  readonly table: TableName;
}

export interface WriteOptions {
  readonly position: "insert" | "append";
  /** The kernel's number of a set. */
  readonly indexOf: (set: string) => number;
}

export interface Written {
  /** 0: it was as wanted. */
  readonly messages: number;
  /** What was found that should not be there, one line each. */
  readonly notes: readonly string[];
}

/** Synchronous: within this process nobody comes between reading and writing. */
export interface Backend extends Disposable {
  /** Tables that there are already, ours in them or not. */
  places(): readonly Place[];
  /** A table that there is. @throws {Error} naming the table */
  read(place: Place): ParsedTable;
  /** Puts what is wanted of ours in the place of what is there of ours. Without chains: takes ours away. @throws {Error} naming the table */
  write(place: Place, wanted: WantedTable, options: WriteOptions, operation: string): Written;
  /** Whether `write` would change something. `thorough`: cost what it may. @throws {Error} naming the table */
  differs(place: Place, wanted: WantedTable, options: WriteOptions, thorough: boolean): boolean;
}
