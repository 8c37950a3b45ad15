/** The two embedded defaults together: address blocks in a database file, several nodes on one file. */
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sqlite from "../../plugins/datastore/sqlite/mod.ts";
import block from "../../plugins/ipam/block/mod.ts";
import { formatAddress } from "../../src/model/address.ts";
import type { Datastore } from "../../src/sdk/datastore.ts";
import type { Ipam } from "../../src/sdk/ipam.ts";
import type { Host } from "../../src/sdk/plugin.ts";
import { ipamContract, leaseFor, NODE } from "./ipam.ts";

const { signal } = new AbortController();
const silent = { debug() {}, info() {}, warn() {}, error() {} };

function hostOf(stateDirectory: string, node: string, datastore?: Datastore): Host {
  return {
    node,
    log: silent,
    clock: { nowMs: () => performance.now(), wallMs: () => Date.now(), sleep: (ms) => Bun.sleep(ms) },
    stateDirectory,
    get datastore(): Datastore {
      return datastore!;
    },
    get kernel(): never {
      throw new Error("not needed");
    },
  };
}

async function openNode(
  directory: string,
  node: string,
  pools: readonly unknown[],
  stack: AsyncDisposableStack,
): Promise<Ipam> {
  const datastore = stack.use(await sqlite.open(sqlite.parseConfig(undefined), hostOf(directory, node), signal));
  return stack.use(await block.open(block.parseConfig({ pools }), hostOf(directory, node, datastore), signal));
}

function scratch(stack: AsyncDisposableStack): string {
  const directory = mkdtempSync(join(tmpdir(), "manx-block-"));
  stack.defer(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

const POOLS = [
  { name: "v4", cidr: "10.20.0.0/27", blockSize: 29 },
  { name: "v6", cidr: "fd00:20::/120", blockSize: 124 },
];

ipamContract("block on sqlite", async () => {
  const outer = new AsyncDisposableStack();
  const directory = scratch(outer);
  const datastore = outer.use(await sqlite.open(sqlite.parseConfig(undefined), hostOf(directory, NODE), signal));
  const openIpam = () => block.open(block.parseConfig({ pools: POOLS }), hostOf(directory, NODE, datastore), signal);
  let ipam = await openIpam();
  return {
    get ipam() {
      return ipam;
    },
    datastore,
    reopen: async () => {
      await ipam[Symbol.asyncDispose]();
      return ipam = await openIpam();
    },
    [Symbol.asyncDispose]: async () => {
      await ipam[Symbol.asyncDispose]();
      await outer.disposeAsync();
    },
  };
});

test("four nodes on one database file, opened and asked at once, share the pool without a double", async () => {
  await using stack = new AsyncDisposableStack();
  const directory = scratch(stack);
  const pools = [{ name: "p", cidr: "10.20.0.0/22", blockSize: 28 }];
  const names = ["n0", "n1", "n2", "n3"];
  const nodes = await Promise.all(names.map((node) => openNode(directory, node, pools, stack)));
  const leases = await Promise.all(
    nodes.flatMap((ipam, at) =>
      Array.from({ length: 60 }, (_, i) => ipam.acquire(leaseFor(`${names[at]}-${i}`, { node: names[at]! })))
    ),
  );
  expect(new Set(leases.flatMap(({ addresses }) => addresses.map(formatAddress))).size).toBe(240);
  expect((await nodes[0]!.usage())[0]).toMatchObject({ pool: "p", used: 240 });
});
