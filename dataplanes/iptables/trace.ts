/**
 * Walks rendered tables for one packet as the kernel would, and says every step. Pure. It errs on what it does not know: a
 * trace that guesses is worse than none.
 */
import { type Address, addressFamily, cidrContains, type Family, makeCidr } from "../../src/model/address.ts";
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
    if (table === undefined || chain === undefined) continue;
    if (walk.enter(name, table.chains, chain) === "drop") {
      verdict = "drop";
      break;
    }
  }
  const { steps, mark, tracked, masqueraded, logged } = walk;
  return { verdict, steps, mark, tracked, masqueraded, logged };
}

type PacketOnItsWay = Omit<TracedPacket, "inInterface" | "outInterface" | "mark">;

/** The first packet of a flow on its way through the node. */
export interface TracedPath {
  /** After DNAT. */
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
  let mark = 0, tracked = true;
  for (const hook of hooks) {
    const seen = hook === "PREROUTING" ? path.beforeDnat ?? path.packet : path.packet;
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
  }
  return traces;
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

  constructor(private readonly ruleset: Ruleset, private readonly packet: TracedPacket) {
    this.family = addressFamily(packet.destination);
    this.mark = packet.mark ?? 0;
    this.tracked = packet.state !== "untracked";
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
            return "drop";
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
        return content.has(interfaceMember(address, this.packet.inInterface ?? ""));
    }
  }
}
