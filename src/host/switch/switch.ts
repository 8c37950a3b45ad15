/**
 * A dataplane that can be exchanged while the node runs. Between the two there is a time in which both are in force: a packet has to
 * pass both, so none gets through that either would deny, and established connections live, because connection tracking is the
 * kernel's and neither's. Everything it does is in turn: nobody sweeps while somebody applies.
 */
import type { DesiredState, PolicyList } from "../../model/desired.ts";
import type { Dataplane, DecisionCount, LoggedPacket, LostPackets, PacketJudge, Report } from "../../sdk/dataplane.ts";
import { explainError, ManxError, UnavailableError } from "../../sdk/errors.ts";
import type { Clock, Log } from "../../sdk/plugin.ts";
import { systemClock } from "../clock.ts";
import type { LoadedPlugin } from "../loader.ts";
import { aborted } from "../persist.ts";

/** Between two tries to sweep what is left; it doubles. Whatever applies meanwhile does not wait for it. */
const SWEEP_FIRST_MS = 1_000;
const SWEEP_LONGEST_MS = 30_000;

/** As the loops of the daemon know one. */
export interface NamedDataplane<D = Dataplane> {
  readonly name: string;
  readonly instance: D;
}

/** An open dataplane, and what it was opened as. */
export interface OpenDataplane {
  readonly loaded: LoadedPlugin<"dataplane">;
  readonly instance: Dataplane;
}

/** What two dataplanes with one state decide about packets. */
export interface JudgesOfState {
  readonly desired: DesiredState;
  readonly active: PacketJudge | undefined;
  readonly tried: PacketJudge | undefined;
}

/** Each member, those that a dataplane may lack as well: one that is forgotten here would be lacked by every dataplane. */
type EveryMember = { readonly [K in keyof Required<Dataplane>]: Dataplane[K] };

export class SwitchableDataplane implements EveryMember {
  #active: OpenDataplane;
  /** In force beside the active one. */
  #incoming: OpenDataplane | undefined;
  /** Not wanted any more, and not yet swept: what was left of each, and when it is tried again. */
  readonly #leaving = new Map<OpenDataplane, { left: readonly string[]; pauseMs: number; dueMs: number }>();
  #desired: DesiredState | undefined;
  /** Aborted when others than before are in force. */
  #changed = new AbortController();
  #turn: Promise<unknown> = Promise.resolve();
  readonly #log: Log;
  readonly #swept: (dataplane: OpenDataplane) => void;
  readonly #clock: Pick<Clock, "nowMs">;

  /** `swept`: called when nothing is left of one that was in force. */
  constructor(
    active: OpenDataplane,
    log: Log,
    swept: (dataplane: OpenDataplane) => void = () => {},
    clock: Pick<Clock, "nowMs"> = systemClock,
  ) {
    this.#active = active;
    this.#log = log;
    this.#swept = swept;
    this.#clock = clock;
  }

  get active(): OpenDataplane {
    return this.#active;
  }

  /** One alone is in force, and of no other is anything left. */
  get isSettled(): boolean {
    return this.#incoming === undefined && this.#leaving.size === 0;
  }

  /** Last given to `apply`. */
  get desired(): DesiredState | undefined {
    return this.#desired;
  }

  get name(): string {
    return this.#active.loaded.plugin.name;
  }

  get capabilities(): Dataplane["capabilities"] {
    return this.#active.instance.capabilities;
  }

  get cutMark(): number | undefined {
    return this.#active.instance.cutMark;
  }

  /** Of whichever has any. */
  recheckFlows(): void {
    for (const one of [this.#active, this.#incoming, ...this.#leaving.keys()]) one?.instance.recheckFlows?.();
  }

  get forwardMark(): number | undefined {
    return this.#active.instance.forwardMark;
  }

  get judgesForwardMark(): number | undefined {
    return this.#active.instance.judgesForwardMark;
  }

  get tracer(): Dataplane["tracer"] {
    if (this.#active.instance.tracer === undefined) return undefined;
    return (signal) => this.#inTurn(() => this.#active.instance.tracer!(signal));
  }

  get counts(): Dataplane["counts"] {
    const { instance } = this.#active;
    if (instance.counts === undefined) return undefined;
    return (list: PolicyList, signal?: AbortSignal): Promise<readonly DecisionCount[]> =>
      instance.counts!(list, signal);
  }

  get diff(): Dataplane["diff"] {
    if (this.#active.instance.diff === undefined) return undefined;
    return (signal) => this.#inTurn(() => this.#active.instance.diff!(signal));
  }

  get logs(): Dataplane["logs"] {
    return this.#active.instance.logs === undefined ? undefined : (signal) => this.followLogs(signal);
  }

  apply(desired: DesiredState, signal?: AbortSignal): Promise<Report> {
    return this.#inTurn(async () => {
      this.#desired = desired;
      return await this.#all((instance) => instance.apply(desired, signal), signal);
    });
  }

  resync(signal?: AbortSignal): Promise<Report> {
    return this.#inTurn(() => this.#all((instance) => instance.resync(signal), signal));
  }

  sweep(signal?: AbortSignal): Promise<Report> {
    return this.#inTurn(() => this.#all((instance) => instance.sweep(signal), signal));
  }

  async *drift(signal: AbortSignal): AsyncIterable<string> {
    while (!signal.aborted) {
      const changed = this.#changed.signal;
      yield* merged(
        this.#inForce().map(({ instance }) => instance.drift(AbortSignal.any([signal, changed]))),
      );
      if (signal.aborted) return;
      if (!changed.aborted) throw new ManxError("drift", "the event stream ended");
      await this.#turn;
      if (this.#leaving.size > 0) yield "what was in force before is not wholly removed";
    }
  }

  /** Of the active one, whichever that is; nothing while it logs none. */
  async *followLogs(signal: AbortSignal): AsyncIterable<LoggedPacket | LostPackets> {
    while (!signal.aborted) {
      const until = AbortSignal.any([signal, this.#changed.signal]);
      const { instance } = this.#active;
      if (instance.logs !== undefined) yield* instance.logs(until);
      else await aborted(until);
      if (!until.aborted) throw new ManxError("logs", "the stream of logged packets ended");
    }
  }

  // ------------------------------------------------------------------------------------------------------------- switching

  /**
   * Who judges by the rules of the active dataplane and by those of `tried`, both with the state of this moment and both as wanted in their
   * kernels; a judge is missing where a dataplane cannot tell. @throws {UnavailableError} where one of them is not as wanted
   */
  judgesBeside(tried: OpenDataplane, signal: AbortSignal): Promise<JudgesOfState> {
    return this.#inTurn(async () => {
      const desired = this.#desired;
      if (desired === undefined) throw new UnavailableError("switch: found nothing in force yet");
      assertInForce(tried, await tried.instance.apply(desired, signal));
      const judges: (PacketJudge | undefined)[] = [];
      for (const one of [this.#active, tried]) {
        await assertAsWanted(one, signal);
        judges.push(await one.instance.tracer?.(signal));
      }
      return { desired, active: judges[0], tried: judges[1] };
    });
  }

  /**
   * Puts `incoming` in force beside the active one, and returns when both are, and both are as wanted.
   * @throws {UnavailableError} where one is not: `abandon` then
   */
  overlap(
    incoming: OpenDataplane,
    signal: AbortSignal,
  ): Promise<{ readonly generation: number; readonly messages: number }> {
    return this.#inTurn(async () => {
      if (this.#incoming !== undefined) throw new UnavailableError("switch: found another one under way, wanted none");
      this.#incoming = incoming;
      this.#change();
      if (this.#desired === undefined) throw new UnavailableError("switch: found nothing in force yet");
      const report = await incoming.instance.apply(this.#desired, signal);
      assertInForce(incoming, report);
      for (const dataplane of [this.#active, incoming]) await assertAsWanted(dataplane, signal);
      return { generation: report.generation, messages: report.messages };
    });
  }

  /** The incoming one is the only one from here on; the other is swept. What is left of it is tried again by and by, with an `apply` or a `resync`. */
  complete(moved: () => void): Promise<readonly string[]> {
    return this.#inTurn(async () => {
      const incoming = this.#incoming;
      if (incoming === undefined) throw new Error("a switch is completed that has not begun");
      // What the incoming one missed while nobody had the turn, if anything: both report to the same `apply`.
      assertInForce(incoming, await incoming.instance.apply(this.#desired!));
      moved();
      const old = this.#active;
      this.#active = incoming;
      this.#incoming = undefined;
      this.#leave(old);
      this.#change();
      return await this.#sweepLeaving();
    });
  }

  /** The incoming one is swept, and the active one stays. Does nothing where none is incoming. */
  abandon(): Promise<readonly string[]> {
    return this.#inTurn(async () => {
      const incoming = this.#incoming;
      if (incoming === undefined) return [];
      this.#incoming = undefined;
      this.#leave(incoming);
      this.#change();
      return await this.#sweepLeaving();
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#change();
    const all = [...this.#inForce(), ...this.#leaving.keys()];
    this.#leaving.clear();
    for (const { instance } of all) await instance[Symbol.asyncDispose]();
  }

  #inForce(): readonly OpenDataplane[] {
    return this.#incoming === undefined ? [this.#active] : [this.#active, this.#incoming];
  }

  #change(): void {
    const changed = this.#changed;
    this.#changed = new AbortController();
    changed.abort();
  }

  #inTurn<T>(body: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(body);
    this.#turn = mine.catch(() => {});
    return mine;
  }

  async #all(ask: (instance: Dataplane) => Promise<Report>, signal?: AbortSignal): Promise<Report> {
    const reports: Report[] = [];
    for (const { instance } of this.#inForce()) reports.push(await ask(instance));
    const left = signal?.aborted ? [] : await this.#sweepLeaving();
    if (reports.length === 1 && left.length === 0) return reports[0]!;
    return {
      generation: Math.min(...reports.map(({ generation }) => generation)),
      converged: reports.every(({ converged }) => converged) && left.length === 0,
      messages: reports.reduce((sum, { messages }) => sum + messages, 0),
      problems: [...reports.flatMap(({ problems }) => problems), ...left],
    };
  }

  #leave(dataplane: OpenDataplane): void {
    this.#leaving.set(dataplane, { left: [], pauseMs: SWEEP_FIRST_MS, dueMs: -Infinity });
  }

  /** What is left, a line each; it is swept where its time has come. */
  async #sweepLeaving(): Promise<readonly string[]> {
    const problems: string[] = [];
    for (const [dataplane, state] of [...this.#leaving]) {
      const { loaded: { plugin: { name } }, instance } = dataplane;
      if (this.#clock.nowMs() < state.dueMs) {
        problems.push(...state.left);
        continue;
      }
      let left: readonly string[];
      try {
        const { converged, problems } = await instance.sweep();
        left = converged ? [] : problems;
        if (converged) this.#leaving.delete(dataplane);
      } catch (error) {
        left = [explainError(error)];
      }
      state.left = left.map((line) => `what dataplane ${name} left cannot be removed yet: ${line}`);
      problems.push(...state.left);
      if (this.#leaving.has(dataplane)) {
        state.dueMs = this.#clock.nowMs() + state.pauseMs;
        state.pauseMs = Math.min(SWEEP_LONGEST_MS, state.pauseMs * 2);
        continue;
      }
      this.#log.info(`dataplane ${name}: nothing of it is left`);
      this.#swept(dataplane);
      await instance[Symbol.asyncDispose]();
    }
    return problems;
  }
}

/** Its name is that of the active one, whichever that is. */
export const named = (dataplane: SwitchableDataplane): NamedDataplane<SwitchableDataplane> => ({
  get name() {
    return dataplane.name;
  },
  instance: dataplane,
});

function assertInForce({ loaded }: OpenDataplane, { converged, problems }: Report): void {
  if (converged) return;
  throw new UnavailableError(
    `switch: found dataplane ${loaded.plugin.name} not in force, wanted it to be: ${problems.slice(0, 5).join("; ")}`,
  );
}

/** The kernel's rules are those that were meant: read back, they differ in nothing. */
async function assertAsWanted({ loaded, instance }: OpenDataplane, signal?: AbortSignal): Promise<void> {
  const found = instance.diff === undefined
    ? [`${(await instance.resync(signal)).messages} messages sent`].filter((text) => text !== "0 messages sent")
    : await instance.diff(signal);
  if (found.length === 0) return;
  throw new UnavailableError(
    `switch: found dataplane ${loaded.plugin.name} otherwise in the kernel than wanted: ${
      found.slice(0, 5).join("; ")
    }`,
  );
}

/** Opened, in force and as wanted with the state, in a place where it harms nobody. @throws {UnavailableError} */
export async function tryOut(dataplane: OpenDataplane, desired: DesiredState, signal: AbortSignal): Promise<void> {
  assertInForce(dataplane, await dataplane.instance.apply(desired, signal));
  await assertAsWanted(dataplane, signal);
  const again = await dataplane.instance.resync(signal);
  assertInForce(dataplane, again);
  if (again.messages === 0) return;
  throw new UnavailableError(
    `switch: found dataplane ${dataplane.loaded.plugin.name} to write ${again.messages} messages where nothing differs, wanted none`,
  );
}

/** Ends with the first that ends, or throws with the first that throws. */
async function* merged(streams: readonly AsyncIterable<string>[]): AsyncIterable<string> {
  const readers = streams.map((stream) => stream[Symbol.asyncIterator]());
  const next = (index: number) => readers[index]!.next().then((result) => ({ index, result }));
  const pending = readers.map((_, index) => next(index));
  try {
    for (;;) {
      const { index, result } = await Promise.race(pending);
      if (result.done) return;
      pending[index] = next(index);
      yield result.value;
    }
  } finally {
    for (const promise of pending) promise.catch(() => {});
    // A reader that waits ends with its signal, not with this.
    for (const reader of readers) void reader.return?.().catch?.(() => {});
  }
}
