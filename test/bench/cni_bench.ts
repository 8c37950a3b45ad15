/** CNI ADD and DEL as a runtime sees them, beside Debian's plugins: one after another, 8 at once, and with many leases held. */
import { rmSync } from "node:fs";
import { createNamespace } from "../../src/kernel/netns.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import type { StatusReply } from "../../src/api/protocol.ts";
import { callPlugin, fillHostLocal, manxNetwork, type Network, ptpNetwork } from "./cni_peers.ts";
import { newDirectory, startDaemon, stateDirectory } from "./daemon.ts";
import { fillManx } from "./fill_leases.ts";
import { atLeast, atMost, type Goal, inParallel, median, ms, percentile, ratio, table, timed } from "./measure.ts";

const ROUNDS = 200;
const ROUNDS_WITH_LEASES = 50;
const PODS_A_TURN = 50;
const WARM_UP_PODS = 3;
const HELD_LEASES = 10_000;
const PODS_AT_ONCE = 200;
const WIDTH = 8;

const pathOf = (namespace: NetworkNamespace): string => `/proc/${process.pid}/fd/${namespace.fd}`;

interface Samples {
  readonly add: number[];
  readonly del: number[];
}

/**
 * One pod after another, as a runtime does it: namespace, ADD, DEL, namespace away. Networks take turns of a few pods each, so
 * that a noisy moment of the machine meets them all, while what a network leaves for later falls on its own next pod.
 */
async function oneAfterAnother(
  networks: readonly Network[],
  rounds: number,
  prefix: string,
): Promise<Map<Network, Samples>> {
  const samples = new Map(networks.map((network) => [network, { add: [], del: [] } as Samples]));
  for (let turn = 0; turn * PODS_A_TURN < rounds; turn++) {
    for (const network of networks) {
      for (let pod = -WARM_UP_PODS; pod < PODS_A_TURN; pod++) {
        using namespace = createNamespace("bench");
        const containerId = `${prefix}-${turn}-${pod + WARM_UP_PODS}`;
        const [addMs] = await timed(1, () => network.add(containerId, pathOf(namespace)));
        const [delMs] = await timed(1, () => network.del(containerId, pathOf(namespace)));
        // The first of a turn pay for what the network before them left.
        if (pod < 0) continue;
        samples.get(network)!.add.push(addMs!);
        samples.get(network)!.del.push(delMs!);
      }
    }
  }
  return samples;
}

/** Pods a second, ADD and DEL, with `WIDTH` calls in flight. */
async function manyAtOnce(network: Network, prefix: string): Promise<{ add: number; del: number }> {
  using stack = new DisposableStack();
  const namespaces = Array.from({ length: PODS_AT_ONCE }, (_, i) => stack.use(createNamespace(`bench-${i}`)));
  const addMs = await inParallel(PODS_AT_ONCE, WIDTH, (i) => network.add(`${prefix}-${i}`, pathOf(namespaces[i]!)));
  const delMs = await inParallel(PODS_AT_ONCE, WIDTH, (i) => network.del(`${prefix}-${i}`, pathOf(namespaces[i]!)));
  return { add: PODS_AT_ONCE / addMs * 1000, del: PODS_AT_ONCE / delMs * 1000 };
}

function serialTable(title: string, samples: Map<Network, Samples>, base: Network): void {
  const baseline = samples.get(base)!;
  console.log(`\n${title}`);
  console.log(table(
    ["network", "ADD median ms", "p99 ms", "ratio", "DEL median ms", "p99 ms", "ratio"],
    [...samples].map(([network, { add, del }]) => [
      network.title,
      ms(median(add)),
      ms(percentile(add, 0.99)),
      ratio(median(add) / median(baseline.add)),
      ms(median(del)),
      ms(percentile(del, 0.99)),
      ratio(median(del) / median(baseline.del)),
    ]),
  ));
}

/** Rows of a table: what the process costs, and the daemon's own marks so far (medians). */
async function partsOfAdd(binary: string, socket: string): Promise<string[][]> {
  const call = { command: "STATUS", containerId: "", netns: "" } as const;
  const config = { cniVersion: "1.1.0", name: "bench", type: "manx", socket };
  const startMs = median(await timed(50, () => callPlugin(binary, call, config)));
  const status = await (await fetch("http://manx/v1/status", { unix: socket })).json() as StatusReply;
  const { add, lease, wiring, policy, round, del } = status.timings;
  return [
    ["process start, stdin, request, stdout (a STATUS call)", ms(startMs)],
    ["daemon, the whole ADD", ms(add.p50Ms)],
    ["  until the lease's commit is on the disk", ms(lease.p50Ms)],
    ["    meanwhile: wiring", ms(wiring.p50Ms)],
    ["    meanwhile: policy, calculation and kernel", ms(round.p50Ms)],
    ["  after that, until policy is in force", ms(policy.p50Ms)],
    ["daemon, the whole DEL", ms(del.p50Ms)],
  ];
}

export async function benchCni(binary: string): Promise<Goal[]> {
  const goals: Goal[] = [];
  await using stack = new AsyncDisposableStack();
  const directory = (): string => stack.adopt(newDirectory(), (path) => rmSync(path, { recursive: true, force: true }));
  const plain = ptpNetwork({ firewall: false, dataDirectory: directory() });
  const walled = ptpNetwork({ firewall: true, dataDirectory: directory() });

  {
    await using daemon = await startDaemon(binary);
    const manx = manxNetwork(binary, daemon.socket);
    const networks = [plain, walled, manx];

    const serial = await oneAfterAnother(networks, ROUNDS, "serial");
    serialTable(`CNI, one after another × ${ROUNDS}, in turns of ${PODS_A_TURN}`, serial, plain);
    const at = (network: Network, verb: "add" | "del", fraction: number) =>
      percentile(serial.get(network)![verb], fraction);
    for (const [name, fraction] of [["median", 0.5], ["p99", 0.99]] as const) {
      goals.push(
        atMost(
          `ADD with policy in force, ${name}, to ptp + host-local`,
          at(manx, "add", fraction) / at(plain, "add", fraction),
          1,
        ),
        atMost(
          `ADD with policy in force, ${name}, to the same with firewall`,
          at(manx, "add", fraction) / at(walled, "add", fraction),
          0.35,
        ),
      );
    }
    goals.push(atMost("DEL, median, to ptp + host-local", at(manx, "del", 0.5) / at(plain, "del", 0.5), 0.25));

    const { add } = serial.get(manx)!;
    console.log("\nWhere an ADD's time goes (median)");
    console.log(table(["part", "ms"], [...await partsOfAdd(binary, daemon.socket), ["whole call", ms(median(add))]]));

    const rates = new Map<Network, { add: number; del: number }>();
    for (const network of networks) rates.set(network, await manyAtOnce(network, "many"));
    console.log(`\nCNI, ${WIDTH} at once, ${PODS_AT_ONCE} pods`);
    console.log(table(
      ["network", "ADD a second", "ratio", "DEL a second", "ratio"],
      networks.map((network) => {
        const { add, del } = rates.get(network)!;
        const base = rates.get(plain)!;
        return [network.title, add.toFixed(0), ratio(add / base.add), del.toFixed(0), ratio(del / base.del)];
      }),
    ));
    goals.push(
      atLeast(
        `ADD, ${WIDTH} at once, pods a second, to ptp + host-local`,
        rates.get(manx)!.add / rates.get(plain)!.add,
        0.8,
      ),
    );
  }

  {
    const held = directory();
    fillHostLocal(held, HELD_LEASES);
    const filled = newDirectory();
    await fillManx(stateDirectory(filled), HELD_LEASES);
    await using daemon = await startDaemon(binary, filled);
    const fullPlain = ptpNetwork({ firewall: false, dataDirectory: held });
    const fullManx = manxNetwork(binary, daemon.socket);
    const serial = await oneAfterAnother([fullPlain, fullManx], ROUNDS_WITH_LEASES, "later");
    serialTable(`CNI with ${HELD_LEASES} leases held × ${ROUNDS_WITH_LEASES}`, serial, fullPlain);
    for (const [name, fraction] of [["median", 0.5], ["p99", 0.99]] as const) {
      goals.push(atMost(
        `ADD with ${HELD_LEASES} leases held, ${name}, to ptp + host-local`,
        percentile(serial.get(fullManx)!.add, fraction) / percentile(serial.get(fullPlain)!.add, fraction),
        1,
      ));
    }
  }
  return goals;
}
