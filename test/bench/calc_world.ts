/**
 * The world of the calculation's benchmark, calculated in a process of its own so that the heap is its own: `calc_world.ts template` or
 * `unique` (each pod has a label that no other has). Prints one line of JSON, a `CalcMeasure`.
 */
import { heapStats } from "bun:jsc";
import { createCalc, DEFAULT_FAILSAFE } from "../../src/calc/mod.ts";
import { addressFromBigInt } from "../../src/model/address.ts";
import type { NeutralPolicy } from "../../src/model/rule.ts";
import { parseSelector } from "../../src/model/selector_parse.ts";
import type { PodObject, WorldChange } from "../../src/model/world.ts";

export interface CalcMeasure {
  readonly snapshotMs: number;
  /** What the calculation holds behind it, without what it was told. */
  readonly heapBytes: number;
  /** Of each kind of single change. */
  readonly changesMs: Readonly<Record<string, readonly number[]>>;
}

const NAMESPACES = 100, LOCALS = 200, REMOTES = 250_000, POLICIES = 10_000, RULES = 5, APPS = 100, NODES = 5_000;
const ROUNDS = 2_000;

const unique = process.argv[2] === "unique";
const address = (network: bigint, i: number) => addressFromBigInt((network << 24n) + BigInt(i), 4);
const namespaceOf = (i: number) => `namespace-${i % NAMESPACES}`;

function labelsOf(i: number, own: string): Map<string, string> {
  const app = Math.floor(i / NAMESPACES) % APPS;
  const labels = new Map([["app", `app-${app}`], ["tier", app % 2 ? "web" : "db"], [
    "pod-template-hash",
    `h${app * 7919}`,
  ]]);
  if (unique) labels.set("statefulset.kubernetes.io/pod-name", own);
  return labels;
}

const PORTS = [{ name: "http", protocol: 6, port: 8080 }];

function pod(i: number, template = i): WorldChange {
  const namespace = namespaceOf(i), name = ["pod", i, "abcde"].join("-"), id = `${namespace}/${name}`;
  const object: PodObject = {
    kind: "pod",
    id,
    namespace,
    name,
    labels: labelsOf(template, name),
    serviceAccount: "default",
    ports: PORTS,
    addresses: [address(10n, i)],
    node: `node-${i % NODES}`,
  };
  return { origin: `Pod/${id}`, objects: [object] };
}

const local = (i: number): WorldChange => ({
  origin: `local-${i}`,
  objects: [{
    kind: "workload",
    id: `local-${i}`,
    node: "n1",
    namespace: namespaceOf(i),
    interfaceName: `mx${i}`,
    addresses: [address(11n, i)],
    labels: labelsOf(i * 7, `local-${i}`),
    ports: PORTS,
    orchestrator: "k8s",
  }],
});

/** As a Kubernetes policy is translated: pods of its namespace by one label, five peers and ports. */
function policy(i: number, firstPort = 80): WorldChange {
  const namespace = namespaceOf(i), id = `NetworkPolicy.networking.k8s.io/${namespace}/policy-${i}`;
  const k = Math.floor(i / NAMESPACES);
  const pods = (app: number) =>
    parseSelector(
      `has(projectcalico.org/orchestrator) && projectcalico.org/namespace == "${namespace}" && app == "app-${
        app % APPS
      }"`,
    );
  const object: NeutralPolicy = {
    kind: "policy",
    id,
    tier: "default",
    order: 1000,
    sortName: id,
    selects: pods(k),
    stage: "normal",
    staged: false,
    ingress: Array.from({ length: RULES }, (_, index) => ({
      action: "allow",
      protocol: 6,
      source: { selector: pods(k * 3 + index * 7) },
      destination: { ports: [{ first: firstPort + index, last: firstPort + index }] },
      origin: { policy: id, direction: "ingress", index },
    })),
  };
  return { origin: id, objects: [object] };
}

function measure(): CalcMeasure {
  Bun.gc(true);
  const before = heapStats().heapSize;
  const calc = createCalc({ node: "n1", failsafe: DEFAULT_FAILSAFE });
  const snapshotMs = (() => {
    const world = [
      ...Array.from({ length: NAMESPACES }, (_, i): WorldChange => ({
        origin: `Namespace//${namespaceOf(i)}`,
        objects: [{ kind: "namespace", id: namespaceOf(i), labels: new Map([["team", `team-${i % 7}`]]) }],
      })),
      ...Array.from({ length: POLICIES }, (_, i) => policy(i)),
      ...Array.from({ length: LOCALS }, (_, i) => local(i)),
      ...Array.from({ length: REMOTES }, (_, i) => pod(i)),
    ];
    const startMs = performance.now();
    calc.step(world);
    return performance.now() - startMs;
  })();
  Bun.gc(true);
  const heapBytes = heapStats().heapSize - before;
  const timed = (change: (round: number) => WorldChange): readonly number[] =>
    Array.from({ length: ROUNDS }, (_, round) => {
      const changes = [change(round)];
      const startMs = performance.now();
      calc.step(changes);
      return performance.now() - startMs;
    });
  return {
    snapshotMs,
    heapBytes,
    changesMs: {
      "one pod's labels": timed((i) => pod(i * 101 % REMOTES, i * 101 % REMOTES + NAMESPACES * (1 + i % 3))),
      "one pod more": timed((i) => pod(REMOTES + i)),
      "one policy": timed((i) => policy(i * 37 % POLICIES, 90 + i % 5)),
    },
  };
}

if (import.meta.main) console.log(JSON.stringify(measure()));
