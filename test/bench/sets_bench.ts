/** A set of 100,000 addresses into the kernel: our dataplane's whole `apply` beside `nft -f` of the same set. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import nftables from "../../dataplanes/nftables/mod.ts";
import { createCalc, DEFAULT_FAILSAFE } from "../../src/calc/mod.ts";
import { addressFromBigInt, addressToBigInt, formatCidr, hostCidr, parseAddress } from "../../src/model/address.ts";
import type { WorldObject } from "../../src/model/world.ts";
import { newDirectory } from "./daemon.ts";
import { benchHost } from "./host.ts";
import { atMost, type Goal, median, ms, ratio, table, timed } from "./measure.ts";

const ELEMENTS = 100_000;
const ROUNDS = 7;

/** Every other address, so that nothing can be merged to prefixes. */
const members = Array.from(
  { length: ELEMENTS },
  (_, i) => hostCidr(addressFromBigInt(addressToBigInt(parseAddress("10.0.0.0")) + BigInt(i) * 2n, 4)),
);

/** One local workload whose only policy allows a network set of all members. */
const world: readonly WorldObject[] = [
  {
    kind: "workload",
    id: "w",
    node: "bench",
    namespace: "default",
    interfaceName: "mx0123456789a",
    addresses: [parseAddress("192.0.2.9")],
    labels: new Map(),
    ports: [],
    orchestrator: "cni",
  },
  { kind: "networkSet", id: "set", name: "set", labels: new Map([["in", "set"]]), nets: members },
  {
    kind: "policy",
    id: "policy",
    tier: "default",
    sortName: "policy",
    selects: { op: "has", label: "projectcalico.org/orchestrator" },
    stage: "normal",
    staged: false,
    ingress: [{
      action: "allow",
      source: { selector: { op: "eq", label: "in", value: "set" } },
      destination: {},
      origin: { policy: "policy", direction: "ingress", index: 0 },
    }],
  },
];

export async function benchSets(): Promise<Goal[]> {
  const directory = newDirectory();
  try {
    const file = join(directory, "set.nft");
    writeFileSync(
      file,
      `table inet bench {\n  set s {\n    type ipv4_addr\n    elements = { ${
        members.map((cidr) => formatCidr(cidr).split("/")[0]).join(", ")
      } }\n  }\n}\n`,
    );
    const { desired } = createCalc({ node: "bench", failsafe: DEFAULT_FAILSAFE }).step([{
      origin: "bench",
      objects: world,
    }]);
    if ([...desired.sets.values()].reduce((sum, set) => sum + set.members.size, 0) < ELEMENTS) {
      throw new Error("the calculation gave a set with fewer members than the world has");
    }
    const { signal } = new AbortController();
    const ours: number[] = [], theirs: number[] = [], again: number[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      await using dataplane = await nftables.open(
        nftables.parseConfig(undefined),
        benchHost("bench", directory),
        signal,
      );
      ours.push(...await timed(1, () => dataplane.apply(desired)));
      again.push(...await timed(1, () => dataplane.apply(desired)));
      await dataplane.sweep();
      theirs.push(
        ...await timed(1, () => {
          const { success, stderr } = Bun.spawnSync({ cmd: ["nft", "-f", file] });
          if (!success) throw new Error(`nft -f failed: ${stderr}`);
        }),
      );
      Bun.spawnSync({ cmd: ["nft", "delete", "table", "inet", "bench"] });
    }
    console.log(`\nA set of ${ELEMENTS} addresses, ${ROUNDS} rounds in turns`);
    console.log(table(["who", "median ms", "ratio"], [
      ["nft -f", ms(median(theirs)), ratio(1)],
      ["manx: render, compare, one transaction", ms(median(ours)), ratio(median(ours) / median(theirs))],
      ["manx: the same again (nothing sent)", ms(median(again)), ratio(median(again) / median(theirs))],
    ]));
    return [atMost(`${ELEMENTS} set elements, to nft -f`, median(ours) / median(theirs), 0.4)];
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
