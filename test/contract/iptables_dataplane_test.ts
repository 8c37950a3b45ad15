import { afterAll } from "bun:test";
import { rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import iptables from "../../dataplanes/iptables/mod.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { dataplaneContract, type DataplaneSubject, FOREIGN_XTABLES, openSubject } from "./dataplane.ts";
import { dataplaneFuzz } from "./dataplane_fuzz.ts";
import { dataplanePackets } from "./dataplane_packets.ts";

const FUZZ_SEEDS = { legacy: 5, nft: 2 } as const;

const lockFile = join(tmpdir(), `manx-contract-${process.pid}.lock`);
afterAll(() => rmSync(lockFile, { force: true }));

/** What strangers have in nf_tables, written by their own tool. */
const FOREIGN_NFT = ([["iptables", "192.0.2.7/32"], ["ip6tables", "2001:db8::7/128"]] as const).map((
  [tool, address],
) => [
  "sh",
  "-c",
  `${tool}-nft-restore <<'END'\n${FOREIGN_XTABLES.replaceAll("ADDRESS", address)}\nEND`,
]);

for (const variant of ["legacy", "nft"] as const) {
  const name = `iptables (${variant})`;
  const both = (rest: string) => ["iptables", "ip6tables"].map((tool) => `${tool}-${variant} -w ${rest}`);
  const subject: DataplaneSubject = {
    plugin: iptables,
    name,
    config: { variant, lockFile, pollMs: 50 },
    kernel: {
      foreign: variant === "nft" ? FOREIGN_NFT : [],
      harm: {
        "a deleted jump": both("-D FORWARD -j manx-forward"),
        "a flushed chain": both("-F manx-input"),
        "a deleted rule": both("-D manx-forward 1"),
        "flushed sets": ["ipset list -n | grep '^manx-4' | while read set; do ipset flush $set; done"],
        "a member of somebody else's": ["ipset add manx-4i-source 10.9.9.9,mx0"],
      },
    },
  };

  dataplaneContract(subject);
  dataplanePackets(`iptables-${variant}`);
  dataplaneFuzz(name, FUZZ_SEEDS[variant], {
    open: (namespace) => openSubject(subject, namespace),
    rules(namespace) {
      const rules = ["iptables", "ip6tables"].map((tool) => runIn(namespace, `${tool}-${variant}-save`));
      const text = rules.flatMap((one) => inOneOrder(one.split("\n").filter((line) => !/^[#:]/.test(line))));
      const sets = runIn(namespace, "ipset", "save", "-o", "save").split("\n").map(withoutRoom).sort();
      return [...text, ...sets].join("\n");
    },
  });
}

/** Chains, and tables, stand in the order in which they were made; rules in a chain stay in theirs. */
function inOneOrder(lines: readonly string[]): readonly string[] {
  let table = "";
  return lines.map((line) => {
    if (line.startsWith("*")) table = line;
    return { line, chain: `${table} ${/^-A (\S+)/.exec(line)?.[1] ?? ""}` };
  }).sort((a, b) => a.chain < b.chain ? -1 : a.chain > b.chain ? 1 : 0).map(({ line }) => line);
}

/** How many buckets a set has depends on the members that it once had. */
function withoutRoom(line: string): string {
  return line.replace(/ (hashsize|initval|bucketsize|maxelem) \S+/g, "");
}
