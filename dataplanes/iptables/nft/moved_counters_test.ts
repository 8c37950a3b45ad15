/** Counters of a list that changes: its chains are others, and what its rules have counted goes on. */
import { afterAll, expect, test } from "bun:test";
import { policy } from "../../../src/model/testdata/small_states.ts";
import { edited, knock, listOf, TEN_RULES, textOf, worldOf } from "../../../test/contract/dataplane_counters.ts";
import { node } from "../../../test/contract/dataplane_node.ts";
import { openDataplane } from "../testdata/open.ts";
import { iptablesOf, removeLocks } from "../testdata/tools.ts";

afterAll(removeLocks);

/** Where somebody else has come between, whole tables are read, otherwise the chains that change. */
const BETWEEN = ["nobody", "somebody else"] as const;

test.each(BETWEEN)("rules keep their counts when their policy changes and %s writes in between", async (between) => {
  await using here = await node((namespace) => openDataplane(namespace, { variant: "nft" }));
  const { policy: whole, knocks, ofRules } = TEN_RULES;
  const before = listOf(whole);
  await here.dataplane.apply(worldOf(before));
  knock(here, knocks);
  const change = async (list: ReturnType<typeof listOf>, generation: number) => {
    if (between === "somebody else") {
      iptablesOf("nft", here.node, 4, "-I", "FORWARD", "-p", "icmp", "-j", "RETURN");
      for await (const _ of here.dataplane.drift!(AbortSignal.timeout(10_000))) break;
    }
    expect((await here.dataplane.apply(worldOf(list, generation))).problems).toEqual([]);
    return textOf(await here.dataplane.counts!(list));
  };
  // A rule is known by its place: what it says may change as well. A default is its list's own.
  const other = edited(TEN_RULES);
  expect(await change(other, 2)).toEqual(ofRules);
  expect(await here.dataplane.counts!(before)).toEqual([]);
  knock(here, "a 80");
  expect(textOf(await here.dataplane.counts!(other))).toEqual(["p 0: 4", ...ofRules.slice(1)]);

  const another = policy("NetworkPolicy/x/q", ...whole.rules.map((one) => ({ ...one, protocol: 17 })));
  expect(await change(listOf(another, whole), 3)).toEqual(["p 0: 4", ...ofRules.slice(1)]);
  expect(await change(listOf(another), 4)).toEqual([]);
});
