/** The datastore over one SQLite file, which several processes of one machine may share. */
import type { Database } from "bun:sqlite";
import { closeSync, constants, type FSWatcher, openSync, statSync, watch as watchFile, write } from "node:fs";
import { keyText, type ResourceKey, type ResourceKind } from "../../../src/model/resource.ts";
import type { ChangeBatch, Datastore, Revision, Versioned, Write } from "../../../src/sdk/datastore.ts";
import { ConflictError, ManxError, RefusedError, UnavailableError } from "../../../src/sdk/errors.ts";
import type { Log } from "../../../src/sdk/plugin.ts";
import { type Flush, LogFile } from "./log_file.ts";
import { parseKeyText, parseValue, type PreparedWrite, prepareWrite, type Row, toChanges } from "./rows.ts";
import { corrupt, isBusy, openDatabase, typedError } from "./schema.ts";
import { prepareStatements, type Statements } from "./statements.ts";

/** SQLite itself waits this long, in this thread, for a lock: about the time of a few commits. */
const LOCK_WAIT_MS = 5;
/** Then the wait goes on beside other work, up to this long. */
const BUSY_LIMIT_MS = 10_000;
const BUSY_RETRY_MAX_MS = 10;
/** Commits in one transaction at most. */
const GROUP_MAX = 256;
/** Changes in one batch of a watcher; a batch ends between commits, so a large commit may make it longer. */
const BATCH_MAX = 1_000;
/** Tombstones kept at least, for watchers that lag; counted again after so many deletions by this process. */
export const TOMBSTONES_KEPT = 10_000;
const COMPACT_EVERY_DELETIONS = 1_000;
/** Safety net behind the notification file: a process killed between its commit and its notice. */
export const OTHER_PROCESS_POLL_MS = 1_000;
/** Bun drops file events that follow another within about two milliseconds: looked again after this long. */
const NOTICE_SETTLE_MS = 5;
/** The log is written back once this many rows were written and no commit came for a while… */
const CHECKPOINT_ROWS = 256;
const CHECKPOINT_IDLE_MS = 200;
/** …and in any case when it holds so many pages of 4 KiB. */
const CHECKPOINT_PAGES_MAX = 8_192;

interface PendingCommit {
  readonly writes: readonly PreparedWrite[];
  readonly signal: AbortSignal | undefined;
  readonly resolve: (revision: Revision) => void;
  readonly reject: (error: unknown) => void;
}

/** How far a watcher has come. */
interface Position {
  /** The kinds that are still to be replayed, the first one from `after` on; none = all is replayed, changes are followed. */
  readonly replay: readonly ReplayStep[];
  /** What is older has been delivered, or will be by the replay. */
  readonly cursor: number;
}

interface ReplayStep {
  /** Undefined: every kind. */
  readonly kind: ResourceKind | undefined;
  readonly after: ResourceKey;
}

interface Page {
  readonly rows: readonly Row[];
  /** Known keys that are gone without a tombstone. */
  readonly vanished: readonly ResourceKey[];
  readonly position: Position;
  /** Nothing newer was there. */
  readonly complete: boolean;
}

/** A watcher that has seen all there is for it. */
interface Waiting {
  /** Empty: every kind. */
  readonly kinds: readonly ResourceKind[];
  /** With what it waits for, where this process wrote it; without, it has to look. */
  readonly wake: (page?: Page) => void;
}

interface Outcome {
  readonly tell: () => void;
  /** Where what was written could not be made durable. */
  readonly fail: (error: unknown) => void;
}

const FIRST_KEY: ResourceKey = { kind: "", namespace: "", name: "" };

/** Opened by `SqliteDatastore.open`; closing it ends its watchers and refuses what still waits for a lock. */
export class SqliteDatastore implements Datastore {
  readonly #path: string;
  readonly #log: Log;
  readonly #db: Database;
  readonly #sql: Statements;
  readonly #inode: number;
  readonly #noticeFd: number;
  /** While a notice is being written. */
  #notice: Promise<void> | undefined;
  /** Whether something was committed meanwhile. */
  #noticeIsStale = false;
  readonly #logFile: LogFile;
  readonly #poll: ReturnType<typeof setInterval>;
  readonly #waiting = new Set<Waiting>();
  readonly #tombstonesKept: number;
  #noticeWatch: FSWatcher | undefined;
  #queue: PendingCommit[] = [];
  #flushPlanned = false;
  #busySinceMs: number | undefined;
  #busyTries = 0;
  /** Highest revision known to be in the file. */
  #latest: number;
  /** Of each kind that this process has written. */
  readonly #latestOf = new Map<ResourceKind, number>();
  /** Of another process's commits, which may be of any kind. */
  #latestOfOthers = 0;
  #settleTimer: ReturnType<typeof setTimeout> | undefined;
  #deletions = 0;
  #rowsSinceCheckpoint = 0;
  #checkpointTimer: ReturnType<typeof setTimeout> | undefined;
  #closed = false;

  private constructor(path: string, log: Log, db: Database, tombstonesKept: number, flush: Flush | undefined) {
    this.#path = path;
    this.#log = log;
    this.#db = db;
    this.#tombstonesKept = tombstonesKept;
    this.#sql = prepareStatements(db);
    this.#latest = this.#sql.latest.get()?.revision ?? 0;
    this.#inode = statSync(path).ino;
    this.#logFile = new LogFile(path, flush);
    const noticePath = `${path}-notice`;
    this.#noticeFd = openSync(noticePath, constants.O_RDWR | constants.O_CREAT, 0o600);
    try {
      this.#noticeWatch = watchFile(noticePath, { persistent: false }, () => this.#heed());
      this.#noticeWatch.on("error", (error) => this.#loseNotices(error));
    } catch (error) {
      this.#loseNotices(error);
    }
    this.#poll = setInterval(() => this.#look(), OTHER_PROCESS_POLL_MS);
    this.#poll.unref();
  }

  /** @throws {CorruptError} {UnavailableError} naming the file */
  static open(
    path: string,
    log: Log,
    options: { readonly tombstonesKept?: number; readonly flush?: Flush } = {},
  ): SqliteDatastore {
    const db = openDatabase(path);
    try {
      db.run(`PRAGMA busy_timeout = ${LOCK_WAIT_MS}`);
      db.run(`PRAGMA wal_autocheckpoint = ${CHECKPOINT_PAGES_MAX}`);
      return new SqliteDatastore(path, log, db, options.tombstonesKept ?? TOMBSTONES_KEPT, options.flush);
    } catch (error) {
      db.close();
      throw error instanceof ManxError ? error : typedError(path, "opening", error);
    }
  }

  async get(key: ResourceKey, signal?: AbortSignal): Promise<Versioned | undefined> {
    const row = await this.#patiently("reading", () => this.#sql.get.get(key.kind, key.namespace, key.name), signal);
    return row === null ? undefined : this.#versioned(row);
  }

  async list(kind: ResourceKind, signal?: AbortSignal): Promise<readonly Versioned[]> {
    const rows = await this.#patiently("reading", () => this.#sql.list.all(kind), signal);
    return rows.map((row) => this.#versioned(row));
  }

  reached(seen: Revision, wanted: Revision): boolean {
    return Number(seen) >= Number(wanted);
  }

  async commit(writes: readonly Write[], signal?: AbortSignal): Promise<Revision> {
    signal?.throwIfAborted();
    const prepared = writes.map(prepareWrite);
    if (new Set(prepared.map((write) => write.text)).size < prepared.length) {
      throw new RefusedError([`commit of ${prepared.map((write) => write.text).join(", ")}: a key is written twice`]);
    }
    if (this.#closed) throw this.#closedError();
    return await new Promise<Revision>((resolve, reject) => {
      this.#queue.push({ writes: prepared, signal, resolve, reject });
      this.#planFlush();
    });
  }

  async *watch(kinds: readonly ResourceKind[], signal: AbortSignal): AsyncGenerator<ChangeBatch> {
    const kindsJson = JSON.stringify(kinds);
    const known = new Set<string>();
    const steps = kinds.length === 0 ? [undefined] : [...new Set(kinds)].sort();
    let position: Position = { replay: steps.map((kind) => ({ kind, after: FIRST_KEY })), cursor: 0 };
    let synced = false;
    let handed: Page | undefined;
    while (!signal.aborted && !this.#closed) {
      let page: Page;
      try {
        page = handed ?? await this.#patiently("reading", () => this.#page(position, kindsJson, known), signal);
        handed = undefined;
      } catch (error) {
        if (signal.aborted || this.#closed) return;
        throw error;
      }
      position = page.position;
      const changes = toChanges(page, known);
      if (changes.length > 0 || (page.complete && !synced)) {
        synced ||= page.complete;
        yield { changes, synced };
      } else if (page.complete) handed = await this.#newerThan(position.cursor, kinds, signal);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    if (this.#queue.length > 0) this.#flush();
    this.#closed = true;
    for (const waiting of this.#queue.splice(0)) waiting.reject(this.#closedError());
    clearInterval(this.#poll);
    clearTimeout(this.#checkpointTimer);
    clearTimeout(this.#settleTimer);
    this.#noticeWatch?.close();
    await this.#logFile[Symbol.asyncDispose]();
    // The descriptor is in use by another thread meanwhile, and what is to be told is told.
    while (this.#notice !== undefined) await this.#notice;
    closeSync(this.#noticeFd);
    this.#wake();
    for (const statement of Object.values(this.#sql)) statement.finalize();
    this.#db.close();
  }

  #planFlush(): void {
    if (this.#flushPlanned) return;
    this.#flushPlanned = true;
    // Not a timer: the next turn of the event loop, once everything that arrived with this commit has been read.
    setImmediate(() => {
      this.#flushPlanned = false;
      if (!this.#closed && this.#busySinceMs === undefined) this.#flush();
    });
  }

  /** Carries out what is queued in one transaction; each commit keeps its own outcome. */
  #flush(): void {
    const group = this.#queue.splice(0, GROUP_MAX);
    if (group.length === 0) return;
    let outcomes: Outcome[];
    try {
      if (this.#logFile.failure !== undefined) throw this.#logFile.failure;
      this.#assertSameFile();
      this.#sql.begin.run();
    } catch (error) {
      if (isBusy(error) && this.#retryLater(group)) return;
      this.#finishBusy();
      const typed = error instanceof ManxError ? error : typedError(this.#path, "committing to", error);
      for (const waiting of group) waiting.reject(typed);
      return;
    }
    this.#finishBusy();
    try {
      outcomes = this.#carryOut(group);
    } catch (error) {
      if (this.#db.inTransaction) this.#sql.rollback.run();
      const typed = error instanceof ManxError ? error : typedError(this.#path, "committing to", error);
      for (const waiting of group) waiting.reject(typed);
      return;
    }
    if (outcomes.length > 0) {
      // Those who watch have it already: a crash of this process loses nothing, only the machine's could.
      this.#logFile.flushed().then(
        () => outcomes.forEach(({ tell }) => tell()),
        (error) => outcomes.forEach(({ fail }) => fail(error)),
      );
    }
    if (this.#queue.length > 0) this.#planFlush();
  }

  /** @returns the outcomes that wait for the disk; others are told at once */
  #carryOut(group: readonly PendingCommit[]): Outcome[] {
    const before = this.#sql.latest.get()?.revision ?? 0;
    if (before > this.#latest) this.#takeNotice(before);
    let revision = before;
    const outcomes: Outcome[] = [];
    const written: Row[] = [];
    for (const { writes, signal, resolve, reject } of group) {
      if (signal?.aborted) {
        reject(signal.reason);
        continue;
      }
      const conflicts = writes.filter((write) => !this.#holds(write)).map((write) => write.text);
      if (conflicts.length > 0) {
        reject(new ConflictError(conflicts));
        continue;
      }
      // One commit alone is undone with the whole transaction.
      const isAlone = group.length === 1;
      if (!isAlone) this.#sql.savepoint.run();
      const rowsBefore = written.length;
      try {
        for (const write of writes) {
          const row = this.#write(write, revision + 1);
          if (row !== undefined) written.push(row);
        }
      } catch (error) {
        if (isAlone || !this.#db.inTransaction) throw error; // or SQLite gave the whole transaction up
        written.length = rowsBefore;
        this.#sql.undo.run();
        this.#sql.release.run();
        reject(typedError(this.#path, "committing to", error));
        continue;
      }
      if (!isAlone) this.#sql.release.run();
      if (written.length > rowsBefore) revision++;
      const reached = String(revision) as Revision;
      outcomes.push({ tell: () => resolve(reached), fail: reject });
    }
    if (written.length === 0) {
      this.#sql.rollback.run();
      return outcomes;
    }
    if (this.#deletions >= COMPACT_EVERY_DELETIONS || this.#deletions >= this.#tombstonesKept) this.#compact();
    this.#sql.commit.run();
    this.#latest = revision;
    for (const row of written) this.#latestOf.set(row.kind, revision);
    this.#hand(written, revision);
    this.#tellOthers();
    this.#planCheckpoint(written.length);
    return outcomes;
  }

  #holds({ key, expect }: PreparedWrite): boolean {
    if (expect === undefined) return true;
    const found = this.#sql.revision.get(key.kind, key.namespace, key.name);
    return found === null ? expect === null : expect === String(found.revision);
  }

  /** The row it becomes; undefined where an absent key is deleted. */
  #write({ key, json }: PreparedWrite, revision: number): Row | undefined {
    const { kind, namespace, name } = key;
    if (json !== null) {
      this.#sql.put.run(kind, namespace, name, revision, json);
      return { kind, namespace, name, revision, value: json };
    }
    const { changes } = this.#sql.bury.run(revision, kind, namespace, name);
    this.#deletions += changes;
    return changes === 0 ? undefined : { kind, namespace, name, revision, value: null };
  }

  /** Keeps the newest tombstone at least: it may be what carries the highest revision. */
  #compact(): void {
    this.#deletions = 0;
    const cutoff = this.#sql.cutoff.get(Math.max(1, this.#tombstonesKept))?.revision;
    if (cutoff === undefined) return;
    this.#sql.dropTombstones.run(cutoff);
    this.#sql.setCompacted.run(cutoff);
  }

  #retryLater(group: readonly PendingCommit[]): boolean {
    const now = performance.now();
    this.#busySinceMs ??= now;
    if (now - this.#busySinceMs > BUSY_LIMIT_MS) return false;
    this.#queue.unshift(...group);
    const pauseMs = Math.min(BUSY_RETRY_MAX_MS, ++this.#busyTries);
    setTimeout(() => {
      if (!this.#closed) this.#flush();
    }, pauseMs);
    return true;
  }

  #finishBusy(): void {
    this.#busySinceMs = undefined;
    this.#busyTries = 0;
  }

  /** Commits to a file that is no longer at its path would be lost with the process. */
  #assertSameFile(): void {
    if (statSync(this.#path, { throwIfNoEntry: false })?.ino === this.#inode) return;
    throw corrupt(this.#path, "the file was removed or replaced while it was open; the running process refuses writes");
  }

  #page(position: Position, kinds: string, known: ReadonlySet<string>): Page {
    this.#sql.beginRead.run();
    try {
      const latest = this.#sql.latest.get()?.revision ?? 0;
      return position.replay.length > 0
        ? this.#replay(position, latest)
        : this.#follow(position.cursor, latest, kinds, known);
    } finally {
      this.#sql.commit.run();
    }
  }

  /** By key, so that a watch of few kinds reads no others; what changes meanwhile is followed afterwards. */
  #replay({ replay, cursor }: Position, latest: number): Page {
    const rows: Row[] = [];
    const from = cursor === 0 ? latest : cursor;
    for (let i = 0; i < replay.length; i++) {
      const { kind, after } = replay[i]!;
      const room = BATCH_MAX - rows.length;
      const found = kind === undefined
        ? this.#sql.replayAll.all(after.kind, after.namespace, after.name, room)
        : this.#sql.replayKind.all(kind, after.namespace, after.name, room);
      rows.push(...found);
      if (found.length < room) continue;
      const rest = [{ kind, after: rows.at(-1)! }, ...replay.slice(i + 1)];
      return { rows, vanished: [], position: { replay: rest, cursor: from }, complete: false };
    }
    return { rows, vanished: [], position: { replay: [], cursor: from }, complete: from === latest };
  }

  #follow(cursor: number, latest: number, kinds: string, known: ReadonlySet<string>): Page {
    const vanished = cursor < this.#sql.compacted.get()!.value ? this.#vanished(known) : [];
    const rows = latest > cursor ? this.#sql.since.all(cursor, kinds, BATCH_MAX) : [];
    const last = rows.at(-1);
    if (last === undefined || rows.length < BATCH_MAX) {
      return { rows, vanished, position: { replay: [], cursor: latest }, complete: true };
    }
    rows.push(...this.#sql.restOfRevision.all(last.revision, last.id!, kinds));
    return { rows, vanished, position: { replay: [], cursor: last.revision }, complete: last.revision === latest };
  }

  #vanished(known: ReadonlySet<string>): ResourceKey[] {
    return [...known].map(parseKeyText).filter((key) =>
      this.#sql.revision.get(key.kind, key.namespace, key.name) === null
    );
  }

  #versioned(row: Row): Versioned {
    const key = { kind: row.kind, namespace: row.namespace, name: row.name };
    const value = parseValue(row.value!);
    if (typeof value === "string") throw corrupt(this.#path, `${keyText(key)} cannot be read: ${value}`);
    return { key, value, revision: String(row.revision) as Revision };
  }

  /** Runs a read again while another process recovers the log or closes the file. */
  async #patiently<T>(attempt: string, read: () => T, signal: AbortSignal | undefined): Promise<T> {
    const deadline = performance.now() + BUSY_LIMIT_MS;
    for (;;) {
      signal?.throwIfAborted();
      if (this.#closed) throw this.#closedError();
      try {
        return read();
      } catch (error) {
        if (error instanceof ManxError) throw error;
        if (!isBusy(error) || performance.now() > deadline) throw typedError(this.#path, attempt, error);
      }
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  /** Resolves when there is something newer, with it where it is at hand. */
  async #newerThan(cursor: number, kinds: readonly ResourceKind[], signal: AbortSignal): Promise<Page | undefined> {
    if (this.#latestFor(kinds) > cursor || signal.aborted || this.#closed) return;
    const { promise, resolve } = Promise.withResolvers<Page | undefined>();
    const waiting: Waiting = { kinds, wake: resolve };
    const stop = () => resolve(undefined);
    this.#waiting.add(waiting);
    signal.addEventListener("abort", stop, { once: true });
    const page = await promise;
    this.#waiting.delete(waiting);
    signal.removeEventListener("abort", stop);
    return page;
  }

  #latestFor(kinds: readonly ResourceKind[]): number {
    if (kinds.length === 0) return this.#latest;
    return kinds.reduce((latest, kind) => Math.max(latest, this.#latestOf.get(kind) ?? 0), this.#latestOfOthers);
  }

  /** Everybody who waits has seen all there was for them before: what this process wrote since is all they lack. */
  #hand(written: readonly Row[], revision: number): void {
    const latest = [...new Map(written.map((row) => [keyText(row), row])).values()];
    for (const waiting of this.#waiting) {
      const { kinds } = waiting;
      const rows = kinds.length === 0 ? latest : latest.filter(({ kind }) => kinds.includes(kind));
      if (rows.length === 0) continue;
      waiting.wake({ rows, vanished: [], position: { replay: [], cursor: revision }, complete: true });
      this.#waiting.delete(waiting);
    }
  }

  /** Everybody looks for himself. */
  #wake(): void {
    for (const { wake } of this.#waiting) wake();
    this.#waiting.clear();
  }

  /** A file event: looks now, and again until nothing new has come for a while. */
  #heed(): void {
    this.#look();
    this.#settleTimer ??= setTimeout(() => {
      this.#settleTimer = undefined;
      if (this.#look()) this.#heed();
    }, NOTICE_SETTLE_MS);
    this.#settleTimer.unref();
  }

  /** Whether another process has committed since the last look. */
  #look(): boolean {
    if (this.#closed) return false;
    try {
      const latest = this.#sql.latest.get()?.revision ?? 0;
      if (latest <= this.#latest) return false;
      this.#takeNotice(latest);
      return true;
    } catch (error) {
      if (!isBusy(error)) this.#log.error("datastore cannot be read", { path: this.#path, error: String(error) });
      return false;
    }
  }

  /** Of commits by another process. */
  #takeNotice(latest: number): void {
    this.#latest = this.#latestOfOthers = latest;
    this.#wake();
  }

  /**
   * After the commit is visible, so that whoever is woken finds it: the log file itself changes before it is. Beside this thread, as
   * the filesystem may be busy with its journal. What is committed while a notice is being written has one of its own after it.
   */
  #tellOthers(): void {
    if (this.#notice !== undefined) {
      this.#noticeIsStale = true;
      return;
    }
    this.#noticeIsStale = false;
    this.#notice = new Promise((resolve) =>
      write(this.#noticeFd, NOTICE, 0, 1, 0, (error) => {
        this.#notice = undefined;
        if (error !== null) {
          this.#log.warn("other processes learn of commits by polling only", {
            path: this.#path,
            error: String(error),
          });
        } else if (this.#noticeIsStale) this.#tellOthers();
        resolve();
      })
    );
  }

  #loseNotices(error: unknown): void {
    this.#noticeWatch?.close();
    this.#noticeWatch = undefined;
    this.#log.warn("commits of other processes are noticed by polling only", {
      path: this.#path,
      intervalMs: OTHER_PROCESS_POLL_MS,
      error: String(error),
    });
  }

  #planCheckpoint(rows: number): void {
    this.#rowsSinceCheckpoint += rows;
    if (this.#rowsSinceCheckpoint < CHECKPOINT_ROWS) return;
    clearTimeout(this.#checkpointTimer);
    this.#checkpointTimer = setTimeout(() => {
      this.#rowsSinceCheckpoint = 0;
      try {
        this.#sql.checkpoint.get();
      } catch (error) {
        this.#log.debug("write-ahead log not written back yet", { path: this.#path, error: String(error) });
      }
    }, CHECKPOINT_IDLE_MS);
    this.#checkpointTimer.unref();
  }

  #closedError = (): UnavailableError => new UnavailableError(`datastore ${this.#path} is closed`);
}

const NOTICE = new Uint8Array(new ArrayBuffer(1));
