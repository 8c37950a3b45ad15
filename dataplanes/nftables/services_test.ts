/** Services as rules, walked by the tracer; and as the kernel has them, message by message. */
import { expect, test } from "bun:test";
import { formatAddress } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import type { ServiceState } from "../../src/model/services.ts";
import { createNamespace } from "../../src/kernel/netns.ts";
import { openNetlink } from "../../src/kernel/netlink/socket.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import type { Dataplane, Report } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { parseConfig, thirdBit } from "./config.ts";
import { printRuleset } from "./print.ts";
import { readTable } from "./read.ts";
import { Renderer } from "./render.ts";
import { random } from "../../src/model/testdata/random_lists.ts";
import { endpoint, frontend, services, someServices } from "../../src/model/testdata/services.ts";
import { state, workload } from "../../src/model/testdata/small_states.ts";
import { openDataplane } from "./testdata/open.ts";
import { type Hook, type TracedPacket, traceHook } from "./trace.ts";

const MASQUERADE = 0x40000;
const OPTIONS = {
  logGroup: 86,
  passedMark: 0x10000,
  cut: { mark: 0x20000, resets: true },
  services: { masqueradeMark: MASQUERADE },
};
const PODS = [workload("a", "mxa", ["10.0.0.1", "fd00::1"]), workload("b", "mxb", ["10.0.0.2", "fd00::2"])];

const desired = (of: ServiceState | undefined, generation = 1): DesiredState => ({
  ...state({ generation, workloads: PODS }),
  ...of === undefined ? {} : { services: of },
});
const rendered = (of: ServiceState) => new Renderer(OPTIONS).render(desired(of)).ruleset;

interface Way {
  /** What chance gives. */
  readonly random?: number;
  readonly isToNode?: boolean;
  readonly memory?: TracedPacket["memory"];
  readonly mark?: number;
}

/** `mxa tcp 10.0.0.1:1000 > 10.96.0.1:80`; `-` for a process of the node. */
function walk(ruleset: ReturnType<typeof rendered>, line: string, way: Way = {}): string {
  const [link, name, from, , to] = line.split(" ");
  const source = endpoint(from!), destination = endpoint(to!);
  const hook: Hook = link === "-" ? "output" : "prerouting";
  const { verdict, dnat, mark, steps } = traceHook(ruleset, hook, {
    source: source.address,
    destination: destination.address,
    protocol: PROTOCOLS[name!.toUpperCase() as "TCP"],
    sourcePort: source.port,
    destinationPort: destination.port,
    state: "new",
    ...link === "-" ? {} : { inInterface: link },
    ...way,
  });
  const last = steps.at(-1)?.text ?? "";
  if (verdict === "drop") return last.includes("tcp reset") ? "reset" : last.includes("icmpx") ? "unreachable" : "drop";
  if (dnat === undefined) return "as it is";
  return `${formatAddress(dnat.address)} ${dnat.port}${mark === MASQUERADE ? " masqueraded" : ""}`;
}

function check(of: ServiceState, expected: string, way: Way = {}): void {
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
  const tcp = (first: string, second: string) => {
    check(
      of,
      `
      mxa tcp 10.0.0.1:1000 > 10.96.0.1:80 = ${first}
      eth0 tcp 192.0.2.1:1000 > 10.96.0.1:80 = ${first}
      - tcp 192.0.2.7:1000 > 10.96.0.1:80 = ${first}
      mxa tcp [fd00::1]:1000 > [fd96::1]:80 = ${second}
      - tcp [2001:db8::1]:1000 > [fd96::1]:80 = ${second}
    `,
      { random: first.startsWith("10.0.0.1 ") ? 4 : 7 },
    );
  };
  tcp("10.0.0.1 8080", "fd00::1 8080");
  tcp("10.0.0.2 8081", "fd00::2 8081");
  check(
    of,
    `
    mxa udp 10.0.0.1:1000 > 10.96.0.1:53 = 10.0.0.2 5353
    mxa sctp [fd00::1]:1000 > [fd96::1]:90 = fd00::1 9090
    mxa tcp 10.0.0.1:1000 > 10.96.0.1:53 = as it is
    mxa tcp 10.0.0.1:1000 > 10.96.0.2:80 = as it is
    mxa udp [fd00::1]:1000 > [fd96::1]:80 = as it is
  `,
  );
});

test("chance gives every backend its share, whatever their number", () => {
  for (const count of [1, 2, 3, 7, 64]) {
    const list = Array.from({ length: count }, (_, i) => `10.0.${i}.1:80`).join(" ");
    const ruleset = rendered(services([`tcp 10.96.0.1:80 > ${list}`]));
    const met = new Set(
      Array.from(
        { length: count },
        (_, i) => walk(ruleset, "mxa tcp 10.0.0.1:9 > 10.96.0.1:80", { random: i + 64 * 3 * 7 }),
      ),
    );
    expect(met.size).toBe(count);
  }
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
    { random: 5 },
  ));

test("outside and inside have their own backends, and masquerading is for outside", () => {
  const of = services([
    "tcp 192.0.2.10:80 > 10.0.0.1:80 | scope external | masquerade",
    "tcp 192.0.2.11:80 > 10.1.0.1:80 10.0.0.2:80 | scope external | outside 10.0.0.2:80",
    "tcp 192.0.2.12:80 > 10.1.0.1:80 | scope external | outside drop",
    "tcp 10.96.0.1:80 > 10.0.0.1:80 | masquerade | outside drop",
    "tcp [2001:db8::10]:80 > [fd00::1]:80 | scope external | masquerade",
  ], { podNets: ["10.0.0.0/8", "10.0.0.0/16", "fd00::/16"] });
  check(
    of,
    `
    mxa tcp 10.0.0.1:9 > 192.0.2.10:80 = 10.0.0.1 80
    eth0 tcp 10.1.2.3:9 > 192.0.2.10:80 = 10.0.0.1 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.10:80 = 10.0.0.1 80 masqueraded
    - tcp 203.0.113.1:9 > 192.0.2.10:80 = 10.0.0.1 80
    mxa tcp 10.0.0.1:9 > 192.0.2.11:80 = 10.1.0.1 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.11:80 = 10.0.0.2 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.12:80 = drop
    mxa tcp 10.0.0.1:9 > 192.0.2.12:80 = 10.1.0.1 80
    eth0 tcp 203.0.113.1:9 > 10.96.0.1:80 = 10.0.0.1 80
    eth0 tcp [fd00::9]:9 > [2001:db8::10]:80 = fd00::1 80
    eth0 tcp [2001:db8::9]:9 > [2001:db8::10]:80 = fd00::1 80 masqueraded
  `,
  );
  const forwarded = (mark: number) =>
    traceHook(rendered(of), "postrouting", {
      source: endpoint("203.0.113.1:1").address,
      destination: endpoint("10.0.0.1:80").address,
      protocol: 6,
      sourcePort: 1,
      destinationPort: 80,
      state: "new",
      inInterface: "eth0",
      outInterface: "mxa",
      hasDnat: true,
      mark,
    });
  expect(forwarded(MASQUERADE | 3)).toMatchObject({ masqueraded: true, mark: 3 });
  expect(forwarded(~MASQUERADE >>> 0).masqueraded).toBe(false);
});

test("without nets of pods, only local pods and the node are inside", () =>
  check(
    services(["tcp 192.0.2.10:80 > 10.0.0.1:80 | scope external | masquerade"]),
    `
    mxa tcp 10.0.0.1:9 > 192.0.2.10:80 = 10.0.0.1 80
    eth0 tcp 10.0.0.1:9 > 192.0.2.10:80 = 10.0.0.1 80 masqueraded
    - tcp 10.0.0.1:9 > 192.0.2.10:80 = 10.0.0.1 80
  `,
  ));

test("a pod that reaches itself is masqueraded, and nothing else that it sends", () => {
  const ruleset = rendered(services(["tcp 10.96.0.1:80 > 10.0.0.1:80"]));
  const masqueraded = (out: string, hasDnat: boolean) =>
    traceHook(ruleset, "postrouting", {
      source: endpoint("10.0.0.1:1").address,
      destination: endpoint("10.0.0.1:80").address,
      protocol: 6,
      sourcePort: 1,
      destinationPort: 80,
      state: "new",
      inInterface: "mxa",
      outInterface: out,
      hasDnat,
    }).masqueraded;
  expect(masqueraded("mxa", true)).toBe(true);
  expect(masqueraded("mxb", true)).toBe(false);
  expect(masqueraded("mxa", false)).toBe(false);
});

test("node ports answer on the node's own addresses but loopback, or on those of the configuration", () => {
  const lines = ["tcp node4:30080 > 10.0.0.1:80 | masquerade", "udp node6:30053 > [fd00::1]:53"];
  check(
    services(lines),
    `
    eth0 tcp 203.0.113.1:9 > 192.0.2.7:30080 = 10.0.0.1 80 masqueraded
    mxa tcp 10.0.0.1:9 > 192.0.2.7:30080 = 10.0.0.1 80
    - tcp 192.0.2.7:9 > 192.0.2.7:30080 = 10.0.0.1 80
    - tcp 127.0.0.1:9 > 127.0.0.1:30080 = as it is
    - tcp 127.0.0.1:9 > 127.1.2.3:30080 = as it is
    eth0 udp 203.0.113.1:9 > 192.0.2.7:30080 = as it is
    eth0 udp 203.0.113.1:9 > 192.0.2.7:30053 = as it is
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
  `,
  ));

for (
  const [family, client, other, address, first, second] of [
    [4, "10.0.0.1:9", "10.0.0.2:9", "10.96.0.1:80", "10.0.0.1:80", "10.0.0.2:80"],
    [6, "[fd00::1]:9", "[fd00::2]:9", "[fd96::1]:80", "[fd00::1]:80", "[fd00::2]:80"],
  ] as const
) {
  test(`a client stays with its backend as long as that is there, IPv${family}`, () => {
    const text = (backend: string) => {
      const { address, port } = endpoint(backend);
      return `${formatAddress(address)} ${port}`;
    };
    const line = `tcp ${address} > ${first} ${second} | affinity 60`;
    const memory = new Map<string, Map<string, string>>();
    const both = rendered(services([line]));
    const path = `mxa tcp ${client} > ${address}`;
    expect(walk(both, path, { random: 1, memory })).toBe(text(second));
    expect(walk(both, path, { random: 0, memory })).toBe(text(second));
    expect(walk(both, `mxb tcp ${other} > ${address}`, { random: 0, memory })).toBe(text(first));
    const one = rendered(services([line.replace(` ${second}`, "")]));
    expect(walk(one, path, { random: 1, memory })).toBe(text(first));
    expect(walk(both, path, { random: 1, memory })).toBe(text(first));
  });
}

test("a client outside stays with a backend of the outside list only", () => {
  const memory = new Map<string, Map<string, string>>();
  const line = "tcp 192.0.2.10:80 > 10.0.0.1:80 10.0.0.2:80 | scope external | affinity 60 | outside ";
  const path = "eth0 tcp 203.0.113.1:9 > 192.0.2.10:80";
  expect(walk(rendered(services([`${line}10.0.0.1:80`])), path, { memory })).toBe("10.0.0.1 80");
  // It is still a backend, of those inside.
  expect(walk(rendered(services([`${line}10.0.0.2:80`])), path, { memory })).toBe("10.0.0.2 80");
});

const OURS = /^(set|map|chain) service/m;

test("without services nothing of them is rendered, and where they are another dataplane's neither", () => {
  const of = services(["tcp 10.96.0.1:80 > 10.0.0.1:80"]);
  const text = (options: ConstructorParameters<typeof Renderer>[0], world: DesiredState) =>
    printRuleset(new Renderer(options).render(world).ruleset);
  const { services: _, ...without } = OPTIONS;
  const plain = text(without, desired(undefined));
  expect(plain).not.toMatch(OURS);
  expect(text(OPTIONS, desired(undefined))).toBe(plain);
  expect(text(without, desired(of))).toBe(plain);
  const renderer = new Renderer(OPTIONS);
  expect(printRuleset(renderer.render(desired(of)).ruleset)).not.toBe(plain);
  expect(printRuleset(renderer.render(desired(undefined)).ruleset)).toBe(plain);
});

test("what is rendered does not depend on what was rendered before", () => {
  for (let seed = 1; seed <= 40; seed++) {
    const r = random(seed * 7_919);
    const renderer = new Renderer(OPTIONS);
    for (let step = 1; step <= 8; step++) {
      const world = desired(r.chance(0.1) ? undefined : someServices(r), step);
      expect(printRuleset(renderer.render(world).ruleset)).toBe(
        printRuleset(new Renderer(OPTIONS).render(world).ruleset),
      );
    }
  }
});

// ------------------------------------------------------------------------------------------------------------ the kernel

const kernelText = (namespace: NetworkNamespace): string => {
  using socket = openNetlink(12, { namespace });
  return printRuleset(readTable(socket).ruleset!);
};

const applied = async (dataplane: Dataplane, world: DesiredState): Promise<Report> => {
  const report = await dataplane.apply(world);
  expect(report.problems).toEqual([]);
  return report;
};

test("the kernel takes whatever services there are and gives them back, and the next process finds its own", async () => {
  using namespace = createNamespace("services");
  await using dataplane = await openDataplane(namespace);
  for (let seed = 1; seed <= 12; seed++) {
    const world = desired(someServices(random(seed * 104_729)), seed);
    await applied(dataplane, world);
    expect(kernelText(namespace)).toBe(printRuleset(new Renderer(OPTIONS).render(world).ruleset));
    expect((await dataplane.resync()).messages).toBe(0);
    await using next = await openDataplane(namespace);
    expect((await next.apply(world)).messages).toBe(0);
  }
  expect(runIn(namespace, "nft", "list", "table", "inet", "manx")).toContain("map service-backends4 {");
  await applied(dataplane, desired(undefined, 100));
  expect(kernelText(namespace)).not.toMatch(OURS);
});

test("one service changed is the same few messages at 3 and at 3,000 services", async () => {
  using namespace = createNamespace("incremental");
  await using dataplane = await openDataplane(namespace);
  const costs: number[][] = [];
  for (const count of [3, 3_000]) {
    const before = desired(services(Array.from(
      { length: count },
      (_, i) => `tcp 10.96.${i >> 8}.${i & 255}:80 > 10.1.${i >> 8}.${i & 255}:80 10.2.${i >> 8}.${i & 255}:80`,
    )));
    await applied(dataplane, before);
    const change = async (line: string) => {
      const one = frontend(line), { services: of } = before;
      const after = { ...before, generation: 2, services: { ...of!, frontends: of!.frontends.set(one.key, one) } };
      const { messages } = await applied(dataplane, after);
      await applied(dataplane, before);
      return messages;
    };
    costs.push([
      // A backend of two is another one: one element out, one in.
      await change("tcp 10.96.0.1:80 > 10.1.0.1:80 10.2.9.9:80"),
      // A new service of a kind that is there: its frontend, and its backends.
      await change("tcp 10.97.0.1:80 > 10.1.0.1:80 10.2.9.9:80"),
      // The only one of its kind: its frontend out and in, a backend less, the kind, a chain with a rule.
      await change("tcp 10.96.0.1:80 > 10.1.0.1:80"),
    ]);
  }
  expect(costs).toEqual([[2, 2, 6], [2, 2, 6]]);
});

test("what strangers do to services is mended, and clients that are remembered are no drift", async () => {
  using namespace = createNamespace("drift");
  await using dataplane = await openDataplane(namespace);
  const world = desired(services([
    "tcp 10.96.0.1:80 > 10.0.0.1:80 10.0.0.2:80 | affinity 60",
    "tcp 10.96.0.2:80 > 10.0.0.1:80 10.0.0.2:80",
  ]));
  await applied(dataplane, world);
  const whole = kernelText(namespace);
  runIn(
    namespace,
    "nft",
    "add",
    "element",
    "inet",
    "manx",
    "service-clients4",
    "{ 10.0.0.1 . 10.96.0.1 . tcp . 80 : 0x5 }",
  );
  expect((await dataplane.resync()).messages).toBe(0);
  for (
    const harm of [
      "delete element inet manx services4 { 10.96.0.1 . tcp . 80 }",
      "flush map inet manx service-backends4",
      "flush chain inet manx service-prerouting",
      "flush map inet manx service-members4",
    ]
  ) {
    runIn(namespace, "nft", harm);
    expect((await dataplane.resync()).messages).toBeGreaterThan(0);
    expect(kernelText(namespace)).toBe(whole);
  }
});

test("services are an aspect where the kernel, the mark mask and the configuration allow", async () => {
  expect(thirdBit(0xffff0000)).toBe(MASQUERADE);
  expect(thirdBit(0x30000)).toBe(0);
  expect(() => parseConfig({ services: "off" })).toThrow(
    'dataplane.config.services: found "off", wanted true or false',
  );
  using namespace = createNamespace("aspects");
  for (
    const [config, wanted] of [[undefined, true], [{ services: false }, false], [{ markMask: 0x300 }, false]] as const
  ) {
    await using dataplane = await openDataplane(namespace, config);
    expect(dataplane.capabilities.aspects.has("services")).toBe(wanted);
    await applied(dataplane, desired(services(["tcp 10.96.0.1:80 > 10.0.0.1:80"])));
    expect(kernelText(namespace).includes("services4")).toBe(wanted);
    await dataplane.sweep();
  }
});
