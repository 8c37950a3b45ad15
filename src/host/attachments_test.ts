import { afterEach, beforeEach, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createCalc } from "../calc/mod.ts";
import { type Address, addressFamily, formatAddress, formatCidr, hostCidr, parseAddress } from "../model/address.ts";
import type { AddRequest } from "../sdk/attach.ts";
import type { Datastore } from "../sdk/datastore.ts";
import type { Dataplane, Routing } from "../sdk/dataplane.ts";
import type { Ipam } from "../sdk/ipam.ts";
import type { Host } from "../sdk/plugin.ts";
import type { Attachment, Observed, PodWiring } from "../sdk/wiring.ts";
import { type Attachments, createAttachments } from "./attachments.ts";
import { BUILTIN } from "./builtin.ts";
import { systemClock } from "./clock.ts";
import { IP_POOL, WORKLOAD_ENDPOINT } from "./resources/core_source.ts";
import { identify } from "./endpoint.ts";
import { silentLog } from "./log.ts";
import { Reconciler } from "./reconcile.ts";
import { testRegistry } from "./test_registry.ts";
import { createTranslator } from "./resources/translation.ts";

const registry = await testRegistry();
const GATEWAYS = { 4: parseAddress("169.254.1.1"), 6: parseAddress("fe80::1") };

/** Links as a map; fails where the failure plan says so. */
class FakeWiring implements PodWiring {
  readonly links = new Map<string, Attachment>();
  constructor(readonly step: (name: string) => void) {}
  async apply(desired: Attachment, ifExists: "fail" | "adopt"): Promise<Observed> {
    this.step("wiring.apply");
    if (ifExists === "fail" && this.links.has(desired.hostInterface)) {
      throw new Error(`${desired.hostInterface} is there`);
    }
    this.links.set(desired.hostInterface, desired);
    this.step("wiring.apply, at its end");
    return this.#observed(desired);
  }
  async observe(desired: Attachment): Promise<Observed | undefined> {
    const link = this.links.get(desired.hostInterface);
    return link === undefined ? undefined : this.#observed(link);
  }
  async remove(hostInterface: string): Promise<void> {
    this.links.delete(hostInterface);
  }
  async collect(live: ReadonlySet<string>): Promise<readonly string[]> {
    const gone = [...this.links.keys()].filter((name) => !live.has(name));
    for (const name of gone) this.links.delete(name);
    return gone;
  }
  async [Symbol.asyncDispose](): Promise<void> {}
  #observed({ interfaceName, hostInterface, addresses, mtu, mac, netns }: Attachment): Observed {
    return {
      interfaceName,
      hostInterface,
      mac: mac ?? "02:00:00:00:00:01",
      hostMac: "ee:ee:ee:ee:ee:ee",
      mtu: mtu ?? 1500,
      addresses: addresses.map(hostCidr),
      gateways: [...new Set(addresses.map((address: Address) => GATEWAYS[addressFamily(address)]))],
      differences: netns === "/broken" ? ["interface eth0 is down"] : [],
    };
  }
}

interface World {
  readonly datastore: Datastore;
  readonly ipam: Ipam;
  readonly wiring: FakeWiring;
  readonly reconciler: Reconciler;
  readonly attachments: Attachments;
  /** Names of the steps that were taken; the one of this number fails. */
  readonly steps: string[];
  failAt: number;
  /** Once, before what is to be committed is. */
  beforeCommit: (() => Promise<void>) | undefined;
  /** Another allocator of the same node. */
  openRival(): Promise<Ipam>;
  /** Interfaces that have policy. */
  enforced: ReadonlySet<string>;
  /** Interfaces that had a link without policy when ADD answered; must stay empty. */
  close(): Promise<void>;
}

let directory: string;
let world: World;
beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "manx-attach-"));
  world = await open();
  await world.attachments.adopt(AbortSignal.timeout(5_000));
});
afterEach(async () => {
  await world.close();
  rmSync(directory, { recursive: true });
});

async function open(links?: ReadonlyMap<string, Attachment>): Promise<World> {
  const none = new AbortController().signal;
  const host = { node: "kube-01", log: silentLog, clock: systemClock, stateDirectory: directory } as unknown as Host;
  const builtin = async (kind: "datastore" | "ipam", name: string, given: Host) => {
    const plugin = (await BUILTIN[kind][name]!()).default;
    return await plugin.open(plugin.parseConfig(undefined), given, none);
  };
  const datastore = await builtin("datastore", "sqlite", host) as Datastore;
  const state = {
    steps: [] as string[],
    failAt: 0,
    beforeCommit: undefined as World["beforeCommit"],
    enforced: new Set<string>() as ReadonlySet<string>,
  };
  const step = (name: string) => {
    state.steps.push(name);
    if (state.steps.length === state.failAt) throw new Error(`step ${state.failAt}, ${name}, fails`);
  };
  const stepping: Datastore = {
    watch: (kinds, signal) => datastore.watch(kinds, signal),
    reached: (seen, wanted) => datastore.reached(seen, wanted),
    list: (kind, signal) => datastore.list(kind, signal),
    get: (key, signal) => {
      step(`get ${key.kind}`);
      return datastore.get(key, signal);
    },
    commit: async (writes, signal) => {
      step("commit");
      const before = state.beforeCommit;
      state.beforeCommit = undefined;
      await before?.();
      const revision = await datastore.commit(writes, signal);
      step("commit, answer lost");
      return revision;
    },
    [Symbol.asyncDispose]: () => datastore[Symbol.asyncDispose](),
  };
  for (const [name, cidr] of [["v4", "10.244.0.0/16"], ["v6", "fd00:10::/64"]]) {
    const key = { kind: IP_POOL, namespace: "", name: name! };
    if (await datastore.get(key)) continue;
    await datastore.commit([{
      key,
      value: { apiVersion: "projectcalico.org/v3", kind: "IPPool", metadata: { name: name! }, spec: { cidr } },
    }]);
  }
  const ipam = await builtin("ipam", "block", { ...host, datastore: stepping }) as Ipam;
  const wiring = new FakeWiring(step);
  for (const [name, link] of links ?? []) wiring.links.set(name, link);
  const idle = async function* (signal: AbortSignal): AsyncGenerator<string> {
    yield* [];
    await new Promise<void>((resolve) =>
      signal.aborted ? resolve() : signal.addEventListener("abort", () => resolve())
    );
  };
  const report = (generation: number) => ({ generation, converged: true, messages: 1, problems: [] });
  const dataplane: Dataplane = {
    capabilities: { aspects: new Set(["policy"]), families: new Set([4, 6]), atomicity: "all" },
    async apply(desired) {
      state.enforced = new Set([...desired.workloads.values()].map((workload) => workload.interfaceName));
      return report(desired.generation);
    },
    resync: async () => report(0),
    drift: idle,
    sweep: async () => report(0),
    async [Symbol.asyncDispose]() {},
  };
  const routing: Routing = {
    apply: async (desired) => report(desired.generation),
    drift: idle,
    sweep: async () => report(0),
    async [Symbol.asyncDispose]() {},
  };
  const reconciler = new Reconciler({
    datastore,
    translator: createTranslator(registry),
    calc: createCalc({ node: "kube-01", failsafe: { inbound: [], outbound: [] } }),
    dataplanes: [{ name: "fake", instance: dataplane }],
    routing: { name: "fake", instance: routing },
    log: silentLog,
    clock: systemClock,
  });
  const stop = new AbortController();
  const loops = [
    reconciler.run(stop.signal),
    (async () => {
      for await (
        const batch of datastore.watch(registry.definitions.map((definition) => definition.kind), stop.signal)
      ) reconciler.put(batch);
    })(),
  ];
  const programmed: Reconciler["programmed"] = (wanted, deadlineMs, signal) => {
    step("programmed");
    return reconciler.programmed(wanted, deadlineMs, signal);
  };
  const attachments = createAttachments({
    node: "kube-01",
    datastore: stepping,
    ipam,
    wiring,
    reconciler: {
      get synced() {
        return reconciler.synced;
      },
      programmed: async (wanted, deadlineMs, signal) => await programmed(wanted, deadlineMs, signal),
    },
    log: silentLog,
    clock: systemClock,
    checkNamespace: () => {},
  });
  return Object.assign(state, {
    datastore,
    ipam,
    wiring,
    reconciler,
    attachments,
    openRival: async () => await builtin("ipam", "block", { ...host, datastore }) as Ipam,
    async close() {
      stop.abort();
      await ipam[Symbol.asyncDispose]();
      await datastore[Symbol.asyncDispose]();
      await Promise.all(loops);
    },
  });
}

const request = (containerId: string, more: Partial<AddRequest> = {}): AddRequest => ({
  network: "pods",
  containerId,
  ifName: "eth0",
  netns: "/ns",
  args: { K8S_POD_NAMESPACE: "prod", K8S_POD_NAME: `pod-${containerId}` },
  labels: {},
  ...more,
});
const endpoints = async () => (await world.datastore.list(WORKLOAD_ENDPOINT)).map(({ value }) => value);
const leases = async () => (await world.ipam.usage()).reduce((sum, pool) => sum + pool.used, 0);

test("ADD answers with lease, endpoint, link and policy; DEL takes all of them away, twice", async () => {
  const reply = await world.attachments.add(request("c1", { labels: { app: "web" }, mtu: 1400 }));
  const { hostInterface } = identify(request("c1"));
  expect(reply).toMatchObject({
    interfaceName: "eth0",
    hostInterface,
    mtu: 1400,
    addresses: [{ address: expect.stringMatching(/^10\.244\..*\/32$/), gateway: "169.254.1.1" }, {
      address: expect.stringMatching(/^fd00:10::.*\/128$/),
      gateway: "fe80::1",
    }],
    routes: [{ dst: "0.0.0.0/0", gw: "169.254.1.1" }, { dst: "::/0", gw: "fe80::1" }],
  });
  expect([...world.enforced]).toEqual([hostInterface]);
  const [endpoint] = await endpoints();
  expect(endpoint).toMatchObject({
    metadata: {
      namespace: "prod",
      name: expect.stringMatching(/^kube-01-k8s-pod-c1-eth0-[0-9a-f]{11}$/),
      labels: { app: "web" },
    },
    spec: {
      node: "kube-01",
      orchestrator: "k8s",
      pod: "pod-c1",
      containerID: "c1",
      endpoint: "eth0",
      interfaceName: hostInterface,
    },
  });
  for (let i = 0; i < 2; i++) {
    await world.attachments.del(request("c1"));
    expect([await endpoints(), await leases(), world.wiring.links.size, world.enforced.size]).toEqual([[], 0, 0, 0]);
  }
});

test("without a pod name the namespace is default and the labels are the request's", async () => {
  await world.attachments.add(request("abcdef0123456789", { args: {}, labels: { app: "db" } }));
  expect((await endpoints())[0]).toMatchObject({
    metadata: { namespace: "default", labels: { app: "db" } },
    spec: { orchestrator: "cni", workload: "abcdef0123456789" },
  });
});

test("static addresses, families and routes are as asked", async () => {
  const reply = await world.attachments.add(
    request("c1", {
      ips: ["10.244.9.9/32"],
      routes: [{ dst: "10.0.0.0/8" }, { dst: "0.0.0.0/0", gw: "169.254.1.1" }],
      mac: "02:AA:00:00:00:01",
    }),
  );
  expect(reply).toMatchObject({
    addresses: [{ address: "10.244.9.9/32", gateway: "169.254.1.1" }],
    routes: [{ dst: "10.0.0.0/8" }, { dst: "0.0.0.0/0", gw: "169.254.1.1" }],
    mac: "02:aa:00:00:00:01",
  });
  const taken = await world.attachments.add(request("c2", { ips: ["10.244.9.9"] })).catch((error: Error) => error);
  expect((taken as Error).message).toContain("10.244.9.9");
  expect(await leases()).toBe(1);
});

test("a second identical ADD gets the first one's answer", async () => {
  const first = await world.attachments.add(request("c1"));
  const second = await world.attachments.add(request("c1"));
  expect({ ...second, timing: 0 }).toEqual({ ...first, timing: 0 } as never);
  expect(await leases()).toBe(2);
});

test("a second ADD with other settings is refused and changes nothing", async () => {
  await world.attachments.add(request("c1"));
  const error = await world.attachments.add(request("c1", { mtu: 1300 })).catch((error: Error) => error);
  expect(error).toMatchObject({
    code: "exists",
    cni: 100,
    message: expect.stringContaining("with other settings, wanted a DEL first"),
  });
  expect([world.wiring.links.size, await leases()]).toEqual([1, 2]);
});

test("an ADD clears away what an interrupted one left: an endpoint without a link", async () => {
  await world.attachments.add(request("c1"));
  world.wiring.links.clear();
  await world.attachments.add(request("c1", { mtu: 1300 }));
  expect([world.wiring.links.size, await leases(), (await endpoints()).length]).toEqual([1, 2, 1]);
});

test("a failure at any step leaves no link, no lease, no endpoint and no policy", async () => {
  await world.attachments.add(request("other"));
  world.steps.length = 0;
  await world.attachments.add(request("probe"));
  const count = world.steps.length;
  await world.attachments.del(request("probe"));
  expect(count).toBeGreaterThanOrEqual(5);
  for (let failAt = 1; failAt <= count; failAt++) {
    world.steps.length = 0;
    world.failAt = failAt;
    const error = await world.attachments.add(request("c1")).then(() => undefined, (error: Error) => error);
    world.failAt = 0;
    expect(error?.message).toContain(`step ${failAt},`);
    await world.reconciler.programmed([], 5_000);
    expect({ failAt, links: world.wiring.links.size, leases: await leases(), endpoints: (await endpoints()).length })
      .toEqual({ failAt, links: 1, leases: 2, endpoints: 1 });
    await world.attachments.add(request("c1"));
    expect(await leases()).toBe(4);
    await world.attachments.del(request("c1"));
  }
});

test("a failure at any step of DEL can be repeated", async () => {
  await world.attachments.add(request("c1"));
  world.steps.length = 0;
  await world.attachments.del(request("c1"));
  const count = world.steps.length;
  for (let failAt = 1; failAt <= count; failAt++) {
    await world.attachments.add(request("c1"));
    world.steps.length = 0;
    world.failAt = failAt;
    await world.attachments.del(request("c1")).catch(() => {});
    world.failAt = 0;
    await world.attachments.del(request("c1"));
    expect({ failAt, links: world.wiring.links.size, leases: await leases(), endpoints: (await endpoints()).length })
      .toEqual({ failAt, links: 0, leases: 0, endpoints: 0 });
  }
});

test("eight at once get eight addresses, each in force", async () => {
  const replies = await Promise.all(Array.from({ length: 8 }, (_, i) => world.attachments.add(request(`c${i}`))));
  expect(new Set(replies.map((reply) => reply.addresses[0]!.address)).size).toBe(8);
  for (const reply of replies) expect(world.enforced.has(reply.hostInterface)).toBe(true);
  await Promise.all(Array.from({ length: 8 }, (_, i) => world.attachments.del(request(`c${i}`))));
  expect([await leases(), world.wiring.links.size]).toEqual([0, 0]);
});

test("a pod whose planned addresses somebody else takes meanwhile is wired for those it gets", async () => {
  const add = world.attachments.add.bind(world.attachments);
  await add(request("first"));
  await using rival = await world.openRival();
  let taken: readonly Address[] = [];
  world.beforeCommit = async () => {
    ({ addresses: taken } = await rival.acquire({
      handle: "rival",
      node: "kube-01",
      families: [4, 6],
      attributes: {},
    }));
  };
  const { addresses, hostInterface } = await add(request("second"));
  expect(world.steps.filter((step) => step === "wiring.apply")).toHaveLength(3);
  const wired = world.wiring.links.get(hostInterface)!.addresses;
  expect(addresses.map(({ address }) => address)).toEqual(wired.map((address) => formatCidr(hostCidr(address))));
  expect(wired.some((address) => taken.includes(address))).toBe(false);
});

test("ADD and DEL of one attachment at once take turns and end without remains", async () => {
  await Promise.allSettled(
    [0, 1, 2, 3].flatMap(() => [world.attachments.add(request("c1")), world.attachments.del(request("c1"))]),
  );
  expect([await leases(), world.wiring.links.size, (await endpoints()).length]).toEqual([0, 0, 0]);
});

test("CHECK is content with what ADD made, and names what differs", async () => {
  const { addresses } = await world.attachments.add(request("c1"));
  const check = (more: object = {}) =>
    world.attachments.check({ ...request("c1"), addresses: addresses.map((one) => one.address), ...more }).then(
      () => "good",
      (error: Error & { cni: number }) => `${error.cni} ${error.message}`,
    );
  expect(await check()).toBe("good");
  expect(await check({ containerId: "c2" })).toBe(
    "104 CHECK c2/eth0 of network pods: found no such attachment on this node, wanted one made by ADD",
  );
  expect(await check({ addresses: ["10.244.0.99/32"] })).toStartWith(
    "104 CHECK c1/eth0 of network pods: found the lease 10.244.",
  );
  world.wiring.links.set(identify(request("c1")).hostInterface, {
    ...world.wiring.links.values().next().value!,
    netns: "/broken",
  });
  expect(await check()).toEndWith("found interface eth0 is down, wanted the link as ADD made it");
  world.wiring.links.clear();
  expect(await check()).toContain("found no link mx");
});

test("GC removes what is not valid in its network, and leaves the others", async () => {
  for (const containerId of ["a", "b", "c"]) await world.attachments.add(request(containerId));
  await world.attachments.add(request("d", { network: "second" }));
  world.wiring.links.set("mx00000000000", world.wiring.links.values().next().value!);
  await world.attachments.gc({ network: "pods", valid: [{ containerId: "b", ifName: "eth0" }] });
  expect((await endpoints()).map((one) => (one.spec as { containerID: string }).containerID).sort()).toEqual([
    "b",
    "d",
  ]);
  expect([world.wiring.links.size, await leases()]).toEqual([2, 4]);
  await world.attachments.gc({ network: "pods", valid: [{ containerId: "b", ifName: "eth0" }] });
  expect(await leases()).toBe(4);
});

test("GC waits for an ADD under way instead of collecting its lease", async () => {
  const adding = world.attachments.add(request("a"));
  const collecting = world.attachments.gc({ network: "other", valid: [] });
  const reply = await adding;
  await collecting;
  expect([await leases(), world.wiring.links.has(reply.hostInterface)]).toEqual([2, true]);
});

test("after a restart attachments stand, links and leases of nothing go, and DEL works", async () => {
  const { addresses } = await world.attachments.add(request("a"));
  await world.ipam.acquire({ handle: "lost", node: "kube-01", families: [4], attributes: {} });
  const links = new Map(world.wiring.links).set("mxffffffffff0", world.wiring.links.values().next().value!);
  await world.close();
  world = await open(links);
  await world.attachments.adopt(AbortSignal.timeout(5_000));
  expect([world.wiring.links.size, await leases()]).toEqual([1, 2]);
  await world.attachments.check({ ...request("a"), addresses: addresses.map((one) => one.address) });
  await world.attachments.del(request("a"));
  expect([await leases(), world.wiring.links.size, (await endpoints()).length]).toEqual([0, 0, 0]);
});

test("an endpoint that a person wrote keeps its link at a restart", async () => {
  const key = { kind: WORKLOAD_ENDPOINT, namespace: "default", name: "vm" };
  await world.datastore.commit([{
    key,
    value: {
      apiVersion: "projectcalico.org/v3",
      kind: "WorkloadEndpoint",
      metadata: { name: "vm", namespace: "default" },
      spec: { node: "kube-01", interfaceName: "tap0" },
    },
  }]);
  const { hostInterface } = await world.attachments.add(request("a"));
  const links = new Map(world.wiring.links).set("tap0", world.wiring.links.get(hostInterface)!);
  await world.close();
  world = await open(links);
  await world.attachments.adopt(AbortSignal.timeout(5_000));
  expect([...world.wiring.links.keys()].sort()).toEqual([hostInterface, "tap0"].sort());
});

const refusals: readonly [string, Partial<AddRequest>, string][] = [
  [
    "a bad static address",
    { ips: ["10.0.0.300"] },
    'attachment: ips[0]: found "10.0.0.300", wanted an IPv4 or IPv6 address',
  ],
  ["a static prefix", { ips: ["10.0.0.0/24"] }, 'attachment: ips[0]: found "10.0.0.0/24", wanted one address'],
  ["two static addresses of a family", { ips: ["10.244.0.5", "10.244.0.6"] }, "wanted at most one address a family"],
  [
    "a multicast MAC",
    { mac: "03:00:00:00:00:01" },
    'attachment: mac: found "03:00:00:00:00:01", wanted a unicast address',
  ],
  ["a tiny MTU", { mtu: 10 }, "attachment: mtu: found 10, wanted 68 to 65535 bytes"],
  ["a bad route", { routes: [{ dst: "x" }] }, 'attachment: routes[0].dst: found "x", wanted'],
  ["no family", { families: [] }, "attachment: families: found [], wanted 4, 6 or both"],
  [
    "a bad namespace",
    { args: { K8S_POD_NAMESPACE: "Prod" } },
    'attachment: namespace: found "Prod", wanted a namespace\'s name',
  ],
  ["a pool nobody has", { pools: ["none"] }, "none"],
];
for (const [subject, more, message] of refusals) {
  test(`ADD with ${subject} is refused and leaves nothing`, async () => {
    const error = await world.attachments.add(request("c1", more)).catch((error: Error) => error);
    expect((error as Error).message).toContain(message);
    expect([await endpoints(), await leases(), world.wiring.links.size]).toEqual([[], 0, 0]);
  });
}

test("a missing namespace and the daemon's own are refused before anything is leased", async () => {
  const { datastore, ipam, wiring, reconciler } = world;
  const attachments = createAttachments({
    node: "kube-01",
    datastore,
    ipam,
    wiring,
    reconciler,
    log: silentLog,
    clock: systemClock,
  });
  await attachments.adopt(AbortSignal.timeout(5_000));
  const missing = join(directory, "none");
  expect(existsSync(missing)).toBe(false);
  const refused = (netns: string) => attachments.add(request("c1", { netns })).catch((error: Error) => error);
  expect(await refused(missing)).toMatchObject({
    cni: 3,
    message: `netns ${missing}: found no such file, wanted the path of a network namespace`,
  });
  expect(await refused("/proc/self/ns/net")).toMatchObject({
    cni: 8,
    message:
      "netns /proc/self/ns/net: found the daemon's own namespace, wanted the path of a network namespace of a pod",
  });
  expect([await leases(), wiring.links.size]).toEqual([0, 0]);
});

test("STATUS is content when ADD could work, and says what is missing", async () => {
  await world.attachments.ready();
  for (const name of ["v4", "v6"]) {
    await world.datastore.commit([{ key: { kind: IP_POOL, namespace: "", name }, value: null }]);
  }
  // The pools' owner hears of it a moment later.
  let error: unknown;
  for (const deadlineMs = performance.now() + 5_000; error === undefined && performance.now() < deadlineMs;) {
    error = await world.attachments.ready().then(
      () => new Promise<undefined>((resolve) => setImmediate(resolve)),
      (error: Error) => error,
    );
  }
  expect(error).toMatchObject({ cni: 50, message: expect.stringMatching(/^STATUS: .*pool/) });
});

test("addresses come back as text with their full length", async () => {
  const { addresses } = await world.attachments.add(request("c1"));
  const [stored] = await endpoints();
  expect((stored!.spec as { ipNetworks: string[] }).ipNetworks).toEqual(addresses.map((one) => one.address));
  expect(formatAddress(parseAddress(addresses[0]!.address.split("/")[0]!))).toBe(addresses[0]!.address.split("/")[0]!);
});
