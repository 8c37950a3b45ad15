import { expect, test } from "bun:test";
import { random, someList, somePacket, someSets } from "./testdata/random_lists.ts";
import {
  address,
  cidr,
  CLOSED,
  list,
  OPEN,
  policy,
  rule,
  rules,
  state,
  tier,
  workload,
} from "./testdata/small_states.ts";
import { type Address, addressFamily, formatAddress } from "./address.ts";
import type { DesiredHostEndpoint, DesiredState, Packet } from "./desired.ts";
import { judgeList, judgePath } from "./evaluate.ts";
import {
  type EstablishedFlow,
  type FlowDirection,
  FlowJudge,
  narrowList,
  type NodeSurroundings,
} from "./flow_judgement.ts";
import { persistentMap } from "./persistent_map.ts";

const NODE = address("192.0.2.10");
const surroundings: NodeSurroundings = { isNode: (one) => one === NODE, linkTo: () => "eth0" };
const port = (first: number, last = first) => [{ first, last }];

/** `10.0.0.1:1000 > 10.0.0.2:80`, with what came back where translation made that another: `tcp A > B / C > D`. */
function flow(text: string): EstablishedFlow {
  const [protocolName, rest] = [text.slice(0, text.indexOf(" ")), text.slice(text.indexOf(" ") + 1)];
  const protocol = { tcp: 6, udp: 17, icmp: 1, sctp: 132 }[protocolName]!;
  const end = (end: string): readonly [Address, number | undefined] => {
    const match = /^\[?([0-9a-f.:]+?)\]?(?::(\d+))?$/.exec(
      end.includes("[") || end.split(":").length <= 2 ? end : `[${end}]`,
    )!;
    return [address(match[1]!), match[2] === undefined ? undefined : Number(match[2])];
  };
  const direction = (text: string): FlowDirection => {
    const [[source, sourcePort], [destination, destinationPort]] = text.split(" > ").map(end) as [
      readonly [Address, number | undefined],
      readonly [Address, number | undefined],
    ];
    return protocol === 1
      ? { protocol, source, destination, icmpType: 8, icmpCode: 0 }
      : { protocol, source, destination, sourcePort, destinationPort };
  };
  const [there, back] = rest.split(" / ");
  const original = direction(there!);
  const turned = {
    ...original,
    source: original.destination,
    destination: original.source,
    sourcePort: original.destinationPort,
    destinationPort: original.sourcePort,
  };
  return { original, reply: back === undefined ? turned : direction(back) };
}

const pathText = (judge: FlowJudge, text: string): string => {
  const { packet, beforeDnat, inInterface = "node", outInterface = "node" } = judge.pathOf(flow(text));
  const ends = ({ source, destination, sourcePort, destinationPort, icmp }: Packet) =>
    `${formatAddress(source)}:${sourcePort ?? icmp?.type ?? ""} > ${formatAddress(destination)}:${
      destinationPort ?? ""
    }`;
  return `${inInterface} ${ends(packet)} ${outInterface}${beforeDnat === undefined ? "" : ` was ${ends(beforeDnat)}`}`;
};

test("the way of a flow's first packet is told from its two tuples", () => {
  const host: DesiredHostEndpoint = { id: "h", interfaces: ["eth0"], ingress: OPEN, egress: OPEN };
  const judge = new FlowJudge(
    state({
      workloads: [workload("a", "mxa", ["10.0.0.1", "fd00::1"]), workload("b", "mxb", ["10.0.0.2", "fd00::2"])],
      hostEndpoints: [host],
    }),
    surroundings,
  );
  const cases: readonly (readonly [string, string])[] = [
    ["tcp 10.0.0.1:1000 > 10.0.0.2:80", "mxa 10.0.0.1:1000 > 10.0.0.2:80 mxb"],
    ["udp [fd00::1]:1000 > [fd00::2]:53", "mxa fd00::1:1000 > fd00::2:53 mxb"],
    ["icmp 10.0.0.1 > 10.0.0.2", "mxa 10.0.0.1:8 > 10.0.0.2: mxb"],
    ["tcp 198.51.100.1:1000 > 10.0.0.2:80", "eth0 198.51.100.1:1000 > 10.0.0.2:80 mxb"],
    ["tcp 192.0.2.10:1000 > 10.0.0.2:80", "node 192.0.2.10:1000 > 10.0.0.2:80 mxb"],
    ["tcp 10.0.0.1:1000 > 192.0.2.10:80", "mxa 10.0.0.1:1000 > 192.0.2.10:80 node"],
    ["tcp 198.51.100.1:1000 > 192.0.2.10:22", "eth0 198.51.100.1:1000 > 192.0.2.10:22 node"],
    // A service, and a node port whose client the node hides.
    [
      "tcp 10.0.0.1:1000 > 10.96.0.1:80 / 10.0.0.2:8080 > 10.0.0.1:1000",
      "mxa 10.0.0.1:1000 > 10.0.0.2:8080 mxb was 10.0.0.1:1000 > 10.96.0.1:80",
    ],
    [
      "tcp 198.51.100.1:1000 > 192.0.2.10:30080 / 10.0.0.2:8080 > 192.0.2.10:2000",
      "eth0 198.51.100.1:1000 > 10.0.0.2:8080 mxb was 198.51.100.1:1000 > 192.0.2.10:30080",
    ],
    // Masquerading changes nothing that policy sees.
    [
      "tcp 10.0.0.1:1000 > 198.51.100.1:443 / 198.51.100.1:443 > 192.0.2.10:2000",
      "mxa 10.0.0.1:1000 > 198.51.100.1:443 eth0",
    ],
    ["sctp 198.51.100.1:1 > 198.51.100.2:2", "eth0 198.51.100.1:1 > 198.51.100.2:2 eth0"],
  ];
  for (const [text, wanted] of cases) expect([text, pathText(judge, text)]).toEqual([text, wanted]);
});

test("both ends are judged, the node reaches its pods, a pod reaches itself", () => {
  const judge = new FlowJudge(
    state({
      workloads: [
        workload("open", "mxa", ["10.0.0.1"]),
        workload("shut", "mxb", ["10.0.0.2"], { ingress: CLOSED }),
        workload("mute", "mxc", ["10.0.0.3"], { egress: CLOSED }),
        workload("web", "mxd", ["10.0.0.4"], {
          ingress: rules(rule("allow", { protocol: 6, to: { ports: port(8080) } })),
        }),
      ],
    }),
    surroundings,
  );
  const cases: readonly (readonly [string, boolean])[] = [
    ["tcp 10.0.0.1:1000 > 10.0.0.2:80", true],
    ["tcp 10.0.0.2:1000 > 10.0.0.1:80", false],
    ["tcp 10.0.0.3:1000 > 10.0.0.1:80", true],
    ["icmp 10.0.0.3 > 198.51.100.1", true],
    ["udp 198.51.100.1:1000 > 10.0.0.3:53", false],
    ["tcp 192.0.2.10:1000 > 10.0.0.2:80", false],
    ["tcp 10.0.0.3:1000 > 192.0.2.10:80", true],
    // By way of a service, policy sees the port behind it.
    ["tcp 10.0.0.1:1000 > 10.96.0.1:80 / 10.0.0.4:8080 > 10.0.0.1:1000", false],
    ["tcp 10.0.0.1:1000 > 10.96.0.1:8080 / 10.0.0.4:80 > 10.0.0.1:1000", true],
    ["tcp 10.0.0.2:1000 > 10.96.0.1:80 / 10.0.0.2:80 > 10.0.0.2:1000", false],
    ["tcp 198.51.100.1:1000 > 198.51.100.2:80", false],
  ];
  for (const [text, denied] of cases) expect([text, judge.denies(flow(text))]).toEqual([text, denied]);
  expect(judge.concerns(address("198.51.100.1"), address("198.51.100.2"))).toBe(false);
  expect(judge.concerns(address("198.51.100.1"), address("10.0.0.1"))).toBe(true);
  expect(judge.isOwned(address("10.0.0.1"))).toBe(true);
  expect(judge.isOwned(NODE)).toBe(false);
});

test("a narrowed list gives every packet of its protocol and port the verdict of the whole list", () => {
  let fewer = 0, checked = 0;
  for (let seed = 1; seed <= 150; seed++) {
    const r = random(seed * 104729);
    const world: DesiredState = { ...state({}), sets: someSets(r) };
    const whole = someList(r, 12);
    for (let i = 0; i < 60; i++) {
      const packet: Packet = somePacket(r);
      const narrow = narrowList(whole, addressFamily(packet.destination), packet.protocol, packet.destinationPort);
      checked++;
      if (JSON.stringify(narrow).length < JSON.stringify(whole).length) fewer++;
      expect({ seed, i, verdict: judgeList(world, narrow, packet).verdict }).toEqual({
        seed,
        i,
        verdict: judgeList(world, whole, packet).verdict,
      });
    }
  }
  expect(fewer / checked).toBeGreaterThan(0.8);
});

test("a list of ten thousand policies is judged by the few rules that speak of the port", () => {
  const many = list([
    tier(
      "default",
      "deny",
      ...Array.from({ length: 10_000 }, (_, i) =>
        policy(
          `p${i}`,
          rule("allow", {
            protocol: 6,
            from: { nets: [cidr("10.9.0.1")] },
            to: { ports: port(i + 1) },
          }),
        )),
    ),
  ]);
  const narrow = narrowList(many, 4, 6, 80);
  expect(narrow.tiers.map(({ policies }) => policies.map(({ id }) => id))).toEqual([["p79"]]);
  // Nobody speaks of it: the tier's default still does.
  expect(narrowList(many, 4, 17, 80).tiers.map(({ policies }) => policies.map(({ rules }) => rules.length))).toEqual([[
    0,
  ]]);
});

test("random nodes: a flow is denied where the evaluator denies its first packet, long lists and host endpoints included", () => {
  let denied = 0, checked = 0;
  for (let seed = 1; seed <= 80; seed++) {
    const r = random(seed * 15485863);
    const lists = Array.from({ length: 4 }, () => someList(r, 40));
    const maybe = <T>(value: T): T | undefined => r.chance(0.5) ? value : undefined;
    const pick = () => r.pick(lists);
    const host = (id: string, interfaces: readonly string[] | "*"): DesiredHostEndpoint => ({
      id,
      interfaces,
      ingress: pick(),
      egress: pick(),
      forwardIngress: maybe(pick()),
      forwardEgress: maybe(pick()),
      preDnat: maybe({ ...pick(), end: "next" as const }),
      untrackedIngress: maybe({ ...pick(), end: "next" as const }),
    });
    const workloads = [
      workload("a", "mxa", ["10.0.0.1", "fd00::1"], { ingress: pick(), egress: pick() }),
      workload("b", "mxb", ["10.0.0.2", "fd00::2"], { ingress: pick(), egress: pick() }),
    ];
    const hosts = [...r.chance(0.5) ? [host("h", ["eth0"])] : [], ...r.chance(0.3) ? [host("s", "*")] : []];
    const world: DesiredState = {
      ...state({ workloads, hostEndpoints: hosts, failsafe: { inbound: [{ protocol: 6, port: 22 }], outbound: [] } }),
      sets: someSets(r),
    };
    const judge = new FlowJudge(world, surroundings);
    for (let i = 0; i < 60; i++) {
      const { source, destination, protocol, sourcePort, destinationPort, icmp } = somePacket(r);
      const original = {
        source,
        destination,
        protocol,
        sourcePort,
        destinationPort,
        icmpType: icmp?.type,
        icmpCode: icmp?.code,
      };
      const translated = r.chance(0.3) && sourcePort !== undefined;
      const behind = translated ? r.pick(["10.0.0.1", "10.0.0.2"].map(address)) : destination;
      if (behind.length !== source.length) continue;
      const reply = {
        ...original,
        source: behind,
        destination: source,
        sourcePort: translated ? 8080 : destinationPort,
        destinationPort: sourcePort,
      };
      const one = { original, reply };
      const verdict = judgePath(world, judge.pathOf(one)).verdict;
      checked++;
      if (verdict === "deny") denied++;
      expect({ seed, i, denied: judge.denies(one) }).toEqual({ seed, i, denied: verdict === "deny" });
    }
  }
  expect(denied / checked).toBeGreaterThan(0.2);
  expect(denied / checked).toBeLessThan(0.8);
});

test("an empty world denies nothing", () => {
  const judge = new FlowJudge({ ...state({}), workloads: persistentMap() }, surroundings);
  expect(judge.denies(flow("tcp 10.0.0.1:1 > 10.0.0.2:2"))).toBe(false);
});
