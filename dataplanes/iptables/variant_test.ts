import { afterAll, expect, test } from "bun:test";
import { createNamespace } from "../../src/kernel/netns.ts";
import { openNetlink } from "../../src/kernel/netlink/socket.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { openXtables } from "../../src/kernel/xtables.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { netSet, rule, rules, setId, state, workload } from "../../src/model/testdata/small_states.ts";
import { LegacyTables } from "./legacy.ts";
import { openDataplane } from "./testdata/open.ts";
import { iptablesOf, removeLocks, save, type Variant } from "./testdata/tools.ts";
import { chooseVariant, legacyTraces, nftTraces, type Traces } from "./variant.ts";

afterAll(removeLocks);

const NOTHING: Traces = { rules: false, hint: false };
const RULES: Traces = { rules: true, hint: false };
const HINT: Traces = { rules: true, hint: true };

const world = state({
  sets: [netSet("web", "10.0.0.1", "fd00::1")],
  workloads: [
    workload("w", "mx1", ["10.0.0.2", "fd00::2"], {
      ingress: rules(rule("allow", { from: { sets: [setId("web")] } })),
    }),
  ],
  masquerade: { sources: ["10.0.0.0/16"], inside: ["10.0.0.0/8"] },
});

test.each<readonly [Traces | undefined, Traces | undefined, Variant | undefined, Variant]>([
  // Legacy, nft, the host's link.
  [NOTHING, NOTHING, undefined, "legacy"],
  [NOTHING, NOTHING, "nft", "nft"],
  [NOTHING, NOTHING, "legacy", "legacy"],
  [undefined, NOTHING, "legacy", "nft"],
  [NOTHING, undefined, "nft", "legacy"],
  [RULES, NOTHING, "nft", "legacy"],
  [NOTHING, RULES, "legacy", "nft"],
  [RULES, RULES, "nft", "nft"],
  [RULES, HINT, "legacy", "nft"],
  [HINT, RULES, "nft", "legacy"],
  [HINT, HINT, "nft", "nft"],
])("legacy %o, nft %o, link %s: %s", (legacy, nft, link, wanted) => {
  expect(chooseVariant({ legacy, nft }, link).variant).toBe(wanted);
});

function traces(namespace: NetworkNamespace): Record<Variant, Traces> {
  using netlink = openNetlink(12, { namespace });
  using legacy = new LegacyTables(new Map([[4, openXtables(4, namespace)]]));
  return { legacy: legacyTraces(legacy), nft: nftTraces(netlink, new Set([4, 6])) };
}

test.each(["legacy", "nft"] as const)("what others have in %s counts, what is ours does not", async (variant) => {
  using namespace = createNamespace("traces");
  await using dataplane = await openDataplane(namespace, { variant });
  expect((await dataplane.apply(world)).converged).toBe(true);
  expect(traces(namespace)).toEqual({ legacy: NOTHING, nft: NOTHING });
  iptablesOf(variant, namespace, 4, "-A", "FORWARD", "-s", "192.0.2.1", "-j", "ACCEPT");
  expect(traces(namespace)).toEqual({ legacy: NOTHING, nft: NOTHING, [variant]: RULES });
  iptablesOf(variant, namespace, 4, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT");
  expect(traces(namespace)).toEqual({ legacy: NOTHING, nft: NOTHING, [variant]: HINT });
});

test.each([["legacy", "nft"], ["nft", "legacy"]] as const)(
  "whoever goes from %s to %s takes the rules of before away, once the others are in force, and nothing else",
  async (from, to) => {
    using namespace = createNamespace("change of variant");
    for (const variant of ["legacy", "nft"] as const) {
      iptablesOf(variant, namespace, 4, "-A", "FORWARD", "-s", "192.0.2.1", "-j", "ACCEPT");
    }
    const theirs = save(namespace, 4, { variant: from });
    {
      await using before = await openDataplane(namespace, { variant: from });
      expect((await before.apply(world)).converged).toBe(true);
    }
    expect(save(namespace, 4, { variant: from })).toContain("manx-forward");
    await using after = await openDataplane(namespace, { variant: to });
    const report = await after.apply(world);
    expect(report).toMatchObject({ converged: true, problems: [] });
    expect(save(namespace, 4, { variant: to })).toContain(
      "-A FORWARD -j manx-forward\n-A FORWARD -s 192.0.2.1/32 -j ACCEPT",
    );
    const filter = (text: string) => text.split("*filter")[1]!.split("COMMIT")[0];
    expect(filter(save(namespace, 4, { variant: from }))).toBe(filter(theirs));
    for (const family of [4, 6] as const) expect(save(namespace, family, { variant: from })).not.toContain("manx");
    expect((await after.apply({ ...world, generation: 2 })).messages).toBe(0);
    // Both, though one of them is not written to.
    expect((await after.sweep()).converged).toBe(true);
    expect(runIn(namespace, "ipset", "list", "-n")).toBe("");
  },
);

test("auto follows the rules that there are", async () => {
  using namespace = createNamespace("auto");
  for (const [variant, other] of [["legacy", "nft"], ["nft", "legacy"]] as const) {
    iptablesOf(variant, namespace, 4, "-A", "FORWARD", "-s", "192.0.2.1", "-j", "ACCEPT");
    await using dataplane = await openDataplane(namespace, { variant: "auto" });
    expect((await dataplane.apply(world)).converged).toBe(true);
    expect(save(namespace, 4, { variant })).toContain("manx-forward");
    expect(save(namespace, 4, { variant: other })).not.toContain("manx");
    iptablesOf(variant, namespace, 4, "-D", "FORWARD", "-s", "192.0.2.1", "-j", "ACCEPT");
  }
});
