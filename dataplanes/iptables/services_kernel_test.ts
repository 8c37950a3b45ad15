/** Services as the kernel and the real tools have them, each test in a network namespace of its own. */
import { afterAll, expect, test } from "bun:test";
import { type Address, formatAddress } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { random } from "../../src/model/testdata/random_lists.ts";
import { frontend, services, someServices } from "../../src/model/testdata/services.ts";
import { createNamespace } from "../../src/kernel/netns.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { openXtables } from "../../src/kernel/xtables.ts";
import type { Dataplane, Report } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { serviceWorld } from "../../test/contract/dataplane_service_verdicts.ts";
import { parseConfig, serviceMarks } from "./config.ts";
import { readTable } from "./legacy.ts";
import { printRule } from "./print.ts";
import { Renderer } from "./render.ts";
import { servicePlaces } from "./services_places.ts";
import { openDataplane } from "./testdata/open.ts";
import { iptables, removeLocks, restore, save, tool } from "./testdata/tools.ts";
import { MARKS, OF_SERVICES, WITH_SERVICES } from "./testdata/with_services.ts";

afterAll(removeLocks);

const applied = async (dataplane: Dataplane, world: DesiredState): Promise<Report> => {
  const report = await dataplane.apply(world);
  expect(report.problems).toEqual([]);
  return report;
};
const wantedLines = (world: DesiredState, family: 4 | 6): readonly string[] =>
  new Renderer(WITH_SERVICES).render(world).ruleset.tables.filter((table) => table.family === family)
    .flatMap(({ chains, hooks }) => [
      ...[...hooks].map(([hook, chain]) => `-A ${hook} -j ${chain}`),
      ...[...chains].flatMap(([name, rules]) => rules.map((one) => `-A ${name} ${printRule(one, family)}`)),
    ]).sort();
const foundLines = (namespace: NetworkNamespace, family: 4 | 6): readonly string[] =>
  save(namespace, family).split("\n").filter((line) => line.startsWith("-A ") && line.includes("manx-")).sort();

test(
  "whatever services there are, the real tools show them, take them back, and the next process finds its own",
  async () => {
    using namespace = createNamespace("services");
    await using dataplane = await openDataplane(namespace);
    for (let seed = 1; seed <= 12; seed++) {
      const world = serviceWorld(someServices(random(seed * 104_729), seed % 3 === 0 ? 60 : 6), seed);
      await applied(dataplane, world);
      for (const family of [4, 6] as const) {
        expect(foundLines(namespace, family)).toEqual(wantedLines(world, family));
      }
      expect(await dataplane.diff!()).toEqual([]);
      expect((await dataplane.resync()).messages).toBe(0);
      await using next = await openDataplane(namespace);
      expect((await next.apply(world)).messages).toBe(0);
      if (seed % 4 !== 0) continue;
      using copy = createNamespace("copy");
      tool(copy, ["ipset", "restore"], runIn(namespace, "ipset", "save"));
      for (const family of [4, 6] as const) {
        restore(copy, family, save(namespace, family));
        expect(foundLines(copy, family)).toEqual(foundLines(namespace, family));
      }
      await using there = await openDataplane(copy);
      expect((await there.apply(world)).messages).toBe(0);
    }
    await applied(dataplane, serviceWorld(undefined, 100));
    for (const family of [4, 6] as const) expect(save(namespace, family)).not.toMatch(OF_SERVICES);
  },
  60_000,
);

test("what strangers do to services is told, mended, and is nothing to them afterwards", async () => {
  using namespace = createNamespace("drift");
  iptables(namespace, 4, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "81", "-j", "REDIRECT");
  await using dataplane = await openDataplane(namespace);
  const world = serviceWorld(services([
    "tcp 10.96.0.1:80 > 10.0.0.1:80 10.0.0.2:80 | affinity 60",
    "tcp 10.96.0.2:80 > 10.0.0.1:80 10.0.0.2:80",
    "tcp 10.96.0.3:80 > 10.0.0.1:80 | scope external | sources 10.0.0.0/8 192.0.2.0/24",
  ]));
  await applied(dataplane, world);
  const whole = save(namespace, 4);
  for (
    const harm of [
      "iptables-legacy -t nat -F manx-services",
      "iptables-legacy -t nat -D PREROUTING -j manx-services",
      "iptables-legacy -t nat -I OUTPUT -j manx-services",
      "iptables-legacy -t nat -D manx-services 1",
      "ipset list -n | grep manx-4n | while read set; do ipset flush $set; done",
    ]
  ) {
    runIn(namespace, "sh", "-ec", `export XTABLES_LOCKFILE=/dev/null; ${harm}`);
    expect((await dataplane.diff!()).length).toBeGreaterThan(0);
    expect((await dataplane.resync()).messages).toBeGreaterThan(0);
    expect(save(namespace, 4)).toBe(whole);
  }
  expect((await dataplane.sweep()).problems).toEqual([]);
  expect(save(namespace, 4).split("\n").filter((line) => line.startsWith("-A "))).toEqual([
    "-A PREROUTING -p tcp -m tcp --dport 81 -j REDIRECT",
  ]);
  expect(runIn(namespace, "ipset", "list", "-n")).toBe("");
});

test("the UDP services of a table are found in its bytes", async () => {
  using namespace = createNamespace("places");
  await using dataplane = await openDataplane(namespace);
  const many = Array.from({ length: 40 }, (_, i) => [
    `udp 10.96.0.${i}:53 > 10.0.0.1:53 10.0.0.2:53`,
    `udp node4:${30_000 + 7 * i} > 10.0.0.1:53 | masquerade`,
    `udp [fd96::${i}]:53 > [fd00::1]:53 | affinity 5`,
    `udp node6:${30_000 + i} > reject`,
    `tcp 10.96.0.${i}:53 > 10.0.0.1:53`,
  ]).flat();
  for (const lines of [many, many.slice(0, 5), []]) {
    await applied(dataplane, serviceWorld(services(lines)));
    for (const family of [4, 6] as const) {
      using socket = openXtables(family, namespace);
      const text = ({ address, port }: { address?: Address | undefined; port: number }) =>
        `${address === undefined ? "node" : formatAddress(address)} ${port}`;
      const found = servicePlaces(family, readTable(socket, family, "nat").chains).map(text);
      const wanted = lines.map(frontend).filter((one) => one.family === family && one.protocol === PROTOCOLS.UDP).map(
        text,
      );
      expect([...new Set(found)].sort()).toEqual(wanted.sort());
    }
  }
});

test("services are an aspect where the mark mask and the configuration allow", async () => {
  expect(MARKS).toEqual({ masquerade: 0x40000, refuse: 0x80000, drop: 0x100000 });
  expect(serviceMarks(0xf0000)).toBeUndefined();
  expect(() => parseConfig({ services: "off" })).toThrow(
    'dataplane.config.services: found "off", wanted true or false',
  );
  using namespace = createNamespace("aspects");
  for (const [config, wanted] of [[{}, true], [{ services: false }, false], [{ markMask: 0x300 }, false]] as const) {
    await using dataplane = await openDataplane(namespace, config);
    expect(dataplane.capabilities.aspects.has("services")).toBe(wanted);
    await applied(dataplane, serviceWorld(services(["tcp 10.96.0.1:80 > 10.0.0.1:80"])));
    expect(save(namespace, 4).includes("manx-services")).toBe(wanted);
    await dataplane.sweep();
  }
});
