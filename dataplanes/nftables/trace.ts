/**
 * Walks a ruleset for one packet as the kernel would, and says every step. Pure. It errs on any expression whose meaning it
 * does not know: a trace that guesses is worse than none.
 */
import { type Address, addressFamily } from "../../src/model/address.ts";
import type { Path } from "../../src/model/evaluate.ts";
import { hasPorts, PROTOCOLS } from "../../src/model/ports.ts";
import { portBytes } from "../../src/model/port_ranges.ts";
import {
  type Hook,
  judgeHooks,
  type Trace as TraceOf,
  type TracedPacket as PlainPacket,
  type TracedPath,
  TraceError,
  traceHooks,
} from "../../src/model/traced.ts";
import { printRule } from "./print.ts";
import {
  type BaseChain,
  type ElementKey,
  type ElementValue,
  type Expression,
  interfaceKey,
  KEY_FIELDS,
  keyLength,
  type NftSet,
  type Rule,
  type Ruleset,
  type Verdict,
} from "./ruleset.ts";

export interface TracedPacket extends PlainPacket {
  /** What chance gives, before the modulus; absent: 0. */
  readonly random?: number;
  /** Elements of dynamic maps, by map and key: looked up, and changed by the packet. Absent: there are none, and none is kept. */
  readonly memory?: Map<string, Map<string, string>>;
}

export interface TraceStep {
  readonly chain: string;
  /** From 0; -1 is the end of the chain. */
  readonly rule: number;
  readonly text: string;
}

export interface Trace extends TraceOf<TraceStep> {
  /** Keys of the elements that have counted the packet. */
  readonly counted: readonly string[];
}

/** All base chains of the hook, by priority. @throws {TraceError} */
export function traceHook(ruleset: Ruleset, hook: Hook, packet: TracedPacket): Trace {
  const walk = new Walk(ruleset, packet);
  let verdict: "accept" | "drop" = "accept";
  for (const { name, policy } of baseChains(ruleset)[hook]) {
    const ended = walk.chain(name, 0);
    verdict = ended === "fell" ? policy : ended;
    if (verdict === "drop") break;
  }
  const { steps, mark, tracked, masqueraded, dnat, logged, counted } = walk;
  return { verdict, steps, mark, tracked, masqueraded, logged, counted, ...dnat === undefined ? {} : { dnat } };
}

interface BaseOfHook extends BaseChain {
  readonly name: string;
}
const bases = new WeakMap<Ruleset, Readonly<Record<Hook, readonly BaseOfHook[]>>>();

/** In the order in which a packet meets them. */
function baseChains(ruleset: Ruleset): Readonly<Record<Hook, readonly BaseOfHook[]>> {
  let found = bases.get(ruleset);
  if (found === undefined) {
    const at: Record<Hook, BaseOfHook[]> = { prerouting: [], input: [], forward: [], output: [], postrouting: [] };
    ruleset.chains.forEach(({ base }, name) => {
      if (base !== undefined && base.hook in at) at[base.hook as Hook].push({ ...base, name });
    });
    for (const chains of Object.values(at)) chains.sort((a, b) => a.priority - b.priority);
    bases.set(ruleset, found = at);
  }
  return found;
}

/** By all hooks on its way, one after the other. @throws {TraceError} */
export const tracePath = (ruleset: Ruleset, path: TracedPath<TracedPacket>) =>
  traceHooks(path, (hook, packet: TracedPacket) => traceHook(ruleset, hook, packet));

/** @throws {TraceError} */
export const judgePacket = (ruleset: Ruleset, path: Path): "allow" | "deny" =>
  judgeHooks(path, (hook, packet) => traceHook(ruleset, hook, packet));

/** A chain by itself; `fell` = its end was reached, or it returned. @throws {TraceError} */
export function traceChain(
  ruleset: Ruleset,
  chain: string,
  packet: TracedPacket,
): Pick<Trace, "steps" | "logged" | "counted"> & {
  readonly verdict: "accept" | "drop" | "fell";
  /** Rules that were looked at. */
  readonly walked: number;
} {
  const walk = new Walk(ruleset, packet);
  const verdict = walk.chain(chain, 0);
  return { verdict, steps: walk.steps, logged: walk.logged, counted: walk.counted, walked: walk.walked };
}

/** NFT_JUMP_STACK_SIZE of include/net/netfilter/nf_tables.h. */
const DEPTH_MAX = 16;

class Walk {
  readonly steps: TraceStep[] = [];
  readonly logged: string[] = [];
  readonly counted: string[] = [];
  walked = 0;
  mark: number;
  tracked: boolean;
  masqueraded = false;
  dnat: Trace["dnat"];
  private priority = "\0\0\0\0";
  private readonly network: string;
  private readonly transport: string | undefined;

  constructor(readonly ruleset: Ruleset, readonly packet: TracedPacket) {
    this.mark = packet.mark ?? 0;
    this.tracked = packet.state !== "untracked";
    const family = addressFamily(packet.destination);
    this.network = "\0".repeat(family === 4 ? 12 : 8) + packet.source + packet.destination;
    if (packet.icmp !== undefined) {
      this.transport = String.fromCharCode(packet.icmp.type, packet.icmp.code) + "\0\0\0\0\0\0";
    } else if (hasPorts(packet.protocol)) {
      this.transport = portBytes(packet.sourcePort ?? 0) + portBytes(packet.destinationPort ?? 0) + "\0\0\0\0";
    } else {this.transport = packet.protocol === PROTOCOLS.ICMP || packet.protocol === PROTOCOLS.ICMPv6
        ? undefined
        : "\0".repeat(8);}
  }

  chain(name: string, depth: number): "accept" | "drop" | "fell" {
    const chain = this.ruleset.chains.get(name);
    if (chain === undefined) throw new TraceError(`trace: found no chain ${name}, wanted the one a rule goes to`);
    if (depth >= DEPTH_MAX) {
      throw new TraceError(`trace: found chain ${name} at depth ${depth}, wanted less than ${DEPTH_MAX}`);
    }
    for (const [index, rule] of chain.rules.entries()) {
      this.walked++;
      const verdict = this.rule(rule);
      if (verdict === undefined) continue;
      this.steps.push({ chain: name, rule: index, text: printRule(rule) });
      switch (verdict.kind) {
        case "accept":
        case "drop":
          return verdict.kind;
        case "return":
          return "fell";
        case "continue":
          break;
        case "goto":
          return this.chain(verdict.chain, depth + 1);
        case "jump": {
          const ended = this.chain(verdict.chain, depth + 1);
          if (ended !== "fell") return ended;
          break;
        }
        case "other":
          throw new TraceError(`trace: found verdict ${verdict.code} in chain ${name}, wanted one that is known`);
      }
    }
    return "fell";
  }

  /** `continue` where the rule matched and says nothing more; undefined where it did not match. */
  private rule(rule: Rule): Verdict | undefined {
    const registers = new Array<string>(16).fill("\0\0\0\0");
    const put = (at: number, data: string) => {
      for (let i = 0; i < data.length; i += 4) registers[at + i / 4] = data.slice(i, i + 4).padEnd(4, "\0");
    };
    const get = (at: number, length: number) => registers.slice(at, at + (length + 3 >> 2)).join("").slice(0, length);
    for (const one of rule) {
      switch (one.op) {
        case "meta": {
          const data = this.meta(one.key);
          if (data === undefined) return undefined;
          put(one.dreg, data);
          break;
        }
        case "setMark":
          this.mark = fromHostWord(get(one.sreg, 4));
          break;
        case "setPriority":
          this.priority = get(one.sreg, 4);
          break;
        case "payload": {
          const data = this.payload(one);
          if (data === undefined) return undefined;
          put(one.dreg, data);
          break;
        }
        case "ct":
          if (one.key === "state") put(one.dreg, CT_STATES[this.tracked ? this.packet.state : "untracked"]);
          else if (one.key === "status") put(one.dreg, hostWord(this.packet.hasDnat ? IPS_DST_NAT : 0));
          else if (one.key !== "mark") throw new TraceError(`trace: found ct ${one.key}, wanted state, status or mark`);
          // What belongs to no flow ends the rule: nft_ct_get_eval of net/netfilter/nft_ct.c.
          else if (!this.tracked || this.packet.state === "invalid") return undefined;
          else put(one.dreg, hostWord(this.packet.flowMark ?? 0));
          break;
        case "cmp":
          if (!compare(get(one.sreg, one.data.length), one.is, one.data)) return undefined;
          break;
        case "range": {
          const value = get(one.sreg, one.from.length);
          if ((value >= one.from && value <= one.to) !== (one.is === "eq")) return undefined;
          break;
        }
        case "bitwise": {
          const value = get(one.sreg, one.mask.length);
          let data = "";
          for (let i = 0; i < value.length; i++) {
            data += String.fromCharCode(value.charCodeAt(i) & one.mask.charCodeAt(i) ^ one.xor.charCodeAt(i));
          }
          put(one.dreg, data);
          break;
        }
        case "lookup": {
          const set = this.set(one.set);
          const key = get(one.sreg, keyLength(set.fields));
          if ((findElement(set, key) !== undefined) === one.invert) return undefined;
          if (set.counted && !one.invert) this.counted.push(key);
          break;
        }
        case "immediate":
          put(one.dreg, one.data);
          break;
        case "map": {
          const set = this.set(one.set);
          const key = get(one.sreg, keyLength(set.fields));
          const found = set.dynamic ? this.packet.memory?.get(one.set)?.get(key) : findElement(set, key);
          if (found === undefined) return undefined;
          if (typeof found !== "string") throw new TraceError(`trace: found set ${one.set}, wanted a map of data`);
          put(one.dreg, found);
          break;
        }
        case "vmap": {
          const set = this.set(one.set);
          const found = findElement(set, get(one.sreg, keyLength(set.fields)));
          if (found === undefined) return undefined;
          if (typeof found !== "object") throw new TraceError(`trace: found set ${one.set}, wanted a verdict map`);
          return found;
        }
        case "verdict":
          return one.verdict;
        case "log":
          this.logged.push(one.prefix);
          break;
        case "notrack":
          this.tracked = false;
          break;
        case "tcpReset":
        case "portUnreachable":
          return { kind: "drop" };
        case "destinationType":
          put(one.dreg, hostWord(this.packet.isToNode ? RTN_LOCAL : RTN_UNICAST));
          break;
        case "random":
          put(one.dreg, hostWord((this.packet.random ?? 0) % one.modulus + one.offset));
          break;
        case "dnat": {
          const address = get(one.addressSreg, one.family === 4 ? 4 : 16) as Address;
          const port = get(one.portSreg, 2);
          this.dnat = { address, port: port.charCodeAt(0) << 8 | port.charCodeAt(1) };
          return { kind: "accept" };
        }
        case "dynamic": {
          const set = this.set(one.set);
          const elements = this.packet.memory?.get(one.set) ?? new Map<string, string>();
          const key = get(one.keySreg, keyLength(set.fields));
          if (one.action === "delete") elements.delete(key);
          else if (!elements.has(key)) elements.set(key, get(one.dataSreg, keyLength(set.data ?? [])));
          this.packet.memory?.set(one.set, elements);
          break;
        }
        case "masquerade":
          this.masqueraded = true;
          return { kind: "accept" };
        case "counter":
        case "limit":
          break;
        case "other":
          throw new TraceError(
            `trace: found expression ${one.name} ${one.attributes}, wanted one whose meaning is known`,
          );
      }
    }
    return { kind: "continue" };
  }

  private set(name: string): NftSet {
    const set = this.ruleset.sets.get(name);
    if (set === undefined) throw new TraceError(`trace: found no set ${name}, wanted the one a rule looks up`);
    return set;
  }

  private meta(key: Extract<Expression, { op: "meta" }>["key"]): string | undefined {
    switch (key) {
      case "iifname":
        return interfaceKey(this.packet.inInterface ?? "");
      case "oifname":
        return interfaceKey(this.packet.outInterface ?? "");
      case "nfproto":
        return addressFamily(this.packet.destination) === 4 ? "\x02" : "\x0a";
      case "l4proto":
        return String.fromCharCode(this.packet.protocol);
      case "mark":
        return hostWord(this.mark);
      case "priority":
        return this.priority;
    }
  }

  private payload(one: Extract<Expression, { op: "payload" }>): string | undefined {
    if (one.base === "link") {
      throw new TraceError("trace: found a load from the link header, wanted network or transport");
    }
    const header = one.base === "network" ? this.network : this.transport;
    if (header === undefined) return undefined;
    if (one.offset + one.length > header.length) {
      throw new TraceError(
        `trace: found a load of ${one.base} ${one.offset}+${one.length}, wanted within ${header.length} bytes`,
      );
    }
    return header.slice(one.offset, one.offset + one.length);
  }
}

/** include/uapi/linux/rtnetlink.h. */
const RTN_UNICAST = 1, RTN_LOCAL = 2;
/** include/uapi/linux/netfilter/nf_conntrack_common.h. */
const IPS_DST_NAT = 0x20;

const CT_STATES = {
  invalid: "\x01\0\0\0",
  established: "\x02\0\0\0",
  related: "\x04\0\0\0",
  new: "\x08\0\0\0",
  untracked: "\x40\0\0\0",
};

const hostWord = (value: number): string =>
  String.fromCharCode(value & 0xff, value >>> 8 & 0xff, value >>> 16 & 0xff, value >>> 24);
const fromHostWord = (word: string): number =>
  (word.charCodeAt(0) | word.charCodeAt(1) << 8 | word.charCodeAt(2) << 16 | word.charCodeAt(3) << 24) >>> 0;

function compare(value: string, is: Extract<Expression, { op: "cmp" }>["is"], data: string): boolean {
  switch (is) {
    case "eq":
      return value === data;
    case "neq":
      return value !== data;
    case "lt":
      return value < data;
    case "lte":
      return value <= data;
    case "gt":
      return value > data;
    case "gte":
      return value >= data;
  }
}

type Index =
  | { readonly plain: ReadonlyMap<ElementKey, ElementValue> }
  | { readonly ranges: readonly { readonly first: string; readonly last: string; readonly value: ElementValue }[] };
const indexes = new WeakMap<NftSet, Index>();

/** The value of the element that holds `key`; undefined where none does. */
export function findElement(set: NftSet, key: string): ElementValue | undefined {
  let index = indexes.get(set);
  if (index === undefined) indexes.set(set, index = indexOf(set));
  if ("plain" in index) return index.plain.get(key);
  if (set.fields.length === 1) {
    // In order, and none overlapping another.
    let low = 0, high = index.ranges.length;
    while (low < high) {
      const middle = low + high >>> 1;
      if (index.ranges[middle]!.last < key) low = middle + 1;
      else high = middle;
    }
    const range = index.ranges[low];
    return range !== undefined && range.first <= key ? range.value : undefined;
  }
  return index.ranges.find(({ first, last }) => within(set, key, first, last))?.value;
}

function indexOf(set: NftSet): Index {
  if (!set.interval) {
    const plain = new Map<ElementKey, ElementValue>();
    set.elements.forEach((value, key) => plain.set(key, value));
    return { plain };
  }
  const ranges: { first: string; last: string; value: ElementValue }[] = [];
  set.elements.forEach((value, key) => {
    const half = key.length / 2;
    ranges.push({ first: key.slice(0, half), last: key.slice(half), value });
  });
  return { ranges: ranges.sort((a, b) => a.first < b.first ? -1 : a.first > b.first ? 1 : 0) };
}

/** Field by field, as concatenated ranges are. */
function within(set: NftSet, key: string, first: string, last: string): boolean {
  let at = 0;
  return set.fields.every((field) => {
    const { length } = KEY_FIELDS[field];
    const part = key.slice(at, at + length);
    const holds = part >= first.slice(at, at + length) && part <= last.slice(at, at + length);
    at += length + 3 & ~3;
    return holds;
  });
}
