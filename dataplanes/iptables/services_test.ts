/** Services as rules, walked by the tracer. */
import { expect, test } from "bun:test";
import type { Address } from "../../src/model/address.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import type { ServiceState } from "../../src/model/services.ts";
import { endpoint, frontend, services } from "../../src/model/testdata/services.ts";
import {
  dataplaneServiceVerdicts,
  type RenderedServices,
  type ServiceVerdictsSubject,
  serviceWorld,
  walk,
} from "../../test/contract/dataplane_service_verdicts.ts";
import { printRuleset } from "./print.ts";
import { Renderer } from "./render.ts";
import { CHAIN_NAME_MAX_BYTES, type Rule, type Ruleset, type Table } from "./ruleset.ts";
import { SERVICES_CHAIN } from "./services.ts";
import { MARKS, OF_SERVICES, WITH_SERVICES } from "./testdata/with_services.ts";
import { traceHook, tracePath } from "./trace.ts";

/** Sources by the list that remembers them. */
type Memory = Map<string, Set<Address>>;
/** Below one, above any share of a backend. */
const CHANCE_OF_LAST = 0.9999;

const rendered = (of: ServiceState): Ruleset => new Renderer(WITH_SERVICES).render(serviceWorld(of)).ruleset;

const traced = (ruleset: Ruleset): RenderedServices<Memory> => ({
  print: () => printRuleset(ruleset),
  fate(packet, inInterface, { picks, isToNode, memory }) {
    const traces = tracePath(ruleset, {
      packet: {
        ...packet,
        random: () => picks === "last" ? CHANCE_OF_LAST : 0,
        isFromNode: inInterface === undefined,
        ...isToNode === undefined ? {} : { isToNode },
        ...memory === undefined ? {} : { memory },
      },
      inInterface,
      outInterface: "eth9",
    });
    const { verdict, steps } = traces.at(-1)!;
    if (verdict === "drop") {
      const last = steps.at(-1)!.text;
      return last.includes("tcp-reset") ? "reset" : last.includes("REJECT") ? "unreachable" : "drop";
    }
    const dnat = traces.find((trace) => trace.dnat !== undefined)?.dnat;
    return dnat === undefined ? "as it is" : { ...dnat, masqueraded: traces.some((trace) => trace.masqueraded) };
  },
  leave: (packet, { outInterface, ...at }) => traceHook(ruleset, "postrouting", { ...packet, ...at, outInterface }),
});

const SUBJECT: ServiceVerdictsSubject<Memory> = {
  renderer({ services }) {
    const renderer = new Renderer(services ? WITH_SERVICES : { ...WITH_SERVICES, services: undefined });
    return (world) => traced(renderer.render(world).ruleset);
  },
  memory: () => new Map(),
  masqueradeMark: MARKS.masquerade,
  ours: OF_SERVICES,
};

dataplaneServiceVerdicts(SUBJECT);

test("what a pod forges is dropped before any service, what a service refuses after them all", () => {
  const of = services(["tcp 10.96.0.1:80 > reject", "tcp 10.96.0.2:80 > drop", "tcp 10.96.0.3:80 > 10.0.0.2:80"]);
  const way = (from: string, to: string) =>
    tracePath(rendered(of), {
      packet: {
        source: endpoint(from).address,
        destination: endpoint(to).address,
        protocol: PROTOCOLS.TCP,
        sourcePort: 1000,
        destinationPort: 80,
        state: "new",
      },
      inInterface: "mxa",
      outInterface: "eth9",
    }).map(({ hook, verdict }) => `${hook} ${verdict}`);
  expect(way("10.0.0.9:1000", "10.96.0.3:80")).toEqual(["prerouting drop"]);
  expect(way("10.0.0.1:1000", "10.96.0.1:80")).toEqual(["prerouting accept", "forward drop"]);
  expect(way("10.0.0.1:1000", "10.96.0.2:80")).toEqual(["prerouting accept", "forward drop"]);
});

test("each backend of clients that stay has a list of its own", () => {
  const { tables } = rendered(services(["tcp 10.96.0.1:80 > 10.0.0.1:80 10.0.0.2:80 | affinity 60"]));
  const lists = tables.flatMap(({ chains }) => [...chains.values()].flat()).flatMap(({ matches }) => matches)
    .flatMap((match) => match.match === "remember" ? [match.list] : []);
  expect(new Set(lists).size).toBe(2);
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
  const there = traced(ruleset);
  for (const { chains } of chainsOf(ruleset)) {
    for (const [name, rules] of chains) {
      expect(name.length).toBeLessThanOrEqual(CHAIN_NAME_MAX_BYTES);
      expect(rules.length).toBeLessThanOrEqual(32);
    }
  }
  for (const i of [0, 1, 255, 256, 1_777, 2_999]) {
    const low = `${i >> 8}.${i & 255}`;
    expect(walk(there, `eth0 tcp 203.0.113.1:9 > 10.96.${low}:80`)).toBe(`10.1.${low} 80`);
    expect(walk(there, `eth0 udp 203.0.113.1:9 > 10.97.0.1:${i + 1}`)).toBe(`10.2.${low} 53`);
    expect(walk(there, `eth0 tcp 203.0.113.1:9 > 192.0.2.7:${30_000 + i}`, { isToNode: true })).toBe(
      `10.3.${low} 80`,
    );
    expect(walk(there, `eth0 tcp [2001:db8::1]:9 > [fd96::${i.toString(16)}]:80`)).toBe(
      `fd01::${(i + 1).toString(16)} 80`,
    );
  }
  expect(walk(there, "eth0 tcp 203.0.113.1:9 > 10.96.12.1:80")).toBe("as it is");
  expect(walk(there, "eth0 tcp 203.0.113.1:9 > 192.0.2.7:33000", { isToNode: true })).toBe("as it is");
});

test("one service changed makes few chains anew, at 30 and at 3,000 services", () => {
  const changed = [30, 3_000].map((count) => {
    const renderer = new Renderer(WITH_SERVICES);
    const of = services(Array.from(
      { length: count },
      (_, i) => `tcp 10.96.${i >> 8}.${i & 255}:80 > 10.1.${i >> 8}.${i & 255}:80 10.2.${i >> 8}.${i & 255}:80`,
    ));
    const before = renderer.render(serviceWorld(of)).ruleset;
    const one = frontend("tcp 10.96.0.1:80 > 10.1.0.1:80 10.2.9.9:80");
    const after = renderer.render(serviceWorld({ ...of, frontends: of.frontends.set(one.key, one) }, 2)).ruleset;
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
