import { expect, test } from "bun:test";
import type { PolicyList, SetId } from "../model/desired.ts";
import type { WorldChange } from "../model/world.ts";
import { createCalc, DEFAULT_FAILSAFE } from "./mod.ts";
import type { CalcResult } from "./mod.ts";
import { dump } from "./testing/dump.ts";
import { describeSets, describeState, NaiveWorld } from "./testing/naive.ts";
import { Random, randomChange } from "./testing/random_world.ts";

const SEEDS = Array.from({ length: 60 }, (_, seed) => seed + 1);
const CHANGES = 120;

const newCalc = () => createCalc({ node: "n1", failsafe: DEFAULT_FAILSAFE });
const fromScratch = (changes: readonly WorldChange[]) => dump(newCalc().step(changes));

function fromScratchHeld(changes: readonly WorldChange[]): number {
  const calc = newCalc();
  calc.step(changes);
  return calc.held;
}

/** What counts: the last change of each origin that still gives something. */
function finalChanges(changes: readonly WorldChange[]): WorldChange[] {
  const last = new Map(changes.map((change) => [change.origin, change]));
  return [...last.values()].filter((change) => change.objects.length > 0);
}

test.each(SEEDS)("stepping through changes gives what their end gives from scratch, at every step, seed %d", (seed) => {
  const random = new Random(seed);
  const calc = newCalc();
  const seen: WorldChange[] = [];
  while (seen.length < CHANGES) {
    const batch = Array.from({ length: 1 + random.below(random.chance(20) ? 20 : 2) }, () => randomChange(random));
    seen.push(...batch);
    const incremental = dump(calc.step(batch));
    if (seen.length % 3 === 0 || seen.length >= CHANGES) expect(incremental).toBe(fromScratch(finalChanges(seen)));
  }
});

test.each(SEEDS)("order, splits and repeats of the same changes make no difference, seed %d", (seed) => {
  const random = new Random(seed * 7919);
  const changes = finalChanges(Array.from({ length: CHANGES }, () => randomChange(random)));
  const wanted = fromScratch(changes);
  expect(wanted).toMatch(/^(workload|host) /m);
  expect(fromScratch(changes.toReversed())).toBe(wanted);
  expect(fromScratch(random.shuffle([...changes, ...changes]))).toBe(wanted);
  const calc = newCalc();
  const shuffled = random.shuffle([...changes, ...random.shuffle(changes).slice(0, 20)]);
  while (shuffled.length > 0) calc.step(shuffled.splice(0, 1 + random.below(5)));
  expect(dump(calc.current)).toBe(wanted);
});

test.each(SEEDS)("sets and lists are what the plain reading of the world says, seed %d", (seed) => {
  const random = new Random(seed * 49979687);
  const calc = newCalc();
  const seen: WorldChange[] = [];
  for (let round = 0; round < 8; round++) {
    const batch = Array.from({ length: 20 }, () => randomChange(random));
    seen.push(...batch);
    calc.step(batch);
    const world = new NaiveWorld(finalChanges(seen));
    expect(describeState(calc.current)).toBe(world.describe("n1"));
    const { found, wanted } = describeSets(world, calc.current);
    expect(found).toBe(wanted);
    expect(usedSets(calc.current)).toEqual(new Set(calc.current.desired.sets.keys()));
  }
});

test.each(SEEDS)("what a step does not change stays the same object, seed %d", (seed) => {
  const random = new Random(seed * 104729);
  const calc = newCalc();
  calc.step(Array.from({ length: 60 }, () => randomChange(random)));
  for (let i = 0; i < 60; i++) {
    const before = calc.current;
    calc.step([randomChange(random)]);
    expectIdentity(before, calc.current);
  }
  const before = calc.current;
  calc.step([]);
  expect(calc.current).toBe(before);
});

test.each(SEEDS)("changes repeated as copies change nothing, not even the generation, seed %d", (seed) => {
  const random = new Random(seed * 15485863);
  const changes = finalChanges(Array.from({ length: CHANGES }, () => randomChange(random)));
  const calc = newCalc();
  calc.step(changes);
  const before = calc.current;
  for (const change of random.shuffle(changes)) calc.step([structuredClone(change)]);
  expect(calc.current).toBe(before);
  calc.step([...changes.map((change) => ({ origin: change.origin, objects: [] })), ...changes]);
  expect(calc.current).toBe(before);
});

test.each(SEEDS)("a world taken away again leaves nothing, seed %d", (seed) => {
  const random = new Random(seed * 32452843);
  const calc = newCalc();
  const changes = Array.from({ length: CHANGES }, () => randomChange(random));
  for (const change of changes) calc.step([change]);
  expect(calc.held).toBe(fromScratchHeld(finalChanges(changes)));
  for (const { origin } of random.shuffle(finalChanges(changes))) calc.step([{ origin, objects: [] }]);
  expect(dump(calc.current)).toBe(fromScratch([]));
  expect(calc.held).toBe(0);
});

/** Equal content in both results must be one object, wherever identity is promised. */
function expectIdentity(before: CalcResult, after: CalcResult): void {
  if (before === after) return;
  expect(dump(after)).not.toBe(dump(before));
  expect(after.desired === before.desired).toBe(after.desired.generation === before.desired.generation);
  expect(after.desired.generation - before.desired.generation).toBeLessThanOrEqual(1);
  for (const part of ["sets", "workloads", "hostEndpoints"] as const) {
    for (const [key, value] of after.desired[part] as Iterable<readonly [string, object]>) {
      const old = (before.desired[part] as ReadonlyMap<string, object> & typeof before.desired.sets).get(key as never);
      if (old !== undefined && old !== value) expect(text(value)).not.toBe(text(old));
    }
  }
  const lists = new Map(listsOf(before).map((list) => [list.id, list]));
  for (const list of listsOf(after)) {
    const old = lists.get(list.id);
    if (old !== undefined) expect(list).toBe(old);
    lists.set(list.id, list);
  }
}

/** Every set that some rule of some list refers to. */
function usedSets(result: CalcResult): ReadonlySet<SetId> {
  const used = new Set<SetId>();
  for (const list of listsOf(result)) {
    for (const policy of [...list.tiers.flatMap((tier) => tier.policies), ...list.profiles]) {
      for (const { source, destination } of policy.rules) {
        for (const { sets = [], notSets = [], portSets = [], notPortSets = [], serviceSet } of [source, destination]) {
          for (const id of [...sets, ...notSets, ...portSets, ...notPortSets]) used.add(id);
          if (serviceSet !== undefined) used.add(serviceSet);
        }
      }
    }
  }
  return used;
}

const text = (value: unknown): string =>
  JSON.stringify(value, (_, part) => typeof part?.edit === "function" ? [...part].sort() : part);

function listsOf({ desired }: CalcResult): PolicyList[] {
  const { workloads, hostEndpoints } = desired;
  return [...workloads.values(), ...hostEndpoints.values()].flatMap((endpoint) =>
    Object.values(endpoint).filter((part): part is PolicyList => typeof part === "object" && "tiers" in part)
  );
}
