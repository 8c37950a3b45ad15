/** A what-if over 500 pods that nothing makes alike, under hundreds of policies: it stays within seconds, and lets others run. */
import { expect, test } from "bun:test";
import { DEFAULT_FAILSAFE } from "../../calc/mod.ts";
import { addressFromBigInt } from "../../model/address.ts";
import type { NeutralPolicy, NeutralRule } from "../../model/rule.ts";
import { parseSelector } from "../../model/selector_parse.ts";
import type { WorldChange, WorldObject } from "../../model/world.ts";
import { nodeEnd } from "../explain/end.ts";
import { Nodes, type NodesView } from "../explain/nodes.ts";
import { createPause } from "../pause.ts";
import { compareWorlds } from "./what_if.ts";

const PODS = 500;
const POLICIES = 300;
const DEADLINE_MS = 8_000;
/** Others wait no longer than that for their turn, on a busy machine too. */
const STALL_MS = 1_500;

const change = (object: WorldObject): WorldChange => ({ origin: `${object.kind} ${object.id}`, objects: [object] });

function world(): WorldChange[] {
  const pods = Array.from({ length: PODS }, (_, i): WorldObject => ({
    kind: "workload",
    id: `WorkloadEndpoint.projectcalico.org/ns${i % 20}/pod-${i}`,
    node: `n${i % 10}`,
    namespace: `ns${i % 20}`,
    interfaceName: `if${i}`,
    addresses: [addressFromBigInt(0x0a00_0100n + BigInt(i), 4)],
    labels: new Map([["app", `app-${i % 50}`], ["own", `own-${i}`], ["tier", i % 3 === 0 ? "front" : "back"]]),
    ports: [{ name: "http", protocol: 6, port: 8000 + i % 7 }],
    orchestrator: "k8s",
  }));
  const policies = Array.from({ length: POLICIES }, (_, i) =>
    policy(`p${i}`, `app == "app-${i % 50}"`, [
      rule("allow", `app == "app-${(i * 7) % 50}"`, 1_000 + i),
      rule("allow", `own == "own-${i}"`, undefined),
    ]));
  return [...pods, ...policies].map(change);
}

const rule = (action: NeutralRule["action"], from: string, port: number | undefined): NeutralRule => ({
  action,
  protocol: 6,
  source: { selector: parseSelector(from) },
  destination: port === undefined ? { portNames: ["http"] } : { ports: [{ first: port, last: port + 3 }] },
  origin: { policy: "p", direction: "ingress", index: 0 },
});

const policy = (id: string, selects: string, ingress: readonly NeutralRule[]): NeutralPolicy => ({
  kind: "policy",
  id,
  tier: "default",
  order: 1000,
  sortName: id,
  selects: parseSelector(selects),
  stage: "normal",
  staged: false,
  ingress,
});

const CHANGES: readonly [string, NeutralPolicy, number][] = [
  // A default deny of everything that was not selected changes nothing for the selected; all are.
  ["a policy for every pod", policy("all", "all()", [rule("allow", 'tier == "front"', 9)]), PODS * PODS / 10],
  [
    "a policy for a tenth of them",
    policy("some", 'app in {"app-1", "app-2", "app-3"}', [rule("allow", "all()", 22)]),
    30 * PODS / 2,
  ],
];
test.each([...CHANGES])("500 pods, 300 policies, and %s", async (_, added, pairsAtLeast) => {
  let longestMs = 0, lastMs = performance.now();
  const beat = setInterval(() => {
    const nowMs = performance.now();
    longestMs = Math.max(longestMs, nowMs - lastMs);
    lastMs = nowMs;
  }, 1);
  try {
    const pause = createPause();
    const nodes = new Nodes({ node: "n0", failsafe: DEFAULT_FAILSAFE, pause });
    await nodes.take(world());
    const before = nodes.view();
    await nodes.take([change(added)]);
    const { lookup } = nodes;
    const side = (view: NodesView) => ({
      desired: view.desired,
      lookup,
      stateOf: (node: string) => view.stateOf(node),
      homeOf: (id: string) => view.homeOf(id),
      addressesOf: (node: string) => nodeEnd(node, lookup).addresses,
    });
    const startedMs = performance.now();
    const reply = await compareWorlds(side(before), side(nodes.view()), () => undefined, pause);
    const tookMs = performance.now() - startedMs;
    console.log(
      `${reply.pairs} pairs in ${reply.groups.length} groups, ${tookMs.toFixed(0)} ms, longest stall ${
        longestMs.toFixed(0)
      } ms`,
    );
    expect(reply.compared.endpoints).toBe(PODS);
    expect(reply.pairs).toBeGreaterThanOrEqual(pairsAtLeast);
    expect(tookMs).toBeLessThan(DEADLINE_MS);
    expect(longestMs).toBeLessThan(STALL_MS);
  } finally {
    clearInterval(beat);
  }
}, 60_000);
