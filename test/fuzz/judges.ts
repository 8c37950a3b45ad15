/** Those who say what becomes of a packet, each in its own way, and the comparison of what they say. */
import type { CalcResult } from "../../src/calc/mod.ts";
import { judgePath, type PathStep } from "../../src/model/evaluate.ts";
import type { Resource } from "../../src/model/resource.ts";
import { tracePath } from "../../dataplanes/nftables/trace.ts";
import type { Ruleset } from "../../dataplanes/nftables/ruleset.ts";
import { createOracle } from "../oracle/mod.ts";
import { type FuzzPacket, packetText, pathOf, tracedPathOf } from "./packet.ts";
import { newRenderer, type NodeFacts } from "./product.ts";

export interface Opinion {
  readonly verdict: "allow" | "deny";
  /** How it came to that, line by line. */
  readonly why: () => readonly string[];
}

export type Judge = (packet: FuzzPacket) => Opinion;

/** Everything that there is to judge by. */
export interface Ground {
  readonly facts: NodeFacts;
  readonly resources: readonly Resource[];
  readonly result: CalcResult;
  readonly ruleset: Ruleset;
}

/** Makes a judge of one world; `name` says who in messages. */
export interface JudgeKind {
  readonly name: string;
  readonly of: (ground: Ground) => Judge;
}

/** The slow and obvious one, written from the semantics alone: it is right until shown otherwise. */
export const ORACLE: JudgeKind = {
  name: "oracle",
  of: ({ facts, resources }) => {
    const interfaces = Object.fromEntries(facts.links.map(({ name, addresses }) => [name, addresses]));
    const oracle = createOracle({ resources, node: facts.node, interfaces });
    return (packet) => {
      const { verdict, why } = oracle.judge(packet);
      return { verdict, why: () => why };
    };
  },
};

/** src/model/evaluate.ts on what calc made of the manifests. */
export const EVALUATOR: JudgeKind = {
  name: "evaluator",
  of: ({ result: { desired } }) => (packet) => {
    const { verdict, steps } = judgePath(desired, pathOf(packet));
    return { verdict, why: () => steps.map(stepText) };
  },
};

const walk = (ruleset: Ruleset): Judge => (packet) => {
  const traces = tracePath(ruleset, tracedPathOf(packet));
  return {
    verdict: traces.at(-1)?.verdict === "drop" ? "deny" : "allow",
    why: () =>
      traces.flatMap(({ hook, steps, verdict }) => [
        ...steps.map((step) => `${hook} ${step.chain}[${step.rule}]: ${step.text}`),
        `${hook}: ${verdict}`,
      ]),
  };
};

/** The rendered ruleset, walked. */
export const TRACER: JudgeKind = { name: "tracer", of: ({ ruleset }) => walk(ruleset) };

/** The same, rendered rule by rule as policies are written. */
export const LINEAR_TRACER: JudgeKind = {
  name: "linear tracer",
  of: ({ result }) => walk(newRenderer("linear").render(result.desired).ruleset),
};

function stepText(step: PathStep): string {
  if (step.kind !== "judgement") return `${endText(step.endpoint)}: ${step.kind}, ${step.reason}`;
  const { endpoint, stage, verdict, decision } = step.judgement;
  const by = decision.by === "rule"
    ? `${decision.policy} ${decision.origin.direction} rule ${decision.origin.index}${
      decision.tier === undefined ? "" : ` in tier ${decision.tier}`
    }`
    : decision.by === "tier default"
    ? `the default of tier ${decision.tier}`
    : decision.by;
  return `${endText(endpoint)} ${stage}: ${verdict} by ${by}`;
}

const endText = (end: { readonly workload: string } | { readonly hostEndpoint: string }): string =>
  "workload" in end ? end.workload : end.hostEndpoint;

/** What one of the judges said. */
export interface Said extends Omit<Opinion, "verdict"> {
  readonly name: string;
  readonly verdict: Opinion["verdict"] | "error";
}

/** In the order of the judges. */
export const opinionsOn = (
  packet: FuzzPacket,
  judges: readonly { readonly name: string; readonly judge: Judge }[],
): readonly Said[] =>
  judges.map(({ name, judge }) => {
    try {
      return { name, ...judge(packet) };
    } catch (error) {
      // Nobody may give up on a packet: that differs from every verdict.
      return { name, verdict: "error", why: () => [String(error)] };
    }
  });

export interface Disagreement {
  readonly packet: FuzzPacket;
  readonly opinions: readonly Said[];
}

/** Undefined where all agree. */
export const disagreement = (packet: FuzzPacket, opinions: readonly Said[]): Disagreement | undefined =>
  opinions.every(({ verdict }) => verdict === opinions[0]!.verdict) ? undefined : { packet, opinions };

/** For people: who said what, and why. */
export const disagreementText = ({ packet, opinions }: Disagreement): string =>
  [
    packetText(packet),
    ...opinions.flatMap(({ name, verdict, why }) => [`${name}: ${verdict}`, ...why().map((line) => `    ${line}`)]),
  ].join("\n");
