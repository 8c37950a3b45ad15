/** Work is proportional to the change: counted, not timed. */
import { expect, test } from "bun:test";
import { addressFromBigInt, hostCidr } from "../model/address.ts";
import { parseSelector } from "../model/selector_parse.ts";
import type { NeutralPolicy } from "../model/rule.ts";
import type { PodObject, WorldChange } from "../model/world.ts";
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
  const { evaluations, regrouped, memberChanges, compiled, lists, frontends } = calc.work;
  return {
    evaluations: evaluations - before.evaluations,
    regrouped: regrouped - before.regrouped,
    memberChanges: memberChanges - before.memberChanges,
    compiled: compiled - before.compiled,
    lists: lists - before.lists,
    frontends: frontends - before.frontends,
  };
}
const applies = (i: number): boolean => calc.selectedBy(`policy-${i}`).length > 0;
const numbers = Array.from({ length: POLICIES }, (_, i) => i);

const NONE: CalcWork = { evaluations: 0, regrouped: 0, memberChanges: 0, compiled: 0, lists: 0, frontends: 0 };

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

test("a label that nobody asks for costs nothing, though no two pods have the same", () => {
  const { held } = calc;
  const marked = (i: number, mark: string): WorldChange => {
    const [object] = pod(i).objects as [PodObject];
    return { origin: pod(i).origin, objects: [{ ...object, labels: new Map([...object.labels, ["serial", mark]]) }] };
  };
  const count = 2_000;
  const spent = work(Array.from({ length: count }, (_, i) => marked(i, `first-${i}`)));
  // The classes of pods that have the label at all, one for each value that somebody asks for in each namespace.
  expect(spent.evaluations).toBeLessThan(NAMESPACES * APPS * 10);
  expect(spent.regrouped).toBe(0);
  expect(calc.held - held).toBeLessThan(count + NAMESPACES * (APPS + 1) * 3);
  expect(work([marked(7, "second-7")])).toEqual(NONE);
  work(Array.from({ length: count }, (_, i) => pod(i)));
  expect(calc.held).toBe(held);
});

test("the first to ask for a label splits the classes where it looks, and nothing else; the last unites them again", () => {
  const applied = numbers.find(applies)!;
  const asking = (label: string, i = applied): WorldChange => {
    const [object] = policy(i).objects as [NeutralPolicy];
    const selector = parseSelector(`projectcalico.org/namespace == "${namespaceOf(i)}" && ${label}`);
    return {
      origin: policy(i).origin,
      objects: [{ ...object, ingress: [{ ...object.ingress![0]!, source: { selector } }] }],
    };
  };
  const { held } = calc, inside = (REMOTES + LOCALS) / NAMESPACES;
  const { sets } = calc.current.desired;
  const first = work([asking('tier == "web"')]);
  expect(first.regrouped).toBe(inside);
  expect(first.evaluations).toBeLessThanOrEqual(APPS * 2);
  const members = [...calc.current.desired.sets.values()].find(({ title }) => title.includes("tier"))!.members;
  expect(Math.abs(members.size - inside / 2)).toBeLessThanOrEqual(LOCALS / NAMESPACES);
  // Sets of other selectors lose nothing and gain nothing while the classes that feed them are split.
  const others = [...calc.current.desired.sets.changesSince(sets)].filter(({ key }) => sets.has(key));
  expect(others.every(({ after }) => after === undefined)).toBe(true);
  const second = numbers.find((i) => i > applied && applies(i) && namespaceOf(i) === namespaceOf(applied))!;
  expect(work([asking('tier == "db"', second)]).regrouped).toBe(0);
  expect(work([policy(applied)]).regrouped).toBe(0);
  expect(work([policy(second)]).regrouped).toBeLessThanOrEqual(inside);
  expect(calc.held).toBe(held);
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

test("a network set of many prefixes that loses one and gains one costs these two", () => {
  const namespace = namespaceOf(0);
  const set = (from: number): WorldChange => ({
    origin: "offices",
    objects: [{
      kind: "networkSet",
      id: "offices",
      namespace,
      name: "offices",
      labels: new Map([["app", "app-0"]]),
      nets: Array.from({ length: 10_000 }, (_, i) => hostCidr(address(12n, from + i))),
    }],
  });
  const whole = work([set(0)]).memberChanges;
  const sets = whole / 10_000;
  expect(sets).toBeGreaterThanOrEqual(1);
  expect(work([set(1)]).memberChanges).toBe(2 * sets);
  expect(work([set(1)]).memberChanges).toBe(0);
  expect(work([{ origin: "offices", objects: [] }]).memberChanges).toBe(whole);
});

test("a world that comes again changes nothing and touches no set", () => {
  const before = calc.current;
  const spent = work(world.slice(0, 5_000));
  expect(spent.memberChanges).toBe(0);
  expect(calc.current).toBe(before);
});
