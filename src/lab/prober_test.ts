import { afterAll, beforeAll, expect, test } from "bun:test";
import { type Address, addressFamily, parseAddress } from "../model/address.ts";
import { createNamespace, namespacePath } from "../kernel/netns.ts";
import type { NetworkNamespace } from "../sdk/kernel_door.ts";
import type { ProbeProtocol } from "./expectation.ts";
import { DENY_WINDOW_MS, type Probe, type ProbeEnd, Prober, RETRY_AT_MS } from "./prober.ts";

// a (10.1.0.2, fd01::2) — router — b (10.2.0.2, fd03::2); what the router's rules drop is denied.
const A = { 4: parseAddress("10.1.0.2"), 6: parseAddress("fd01::2") };
const B = { 4: parseAddress("10.2.0.2"), 6: parseAddress("fd03::2") };
let a: ProbeEnd & { namespace: NetworkNamespace }, b: typeof a, router: typeof a;
let prober: Prober;

function inside(end: ProbeEnd, ...cmd: string[]): void {
  const run = Bun.spawnSync({ cmd: ["nsenter", `--net=${namespacePath(end.namespace)}`, ...cmd] });
  if (!run.success) throw new Error(`${cmd.join(" ")}: ${run.stderr.toString()}`);
}
const rules = (text: string) => inside(router, "nft", `flush ruleset; ${text}`);

beforeAll(() => {
  [a, b, router] = ["a", "b", "router"].map((name) => ({ name, namespace: createNamespace(name) })) as [
    typeof a,
    typeof a,
    typeof a,
  ];
  const batch = (end: ProbeEnd, lines: string) => {
    for (const line of lines.trim().split("\n")) inside(end, ...line.trim().split(" "));
  };
  // Else the router would have no address to ask its neighbours from for the first seconds.
  for (const end of [a, b, router]) {
    inside(end, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0");
  }
  batch(
    router,
    `
    ip link add ra type veth peer name eth0 netns ${namespacePath(a.namespace)}
    ip link add rb type veth peer name eth0 netns ${namespacePath(b.namespace)}
    sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    ip addr add 10.1.0.1/24 dev ra
    ip addr add 10.2.0.1/24 dev rb
    ip addr add fd01::1/64 dev ra nodad
    ip addr add fd03::1/64 dev rb nodad
    ip link set ra up
    ip link set rb up`,
  );
  for (const [end, v4, v6] of [[a, "10.1.0", "fd01::"], [b, "10.2.0", "fd03::"]] as const) {
    batch(
      end,
      `
      ip link set lo up
      ip addr add ${v4}.2/24 dev eth0
      ip addr add ${v6}2/64 dev eth0 nodad
      ip link set eth0 up
      ip route add default via ${v4}.1
      ip route add default via ${v6}1`,
    );
  }
  prober = new Prober();
});
afterAll(() => {
  prober?.[Symbol.dispose]();
  for (const end of [a, b, router]) end?.namespace[Symbol.dispose]();
});

const probe = (protocol: ProbeProtocol, to: Address, port: number, expect: "allow" | "deny"): Probe => ({
  from: a,
  source: addressFamily(to) === 4 ? A[4] : A[6],
  to,
  protocol,
  port,
  target: { end: b, address: to, port },
  expect,
});

const KINDS: readonly (readonly [ProbeProtocol, 4 | 6, number])[] = [
  ["tcp", 4, 80],
  ["tcp", 6, 80],
  ["udp", 4, 53],
  ["udp", 6, 53],
  ["sctp", 4, 80],
  ["sctp", 6, 80],
  ["icmp", 4, 0],
  ["icmpv6", 6, 0],
];

for (const [protocol, family, port] of KINDS) {
  test(`${protocol} over IPv${family}: answered at the first attempt where nothing filters`, async () => {
    rules("");
    const [result] = await prober.run([probe(protocol, B[family], port, "allow")]);
    expect({ observed: result!.observed, holds: result!.holds, attempts: result!.attempts, detail: result!.detail })
      .toEqual({ observed: "answered", holds: true, attempts: 1, detail: "" });
  });

  test(`${protocol} over IPv${family}: silent where the way there is dropped, watched for the whole window`, async () => {
    rules(
      "add table inet t; add chain inet t f { type filter hook forward priority 0; policy accept; iifname ra drop; }",
    );
    const [result] = await prober.run([probe(protocol, B[family], port, "deny")]);
    expect({ observed: result!.observed, holds: result!.holds, attempts: result!.attempts }).toEqual({
      observed: "silent",
      holds: true,
      attempts: 2,
    });
    expect(result!.afterMs).toBeGreaterThanOrEqual(DENY_WINDOW_MS);
  });

  test(`${protocol} over IPv${family}: a denial that drops the answer only is seen to arrive and does not hold`, async () => {
    rules(
      "add table inet t; add chain inet t f { type filter hook forward priority 0; policy accept; iifname rb drop; }",
    );
    const [result] = await prober.run([probe(protocol, B[family], port, "deny")]);
    expect({ observed: result!.observed, holds: result!.holds }).toEqual({ observed: "arrived", holds: false });
    expect(result!.detail).toContain("arrive at b");
  });

  test(`${protocol} over IPv${family}: a packet that conntrack would call invalid is not what we send`, async () => {
    rules(
      "add table inet t; add chain inet t f { type filter hook forward priority 0; policy drop; ct state new,established,related accept; meta l4proto ipv6-icmp icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }",
    );
    const [result] = await prober.run([probe(protocol, B[family], port, "allow")]);
    expect(result!.observed).toBe("answered");
  });

  test(`${protocol} over IPv${family}: a rejection is an answer, not a denial`, async () => {
    rules(
      "add table inet t; add chain inet t f { type filter hook forward priority 0; policy accept; iifname ra reject with icmpx type admin-prohibited; }",
    );
    const [result] = await prober.run([probe(protocol, B[family], port, "deny")]);
    expect({ observed: result!.observed, holds: result!.holds }).toEqual({ observed: "unreachable", holds: false });
  });
}

test("an expected answer that never comes is reported as silent, after every attempt", async () => {
  rules(
    "add table inet t; add chain inet t f { type filter hook forward priority 0; policy accept; iifname ra drop; }",
  );
  const results = await prober.run(KINDS.map(([protocol, family, port]) => probe(protocol, B[family], port, "allow")));
  expect(results.map(({ observed, holds, attempts }) => ({ observed, holds, attempts })))
    .toEqual(KINDS.map(() => ({ observed: "silent", holds: false, attempts: 1 + RETRY_AT_MS.length })));
});

test("an answer that only a later attempt gets says so", async () => {
  rules(
    "add table inet t; add chain inet t f { type filter hook forward priority 0; policy accept; iifname ra drop; }",
  );
  const running = prober.run(KINDS.map(([protocol, family, port]) => probe(protocol, B[family], port, "allow")));
  rules("");
  const results = await running;
  expect(results.map(({ observed }) => observed)).toEqual(KINDS.map(() => "answered"));
  expect(results.every(({ attempts }) => attempts > 1)).toBe(true);
});

test("a denial by the sender's own output rules is blocked or silent, and holds", async () => {
  rules("");
  inside(a, "nft", "add table inet t; add chain inet t o { type filter hook output priority 0; policy drop; }");
  try {
    const results = await prober.run(KINDS.map(([protocol, family, port]) => probe(protocol, B[family], port, "deny")));
    expect(results.map((result) => result.holds)).toEqual(KINDS.map(() => true));
    expect(results.find((result) => result.probe.protocol === "udp")!.observed).toBe("blocked");
  } finally {
    inside(a, "nft", "flush ruleset");
  }
});

test("a probe through address translation is answered by the one behind it, and told from an answer of somebody else", async () => {
  rules(
    "add table inet t; add chain inet t p { type nat hook prerouting priority dstnat; ip daddr 10.1.0.1 tcp dport 8080 dnat ip to 10.2.0.2:80; }",
  );
  const through = (end: ProbeEnd): Probe => ({
    ...probe("tcp", parseAddress("10.1.0.1"), 8080, "allow"),
    target: { end, address: B[4], port: 80 },
  });
  expect((await prober.run([through(b)]))[0]!.observed).toBe("answered");
  const impostor = { name: "c", namespace: b.namespace };
  const [result] = await prober.run([through(impostor)]);
  expect({ observed: result!.observed, detail: result!.detail }).toEqual({
    observed: "wrong-answer",
    detail: "b answered, not c",
  });
});

test("thousands of probes at once keep apart: every second port is dropped, every other answers", async () => {
  rules(
    "add table inet t; add set inet t odd { type inet_service; }; add chain inet t f { type filter hook forward priority 0; th dport @odd drop; }",
  );
  const ports = Array.from({ length: 40 }, (_, i) => 1_000 + i);
  inside(router, "nft", `add element inet t odd { ${ports.filter((port) => port % 2 === 1).join(", ")} }`);
  const probes = Array.from({ length: 50 }).flatMap(() =>
    ports.flatMap((port) =>
      (["tcp", "udp"] as const).map((protocol) =>
        probe(protocol, B[port % 4 < 2 ? 4 : 6], port, port % 2 === 1 ? "deny" : "allow")
      )
    )
  );
  const results = await prober.run(probes);
  expect(results.length).toBe(4_000);
  expect(results.filter((result) => !result.holds)).toEqual([]);
});

test("an aborted run throws the reason and leaves the prober usable", async () => {
  rules("add table inet t; add chain inet t f { type filter hook forward priority 0; policy drop; }");
  const stop = new AbortController();
  const running = prober.run([probe("tcp", B[4], 80, "allow")], stop.signal);
  stop.abort(new Error("enough"));
  await expect(running).rejects.toThrow("enough");
  rules("");
  expect((await prober.run([probe("tcp", B[4], 80, "allow")]))[0]!.observed).toBe("answered");
});
