/**
 * A `PolicyList` as chains whose cost for a packet does not grow with the list. Pure.
 *
 * The list is flattened to one order of rules and cut into runs of one action: within a run order does not matter, so it
 * may be regrouped into a port map, and set lookups. README.md has the argument and the bounds.
 */
import { type Address, type Cidr, cidrAddress, cidrPrefix, type Family, maskAddress } from "../../src/model/address.ts";
import type { PolicyList, Rule as PolicyRule, SetId } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import type { PortRange } from "../../src/model/ports.ts";
import { type AddressForm, isHost, maximalNets } from "./address_elements.ts";
import {
  type Alternative,
  alternativesOf,
  alternativeText,
  type End,
  matchesAll,
  PORT_PROTOCOLS,
  type Test,
  testText,
} from "./condition.ts";
import { ALL_PORTS, cutPorts, portBytes, unitePorts } from "./ports.ts";
import {
  type ElementKey,
  elementsOf,
  type ElementValue,
  type Expression,
  type NftChain,
  type NftSet,
  type Rule,
  type Verdict,
} from "./ruleset.ts";

/** Sets of addresses a compiled list looks up; their elements come from the state. */
export type AddressSetUse =
  | {
    readonly kind: "net";
    readonly family: Family;
    readonly ids: readonly SetId[];
    readonly nets: readonly Cidr[];
    readonly form: AddressForm;
  }
  | { readonly kind: "port"; readonly family: Family; readonly id: SetId };

export interface Compiled {
  /** Name of the chain to go to. Every way through it ends in a verdict of `Endings`. */
  readonly head: string;
  readonly chains: ReadonlyMap<string, NftChain>;
  /** Named by their content. */
  readonly fixedSets: ReadonlyMap<string, NftSet>;
  readonly addressSets: ReadonlyMap<string, AddressSetUse>;
  /** Where a bound was reached and the linear form stands instead, one line each. */
  readonly notes: readonly string[];
}

/** What becomes of a packet that the list allows, denies, or (lists whose end is `next`) does not decide. */
export interface Endings {
  readonly allow: Verdict;
  readonly deny: Verdict;
  readonly next: Verdict;
}

export const ACCEPT: Verdict = { kind: "accept" };
export const DROP: Verdict = { kind: "drop" };
const RETURN: Verdict = { kind: "return" };
export const goto = (chain: string): Verdict => ({ kind: "goto", chain });
const jump = (chain: string): Verdict => ({ kind: "jump", chain });
export const verdict = (to: Verdict): Expression => ({ op: "verdict", verdict: to });

export const FILTER_ENDINGS: Endings = { allow: ACCEPT, deny: DROP, next: ACCEPT };

export interface CompileOptions {
  readonly endings: Endings;
  readonly form: (family: Family, ids: readonly SetId[], nets: readonly Cidr[]) => AddressForm;
  /** NFLOG group of `log` rules. */
  readonly logGroup: number;
}

/** A cell or group looks up this many sets one after the other; more become one union set. */
const LOOKUPS_MAX = 4;
/** A run with this many rules or fewer stays a plain list. */
const LINEAR_MAX = 3;
/** Rules in all cells of one run's port map. */
const CELL_BUDGET = 16_384;
/** Sets that all unions of one list are made of. */
const UNION_BUDGET = 2_048;
/** Runs of `pass` that may have a port map, one within the other: each takes two of the 16 levels that nf_tables has. */
const PASS_MAPS_MAX = 3;
/** A port map is a plain hash where its ranges are not more than so many single ports. */
const SINGLE_PORTS_MAX = 4_096;
/** Remaining rules of one group that are worth a note. */
const NOTED_LINEAR_RULES = 64;
/** NF_LOG_PREFIXLEN of include/net/netfilter/nf_log.h, less the terminator. */
const LOG_PREFIX_MAX = 127;
const LOG_RATE = { op: "limit", rate: 10, unitSeconds: 1, burst: 20 } as const;

/** Runs of equal final action, or a log rule by itself. */
type Step =
  | { readonly action: "allow" | "deny" | "pass"; readonly rules: readonly PolicyRule[]; readonly all: boolean }
  | { readonly action: "log"; readonly rule: PolicyRule };

/** A stretch of the flattened list: a tier with `pass` rules stands alone, because `pass` leaves it. */
interface Segment {
  readonly rules: readonly PolicyRule[];
  /** What follows the last rule; `on` = the next segment. */
  readonly end: "allow" | "deny" | "next" | "on";
  readonly passes: boolean;
}

export function segmentsOf(list: PolicyList): readonly Segment[] {
  const segments: Segment[] = [];
  let open: PolicyRule[] = [];
  const close = (end: Segment["end"]) => {
    segments.push({ rules: open, end, passes: false });
    open = [];
  };
  // A profile's `pass` ends that profile and the next one is asked: each is as a tier without a default.
  const profiles = list.profiles.map((profile) => ({ policies: [profile], defaultAction: "pass" as const }));
  for (const tier of [...list.tiers, ...profiles]) {
    const enforced = tier.policies.filter((policy) => !policy.staged);
    // A tier whose policies are all staged has nothing that could decide, its default included.
    if (enforced.length === 0) continue;
    const rules = enforced.flatMap((policy) => policy.rules);
    if (rules.some((rule) => rule.action === "pass")) {
      if (open.length > 0) close("on");
      segments.push({ rules, end: tier.defaultAction === "deny" ? "deny" : "on", passes: true });
    } else {
      open.push(...rules);
      if (tier.defaultAction === "deny") {
        close("deny");
        return segments;
      }
    }
  }
  close(list.end === "deny" ? "deny" : "next");
  return segments;
}

/** @param name of the chain to make; the same for every version of the list's content that sets bring about */
export function compileList(list: PolicyList, name: string, options: CompileOptions): Compiled {
  const out = new Output(options);
  const segments = segmentsOf(list);
  const v4 = new FamilyCompiler(4, out).list(segments);
  const v6 = new FamilyCompiler(6, out).list(segments);
  const same = JSON.stringify(v4) === JSON.stringify(v6);
  const chains = out.chains;
  if (same) chains.set(name, { rules: v4 });
  else {
    const alone = v6.length === 1 && v6[0]!.length === 1 ? v6[0]![0]! : verdict(goto(out.chain(v6)));
    chains.set(name, { rules: [[...isFamily(6), alone], ...v4] });
  }
  return { head: name, chains, fixedSets: out.fixedSets, addressSets: out.addressSets, notes: [...out.notes] };
}

/** What a list compiles to, gathered; everything named by its content. */
class Output {
  readonly chains = new Map<string, NftChain>();
  readonly fixedSets = new Map<string, NftSet>();
  readonly addressSets = new Map<string, AddressSetUse>();
  readonly notes = new Set<string>();
  private unionSources = 0;

  constructor(readonly options: CompileOptions) {}

  chain(rules: readonly Rule[]): string {
    const name = `c-${digest(JSON.stringify(rules))}`;
    this.chains.set(name, { rules });
    return name;
  }

  fixedSet(
    prefix: string,
    set: Omit<NftSet, "elements">,
    entries: readonly (readonly [ElementKey, ElementValue])[],
  ): string {
    const name = fixedSetName(prefix, set, entries);
    if (!this.fixedSets.has(name)) this.fixedSets.set(name, { ...set, elements: elementsOf(entries) });
    return name;
  }

  netSet(family: Family, ids: readonly SetId[], nets: readonly Cidr[]): string {
    const form = this.options.form(family, ids, nets);
    const name = netSetName(family, ids, nets, form);
    this.addressSets.set(name, { kind: "net", family, ids, nets, form });
    return name;
  }

  portSet(family: Family, id: SetId): string {
    const name = `p${family}-${digest(id)}`;
    this.addressSets.set(name, { kind: "port", family, id });
    return name;
  }

  /** Whether one more union of so many sets is within bounds. */
  mayUnite(sources: number): boolean {
    if (this.unionSources + sources > UNION_BUDGET) {
      this.notes.add(`more than ${UNION_BUDGET} selectors in unions: the rest is looked up one by one`);
      return false;
    }
    this.unionSources += sources;
    return true;
  }
}

/** `n` interval, `s` plain; `l` prefixes only. The form is in the name: a set that changes its form is another set. */
export function netSetName(
  family: Family,
  ids: readonly SetId[],
  nets: readonly Cidr[],
  { interval, capacity }: AddressForm,
): string {
  const form = ids.length === 0 ? "l" : interval ? "n" : "s";
  const content = ids.length === 1 && nets.length === 0 ? ids[0]! : JSON.stringify([ids, nets]);
  return `${form}${family}-${digest(content)}${capacity === undefined ? "" : `-${capacity}`}`;
}

export const fixedSetName = (
  prefix: string,
  set: Omit<NftSet, "elements">,
  entries: readonly (readonly [ElementKey, ElementValue])[],
): string => `${prefix}-${digest(JSON.stringify([set.fields, set.interval, set.map, entries]))}`;

class FamilyCompiler {
  private readonly addressBytes: number;

  constructor(readonly family: Family, readonly out: Output) {
    this.addressBytes = family === 4 ? 4 : 16;
  }

  list(segments: readonly Segment[]): readonly Rule[] {
    const { endings } = this.out.options;
    const rules: Rule[] = [];
    for (const segment of segments) {
      const steps = this.steps(segment);
      if (!segment.passes) {
        rules.push(...this.run(steps, 0, 0));
        if (segment.end === "next" && !endsInVerdict(rules)) rules.push([verdict(endings.next)]);
      } else {
        const inner = this.run(steps, 0, 0);
        // Nothing in it can match in this family: on to the next.
        if (inner.length > 0) rules.push([verdict(jump(this.out.chain(inner)))]);
      }
      if (endsInVerdict(rules)) break;
    }
    return rules;
  }

  /** Rules in runs, those that cannot match left out, cut after the first that always matches. */
  private steps(segment: Segment): readonly Step[] {
    const steps: Step[] = [];
    let run: { action: "allow" | "deny" | "pass"; rules: PolicyRule[]; all: boolean } | undefined;
    for (const rule of segment.rules) {
      const alternatives = alternativesOf(rule, this.family);
      if (alternatives.length === 0) continue;
      if (rule.action === "log") {
        run = undefined;
        steps.push({ action: "log", rule });
        continue;
      }
      if (run?.action !== rule.action) steps.push(run = { action: rule.action, rules: [], all: false });
      run.rules.push(rule);
      if (alternatives.some(matchesAll)) {
        run.all = true;
        return steps;
      }
    }
    if (segment.end === "allow" || segment.end === "deny") {
      if (run?.action === segment.end) run.all = true;
      else steps.push({ action: segment.end, rules: [], all: true });
    }
    // Going on is what happens at the end anyway.
    const last = steps[steps.length - 1];
    if (last?.action === "pass" && segment.end === "on") steps.pop();
    return steps;
  }

  private run(steps: readonly Step[], at: number, passMaps: number): readonly Rule[] {
    const step = steps[at];
    if (step === undefined) return [];
    if (step.action === "log") return [...this.log(step.rule), ...this.run(steps, at + 1, passMaps)];
    const { endings } = this.out.options;
    const to = step.action === "allow" ? endings.allow : step.action === "deny" ? endings.deny : RETURN;
    if (step.all) return [[verdict(to)]];
    const alternatives = mergePorts(step.rules.flatMap((rule) => alternativesOf(rule, this.family)));
    const ported = alternatives.filter((one) => one.ports !== undefined);
    const others = this.noted(this.linear(alternatives.filter((one) => one.ports === undefined).map(testsOf), to));
    const plain = this.linear(ported.map(testsOf), to);
    const rest = () => this.run(steps, at + 1, passMaps);
    if (plain.length <= LINEAR_MAX) return [...plain, ...others, ...rest()];
    if (step.action !== "pass") {
      const map = this.portMap(ported, to, (rules) => jump(this.out.chain(rules)));
      return [...(map ?? this.noted(plain)), ...others, ...rest()];
    }
    // `return` must leave this chain, so a cell is gone to, and itself goes on where nothing in it matched.
    if (passMaps >= PASS_MAPS_MAX) return [...this.noted(plain), ...others, ...rest()];
    const after = [...others, ...this.run(steps, at + 1, passMaps + 1)];
    const on = after.length === 0 ? RETURN : goto(this.out.chain(after));
    const map = this.portMap(ported, to, (rules) => goto(this.out.chain([...rules, [verdict(on)]])));
    if (map === undefined) return [...this.noted(plain), ...others, ...rest()];
    return after.length === 0 ? map : [...map, [verdict(on)]];
  }

  private noted(rules: readonly Rule[]): readonly Rule[] {
    if (rules.length > NOTED_LINEAR_RULES) this.out.notes.add(`${rules.length} rules are walked one by one`);
    return rules;
  }

  /** One rule that looks up protocol and destination port. Undefined where the cells would exceed their budget. */
  private portMap(
    alternatives: readonly Alternative[],
    to: Verdict,
    cellVerdict: (rules: readonly Rule[]) => Verdict,
  ): readonly Rule[] | undefined {
    const cells: { protocol: number; first: number; last: number; verdict: Verdict }[] = [];
    const verdicts = new Map<string, Verdict>();
    let budget = CELL_BUDGET;
    for (const protocol of PORT_PROTOCOLS) {
      const mine = alternatives.filter((one) => one.protocol === protocol);
      const cut = cutPorts(mine.map((one) => one.ports!), budget);
      if (cut === undefined) {
        this.out.notes.add(`port ranges overlap more than ${CELL_BUDGET} times: rules are walked one by one`);
        return undefined;
      }
      for (const { first, last, owners } of cut) {
        budget -= owners.length;
        const inside = owners.map((owner) => mine[owner]!.tests);
        const key = JSON.stringify(inside);
        let found = verdicts.get(key);
        if (found === undefined) {
          found = inside.some((tests) => tests.length === 0) ? to : cellVerdict(this.linear(inside, to));
          verdicts.set(key, found);
        }
        const before = cells[cells.length - 1];
        if (
          before !== undefined && before.protocol === protocol && before.last === first - 1 && before.verdict === found
        ) {
          before.last = last;
        } else cells.push({ protocol, first, last, verdict: found });
      }
    }
    const ports = cells.reduce((sum, { first, last }) => sum + last - first + 1, 0);
    const interval = ports > Math.min(SINGLE_PORTS_MAX, cells.length * 2 + 64);
    const key = (protocol: number, port: number) => String.fromCharCode(protocol) + "\0\0\0" + portBytes(port) + "\0\0";
    const entries: [ElementKey, ElementValue][] = [];
    for (const { protocol, first, last, verdict } of cells) {
      if (interval) entries.push([key(protocol, first) + key(protocol, last), verdict]);
      else for (let port = first; port <= last; port++) entries.push([key(protocol, port), verdict]);
    }
    const set = this.out.fixedSet("m", { fields: ["inet_proto", "inet_service"], interval, map: true }, entries);
    return [[
      { op: "meta", key: "l4proto", dreg: 0 },
      { op: "payload", base: "transport", offset: 2, length: 2, dreg: 1 },
      { op: "vmap", set, sreg: 0 },
    ]];
  }

  /** One rule for each conjunction, those that differ in one address only united first. */
  private linear(conjunctions: readonly (readonly Test[])[], to: Verdict): readonly Rule[] {
    return this.unite(conjunctions).map((tests) => [...this.tests(tests), verdict(to)]);
  }

  private unite(conjunctions: readonly (readonly Test[])[]): readonly (readonly Test[])[] {
    let left = [...new Map(conjunctions.map((tests) => [JSON.stringify(tests), tests])).values()];
    for (const end of ["source", "destination"] as const) left = this.uniteEnd(left, end);
    return left;
  }

  private uniteEnd(conjunctions: readonly (readonly Test[])[], end: End): (readonly Test[])[] {
    const groups = new Map<
      string,
      { rest: readonly Test[]; members: { tests: readonly Test[]; address: AddressTest }[] }
    >();
    const out: (readonly Test[])[] = [];
    for (const tests of conjunctions) {
      const at = tests.findIndex((test) => test.test === "address" && test.end === end && !test.not);
      if (at < 0) {
        out.push(tests);
        continue;
      }
      const rest = tests.filter((_, i) => i !== at);
      const key = rest.map(testText).join();
      const group = groups.get(key) ?? { rest, members: [] };
      groups.set(key, group);
      group.members.push({ tests, address: tests[at] as AddressTest });
    }
    for (const { rest, members } of groups.values()) {
      if (members.length === 1) {
        out.push(members[0]!.tests);
        continue;
      }
      const ids = [...new Set(members.flatMap(({ address }) => address.ids))].sort();
      const nets = maximalNets(members.flatMap(({ address }) => address.nets));
      const of = (
        ids: readonly SetId[],
        nets: readonly Cidr[],
      ): readonly Test[] => [{ test: "address", end, ids, nets, not: false }, ...rest];
      if (ids.length + (nets.length > 0 ? 1 : 0) > LOOKUPS_MAX && this.out.mayUnite(ids.length)) {
        out.push(of(ids, nets));
        continue;
      }
      for (const id of ids) out.push(of([id], []));
      if (nets.length > 0) out.push(of([], nets));
    }
    return out;
  }

  private log(rule: PolicyRule): readonly Rule[] {
    const { policy, direction, index } = rule.origin;
    const say: Rule = [LOG_RATE, {
      op: "log",
      group: this.out.options.logGroup,
      prefix: logPrefix(`manx ${direction} ${index} ${policy}`),
    }];
    const conjunctions = this.unite(alternativesOf(rule, this.family).map(testsOf));
    if (conjunctions.length === 1) return [[...this.tests(conjunctions[0]!), ...say]];
    // Once for a packet, however many of its alternatives match.
    const emit = this.out.chain([say]);
    return [[verdict(jump(this.out.chain(conjunctions.map((tests) => [...this.tests(tests), verdict(goto(emit))]))))]];
  }

  // ------------------------------------------------------------------------------------------------------- expressions

  private tests(tests: readonly Test[]): readonly Expression[] {
    const rank = { protocol: 0, portless: 1, icmp: 2, ports: 3, address: 4, addressPort: 5 } as const;
    return [...tests].sort((a, b) => rank[a.test] - rank[b.test]).flatMap((test) => this.test(test));
  }

  private test(test: Test): readonly Expression[] {
    switch (test.test) {
      case "protocol":
        return isProtocol(test.protocol, test.not ? "neq" : "eq");
      case "portless": {
        const entries = PORT_PROTOCOLS.map((protocol) => [String.fromCharCode(protocol), true] as const);
        const set = this.out.fixedSet("x", { fields: ["inet_proto"], interval: false, map: false }, entries);
        return [{ op: "meta", key: "l4proto", dreg: 0 }, { op: "lookup", set, sreg: 0, invert: true }];
      }
      case "icmp": {
        const data = String.fromCharCode(test.type) + (test.code === null ? "" : String.fromCharCode(test.code));
        return [
          { op: "payload", base: "transport", offset: 0, length: data.length, dreg: 0 },
          { op: "cmp", sreg: 0, is: test.not ? "neq" : "eq", data },
        ];
      }
      case "ports":
        return this.ports(test.end, test.ranges);
      case "address":
        return this.address(test);
      case "addressPort": {
        const registers = this.addressBytes / 4;
        return [
          this.load(test.end, 0),
          { op: "meta", key: "l4proto", dreg: registers },
          { op: "payload", base: "transport", offset: test.end === "source" ? 0 : 2, length: 2, dreg: registers + 1 },
          { op: "lookup", set: this.out.portSet(this.family, test.id), sreg: 0, invert: test.not },
        ];
      }
    }
  }

  private load(end: End, dreg: number): Expression {
    const offset = this.family === 4 ? (end === "source" ? 12 : 16) : (end === "source" ? 8 : 24);
    return { op: "payload", base: "network", offset, length: this.addressBytes, dreg };
  }

  private ports(end: End, ranges: readonly PortRange[]): readonly Expression[] {
    if (ranges.length === 1 && ranges[0]!.first === ALL_PORTS[0]!.first && ranges[0]!.last === ALL_PORTS[0]!.last) {
      return [];
    }
    const load: Expression = { op: "payload", base: "transport", offset: end === "source" ? 0 : 2, length: 2, dreg: 0 };
    if (ranges.length === 1) {
      const { first, last } = ranges[0]!;
      if (first === last) return [load, { op: "cmp", sreg: 0, is: "eq", data: portBytes(first) }];
      return [load, { op: "range", sreg: 0, is: "eq", from: portBytes(first), to: portBytes(last) }];
    }
    const interval = ranges.some(({ first, last }) => first !== last);
    const entries = ranges.map(({ first, last }) =>
      [portBytes(first) + (interval ? portBytes(last) : ""), true] as const
    );
    const set = this.out.fixedSet("q", { fields: ["inet_service"], interval, map: false }, entries);
    return [load, { op: "lookup", set, sreg: 0, invert: false }];
  }

  private address(test: AddressTest): readonly Expression[] {
    const load = this.load(test.end, 0);
    if (test.ids.length === 0 && test.nets.length === 1) return [load, ...inNet(test.nets[0]!, test.not)];
    return [load, { op: "lookup", set: this.out.netSet(this.family, test.ids, test.nets), sreg: 0, invert: test.not }];
  }
}

type AddressTest = Extract<Test, { test: "address" }>;

/** Whether the address in register 0 is in the prefix. */
export function inNet(net: Cidr, not: boolean): readonly Expression[] {
  const is = not ? "neq" : "eq";
  if (isHost(net)) return [{ op: "cmp", sreg: 0, is, data: cidrAddress(net) }];
  const zero = "\0".repeat(net.length - 1);
  const mask = maskAddress("\xff".repeat(net.length - 1) as Address, cidrPrefix(net));
  return [{ op: "bitwise", sreg: 0, dreg: 0, mask, xor: zero }, { op: "cmp", sreg: 0, is, data: cidrAddress(net) }];
}

export const isFamily = (family: Family): readonly Expression[] => [
  { op: "meta", key: "nfproto", dreg: 0 },
  { op: "cmp", sreg: 0, is: "eq", data: family === 4 ? "\x02" : "\x0a" },
];

export const isProtocol = (protocol: number, is: "eq" | "neq" = "eq"): readonly Expression[] => [
  { op: "meta", key: "l4proto", dreg: 0 },
  { op: "cmp", sreg: 0, is, data: String.fromCharCode(protocol) },
];

/** An alternative as nothing but tests. */
const testsOf = (one: Alternative): readonly Test[] => {
  const tests: Test[] = [];
  if (one.protocol !== undefined) tests.push({ test: "protocol", protocol: one.protocol, not: false });
  if (one.ports !== undefined) tests.push({ test: "ports", end: "destination", ranges: one.ports });
  return [...tests, ...one.tests];
};

/** Alternatives that differ in destination ports only become one; repeats go. */
function mergePorts(alternatives: readonly Alternative[]): readonly Alternative[] {
  const merged = new Map<string, Alternative>();
  for (const one of alternatives) {
    const key = one.ports === undefined ? alternativeText(one) : alternativeText({ ...one, ports: [] });
    const before = merged.get(key);
    merged.set(
      key,
      before?.ports === undefined ? one : { ...before, ports: unitePorts([...before.ports, ...one.ports!]) },
    );
  }
  return [...merged.values()];
}

function endsInVerdict(rules: readonly Rule[]): boolean {
  const last = rules[rules.length - 1];
  return last !== undefined && last.length === 1 && last[0]!.op === "verdict" &&
    ["accept", "drop", "goto"].includes(last[0]!.verdict.kind);
}

/** Printable ASCII; cut in the middle of the policy's name, with a digest of the whole, where it is too long. */
function logPrefix(text: string): string {
  const printable = text.replace(/[^\x20-\x7e]/g, "?");
  if (printable.length <= LOG_PREFIX_MAX) return printable;
  return `${printable.slice(0, LOG_PREFIX_MAX - 13)}~${digest(text).slice(0, 12)}`;
}
