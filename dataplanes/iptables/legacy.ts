/**
 * Legacy iptables: tables read, changed in what is ours, and written back whole, as `iptables` does it; under the lock that it
 * takes, and only if what was read is still there right before.
 */
import type { Family } from "../../src/model/address.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import type { XtablesInfo, XtablesSocket } from "../../src/sdk/kernel_door.ts";
import type { Backend, Place, WriteOptions, Written } from "./backend.ts";
import { type TableName, TABLES } from "./ruleset.ts";
import {
  countersToAdd,
  hasOurs,
  type ParsedTable,
  parseTable,
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

/** @throws {TableError} {KernelError} */
export function writeTable(
  socket: XtablesSocket,
  { family, table }: Place,
  wanted: WantedTable,
  options: WriteOptions,
  operation: string,
): Written {
  for (let tries = 1;; tries++) {
    const found = readTable(socket, family, table);
    const plan = planTable(found, wanted, options);
    if (plan === undefined) return { messages: 0, notes: [] };
    try {
      const now = socket.info(table);
      if (sameRules(found, now, socket.entries(now))) {
        // EAGAIN where there is another number of rules by now.
        const last = socket.replace(operation, plan.info, plan.bytes, found.info.entryCount);
        socket.addCounters(table, countersToAdd(plan, last));
        return { messages: 1, notes: plan.notes };
      }
    } catch (error) {
      if (!isErrno(error, "EAGAIN")) throw error;
    }
    if (tries >= TRIES) {
      throw new TableError(
        `write table ${table} of ip${
          family === 6 ? "6" : ""
        }tables: found it changed by somebody else ${TRIES} times between ` +
          "reading and writing, without the lock; wanted it unchanged: tried again later",
      );
    }
  }
}

export class LegacyTables implements Backend {
  /** Of each table when it last was as wanted. */
  private readonly infos = new Map<string, XtablesInfo>();

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

  write(place: Place, wanted: WantedTable, options: WriteOptions, operation: string): Written {
    const socket = this.sockets.get(place.family)!;
    const written = writeTable(socket, place, wanted, options, operation);
    this.infos.set(keyOf(place), socket.info(place.table));
    return written;
  }

  differs({ family, table }: Place, wanted: WantedTable, options: WriteOptions, thorough: boolean): boolean {
    const socket = this.sockets.get(family)!;
    const key = keyOf({ family, table }), before = this.infos.get(key);
    const now = socket.info(table);
    const grown = before === undefined || JSON.stringify(before) !== JSON.stringify(now);
    if (!grown && !thorough && now.sizeBytes > SMALL_BYTES) return false;
    const found = readTable(socket, family, table);
    const differs = wanted.chains.size === 0 ? hasOurs(found) : planTable(found, wanted, options) !== undefined;
    if (!differs) this.infos.set(key, found.info);
    return differs;
  }

  [Symbol.dispose](): void {
    for (const socket of this.sockets.values()) socket[Symbol.dispose]();
  }
}

const keyOf = ({ family, table }: Place): string => `${family} ${table}`;
