import { expect, test } from "bun:test";
import { random, someList, somePacket, someSets } from "./testdata/random_lists.ts";
import {
  address,
  list,
  netSet,
  policy,
  portSet,
  rule,
  rules,
  setId,
  state,
  tier,
  workload,
} from "./testdata/small_states.ts";
import { cidrContains, formatAddress, formatCidr } from "./address.ts";
import type { DesiredHostEndpoint, DesiredState, PolicyList } from "./desired.ts";
import { FlowJudge } from "./flow_judgement.ts";
import { flowScope, releasedAddresses, SetUses, takenAddresses } from "./flow_scope.ts";

const isSealed = (name: string) => name.startsWith("mx");
const peers = { from: { sets: [setId("peers")] } };
const ALLOW_PEERS = rules(rule("allow", peers));
const DENY_PEERS = rules(rule("deny", peers), rule("allow"));
const ALLOW_OTHERS = rules(rule("allow", { from: { notSets: [setId("peers")] } }));
const DENY_OTHERS = rules(rule("deny", { from: { notSets: [setId("peers")] } }), rule("allow"));
const PASS_PEERS = rules(rule("pass", peers), rule("deny"));
const LOG_PEERS = rules(rule("log", peers), rule("allow"));
const STAGED = list([tier("default", "deny", { ...policy("p", rule("allow", peers)), staged: true })]);

const scopeText = (before: DesiredState, after: DesiredState): string => {
  const uses = new SetUses();
  for (const _ of uses.learn(after));
  const { everything, addresses, nets } = flowScope(before, after, uses, isSealed);
  if (everything) return "everything";
  return [...[...addresses].map(formatAddress), ...nets.map(formatCidr)].sort().join(" ");
};

const withPeers = (ingress: PolicyList, ...members: readonly string[]): DesiredState =>
  state({
    sets: [netSet("peers", ...members)],
    workloads: [workload("a", "mxa", ["10.0.0.1", "fd00::1"], { ingress })],
  });

test("a set's change matters where it can make a rule allow less or deny more", () => {
  const cases: readonly (readonly [string, PolicyList, string, string])[] = [
    // What it is used for, then what is looked at when a member leaves, and when one comes.
    ["allow", ALLOW_PEERS, "10.0.0.8", ""],
    ["deny", DENY_PEERS, "", "10.0.0.9"],
    ["allow all but", ALLOW_OTHERS, "", "10.0.0.9"],
    ["deny all but", DENY_OTHERS, "10.0.0.8", ""],
    ["pass", PASS_PEERS, "10.0.0.8", "10.0.0.9"],
    ["log", LOG_PEERS, "", ""],
    ["staged", STAGED, "", ""],
  ];
  for (const [use, ingress, left, came] of cases) {
    const base = withPeers(ingress, "10.0.0.7", "10.0.0.8");
    expect([use, scopeText(base, withSets(base, netSet("peers", "10.0.0.7")))]).toEqual([use, left]);
    expect([use, scopeText(base, withSets(base, netSet("peers", "10.0.0.7", "10.0.0.8", "10.0.0.9")))]).toEqual([
      use,
      came,
    ]);
  }
});

const withSets = (base: DesiredState, ...sets: readonly ReturnType<typeof netSet>[]): DesiredState => ({
  ...base,
  generation: base.generation + 1,
  sets: state({ sets }).sets,
});
const withWorkloads = (base: DesiredState, ...workloads: readonly ReturnType<typeof workload>[]): DesiredState => ({
  ...base,
  generation: base.generation + 1,
  workloads: state({ workloads }).workloads,
});

test("prefixes, named ports, and sets that come and go", () => {
  const base = withPeers(ALLOW_PEERS, "10.0.0.7", "10.8.0.0/16");
  expect(scopeText(base, withSets(base, netSet("peers", "10.0.0.7")))).toBe("10.8.0.0/16");
  expect(scopeText(base, withSets(base))).toBe("10.0.0.7 10.8.0.0/16");
  expect(scopeText(withSets(base), base)).toBe("");
  const named = state({
    sets: [portSet("web", "10.0.0.1 6 8080", "fd00::1 6 8080")],
    workloads: [
      workload("a", "mxa", ["10.0.0.1"], { ingress: rules(rule("allow", { to: { portSets: [setId("web")] } })) }),
    ],
  });
  expect(scopeText(named, withSets(named, portSet("web", "10.0.0.1 6 9090")))).toBe("10.0.0.1 fd00::1");
});

test("a workload matters where its lists, link or addresses changed, and a new one where its link was not sealed", () => {
  const a = workload("a", "mxa", ["10.0.0.1", "fd00::1"]), tap = workload("vm", "tap0", ["10.0.0.5"]);
  const base = state({ workloads: [a, tap] });
  const to = (...workloads: readonly ReturnType<typeof workload>[]) =>
    scopeText(base, withWorkloads(base, ...workloads));
  expect(to(a, tap)).toBe("");
  expect(to({ ...a, mac: "02:00:00:00:00:01" }, tap)).toBe("");
  expect(to({ ...a, ingress: ALLOW_PEERS }, tap)).toBe("10.0.0.1 fd00::1");
  expect(to({ ...a, egress: ALLOW_PEERS }, tap)).toBe("10.0.0.1 fd00::1");
  expect(to({ ...a, interfaceName: "mxb" }, tap)).toBe("10.0.0.1 fd00::1");
  expect(to({ ...a, addresses: [...a.addresses, address("10.0.0.2")] }, tap)).toBe("10.0.0.2");
  expect(to(a, tap, workload("b", "mxb", ["10.0.0.2"]))).toBe("");
  expect(to(a, tap, workload("b", "tap1", ["10.0.0.2"]))).toBe("10.0.0.2");
  expect(to()).toBe("");
});

test("it is everything where host endpoints change, and where very much changes", () => {
  const base = withPeers(ALLOW_PEERS, "10.0.0.7");
  const host: DesiredHostEndpoint = { id: "h", interfaces: ["eth0"], ingress: ALLOW_PEERS, egress: ALLOW_PEERS };
  const hosted: DesiredState = { ...base, hostEndpoints: state({ hostEndpoints: [host] }).hostEndpoints };
  expect(scopeText(base, hosted)).toBe("everything");
  expect(scopeText(hosted, base)).toBe("everything");
  expect(scopeText(hosted, { ...hosted, failsafe: { inbound: [], outbound: [] } })).toBe("everything");
  expect(scopeText(base, { ...base, failsafe: { inbound: [], outbound: [] } })).toBe("");
  const nets = Array.from({ length: 65 }, (_, i) => `10.${i}.0.0/16`);
  expect(scopeText(withPeers(ALLOW_PEERS, ...nets), withSets(withPeers(ALLOW_PEERS, ...nets)))).toBe("everything");
});

test("an address is given up and taken with its workload, with its link, or by itself", () => {
  const a = workload("a", "mxa", ["10.0.0.1", "fd00::1"]);
  const base = state({ workloads: [a, workload("vm", "tap0", ["10.0.0.5"])] });
  const texts = (after: DesiredState) => [
    [...releasedAddresses(base, after, isSealed)].map(formatAddress).sort().join(" "),
    [...takenAddresses(base, after)].map(formatAddress).sort().join(" "),
  ];
  expect(texts(base)).toEqual(["", ""]);
  expect(texts(withWorkloads(base))).toEqual(["10.0.0.1 fd00::1", ""]);
  expect(texts(withWorkloads(base, { ...a, addresses: [address("fd00::1"), address("fd00::2")] }))).toEqual([
    "10.0.0.1",
    "fd00::2",
  ]);
  // The pod was made anew under its name, and another pod has got its address.
  expect(texts(withWorkloads(base, { ...a, interfaceName: "mxc" }))).toEqual(["10.0.0.1 fd00::1", "10.0.0.1 fd00::1"]);
  expect(texts(withWorkloads(base, workload("b", "mxb", ["10.0.0.1"])))).toEqual(["10.0.0.1 fd00::1", "10.0.0.1"]);
  expect([...releasedAddresses(undefined, base, isSealed), ...takenAddresses(undefined, base)]).toEqual([]);
});

test("what it knows of sets is learnt once for each list and policy", () => {
  const uses = new SetUses();
  const base = withPeers(ALLOW_PEERS, "10.0.0.7");
  expect([...uses.learn(base)]).toHaveLength(2);
  expect([...uses.learn(withSets(base, netSet("peers", "10.0.0.9")))]).toHaveLength(0);
  expect(uses.size).toBe(1);
  expect(uses.of(setId("peers"))).toBe(1);
  expect(uses.of(setId("other"))).toBe(0);
});

test("random changes: every flow that was allowed and is denied is in the scope", () => {
  const surroundings = { isNode: () => false, linkTo: () => "eth0" };
  let found = 0, outside = 0;
  for (let seed = 1; seed <= 60; seed++) {
    const r = random(seed * 7919);
    const lists = Array.from({ length: 3 }, () => someList(r, 6));
    const some = () => ({ ingress: r.pick(lists), egress: r.pick(lists) });
    const hosts = ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"];
    const world = () =>
      state({
        workloads: [
          workload("a", "mxa", [hosts[0]!, hosts[2]!], some()),
          workload("b", "mxb", [hosts[1]!, hosts[3]!], some()),
        ],
      });
    const lasting = world();
    const before: DesiredState = { ...lasting, sets: someSets(r) };
    const after: DesiredState = {
      ...r.chance(0.7) ? lasting : world(),
      sets: r.chance(0.8) ? someSets(r) : before.sets,
    };
    const uses = new SetUses();
    for (const _ of uses.learn(after));
    const { everything, addresses, nets } = flowScope(before, after, uses, isSealed);
    expect(everything).toBe(false);
    const was = new FlowJudge(before, surroundings), is = new FlowJudge(after, surroundings);
    for (let i = 0; i < 400; i++) {
      const packet = somePacket(r);
      const { source, destination, protocol, sourcePort, destinationPort, icmp } = packet;
      const original = {
        source,
        destination,
        protocol,
        sourcePort,
        destinationPort,
        icmpType: icmp?.type,
        icmpCode: icmp?.code,
      };
      const flow = {
        original,
        reply: {
          ...original,
          source: destination,
          destination: source,
          sourcePort: destinationPort,
          destinationPort: sourcePort,
        },
      };
      if (was.denies(flow)) continue;
      const isWithin = [source, destination].some((end) =>
        addresses.has(end) || nets.some((net) => cidrContains(net, end))
      );
      if (!isWithin) outside++;
      if (!is.denies(flow)) continue;
      found++;
      expect({ seed, i, isWithin }).toEqual({ seed, i, isWithin: true });
    }
  }
  // Or the test says nothing.
  expect(found).toBeGreaterThan(100);
  expect(outside).toBeGreaterThan(100);
});
