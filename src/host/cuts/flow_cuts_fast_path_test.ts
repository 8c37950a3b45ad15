/** Established flows on the dataplane's short way follow policy as all others do. */
import { expect, test } from "bun:test";
import { fastNode, pod, PODS, short, shorten, talk, tcpFlow } from "../../../dataplanes/nftables/testdata/fast_node.ts";
import { carries } from "../../lab/testdata/live_flow.ts";
import type { DesiredState, RouteState } from "../../model/desired.ts";
import { persistentMap } from "../../model/persistent_map.ts";
import { CLOSED, state } from "../../model/testdata/small_states.ts";
import { systemClock } from "../clock.ts";
import { silentLog } from "../log.ts";
import { FlowCuts } from "./flow_cuts.ts";

const SILENCE_MS = 250;
const TEST_DEADLINE_MS = 30_000;
const ROUTES: RouteState = { generation: 1, routes: persistentMap(), localBlocks: [] };

for (const family of [4, 6] as const) {
  test(`IPv${family}: a change that denies a flow cuts it on its short way, both ways, and no other`, async () => {
    await using node = await fastNode();
    const { dataplane, kernel } = node;
    const cuts = new FlowCuts({
      kernel,
      clock: systemClock,
      log: silentLog,
      mark: dataplane.cutMark!,
      isOn: true,
      recheck: () => dataplane.recheckFlows!(),
    });
    using stop = new DisposableStack();
    const end = new AbortController();
    stop.defer(() => end.abort());
    const running = cuts.run(end.signal);
    const enforce = async (desired: DesiredState) => {
      expect(await dataplane.apply(desired)).toMatchObject({ converged: true, problems: [] });
      const { passes } = cuts.view();
      await cuts.inForce({ desired, routes: ROUTES });
      // A packet of the flow may have brought it back on the short way before it is looked at.
      while (cuts.view().passes === passes) {
        talk(denied, 50);
        await Bun.sleep(1);
      }
    };
    using denied = tcpFlow(node, "a", "b", family), allowed = tcpFlow(node, "a", "c", family);
    await enforce({ ...PODS, generation: 2 });
    await shorten(node, denied, "a", "b", family);
    await shorten(node, allowed, "a", "c", family);
    await enforce({
      ...state({ workloads: [pod("a"), pod("b", { ingress: CLOSED }), pod("c")] }),
      generation: 3,
    });
    expect(cuts.view()).toMatchObject({ cut: 1, restored: 0, pending: 0 });
    expect([await carries(denied, "server", SILENCE_MS), await carries(denied, "client", SILENCE_MS)]).toEqual([
      false,
      false,
    ]);
    await shorten(node, allowed, "a", "c", family);
    expect(short(node.namespace, denied, "a", "b", family)).toBe("");
    expect(allowed.received).toEqual({ client: allowed.sent.server, server: allowed.sent.client });
    end.abort();
    await running;
  }, TEST_DEADLINE_MS);
}
