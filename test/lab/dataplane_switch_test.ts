/** `manx dataplane switch` and `diff` on a live node: while one takes over from the other, what flows flows on, and what is denied stays denied. */
import { beforeAll, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { buildBinary } from "../../scripts/build.ts";
import { DENIED, LiveNode, policy, until } from "./dataplane_live_node.ts";
import { Forbidden, Transfer } from "./dataplane_traffic.ts";

const TEST_DEADLINE_MS = 90_000;
const SWITCHES = 6;

let binary = "";
beforeAll(async () => void (binary = await buildBinary()), TEST_DEADLINE_MS);

test(
  "six times to and fro: long connections lose nothing, nothing denied gets through, one dataplane is left each time",
  async () => {
    await using node = await LiveNode.open(binary);
    using stack = new DisposableStack();
    const transfers = node.server.map((to) => stack.use(new Transfer(node, to)));
    const forbidden = node.server.map((to) => stack.use(new Forbidden(node, to)));
    const leaks: string[] = [];
    let isOver = false, rounds = 0;
    const traffic = (async () => {
      while (!isOver) {
        for (const transfer of transfers) transfer.pump();
        for (const one of forbidden) leaks.push(...one.pump());
        rounds++;
        await new Promise((resolve) => setImmediate(resolve));
      }
    })();
    traffic.catch(() => {});
    try {
      expect(node.there()).toEqual(["nftables"]);
      for (let i = 0; i < SWITCHES; i++) {
        const to = i % 2 === 0 ? "iptables" : "nftables";
        const [bytes, before] = [transfers.map((transfer) => transfer.bytes), rounds];
        const switched = await node.manx("dataplane", "switch", to);
        expect(switched.errors + switched.output).toContain(
          `switched from ${i % 2 === 0 ? "nftables" : "iptables"} to ${to}`,
        );
        expect(switched.status).toBe(0);
        expect(node.there()).toEqual([to]);
        expect((await node.status()).dataplane).toMatchObject({ use: to, converged: true, problems: [] });
        expect((await node.status()).dataplane.configured).toBe(i % 2 === 0 ? "nftables" : undefined);
        expect(await node.manx("dataplane", "diff")).toEqual({ status: 0, output: "", errors: "" });
        await until("the traffic has gone on", () => rounds > before + 10);
        transfers.forEach((transfer, j) => expect(transfer.bytes).toBeGreaterThan(bytes[j]!));
        expect(leaks).toEqual([]);
      }
    } finally {
      isOver = true;
    }
    await traffic;
    // Both ways are open and shut still: what is allowed by now gets through, so the loop could have seen it.
    await node.sandbox.change("apply", policy(DENIED), "policy.json");
    for (const one of forbidden) await until("what is allowed is seen", () => one.pump().length > 0);
    expect(forbidden.every(({ tries }) => tries > 1_000)).toBe(true);
  },
  TEST_DEADLINE_MS,
);

test(
  "what was switched to follows policy and new pods, outlives kill -9, and gives way to an edited configuration",
  async () => {
    await using node = await LiveNode.open(binary);
    expect((await node.manx("dataplane", "switch", "iptables")).status).toBe(0);
    expect(JSON.parse(readFileSync(node.recordFile, "utf8"))).toMatchObject({
      written: [{ use: "iptables" }],
      switched: { configured: ["nftables"], from: "nftables", to: { use: "iptables" } },
    });
    await node.sandbox.attach(node.late);
    expect(node.run("ipset", "save")).toMatch(/mx[0-9a-f]{11}/);
    expect(node.there()).toEqual(["iptables"]);

    await node.restart();
    expect(node.there()).toEqual(["iptables"]);
    const status = await node.manx("status");
    expect(status.output).toContain("iptables (switched: the configuration says nftables)");

    // Killed in the middle: both may be there, and nothing was decided.
    await node.kill();
    writeFileSync(node.recordFile, JSON.stringify({ version: 1, written: [{ use: "nftables" }, { use: "iptables" }] }));
    await node.start();
    await until("the one that was not configured is gone", () => node.there().join() === "nftables");
    await until("that is recorded", () => JSON.parse(readFileSync(node.recordFile, "utf8")).written.length === 1);

    // Switched, then edited: the configuration has the last word, whatever it says.
    expect((await node.manx("dataplane", "switch", "iptables")).status).toBe(0);
    await node.kill();
    const config = JSON.parse(readFileSync(node.configFile, "utf8"));
    writeFileSync(node.configFile, JSON.stringify({ ...config, dataplane: { use: "iptables" } }));
    await node.start();
    expect((await node.status()).dataplane).toMatchObject({ use: "iptables" });
    expect((await node.status()).dataplane.configured).toBeUndefined();
    expect(node.there()).toEqual(["iptables"]);
  },
  TEST_DEADLINE_MS,
);

test("the one that is in force already is nothing to do, and is said to be", async () => {
  await using node = await LiveNode.open(binary);
  const before = node.run("nft", "list", "ruleset");
  const nothing = { status: 0, output: "nftables is in force already: nothing to do\n", errors: "" };
  expect(await node.manx("dataplane", "switch", "nftables")).toEqual(nothing);
  expect(node.run("nft", "list", "ruleset")).toBe(before);
  expect((await node.manx("dataplane", "switch", "iptables")).output).toMatch(
    /^switched from nftables to iptables in \d+ ms; they decided alike about all \d{2,} packets that could tell them apart/,
  );
  const { status, output } = await node.manx("dataplane", "switch", "iptables");
  expect([status, output.split("\n")[0]]).toEqual([0, "iptables is in force already: nothing to do"]);
  expect(output).toContain("manx.yaml still names nftables: edit it (dataplane: { use: iptables }); until then ");
  const settings = join(node.directory, "settings.yaml");
  writeFileSync(settings, JSON.stringify({ pollMs: 500 }));
  expect(await node.manx("dataplane", "switch", "iptables", "-c", settings)).toMatchObject({
    status: 1,
    errors: expect.stringContaining("found iptables in force already, wanted another dataplane: its settings are read"),
  });
}, TEST_DEADLINE_MS);

test("what cannot be switched to is refused, and what was in force stays as it was", async () => {
  await using node = await LiveNode.open(binary);
  const before = node.run("nft", "list", "ruleset");
  const refused = async (name: string, config?: unknown) => {
    const file = join(node.directory, "slot.yaml");
    if (config !== undefined) writeFileSync(file, JSON.stringify(config));
    const { status, errors } = await node.manx(
      "dataplane",
      "switch",
      name,
      ...config === undefined ? [] : ["-c", file],
    );
    expect(status).toBe(1);
    return errors;
  };
  expect(await refused("iptable")).toContain('found "iptable", wanted one of');
  expect(await refused("/tmp/x.ts")).toContain("wanted the name of a built-in dataplane");
  expect(await refused("memory")).toContain("without nat, wanted all that nftables does");
  expect(await refused("iptables", { positions: "insert" })).toContain(
    "dataplane.config.positions: found an unknown key",
  );
  expect(await refused("iptables", { markMask: 0xff00 })).toContain("cut flows would go on");
  expect(node.there()).toEqual(["nftables"]);
  expect(node.run("nft", "list", "ruleset")).toBe(before);
  expect(existsSync(node.recordFile) && JSON.parse(readFileSync(node.recordFile, "utf8"))).toEqual({
    version: 1,
    written: [{ use: "nftables" }],
  });
}, TEST_DEADLINE_MS);

test(
  "diff tells what somebody else did while the daemon is held still, and says nothing once it is mended",
  async () => {
    await using node = await LiveNode.open(binary);
    const { pid } = await node.status();
    expect(await node.manx("dataplane", "diff")).toEqual({ status: 0, output: "", errors: "" });
    process.kill(pid, "SIGSTOP");
    const asked = node.manx("dataplane", "diff", "-o", "json");
    node.run("nft", "insert", "rule", "inet", "manx", "forward-to", "accept");
    process.kill(pid, "SIGCONT");
    // Whichever it came to first, the repair or the question.
    const { status, output } = await asked;
    const { dataplanes } = JSON.parse(output);
    expect(dataplanes[0].name).toBe("nftables");
    expect([[0, 0], [1, 1]]).toContainEqual([status, dataplanes[0].lines.length]);
    await until("it is mended", async () => (await node.manx("dataplane", "diff")).status === 0);
    await node.kill();
    expect((await node.manx("dataplane", "diff")).status).toBe(2);
  },
  TEST_DEADLINE_MS,
);
