/** The calculation of services: from nothing to the desired state, and single changes after, in a small world and a large one. */
import { createCalc, DEFAULT_FAILSAFE } from "../../src/calc/mod.ts";
import type { WorldChange } from "../../src/model/world.ts";
import { atMost, type Goal, median, table } from "./measure.ts";
import { benchService, benchServices, benchSlice, NODE } from "./service_world.ts";

const ROUNDS = 5;
const CHANGES = 2_000;
const FEW = 1_000, MANY = 10_000;

interface Measurement {
  readonly snapshotMs: number;
  readonly sliceMicros: number;
  readonly serviceMicros: number;
}

export function benchServicesCalc(): Promise<Goal[]> {
  const [few, many] = [FEW, MANY].map((count) => {
    const found = Array.from({ length: ROUNDS }, () => measure(count));
    const of = (pick: (one: Measurement) => number) => median(found.map(pick));
    return {
      count,
      snapshotMs: of((one) => one.snapshotMs),
      sliceMicros: of((one) => one.sliceMicros),
      serviceMicros: of((one) => one.serviceMicros),
    };
  }) as [Measurement & { count: number }, Measurement & { count: number }];
  console.log(`\nCalculation of services with two endpoints each; median of ${ROUNDS}`);
  console.log(table(
    ["services", "from nothing ms", "an endpoint is another p50 µs", "a service changes p50 µs"],
    [few, many].map(({ count, snapshotMs, sliceMicros, serviceMicros }) => [
      String(count),
      snapshotMs.toFixed(0),
      sliceMicros.toFixed(0),
      serviceMicros.toFixed(0),
    ]),
  ));
  const micros = (value: number) => `${value.toFixed(0)} µs`;
  return Promise.resolve([
    atMost(`calculation of ${MANY} services`, many.snapshotMs, 1_000, (value) => `${value.toFixed(0)} ms`),
    atMost("calculation, one endpoint slice, p50", many.sliceMicros, 200, micros),
    atMost("calculation, one service, p50", many.serviceMicros, 200, micros),
  ]);
}

function measure(count: number): Measurement {
  const calc = createCalc({ node: NODE, failsafe: DEFAULT_FAILSAFE, services: { nodePortAddresses: [] } });
  const world = benchServices(count);
  const startMs = performance.now();
  calc.step(world);
  const snapshotMs = performance.now() - startMs;
  const frontends = calc.current.desired.services!.frontends.size;
  if (frontends !== count) throw new Error(`found ${frontends} frontends, wanted ${count}`);
  const each = (change: (i: number) => WorldChange) =>
    median(Array.from({ length: CHANGES }, (_, i) => {
      const changes = [change(i)];
      const { generation } = calc.current.desired;
      const startMs = performance.now();
      const after = calc.step(changes);
      const micros = (performance.now() - startMs) * 1_000;
      if (after.desired.generation !== generation + 1) throw new Error(`change ${i} changed nothing`);
      return micros;
    }));
  return {
    snapshotMs,
    sliceMicros: each((i) => benchSlice(i % count, 2 * MANY + i)),
    serviceMicros: each((i) => benchService(i % count, i + 1)),
  };
}
