/**
 * What every dataplane for policy decides about packets, by its own tracer: small worlds as transcripts, and random nodes against the
 * evaluator. Nothing here knows how rules are written.
 */
import { expect, test } from "bun:test";
import { type Address, parseAddress } from "../../src/model/address.ts";
import type { DesiredHostEndpoint, DesiredState, Packet, PolicyList } from "../../src/model/desired.ts";
import { judgePath } from "../../src/model/evaluate.ts";
import {
  address,
  cidr,
  CLOSED,
  list,
  netSet,
  OPEN,
  policy,
  rule,
  rules,
  setId,
  state,
  tier,
  workload,
} from "../../src/model/testdata/small_states.ts";

/** A packet as tracers take it. */
export interface TracedPacket extends Packet {
  readonly state: "new" | "established" | "related" | "invalid" | "untracked";
}

export interface TracedPath {
  /** After DNAT. */
  readonly packet: TracedPacket;
  readonly beforeDnat?: TracedPacket;
  /** Absent: the node itself. */
  readonly inInterface?: string;
  readonly outInterface?: string;
}

/** What became of it at one hook. */
export interface Traced {
  readonly hook: string;
  readonly verdict: "accept" | "drop";
  readonly tracked: boolean;
  readonly masqueraded: boolean;
  readonly steps: readonly unknown[];
}

export interface Rendered {
  readonly problems: readonly string[];
  trace(path: TracedPath): readonly Traced[];
}

export const NEXT: PolicyList = list([], [], "next");
export const port = (first: number, last = first) => [{ first, last }];

/** `10.0.0.1 > 10.0.0.2 tcp 80`, `fd00::1 > ff02::1 icmpv6 135`; `established` and the like after it. */
export function packet(text: string): Omit<TracedPacket, "mark" | "inInterface" | "outInterface"> {
  const [source, , destination, name, number, ct = "new"] = text.split(" ");
  const protocol = { tcp: 6, udp: 17, icmp: 1, icmpv6: 58 }[name!]!;
  const icmp = protocol === 1 || protocol === 58;
  return {
    source: address(source!),
    destination: address(destination!),
    protocol,
    ...(icmp ? { icmp: { type: Number(number), code: 0 } } : { sourcePort: 40000, destinationPort: Number(number) }),
    state: ct as TracedPacket["state"],
  };
}

export const twoPods = (parts: Parameters<typeof state>[0] = {}) =>
  state({
    workloads: [
      workload("a", "mxa", ["10.0.0.1", "fd00::1"], { egress: rules(rule("allow", { protocol: 6 })) }),
      workload("b", "mxb", ["10.0.0.2", "fd00::2"], {
        ingress: rules(rule("allow", { to: { ports: port(80) }, protocol: 6 })),
      }),
    ],
    ...parts,
  });

export const endpoint = (
  id: string,
  interfaces: readonly string[] | "*",
  parts: Partial<DesiredHostEndpoint> = {},
): DesiredHostEndpoint => ({
  id,
  interfaces,
  ingress: CLOSED,
  egress: CLOSED,
  ...parts,
});
export const failsafe = { inbound: [{ protocol: 6, port: 22 }], outbound: [{ protocol: 17, port: 53 }] };
const allowPort = (number: number, end: "deny" | "next" = "deny") =>
  list(
    [tier(
      "t",
      end === "deny" ? "deny" : "pass",
      policy("p", rule("allow", { protocol: 6, to: { ports: port(number) } })),
    )],
    [],
    end,
  );
const denyPort = (number: number) =>
  list([tier("t", "pass", policy("p", rule("deny", { protocol: 6, to: { ports: port(number) } })))], [], "next");

/** `claimed`: what is said of interface `mxa`, which workloads `a` and `b` both want. */
export function dataplaneVerdicts(render: (world: DesiredState) => Rendered, claimed: string): void {
  /** `mx1 > eth0: PACKET`; `-` for the node itself. */
  function verdict(world: DesiredState, path: string): "accept" | "drop" {
    const colon = path.indexOf(": ");
    const [links, what] = [path.slice(0, colon), path.slice(colon + 2)];
    const [from, to] = links.split(" > ").map((name) => name === "-" ? undefined : name);
    return render(world).trace({ packet: packet(what), inInterface: from, outInterface: to }).at(-1)!
      .verdict;
  }

  const check = (world: DesiredState, expected: string) => {
    const lines = expected.trim().split("\n").map((line) => line.trim());
    expect(
      lines.map((line) => {
        const [path] = line.split(" = ");
        return `${path} = ${verdict(world, path!)}`;
      }).join("\n"),
    ).toBe(lines.join("\n"));
  };

  test("a pod's packet meets its egress and the other's ingress", () =>
    check(
      twoPods(),
      `
    mxa > mxb: 10.0.0.1 > 10.0.0.2 tcp 80 = accept
    mxa > mxb: 10.0.0.1 > 10.0.0.2 tcp 81 = drop
    mxa > mxb: 10.0.0.1 > 10.0.0.2 udp 80 = drop
    mxb > mxa: 10.0.0.2 > 10.0.0.1 udp 9 = accept
    mxa > eth0: 10.0.0.1 > 192.0.2.1 tcp 443 = accept
    mxa > eth0: 10.0.0.1 > 192.0.2.1 udp 443 = drop
    eth0 > mxb: 192.0.2.1 > 10.0.0.2 tcp 80 = accept
    eth0 > mxb: 192.0.2.1 > 10.0.0.2 tcp 22 = drop
    mxa > mxb: fd00::1 > fd00::2 tcp 80 = accept
    mxa > mxb: fd00::1 > fd00::2 tcp 81 = drop
  `,
    ));

  test("a pod's packet to its own node meets its egress; the node's to its pod meets nothing", () =>
    check(
      twoPods(),
      `
    mxa > -: 10.0.0.1 > 10.0.0.254 tcp 10250 = accept
    mxa > -: 10.0.0.1 > 10.0.0.254 udp 53 = drop
    - > mxb: 10.0.0.254 > 10.0.0.2 tcp 9999 = accept
  `,
    ));

  test("established and related flows pass, invalid packets of pods drop, strangers' are left alone", () =>
    check(
      twoPods(),
      `
    mxa > mxb: 10.0.0.1 > 10.0.0.2 udp 80 established = accept
    mxa > mxb: 10.0.0.1 > 10.0.0.2 icmp 3 related = accept
    mxa > mxb: 10.0.0.1 > 10.0.0.2 tcp 80 invalid = drop
    eth0 > mxb: 192.0.2.1 > 10.0.0.2 tcp 80 invalid = drop
    mxa > -: 10.0.0.1 > 10.0.0.254 tcp 80 invalid = drop
    eth0 > eth1: 192.0.2.1 > 198.51.100.1 tcp 80 invalid = accept
    eth0 > -: 192.0.2.1 > 198.51.100.1 tcp 80 invalid = accept
    eth0 > eth1: 192.0.2.1 > 198.51.100.1 tcp 80 = accept
  `,
    ));

  test("a pod sends from its own addresses only", () =>
    check(
      twoPods(),
      `
    mxa > mxb: 10.0.0.2 > 10.0.0.2 tcp 80 = drop
    mxa > eth0: 10.0.0.9 > 192.0.2.1 tcp 80 established = drop
    mxa > eth0: 0.0.0.0 > 255.255.255.255 udp 67 = drop
    mxa > -: fe80::1 > fd00::fe tcp 80 = drop
    mxa > -: fe80::1 > ff02::1 icmpv6 135 untracked = accept
    mxa > -: :: > ff02::1 icmpv6 135 untracked = accept
    mxa > -: :: > ff02::1 icmpv6 128 = drop
    mxa > -: fd00::2 > ff02::1 icmpv6 135 untracked = drop
    mxa > -: fd00::1 > fd00::fe icmpv6 128 = drop
  `,
    ));

  test("neighbour discovery between a pod and its node never meets policy; what is forwarded is none", () =>
    check(
      state({ workloads: [workload("a", "mxa", ["fd00::1"], { egress: CLOSED, ingress: CLOSED })] }),
      `
    mxa > -: fd00::1 > fe80::1 icmpv6 136 untracked = accept
    mxa > -: fd00::1 > fe80::1 icmpv6 130 untracked = accept
    mxa > -: fd00::1 > fe80::1 icmpv6 137 untracked = drop
    mxa > -: fd00::1 > fe80::1 icmpv6 128 = drop
    mxa > eth0: fd00::1 > fd00::9 icmpv6 135 untracked = drop
    eth0 > mxa: fd00::9 > fd00::1 icmpv6 135 untracked = drop
  `,
    ));

  test("an interface with our prefix and without a workload drops, in either direction", () =>
    check(
      twoPods(),
      `
    mxdead > mxb: 10.0.0.7 > 10.0.0.2 tcp 80 = drop
    mxdead > -: 10.0.0.7 > 10.0.0.254 tcp 80 = drop
    eth0 > mxdead: 192.0.2.1 > 10.0.0.7 tcp 80 = drop
    my0 > eth0: 192.0.2.1 > 10.0.0.7 tcp 80 = accept
  `,
    ));

  test("with no workload at all an unknown pod interface still drops", () =>
    check(
      state({}),
      `
    mxdead > eth0: 10.0.0.7 > 192.0.2.1 tcp 80 = drop
    eth0 > mxdead: 192.0.2.1 > 10.0.0.7 tcp 80 = drop
    eth0 > eth1: 192.0.2.1 > 10.0.0.7 tcp 80 = accept
    eth0 > -: 192.0.2.1 > 10.0.0.7 tcp 80 = accept
    - > eth0: 192.0.2.1 > 10.0.0.7 tcp 80 = accept
  `,
    ));

  test("a pod that reaches itself by way of the node meets no policy", () =>
    check(
      state({ workloads: [workload("a", "mxa", ["10.0.0.1"], { egress: CLOSED, ingress: CLOSED })] }),
      `
    mxa > mxa: 10.0.0.1 > 10.0.0.1 tcp 80 = accept
    mxa > eth0: 10.0.0.1 > 192.0.2.1 tcp 80 = drop
  `,
    ));

  test("two workloads on one interface cut it off and are a problem", () => {
    const world = state({ workloads: [workload("a", "mxa", ["10.0.0.1"]), workload("b", "mxa", ["10.0.0.2"])] });
    expect(render(world).problems).toEqual([claimed]);
    check(
      world,
      `
    mxa > eth0: 10.0.0.1 > 192.0.2.1 tcp 80 = drop
    eth0 > mxa: 192.0.2.1 > 10.0.0.1 tcp 80 = drop
  `,
    );
  });

  test("a host endpoint judges what starts or ends in the host, failsafe ports apart", () =>
    check(
      twoPods({ hostEndpoints: [endpoint("h", ["eth0"], { ingress: allowPort(80) })], failsafe }),
      `
    eth0 > -: 192.0.2.1 > 10.0.0.254 tcp 80 = accept
    eth0 > -: 192.0.2.1 > 10.0.0.254 tcp 81 = drop
    eth0 > -: 192.0.2.1 > 10.0.0.254 tcp 22 = accept
    eth0 > -: 192.0.2.1 > 10.0.0.254 tcp 80 invalid = drop
    eth0 > -: 192.0.2.1 > 10.0.0.254 tcp 81 established = accept
    - > eth0: 10.0.0.254 > 192.0.2.1 udp 53 = accept
    - > eth0: 10.0.0.254 > 192.0.2.1 tcp 80 = drop
    - > eth1: 10.0.0.254 > 192.0.2.1 tcp 80 = accept
    eth1 > -: 192.0.2.1 > 10.0.0.254 tcp 81 = accept
    eth0 > mxb: 192.0.2.1 > 10.0.0.2 tcp 80 = accept
    eth0 > eth1: 192.0.2.1 > 198.51.100.1 tcp 81 = accept
  `,
    ));

  test("a host endpoint of every interface leaves out lo and pods, and judges the node's packets to its pods", () =>
    check(
      twoPods({
        hostEndpoints: [
          endpoint("h", "*", { forwardIngress: CLOSED }),
          endpoint("n", ["eth9"], { ingress: OPEN, egress: OPEN }),
        ],
        failsafe,
      }),
      `
    eth0 > -: 192.0.2.1 > 10.0.0.254 tcp 80 = drop
    lo > -: 127.0.0.1 > 127.0.0.1 tcp 80 = accept
    - > lo: 127.0.0.1 > 127.0.0.1 tcp 80 = accept
    mxa > -: 10.0.0.1 > 10.0.0.254 tcp 80 = accept
    mxa > mxb: 10.0.0.1 > 10.0.0.2 tcp 80 = accept
    - > mxb: 10.0.0.254 > 10.0.0.2 tcp 80 = drop
    eth0 > mxb: 192.0.2.1 > 10.0.0.2 tcp 80 = drop
    eth9 > mxb: 192.0.2.1 > 10.0.0.2 tcp 80 = accept
    eth9 > -: 192.0.2.1 > 10.0.0.254 tcp 80 = accept
    - > eth9: 10.0.0.254 > 192.0.2.1 tcp 80 = accept
    mxdead > -: 10.0.0.1 > 10.0.0.254 tcp 80 = drop
  `,
    ));

  test("forward policy judges both directions of what passes through", () =>
    check(
      state({
        hostEndpoints: [
          endpoint("i", ["eth0"], { forwardIngress: allowPort(80) }),
          endpoint("o", ["eth1"], { forwardEgress: allowPort(443) }),
        ],
      }),
      `
    eth0 > eth2: 192.0.2.1 > 198.51.100.1 tcp 80 = accept
    eth0 > eth2: 192.0.2.1 > 198.51.100.1 tcp 81 = drop
    eth2 > eth0: 192.0.2.1 > 198.51.100.1 tcp 81 = accept
    eth2 > eth1: 192.0.2.1 > 198.51.100.1 tcp 443 = accept
    eth2 > eth1: 192.0.2.1 > 198.51.100.1 tcp 80 = drop
    eth0 > eth1: 192.0.2.1 > 198.51.100.1 tcp 80 = drop
  `,
    ));

  test("preDnat policy sees the packet before DNAT; what it allows has passed its host endpoint, what it leaves goes on", () => {
    const world = twoPods({
      hostEndpoints: [
        endpoint("h", ["eth0"], {
          ingress: CLOSED,
          preDnat: list(
            [tier(
              "t",
              "pass",
              policy(
                "p",
                rule("allow", { protocol: 6, to: { ports: port(8080) } }),
                rule("deny", { protocol: 6, to: { ports: port(9090) } }),
              ),
            )],
            [],
            "next",
          ),
        }),
      ],
      failsafe,
    });
    const { trace } = render(world);
    const through = (before: string, after: string, out: string | undefined) =>
      trace({ packet: packet(after), beforeDnat: packet(before), inInterface: "eth0", outInterface: out })
        .at(-1)!.verdict;
    expect(through("192.0.2.1 > 198.51.100.9 tcp 8080", "192.0.2.1 > 10.0.0.2 tcp 80", "mxb")).toBe("accept");
    expect(through("192.0.2.1 > 198.51.100.9 tcp 8080", "192.0.2.1 > 10.0.0.2 tcp 81", "mxb")).toBe("drop");
    expect(through("192.0.2.1 > 198.51.100.9 tcp 9090", "192.0.2.1 > 10.0.0.2 tcp 80", "mxb")).toBe("drop");
    expect(through("192.0.2.1 > 198.51.100.9 tcp 7070", "192.0.2.1 > 10.0.0.2 tcp 80", "mxb")).toBe("accept");
    expect(through("192.0.2.1 > 198.51.100.9 tcp 8080", "192.0.2.1 > 198.51.100.9 tcp 8080", undefined)).toBe("accept");
    expect(through("192.0.2.1 > 198.51.100.9 tcp 7070", "192.0.2.1 > 198.51.100.9 tcp 7070", undefined)).toBe("drop");
    expect(through("192.0.2.1 > 198.51.100.9 tcp 22", "192.0.2.1 > 198.51.100.9 tcp 22", undefined)).toBe("accept");
  });

  test("untracked policy decides before conntrack, both ways, and answers of failsafe ports pass", () => {
    const world = state({
      hostEndpoints: [
        endpoint("h", ["eth0"], {
          ingress: OPEN,
          egress: CLOSED,
          untrackedIngress: list(
            [tier(
              "t",
              "pass",
              policy("p", rule("allow", { protocol: 6, to: { ports: port(80) } }), rule("deny", { protocol: 6 })),
            )],
            [],
            "next",
          ),
          untrackedEgress: allowPort(443, "next"),
        }),
      ],
      failsafe: { ...failsafe, outbound: [{ protocol: 6, port: 2379 }] },
    });
    const { trace } = render(world);
    const traces = trace({ packet: packet("192.0.2.1 > 10.0.0.254 tcp 80"), inInterface: "eth0" });
    expect(traces.map(({ hook, verdict, tracked }) => `${hook.toLowerCase()} ${verdict} ${tracked}`)).toEqual([
      "prerouting accept false",
      "input accept false",
    ]);
    check(
      world,
      `
    eth0 > -: 192.0.2.1 > 10.0.0.254 tcp 81 = drop
    eth0 > -: 192.0.2.1 > 10.0.0.254 tcp 22 = accept
    eth0 > -: 192.0.2.1 > 10.0.0.254 udp 81 = accept
    - > eth0: 10.0.0.254 > 192.0.2.1 tcp 443 = accept
    - > eth0: 10.0.0.254 > 192.0.2.1 tcp 444 = drop
  `,
    );
    const answer = { ...packet("192.0.2.1 > 10.0.0.254 tcp 40000"), sourcePort: 2379 };
    expect(trace({ packet: answer, inInterface: "eth0" }).at(-1)!.verdict).toBe("accept");
  });

  test("masquerade takes sources that leave the inside, in both families", () => {
    const { trace } = render(
      state({
        masquerade: { sources: ["10.0.0.0/16", "fd00::/64"], inside: ["10.0.0.0/8", "10.0.0.0/16", "fd00::/48"] },
      }),
    );
    const out = (text: string) =>
      trace({ packet: packet(text), inInterface: "eth1", outInterface: "eth0" }).at(-1)!.masqueraded;
    expect([
      out("10.0.0.1 > 192.0.2.1 tcp 1"),
      out("10.0.0.1 > 10.9.0.1 tcp 1"),
      out("10.1.0.1 > 192.0.2.1 tcp 1"),
      out("fd00::1 > 2001:db8::1 tcp 1"),
      out("fd00::1 > fd00:0:0:9::1 tcp 1"),
    ]).toEqual([true, false, false, true, false]);
  });

  test("random nodes: the traced table says what the evaluator says of the whole way", () => {
    let at = 12345;
    const below = (n: number) => (at = Math.imul(at, 1103515245) + 12345 >>> 0, (at >>> 8) % n);
    const pick = <T>(from: readonly T[]): T => from[below(from.length)]!;
    const lists = [
      OPEN,
      CLOSED,
      allowPort(80),
      allowPort(443),
      rules(rule("deny", { from: { nets: [cidr("192.0.2.0/24")] } }), rule("allow")),
      rules(rule("allow", { from: { sets: [setId("s")] } })),
    ];
    const nextLists = [
      NEXT,
      allowPort(80, "next"),
      denyPort(80),
      list(
        [tier("t", "pass", policy("p", rule("allow", { protocol: 17 }), rule("deny", { protocol: 6 })))],
        [],
        "next",
      ),
    ];
    for (let round = 0; round < 60; round++) {
      const maybe = <T>(value: T): T | undefined => below(2) === 0 ? value : undefined;
      const host = (id: string, interfaces: readonly string[] | "*"): DesiredHostEndpoint => ({
        id,
        interfaces,
        ingress: pick(lists),
        egress: pick(lists),
        forwardIngress: maybe(pick(lists)),
        forwardEgress: maybe(pick(lists)),
        preDnat: maybe(pick(nextLists)),
        untrackedIngress: maybe(pick(nextLists)),
        untrackedEgress: maybe(pick(nextLists)),
      });
      const star = below(2) === 0;
      const world = state({
        sets: [netSet("s", "10.0.0.1", "192.0.2.1", "fd00::/64")],
        workloads: [
          workload("a", "mxa", ["10.0.0.1", "fd00::1"], { ingress: pick(lists), egress: pick(lists) }),
          workload("b", "veth7", ["10.0.0.2", "fd00::2"], { ingress: pick(lists), egress: pick(lists) }),
        ],
        hostEndpoints: [...(below(2) === 0 ? [host("h", ["eth0"])] : []), ...(star ? [host("s", "*")] : [])],
        failsafe: { inbound: [{ protocol: 6, port: 22 }], outbound: [{ protocol: 6, port: 443 }] },
      });
      const { trace } = render(world);
      for (let i = 0; i < 60; i++) {
        const inside = pick([undefined, "mxa", "veth7", "eth0", "eth1"]),
          outside = pick([undefined, "mxa", "veth7", "eth0", "eth1"]);
        if (inside === undefined && outside === undefined) continue;
        // The evaluator does not ask the endpoint of every interface about the node's packets to its pods.
        if (star && inside === undefined && (outside === "mxa" || outside === "veth7")) continue;
        // Where a forwarded packet leaves is not known before conntrack: untracked egress is for the node's own packets.
        const leaves = [...world.hostEndpoints.values()].find((one) =>
          one.interfaces === "*"
            ? outside === "eth1" || !world.hostEndpoints.has("h")
            : one.interfaces.includes(outside ?? "")
        );
        if (inside !== undefined && outside !== undefined && leaves?.untrackedEgress !== undefined) continue;
        const v6 = below(3) === 0;
        const own = (name: string | undefined) =>
          name === "mxa"
            ? (v6 ? "fd00::1" : "10.0.0.1")
            : name === "veth7"
            ? (v6 ? "fd00::2" : "10.0.0.2")
            : pick(v6 ? ["2001:db8::1", "fd00::77"] : ["192.0.2.1", "198.51.100.1"]);
        const protocol = pick([6, 6, 17, v6 ? 58 : 1]);
        const ported = protocol === 6 || protocol === 17;
        const sent: Packet = {
          source: parseAddress(own(inside)) as Address,
          destination: parseAddress(own(outside)) as Address,
          protocol,
          ...(ported
            ? { sourcePort: pick([40000, 443, 22]), destinationPort: pick([22, 80, 443, 9]) }
            : { icmp: { type: v6 ? pick([128, 135]) : 8, code: 0 } }),
        };
        const beforeDnat = ported && below(3) === 0 && inside !== undefined
          ? { ...sent, destinationPort: pick([80, 9]) }
          : undefined;
        const ct = sent.icmp?.type === 135 ? "untracked" as const : "new" as const;
        const wanted = judgePath(world, { packet: sent, beforeDnat, inInterface: inside, outInterface: outside });
        const found = trace({
          packet: { ...sent, state: ct },
          beforeDnat: beforeDnat && { ...beforeDnat, state: ct },
          inInterface: inside,
          outInterface: outside,
        });
        if ((found.at(-1)!.verdict === "accept") !== (wanted.verdict === "allow")) {
          throw new Error(
            `found ${found.at(-1)!.verdict}, wanted ${wanted.verdict}: ${
              JSON.stringify(
                {
                  round,
                  inside,
                  outside,
                  sent,
                  beforeDnat,
                  steps: found.flatMap((trace) => trace.steps),
                  wanted: wanted.steps,
                },
                null,
                1,
              )
            }`,
          );
        }
      }
    }
  });
}
