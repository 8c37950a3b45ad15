/** Work is proportional to the change: counted, not timed. */
import { expect, test } from "bun:test";
import { addressFromBigInt, hostCidr } from "../model/address.ts";
import { parseSelector } from "../model/selector_parse.ts";
import type { WorldChange } from "../model/world.ts";
import { createCalc, DEFAULT_FAILSAFE } from "./mod.ts";
import type { CalcWork } from "./mod.ts";

const NAMESPACES = 50, APPS = 20, LOCALS = 100, REMOTES = 20_000, POLICIES = 2_000;

const address = (network: bigint, i: number) => addressFromBigInt((network << 24n) + BigInt(i), 4);
const namespaceOf = (i: number) => `ns-${i % NAMESPACES}`;
const labelsOf = (app: number) => new Map([["app", `app-${app % APPS}`], ["tier", app % 2 ? "web" : "db"]]);

const pod = (i: number, app = Math.floor(i / NAMESPACES)): WorldChange => {
  const namespace = namespaceOf(i), name = `pod-${i}`;
  const origin = `Pod/${namespace}/${name}`, id = `${namespace}/${name}`;
  const addresses = [address(10n, i)];
  return { origin, objects: [{ kind: "pod", id, namespace, name, labels: labelsOf(app), ports: [], addresses }] };
};

const local = (i: number): WorldChange => ({
  origin: `local-${i}`,
  objects: [{
    kind: "workload",
    id: `local-${i}`,
    node: "n1",
    namespace: namespaceOf(i),
    interfaceName: `if-${i}`,
    addresses: [address(11n, i)],
    labels: labelsOf(i),
    ports: [],
    orchestrator: "cni",
  }],
});

const policy = (i: number, port = 80): WorldChange => {
  const id = `policy-${i}`, namespace = namespaceOf(i);
  const within = (test: string) => parseSelector(`projectcalico.org/namespace == "${namespace}" && ${test}`);
  return {
    origin: id,
    objects: [{
      kind: "policy",
      id,
      tier: "default",
      order: 1000,
      sortName: id,
      selects: within(`app == "app-${i * 7 % APPS}"`),
      stage: "normal",
      staged: false,
      ingress: [0, 1, 2, 3, 4].map((index) => ({
        action: "allow",
        protocol: 6,
        source: { selector: within(`app == "app-${(i * 3 + index) % APPS}"`) },
        destination: { ports: [{ first: port, last: port }] },
        origin: { policy: id, direction: "ingress", index },
      })),
    }],
  };
};

const calc = createCalc({ node: "n1", failsafe: DEFAULT_FAILSAFE });
const world: WorldChange[] = [
  ...Array.from({ length: POLICIES }, (_, i) => policy(i)),
  ...Array.from({ length: LOCALS }, (_, i) => local(i)),
  ...Array.from({ length: REMOTES }, (_, i) => pod(i)),
];
calc.step(world);

/** What one step costs. */
function work(changes: readonly WorldChange[]): CalcWork {
  const before = calc.work;
  calc.step(changes);
  const { evaluations, memberChanges, compiled, lists } = calc.work;
  return {
    evaluations: evaluations - before.evaluations,
    memberChanges: memberChanges - before.memberChanges,
    compiled: compiled - before.compiled,
    lists: lists - before.lists,
  };
}
const applies = (i: number): boolean => calc.selectedBy(`policy-${i}`).length > 0;
const numbers = Array.from({ length: POLICIES }, (_, i) => i);

const NONE: CalcWork = { evaluations: 0, memberChanges: 0, compiled: 0, lists: 0 };

test("a snapshot evaluates selectors per class and namespace, and compiles what applies here", () => {
  const { evaluations, memberChanges, compiled } = calc.work;
  expect(calc.current.desired.workloads.size).toBe(LOCALS);
  expect(calc.current.desired.sets.size).toBeGreaterThanOrEqual(100);
  expect(memberChanges).toBeGreaterThan(1_000);
  expect(evaluations).toBeLessThan(POLICIES * 10);
  expect(compiled).toBeLessThan(POLICIES / 3);
  expect(memberChanges).toBeLessThan(REMOTES * 10);
});

test("a pod like others of its template costs its members, and no evaluation", () => {
  const spent = work([{
    ...pod(0),
    origin: "new",
    objects: [{ ...pod(0).objects[0]!, id: "ns-0/new" }] as WorldChange["objects"],
  }]);
  expect({ ...spent, memberChanges: 0 }).toEqual(NONE);
  expect(spent.memberChanges).toBeLessThan(10);
  expect(work([{ origin: "new", objects: [] }]).evaluations).toBe(0);
});

test("a pod that changes its labels costs its old and its new members", () => {
  const { sets } = calc.current.desired;
  const member = numbers.find((i) => [...sets.values()].some((set) => set.members.has(hostCidr(address(10n, i)))))!;
  const spent = work([pod(member, Math.floor(member / NAMESPACES) + 1)]);
  expect(spent.memberChanges).toBeGreaterThan(0);
  expect(spent.memberChanges).toBeLessThan(10);
  expect(spent.compiled + spent.lists).toBe(0);
  expect(work([pod(member)]).evaluations).toBeLessThan(20);
});

test("a policy that changes a port costs one compilation and the lists of its endpoints", () => {
  const applied = numbers.find(applies)!;
  const spent = work([policy(applied, 81)]);
  expect(spent.compiled).toBe(1);
  expect(spent.lists).toBeLessThanOrEqual(2 * calc.selectedBy(`policy-${applied}`).length);
  expect(spent.memberChanges).toBe(0);
  work([policy(applied)]);
});

test("a policy that applies to nothing here costs no compilation and no list", () => {
  const elsewhere = numbers.find((i) => !applies(i))!;
  const before = calc.current;
  expect(elsewhere).toBeDefined();
  expect(work([policy(elsewhere, 81)])).toEqual(NONE);
  expect(calc.current).toBe(before);
});

test("a local pod that comes costs its own lists, and nothing of the others'", () => {
  const { workloads } = calc.current.desired;
  const spent = work([{ ...local(LOCALS), origin: "late" }]);
  expect(spent.lists).toBeLessThanOrEqual(2);
  expect([...calc.current.desired.workloads.changesSince(workloads)].map(({ key }) => key)).toEqual([
    `local-${LOCALS}`,
  ]);
  work([{ origin: "late", objects: [] }]);
  expect([...calc.current.desired.workloads.changesSince(workloads)]).toEqual([]);
});

test("a world that comes again changes nothing and touches no set", () => {
  const before = calc.current;
  const spent = work(world.slice(0, 5_000));
  expect(spent.memberChanges).toBe(0);
  expect(calc.current).toBe(before);
});
