import { expect, test } from "bun:test";
import { parseAddress } from "../../src/model/address.ts";
import type { DesiredState, PolicyList } from "../../src/model/desired.ts";
import { persistentMap } from "../../src/model/persistent_map.ts";
import { ConfigError } from "../../src/sdk/errors.ts";
import plugin, { openMemory } from "./mod.ts";

const closed: PolicyList = { id: "closed", tiers: [], profiles: [], end: "deny" };
const open: PolicyList = {
  id: "open",
  tiers: [],
  profiles: [{
    id: "profile",
    staged: false,
    rules: [{
      action: "allow",
      source: {},
      destination: {},
      origin: { policy: "profile", direction: "ingress", index: 0 },
    }],
  }],
  end: "deny",
};

function stateWith(generation: number, ingress: PolicyList): DesiredState {
  const address = parseAddress("10.0.0.1");
  return {
    generation,
    sets: persistentMap(),
    workloads: persistentMap([["a", { id: "a", interfaceName: "if-a", addresses: [address], ingress, egress: open }]]),
    hostEndpoints: persistentMap(),
    failsafe: { inbound: [], outbound: [] },
    masquerade: { sources: [], inside: [] },
  };
}

const PATH = {
  packet: {
    protocol: 6,
    source: parseAddress("192.0.2.1"),
    destination: parseAddress("10.0.0.1"),
    sourcePort: 1,
    destinationPort: 80,
  },
  inInterface: "eth0",
  outInterface: "if-a",
};

test("what was applied last is in force, and a repeated apply has nothing to do", async () => {
  await using dataplane = openMemory();
  expect(dataplane.verdict(PATH).verdict).toBe("allow");
  const shut = stateWith(1, closed);
  expect(await dataplane.apply(shut)).toMatchObject({ generation: 1, converged: true, problems: [] });
  expect(dataplane.verdict(PATH).verdict).toBe("deny");
  expect((await dataplane.apply(shut)).messages).toBe(0);
  expect((await dataplane.resync()).messages).toBe(0);
  expect((await dataplane.apply({ ...shut, generation: 2, workloads: stateWith(2, open).workloads })).messages).toBe(1);
  expect(dataplane.verdict(PATH).verdict).toBe("allow");
  expect(dataplane.applied?.generation).toBe(2);
});

test("sweep leaves nothing in force and is repeatable", async () => {
  await using dataplane = openMemory();
  await dataplane.apply(stateWith(1, closed));
  expect((await dataplane.sweep()).messages).toBe(1);
  expect(dataplane.verdict(PATH)).toEqual({ verdict: "allow", steps: [] });
  expect((await dataplane.sweep()).messages).toBe(0);
});

test("decisions are counted, and what staged policies would have decided, as long as their list is in force", async () => {
  await using dataplane = openMemory();
  const [rule] = open.profiles[0]!.rules;
  const staged = { id: "staged", staged: true, rules: [{ ...rule!, action: "deny" as const }] };
  const list: PolicyList = { ...open, id: "staged", tiers: [{ name: "t", defaultAction: "pass", policies: [staged] }] };
  await dataplane.apply(stateWith(1, list));
  expect(await dataplane.counts(list)).toEqual([]);
  for (let i = 0; i < 3; i++) dataplane.verdict(PATH);
  expect(await dataplane.counts(list)).toEqual([
    { decisions: [{ by: "rule", policy: "profile", origin: rule!.origin }], packets: 3, bytes: 0 },
    {
      decisions: [{ by: "rule", tier: "t", policy: "staged", origin: rule!.origin, staged: true }],
      packets: 3,
      bytes: 0,
    },
  ]);
  await dataplane.apply(stateWith(2, list));
  expect((await dataplane.counts(list)).length).toBe(2);
  await dataplane.apply(stateWith(3, open));
  expect(await dataplane.counts(list)).toEqual([]);
});

test("drift ends with its signal and never yields", async () => {
  const stop = new AbortController();
  const seen = (async () => {
    const all: string[] = [];
    for await (const line of openMemory().drift(stop.signal)) all.push(line);
    return all;
  })();
  stop.abort();
  expect(await seen).toEqual([]);
  for await (const _ of openMemory().drift(stop.signal)) throw new Error("an aborted drift yielded");
});

test("settings are refused by key, none are taken", () => {
  expect(plugin.parseConfig(undefined)).toBeUndefined();
  expect(plugin.parseConfig({})).toBeUndefined();
  expect(() => plugin.parseConfig({ size: 1 })).toThrow(ConfigError);
  expect(() => plugin.parseConfig({ size: 1 })).toThrow("dataplane.config.size");
  expect(() => plugin.parseConfig([])).toThrow(ConfigError);
});
