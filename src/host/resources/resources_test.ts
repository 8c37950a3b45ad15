import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ConflictError } from "../../sdk/errors.ts";
import type { Datastore, Versioned } from "../../sdk/datastore.ts";
import type { Host } from "../../sdk/plugin.ts";
import { BUILTIN } from "../builtin.ts";
import { systemClock } from "../clock.ts";
import { NODE } from "./core_source.ts";
import { silentLog } from "../log.ts";
import { registerNode } from "../node.ts";
import { DeadlineError, type Wanted } from "../reconcile.ts";
import { createResources } from "./resources.ts";
import { parseAddress } from "../../model/address.ts";
import { testRegistry } from "../test_registry.ts";

const registry = await testRegistry();
let directory: string;
let datastore: Datastore;
beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "manx-resources-"));
  const plugin = (await BUILTIN.datastore.sqlite!()).default;
  datastore = await plugin.open(
    plugin.parseConfig(undefined),
    { log: silentLog, stateDirectory: directory } as unknown as Host,
    new AbortController().signal,
  ) as Datastore;
});
afterEach(async () => {
  await datastore[Symbol.asyncDispose]();
  rmSync(directory, { recursive: true });
});

const open = (parts: { datastore?: Datastore; programmed?: (wanted: readonly Wanted[]) => Promise<void> } = {}) =>
  createResources({ datastore, registry, clock: systemClock, programmed: () => Promise.resolve(), ...parts });
const namespace = (name: string, label = "x") =>
  `apiVersion: v1\nkind: Namespace\nmetadata: { name: ${name}, labels: { l: ${label} } }`;
const request = (text: string, more: object = {}) => ({ text, file: "m.yaml", ...more });
const outcomes = (reply: { results: readonly { name: string; outcome: string }[] }) =>
  reply.results.map(({ name, outcome }) => `${name} ${outcome}`).join(", ");

test("outcomes follow what stands; identity and birth are kept", async () => {
  const resources = open();
  expect(outcomes(await resources.apply(request(namespace("a"))))).toBe("a created");
  const [first] = await datastore.list("Namespace");
  expect(first!.value.metadata).toMatchObject({
    uid: expect.any(String),
    creationTimestamp: expect.stringMatching(/^\d{4}-.*Z$/),
  });
  expect(outcomes(await resources.apply(request(namespace("a"))))).toBe("a unchanged");
  const changed = await resources.apply(request(`${namespace("a", "y")}\n---\n${namespace("b")}`));
  expect(outcomes(changed)).toBe("a configured, b created");
  const [second] = await datastore.list("Namespace");
  expect(second!.value.metadata).toMatchObject({
    uid: first!.value.metadata.uid,
    creationTimestamp: first!.value.metadata.creationTimestamp,
    labels: { l: "y" },
  });
  expect(second!.revision as string).toBe(changed.results[0]!.revision);
});

test("a dry run stores nothing", async () => {
  const reply = await open().apply(request(namespace("a"), { dryRun: true, wait: 1000 }));
  expect(reply).toEqual({
    results: [{ kind: "Namespace", namespace: "", name: "a", outcome: "created", revision: "" }],
  });
  expect(await datastore.list("Namespace")).toEqual([]);
});

test("a wait asks for the written revisions, and its deadline is told, not thrown", async () => {
  const asked: Wanted[][] = [];
  const reply = await open({ programmed: async (wanted) => void asked.push([...wanted]) }).apply(
    request(namespace("a"), { wait: 1000 }),
  );
  expect(reply.inForce).toBe(true);
  expect(asked).toEqual([[{
    key: { kind: "Namespace", namespace: "", name: "a" },
    revision: reply.results[0]!.revision as never,
  }]]);
  const late = await open({ programmed: () => Promise.reject(new DeadlineError("late")) }).delete(
    request(namespace("a"), { wait: 1 }),
  );
  expect(late).toMatchObject({ inForce: false, results: [{ outcome: "deleted" }] });
});

test("a commit that loses a race is planned again from what stands then", async () => {
  let races = 2;
  const racing: Datastore = {
    ...bound(datastore),
    async commit(writes, signal) {
      if (races-- > 0) {
        await open().apply(request(namespace("a", `race${races}`)));
        throw new ConflictError(["Namespace//a"]);
      }
      return await datastore.commit(writes, signal);
    },
  };
  expect(outcomes(await open({ datastore: racing }).apply(request(namespace("a"))))).toBe("a configured");
  expect((await datastore.list("Namespace"))[0]!.value.metadata.labels).toEqual({ l: "x" });
});

test("a race that is lost every time ends with a conflict", async () => {
  const losing: Datastore = { ...bound(datastore), commit: () => Promise.reject(new ConflictError(["Namespace//a"])) };
  expect(open({ datastore: losing }).apply(request(namespace("a")))).rejects.toThrow("changed since read");
});

test("two manifests at once with overlapping pools: one of them is refused", async () => {
  const pool = (name: string, cidr: string) =>
    request(`apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: { name: ${name} }\nspec: { cidr: ${cidr} }`);
  const resources = open();
  const ends = await Promise.allSettled([
    resources.apply(pool("a", "10.0.0.0/16")),
    resources.apply(pool("b", "10.0.128.0/17")),
    resources.apply(pool("c", "10.1.0.0/16")),
  ]);
  expect(ends.map((end) => end.status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
});

test("overlapping pools in one manifest are refused, both left out", async () => {
  const text = ["a 10.0.0.0/16", "b 10.0.0.0/24"].map((line) => {
    const [name, cidr] = line.split(" ");
    return `apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: { name: ${name} }\nspec: { cidr: ${cidr} }`;
  }).join("\n---\n");
  expect(open().apply(request(text))).rejects.toThrow(
    "m.yaml: document 2, line 9: spec.cidr: found 10.0.0.0/24, which overlaps pool a (10.0.0.0/16)",
  );
});

const endpoint = (name: string, interfaceName: string, node = "n1") =>
  `apiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata: { name: ${name} }\nspec: { node: ${node}, interfaceName: ${interfaceName} }`;

test("an interface of a node is one endpoint's: a second one is refused, the first may change and move", async () => {
  const resources = open();
  await resources.apply(request(`${endpoint("b", "tap0")}\n---\n${endpoint("c", "tap0", "n2")}`));
  await expect(resources.apply(request(endpoint("a", "tap0")))).rejects.toThrow(
    "m.yaml: document 1, line 4: spec.interfaceName: found tap0 of n1, which the endpoint default/b has already, wanted an interface of its own",
  );
  await expect(resources.apply(request(`${endpoint("d", "tap1")}\n---\n${endpoint("e", "tap1")}`))).rejects.toThrow(
    "document 2, line 9: spec.interfaceName: found tap1 of n1, which the endpoint default/d has already",
  );
  expect(outcomes(await resources.apply(request(`${endpoint("b", "tap1")}\n---\n${endpoint("a", "tap0")}`)))).toBe(
    "b configured, a created",
  );
});

test("lists are filtered by namespace and carry their revision", async () => {
  const resources = open();
  const policy = (namespace: string) =>
    `apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: p, namespace: ${namespace} }\nspec: { podSelector: {} }`;
  await resources.apply(request(`${policy("a")}\n---\n${policy("b")}`));
  const names = async (namespace?: string) =>
    (await resources.list("netpol", namespace)).groups[0]!.items.map((item) => item.metadata.namespace);
  expect([await names(), await names("b"), await names("c")]).toEqual([["a", "b"], ["b"], []]);
  const { groups } = await resources.get("NetworkPolicy.networking.k8s.io", "a", "p");
  expect(groups[0]!.items[0]!.metadata.resourceVersion).toMatch(/^\d+$/);
});

test("a node is registered once, follows its daemon's addresses, and is left alone where a person wrote it", async () => {
  const signal = new AbortController().signal;
  const register = (address: string) => registerNode(datastore, "n", [parseAddress(address)], systemClock, signal);
  const addresses = (node: Versioned | undefined) =>
    (node?.value.status as { addresses: { address: string }[] } | undefined)?.addresses.map((one) => one.address);
  const key = { kind: NODE, namespace: "", name: "n" };
  expect([await register("192.0.2.1"), await register("192.0.2.1"), await register("192.0.2.2")]).toEqual([
    "created",
    "unchanged",
    "updated",
  ]);
  expect(addresses(await datastore.get(key))).toEqual(["192.0.2.2"]);
  await datastore.commit([{
    key,
    value: {
      apiVersion: "v1",
      kind: "Node",
      metadata: { name: "n" },
      status: { addresses: [{ type: "InternalIP", address: "203.0.113.1" }] },
    },
  }]);
  expect(await register("192.0.2.3")).toBe("unchanged");
  await datastore.commit([{ key, value: { apiVersion: "v1", kind: "Node", metadata: { name: "n" } } }]);
  expect(await register("192.0.2.3")).toBe("updated");
});

/** The methods of an instance as plain properties. */
function bound(store: Datastore): Datastore {
  return {
    watch: (kinds, signal) => store.watch(kinds, signal),
    get: (key, signal) => store.get(key, signal),
    list: (kind, signal) => store.list(kind, signal),
    reached: (seen, wanted) => store.reached(seen, wanted),
    commit: (writes, signal) => store.commit(writes, signal),
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  };
}
