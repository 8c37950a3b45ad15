/** The calculation alone in a process, so that its heap is nobody else's. Writes what it measured as a line of JSON. */
import { heapStats } from "bun:jsc";
import { createCalc, DEFAULT_FAILSAFE } from "../../src/calc/mod.ts";
import { hostCidr } from "../../src/model/address.ts";
import type { WorldChange } from "../../src/model/world.ts";
import { percentile } from "./measure.ts";
import { localPod, LOCALS, POLICIES, policy, remotePod, REMOTES } from "./policy_world.ts";

const CHANGES = 2_000;

export interface Timing {
  readonly p50Us: number;
  readonly p99Us: number;
}

export interface CalcMeasurement {
  readonly snapshotMs: number;
  /** What the world and the calculation keep, after collection. */
  readonly heapBytes: number;
  readonly sets: number;
  readonly members: number;
  readonly labelChange: Timing;
  readonly podAdded: Timing;
  readonly policyChange: Timing;
}

const heapBytes = (): number => {
  Bun.gc(true);
  return heapStats().heapSize;
};

const before = heapBytes();
const calc = createCalc({ node: "bench", failsafe: DEFAULT_FAILSAFE });
let world: WorldChange[] | undefined = [
  ...Array.from({ length: POLICIES }, (_, i) => policy(i)),
  ...Array.from({ length: LOCALS }, (_, i) => localPod(i)),
  ...Array.from({ length: REMOTES }, (_, i) => remotePod(i)),
];
const startMs = performance.now();
calc.step(world);
const snapshotMs = performance.now() - startMs;
world = undefined;
const after = heapBytes();

/** Microseconds of each step; the changes are made before the clock runs. */
function timings(changeOf: (i: number) => WorldChange): Timing {
  const changes = Array.from({ length: CHANGES }, (_, i) => changeOf(i));
  const samples = changes.map((change) => {
    const startMs = performance.now();
    calc.step([change]);
    return (performance.now() - startMs) * 1000;
  });
  return { p50Us: percentile(samples, 0.5), p99Us: percentile(samples, 0.99) };
}

const { sets } = calc.current.desired;
let members = 0;
sets.forEach((set) => members += set.members.size);
const applied = Array.from({ length: POLICIES }, (_, i) => i).filter((i) => {
  const [object] = policy(i).objects;
  return calc.selectedBy(object!.id).length > 0;
});
/** Pods that are members of a set. */
const peers = Array.from({ length: REMOTES }, (_, i) => i).filter((i) => i % 97 === 0 && isMember(i));

function isMember(i: number): boolean {
  const [pod] = remotePod(i).objects;
  const member = pod!.kind === "pod" ? hostCidr(pod!.addresses[0]!) : "";
  for (const set of sets.values()) if (set.members.has(member)) return true;
  return false;
}

// The first of each kind pay for code that is compiled then.
timings((i) => remotePod(i, 1));
timings((i) => policy(i, 81));
const measurement: CalcMeasurement = {
  snapshotMs,
  heapBytes: after - before,
  sets: sets.size,
  members,
  labelChange: timings((i) => remotePod(peers[i % peers.length]!, 2 + Math.floor(i / peers.length))),
  podAdded: timings((i) => remotePod(REMOTES + i)),
  policyChange: timings((i) => policy(applied[i % applied.length]!, 82 + Math.floor(i / applied.length))),
};
console.log(JSON.stringify(measurement));
