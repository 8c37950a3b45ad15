/** The database file: how it is made, recognised, checked and brought to the present schema. */
import { Database } from "bun:sqlite";
import { chmodSync, closeSync, mkdirSync, openSync, statSync } from "node:fs";
import { dirname } from "node:path";
import { CorruptError, UnavailableError } from "../../../src/sdk/errors.ts";

/** `PRAGMA application_id`, "Manx" in ASCII: tells our files from those of other programs. */
export const APPLICATION_ID = 0x4d616e78;
/** `PRAGMA user_version` of the schema this program writes. */
export const SCHEMA_VERSION = 1;
/** The smallest page SQLite has: it takes a shorter file for an empty one. */
const PAGE_MIN_BYTES = 512;
/** How long opening waits for another process that opens or migrates the same file. */
const OPEN_BUSY_MS = 5_000;

/**
 * Step `n` brings a file from version `n` to `n + 1`, inside one transaction with the new version number.
 *
 * resources: one row a key; `value` NULL = a tombstone, kept so that watchers of other processes see the deletion.
 * All keys of one commit carry its revision. meta.compacted: tombstones up to that revision have been dropped.
 */
const MIGRATIONS: readonly string[] = [
  `CREATE TABLE resources (
     id INTEGER PRIMARY KEY,
     kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
     revision INTEGER NOT NULL,
     value TEXT,
     UNIQUE (kind, namespace, name)
   );
   CREATE INDEX resources_by_revision ON resources (revision, id);
   CREATE INDEX tombstones ON resources (revision) WHERE value IS NULL;
   CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
   INSERT INTO meta VALUES ('compacted', 0);`,
];

/** SQLite's result code of an error, extended codes cut to their base: `SQLITE_BUSY` for `SQLITE_BUSY_RECOVERY`. */
export function sqliteCode(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  if (typeof code !== "string" || !code.startsWith("SQLITE_")) return "";
  return /^SQLITE_(?:BUSY|LOCKED|CORRUPT|IOERR|READONLY|CANTOPEN|NOTADB|FULL|CONSTRAINT)/.exec(code)?.[0] ?? code;
}

export const isBusy = (error: unknown): boolean => ["SQLITE_BUSY", "SQLITE_LOCKED"].includes(sqliteCode(error));

/** A typed error for whatever SQLite threw while doing `attempt` on `path`. */
export function typedError(path: string, attempt: string, error: unknown): Error {
  const code = sqliteCode(error);
  const found = error instanceof Error ? error.message : String(error);
  if (code === "SQLITE_CORRUPT" || code === "SQLITE_NOTADB" || /^no such (?:table|column)/.test(found)) {
    return corrupt(path, found, error);
  }
  const wanted = code === "SQLITE_FULL"
    ? "free space on its file system"
    : code === "SQLITE_READONLY" || code === "SQLITE_CANTOPEN"
    ? "a file and directory this process may write"
    : code === "SQLITE_BUSY" || code === "SQLITE_LOCKED"
    ? "that no other process holds it locked"
    : "a working file system";
  return new UnavailableError(`${attempt} ${path}: ${found}; wanted ${wanted}`, { cause: error });
}

/** The file is not, or no longer, what we wrote. */
export function corrupt(path: string, found: string, cause?: unknown): CorruptError {
  return new CorruptError(
    `datastore ${path}: ${found}. Nothing was changed. Restore the file from a backup, or move it away ` +
      `(with ${path}-wal and ${path}-shm) to start with an empty datastore`,
    { cause },
  );
}

/**
 * Opens, makes or migrates the file. A file that is not ours, or is damaged, is only ever read.
 * @throws {CorruptError} naming the file, what was found and what to do; {UnavailableError} where it cannot be opened
 */
export function openDatabase(path: string): Database {
  createIfMissing(path);
  const version = inspect(path);
  let db: Database | undefined;
  try {
    db = new Database(path, { readwrite: true, create: false, strict: true });
    db.run(`PRAGMA busy_timeout = ${OPEN_BUSY_MS}`);
    const mode = switchToWal(db);
    if (mode !== "wal") {
      throw new UnavailableError(
        `opening ${path}: found journal mode ${mode}, wanted wal; use a local file system with shared memory`,
      );
    }
    // The flush of the log that FULL adds to each commit is `LogFile`'s.
    db.run("PRAGMA synchronous = NORMAL");
    if (version < SCHEMA_VERSION) migrate(db);
    return db;
  } catch (error) {
    db?.close();
    throw error instanceof UnavailableError ? error : typedError(path, "opening", error);
  }
}

function createIfMissing(path: string): void {
  try {
    const found = statSync(path, { throwIfNoEntry: false });
    if (found === undefined) {
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      // SQLite gives the -wal and -shm files the mode of the main file. Never opened again past SQLite once it
      // exists: closing such a descriptor would drop the POSIX locks that this process holds on the file.
      closeSync(openSync(path, "wx", 0o600));
      return;
    }
    if (!found.isFile()) {
      throw corrupt(path, found.isDirectory() ? "found a directory, wanted a file" : "found something that is no file");
    }
    if ((found.mode & 0o077) !== 0) chmodSync(path, 0o600);
  } catch (error) {
    if ((error as { code?: unknown }).code === "EEXIST" && statSync(path).isFile()) return; // made by another process just now
    if (error instanceof CorruptError) throw error;
    throw new UnavailableError(`making ${path}: ${(error as Error).message}`, { cause: error });
  }
}

/**
 * Looks through a read-only connection, which leaves the file and its log alone even when it closes.
 * Returns the schema version; 0 for an empty file.
 */
function inspect(path: string): number {
  const { size } = statSync(path);
  if (size > 0 && size < PAGE_MIN_BYTES) throw corrupt(path, `found ${size} bytes, which is not a database`);
  if (size === 0 && (statSync(`${path}-wal`, { throwIfNoEntry: false })?.size ?? 0) === 0) return 0;
  let db: Database | undefined;
  try {
    db = new Database(path, { readonly: true, strict: true });
    db.run(`PRAGMA busy_timeout = ${OPEN_BUSY_MS}`);
    const number = (sql: string) => Object.values(db!.query(sql).get() as Record<string, number>)[0]!;
    // One snapshot: another process may be making the file just now.
    db.run("BEGIN");
    const objects = number("SELECT count(*) FROM sqlite_schema");
    const application = number("PRAGMA application_id");
    const version = number("PRAGMA user_version");
    db.run("COMMIT");
    // Killed between making the file and making its tables.
    if (application === 0 && version === 0 && objects === 0) return 0;
    if (application !== APPLICATION_ID) {
      throw corrupt(path, `found a SQLite database of another program (application id ${application})`);
    }
    if (version > SCHEMA_VERSION) {
      throw new CorruptError(
        `datastore ${path}: found schema version ${version}, this program knows up to ${SCHEMA_VERSION}. Nothing was ` +
          `changed. Run the newer version of the program that wrote it, or restore a backup from before the upgrade`,
      );
    }
    const check = db.query("PRAGMA quick_check(1)").get() as Record<string, string>;
    const verdict = Object.values(check)[0];
    if (verdict !== "ok") throw corrupt(path, `the integrity check says: ${verdict}`);
    return version;
  } catch (error) {
    throw error instanceof CorruptError ? error : typedError(path, "opening", error);
  } finally {
    db?.close();
  }
}

function switchToWal(db: Database): string {
  // Two processes that switch at once: one is refused at once, whatever busy_timeout says.
  const deadline = performance.now() + OPEN_BUSY_MS;
  for (;;) {
    try {
      return (db.query("PRAGMA journal_mode = WAL").get() as { journal_mode: string }).journal_mode;
    } catch (error) {
      if (!isBusy(error) || performance.now() > deadline) throw error;
      Bun.sleepSync(5);
    }
  }
}

function migrate(db: Database): void {
  db.run("BEGIN IMMEDIATE");
  try {
    // Again under the lock: another process may have been first.
    const { user_version: from } = db.query("PRAGMA user_version").get() as { user_version: number };
    for (let version = from; version < SCHEMA_VERSION; version++) db.run(MIGRATIONS[version]!);
    db.run(`PRAGMA application_id = ${APPLICATION_ID}`);
    db.run(`PRAGMA user_version = ${SCHEMA_VERSION}`);
    db.run("COMMIT");
  } catch (error) {
    if (db.inTransaction) db.run("ROLLBACK");
    throw error;
  }
}
