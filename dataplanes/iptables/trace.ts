/**
 * Walks rendered tables for one packet as the kernel would, and says every step. Pure. It errs on what it does not know: a
 * trace that guesses is worse than none.
 */
import { type Address, addressFamily, cidrContains, type Family, makeCidr } from "../../src/model/address.ts";
import type { Packet } from "../../src/model/desired.ts";
import type { Path } from "../../src/model/evaluate.ts";
import { stateOfFirstPacket } from "../../src/model/first_packet.ts";
import { hasPorts, PROTOCOLS } from "../../src/model/ports.ts";
import { interfaceMember } from "../../src/kernel/netlink/schema/ipset.ts";
import { printRule } from "./print.ts";
import type { End, FlowState, IpSet, Match, Ruleset, TableName, Target } from "./ruleset.ts";

export type Hook = "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING";

/** A packet at one hook. Addresses and ports are what the headers hold there. */
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
  readonly state: FlowState;
  readonly mark?: number;
  /** Of its flow; absent: 0. */
  readonly flowMark?: number;
  /** The destination is an address of the node, or the source is. */
  readonly isToNode?: boolean;
  readonly isFromNode?: boolean;
  /** Its flow has got another destination before this hook. */
  readonly hasDnat?: boolean;
  /** What chance gives whenever it is asked, from 0 to below 1; absent: 0. */
  readonly random?: () => number;
  /** Sources by the list that remembers them: looked up, and changed by the packet. Absent: nobody is, and nobody will be. */
  readonly memory?: Map<string, Set<Address>>;
}

export interface TraceStep {
  readonly table: TableName;
  readonly chain: string;
  /** From 0. */
  readonly rule: number;
  readonly text: string;
}

export interface Trace {
  readonly verdict: "accept" | "drop";
  /** Rules that matched, in order. */
  readonly steps: readonly TraceStep[];
  /** Afterwards. */
  readonly mark: number;
  readonly tracked: boolean;
  readonly masqueraded: boolean;
  /** Where DNAT sends it; later tables see it so. */
  readonly dnat?: { readonly address: Address; readonly port: number };
  readonly logged: readonly string[];
}

/** The rules use something that has no known meaning here, or lead nowhere. */
export class TraceError extends Error {
  override readonly name = "TraceError";
}

/** The tables that have a hook, in the order in which a packet meets them. */
const TABLES_AT: Readonly<Record<Hook, readonly TableName[]>> = {
  PREROUTING: ["raw", "mangle", "nat"],
  INPUT: ["mangle", "filter", "nat"],
  FORWARD: ["mangle", "filter"],
  OUTPUT: ["raw", "mangle", "nat", "filter"],
  POSTROUTING: ["mangle", "nat"],
};

/** @throws {TraceError} */
export function traceHook(ruleset: Ruleset, hook: Hook, packet: TracedPacket): Trace {
  const walk = new Walk(ruleset, packet);
  let verdict: "accept" | "drop" = "accept";
  for (const name of TABLES_AT[hook]) {
    const table = ruleset.tables.find((one) => one.family === walk.family && one.table === name);
    const chain = table?.hooks.get(hook);
    if (table === undefined || chain === undefined || name === "nat" && !walk.beginsFlow) continue;
    if (walk.enter(name, table.chains, chain) === "drop") {
      verdict = "drop";
      break;
    }
  }
  const { steps, mark, tracked, masqueraded, dnat, logged } = walk;
  return { verdict, steps, mark, tracked, masqueraded, logged, ...dnat === undefined ? {} : { dnat } };
}

type PacketOnItsWay = Omit<TracedPacket, "inInterface" | "outInterface" | "mark">;

/** The first packet of a flow on its way through the node. */
export interface TracedPath {
  /** After DNAT by others. */
  readonly packet: PacketOnItsWay;
  /** As it came in, where DNAT changed it. */
  readonly beforeDnat?: PacketOnItsWay | undefined;
  /** Absent: a process of the node sent it. */
  readonly inInterface?: string | undefined;
  /** Absent: it is for the node itself. */
  readonly outInterface?: string | undefined;
}

/** One hook after the other, mark and tracking carried along, up to the drop. @throws {TraceError} */
export function tracePath(ruleset: Ruleset, path: TracedPath): readonly (Trace & { readonly hook: Hook })[] {
  const { inInterface, outInterface } = path;
  const hooks: Hook[] = inInterface === undefined
    ? ["OUTPUT", "POSTROUTING"]
    : outInterface === undefined
    ? ["PREROUTING", "INPUT"]
    : ["PREROUTING", "FORWARD", "POSTROUTING"];
  const traces: (Trace & { readonly hook: Hook })[] = [];
  let mark = 0, tracked = true, dnat: Trace["dnat"];
  for (const hook of hooks) {
    const came = hook === "PREROUTING" ? path.beforeDnat ?? path.packet : path.packet;
    const seen = dnat === undefined ? came : translated(came, dnat);
    const at: TracedPacket = {
      ...seen,
      state: tracked ? seen.state : "untracked",
      mark,
      ...hook === "OUTPUT" || hook === "POSTROUTING" || inInterface === undefined ? {} : { inInterface },
      ...hook === "PREROUTING" || hook === "INPUT" || outInterface === undefined ? {} : { outInterface },
    };
    const trace = traceHook(ruleset, hook, at);
    traces.push({ hook, ...trace });
    if (trace.verdict === "drop") break;
    ({ mark, tracked } = trace);
    dnat ??= trace.dnat;
  }
  return traces;
}

const translated = <P extends PacketOnItsWay>(packet: P, { address, port }: NonNullable<Trace["dnat"]>): P => ({
  ...packet,
  destination: address,
  destinationPort: port,
  hasDnat: true,
});

/** By all hooks on its way, one after the other. @throws {TraceError} */
export function judgePacket(ruleset: Ruleset, { packet, beforeDnat, ...links }: Path): "allow" | "deny" {
  const first = (packet: Packet) => ({ ...packet, state: stateOfFirstPacket(packet) });
  const traces = tracePath(ruleset, {
    packet: first(packet),
    ...beforeDnat === undefined ? {} : { beforeDnat: first(beforeDnat) },
    ...links,
  });
  return traces.at(-1)!.verdict === "accept" ? "allow" : "deny";
}

/** More gotos than any rendered table has, and far fewer than a loop. */
const STEPS_MAX = 100_000;

type Chains = ReadonlyMap<string, readonly { readonly matches: readonly Match[]; readonly target: Target }[]>;

class Walk {
  readonly family: Family;
  readonly steps: TraceStep[] = [];
  readonly logged: string[] = [];
  mark: number;
  tracked: boolean;
  masqueraded = false;
  dnat: Trace["dnat"];

  constructor(private readonly ruleset: Ruleset, private packet: TracedPacket) {
    this.family = addressFamily(packet.destination);
    this.mark = packet.mark ?? 0;
    this.tracked = packet.state !== "untracked";
  }

  /** Others never meet the table nat. */
  get beginsFlow(): boolean {
    const { state } = this.packet;
    return this.tracked && (state === "new" || state === "related");
  }

  /** What the chain that a hook jumps to says; `fell` = nothing. */
  enter(table: TableName, chains: Chains, first: string): "accept" | "drop" | "fell" {
    const back: { chain: string; at: number }[] = [];
    let chain = first, at = 0;
    for (let walked = 0; walked < STEPS_MAX; walked++) {
      const rules = chains.get(chain);
      if (rules === undefined) {
        throw new TraceError(`trace: found no chain ${chain} in ${table}, wanted the one a rule leads to`);
      }
      const rule = rules[at];
      let returns = rule === undefined;
      if (rule !== undefined) {
        at++;
        if (!rule.matches.every((match) => this.holds(match))) continue;
        this.steps.push({ table, chain, rule: at - 1, text: printRule(rule, this.family) });
        const { target } = rule;
        switch (target.target) {
          case "accept":
          case "drop":
            return target.target;
          case "tcpReset":
          case "portUnreachable":
            return "drop";
          case "dnat":
            this.dnat = { address: target.address, port: target.port };
            this.packet = translated(this.packet, this.dnat);
            return "accept";
          case "return":
            returns = true;
            break;
          case "jump":
            back.push({ chain, at });
            [chain, at] = [target.chain, 0];
            break;
          case "goto":
            [chain, at] = [target.chain, 0];
            break;
          case "log":
            this.logged.push(target.prefix);
            break;
          case "mark":
            this.mark = (this.mark & ~target.mask ^ target.value) >>> 0;
            break;
          case "noTrack":
            this.tracked = false;
            break;
          case "masquerade":
            this.masqueraded = true;
            return "accept";
          default:
            throw new TraceError(`trace: found target ${JSON.stringify(target)}, wanted one that is known`);
        }
      }
      if (!returns) continue;
      const caller = back.pop();
      if (caller === undefined) return "fell";
      ({ chain, at } = caller);
    }
    throw new TraceError(`trace: found more than ${STEPS_MAX} steps from chain ${first}, wanted an end`);
  }

  private holds(match: Match): boolean {
    const { packet } = this;
    switch (match.match) {
      case "protocol":
        return (match.protocol === packet.protocol) !== match.not;
      case "net":
        return cidrContains(match.net, packet[match.end]) !== match.not;
      case "interface": {
        const name = (match.way === "in" ? packet.inInterface : packet.outInterface) ?? "";
        return match.prefix ? name.startsWith(match.name) : name === match.name;
      }
      case "ports": {
        if (!hasPorts(packet.protocol) || packet.protocol !== match.protocol) return false;
        const port = this.port(match.end);
        return match.ranges.some(({ first, last }) => first <= port && port <= last);
      }
      case "icmp": {
        const own = this.family === 4 ? PROTOCOLS.ICMP : PROTOCOLS.ICMPv6;
        if (packet.protocol !== own || packet.icmp === undefined) return false;
        const { type, code } = packet.icmp;
        return (type === match.type && (match.code === null || code === match.code)) !== match.not;
      }
      case "state":
        return match.states.includes(this.tracked ? packet.state : "untracked");
      case "mark":
        return ((this.mark & match.mask) !== 0) !== match.not;
      case "flowMark": {
        // What belongs to no flow has no mark, and matches neither way: connmark_mt of xt_connmark.c.
        if (!this.tracked || packet.state === "invalid") return false;
        return (((packet.flowMark ?? 0) & match.mask) !== 0) !== match.not;
      }
      case "limit":
        return true;
      case "local":
        return ((match.end === "source" ? packet.isFromNode : packet.isToNode) ?? false) !== match.not;
      case "translated":
        return packet.hasDnat ?? false;
      case "chance":
        return (packet.random?.() ?? 0) < match.of31Bits / 2 ** 31;
      case "remember": {
        const sources = packet.memory?.get(match.list) ?? new Set();
        packet.memory?.set(match.list, sources.add(packet.source));
        return true;
      }
      case "remembered":
        return packet.memory?.get(match.list)?.has(packet.source) ?? false;
      case "set":
        return this.inSet(this.set(match.set), match.ends) !== match.not;
      default:
        throw new TraceError(`trace: found match ${JSON.stringify(match)}, wanted one that is known`);
    }
  }

  private port(end: End): number {
    return (end === "source" ? this.packet.sourcePort : this.packet.destinationPort) ?? 0;
  }

  private set(name: string): IpSet {
    const set = this.ruleset.sets.get(name);
    if (set === undefined) throw new TraceError(`trace: found no set ${name}, wanted the one a rule looks up`);
    return set;
  }

  private inSet({ kind, content, family }: IpSet, [end, second]: readonly End[]): boolean {
    const address = this.packet[end!];
    if (family !== this.family) {
      throw new TraceError(`trace: found a set of IPv${family}, wanted one of the packet's family`);
    }
    switch (kind) {
      case "net": {
        for (let prefix = address.length * 8; prefix > 0; prefix--) {
          if (content.has(makeCidr(address, prefix))) return true;
        }
        return false;
      }
      case "port": {
        if (!hasPorts(this.packet.protocol)) return false;
        const port = this.port(second!);
        return content.has(address + String.fromCharCode(this.packet.protocol, port >> 8, port & 0xff));
      }
      case "interface":
        return content.has(
          interfaceMember(address, (second === "source" ? this.packet.inInterface : this.packet.outInterface) ?? ""),
        );
    }
  }
}
