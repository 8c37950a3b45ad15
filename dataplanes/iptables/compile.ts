/**
 * A `PolicyList` → chains. Pure.
 *
 * A list is entered by a jump and then only gone on in: every step inside is a goto, so that `return` leaves the list
 * from any depth. Chains are therefore made from the end of the list backwards, each knowing what comes after it. (What a staged
 * policy would decide is counted in chains that are jumped to, and come back.)
 */
import type { Family } from "../../src/model/address.ts";
import type { PolicyList } from "../../src/model/desired.ts";
import { digest } from "../../src/model/digest.ts";
import { type Cause, type JudgedRule, type Segment, segmentsOf } from "../../src/model/flat_list.ts";
import type { Direction } from "../../src/model/rule.ts";
import { type Conjunction, conjunctionsOf, isAlways, protocolsOf } from "./conjunction.ts";
import { logPrefix } from "./log_prefix.ts";
import { CELL_BUDGET, type ChainMaker, portTree, type TargetOf } from "./port_tree.ts";
import { isProtocol, RuleMatches } from "./rule_matches.ts";
import { DROP, goto, jump, type Match, OURS, RETURN, type Rule, rule, type Target } from "./ruleset.ts";
import type { SetUse } from "./set_names.ts";
import { unite } from "./unite.ts";

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
const LOG_RATE: Match = { match: "limit", perSecond: 10, burst: 20 };
const DIGEST_CHARACTERS = 20;
/** Of a list's digest in the names of its chains, which leaves room for a number. */
const LIST_CHARACTERS = 16;
/** Targets that a packet does not come back from. */
const ENDS: ReadonlySet<Target["target"]> = new Set(["return", "drop", "accept", "goto"]);

export const chainName = (rules: readonly Rule[], letter = "c"): string =>
  `${OURS}${letter}-${digest(JSON.stringify(rules)).slice(0, DIGEST_CHARACTERS)}`;

export function compileList(list: PolicyList, options: CompileOptions): Compiled {
  const { family, direction, endings } = options;
  const compiler = new Compiler(
    options,
    digest(JSON.stringify([list.id, family, direction, endings])).slice(0, LIST_CHARACTERS),
  );
  const head = compiler.list(list);
  const { chains, matches: { sets, notes } } = compiler;
  return { head, chains, sets, notes: [...notes] };
}

/** Of the last lists: each is compiled for both families. */
const flattened = new WeakMap<PolicyList, readonly Segment[]>();

function segmentsFor(list: PolicyList): readonly Segment[] {
  let segments = flattened.get(list);
  if (segments === undefined) flattened.set(list, segments = segmentsOf(list));
  return segments;
}

class Compiler implements ChainMaker {
  readonly chains = new Map<string, readonly Rule[]>();
  readonly matches: RuleMatches;

  private readonly names = new Map<readonly Rule[], string>();
  /** What is logged before it is denied. */
  private readonly denials = new Map<Cause, Target>();

  /** `slot`: begins the names of its chains, so that none but the list itself has to be hashed. */
  constructor(private readonly options: CompileOptions, private readonly slot: string) {
    this.matches = new RuleMatches(options.family);
  }

  list(list: PolicyList): string {
    const segments = segmentsFor(list);
    // Nothing follows the last: whoever got there would be denied.
    let after = rule(this.options.endings.deny);
    for (let i = segments.length - 1; i >= 0; i--) after = this.onward(this.segment(segments[i]!, after));
    return after.target.target === "goto" && after.causes === undefined ? after.target.chain : this.chain([after]);
  }

  chain(rules: readonly Rule[]): string {
    let name = this.names.get(rules);
    if (name !== undefined) return name;
    name = `${OURS}l-${this.slot}${this.names.size === 0 ? "" : `-${this.names.size.toString(36)}`}`;
    this.names.set(rules, name);
    this.chains.set(name, rules);
    return name;
  }

  /** What all the rules come to stands for them, and counts for them. */
  onward(rules: readonly Rule[]): Rule {
    const [first] = rules;
    if (first === undefined) return rule(RETURN);
    return first.matches.length === 0 && ENDS.has(first.target.target) ? first : rule(goto(this.chain(rules)));
  }

  // ------------------------------------------------------------------------------------------------------------ segments

  /** `after`: where the next one begins, which is also where `pass` leads. */
  private segment({ items, end }: Segment, after: Rule): readonly Rule[] {
    let rules: readonly Rule[] = [
      end.action === "on"
        ? after
        : counted(end.action === "next" ? this.options.endings.next : this.denial(end.cause), end.cause),
    ];
    let next: Target | undefined;
    // Whoever passes counts what it has passed by, and what follows counts the packet as well.
    const passed = () => next ??= after.causes === undefined ? after.target : goto(this.chain([after]));
    const targetOf: TargetOf = ({ action, causes }) =>
      action === "pass" ? passed() : action === "allow" ? this.options.endings.allow : this.denial(causes[0]!);
    // Backwards, as the list is walked.
    let run: Conjunction[] = [];
    const flush = () => {
      if (run.length > 0) rules = this.region(run.reverse(), rules, targetOf);
      run = [];
    };
    for (let i = items.length - 1; i >= 0; i--) {
      const item = items[i]!;
      if (item.kind === "rule") {
        const all = this.conjunctions(item.judged);
        for (let at = all.length - 1; at >= 0; at--) run.push(all[at]!);
      } else {
        flush();
        rules = item.kind === "staged" ? this.staged(item.rules, rules) : this.log(item.judged, rules);
      }
    }
    flush();
    return rules;
  }

  private conjunctions(judged: JudgedRule): readonly Conjunction[] {
    return conjunctionsOf(judged, this.options.family);
  }

  private denial(cause: Cause): Target {
    const { endings, direction } = this.options;
    if (!cause.logs) return endings.deny;
    let target = this.denials.get(cause);
    if (target === undefined) {
      target = goto(this.chain([this.say(logPrefix(cause.decision, direction, "deny")), rule(endings.deny)]));
      this.denials.set(cause, target);
    }
    return target;
  }

  private say(prefix: string): Rule {
    return rule({ target: "log", group: this.options.logGroup, prefix }, LOG_RATE);
  }

  /** Once for a packet, however many of its alternatives match. */
  private log(judged: JudgedRule, after: readonly Rule[]): readonly Rule[] {
    const all = this.conjunctions(judged);
    if (all.length === 0) return after;
    const next = [this.onward(after)];
    const spoken = goto(this.chain([this.say(logPrefix(judged.decision, this.options.direction, "log")), ...next]));
    return this.linear(all, next, () => spoken);
  }

  /** Whatever matches leaves the policy, and is judged on as if it had not been there. */
  private staged(all: readonly JudgedRule[], after: readonly Rule[]): readonly Rule[] {
    const listed = all.flatMap((judged) => this.conjunctions(judged));
    if (listed.length === 0) return after;
    const rules = this.region(listed, [rule(RETURN)], () => RETURN);
    return [rule(jump(this.chain(rules))), ...after];
  }

  // ------------------------------------------------------------------------------------------------------------- regions

  /** The rules in their order, and then `after`. */
  private region(all: readonly Conjunction[], after: readonly Rule[], targetOf: TargetOf): readonly Rule[] {
    const always = all.findIndex(isAlways);
    let rest = after, listed = all;
    if (always >= 0) {
      const { causes } = all[always]!;
      rest = [{ matches: [], target: targetOf(all[always]!), causes }];
      listed = all.slice(0, always);
    }
    if (this.options.shape === "linear") return this.linear(listed, rest, targetOf);
    const united = unite(listed);
    let ported = 0;
    for (const { ports } of united) if (ports !== undefined) ported++;
    if (ported <= LINEAR_MAX) return this.linear(united, rest, targetOf);
    const tree = portTree(this, united, rest, targetOf);
    if (tree !== undefined) return tree;
    this.matches.notes.add(
      `port ranges overlap more than ${CELL_BUDGET} times: ${united.length} rules are walked one by one`,
    );
    return this.linear(united, rest, targetOf);
  }

  linear(all: readonly Conjunction[], after: readonly Rule[], targetOf: TargetOf): readonly Rule[] {
    let rest = after, end = all.length;
    for (let i = all.length - 1; i >= 0; i--) {
      const one = all[i]!;
      if (one.protocol !== undefined) continue;
      const protocols = protocolsOf(one);
      if (protocols === "never" || protocols.only !== undefined || protocols.without.length < 2) continue;
      // A rule asks for one protocol: what is none of several goes past it.
      const past = this.onward(this.inOrder(all, i + 1, end, rest, targetOf));
      const rules = protocols.without.map((other): Rule => ({ ...past, matches: [isProtocol(other)] }));
      this.matches.put(rules, one, targetOf(one));
      rest = [...rules, past];
      end = i;
    }
    return this.inOrder(all, 0, end, rest, targetOf);
  }

  /** Those from `from` to before `to`. */
  private inOrder(
    all: readonly Conjunction[],
    from: number,
    to: number,
    rest: readonly Rule[],
    targetOf: TargetOf,
  ): readonly Rule[] {
    const rules: Rule[] = [];
    for (let i = from; i < to; i++) this.matches.put(rules, all[i]!, targetOf(all[i]!));
    return rules.length === 0 ? rest : [...rules, ...rest];
  }
}

const counted = (target: Target, cause: Cause): Rule => ({ matches: [], target, causes: [cause] });
