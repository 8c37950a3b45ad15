import { expect, test } from "bun:test";
import { NftMessage } from "../../src/kernel/netlink/schema/nftables.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import type { NetlinkMessage } from "../../src/sdk/kernel_door.ts";
import { diff, transactions } from "./diff.ts";
import { elementsOf, type NftChain, type NftSet, type Rule, type Ruleset } from "./ruleset.ts";

const ruleset = (sets: Readonly<Record<string, NftSet>>, chains: Readonly<Record<string, NftChain>>): Ruleset => ({
  sets: persistentMap(Object.entries(sets)),
  chains: persistentMap(Object.entries(chains)),
});
const ADDRESS = "\x0a\0\0\x01";
const PLAIN: NftSet = {
  fields: ["ipv4_addr"],
  interval: false,
  map: false,
  elements: elementsOf([[ADDRESS, true]]),
};
const INTERVALS: NftSet = { ...PLAIN, interval: true, elements: elementsOf([[ADDRESS + "\x0a\0\0\x07", true]]) };
const BASE = { type: "filter", hook: "forward", priority: 0, policy: "accept" } as const;
const asks = (set: string): Rule => [
  { op: "payload", base: "network", offset: 16, length: 4, dreg: 0 },
  { op: "lookup", set, sreg: 0, invert: false },
  { op: "verdict", verdict: { kind: "drop" } },
];
const NAMES = new Map(Object.entries(NftMessage).map(([name, number]) => [number as number, name]));
const kinds = (messages: readonly NetlinkMessage[]) => messages.map(({ type }) => NAMES.get(type) ?? String(type));

const before = ruleset({ s: PLAIN }, { base: { base: BASE, rules: [asks("s")] } });

test("a new set of intervals is committed before the rules that ask it", () => {
  const after = ruleset({ n: INTERVALS }, { base: { base: BASE, rules: [asks("n")] }, own: { rules: [asks("n")] } });
  const batches = transactions(before, after);
  expect(batches.map(kinds)).toEqual([
    ["NewSet", "NewChain", "NewElement", "NewRule"],
    ["DeleteRule", "NewRule", "DeleteSet"],
  ]);
  // Nothing is said twice and nothing is left out.
  expect(kinds(batches.flat()).sort()).toEqual(kinds(diff(before, after)).sort());
});

test("on a node that has no table yet the base chains come last", () => {
  expect(transactions(undefined, ruleset({ n: INTERVALS }, { base: { base: BASE, rules: [asks("n")] } })).map(kinds))
    .toEqual([["NewTable", "NewSet", "NewElement"], ["NewChain", "NewRule"]]);
});

test("everything else is one transaction, and nothing is none", () => {
  const plain = ruleset({ p: PLAIN }, { base: { base: BASE, rules: [asks("p")] } });
  expect(transactions(before, plain)).toEqual([diff(before, plain)]);
  const bare = ruleset({ n: INTERVALS }, {}), more = ruleset({ n: { ...INTERVALS, elements: elementsOf([]) } }, {});
  expect(transactions(bare, more)).toEqual([diff(bare, more)]);
  expect(transactions(before, before)).toEqual([]);
});
