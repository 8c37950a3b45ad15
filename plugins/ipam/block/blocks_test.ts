import { describe, expect, test } from "bun:test";
import { formatAddress, formatCidr, parseAddress, parseCidrStrict } from "../../../src/model/address.ts";
import type { Resource } from "../../../src/model/resource.ts";
import {
  type Block,
  blockAddress,
  blockName,
  blockNameCidr,
  blockOrdinal,
  blockResource,
  lease,
  newBlock,
  readBlock,
  unlease,
} from "./blocks.ts";
import { parseConfig } from "./pools.ts";

const [POOL] = parseConfig({ pools: [{ name: "p", cidr: "10.244.0.0/24", blockSize: 29 }] }).pools;
const block = (cidr: string): Block => newBlock(parseCidrStrict(cidr), "alpha", POOL!);
const ordinals = ({ free }: Block) => free.map(({ ordinal }) => ordinal);

test.each([
  ["10.244.0.0/26", "10-244-0-0-26"],
  ["fd00:10::/122", "fd00-10---122"],
  ["fd00:10:244:1:2:3:4:0/122", "fd00-10-244-1-2-3-4-0-122"],
  ["::/122", "0---122"],
  ["::1:0/122", "0--1-0-122"],
])("the block %s is called %s, and the name says the block", (cidr, name) => {
  expect(blockName(parseCidrStrict(cidr))).toBe(name);
  expect(name).toMatch(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/);
  expect(formatCidr(blockNameCidr(name)!)).toBe(cidr);
});

test.each(["", "x", "10-244-0-26", "10-244-0-1-26", "10-244-0-0-33", "zz-26"])("%p names no block", (name) => {
  expect(blockNameCidr(name)).toBeUndefined();
});

test("the pool's network and broadcast address are in no free order, other blocks are whole", () => {
  expect(ordinals(block("10.244.0.0/29"))).toEqual([1, 2, 3, 4, 5, 6, 7]);
  expect(ordinals(block("10.244.0.8/29"))).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  expect(ordinals(block("10.244.0.248/29"))).toEqual([0, 1, 2, 3, 4, 5, 6]);
});

test("ordinals and addresses are each other's inverse", () => {
  const made = block("10.244.0.8/29");
  expect(formatAddress(blockAddress(made, 3))).toBe("10.244.0.11");
  expect(blockOrdinal(made, parseAddress("10.244.0.11"))).toBe(3);
  expect(() => blockOrdinal(made, parseAddress("10.244.0.16"))).toThrow(RangeError);
});

test("lease and release leave the earlier value as it was; a released address goes last", () => {
  const made = block("10.244.0.0/29");
  const taken = lease(made, { ordinal: 1, handle: "a" })!;
  expect(ordinals(made)).toEqual([1, 2, 3, 4, 5, 6, 7]);
  expect(lease(taken, { ordinal: 1, handle: "b" })).toBeUndefined();
  expect(lease(made, { ordinal: 0, handle: "b" })).toBeUndefined();
  const back = unlease(taken, 1, 77);
  expect(back.free.at(-1)).toEqual({ ordinal: 1, releasedAt: 77 });
  expect(ordinals(back)).toEqual([2, 3, 4, 5, 6, 7, 1]);
  expect(unlease(back, 1, 99)).toBe(back);
});

test("a block is read back from its resource as it was, through JSON", () => {
  let made = block("10.244.0.8/29");
  for (const [ordinal, handle] of [[0, "a"], [1, "b"], [5, "c"]] as const) {
    made = lease(made, { ordinal, handle, attributes: { pod: handle } })!;
  }
  made = unlease(unlease(made, 0, 1_700_000_001), 1, 1_700_000_001);
  const resource: Resource = JSON.parse(JSON.stringify(blockResource(made)));
  expect((resource.spec as { free: unknown }).free).toEqual([
    [2, 4, 0],
    [6, 7, 0],
    [0, 1, 1_700_000_001],
  ]);
  expect(readBlock(resource)).toEqual(made);
});

describe("a stored block that cannot be what was written is described:", () => {
  const good = blockResource(lease(block("10.244.0.8/29"), { ordinal: 0, handle: "a" })!);
  const spec = good.spec as Record<string, unknown>;
  test.each([
    [{ ...good, apiVersion: "ipam.manx/v9" }, "apiVersion: found ipam.manx/v9, wanted ipam.manx/v1"],
    [{ ...good, spec: null }, "spec: found none"],
    [{ ...good, spec: { ...spec, cidr: "10.244.0.9/29" } }, "spec.cidr:"],
    [{ ...good, spec: { ...spec, cidr: "10.244.0.16/29" } }, "wanted that of the name 10-244-0-8-29"],
    [{ ...good, metadata: { name: "10-0-0-0-8" }, spec: { ...spec, cidr: "10.0.0.0/8" } }, "at most 4096 addresses"],
    [{ ...good, spec: { ...spec, node: "" } }, "spec.node:"],
    [{ ...good, spec: { ...spec, leases: {} } }, "spec.leases: found none, wanted a list"],
    [{ ...good, spec: { ...spec, leases: [{ ordinal: 8, handle: "x" }] } }, "spec.leases[0].ordinal:"],
    [{ ...good, spec: { ...spec, leases: [null] } }, "spec.leases[0].ordinal:"],
    [{ ...good, spec: { ...spec, leases: [{ ordinal: 0 }] } }, "spec.leases[0].handle:"],
    [{ ...good, spec: { ...spec, free: [[0, 7, 0]] } }, "spec.free[0]: found 0, wanted each from 0 to 7 once"],
    [{ ...good, spec: { ...spec, free: [[1, 9, 0]] } }, "spec.free[0]: found [1,9,0], wanted [first, last, seconds]"],
    [{ ...good, spec: { ...spec, free: ["1"] } }, "spec.free[0]"],
  ])("case %#", (resource, wanted) => {
    expect(readBlock(resource as Resource)).toBeString();
    expect(readBlock(resource as Resource) as string).toContain(wanted);
  });
});
