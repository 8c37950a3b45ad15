/** A set of 100,000 addresses into the kernel: our dataplane's whole `apply` beside `nft -f` of the same set. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import nftables from "../../dataplanes/nftables/mod.ts";
import { createCalc, DEFAULT_FAILSAFE } from "../../src/calc/mod.ts";
import { formatCidr } from "../../src/model/address.ts";
import { newDirectory } from "./daemon.ts";
import { benchHost } from "./host.ts";
import { atMost, type Goal, median, ms, ratio, table, timed } from "./measure.ts";
import { countUp, onePodOfSet } from "./one_pod_world.ts";

const ELEMENTS = 100_000;
const ROUNDS = 7;

const members = countUp("10.0.0.0", ELEMENTS);

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
      objects: onePodOfSet(members),
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
