/** Every statement that the datastore runs, prepared once. */
import type { Database } from "bun:sqlite";
import type { Row } from "./rows.ts";

export const prepareStatements = (db: Database) => ({
  begin: db.prepare("BEGIN IMMEDIATE"),
  beginRead: db.prepare("BEGIN"),
  commit: db.prepare("COMMIT"),
  rollback: db.prepare("ROLLBACK"),
  savepoint: db.prepare("SAVEPOINT one"),
  release: db.prepare("RELEASE one"),
  undo: db.prepare("ROLLBACK TO one"),
  latest: db.prepare<{ revision: number | null }, []>("SELECT max(revision) AS revision FROM resources"),
  compacted: db.prepare<{ value: number }, []>("SELECT value FROM meta WHERE name = 'compacted'"),
  get: db.prepare<Row, [string, string, string]>(
    "SELECT * FROM resources WHERE kind = ? AND namespace = ? AND name = ? AND value IS NOT NULL",
  ),
  revision: db.prepare<{ revision: number }, [string, string, string]>(
    "SELECT revision FROM resources WHERE kind = ? AND namespace = ? AND name = ? AND value IS NOT NULL",
  ),
  list: db.prepare<Row, [string]>(
    "SELECT * FROM resources WHERE kind = ? AND value IS NOT NULL ORDER BY namespace, name",
  ),
  put: db.prepare<void, [string, string, string, number, string]>(
    `INSERT INTO resources (kind, namespace, name, revision, value) VALUES (?, ?, ?, ?, ?)
     ON CONFLICT (kind, namespace, name) DO UPDATE SET revision = excluded.revision, value = excluded.value`,
  ),
  bury: db.prepare<void, [number, string, string, string]>(
    `UPDATE resources SET revision = ?, value = NULL
     WHERE kind = ? AND namespace = ? AND name = ? AND value IS NOT NULL`,
  ),
  cutoff: db.prepare<{ revision: number }, [number]>(
    "SELECT revision FROM resources WHERE value IS NULL ORDER BY revision DESC LIMIT 1 OFFSET ?",
  ),
  dropTombstones: db.prepare<void, [number]>("DELETE FROM resources WHERE value IS NULL AND revision <= ?"),
  setCompacted: db.prepare<void, [number]>("UPDATE meta SET value = ? WHERE name = 'compacted'"),
  since: db.prepare<Row, [number, string, number]>(
    `SELECT * FROM resources WHERE revision > ?1 AND (?2 = '[]' OR kind IN (SELECT value FROM json_each(?2)))
     ORDER BY revision, id LIMIT ?3`,
  ),
  replayAll: db.prepare<Row, [string, string, string, number]>(
    `SELECT * FROM resources WHERE (kind, namespace, name) > (?, ?, ?) AND value IS NOT NULL
     ORDER BY kind, namespace, name LIMIT ?`,
  ),
  replayKind: db.prepare<Row, [string, string, string, number]>(
    `SELECT * FROM resources WHERE kind = ? AND (namespace, name) > (?, ?) AND value IS NOT NULL
     ORDER BY namespace, name LIMIT ?`,
  ),
  restOfRevision: db.prepare<Row, [number, number, string]>(
    `SELECT * FROM resources WHERE revision = ?1 AND id > ?2
     AND (?3 = '[]' OR kind IN (SELECT value FROM json_each(?3))) ORDER BY id`,
  ),
  checkpoint: db.prepare("PRAGMA wal_checkpoint(PASSIVE)"),
});

export type Statements = ReturnType<typeof prepareStatements>;
