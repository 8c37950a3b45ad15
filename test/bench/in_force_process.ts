/**
 * A daemon's way from a stored policy to the kernel's acknowledgement, in a process of its own: the embedded datastore, the
 * dialects, the calculation, the nftables dataplane and the cutting of flows as the daemon puts them together, the rules in a namespace of their own.
 * Writes what it measured as a line of JSON.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import nftables from "../../dataplanes/nftables/mod.ts";
import sqlite from "../../plugins/datastore/sqlite/mod.ts";
import none from "../../plugins/routing/none/mod.ts";
import { createCalc, DEFAULT_FAILSAFE } from "../../src/calc/mod.ts";
import { systemClock } from "../../src/host/clock.ts";
import { FlowCuts } from "../../src/host/cuts/flow_cuts.ts";
import { endpointResource, planAttachment } from "../../src/host/endpoint.ts";
import { Reconciler } from "../../src/host/reconcile.ts";
import { testRegistry } from "../../src/host/test_registry.ts";
import { createTranslator } from "../../src/host/resources/translation.ts";
import { namespacedKernel } from "../../src/kernel/namespaced_door.ts";
import { createNamespace } from "../../src/kernel/netns.ts";
import { parseAddress } from "../../src/model/address.ts";
import type { Resource, ResourceKey } from "../../src/model/resource.ts";
import type { Write } from "../../src/sdk/datastore.ts";
import type { Dataplane } from "../../src/sdk/dataplane.ts";
import { benchHost } from "./host.ts";

/** Local pods, each in a namespace of its own with policies that all select it. */
export const PODS = 100, POLICIES_EACH = 100;
const PEERS_EACH = 2;
const CHANGES = 150, WARM_UP_CHANGES = 50;
const WRITES_AT_ONCE = 2_000;
const POLICY_KIND = "NetworkPolicy.networking.k8s.io";

export const CHANGE_KINDS = ["port", "peer", "new policy", "deleted policy", "new peer pod"] as const;
export type ChangeKind = typeof CHANGE_KINDS[number];
export interface InForceMeasurement {
  /** Until everything was in force for the first time. */
  readonly startMs: number;
  /** Milliseconds from the datastore's event to the end of the dataplane's apply. */
  readonly samples: Readonly<Record<ChangeKind, readonly number[]>>;
}

const namespaceOf = (pod: number) => `ns-${pod}`;
const key = (kind: string, namespace: string, name: string): ResourceKey => ({ kind, namespace, name });
const write = (at: ResourceKey, value: Resource | null): Write => ({ key: at, value });

function podWrite(namespace: string, name: string, labels: Readonly<Record<string, string>>, address?: string): Write {
  return write(key("Pod", namespace, name), {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, namespace, labels },
    spec: { containers: [] },
    status: { phase: "Running", podIPs: address === undefined ? [] : [{ ip: address }] },
  });
}

function policyWrite(pod: number, at: number, peer = at, port = 10_000 + at): Write {
  const namespace = namespaceOf(pod), name = `policy-${at}`;
  return write(key(POLICY_KIND, namespace, name), {
    apiVersion: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    metadata: { name, namespace },
    spec: {
      podSelector: { matchLabels: { app: "local" } },
      policyTypes: ["Ingress"],
      ingress: [{
        from: [{ podSelector: { matchLabels: { peer: `peer-${peer}` } } }],
        ports: [{ protocol: "TCP", port }],
      }],
    },
  });
}

function* worldWrites(): Generator<Write> {
  for (let pod = 0; pod < PODS; pod++) {
    const namespace = namespaceOf(pod);
    yield podWrite(namespace, "local", { app: "local" });
    const plan = planAttachment(
      {
        network: "bench",
        containerId: `container-${pod}`,
        ifName: "eth0",
        netns: "",
        args: { K8S_POD_NAMESPACE: namespace, K8S_POD_NAME: "local" },
        labels: {},
      },
      "bench",
    );
    yield write(plan.key, endpointResource(plan, [parseAddress(`10.200.0.${pod}`)], "bench", 0));
    for (let at = 0; at < POLICIES_EACH; at++) {
      yield policyWrite(pod, at);
      for (let peer = 0; peer < PEERS_EACH; peer++) {
        const host = at * PEERS_EACH + peer;
        yield podWrite(namespace, `peer-${at}-${peer}`, { peer: `peer-${at}` }, `10.${pod}.${host >> 8}.${host & 255}`);
      }
    }
  }
}

const directory = mkdtempSync(join(tmpdir(), "manx-bench-"));
await using stack = new AsyncDisposableStack();
stack.defer(() => rmSync(directory, { recursive: true, force: true }));
const { signal } = new AbortController();
const namespace = stack.use(createNamespace("in-force"));
const datastore = stack.use(await sqlite.open(sqlite.parseConfig(undefined), benchHost("bench", directory), signal));
const kernel = namespacedKernel(namespace);
const host = benchHost("bench", directory, datastore, kernel);
await fill();

/** In parts that nobody keeps: the heap that is measured in is the daemon's. */
async function fill(): Promise<void> {
  let part: Write[] = [];
  for (const one of worldWrites()) {
    part.push(one);
    if (part.length < WRITES_AT_ONCE) continue;
    await datastore.commit(part);
    part = [];
  }
  if (part.length > 0) await datastore.commit(part);
}

const dataplane = stack.use(await nftables.open(nftables.parseConfig(undefined), host, signal));
/** Called at the end of each apply. */
let applied: () => void = () => {};
const timed: Dataplane = {
  capabilities: dataplane.capabilities,
  async apply(desired, ...more) {
    const report = await dataplane.apply(desired, ...more);
    if (!report.converged) throw new Error(`not in force: ${report.problems.join("; ")}`);
    applied();
    return report;
  },
  resync: (...more) => dataplane.resync(...more),
  drift: (...more) => dataplane.drift(...more),
  sweep: (...more) => dataplane.sweep(...more),
  [Symbol.asyncDispose]: async () => {},
};
const registry = await testRegistry();
// As in the daemon: after each change they look for established flows that it denies, on the same thread.
const flowCuts = new FlowCuts({
  kernel,
  clock: systemClock,
  log: host.log,
  mark: dataplane.cutMark!,
  isOn: true,
  recheck: () => dataplane.recheckFlows?.(),
});
const reconciler = new Reconciler({
  datastore,
  translator: createTranslator(registry),
  calc: createCalc({ node: "bench", failsafe: DEFAULT_FAILSAFE }),
  dataplanes: [{ name: "nftables", instance: timed }],
  routing: { name: "none", instance: stack.use(await none.open(none.parseConfig(undefined), host, signal)) },
  log: host.log,
  clock: systemClock,
  inForce: (state) => flowCuts.inForce(state),
});
const stop = new AbortController();
const running = Promise.all([reconciler.run(stop.signal), flowCuts.run(stop.signal)]);
let eventAtMs = 0;
const startedMs = performance.now();
const following = (async () => {
  reconciler.beginReplay();
  const kinds = registry.definitions.map((definition) => definition.kind);
  for await (const batch of datastore.watch(kinds, stop.signal)) {
    eventAtMs = performance.now();
    const room = reconciler.put(batch);
    if (room !== undefined) await room;
  }
})();
await new Promise<void>((resolve) => applied = resolve);
const startMs = performance.now() - startedMs;

/** One commit, and what it took from its event on. */
async function change(one: Write): Promise<number> {
  const inForce = new Promise<void>((resolve) => applied = resolve);
  await datastore.commit([one]);
  await inForce;
  return performance.now() - eventAtMs;
}

/** The last policy of each namespace stays as it is. */
const STABLE = POLICIES_EACH - 1;
const pick = (i: number) => [i * 7 % PODS, i * 13 % STABLE] as const;
const CHANGE: Readonly<Record<ChangeKind, (i: number) => Write>> = {
  port: (i) => policyWrite(...pick(i), pick(i)[1], 20_000 + i),
  peer: (i) => policyWrite(...pick(i), (pick(i)[1] + 1 + i % STABLE) % POLICIES_EACH, 20_000 + i),
  "new policy": (i) => policyWrite(i % PODS, POLICIES_EACH + i, i % POLICIES_EACH),
  "deleted policy": (i) => write(key(POLICY_KIND, namespaceOf(i % PODS), `policy-${POLICIES_EACH + i}`), null),
  "new peer pod": (i) =>
    podWrite(namespaceOf(i % PODS), `more-${i}`, { peer: `peer-${STABLE}` }, `10.201.${i >> 8}.${i & 255}`),
};
for (let i = 0; i < WARM_UP_CHANGES; i++) for (const kind of CHANGE_KINDS) await change(CHANGE[kind](CHANGES + i));
const samples: Record<ChangeKind, number[]> = {
  port: [],
  peer: [],
  "new policy": [],
  "deleted policy": [],
  "new peer pod": [],
};
for (let i = 0; i < CHANGES; i++) for (const kind of CHANGE_KINDS) samples[kind].push(await change(CHANGE[kind](i)));
stop.abort();
await Promise.all([running, following]);
console.log(JSON.stringify({ startMs, samples } satisfies InForceMeasurement));
