/** One seed: a world and a few steps from it, judged by everybody, followed and from scratch, and on request in a real kernel. */
import { dump } from "../../src/calc/testing/dump.ts";
import { Random } from "../../src/calc/testing/random_world.ts";
import type { CalcResult } from "../../src/calc/mod.ts";
import type { Resource } from "../../src/model/resource.ts";
import { printRuleset } from "../../dataplanes/nftables/print.ts";
import {
  type Disagreement,
  disagreement,
  disagreementText,
  EVALUATOR,
  type Ground,
  type JudgeKind,
  LINEAR_TRACER,
  opinionsOn,
  ORACLE,
  TRACER,
} from "./judges.ts";
import type { KernelJudge, Surprise } from "./kernel/kernel_judge.ts";
import { type World, WorldMaker } from "./make_world.ts";
import { makePackets } from "./make_packet.ts";
import { type FuzzPacket, packetText } from "./packet.ts";
import { LINKS, NODE } from "./plan.ts";
import { Following, freshResult, newRenderer, type NodeFacts, refusalsOf } from "./product.ts";
import { formatScenario, type FoundScenario } from "./scenario_file.ts";
import { type FuzzCase, shrink } from "./shrink.ts";

export const FACTS: NodeFacts = { node: NODE, links: LINKS };
/** The first is believed. */
export const JUDGES: readonly JudgeKind[] = [ORACLE, EVALUATOR, TRACER, LINEAR_TRACER];

/** What is asked of a kernel: `KernelJudge`, or for tests of the fuzzer itself one that errs. */
export type Kernel = Pick<KernelJudge, "apply" | "rules" | "renderedRules" | "freshRules" | "send" | "probe">;

export interface RunOptions {
  readonly seed: number;
  /** Worlds: the first, and steps from it. */
  readonly steps: number;
  /** In each. */
  readonly packets: number;
  /** Absent: no real packets. */
  readonly kernel?: Kernel;
  /** Whether to try connections, too, in the last world. */
  readonly probes?: boolean;
  /** Instead of `JUDGES`; for tests of the fuzzer itself. */
  readonly judges?: readonly JudgeKind[];
  /** Likewise. */
  readonly following?: (facts: NodeFacts) => { to(resources: Iterable<Resource>): CalcResult };
}

/** What went wrong. */
export interface Failure {
  readonly seed: number;
  readonly step: number;
  /** For people. */
  readonly text: string;
  /** Small; absent where there is nothing to replay. */
  readonly scenario?: FoundScenario;
}

export interface RunReport {
  /** Asked of every judge. */
  readonly packets: number;
  /** Of these, allowed. */
  readonly allowed: number;
  /** Sent through a kernel. */
  readonly sent: number;
  readonly probes: number;
  /** The first; the run ends with it. */
  readonly failure?: Failure;
}

const EVALUATOR_TRIES = 4_000;
const KERNEL_TRIES = 250;
/** For one packet alone. */
const SMALL_GRACE_MS = 200;

export async function runSeed(options: RunOptions): Promise<RunReport> {
  const { seed, kernel, judges = JUDGES } = options;
  const random = new Random(Math.imul(seed, 0x9e3779b1));
  const following = options.following?.(FACTS) ?? new Following(FACTS);
  const renderer = newRenderer();
  const maker = new WorldMaker(random);
  const known = new Set<Resource>();
  const worlds: World[] = [];
  let packetCount = 0, allowed = 0, sent = 0, probes = 0;
  const report = (failure?: Omit<Failure, "seed" | "step">): RunReport => ({
    packets: packetCount,
    allowed,
    sent,
    probes,
    ...(failure === undefined ? {} : { failure: { seed, step: worlds.length - 1, ...failure } }),
  });

  for (let step = 0; step < options.steps; step++) {
    const world = step === 0 ? maker.first() : maker.next(worlds.at(-1)!);
    worlds.push(world);
    const resources = [...world.values()];
    const refusals = resources.filter((resource) => !known.has(resource)).flatMap(refusalsOf);
    if (refusals.length > 0) return report({ text: `a generated manifest is refused:\n${refusals.join("\n")}` });
    for (const resource of resources) known.add(resource);

    const taken = takeStep(FACTS, resources, following, renderer);
    if ("drift" in taken) return report(await shrunkDrift(worlds, taken.drift, options));
    const { ground } = taken;
    const { result } = ground;
    const seated = judges.map(({ name, of }) => ({ name, judge: of(ground) }));
    const packets = makePackets(random, resources, result.desired, options.packets, { real: kernel !== undefined });
    const verdicts = new Map<FuzzPacket, "allow" | "deny">();
    for (const packet of packets) {
      packetCount++;
      const opinions = opinionsOn(packet, seated);
      const found = disagreement(packet, opinions);
      if (found !== undefined) return report(await shrunkDisagreement(resources, found, judges));
      const { verdict } = opinions[0]!;
      if (verdict === "error") return report({ text: `${packetText(packet)}: ${opinions[0]!.why().join("\n")}` });
      verdicts.set(packet, verdict);
      if (verdict === "allow") allowed++;
    }
    if (kernel === undefined) continue;

    const expected = (packet: FuzzPacket) => verdicts.get(packet) ?? seated[0]!.judge(packet).verdict;
    const drift = await kernelDrift(kernel, ground);
    if (drift !== undefined) return report(await shrunkKernelDrift(worlds, drift, kernel));
    const outcome = await kernel.send(realFor(packets, result), expected);
    sent += outcome.sent;
    if (outcome.late.length > 0) return report({ text: outcome.late.join("\n") });
    const [surprise] = outcome.surprises;
    if (surprise !== undefined) return report(await shrunkSurprise(resources, surprise, kernel, judges));
    if (options.probes && step === options.steps - 1 && !isUntracked(result)) {
      const tried = await kernel.probe(packets, result.desired, expected);
      probes += tried.probes;
      if (tried.failures.length > 0) return report({ text: `connections:\n${tried.failures.join("\n")}` });
    }
  }
  return report();
}

// ----------------------------------------------------------------------------------------------------------- the kernel

/** Whether some host endpoint has policy before connection tracking: its flows have no tracked answers, and no translation. */
const isUntracked = ({ desired }: CalcResult): boolean =>
  [...desired.hostEndpoints.values()].some((host) =>
    host.untrackedIngress !== undefined || host.untrackedEgress !== undefined
  );

/** Without what address translation spoils: untracked packets are not translated, and flows without ports cannot be told apart. */
function realFor(packets: readonly FuzzPacket[], result: CalcResult): readonly FuzzPacket[] {
  const isMasqueraded = result.desired.masquerade.sources.length > 0;
  return packets.filter(({ beforeDnat, icmp, destinationPort }) =>
    !(beforeDnat !== undefined && isUntracked(result)) &&
    !(isMasqueraded && icmp === undefined && destinationPort === undefined)
  );
}

/** What the kernel does otherwise than the judge that is believed says, where it starts with the last world; undefined: nothing. */
export async function surpriseIn(
  found: FuzzCase,
  kernel: Kernel,
  judges: readonly JudgeKind[],
): Promise<{ readonly text: string; readonly expect: "allow" | "deny"; readonly why: readonly string[] } | undefined> {
  const packet = found.packet!;
  const ground = groundOf(found);
  const opinions = opinionsOn(packet, judges.map(({ name, of }) => ({ name, judge: of(ground) })));
  const { verdict, why } = opinions[0]!;
  if (verdict === "error") return undefined;
  const said = disagreementText({ packet, opinions });
  const problems = await kernel.apply(ground.result.desired);
  if (problems.length > 0) {
    return { text: `${said}\nkernel: not applied: ${problems.join("; ")}`, expect: verdict, why: why() };
  }
  const { surprises, late } = await kernel.send(realFor([packet], ground.result), () => verdict, SMALL_GRACE_MS);
  if (surprises.length === 0 && late.length === 0) return undefined;
  const arrival = surprises[0]?.arrival;
  const seen = late.length > 0 ? late.join("; ") : `it arrived ${arrival === undefined ? "nowhere" : `at ${arrival}`}`;
  return { text: `${said}\nkernel: ${seen}`, expect: verdict, why: why() };
}

async function shrunkSurprise(
  resources: readonly Resource[],
  { packet, expected, arrival }: Surprise,
  kernel: Kernel,
  judges: readonly JudgeKind[],
): Promise<Pick<Failure, "text" | "scenario">> {
  const start: FuzzCase = { facts: FACTS, steps: [resources], packet };
  const fails = async (candidate: FuzzCase) => await surpriseIn(candidate, kernel, judges) !== undefined;
  if (!await fails(start)) {
    return {
      text: `${packetText(packet)}: expected ${expected}, seen ${arrival ?? "nowhere"}, but not so where the kernel ` +
        "starts with this world and this packet",
    };
  }
  const small = await shrink(start, fails, { triesMax: KERNEL_TRIES });
  const { text, expect, why } = (await surpriseIn(small, kernel, judges))!;
  const title = `kernel and ${judges[0]!.name}: ${packetText(small.packet!)}`;
  return { text, scenario: { ...small, title, expect, why } };
}

/** How the kernel's rules, followed from step to step, differ from what was rendered or from those of a fresh start; undefined: not at all. */
async function kernelDrift(kernel: Kernel, { facts, resources, result }: Ground): Promise<string | undefined> {
  const problems = await kernel.apply(result.desired);
  if (problems.length > 0) return `the dataplane did not converge:\n${problems.join("\n")}`;
  const there = kernel.rules();
  const fresh = await kernel.freshRules(freshResult(facts, resources).desired);
  if (there !== fresh) return `the kernel's rules, followed and from scratch:\n${difference(there, fresh)}`;
  const rendered = kernel.renderedRules(result.desired);
  return there === rendered ? undefined : `the kernel's rules and those rendered:\n${difference(there, rendered)}`;
}

/** Likewise, of all steps of a case; the kernel starts with nothing. */
export async function kernelDriftIn({ facts, steps }: FuzzCase, kernel: Kernel): Promise<string | undefined> {
  await kernel.apply(freshResult(facts, []).desired);
  const following = new Following(facts), renderer = newRenderer();
  for (const resources of steps) {
    const taken = takeStep(facts, resources, following, renderer);
    const drift = "drift" in taken ? taken.drift : await kernelDrift(kernel, taken.ground);
    if (drift !== undefined) return drift;
  }
  return undefined;
}

async function shrunkKernelDrift(
  worlds: readonly World[],
  drift: string,
  kernel: Kernel,
): Promise<Pick<Failure, "text" | "scenario">> {
  const start: FuzzCase = { facts: FACTS, steps: worlds.map((world) => [...world.values()]) };
  const fails = async (candidate: FuzzCase) => await kernelDriftIn(candidate, kernel) !== undefined;
  if (!await fails(start)) return { text: drift };
  const small = await shrink(start, fails, { triesMax: KERNEL_TRIES });
  const title = "the kernel's rules, followed step by step, differ from those of a fresh start";
  return { text: await kernelDriftIn(small, kernel) ?? drift, scenario: { ...small, title, why: [] } };
}

// ------------------------------------------------------------------------------------------------------------ the judges

function groundOf({ facts, steps }: FuzzCase): Ground {
  const resources = steps.at(-1)!;
  const result = freshResult(facts, resources);
  const { ruleset } = newRenderer().render(result.desired);
  return { facts, resources, result, ruleset };
}

export const verdictIn = (found: FuzzCase, judge: JudgeKind): "allow" | "deny" =>
  judge.of(groundOf(found))(found.packet!).verdict;

/** The disagreement of the case, if there is one. */
export function disagreementIn(found: FuzzCase, judges: readonly JudgeKind[]): Disagreement | undefined {
  const { packet } = found;
  const ground = groundOf(found);
  return disagreement(packet!, opinionsOn(packet!, judges.map(({ name, of }) => ({ name, judge: of(ground) }))));
}

/** Who says otherwise than the first: a smaller case must not be another one. */
const dissenters = ({ opinions }: Disagreement): string =>
  opinions.filter(({ verdict }) => verdict !== opinions[0]!.verdict).map(({ name }) => name).join(" ");

async function shrunkDisagreement(
  resources: readonly Resource[],
  found: Disagreement,
  judges: readonly JudgeKind[],
): Promise<Pick<Failure, "text" | "scenario">> {
  const who = dissenters(found);
  const start: FuzzCase = { facts: FACTS, steps: [resources], packet: found.packet };
  const same = (candidate: FuzzCase) => {
    const still = disagreementIn(candidate, judges);
    return still !== undefined && dissenters(still) === who;
  };
  const small = same(start) ? await shrink(start, same, { triesMax: EVALUATOR_TRIES }) : start;
  const still = disagreementIn(small, judges) ?? found;
  const { name, verdict, why } = still.opinions[0]!;
  const text = disagreementText(still);
  if (verdict === "error") return { text };
  const title = `${who} and ${name}: ${packetText(small.packet!)}`;
  return { text, scenario: { ...small, title, expect: verdict, why: why() } };
}

// ----------------------------------------------------------------------------------------------------------- step by step

type Follower = ReturnType<NonNullable<RunOptions["following"]>>;

/** Follows to the next world. `drift`: how what was followed differs from what starts there, or that it could not be had at all. */
function takeStep(
  facts: NodeFacts,
  resources: readonly Resource[],
  following: Follower,
  renderer: ReturnType<typeof newRenderer>,
): { readonly ground: Ground } | { readonly drift: string } {
  try {
    const result = following.to(resources);
    const { ruleset } = renderer.render(result.desired);
    const fresh = freshResult(facts, resources);
    const [followed, wanted] = [dump(result), dump(fresh)];
    if (followed !== wanted) {
      return { drift: `the calculation, followed and from scratch:\n${difference(followed, wanted)}` };
    }
    const [rules, wantedRules] = [ruleset, newRenderer().render(fresh.desired).ruleset].map(printRuleset) as [
      string,
      string,
    ];
    if (rules !== wantedRules) {
      return { drift: `the rules, followed and from scratch:\n${difference(rules, wantedRules)}` };
    }
    return { ground: { facts, resources, result, ruleset } };
  } catch (error) {
    return { drift: `it threw: ${(error as Error).stack ?? String(error)}` };
  }
}

export function driftIn(
  { facts, steps }: FuzzCase,
  following: NonNullable<RunOptions["following"]> = (facts) => new Following(facts),
): string | undefined {
  const followed = following(facts), renderer = newRenderer();
  for (const resources of steps) {
    const taken = takeStep(facts, resources, followed, renderer);
    if ("drift" in taken) return taken.drift;
  }
  return undefined;
}

async function shrunkDrift(
  worlds: readonly World[],
  drift: string,
  { following }: RunOptions,
): Promise<Pick<Failure, "text" | "scenario">> {
  const start: FuzzCase = { facts: FACTS, steps: worlds.map((world) => [...world.values()]) };
  const fails = (candidate: FuzzCase) => driftIn(candidate, following) !== undefined;
  if (!fails(start)) return { text: drift };
  const small = await shrink(start, fails, { triesMax: EVALUATOR_TRIES });
  return {
    text: driftIn(small, following) ?? drift,
    scenario: { ...small, title: "followed step by step it differs from a fresh start", why: [] },
  };
}

const LINES_MAX = 12;

/** Lines that only one of two texts has. */
function difference(found: string, wanted: string): string {
  const [left, right] = [found.split("\n"), wanted.split("\n")];
  const only = (lines: readonly string[], others: readonly string[], mark: string) => {
    const there = new Set(others);
    return lines.filter((line) => !there.has(line)).slice(0, LINES_MAX).map((line) => `${mark} ${line}`);
  };
  const lines = [...only(left, right, "-"), ...only(right, left, "+")];
  return lines.length > 0 ? lines.join("\n") : "the same lines in another order";
}

/** The scenario file's text, with what was said in front. */
export function failureFile({ seed, step, text, scenario }: Failure): string | undefined {
  if (scenario === undefined) return undefined;
  const said = [`Found by the fuzzer, seed ${seed}, step ${step}.`, ...text.split("\n")];
  return `${said.map((line) => `# ${line}`.trimEnd()).join("\n")}\n${formatScenario(scenario)}`;
}
