/** That the fuzzer can fail: a bug planted in each place that it watches is found, and shrunk to what shows it. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import type { CalcResult } from "../../src/calc/mod.ts";
import type { CompiledPolicy, DesiredState, PolicyList, Rule } from "../../src/model/desired.ts";
import { judgePath } from "../../src/model/evaluate.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import type { Resource } from "../../src/model/resource.ts";
import { printRuleset } from "../../dataplanes/nftables/print.ts";
import type { Ruleset } from "../../dataplanes/nftables/ruleset.ts";
import { EVALUATOR, type JudgeKind, ORACLE, TRACER } from "./judges.ts";
import { KernelJudge } from "./kernel/kernel_judge.ts";
import { manifestKey } from "./make_world.ts";
import { pathOf } from "./packet.ts";
import { Following, newRenderer, type NodeFacts } from "./product.ts";
import { type Failure, failureFile, type RunOptions, runSeed } from "./run.ts";
import { parseScenario } from "./scenario_file.ts";

const SEEDS_MOST = 150;

/** The first failure of the first seed that has one. */
async function firstFailure(options: Omit<RunOptions, "seed" | "steps" | "packets">): Promise<Failure> {
  for (let seed = 1; seed <= SEEDS_MOST; seed++) {
    const { failure } = await runSeed({ seed, steps: 3, packets: 120, ...options });
    if (failure !== undefined) return failure;
  }
  throw new Error(`${SEEDS_MOST} seeds did not find what was planted`);
}

const ENDPOINTS = ["WorkloadEndpoint", "HostEndpoint", "Pod"];
const besidesEndpoints = (resources: readonly Resource[]): string[] =>
  resources.filter(({ kind }) => !ENDPOINTS.includes(kind)).map(manifestKey);

/** The same state with every rule changed. */
function withRules(desired: DesiredState, change: (rule: Rule) => Rule): DesiredState {
  const policy = (one: CompiledPolicy): CompiledPolicy => ({ ...one, rules: one.rules.map(change) });
  const list = (one: PolicyList): PolicyList => ({
    ...one,
    id: `${one.id}-changed`,
    tiers: one.tiers.map((tier) => ({ ...tier, policies: tier.policies.map(policy) })),
    profiles: one.profiles.map(policy),
  });
  const lists = <T extends object>(owner: T): T =>
    Object.fromEntries(
      Object.entries(owner).map((
        [key, value],
      ) => [key, (value as PolicyList).tiers === undefined ? value : list(value)]),
    ) as T;
  const each = <T extends object>(map: Iterable<readonly [string, T]>) =>
    persistentMap([...map].map(([id, owner]) => [id, lists(owner)] as const));
  return { ...desired, workloads: each(desired.workloads), hostEndpoints: each(desired.hostEndpoints) };
}

const ignoringNotPorts: JudgeKind = {
  name: "evaluator",
  of: ({ result }) => {
    const desired = withRules(result.desired, (rule) => ({
      ...rule,
      source: { ...rule.source, notPorts: undefined },
      destination: { ...rule.destination, notPorts: undefined },
    }));
    return (packet) => ({ verdict: judgePath(desired, pathOf(packet)).verdict, why: () => [] });
  },
};

test("an evaluator that ignores notPorts is found, and shrunk to the policy that has them", async () => {
  const failure = await firstFailure({ judges: [ORACLE, ignoringNotPorts] });
  const { steps, packet, expect: expected, why } = failure.scenario!;
  expect(steps.length).toBe(1);
  expect(besidesEndpoints(steps[0]!).length).toBeLessThanOrEqual(2);
  expect(JSON.stringify(steps[0])).toContain("notPorts");
  expect(packet!.destinationPort ?? packet!.sourcePort).toBeDefined();
  expect(expected).toBeDefined();
  expect(why.length).toBeGreaterThan(0);
  expect(failure.text).toContain("evaluator: ");
  // What is kept says the same again.
  const file = failureFile(failure)!;
  expect(parseScenario(file, "kept")).toEqual(failure.scenario!);
}, 60_000);

/** Ranges lose their last port. */
function withShortRanges(ruleset: Ruleset): Ruleset {
  const chains = [...ruleset.chains].map(([name, chain]) =>
    [name, {
      ...chain,
      rules: chain.rules.map((rule) =>
        rule.map((one) => one.op === "range" && one.from.length === 2 ? { ...one, to: before(one.to) } : one)
      ),
    }] as const
  );
  return { ...ruleset, chains: persistentMap(chains) };
}

function before(port: string): string {
  const value = (port.charCodeAt(0) << 8 | port.charCodeAt(1)) - 1;
  return String.fromCharCode(value >> 8, value & 0xff);
}

test("rules whose port ranges end one too early are found", async () => {
  const short: JudgeKind = {
    name: "tracer",
    of: (ground) => TRACER.of({ ...ground, ruleset: withShortRanges(ground.ruleset) }),
  };
  const { scenario, text } = await firstFailure({ judges: [ORACLE, EVALUATOR, short] });
  expect(besidesEndpoints(scenario!.steps[0]!).length).toBeLessThanOrEqual(2);
  expect(text).toContain("tracer: ");
}, 60_000);

/** Never notices that something is gone. */
class Hoarding extends Following {
  readonly #seen = new Map<string, Resource>();
  constructor(facts: NodeFacts) {
    super(facts);
  }
  override to(resources: Iterable<Resource>): CalcResult {
    for (const resource of resources) this.#seen.set(manifestKey(resource), resource);
    return super.to(this.#seen.values());
  }
}

test("a calculation that keeps what is gone is found, and shrunk to two steps", async () => {
  const { scenario, text } = await firstFailure({ following: (facts) => new Hoarding(facts) });
  expect(scenario!.steps.length).toBe(2);
  const [first, second] = scenario!.steps.map((step) => step.map(manifestKey)) as [string[], string[]];
  expect(new Set([...first, ...second]).size).toBeLessThanOrEqual(5);
  expect(first.filter((key) => !second.includes(key)).length).toBeGreaterThan(0);
  expect(text).toContain("from scratch");
}, 60_000);

let kernel: KernelJudge;
beforeAll(async () => void (kernel = await KernelJudge.open()));
afterAll(async () => await kernel[Symbol.asyncDispose]());

test("a kernel with other rules than those that were meant is found by its packets", async () => {
  let rendered = "";
  const careless: RunOptions["kernel"] = {
    apply(desired) {
      rendered = printRuleset(newRenderer().render(desired).ruleset);
      const denyIsLog = (rule: Rule): Rule => rule.action === "deny" ? { ...rule, action: "log" } : rule;
      return kernel.apply(withRules(desired, denyIsLog));
    },
    // Its rules would give it away.
    rules: () => rendered,
    renderedRules: () => rendered,
    freshRules: () => Promise.resolve(rendered),
    send: (packets, expected, graceMs) => kernel.send(packets, expected, graceMs),
    probe: (packets, desired, expected) => kernel.probe(packets, desired, expected),
  };
  const { scenario, text } = await firstFailure({ kernel: careless });
  expect(text).toContain("kernel: it arrived at ");
  expect(scenario!.expect).toBe("deny");
  expect(besidesEndpoints(scenario!.steps[0]!).length).toBeLessThanOrEqual(2);
}, 60_000);
