import { expect, test } from "bun:test";
import { parseAddress } from "../model/address.ts";
import type { Expectation } from "./expectation.ts";
import type { Observation, ProbeResult } from "./prober.ts";
import {
  COLOURED,
  lineKey,
  PLAIN,
  renderBeforeAndAfter,
  renderOutcome,
  renderStep,
  renderTitle,
  type ScenarioReport,
  type StepReport,
  toJson,
} from "./report.ts";
import { parseScenario } from "./scenario_parser.ts";

const scenario = parseScenario(
  "redis.yaml",
  `
scenario: Redis
world:
  families: [4]
  pods: [ { name: redis, serves: [tcp/6379] }, { name: php }, { name: nodejs } ]
steps:
  - name: before
    expect: |
      php -> redis tcp/6379 allow
  - name: after
    expect: |
      php -> redis tcp/6379 deny
      */* -> redis tcp/6379 deny
`.replace("*/* -> redis", "default/* -> redis"),
);
const [before, after] = scenario.steps as [typeof scenario.steps[0], typeof scenario.steps[0]];
const [php, all] = after!.expect as [Expectation, Expectation];

function result(
  from: string,
  observed: Observation,
  expect: "allow" | "deny",
  more: Partial<ProbeResult> = {},
): ProbeResult {
  const namespace = { fd: 0, title: from, [Symbol.dispose]() {} };
  const address = parseAddress("10.0.0.1");
  const target = { end: { name: "redis", namespace }, address, port: 6379 };
  return {
    probe: {
      from: { name: from, namespace },
      source: parseAddress("10.0.0.2"),
      to: address,
      protocol: "tcp",
      port: 6379,
      target,
      expect,
    },
    observed,
    holds: expect === "allow" ? observed === "answered" : observed === "silent",
    attempts: 1,
    afterMs: 1.25,
    detail: "",
    ...more,
  };
}
const step = (of: typeof before, lines: StepReport["lines"], more: Partial<StepReport> = {}): StepReport => ({
  step: of!,
  changes: [],
  lines,
  unstated: new Map(),
  complaints: [],
  ...more,
});

const first = step(before, [{ expectation: before!.expect[0]!, results: [result("php", "answered", "allow")] }], {
  unstated: new Map([[lineKey(all), [result("php", "answered", "deny"), result("nodejs", "answered", "deny")]]]),
});
const good = step(after, [
  { expectation: php, results: [result("php", "silent", "deny")] },
  { expectation: all, results: [result("php", "silent", "deny"), result("nodejs", "silent", "deny")] },
], { changes: ["NetworkPolicy default/a created"], inForceMs: 8.9 });
const bad = step(after, [
  {
    expectation: php,
    results: [
      result("php", "arrived", "deny", { detail: "seen to arrive at redis; no answer came back", attempts: 2 }),
    ],
  },
  { expectation: all, results: [result("php", "silent", "deny"), result("nodejs", "answered", "deny")] },
], { complaints: ["kube-01: dataplane: gone"] });
const report = (...steps: StepReport[]): ScenarioReport => ({
  scenario,
  dataplane: "nftables",
  readyMs: 500,
  totalMs: 1_500,
  steps,
});

test("a title says what the world is made of", () => {
  expect(renderTitle(scenario, PLAIN)).toBe("Redis\nredis.yaml · 1 node, 3 pods\n");
});

test("a step that holds shows what changed, since when, and against the step before", () => {
  expect(renderStep(good, 2, first, PLAIN)).toBe(`
  2  after
     NetworkPolicy default/a created, in force after 8.9 ms
     ✓ php → redis        tcp/6379  deny  silent  was answered
     ✓ default/* → redis  tcp/6379  deny  silent  was answered
`);
});

test("a step that does not hold shows every packet that says so and what the daemons complain of", () => {
  expect(renderStep(bad, 2, undefined, PLAIN)).toBe(`
  2  after
     ✗ php → redis        tcp/6379  deny  arrived, unanswered
         IPv4 php 10.0.0.2 → redis 10.0.0.1:6379: arrived, unanswered (seen to arrive at redis; no answer came back) after 1.3 ms, 2 attempts
         line 12: php -> redis tcp/6379 deny
     ✗ default/* → redis  tcp/6379  deny  1 silent, 1 answered
               redis
       php     ○
       nodejs  ✗
         IPv4 nodejs 10.0.0.2 → redis 10.0.0.1:6379: answered after 1.3 ms, 1 attempt
         line 13: default/* -> redis tcp/6379 deny
     ! kube-01: dataplane: gone
`);
});

test("an answer that took several attempts is said, and holds", () => {
  const late = step(before, [{
    expectation: before!.expect[0]!,
    results: [result("php", "answered", "allow", { attempts: 3 })],
  }]);
  expect(renderStep(late, 1, undefined, PLAIN)).toContain("answered  only at attempt 3");
  expect(renderStep(late, 1, undefined, COLOURED)).toContain("\x1b[33m✓\x1b[39m");
});

test("before and after are side by side, what a step does not state as well", () => {
  expect(renderBeforeAndAfter(report(first, good), PLAIN)).toBe(`
       before and after             1  2
       php → redis        tcp/6379  ●  ○
       default/* → redis  tcp/6379  ●  ○
       ● answered  ○ silent  ◐ mixed  ✗ not as stated; faint: not stated by that step
`);
  expect(renderBeforeAndAfter(report(first, bad), PLAIN)).toContain("php → redis        tcp/6379  ●  ✗");
});

test("the outcome counts lines and probes; a step that was not taken does not hold", () => {
  expect(renderOutcome(report(first, good), PLAIN)).toBe("\n  ✓ holds  3 of 3 lines, 4 probes, 1.5 s\n");
  expect(renderOutcome(report(first, bad), PLAIN)).toBe("\n  ✗ does not hold  1 of 3 lines, 4 probes, 1.5 s\n");
  expect(renderOutcome(report(first), PLAIN)).toContain("✗ does not hold  1 of 3 lines");
  expect(renderOutcome({ ...report(), error: "no\nway" }, PLAIN)).toBe(
    "\n  ✗ no\n  ✗ way\n  ✗ does not hold  0 of 3 lines, 0 probes, 1.5 s\n",
  );
});

test("without colour there is no escape sequence, with it every mark has one", () => {
  const text = (paint: typeof PLAIN) =>
    renderStep(bad, 2, first, paint) + renderBeforeAndAfter(report(first, bad), paint) +
    renderOutcome(report(first, bad), paint);
  expect(text(PLAIN)).not.toContain("\x1b");
  // deno-lint-ignore no-control-regex
  expect(text(COLOURED).replace(/\x1b\[\d+m/g, "")).toBe(text(PLAIN));
});

test("as JSON it has every probe", () => {
  const json = toJson([report(first, bad)]) as {
    holds: boolean;
    scenarios: { steps: { lines: { probes: unknown[] }[] }[] }[];
  };
  expect(json.holds).toBe(false);
  expect(json.scenarios[0]!.steps[1]!.lines[1]!.probes[1]).toEqual({
    from: "nodejs",
    source: "10.0.0.2",
    to: "10.0.0.1",
    target: "redis",
    protocol: "tcp",
    port: 6379,
    observed: "answered",
    holds: false,
    attempts: 1,
    afterMs: 1.25,
  });
});
