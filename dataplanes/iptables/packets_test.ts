/** Real packets between namespaces through a node whose rules we wrote. */
import { afterAll, expect, test } from "bun:test";
import { parseAddress } from "../../src/model/address.ts";
import type { DesiredState, PolicyList } from "../../src/model/desired.ts";
import { judgePath } from "../../src/model/evaluate.ts";
import { random, someList, someSets } from "../../src/model/testdata/random_lists.ts";
import { list, state, workload } from "../../src/model/testdata/small_states.ts";
import { NODE, node, PLACES, reachesAll } from "../../test/contract/dataplane_node.ts";
import { dataplaneReach } from "../../test/contract/dataplane_reach.ts";
import { openDataplane } from "./testdata/open.ts";
import { removeLocks } from "./testdata/tools.ts";

afterAll(removeLocks);

dataplaneReach((namespace) => openDataplane(namespace));

test("random worlds: packets fare as the evaluator says, from pods, the outside and the node itself", async () => {
  await using here = await node((namespace) => openDataplane(namespace));
  const r = random(20_26);
  // What ends at a workload is never left undecided.
  const decided = (long: number): PolicyList => {
    const { tiers, profiles } = someList(r, long);
    return list(tiers, profiles);
  };
  let answered = 0, silent = 0;
  for (let round = 0; round < 12; round++) {
    // Answers of untracked packets would be judged as well: those policies are walked by the tracer only.
    const hostLists = () => ({ ingress: decided(6), egress: decided(6), forwardIngress: decided(6) });
    const world: DesiredState = {
      ...state({
        generation: round + 1,
        workloads: (["a", "b"] as const).map((name) =>
          workload(name, PLACES[name]!.link, [PLACES[name]!.v4, PLACES[name]!.v6], {
            ingress: decided(8),
            egress: decided(8),
          })
        ),
        hostEndpoints: r.chance(0.6) ? [{ id: "h", interfaces: r.chance(0.5) ? "*" : ["eth0"], ...hostLists() }] : [],
        failsafe: { inbound: [{ protocol: 6, port: 22 }], outbound: [{ protocol: 6, port: 53 }] },
      }),
      sets: someSets(r),
    };
    const report = await here.dataplane.apply(world);
    expect(report.converged).toBe(true);
    const names = ["a", "b", "out", "node"] as const;
    const attempts = names.flatMap((from) =>
      names.filter((to) => to !== from).flatMap((to) =>
        (["v4", "v6"] as const).flatMap((family) =>
          [22, 53, 80, 443, 8080].map((port) => ({
            from: from === "node" ? here.node : here.places[from]!,
            address: (to === "node" ? NODE : PLACES[to]!)[family],
            port,
            inInterface: from === "node" ? undefined : PLACES[from]!.link,
            outInterface: to === "node" ? undefined : PLACES[to]!.link,
            text: `${from} > ${to} ${family} ${port}`,
          }))
        )
      )
    );
    const found = reachesAll(attempts);
    const wrong = attempts.flatMap(({ address, port, inInterface, outInterface, text }, i) => {
      const { source, sourcePort, answered: yes } = found[i]!;
      const packet = { protocol: 6, source, destination: parseAddress(address), sourcePort, destinationPort: port };
      const { verdict } = judgePath(world, {
        packet,
        ...inInterface === undefined ? {} : { inInterface },
        ...outInterface === undefined ? {} : { outInterface },
      });
      if (yes) answered++;
      else silent++;
      return yes === (verdict === "allow")
        ? []
        : [`round ${round}: ${text}: found ${yes ? "an answer" : "silence"}, wanted ${verdict}`];
    });
    expect(wrong).toEqual([]);
  }
  expect(Math.min(answered, silent)).toBeGreaterThan(100);
}, 30_000);
