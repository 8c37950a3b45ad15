/** Services in small worlds, as text; and what one change costs in a large one. */
import { expect, test } from "bun:test";
import { addressFamily, addressFromBigInt, parseAddress, parseCidr } from "../model/address.ts";
import type { Family } from "../model/address.ts";
import type { NodeObject, ServiceBackend, ServiceBackendsObject, ServiceObject, WorldChange } from "../model/world.ts";
import { createCalc, DEFAULT_FAILSAFE } from "./mod.ts";
import { frontendText } from "./testing/services_text.ts";

const newCalc = () => createCalc({ node: "n1", failsafe: DEFAULT_FAILSAFE, services: { nodePortAddresses: [] } });

const change = (object: ServiceObject | ServiceBackendsObject | NodeObject): WorldChange => ({
  origin: `${object.kind} ${object.id}`,
  objects: [object],
});
const service = (parts: Partial<ServiceObject> = {}, name = "web"): WorldChange =>
  change({
    kind: "service",
    id: `default/${name}`,
    namespace: "default",
    name,
    clusterAddresses: [parseAddress("10.96.0.1")],
    externalAddresses: [],
    loadBalancerAddresses: [],
    ports: [{ name: "http", protocol: 6, port: 80 }],
    internalLocal: false,
    externalLocal: false,
    ...parts,
  });
const CONDITIONS = {
  "": { ready: true, serving: true, terminating: false },
  "!": { ready: false, serving: false, terminating: false },
  "~": { ready: false, serving: true, terminating: true },
  "-": { ready: false, serving: false, terminating: true },
} as const;
/** `10.0.0.1@n1`; then `!` not ready, `~` terminating but serving, `-` terminating; `east` or `n1` = its hints. */
function endpoint(text: string): ServiceBackend {
  const [, address, node, mark, hints] = /^([^@\s]+?)(?:@(\w+))?([!~-]?)(?: (.*))?$/.exec(text)!;
  const named = hints?.split(" ") ?? [];
  return {
    address: parseAddress(address!),
    node,
    ...CONDITIONS[mark as keyof typeof CONDITIONS],
    forZones: named.filter((hint) => !/^n\d/.test(hint)).length > 0
      ? named.filter((hint) => !/^n\d/.test(hint))
      : undefined,
    forNodes: named.some((hint) => /^n\d/.test(hint)) ? named.filter((hint) => /^n\d/.test(hint)) : undefined,
  };
}
const slice = (endpoints: readonly string[], parts: Partial<ServiceBackendsObject> = {}): WorldChange => {
  const backends = endpoints.map(endpoint);
  const family: Family = backends[0] === undefined ? 4 : addressFamily(backends[0].address);
  const ports = [{ name: "http", protocol: 6, port: 8080 }];
  return change({ kind: "serviceBackends", id: "web-1", service: "default/web", family, ports, backends, ...parts });
};
const node = (zone: string | undefined): WorldChange =>
  change({
    kind: "node",
    id: "n1",
    addresses: [],
    labels: new Map(zone === undefined ? [] : [["topology.kubernetes.io/zone", zone]]),
  });

function textOf(...changes: readonly WorldChange[]): readonly string[] {
  const { services } = newCalc().step(changes).desired;
  return [...services!.frontends.values()].map(frontendText).sort();
}

/** What stands behind the cluster address, and behind the node port. */
function backendsOf(parts: Partial<ServiceObject>, ...rest: readonly WorldChange[]): readonly string[] {
  const ports = [{ name: "http", protocol: 6, port: 80, nodePort: 30080 }];
  return textOf(service({ ...parts, ports }), ...rest).map((line) => line.slice(line.indexOf(": ") + 2));
}

const LOCAL = { internalLocal: true, externalLocal: true };

test.each([
  ["ready ones", ["10.0.0.2@n2", "10.0.0.1@n1"], "(10.0.0.1:8080 10.0.0.2:8080)"],
  ["those not ready are left out", ["10.0.0.1@n1!", "10.0.0.2@n2"], "(10.0.0.2:8080)"],
  [
    "those that terminate drain",
    ["10.0.0.1@n1", "10.0.0.2@n2~", "10.0.0.3@n2-"],
    "(10.0.0.1:8080 10.0.0.2:8080~ 10.0.0.3:8080~)",
  ],
  [
    "none ready: those that serve to the end",
    ["10.0.0.1@n1!", "10.0.0.2@n2~", "10.0.0.3-"],
    "(10.0.0.2:8080 10.0.0.3:8080~)",
  ],
  ["none at all", [], "reject ()"],
  ["none that could serve", ["10.0.0.1@n1!", "10.0.0.2@n1-"], "reject (10.0.0.2:8080~)"],
])("backends of traffic policy Cluster: %s", (_, endpoints, wanted) => {
  expect(backendsOf({}, slice(endpoints))).toEqual([wanted, `${wanted} masquerade`]);
});

test.each([
  [
    "those here",
    ["10.0.0.1@n1", "10.0.0.2@n2"],
    "(10.0.0.1:8080)",
    "(10.0.0.1:8080 10.0.0.2:8080) outside (10.0.0.1:8080)",
  ],
  ["all are here", ["10.0.0.1@n1"], "(10.0.0.1:8080)", "(10.0.0.1:8080)"],
  ["all are elsewhere", ["10.0.0.2@n2", "10.0.0.3"], "drop ()", "(10.0.0.2:8080 10.0.0.3:8080) outside drop ()"],
  ["none", [], "reject ()", "reject ()"],
  [
    "here one terminates, elsewhere one is ready",
    ["10.0.0.1@n1~", "10.0.0.2@n2"],
    "(10.0.0.1:8080)",
    "(10.0.0.1:8080~ 10.0.0.2:8080) outside (10.0.0.1:8080)",
  ],
  [
    "here one ends without serving",
    ["10.0.0.1@n1-", "10.0.0.2@n2"],
    "drop (10.0.0.1:8080~)",
    "(10.0.0.1:8080~ 10.0.0.2:8080) outside drop (10.0.0.1:8080~)",
  ],
])("backends of traffic policy Local: %s", (_, endpoints, cluster, nodePort) => {
  expect(backendsOf(LOCAL, slice(endpoints))).toEqual([cluster, nodePort]);
});

test.each([
  [
    "every endpoint has one",
    "east",
    ["10.0.0.1 east", "10.0.0.2 west", "10.0.0.3 east west"],
    "(10.0.0.1:8080 10.0.0.3:8080)",
  ],
  ["one has none", "east", ["10.0.0.1 east", "10.0.0.2"], "(10.0.0.1:8080 10.0.0.2:8080)"],
  ["one that is not ready has none", "east", ["10.0.0.1 east", "10.0.0.2!", "10.0.0.3 west"], "(10.0.0.1:8080)"],
  ["no one names this zone", "north", ["10.0.0.1 east", "10.0.0.2 west"], "(10.0.0.1:8080 10.0.0.2:8080)"],
  ["this zone is not known", undefined, ["10.0.0.1 east", "10.0.0.2 west"], "(10.0.0.1:8080 10.0.0.2:8080)"],
  ["none is ready", "east", ["10.0.0.1~ east", "10.0.0.2~ west"], "(10.0.0.1:8080 10.0.0.2:8080)"],
  ["for this node before this zone", "east", ["10.0.0.1 east n1", "10.0.0.2 east n2"], "(10.0.0.1:8080)"],
  ["for other nodes", "east", ["10.0.0.1 east n2", "10.0.0.2 west n2"], "(10.0.0.1:8080)"],
])("topology hints: %s", (_, zone, endpoints, wanted) => {
  expect(backendsOf({}, node(zone), slice(endpoints))).toEqual([wanted, `${wanted} masquerade`]);
});

test("traffic policy Local asks for no hints", () => {
  expect(backendsOf(LOCAL, node("east"), slice(["10.0.0.1@n1 west", "10.0.0.2@n2 east"]))).toEqual([
    "(10.0.0.1:8080)",
    "(10.0.0.2:8080) outside (10.0.0.1:8080)",
  ]);
});

test("a service has frontends of each family that it has a cluster address of", () => {
  const dual = {
    clusterAddresses: ["10.96.0.1", "fd00:96::1"].map(parseAddress),
    externalAddresses: ["192.0.2.1"].map(parseAddress),
    loadBalancerAddresses: ["192.0.2.9", "2001:db8::9"].map(parseAddress),
    ports: [{ name: "http", protocol: 6, port: 80, nodePort: 30080 }],
    affinitySeconds: 10_800,
  };
  const slices = [slice(["10.0.0.1@n1"]), slice(["fd00::1@n1"], { id: "web-2" })];
  const lines = textOf(service(dual), ...slices);
  expect(lines).toEqual([
    "cluster 10.96.0.1 6/80 default/web:http: (10.0.0.1:8080) stays 10800",
    "cluster fd00:96::1 6/80 default/web:http: (fd00::1:8080) stays 10800",
    "external 192.0.2.1 6/80 default/web:http: (10.0.0.1:8080) masquerade stays 10800",
    "external 192.0.2.9 6/80 default/web:http: (10.0.0.1:8080) masquerade stays 10800",
    "external 2001:db8::9 6/80 default/web:http: (fd00::1:8080) masquerade stays 10800",
    "node node4 6/30080 default/web:http: (10.0.0.1:8080) masquerade stays 10800",
    "node node6 6/30080 default/web:http: (fd00::1:8080) masquerade stays 10800",
  ]);
  expect(textOf(service({ ...dual, clusterAddresses: dual.clusterAddresses.slice(0, 1) }), ...slices)).toEqual(
    lines.filter((line) => !/fd00|2001|node6/.test(line)),
  );
  expect(textOf(service({ ...dual, clusterAddresses: [] }), ...slices)).toEqual([]);
  expect(textOf(service({ ...dual, proxiedElsewhere: true }), ...slices)).toEqual([]);
});

test("an endpoint that is said to be here now changes what outside has, and nothing for those inside", () => {
  const ports = [{ name: "http", protocol: 6, port: 80, nodePort: 30080 }];
  const calc = newCalc();
  const nodePort = () => [...calc.current.desired.services!.frontends.values()].find(({ scope }) => scope === "node")!;
  calc.step([service({ ports, externalLocal: true }), slice(["10.0.0.1@n2", "10.0.0.2@n1"])]);
  const before = nodePort();
  calc.step([slice(["10.0.0.1@n1", "10.0.0.2@n2"])]);
  expect(nodePort().backends).toBe(before.backends);
  expect(frontendText(nodePort())).toEndWith("outside (10.0.0.1:8080)");
});

test("frontends with equal backends share one list", () => {
  const ports = [{ name: "http", protocol: 6, port: 80, nodePort: 30080 }];
  const { frontends } = newCalc().step([service({ ports }), slice(["10.0.0.1@n1"])]).desired.services!;
  const lists = new Set([...frontends.values()].map(({ backends }) => backends));
  expect([frontends.size, lists.size]).toEqual([2, 1]);
});

test("a port finds its endpoints by name and protocol, in every slice; slices name their own numbers", () => {
  const ports = [{ name: "dns", protocol: 17, port: 53 }, { name: "dns-tcp", protocol: 6, port: 53 }];
  const slices = [
    slice(["10.0.0.1"], {
      ports: [{ name: "dns", protocol: 17, port: 5353 }, { name: "dns-tcp", protocol: 17, port: 1 }],
    }),
    slice(["10.0.0.2"], {
      id: "web-2",
      ports: [{ name: "dns", protocol: 17, port: 53 }, { name: "other", protocol: 6, port: 53 }],
    }),
    slice(["10.0.0.3"], { id: "web-3", service: "default/other" }),
  ];
  expect(textOf(service({ ports }), ...slices)).toEqual([
    "cluster 10.96.0.1 17/53 default/web:dns: (10.0.0.1:5353 10.0.0.2:53)",
    "cluster 10.96.0.1 6/53 default/web:dns-tcp: reject ()",
  ]);
});

test("an endpoint in two slices is the better of the two, whichever came first", () => {
  const slices = [slice(["10.0.0.1~"]), slice(["10.0.0.1@n1"], { id: "web-2" })];
  for (const order of [slices, slices.toReversed()]) {
    expect(backendsOf({ internalLocal: true }, ...order)[0]).toBe("(10.0.0.1:8080)");
  }
});

test("source ranges hold for load balancer addresses, and let in nobody of a family that they do not name", () => {
  const parts = {
    clusterAddresses: ["10.96.0.1", "fd00:96::1"].map(parseAddress),
    externalAddresses: ["192.0.2.1", "192.0.2.9"].map(parseAddress),
    loadBalancerAddresses: ["192.0.2.9", "2001:db8::9"].map(parseAddress),
  };
  const external = (...ranges: readonly string[]) =>
    textOf(service({ ...parts, sourceRanges: ranges.map(parseCidr) })).filter((line) => line.startsWith("ext"))
      .map((line) => line.replace(/ 6\/80 .* masquerade/, ""));
  expect(external("203.0.113.0/24", "198.51.100.7/32", "203.0.113.0/24")).toEqual([
    "external 192.0.2.1",
    "external 192.0.2.9 from [198.51.100.7/32,203.0.113.0/24]",
    "external 2001:db8::9 from []",
  ]);
  expect(external("0.0.0.0/0", "203.0.113.0/24", "2001:db8:1::/48")).toEqual([
    "external 192.0.2.1",
    "external 192.0.2.9",
    "external 2001:db8::9 from [2001:db8:1::/48]",
  ]);
});

test("what two services want the older has, then the first by name; a cluster address is always its own service's", () => {
  const external = { externalAddresses: [parseAddress("192.0.2.1")] };
  const other = { clusterAddresses: [parseAddress("10.96.0.2")] };
  const calc = newCalc();
  const holder = () =>
    [...calc.current.desired.services!.frontends.values()].find(({ scope }) => scope === "external")?.title;
  calc.step([service({ ...external, createdMs: 2 }, "b")]);
  expect([holder(), calc.problems()]).toEqual(["default/b:http", []]);
  calc.step([service({ ...external, ...other, createdMs: 3 }, "a")]);
  expect(holder()).toBe("default/b:http");
  expect(calc.problems()).toEqual([{
    subject: { kind: "Service", namespace: "default", name: "a" },
    path: "",
    message: "found 192.0.2.1 TCP port 80 to be of the service default/b already, wanted one that is nobody else's",
    effect: "ignored",
  }]);
  calc.step([service({ ...external, ...other, createdMs: 2 }, "a")]);
  expect(holder()).toBe("default/a:http");
  expect(calc.problems().map(({ subject }) => subject.name)).toEqual(["b"]);
  calc.step([{ origin: "service default/a", objects: [] }]);
  expect([holder(), calc.problems()]).toEqual(["default/b:http", []]);
  // An older service that points an external address at somebody's cluster address has nothing of it.
  calc.step([
    service({
      clusterAddresses: [parseAddress("10.96.0.9")],
      externalAddresses: [parseAddress("10.96.0.1")],
      createdMs: 1,
    }, "thief"),
  ]);
  expect(calc.problems().map(({ subject, message }) => `${subject.name} ${message.slice(0, 30)}`)).toEqual([
    "thief found 10.96.0.1 TCP port 80 to",
  ]);
});

test("node ports and health check ports that two services want are named as such", () => {
  const parts = {
    externalLocal: true,
    healthCheckNodePort: 32000,
    ports: [{ name: "http", protocol: 6, port: 80, nodePort: 30080 }],
  };
  const calc = newCalc();
  calc.step([service(parts, "a"), service({ ...parts, clusterAddresses: [parseAddress("10.96.0.2")] }, "b")]);
  expect(calc.problems().map(({ subject, message }) => `${subject.name}: ${message.split(" to be")[0]}`)).toEqual([
    "b: found health check node port 32000",
    "b: found node port TCP 30080 (IPv4)",
  ]);
});

test("a health check counts the ready endpoints here, a pod of two families once", () => {
  const calc = newCalc();
  const checks = () => [...calc.current.desired.services!.healthChecks.values()];
  calc.step([service({ externalLocal: true, healthCheckNodePort: 32000 })]);
  expect(checks()).toEqual([{ port: 32000, service: "default/web", localEndpoints: 0 }]);
  calc.step([
    slice(["10.0.0.1@n1", "10.0.0.2@n1~", "10.0.0.3@n2"]),
    slice(["fd00::1@n1", "fd00::2@n1"], { id: "web-2" }),
    slice(["10.0.0.1@n1"], { id: "web-3" }),
  ]);
  expect(checks()[0]?.localEndpoints).toBe(2);
  calc.step([service()]);
  expect(checks()).toEqual([]);
});

test("pods are where pools are", () => {
  const calc = newCalc();
  const pool = (id: string, cidr: string, natOutgoing: boolean): WorldChange => ({
    origin: id,
    objects: [{ kind: "pool", id, cidr: parseCidr(cidr), natOutgoing }],
  });
  const nets = () => calc.current.desired.services!.podNets;
  calc.step([pool("a", "10.0.0.0/16", true), pool("b", "fd00::/64", false)]);
  const before = nets();
  expect(before).toEqual(["10.0.0.0/16", "fd00::/64"].map(parseCidr));
  calc.step([pool("a", "10.0.0.0/16", false)]);
  expect(nets()).toBe(before);
});

const MANY = 10_000;
const at = (net: bigint, i: number) => addressFromBigInt((net << 24n) + BigInt(i), 4);
const hinted = (i: number) => i < 10 ? { forZones: ["east"] } : {};
const large = (i: number): WorldChange[] => [
  service({ clusterAddresses: [at(11n, i)] }, `s${i}`),
  slice([], {
    id: `s${i}-x`,
    service: `default/s${i}`,
    backends: [2 * i, 2 * i + 1].map((n) => ({ address: at(10n, n), ...CONDITIONS[""], ...hinted(i) })),
  }),
];

test("one change of many services costs the frontends of its service, and nothing of the others'", () => {
  const calc = newCalc();
  calc.step(Array.from({ length: MANY }, (_, i) => large(i)).flat());
  expect(calc.work.frontends).toBe(MANY);
  const cost = (...changes: readonly WorldChange[]) => {
    const { frontends } = calc.current.desired.services!, before = calc.work.frontends;
    calc.step(changes);
    const changed = [...calc.current.desired.services!.frontends.changesSince(frontends)].length;
    return { built: calc.work.frontends - before, changed };
  };
  const [service7, slice7] = large(7) as [WorldChange, WorldChange];
  const [object] = slice7.objects as [ServiceBackendsObject];
  expect(cost({ ...slice7, objects: [{ ...object, backends: object.backends.slice(1) }] })).toEqual({
    built: 1,
    changed: 1,
  });
  expect(cost(slice7)).toEqual({ built: 1, changed: 1 });
  expect(cost(structuredClone(slice7))).toEqual({ built: 1, changed: 0 });
  expect(cost({ origin: service7.origin, objects: [] })).toEqual({ built: 0, changed: 1 });
  expect(cost(service7)).toEqual({ built: 1, changed: 1 });
  expect(cost(node("west"))).toEqual({ built: 10, changed: 0 });
  expect(cost(node("west"))).toEqual({ built: 0, changed: 0 });
  expect(
    cost({ origin: "pool", objects: [{ kind: "pool", id: "p", cidr: parseCidr("10.0.0.0/8"), natOutgoing: true }] }),
  )
    .toEqual({ built: 0, changed: 0 });
});
