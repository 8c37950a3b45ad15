/** `manx dataplane switch`, from the question to the answer; and what is left of dataplanes that are in use no more. */
import { namespacedKernel } from "../../kernel/namespaced_door.ts";
import { createNamespace } from "../../kernel/netns.ts";
import type { KernelDoor } from "../../sdk/kernel_door.ts";
import type { Aspect } from "../../sdk/dataplane.ts";
import { explainError, RefusedError, UnavailableError } from "../../sdk/errors.ts";
import type { Clock, Log } from "../../sdk/plugin.ts";
import { type Compared, compareJudges } from "./compare.ts";
import { type OpenDataplane, type SwitchableDataplane, tryOut } from "./switch.ts";
import { type DataplaneRecord, recordedOf, type RecordedSlot } from "./record.ts";
import type { Config, Slot } from "../config.ts";
import { round } from "../timing.ts";
import type { DataplaneSwitchView } from "../view.ts";

const DEADLINE_MS = 120_000;
/** Between two tries to remove what is left; it doubles. */
const LEFT_RETRY_FIRST_MS = 1_000;
const LEFT_RETRY_LONGEST_MS = 60_000;

export interface SwitchParts {
  /** As the file says. */
  readonly config: Config;
  readonly record: DataplaneRecord;
  readonly dataplanes: readonly SwitchableDataplane[];
  /** The daemon's own. */
  readonly kernel: KernelDoor;
  readonly clock: Clock;
  readonly log: Log;
  /** Everything known so far is in force. */
  readonly isInForce: () => boolean;
  /** `kernel`: absent = the node's own. @throws {ManxError} */
  readonly open: (slot: Slot, signal: AbortSignal, kernel?: KernelDoor) => Promise<OpenDataplane>;
  /** Whether these may work together. @throws {ManxError} code `config` */
  readonly checkAspects: (
    dataplanes: readonly { readonly name: string; readonly instance: OpenDataplane["instance"] }[],
  ) => void;
}

export type SwitchDataplane = (
  request: { readonly use: string; readonly config?: unknown },
  signal?: AbortSignal,
) => Promise<DataplaneSwitchView>;

/** One at a time, and none while something of an earlier one is left: whoever sweeps must not meet who applies. */
export function createDataplaneSwitch(parts: SwitchParts, left: Pick<LeftDataplanes, "isDone">): SwitchDataplane {
  let isBusy = false;
  return async (request, signal) => {
    const unchanged = alreadyInForce(parts, request);
    if (unchanged !== undefined) return unchanged;
    if (isBusy) throw new UnavailableError("switch: found another one under way, wanted none");
    if (!left.isDone() || parts.dataplanes.some(({ isSettled }) => !isSettled)) {
      throw new UnavailableError(
        "switch: found that what an earlier dataplane left is not removed yet (see `manx status`), wanted nothing left",
      );
    }
    isBusy = true;
    try {
      return await switchDataplane(parts, request, signal);
    } finally {
      isBusy = false;
    }
  };
}

type Request = Parameters<SwitchDataplane>[0];

const policySlot = ({ dataplanes }: SwitchParts): SwitchableDataplane | undefined =>
  dataplanes.find(({ capabilities }) => capabilities.aspects.has("policy"));

/** What is answered where the dataplane that is asked for enforces policy already. @throws {RefusedError} where it is to have other settings */
function alreadyInForce(parts: SwitchParts, { use, config: settings }: Request): DataplaneSwitchView | undefined {
  const slot = policySlot(parts);
  if (slot?.name !== use) return undefined;
  if (settings !== undefined) {
    throw new RefusedError([
      `switch: found ${use} in force already, wanted another dataplane: its settings are read when the daemon starts`,
    ]);
  }
  return {
    from: use,
    to: use,
    generation: slot.desired?.generation ?? 0,
    messages: 0,
    compared: { packets: 0, complete: true },
    tookMs: 0,
    overlapMs: 0,
    left: [],
    ...remembered(parts),
  };
}

/** Where the switch is written down, if anywhere. */
function remembered({ record, config }: SwitchParts): Pick<DataplaneSwitchView, "config" | "configured" | "record"> {
  const switched = record.switchedIn(config);
  return {
    config: config.file,
    ...switched === undefined ? {} : { configured: switched.from, record: record.path },
  };
}

/**
 * Exchanges the dataplane that enforces policy. Where it throws, the old one is in force as before, and nothing is left of the new one that
 * could be removed. @throws {RefusedError} {UnavailableError} {ManxError}
 */
async function switchDataplane(
  parts: SwitchParts,
  request: Request,
  asked?: AbortSignal,
): Promise<DataplaneSwitchView> {
  const { config, record, clock, log } = parts;
  const startedMs = clock.nowMs();
  const slot = policySlot(parts);
  if (slot === undefined) {
    throw new RefusedError(["switch: found no dataplane that enforces policy, wanted one to switch from"]);
  }
  const from = slot.active;
  const configured = config.dataplanes.find(({ use }) => use === request.use);
  const isBack = configured !== undefined && request.config === undefined;
  const to: Slot = isBack ? configured : { use: request.use, config: request.config, path: "dataplane" };
  if (to.use.startsWith("/")) {
    throw new RefusedError([
      `switch: found the path ${to.use}, wanted the name of a built-in dataplane: name files in the configuration`,
    ]);
  }
  if (parts.dataplanes.some(({ name }) => name === to.use)) {
    throw new RefusedError([`switch: found ${to.use} in force already, wanted another dataplane`]);
  }
  const { desired } = slot;
  if (desired === undefined || !parts.isInForce()) {
    throw new UnavailableError(
      "switch: found that not everything is in force (see `manx status`), wanted it to be before anything changes",
    );
  }
  const deadline = AbortSignal.timeout(DEADLINE_MS);
  const signal = asked === undefined ? deadline : AbortSignal.any([asked, deadline]);

  // In a namespace without packets: what the kernel refuses, it refuses there.
  using trial = createNamespace("dataplane trial");
  let compared: Compared;
  {
    await using tried = await opened(parts, to, signal, namespacedKernel(trial, parts.kernel));
    checkAbilities(slot, tried, config.services === undefined ? ["services"] : []);
    parts.checkAspects(
      parts.dataplanes.map((one) =>
        one === slot ? { name: to.use, instance: tried.instance } : { name: one.name, instance: one }
      ),
    );
    await tryOut(tried, desired, signal);
    const judges = await slot.judgesBeside(tried, signal);
    compared = await compareJudges(
      judges.desired,
      [{ name: from.loaded.plugin.name, judge: judges.active }, { name: to.use, judge: judges.tried }],
      clock,
      signal,
    );
  }
  const triedMs = clock.nowMs();

  record.willWrite([...record.written.filter(({ use }) => use !== to.use), recordedOf(to)]);
  let incoming: OpenDataplane;
  try {
    incoming = await parts.open(to, signal);
  } catch (error) {
    record.swept(to.use);
    throw error;
  }
  try {
    const { generation, messages } = await slot.overlap(incoming, signal);
    log.info(`dataplane ${to.use}: in force beside ${from.loaded.plugin.name}`, { generation, messages });
    signal.throwIfAborted();
    const bothMs = clock.nowMs();
    const origin = record.switchedIn(config)?.from ?? from.loaded.slot.use;
    const left = await slot.complete(() => record.switchTo(config, origin, isBack ? undefined : recordedOf(to)));
    const overlapMs = round(clock.nowMs() - bothMs), tookMs = round(clock.nowMs() - startedMs);
    log.info(`dataplane switched`, {
      from: from.loaded.plugin.name,
      to: to.use,
      tookMs,
      triedMs: round(triedMs - startedMs),
      packetsCompared: compared.packets,
    });
    return {
      from: from.loaded.plugin.name,
      to: to.use,
      generation,
      messages,
      compared: { packets: compared.packets, complete: compared.isComplete },
      tookMs,
      overlapMs,
      left,
      ...remembered(parts),
    };
  } catch (error) {
    const left = await slot.abandon();
    log.error(`dataplane not switched`, {
      from: from.loaded.plugin.name,
      to: to.use,
      error: explainError(error),
      left: left.join("; "),
    });
    throw error;
  }
}

/** @throws {RefusedError} where something that is in force could not be kept in force */
function checkAbilities(
  from: SwitchableDataplane,
  { instance: to, loaded }: OpenDataplane,
  unwanted: readonly Aspect[],
): void {
  const lacks: string[] = [...from.capabilities.aspects].filter((aspect) =>
    !unwanted.includes(aspect) && !to.capabilities.aspects.has(aspect)
  );
  for (const family of from.capabilities.families) {
    if (!to.capabilities.families.has(family)) lacks.push(`IPv${family}`);
  }
  const reasons = lacks.length === 0
    ? []
    : [`switch: found dataplane ${loaded.plugin.name} without ${lacks.join(", ")}, wanted all that ${from.name} does`];
  if (from.cutMark !== undefined && to.cutMark !== from.cutMark) {
    const text = (mark: number | undefined) => mark === undefined ? "none" : `0x${mark.toString(16)}`;
    reasons.push(
      `switch: found connection mark ${
        text(to.cutMark)
      } of dataplane ${loaded.plugin.name} for flows that are cut, wanted ` +
        `${text(from.cutMark)} as ${from.name} has it (markMask): cut flows would go on`,
    );
  }
  if (reasons.length > 0) throw new RefusedError(reasons);
}

async function opened(
  parts: SwitchParts,
  slot: Slot,
  signal: AbortSignal,
  kernel: KernelDoor,
): Promise<OpenDataplane & AsyncDisposable> {
  const dataplane = await parts.open(slot, signal, kernel);
  return { ...dataplane, [Symbol.asyncDispose]: () => dataplane.instance[Symbol.asyncDispose]() };
}

/** Dataplanes that may have something in the kernel and are in use no more: each is swept, until it is. */
export class LeftDataplanes {
  readonly #parts: Pick<SwitchParts, "record" | "dataplanes" | "clock" | "log" | "open">;
  readonly #problems = new Map<string, string>();
  #done = false;

  constructor(parts: Pick<SwitchParts, "record" | "dataplanes" | "clock" | "log" | "open">) {
    this.#parts = parts;
  }

  problems(): readonly string[] {
    return [...this.#problems].map(([use, problem]) => `what dataplane ${use} left cannot be removed yet: ${problem}`);
  }

  isDone(): boolean {
    return this.#done;
  }

  /** Once what is in use is in force. Never rejects. */
  async sweep(signal: AbortSignal): Promise<void> {
    await this.#sweepAll(signal);
    this.#done = !signal.aborted;
  }

  async #sweepAll(signal: AbortSignal): Promise<void> {
    const { record, clock, log } = this.#parts;
    // Those of the present, and those that a switch brings later, are `SwitchableDataplane`'s to sweep.
    let left = record.written.filter(({ use }) => !this.#isInUse(use));
    for (let pauseMs = LEFT_RETRY_FIRST_MS; left.length > 0 && !signal.aborted;) {
      for (const slot of left) {
        const problem = await this.#sweepOne(slot, signal);
        if (problem === undefined) {
          this.#problems.delete(slot.use);
          log.info(`dataplane ${slot.use} is not in use: nothing of it is left`);
        } else this.#problems.set(slot.use, problem);
      }
      left = left.filter(({ use }) => this.#problems.has(use));
      if (left.length === 0) return;
      log.error("dataplanes that are not in use cannot be swept, trying again", {
        problems: this.problems().join("; "),
        pauseMs,
      });
      await clock.sleep(pauseMs, signal).catch(() => {});
      pauseMs = Math.min(LEFT_RETRY_LONGEST_MS, pauseMs * 2);
    }
  }

  #isInUse(use: string): boolean {
    return this.#parts.dataplanes.some(({ active }) => active.loaded.slot.use === use);
  }

  async #sweepOne(slot: RecordedSlot, signal: AbortSignal): Promise<string | undefined> {
    const { record, open } = this.#parts;
    if (this.#isInUse(slot.use)) return undefined;
    try {
      const { instance } = await open({ ...slot, config: slot.config, path: "dataplane" }, signal);
      try {
        const { converged, problems } = await instance.sweep(signal);
        if (!converged) return problems.join("; ") || "no reason was given";
      } finally {
        await instance[Symbol.asyncDispose]();
      }
      record.swept(slot.use);
      return undefined;
    } catch (error) {
      return explainError(error);
    }
  }
}
