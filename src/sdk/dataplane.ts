import type { Family } from "../model/address.ts";
import type { DesiredState, RouteState } from "../model/desired.ts";

export type Aspect = "policy" | "services" | "nat";

export interface Report {
  /** The generation that is in force on return. */
  readonly generation: number;
  /** Everything of that generation is in force. */
  readonly converged: boolean;
  /** Messages sent to the kernel; 0 = it was as wanted. */
  readonly messages: number;
  /** What is not as wanted, one line each. */
  readonly problems: readonly string[];
}

export interface Dataplane extends AsyncDisposable {
  /** Probed at open, never guessed from a version. */
  readonly capabilities: {
    readonly aspects: ReadonlySet<Aspect>;
    readonly families: ReadonlySet<Family>;
    /** `all`: a generation is one transaction. */
    readonly atomicity: "all" | "object";
  };
  /** Brings the kernel to the whole of `desired`; identity against the last one applied shows what to look at. Repeatable. */
  apply(desired: DesiredState, signal?: AbortSignal): Promise<Report>;
  /** Compares with the kernel and mends; what `apply` does after a restart or a foreign change. */
  resync(signal?: AbortSignal): Promise<Report>;
  /** Yields when something foreign touched what is ours: time to `resync`. */
  drift(signal: AbortSignal): AsyncIterable<string>;
  /** Removes everything that is ours, and nothing else. */
  sweep(signal?: AbortSignal): Promise<Report>;
}

export interface Routing extends AsyncDisposable {
  apply(desired: RouteState, signal?: AbortSignal): Promise<Report>;
  drift(signal: AbortSignal): AsyncIterable<string>;
  sweep(signal?: AbortSignal): Promise<Report>;
}
