/** Tables read from and written to the real kernel, and what the real tools say of them. */
import { afterAll, expect, test } from "bun:test";
import type { Family } from "../../src/model/address.ts";
import { createNamespace, namespacePath } from "../../src/kernel/netns.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { openXtables, tryLock } from "../../src/kernel/xtables.ts";
import type { NetworkNamespace, XtablesInfo, XtablesSocket } from "../../src/sdk/kernel_door.ts";
import { LegacyTables, writeTable } from "./legacy.ts";
import { printRule } from "./print.ts";
import { DROP, goto, RETURN, type Rule, rule, type TableName } from "./ruleset.ts";
import { parseTable, TableError, type WantedTable } from "./table.ts";
import { everyRule, FOREIGN, makeSets, net, protocol, wantedOf } from "./testdata/table_cases.ts";
import { iptables, lockFileOf, removeLocks, restore, save } from "./testdata/tools.ts";

afterAll(removeLocks);

const FILTER = { family: 4, table: "filter" } as const;
const NO_SETS = (set: string): number => {
  throw new Error(`no set ${set}`);
};

function write(
  namespace: NetworkNamespace,
  family: Family,
  table: TableName,
  wanted: WantedTable,
  { position = "insert", indexOf = NO_SETS }: { position?: "insert" | "append"; indexOf?: (set: string) => number } =
    {},
) {
  using socket = openXtables(family, namespace);
  const { messages, notes } = writeTable(
    socket,
    { family, table },
    wanted,
    { position, indexOf },
    `write ${table}`,
  );
  return { messages, notes };
}

test.each([4, 6] as const)(
  "the real tool reads every kind of rule as we print it, and takes it back: IPv%d",
  (family) => {
    using namespace = createNamespace("every rule");
    const indexOf = makeSets(namespace, family);
    const all = everyRule(family);
    expect(
      write(namespace, family, "filter", wantedOf(family, { "manx-a": all, "manx-b": [] }, { FORWARD: "manx-a" }), {
        indexOf,
      })
        .messages,
    ).toBe(1);
    const others = {
      raw: [rule({ target: "noTrack" }, protocol(6))],
      mangle: [rule({ target: "mark", value: 0x10000, mask: 0x10000 })],
      nat: [rule({ target: "masquerade" })],
    } as const;
    const hooks = { raw: "PREROUTING", mangle: "PREROUTING", nat: "POSTROUTING" } as const;
    for (const table of ["raw", "mangle", "nat"] as const) {
      write(namespace, family, table, wantedOf(family, { "manx-a": others[table] }, { [hooks[table]]: "manx-a" }));
    }
    const text = save(namespace, family);
    const shown = (table: string) =>
      text.split(`*${table}\n`)[1]!.split("COMMIT")[0]!.split("\n").filter((line) => line.startsWith("-A manx-a "));
    expect(shown("filter")).toEqual(all.map((one) => `-A manx-a ${printRule(one, family)}`));
    for (const table of ["raw", "mangle", "nat"] as const) {
      expect(shown(table)).toEqual(others[table].map((one) => `-A manx-a ${printRule(one, family)}`));
    }
    // What the tool makes of its own text is, but for the mark that nobody looks at, what we have written.
    restore(namespace, family, text);
    for (const table of ["raw", "mangle", "nat", "filter"] as const) {
      const wanted = table === "filter"
        ? wantedOf(family, { "manx-a": all, "manx-b": [] }, { FORWARD: "manx-a" })
        : wantedOf(family, { "manx-a": others[table] }, { [hooks[table]]: "manx-a" });
      expect({ table, ...write(namespace, family, table, wanted, { indexOf }) }).toEqual({
        table,
        messages: 0,
        notes: [],
      });
    }
    expect(save(namespace, family)).toBe(text);
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
    const before = save(namespace, 4);
    write(namespace, 4, "filter", OURS);
    const top = save(namespace, 4);
    expect(theirs(top)).toBe(before);
    expect(top.split("\n").find((line) => line.startsWith("-A FORWARD"))).toBe("-A FORWARD -j manx-a");
    write(namespace, 4, "filter", OURS, { position: "append" });
    const end = save(namespace, 4);
    expect(theirs(end)).toBe(before);
    expect(end.split("\n").filter((line) => line.startsWith("-A FORWARD")).pop()).toBe("-A FORWARD -j manx-a");
    expect(write(namespace, 4, "filter", OURS, { position: "append" }).messages).toBe(0);
    // The tool itself goes on working with what we have written.
    iptables(namespace, 4, "-A", "manx-b", "-j", "DROP");
    iptables(namespace, 4, "-I", "INPUT", "2", "-s", "192.0.2.9", "-j", "ACCEPT");
    iptables(namespace, 4, "-D", "INPUT", "-s", "192.0.2.9", "-j", "ACCEPT");
    iptables(namespace, 4, "-D", "manx-b", "-j", "DROP");
    expect(write(namespace, 4, "filter", OURS, { position: "append" }).messages).toBe(0);
    write(namespace, 4, "filter", NOTHING);
    expect(save(namespace, 4)).toBe(before);
  },
);

test("counters of other people's rules, and of ours that stay, go on from where they were", () => {
  using namespace = createNamespace("counters");
  runIn(namespace, "ip", "link", "set", "lo", "up");
  restore(namespace, 4, "*filter\n:X - [0:0]\n-A INPUT -p icmp -j X\n-A INPUT -p udp\n-A X -j RETURN\nCOMMIT\n");
  const ours = (...more: Rule[]) =>
    wantedOf(4, { "manx-a": [rule(RETURN, protocol(1)), ...more] }, { INPUT: "manx-a" });
  write(namespace, 4, "filter", ours());
  const count = (what: string): number => {
    const line = save(namespace, 4, { counters: true }).split("\n").find((one) => one.endsWith(what));
    return Number(/^\[(\d+):/.exec(line!)![1]);
  };
  const ping = () => runIn(namespace, "ping", "-c", "3", "-i", "0.002", "-q", "127.0.0.1");
  ping();
  // Requests and answers.
  expect([count("-A INPUT -p icmp -j X"), count("-A X -j RETURN"), count("-A manx-a -p icmp -j RETURN")]).toEqual([
    6,
    6,
    6,
  ]);
  write(namespace, 4, "filter", ours(rule(DROP, protocol(253))));
  expect([count("-A INPUT -p icmp -j X"), count("-A X -j RETURN"), count("-A manx-a -p icmp -j RETURN")]).toEqual([
    6,
    6,
    6,
  ]);
  ping();
  write(namespace, 4, "filter", NOTHING);
  expect([count("-A INPUT -p icmp -j X"), count("-A X -j RETURN")]).toEqual([12, 12]);
});

test("a rule of somebody else in a chain of ours is told of and kept aside, one of an earlier version of ours is not", () => {
  using namespace = createNamespace("strays");
  write(namespace, 4, "filter", OURS);
  iptables(namespace, 4, "-I", "manx-a", "1", "-s", "192.0.2.1", "-j", "ACCEPT");
  iptables(namespace, 4, "-A", "FORWARD", "-s", "192.0.2.2", "-j", "manx-a");
  const { messages, notes } = write(namespace, 4, "filter", OURS);
  expect({ messages, notes }).toEqual({
    messages: 1,
    notes: [
      "found 1 rules of somebody else in chain manx-a of iptables table filter: moved to chain kept-from-manx, which nothing leads to",
    ],
  });
  const text = save(namespace, 4);
  expect(text).toContain("-A kept-from-manx -s 192.0.2.1/32 -j ACCEPT\n");
  expect(text).toContain("-A FORWARD -s 192.0.2.2/32 -j manx-a\n");
  expect(write(namespace, 4, "filter", wantedOf(4, { "manx-a": [] })).notes).toEqual([]);
  write(namespace, 4, "filter", NOTHING);
  const after = save(namespace, 4);
  expect(after).toContain("-A kept-from-manx -s 192.0.2.1/32 -j ACCEPT\n");
  expect(after).not.toContain("manx-a");
});

test("nothing of theirs is lost while the real tool writes beside us for a thousand rounds", async () => {
  using namespace = createNamespace("rounds");
  runIn(namespace, "ip", "link", "set", "lo", "up");
  for (const text of Object.values(FOREIGN)) restore(namespace, 4, text, ["-n"]);
  iptables(namespace, 4, "-I", "INPUT", "-p", "icmp", "-j", "ACCEPT");
  const filter = save(namespace, 4);
  // Its lines: a chain that the tool makes anew each time, and rules before and after ours.
  const theirRound = (i: number) =>
    `*filter\n:THEIRS - [0:0]\n-F THEIRS\n-A THEIRS -s 198.51.100.${i % 250}/32 -j RETURN\n` +
    `-I FORWARD -d 203.0.113.${i % 250}/32 -j THEIRS\nCOMMIT\n*filter\n-D FORWARD -d 203.0.113.${
      i % 250
    }/32 -j THEIRS\nCOMMIT\n`;
  const lock = lockFileOf(namespace);
  let done = false, theirRounds = 0;
  const writer = (async () => {
    for (let i = 0; !done; i++) {
      const child = Bun.spawn(["nsenter", `--net=${namespacePath(namespace)}`, "iptables-legacy-restore", "-w", "-n"], {
        stdin: new Blob([theirRound(i)]),
        env: { ...process.env, XTABLES_LOCKFILE: lock },
        stderr: "pipe",
      });
      if (await child.exited !== 0) throw new Error(await new Response(child.stderr).text());
      theirRounds++;
    }
  })();
  const ping = (): number => (runIn(namespace, "ping", "-c", "1", "-q", "127.0.0.1"), 2);
  let written = 0, pinged = 0;
  {
    using socket = openXtables(4, namespace);
    for (let round = 0; round < 1000 || theirRounds < THEIR_ROUNDS;) {
      {
        using held = tryLock(lock);
        if (held !== undefined) {
          const wanted = wantedOf(4, {
            "manx-a": [rule(RETURN, net("source", `10.0.${round >> 8 & 255}.${round & 255}/32`)), rule(goto("manx-b"))],
            "manx-b": Array.from({ length: round % 5 }, () => rule(DROP, protocol(253))),
          }, { FORWARD: "manx-a", INPUT: "manx-a" });
          written += writeTable(socket, FILTER, wanted, { position: "insert", indexOf: NO_SETS }, "round").messages;
          round++;
        }
      }
      await new Promise((resolve) => setImmediate(resolve));
      if (round % 250 === 0) pinged += ping();
    }
  }
  done = true;
  await writer;
  expect(written).toBeGreaterThanOrEqual(1000);
  using socket = openXtables(4, namespace);
  writeTable(socket, FILTER, NOTHING, { position: "insert", indexOf: NO_SETS }, "sweep");
  const after = save(namespace, 4).split("\n").filter((line) => !line.includes("THEIRS")).join("\n");
  expect(after).toBe(filter);
  const counted = save(namespace, 4, { counters: true }).split("\n").find((line) =>
    line.endsWith("-A INPUT -p icmp -j ACCEPT")
  )!;
  expect(counted).toStartWith(`[${pinged}:`);
}, 60_000);

test("a writer without the lock between our reading and writing is noticed", () => {
  using namespace = createNamespace("unlocked");
  restore(namespace, 4, "*filter\n-A FORWARD -s 192.0.2.1/32 -j ACCEPT\nCOMMIT\n");
  using socket = openXtables(4, namespace);
  let reads = 0;
  const disturbed = {
    ...socket,
    info: socket.info.bind(socket),
    replace: socket.replace.bind(socket),
    addCounters: socket.addCounters.bind(socket),
    entries(info: XtablesInfo) {
      const bytes = socket.entries(info);
      // The same number of rules of the same size.
      if (++reads === 1) iptables(namespace, 4, "-R", "FORWARD", "1", "-s", "192.0.2.77", "-j", "ACCEPT");
      return bytes;
    },
  } as unknown as typeof socket;
  writeTable(disturbed, FILTER, OURS, { position: "insert", indexOf: NO_SETS }, "write");
  expect(save(namespace, 4)).toContain("-A FORWARD -j manx-a\n-A FORWARD -s 192.0.2.77/32 -j ACCEPT\n");
  const restless = {
    ...disturbed,
    entries(info: XtablesInfo) {
      const bytes = socket.entries(info);
      iptables(namespace, 4, "-R", "FORWARD", "2", "-s", `192.0.2.${++reads}`, "-j", "ACCEPT");
      return bytes;
    },
  } as unknown as typeof socket;
  expect(() => writeTable(restless, FILTER, NOTHING, { position: "insert", indexOf: NO_SETS }, "write")).toThrow(
    "write table filter of iptables: found it changed by somebody else 8 times",
  );
});

test("bytes that are no table are refused, and a jump that leads to no chain too", () => {
  using namespace = createNamespace("broken");
  write(namespace, 4, "filter", OURS);
  using socket = openXtables(4, namespace);
  const info = socket.info("filter"), bytes = socket.entries(info);
  expect(parseTable(4, info, bytes).chains.map(({ name }) => name)).toEqual([
    "INPUT",
    "FORWARD",
    "OUTPUT",
    "manx-a",
    "manx-b",
  ]);
  let refused = 0;
  for (let at = 0; at < bytes.length; at++) {
    for (const value of [0, 0xff, bytes[at]! ^ 0x08]) {
      const broken = bytes.slice();
      broken[at] = value;
      try {
        parseTable(4, info, broken);
      } catch (error) {
        if (!(error instanceof TableError)) throw error;
        refused++;
      }
    }
  }
  expect(refused).toBeGreaterThan(50);
  expect(() => parseTable(4, info, bytes.slice(0, bytes.length - 8))).toThrow(TableError);
});

test("what was written is read but once before it is changed, unless somebody else has been there", () => {
  using namespace = createNamespace("known");
  using socket = openXtables(4, namespace);
  let reads = 0;
  const counting: XtablesSocket = Object.assign(Object.create(socket), {
    entries: (info: XtablesInfo) => (reads++, socket.entries(info)),
  });
  const tables = new LegacyTables(new Map([[4, counting]]));
  const options = { position: "insert", indexOf: NO_SETS } as const;
  const rulesOf = (...ports: readonly number[]) =>
    wantedOf(4, { "manx-a": [rule(goto("manx-b"))], "manx-b": ports.map((port) => rule(DROP, protocol(port))) }, {
      FORWARD: "manx-a",
    });
  const write = (wanted: WantedTable) => {
    reads = 0;
    const { messages, failed } = tables.write([{ place: FILTER, wanted }], options, "write");
    expect([...failed.values()]).toEqual([]);
    return { messages, reads };
  };
  const ours = () => save(namespace, 4).split("\n").filter((line) => line.startsWith("-A manx-b"));
  expect(write(rulesOf(1, 2))).toEqual({ messages: 1, reads: 2 });
  expect(write(rulesOf(1, 2, 3))).toEqual({ messages: 1, reads: 1 });
  expect(ours().length).toBe(3);

  iptables(namespace, 4, "-A", "INPUT", "-j", "ACCEPT");
  expect(write(rulesOf(1, 2))).toEqual({ messages: 1, reads: 3 });
  expect(ours().length).toBe(2);
  expect(save(namespace, 4)).toContain("-A INPUT -j ACCEPT");
  expect(write(rulesOf(1, 2, 3))).toEqual({ messages: 1, reads: 1 });

  // The table is as large as before, and another.
  iptables(namespace, 4, "-R", "manx-b", "1", "-p", "9", "-j", "DROP");
  const wanted = rulesOf(1, 2, 4);
  expect(write(wanted)).toEqual({ messages: 1, reads: 3 });
  expect(ours()).toEqual(["icmp", "igmp", "ipencap"].map((name) => `-A manx-b -p ${name} -j DROP`));
  reads = 0;
  expect(tables.differs({ place: FILTER, wanted }, options, true)).toBe(false);
  expect(reads).toBe(1);
  iptables(namespace, 4, "-R", "manx-b", "1", "-p", "9", "-j", "DROP");
  expect(tables.differs({ place: FILTER, wanted }, options, true)).toBe(true);
});
