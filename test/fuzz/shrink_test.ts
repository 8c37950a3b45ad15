import { expect, test } from "bun:test";
import type { Resource } from "../../src/model/resource.ts";
import { FACTS } from "./run.ts";
import { formatScenario, parseScenario } from "./scenario_file.ts";
import { type FuzzCase, shrink } from "./shrink.ts";

const policy = (name: string, spec: object): Resource => ({
  apiVersion: "projectcalico.org/v3",
  kind: "GlobalNetworkPolicy",
  metadata: { name, labels: { some: "label" } },
  spec,
});
const rules = (...ports: number[]) =>
  ports.map((port) => ({
    action: "Allow",
    protocol: "TCP",
    destination: { ports: [port, port + 1], selector: "a == 'x' && b == 'y'" },
  }));

const START: FuzzCase = {
  facts: FACTS,
  steps: [[policy("a", { order: 1, ingress: rules(1, 5, 9), egress: rules(3) }), policy("b", { selector: "all()" })]],
  packet: {
    protocol: 6,
    source: "10.65.0.1",
    destination: "10.65.0.2",
    sourcePort: 5,
    destinationPort: 6,
    outInterface: "eth0",
  },
};
const mentions = (wanted: RegExp) => ({ steps }: FuzzCase) => wanted.test(JSON.stringify(steps));

test("what does not matter goes: resources, rules, fields, parts of selectors, the packet's accidents", async () => {
  const small = await shrink(START, mentions(/"ports":\[([0-9]+,)*6[,\]]/), { triesMax: 1_000 });
  expect(small.steps).toEqual([[{
    apiVersion: "projectcalico.org/v3",
    kind: "GlobalNetworkPolicy",
    metadata: { name: "a" },
    spec: { ingress: [{ action: "Allow", protocol: "TCP", destination: { ports: [6] } }] },
  }]]);
  expect(small.packet!.sourcePort).toBe(40_000);
});

test("only valid manifests are tried, and no more often than it may", async () => {
  let tries = 0;
  const fails = ({ steps }: FuzzCase) => {
    tries++;
    for (const { spec } of steps.flat()) {
      for (const rule of (spec as { ingress?: { action?: string }[] } | undefined)?.ingress ?? []) {
        expect(rule.action).toBe("Allow");
      }
    }
    return mentions(/"order":1/)({ facts: FACTS, steps });
  };
  expect((await shrink(START, fails, { triesMax: 1_000 })).steps[0]!.length).toBe(1);
  const all = tries;
  tries = 0;
  await shrink(START, fails, { triesMax: 5 });
  expect(tries).toBe(5);
  expect(all).toBeGreaterThan(5);
});

test("steps that do not matter go, and what stays the same in two steps stays one object", async () => {
  const [a, b] = [policy("a", {}), policy("b", {})];
  const start: FuzzCase = { facts: FACTS, steps: [[a], [a, b], [b], [a]] };
  const comesBack = ({ steps }: FuzzCase) =>
    steps.some((step, i) => step.some(({ metadata }) => metadata.name === "b") && i > 0) && steps[0]!.length > 0;
  const { steps } = await shrink(start, comesBack, { triesMax: 1_000 });
  expect(steps.map((step) => step.map(({ metadata }) => metadata.name))).toEqual([["a"], ["b"]]);

  const written = formatScenario({ facts: FACTS, steps: [[a], [a, b]], title: "t", why: [] });
  const read = parseScenario(written, "t.yaml");
  expect(read.steps).toEqual([[a], [a, b]]);
  expect(read.steps[0]![0]).toBe(read.steps[1]![0]!);
});

test("a scenario file that lacks something is refused by its name and field", () => {
  const good = formatScenario({ ...START, title: "t", expect: "deny", why: ["because"] });
  expect(parseScenario(good, "t.yaml")).toEqual({ ...START, title: "t", expect: "deny", why: ["because"] });
  for (
    const [from, to, wanted] of [
      ["expect: deny", "expect: maybe", "t.yaml: expect: wanted allow or deny beside a packet"],
      ["title: t", "", "t.yaml: title: wanted text"],
      ["node: node-a", "node: 1", "t.yaml: node: wanted the name of a node"],
      ["manifests:", "manifest:", "t.yaml: manifests: wanted manifests or steps"],
    ] as const
  ) {
    expect(() => parseScenario(good.replace(from, to), "t.yaml")).toThrow(wanted);
  }
});
