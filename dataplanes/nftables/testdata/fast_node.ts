/** For tests: a node whose established flows take the short way, and what can be seen of that. */
import { addressOf, openPodNode, type Place, PLACES, type PodNode } from "../../../src/host/testdata/pod_node.ts";
import { runIn } from "../../../src/kernel/testdata/tool_fixture.ts";
import { TcpFlow } from "../../../src/lab/testdata/live_flow.ts";
import { formatAddress } from "../../../src/model/address.ts";
import type { DesiredState, PolicyList } from "../../../src/model/desired.ts";
import { state, workload } from "../../../src/model/testdata/small_states.ts";
import type { NetworkNamespace } from "../../../src/sdk/kernel_door.ts";

export const PORT = 80;
/** One in 256 packets is looked at: of so many, fewer than two are less likely than 1 in 1,000,000. */
export const SURELY_SEEN = 6_000;
const DEADLINE_MS = 10_000;

export const pod = (
  name: Exclude<Place, "out">,
  lists: { readonly ingress?: PolicyList; readonly egress?: PolicyList } = {},
) => workload(name, PLACES[name].link, [PLACES[name].v4, PLACES[name].v6], lists);

export const PODS: DesiredState = state({ workloads: [pod("a"), pod("b"), pod("c")] });

export async function fastNode(config: object = {}): Promise<PodNode> {
  const node = await openPodNode({ establishedFastPath: true, ...config });
  const { converged, problems } = await node.dataplane.apply(PODS);
  if (!converged || problems.length > 0) throw new Error(problems.join("; "));
  return node;
}

export const tcpFlow = (node: PodNode, from: Place, to: Place, family: 4 | 6): TcpFlow =>
  new TcpFlow(node.places[from], node.places[to], addressOf(to, family), PORT);

/** Both ends say something, `count` times, and hear it. */
export function talk(flow: TcpFlow, count: number): void {
  for (let i = 0; i < count; i++) {
    flow.say("client");
    flow.listen();
    flow.say("server");
    flow.listen();
  }
}

/** Which directions go the short way: `there`, `back`, `there back`, or nothing. */
export function short(namespace: NetworkNamespace, flow: TcpFlow, from: Place, to: Place, family: 4 | 6): string {
  if (!runIn(namespace, "nft", "list", "tables").includes("table netdev manx-fast")) return "";
  const listed = runIn(namespace, "nft", "list", "map", "netdev", "manx-fast", `flows${family}`);
  const [client, server] = [from, to].map((place) => formatAddress(addressOf(place, family)));
  const there = `"${PLACES[from].link}" . ${client} . ${server} . ${flow.clientPort} . ${PORT} `;
  const back = `"${PLACES[to].link}" . ${server} . ${client} . ${PORT} . ${flow.clientPort} `;
  return [listed.includes(there) ? "there" : [], listed.includes(back) ? "back" : []].flat().join(" ");
}

/** Talks until both directions go the short way. */
export async function shorten(node: PodNode, flow: TcpFlow, from: Place, to: Place, family: 4 | 6): Promise<void> {
  const endMs = performance.now() + DEADLINE_MS;
  while (short(node.namespace, flow, from, to, family) !== "there back") {
    if (performance.now() > endMs) throw new Error(`after ${DEADLINE_MS} ms the flow still goes by all rules`);
    talk(flow, 200);
    await Bun.sleep(1);
  }
}

/** Counts the packets of TCP that come to the IP of a namespace, before anything there takes fragments or flows apart. */
export class Watch {
  constructor(readonly namespace: NetworkNamespace, match: string) {
    runIn(
      namespace,
      "nft",
      `add table inet watch { chain seen { type filter hook prerouting priority -450; ${match} counter; }; }`,
    );
  }

  count(): number {
    const found = /packets (\d+)/.exec(runIn(this.namespace, "nft", "list", "table", "inet", "watch"));
    return Number(found![1]);
  }
}
