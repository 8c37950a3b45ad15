/**
 * Services in nftables: 10,000 from nothing, one changed, and what their number costs a new connection through a cluster address. In
 * legacy iptables: the first two, beside `iptables-restore` of the same rules. Changes are timed from the changed object to the kernel's acknowledgement, calculation included.
 */
import { join } from "node:path";
import { rmSync, writeFileSync } from "node:fs";
import iptables from "../../dataplanes/iptables/mod.ts";
import nftables from "../../dataplanes/nftables/mod.ts";
import { type Calc, createCalc, DEFAULT_FAILSAFE } from "../../src/calc/mod.ts";
import { namespacedKernel } from "../../src/kernel/namespaced_door.ts";
import { createNamespace, namespacePath } from "../../src/kernel/netns.ts";
import {
  type Address,
  addressFromBigInt,
  addressToBigInt,
  formatAddress,
  parseAddress,
} from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import type { WorldChange, WorldObject } from "../../src/model/world.ts";
import type { Dataplane } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { newDirectory } from "./daemon.ts";
import { benchHost } from "./host.ts";
import { atLeast, atMost, type Goal, median, ms, ratio, table, timed } from "./measure.ts";
import { LISTEN_PORT, podAddress, podInterface, type TrafficNode, trafficNode } from "./traffic_node.ts";

const FEW = 1_000, MANY = 10_000;
const FIRST_ROUNDS = 5;
const CHANGES = 400, WARM_UP_CHANGES = 100;
/** For connections. */
const FEWEST = 10;
const ROUNDS = 25, TURN_MS = 150, WARM_UP_MS = 300;

const at = (base: string, i: number): Address => addressFromBigInt(addressToBigInt(parseAddress(base)) + BigInt(i), 4);
const change = (object: WorldObject & { readonly id: string }): WorldChange => ({
  origin: `${object.kind} ${object.id}`,
  objects: [object],
});

const service = (i: number): WorldChange =>
  change({
    kind: "service",
    id: `default/s${i}`,
    namespace: "default",
    name: `s${i}`,
    clusterAddresses: [at("10.96.0.1", i)],
    externalAddresses: [],
    loadBalancerAddresses: [],
    ports: [{ name: "", protocol: 6, port: LISTEN_PORT }],
    internalLocal: false,
    externalLocal: false,
  });

const endpoints = (i: number, addresses: readonly Address[]): WorldChange =>
  change({
    kind: "serviceBackends",
    id: `default/s${i}-1`,
    service: `default/s${i}`,
    family: 4,
    ports: [{ name: "", protocol: 6, port: LISTEN_PORT }],
    backends: addresses.map((address) => ({ address, ready: true, serving: true, terminating: false })),
  });

const backendsOf = (i: number): readonly Address[] => [at("10.128.0.0", 2 * i), at("10.128.0.0", 2 * i + 1)];

function* worldOf(count: number): Generator<WorldChange> {
  for (let i = 0; i < count; i++) {
    yield service(i);
    yield endpoints(i, backendsOf(i));
  }
}

const newCalc = (): Calc =>
  createCalc({ node: "bench", failsafe: DEFAULT_FAILSAFE, services: { nodePortAddresses: [] } });

async function inForce(dataplane: Dataplane, desired: DesiredState): Promise<void> {
  const { converged, problems } = await dataplane.apply(desired);
  if (!converged || problems.length > 0) throw new Error(`the services are not in force: ${problems.join("; ")}`);
}

async function openIn(stack: AsyncDisposableStack, title: string): Promise<Dataplane> {
  const namespace = stack.use(createNamespace(title));
  const host = benchHost(title, "/nonexistent", undefined, namespacedKernel(namespace));
  return stack.use(await nftables.open(nftables.parseConfig(undefined), host, new AbortController().signal));
}

/** Milliseconds of the calculation and of the dataplane, for `MANY` services on a node that had none. */
async function fromNothing(): Promise<{ readonly calc: number[]; readonly dataplane: number[] }> {
  const world = [...worldOf(MANY)];
  const calc: number[] = [], dataplane: number[] = [];
  for (let round = 0; round < FIRST_ROUNDS; round++) {
    await using stack = new AsyncDisposableStack();
    const opened = await openIn(stack, "first");
    const calculating = newCalc();
    await inForce(opened, calculating.step([]).desired);
    const startMs = performance.now();
    const { desired } = calculating.step(world);
    const calculatedMs = performance.now();
    await inForce(opened, desired);
    calc.push(calculatedMs - startMs);
    dataplane.push(performance.now() - calculatedMs);
  }
  return { calc, dataplane };
}

const CHANGE_KINDS = ["another backend", "a backend more or less", "a service more or less"] as const;
type ChangeKind = typeof CHANGE_KINDS[number];
type Samples = Readonly<Record<ChangeKind, readonly number[]>>;

/** Milliseconds of each change, at both sizes in turns. */
async function changes(): Promise<ReadonlyMap<number, Samples>> {
  await using stack = new AsyncDisposableStack();
  const sizes: { readonly count: number; readonly run: (one: WorldChange) => Promise<void> }[] = [];
  for (const count of [FEW, MANY]) {
    const dataplane = await openIn(stack, `changes-${count}`);
    const calc = newCalc();
    await inForce(dataplane, calc.step([...worldOf(count)]).desired);
    sizes.push({ count, run: (one) => inForce(dataplane, calc.step([one]).desired) });
  }
  const make: Readonly<Record<ChangeKind, (round: number, count: number) => WorldChange>> = {
    "another backend": (round, count) => {
      const i = round * 37 % count;
      return endpoints(i, [backendsOf(i)[0]!, at("10.192.0.0", round)]);
    },
    "a backend more or less": (round, count) => {
      const i = (round >> 1) * 41 % count;
      return endpoints(i, [...backendsOf(i), ...round % 2 === 0 ? [at("10.192.0.0", round)] : []]);
    },
    "a service more or less": (round, count) => {
      const one = service(count + (round >> 1));
      return round % 2 === 0 ? one : { ...one, objects: [] };
    },
  };
  const samples = new Map(
    sizes.map((
      { count },
    ) => [
      count,
      { "another backend": [], "a backend more or less": [], "a service more or less": [] } as Record<
        ChangeKind,
        number[]
      >,
    ]),
  );
  for (let round = 0; round < WARM_UP_CHANGES + CHANGES; round++) {
    for (const kind of CHANGE_KINDS) {
      for (const { count, run } of sizes) {
        const one = make[kind](round, count);
        const [took] = await timed(1, () => run(one));
        if (round >= WARM_UP_CHANGES) samples.get(count)![kind].push(took!);
      }
    }
  }
  return samples;
}

/** New connections each second through the first service's cluster address, in turns. */
async function connections(): Promise<ReadonlyMap<string, readonly number[]>> {
  await using stack = new AsyncDisposableStack();
  const via = { address: formatAddress(at("10.96.0.1", 0)), port: LISTEN_PORT };
  const subjects: { readonly title: string; readonly node: TrafficNode }[] = [];
  const subject = async (title: string, count: number, address?: typeof via) => {
    const node = stack.use(await trafficNode(`services-${subjects.length}`, 1, "flat", address));
    const calc = newCalc();
    const pod = change({
      kind: "workload",
      id: "pod",
      node: "bench",
      namespace: "default",
      interfaceName: podInterface(0),
      addresses: [parseAddress(podAddress(0))],
      labels: new Map(),
      ports: [],
      orchestrator: "k8s",
    });
    const backend = endpoints(0, [parseAddress(podAddress(0))]);
    const { converged, problems } = await node.apply(calc.step([...worldOf(count), backend, pod]).desired);
    if (!converged) throw new Error(`the services are not in force: ${problems.join("; ")}`);
    await node.measure("connections", 0, WARM_UP_MS);
    subjects.push({ title, node });
  };
  await subject("none: the pod's own address", 0);
  await subject(`${FEWEST}`, FEWEST, via);
  await subject(`${MANY}`, MANY, via);
  const samples = new Map<string, number[]>(subjects.map(({ title }) => [title, []]));
  for (let round = 0; round < ROUNDS; round++) {
    for (const [i] of subjects.entries()) {
      const { title, node } = subjects[(i + round) % subjects.length]!;
      samples.get(title)!.push((await node.measure("connections", 0, TURN_MS)).perSecond);
    }
  }
  return samples;
}

const TABLE_CHANGES = 20;

/** Of the node's own tools, in the namespace. */
function run(namespace: NetworkNamespace, cmd: readonly string[], input = ""): string {
  const { success, stdout, stderr } = Bun.spawnSync(["nsenter", `--net=${namespacePath(namespace)}`, ...cmd], {
    stdin: new TextEncoder().encode(input),
  });
  if (!success) throw new Error(`${cmd.join(" ")}: ${stderr}`);
  return stdout.toString();
}

interface TableSamples {
  readonly first: number[];
  readonly changes: number[];
  readonly restore: number[];
}

/** Milliseconds in legacy iptables, and of its own tool for the same rules, in turns. */
async function iptablesSideBySide(): Promise<TableSamples> {
  const samples: TableSamples = { first: [], changes: [], restore: [] };
  const world = [...worldOf(MANY)];
  const directory = newDirectory();
  using _ = { [Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }) };
  for (let round = 0; round < FIRST_ROUNDS; round++) {
    await using stack = new AsyncDisposableStack();
    const namespace = stack.use(createNamespace("tables"));
    const host = benchHost("tables", directory, undefined, namespacedKernel(namespace));
    const config = iptables.parseConfig({ variant: "legacy", lockFile: join(directory, "lock") });
    const dataplane = stack.use(await iptables.open(config, host, new AbortController().signal));
    const calc = newCalc();
    await inForce(dataplane, calc.step([]).desired);
    const { desired } = calc.step(world);
    samples.first.push(...await timed(1, () => inForce(dataplane, desired)));
    for (let i = 0; i < TABLE_CHANGES / FIRST_ROUNDS; i++) {
      const next = calc.step([endpoints(i, [backendsOf(i)[0]!, at("10.192.0.0", i)])]).desired;
      samples.changes.push(...await timed(1, () => inForce(dataplane, next)));
    }
    const other = stack.use(createNamespace("restored")), file = join(directory, "rules");
    run(other, ["ipset", "restore"], run(namespace, ["ipset", "save"]));
    writeFileSync(file, run(namespace, ["iptables-legacy-save"]));
    const env = `XTABLES_LOCKFILE=${join(directory, "lock")}`;
    samples.restore.push(...await timed(1, () => run(other, ["env", env, "iptables-legacy-restore", file])));
  }
  return samples;
}

export async function benchServices(): Promise<Goal[]> {
  const first = await fromNothing();
  console.log(`\n${MANY} services with two endpoints each, from nothing; milliseconds, median of ${FIRST_ROUNDS}`);
  const [calcMs, dataplaneMs] = [median(first.calc), median(first.dataplane)];
  console.log(table(["", "ms"], [["calculation", ms(calcMs)], ["nftables", ms(dataplaneMs)]]));

  const samples = await changes();
  const p50 = (count: number, kind: ChangeKind) => median(samples.get(count)![kind]);
  console.log(`\nOne service changed, to the kernel's acknowledgement; milliseconds, median of ${CHANGES}`);
  console.log(table(
    ["change", `of ${FEW}`, `of ${MANY}`, "ratio"],
    CHANGE_KINDS.map((
      kind,
    ) => [kind, ms(p50(FEW, kind)), ms(p50(MANY, kind)), ratio(p50(MANY, kind) / p50(FEW, kind))]),
  ));

  const tables = await iptablesSideBySide();
  const restoreMs = median(tables.restore);
  console.log(`\n${MANY} services with two endpoints each in legacy iptables; milliseconds, median`);
  console.log(table(["", "ms", "ratio"], [
    ["iptables-restore of the same", ms(restoreMs), ratio(1)],
    ["manx: from nothing", ms(median(tables.first)), ratio(median(tables.first) / restoreMs)],
    ["manx: another backend", ms(median(tables.changes)), ratio(median(tables.changes) / restoreMs)],
  ]));

  const rates = await connections();
  const [direct, few, many] = [...rates.values()] as [readonly number[], readonly number[], readonly number[]];
  // Of each round by itself: the machine's speed drifts from one to the next.
  const to = (samples: readonly number[], base: readonly number[]) =>
    median(samples.map((value, i) => value / base[i]!));
  console.log(`\nNew TCP connections a second through a cluster address, ${ROUNDS} turns of ${TURN_MS} ms each`);
  console.log(table(
    ["services", "a second", `to ${FEWEST}`, "to none"],
    [...rates].map(([title, of]) => [title, median(of).toFixed(0), ratio(to(of, few)), ratio(to(of, direct))]),
  ));
  return [
    atMost(`${MANY} services from nothing, nftables`, dataplaneMs, 2_000, (value) => `${ms(value)} ms`),
    ...CHANGE_KINDS.flatMap((kind) => [
      atMost(`${kind}, of ${MANY}, p50`, p50(MANY, kind), 2, (value) => `${ms(value)} ms`),
      atMost(`${kind}, of ${MANY}, to ${FEW}`, p50(MANY, kind) / p50(FEW, kind), 1.5),
    ]),
    atMost(`${MANY} services from nothing, iptables`, median(tables.first), 2_000, (value) => `${ms(value)} ms`),
    atLeast(`connections at ${MANY} services, to ${FEWEST}`, to(many, few), 0.95),
  ];
}
