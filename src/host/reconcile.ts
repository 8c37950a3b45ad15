/** The one loop that brings the kernel to what the datastore says. */
import type { Calc, CalcResult } from "../calc/mod.ts";
import type { DesiredState, RouteState } from "../model/desired.ts";
import { keyText, type Problem, type ResourceKey } from "../model/resource.ts";
import type { WorldChange } from "../model/world.ts";
import type { Change, ChangeBatch, Datastore, Revision } from "../sdk/datastore.ts";
import type { Dataplane, Report, Routing } from "../sdk/dataplane.ts";
import { explainError, ManxError } from "../sdk/errors.ts";
import type { Clock, Log } from "../sdk/plugin.ts";
import { Inbox } from "./inbox.ts";
import { createTimings } from "./timing.ts";
import type { Translator } from "./resources/translation.ts";

/** First and longest pause before what failed is tried again; it doubles in between. A new change does not wait for it. */
export const RETRY_FIRST_MS = 20;
export const RETRY_LONGEST_MS = 5_000;
/** Deleted keys whose last revision is remembered, for those who wait for an earlier write of them. */
const TOMBSTONES_MAX = 10_000;

/** A key at a revision, or gone. */
export interface Wanted {
  readonly key: ResourceKey;
  /** Absent with `gone`: gone will do, whatever the revision. */
  readonly revision?: Revision;
  readonly gone?: boolean;
}

export interface ReconcilerParts {
  readonly datastore: Pick<Datastore, "reached">;
  readonly translator: Translator;
  readonly calc: Pick<Calc, "step" | "current"> & Partial<Pick<Calc, "problems">>;
  readonly dataplanes: readonly { readonly name: string; readonly instance: Dataplane }[];
  readonly routing: { readonly name: string; readonly instance: Routing };
  readonly log: Log;
  readonly clock: Clock;
  /** Told of everything that is in force; those who wait for it wait for the promise as well. It must not reject. */
  readonly inForce?: (state: CalcResult) => Promise<void> | undefined;
}

export interface ReconcileCounters {
  changes: number;
  rounds: number;
  applies: number;
  messages: number;
  failures: number;
  resyncs: number;
}

/** One owner of a part of the kernel, and how far it is. */
interface Target {
  readonly name: string;
  apply(state: CalcResult, signal: AbortSignal): Promise<Report>;
  /** Absent: `apply` looks at the kernel each time. */
  readonly resync?: (signal: AbortSignal) => Promise<Report>;
  drift(signal: AbortSignal): AsyncIterable<string>;
  wanted(state: CalcResult): DesiredState | RouteState;
  /** Last given to `apply`. */
  given: DesiredState | RouteState | undefined;
  /** In force. */
  generation: number;
  converged: boolean;
  problems: readonly string[];
  /** Why, last of all; undefined: it has not. */
  drifted: string | undefined;
  /** What somebody else had done last, and was undone. */
  lastRepair: Repair | undefined;
  failuresInARow: number;
  retryAtMs: number;
  lastApply: { messages: number; ms: number } | null;
}

export interface Repair {
  readonly atMs: number;
  readonly reason: string;
  /** What the owner of that part of the kernel has to tell of it. */
  readonly notes: readonly string[];
}

interface Waiter {
  readonly wanted: readonly Wanted[];
  readonly resolve: () => void;
}

export class Reconciler {
  readonly counters: ReconcileCounters = { changes: 0, rounds: 0, applies: 0, messages: 0, failures: 0, resyncs: 0 };
  readonly timings = createTimings();
  readonly #parts: ReconcilerParts;
  readonly #inbox: Inbox;
  readonly #targets: readonly Target[];
  readonly #policyTargets: readonly Target[];
  readonly #local = new Map<string, WorldChange>();
  /** Latest revision of each key that calc has seen. */
  readonly #taken = new Map<string, Revision | undefined>();
  readonly #tombstones = new Map<string, Revision>();
  /** Keys taken since the last time that everything was in force. */
  readonly #unproven = new Set<string>();
  readonly #waiters = new Set<Waiter>();
  readonly #onSynced: (() => void)[] = [];
  #wake: () => void = () => {};
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  #started = false;

  constructor(parts: ReconcilerParts) {
    this.#parts = parts;
    this.#inbox = new Inbox(() => this.#wake());
    this.#policyTargets = parts.dataplanes.map((dataplane) => {
      const { instance } = dataplane;
      return newTarget({
        // It may be another one by and by.
        get name() {
          return `dataplane ${dataplane.name}`;
        },
        wanted: (state) => state.desired,
        apply: (state, signal) => instance.apply(state.desired, signal),
        resync: (signal) => instance.resync(signal),
        drift: (signal) => instance.drift(signal),
      });
    });
    const { name, instance } = parts.routing;
    this.#targets = [
      ...this.#policyTargets,
      newTarget({
        name: `routing ${name}`,
        wanted: (state) => state.routes,
        apply: (state, signal) => instance.apply(state.routes, signal),
        drift: (signal) => instance.drift(signal),
      }),
    ];
  }

  get synced(): boolean {
    return this.#inbox.synced;
  }

  /** Resolves once the datastore is in sync; rejects when `signal` aborts. */
  whenSynced(signal: AbortSignal): Promise<void> {
    if (this.#inbox.synced) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const abort = () => reject(signal.reason);
      signal.addEventListener("abort", abort, { once: true });
      this.#onSynced.push(() => {
        signal.removeEventListener("abort", abort);
        resolve();
      });
      if (signal.aborted) abort();
    });
  }

  /** A new watch of the datastore begins. */
  beginReplay(): void {
    this.#inbox.beginReplay();
  }

  /** Changes from the datastore. Resolves when there is room for more. */
  put(batch: ChangeBatch): Promise<void> | undefined {
    const room = this.#inbox.put(batch);
    if (this.#inbox.synced) { for (const resolve of this.#onSynced.splice(0)) resolve(); }
    return room;
  }

  /** Changes that no datastore tells: the node's own links. */
  local(changes: readonly WorldChange[]): void {
    for (const change of changes) this.#local.set(change.origin, change);
    this.#wake();
  }

  /** Runs until `signal` aborts; then the round under way is over. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const stop = () => this.#wake();
    signal.addEventListener("abort", stop);
    const drifts = this.#targets.map((target) => this.#followDrift(target, signal));
    while (!signal.aborted) {
      const woken = new Promise<void>((resolve) => this.#wake = resolve);
      if (this.#isDue()) await this.#round(signal);
      else await woken;
    }
    clearTimeout(this.#retryTimer);
    signal.removeEventListener("abort", stop);
    await Promise.all(drifts);
  }

  /**
   * Resolves once a converged report covers every key at its revision, or a later one; without keys, all that is known so far.
   * @throws {DeadlineError} after `deadlineMs`
   */
  programmed(wanted: readonly Wanted[], deadlineMs: number, signal?: AbortSignal): Promise<void> {
    if (this.#inForce(wanted)) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const finish = (settle: () => void) => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        this.#waiters.delete(waiter);
        settle();
      };
      const abort = () => finish(() => reject(signal!.reason));
      const waiter: Waiter = { wanted, resolve: () => finish(resolve) };
      const timer = setTimeout(() => finish(() => reject(this.#late(wanted, deadlineMs))), deadlineMs);
      this.#waiters.add(waiter);
      if (signal?.aborted) abort();
      else signal?.addEventListener("abort", abort, { once: true });
    });
  }

  status(): {
    wanted: number;
    applied: number;
    dataplane: {
      converged: boolean;
      lastApply: { messages: number; ms: number } | null;
      problems: readonly string[];
      lastRepair: Repair | undefined;
    };
    routing: { converged: boolean; problems: readonly string[] };
    endpoints: number;
    problems: readonly Problem[];
  } {
    const { desired } = this.#parts.calc.current;
    const policy = this.#policyTargets;
    const routing = this.#targets.at(-1)!;
    return {
      wanted: desired.generation,
      applied: Math.min(...policy.map((target) => target.generation)),
      dataplane: {
        converged: this.#started && policy.every((target) => target.converged),
        lastApply: policy.find((target) => target.lastApply !== null)?.lastApply ?? null,
        problems: policy.flatMap((target) => target.problems),
        lastRepair: policy.flatMap(({ lastRepair }) => lastRepair ?? []).sort((a, b) => b.atMs - a.atMs)[0],
      },
      routing: { converged: this.#started && routing.converged, problems: routing.problems },
      endpoints: desired.workloads.size,
      problems: [...this.#parts.translator.problems(), ...this.#parts.calc.problems?.() ?? []],
    };
  }

  #isDue(): boolean {
    if (!this.#inbox.synced) return false;
    if (!this.#started || this.#inbox.pending > 0 || this.#local.size > 0) return true;
    return this.#targets.some((target) => target.drifted !== undefined || this.#retryIsDue(target));
  }

  #retryIsDue(target: Target): boolean {
    return target.failuresInARow > 0 && this.#parts.clock.nowMs() >= target.retryAtMs;
  }

  async #round(signal: AbortSignal): Promise<void> {
    const { clock, calc } = this.#parts;
    const startedMs = clock.nowMs();
    const news = this.#take();
    const state = news.length > 0 || !this.#started ? calc.step(news) : calc.current;
    this.#started = true;
    let worked = false;
    for (const target of this.#targets) worked = await this.#bring(target, state, signal) || worked;
    if (this.#policyTargets.every((target) => target.converged)) {
      const held = this.#parts.inForce?.(state);
      if (held !== undefined) await held;
      this.#unproven.clear();
      for (const waiter of [...this.#waiters]) if (this.#inForce(waiter.wanted)) waiter.resolve();
    }
    this.counters.rounds++;
    if (worked) this.timings.add(clock.nowMs() - startedMs);
    this.#scheduleRetry();
  }

  #take(): readonly WorldChange[] {
    const changes = this.#inbox.take();
    const news: WorldChange[] = [...this.#local.values()];
    this.#local.clear();
    for (const change of changes) {
      this.#remember(change);
      const translated = this.#parts.translator.translate(change);
      if (translated !== undefined) news.push(translated);
    }
    this.counters.changes += changes.length;
    return news;
  }

  #remember(change: Change): void {
    const text = keyText(change.key);
    this.#unproven.add(text);
    if (change.value !== undefined || change.problem !== undefined) {
      this.#taken.set(text, change.revision);
      return;
    }
    this.#taken.delete(text);
    this.#tombstones.delete(text);
    if (change.revision === undefined) return;
    this.#tombstones.set(text, change.revision);
    if (this.#tombstones.size > TOMBSTONES_MAX) this.#tombstones.delete(this.#tombstones.keys().next().value!);
  }

  /** @returns whether the target was asked to do anything */
  async #bring(target: Target, state: CalcResult, signal: AbortSignal): Promise<boolean> {
    const { clock, log } = this.#parts;
    const wanted = target.wanted(state);
    const { drifted, failuresInARow } = target;
    if (target.given === wanted && drifted === undefined && !this.#retryIsDue(target)) return false;
    const startedMs = clock.nowMs();
    target.drifted = undefined;
    const knownProblems = target.problems;
    try {
      let report: Report | undefined;
      let messages = 0;
      if (target.given !== wanted || failuresInARow > 0 || target.resync === undefined) {
        target.given = wanted;
        report = await target.apply(state, signal);
        messages += report.messages;
        this.counters.applies++;
      }
      // A second failure says that what is remembered of the kernel may be wrong: look at the kernel itself.
      if (target.resync !== undefined && (drifted !== undefined || failuresInARow > 1 && !report!.converged)) {
        report = await target.resync(signal);
        messages += report.messages;
        this.counters.resyncs++;
      }
      this.counters.messages += messages;
      target.converged = report!.converged && report!.generation >= wanted.generation;
      // What did not come in force whole leaves in force what was.
      if (report!.converged) target.generation = report!.generation;
      target.problems = report!.problems;
      const news = report!.problems.filter((problem) => !knownProblems.includes(problem));
      if (target.converged) { for (const problem of news) log.warn(`${target.name}: ${problem}`); }
      if (drifted !== undefined && messages > 0) {
        target.lastRepair = { atMs: clock.nowMs(), reason: drifted, notes: news };
      }
      target.lastApply = { messages, ms: Math.round((clock.nowMs() - startedMs) * 1000) / 1000 };
    } catch (error) {
      if (signal.aborted) return true;
      target.converged = false;
      target.problems = [explainError(error)];
    }
    if (target.converged) {
      if (failuresInARow > 0) log.info(`${target.name}: in force again`, { generation: wanted.generation });
      target.failuresInARow = 0;
      return true;
    }
    target.failuresInARow++;
    this.counters.failures++;
    const pauseMs = Math.min(RETRY_LONGEST_MS, RETRY_FIRST_MS * 2 ** Math.min(20, failuresInARow));
    target.retryAtMs = clock.nowMs() + pauseMs;
    log.error(`${target.name}: not in force, trying again`, {
      generation: wanted.generation,
      problems: target.problems.slice(0, 5).join("; "),
      attempt: target.failuresInARow,
      pauseMs,
    });
    return true;
  }

  #scheduleRetry(): void {
    clearTimeout(this.#retryTimer);
    const dueMs = Math.min(
      ...this.#targets.filter((target) => target.failuresInARow > 0).map((target) => target.retryAtMs),
    );
    if (!Number.isFinite(dueMs)) return;
    // One millisecond more, or a timer that is early by a fraction finds nothing due.
    this.#retryTimer = setTimeout(() => this.#wake(), Math.max(0, dueMs - this.#parts.clock.nowMs()) + 1);
  }

  async #followDrift(target: Target, signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#parts;
    for (let pauseMs = RETRY_FIRST_MS; !signal.aborted;) {
      try {
        for await (const what of target.drift(signal)) {
          log.info(`${target.name}: changed by someone else, looking`, { what });
          target.drifted = what;
          this.#wake();
        }
        if (signal.aborted) return;
        throw new ManxError("drift", "the event stream ended");
      } catch (error) {
        if (signal.aborted) return;
        log.warn(`${target.name}: cannot follow changes, trying again`, { error: explainError(error), pauseMs });
      }
      await clock.sleep(pauseMs, signal).catch(() => {});
      pauseMs = Math.min(RETRY_LONGEST_MS, pauseMs * 2);
      // Events may have been missed.
      target.drifted = "changes of others may have been missed";
      this.#wake();
    }
  }

  #inForce(wanted: readonly Wanted[]): boolean {
    if (!this.#started) return false;
    if (wanted.length === 0) {
      return this.#unproven.size === 0 && this.#policyTargets.every((target) => target.converged);
    }
    return wanted.every((one) => this.#isInForce(one));
  }

  #isInForce({ key, revision, gone }: Wanted): boolean {
    const text = keyText(key);
    if (this.#unproven.has(text)) return false;
    const { datastore } = this.#parts;
    if (this.#taken.has(text)) {
      const seen = this.#taken.get(text);
      return seen !== undefined && revision !== undefined && datastore.reached(seen, revision);
    }
    if (gone) return !this.#inbox.has(key);
    const last = this.#tombstones.get(text);
    return last !== undefined && revision !== undefined && datastore.reached(last, revision);
  }

  #late(wanted: readonly Wanted[], deadlineMs: number): DeadlineError {
    const missing = wanted.filter((one) => !this.#isInForce(one)).map((one) => keyText(one.key));
    const found = !this.synced
      ? "the datastore is not in sync"
      : this.#policyTargets.flatMap((target) => target.problems.map((problem) => `${target.name}: ${problem}`)).join(
        "; ",
      ) ||
        "the change has not arrived from the datastore";
    const names = missing.slice(0, 3).join(", ") + (missing.length > 3 ? ` and ${missing.length - 3} more` : "");
    return new DeadlineError(
      `waiting for ${names || "the node"} to be in force: after ${deadlineMs} ms found that ${found}`,
    );
  }
}

/** What was waited for did not happen in time. */
export class DeadlineError extends ManxError {
  override readonly name = "DeadlineError";
  constructor(message: string) {
    super("deadline", message);
  }
}

function newTarget(part: Pick<Target, "name" | "apply" | "resync" | "drift" | "wanted">): Target {
  return Object.assign(part, {
    given: undefined,
    generation: 0,
    converged: false,
    problems: [],
    drifted: undefined,
    lastRepair: undefined,
    failuresInARow: 0,
    retryAtMs: 0,
    lastApply: null,
  });
}
