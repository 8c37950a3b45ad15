/**
 * What walks of rendered rules have in common, whoever renders them: the packet, what comes of it at a hook, and its way from hook to hook. Pure.
 * A walk errs on what it does not know: a trace that guesses is worse than none.
 */
import type { Address } from "./address.ts";
import type { Packet } from "./desired.ts";
import type { Path } from "./evaluate.ts";
import { stateOfFirstPacket } from "./first_packet.ts";

/** Of netfilter, in the order in which packets meet them. */
export type Hook = "prerouting" | "input" | "forward" | "output" | "postrouting";

/** A packet at one hook. Addresses and ports are what the headers hold there: DNAT happens between priorities. */
export interface TracedPacket {
  readonly source: Address;
  readonly destination: Address;
  readonly protocol: number;
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly icmp?: { readonly type: number; readonly code: number };
  /** Absent: none at this hook. */
  readonly inInterface?: string;
  readonly outInterface?: string;
  readonly state: "new" | "established" | "related" | "invalid" | "untracked";
  readonly mark?: number;
  /** Of its flow; absent: 0. */
  readonly flowMark?: number;
  /** The destination is an address of the node, or the source is. */
  readonly isToNode?: boolean;
  readonly isFromNode?: boolean;
  /** Its flow has got another destination before this hook. */
  readonly hasDnat?: boolean;
}

/** What comes of a packet at one hook. */
export interface Trace<Step> {
  readonly verdict: "accept" | "drop";
  /** Rules that matched, in order. */
  readonly steps: readonly Step[];
  /** Afterwards. */
  readonly mark: number;
  readonly tracked: boolean;
  readonly masqueraded: boolean;
  /** Where DNAT sends it; what comes later sees it so. */
  readonly dnat?: { readonly address: Address; readonly port: number };
  readonly logged: readonly string[];
}

/** The rules use something that has no known meaning here, or lead nowhere. */
export class TraceError extends Error {
  override readonly name = "TraceError";
}

type OnItsWay<P extends TracedPacket> = Omit<P, "inInterface" | "outInterface" | "mark">;

/** The first packet of a flow on its way through the node. */
export interface TracedPath<P extends TracedPacket = TracedPacket> {
  /** After DNAT by others. */
  readonly packet: OnItsWay<P>;
  /** As it came in, where DNAT changed it. */
  readonly beforeDnat?: OnItsWay<P> | undefined;
  /** Absent: a process of the node sent it. */
  readonly inInterface?: string | undefined;
  /** Absent: it is for the node itself. */
  readonly outInterface?: string | undefined;
}

/** One hook after the other, mark, tracking and destination carried along, up to the drop. @throws {TraceError} */
export function traceHooks<P extends TracedPacket, T extends Trace<unknown>>(
  { packet, beforeDnat, inInterface, outInterface }: TracedPath<P>,
  traceHook: (hook: Hook, packet: P) => T,
): readonly (T & { readonly hook: Hook })[] {
  const hooks: Hook[] = inInterface === undefined
    ? ["output", "postrouting"]
    : outInterface === undefined
    ? ["prerouting", "input"]
    : ["prerouting", "forward", "postrouting"];
  const traces: (T & { readonly hook: Hook })[] = [];
  let mark = 0, tracked = true, dnat: T["dnat"] = undefined;
  for (const hook of hooks) {
    const came = hook === "prerouting" ? beforeDnat ?? packet : packet;
    const seen = dnat === undefined ? came : translated(came, dnat);
    const trace = traceHook(hook, {
      ...seen,
      state: tracked ? seen.state : "untracked",
      mark,
      ...hook === "output" || hook === "postrouting" || inInterface === undefined ? {} : { inInterface },
      ...hook === "prerouting" || hook === "input" || outInterface === undefined ? {} : { outInterface },
    } as P);
    traces.push({ ...trace, hook });
    if (trace.verdict === "drop") break;
    ({ mark, tracked } = trace);
    dnat ??= trace.dnat;
  }
  return traces;
}

/** The packet with another destination. */
export const translated = <P extends Partial<TracedPacket>>(
  packet: P,
  { address, port }: { readonly address: Address; readonly port: number },
): P => ({ ...packet, destination: address, destinationPort: port, hasDnat: true });

/** What all hooks on its way make of the first packet of a flow. @throws {TraceError} */
export function judgeHooks<T extends Trace<unknown>>(
  { packet, beforeDnat, ...links }: Path,
  traceHook: (hook: Hook, packet: TracedPacket) => T,
): "allow" | "deny" {
  const first = (packet: Packet) => ({ ...packet, state: stateOfFirstPacket(packet) });
  const traces = traceHooks({
    packet: first(packet),
    ...beforeDnat === undefined ? {} : { beforeDnat: first(beforeDnat) },
    ...links,
  }, traceHook);
  return traces.at(-1)!.verdict === "accept" ? "allow" : "deny";
}
