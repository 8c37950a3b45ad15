/**
 * A `PolicyList` → chains. Pure.
 *
 * A list is entered by a jump and then only gone on in: every step inside is a goto, so that `return` leaves the list
 * from any depth. Chains are therefore made from the end of the list backwards, each knowing what comes after it.
 */
import { cidrFamily, type Family } from "../../src/model/address.ts";
import type { PolicyList, SetId } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import { type Cause, type JudgedRule, type Segment, segmentsOf } from "../../src/model/flat_list.ts";
import { cutPorts } from "../../src/model/port_ranges.ts";
import { maximalNets } from "../../src/model/prefixes.ts";
import type { Direction } from "../../src/model/rule.ts";
import type { PortRange } from "../../src/model/ports.ts";
import {
  type Alternative,
  alternativesOf,
  icmpProtocol,
  PORT_PROTOCOLS,
  type Test,
  testText,
} from "../../src/model/rule_alternatives.ts";
import type { Cidr } from "../../src/model/address.ts";
import { logPrefix } from "./log_prefix.ts";
import { DROP, goto, type Match, MULTIPORT_MAX, OURS, RETURN, type Rule, rule, type Target } from "./ruleset.ts";

export interface SetUse {
  readonly kind: "net" | "port";
  readonly family: Family;
  readonly ids: readonly SetId[];
  readonly nets: readonly Cidr[];
}

/** What becomes of a packet that the list allows, denies, or does not decide. */
export interface Endings {
  readonly allow: Target;
  readonly deny: Target;
  readonly next: Target;
}
export const FILTER_ENDINGS: Endings = { allow: RETURN, deny: DROP, next: RETURN };

export interface CompileOptions {
  readonly family: Family;
  readonly direction: Direction;
  readonly endings: Endings;
  readonly logGroup: number;
  /** `linear`: rules one after another, as written. */
  readonly shape?: "flat" | "linear";
}

export interface Compiled {
  /** To go to. Every way from there ends in one of `Endings`. */
  readonly head: string;
  readonly chains: ReadonlyMap<string, readonly Rule[]>;
  readonly sets: ReadonlyMap<string, SetUse>;
  readonly notes: readonly string[];
}

/** So many rules are walked one by one; more are looked up by port where they ask for one. */
const LINEAR_MAX = 6;
/** So many addresses are looked up one after the other; more become one union. */
const LOOKUPS_MAX = 3;
/** Rules in all cells of one tree of ports: so many, or a multiple of the rules that there are. */
const CELL_BUDGET = 16_384;
const CELL_BUDGET_FACTOR = 4;
/** Cells that stand side by side at the end of a tree's branch. */
const LEAF_CELLS = 12;
/** Cells of so many rules need no chain of their own. */
const INLINE_MAX = 2;
const LOG_RATE: Match = { match: "limit", perSecond: 10, burst: 20 };
/** ICMP type 255 stands for every type in ip_tables. */
const EVERY_ICMP_TYPE = 255;
const DIGEST_CHARACTERS = 20;
/** Of a list's digest in the names of its chains, which leaves room for a number. */
const LIST_CHARACTERS = 16;

export const chainName = (rules: readonly Rule[], letter = "c"): string =>
  `${OURS}${letter}-${digest(JSON.stringify(rules)).slice(0, DIGEST_CHARACTERS)}`;

export function netSetName(family: Family, ids: readonly SetId[], nets: readonly Cidr[]): string {
  const content = ids.length === 1 && nets.length === 0 ? ids[0]! : JSON.stringify([ids, nets]);
  return `${OURS}${family}n-${digest(content).slice(0, DIGEST_CHARACTERS)}`;
}
const portSetName = (family: Family, id: SetId): string =>
  `${OURS}${family}p-${digest(id).slice(0, DIGEST_CHARACTERS)}`;

export function compileList(list: PolicyList, options: CompileOptions): Compiled {
  const { family, direction, endings } = options;
  const compiler = new Compiler(
    options,
    digest(JSON.stringify([list.id, family, direction, endings])).slice(0, LIST_CHARACTERS),
  );
  const head = compiler.list(list);
  const { chains, sets, notes } = compiler;
  return { head, chains, sets, notes: [...notes] };
}

/** Of the last lists: each is compiled for both families. */
const flattened = new WeakMap<PolicyList, readonly Segment[]>();

function segmentsFor(list: PolicyList): readonly Segment[] {
  let segments = flattened.get(list);
  if (segments === undefined) flattened.set(list, segments = segmentsOf(list));
  return segments;
}

type RuleAction = "allow" | "deny" | "pass";

/** All tests hold. */
interface Conjunction {
  readonly tests: readonly Test[];
  /** Only beside a protocol with ports; destination. */
  readonly protocol: number | undefined;
  readonly ports: readonly PortRange[] | undefined;
  readonly action: RuleAction;
  readonly cause: Cause;
}

const textOf = ({ tests, protocol, ports }: Conjunction): string =>
  JSON.stringify([protocol ?? null, ports ?? null, tests.map(testText)]);
const isLogged = ({ cause }: Conjunction): boolean => cause.logs;
const isAlways = ({ tests, protocol, ports }: Conjunction): boolean =>
  tests.length === 0 && protocol === undefined && ports === undefined;

class Compiler {
  readonly chains = new Map<string, readonly Rule[]>();
  readonly sets = new Map<string, SetUse>();
  readonly notes = new Set<string>();

  private readonly names = new Map<readonly Rule[], string>();

  /** `slot`: begins the names of its chains, so that none but the list itself has to be hashed. */
  constructor(private readonly options: CompileOptions, private readonly slot: string) {}

  list(list: PolicyList): string {
    const segments = segmentsFor(list);
    // Nothing follows the last: whoever got there would be denied.
    let after: Target = this.options.endings.deny;
    for (let i = segments.length - 1; i >= 0; i--) after = this.targetFor(this.segment(segments[i]!, after));
    if (after.target === "goto") return after.chain;
    return this.chain([rule(after)]);
  }

  private chain(rules: readonly Rule[]): string {
    let name = this.names.get(rules);
    if (name !== undefined) return name;
    name = `${OURS}l-${this.slot}${this.names.size === 0 ? "" : `-${this.names.size.toString(36)}`}`;
    this.names.set(rules, name);
    this.chains.set(name, rules);
    return name;
  }

  /** Where to go for the rules: a chain, or what they all come to. */
  private targetFor(rules: readonly Rule[]): Target {
    const [first] = rules;
    if (first === undefined) return RETURN;
    const ends = ["return", "drop", "accept", "goto"].includes(first.target.target);
    return first.matches.length === 0 && ends ? first.target : goto(this.chain(rules));
  }

  // ------------------------------------------------------------------------------------------------------------ segments

  /** `after`: where the next one begins, which is also where `pass` leads. */
  private segment({ items, end }: Segment, after: Target): readonly Rule[] {
    let rules: readonly Rule[] = [rule(
      end.action === "on" ? after : end.action === "next" ? this.options.endings.next : this.denial(end.cause),
    )];
    // Backwards, as the list is walked.
    let run: Conjunction[] = [];
    const targetOf = (one: Conjunction): Target =>
      one.action === "pass" ? after : one.action === "allow" ? this.options.endings.allow : this.denial(one.cause);
    const flush = () => {
      if (run.length > 0) rules = this.region(run.reverse(), rules, targetOf);
      run = [];
    };
    for (let i = items.length - 1; i >= 0; i--) {
      const item = items[i]!;
      // Staged policies do nothing that can be seen.
      if (item.kind === "staged") continue;
      if (item.kind === "log") {
        flush();
        rules = this.log(item.judged, rules);
      } else {
        const all = this.conjunctions(item.judged);
        for (let at = all.length - 1; at >= 0; at--) run.push(all[at]!);
      }
    }
    flush();
    return rules;
  }

  private conjunctions(judged: JudgedRule): readonly Conjunction[] {
    const alternatives = alternativesOf(judged.rule, this.options.family);
    if (alternatives.length === 0) return NO_CONJUNCTIONS;
    const action = judged.rule.action as RuleAction;
    return alternatives.map((
      { tests, protocol, ports }: Alternative,
    ): Conjunction => ({ tests, protocol, ports, action, cause: judged }));
  }

  private denial(cause: Cause): Target {
    const { endings, direction, logGroup } = this.options;
    if (!cause.logs) return endings.deny;
    const prefix = logPrefix(cause.decision, direction, "deny");
    return goto(this.chain([rule({ target: "log", group: logGroup, prefix }, LOG_RATE), rule(endings.deny)]));
  }

  /** Once for a packet, however many of its alternatives match. */
  private log(judged: JudgedRule, after: readonly Rule[]): readonly Rule[] {
    const { direction, logGroup } = this.options;
    const prefix = logPrefix(judged.decision, direction, "log");
    const say = rule({ target: "log", group: logGroup, prefix }, LOG_RATE);
    const all = this.conjunctions(judged);
    if (all.length === 0) return after;
    const next = [rule(this.targetFor(after))];
    const spoken = goto(this.chain([say, ...next]));
    return this.linear(all, next, () => spoken);
  }

  // ------------------------------------------------------------------------------------------------------------- regions

  /** The rules in their order, and then `after`. */
  private region(
    all: readonly Conjunction[],
    after: readonly Rule[],
    targetOf: (one: Conjunction) => Target,
  ): readonly Rule[] {
    const always = all.findIndex(isAlways);
    let rest = after, listed = all;
    if (always >= 0) {
      rest = [rule(targetOf(all[always]!))];
      listed = all.slice(0, always);
    }
    if (this.options.shape === "linear") return this.linear(listed, rest, targetOf);
    const united = this.unite(listed);
    const ported = united.filter(({ ports }) => ports !== undefined);
    if (ported.length <= LINEAR_MAX) return this.linear(united, rest, targetOf);
    return this.tree(united, rest, targetOf) ?? this.walked(united, rest, targetOf);
  }

  private walked(
    all: readonly Conjunction[],
    after: readonly Rule[],
    targetOf: (one: Conjunction) => Target,
  ): readonly Rule[] {
    this.notes.add(`port ranges overlap more than ${CELL_BUDGET} times: ${all.length} rules are walked one by one`);
    return this.linear(all, after, targetOf);
  }

  /**
   * By protocol, then by destination port: the ports of each protocol are cut where any range begins or ends, and each cell
   * has its own rules, in order, found in as many steps as the number of cells has binary digits.
   */
  private tree(
    all: readonly Conjunction[],
    after: readonly Rule[],
    targetOf: (one: Conjunction) => Target,
  ): readonly Rule[] | undefined {
    const { action, cause } = all[0]!;
    const uniform = all.every((one) => one.action === action && !one.cause.logs && !cause.logs);
    // Of one action: what asks for no port may as well be looked up after all that do.
    const apart = uniform ? all.filter(({ ports }) => ports === undefined) : [];
    const listed = uniform ? all.filter(({ ports }) => ports !== undefined) : all;
    const rest = apart.length > 0 ? this.linear(apart, after, targetOf) : after;
    const goOn = [rule(this.targetFor(rest))];
    let budget = Math.max(CELL_BUDGET, CELL_BUDGET_FACTOR * listed.length);
    const rules: Rule[] = [];
    for (const protocol of PORT_PROTOCOLS) {
      if (!listed.some((one) => one.protocol === protocol && one.ports !== undefined)) continue;
      const mine = listed.filter((one) => mayBe(one, protocol));
      const cells = cutPorts(mine.map(({ ports }) => ports ?? ALL), budget);
      if (cells === undefined) return undefined;
      const leaves: Cell[] = [];
      const known = new Map<string, readonly Conjunction[]>();
      for (const { first, last, owners } of cells) {
        budget -= owners.length;
        if (budget < 0) return undefined;
        if (owners.length === 1) {
          leaves.push({ first, last, inside: [withoutPorts(mine[owners[0]!]!, protocol)] });
          continue;
        }
        const key = owners.join();
        let inside = known.get(key);
        if (inside === undefined) {
          known.set(
            key,
            inside = this.settled(owners.map((at) => withoutPorts(mine[at]!, protocol))),
          );
        }
        leaves.push({ first, last, inside });
      }
      rules.push(rule(this.branch(protocol, leaves, goOn, targetOf), { match: "protocol", protocol, not: false }));
    }
    const others = listed.filter((one) => one.protocol === undefined || one.ports === undefined);
    return [...rules, ...this.linear(others, goOn, targetOf)];
  }

  /** Without what never gets its turn. */
  private settled(all: readonly Conjunction[]): readonly Conjunction[] {
    const always = all.findIndex(isAlways);
    if (always < 0) return this.unite(all);
    return [...this.unite(all.slice(0, always)), all[always]!];
  }

  /** Halves the cells until few are left. A port of no cell comes to the end of some branch, and so to `after`. */
  private branch(
    protocol: number,
    cells: readonly Cell[],
    after: readonly Rule[],
    targetOf: (one: Conjunction) => Target,
  ): Target {
    if (cells.length > LEAF_CELLS) {
      const middle = cells.length >> 1;
      const low = cells.slice(0, middle), high = cells.slice(middle);
      return goto(this.chain([
        rule(
          this.branch(protocol, low, after, targetOf),
          ...atPorts(protocol, low[0]!.first, low[low.length - 1]!.last),
        ),
        rule(this.branch(protocol, high, after, targetOf)),
      ]));
    }
    let rules = after;
    for (let i = cells.length - 1; i >= 0; i--) {
      const { first, last, inside } = cells[i]!;
      const ports = [{ first, last }];
      if (inside.length <= INLINE_MAX && inside.every(({ protocol }) => protocol === undefined)) {
        const here = inside.map(({ tests, action, cause }): Conjunction => ({ tests, protocol, ports, action, cause }));
        rules = this.linear(here, rules, targetOf);
      } else {rules = [
          rule(this.targetFor(this.linear(inside, after, targetOf)), ...atPorts(protocol, first, last)),
          ...rules,
        ];}
    }
    return this.targetFor(rules);
  }

  // ------------------------------------------------------------------------------------------------------------- uniting

  /** Within a stretch of one action and unlogged, the order says nothing: what differs in one address only becomes a union. */
  private unite(all: readonly Conjunction[]): readonly Conjunction[] {
    const united: Conjunction[] = [];
    for (let from = 0; from < all.length;) {
      let to = from + 1;
      const { action } = all[from]!;
      const logged = isLogged(all[from]!);
      while (to < all.length && !logged && all[to]!.action === action && !isLogged(all[to]!)) to++;
      if (to === from + 1) united.push(all[from]!);
      else {
        let run: readonly Conjunction[] = withoutRepeats(all.slice(from, to));
        for (const end of ["source", "destination"] as const) run = this.uniteEnd(run, end);
        for (const one of run) united.push(one);
      }
      from = to;
    }
    return united;
  }

  private uniteEnd(all: readonly Conjunction[], end: "source" | "destination"): readonly Conjunction[] {
    if (all.length <= LOOKUPS_MAX) return all;
    const groups = new Map<string, { rest: Conjunction; parts: Conjunction[]; addresses: AddressTest[] }>();
    for (const one of all) {
      const at = one.tests.findIndex((test) => test.test === "address" && test.end === end && !test.not);
      if (at < 0) {
        groups.set(` ${textOf(one)}`, { rest: one, parts: [one], addresses: [] });
        continue;
      }
      const rest = { ...one, tests: one.tests.filter((_, i) => i !== at) };
      const key = textOf(rest);
      const group = groups.get(key);
      if (group === undefined) groups.set(key, { rest, parts: [one], addresses: [one.tests[at] as AddressTest] });
      else {
        group.parts.push(one);
        group.addresses.push(one.tests[at] as AddressTest);
      }
    }
    return [...groups.values()].flatMap(({ rest, parts, addresses }) => {
      if (parts.length <= LOOKUPS_MAX) return parts;
      const ids = [...new Set(addresses.flatMap(({ ids }) => ids))].sort();
      const nets = maximalNets(addresses.flatMap(({ nets }) => nets));
      const test: Test = { test: "address", end, ids, nets, not: false };
      return [{ ...rest, tests: [test, ...rest.tests] }];
    });
  }

  // --------------------------------------------------------------------------------------------------------- single rules

  private linear(
    all: readonly Conjunction[],
    after: readonly Rule[],
    targetOf: (one: Conjunction) => Target,
  ): readonly Rule[] {
    let rest = after;
    // Backwards, until something must be led past them.
    let rules: Rule[] = [];
    for (let i = all.length - 1; i >= 0; i--) {
      const plain = this.plain(all[i]!);
      if (plain === undefined) continue;
      const { protocol, without, matches, destination, source } = plain;
      const target = targetOf(all[i]!);
      if (without.length > 1 && protocol === undefined) {
        // A rule asks for one protocol: what is none of several goes past it.
        const past = this.targetFor([...rules.reverse(), ...rest]);
        rest = [
          ...without.map((other) => rule(past, { match: "protocol", protocol: other, not: false })),
          rule(target, ...matches),
          rule(past),
        ];
        rules = [];
        continue;
      }
      const fields: readonly Match[] = protocol !== undefined
        ? isProtocol(protocol)
        : without.map((other) => ({ match: "protocol", protocol: other, not: true }));
      for (const from of source) {
        for (const to of destination) rules.push({ target, matches: [...fields, ...matches, ...from, ...to] });
      }
    }
    return rules.length === 0 ? rest : [...rules.reverse(), ...rest];
  }

  /** What x_tables can ask for; undefined: nothing can match. */
  private plain({ tests, protocol, ports }: Conjunction): PlainTests | undefined {
    const { family } = this.options;
    let only = protocol;
    let without: Set<number> | undefined;
    const matches: Match[] = [];
    let destination = NO_PORTS, source = NO_PORTS;
    let literals = "";
    for (const test of tests) {
      switch (test.test) {
        case "protocol":
          if (test.not) (without ??= new Set()).add(test.protocol);
          else if (only !== undefined && only !== test.protocol) return undefined;
          else only = test.protocol;
          break;
        case "portless":
          for (const one of PORT_PROTOCOLS) (without ??= new Set()).add(one);
          break;
        case "icmp":
          if (only !== icmpProtocol(family)) return undefined;
          if (family === 4 && test.type === EVERY_ICMP_TYPE) {
            this.notes.add("ICMP type 255 is no type to ip_tables: it is never met");
            if (!test.not) return undefined;
            break;
          }
          matches.push({ match: "icmp", type: test.type, code: test.code, not: test.not });
          break;
        case "address": {
          const [net, ...more] = test.nets;
          // The entry itself has room for one prefix of each end.
          if (test.ids.length === 0 && more.length === 0 && !literals.includes(test.end)) {
            literals += test.end;
            matches.push({ match: "net", end: test.end, net: net!, not: test.not });
          } else matches.push(this.inSet(test.ids, test.nets, test.end, test.not));
          break;
        }
        case "addressPort":
          matches.push(this.atPort(test.id, test.end, test.not));
          break;
        case "ports":
          source = portMatches(only!, "source", test.ranges);
          break;
      }
    }
    if (ports !== undefined) destination = portMatches(only!, "destination", ports);
    // 0 stands for every protocol; no packet has it.
    if (only === 0 || only !== undefined && without?.has(only)) return undefined;
    without?.delete(0);
    return {
      protocol: only,
      without: without === undefined ? NO_PROTOCOLS : [...without].sort((a, b) => a - b),
      matches,
      source,
      destination,
    };
  }

  private inSet(ids: readonly SetId[], nets: readonly Cidr[], end: "source" | "destination", not: boolean): Match {
    const { family } = this.options;
    const set = netSetName(family, ids, nets);
    this.sets.set(set, { kind: "net", family, ids, nets: nets.filter((net) => cidrFamily(net) === family) });
    return { match: "set", set, ends: [end], not };
  }

  private atPort(id: SetId, end: "source" | "destination", not: boolean): Match {
    const { family } = this.options;
    const set = portSetName(family, id);
    this.sets.set(set, { kind: "port", family, ids: [id], nets: [] });
    return { match: "set", set, ends: [end, end], not };
  }
}

/** Ports that have the same rules, in order. */
interface Cell {
  readonly first: number;
  readonly last: number;
  readonly inside: readonly Conjunction[];
}

const atPorts = (protocol: number, first: number, last: number): readonly Match[] => [
  ...isProtocol(protocol),
  { match: "ports", protocol, end: "destination", ranges: [{ first, last }] },
];

/** Thousands of rules ask for the same few. */
const PROTOCOL_MATCHES = new Map<number, readonly Match[]>();
function isProtocol(protocol: number): readonly Match[] {
  let found = PROTOCOL_MATCHES.get(protocol);
  if (found === undefined) {
    found = [{ match: "protocol", protocol, not: false }];
    PROTOCOL_MATCHES.set(protocol, found);
  }
  return found;
}

type AddressTest = Extract<Test, { test: "address" }>;

interface PlainTests {
  readonly protocol: number | undefined;
  /** None of these. */
  readonly without: readonly number[];
  readonly matches: readonly Match[];
  /** Any of these, each all of its matches. */
  readonly source: readonly (readonly Match[])[];
  readonly destination: readonly (readonly Match[])[];
}

const NO_PORTS: readonly (readonly Match[])[] = [[]];
const NO_PROTOCOLS: readonly number[] = [];
const NO_CONJUNCTIONS: readonly Conjunction[] = [];
const ALL: readonly PortRange[] = [{ first: 0, last: 65535 }];

/** As many matches as the numbers fill. */
export function portMatches(
  protocol: number,
  end: "source" | "destination",
  ranges: readonly PortRange[],
): readonly (readonly Match[])[] {
  if (ranges.length === 1) return [[{ match: "ports", protocol, end, ranges }]];
  const matches: Match[][] = [];
  let part: PortRange[] = [], room = MULTIPORT_MAX;
  const flush = () => {
    if (part.length > 0) matches.push([{ match: "ports", protocol, end, ranges: part }]);
    part = [];
    room = MULTIPORT_MAX;
  };
  for (const range of ranges) {
    const numbers = range.first === range.last ? 1 : 2;
    if (numbers > room) flush();
    part.push(range);
    room -= numbers;
  }
  flush();
  return matches;
}

function withoutRepeats(all: readonly Conjunction[]): readonly Conjunction[] {
  const byText = new Map<string, Conjunction>();
  for (const one of all) {
    const text = textOf(one);
    if (!byText.has(text)) byText.set(text, one);
  }
  return byText.size === all.length ? all : [...byText.values()];
}

/** Whether a packet of a protocol with ports can match. */
function mayBe({ tests, protocol }: Conjunction, asked: number): boolean {
  if (protocol !== undefined) return protocol === asked;
  return tests.every((test) =>
    test.test === "portless" ? false : test.test !== "protocol" || (test.protocol === asked) !== test.not
  );
}

/** As it stands in a cell: its protocol may still be asked for by a test of source ports. */
function withoutPorts({ tests: all, action, cause }: Conjunction, protocol: number): Conjunction {
  const tests = all.some(({ test }) => test === "protocol") ? all.filter(({ test }) => test !== "protocol") : all;
  const asksSource = tests.some((test) => test.test === "ports");
  return { tests, protocol: asksSource ? protocol : undefined, ports: undefined, action, cause };
}
