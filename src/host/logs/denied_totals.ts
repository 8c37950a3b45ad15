/** The kernel's rate limit leaves out most of a flood; its counters say how much there was. */
import type { PolicyList } from "../../model/desired.ts";
import type { Decision } from "../../model/evaluate.ts";
import type { LoggedPacket } from "../../sdk/dataplane.ts";
import type { Clock } from "../../sdk/plugin.ts";
import type { Counters } from "../explain/counter.ts";
import { timeText } from "./packet_event.ts";
import type { DeniedEvent, PacketEvent } from "./packet_log_view.ts";

/** Between two looks at what was denied. */
export const LOOK_MS = 5_000;
/** So many logged packets of one decision since the last look say that there may have been more: a dataplane logs these at once. */
const SUSPECTED = 20;
/** Decisions that are watched, the latest ones. */
const WATCHED_MAX = 256;
/** Counters that are read at one look: a dataplane may have to walk all that it has for one. */
const READS_MAX = 4;

export interface DeniedTotals {
  /** `count` packets like this one, denied by `list`, and the event that tells of them. */
  note(packet: LoggedPacket, event: PacketEvent, list: PolicyList, count: number): void;
  /** Publishes until `signal` aborts. Never rejects. */
  run(publish: (event: DeniedEvent) => void, signal: AbortSignal): Promise<void>;
}

interface Watched {
  list: PolicyList;
  readonly decision: Decision;
  readonly event: Pick<DeniedEvent, "direction" | "by" | "tier" | "policy" | "rule" | "endpoint">;
  /** Since this daemon's start. */
  told: number;
  sinceLook: number;
  /** Number of the last look at it. */
  lookedAt: number;
}

export function createDeniedTotals(counters: Counters, clock: Clock): DeniedTotals {
  /** The latest ones last. */
  const watched = new Map<string, Watched>();
  let looks = 0;

  async function look(publish: (event: DeniedEvent) => void, signal: AbortSignal): Promise<void> {
    looks++;
    const suspected = [...watched.values()].filter(({ sinceLook }) => sinceLook >= SUSPECTED);
    for (const one of watched.values()) if (one.sinceLook < SUSPECTED) one.sinceLook = 0;
    // Who has waited longest; the others are looked at the next time.
    for (const one of suspected.sort((a, b) => a.lookedAt - b.lookedAt).slice(0, READS_MAX)) {
      one.sinceLook = 0;
      one.lookedAt = looks;
      const { told } = one;
      const counter = await counters.of(one.list, one.decision, signal);
      if ("absent" in counter || counter.sharedWith > 0 || counter.packets <= told) continue;
      publish({ event: "denied", time: timeText(clock.wallMs()), ...one.event, packets: counter.packets, told });
    }
  }

  return {
    note({ prefix, decision }, event, list, count) {
      if (decision === undefined) return;
      // A rule has one counter wherever it applies, a default one for each list.
      const isRule = decision.by === "rule";
      const key = isRule ? prefix : `${prefix}\0${list.id}`;
      let one = watched.get(key);
      if (one === undefined) {
        const { direction, by, tier, policy, rule, endpoint } = event;
        const place = {
          ...tier === undefined ? {} : { tier },
          ...policy === undefined ? {} : { policy },
          ...rule === undefined ? {} : { rule },
          ...isRule || endpoint === undefined ? {} : { endpoint },
        };
        one = { list, decision, event: { direction, by, ...place }, told: 0, sinceLook: 0, lookedAt: 0 };
        if (watched.size >= WATCHED_MAX) watched.delete(watched.keys().next().value!);
      } else watched.delete(key);
      one.list = list;
      one.told += count;
      one.sinceLook += count;
      watched.set(key, one);
    },

    async run(publish, signal) {
      while (!signal.aborted) {
        await clock.sleep(LOOK_MS, signal).catch(() => {});
        // It ends with the signal, by whatever way.
        if (!signal.aborted) await look(publish, signal).catch(() => {});
      }
    },
  };
}
