/**
 * Legacy iptables: tables read, changed in what is ours, and written back whole, as `iptables` does it; under the lock that it
 * takes, and only if what was read is still there right before.
 */
import type { Family } from "../../src/model/address.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import type { XtablesInfo, XtablesSocket } from "../../src/sdk/kernel_door.ts";
import { explainError } from "../../src/sdk/errors.ts";
import { countersToAdd } from "./assemble.ts";
import { type Backend, type Change, keyOf, type Place, type WriteOptions, type Written } from "./backend.ts";
import { type TableName, TABLES } from "./ruleset.ts";
import {
  hasOurs,
  type ParsedTable,
  parseTable,
  type PlanOptions,
  planTable,
  sameRules,
  TableError,
  type WantedTable,
} from "./table.ts";

/** Somebody who writes without the lock makes us begin anew so often at most. */
const TRIES = 8;
/** Tables of up to so many bytes are compared whole at every look; others where their size has changed, or when asked to. */
const SMALL_BYTES = 256 * 1024;

/** @throws {TableError} where the table cannot be read; {KernelError} */
export function readTable(socket: XtablesSocket, family: Family, table: TableName): ParsedTable {
  for (let tries = 1;; tries++) {
    const info = socket.info(table);
    try {
      return parseTable(family, info, socket.entries(info));
    } catch (error) {
      // Its size changed between the two calls.
      if (!isErrno(error, "EAGAIN") || tries >= TRIES) throw error;
    }
  }
}

/** A table as we have written it. */
export interface KnownTable {
  readonly info: XtablesInfo;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

export interface WrittenTable extends Omit<Written, "failed"> {
  /** As it is now. */
  readonly table: KnownTable;
}

/**
 * `known`: what the table probably is, so that it has to be read but once; tables of thousands of rules take the kernel as long to show as
 * to replace. @throws {TableError} {KernelError}
 */
export function writeTable(
  socket: XtablesSocket,
  { family, table }: Place,
  wanted: WantedTable,
  options: PlanOptions,
  operation: string,
  known?: KnownTable,
): WrittenTable {
  let found = known === undefined ? undefined : parseTable(family, known.info, known.bytes);
  for (let tries = 1;; tries++) {
    const isGuess = found !== undefined;
    found ??= readTable(socket, family, table);
    const plan = planTable(found, wanted, { ...options, isAsBefore: isGuess });
    if (plan === undefined && !isGuess) return { messages: 0, notes: [], table: found };
    try {
      const now = socket.info(table);
      if (sameRules(found, now, socket.entries(now))) {
        if (plan === undefined) return { messages: 0, notes: [], table: found };
        // EAGAIN where there is another number of rules by now.
        const last = socket.replace(operation, plan.info, plan.bytes, found.info.entryCount);
        const counters = countersToAdd(plan, last);
        if (counters !== undefined) socket.addCounters(table, counters);
        return { messages: 1, notes: plan.notes, table: { info: plan.info, bytes: plan.bytes } };
      }
    } catch (error) {
      if (!isErrno(error, "EAGAIN")) throw error;
    }
    found = undefined;
    if (isGuess) tries--;
    else if (tries >= TRIES) {
      throw new TableError(
        `write table ${table} of ip${
          family === 6 ? "6" : ""
        }tables: found it changed by somebody else ${TRIES} times between ` +
          "reading and writing, without the lock; wanted it unchanged: tried again later",
      );
    }
  }
}

/** Whether the table has the rules that it had. */
function isStill(socket: XtablesSocket, family: Family, { info, bytes }: KnownTable): boolean {
  const now = socket.info(info.table);
  try {
    return sameRules({ family, info, bytes }, now, socket.entries(now));
  } catch (error) {
    // Its size changed between the two calls.
    if (!isErrno(error, "EAGAIN")) throw error;
    return false;
  }
}

export class LegacyTables implements Backend {
  readonly locks = true;
  /** Of each table when it last was as wanted. */
  private readonly infos = new Map<string, XtablesInfo>();
  /** What each table was last brought to. */
  private readonly last = new Map<string, WantedTable>();
  /** And what it was then. */
  private readonly known = new Map<string, KnownTable>();

  constructor(private readonly sockets: ReadonlyMap<Family, XtablesSocket>) {}

  places(): readonly Place[] {
    return [...this.sockets].flatMap(([family, socket]) => {
      const names = socket.tables();
      return TABLES.filter((table) => names.includes(table)).map((table) => ({ family, table }));
    });
  }

  read({ family, table }: Place): ParsedTable {
    return readTable(this.sockets.get(family)!, family, table);
  }

  write(changes: readonly Change[], options: WriteOptions, operation: string): Written {
    let messages = 0;
    const notes: string[] = [];
    const failed = new Map<string, string>();
    for (const { place, wanted } of changes) {
      const socket = this.sockets.get(place.family)!;
      try {
        const ofTable = `${operation} to table ${place.table} of ip${place.family === 6 ? "6" : ""}tables`;
        const key = keyOf(place);
        const before = this.last.get(key), known = this.known.get(key);
        this.known.delete(key);
        const written = writeTable(socket, place, wanted, { ...options, before }, ofTable, known);
        this.known.set(key, written.table);
        messages += written.messages;
        notes.push(...written.notes);
        this.last.set(key, wanted);
        this.infos.set(key, socket.info(place.table));
      } catch (error) {
        failed.set(keyOf(place), explainError(error));
      }
    }
    return { messages, notes, failed };
  }

  forget(): void {
    this.infos.clear();
    this.known.clear();
  }

  differs({ place: { family, table }, wanted }: Change, options: WriteOptions, thorough: boolean): boolean {
    const socket = this.sockets.get(family)!;
    const key = keyOf({ family, table }), before = this.infos.get(key);
    const now = socket.info(table);
    const grown = before === undefined || JSON.stringify(before) !== JSON.stringify(now);
    if (!grown && !thorough && now.sizeBytes > SMALL_BYTES) return false;
    const known = this.known.get(key);
    if (known !== undefined && this.last.get(key) === wanted && isStill(socket, family, known)) {
      this.infos.set(key, now);
      return false;
    }
    const found = readTable(socket, family, table);
    const differs = wanted.chains.size === 0 ? hasOurs(found) : planTable(found, wanted, options) !== undefined;
    if (!differs) this.infos.set(key, found.info);
    return differs;
  }

  [Symbol.dispose](): void {
    for (const socket of this.sockets.values()) socket[Symbol.dispose]();
  }
}
