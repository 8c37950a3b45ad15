/** Tables read from and written to the real kernel, and what the real tools say of them. */
import { afterAll, expect, test } from "bun:test";
import { type Family, parseCidr } from "../../src/model/address.ts";
import { createNamespace, namespacePath } from "../../src/kernel/netns.ts";
import { openNetlink } from "../../src/kernel/netlink/socket.ts";
import { addMembers, createSet, getSetIndex, parseIndex } from "../../src/kernel/netlink/schema/ipset.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { openXtables, tryLock } from "../../src/kernel/xtables.ts";
import type { NetworkNamespace, XtablesInfo } from "../../src/sdk/kernel_door.ts";
import { encodeRule } from "./entry.ts";
import { writeTable } from "./legacy.ts";
import { printRule } from "./print.ts";
import { ACCEPT, DROP, goto, jump, type Match, RETURN, type Rule, rule, type TableName } from "./ruleset.ts";
import { parseTable, TableError, type WantedTable } from "./table.ts";
import { iptables, lockFileOf, removeLocks, restore, save } from "./testdata/tools.ts";

afterAll(removeLocks);

const wantedOf = (
  family: Family,
  chains: Readonly<Record<string, readonly Rule[]>>,
  hooks: Readonly<Record<string, string>> = {},
): WantedTable => ({
  chains: new Map(Object.entries(chains).map(([name, rules]) => [name, rules.map((one) => encodeRule(one, family))])),
  hooks: new Map(Object.entries(hooks).map(([hook, chain]) => [hook, encodeRule(rule(jump(chain)), family)])),
});

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
  return writeTable(socket, { family, table }, wanted, { position, indexOf }, `write ${table}`);
}

const net = (end: "source" | "destination", text: string, not = false): Match => ({
  match: "net",
  end,
  net: parseCidr(text),
  not,
});
const protocol = (number: number, not = false): Match => ({ match: "protocol", protocol: number, not });
const ports = (number: number, end: "source" | "destination", ...ranges: [number, number][]): Match => ({
  match: "ports",
  protocol: number,
  end,
  ranges: ranges.map(([first, last]) => ({ first, last })),
});

/** One of every kind. */
function everyRule(family: Family): readonly Rule[] {
  const v4 = family === 4;
  const [one, wide] = v4 ? ["10.1.2.3/32", "10.128.0.0/9"] : ["fd00::1/128", "fd00:8000::/17"];
  const icmp = v4 ? 1 : 58;
  return [
    rule(DROP),
    rule(ACCEPT, net("source", one!), net("destination", wide!, true)),
    rule(RETURN, net("source", wide!, true), net("destination", one!)),
    rule(DROP, { match: "interface", way: "in", name: "mx0123456789abc", prefix: false }),
    rule(DROP, { match: "interface", way: "in", name: "mx", prefix: true }, {
      match: "interface",
      way: "out",
      name: "eth0",
      prefix: false,
    }),
    rule(goto("manx-b"), protocol(6), ports(6, "destination", [80, 80])),
    rule(jump("manx-b"), protocol(17), ports(17, "source", [1000, 2000])),
    rule(DROP, protocol(17, true)),
    rule(DROP, protocol(253)),
    rule(DROP, protocol(132), ports(132, "destination", [9, 9])),
    rule(DROP, protocol(136), ports(136, "destination", [9, 10])),
    rule(DROP, protocol(6), ports(6, "destination", [1, 1], [3, 5], [7, 7], [65534, 65535])),
    rule(DROP, protocol(6), ports(6, "source", [1, 2]), ports(6, "destination", [3, 3])),
    rule(DROP, protocol(icmp), { match: "icmp", type: 200, code: null, not: false }),
    rule(DROP, protocol(icmp), { match: "icmp", type: 201, code: 3, not: true }),
    rule(DROP, { match: "state", states: ["invalid"] }),
    rule(RETURN, { match: "state", states: ["related", "established"] }),
    rule(RETURN, { match: "state", states: ["untracked"] }),
    rule(RETURN, { match: "mark", mask: 0x10000, not: false }),
    rule(RETURN, { match: "mark", mask: 0x80000000, not: true }),
    rule(RETURN, { match: "flowMark", mask: 0x20000, not: false }),
    rule(DROP, { match: "set", set: "manx-s", ends: ["source"], not: false }),
    rule(DROP, { match: "set", set: "manx-p", ends: ["destination", "destination"], not: true }),
    rule(DROP, { match: "set", set: "manx-i", ends: ["source", "source"], not: false }),
    rule({ target: "log", group: 86, prefix: "manx deny ingress no profile" }, {
      match: "limit",
      perSecond: 10,
      burst: 20,
    }),
    rule({ target: "tcpReset" }, protocol(6)),
  ];
}

function makeSets(namespace: NetworkNamespace, family: Family): (set: string) => number {
  using socket = openNetlink(12, { namespace });
  const address = family === 4 ? "\x0a\0\0\x01" : "\xfd" + "\0".repeat(15);
  const full = String.fromCharCode(family === 4 ? 32 : 128);
  const sets = [
    { name: "manx-s", kind: "net", family, member: address + full },
    { name: "manx-p", kind: "port", family, member: address + "\x06\0\x50" },
    { name: "manx-i", kind: "interface", family, member: address + full + "mx0" },
  ] as const;
  for (const set of sets) socket.request("make set", [createSet(set), ...addMembers(set, [set.member])]);
  const indexes = new Map(
    sets.map(({ name }) => [name as string, parseIndex(socket.request("ask", [getSetIndex(name)])[0]!)]),
  );
  return (set) => indexes.get(set)!;
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

/** As kube-proxy, docker and firewalld write them, with matches and targets that we know nothing of. */
const FOREIGN: Readonly<Record<string, string>> = {
  kubeProxy: `*filter
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-SERVICES
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "a/b has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SEP-AAAA - [0:0]
:KUBE-SEP-BBBB - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-CCCC - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SEP-AAAA -s 10.244.0.5/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-AAAA -p tcp -m tcp -j DNAT --to-destination 10.244.0.5:8080
-A KUBE-SEP-BBBB -s 10.244.0.6/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-BBBB -p tcp -m recent --set --name KUBE-SEP-BBBB --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.244.0.6:8080
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-CCCC
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-SVC-CCCC
-A KUBE-SVC-CCCC -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-AAAA
-A KUBE-SVC-CCCC -j KUBE-SEP-BBBB
COMMIT
`,
  docker: `*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -s 192.0.2.0/24
-A DOCKER-USER -j RETURN
COMMIT
`,
  firewalld: `*raw
:PREROUTING_ZONES - [0:0]
:PRE_public - [0:0]
-A PREROUTING -j PREROUTING_ZONES
-A PREROUTING_ZONES -i eth0 -g PRE_public
COMMIT
*filter
:INPUT_ZONES - [0:0]
:IN_public - [0:0]
:IN_public_allow - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -j INPUT_ZONES
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A INPUT_ZONES -i eth0 -g IN_public
-A IN_public -j IN_public_allow
-A IN_public -p icmp -j ACCEPT
-A IN_public -m limit --limit 3/min -m hashlimit --hashlimit-upto 5/sec --hashlimit-mode srcip --hashlimit-name in -j LOG --log-prefix "in: "
-A IN_public_allow -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW,UNTRACKED -j ACCEPT
COMMIT
`,
};

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
