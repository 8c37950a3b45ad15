import { describe, expect, test } from "bun:test";
import { formatAddress, formatCidr, parseAddress } from "../../../src/model/address.ts";
import type { Resource } from "../../../src/model/resource.ts";
import type { Datastore, Write } from "../../../src/sdk/datastore.ts";
import { ConfigError, ConflictError, ExhaustedError, RefusedError, UnavailableError } from "../../../src/sdk/errors.ts";
import type { Ipam, Lease, LeaseRequest } from "../../../src/sdk/ipam.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import { failure } from "../../../test/contract/datastore.ts";
import { ipamContract, leaseFor, NODE } from "../../../test/contract/ipam.ts";
import { MemoryStorage } from "../../../test/contract/memory_datastore.ts";
import { BLOCK_KIND, blockKey } from "./blocks.ts";
import plugin from "./mod.ts";
import { POOL_KIND, poolKey } from "./pools.ts";

/** A clock that only the test moves. */
class TestClock {
  seconds = 1_700_000_000;
  nowMs = () => this.seconds * 1000;
  wallMs = () => this.seconds * 1000;
  sleep = (_ms: number, signal: AbortSignal) =>
    new Promise<void>((resolve, reject) => {
      setImmediate(resolve);
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
}

const silent = { debug() {}, info() {}, warn() {}, error() {} };
const { signal } = new AbortController();

function hostOf(datastore: Datastore, node = NODE, clock = new TestClock()): Host {
  return {
    node,
    log: silent,
    clock,
    datastore,
    stateDirectory: "/nonexistent",
    get kernel(): never {
      throw new Error("address management needs no kernel");
    },
  };
}

const open = (storage: MemoryStorage, config: unknown, node = NODE, clock = new TestClock()): Promise<Ipam> =>
  plugin.open(plugin.parseConfig(config), hostOf(storage.client(), node, clock), signal);

const V4 = { name: "v4", cidr: "10.20.0.0/27" };
const V6 = { name: "v6", cidr: "fd00:20::/120", blockSize: 124 };
const texts = (lease: Lease): string[] => lease.addresses.map(formatAddress);
const first = async (ipam: Ipam, handle: string, more: Partial<LeaseRequest> = {}): Promise<string> =>
  texts(await ipam.acquire(leaseFor(handle, { node: NODE, ...more })))[0]!;

ipamContract("block", async () => {
  const storage = new MemoryStorage();
  const config = { pools: [{ ...V4, blockSize: 29 }, V6] };
  let ipam = await open(storage, config);
  return {
    get ipam() {
      return ipam;
    },
    datastore: storage.client(),
    reopen: async () => {
      await ipam[Symbol.asyncDispose]();
      return ipam = await open(storage, config);
    },
    [Symbol.asyncDispose]: () => ipam[Symbol.asyncDispose](),
  };
});

const ipPool = (name: string, spec: Record<string, unknown>): Write => ({
  key: poolKey(name),
  value: { apiVersion: "projectcalico.org/v3", kind: "IPPool", metadata: { name }, spec },
});
const nodeObject = (name: string, labels: Record<string, string>): Write => ({
  key: { kind: "Node", namespace: "", name },
  value: { apiVersion: "v1", kind: "Node", metadata: { name, labels } },
});

/** Waits until `probe` stops throwing. */
async function eventually<T>(probe: () => Promise<T>): Promise<T> {
  const deadline = performance.now() + 5_000;
  for (;;) {
    try {
      return await probe();
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
}

async function blocksOf(
  storage: MemoryStorage,
): Promise<{ cidr: string; node: string; leases: { handle: string }[] }[]> {
  const found = await storage.client().list(BLOCK_KIND);
  return found.map(({ value }) => value.spec as { cidr: string; node: string; leases: { handle: string }[] });
}

describe("pools", () => {
  test("without any pool an acquire and ready say how to make one", async () => {
    await using ipam = await open(new MemoryStorage(), undefined);
    for (const error of [await failure(ipam.acquire(leaseFor("h"))), await failure(ipam.ready())]) {
      expect(error).toBeInstanceOf(ExhaustedError);
      expect((error as Error).message).toContain("there is no IP pool. Make one:");
      expect((error as Error).message).toContain("kind IPPool");
    }
  });

  test("a configured pool is stored as an IPPool, changed with the config, and removed with it", async () => {
    const storage = new MemoryStorage();
    await (await open(storage, { pools: [{ ...V4, natOutgoing: true }] }))[Symbol.asyncDispose]();
    const stored = async () =>
      (await storage.client().list(POOL_KIND)).map(({ value }) => [value.metadata.name, value.spec]);
    const spec = { cidr: "10.20.0.0/27", blockSize: 27, nodeSelector: "all()", natOutgoing: true, disabled: false };
    expect(await stored()).toEqual([["v4", spec]]);
    await (await open(storage, { pools: [V4] }))[Symbol.asyncDispose]();
    expect(await stored()).toEqual([["v4", { ...spec, natOutgoing: false }]]);
    await (await open(storage, { pools: [{ ...V4, name: "renamed" }] }, "beta").catch((error) => {
      expect(error).toBeInstanceOf(ConfigError);
      expect(error.message).toBe(
        "pools[0].cidr: found 10.20.0.0/27, which overlaps the stored pool v4 (10.20.0.0/27), wanted a prefix apart from it, " +
          "or that pool deleted",
      );
      return open(storage, { pools: [{ ...V4, name: "renamed" }] });
    }))[Symbol.asyncDispose]();
    expect((await stored()).map(([name]) => name)).toEqual(["renamed"]);
  });

  test("two nodes with one config share its pools; another pool of the same name is a config error", async () => {
    const storage = new MemoryStorage();
    await using _a = await open(storage, { pools: [V4] }, "alpha");
    await using _b = await open(storage, { pools: [V4] }, "beta");
    const error = await failure(open(storage, { pools: [{ ...V4, cidr: "10.99.0.0/24" }] }, "beta"));
    expect(error).toBeInstanceOf(ConfigError);
    expect((error as Error).message).toContain("pools[0]: found pool v4 other than that of node alpha's config");
  });

  test("a stored pool serves as soon as it is there, and no longer once it is gone or disabled", async () => {
    const storage = new MemoryStorage();
    await using ipam = await open(storage, undefined);
    const client = storage.client();
    await client.commit([ipPool("p", { cidr: "10.30.0.0/24", blockSize: 28 })]);
    expect(await eventually(() => first(ipam, "h"))).toBe("10.30.0.1");
    await client.commit([ipPool("p", { cidr: "10.30.0.0/24", blockSize: 28, disabled: true })]);
    await eventually(async () => expect(await failure(ipam.ready())).toBeInstanceOf(ExhaustedError));
    expect(((await failure(ipam.ready())) as Error).message).toContain("pool p (10.30.0.0/24) is disabled");
    expect(await first(ipam, "h")).toBe("10.30.0.1");
    await client.commit([{ key: poolKey("p"), value: null }]);
    await eventually(async () =>
      expect(((await failure(ipam.ready())) as Error).message).toContain("there is no IP pool")
    );
    await ipam.release("h");
    expect(await ipam.collect(new Set())).toEqual({ released: [], leases: 0 });
  });

  test("a pool that is overlapped or cannot be read is left aside and named; the last good version stands", async () => {
    const storage = new MemoryStorage();
    const client = storage.client();
    await client.commit([ipPool("a", { cidr: "10.30.0.0/24" }), ipPool("b", { cidr: "10.30.0.128/25" })]);
    await client.commit([ipPool("c", { cidr: "10.40.0.1/24" }), ipPool("d", { cidr: "10.50.0.0/24", blockSize: 20 })]);
    await using ipam = await open(storage, undefined);
    expect((await ipam.usage()).map(({ pool }) => pool)).toEqual(["a"]);
    const error = await failure(ipam.acquire(leaseFor("h", { families: [6] })));
    expect((error as Error).message).toContain(
      'spec.cidr: found "10.40.0.1/24", wanted the network itself, 10.40.0.0/24',
    );
    expect((error as Error).message).toContain("spec.blockSize: found 20, wanted 24 or more");
    expect((error as Error).message).toContain("10.30.0.128/25, which overlaps pool a (10.30.0.0/24)");
    await client.commit([ipPool("a", { cidr: "rubbish" })]);
    expect(await first(ipam, "h")).toBe("10.30.0.1");
    await eventually(async () => {
      const again = await failure(ipam.acquire(leaseFor("h6", { families: [6] })));
      expect((again as Error).message).toContain('pool a: spec.cidr: found "rubbish"');
    });
    expect((await ipam.usage()).map(({ pool }) => pool)).toEqual(["a"]);
  });

  test("the node selector and its node's labels choose the pool; a pool asked for by name or prefix stands above it", async () => {
    const storage = new MemoryStorage();
    const client = storage.client();
    await client.commit([nodeObject(NODE, { zone: "a" }), nodeObject("beta", { zone: "b" })]);
    const pools = [
      { name: "pa", cidr: "10.1.0.0/24", nodeSelector: "zone == 'a'" },
      { name: "pb", cidr: "10.2.0.0/24", nodeSelector: "zone == 'b'" },
    ];
    await using ipam = await open(storage, { pools });
    expect(await first(ipam, "h1")).toBe("10.1.0.1");
    expect(await first(ipam, "h2", { pools: ["pb"] })).toBe("10.2.0.1");
    expect(await first(ipam, "h3", { pools: ["10.2.0.0/24"] })).toBe("10.2.0.2");
    expect(await first(ipam, "h4", { pools: ["pb", "pa"] })).toBe("10.2.0.3");
    const unknown = await failure(ipam.acquire(leaseFor("h5", { pools: ["pc"] })));
    expect(unknown).toBeInstanceOf(RefusedError);
    expect((unknown as Error).message).toContain(
      'pool "pc" for h5: found no IP pool of that name or prefix, wanted one of pa, pb',
    );
    await client.commit([nodeObject(NODE, { zone: "b" })]);
    await eventually(async () => {
      await ipam.release("h6");
      expect(await first(ipam, "h6")).toStartWith("10.2.0.");
    });
    await client.commit([nodeObject(NODE, {})]);
    await eventually(async () => {
      const error = await failure(ipam.ready());
      expect((error as Error).message).toContain("pool pa (10.1.0.0/24) selects other nodes (zone == 'a')");
    });
  });

  test("a family that no pool serves is left out, unless it is the only one", async () => {
    await using ipam = await open(new MemoryStorage(), { pools: [V4] });
    expect(await ipam.acquire(leaseFor("h", { families: [4, 6] })).then(texts)).toEqual(["10.20.0.1"]);
    const error = await failure(ipam.acquire(leaseFor("h6", { families: [6] })));
    expect(error).toBeInstanceOf(ExhaustedError);
    expect((error as Error).message).toContain("no IP pool serves IPv6 on node alpha: pool v4 (10.20.0.0/27) is IPv4");
  });

  test("where one family is exhausted the other is not taken either", async () => {
    await using ipam = await open(new MemoryStorage(), { pools: [{ name: "s", cidr: "10.9.0.0/31" }, V6] });
    for (const handle of ["a", "b"]) await ipam.acquire(leaseFor(handle));
    expect(await failure(ipam.acquire(leaseFor("c", { families: [4, 6] })))).toBeInstanceOf(ExhaustedError);
    expect((await ipam.usage()).map(({ used }) => used)).toEqual([2, 0]);
  });

  test.each([
    [{ name: "p", cidr: "10.0.0.4/32" }, ["10.0.0.4"]],
    [{ name: "p", cidr: "10.0.0.4/31" }, ["10.0.0.4", "10.0.0.5"]],
    [{ name: "p", cidr: "10.0.0.4/30" }, ["10.0.0.5", "10.0.0.6"]],
    [{ name: "p", cidr: "10.0.0.4/30", blockSize: 32 }, ["10.0.0.5", "10.0.0.6"]],
    [{ name: "p", cidr: "10.0.0.8/29", blockSize: 30 }, ["9", "10", "11", "12", "13", "14"].map((n) => `10.0.0.${n}`)],
    [{ name: "p", cidr: "fd00::8/126" }, ["fd00::9", "fd00::a", "fd00::b"]],
  ])("%p gives out %p", async (pool, wanted) => {
    await using ipam = await open(new MemoryStorage(), { pools: [pool] });
    const given: string[] = [];
    for (let i = 0; i < wanted.length; i++) given.push(await first(ipam, `h${i}`, { families: [4, 6] }));
    expect(given.sort()).toEqual([...wanted].sort());
    expect(await failure(ipam.acquire(leaseFor("more", { families: [4, 6] })))).toBeInstanceOf(ExhaustedError);
    expect((await ipam.usage())[0]?.capacity).toBe(BigInt(wanted.length));
  });
});

describe("the watch of pools and nodes", () => {
  /** A store whose watches of pools come one change a batch, in sync with the last only, and end when `cut` is called. */
  function choppy(storage: MemoryStorage): { datastore: Datastore; cut: () => void } {
    const client = storage.client();
    let cutter = new AbortController();
    const datastore: Datastore = {
      get: (key) => client.get(key),
      list: (kind) => client.list(kind),
      commit: (writes, until) => client.commit(writes, until),
      reached: (seen, wanted) => client.reached(seen, wanted),
      [Symbol.asyncDispose]: () => client[Symbol.asyncDispose](),
      async *watch(kinds, until) {
        if (!kinds.includes(POOL_KIND)) return yield* client.watch(kinds, until);
        for await (const { changes, synced } of client.watch(kinds, AbortSignal.any([until, cutter.signal]))) {
          for (const change of changes) yield { changes: [change], synced: false };
          yield { changes: [], synced };
        }
        if (!until.aborted) throw new UnavailableError("cut");
      },
    };
    return {
      datastore,
      cut: () => {
        const old = cutter;
        cutter = new AbortController();
        old.abort();
      },
    };
  }

  test("may replay in many batches, break and begin again: what went meanwhile is gone, what came is there", async () => {
    const storage = new MemoryStorage();
    const client = storage.client();
    await client.commit([ipPool("a", { cidr: "10.1.0.0/24" }), ipPool("b", { cidr: "10.2.0.0/24" })]);
    await client.commit([nodeObject(NODE, { zone: "a" })]);
    const { datastore, cut } = choppy(storage);
    await using ipam = await plugin.open(plugin.parseConfig(undefined), hostOf(datastore), signal);
    const names = async () => (await ipam.usage()).map(({ pool }) => pool).join();
    expect(await names()).toBe("a,b");
    storage.listeners.clear(); // nobody is told of what follows
    await client.commit([{ key: poolKey("a"), value: null }]);
    await client.commit([ipPool("c", { cidr: "10.3.0.0/24", nodeSelector: "zone == 'a'" })]);
    expect(await names()).toBe("a,b");
    cut();
    await eventually(async () => expect(await names()).toBe("b,c"));
    expect(await first(ipam, "h", { pools: ["c"] })).toBe("10.3.0.1");
  });
});

describe("blocks", () => {
  test("another block is claimed only when the own ones are full", async () => {
    const storage = new MemoryStorage();
    await using ipam = await open(storage, { pools: [{ ...V4, blockSize: 29 }] });
    for (let i = 0; i < 7; i++) await ipam.acquire(leaseFor(`h${i}`));
    expect((await blocksOf(storage)).map(({ cidr }) => cidr)).toEqual(["10.20.0.0/29"]);
    await ipam.acquire(leaseFor("h7"));
    expect((await blocksOf(storage)).map(({ cidr }) => cidr)).toEqual(["10.20.0.0/29", "10.20.0.8/29"]);
  });

  test("a block is stored under the name of its prefix, with node and leases", async () => {
    const storage = new MemoryStorage();
    await using ipam = await open(storage, { pools: [V4, V6] });
    await ipam.acquire(leaseFor("h", { families: [4, 6], attributes: { pod: "web", namespace: "prod" } }));
    const found = (await storage.client().list(BLOCK_KIND)).map(({ value }) => value);
    const lease = { ordinal: 1, handle: "h", attributes: { pod: "web", namespace: "prod" } };
    const block = (name: string, spec: unknown): Resource => ({
      apiVersion: "ipam.manx/v1",
      kind: "IPAMBlock",
      metadata: { name },
      spec,
    });
    expect(found).toEqual([
      block("10-20-0-0-27", { cidr: "10.20.0.0/27", node: NODE, leases: [lease], free: [[2, 30, 0]] }),
      block("fd00-20---124", { cidr: "fd00:20::/124", node: NODE, leases: [lease], free: [[2, 15, 0]] }),
    ]);
  });

  test("nodes that claim at once get different blocks, until the pool is empty", async () => {
    const storage = new MemoryStorage();
    const config = { pools: [{ name: "p", cidr: "10.20.0.0/24", blockSize: 28 }] };
    await using stack = new AsyncDisposableStack();
    const nodes = await Promise.all(
      Array.from(
        { length: 20 },
        async (_, i) => ({ name: `n${i}`, ipam: stack.use(await open(storage, config, `n${i}`)) }),
      ),
    );
    const outcomes = await Promise.allSettled(
      nodes.flatMap(({ name, ipam }) => [1, 2].map((i) => ipam.acquire(leaseFor(`${name}-${i}`, { node: name })))),
    );
    const given = outcomes.flatMap((outcome) => outcome.status === "fulfilled" ? texts(outcome.value) : []);
    expect(given.length).toBe(32);
    expect(new Set(given).size).toBe(32);
    const owners = (await blocksOf(storage)).map(({ node }) => node);
    expect(owners.length).toBe(16);
    expect(new Set(owners).size).toBe(16);
    for (const outcome of outcomes) {
      if (outcome.status === "rejected") expect(outcome.reason).toBeInstanceOf(ExhaustedError);
    }
  });

  test("a block of another node is not borrowed from, and a static address in it is refused with its holder", async () => {
    const storage = new MemoryStorage();
    const config = { pools: [V4] };
    await using other = await open(storage, config, "beta");
    await other.acquire(leaseFor("b", { node: "beta" }));
    await using ipam = await open(storage, config);
    expect(await failure(ipam.acquire(leaseFor("h")))).toBeInstanceOf(ExhaustedError);
    const error = await failure(ipam.acquire(leaseFor("h", { addresses: [parseAddress("10.20.0.9")] })));
    expect((error as Error).message).toContain("block 10.20.0.0/27 belongs to node beta");
  });

  test("a static address claims the block it lies in", async () => {
    const storage = new MemoryStorage();
    await using ipam = await open(storage, { pools: [{ name: "p", cidr: "10.20.0.0/24", blockSize: 28 }, V6] });
    const addresses = [parseAddress("10.20.0.77"), parseAddress("fd00:20::42")];
    expect((await ipam.acquire(leaseFor("h", { families: [4, 6], addresses }))).addresses).toEqual(addresses);
    expect((await blocksOf(storage)).map(({ cidr }) => cidr)).toEqual(["10.20.0.64/28", "fd00:20::40/124"]);
  });

  test.each([
    ["10.20.0.0", "first or last address of pool v4"],
    ["10.20.0.31", "first or last address of pool v4"],
    ["10.21.0.1", "it is in no IP pool, wanted one of v4 (10.20.0.0/27)"],
  ])("the static address %s is refused", async (address, wanted) => {
    await using ipam = await open(new MemoryStorage(), { pools: [V4] });
    const error = await failure(ipam.acquire(leaseFor("h", { addresses: [parseAddress(address)] })));
    expect(error).toBeInstanceOf(RefusedError);
    expect((error as Error).message).toContain(wanted);
  });

  test("a handle that holds one address is refused another", async () => {
    await using ipam = await open(new MemoryStorage(), { pools: [V4] });
    await ipam.acquire(leaseFor("h"));
    const error = await failure(ipam.acquire(leaseFor("h", { addresses: [parseAddress("10.20.0.9")] })));
    expect((error as Error).message).toContain("it holds 10.20.0.1 already");
  });

  test("empty blocks are given back once their addresses have rested, but one stays", async () => {
    const storage = new MemoryStorage();
    const clock = new TestClock();
    await using ipam = await open(storage, { pools: [{ ...V4, blockSize: 29 }] }, NODE, clock);
    for (let i = 0; i < 30; i++) await ipam.acquire(leaseFor(`h${i}`));
    await ipam.collect(new Set());
    expect((await blocksOf(storage)).length).toBe(4);
    clock.seconds += 31;
    await ipam.collect(new Set());
    expect((await blocksOf(storage)).length).toBe(1);
    await ipam.acquire(leaseFor("again"));
    await ipam.ready();
  });

  test("a rested address is given again in the order of release, a resting one only where no block is left", async () => {
    const clock = new TestClock();
    await using ipam = await open(new MemoryStorage(), { pools: [{ name: "p", cidr: "10.20.0.0/30" }] }, NODE, clock);
    const a = await first(ipam, "a");
    await first(ipam, "b");
    await ipam.release("b");
    clock.seconds += 1;
    await ipam.release("a");
    clock.seconds += 40;
    await ipam.acquire(leaseFor("c"));
    expect(await first(ipam, "d")).toBe(a);
    await ipam.release("d");
    expect(await first(ipam, "e")).toBe(a);
  });

  test("while most of the pool is unclaimed, a resting address rests on and a block is claimed", async () => {
    const storage = new MemoryStorage();
    const clock = new TestClock();
    await using ipam = await open(
      storage,
      { pools: [{ name: "p", cidr: "10.20.0.0/24", blockSize: 30 }] },
      NODE,
      clock,
    );
    const given = [await first(ipam, "a"), await first(ipam, "b"), await first(ipam, "c")];
    await ipam.release("b");
    expect(given).not.toContain(await first(ipam, "d"));
    expect((await blocksOf(storage)).length).toBe(2);
  });

  test("a block that cannot be read is neither used nor claimed", async () => {
    const storage = new MemoryStorage();
    const client = storage.client();
    const config = { pools: [{ ...V4, blockSize: 29 }] };
    await (await open(storage, config))[Symbol.asyncDispose]();
    await client.commit([{
      key: blockKey("10-20-0-0-29"),
      value: { apiVersion: "ipam.manx/v1", kind: "IPAMBlock", metadata: { name: "10-20-0-0-29" }, spec: { leases: 3 } },
    }]);
    await using ipam = await open(storage, config);
    expect(await first(ipam, "h")).toBe("10.20.0.8");
    expect((await client.get(blockKey("10-20-0-0-29")))?.value.spec).toEqual({ leases: 3 });
  });

  test("a block changed by another hand is read again, and one taken away is given up", async () => {
    const storage = new MemoryStorage();
    const client = storage.client();
    await using ipam = await open(storage, { pools: [{ ...V4, blockSize: 29 }] });
    await ipam.acquire(leaseFor("a"));
    const block = (await client.get(blockKey("10-20-0-0-29")))!;
    const spec = block.value.spec as { leases: unknown[]; free: unknown[] };
    await client.commit([{
      key: block.key,
      value: {
        ...block.value,
        spec: { ...spec, leases: [...spec.leases, { ordinal: 2, handle: "foreign" }], free: [[3, 7, 0]] },
      },
    }]);
    expect(await first(ipam, "b")).toBe("10.20.0.3");
    expect(await first(ipam, "foreign")).toBe("10.20.0.2");
    const now = (await client.get(block.key))!;
    await client.commit([{
      key: now.key,
      value: { ...now.value, spec: { ...now.value.spec as object, node: "beta" } },
    }]);
    expect(await first(ipam, "c")).toBe("10.20.0.8");
    expect((await ipam.collect(new Set(["c"]))).released).toEqual(expect.not.arrayContaining(["a"]));
  });
});

describe("commits", () => {
  test("requests of one turn share a commit; a lone one is one commit", async () => {
    const storage = new MemoryStorage();
    await using ipam = await open(storage, { pools: [{ name: "p", cidr: "10.20.0.0/20" }] });
    const before = storage.commits;
    await ipam.acquire(leaseFor("lone"));
    expect(storage.commits).toBe(before + 1);
    await Promise.all(Array.from({ length: 50 }, (_, i) => ipam.acquire(leaseFor(`h${i}`))));
    expect(storage.commits).toBe(before + 2);
    await Promise.all(Array.from({ length: 50 }, (_, i) => ipam.release(`h${i}`)));
    expect(storage.commits).toBe(before + 3);
    await ipam.release("nobody");
    expect(storage.commits).toBe(before + 3);
  });

  test("a commit has at most 128 writes, however many requests wait", async () => {
    const storage = new MemoryStorage();
    await using ipam = await open(storage, { pools: [{ name: "p", cidr: "10.20.0.0/20" }] });
    let most = 0;
    storage.sabotage = (_, writes) => void (most = Math.max(most, writes.length));
    const also = (name: string) => (): Write[] => [nodeObject(name, {})];
    const leases = await Promise.all(
      Array.from({ length: 600 }, (_, i) => ipam.acquire(leaseFor(`h${i}`, { also: also(`e${i}`) }))),
    );
    expect(new Set(leases.flatMap(texts)).size).toBe(600);
    expect(most).toBeLessThanOrEqual(128);
    expect(most).toBeGreaterThan(100);
  });

  test("acquire and release of one handle in one turn are carried out in order", async () => {
    const storage = new MemoryStorage();
    await using ipam = await open(storage, { pools: [V4] });
    const write = (value: boolean): Write =>
      value ? nodeObject("e", {}) : { key: nodeObject("e", {}).key, value: null };
    const [lease] = await Promise.all([
      ipam.acquire(leaseFor("h", { also: () => [write(true)] })),
      ipam.release("h", [write(false)]),
      ipam.acquire(leaseFor("g")),
    ]);
    expect(texts(lease)).toEqual(["10.20.0.1"]);
    expect(await storage.client().get(nodeObject("e", {}).key)).toBeUndefined();
    expect(await ipam.collect(new Set(["g"]))).toEqual({ released: [], leases: 1 });
  });

  test("what `also` throws fails its own request only", async () => {
    await using ipam = await open(new MemoryStorage(), { pools: [V4] });
    const broken = new Error("broken");
    const [bad, good] = await Promise.allSettled([
      ipam.acquire(leaseFor("bad", {
        also: () => {
          throw broken;
        },
      })),
      ipam.acquire(leaseFor("good")),
    ]);
    expect(bad).toMatchObject({ status: "rejected", reason: broken });
    expect(good.status).toBe("fulfilled");
    expect(await ipam.collect(new Set(["good"]))).toEqual({ released: [], leases: 1 });
  });

  test("a second acquire writes its `also` too", async () => {
    const storage = new MemoryStorage();
    await using ipam = await open(storage, { pools: [V4] });
    await ipam.acquire(leaseFor("h"));
    await ipam.acquire(leaseFor("h", { also: () => [nodeObject("e", {})] }));
    expect(await storage.client().get(nodeObject("e", {}).key)).toBeDefined();
  });

  test("another node's request is refused", async () => {
    await using ipam = await open(new MemoryStorage(), { pools: [V4] });
    expect(await failure(ipam.acquire(leaseFor("h", { node: "beta" })))).toBeInstanceOf(RefusedError);
  });

  test("closing ends what waits with a clear error", async () => {
    const ipam = await open(new MemoryStorage(), { pools: [V4] });
    await ipam[Symbol.asyncDispose]();
    expect(await failure(ipam.acquire(leaseFor("h")))).toBeInstanceOf(UnavailableError);
    expect(await failure(ipam.ready())).toBeInstanceOf(UnavailableError);
  });

  test("work does not grow with the leases held: one block is read and written, whatever else there is", async () => {
    const storage = new MemoryStorage();
    await using ipam = await open(storage, { pools: [{ name: "p", cidr: "10.16.0.0/14" }] });
    for (let from = 0; from < 10_000; from += 500) {
      await Promise.all(Array.from({ length: 500 }, (_, i) => ipam.acquire(leaseFor(`held${from + i}`))));
    }
    const sizes: number[] = [];
    storage.sabotage = (when, writes) =>
      void (when === "before" && sizes.push(JSON.stringify(writes).length, writes.length));
    for (let i = 0; i < 64; i++) await ipam.acquire(leaseFor(`h${i}`));
    expect(sizes.length).toBe(128);
    expect(Math.max(...sizes)).toBeLessThan(8_192);
    expect(sizes.filter((_, i) => i % 2 === 1).every((writes) => writes === 1)).toBe(true);
  });
});

/** mulberry32. */
function random(seed: number): (below: number) => number {
  return (below) => {
    seed = seed + 0x6d2b79f5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) % below;
  };
}

/** What is stored, seen from outside: addresses by handle. @throws where an address is given twice */
async function storedLeases(storage: MemoryStorage): Promise<Map<string, string[]>> {
  const leases = new Map<string, string[]>();
  const seen = new Set<string>();
  for (const { value } of await storage.client().list(BLOCK_KIND)) {
    const spec = value.spec as { cidr: string; leases: { ordinal: number; handle: string }[]; free: number[][] };
    const ordinals = [
      ...spec.leases.map(({ ordinal }) => ordinal),
      ...spec.free.flatMap(([from, to]) => Array.from({ length: to! - from! + 1 }, (_, i) => from! + i)),
    ];
    if (new Set(ordinals).size !== ordinals.length) throw new Error(`${spec.cidr}: an address is both free and leased`);
    for (const { ordinal, handle } of spec.leases) {
      const address = `${spec.cidr}+${ordinal}`;
      if (seen.has(address)) throw new Error(`${address} is given twice`);
      seen.add(address);
      leases.set(handle, [...leases.get(handle) ?? [], address]);
    }
  }
  return leases;
}

describe("random histories", () => {
  const CONFIG = { pools: [{ name: "p", cidr: "10.20.0.0/26", blockSize: 29 }, V6], cooldownSeconds: 5 };

  test.each(Array.from({ length: 12 }, (_, seed) => seed + 1))(
    "seed %i: no address is given twice, leases are stable, the store equals the model",
    async (seed) => {
      const next = random(seed);
      const storage = new MemoryStorage();
      const clock = new TestClock();
      const names = ["alpha", "beta"];
      const nodes = await Promise.all(names.map((name) => open(storage, CONFIG, name, clock)));
      /** Addresses by handle, of each node. */
      const models = names.map(() => new Map<string, string>());
      for (let step = 0; step < 60; step++) {
        const at = next(2);
        const [ipam, model, node] = [nodes[at]!, models[at]!, names[at]!];
        const handle = () => `${node}-${next(24)}`;
        clock.seconds += next(4);
        switch (next(7)) {
          case 0: {
            const live = new Set([...model.keys()].filter(() => next(2) === 0));
            const report = await ipam.collect(live);
            expect(report.released).toEqual([...model.keys()].filter((held) => !live.has(held)).sort());
            for (const gone of report.released) model.delete(gone);
            expect(report.leases).toBe(model.size);
            break;
          }
          case 1:
            await ipam[Symbol.asyncDispose]();
            nodes[at] = await open(storage, CONFIG, node, clock);
            break;
          default: {
            const handles = [...new Set(Array.from({ length: 1 + next(6) }, handle))];
            await Promise.all(handles.map(async (each) => {
              if (next(3) === 0) {
                model.delete(each);
                return ipam.release(each);
              }
              const families = next(2) === 0 ? [4] as const : [4, 6] as const;
              try {
                const lease = await ipam.acquire(leaseFor(each, { node, families }));
                if (model.has(each)) expect(texts(lease).join()).toBe(model.get(each)!);
                model.set(each, texts(lease).join());
              } catch (error) {
                expect(error).toBeInstanceOf(ExhaustedError);
                expect(model.has(each)).toBe(false);
              }
            }));
          }
        }
        const stored = await storedLeases(storage);
        expect([...stored.keys()].sort()).toEqual(models.flatMap((each) => [...each.keys()]).sort());
        const all = models.flatMap((each) => [...each.values()]).flatMap((text) => text.split(","));
        expect(new Set(all).size).toBe(all.length);
      }
      await Promise.all(nodes.map((ipam) => ipam[Symbol.asyncDispose]()));
    },
  );

  const FAILURES: [string, "before" | "after", () => Error][] = [
    ["is refused", "before", () => new UnavailableError("injected")],
    ["is carried out but its answer is lost", "after", () => new UnavailableError("injected")],
    ["conflicts on a key that nobody knows", "before", () => new ConflictError(["Foreign//x"])],
  ];
  test.each(FAILURES)(
    "the n-th commit %s, for every n: no leak, no double, and all can go on",
    async (_, when, make) => {
      for (let n = 1;; n++) {
        const storage = new MemoryStorage();
        await using ipam = await open(storage, CONFIG);
        let count = 0;
        storage.sabotage = (now) => {
          if (now === when && ++count === n) throw make();
        };
        const asked = Array.from({ length: 9 }, (_, i) => `h${i}`);
        const endpoint = (handle: string) => nodeObject(`endpoint-${handle}`, {});
        const tries: Promise<unknown>[] = [];
        const attempt = (work: Promise<unknown>) => {
          tries.push(work.catch((error) => expect(error.message).toContain(make().message)));
          return tries.at(-1)!;
        };
        await Promise.all(
          asked.slice(0, 5).map((handle) =>
            attempt(ipam.acquire(leaseFor(handle, { families: [4, 6], also: () => [endpoint(handle)] })))
          ),
        );
        for (const handle of asked.slice(5)) {
          await attempt(
            ipam.acquire(leaseFor(handle, { also: () => [endpoint(handle)] })),
          );
        }
        await Promise.all(
          ["h1", "h6"].map((handle) => attempt(ipam.release(handle, [{ ...endpoint(handle), value: null }]))),
        );
        await attempt(ipam.collect(new Set(asked.filter((handle) => handle !== "h2"))));
        const finished = count < n;
        storage.sabotage = undefined;

        // The lease and what is written with it stand and fall together.
        const stored = await storedLeases(storage);
        for (const handle of asked) {
          const there = await storage.client().get(endpoint(handle).key) !== undefined;
          if (handle !== "h2") expect([handle, stored.has(handle)]).toEqual([handle, there]);
        }
        // Whoever was refused can ask again, and gets what the store already says.
        for (const handle of asked) {
          const lease = await ipam.acquire(leaseFor(handle, { families: [4, 6] }));
          if (stored.has(handle)) expect(lease.addresses.length).toBe(stored.get(handle)!.length);
        }
        const all = await Promise.all(asked.map((handle) => ipam.acquire(leaseFor(handle, { families: [4, 6] }))));
        expect(new Set(all.flatMap(texts)).size).toBe(all.flatMap(texts).length);
        expect([...(await storedLeases(storage)).keys()].sort()).toEqual(asked);
        for (const handle of asked) await ipam.release(handle);
        expect((await storedLeases(storage)).size).toBe(0);
        if (finished) break;
        expect(n).toBeLessThan(40);
      }
    },
  );
});

test("pools and blocks show in usage with their prefixes", async () => {
  await using ipam = await open(new MemoryStorage(), { pools: [V4, V6] });
  await ipam.acquire(leaseFor("h", { families: [4, 6] }));
  const shown = (await ipam.usage()).map(({ cidr, capacity, ...rest }) => ({
    ...rest,
    cidr: formatCidr(cidr),
    capacity: Number(capacity),
  }));
  expect(shown).toEqual([
    { pool: "v4", cidr: "10.20.0.0/27", capacity: 30, used: 1, blocks: 1 },
    { pool: "v6", cidr: "fd00:20::/120", capacity: 255, used: 1, blocks: 1 },
  ]);
});
