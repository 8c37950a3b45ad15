/**
 * What policies cost a packet: new connections and a stream through a pod that 0 to 10,000 policies select, each with another
 * peer selector and port, in the flat form and in the linear one, beside a node without a firewall.
 */
import { createCalc, DEFAULT_FAILSAFE } from "../../src/calc/mod.ts";
import { addressFromBigInt, addressToBigInt, parseAddress } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import type { WorldObject } from "../../src/model/world.ts";
import { atLeast, type Goal, median, ratio, table } from "./measure.ts";
import {
  CLIENT_ADDRESS,
  LISTEN_PORT,
  podAddress,
  podInterface,
  type TrafficNode,
  trafficNode,
} from "./traffic_node.ts";

/** Policies that select a pod; one pod each. */
const COUNTS = [0, 1, 10, 100, 1_000, 10_000] as const;
const LINEAR_COUNTS = [1, 10, 100, 1_000, 10_000] as const;
const MOST = 10_000;
const ROUNDS = 25;
const TURN_MS = 150;
const WARM_UP_MS = 300;
const FIRST_OTHER_PORT = 10_000;

const NAMESPACE = "default";
const at = (i: number) => addressFromBigInt(addressToBigInt(parseAddress("10.1.0.0")) + BigInt(i), 4);

/** Pods, and peers that each have a policy for a port of their own. The client has the last one. */
function* worldOf(counts: readonly number[]): Generator<WorldObject> {
  const peer = (id: string, app: string, address: ReturnType<typeof at>): WorldObject => ({
    kind: "pod",
    id: `${NAMESPACE}/${id}`,
    namespace: NAMESPACE,
    name: id,
    labels: new Map([["app", app]]),
    ports: [],
    addresses: [address],
  });
  yield peer("client", "client", parseAddress(CLIENT_ADDRESS));
  for (let i = 0; i < Math.max(...counts); i++) yield peer(`peer-${i}`, `peer-${i}`, at(i));
  for (const [pod, count] of counts.entries()) {
    yield {
      kind: "workload",
      id: `pod-${pod}`,
      node: "bench",
      namespace: NAMESPACE,
      interfaceName: podInterface(pod),
      addresses: [parseAddress(podAddress(pod))],
      labels: new Map([["pod", `${pod}`]]),
      ports: [],
      orchestrator: "k8s",
    };
    for (let i = 0; i < count; i++) {
      const isLast = i === count - 1;
      const id = `NetworkPolicy.networking.k8s.io/${NAMESPACE}/p-${pod}-${i}`;
      const port = isLast ? LISTEN_PORT : FIRST_OTHER_PORT + i;
      yield {
        kind: "policy",
        id,
        tier: "default",
        order: 1000,
        sortName: `${NAMESPACE}/${String(i).padStart(6, "0")}`,
        selects: { op: "eq", label: "pod", value: `${pod}` },
        stage: "normal",
        staged: false,
        ingress: [{
          action: "allow",
          protocol: 6,
          source: { selector: { op: "eq", label: "app", value: isLast ? "client" : `peer-${i}` } },
          destination: { ports: [{ first: port, last: port }] },
          origin: { policy: id, direction: "ingress", index: 0 },
        }],
      };
    }
  }
}

function stateOf(counts: readonly number[]): DesiredState {
  const calc = createCalc({ node: "bench", failsafe: DEFAULT_FAILSAFE });
  return calc.step([...worldOf(counts)].map((object, i) => ({ origin: `${i}`, objects: [object] }))).desired;
}

interface Subject {
  readonly title: string;
  readonly node: TrafficNode;
  readonly pod: number;
}

/** What each subject did, round by round. */
async function inTurns(
  kind: "connections" | "stream",
  subjects: readonly Subject[],
): Promise<ReadonlyMap<Subject, readonly number[]>> {
  const samples = new Map<Subject, number[]>(subjects.map((subject) => [subject, []]));
  for (const subject of subjects) await subject.node.measure(kind, subject.pod, WARM_UP_MS);
  for (let round = 0; round < ROUNDS; round++) {
    // Each round begins with another one, so that none always comes after the same.
    const order = subjects.map((_, i) => subjects[(i + round * 5) % subjects.length]!);
    for (const subject of order) {
      samples.get(subject)!.push((await subject.node.measure(kind, subject.pod, TURN_MS)).perSecond);
    }
  }
  return samples;
}

export async function benchPolicies(): Promise<Goal[]> {
  await using stack = new AsyncDisposableStack();
  const bare = stack.use(await trafficNode("bare", 1));
  const tracking = stack.use(await trafficNode("tracking", 1));
  tracking.nft("add table inet t");
  tracking.nft("add chain inet t forward { type filter hook forward priority 0; }");
  tracking.nft("add rule inet t forward ct state established accept");
  const flat = stack.use(await trafficNode("flat", COUNTS.length, "flat"));
  const linear = stack.use(await trafficNode("linear", LINEAR_COUNTS.length, "linear"));
  const past = stack.use(await trafficNode("past", 1, "fast path"));
  for (const [node, counts] of [[flat, COUNTS], [linear, LINEAR_COUNTS], [past, [MOST]]] as const) {
    const { converged, problems } = await node.apply(stateOf(counts));
    if (!converged) throw new Error(`the policies are not in force: ${problems.join("; ")}`);
  }
  const none: Subject = { title: "no firewall", node: bare, pod: 0 };
  const flats = COUNTS.map((count, pod): Subject => ({
    title: count === 0 ? "no policy" : `${count} policies`,
    node: flat,
    pod,
  }));
  const linears = LINEAR_COUNTS.map((count, pod): Subject => ({
    title: `${count} policies, linear`,
    node: linear,
    pod,
  }));
  const unselected = flats[0]!, one = flats[1]!, most = flats[flats.length - 1]!;

  const rates = await inTurns("connections", [none, ...flats, ...linears]);
  // Of each round by itself: the machine's speed drifts from one to the next.
  const ratioOf = (samples: ReadonlyMap<Subject, readonly number[]>) => (subject: Subject, to: Subject) =>
    median(samples.get(subject)!.map((value, round) => value / samples.get(to)![round]!));
  const connectionRatio = ratioOf(rates);
  console.log(`\nNew TCP connections a second through one pod, ${ROUNDS} turns of ${TURN_MS} ms each`);
  console.log(table(
    ["pod selected by", "a second", "to no policy", "to no firewall"],
    [none, ...flats, ...linears].map((subject) => [
      subject.title,
      median(rates.get(subject)!).toFixed(0),
      ratio(connectionRatio(subject, unselected)),
      ratio(connectionRatio(subject, none)),
    ]),
  ));

  const tracked: Subject = { title: "no firewall, one rule that tracks flows", node: tracking, pod: 0 };
  const short: Subject = { title: `${MOST} policies, establishedFastPath`, node: past, pod: 0 };
  const streamed = [none, tracked, unselected, most, short];
  const streams = await inTurns("stream", streamed);
  const streamRatio = ratioOf(streams);
  console.log(`\nOne established TCP stream through the pod, ${ROUNDS} turns of ${TURN_MS} ms each`);
  console.log(table(
    ["pod selected by", "Gbit/s", "to no firewall"],
    streamed.map((subject) => [
      subject.title,
      (median(streams.get(subject)!) * 8 / 1e9).toFixed(1),
      ratio(streamRatio(subject, none)),
    ]),
  ));
  return [
    atLeast(`connections at ${MOST} policies, to 1`, connectionRatio(most, one), 0.9),
    atLeast(`connections at ${MOST} policies, to none`, connectionRatio(most, unselected), 0.9),
    atLeast(`an established stream at ${MOST} policies, to none`, streamRatio(most, unselected), 0.97),
    atLeast(`an established stream at ${MOST} policies, to no firewall`, streamRatio(most, none), 0.97),
    atLeast(`the same with establishedFastPath, which is off by default`, streamRatio(short, none), 0.97),
  ];
}
