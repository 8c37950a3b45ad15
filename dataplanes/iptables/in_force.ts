/** What of ours is in the kernel, as far as we know, and how a generation of it comes there and goes. */
import { isErrno } from "../../src/kernel/errors.ts";
import { explainError } from "../../src/sdk/errors.ts";
import type { NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import type { Host } from "../../src/sdk/plugin.ts";
import { type Backend, keyOf, type Place, type WriteOptions } from "./backend.ts";
import type { IptablesConfig } from "./config.ts";
import type { CountingTable } from "./counters.ts";
import { setDifferences, tableDifferences } from "./differences.ts";
import { Encoder, NOTHING } from "./encoder.ts";
import { IpSets } from "./ip_sets.ts";
import type { IpSet, Ruleset, Table, TableName } from "./ruleset.ts";
import { lockProblem, takeLock } from "./table_lock.ts";

/** In which the kernel usually disposes of rules. */
const RELEASE_MS = 25;
/** What closes first: rules that open (what is allowed before tracking, before DNAT) are written after those that deny. */
const ORDER: readonly TableName[] = ["nat", "filter", "mangle", "raw"];

export interface Brought {
  readonly messages: number;
  /** What was found that should not be there, one line each. */
  readonly notes: readonly string[];
  /** Why something is not as wanted, one line each. */
  readonly wrong: readonly string[];
}

type Places = ReadonlyMap<string, readonly [Place, Table | undefined]>;

export class InForce {
  private readonly sets: IpSets;
  private readonly encoder = new Encoder();
  /** What each table holds of ours as far as we know; absent: it must be read. */
  private readonly there = new Map<string, Table | undefined>();
  /** As it was written last. */
  private wanted: Places = new Map();
  private isOtherSwept = false;

  /**
   * @param netlink stays its opener's
   * @param backend what is written to; with `other`, it is closed with this
   * @param other is not written to: what an earlier process has left there goes once ours is in force
   */
  constructor(
    private readonly config: IptablesConfig,
    private readonly host: Host,
    private readonly netlink: NetlinkSocket,
    private readonly backend: Backend,
    private readonly other: Backend,
  ) {
    this.sets = new IpSets(netlink);
  }

  /** Everything is read anew. */
  forget(): void {
    this.there.clear();
    this.backend.forget();
    this.sets.forget();
  }

  /**
   * @param operation what it is for, for errors
   * @param unknown called before a table is written of which nobody knows what was in it
   */
  async bring(
    { tables, sets }: Ruleset,
    operation: string,
    unknown: (place: Place) => void,
    signal?: AbortSignal,
  ): Promise<Brought> {
    try {
      const places = this.placesOf(tables);
      const isThere = ([key, [, table]]: [string, readonly [Place, Table | undefined]]) =>
        this.there.has(key) && this.there.get(key) === table;
      if ([...places].every(isThere) && this.isOtherSwept) {
        if (!this.sets.needs(sets)) return { messages: 0, notes: [], wrong: [] };
        // Sets are changed without the lock: no table changes with them.
        const messages = this.sets.bring(sets);
        const cleaned = await this.cleanSets(sets);
        return { messages: messages + cleaned.messages, notes: cleaned.problems, wrong: [] };
      }
      using lock = await this.lock(this.backend, signal);
      if (lock === undefined) return { messages: 0, notes: [], wrong: [lockProblem(this.config)] };
      let messages = this.sets.bring(sets);
      this.wanted = places;
      const todo = [...places].filter((one) => !isThere(one)).map(([, one]) => one);
      for (const [place] of todo) if (!this.there.delete(keyOf(place))) unknown(place);
      const written = this.backend.write(
        todo.map(([place, table]) => ({ place, wanted: this.encoder.table(table) })),
        this.writeOptions,
        operation,
      );
      messages += written.messages;
      for (const [place, table] of todo) if (!written.failed.has(keyOf(place))) this.there.set(keyOf(place), table);
      const notes = [...written.notes], wrong = [...new Set(written.failed.values())];
      if (wrong.length > 0) return { messages, notes, wrong };
      if (!this.isOtherSwept) {
        lock[Symbol.dispose]();
        const swept = await this.sweepTables(this.other, signal);
        messages += swept.messages;
        notes.push(...swept.problems);
        this.isOtherSwept = swept.problems.length === 0;
      }
      const cleaned = await this.cleanSets(sets);
      return { messages: messages + cleaned.messages, notes: [...notes, ...cleaned.problems], wrong: [] };
    } catch (error) {
      this.forget();
      return { messages: 0, notes: [], wrong: [explainError(error)] };
    }
  }

  /** Takes away everything of ours, whoever wrote it. */
  async sweep(signal?: AbortSignal): Promise<Brought> {
    this.forget();
    this.wanted = new Map();
    try {
      let messages = 0;
      const wrong: string[] = [];
      for (const backend of [this.backend, this.other]) {
        const swept = await this.sweepTables(backend, signal);
        messages += swept.messages;
        wrong.push(...swept.problems);
      }
      this.sets.bring(new Map());
      const cleaned = await this.cleanSets(new Map());
      return { messages: messages + cleaned.messages, notes: [], wrong: [...wrong, ...cleaned.problems] };
    } catch (error) {
      return { messages: 0, notes: [], wrong: [explainError(error)] };
    } finally {
      this.forget();
    }
  }

  private get writeOptions(): WriteOptions {
    return { position: this.config.position, indexOf: (set) => this.sets.indexOf(set) };
  }

  /** What is to be where: the tables that are wanted, and those that there are, which may have something of ours from before. */
  private placesOf(tables: readonly Table[]): Places {
    const places = new Map<string, readonly [Place, Table | undefined]>();
    const byOrder = [...tables].sort((a, b) => ORDER.indexOf(a.table) - ORDER.indexOf(b.table) || a.family - b.family);
    for (const table of byOrder) places.set(keyOf(table), [table, table]);
    for (const place of this.backend.places()) {
      const key = keyOf(place);
      if (!places.has(key)) places.set(key, [{ family: place.family, table: place.table }, undefined]);
    }
    return places;
  }

  /** Undefined: somebody else held it all the time. */
  private lock({ locks }: Backend, signal?: AbortSignal): Promise<Disposable | undefined> {
    return locks ? takeLock(this.host, this.config, signal) : Promise.resolve(NO_LOCK);
  }

  /** Sets that were asked until now may be held a moment longer, by rules that the kernel has not yet disposed of. */
  private async cleanSets(wanted: ReadonlyMap<string, IpSet>): Promise<ReturnType<IpSets["clean"]>> {
    const { messages, problems } = this.sets.clean(wanted);
    if (problems.length === 0 || this.backend.settle === undefined) return { messages, problems };
    await this.host.clock.sleep(RELEASE_MS, NEVER).catch(() => {});
    this.backend.settle();
    const again = this.sets.clean(wanted);
    return { messages: messages + again.messages, problems: again.problems };
  }

  /** Takes everything of ours from the tables. @throws {KernelError} */
  private async sweepTables(
    backend: Backend,
    signal?: AbortSignal,
  ): Promise<{ readonly messages: number; readonly problems: readonly string[] }> {
    // Nobody waits for the lock where nothing of ours is: a dataplane that never got it has left nothing.
    const places = backend.places().filter((place) => this.mayHaveOurs(backend, place));
    if (places.length === 0) return { messages: 0, problems: [] };
    using lock = await this.lock(backend, signal);
    if (lock === undefined) return { messages: 0, problems: [lockProblem(this.config)] };
    const nothing = places.map((place) => ({ place, wanted: NOTHING }));
    const { messages, notes, failed } = backend.write(nothing, this.writeOptions, "sweep");
    return { messages, problems: [...notes, ...new Set(failed.values())] };
  }

  private mayHaveOurs(backend: Backend, place: Place): boolean {
    try {
      return backend.differs({ place, wanted: NOTHING }, this.writeOptions, true);
    } catch {
      // It cannot be read: whoever writes says why.
      return true;
    }
  }

  // ---------------------------------------------------------------------------------------------------------------- looking

  /** Why it is not as it was written; undefined: nothing is known against it. @throws {Error} naming the table */
  drifted(thorough: boolean): string | undefined {
    for (const [key, [place, table]] of this.wanted) {
      if (!this.there.has(key)) continue;
      if (this.backend.differs({ place, wanted: this.encoder.table(table) }, this.writeOptions, thorough)) {
        return `table ${place.table} of ip${place.family === 6 ? "6" : ""}tables was changed by somebody else`;
      }
    }
    return this.sets.drifted();
  }

  /** What of the kernel is not so, as lines for people. @throws {Error} */
  differences({ tables, sets }: Ruleset): readonly string[] {
    const there = new Set(this.backend.places().map(keyOf));
    const indexOf = (set: string) => {
      try {
        return this.sets.indexOf(set);
      } catch (error) {
        // A set that is not there is in no rule.
        if (isErrno(error, "ENOENT")) return -1;
        throw error;
      }
    };
    const options = { ...this.writeOptions, indexOf };
    return [
      ...setDifferences(this.netlink, sets),
      ...[...this.placesOf(tables)].flatMap(([key, [place, table]]) =>
        tableDifferences(
          there.has(key) ? this.backend.read(place) : undefined,
          table,
          this.encoder.table(table),
          options,
          () => !this.backend.differs({ place, wanted: this.encoder.table(table) }, options, true),
        )
      ),
    ];
  }

  /** Tables as they were written that have one of these chains, read with their counters. @throws {Error} naming the table */
  tablesWith(chains: ReadonlySet<string>): readonly CountingTable[] {
    return [...this.wanted].flatMap(([key, [place, table]]): CountingTable[] => {
      if (table === undefined || this.there.get(key) !== table || !hasAny(table, chains)) return [];
      return [{ family: place.family, chains: table.chains, found: this.backend.read(place).chains }];
    });
  }

  [Symbol.dispose](): void {
    this.backend[Symbol.dispose]();
    this.other[Symbol.dispose]();
  }
}

const NEVER = new AbortController().signal;
const NO_LOCK: Disposable = { [Symbol.dispose]() {} };
const hasAny = ({ chains }: Table, names: ReadonlySet<string>): boolean => [...names].some((name) => chains.has(name));
