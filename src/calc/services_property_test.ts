import { expect, test } from "bun:test";
import { parseCidr } from "../model/address.ts";
import type { BackendList, ServiceState } from "../model/services.ts";
import type { WorldChange } from "../model/world.ts";
import { createCalc, DEFAULT_FAILSAFE } from "./mod.ts";
import { NaiveWorld } from "./testing/naive.ts";
import { naiveServices } from "./testing/naive_services.ts";
import { randomServiceChange } from "./testing/random_services.ts";
import { Random, randomChange } from "./testing/random_world.ts";
import { frontendText, servicesText } from "./testing/services_text.ts";

const SEEDS = Array.from({ length: 100 }, (_, seed) => seed + 1);
const CHANGES = 80;
const NODE_PORTS = [parseCidr("192.0.2.0/24")];

const newCalc = () =>
  createCalc({ node: "n1", failsafe: DEFAULT_FAILSAFE, services: { nodePortAddresses: NODE_PORTS } });
type Calc = ReturnType<typeof newCalc>;
const stateOf = (calc: Calc): ServiceState => calc.current.desired.services!;
const textOf = (calc: Calc): string =>
  `${servicesText(stateOf(calc))}\n${calc.problems().map(({ subject, message }) => `${subject.name} ${message}`)}`;

function fromScratch(changes: readonly WorldChange[]): Calc {
  const calc = newCalc();
  calc.step(changes);
  return calc;
}

function finalChanges(changes: readonly WorldChange[]): WorldChange[] {
  const last = new Map(changes.map((change) => [change.origin, change]));
  return [...last.values()].filter((change) => change.objects.length > 0);
}

test.each(SEEDS)("services are what the plain reading of the world says, at every step, seed %d", (seed) => {
  const random = new Random(seed);
  const calc = newCalc();
  const seen: WorldChange[] = [];
  while (seen.length < CHANGES) {
    const batch = Array.from(
      { length: 1 + random.below(random.chance(20) ? 12 : 2) },
      () => randomServiceChange(random),
    );
    seen.push(...batch);
    calc.step(batch);
    const world = new NaiveWorld(finalChanges(seen));
    expect(servicesText(stateOf(calc))).toBe(naiveServices(world, "n1", NODE_PORTS));
  }
  expect(calc.held).toBe(fromScratch(finalChanges(seen)).held);
});

test.each(SEEDS)("order, splits and repeats make no difference to services, seed %d", (seed) => {
  const random = new Random(seed * 7919);
  const changes = finalChanges(Array.from({ length: CHANGES }, () => randomServiceChange(random)));
  const wanted = textOf(fromScratch(changes));
  expect(wanted).toMatch(/^(cluster|node|external) /m);
  expect(textOf(fromScratch(changes.toReversed()))).toBe(wanted);
  const calc = newCalc();
  const shuffled = random.shuffle([...changes, ...random.shuffle(changes).slice(0, 20)]);
  while (shuffled.length > 0) calc.step(shuffled.splice(0, 1 + random.below(5)));
  expect(textOf(calc)).toBe(wanted);
  const before = calc.current;
  for (const change of random.shuffle(changes)) calc.step([structuredClone(change)]);
  expect(calc.current).toBe(before);
});

test.each(SEEDS)("what a step does not change of services stays the same object, seed %d", (seed) => {
  const random = new Random(seed * 104729);
  const calc = fromScratch(Array.from({ length: 40 }, () => randomServiceChange(random)));
  for (let i = 0; i < 60; i++) {
    const before = stateOf(calc), generation = calc.current.desired.generation;
    calc.step([randomServiceChange(random)]);
    const after = stateOf(calc);
    if (after === before) continue;
    expect(calc.current.desired.generation).toBe(generation + 1);
    expect(servicesText(after)).not.toBe(servicesText(before));
    for (const [key, frontend] of after.frontends) {
      const old = before.frontends.get(key);
      if (old !== undefined && old !== frontend) expect(frontendText(frontend)).not.toBe(frontendText(old));
    }
    for (const [port, check] of after.healthChecks) {
      const old = before.healthChecks.get(port);
      if (old !== undefined && old !== check) expect(check).not.toEqual(old);
    }
    expect(after.podNets === before.podNets).toBe(after.podNets.join() === before.podNets.join());
    const lists = new Map(listsOf(before).map((list) => [list.id, list]));
    for (const list of listsOf(after)) {
      expect(list).toBe(lists.get(list.id) ?? list);
      lists.set(list.id, list);
    }
  }
});

test.each(SEEDS)("services taken away again leave nothing, seed %d", (seed) => {
  const random = new Random(seed * 32452843);
  const calc = newCalc();
  const changes = Array.from({ length: CHANGES }, () => randomServiceChange(random));
  for (const change of changes) calc.step([change]);
  for (const { origin } of random.shuffle(finalChanges(changes))) calc.step([{ origin, objects: [] }]);
  expect(textOf(calc)).toBe(textOf(newCalc()));
  expect(calc.held).toBe(0);
});

test("policy makes no difference to services, nor they to it, and without the option there are none", () => {
  const random = new Random(5);
  const both = Array.from({ length: 200 }, (_, i) => i % 2 ? randomServiceChange(random) : randomChange(random))
    .map((change, i) => ({ ...change, origin: `${i % 2} ${change.origin}` }));
  const on = newCalc(), off = createCalc({ node: "n1", failsafe: DEFAULT_FAILSAFE });
  on.step(both), off.step(both);
  expect(off.current.desired).not.toHaveProperty("services");
  expect(on.current.desired.sets).toEqual(off.current.desired.sets);
  expect(off.work.frontends).toBe(0);
  expect(servicesText(stateOf(on))).toBe(naiveServices(new NaiveWorld(finalChanges(both)), "n1", NODE_PORTS));
});

function listsOf({ frontends }: ServiceState): BackendList[] {
  return [...frontends.values()].flatMap(({ backends, outside }) =>
    outside === undefined ? [backends] : [backends, outside]
  );
}
