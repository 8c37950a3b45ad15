/** Rules and sets into legacy iptables: our dataplane's whole `apply` beside `iptables-restore` and `ipset restore` of the same. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import iptables from "../../dataplanes/iptables/mod.ts";
import { createCalc, DEFAULT_FAILSAFE } from "../../src/calc/mod.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import type { WorldObject } from "../../src/model/world.ts";
import { newDirectory } from "./daemon.ts";
import { benchHost } from "./host.ts";
import { atMost, type Goal, median, ms, ratio, table, timed } from "./measure.ts";
import { countUp, onePod, onePodOfSet } from "./one_pod_world.ts";

const RULES = 10_000;
const MEMBERS = 100_000;
const ROUNDS = 7;
/** Not measured: a daemon rehearses before it serves, and what runs once is interpreted. */
const WARM_ROUNDS = 5;

/** Allow and deny in turns, so that nothing can be united: as many rules in the kernel as in the policy. */
const manyRules = (): readonly WorldObject[] =>
  onePod(
    countUp("10.0.0.0", RULES).map((net, index) => ({
      action: index % 2 === 0 ? "allow" : "deny",
      protocol: 6,
      source: { nets: [net] },
      destination: { ports: [{ first: 1 + index % 60_000, last: 1 + index % 60_000 }] },
      origin: { policy: "policy", direction: "ingress", index },
    })),
  );

const manyMembers = (): readonly WorldObject[] => onePodOfSet(countUp("10.0.0.0", MEMBERS));

const desiredOf = (objects: readonly WorldObject[]): DesiredState =>
  createCalc({ node: "bench", failsafe: DEFAULT_FAILSAFE }).step([{ origin: "bench", objects }]).desired;

function run(...cmd: string[]): string {
  const { success, stdout, stderr } = Bun.spawnSync({ cmd });
  if (!success) throw new Error(`${cmd.join(" ")}: ${stderr}`);
  return stdout.toString();
}

interface Samples {
  readonly ours: number[];
  readonly again: number[];
  readonly theirs: number[];
}

/** `save`: what the tool is to restore, while ours stands. `restore`: times it. `clean`: takes it away. */
async function sideBySide(
  desired: DesiredState,
  directory: string,
  save: () => void,
  restore: () => void,
  clean: () => void,
): Promise<Samples> {
  const samples: Samples = { ours: [], again: [], theirs: [] };
  const { signal } = new AbortController();
  for (let round = -WARM_ROUNDS; round < ROUNDS; round++) {
    await using dataplane = await iptables.open(
      iptables.parseConfig({ variant: "legacy" }),
      benchHost("bench", directory),
      signal,
    );
    const apply = async () => {
      const { converged, problems } = await dataplane.apply(desired);
      if (!converged) throw new Error(problems.join("; "));
    };
    const ours = await timed(1, apply), again = await timed(1, apply);
    save();
    await dataplane.sweep();
    const theirs = await timed(1, restore);
    clean();
    if (round < 0) continue;
    samples.ours.push(...ours);
    samples.again.push(...again);
    samples.theirs.push(...theirs);
  }
  return samples;
}

const report = (title: string, tool: string, { ours, again, theirs }: Samples): void => {
  console.log(`\n${title}, ${ROUNDS} rounds in turns`);
  console.log(table(["who", "median ms", "ratio"], [
    [tool, ms(median(theirs)), ratio(1)],
    ["manx: render, read, compare, write", ms(median(ours)), ratio(median(ours) / median(theirs))],
    ["manx: the same again (nothing sent)", ms(median(again)), ratio(median(again) / median(theirs))],
  ]));
};

export async function benchIptables(): Promise<Goal[]> {
  const directory = newDirectory();
  try {
    const file = join(directory, "rules");
    let lines = 0;
    const rules = await sideBySide(
      desiredOf(manyRules()),
      directory,
      () => {
        const text = run("iptables-legacy-save");
        // The set of addresses that pods may send from is ours, and went with us: we make it besides, they need not.
        const kept = text.split("\n").filter((line) => !line.includes("--match-set")).join("\n");
        lines = kept.split("\n").filter((line) => line.startsWith("-A ")).length;
        writeFileSync(file, kept);
      },
      () => run("iptables-legacy-restore", file),
      () => {
        for (const table of ["raw", "filter"]) {
          run("iptables-legacy", "-t", table, "-F");
          run("iptables-legacy", "-t", table, "-X");
        }
      },
    );
    if (lines < RULES) throw new Error(`found ${lines} rules in the kernel, wanted at least ${RULES}`);
    report(`${lines} rules into legacy iptables`, "iptables-restore", rules);

    const sets = await sideBySide(
      desiredOf(manyMembers()),
      directory,
      () => writeFileSync(file, run("ipset", "save")),
      () => run("sh", "-c", `ipset restore < ${file}`),
      () => run("ipset", "destroy"),
    );
    report(`A set of ${MEMBERS} members`, "ipset restore", sets);
    return [
      atMost(`${RULES} policy rules, to iptables-restore`, median(rules.ours) / median(rules.theirs), 1),
      atMost(`${MEMBERS} ipset members, to ipset restore`, median(sets.ours) / median(sets.theirs), 0.25),
    ];
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
