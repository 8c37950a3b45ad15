/**
 * What the dataplanes log, with names: kept for a while, followed by readers. However much is logged, memory is bounded, and so
 * is the work: what is too much is counted and told.
 */
import type { DesiredState } from "../../model/desired.ts";
import type { Dataplane, LoggedPacket } from "../../sdk/dataplane.ts";
import { explainError, ManxError, UnavailableError } from "../../sdk/errors.ts";
import type { Clock, Log } from "../../sdk/plugin.ts";
import type { AddressNames } from "../explain/address_names.ts";
import { createDeniedTotals } from "./denied_totals.ts";
import type { Counters } from "../explain/counter.ts";
import { isWanted, LogReader } from "./log_reader.ts";
import { describePacket, flowOf, timeText } from "./packet_event.ts";
import type { LogEvent, LogQuery, LogsView } from "./packet_log_view.ts";
import { Ring } from "./ring.ts";

/** Events that can still be asked for; about 2 MB. */
export const KEPT_MAX = 4_096;
/** Read of one dataplane in a second; the rest waits in the kernel, and is lost there where there is too much of it. */
export const READ_PER_SECOND_MAX = 1_000;
/** Packets of one flow and decision within this time become one event, after the first. */
const FOLD_MS = 1_000;
/** Flows that are folded at a time; others are told packet by packet. */
const FOLDS_MAX = 1_024;
export const READERS_MAX = 32;
/** Pause before logs that cannot be had are asked for again; it doubles in between. */
const RETRY_FIRST_MS = 1_000;
const RETRY_LONGEST_MS = 30_000;
/** Who is refused is refused at once: after so long without that they can be had. */
const REFUSAL_MS = 250;

export interface PacketLogParts {
  readonly dataplanes: readonly { readonly name: string; readonly instance: Pick<Dataplane, "logs"> }[];
  readonly desired: () => DesiredState;
  readonly names: Pick<AddressNames, "ready" | "nameOf" | "behind">;
  /** Absent: nothing is said about what was denied and not logged. */
  readonly counters?: Counters;
  readonly log: Log;
  readonly clock: Clock;
}

export interface PacketLogs {
  /** Reads until `signal` aborts. Never rejects. */
  run(signal: AbortSignal): Promise<void>;
  /** Ends when `signal` aborts, or at `close`. @throws {UnavailableError} where there are too many readers */
  read(query: LogQuery, signal: AbortSignal): AsyncIterableIterator<LogEvent>;
  /** Ends all readers. */
  close(): void;
  status(): LogsView;
}

/** Of a Date: ECMA-262 section 21.4.1.1. */
const isTime = (ms: number): boolean => Math.abs(ms) <= 8.64e15;

type Kept = Exclude<LogEvent, { event: "skipped" }>;

interface Fold {
  last: LoggedPacket;
  /** Beyond what has been told. */
  packets: number;
  closesMs: number;
}

export function createPacketLogs(parts: PacketLogParts): PacketLogs {
  const { clock, log } = parts;
  const kept = new Ring<{ readonly event: Kept; readonly atMs: number }>(KEPT_MAX);
  const readers = new Set<LogReader>();
  /** In the order in which they close. */
  const folds = new Map<string, Fold>();
  const problems = new Map<string, string>();
  const totals = parts.counters && createDeniedTotals(parts.counters, clock);
  let packets = 0, lost = 0, skipped = 0;
  let untold: { packets: number; readonly closesMs: number } | undefined;
  let closed = false;
  let wakeFolding = () => {};

  function publish(event: Kept, atMs: number): void {
    kept.add({ event, atMs });
    for (const reader of readers) if (!reader.offer(event)) skipped++;
  }

  function take(packet: LoggedPacket): void {
    packets++;
    const key = flowOf(packet), nowMs = clock.nowMs();
    const fold = folds.get(key);
    if (fold !== undefined) {
      fold.packets++;
      fold.last = packet;
      return;
    }
    tell(packet, 1);
    if (folds.size >= FOLDS_MAX) return;
    folds.set(key, { last: packet, packets: 0, closesMs: nowMs + FOLD_MS });
    if (folds.size === 1) wakeFolding();
  }

  function tell(last: LoggedPacket, count: number): void {
    const atMs = isTime(last.atMs) ? last.atMs : clock.wallMs();
    const { event, list } = describePacket(last, atMs, parts);
    publish({ ...event, packets: count }, atMs);
    if (last.verdict === "deny" && list !== undefined) totals?.note(last, event, list, count);
  }

  function takeLost(count: number): void {
    lost += count;
    if (untold !== undefined) untold.packets += count;
    else {
      untold = { packets: count, closesMs: clock.nowMs() + FOLD_MS };
      wakeFolding();
    }
  }

  function closeFolds(nowMs: number): void {
    for (const [key, fold] of folds) {
      if (fold.closesMs > nowMs) break;
      folds.delete(key);
      if (fold.packets === 0) continue;
      tell(fold.last, fold.packets);
      // It goes on, perhaps: its next packet is not the first.
      folds.set(key, { ...fold, packets: 0, closesMs: nowMs + FOLD_MS });
    }
    if (untold !== undefined && untold.closesMs <= nowMs) {
      const atMs = clock.wallMs();
      publish({ event: "lost", time: timeText(atMs), packets: untold.packets }, atMs);
      untold = undefined;
    }
  }

  async function fold(signal: AbortSignal): Promise<void> {
    signal.addEventListener("abort", () => wakeFolding(), { once: true });
    while (!signal.aborted) {
      const woken = new Promise<void>((resolve) => wakeFolding = resolve);
      const nextMs = Math.min(folds.values().next().value?.closesMs ?? Infinity, untold?.closesMs ?? Infinity);
      if (nextMs === Infinity) await woken;
      else {
        await clock.sleep(Math.max(1, nextMs - clock.nowMs()), signal).catch(() => {});
        closeFolds(clock.nowMs());
      }
    }
  }

  async function follow(name: string, logs: NonNullable<Dataplane["logs"]>, signal: AbortSignal): Promise<void> {
    for (let pauseMs = RETRY_FIRST_MS; !signal.aborted;) {
      try {
        await readAll(logs(signal), signal, () => {
          pauseMs = RETRY_FIRST_MS;
          if (problems.delete(name)) log.info(`dataplane ${name}: logged packets are read again`);
        });
        if (signal.aborted) return;
        throw new ManxError("logs", "the stream of logged packets ended");
      } catch (error) {
        if (signal.aborted) return;
        const problem = explainError(error);
        if (problems.get(name) !== problem) log.warn(`dataplane ${name}: no logged packets`, { error: problem });
        problems.set(name, problem);
      }
      await clock.sleep(pauseMs, signal).catch(() => {});
      pauseMs = Math.min(RETRY_LONGEST_MS, pauseMs * 2);
    }
  }

  async function readAll(
    logs: ReturnType<NonNullable<Dataplane["logs"]>>,
    signal: AbortSignal,
    succeeded: () => void,
  ): Promise<void> {
    const over = new AbortController();
    void clock.sleep(REFUSAL_MS, AbortSignal.any([signal, over.signal])).then(succeeded, () => {});
    let inSecond = 0, secondMs = clock.nowMs();
    try {
      for await (const item of logs) {
        if ("lost" in item) takeLost(item.lost);
        else {
          await parts.names.ready();
          take(item);
        }
        if (++inSecond < READ_PER_SECOND_MAX) continue;
        const restMs = secondMs + 1_000 - clock.nowMs();
        if (restMs > 0) await clock.sleep(restMs, signal).catch(() => {});
        inSecond = 0;
        secondMs = clock.nowMs();
      }
    } finally {
      over.abort();
    }
  }

  return {
    async run(signal) {
      const streams = parts.dataplanes.flatMap(({ name, instance }) =>
        instance.logs === undefined ? [] : [follow(name, instance.logs.bind(instance), signal)]
      );
      const looks = totals?.run((event) => publish(event, clock.wallMs()), signal);
      await Promise.all([...streams, fold(signal), looks]);
    },

    read(query, signal) {
      if (closed) throw new UnavailableError("logs: the daemon is stopping");
      if (readers.size >= READERS_MAX) {
        throw new UnavailableError(`logs: found ${readers.size} readers already, wanted fewer: end one of them`);
      }
      const oldestMs = query.sinceMs === undefined ? -Infinity : clock.wallMs() - query.sinceMs;
      const past = [...kept].filter(({ event, atMs }) => atMs >= oldestMs && isWanted(event, query));
      const { limit = past.length } = query;
      const reader = new LogReader(
        query,
        past.slice(past.length - Math.min(limit, past.length)).map(({ event }) => event),
      );
      // Who asked may leave before anything is read.
      const leave = () => {
        readers.delete(reader);
        signal.removeEventListener("abort", leave);
      };
      signal.addEventListener("abort", leave);
      readers.add(reader);
      if (query.follow !== true) reader.end();
      return reader.events(signal, leave);
    },

    close() {
      closed = true;
      for (const reader of readers) reader.end();
    },

    status: () => ({
      kept: kept.size,
      packets,
      lost,
      readers: readers.size,
      skipped,
      problems: [...problems].map(([name, problem]) => `dataplane ${name}: ${problem}`),
    }),
  };
}
