/** A table of nf_tables as `iptables-nft` sees it, read as far as we need it: our chains and those of the kernel's hooks. */
import type { Family } from "../../../src/model/address.ts";
import { DecodeError } from "../../../src/kernel/errors.ts";
import {
  type BaseChain,
  getChains,
  getRules,
  getTables,
  HOOKS,
  parseChain,
  parseTable,
  type TableName as NftTable,
  type WireExpression,
} from "../../../src/kernel/netlink/schema/nftables.ts";
import {
  decodeExpressions,
  familyNumber,
  parseRawRule,
  placeOfRule,
} from "../../../src/kernel/netlink/schema/nftables_compat.ts";
import type { NetlinkMessage, NetlinkSocket } from "../../../src/sdk/kernel_door.ts";
import type { Place } from "../backend.ts";
import { HOOK_NAMES, OURS } from "../ruleset.ts";
import type { Chain, Entry } from "../table.ts";
import { entryOf } from "./to_entry.ts";

export interface FoundRule {
  readonly handle: bigint;
  /** As they were read, counters and all. */
  readonly expressions: Uint8Array;
  readonly userdata: Uint8Array | undefined;
  /** Whether we wrote it and nobody has saved and restored it since. */
  readonly isMarked: boolean;
  /** What it says; without bytes where no rule of ours says it. */
  readonly entry: Entry;
  /** The chain that its verdict leads to. */
  readonly leadsTo: string | undefined;
  /** Names of its expressions; undefined where they cannot be read. */
  readonly names: readonly string[] | undefined;
  /** Whether it looks into a set that is its own: it can be nowhere else. */
  readonly isBound: boolean;
}

export interface FoundChain {
  readonly name: string;
  /** Undefined: no hook leads to it. */
  readonly base: BaseChain | undefined;
  readonly isMarked: boolean;
  /** Rules in it and verdicts that lead to it; undefined: not read. */
  readonly use: number | undefined;
  /** Of our chains and those of hooks; empty for others. */
  readonly rules: readonly FoundRule[];
}

export interface FoundTable {
  readonly place: Place;
  readonly isThere: boolean;
  /** `TableFlag` bits. */
  readonly flags: number;
  readonly isMarked: boolean;
  /** Chains, sets and other things in it. */
  readonly use: number;
  readonly chains: ReadonlyMap<string, FoundChain>;
  /** The kernel's number of the table: another one after it was deleted and made again. */
  readonly handle: bigint;
}

/**
 * The mark of what we wrote: in the user data of tables, chains and rules, where tools keep comments. It is a type of our own, a length and
 * a value, as libnftnl has them: tools leave it out when they list, and it is lost when they restore.
 */
export const MARK = Uint8Array.of(0x56, 4, 0x6d, 0x61, 0x6e, 0x78);

export const isOurs = (name: string): boolean => name.startsWith(OURS);
export const tableOf = ({ family, table }: Place): NftTable => ({ family: familyNumber(family), table });

const isMark = (userdata: Uint8Array | undefined): boolean =>
  userdata !== undefined && userdata.length === MARK.length && MARK.every((byte, i) => userdata[i] === byte);

/** Above so many chains the whole table is listed at once. */
const SINGLE_CHAINS_MAX = 64;

/** The tables of one family. @throws {KernelError} {DecodeError} */
export function readTables(socket: NetlinkSocket, family: Family, places: readonly Place[]): readonly FoundTable[] {
  const number = familyNumber(family);
  const tables = new Map(
    socket.dump("list tables", getTables(number)).map((message) => parseTable(message))
      .filter(({ header }) => header.family === number)
      .map(({ attributes }) => [attributes.name ?? "", attributes]),
  );
  const chains = socket.dump("list chains", getChains(number)).map(parseChain)
    .filter(({ header }) => header.family === number);
  return places.map((place) => {
    const table = tables.get(place.table);
    const ofTable = chains.filter(({ attributes }) => attributes.table === place.table).map(({ attributes }) =>
      attributes
    );
    const wanted = new Set(
      ofTable.flatMap(({ name = "", hook }) => hook !== undefined || isOurs(name) || isHookName(name) ? [name] : []),
    );
    const rules = readRules(socket, place, wanted);
    return {
      place,
      isThere: table !== undefined,
      flags: table?.flags ?? 0,
      isMarked: isMark(table?.userdata),
      use: table?.use ?? 0,
      handle: table?.handle ?? 0n,
      chains: new Map(ofTable.map(({ name = "", hook, type, policy, use, userdata }) => [name, {
        name,
        base: hook === undefined ? undefined : {
          type: (type ?? "filter") as BaseChain["type"],
          hook: HOOKS[hook.number ?? 0] ?? "ingress",
          priority: hook.priority ?? 0,
          policy: policy === 0 ? "drop" : "accept",
        },
        isMarked: isMark(userdata),
        use: use ?? 0,
        rules: rules.get(name) ?? [],
      }])),
    };
  });
}

const isHookName = (name: string): boolean => (HOOK_NAMES as readonly string[]).includes(name);

/** The rules of some chains of a table, in order. @throws {KernelError} {DecodeError} */
export function readRules(
  socket: NetlinkSocket,
  place: Place,
  chains: ReadonlySet<string>,
): ReadonlyMap<string, readonly FoundRule[]> {
  const at = tableOf(place);
  const found = new Map<string, FoundRule[]>();
  const list = (chain?: string) => {
    for (const message of socket.dump(`list rules of table ${place.table}`, getRules(at, chain))) {
      const { family, table, chain, handle } = placeOfRule(message);
      if (family !== at.family || table !== at.table || !chains.has(chain)) continue;
      const rule = new ReadRule(handle, message, place.family);
      const before = found.get(chain);
      if (before === undefined) found.set(chain, [rule]);
      else before.push(rule);
    }
  };
  if (chains.size > SINGLE_CHAINS_MAX) list();
  else for (const chain of chains) list(chain);
  return found;
}

/** Read when it is asked. */
class ReadRule implements FoundRule {
  private raw: ReturnType<typeof parseRawRule>["attributes"] | undefined;
  private read: Pick<FoundRule, "entry" | "leadsTo" | "names" | "isBound"> | undefined;

  constructor(readonly handle: bigint, private readonly message: NetlinkMessage, private readonly family: Family) {}

  private get attributes() {
    return this.raw ??= parseRawRule(this.message).attributes;
  }
  private get meaning() {
    return this.read ??= readRule(this.expressions, this.family);
  }

  get expressions() {
    return this.attributes.expressions ?? NO_BYTES;
  }
  get userdata() {
    return this.attributes.userdata;
  }
  get isMarked() {
    return isMark(this.userdata);
  }
  get entry() {
    return this.meaning.entry;
  }
  get leadsTo() {
    return this.meaning.leadsTo;
  }
  get names() {
    return this.meaning.names;
  }
  get isBound() {
    return this.meaning.isBound;
  }
}

function readRule(
  expressions: Uint8Array,
  family: Family,
): Pick<FoundRule, "entry" | "leadsTo" | "names" | "isBound"> {
  let decoded: readonly WireExpression[];
  try {
    decoded = decodeExpressions(expressions);
  } catch (error) {
    if (!(error instanceof DecodeError)) throw error;
    return { entry: NOT_OURS, leadsTo: undefined, names: undefined, isBound: true };
  }
  const entry = entryOf(decoded, family);
  return {
    entry: entry === undefined ? NOT_OURS : {
      bytes: entry.bytes,
      index: 0,
      leads: entry.chain === undefined ? undefined : chainNamed(entry.chain),
    },
    leadsTo: entry === undefined ? leadOf(decoded) : entry.chain,
    names: decoded.map(({ name }) => name ?? ""),
    isBound: entry === undefined && decoded.some(looksIntoItsOwn),
  };
}

const NO_BYTES = new Uint8Array(0);
const NOT_OURS: Entry = { bytes: new Uint8Array(0), index: 0, leads: undefined };

/** As far as a rule needs to know where it leads. */
const chainNamed = (name: string): Chain => ({ name, hook: undefined, head: undefined, rules: [], tail: NOT_OURS });

const leadOf = (expressions: readonly WireExpression[]): string | undefined => {
  for (const { data } of expressions) {
    if (data !== undefined && "data" in data && data.data?.verdict?.chain !== undefined) return data.data.verdict.chain;
  }
  return undefined;
};

/** Sets without names of their own (`__set0`) end with the rule that they were made for. */
const looksIntoItsOwn = ({ data }: WireExpression): boolean =>
  data !== undefined && "set" in data && typeof data.set === "string" && data.set.startsWith("__");
