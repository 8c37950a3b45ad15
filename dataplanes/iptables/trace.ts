/**
 * Walks rendered tables for one packet as the kernel would, and says every step. Pure. It errs on what it does not know: a
 * trace that guesses is worse than none.
 */
import { type Address, addressFamily, cidrContains, type Family, makeCidr } from "../../src/model/address.ts";
import type { Path } from "../../src/model/evaluate.ts";
import { hasPorts, PROTOCOLS } from "../../src/model/ports.ts";
import {
  type Hook,
  judgeHooks,
  type Trace as TraceOf,
  type TracedPacket as PlainPacket,
  type TracedPath,
  TraceError,
  traceHooks,
  translated,
} from "../../src/model/traced.ts";
import { interfaceMember } from "../../src/kernel/netlink/schema/ipset.ts";
import { printRule } from "./print.ts";
import type { End, IpSet, Match, Ruleset, TableName, Target } from "./ruleset.ts";

export interface TracedPacket extends PlainPacket {
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

export type Trace = TraceOf<TraceStep>;

/** The chain of a hook, and the tables that have it, in the order in which a packet meets them. */
const AT: Readonly<Record<Hook, { readonly chain: string; readonly tables: readonly TableName[] }>> = {
  prerouting: { chain: "PREROUTING", tables: ["raw", "mangle", "nat"] },
  input: { chain: "INPUT", tables: ["mangle", "filter", "nat"] },
  forward: { chain: "FORWARD", tables: ["mangle", "filter"] },
  output: { chain: "OUTPUT", tables: ["raw", "mangle", "nat", "filter"] },
  postrouting: { chain: "POSTROUTING", tables: ["mangle", "nat"] },
};

/** @throws {TraceError} */
export function traceHook(ruleset: Ruleset, hook: Hook, packet: TracedPacket): Trace {
  const walk = new Walk(ruleset, packet);
  let verdict: "accept" | "drop" = "accept";
  for (const name of AT[hook].tables) {
    const table = ruleset.tables.find((one) => one.family === walk.family && one.table === name);
    const chain = table?.hooks.get(AT[hook].chain);
    if (table === undefined || chain === undefined || name === "nat" && !walk.beginsFlow) continue;
    if (walk.enter(name, table.chains, chain) === "drop") {
      verdict = "drop";
      break;
    }
  }
  const { steps, mark, tracked, masqueraded, dnat, logged } = walk;
  return { verdict, steps, mark, tracked, masqueraded, logged, ...dnat === undefined ? {} : { dnat } };
}

/** By all hooks on its way, one after the other. @throws {TraceError} */
export const tracePath = (ruleset: Ruleset, path: TracedPath<TracedPacket>) =>
  traceHooks(path, (hook, packet: TracedPacket) => traceHook(ruleset, hook, packet));

/** @throws {TraceError} */
export const judgePacket = (ruleset: Ruleset, path: Path): "allow" | "deny" =>
  judgeHooks(path, (hook, packet) => traceHook(ruleset, hook, packet));

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
