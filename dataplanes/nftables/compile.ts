/**
 * A `PolicyList` as chains and elements whose cost for a packet does not grow with the list. Pure.
 *
 * The list is flattened to one order of rules and cut into runs of one action: within a run order does not matter, so it
 * may be regrouped into lookups. README.md has the argument and the bounds.
 */
import type { Family } from "../../src/model/address.ts";
import type { CompiledPolicy, PolicyList, Rule as PolicyRule, SetId } from "../../src/model/desired.ts";
import type { Alternative, Test } from "../../src/model/rule_alternatives.ts";
import { ACCEPT, DROP, goto, isFamily, jump, RETURN, testExpressions, verdict } from "./expressions.ts";
import { type Cause, type JudgedRule, type Segment, segmentsOf } from "../../src/model/flat_list.ts";
import { logPrefix } from "./log_prefix.ts";
import { type Compiled, type CompileOptions, type Endings, Output } from "./output.ts";
import { type Ported, regionRules } from "./region.ts";
import type { Expression, Rule, Verdict } from "./ruleset.ts";
import { type Reading, type Run, stagedSteps, type Step, stepsOf } from "./steps.ts";
import { type Conjunction, isLogged, type RuleAction, textOf, unite } from "./unite.ts";

export const FILTER_ENDINGS: Endings = { allow: ACCEPT, deny: DROP, next: ACCEPT };

/** So many rules that ask for a port stay a plain list. */
const LINEAR_MAX = 3;
/** Regions with `pass` cells, one within the other: each takes two of the 16 levels that nf_tables has. */
const PASS_REGIONS_MAX = 3;
const LOG_RATE = { op: "limit", rate: 10, unitSeconds: 1, burst: 20 } as const;

/** @param slot whose chain and keys it gets: of all lists that stand at the same time, this one's alone */
export function compileList(list: PolicyList, slot: string, options: CompileOptions): Compiled {
  const out = new Output(options, slot);
  const segments = segmentsOf(list);
  const ids = idsOf(list);
  const absent = ids.size === 0 ? [] : ([4, 6] as const).filter((family) => {
    for (const id of ids) if (options.hasMembers(family, id)) return false;
    return true;
  });
  const isFlat = options.shape === "flat";
  const compile = (family: Family, name: string) =>
    new FamilyCompiler({ family, absent: absent.includes(family), isFlat }, name, out).list(segments);
  const head = `list-${slot}`;
  if (isNeutral(segments)) out.setChain(head, compile(4, ""));
  else {
    const v4 = compile(4, "4"), v6 = compile(6, "6");
    const alone = v6.length === 1 && v6[0]!.length === 1 ? v6[0]![0]! : verdict(goto(out.chain(v6)));
    out.setChain(head, [[...isFamily(6), alone], ...v4]);
  }
  const { chains, sets, addressSets, blocks, hits, counts, sizes } = out;
  return { head, chains, sets, addressSets, blocks, hits, counts, ids, absent, sizes, notes: [...out.notes] };
}

/** All sets that the list asks for. */
function idsOf({ tiers, profiles }: PolicyList): ReadonlySet<SetId> {
  const ids = new Set<SetId>();
  for (const { policies } of tiers) for (const policy of policies) for (const id of policyIds(policy)) ids.add(id);
  for (const profile of profiles) for (const id of policyIds(profile)) ids.add(id);
  return ids;
}

const known = new WeakMap<CompiledPolicy, readonly SetId[]>();

/** Of one policy, which outlives the lists that it is in. */
function policyIds(policy: CompiledPolicy): readonly SetId[] {
  let found = known.get(policy);
  if (found !== undefined) return found;
  const ids = new Set<SetId>();
  for (const { source, destination } of policy.rules) {
    for (const { sets, notSets, portSets, notPortSets, serviceSet } of [source, destination]) {
      for (const some of [sets, notSets, portSets, notPortSets]) for (const id of some ?? []) ids.add(id);
      if (serviceSet !== undefined) ids.add(serviceSet);
    }
  }
  known.set(policy, found = [...ids]);
  return found;
}

/** Whether the list says the same in both families, word for word. */
const isNeutral = (segments: readonly Segment[]): boolean =>
  segments.every(({ items }) =>
    items.every((item) =>
      item.kind === "staged" ? item.rules.every(({ rule }) => saysTheSame(rule)) : saysTheSame(item.judged.rule)
    )
  );

/** Nothing in the rule is of one family only, or looked up in a set that has them apart. */
const saysTheSame = ({ family, icmp, notIcmp, source, destination }: PolicyRule): boolean =>
  (family ?? icmp ?? notIcmp) === undefined &&
  [source, destination].every(({ nets, notNets, sets, notSets, portSets, notPortSets, serviceSet }) =>
    (nets ?? notNets ?? sets ?? notSets ?? portSets ?? notPortSets ?? serviceSet) === undefined
  );

interface SplitRun {
  readonly ported: readonly Ported[];
  readonly others: readonly Conjunction[];
  /** None of the others comes after one that asks for a port. */
  readonly othersFirst: boolean;
}

interface Region {
  readonly rules: readonly Rule[];
  /** How many runs it has taken in. */
  readonly runs: number;
  /** The rest of the steps is where its last rule goes. */
  readonly goesOn?: true;
}

class FamilyCompiler {
  private regions = 0;
  /** Within a staged policy: whatever matches leaves it. */
  private staged = false;
  /** Up to which step runs have been found to make too many cells together. */
  private readonly tooMany = new WeakMap<readonly Step[], number>();

  private readonly family: Family;

  /** `name`: what tells its keys from those of the list's other compiler. */
  constructor(private readonly reading: Reading, private readonly name: string, private readonly out: Output) {
    this.family = reading.family;
  }

  list(segments: readonly Segment[]): readonly Rule[] {
    const rules: Rule[] = [];
    for (const segment of segments) {
      const inner = this.from(stepsOf(segment, this.reading), 0, 0);
      if (!segment.passes) rules.push(...inner);
      // Nothing in it can match in this family: on to the next.
      else if (inner.length > 0) rules.push([verdict(jump(this.out.chain(inner)))]);
      if (endsInVerdict(rules)) break;
    }
    return rules;
  }

  /** Everything from the step on. `passRegions`: how many regions with `pass` cells this is within. */
  private from(steps: readonly Step[], at: number, passRegions: number): readonly Rule[] {
    const rules: Rule[] = [];
    const add = (some: readonly Rule[]) => {
      for (const rule of some) rules.push(rule);
    };
    for (let next = at; next < steps.length;) {
      const step = steps[next]!;
      if (step.kind === "run" && this.reading.isFlat) {
        const region = this.region(steps, next, passRegions);
        add(region.rules);
        if (region.goesOn) return rules;
        next += region.runs;
        continue;
      }
      next++;
      if (step.kind === "always") add(this.always(step.action, step.causes));
      else if (step.kind === "log") add(this.log(step.judged, step.alternatives));
      else if (step.kind === "staged") add(this.stagedPolicy(step.rules, passRegions));
      else add(this.linear(this.conjunctions(step)));
    }
    return rules;
  }

  private always(action: RuleAction | "next", causes: readonly Cause[]): readonly Rule[] {
    if (action === "next") return [[verdict(this.out.options.endings.next)]];
    return [this.terminal(action, causes)];
  }

  /**
   * Runs up to where a rule without ports stands between two that have them: the ports of all of them are one map. What has
   * no ports is looked up before it or after it.
   */
  private region(steps: readonly Step[], at: number, passRegions: number): Region {
    const runs = [this.split(steps[at] as Run)];
    if (runs[0]!.ported.length > 0 && at >= (this.tooMany.get(steps) ?? 0)) {
      for (let next = at + 1;; next++) {
        const step = steps[next];
        if (step?.kind !== "run" || runs.length > 1 && runs[runs.length - 1]!.others.length > 0) break;
        const run = this.split(step);
        if (run.ported.length === 0) break;
        runs.push(run);
      }
    }
    const region = this.regionOf(runs, steps, at, passRegions);
    if (region !== undefined) return region;
    // Too much overlap for all of them together: each run by itself, then.
    this.tooMany.set(steps, at + runs.length);
    const alone = runs.slice(0, 1);
    const first = runs.length > 1 ? this.regionOf(alone, steps, at, passRegions) : undefined;
    return first ?? { rules: this.runByRun(alone), runs: 1 };
  }

  private regionOf(
    runs: readonly SplitRun[],
    steps: readonly Step[],
    at: number,
    passRegions: number,
  ): Region | undefined {
    const first = runs[0]!, last = runs[runs.length - 1]!;
    const ported = runs.flatMap((run) => run.ported);
    const leaves = ported.some(({ conjunction }) => this.leaves(conjunction.action));
    if (ported.length <= LINEAR_MAX || leaves && passRegions >= PASS_REGIONS_MAX) {
      return { rules: this.runByRun(runs), runs: runs.length };
    }
    // In a run of its own either will do; the order of the list tells more truly who decided.
    const othersFirst = runs.length > 1 || first.othersFirst;
    const before = othersFirst ? this.united(first.others) : [];
    const after = () => this.united(runs.length > 1 ? last.others : othersFirst ? [] : first.others);
    // What leaves this chain by `return` must not do so from a chain that was jumped to: such a cell is gone to instead, and
    // itself goes on where nothing in it matched.
    let on: Verdict | undefined;
    const goOn = (): Verdict => {
      if (on === undefined) {
        const rules = [...after(), ...this.from(steps, at + runs.length, passRegions + 1)];
        on = rules.length === 0 ? RETURN : goto(this.out.chain(rules));
      }
      return on;
    };
    const map = regionRules(ported, {
      family: this.family,
      out: this.out,
      name: `${this.name} ${this.regions++}`,
      verdictOf: (action) => this.verdictOf(action),
      cell: (conjunctions) => {
        const rules = this.inRuns(conjunctions);
        return conjunctions.some(({ action }) => this.leaves(action))
          ? goto(this.out.chain([...rules, [verdict(goOn())]]))
          : jump(this.out.chain(rules));
      },
    });
    if (map === undefined) return undefined;
    return on === undefined
      ? { rules: [...before, ...map, ...after()], runs: runs.length }
      : { rules: [...before, ...map, [verdict(on)]], runs: runs.length, goesOn: true };
  }

  private runByRun(runs: readonly SplitRun[]): readonly Rule[] {
    return runs.flatMap(({ ported, others, othersFirst }) => {
      const some = this.united(ported.map(asConjunction));
      return othersFirst ? [...this.united(others), ...some] : [...some, ...this.united(others)];
    });
  }

  /** What asks for a destination port, and what does not. */
  private split(run: Run): SplitRun {
    const ported: Ported[] = [], others: Conjunction[] = [];
    let lastOther = -1, firstPorted = Infinity;
    run.entries.forEach(({ alternatives, judged }, at) => {
      for (const one of alternatives) {
        if (one.ports === undefined) {
          others.push(conjunctionOf(one, run.action, judged));
          lastOther = at;
        } else {
          const conjunction = { tests: one.tests, text: textOf(one), action: run.action, causes: [judged] };
          ported.push({ protocol: one.protocol!, ports: one.ports, conjunction });
          firstPorted = Math.min(firstPorted, at);
        }
      }
    });
    return { ported, others, othersFirst: lastOther < firstPorted };
  }

  private conjunctions(run: Run): readonly Conjunction[] {
    return run.entries.flatMap(({ alternatives, judged }) =>
      alternatives.map((one) => conjunctionOf(one, run.action, judged))
    );
  }

  /** In order: what stands together and has one action is united. */
  private inRuns(conjunctions: readonly Conjunction[]): readonly Rule[] {
    const rules: Rule[] = [];
    for (let from = 0; from < conjunctions.length;) {
      let to = from + 1;
      const { action } = conjunctions[from]!;
      const logs = isLogged(conjunctions[from]!);
      while (to < conjunctions.length && conjunctions[to]!.action === action && isLogged(conjunctions[to]!) === logs) {
        to++;
      }
      rules.push(...this.united(conjunctions.slice(from, to)));
      from = to;
    }
    return rules;
  }

  /** Of one action, logged or not. */
  private united(conjunctions: readonly Conjunction[]): readonly Rule[] {
    if (conjunctions.length === 0) return [];
    return this.linear(isLogged(conjunctions[0]!) ? conjunctions : unite(conjunctions, this.family, this.out));
  }

  private linear(conjunctions: readonly Conjunction[]): readonly Rule[] {
    return conjunctions.map(({ tests, action, causes }) => [
      ...testExpressions(tests, this.family, this.out),
      ...this.terminal(action, causes),
    ]);
  }

  // ------------------------------------------------------------------------------------------------------------ verdicts

  private leaves(action: RuleAction): boolean {
    return this.staged || action === "pass";
  }

  private verdictOf(action: RuleAction): Verdict {
    if (this.leaves(action)) return RETURN;
    const { endings } = this.out.options;
    return action === "allow" ? endings.allow : endings.deny;
  }

  /** What a match leads to. */
  private terminal(action: RuleAction, causes: readonly Cause[]): readonly Expression[] {
    // A default is the list's own; what a rule decides is the rule's, in whatever list.
    const scope = causes.some(({ decision }) => decision.by !== "rule") ? this.out.slot : "";
    const counted = [...this.out.counted(causes, scope), verdict(this.verdictOf(action))];
    const [{ decision, logs }] = causes as [Cause];
    if (!logs) return counted;
    const say = this.say(logPrefix(decision, this.out.options.direction, "deny"));
    return [verdict(goto(this.out.chain([say, counted])))];
  }

  private say(prefix: string): Rule {
    return [LOG_RATE, { op: "log", group: this.out.options.logGroup, prefix }];
  }

  private log({ decision }: JudgedRule, alternatives: readonly Alternative[]): readonly Rule[] {
    const say = this.say(logPrefix(decision, this.out.options.direction, "log"));
    const all = alternatives.map(testsOf);
    if (all.length === 1) return [[...testExpressions(all[0]!, this.family, this.out), ...say]];
    // Once for a packet, however many of its alternatives match.
    const emit = this.out.chain([say]);
    const rules = all.map((tests) => [...testExpressions(tests, this.family, this.out), verdict(goto(emit))]);
    return [[verdict(jump(this.out.chain(rules)))]];
  }

  /** A chain that counts what the policy would have decided, and returns. */
  private stagedPolicy(rules: readonly JudgedRule[], passRegions: number): readonly Rule[] {
    this.staged = true;
    const steps = stagedSteps(rules, this.reading);
    const inner = this.from(steps, 0, passRegions);
    this.staged = false;
    return inner.length === 0 ? [] : [[verdict(jump(this.out.chain(inner)))]];
  }
}

/** An alternative as nothing but tests. */
const testsOf = (one: Alternative): readonly Test[] => {
  const tests: Test[] = [];
  if (one.protocol !== undefined) tests.push({ test: "protocol", protocol: one.protocol, not: false });
  if (one.ports !== undefined) tests.push({ test: "ports", end: "destination", ranges: one.ports });
  return [...tests, ...one.tests];
};

const conjunctionOf = (one: Alternative, action: RuleAction, cause: Cause): Conjunction => ({
  tests: testsOf(one),
  text: `${one.protocol ?? "any"} ${one.ports === undefined ? "" : JSON.stringify(one.ports)} ${textOf(one)}`,
  action,
  causes: [cause],
});

/** As a list walks it: with its protocol and ports. */
const asConjunction = ({ protocol, ports, conjunction }: Ported): Conjunction => ({
  ...conjunction,
  tests: [
    { test: "protocol", protocol, not: false },
    { test: "ports", end: "destination", ranges: ports },
    ...conjunction.tests,
  ],
  text: `${protocol} ${JSON.stringify(ports)} ${conjunction.text}`,
});

function endsInVerdict(rules: readonly Rule[]): boolean {
  const last = rules[rules.length - 1];
  return last !== undefined && last[0]!.op !== "vmap" && isUnconditional(last);
}

/** Nothing in the rule can keep it from its verdict. */
function isUnconditional(rule: Rule): boolean {
  const last = rule[rule.length - 1]!;
  if (last.op !== "verdict" || !["accept", "drop", "goto"].includes(last.verdict.kind)) return false;
  return rule.every((one) =>
    one.op === "verdict" || one.op === "immediate" || one.op === "lookup" && one.set === "counts"
  );
}
