/** The gate in the kernel: the table `inet manx-ipvs`, read, compared and written. */
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import {
  appendRule,
  DATA_TYPE_VERDICT,
  deleteChain,
  deleteSet,
  deleteTable,
  ElementFlag,
  ElementMessages,
  flushChain,
  getChains,
  getElements,
  getRules,
  getSets,
  getTable,
  HOOKS,
  newChain,
  newSet,
  newTable,
  parseChain,
  parseElements,
  parseRule,
  parseSet,
  ProtocolFamily,
  type SetAttributes,
  SetFlag,
  SUBSYSTEM_NFTABLES,
  type TableName,
  type WireElement,
  type WireExpression,
} from "../../src/kernel/netlink/schema/nftables.ts";
import { expressionToWire } from "../../src/kernel/netlink/schema/nftables_expression.ts";
import { chainText, type GateSet, keyLengthOf, keyTypeOf, wireText } from "./gate.ts";
import { elementId, type ElementValue, type Renderer, splitElementId } from "./render.ts";

export const TABLE: TableName = { family: ProtocolFamily.Inet, table: "manx-ipvs" };

type Wanted = Pick<Renderer, "chains" | "sets" | "elements">;
export interface TouchedParts {
  readonly chains: Iterable<string>;
  readonly sets: Iterable<string>;
  readonly elements: Iterable<string>;
}

/** What a table holds, as texts that are equal where the things are. */
export interface FoundGate {
  readonly isThere: boolean;
  readonly chains: ReadonlyMap<string, string>;
  readonly sets: ReadonlyMap<string, string>;
  /** By `elementId`. */
  readonly elements: ReadonlyMap<string, ElementValue>;
}

/** `goto serve`; empty for an element of a set. */
export const valueText = (value: ElementValue): string =>
  value === true ? "" : "chain" in value ? `${value.kind} ${value.chain}` : value.kind;

export class GateTable {
  private isThere = false;
  /** By name: their texts. */
  private chains = new Map<string, string>();
  private sets = new Map<string, string>();
  /** By `elementId`. */
  private elements = new Map<string, ElementValue>();

  constructor(private readonly socket: NetlinkSocket) {}

  /** @throws {KernelError} */
  read(): void {
    this.chains.clear();
    this.sets.clear();
    this.elements.clear();
    this.isThere = this.exists();
    if (!this.isThere) return;
    const bases = new Map<string, readonly unknown[] | null>();
    for (const message of this.socket.dump("list chains", getChains(TABLE.family))) {
      const { table, name, hook, policy, type } = parseChain(message).attributes;
      if (table !== TABLE.table || name === undefined) continue;
      const base = hook === undefined
        ? null
        : [type, HOOKS[hook.number ?? -1], hook.priority, policy === 1 ? "accept" : "drop"];
      bases.set(name, base);
    }
    const rules = new Map<string, string[]>();
    for (const message of this.socket.dump("list rules", getRules(TABLE))) {
      const { table, chain, expressions = [] } = parseRule(message).attributes;
      if (table !== TABLE.table || chain === undefined) continue;
      const list = rules.get(chain) ?? [];
      list.push(wireText(expressions as readonly WireExpression[]));
      rules.set(chain, list);
    }
    for (const [name, base] of bases) this.chains.set(name, JSON.stringify([base, rules.get(name) ?? []]));
    for (const message of this.socket.dump("list sets", getSets(TABLE))) {
      const { attributes } = parseSet(message);
      if (attributes.table !== TABLE.table || attributes.name === undefined) continue;
      this.readSet(attributes.name, attributes);
    }
  }

  private exists(): boolean {
    try {
      this.socket.request(`look for table inet ${TABLE.table}`, [getTable(TABLE)]);
      return true;
    } catch (error) {
      if (isErrno(error, "ENOENT")) return false;
      throw error;
    }
  }

  private readSet(name: string, { flags = 0, keyType, keyLength }: SetAttributes): void {
    this.sets.set(name, `${keyType} ${keyLength} ${flags & ~SetFlag.Concatenation}`);
    const elements: WireElement[] = [];
    for (const message of this.socket.dump(`list elements of ${name}`, getElements(TABLE, name))) {
      for (const element of parseElements(message).elements) elements.push(element);
    }
    const isInterval = (flags & SetFlag.Interval) !== 0;
    const put = (key: string, one: WireElement) => this.elements.set(elementId(name, key), one.verdict ?? true);
    if (!isInterval) { for (const one of elements) put(one.key, one); }
    else for (const [key, one] of intervalsOf(elements)) put(key, one);
  }

  get found(): FoundGate {
    const { isThere, chains, sets, elements } = this;
    return { isThere, chains, sets, elements };
  }

  /** All that there is, so that every part of it is looked at. */
  keys(): TouchedParts {
    return { chains: this.chains.keys(), sets: this.sets.keys(), elements: this.elements.keys() };
  }

  /** Makes what is missing and changes what differs; `remove` is what is left to do when IPVS has followed. @throws {KernelError} */
  write(touched: TouchedParts, wanted: Wanted): { readonly messages: number; readonly remove: () => number } {
    if (!this.isThere) return { messages: this.make(wanted), remove: () => 0 };
    const add: NetlinkMessage[] = [], takeOut: NetlinkMessage[] = [], clear: NetlinkMessage[] = [];
    const after: (() => void)[] = [], later: (() => void)[] = [];
    let id = 0;
    for (const name of touched.sets) {
      const set = wanted.sets.get(name), is = this.sets.get(name);
      const text = set === undefined ? undefined : formText(set);
      if (text === is) continue;
      // Nobody but a stranger makes a set of ours in another form, or rewrites a chain: names are contents, or fixed.
      if (text !== undefined && is !== undefined) return { messages: this.replace(wanted), remove: () => 0 };
      if (set !== undefined) {
        add.push(createSet(name, set, ++id));
        after.push(() => this.sets.set(name, text!));
      } else {
        clear.push(deleteSet(TABLE, name));
        later.push(() => this.sets.delete(name));
      }
    }
    const rules: NetlinkMessage[] = [];
    const chainsToClear: NetlinkMessage[] = [], chainsToDelete: NetlinkMessage[] = [];
    for (const name of touched.chains) {
      const chain = wanted.chains.get(name), is = this.chains.get(name);
      const text = chain === undefined ? undefined : chainText(chain);
      if (text === is) continue;
      if (text !== undefined && is !== undefined) return { messages: this.replace(wanted), remove: () => 0 };
      if (chain !== undefined) {
        add.push(newChain(TABLE, name, chain.base));
        for (const rule of chain.rules) rules.push(appendRule(TABLE, name, rule.map(expressionToWire)));
        after.push(() => this.chains.set(name, text!));
      } else {
        // They name one another: all are emptied before any goes.
        chainsToClear.push(flushChain(TABLE, name));
        chainsToDelete.push(deleteChain(TABLE, name));
        later.push(() => this.chains.delete(name));
      }
    }
    const elements = new ElementBatch();
    for (const key of touched.elements) {
      const value = wanted.elements.get(key), is = this.elements.get(key);
      if (value === undefined) {
        if (is === undefined) continue;
        // Those of a set that goes go with it.
        if (wanted.sets.get(splitElementId(key).set) !== undefined) elements.remove(key, is, "later");
        later.push(() => this.elements.delete(key));
      } else if (is === undefined || valueText(is) !== valueText(value)) {
        if (is !== undefined) elements.remove(key, is, "now");
        elements.add(key, value);
        after.push(() => this.elements.set(key, value));
      }
    }
    takeOut.push(...elements.later());
    const first = [...add, ...rules, ...elements.now()];
    this.send("write", first);
    for (const done of after) done();
    const last = [...takeOut, ...chainsToClear, ...chainsToDelete, ...clear];
    return {
      messages: first.length,
      remove: () => {
        this.send("clear", last);
        for (const done of later) done();
        return last.length;
      },
    };
  }

  private make(wanted: Wanted): number {
    const messages = this.whole(wanted);
    this.send("make", messages);
    this.remember(wanted);
    return messages.length;
  }

  /** In one transaction: no packet meets half of it. */
  private replace(wanted: Wanted): number {
    const messages = [deleteTable(TABLE), ...this.whole(wanted)];
    this.send("replace", messages);
    this.remember(wanted);
    return messages.length;
  }

  private whole({ chains, sets, elements }: Wanted): readonly NetlinkMessage[] {
    const messages: NetlinkMessage[] = [newTable(TABLE)];
    let id = 0;
    for (const name of sets.keys()) messages.push(createSet(name, sets.get(name)!, ++id));
    for (const name of chains.keys()) messages.push(newChain(TABLE, name, chains.get(name)!.base));
    for (const name of chains.keys()) {
      for (const rule of chains.get(name)!.rules) messages.push(appendRule(TABLE, name, rule.map(expressionToWire)));
    }
    const batch = new ElementBatch();
    for (const key of elements.keys()) batch.add(key, elements.get(key)!);
    return [...messages, ...batch.now()];
  }

  private remember({ chains, sets, elements }: Wanted): void {
    this.isThere = true;
    this.chains = new Map([...chains.keys()].map((name) => [name, chainText(chains.get(name)!)]));
    this.sets = new Map([...sets.keys()].map((name) => [name, formText(sets.get(name)!)]));
    this.elements = new Map([...elements.keys()].map((key) => [key, elements.get(key)!]));
  }

  private send(what: string, messages: readonly NetlinkMessage[]): void {
    this.socket.transaction(`${what} table inet ${TABLE.table}`, SUBSYSTEM_NFTABLES, messages);
  }

  /** @throws {KernelError} */
  sweep(): number {
    this.isThere = false;
    this.chains.clear();
    this.sets.clear();
    this.elements.clear();
    if (!this.exists()) return 0;
    this.send("delete", [deleteTable(TABLE)]);
    return 1;
  }
}

/** Elements to take out and to put in, by set. */
class ElementBatch {
  private readonly puts = new Map<string, ElementMessages>();
  private readonly takes = new Map<string, ElementMessages>();
  private readonly takesLater = new Map<string, ElementMessages>();

  add(id: string, value: ElementValue): void {
    this.write(this.puts, "add", id, value);
  }

  remove(id: string, value: ElementValue, when: "now" | "later"): void {
    this.write(when === "now" ? this.takes : this.takesLater, "remove", id, value);
  }

  private write(into: Map<string, ElementMessages>, kind: "add" | "remove", id: string, value: ElementValue): void {
    const { set, key } = splitElementId(id);
    let messages = into.get(set);
    if (messages === undefined) into.set(set, messages = new ElementMessages(kind, TABLE, set));
    if (!isIntervalSet(set)) {
      messages.add(key, value === true ? undefined : value);
      return;
    }
    // A range of a single field is two elements: its first key, and the key after its last as an end.
    const half = key.length / 2;
    messages.add(key.slice(0, half));
    const end = keyAfter(key.slice(half));
    if (end !== undefined) messages.add(end, undefined, undefined, ElementFlag.IntervalEnd);
  }

  now(): readonly NetlinkMessage[] {
    return [...this.takes.values(), ...this.puts.values()].flatMap((one) => one.messages());
  }

  later(): readonly NetlinkMessage[] {
    return [...this.takesLater.values()].flatMap((one) => one.messages());
  }
}

const isIntervalSet = (name: string): boolean => name.startsWith("nets") || name.startsWith("inside");

function createSet(name: string, set: GateSet, id: number): NetlinkMessage {
  return newSet(TABLE, {
    name,
    flags: flagsOf(set),
    keyType: keyTypeOf(set),
    keyLength: keyLengthOf(set),
    ...set.map ? { dataType: DATA_TYPE_VERDICT, dataLength: 0 } : {},
  }, id);
}

const flagsOf = (set: GateSet): number => (set.interval ? SetFlag.Interval : 0) | (set.map ? SetFlag.Map : 0);
export const formText = (set: GateSet): string => `${keyTypeOf(set)} ${keyLengthOf(set)} ${flagsOf(set)}`;

/** The key that follows; undefined after the last. */
function keyAfter(key: string): string | undefined {
  for (let at = key.length - 1; at >= 0; at--) {
    const byte = key.charCodeAt(at);
    if (byte < 255) return key.slice(0, at) + String.fromCharCode(byte + 1) + "\0".repeat(key.length - at - 1);
  }
  return undefined;
}

function keyBefore(key: string): string {
  for (let at = key.length - 1; at >= 0; at--) {
    const byte = key.charCodeAt(at);
    if (byte > 0) return key.slice(0, at) + String.fromCharCode(byte - 1) + "\xff".repeat(key.length - at - 1);
  }
  return key;
}

/** Starts and ends of a set of ranges, paired. */
function* intervalsOf(elements: WireElement[]): Iterable<readonly [string, WireElement]> {
  const isEnd = (one: WireElement) => ((one.flags ?? 0) & ElementFlag.IntervalEnd) !== 0;
  elements.sort((a, b) => a.key < b.key ? -1 : a.key > b.key ? 1 : Number(isEnd(b)) - Number(isEnd(a)));
  let open: WireElement | undefined;
  for (const one of elements) {
    if (open !== undefined) yield [open.key + keyBefore(one.key), open];
    open = isEnd(one) ? undefined : one;
  }
  if (open !== undefined) yield [open.key + "\xff".repeat(open.key.length), open];
}
