/** Services as rules, walked by the tracer; and as the kernel has them, message by message. */
import { expect, test } from "bun:test";
import { createNamespace } from "../../src/kernel/netns.ts";
import { openNetlink } from "../../src/kernel/netlink/socket.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { random } from "../../src/model/testdata/random_lists.ts";
import { endpoint, frontend, services, someServices } from "../../src/model/testdata/services.ts";
import type { Dataplane, Report } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import {
  dataplaneServiceVerdicts,
  type RenderedServices,
  type ServiceVerdictsSubject,
  serviceWorld,
} from "../../test/contract/dataplane_service_verdicts.ts";
import { parseConfig, thirdBit } from "./config.ts";
import { printRuleset } from "./print.ts";
import { readTable } from "./read.ts";
import { Renderer } from "./render.ts";
import type { Ruleset } from "./ruleset.ts";
import { openDataplane } from "./testdata/open.ts";
import { type TracedPacket, traceHook } from "./trace.ts";

const MASQUERADE_MARK = 0x40000;
const WITHOUT = { logGroup: 86, passedMark: 0x10000, cut: { mark: 0x20000, resets: true } };
const OPTIONS = { ...WITHOUT, services: { masqueradeMark: MASQUERADE_MARK } };

type Memory = NonNullable<TracedPacket["memory"]>;
/** The last of a list of two, as of any even number. */
const CHANCE_OF_LAST = 1;

const traced = (ruleset: Ruleset): RenderedServices<Memory> => ({
  print: () => printRuleset(ruleset),
  fate(packet, inInterface, { picks, isToNode, memory }) {
    const { verdict, dnat, mark, steps } = traceHook(ruleset, inInterface === undefined ? "output" : "prerouting", {
      ...packet,
      random: picks === "last" ? CHANCE_OF_LAST : 0,
      ...inInterface === undefined ? {} : { inInterface },
      ...isToNode === undefined ? {} : { isToNode },
      ...memory === undefined ? {} : { memory },
    });
    if (verdict === "drop") {
      const last = steps.at(-1)!.text;
      return last.includes("tcp reset") ? "reset" : last.includes("icmpx") ? "unreachable" : "drop";
    }
    return dnat === undefined ? "as it is" : { ...dnat, masqueraded: mark === MASQUERADE_MARK };
  },
  leave: (packet, at) => traceHook(ruleset, "postrouting", { ...packet, ...at }),
});

const SUBJECT: ServiceVerdictsSubject<Memory> = {
  renderer({ services }) {
    const renderer = new Renderer(services ? OPTIONS : WITHOUT);
    return (world) => traced(renderer.render(world).ruleset);
  },
  memory: () => new Map(),
  masqueradeMark: MASQUERADE_MARK,
  ours: /^(set|map|chain) service/m,
};

dataplaneServiceVerdicts(SUBJECT);

test("chance gives every backend its share, whatever their number", () => {
  for (const count of [1, 2, 3, 7, 64]) {
    const list = Array.from({ length: count }, (_, i) => `10.0.${i}.1:80`).join(" ");
    const { ruleset } = new Renderer(OPTIONS).render(serviceWorld(services([`tcp 10.96.0.1:80 > ${list}`])));
    const met = new Set(Array.from({ length: count }, (_, i) =>
      traceHook(ruleset, "prerouting", {
        source: endpoint("10.0.0.1:9").address,
        destination: endpoint("10.96.0.1:80").address,
        protocol: 6,
        sourcePort: 9,
        destinationPort: 80,
        state: "new",
        inInterface: "mxa",
        random: i + 64 * 3 * 7,
      }).dnat?.address));
    expect(met.size).toBe(count);
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
    const world = serviceWorld(someServices(random(seed * 104_729)), seed);
    await applied(dataplane, world);
    expect(kernelText(namespace)).toBe(printRuleset(new Renderer(OPTIONS).render(world).ruleset));
    expect((await dataplane.resync()).messages).toBe(0);
    await using next = await openDataplane(namespace);
    expect((await next.apply(world)).messages).toBe(0);
  }
  expect(runIn(namespace, "nft", "list", "table", "inet", "manx")).toContain("map service-backends4 {");
  await applied(dataplane, serviceWorld(undefined, 100));
  expect(kernelText(namespace)).not.toMatch(SUBJECT.ours);
});

test("one service changed is the same few messages at 3 and at 3,000 services", async () => {
  using namespace = createNamespace("incremental");
  await using dataplane = await openDataplane(namespace);
  const costs: number[][] = [];
  for (const count of [3, 3_000]) {
    const before = serviceWorld(services(Array.from(
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
  const world = serviceWorld(services([
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
  expect(thirdBit(0xffff0000)).toBe(MASQUERADE_MARK);
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
    await applied(dataplane, serviceWorld(services(["tcp 10.96.0.1:80 > 10.0.0.1:80"])));
    expect(kernelText(namespace).includes("services4")).toBe(wanted);
    await dataplane.sweep();
  }
});
