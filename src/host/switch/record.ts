/**
 * What a daemon must know of earlier ones to own the kernel's rules: which dataplanes may have something there, and whether one
 * of them was put in the place of the configured one by `manx dataplane switch`.
 *
 * The configuration file is its author's: nothing of ours writes there. So a switch is remembered here, and holds for as long as the
 * configuration names the dataplanes that it named then; who edits it afterwards has the last word. Whoever has written and is not
 * in use any more is swept once what is in use is in force: rules that nobody brings up to date would deny new pods.
 */
import { closeSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";
import { dirname, join } from "node:path";
import { ManxError } from "../../sdk/errors.ts";
import type { Config, Slot } from "../config.ts";

const FILE = "dataplanes.json";

export interface RecordedSlot {
  readonly use: string;
  readonly config?: unknown;
  readonly sha256?: string;
}

interface Recorded {
  readonly version: 1;
  /** By `use`, each once. */
  readonly written: readonly RecordedSlot[];
  readonly switched?: {
    /** `use` of each configured dataplane when it was switched. */
    readonly configured: readonly string[];
    /** Which of them is replaced. */
    readonly from: string;
    readonly to: RecordedSlot;
  };
}

const EMPTY: Recorded = { version: 1, written: [] };

export class DataplaneRecord {
  readonly #path: string;
  #recorded: Recorded;

  private constructor(path: string, recorded: Recorded) {
    this.#path = path;
    this.#recorded = recorded;
  }

  /** @throws {ManxError} code `config`, where the file is not what we write */
  static read(stateDirectory: string): DataplaneRecord {
    const path = join(stateDirectory, FILE);
    let text: string;
    try {
      text = readFileSync(path, "utf8");
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === "ENOENT") return new DataplaneRecord(path, EMPTY);
      throw new ManxError("config", `read ${path}: found ${(cause as Error).message}, wanted it readable`, { cause });
    }
    return new DataplaneRecord(path, parse(text, path));
  }

  get path(): string {
    return this.#path;
  }

  /** Those that may have something in the kernel. */
  get written(): readonly RecordedSlot[] {
    return this.#recorded.written;
  }

  /** The dataplane that a switch has put in the place of a configured one; undefined where the configuration holds. */
  switchedIn(config: Config): { readonly from: string; readonly to: RecordedSlot } | undefined {
    const { switched } = this.#recorded;
    return switched !== undefined && switched.configured.join("\n") === usesOf(config).join("\n")
      ? switched
      : undefined;
  }

  /** The configuration with the dataplanes that are to be in force. */
  effective(config: Config): Config {
    const switched = this.switchedIn(config);
    if (switched === undefined) return config;
    const dataplanes = config.dataplanes.map((slot) =>
      slot.use === switched.from ? { ...switched.to, config: switched.to.config, path: slot.path } : slot
    );
    return { ...config, dataplanes };
  }

  /** Before one of these writes anything. @throws {ManxError} */
  willWrite(slots: readonly RecordedSlot[]): void {
    const news = slots.map(recordedOf);
    const written = [...this.written.filter(({ use }) => !news.some((slot) => slot.use === use)), ...news];
    if (JSON.stringify(sorted(written)) === JSON.stringify(sorted(this.written))) return;
    this.#write({ ...this.#recorded, written });
  }

  /** Nothing of it is left. @throws {ManxError} */
  swept(use: string): void {
    const written = this.written.filter((slot) => slot.use !== use);
    if (written.length < this.written.length) this.#write({ ...this.#recorded, written });
  }

  /** `to` undefined: as the configuration says. @throws {ManxError} */
  switchTo(config: Config, from: string, to: RecordedSlot | undefined): void {
    const { switched: _, ...rest } = this.#recorded;
    this.#write(
      to === undefined ? rest : { ...rest, switched: { configured: usesOf(config), from, to: recordedOf(to) } },
    );
  }

  /** Durable on return: a daemon that dies right after must be found by the next one as it was. */
  #write(recorded: Recorded): void {
    const fresh = `${this.#path}.new`;
    try {
      mkdirSync(dirname(this.#path), { recursive: true, mode: 0o700 });
      const fd = openSync(fresh, "w", 0o600);
      try {
        writeSync(fd, `${JSON.stringify(recorded, null, 2)}\n`);
        fsyncSync(fd);
      } finally {
        closeSync(fd);
      }
      renameSync(fresh, this.#path);
      const directory = openSync(dirname(this.#path), "r");
      try {
        fsyncSync(directory);
      } finally {
        closeSync(directory);
      }
    } catch (cause) {
      throw new ManxError("config", `write ${this.#path}: found ${(cause as Error).message}, wanted it written`, {
        cause,
      });
    }
    this.#recorded = recorded;
  }
}

const usesOf = ({ dataplanes }: Config): readonly string[] => dataplanes.map(({ use }) => use);
const sorted = (slots: readonly RecordedSlot[]) =>
  [...slots].sort((a, b) => a.use < b.use ? -1 : a.use > b.use ? 1 : 0);

export const recordedOf = ({ use, config, sha256 }: RecordedSlot | Slot): RecordedSlot => ({
  use,
  ...config === undefined ? {} : { config },
  ...sha256 === undefined ? {} : { sha256 },
});

function parse(text: string, path: string): Recorded {
  const refuse = (found: string) =>
    new ManxError(
      "config",
      `state file ${path}: found ${found}, wanted what manx wrote there; without the file the configuration holds, and ` +
        "`manx sweep` removes what a dataplane that was switched away has left",
    );
  let raw: Partial<Recorded> | null;
  try {
    raw = JSON.parse(text);
  } catch {
    throw refuse("no JSON");
  }
  if (raw === null || typeof raw !== "object" || raw.version !== 1) throw refuse("another form");
  const isSlot = (slot: unknown): slot is RecordedSlot =>
    typeof slot === "object" && slot !== null && typeof (slot as RecordedSlot).use === "string";
  const { written, switched } = raw;
  if (!Array.isArray(written) || !written.every(isSlot)) throw refuse("no list of dataplanes");
  if (switched === undefined) return { version: 1, written };
  const { configured, from, to } = switched;
  if (!Array.isArray(configured) || typeof from !== "string" || !isSlot(to)) throw refuse("an unclear switch");
  return { version: 1, written, switched: { configured, from, to } };
}
