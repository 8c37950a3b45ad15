/** For tests: a dataplane that does as it is told. */
import type { DesiredState } from "../../../model/desired.ts";
import { persistentMap } from "../../../model/persistent_map.ts";
import type { Dataplane, LoggedPacket, PacketJudge, Report } from "../../../sdk/dataplane.ts";
import type { LoadedPlugin } from "../../loader.ts";
import type { OpenDataplane } from "../switch.ts";

export const desiredAt = (generation: number): DesiredState => ({
  generation,
  sets: persistentMap(),
  workloads: persistentMap(),
  hostEndpoints: persistentMap(),
  failsafe: { inbound: [], outbound: [] },
  masquerade: { sources: [], inside: [] },
});

/** Says what it is asked, and answers as it is told. */
export class Told implements Dataplane {
  readonly capabilities: Dataplane["capabilities"] = {
    aspects: new Set(["policy"]),
    families: new Set([4, 6]),
    atomicity: "all",
  };
  readonly calls: string[] = [];
  converges = true;
  sweeps = true;
  differs: readonly string[] = [];
  /** `apply` ends with it. */
  gate: Promise<void> | undefined;
  generation = 0;
  /** Undefined: it cannot judge packets. */
  judge: PacketJudge | undefined;

  constructor(readonly name: string, readonly diary: string[]) {}

  get open(): OpenDataplane {
    return {
      loaded: { plugin: { name: this.name }, slot: { use: this.name } } as LoadedPlugin<"dataplane">,
      instance: this,
    };
  }
  #say(what: string): void {
    this.calls.push(what);
    this.diary.push(`${this.name} ${what}`);
  }
  #report = (converged: boolean): Report => ({
    generation: this.generation,
    converged,
    messages: 1,
    problems: converged ? [] : [`${this.name} cannot`],
  });
  async apply({ generation }: DesiredState): Promise<Report> {
    this.#say(`apply ${generation}`);
    await this.gate;
    this.generation = generation;
    return this.#report(this.converges);
  }
  async resync(): Promise<Report> {
    this.#say("resync");
    return { ...this.#report(this.converges), messages: 0 };
  }
  get tracer(): Dataplane["tracer"] {
    const { judge } = this;
    return judge === undefined ? undefined : () => Promise.resolve(judge);
  }
  async diff(): Promise<readonly string[]> {
    return this.differs;
  }
  async *drift(signal: AbortSignal): AsyncIterable<string> {
    yield `${this.name} drifts`;
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  }
  async *logs(signal: AbortSignal): AsyncIterable<LoggedPacket> {
    yield { prefix: this.name } as LoggedPacket;
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  }
  async sweep(): Promise<Report> {
    this.#say("sweep");
    return this.#report(this.sweeps);
  }
  async [Symbol.asyncDispose](): Promise<void> {
    this.#say("close");
  }
}
