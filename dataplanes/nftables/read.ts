/** Our table as the kernel has it, in the form that render gives: equal content, equal value. */
import type { NetlinkMessage, NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { isErrno } from "../../src/kernel/errors.ts";
import {
  type BaseChain,
  DATA_TYPE_VERDICT,
  ElementFlag,
  getChains,
  getElements,
  getElementsAt,
  getGeneration,
  getRules,
  getSets,
  getTable,
  HOOKS,
  parseChain,
  parseElements,
  parseGeneration,
  parseRule,
  parseSet,
  parseTable,
  type SetAttributes,
  SetFlag,
  type TableName,
  type WireElement,
} from "../../src/kernel/netlink/schema/nftables.ts";
import { expressionFromWire, type Verdict } from "../../src/kernel/netlink/schema/nftables_expression.ts";
import { type Count, COUNTING_SETS } from "./counters.ts";
import { keyBefore, TABLE } from "./diff.ts";
import {
  type ElementKey,
  elementsOf,
  type ElementValue,
  type Expression,
  fieldsOfKeyType,
  keyLength,
  type NftChain,
  type NftSet,
  type Ruleset,
} from "./ruleset.ts";

export interface Found {
  /** Undefined where there is no table, or one that must be made anew. */
  readonly ruleset: Ruleset | undefined;
  /** The table is there but must go first: it is dormant, or belongs to a process. */
  readonly replace: boolean;
  /** NFTA_GEN_ID that it was read at. */
  readonly generation: number;
}

/** Reads while others keep writing are repeated so often. */
const READ_TRIES = 5;

export function readGeneration(socket: NetlinkSocket): number {
  for (const answer of socket.request("read the nftables generation", [getGeneration()])) {
    const { id } = parseGeneration(answer).attributes;
    if (id !== undefined) return id;
  }
  throw new Error("read the nftables generation: found no NFTA_GEN_ID in the answer");
}

/** @throws {KernelError} */
export function readTable(socket: NetlinkSocket, table = TABLE): Found {
  for (let tries = 1;; tries++) {
    const generation = readGeneration(socket);
    try {
      const found = readOnce(socket, table);
      if (readGeneration(socket) === generation || tries === READ_TRIES) return { ...found, generation };
    } catch (error) {
      // A set or the table went away between two dumps.
      if (!isErrno(error, "ENOENT") || tries === READ_TRIES) throw error;
    }
  }
}

function readOnce(socket: NetlinkSocket, table: TableName): Omit<Found, "generation"> {
  let answers: readonly NetlinkMessage[];
  try {
    answers = socket.request(`read table ${table.table}`, [getTable(table)]);
  } catch (error) {
    if (isErrno(error, "ENOENT")) return { ruleset: undefined, replace: false };
    throw error;
  }
  if (answers.some((answer) => (parseTable(answer).attributes.flags ?? 0) !== 0)) {
    return { ruleset: undefined, replace: true };
  }

  const chains = new Map<string, { base?: BaseChain; rules: (readonly Expression[])[] }>();
  for (const message of socket.dump("list chains", getChains(table.family))) {
    const { header, attributes } = parseChain(message);
    if (header.family !== table.family || attributes.table !== table.table || attributes.name === undefined) continue;
    const base = attributes.hook === undefined ? undefined : {
      type: (attributes.type ?? "filter") as BaseChain["type"],
      hook: HOOKS[attributes.hook.number ?? 0] ?? "prerouting",
      priority: attributes.hook.priority ?? 0,
      policy: attributes.policy === 0 ? "drop" as const : "accept" as const,
    };
    chains.set(attributes.name, base === undefined ? { rules: [] } : { base, rules: [] });
  }
  for (const message of socket.dump("list rules", getRules(table))) {
    const { attributes } = parseRule(message);
    if (attributes.table !== table.table) continue;
    chains.get(attributes.chain ?? "")?.rules.push((attributes.expressions ?? []).map(expressionFromWire));
  }
  const sets = new Map<string, NftSet>();
  for (const message of socket.dump("list sets", getSets(table))) {
    const { attributes } = parseSet(message);
    if (attributes.table !== table.table || attributes.name === undefined) continue;
    sets.set(attributes.name, readSet(socket, table, attributes.name, attributes));
  }
  return { ruleset: { sets: persistentMap(sets), chains: persistentMap<string, NftChain>(chains) }, replace: false };
}

/** More than so many elements are not asked for by key: the whole set is as quick. */
const COUNTED_KEYS_MAX = 1_024;

/** What elements of `hits` and `counts` have counted, by key; those that are not there are left out. @throws {KernelError} */
export function readCounts(
  socket: NetlinkSocket,
  wanted: Iterable<ElementKey>,
  table = TABLE,
): ReadonlyMap<ElementKey, Count> {
  const counts = new Map<ElementKey, Count>();
  const keys = [...wanted];
  for (const [set, length] of Object.entries(COUNTING_SETS)) {
    for (const message of readElements(socket, table, set, keys.filter((key) => key.length === length))) {
      for (const { key, counter } of parseElements(message).elements) {
        if (counter !== undefined) counts.set(key, counter);
      }
    }
  }
  return counts;
}

/** At least those of the keys that there are. */
function readElements(
  socket: NetlinkSocket,
  table: TableName,
  set: string,
  keys: readonly ElementKey[],
): readonly NetlinkMessage[] {
  const operation = `read elements of ${set}`;
  if (keys.length === 0) return [];
  try {
    if (keys.length <= COUNTED_KEYS_MAX) return socket.request(operation, [getElementsAt(table, set, keys)]);
  } catch (error) {
    if (!isErrno(error, "ENOENT")) throw error;
    // One of them is missing: see what there is.
  }
  try {
    return socket.dump(operation, getElements(table, set));
  } catch (error) {
    if (isErrno(error, "ENOENT")) return [];
    throw error;
  }
}

/** A set that no state renders to: whatever is wanted in its place differs in form. */
const STRANGE: NftSet = { fields: [], interval: false, map: false, elements: elementsOf([]) };
const OUR_FLAGS = SetFlag.Interval | SetFlag.Map | SetFlag.Concatenation;
const DYNAMIC_FLAGS = SetFlag.Timeout | SetFlag.Evaluate;

function readSet(socket: NetlinkSocket, table: TableName, name: string, attributes: SetAttributes): NftSet {
  const dynamic = ((attributes.flags ?? 0) & DYNAMIC_FLAGS) === DYNAMIC_FLAGS ? true : undefined;
  const flags = (attributes.flags ?? 0) & ~(dynamic ? DYNAMIC_FLAGS : 0);
  const fields = fieldsOfKeyType(attributes.keyType ?? 0);
  const map = (flags & SetFlag.Map) !== 0;
  const interval = (flags & SetFlag.Interval) !== 0;
  const concatenated = (flags & SetFlag.Concatenation) !== 0;
  const verdicts = attributes.dataType === DATA_TYPE_VERDICT;
  const data = map && !verdicts ? fieldsOfKeyType(attributes.dataType ?? 0) : undefined;
  const counted = attributes.expression?.name === "counter" ? true : undefined;
  if (
    fields === undefined || (flags & ~OUR_FLAGS) !== 0 || keyLength(fields) !== attributes.keyLength ||
    (map ? !verdicts && (data === undefined || keyLength(data) !== attributes.dataLength) : verdicts) ||
    concatenated !== (interval && fields.length > 1) || attributes.timeout !== undefined ||
    (attributes.expression !== undefined) !== (counted === true) || attributes.expressions !== undefined
  ) return STRANGE;
  const elements: WireElement[] = [];
  const messages = dynamic ? [] : socket.dump(`list elements of ${name}`, getElements(table, name));
  for (const message of messages) for (const element of parseElements(message).elements) elements.push(element);
  const entries = interval && !concatenated
    ? intervals(elements)
    : elements.map((one) => [one.key + (interval ? one.keyEnd ?? one.key : ""), valueOf(one, map, counted)] as const);
  const capacity = attributes.description?.size;
  return {
    fields,
    interval,
    map,
    capacity,
    elements: elementsOf(entries),
    ...data === undefined ? {} : { data },
    ...counted === undefined ? {} : { counted },
    ...dynamic === undefined ? {} : { dynamic },
  };
}

const UNLIKE: Verdict = { kind: "other", code: 0 };

function valueOf(one: WireElement, map: boolean, counted?: true): ElementValue {
  if (
    one.more || (one.comment !== undefined) !== (counted === true) ||
    (one.counter !== undefined) !== (counted === true) ||
    map !== ((one.verdict ?? one.data) !== undefined) || ((one.flags ?? 0) & ElementFlag.CatchAll) !== 0
  ) return UNLIKE;
  return one.verdict ?? one.data ?? one.comment ?? true;
}

/** Starts and ends of a red-black tree set, paired. */
function intervals(elements: WireElement[]): [ElementKey, ElementValue][] {
  const isEnd = (one: WireElement) => ((one.flags ?? 0) & ElementFlag.IntervalEnd) !== 0;
  elements.sort((a, b) => a.key < b.key ? -1 : a.key > b.key ? 1 : Number(isEnd(b)) - Number(isEnd(a)));
  const found: [ElementKey, ElementValue][] = [];
  let open: WireElement | undefined;
  const close = (end: string | undefined) => {
    if (open !== undefined) {
      found.push([open.key + (end ?? "\xff".repeat(open.key.length)), valueOf(open, open.verdict !== undefined)]);
    }
    open = undefined;
  };
  for (const one of elements) {
    close(keyBefore(one.key));
    if (!isEnd(one)) open = one;
  }
  close(undefined);
  return found;
}
