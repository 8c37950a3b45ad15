/**
 * What others can do to a node, and what its daemon says of it: each as a user would meet it, with real daemons and a real kernel. Policy holds
 * throughout, nothing of strangers is lost, `manx status` names what is wrong, and when it is over everything is in force by itself.
 */
import { beforeAll, expect, test } from "bun:test";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { buildBinary } from "../../scripts/build.ts";
import { inNamespace } from "../../src/kernel/netns.ts";
import { dataplaneConfig, lackOfKernel } from "../../src/lab/dataplanes.ts";
import { FAULTS, type Faults, FAULTY_DAEMON } from "./dataplane_faulty_daemon.ts";
import { ALLOWED, LiveNode, policy, until } from "./dataplane_live_node.ts";
import { Forbidden, Transfer } from "./dataplane_traffic.ts";

const TEST_DEADLINE_MS = 120_000;
/** Of somebody else's `iptables-restore` and `nft -f` while policy changes. */
const CHANGES = 40;

let binary = "";
beforeAll(async () => void (binary = await buildBinary()), TEST_DEADLINE_MS);

/** A process of the test's own in the node, until it is disposed of. */
function running(node: LiveNode, ...cmd: readonly string[]): AsyncDisposable & { readonly pid: number } {
  const child = inNamespace(
    node.namespace,
    () => Bun.spawn({ cmd: [...cmd], stdin: "ignore", stdout: "ignore", stderr: "ignore" }),
  );
  return {
    pid: child.pid,
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

/** Traffic that is denied, tried all the time; what got through is thrown at the end. */
function watched(node: LiveNode): AsyncDisposable {
  const forbidden = node.server.map((to) => new Forbidden(node, to));
  const leaks: string[] = [];
  let isOver = false;
  const loop = (async () => {
    while (!isOver) {
      for (const one of forbidden) leaks.push(...one.pump());
      await new Promise((resolve) => setImmediate(resolve));
    }
  })();
  return {
    async [Symbol.asyncDispose]() {
      isOver = true;
      await loop;
      for (const one of forbidden) one[Symbol.dispose]();
      expect(leaks).toEqual([]);
    },
  };
}

/** Stores a policy, without waiting for it. */
async function apply(node: LiveNode, port: number): Promise<void> {
  const file = join(node.directory, "policy.json");
  writeFileSync(file, policy(port));
  expect((await node.manx("apply", "-f", file)).status).toBe(0);
}

const LEGACY = { variant: "legacy" };

const isGood = async (node: LiveNode): Promise<boolean> => (await node.manx("status")).status === 0;

test(
  "a lock that somebody never lets go of: named, policy stays as it was, and is in force once the lock is free",
  async () => {
    await using node = await LiveNode.open(binary, "iptables", LEGACY);
    const before = node.run("iptables-legacy-save", "-t", "filter");
    const lockFile = join(node.directory, "n0", "xtables.lock");
    {
      await using _watched = watched(node);
      await using _holder = running(node, "flock", "-F", lockFile, "sleep", "1000");
      await until("it is held", () => Bun.spawnSync({ cmd: ["flock", "-n", lockFile, "true"] }).exitCode === 1);
      await apply(node, ALLOWED + 1000);
      await until(
        "it is named",
        async () => (await node.manx("status")).output.includes(`lock ${lockFile}: found it held`),
      );
      const { status, output } = await node.manx("status");
      expect(status).toBe(1);
      expect(output).toMatch(/policy +iptables, generation \d+ wanted, \d+ in force/);
      const { generation } = await node.status();
      expect(generation.applied).toBeLessThan(generation.wanted);
      expect(output).toMatch(/held by somebody else \(process \d+, sleep\) for 5000 ms/);
      expect(output).toContain("nothing was written; tried again later (being tried again)");
      expect(node.run("iptables-legacy-save", "-t", "filter").replace(/^#.*\n/gm, "")).toBe(
        before.replace(/^#.*\n/gm, ""),
      );
      expect((await node.manx("dataplane", "switch", "nftables")).errors).toContain(
        "found that not everything is in force",
      );
      expect(node.there()).toEqual(["iptables"]);
    }
    await until("it is in force", () => isGood(node));
    expect((await node.manx("status")).output).toContain("problems   none");
  },
  TEST_DEADLINE_MS,
);

test("a switch to a dataplane that cannot have its lock is refused, and policy goes on as before", async () => {
  await using node = await LiveNode.open(binary, "nftables");
  const lockFile = join(node.directory, "lock"), settings = join(node.directory, "settings.yaml");
  writeFileSync(settings, JSON.stringify({ ...LEGACY, lockFile, lockWaitMs: 300 }));
  {
    await using _watched = watched(node);
    await using _holder = running(node, "flock", "-F", lockFile, "sleep", "1000");
    await until("it is held", () => Bun.spawnSync({ cmd: ["flock", "-n", lockFile, "true"] }).exitCode === 1);
    const { status, errors } = await node.manx("dataplane", "switch", "iptables", "-c", settings);
    expect([status, errors]).toEqual([
      1,
      expect.stringContaining(`found dataplane iptables not in force, wanted it to be: lock ${lockFile}`),
    ]);
    expect(node.there()).toEqual(["nftables"]);
    expect(await isGood(node)).toBe(true);
    await node.sandbox.change("apply", policy(ALLOWED), "policy.json");
  }
  expect((await node.manx("dataplane", "switch", "iptables", "-c", settings)).status).toBe(0);
}, TEST_DEADLINE_MS);

test(
  "a lock that is never let go of while iptables is left: what takes over follows policy at once, and the rest goes when it can",
  async () => {
    await using node = await LiveNode.open(binary, "iptables", LEGACY);
    const lockFile = join(node.directory, "n0", "xtables.lock");
    {
      await using _watched = watched(node);
      await using _holder = running(node, "flock", "-F", lockFile, "sleep", "1000");
      await until("it is held", () => Bun.spawnSync({ cmd: ["flock", "-n", lockFile, "true"] }).exitCode === 1);
      const { status, output, errors } = await node.manx("dataplane", "switch", "nftables");
      expect(output).toContain("switched from iptables to nftables");
      expect([status, errors]).toEqual([
        1,
        expect.stringContaining(`what dataplane iptables left cannot be removed yet: lock ${lockFile}`),
      ]);
      expect(node.there()).toEqual(["nftables", "iptables"]);
      for (const port of [ALLOWED + 1000, ALLOWED + 2000]) {
        await apply(node, port);
        await until("nftables has it", () => node.run("nft", "list", "table", "inet", "manx").includes(String(port)));
      }
      expect((await node.manx("status")).output).toContain("what dataplane iptables left cannot be removed yet");
    }
    await until("it is gone", () => node.there().join() === "nftables");
    await until("all is well", () => isGood(node));
  },
  TEST_DEADLINE_MS,
);

for (const variant of ["legacy", "nft"] as const) {
  test(
    `a foreign rule in a chain of ours, iptables ${variant}: it is moved aside and named, and a switch leaves it there`,
    async () => {
      await using node = await LiveNode.open(binary, "iptables", { variant });
      await using _watched = watched(node);
      node.run(`iptables-${variant}`, "-A", "manx-forward", "-s", "192.0.2.77", "-j", "ACCEPT");
      const kept = "-A kept-from-manx -s 192.0.2.77/32 -j ACCEPT";
      await until("it is moved", () => node.run(`iptables-${variant}-save`).includes(kept));
      const named = "found 1 rules of somebody else in chain manx-forward";
      await until("it is named", async () => (await node.manx("status")).output.includes(named));
      const { status, output } = await node.manx("status");
      expect(status).toBe(0);
      expect(output).toMatch(
        /repaired +\d+s ago: table filter of iptables was changed by somebody else; found 1 rules of/,
      );
      expect(output).toContain("which nothing leads to (policy is in force)");
      // The next change has nothing to tell, and what was repaired is still known.
      await node.sandbox.change("apply", policy(ALLOWED + 1000), "policy.json");
      const after = (await node.manx("status")).output;
      expect(after).toContain("problems   none");
      expect(after).toContain(named);
      expect((await node.manx("dataplane", "switch", "nftables")).status).toBe(0);
      expect(node.run(`iptables-${variant}-save`)).toContain(kept);
    },
    TEST_DEADLINE_MS,
  );
}

test("a foreign rule in a table of ours, nftables: it is taken away, and told word for word", async () => {
  await using node = await LiveNode.open(binary, "nftables");
  const ours = node.run("nft", "list", "table", "inet", "manx");
  node.run("nft", "add", "rule", "inet", "manx", "forward-to", "tcp dport 4711 accept");
  await until("it is taken away", () => node.run("nft", "list", "table", "inet", "manx") === ours);
  await until("it is named", async () => (await node.manx("status")).output.includes("repaired"));
  const { status, output } = await node.manx("status");
  expect(status).toBe(0);
  expect(output).toMatch(
    /repaired +\d+s ago: table inet manx was changed by somebody else \(netlink port \d+\); found table inet manx changed by somebody else, and put it right \(- taken away, \+ put back\): - chain forward-to .*accept/,
  );
}, TEST_DEADLINE_MS);

/** A table of a stranger's, flushed and filled again in one go, otherwise each time. */
const RULES =
  "*filter\\n:theirs - [0:0]\\n-A theirs -s 192.0.2.1/32 -j DROP\\n-A theirs -p tcp --dport '$((i%60000+1))' -j RETURN\\nCOMMIT\\n";
const NFT_RULES =
  "table inet theirs\\ndelete table inet theirs\\ntable inet theirs {\\n chain c {\\n ip saddr 192.0.2.1 drop\\n tcp dport '$((i%60000+1))' return\\n }\\n }\\n";
const STRANGERS = [
  // Under a lock of its own, so at any time: it may put our chains back as it has read them.
  ["iptables", { variant: "legacy" }, `printf '${RULES}' | XTABLES_LOCKFILE=$1 iptables-legacy-restore --noflush`],
  ["iptables", { variant: "nft" }, `printf '${RULES}' | iptables-nft-restore --noflush`],
  ["nftables", {}, `printf '${NFT_RULES}' | nft -f -`],
] as const;
for (const [dataplane, settings, theirs] of STRANGERS) {
  const title = [dataplane, ...Object.values(settings)].join(" ");
  test(
    `somebody who writes all the time, ${title}: every change of policy comes in force, and nothing of theirs is lost`,
    async () => {
      await using node = await LiveNode.open(binary, dataplane, settings);
      const list = () =>
        ["iptables-legacy-save", "iptables-nft-save", "nft list ruleset"].map((tool) => node.run(...tool.split(" ")))
          .join("");
      const writes = () => /dport (\d+) (?:-j RETURN|return)/.exec(list())?.[1];
      {
        await using _watched = watched(node);
        await using _stranger = running(
          node,
          "sh",
          "-c",
          `while :; do i=$((i+1)); ${theirs}; done`,
          "sh",
          join(node.directory, "lock"),
        );
        await until("they write", () => writes() !== undefined);
        const first = writes();
        for (let i = 0; i < CHANGES; i++) await node.sandbox.change("apply", policy(9_000 + i), "policy.json");
        expect(writes()).not.toBe(first);
      }
      expect(list()).toContain("192.0.2.1");
      expect(list()).toMatch(/dport \d+ (?:-j RETURN|return)/);
      await until("all is as wanted", async () => (await node.manx("dataplane", "diff")).status === 0);
      expect(await isGood(node)).toBe(true);
      // Only who writes whole tables, without the lock, can keep us from it for a while.
      if (title !== "iptables legacy") expect((await node.status()).counters.failures).toBe(0);
    },
    TEST_DEADLINE_MS,
  );
}

const LACKS = [
  ["nftables", "ip_set", "iptables", "wanted a kernel with ip_set"],
  ["nftables", "ip_tables", "iptables", "ENOPROTOOPT"],
  ["iptables", "nf_tables", "nftables", "wanted a kernel with nf_tables"],
] as const;

/** A daemon whose kernel lacks something. */
const lacking = (lacks: NonNullable<Faults["lacks"]>, until?: string) =>
  [[process.execPath, "--no-install", FAULTY_DAEMON], {
    [FAULTS]: JSON.stringify({ lacks, until } satisfies Faults),
  }] as const;

for (const [from, lacks, to, wanted] of LACKS) {
  test(
    `a switch from ${from} where the kernel lacks ${lacks} is refused with what is wanted, and ${from} stays`,
    async () => {
      await using node = await LiveNode.open(binary, from);
      await using _watched = watched(node);
      await node.kill();
      await node.start(...lacking(lacks));
      const { status, errors } = await node.manx("dataplane", "switch", to);
      expect([status, errors]).toEqual([1, expect.stringContaining(wanted)]);
      expect(errors.trim().split("\n").length).toBe(1);
      expect(node.there()).toEqual([from]);
      expect(await isGood(node)).toBe(true);
    },
    TEST_DEADLINE_MS,
  );
}

test.skipIf(lackOfKernel("ipvs") === undefined)(
  "services by IPVS where the kernel really has none: said so, and policy stays",
  async () => {
    await using node = await LiveNode.open(binary, "nftables");
    await using _watched = watched(node);
    await node.kill();
    node.configure(() => ({ dataplane: dataplaneConfig("ipvs", node.directory), services: { enabled: true } }));
    node.spawn();
    const named = "found no generic netlink family IPVS, wanted a kernel with the module ip_vs";
    await until("it is named", async () => (await node.manx("status")).output.includes(named));
    expect((await node.manx("status")).status).toBe(1);
    // What is of IPVS is there, too: it refuses what nobody forwards.
    expect(node.there()).toContain("nftables");
  },
  TEST_DEADLINE_MS,
);

test("a daemon that has not the right to use the kernel ends at once, and changes nothing", async () => {
  await using node = await LiveNode.open(binary, "nftables");
  await node.kill();
  const daemon = node.spawn(...lacking("rights"));
  await until("it has ended", () => !existsSync(`/proc/${daemon.pid}`));
  expect(node.there()).toEqual(["nftables"]);
}, TEST_DEADLINE_MS);

for (
  const [dataplane, lacks] of [["iptables", "ip_set"], ["iptables", "nfnetlink"], ["nftables", "nf_tables"]] as const
) {
  test(
    `a daemon that finds its kernel without ${lacks} says so, refuses pods, keeps policy, and goes on once it is there`,
    async () => {
      await using node = await LiveNode.open(binary, dataplane);
      using transfer = new Transfer(node, node.server[0]!);
      const loaded = join(node.directory, "loaded");
      {
        await using _watched = watched(node);
        await node.kill();
        node.spawn(...lacking(lacks, loaded));
        await until("it answers", async () => (await node.manx("status")).output.includes("problems   1"));
        const { status, output } = await node.manx("status");
        expect(status).toBe(1);
        expect(output).toMatch(
          new RegExp(
            `dataplane: dataplane: dataplane ${dataplane} cannot be opened: .*; what was in force before stands \\(being tried again\\)`,
          ),
        );
        const refused = await node.manx("get", "networkpolicies");
        expect([refused.status, refused.errors]).toEqual([
          1,
          expect.stringContaining(`dataplane ${dataplane} cannot be opened`),
        ]);
        await expect(node.sandbox.attach(node.late)).rejects.toThrow(`dataplane ${dataplane} cannot be opened`);
        transfer.pump();
        writeFileSync(loaded, "");
        await until("it goes on", () => isGood(node));
        expect(existsSync(node.recordFile)).toBe(true);
        await node.sandbox.attach(node.late);
      }
    },
    TEST_DEADLINE_MS,
  );
}
