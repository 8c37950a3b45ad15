/** Counters of real packets: what they say, and what they survive. */
import { describe, expect, test } from "bun:test";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import {
  dataplaneCounters,
  edited,
  EIGHT_RULES,
  from,
  knock,
  listOf,
  port,
  textOf,
  worldOf,
} from "../../test/contract/dataplane_counters.ts";
import { node } from "../../test/contract/dataplane_node.ts";
import { policy, rule } from "../../src/model/testdata/small_states.ts";
import { commentOf, countKey, keyOf } from "./counters.ts";
import { openDataplane } from "./testdata/open.ts";

describe.each(["flat", "linear"])("nftables (%s)", (form) => {
  dataplaneCounters((namespace) => openDataplane(namespace, { form }), EIGHT_RULES);

  test("the tool shows a counter beside the decision that it counts", async () => {
    await using here = await node((namespace) => openDataplane(namespace, { form }));
    await here.dataplane.apply(worldOf(listOf(EIGHT_RULES.policy)));
    knock(here, "a 80\na 80\na 80 v6");
    runIn(here.node, "nft", "-j", "list", "ruleset");
    expect(runIn(here.node, "nft", "list", "ruleset")).toMatch(
      /counter packets 3 bytes 200 comment "ingress rule 0 of NetworkPolicy\/x\/p"|packets 2 bytes 120/,
    );
  });
});

test("counters survive a change of their policy", async () => {
  await using here = await node((namespace) => openDataplane(namespace));
  const { policy: whole, knocks, ofAll } = EIGHT_RULES;
  const before = listOf(whole);
  await here.dataplane.apply(worldOf(before));
  knock(here, knocks);

  // A rule is known by its place: what it says may change as well.
  const other = edited(EIGHT_RULES);
  await here.dataplane.apply(worldOf(other, 2));
  expect(textOf(await here.dataplane.counts!(other))).toEqual(ofAll);
  expect(await here.dataplane.counts!(before)).toEqual([]);
});

test("a counter whose place another rule takes begins anew", async () => {
  await using here = await node((namespace) => openDataplane(namespace));
  const rules = [80, 81, 82, 83].map((at) =>
    rule("allow", { protocol: 6, from: from("pods"), to: { ports: port(at) } })
  );
  const first = listOf(policy("NetworkPolicy/x/p", ...rules), policy("NetworkPolicy/x/q", ...rules));
  await here.dataplane.apply(worldOf(first));
  knock(here, "a 80");
  expect(textOf(await here.dataplane.counts!(first))).toEqual(["p 0: 1"]);
  const second = listOf(policy("NetworkPolicy/x/p", ...rules.slice(1)), policy("NetworkPolicy/x/q", ...rules));
  await here.dataplane.apply(worldOf(second, 2));
  expect(textOf(await here.dataplane.counts!(second))).toEqual([]);
  knock(here, "a 80");
  expect(textOf(await here.dataplane.counts!(second))).toEqual(["q 0: 1"]);
});

const cause = (index: number, name = "NetworkPolicy/x/p") => ({
  logs: false,
  decision: { by: "rule", tier: "t", policy: name, origin: { policy: name, direction: "ingress", index } } as const,
});

test("comments are printable, short, and others for other decisions", () => {
  expect(commentOf([cause(3)])).toBe("ingress rule 3 of NetworkPolicy/x/p");
  const long = "NetworkPolicy/x/" + "p".repeat(200);
  const all = [
    commentOf([cause(0, long)]),
    commentOf([cause(0, `${long}q`)]),
    commentOf([cause(0, "ä")]),
    commentOf([cause(0, "ö")]),
    commentOf([cause(0), cause(1)]),
    commentOf([cause(0), cause(2)]),
  ];
  expect(new Set(all).size).toBe(all.length);
  for (const one of all) expect(one).toMatch(/^[\x20-\x7e]{1,125}$/);
});

test("keys are 16 bytes and tell decisions and scopes apart", () => {
  const keys = [
    countKey([cause(0)]),
    countKey([cause(1)]),
    countKey([cause(0), cause(1)]),
    countKey([cause(0)], "scope"),
    keyOf(""),
  ];
  expect(new Set(keys).size).toBe(keys.length);
  for (const key of keys) expect(key).toMatch(/^[\0-\xff]{16}$/);
  expect(countKey([{ ...cause(0) }])).toBe(keys[0]!);
});
