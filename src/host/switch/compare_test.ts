/** Whether the packets that are asked about tell two dataplanes apart: planted faults, and two real renderers that have none. */
import { expect, test } from "bun:test";
import { Renderer as IptablesRenderer } from "../../../dataplanes/iptables/render.ts";
import { judgePacket as judgeIptables } from "../../../dataplanes/iptables/trace.ts";
import { Renderer as NftablesRenderer } from "../../../dataplanes/nftables/render.ts";
import { judgePacket as judgeNftables } from "../../../dataplanes/nftables/trace.ts";
import type { DesiredHostEndpoint, DesiredState, PolicyList } from "../../model/desired.ts";
import { judgePath, type Path } from "../../model/evaluate.ts";
import { random, someList, someSets } from "../../model/testdata/random_lists.ts";
import {
  cidr,
  CLOSED,
  list,
  netSet,
  OPEN,
  policy,
  portSet,
  rule,
  rules,
  setId,
  state,
  tier,
  workload,
} from "../../model/testdata/small_states.ts";
import type { PacketJudge } from "../../sdk/dataplane.ts";
import type { Clock } from "../../sdk/plugin.ts";
import { systemClock } from "../clock.ts";
import { compareJudges, pathText } from "./compare.ts";
import { tellingPackets } from "./packets.ts";

const never = new AbortController().signal;
const judgeOf = (world: DesiredState): PacketJudge => (path) => judgePath(world, path).verdict;
const port = (first: number, last = first) => [{ first, last }];

const compare = (
  world: DesiredState,
  one: PacketJudge | undefined,
  other: PacketJudge | undefined,
  clock = systemClock,
) => compareJudges(world, [{ name: "old", judge: one }, { name: "fresh", judge: other }], clock, never);

/** What keeps `fresh` from taking over from one that does what `world` says. */
async function refusal(world: DesiredState, fresh: PacketJudge): Promise<string> {
  try {
    await compare(world, judgeOf(world), fresh);
    return "none";
  } catch (error) {
    return (error as Error).message;
  }
}

const host = (id: string, interfaces: readonly string[] | "*", parts: Partial<DesiredHostEndpoint>) => ({
  id,
  interfaces,
  ingress: OPEN,
  egress: OPEN,
  ...parts,
});

const ingress = rules(
  rule("deny", { from: { nets: [cidr("10.9.8.0/24")] } }),
  rule("allow", { protocol: 6, from: { sets: [setId("web")] }, to: { ports: port(8_000, 8_010) } }),
  rule("allow", { protocol: 17, from: { nets: [cidr("10.9.0.0/16")], notNets: [cidr("10.9.7.0/25")] } }),
  rule("allow", { icmp: { type: 13, code: 2 }, protocol: 1 }),
);
const egress = rules(
  rule("allow", { protocol: 6, to: { portSets: [setId("named")] } }),
  rule("allow", { protocol: 132, from: { ports: port(5_000) }, to: { notPorts: port(90, 99) } }),
);
const world = (parts: {
  readonly ingress?: PolicyList;
  readonly egress?: PolicyList;
  readonly web?: readonly string[];
  readonly named?: readonly string[];
  readonly failsafe?: number;
  readonly forward?: PolicyList;
  readonly second?: PolicyList;
}): DesiredState =>
  state({
    sets: [
      netSet("web", ...parts.web ?? ["10.0.0.1", "10.4.0.0/14", "fd00::1"]),
      portSet("named", ...parts.named ?? ["10.8.0.9 6 8443"]),
    ],
    workloads: [
      workload("a", "mxa", ["10.0.0.1", "fd00::1"]),
      workload("b", "mxb", ["10.0.0.2", "fd00::2"], { ingress: parts.ingress ?? ingress }),
      workload("c", "mxc", ["10.0.0.3"], {
        ingress: parts.second ?? parts.ingress ?? ingress,
        egress: parts.egress ?? egress,
      }),
    ],
    hostEndpoints: [
      host("h", ["eth7"], { ingress: CLOSED, forwardEgress: parts.forward ?? rules(rule("allow", { protocol: 17 })) }),
    ],
    failsafe: { inbound: [{ protocol: 6, port: parts.failsafe ?? 22 }], outbound: [] },
  });

/** A list whose rule at `at` is another one. */
function changed(all: PolicyList, at: number, fields: Parameters<typeof rule>[1] | undefined): PolicyList {
  const found = all.tiers[0]!.policies[0]!.rules;
  return rules(
    ...found.flatMap((one, i) => i !== at ? [one] : fields === undefined ? [] : [rule(one.action, fields)]),
  );
}

const web = { protocol: 6, from: { sets: [setId("web")] } };
for (
  const [what, parts] of [
    ["a range of ports that begins one too early", {
      ingress: changed(ingress, 1, { ...web, to: { ports: port(7_999, 8_010) } }),
    }],
    ["a range of ports that begins one too late", {
      ingress: changed(ingress, 1, { ...web, to: { ports: port(8_001, 8_010) } }),
    }],
    ["a range of ports that ends one too early", {
      ingress: changed(ingress, 1, { ...web, to: { ports: port(8_000, 8_009) } }),
    }],
    ["a range of ports that ends one too late", {
      ingress: changed(ingress, 1, { ...web, to: { ports: port(8_000, 8_011) } }),
    }],
    ["a rule that asks for no set", {
      ingress: changed(ingress, 1, { protocol: 6, to: { ports: port(8_000, 8_010) } }),
    }],
    ["a rule of another protocol", {
      ingress: changed(ingress, 1, { ...web, protocol: 17, to: { ports: port(8_000, 8_010) } }),
    }],
    ["a rule of every protocol", {
      ingress: changed(ingress, 2, { from: { nets: [cidr("10.9.0.0/16")], notNets: [cidr("10.9.7.0/25")] } }),
    }],
    ["a prefix that is too long", { ingress: changed(ingress, 0, { from: { nets: [cidr("10.9.8.0/25")] } }) }],
    ["a prefix that is too short", { ingress: changed(ingress, 0, { from: { nets: [cidr("10.9.8.0/23")] } }) }],
    ["an exception that is left out", {
      ingress: changed(ingress, 2, { protocol: 17, from: { nets: [cidr("10.9.0.0/16")] } }),
    }],
    ["a rule that is missing", { ingress: changed(ingress, 0, undefined) }],
    ["another code of ICMP", { ingress: changed(ingress, 3, { icmp: { type: 13, code: 3 }, protocol: 1 }) }],
    ["another type of ICMP", { ingress: changed(ingress, 3, { icmp: { type: 14, code: 2 }, protocol: 1 }) }],
    ["a set without a member", { web: ["10.0.0.1", "fd00::1"] }],
    ["a set without its member of IPv6", { web: ["10.0.0.1", "10.4.0.0/14"] }],
    ["a port set with the port beside", { named: ["10.8.0.9 6 8444"] }],
    ["a source port that nobody asks", {
      egress: changed(egress, 1, { protocol: 132, to: { notPorts: port(90, 99) } }),
    }],
    ["ports left out that are too many", {
      egress: changed(egress, 1, { protocol: 132, from: { ports: port(5_000) }, to: { notPorts: port(90, 100) } }),
    }],
    ["one endpoint of two with one list", { second: OPEN }],
    ["a failsafe port beside", { failsafe: 23 }],
    ["forward policy of a host endpoint", { forward: OPEN }],
  ] as const
) {
  test(`found: ${what}`, async () => {
    const meant = world({});
    expect(await refusal(meant, judgeOf(meant))).toBe("none");
    expect(await refusal(meant, judgeOf(world(parts)))).toMatch(
      /^switch: found dataplane old to (allow|deny) and dataplane fresh to (allow|deny) .*\(policy says (allow|deny)\), wanted both to decide alike: nothing was changed$/,
    );
  });
}

test("found: anti-spoofing, links that nobody knows, and what the node itself says that are let through", async () => {
  const meant = world({});
  const lax = (isLax: (path: Path) => boolean): PacketJudge => (path) =>
    isLax(path) ? "allow" : judgePath(meant, path).verdict;
  const spoofed = lax(({ inInterface, packet }) =>
    inInterface === "mxb" && packet.source !== meant.workloads.get("b")!.addresses[0]
  );
  expect(await refusal(meant, spoofed)).toContain("198.51.100.7");
  expect(await refusal(meant, lax(({ inInterface }) => inInterface?.startsWith("mxfff") ?? false))).toContain(
    "mxffffffffff0 to",
  );
  expect(await refusal(meant, lax(({ outInterface }) => outInterface?.startsWith("mxfff") ?? false))).toContain(
    "to mxffffffffff0",
  );
  const closed = state({ hostEndpoints: [host("h", "*", { egress: CLOSED })] });
  expect(await refusal(closed, (path) => path.inInterface === undefined ? "allow" : judgePath(closed, path).verdict))
    .toContain("the node to eth0");
});

test("the line names the packet, both verdicts and what policy says", async () => {
  const meant = state({ workloads: [workload("a", "mxa", ["10.0.0.1"], { ingress: CLOSED })] });
  expect(await refusal(meant, () => "allow")).toBe(
    "switch: found dataplane old to deny and dataplane fresh to allow tcp from 198.51.100.7 port 40000 to 10.0.0.1 port 80, " +
      "eth0 to mxa (policy says deny), wanted both to decide alike: nothing was changed",
  );
  const path = {
    packet: {
      protocol: 58,
      source: meant.workloads.get("a")!.addresses[0]!,
      destination: meant.workloads.get("a")!.addresses[0]!,
      icmp: { type: 128, code: 0 },
    },
  };
  expect(pathText(path)).toBe("icmpv6 type 128 code 0 from 10.0.0.1 to 10.0.0.1, the node to the node");
});

test("where one cannot tell policy speaks in its place; where none can, nothing is asked", async () => {
  const meant = state({ workloads: [workload("a", "mxa", ["10.0.0.1"], { ingress: CLOSED })] });
  expect(await compare(meant, undefined, judgeOf(meant))).toMatchObject({ isComplete: true });
  await expect(compare(meant, undefined, () => "allow")).rejects.toThrow(
    "found policy, in the place of dataplane old, to deny and dataplane fresh to allow",
  );
  expect(await compare(meant, undefined, undefined)).toEqual({ packets: 0, isComplete: false });
  await expect(compare(meant, judgeOf(meant), () => {
    throw new Error("a rule of no known meaning");
  })).rejects.toThrow(/dataplane fresh cannot judge tcp from .*\(a rule of no known meaning\)/);
});

test("a large world is asked about for a while only, everybody else has turns, and every endpoint has been asked about", async () => {
  const many = rules(
    ...Array.from({ length: 300 }, (_, i) => rule("allow", { protocol: 6, to: { ports: port(i * 3 + 1_000) } })),
  );
  const own = (i: number) =>
    rules(
      ...Array.from({ length: 40 }, (_, j) => rule("allow", { protocol: 17, to: { ports: port(i * 40 + j + 1) } })),
    );
  const large = state({
    workloads: Array.from(
      { length: 300 },
      (_, i) => workload(`w${i}`, `mx${i}`, [`10.0.${i >> 8}.${i & 255}`], { ingress: i % 2 === 0 ? many : own(i) }),
    ),
  });
  const asked = new Set<string>();
  const judge: PacketJudge = (path) => {
    asked.add(path.outInterface ?? "");
    return "allow";
  };
  let turns = 0, isOver = false;
  const others = (async () => {
    for (; !isOver; turns++) await new Promise((resolve) => setImmediate(resolve));
  })();
  const compared = await compare(large, judge, judge);
  isOver = true;
  await others;
  expect(compared).toEqual({ packets: 20_000, isComplete: false });
  expect(turns).toBeGreaterThan(5);
  expect([...large.workloads.values()].every(({ interfaceName }) => asked.has(interfaceName))).toBe(true);
  // A clock that runs away: time is a bound as well.
  let nowMs = 0;
  const clock: Clock = { ...systemClock, nowMs: () => nowMs += 10 };
  expect((await compare(large, judge, judge, clock)).packets).toBeLessThan(1_000);
});

test("no packet is asked about twice, and each is of one family", () => {
  const seen = [...tellingPackets(world({}))];
  expect(new Set(seen.map(pathText)).size).toBe(seen.length);
  expect(seen.every(({ packet }) => packet.source.length === packet.destination.length)).toBe(true);
  expect(seen.length).toBeGreaterThan(100);
});

/** More of them find more: `SEEDS=2000`. */
const SEEDS = Number(process.env.SEEDS ?? 60);

test("random nodes: nftables and iptables decide alike about every packet, and as policy says", async () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const r = random(seed * 104_729);
    // As calc makes those of endpoints: what nothing allows is denied.
    const lists = Array.from({ length: 4 }, () => someList(r, 5)).map(({ tiers, profiles }) => list(tiers, profiles));
    const one = () => r.pick(lists);
    const meant: DesiredState = {
      ...state({
        workloads: [
          workload("a", "mxa", ["10.0.0.1", "fd00::1"], { ingress: one(), egress: one() }),
          workload("b", "mxb", ["10.0.0.2"], { ingress: one(), egress: one() }),
        ],
        hostEndpoints: r.chance(0.5) ? [] : [
          host("h", r.chance(0.3) ? "*" : ["eth0"], {
            ingress: one(),
            egress: one(),
            forwardIngress: list([tier("t", "pass", policy("p"))], [], "next"),
            ...r.chance(0.5) ? { forwardEgress: one() } : {},
            ...r.chance(0.3) ? { preDnat: list(one().tiers, [], "next") } : {},
            ...r.chance(0.3) ? { untrackedIngress: list(one().tiers, [], "next") } : {},
          }),
        ],
        failsafe: { inbound: [{ protocol: 6, port: 22 }], outbound: [{ protocol: 17, port: 53 }] },
      }),
      sets: someSets(r),
    };
    const nftables = new NftablesRenderer({ logGroup: 86, passedMark: 0x10000 }).render(meant).ruleset;
    const iptables =
      new IptablesRenderer({ logGroup: 86, passedMark: 0x10000, cutMark: 0x20000, families: [4, 6], nat: true })
        .render(meant).ruleset;
    const byNftables: PacketJudge = (path) => judgeNftables(nftables, path);
    const byIptables: PacketJudge = (path) => judgeIptables(iptables, path);
    try {
      await compare(meant, byNftables, byIptables);
      await compare(meant, byNftables, undefined);
    } catch (error) {
      throw new Error(`seed ${seed}: ${(error as Error).message}`);
    }
  }
}, 120_000);
