/**
 * Established flows follow the policy in force: those that a change denies are cut, and let go on when a change allows them again.
 *
 * A flow is cut by one bit of its connection mark, which the dataplane drops (`Dataplane.cutMark`), and stays in connection
 * tracking. Deleting it there does not cut it: the next packet in its midst begins it anew (net.netfilter.nf_conntrack_tcp_loose),
 * and where that comes from the server, the new flow runs from server to client. Policy allows that as a rule, and then
 * the client's packets are answers and pass: deleted flows that talk both ways went on within one packet. Refusing all TCP that
 * does not begin with a SYN would cut, and would break every connection of a node whose tracking was flushed. The mark
 * costs a packet three register operations, works from the moment it is set, in both directions, and outlives the daemon.
 *
 * What is marked is what the policy in force denies, no more and no less; how it came to that does not matter. So a daemon that
 * was away compares everything once.
 *
 * Flows of an address that its workload has given up are removed, so that the next owner inherits none.
 */
import type { CalcResult } from "../../calc/mod.ts";
import { flowEnds, parseFlow } from "../../kernel/netlink/schema/conntrack.ts";
import { type Address, type Cidr, cidrContains } from "../../model/address.ts";
import type { DesiredState } from "../../model/desired.ts";
import { type EstablishedFlow, FlowJudge, type NodeSurroundings } from "../../model/flow_judgement.ts";
import {
  EVERYTHING,
  type FlowScope,
  flowScope,
  isEmptyScope,
  releasedAddresses,
  SetUses,
  takenAddresses,
  uniteScopes,
} from "../../model/flow_scope.ts";
import { explainError } from "../../sdk/errors.ts";
import type { KernelDoor, NetlinkMessage } from "../../sdk/kernel_door.ts";
import type { Clock, Log } from "../../sdk/plugin.ts";
import { type FlowDeed, flowDeed, FlowTable } from "./flow_table.ts";
import { readSurroundings } from "../node_surroundings.ts";
import { round } from "../timing.ts";
import type { FlowCutsView } from "../view.ts";
import { WorkSlice } from "../work_slice.ts";

/**
 * After a generation is in force, until no other has come for so long: what is applied one object after another (a policy that
 * closes, then those that open again) cuts nothing that the last of them allows.
 */
const QUIET_MS = 100;
/** It does not wait longer for quiet. */
const SETTLE_LONGEST_MS = 1_000;
/** Flows of gone workloads can wait for more of them: their addresses rest. */
const RELEASE_DELAY_MS = 1_000;
/** After a pass, times its own duration: passes take a quarter of a processor at most, but for very long ones. */
const REST_FACTOR = 3;
const REST_LONGEST_MS = 2_000;
const DEEDS_AT_ONCE = 200;
export const DEEDS_PER_SECOND = 20_000;
/** Found and not yet done; what comes beyond waits in the kernel's table. */
export const PENDING_MAX = 20_000;
/** States that came into force since flows were last looked at; of more than these, all flows are looked at. */
const STATES_MAX = 1_024;
/** Given-up addresses that are remembered. */
const RELEASED_MAX = 65_536;
const RETRY_FIRST_MS = 100;
const RETRY_LONGEST_MS = 10_000;
/** What it knows of sets is learnt anew when so many more are known than there are. */
const USES_SLACK = 1_024;

/** Links of pods: the dataplane drops what passes one that has no workload. */
const isSealed = (interfaceName: string): boolean => interfaceName.startsWith("mx");

export interface FlowCutsParts {
  readonly kernel: KernelDoor;
  readonly clock: Clock;
  readonly log: Log;
  /** `Dataplane.cutMark`. */
  readonly mark: number;
  /** Off: nothing is cut, and what an earlier daemon has cut is let go on. */
  readonly isOn: boolean;
  /** `Dataplane.recheckFlows`. */
  readonly recheck?: () => void;
}

export class FlowCuts {
  readonly #parts: FlowCutsParts;
  readonly #counters = { passes: 0, listed: 0, judged: 0, cut: 0, restored: 0, removed: 0 };
  #uses = new SetUses();
  #inForce: CalcResult | undefined;
  /** The flows are as this state wants them. Undefined: nobody knows. */
  #examined: DesiredState | undefined;
  /** What has come into force since, the newest last. Each may have allowed a flow that the next one denies. */
  #since: DesiredState[] = [];
  /** There were more than are remembered. */
  #forgot = false;
  /** When the first and the last of them came into force. */
  #firstAtMs = 0;
  #lastAtMs = 0;
  /** Addresses given up, whose flows are still there, and since when. */
  readonly #released = new Map<Address, number>();
  /** Addresses without a workload that had flows at the start: somebody else's by now, or of a workload that is gone. */
  readonly #suspects = new Set<Address>();
  /** Addresses whose flows could not be removed in time, and are judged instead. */
  readonly #doubtful = new Set<Address>();
  /** Some flow may be cut; an earlier daemon may have cut any. */
  #someCut = true;
  #pending: PendingDeed[] = [];
  #lastPassMs = 0;
  #problem: string | undefined;
  #wake: () => void = () => {};

  constructor(parts: FlowCutsParts) {
    this.#parts = parts;
  }

  /**
   * This is in force in the kernel. A promise: addresses are in use again before their earlier owner's flows are gone; nobody may
   * be told before it settles. It never rejects.
   */
  inForce(state: CalcResult): Promise<void> | undefined {
    const before = this.#inForce?.desired, after = state.desired;
    this.#inForce = state;
    if (before === after) return undefined;
    const nowMs = this.#parts.clock.nowMs();
    if (this.#since.length === 0) this.#firstAtMs = nowMs;
    this.#lastAtMs = nowMs;
    if (this.#since.length >= STATES_MAX) {
      this.#since = [];
      this.#forgot = true;
    }
    this.#since.push(after);
    for (const address of releasedAddresses(before, after, isSealed)) {
      if (this.#released.size < RELEASED_MAX) this.#released.set(address, nowMs);
    }
    const taken = [...takenAddresses(before, after)].filter((address) =>
      this.#released.has(address) || this.#suspects.has(address)
    );
    this.#wake();
    return taken.length === 0 ? undefined : this.#clear(taken);
  }

  /** Runs until `signal` aborts. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#parts;
    const stop = () => this.#wake();
    signal.addEventListener("abort", stop);
    const sleep = (ms: number) => clock.sleep(ms, signal).catch(() => {});
    for (let pauseMs = RETRY_FIRST_MS; !signal.aborted;) {
      const woken = new Promise<void>((resolve) => this.#wake = resolve);
      const dueMs = this.#dueMs();
      if (dueMs > 0) {
        await (Number.isFinite(dueMs) ? Promise.race([woken, sleep(dueMs)]) : woken);
        continue;
      }
      const startedMs = clock.nowMs();
      try {
        await this.#pass(signal);
        pauseMs = RETRY_FIRST_MS;
        this.#problem = undefined;
        await sleep(Math.min(REST_LONGEST_MS, REST_FACTOR * (clock.nowMs() - startedMs)));
      } catch (error) {
        if (signal.aborted) break;
        this.#problem = explainError(error);
        log.error("established flows cannot be compared with policy, trying again", { error: this.#problem, pauseMs });
        await sleep(pauseMs);
        pauseMs = Math.min(RETRY_LONGEST_MS, pauseMs * 2);
      }
    }
    signal.removeEventListener("abort", stop);
  }

  view(): FlowCutsView {
    const state = this.#parts.isOn ? "on" : "off";
    return { state, ...this.#counters, pending: this.#pending.length, lastPassMs: round(this.#lastPassMs) };
  }

  problems(): readonly string[] {
    return this.#problem === undefined
      ? []
      : [`established flows may outlive the policy that allowed them: ${this.#problem}`];
  }

  /** Until there is something to do: at most 0 = now, Infinity = nothing. */
  #dueMs(): number {
    if (this.#inForce === undefined) return Infinity;
    const nowMs = this.#parts.clock.nowMs();
    if (this.#since.length > 0 || this.#doubtful.size > 0 || this.#examined === undefined) {
      return Math.min(this.#lastAtMs + QUIET_MS, this.#firstAtMs + SETTLE_LONGEST_MS) - nowMs;
    }
    return this.#releaseDueMs() - nowMs;
  }

  #releaseDueMs(): number {
    const [first] = this.#released.values();
    return first === undefined ? Infinity : first + RELEASE_DELAY_MS;
  }

  /** Removes the flows of addresses that somebody has got before the earlier owner's flows were removed. */
  async #clear(addresses: readonly Address[]): Promise<void> {
    const { kernel, mark, log } = this.#parts;
    const wanted = new Set(addresses);
    try {
      using table = new FlowTable(kernel, mark);
      for await (const part of table.of({ everything: false, addresses: wanted, nets: [] })) {
        const found = part.filter((message) => endsAt(message, wanted)).map(parseFlow);
        const deeds = found.map((flow) => flowDeed("remove", flow));
        this.#carryOutAll(table, deeds);
      }
    } catch (error) {
      log.error("flows of an address's earlier owner cannot be removed, so they are judged", {
        error: explainError(error),
      });
      for (const address of addresses) this.#doubtful.add(address);
    }
    for (const address of addresses) {
      this.#released.delete(address);
      this.#suspects.delete(address);
    }
  }

  async #pass(signal: AbortSignal): Promise<void> {
    const { kernel, clock, mark, log, isOn } = this.#parts;
    const startedMs = clock.nowMs();
    this.#pending = [];
    const { desired, routes } = this.#inForce!;
    const base = this.#forgot ? undefined : this.#examined, steps = this.#since;
    // What comes into force from here on is for the next pass; if this one fails, nobody knows.
    this.#examined = undefined;
    this.#since = [];
    this.#forgot = false;
    const scope = isOn ? await this.#scopeOf(base, steps) : NOTHING;
    const released = new Map(this.#released);
    if (isEmptyScope(scope) && clock.nowMs() < this.#releaseDueMs() && !this.#someCut) {
      this.#examined = desired;
      return;
    }
    const before = { ...this.#counters };
    using table = new FlowTable(kernel, mark);
    using surroundings = readSurroundings(kernel);
    const pass = new Pass(table, surroundings, clock, isOn);
    if (this.#someCut) {
      let some = false;
      for await (const part of table.cut()) {
        signal.throwIfAborted();
        await this.#consider(pass, part, () => true);
        some = true;
      }
      await this.#carryOut(pass, signal);
      this.#someCut = some;
    }
    const isWithin = withinScope(scope);
    const addresses = new Set([...scope.addresses, ...released.keys()]);
    const suspects = base === undefined ? routes.localBlocks : [];
    for await (const part of table.of({ ...scope, addresses })) {
      signal.throwIfAborted();
      await this.#consider(pass, part, isWithin, suspects);
      if (this.#pending.length >= PENDING_MAX) await this.#carryOut(pass, signal);
    }
    await this.#carryOut(pass, signal);
    // One that was taken and given up again meanwhile has flows that this pass may not have seen.
    for (const [address, sinceMs] of released) {
      if (this.#released.get(address) === sinceMs) this.#released.delete(address);
    }
    for (const address of addresses) this.#doubtful.delete(address);
    this.#examined = desired;
    this.#counters.passes++;
    this.#lastPassMs = clock.nowMs() - startedMs;
    const cut = this.#counters.cut - before.cut, restored = this.#counters.restored - before.restored;
    if (cut + restored > 0) {
      const ms = Math.round(this.#lastPassMs);
      log.info("established flows follow a change", {
        cut,
        restored,
        judged: this.#counters.judged - before.judged,
        ms,
      });
    }
  }

  async #scopeOf(base: DesiredState | undefined, steps: readonly DesiredState[]): Promise<FlowScope> {
    const newest = steps.at(-1);
    if (base === undefined) return EVERYTHING;
    const scopes: FlowScope[] = [{ ...NOTHING, addresses: this.#doubtful }];
    if (newest === undefined) return uniteScopes(scopes);
    if (this.#uses.size > 2 * newest.sets.size + USES_SLACK) this.#uses = new SetUses();
    const slice = new WorkSlice(this.#parts.clock);
    for (const _ of this.#uses.learn(newest)) if (slice.isOver()) await slice.next();
    for (const [i, after] of steps.entries()) {
      scopes.push(flowScope(i === 0 ? base : steps[i - 1]!, after, this.#uses, isSealed));
      if (slice.isOver()) await slice.next();
    }
    return uniteScopes(scopes);
  }

  /** Finds what is to be done about each flow. */
  async #consider(
    pass: Pass,
    messages: readonly NetlinkMessage[],
    isWithin: (ends: FlowEnds) => boolean,
    suspects: readonly Cidr[] = [],
  ): Promise<void> {
    for (const message of messages) {
      if (pass.slice.isOver()) await pass.slice.next();
      const judge = pass.judge(this.#inForce!.desired);
      const ends = flowEnds(message);
      this.#counters.listed++;
      if (this.#released.has(ends.source) || this.#released.has(ends.replySource)) {
        this.#pending.push(flowDeed("remove", parseFlow(message)));
        continue;
      }
      for (const address of suspects.length === 0 ? [] : [ends.source, ends.replySource]) {
        if (judge.isOwned(address) || pass.surroundings.isNode(address) || !inNets(suspects, address)) continue;
        if (this.#suspects.size < RELEASED_MAX) this.#suspects.add(address);
      }
      if (!isWithin(ends) || !judge.concerns(ends.source, ends.replySource)) continue;
      const flow = parseFlow(message);
      this.#counters.judged++;
      const judged = pass.table.judged(flow);
      const isDenied = pass.isOn && judge.denies(judged);
      if (isDenied === pass.table.isCut(flow)) continue;
      const tuples = { original: judged.original, reply: judged.reply };
      this.#pending.push({ ...flowDeed(isDenied ? "cut" : "restore", flow), judged: { tuples, by: judge.state } });
    }
  }

  /** The oldest first, as far as their age is known. */
  async #carryOut(pass: Pass, signal: AbortSignal): Promise<void> {
    const { clock } = this.#parts;
    this.#pending.sort((a, b) => compareStarts(a.flow.startNs, b.flow.startNs));
    while (this.#pending.length > 0) {
      const judge = pass.judge(this.#inForce!.desired);
      // What came into force since a flow was judged may say otherwise; a reset cannot be taken back.
      const deeds = this.#pending.splice(0, DEEDS_AT_ONCE).filter(({ kind, judged }) =>
        judged === undefined || judged.by === judge.state ||
        (pass.isOn && judge.denies(judged.tuples)) === (kind === "cut")
      );
      this.#carryOutAll(pass.table, deeds);
      if (this.#pending.length > 0) await clock.sleep(1_000 * DEEDS_AT_ONCE / DEEDS_PER_SECOND, signal);
    }
  }

  /** No packet of a flow that is cut or removed goes past where that is noticed. @throws {Error} */
  #carryOutAll(table: FlowTable, deeds: readonly FlowDeed[]): void {
    const done = table.carryOut(deeds);
    if (done.includes(true)) this.#parts.recheck?.();
    this.#count(deeds, done);
  }

  #count(deeds: readonly FlowDeed[], done: readonly boolean[]): void {
    for (const [i, { kind }] of deeds.entries()) {
      if (!done[i]) continue;
      if (kind === "cut") {
        this.#counters.cut++;
        this.#someCut = true;
      } else this.#counters[kind === "restore" ? "restored" : "removed"]++;
    }
  }
}

interface PendingDeed extends FlowDeed {
  /** Absent: to be removed whatever policy says. */
  readonly judged?: { readonly tuples: EstablishedFlow; readonly by: DesiredState };
}

type FlowEnds = ReturnType<typeof flowEnds>;

const NOTHING: FlowScope = { everything: false, addresses: new Set(), nets: [] };

/** What one pass works with. */
class Pass {
  readonly slice: WorkSlice;
  #judge: FlowJudge | undefined;

  constructor(
    readonly table: FlowTable,
    readonly surroundings: NodeSurroundings,
    clock: Clock,
    readonly isOn: boolean,
  ) {
    this.slice = new WorkSlice(clock);
  }

  /** By what is in force now, which may be newer than at the start of the pass. */
  judge(desired: DesiredState): FlowJudge {
    if (this.#judge?.state !== desired) this.#judge = new FlowJudge(desired, this.surroundings);
    return this.#judge;
  }
}

const inNets = (nets: readonly Cidr[], address: Address): boolean => nets.some((net) => cidrContains(net, address));

function withinScope({ everything, addresses, nets }: FlowScope): (ends: FlowEnds) => boolean {
  if (everything) return () => true;
  const has = (address: Address) => addresses.has(address) || inNets(nets, address);
  return (ends) => has(ends.source) || has(ends.replySource) || has(ends.destination) || has(ends.replyDestination);
}

function endsAt(message: NetlinkMessage, addresses: ReadonlySet<Address>): boolean {
  const { source, replySource } = flowEnds(message);
  return addresses.has(source) || addresses.has(replySource);
}

const compareStarts = (a: bigint | undefined, b: bigint | undefined): number =>
  a === b ? 0 : a === undefined ? 1 : b === undefined ? -1 : a < b ? -1 : 1;
