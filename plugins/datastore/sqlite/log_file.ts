/**
 * Flushing of the write-ahead log, off this thread: what SQLite's `synchronous = FULL` does inside COMMIT, where it would hold up
 * everything else for as long as the disk takes. COMMIT itself runs with NORMAL, which leaves out that one flush and no other.
 */
import { closeSync, constants, fdatasync, openSync } from "node:fs";
import { UnavailableError } from "../../../src/sdk/errors.ts";

/** Brings a file's data to its disk and calls back. */
export type Flush = (fd: number, done: (error: Error | null) => void) => void;

interface Asked {
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class LogFile {
  readonly #path: string;
  readonly #flush: Flush;
  readonly #fd: number;
  #asked: Asked[] = [];
  #busy = false;
  #failure: Error | undefined;

  /** `path` is the database's. The log stands as long as that is open; SQLite holds no locks on it, so closing this drops none. */
  constructor(path: string, flush: Flush = fdatasync) {
    this.#path = `${path}-wal`;
    this.#flush = flush;
    this.#fd = openSync(this.#path, constants.O_RDWR | constants.O_CREAT, 0o600);
  }

  /** Why nothing more may be written: after a failed flush nobody knows what the disk holds, and no later flush tells. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  /** Resolves when all that was written before the call is on the disk. @throws {UnavailableError} where that is not known */
  flushed(): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      this.#asked.push({ resolve, reject });
      if (!this.#busy) this.#next();
    });
  }

  /** One flush answers for everybody who asked before it began. */
  #next(): void {
    const answered = this.#asked.splice(0);
    if (answered.length === 0) return;
    this.#busy = true;
    this.#flush(this.#fd, (error) => {
      this.#busy = false;
      if (error === null) {
        for (const { resolve } of answered) resolve();
        return this.#next();
      }
      const failure = this.#failure = new UnavailableError(
        `flushing ${this.#path} to its disk: ${error.message}; wanted a working file system. What was committed last may ` +
          "be lost with the machine's power; nothing more is written until the process is started again",
        { cause: error },
      );
      for (const { reject } of [...answered, ...this.#asked.splice(0)]) reject(failure);
    });
  }

  /** Answers everybody first. */
  async [Symbol.asyncDispose](): Promise<void> {
    // The descriptor is in use by another thread while a flush is under way.
    if (this.#busy) await this.flushed().catch(() => {});
    closeSync(this.#fd);
  }
}
