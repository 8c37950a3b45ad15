import { expect, test } from "bun:test";
import { random, someList, somePacket, someSets } from "../../../src/model/testdata/random_lists.ts";
import { list, policy, rule as policyRule, state, tier, workload } from "../../../src/model/testdata/small_states.ts";
import { freeBits } from "../config.ts";
import { Renderer, type RenderOptions } from "../render.ts";
import { CHAIN_NAME_MAX_BYTES, type Ruleset, type Table } from "../ruleset.ts";
import { type TracedPacket, tracePath } from "../trace.ts";
import { Bounder, LEVELS_MAX } from "./bounded.ts";

const options: RenderOptions = { logGroup: 86, passedMark: 0x10000, cutMark: 0x20000, families: [4, 6], nat: true };
const FREE_MARK = freeBits(0xffff0000);

/** Chains on the longest way from a hook. */
function waysOf({ chains, hooks }: Table): number {
  const known = new Map<string, number>();
  const below = (name: string): number => {
    let long = known.get(name);
    if (long === undefined) {
      long = 1;
      for (const { target } of chains.get(name)!) {
        if ("chain" in target) long = Math.max(long, 1 + below(target.chain));
      }
      known.set(name, long);
    }
    return long;
  };
  return Math.max(0, ...[...hooks.values()].map(below));
}

const bound = ({ tables, sets }: Ruleset, bounder = new Bounder(FREE_MARK)): Ruleset => ({
  tables: tables.map((table) => bounder.table(table)),
  sets,
});

/** Each of its rules is asked for itself, and goes on. */
const longList = (name: string) =>
  list(
    [
      tier(
        name,
        "deny",
        policy(
          name,
          ...Array.from(
            { length: 40 },
            (_, i) => policyRule("log", { protocol: 6, to: { ports: [{ first: i, last: i }] } }),
          ),
        ),
      ),
    ],
    [],
    name as "deny",
  );

test("what is short enough is the same table", () => {
  const { ruleset: { tables } } = new Renderer(options).render(
    state({ workloads: [workload("w", "mx1", ["10.0.0.1"], { ingress: list([], []) })] }),
  );
  for (const table of tables) expect(new Bounder(FREE_MARK).table(table)).toBe(table);
});

test("random lists are cut into pieces that the kernel takes, and decide and log as before, with nothing left in the mark", () => {
  let cut = 0, longest = 0;
  for (let seed = 1; seed <= 40; seed++) {
    const r = random(seed * 104_729);
    const long = seed % 4 === 0 ? 40 : 15;
    const sets = someSets(r), ingress = someList(r, long), egress = someList(r, long);
    const workloads = [workload("w", "mx1", ["10.0.0.1", "fd00::1"], { ingress, egress })];
    const { ruleset } = new Renderer(options).render({ ...state({ workloads }), sets });
    const bounded = bound(ruleset);
    ruleset.tables.forEach((table, i) => {
      longest = Math.max(longest, waysOf(table));
      if (bounded.tables[i] === table) return;
      cut++;
      expect(waysOf(bounded.tables[i]!)).toBeLessThanOrEqual(LEVELS_MAX);
      for (const name of bounded.tables[i]!.chains.keys()) {
        expect(name.length).toBeLessThanOrEqual(CHAIN_NAME_MAX_BYTES);
      }
    });
    for (let i = 0; i < 40; i++) {
      // Nothing of the free bits on its way in, or all of them: then somebody else's.
      const packet = { ...somePacket(r), mark: i % 4 === 0 ? FREE_MARK : 0 } as TracedPacket;
      for (
        const links of [{ inInterface: "eth0", outInterface: "mx1" }, { inInterface: "mx1", outInterface: "eth0" }]
      ) {
        const [wanted, found] = [ruleset, bounded].map((one) =>
          tracePath(one, { packet, ...links }).map(({ hook, verdict, logged, mark }) => ({
            hook,
            verdict,
            logged,
            mark: (mark & ~FREE_MARK) >>> 0,
          }))
        );
        expect({ seed, i, found }).toEqual({ seed, i, found: wanted });
      }
    }
  }
  expect(cut).toBeGreaterThan(30);
  expect(longest).toBeGreaterThan(40);
});

test("a list that stays keeps its pieces, the same objects, whatever becomes of others", () => {
  const renderer = new Renderer(options), bounder = new Bounder(FREE_MARK);
  const one = workload("a", "mxa", ["10.0.0.1"], { ingress: longList("one") });
  const before = bound(renderer.render(state({ workloads: [one] })).ruleset, bounder);
  const two = workload("b", "mxb", ["10.0.0.2"], { ingress: longList("two") });
  const after = bound(renderer.render(state({ generation: 2, workloads: [one, two] })).ruleset, bounder);
  const filterOf = ({ tables }: Ruleset) => tables.find(({ family, table }) => family === 4 && table === "filter")!;
  const pieces = [...filterOf(before).chains].filter(([name]) => name.startsWith("manx-k-"));
  expect(pieces.length).toBeGreaterThan(20);
  for (const [name, rules] of pieces) expect(filterOf(after).chains.get(name)).toBe(rules);
  expect([...filterOf(after).chains.keys()].filter((name) => name.startsWith("manx-k-")).length).toBe(
    2 * pieces.length,
  );
});

test("without bits enough for the numbers of its pieces a list stays as it is, for the kernel to refuse", () => {
  const world = state({ workloads: [workload("a", "mxa", ["10.0.0.1"], { ingress: longList("one") })] });
  const table = new Renderer(options).render(world).ruleset.tables.find((one) => one.table === "filter")!;
  expect(waysOf(table)).toBeGreaterThan(LEVELS_MAX);
  expect(waysOf(new Bounder(0).table(table))).toBe(waysOf(table));
  expect(waysOf(new Bounder(FREE_MARK).table(table))).toBeLessThanOrEqual(LEVELS_MAX);
});
