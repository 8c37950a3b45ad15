/** Tables of nf_tables written in the real kernel, and what the real `iptables-nft` says of them. */
import { afterAll, expect, test } from "bun:test";
import type { Family } from "../../../src/model/address.ts";
import { openNetlink } from "../../../src/kernel/netlink/socket.ts";
import { createNamespace, namespacePath } from "../../../src/kernel/netns.ts";
import { runIn } from "../../../src/kernel/testdata/tool_fixture.ts";
import type { NetlinkSocket, NetworkNamespace } from "../../../src/sdk/kernel_door.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import { keyOf } from "../backend.ts";
import { encodeRule } from "../entry.ts";
import { printRule } from "../print.ts";
import { DROP, goto, RETURN, type Rule, rule, type TableName } from "../ruleset.ts";
import type { WantedTable } from "../table.ts";
import { everyRule, FOREIGN, makeSets, net, protocol, wantedOf } from "../testdata/table_cases.ts";
import { iptablesOf, removeLocks, restore as restoreOf, save as saveOf } from "../testdata/tools.ts";
import { NftTables } from "./backend.ts";

afterAll(removeLocks);

const FREE_MARK = 0xffe00000;
const NO_SETS = (set: string): number => {
  throw new Error(`no set ${set}`);
};
const FILTER = { family: 4, table: "filter" } as const;
/** Reading and writing asks nothing of it. */
const NO_HOST = {} as Host;

const save = (namespace: NetworkNamespace, family: Family = 4, counters = false): string =>
  saveOf(namespace, family, { variant: "nft", counters });
const restore = (namespace: NetworkNamespace, family: Family, text: string, flags?: readonly string[]): string =>
  restoreOf(namespace, family, text, flags, "nft");
const iptables = (namespace: NetworkNamespace, ...args: readonly string[]): string =>
  iptablesOf("nft", namespace, 4, ...args);

interface WriteOptions {
  readonly position?: "insert" | "append";
  readonly indexOf?: (set: string) => number;
}

/** As somebody does it who remembers nothing. */
function write(
  namespace: NetworkNamespace,
  family: Family,
  table: TableName,
  wanted: WantedTable,
  { position = "insert", indexOf = NO_SETS }: WriteOptions = {},
) {
  using socket = openNetlink(12, { namespace });
  return writeBy(new NftTables(NO_HOST, socket, new Set([4, 6]), FREE_MARK), { family, table }, wanted, {
    position,
    indexOf,
  });
}

function writeBy(
  tables: NftTables,
  place: { readonly family: Family; readonly table: TableName },
  wanted: WantedTable,
  { position = "insert", indexOf = NO_SETS }: WriteOptions = {},
) {
  const { messages, notes, failed } = tables.write([{ place, wanted }], { position, indexOf }, "write");
  return { messages, notes, failed: failed.get(keyOf(place)) };
}
const DONE = { messages: 0, notes: [], failed: undefined };

test.each([4, 6] as const)(
  "the real tool reads every kind of rule as we print it, and takes it back: IPv%d",
  (family) => {
    using namespace = createNamespace("every rule");
    const indexOf = makeSets(namespace, family);
    const filter = wantedOf(family, { "manx-a": everyRule(family), "manx-b": [] }, { FORWARD: "manx-a" });
    const { notes, failed } = write(namespace, family, "filter", filter, { indexOf });
    expect({ notes, failed }).toEqual({ notes: [], failed: undefined });
    const others = {
      raw: [rule({ target: "noTrack" }, protocol(6))],
      mangle: [rule({ target: "mark", value: 0x10000, mask: 0x10000 })],
      nat: [rule({ target: "masquerade" })],
    } as const;
    const hooks = { raw: "PREROUTING", mangle: "PREROUTING", nat: "POSTROUTING" } as const;
    const wantedIn = (table: "raw" | "mangle" | "nat") =>
      wantedOf(family, { "manx-a": others[table] }, { [hooks[table]]: "manx-a" });
    for (const table of ["raw", "mangle", "nat"] as const) write(namespace, family, table, wantedIn(table));
    const text = save(namespace, family);
    const shown = (table: string) =>
      text.split(`*${table}\n`)[1]!.split("COMMIT")[0]!.split("\n").filter((line) => line.startsWith("-A manx-a "));
    expect(shown("filter")).toEqual(everyRule(family).map((one) => `-A manx-a ${printRule(one, family)}`));
    for (const table of ["raw", "mangle", "nat"] as const) {
      expect(shown(table)).toEqual(others[table].map((one) => `-A manx-a ${printRule(one, family)}`));
    }
    // The tool writes some of it in other words, and without our mark: it says the same.
    restore(namespace, family, text);
    for (const table of ["raw", "mangle", "nat"] as const) {
      expect({ table, ...write(namespace, family, table, wantedIn(table)) }).toEqual({ table, ...DONE });
    }
    expect(write(namespace, family, "filter", filter, { indexOf })).toEqual(DONE);
  },
);

// ----------------------------------------------------------------------------------------------------- other people's rules

/** So often the tool has written before the rounds end. */
const THEIR_ROUNDS = 100;

/** Lines that are not ours. */
const theirs = (text: string): string => text.split("\n").filter((line) => !line.includes("manx-")).join("\n");

const OURS = wantedOf(4, { "manx-a": [rule(goto("manx-b")), rule(DROP, protocol(6))], "manx-b": [rule(RETURN)] }, {
  FORWARD: "manx-a",
  INPUT: "manx-a",
});
const NOTHING = wantedOf(4, {});

test.each(Object.keys(FOREIGN))(
  "rules as of %s are kept word by word around ours, at the top, at the end, and when we go",
  (who) => {
    using namespace = createNamespace(who);
    restore(namespace, 4, FOREIGN[who]!);
    const before = save(namespace), listed = runIn(namespace, "nft", "list", "ruleset");
    write(namespace, 4, "filter", OURS);
    const top = save(namespace);
    expect(theirs(top)).toBe(before);
    expect(top.split("\n").find((line) => line.startsWith("-A FORWARD"))).toBe("-A FORWARD -j manx-a");
    write(namespace, 4, "filter", OURS, { position: "append" });
    const end = save(namespace);
    expect(theirs(end)).toBe(before);
    expect(end.split("\n").filter((line) => line.startsWith("-A FORWARD")).pop()).toBe("-A FORWARD -j manx-a");
    expect(write(namespace, 4, "filter", OURS, { position: "append" })).toEqual(DONE);
    // The tool itself goes on working with what we have written.
    iptables(namespace, "-A", "manx-b", "-j", "DROP");
    iptables(namespace, "-I", "INPUT", "2", "-s", "192.0.2.9", "-j", "ACCEPT");
    iptables(namespace, "-D", "INPUT", "-s", "192.0.2.9", "-j", "ACCEPT");
    iptables(namespace, "-D", "manx-b", "-j", "DROP");
    expect(write(namespace, 4, "filter", OURS, { position: "append" })).toEqual(DONE);
    write(namespace, 4, "filter", NOTHING);
    expect(runIn(namespace, "nft", "list", "ruleset")).toBe(listed);
  },
);

test("tables and chains of hooks that we have made go with us, unless somebody has come to use them", () => {
  using namespace = createNamespace("made by us");
  write(namespace, 4, "filter", OURS);
  write(namespace, 6, "filter", wantedOf(6, { "manx-a": [] }, { FORWARD: "manx-a" }));
  iptables(namespace, "-A", "INPUT", "-s", "192.0.2.1", "-j", "ACCEPT");
  iptables(namespace, "-P", "FORWARD", "DROP");
  write(namespace, 4, "filter", NOTHING);
  write(namespace, 6, "filter", NOTHING);
  expect(runIn(namespace, "nft", "list", "tables").trim()).toBe("table ip filter");
  expect(save(namespace)).toContain(":FORWARD DROP [0:0]");
  expect(save(namespace)).toContain("-A INPUT -s 192.0.2.1/32 -j ACCEPT");
  expect(save(namespace)).not.toContain("manx");
});

test("only what changes is sent: rules in a chain, with others' counters and ours where they were", () => {
  using namespace = createNamespace("single rules");
  runIn(namespace, "ip", "link", "set", "lo", "up");
  restore(namespace, 4, "*filter\n:X - [0:0]\n-A INPUT -p icmp -j X\n-A X -j RETURN\nCOMMIT\n");
  const addresses = Array.from({ length: 300 }, (_, i) => rule(RETURN, net("source", `10.0.${i >> 8}.${i & 255}/32`)));
  const still = Array.from({ length: 50 }, (_, i): [string, readonly Rule[]] => [`manx-s${i}`, addresses]);
  const ours = (rules: readonly Rule[]) =>
    wantedOf(4, { ...Object.fromEntries(still), "manx-a": [rule(RETURN, protocol(1)), ...rules] }, { INPUT: "manx-a" });
  // A table with the same chains, where they are the same.
  const first = ours(addresses);
  const next = (rules: readonly Rule[]): WantedTable => {
    const chains = new Map(first.chains);
    return { hooks: first.hooks, chains: chains.set("manx-a", ours(rules).chains.get("manx-a")!) };
  };
  using socket = openNetlink(12, { namespace });
  const tables = new NftTables(NO_HOST, socket, new Set([4, 6]), FREE_MARK);
  const message = (wanted: WantedTable) => writeBy(tables, FILTER, wanted).messages;
  expect(message(first)).toBeGreaterThan(15_000);
  expect(message(first)).toBe(0);
  runIn(namespace, "ping", "-c", "3", "-i", "0.002", "-q", "127.0.0.1");
  const more = rule(DROP, net("source", "192.0.2.1/32"));
  expect(message(next([...addresses.slice(0, 150), more, ...addresses.slice(150)]))).toBe(1);
  expect(message(next(addresses))).toBe(1);
  expect(message(next([more, ...addresses.slice(1)]))).toBe(2);
  // A chain more, with its rule, and one less, with its rules.
  const chains = new Map(next([more, ...addresses.slice(1)]).chains);
  chains.delete("manx-s7");
  chains.set("manx-new", [encodeRule(more, 4)]);
  expect(message({ hooks: first.hooks, chains })).toBe(4);
  const counted = save(namespace, 4, true);
  for (const line of ["-A INPUT -p icmp -j X", "-A X -j RETURN", "-A manx-a -p icmp -j RETURN"]) {
    expect(counted.split("\n").find((one) => one.endsWith(line))).toStartWith("[6:");
  }
  expect(write(namespace, 4, "filter", { hooks: first.hooks, chains })).toEqual(DONE);
});

test("a rule of somebody else in a chain of ours is told of and kept aside, one of an earlier version of ours is not", () => {
  using namespace = createNamespace("strays");
  write(namespace, 4, "filter", OURS);
  iptables(
    namespace,
    "-I",
    "manx-a",
    "1",
    "-s",
    "192.0.2.1",
    "-m",
    "hashlimit",
    "--hashlimit-upto",
    "5/sec",
    "--hashlimit-name",
    "h",
    "-j",
    "ACCEPT",
  );
  iptables(namespace, "-A", "FORWARD", "-s", "192.0.2.2", "-j", "manx-a");
  const { messages, notes, failed } = write(namespace, 4, "filter", OURS);
  expect(failed).toBe(undefined);
  expect(messages).toBe(3);
  expect(notes).toEqual([
    "found 1 rules of somebody else in chain manx-a of table filter of iptables (nft): moved to chain kept-from-manx, which nothing leads to",
  ]);
  const text = save(namespace);
  expect(text).toMatch(/-A kept-from-manx -s 192.0.2.1\/32 -m hashlimit .* -j ACCEPT\n/);
  expect(text).not.toMatch(/-A manx-a -s/);
  expect(text).toContain("-A FORWARD -s 192.0.2.2/32 -j manx-a\n");
  expect(write(namespace, 4, "filter", wantedOf(4, { "manx-a": [] })).notes).toEqual([]);
  // What somebody leads to stays for as long as they do, and does nothing.
  const gone = write(namespace, 4, "filter", NOTHING);
  expect(gone.notes).toEqual([
    "delete chain manx-a of table filter of iptables (nft): found 1 rules of somebody else that lead to it, wanted none: it stays, empty; tried again later",
  ]);
  expect(write(namespace, 4, "filter", NOTHING).messages).toBe(0);
  iptables(namespace, "-D", "FORWARD", "-s", "192.0.2.2", "-j", "manx-a");
  expect(write(namespace, 4, "filter", NOTHING)).toMatchObject({ messages: 2, notes: [] });
  const after = save(namespace);
  expect(after).toMatch(/-A kept-from-manx -s 192.0.2.1/);
  expect(after).not.toContain("manx-a");
});

test("what the tool has restored of ours is ours, when it changes and when it goes", () => {
  using namespace = createNamespace("restored");
  using socket = openNetlink(12, { namespace });
  const tables = new NftTables(NO_HOST, socket, new Set([4, 6]), FREE_MARK);
  const more = wantedOf(4, { "manx-a": [rule(goto("manx-b")), rule(DROP, protocol(6))], "manx-b": [rule(DROP)] }, {
    FORWARD: "manx-a",
    INPUT: "manx-a",
  });
  const restored = () => restore(namespace, 4, save(namespace));
  expect(writeBy(tables, FILTER, OURS).notes).toEqual([]);
  restored();
  // By what it remembers, and after it was told of the change.
  expect(writeBy(tables, FILTER, more)).toMatchObject({ notes: [], failed: undefined });
  restored();
  tables.forget();
  expect(writeBy(tables, FILTER, OURS)).toMatchObject({ notes: [], failed: undefined });
  expect(save(namespace)).toContain("-A manx-b -j RETURN");
  restored();
  expect(write(namespace, 4, "filter", NOTHING)).toMatchObject({ notes: [], failed: undefined });
  expect(save(namespace)).not.toContain("manx");
});

test.each([
  [
    "a chain of another hook under the name of one of the kernel's",
    "add table ip filter; add chain ip filter FORWARD { type filter hook input priority 0; }",
    "found chain FORWARD of type filter at hook input, priority 0, wanted it of type filter at hook forward, priority 0",
  ],
  [
    "a chain of no hook under such a name",
    "add table ip filter; add chain ip filter FORWARD",
    "found chain FORWARD at no hook, wanted it of type filter at hook forward, priority 0",
  ],
  ["a table that is out of force", "add table ip filter { flags dormant; }", "found it dormant, wanted it in force"],
  [
    "a chain at a hook under a name of ours",
    "add table ip filter; add chain ip filter manx-a { type filter hook input priority 0; }",
    "found chain manx-a at a hook of the kernel, wanted no hook there",
  ],
  [
    "a rule in a chain of ours that cannot be moved",
    "add table ip filter; add chain ip filter manx-a; add rule ip filter manx-a tcp dport { 1, 2 } accept",
    "found a rule of somebody else in chain manx-a that cannot be moved",
  ],
])("%s is named, left as it is, and what can be written is", (_, script, problem) => {
  using namespace = createNamespace("not to be written");
  runIn(namespace, "nft", script);
  const before = runIn(namespace, "nft", "list", "table", "ip", "filter");
  using socket = openNetlink(12, { namespace });
  const tables = new NftTables(NO_HOST, socket, new Set([4, 6]), FREE_MARK);
  const six = wantedOf(6, { "manx-a": [rule(DROP)] }, { FORWARD: "manx-a" });
  const changes = [{ place: FILTER, wanted: OURS }, { place: { family: 6, table: "filter" } as const, wanted: six }];
  for (let times = 0; times < 2; times++) {
    const { failed } = tables.write(changes, { position: "insert", indexOf: NO_SETS }, "write");
    expect([...failed.keys()]).toEqual([keyOf(FILTER)]);
    expect(failed.get(keyOf(FILTER))).toContain(`write table filter of iptables (nft): ${problem}`);
    expect(runIn(namespace, "nft", "list", "table", "ip", "filter")).toBe(before);
    expect(save(namespace, 6)).toContain("-A FORWARD -j manx-a\n");
  }
});

test("a table that iptables-nft cannot list any more is named, and ours are in force there", () => {
  using namespace = createNamespace("native");
  iptables(namespace, "-A", "FORWARD", "-s", "192.0.2.1", "-j", "ACCEPT");
  runIn(namespace, "nft", "add", "rule", "ip", "filter", "FORWARD", "fib", "saddr", "type", "local", "counter", "drop");
  const { failed, notes } = write(namespace, 4, "filter", OURS);
  expect({ failed, notes }).toEqual({
    failed: undefined,
    notes: [
      "found an expression fib in chain FORWARD of table filter of iptables (nft), wanted only what iptables-nft can list: ours are in force all the same",
    ],
  });
  const listed = runIn(namespace, "nft", "list", "chain", "ip", "filter", "FORWARD");
  expect(listed).toMatch(
    /jump manx-a\n.*ip saddr 192.0.2.1 .*\n.*fib saddr type local counter packets 0 bytes 0 drop\n/,
  );
});

test("nothing of theirs is lost while the real tool writes beside us for a thousand rounds", async () => {
  using namespace = createNamespace("rounds");
  runIn(namespace, "ip", "link", "set", "lo", "up");
  for (const text of Object.values(FOREIGN)) restore(namespace, 4, text, ["-n"]);
  iptables(namespace, "-I", "INPUT", "-p", "icmp", "-j", "ACCEPT");
  const filter = save(namespace);
  // Its lines: a chain that the tool makes anew each time, and rules before and after ours.
  const theirRound = (i: number) =>
    `*filter\n:THEIRS - [0:0]\n-F THEIRS\n-A THEIRS -s 198.51.100.${i % 250}/32 -j RETURN\n` +
    `-I FORWARD -d 203.0.113.${i % 250}/32 -j THEIRS\nCOMMIT\n*filter\n-D FORWARD -d 203.0.113.${
      i % 250
    }/32 -j THEIRS\nCOMMIT\n`;
  let done = false, theirRounds = 0;
  const writer = (async () => {
    for (let i = 0; !done; i++) {
      const child = Bun.spawn(["nsenter", `--net=${namespacePath(namespace)}`, "iptables-nft-restore", "-n"], {
        stdin: new Blob([theirRound(i)]),
        stderr: "pipe",
      });
      if (await child.exited !== 0) throw new Error(await new Response(child.stderr).text());
      theirRounds++;
    }
  })();
  const ping = (): number => (runIn(namespace, "ping", "-c", "1", "-q", "127.0.0.1"), 2);
  let written = 0, pinged = 0;
  const failed: (string | undefined)[] = [];
  {
    using socket = openNetlink(12, { namespace });
    const tables = new NftTables(NO_HOST, socket, new Set([4]), FREE_MARK);
    for (let round = 0; round < 1000 || theirRounds < THEIR_ROUNDS; round++) {
      const wanted = wantedOf(4, {
        "manx-a": [rule(RETURN, net("source", `10.0.${round >> 8 & 255}.${round & 255}/32`)), rule(goto("manx-b"))],
        "manx-b": Array.from({ length: round % 5 }, () => rule(DROP, protocol(253))),
      }, { FORWARD: "manx-a", INPUT: "manx-a" });
      // By what it remembers, and by reading everything.
      if (round % 2 === 0) tables.forget();
      const outcome = writeBy(tables, FILTER, wanted);
      failed.push(outcome.failed);
      if (outcome.messages > 0) written++;
      await new Promise((resolve) => setImmediate(resolve));
      if (round % 250 === 0) pinged += ping();
    }
  }
  done = true;
  await writer;
  expect(failed.filter((one) => one !== undefined)).toEqual([]);
  expect(written).toBeGreaterThanOrEqual(1000);
  write(namespace, 4, "filter", NOTHING);
  const after = save(namespace).split("\n").filter((line) => !line.includes("THEIRS")).join("\n");
  expect(after).toBe(filter);
  const counted = save(namespace, 4, true).split("\n").find((line) => line.endsWith("-A INPUT -p icmp -j ACCEPT"))!;
  expect(counted).toStartWith(`[${pinged}:`);
}, 60_000);

test("somebody who writes between our reading and writing is noticed, and one who never stops is named", () => {
  using namespace = createNamespace("disturbed");
  restore(namespace, 4, "*filter\n-A FORWARD -s 192.0.2.1/32 -j ACCEPT\nCOMMIT\n");
  using socket = openNetlink(12, { namespace });
  let times = 0;
  const disturb = (until: number): NetlinkSocket =>
    new Proxy(socket, {
      get(of, key) {
        if (key !== "transaction") {
          const value = Reflect.get(of, key, of);
          return typeof value === "function" ? value.bind(of) : value;
        }
        return (...args: Parameters<NetlinkSocket["transaction"]>) => {
          if (times++ < until) iptables(namespace, "-R", "FORWARD", "1", "-s", `192.0.2.${times + 1}`, "-j", "ACCEPT");
          of.transaction(...args);
        };
      },
    });
  const tablesBy = (one: NetlinkSocket) => new NftTables(NO_HOST, one, new Set([4]), FREE_MARK);
  expect(writeBy(tablesBy(disturb(1)), FILTER, OURS).failed).toBe(undefined);
  expect(save(namespace)).toContain("-A FORWARD -j manx-a\n-A FORWARD -s 192.0.2.2/32 -j ACCEPT\n");
  write(namespace, 4, "filter", NOTHING);
  times = 0;
  const { failed } = writeBy(tablesBy(disturb(1000)), FILTER, OURS);
  expect(failed).toContain("found nf_tables changed by somebody else 16 times between reading and writing");
  expect(save(namespace)).not.toContain("manx");
});

test("all tables are one transaction, with the generation that was read; a table that the kernel refuses is named, and the others are written", () => {
  using namespace = createNamespace("one transaction");
  using socket = openNetlink(12, { namespace });
  const transactions: { readonly messages: number; readonly generation: number | undefined }[] = [];
  const counting = new Proxy(socket, {
    get(of, key) {
      const value = Reflect.get(of, key, of);
      if (key !== "transaction") return typeof value === "function" ? value.bind(of) : value;
      return (...args: Parameters<NetlinkSocket["transaction"]>) => {
        transactions.push({ messages: args[2].length, generation: args[3] });
        of.transaction(...args);
      };
    },
  });
  const tables = new NftTables(NO_HOST, counting, new Set([4, 6]), FREE_MARK);
  const options = { position: "insert", indexOf: NO_SETS } as const;
  const everywhere = (more: Readonly<Record<string, readonly Rule[]>> = {}) =>
    ([4, 6] as const).flatMap((family) =>
      (["nat", "filter", "mangle", "raw"] as const).map((table) => ({
        place: { family, table },
        wanted: wantedOf(family, { "manx-a": [rule(RETURN)], ...table === "filter" ? more : {} }, {
          [table === "nat" ? "POSTROUTING" : table === "raw" ? "PREROUTING" : "FORWARD"]: "manx-a",
        }),
      }))
    );
  const { messages, failed } = tables.write(everywhere(), options, "write");
  expect(failed.size).toBe(0);
  expect(transactions).toEqual([{ messages, generation: expect.any(Number) as never }]);
  expect(tables.write(everywhere(), options, "write").messages).toBe(0);
  expect(transactions.length).toBe(1);
  // More gotos than the kernel takes, in one family only.
  const loop = Object.fromEntries(
    Array.from({ length: 20 }, (_, i): [string, readonly Rule[]] => [`manx-${i}`, [rule(goto(`manx-${i + 1}`))]]),
  );
  const refused = everywhere({ ...loop, "manx-20": [], "manx-a": [rule(goto("manx-0"))] });
  const mixed = [...everywhere().slice(0, 4), ...refused.slice(4)];
  const raw = mixed.findIndex(({ place }) => place.family === 6 && place.table === "raw");
  mixed[raw] = {
    ...mixed[raw]!,
    wanted: wantedOf(6, { "manx-a": [rule(DROP)] }, { PREROUTING: "manx-a" }),
  };
  const outcome = tables.write(mixed, options, "write");
  expect([...outcome.failed.keys()]).toEqual(["6 filter"]);
  expect(outcome.failed.get("6 filter")).toContain("EMLINK");
  expect(save(namespace, 6)).toContain("-A manx-a -j DROP");
  expect(save(namespace, 6).split("*filter")[1]).toContain("-A manx-a -j RETURN");
});
