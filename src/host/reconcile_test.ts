import { afterEach, expect, test } from "bun:test";
import { type CalcResult, createCalc } from "../calc/mod.ts";
import type { DesiredState } from "../model/desired.ts";
import type { Resource, ResourceKey } from "../model/resource.ts";
import type { Change, Revision } from "../sdk/datastore.ts";
import type { Dataplane, Report, Routing } from "../sdk/dataplane.ts";
import { systemClock } from "./clock.ts";
import { silentLog } from "./log.ts";
import { Reconciler } from "./reconcile.ts";
import { testRegistry } from "./test_registry.ts";
import { createTranslator } from "./resources/translation.ts";

const registry = await testRegistry();
const DEADLINE_MS = 5_000;

/** A dataplane that writes down what it is asked and answers as it is told. */
class Recorder implements Dataplane {
  readonly capabilities = {
    aspects: new Set(["policy"] as const),
    families: new Set([4, 6] as const),
    atomicity: "all" as const,
  };
  readonly calls: string[] = [];
  /** Answers of the next calls; then all is well. */
  answers: (Partial<Report> | Error)[] = [];
  /** While it is set, calls wait for it. */
  gate: Promise<void> | undefined;
  readonly drifted = Promise.withResolvers<string>();
  generation = 0;

  async apply(desired: DesiredState): Promise<Report> {
    this.calls.push(
      `apply ${desired.generation}: ${
        [...desired.workloads.values()].map((one) => one.interfaceName).sort().join(" ")
      }`,
    );
    this.generation = desired.generation;
    return await this.#answer();
  }
  async resync(): Promise<Report> {
    this.calls.push("resync");
    return await this.#answer();
  }
  async *drift(signal: AbortSignal): AsyncIterable<string> {
    yield await Promise.race([
      this.drifted.promise,
      new Promise<string>((resolve) => signal.addEventListener("abort", () => resolve("stop"))),
    ]);
    await new Promise<void>((resolve) =>
      signal.aborted ? resolve() : signal.addEventListener("abort", () => resolve())
    );
  }
  async sweep(): Promise<Report> {
    return await this.#answer();
  }
  async [Symbol.asyncDispose](): Promise<void> {}

  async #answer(): Promise<Report> {
    const answer = this.answers.shift();
    await this.gate;
    if (answer instanceof Error) throw answer;
    return { generation: this.generation, converged: true, messages: 1, problems: [], ...answer };
  }
}

const quietRouting: Routing = {
  apply: async (desired) => ({ generation: desired.generation, converged: true, messages: 0, problems: [] }),
  async *drift(signal) {
    yield* [];
    await new Promise<void>((resolve) =>
      signal.aborted ? resolve() : signal.addEventListener("abort", () => resolve())
    );
  },
  sweep: async () => ({ generation: 0, converged: true, messages: 0, problems: [] }),
  async [Symbol.asyncDispose]() {},
};

let stop = new AbortController();
let running: Promise<void> | undefined;
afterEach(async () => {
  stop.abort();
  await running;
});

function start(inForce?: (state: CalcResult) => Promise<void> | undefined) {
  stop = new AbortController();
  const recorder = new Recorder();
  const reconciler = new Reconciler({
    datastore: { reached: (seen, wanted) => Number(seen) >= Number(wanted) },
    translator: createTranslator(registry),
    calc: createCalc({ node: "a", failsafe: { inbound: [], outbound: [] } }),
    dataplanes: [{ name: "recorder", instance: recorder }],
    routing: { name: "quiet", instance: quietRouting },
    log: silentLog,
    clock: systemClock,
    ...inForce === undefined ? {} : { inForce },
  });
  running = reconciler.run(stop.signal);
  return { recorder, reconciler };
}

const keyOf = (name: string): ResourceKey => ({
  kind: "WorkloadEndpoint.projectcalico.org",
  namespace: "default",
  name,
});
const revision = (n: number) => String(n) as Revision;
const endpoint = (name: string, at: number, address = "10.0.0.1"): Change => ({
  key: keyOf(name),
  revision: revision(at),
  value: {
    apiVersion: "projectcalico.org/v3",
    kind: "WorkloadEndpoint",
    metadata: { name, namespace: "default" },
    spec: { node: "a", interfaceName: `if-${name}`, ipNetworks: [`${address}/32`] },
  } as Resource,
});
const wanted = (name: string, at: number) => ({ key: keyOf(name), revision: revision(at) });

test("nothing is written before the datastore is in sync, then everything at once", async () => {
  const { recorder, reconciler } = start();
  reconciler.put({ changes: [endpoint("x", 1)], synced: false });
  reconciler.local([{ origin: "interface/eth0", objects: [{ kind: "interface", id: "eth0", addresses: [] }] }]);
  for (let i = 0; i < 20; i++) await Promise.resolve();
  expect(recorder.calls).toEqual([]);
  expect(reconciler.status().dataplane.converged).toBe(false);
  reconciler.put({ changes: [endpoint("y", 2)], synced: true });
  await reconciler.programmed([wanted("x", 1), wanted("y", 2)], DEADLINE_MS);
  expect(recorder.calls).toHaveLength(1);
  expect(recorder.calls[0]).toEndWith(": if-x if-y");
});

test("an empty world is written once as well: what an earlier run left must go", async () => {
  const { recorder, reconciler } = start();
  reconciler.put({ changes: [], synced: true });
  await reconciler.programmed([], DEADLINE_MS);
  expect(recorder.calls).toHaveLength(1);
});

test("what is not in force whole leaves in force the generation that was, whatever its owner says", async () => {
  const { recorder, reconciler } = start();
  reconciler.put({ changes: [], synced: true });
  await reconciler.programmed([], DEADLINE_MS);
  const { applied } = reconciler.status();
  recorder.answers = Array.from({ length: 50 }, () => ({ converged: false, problems: ["held by somebody"] }));
  reconciler.put({ changes: [endpoint("x", 1)], synced: true });
  await expect(reconciler.programmed([wanted("x", 1)], 50)).rejects.toThrow("held by somebody");
  expect(reconciler.status()).toMatchObject({ wanted: applied + 1, applied });
  recorder.answers = [];
  await reconciler.programmed([wanted("x", 1)], DEADLINE_MS);
  expect(reconciler.status()).toMatchObject({ wanted: applied + 1, applied: applied + 1 });
});

test("what somebody else had changed stays known after it is put right, and after the next change", async () => {
  const { recorder, reconciler } = start();
  reconciler.put({ changes: [], synced: true });
  await reconciler.programmed([], DEADLINE_MS);
  expect(reconciler.status().dataplane.lastRepair).toBeUndefined();
  recorder.answers = [{ problems: ["a rule of theirs was moved"] }];
  recorder.drifted.resolve("the table was changed");
  const repaired = { reason: "the table was changed", notes: ["a rule of theirs was moved"] };
  while (reconciler.status().dataplane.lastRepair === undefined) await Bun.sleep(1);
  expect(reconciler.status().dataplane).toMatchObject({ problems: repaired.notes, lastRepair: repaired });
  reconciler.put({ changes: [endpoint("x", 1)], synced: true });
  await reconciler.programmed([wanted("x", 1)], DEADLINE_MS);
  expect(reconciler.status().dataplane).toMatchObject({ problems: [], lastRepair: repaired });
});

test("what arrives while a transaction is under way goes into one next transaction", async () => {
  const { recorder, reconciler } = start();
  const { promise, resolve } = Promise.withResolvers<void>();
  recorder.gate = promise;
  reconciler.put({ changes: [endpoint("a", 1)], synced: true });
  while (recorder.calls.length === 0) await Promise.resolve();
  for (let i = 0; i < 8; i++) reconciler.put({ changes: [endpoint(`p${i}`, 2 + i)], synced: true });
  const all = reconciler.programmed(Array.from({ length: 8 }, (_, i) => wanted(`p${i}`, 2 + i)), DEADLINE_MS);
  resolve();
  await all;
  expect(recorder.calls).toHaveLength(2);
  expect(recorder.calls[1]).toEndWith(": if-a if-p0 if-p1 if-p2 if-p3 if-p4 if-p5 if-p6 if-p7");
});

test("a change that changes nothing sends nothing, and is in force at once", async () => {
  const { recorder, reconciler } = start();
  reconciler.put({ changes: [endpoint("a", 1)], synced: true });
  await reconciler.programmed([wanted("a", 1)], DEADLINE_MS);
  reconciler.put({ changes: [endpoint("a", 2)], synced: true });
  await reconciler.programmed([wanted("a", 2)], DEADLINE_MS);
  expect(recorder.calls).toHaveLength(1);
});

test("a wait ends only with a converged report, and errors are tried again", async () => {
  const { recorder, reconciler } = start();
  const halfway = { converged: false, problems: ["chain x"] };
  recorder.answers = [new Error("netlink: EBUSY"), halfway, halfway];
  reconciler.put({ changes: [endpoint("a", 1)], synced: true });
  let isInForce = false;
  const wait = reconciler.programmed([wanted("a", 1)], DEADLINE_MS).then(() => isInForce = true);
  while (recorder.calls.length < 1) await Promise.resolve();
  for (let i = 0; i < 20; i++) await Promise.resolve();
  expect(isInForce).toBe(false);
  expect(reconciler.status()).toMatchObject({
    applied: 0,
    dataplane: { converged: false, problems: ["netlink: EBUSY"] },
  });
  await wait;
  expect(recorder.calls.map((call) => call.split(" ")[0])).toEqual(["apply", "apply", "apply", "resync"]);
  expect(reconciler.status()).toMatchObject({ dataplane: { converged: true, problems: [] } });
});

test("what is in force is told, only once it is, and those who wait for it wait for what that takes", async () => {
  const told: number[] = [];
  const { promise, resolve } = Promise.withResolvers<void>();
  const { recorder, reconciler } = start(({ desired }) => {
    told.push(desired.workloads.size);
    return desired.workloads.size === 2 ? promise : undefined;
  });
  recorder.answers = [new Error("netlink: EBUSY")];
  reconciler.put({ changes: [endpoint("a", 1)], synced: true });
  while (recorder.calls.length < 1) await Promise.resolve();
  expect(told).toEqual([]);
  await reconciler.programmed([wanted("a", 1)], DEADLINE_MS);
  expect(told).toEqual([1]);
  reconciler.put({ changes: [endpoint("b", 2)], synced: true });
  let isInForce = false;
  const wait = reconciler.programmed([wanted("b", 2)], DEADLINE_MS).then(() => isInForce = true);
  while (told.length < 2) await Promise.resolve();
  for (let i = 0; i < 20; i++) await Promise.resolve();
  expect(isInForce).toBe(false);
  resolve();
  await wait;
});

test("a new change does not wait for the retry of an old failure", async () => {
  const { recorder, reconciler } = start();
  recorder.answers = [new Error("once")];
  reconciler.put({ changes: [endpoint("a", 1)], synced: true });
  while (recorder.calls.length < 1) await Promise.resolve();
  reconciler.put({ changes: [endpoint("b", 2)], synced: true });
  await reconciler.programmed([wanted("a", 1), wanted("b", 2)], DEADLINE_MS);
  expect(recorder.calls[1]).toEndWith(": if-a if-b");
});

test("drift makes the dataplane look at the kernel", async () => {
  const { recorder, reconciler } = start();
  reconciler.put({ changes: [endpoint("a", 1)], synced: true });
  await reconciler.programmed([wanted("a", 1)], DEADLINE_MS);
  recorder.drifted.resolve("table gone");
  const deadline = performance.now() + DEADLINE_MS;
  while (!recorder.calls.includes("resync") && performance.now() < deadline) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  expect(recorder.calls.slice(1)).toEqual(["resync"]);
  expect(reconciler.counters.resyncs).toBe(1);
});

test("a deadline says what is missing and why", async () => {
  const { recorder, reconciler } = start();
  const early = await reconciler.programmed([wanted("a", 1)], 1).catch((error: Error) => error);
  expect(early).toMatchObject({
    code: "deadline",
    message:
      "waiting for WorkloadEndpoint.projectcalico.org/default/a to be in force: after 1 ms found that the datastore is not in sync",
  });
  recorder.answers = Array.from({ length: 100 }, () => new Error("EPERM"));
  reconciler.put({ changes: [endpoint("a", 1)], synced: true });
  const late = await reconciler.programmed([wanted("a", 1)], 30).catch((error: Error) => error);
  expect((late as Error).message).toEndWith("found that dataplane recorder: EPERM");
  recorder.answers = [];
  const unknown = await reconciler.programmed([wanted("a", 1), wanted("b", 7)], 500).catch((error: Error) => error);
  expect((unknown as Error).message).toContain(
    "/default/b to be in force: after 500 ms found that the change has not arrived",
  );
});

test("an older revision in force does not satisfy a wait for a newer one", async () => {
  const { reconciler } = start();
  reconciler.put({ changes: [endpoint("a", 1)], synced: true });
  await reconciler.programmed([wanted("a", 1)], DEADLINE_MS);
  let isInForce = false;
  const wait = reconciler.programmed([wanted("a", 2)], DEADLINE_MS).then(() => isInForce = true);
  for (let i = 0; i < 20; i++) await Promise.resolve();
  expect(isInForce).toBe(false);
  reconciler.put({ changes: [endpoint("a", 3)], synced: true });
  await wait;
});

test("a wait for gone ends when it is gone from the dataplane; one for an earlier write as well", async () => {
  const { recorder, reconciler } = start();
  reconciler.put({ changes: [endpoint("a", 1)], synced: true });
  await reconciler.programmed([wanted("a", 1)], DEADLINE_MS);
  const gone = reconciler.programmed([{ key: keyOf("a"), gone: true }], DEADLINE_MS);
  reconciler.put({ changes: [{ key: keyOf("a"), revision: revision(3) }], synced: true });
  await gone;
  expect(recorder.calls.at(-1)).toMatch(/^apply \d+: $/);
  await reconciler.programmed([wanted("a", 2)], DEADLINE_MS);
  await reconciler.programmed([{ key: keyOf("never"), gone: true }], DEADLINE_MS);
});

test("an aborted wait rejects with the signal's reason", async () => {
  const { reconciler } = start();
  const controller = new AbortController();
  const wait = reconciler.programmed([wanted("a", 1)], DEADLINE_MS, controller.signal);
  controller.abort(new Error("enough"));
  expect(await wait.catch((error: Error) => error.message)).toBe("enough");
});
