import { afterAll } from "bun:test";
import { rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import iptables from "../../dataplanes/iptables/mod.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { dataplaneContract, type DataplaneSubject, openSubject } from "./dataplane.ts";
import { dataplaneFuzz } from "./dataplane_fuzz.ts";
import { dataplanePackets } from "./dataplane_packets.ts";

const FUZZ_SEEDS = 5;

const both = (rest: string) => ["iptables-legacy", "ip6tables-legacy"].map((tool) => `${tool} -w ${rest}`);
const lockFile = join(tmpdir(), `manx-contract-${process.pid}.lock`);
afterAll(() => rmSync(lockFile, { force: true }));

const subject: DataplaneSubject = {
  plugin: iptables,
  config: { lockFile, pollMs: 50 },
  kernel: {
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
dataplanePackets("iptables");
dataplaneFuzz("iptables", FUZZ_SEEDS, {
  open: (namespace) => openSubject(subject, namespace),
  rules(namespace) {
    const rules = ["iptables", "ip6tables"].map((tool) => runIn(namespace, `${tool}-legacy-save`));
    const text = rules.join("").split("\n").filter((line) => !/^[#:]/.test(line));
    return [...text, ...runIn(namespace, "ipset", "save", "-o", "save").split("\n").map(withoutRoom).sort()].join("\n");
  },
});

/** How many buckets a set has depends on the members that it once had. */
function withoutRoom(line: string): string {
  return line.replace(/ (hashsize|initval|bucketsize|maxelem) \S+/g, "");
}
