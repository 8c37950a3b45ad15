import { addressFamily, parseAddress, parseCidr } from "../../model/address.ts";
import type { NamedPort } from "../../model/ports.ts";
import type { ServiceBackend, WorldChange, WorldObject } from "../../model/world.ts";
import type { Random } from "./random_world.ts";

const SERVICES = ["default/a", "default/b", "prod/a", "prod/c"];
const NODES = ["n1", "n1", "n2", undefined];
const ZONES = ["east", "west"];
const CLUSTER = ["10.96.0.1", "10.96.0.2", "10.96.0.3", "fd00:96::1", "fd00:96::2"].map(parseAddress);
// One of them is a cluster address of somebody, perhaps.
const EXTERNAL = ["192.0.2.1", "192.0.2.2", "10.96.0.1", "2001:db8::1"].map(parseAddress);
const BACKENDS = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "fd00::1", "fd00::2", "fd00::3"].map(parseAddress);
const RANGES = ["198.51.100.0/24", "203.0.113.7/32", "0.0.0.0/0", "2001:db8:1::/48"].map(parseCidr);
const PORTS: readonly NamedPort[] = [
  { name: "http", protocol: 6, port: 8080 },
  { name: "http", protocol: 6, port: 8081 },
  { name: "dns", protocol: 17, port: 53 },
  { name: "", protocol: 6, port: 80 },
];

/** A change of a world of few services, which meet in addresses, ports and endpoints. */
export function randomServiceChange(random: Random): WorldChange {
  const objects = Array.from({ length: random.chance(85) ? 1 : random.below(4) }, () => randomObject(random));
  return { origin: `origin-${random.below(20)}`, objects };
}

function randomObject(random: Random): WorldObject {
  const kind = random.below(20);
  if (kind < 8) return service(random);
  if (kind < 17) return slice(random);
  if (kind < 18) {
    return { kind: "pool", id: random.pick(["p1", "p2"]), cidr: random.pick(RANGES), natOutgoing: random.chance(50) };
  }
  const labels = new Map(random.chance(75) ? [["topology.kubernetes.io/zone", random.pick(ZONES)]] : []);
  return { kind: "node", id: random.pick(["n1", "n1", "n2"]), addresses: [], labels };
}

function service(random: Random): WorldObject {
  const id = random.pick(SERVICES);
  const [namespace, name] = id.split("/") as [string, string];
  const isHeadless = random.chance(10);
  const v4 = CLUSTER.filter((address) => addressFamily(address) === 4), v6 = CLUSTER.slice(v4.length);
  const ports = [...new Set(random.some(PORTS, 3))].map(({ name, protocol }) => ({
    name,
    protocol,
    port: random.pick([80, 81]),
    ...random.chance(50) ? { nodePort: random.pick([30080, 30081]) } : {},
  }));
  return {
    kind: "service",
    id,
    namespace,
    name,
    createdMs: random.pick([undefined, 1, 1, 2]),
    proxiedElsewhere: random.chance(5) ? true : undefined,
    clusterAddresses: isHeadless
      ? []
      : [...random.chance(85) ? [random.pick(v4)] : [], ...random.chance(50) ? [random.pick(v6)] : []],
    externalAddresses: random.some(EXTERNAL, 2),
    loadBalancerAddresses: random.some(EXTERNAL, 2),
    sourceRanges: random.chance(30) ? [random.pick(RANGES), ...random.some(RANGES, 1)] : undefined,
    ports,
    affinitySeconds: random.chance(20) ? random.pick([60, 10800]) : undefined,
    internalLocal: random.chance(25),
    externalLocal: random.chance(40),
    healthCheckNodePort: random.chance(30) ? random.pick([32000, 32001]) : undefined,
  };
}

function slice(random: Random): WorldObject {
  const family = random.chance(65) ? 4 : 6;
  const addresses = BACKENDS.filter((address) => addressFamily(address) === family);
  // Hints that all have or none has are the ones that matter.
  const hints = random.chance(70) ? random.below(3) : 3;
  return {
    kind: "serviceBackends",
    id: `slice-${random.below(7)}`,
    service: random.pick(SERVICES),
    family,
    ports: [...new Map(random.some(PORTS, 3).map((port) => [port.name, port])).values()],
    backends: random.some(addresses, 3).map((address): ServiceBackend => ({
      address,
      node: random.pick(NODES),
      ...condition(random),
      forZones: hints === 1 || hints === 3 && random.chance(50) ? [random.pick(ZONES)] : undefined,
      forNodes: hints === 2 || hints === 3 && random.chance(30) ? [random.pick(["n1", "n2"])] : undefined,
    })),
  };
}

function condition(random: Random): Pick<ServiceBackend, "ready" | "serving" | "terminating"> {
  if (random.chance(50)) return { ready: true, serving: true, terminating: random.chance(5) };
  return { ready: false, serving: random.chance(50), terminating: random.chance(70) };
}
