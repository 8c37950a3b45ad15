import { expect, test } from "bun:test";
import type { DesiredState } from "../../src/model/desired.ts";
import { dataplaneVerdicts, endpoint, failsafe, port, twoPods } from "../../test/contract/dataplane_verdicts.ts";
import { printChain, printRuleset } from "./print.ts";
import { Renderer } from "./render.ts";
import { diff } from "./diff.ts";
import { random, SET_IDS, someList, someSets } from "../../src/model/testdata/random_lists.ts";
import {
  cidr,
  manyAddresses,
  netSet,
  rule,
  rules,
  setId,
  state,
  workload,
} from "../../src/model/testdata/small_states.ts";
import { tracePath } from "./trace.ts";

const options = { logGroup: 86, passedMark: 0x10000 };
const render = (world: DesiredState) => new Renderer(options).render(world);

dataplaneVerdicts((world) => {
  const { ruleset, problems } = render(world);
  return { problems, trace: (path) => tracePath(ruleset, path) };
}, "workload b: interface mxa is another workload's too; its packets are dropped");

test("the same state renders to the same text and the same bytes, by whatever way it came about", () => {
  const world = twoPods({ sets: [netSet("s", "10.0.0.1", "10.1.0.0/16")], hostEndpoints: [endpoint("h", "*")] });
  const backwards = {
    ...world,
    workloads: [...world.workloads].reverse().reduce(
      (map, [key, value]) => map.delete(key).set(key, value),
      world.workloads,
    ),
  };
  const renderer = new Renderer(options);
  renderer.render(state({ workloads: [workload("z", "mxz", ["10.0.0.9"])] }));
  const first = render(world).ruleset, second = renderer.render(backwards).ruleset;
  expect(printRuleset(second)).toBe(printRuleset(first));
  const bytes = (ruleset: typeof first) =>
    diff(undefined, ruleset).map((message) => `${message.type} ${Buffer.from(message.payload).toString("hex")}`);
  expect(bytes(second)).toEqual(bytes(first));
});

test(
  "a renderer that follows a random walk of states gives what a new one gives, and keeps nothing of what is gone",
  () => {
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
      if (r.chance(0.05)) sets = sets.set(setId("a"), manyAddresses("a", "10.0.0.0", 4_090 + r.below(12)));
      let { workloads, hostEndpoints } = world;
      for (let i = r.below(4); i > 0; i--) {
        const id = `w${r.below(8)}`;
        const name = r.pick(["mx0", "mx1", "mx2", "mx3", "mx4", "mx5", "far-too-long-a-name"]);
        const addresses = [`10.0.0.${r.below(9)}`, "fd00::1"];
        workloads = r.chance(0.3)
          ? workloads.delete(id)
          : workloads.set(id, workload(id, name, addresses, { ingress: r.pick(lists), egress: r.pick(lists) }));
      }
      if (r.chance(0.3)) {
        const one = endpoint("h", r.chance(0.5) ? "*" : ["eth0"], {
          ingress: r.pick(lists),
          forwardEgress: r.pick(lists),
          untrackedIngress: r.chance(0.5) ? r.pick(lists) : undefined,
        });
        hostEndpoints = r.chance(0.4) ? hostEndpoints.delete("h") : hostEndpoints.set("h", one);
      }
      const masquerade = r.chance(0.1)
        ? { sources: r.chance(0.5) ? [cidr("10.0.0.0/16")] : [], inside: [] }
        : world.masquerade;
      const before = renderer.render(world);
      world = { ...world, generation: step, sets, workloads, hostEndpoints, masquerade };
      const walked = renderer.render(world), anew = render(world);
      if (printRuleset(walked.ruleset) !== printRuleset(anew.ruleset)) throw new Error(`step ${step} differs`);
      expect(walked.problems).toEqual(anew.problems);
      if (diff(before.ruleset, walked.ruleset).length === 0) {
        expect(printRuleset(before.ruleset)).toBe(printRuleset(walked.ruleset));
      }
    }
    const end = renderer.render(state({ generation: 999 }));
    expect(printRuleset(end.ruleset)).toBe(printRuleset(render(state({})).ruleset));
  },
  60_000,
);

test("a rendered table reads like this", () => {
  const ingress = rules(
    rule("allow", { protocol: 6, from: { sets: [setId("web")] }, to: { ports: port(80) } }),
    rule("allow", { from: { nets: [cidr("10.0.0.0/8")], notNets: [cidr("10.128.0.0/9")] }, protocol: 17 }),
  );
  const { ruleset } = render(
    state({
      sets: [netSet("web", "10.0.0.1", "fd00::1")],
      workloads: [workload("a", "mxa", ["10.0.0.2"], { ingress })],
    }),
  );
  const text = printRuleset(ruleset).replaceAll(/-[a-z2-7]{24}/g, "-ID");
  expect(text).toMatchSnapshot();
  expect(printChain("input", ruleset.chains.get("input")!).join("\n")).toBe(
    `chain input { filter hook input priority 0 policy accept }
    [r0 = ct state] [r0 = r0 & 0x06000000 ^ 0x00000000] [r0 != 0.0.0.0] accept
    [r0 = ct state] [r0 == 1.0.0.0] jump invalid-input
    [r0 = ct state] [r0 == 64.0.0.0] jump neighbours
    [r0 = meta iifname] [r0 vmap @from-workload]
    [r0 = meta iifname] [r0 == "mx*"] counter drop`,
  );
});

test("what is unchanged is the same object in the next ruleset", () => {
  const renderer = new Renderer(options);
  const world = twoPods({ sets: [netSet("s", "10.0.0.1")] });
  const first = renderer.render(world).ruleset;
  const third = workload("c", "mxc", ["10.0.0.3"], { ingress: world.workloads.get("b")!.ingress });
  const second = renderer.render({ ...world, generation: 2, workloads: world.workloads.set("c", third) }).ruleset;
  const shared = [...second.chains].filter(([name]) => name.startsWith("list-") || name.startsWith("c-"));
  expect(shared.length).toBeGreaterThan(2);
  for (const [name, chain] of shared) if (first.chains.has(name)) expect(chain).toBe(first.chains.get(name)!);
  // One message each for: workloads, from-workload, to-workload, self, source4.
  expect(diff(first, second).length).toBe(5);
});
