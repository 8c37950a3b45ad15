/** Counters of real packets: what they say, and what they survive. */
import { afterAll, describe, expect, test } from "bun:test";
import {
  dataplaneCounters,
  edited,
  from,
  knock,
  listOf,
  port,
  TEN_RULES,
  textOf,
  worldOf,
} from "../../test/contract/dataplane_counters.ts";
import { node } from "../../test/contract/dataplane_node.ts";
import { policy, rule } from "../../src/model/testdata/small_states.ts";
import { openDataplane } from "./testdata/open.ts";
import { removeLocks } from "./testdata/tools.ts";

afterAll(removeLocks);

describe.each(["legacy", "nft"] as const)("iptables (%s)", (variant) => {
  dataplaneCounters((namespace) => openDataplane(namespace, { variant }), TEN_RULES);

  test("rules that are one in the kernel are counted together, and a rule's count is that of all endpoints", async () => {
    await using here = await node((namespace) => openDataplane(namespace, { variant }));
    const many = listOf(
      policy(
        "NetworkPolicy/x/many",
        ...["pods", "outside", "nets", "none"].map((set) =>
          rule("allow", { protocol: 6, from: from(set), to: { ports: port(80) } })
        ),
      ),
    );
    // The same rules judge what the other pod sends, in a list with another one behind them.
    const other = listOf(...many.tiers[0]!.policies, policy("NetworkPolicy/x/all", rule("allow", {})));
    await here.dataplane.apply(worldOf(many, 1, other));
    expect(knock(here, "a 80")).toEqual([true]);
    const together = "many 0 + many 1 + many 2 + many 3";
    expect(textOf(await here.dataplane.counts!(many))).toEqual([`${together}: 2`]);
    expect(textOf(await here.dataplane.counts!(other))).toEqual([`${together}: 2`]);
  });
});

test("counters survive a change of their policy, but not that of the rule whose place another one takes", async () => {
  await using here = await node((namespace) => openDataplane(namespace, { variant: "legacy" }));
  const { policy: whole, knocks, ofRules } = TEN_RULES;
  const before = listOf(whole);
  await here.dataplane.apply(worldOf(before));
  knock(here, knocks);
  // A rule is known by its place: what it says may change as well. A default is its list's own.
  const other = edited(TEN_RULES);
  await here.dataplane.apply(worldOf(other, 2));
  expect(textOf(await here.dataplane.counts!(other))).toEqual(ofRules);
  expect(await here.dataplane.counts!(before)).toEqual([]);
  knock(here, "a 80");
  expect(textOf(await here.dataplane.counts!(other))).toEqual(["p 0: 4", ...ofRules.slice(1)]);

  const another = policy("NetworkPolicy/x/q", ...whole.rules.map((one) => ({ ...one, protocol: 17 })));
  const others = listOf(another, whole);
  await here.dataplane.apply(worldOf(others, 3));
  expect(textOf(await here.dataplane.counts!(others))).toEqual(["p 0: 4", ...ofRules.slice(1)]);
  const gone = listOf(another);
  await here.dataplane.apply(worldOf(gone, 4));
  expect(textOf(await here.dataplane.counts!(gone))).toEqual([]);
});
