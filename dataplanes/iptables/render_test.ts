/** Whole nodes by the tracer: tables as they are rendered against the evaluator. */
import { expect, test } from "bun:test";
import type { DesiredState, Packet } from "../../src/model/desired.ts";
import { judgeList } from "../../src/model/evaluate.ts";
import { random, SET_IDS, someList, somePacket, someSets } from "../../src/model/testdata/random_lists.ts";
import { netSet, rule, rules, setId, state, workload } from "../../src/model/testdata/small_states.ts";
import {
  dataplaneVerdicts,
  endpoint,
  failsafe,
  packet,
  port,
  twoPods,
} from "../../test/contract/dataplane_verdicts.ts";
import { printRuleset } from "./print.ts";
import { Renderer, type RenderOptions } from "./render.ts";
import { CHAIN_NAME_MAX_BYTES } from "./ruleset.ts";
import { type TracedPacket, tracePath } from "./trace.ts";

const options: RenderOptions = { logGroup: 86, passedMark: 0x10000, cutMark: 0x20000, families: [4, 6], nat: true };
const render = (world: DesiredState) => new Renderer(options).render(world);

dataplaneVerdicts((world) => {
  const { ruleset, problems } = render(world);
  return { problems, trace: (path) => tracePath(ruleset, path) };
}, "interface mxa is claimed by several workloads: it is cut off");

/** More of them find more: `SEEDS=20000`. */
const SEEDS = Number(process.env.SEEDS ?? 150);

test("random lists decide about random packets as the evaluator does, flat and rule by rule", () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const r = random(seed * 7919);
    const sets = someSets(r), ingress = someList(r, seed % 5 === 0 ? 40 : 8);
    const world = { ...state({ workloads: [workload("w", "mx1", ["10.0.0.1", "fd00::1"], { ingress })] }), sets };
    for (const shape of ["flat", "linear"] as const) {
      const { ruleset } = new Renderer({ ...options, shape }).render(world);
      for (let i = 0; i < 40; i++) {
        const packet = somePacket(r) as TracedPacket;
        const wanted = judgeList(world, ingress, packet as Packet);
        const trace = tracePath(ruleset, { packet, inInterface: "eth0", outInterface: "mx1" }).find(({ hook }) =>
          hook === "forward"
        )!;
        const found = trace.verdict === "drop" ? "deny" : "allow";
        const logs = trace.logged.filter((prefix) => prefix.startsWith("manx log")).length;
        const wantedLogs = [...wanted.tiers.flatMap(({ policies }) => policies), ...wanted.profiles]
          .flatMap(({ staged, rules }) =>
            staged ? [] : rules.filter((one) => one.action === "log" && one.misses.length === 0)
          );
        if (found !== (wanted.verdict === "next" ? "allow" : wanted.verdict) || logs !== wantedLogs.length) {
          throw new Error(
            `found ${found} and ${logs} logs, wanted ${wanted.verdict} and ${wantedLogs.length}: ` +
              JSON.stringify({ seed, shape, packet, steps: trace.steps, ingress }, null, 1),
          );
        }
      }
    }
  }
}, 600_000);

test("500 pods are a few steps of names, and equal lists one chain", () => {
  const ingress = rules(rule("allow", { protocol: 6, to: { ports: port(80) } }));
  const world = state({
    workloads: Array.from(
      { length: 500 },
      (_, i) =>
        workload(
          `w${i}`,
          `mx${(i * 0x9e3779b1 >>> 0).toString(16).padStart(8, "0")}abc`,
          [`10.0.${i >> 8}.${i & 255}`],
          { ingress },
        ),
    ),
  });
  const { ruleset } = render(world);
  const filter = ruleset.tables.find(({ family, table }) => family === 4 && table === "filter")!;
  expect(Math.max(...[...filter.chains.values()].map(({ length }) => length))).toBeLessThan(40);
  expect([...filter.chains.keys()].every((name) => name.length <= CHAIN_NAME_MAX_BYTES)).toBe(true);
  const [, to] = tracePath(ruleset, {
    packet: packet("192.0.2.1 > 10.0.0.7 tcp 80"),
    inInterface: "eth0",
    outInterface: [...world.workloads.values()][7]!.interfaceName,
  });
  expect(to!.steps.length).toBeLessThan(12);
});

test("many ports are found by halving, and many selectors of one port are one set", () => {
  const many = rules(
    ...Array.from(
      { length: 1000 },
      (_, i) =>
        rule("allow", { protocol: 6, from: { sets: [setId(`s${i % 100}`)] }, to: { ports: port(1000 + (i % 250)) } }),
    ),
  );
  const world = state({
    sets: Array.from({ length: 100 }, (_, i) => netSet(`s${i}`, `10.1.0.${i}`)),
    workloads: [workload("a", "mxa", ["10.0.0.1"], { ingress: many })],
  });
  const { ruleset, problems } = render(world);
  expect(problems).toEqual([]);
  const trace = tracePath(ruleset, {
    packet: packet("10.1.0.7 > 10.0.0.1 tcp 1107"),
    inInterface: "eth0",
    outInterface: "mxa",
  }).find(({ hook }) => hook === "forward")!;
  expect(trace.verdict).toBe("accept");
  expect(trace.steps.length).toBeLessThan(25);
});

test("what is unchanged is the same object: a member more changes one set and no table", () => {
  const renderer = new Renderer(options);
  const world = twoPods({ sets: [netSet("s", "10.0.0.1"), netSet("t", "10.0.0.1")] });
  const asks = rules(rule("allow", { from: { sets: [setId("s")] } }), rule("deny", { from: { sets: [setId("t")] } }));
  const first = {
    ...world,
    workloads: world.workloads.set("c", workload("c", "mxc", ["10.0.0.3"], { ingress: asks })),
  };
  const one = renderer.render(first).ruleset;
  const two =
    renderer.render({ ...first, generation: 2, sets: first.sets.set(setId("s"), netSet("s", "10.0.0.1", "10.0.0.2")) })
      .ruleset;
  expect(two.tables).toBe(one.tables);
  const changed = [...two.sets].filter(([name, set]) => one.sets.get(name) !== set);
  expect(
    changed.map((
      [name, { family, content }],
    ) => [family, [...content.changesSince(one.sets.get(name)!.content)!].length])
      .sort(),
  ).toEqual([[4, 1], [6, 0]]);
  expect(renderer.render({ ...first, generation: 3 }).ruleset.tables).toBe(one.tables);
});

test("a renderer that follows a random walk of states gives what a new one gives", () => {
  const r = random(777);
  const renderer = new Renderer(options);
  const lists = Array.from({ length: 12 }, () => someList(r, 8));
  let world = state({ failsafe });
  let sets = world.sets;
  for (let step = 0; step < 100; step++) {
    const other = someSets(r);
    for (let i = r.below(3); i > 0; i--) {
      const id = r.pick(SET_IDS);
      sets = r.chance(0.2) ? sets.delete(id) : other.has(id) ? sets.set(id, other.get(id)!) : sets;
    }
    let { workloads, hostEndpoints } = world;
    for (let i = r.below(4); i > 0; i--) {
      const id = `w${r.below(8)}`;
      const name = r.pick(["mx0", "mx1", "mx2", "mx3", "tap4", "tap5", "far-too-long-a-name"]);
      workloads = r.chance(0.3) ? workloads.delete(id) : workloads.set(
        id,
        workload(id, name, [`10.0.0.${r.below(9)}`, "fd00::1"], { ingress: r.pick(lists), egress: r.pick(lists) }),
      );
    }
    if (r.chance(0.3)) {
      const one = endpoint("h", r.chance(0.5) ? "*" : ["eth0"], {
        ingress: r.pick(lists),
        forwardEgress: r.pick(lists),
      });
      hostEndpoints = r.chance(0.4) ? hostEndpoints.delete("h") : hostEndpoints.set("h", one);
    }
    world = { ...world, generation: step, sets, workloads, hostEndpoints };
    const walked = renderer.render(world), anew = render(world);
    if (printRuleset(walked.ruleset) !== printRuleset(anew.ruleset)) throw new Error(`step ${step} differs`);
    expect(walked.problems).toEqual(anew.problems);
  }
});
