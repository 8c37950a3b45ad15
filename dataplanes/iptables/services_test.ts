/** Services as rules, walked by the tracer. */
import { expect, test } from "bun:test";
import { type Address, formatAddress } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import type { ServiceState } from "../../src/model/services.ts";
import { random } from "../../src/model/testdata/random_lists.ts";
import { endpoint, frontend, services, someServices } from "../../src/model/testdata/services.ts";
import { state, workload } from "../../src/model/testdata/small_states.ts";
import { serviceMarks } from "./config.ts";
import { printRuleset } from "./print.ts";
import { Renderer, type RenderOptions } from "./render.ts";
import { CHAIN_NAME_MAX_BYTES, type Rule, type Ruleset, type Table } from "./ruleset.ts";
import { SERVICES_CHAIN } from "./services.ts";
import { type TracedPacket, traceHook, tracePath } from "./trace.ts";

const MARKS = serviceMarks(0xffff0000)!;
const OPTIONS: RenderOptions = {
  logGroup: 86,
  passedMark: 0x10000,
  cutMark: 0x20000,
  families: [4, 6],
  nat: true,
  services: MARKS,
};
const PODS = [workload("a", "mxa", ["10.0.0.1", "fd00::1"]), workload("b", "tap0", ["10.0.0.2", "fd00::2"])];

const desired = (of: ServiceState | undefined, generation = 1): DesiredState => ({
  ...state({ generation, workloads: PODS }),
  ...of === undefined ? {} : { services: of },
});
const rendered = (of: ServiceState): Ruleset => new Renderer(OPTIONS).render(desired(of)).ruleset;

/** `mxa tcp 10.0.0.1:1000 > 10.96.0.1:80`; `-` for a process of the node. */
function walk(ruleset: Ruleset, line: string, way: Pick<TracedPacket, "random" | "memory" | "isToNode"> = {}): string {
  const [link, name, from, , to] = line.split(" ");
  const source = endpoint(from!), destination = endpoint(to!);
  const packet = {
    source: source.address,
    destination: destination.address,
    protocol: PROTOCOLS[name!.toUpperCase() as "TCP"],
    sourcePort: source.port,
    destinationPort: destination.port,
    state: "new" as const,
    ...way,
    isFromNode: link === "-",
  };
  const traces = tracePath(ruleset, {
    packet,
    outInterface: "eth9",
    ...link === "-" ? {} : { inInterface: link },
  });
  const { verdict, steps, hook } = traces.at(-1)!;
  const last = steps.at(-1)?.text ?? "";
  if (verdict === "drop") {
    return hook === "PREROUTING"
      ? "forged"
      : last.includes("tcp-reset")
      ? "reset"
      : last.includes("REJECT")
      ? "unreachable"
      : "drop";
  }
  const dnat = traces.find((trace) => trace.dnat !== undefined)?.dnat;
  if (dnat === undefined) return "as it is";
  const masqueraded = traces.some((trace) => trace.masqueraded) ? " masqueraded" : "";
  return `${formatAddress(dnat.address)} ${dnat.port}${masqueraded}`;
}

function check(of: ServiceState, expected: string, way: Parameters<typeof walk>[2] = {}): void {
  const ruleset = rendered(of);
  const lines = expected.trim().split("\n").map((line) => line.trim());
  expect(lines.map((line) => {
    const [path] = line.split(" = ");
    return `${path} = ${walk(ruleset, path!, way)}`;
  })).toEqual(lines);
}

test("a cluster address leads to a backend that chance picks, for pods, the node and others, in both families", () => {
  const of = services([
    "tcp 10.96.0.1:80 > 10.0.0.1:8080 10.0.0.2:8081",
    "udp 10.96.0.1:53 > 10.0.0.2:5353",
    "tcp [fd96::1]:80 > [fd00::1]:8080 [fd00::2]:8081",
    "sctp [fd96::1]:90 > [fd00::1]:9090",
  ]);
  for (
    const [chance, first, second] of [[0.4, "10.0.0.1 8080", "fd00::1 8080"], [
      0.6,
      "10.0.0.2 8081",
      "fd00::2 8081",
    ]] as const
  ) {
    check(
      of,
      `
      mxa tcp 10.0.0.1:1000 > 10.96.0.1:80 = ${first}
      eth0 tcp 192.0.2.1:1000 > 10.96.0.1:80 = ${first}
      - tcp 192.0.2.7:1000 > 10.96.0.1:80 = ${first}
      mxa tcp [fd00::1]:1000 > [fd96::1]:80 = ${second}
      - tcp [2001:db8::1]:1000 > [fd96::1]:80 = ${second}
    `,
      { random: () => chance },
    );
  }
  check(
    of,
    `
    mxa udp 10.0.0.1:1000 > 10.96.0.1:53 = 10.0.0.2 5353
    mxa sctp [fd00::1]:1000 > [fd96::1]:90 = fd00::1 9090
    mxa tcp 10.0.0.1:1000 > 10.96.0.1:53 = as it is
    mxa tcp 10.0.0.1:1000 > 10.96.0.2:80 = as it is
    mxa udp [fd00::1]:1000 > [fd96::1]:80 = as it is
    mxa udp 10.0.0.9:1000 > 10.96.0.1:53 = forged
  `,
  );
});

test("what has no backend is refused or dropped before policy, and backends that drain take no new flows", () =>
  check(
    services([
      "tcp 10.96.0.1:80 > reject",
      "udp 10.96.0.1:53 > reject",
      "tcp 10.96.0.2:80 > drop",
      "tcp [fd96::1]:80 > reject",
      "udp [fd96::1]:53 > ~[fd00::1]:53",
      "tcp 10.96.0.3:80 > ~10.0.0.1:1 10.0.0.2:2 ~10.0.0.3:3",
    ]),
    `
    mxa tcp 10.0.0.1:1000 > 10.96.0.1:80 = reset
    - tcp 192.0.2.7:1000 > 10.96.0.1:80 = reset
    mxa udp 10.0.0.1:1000 > 10.96.0.1:53 = unreachable
    mxa tcp 10.0.0.1:1000 > 10.96.0.2:80 = drop
    mxa tcp [fd00::1]:1000 > [fd96::1]:80 = reset
    mxa udp [fd00::1]:1000 > [fd96::1]:53 = unreachable
    mxa tcp 10.0.0.1:1000 > 10.96.0.3:80 = 10.0.0.2 2
  `,
  ));

test("outside and inside have their own backends, and masquerading is for outside", () => {
  const lines = [
    "tcp 192.0.2.10:80 > 10.0.0.1:80 | scope external | masquerade",
    "tcp 192.0.2.11:80 > 10.1.0.1:80 | scope external | outside 10.0.0.2:80",
    "tcp 192.0.2.12:80 > 10.1.0.1:80 | scope external | outside drop",
    "tcp 192.0.2.13:80 > 10.1.0.1:80 10.1.0.2:80 | scope external | outside 10.0.0.2:80 | masquerade",
    "tcp 10.96.0.1:80 > 10.0.0.1:80 | masquerade | outside drop",
    "tcp [2001:db8::10]:80 > [fd00::1]:80 | scope external | masquerade",
  ];
  check(
    services(lines, { podNets: ["10.0.0.0/8", "10.0.0.0/16", "fd00::/16"] }),
    `
    mxa tcp 10.0.0.1:9 > 192.0.2.10:80 = 10.0.0.1 80
    tap0 tcp 10.0.0.2:9 > 192.0.2.10:80 = 10.0.0.1 80
    eth0 tcp 10.1.2.3:9 > 192.0.2.10:80 = 10.0.0.1 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.10:80 = 10.0.0.1 80 masqueraded
    - tcp 203.0.113.1:9 > 192.0.2.10:80 = 10.0.0.1 80
    mxa tcp 10.0.0.1:9 > 192.0.2.11:80 = 10.1.0.1 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.11:80 = 10.0.0.2 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.12:80 = drop
    mxa tcp 10.0.0.1:9 > 192.0.2.12:80 = 10.1.0.1 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.13:80 = 10.0.0.2 80 masqueraded
    mxa tcp 10.0.0.1:9 > 192.0.2.13:80 = 10.1.0.1 80
    eth0 tcp 203.0.113.1:9 > 10.96.0.1:80 = 10.0.0.1 80
    eth0 tcp [fd00::9]:9 > [2001:db8::10]:80 = fd00::1 80
    eth0 tcp [2001:db8::9]:9 > [2001:db8::10]:80 = fd00::1 80 masqueraded
  `,
  );
  check(
    services(lines),
    `
    mxa tcp 10.0.0.1:9 > 192.0.2.10:80 = 10.0.0.1 80
    tap0 tcp 10.0.0.2:9 > 192.0.2.10:80 = 10.0.0.1 80
    eth0 tcp 10.1.2.3:9 > 192.0.2.10:80 = 10.0.0.1 80 masqueraded
  `,
  );
});

test("a pod that reaches itself is masqueraded, and nothing else that it sends; the mark of others stays", () => {
  const ruleset = rendered(services(["tcp 10.96.0.1:80 > 10.0.0.1:80"]));
  const leaving = (more: Partial<TracedPacket>) =>
    traceHook(ruleset, "POSTROUTING", {
      source: endpoint("10.0.0.1:1").address,
      destination: endpoint("10.0.0.1:80").address,
      protocol: 6,
      sourcePort: 1,
      destinationPort: 80,
      state: "new",
      outInterface: "mxa",
      hasDnat: true,
      ...more,
    });
  expect(leaving({}).masqueraded).toBe(true);
  expect(leaving({ outInterface: "tap0" }).masqueraded).toBe(false);
  expect(leaving({ hasDnat: false }).masqueraded).toBe(false);
  expect(leaving({ hasDnat: false, mark: MARKS.masquerade | 3 })).toMatchObject({ masqueraded: true, mark: 3 });
  expect(leaving({ hasDnat: false, mark: ~MARKS.masquerade >>> 0 }).masqueraded).toBe(false);
});

test("node ports answer on the node's own addresses but loopback, or on those of the configuration", () => {
  const lines = ["tcp node4:30080 > 10.0.0.1:80 | masquerade", "udp node6:30053 > [fd00::1]:53"];
  check(
    services(lines),
    `
    eth0 tcp 203.0.113.1:9 > 192.0.2.7:30080 = 10.0.0.1 80 masqueraded
    mxa tcp 10.0.0.1:9 > 192.0.2.7:30080 = 10.0.0.1 80
    - tcp 192.0.2.7:9 > 192.0.2.7:30080 = 10.0.0.1 80
    - tcp 127.0.0.1:9 > 127.1.2.3:30080 = as it is
    eth0 udp 203.0.113.1:9 > 192.0.2.7:30080 = as it is
    eth0 udp [2001:db8::9]:9 > [2001:db8::7]:30053 = fd00::1 53
    - udp [::1]:9 > [::1]:30053 = as it is
  `,
    { isToNode: true },
  );
  check(services(lines), "mxa tcp 10.0.0.1:9 > 203.0.113.7:30080 = as it is");
  check(
    services(lines, { nodePortAddresses: ["192.0.2.0/24", "127.0.0.0/8"] }),
    `
    eth0 tcp 203.0.113.1:9 > 192.0.2.7:30080 = 10.0.0.1 80 masqueraded
    eth0 tcp 203.0.113.1:9 > 198.51.100.7:30080 = as it is
    - tcp 127.0.0.1:9 > 127.0.0.1:30080 = 10.0.0.1 80
    eth0 udp [2001:db8::9]:9 > [2001:db8::7]:30053 = as it is
  `,
    { isToNode: true },
  );
});

test("source ranges let their own in, an empty list nobody", () =>
  check(
    services([
      "tcp 192.0.2.10:80 > 10.0.0.1:80 | scope external | masquerade | sources 203.0.113.0/24 203.0.113.0/25 198.51.100.1/32",
      "tcp 192.0.2.11:80 > 10.0.0.1:80 | scope external | sources ",
      "tcp [2001:db8::10]:80 > [fd00::1]:80 | scope external | sources 2001:db8:1::/48",
      "tcp 192.0.2.12:80 > reject | scope external | sources 203.0.113.0/24",
      "tcp 192.0.2.13:80 > 10.0.0.1:80 | scope external | sources 0.0.0.0/0",
    ]),
    `
    eth0 tcp 203.0.113.200:9 > 192.0.2.10:80 = 10.0.0.1 80 masqueraded
    eth0 tcp 198.51.100.1:9 > 192.0.2.10:80 = 10.0.0.1 80 masqueraded
    eth0 tcp 198.51.100.2:9 > 192.0.2.10:80 = drop
    mxa tcp 10.0.0.1:9 > 192.0.2.10:80 = drop
    eth0 tcp 203.0.113.200:9 > 192.0.2.11:80 = drop
    eth0 tcp [2001:db8:1::1]:9 > [2001:db8::10]:80 = fd00::1 80
    eth0 tcp [2001:db8:2::1]:9 > [2001:db8::10]:80 = drop
    eth0 tcp 203.0.113.1:9 > 192.0.2.12:80 = reset
    eth0 tcp 192.0.2.1:9 > 192.0.2.12:80 = drop
    eth0 tcp 192.0.2.1:9 > 192.0.2.13:80 = 10.0.0.1 80
  `,
  ));

test("a client stays with its backend as long as that is there", () => {
  const line = "tcp 10.96.0.1:80 > 10.0.0.1:80 10.0.0.2:80 | affinity 60";
  const memory = new Map(), first = rendered(services([line])), path = "mxa tcp 10.0.0.1:9 > 10.96.0.1:80";
  for (const { matches } of chainsOf(first).flatMap((table) => [...table.chains.values()]).flat()) {
    for (const match of matches) if (match.match === "remember") memory.set(match.list, new Set<Address>());
  }
  expect(memory.size).toBe(2);
  expect(walk(first, path, { random: () => 0.9, memory })).toBe("10.0.0.2 80");
  expect(walk(first, path, { random: () => 0, memory })).toBe("10.0.0.2 80");
  expect(walk(first, "tap0 tcp 10.0.0.2:9 > 10.96.0.1:80", { random: () => 0, memory })).toBe("10.0.0.1 80");
  const others = rendered(services([line.replace("10.0.0.1:80 ", "10.0.0.3:80 10.0.0.4:80 ")]));
  expect(walk(others, path, { random: () => 0, memory })).toBe("10.0.0.2 80");
});

const chainsOf = ({ tables }: Ruleset): readonly Table[] => tables.filter(({ table }) => table === "nat");

test("every backend has the same chance, whatever their number", () => {
  for (const count of [1, 2, 3, 7, 16, 17, 64, 300]) {
    for (const more of ["", " | affinity 60"]) {
      const list = Array.from({ length: count }, (_, i) => `10.0.${i >> 8}.${i & 255}:80`).join(" ");
      const ruleset = rendered(services([`tcp 10.96.0.1:80 > ${list}${more}`]));
      const { chains } = chainsOf(ruleset)[0]!;
      const found = new Map<string, number>();
      let longest = 0;
      const go = (rules: readonly Rule[], came: number, walked: number): void => {
        let left = came;
        for (const [i, { matches, target }] of rules.entries()) {
          if (matches.some(({ match }) => match === "remembered")) continue;
          const chance = matches.find((match) => match.match === "chance");
          const part = left * (chance === undefined ? 1 : chance.of31Bits / 2 ** 31);
          left -= part;
          longest = Math.max(longest, walked + i);
          if (target.target === "dnat") found.set(target.address, (found.get(target.address) ?? 0) + part);
          else if ("chain" in target) go(chains.get(target.chain)!, part, walked + i);
        }
        expect(left).toBeCloseTo(0, 9);
      };
      go(chains.get(SERVICES_CHAIN)!, 1, 0);
      expect(found.size).toBe(count);
      for (const part of found.values()) expect(Math.abs(part * count - 1)).toBeLessThan(1e-6);
      if (more === "") expect(longest).toBeLessThan(64);
    }
  }
});

test("a packet passes few rules, whatever the number of services, and finds the right one", () => {
  const lines = Array.from({ length: 3_000 }, (_, i) => [
    `tcp 10.96.${i >> 8}.${i & 255}:80 > 10.1.${i >> 8}.${i & 255}:80`,
    `udp 10.97.0.1:${i + 1} > 10.2.${i >> 8}.${i & 255}:53`,
    `tcp node4:${30_000 + i} > 10.3.${i >> 8}.${i & 255}:80`,
    `tcp [fd96::${i.toString(16)}]:80 > [fd01::${(i + 1).toString(16)}]:80`,
  ]).flat();
  const ruleset = rendered(services(lines));
  for (const { chains } of chainsOf(ruleset)) {
    for (const [name, rules] of chains) {
      expect(name.length).toBeLessThanOrEqual(CHAIN_NAME_MAX_BYTES);
      expect(rules.length).toBeLessThanOrEqual(32);
    }
  }
  for (const i of [0, 1, 255, 256, 1_777, 2_999]) {
    const low = `${i >> 8}.${i & 255}`;
    expect(walk(ruleset, `eth0 tcp 203.0.113.1:9 > 10.96.${low}:80`)).toBe(`10.1.${low} 80`);
    expect(walk(ruleset, `eth0 udp 203.0.113.1:9 > 10.97.0.1:${i + 1}`)).toBe(`10.2.${low} 53`);
    expect(walk(ruleset, `eth0 tcp 203.0.113.1:9 > 192.0.2.7:${30_000 + i}`, { isToNode: true })).toBe(
      `10.3.${low} 80`,
    );
    expect(walk(ruleset, `eth0 tcp [2001:db8::1]:9 > [fd96::${i.toString(16)}]:80`)).toBe(
      `fd01::${(i + 1).toString(16)} 80`,
    );
  }
  expect(walk(ruleset, "eth0 tcp 203.0.113.1:9 > 10.96.12.1:80")).toBe("as it is");
  expect(walk(ruleset, "eth0 tcp 203.0.113.1:9 > 192.0.2.7:33000", { isToNode: true })).toBe("as it is");
});

const OURS = /services|service-|manx-[abfmnps][0-9]*-/;

test("without services nothing of them is rendered, and where they are another dataplane's neither", () => {
  const of = services(["tcp 10.96.0.1:80 > 10.0.0.1:80"]);
  const text = (options: RenderOptions, world: DesiredState) =>
    printRuleset(new Renderer(options).render(world).ruleset);
  const without = { ...OPTIONS, services: undefined };
  const plain = text(without, desired(undefined));
  expect(plain).not.toMatch(OURS);
  expect(text(OPTIONS, desired(undefined))).toBe(plain);
  expect(text(without, desired(of))).toBe(plain);
  const renderer = new Renderer(OPTIONS);
  expect(printRuleset(renderer.render(desired(of)).ruleset)).not.toBe(plain);
  expect(printRuleset(renderer.render(desired(undefined)).ruleset)).toBe(plain);
});

test("what is rendered does not depend on what was rendered before", () => {
  for (let seed = 1; seed <= 60; seed++) {
    const r = random(seed * 7_919);
    const renderer = new Renderer(OPTIONS);
    for (let step = 1; step <= 8; step++) {
      const world = desired(r.chance(0.1) ? undefined : someServices(r, seed % 3 === 0 ? 60 : 6), step);
      expect(printRuleset(renderer.render(world).ruleset)).toBe(
        printRuleset(new Renderer(OPTIONS).render(world).ruleset),
      );
    }
  }
});

test("one service changed makes few chains anew, at 30 and at 3,000 services", () => {
  const changed = [30, 3_000].map((count) => {
    const renderer = new Renderer(OPTIONS);
    const of = services(Array.from(
      { length: count },
      (_, i) => `tcp 10.96.${i >> 8}.${i & 255}:80 > 10.1.${i >> 8}.${i & 255}:80 10.2.${i >> 8}.${i & 255}:80`,
    ));
    const before = renderer.render(desired(of)).ruleset;
    const one = frontend("tcp 10.96.0.1:80 > 10.1.0.1:80 10.2.9.9:80");
    const after = renderer.render(desired({ ...of, frontends: of.frontends.set(one.key, one) }, 2)).ruleset;
    expect(
      after.tables.filter((table) => !before.tables.includes(table)).map(({ table, family }) => `${table}${family}`),
    )
      .toEqual(["nat4"]);
    const [old, now] = [before, after].map((ruleset) => chainsOf(ruleset)[0]!.chains) as [
      Table["chains"],
      Table["chains"],
    ];
    return [...now].filter(([name, rules]) => old.get(name) !== rules).length;
  });
  // Its backends, and the way there.
  expect(Math.max(...changed)).toBeLessThanOrEqual(6);
});
