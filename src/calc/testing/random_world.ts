import { parseAddress, parseCidr } from "../../model/address.ts";
import type { Cidr } from "../../model/address.ts";
import type { NamedPort } from "../../model/ports.ts";
import type { Action, Direction, NeutralRule, PeerMatch } from "../../model/rule.ts";
import { andSelectors } from "../../model/selector.ts";
import type { Labels, Selector } from "../../model/selector.ts";
import { parseSelector } from "../../model/selector_parse.ts";
import type { WorldChange, WorldObject } from "../../model/world.ts";

/** A small generator with good enough spread (mulberry32); equal seeds, equal numbers. */
export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed;
  }
  /** 0 … below − 1. */
  below(limit: number): number {
    this.#state = this.#state + 0x6d2b79f5 | 0;
    let mixed = Math.imul(this.#state ^ this.#state >>> 15, 1 | this.#state);
    mixed = mixed + Math.imul(mixed ^ mixed >>> 7, 61 | mixed) ^ mixed;
    return ((mixed ^ mixed >>> 14) >>> 0) % limit;
  }
  chance(percent: number): boolean {
    return this.below(100) < percent;
  }
  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }
  some<T>(list: readonly T[], most: number): T[] {
    return Array.from({ length: this.below(most + 1) }, () => this.pick(list));
  }
  shuffle<T>(list: readonly T[]): T[] {
    const out = [...list];
    for (let i = out.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [out[i], out[j]] = [out[j]!, out[i]!];
    }
    return out;
  }
}

const NAMESPACES = ["default", "prod", "dev"];
const NODES = ["n1", "n1", "n2"];
const NAMES = ["a", "b", "c", "d", "e"];
const VALUES = ["x", "y", "z"];
const KEYS = ["app", "role", "tier"];
const ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "fd00::1", "fd00::2"].map(parseAddress);
const NETS = ["10.0.0.0/24", "10.0.0.1/32", "0.0.0.0/0", "fd00::/64", "192.168.0.0/16"].map(parseCidr);
const TESTS = [
  ...KEYS.flatMap((key) => VALUES.map((value) => `${key} == "${value}"`)),
  'app != "x"',
  "has(role)",
  'serial starts with "1"',
  'projectcalico.org/namespace == "dev" && serial != "7"',
  "!has(role)",
  'app in {"x", "y"}',
  'app not in {"x"}',
  'role starts with "x"',
  'pcns.team == "x"',
  "has(pcns.team)",
  'pcsa.level in {"y", "z"}',
  'projectcalico.org/namespace == "prod"',
  'projectcalico.org/namespace in {"dev", "prod"}',
  'projectcalico.org/serviceaccount == "a"',
  "has(projectcalico.org/orchestrator)",
  'pcns.projectcalico.org/name == "dev"',
  'applied == "yes"',
  "global()",
  "all()",
  'app == "x" || role == "y"',
  '!(app == "x" && has(role))',
].map(parseSelector);
const PORTS: readonly NamedPort[] = [
  { name: "http", protocol: 6, port: 80 },
  { name: "http", protocol: 6, port: 8080 },
  { name: "dns", protocol: 17, port: 53 },
  { name: "dns", protocol: 6, port: 53 },
];
const PROFILES = ["p1", "p2", "kns.default", "missing", "projectcalico-default-allow"];
const KINDS = [
  ...Array<WorldObject["kind"]>(8).fill("workload"),
  ...Array<WorldObject["kind"]>(6).fill("pod"),
  ...Array<WorldObject["kind"]>(8).fill("policy"),
  ...["namespace", "serviceAccount", "hostEndpoint", "networkSet", "tier", "profile", "node", "block", "pool"] as const,
  ...["interface", "serviceBackends", "service", "namespace", "hostEndpoint", "networkSet"] as const,
];

/** A change that is likely to meet others: few names, few labels, few addresses. */
export function randomChange(random: Random): WorldChange {
  const objects = Array.from({ length: random.chance(80) ? 1 : random.below(4) }, () => randomObject(random));
  return { origin: `origin-${random.below(40)}`, objects };
}

function labels(random: Random): Labels {
  const pairs = random.some(KEYS, 3).map((key): [string, string] => [key, random.pick(VALUES)]);
  // Asked for now and then, and nearly always another.
  if (random.chance(40)) pairs.push(["serial", `${random.below(1000)}`]);
  if (random.chance(5)) pairs.push(["pcns.team", random.pick(VALUES)]);
  if (random.chance(5)) pairs.push(["projectcalico.org/namespace", "prod"]);
  if (random.chance(5)) pairs.push(["projectcalico.org/orchestrator", "k8s"]);
  return new Map(pairs);
}

function selector(random: Random): Selector {
  return andSelectors(...Array.from({ length: 1 + random.below(3) }, () => random.pick(TESTS)));
}

function peer(random: Random): PeerMatch {
  const nets = (percent: number) => random.chance(percent) ? random.some(NETS, 2) as readonly Cidr[] : undefined;
  const service = random.chance(10) ? { namespace: "default", name: random.pick(NAMES) } : undefined;
  return {
    nets: nets(15),
    notNets: nets(10),
    selector: random.chance(50) ? selector(random) : undefined,
    notSelector: random.chance(15) ? selector(random) : undefined,
    nodes: random.chance(10) ? parseSelector(random.pick(["all()", 'zone == "x"', "!has(zone)"])) : undefined,
    ports: random.chance(20) ? [{ first: 80, last: 90 }] : undefined,
    portNames: random.chance(20) ? [random.pick(["http", "dns", "none"])] : undefined,
    notPortNames: random.chance(5) ? ["http"] : undefined,
    service,
    servicePorts: service && random.chance(50) ? false : undefined,
  };
}

function rules(random: Random, policy: string, direction: Direction): NeutralRule[] {
  return Array.from({ length: random.below(3) }, (_, index) => ({
    action: random.pick<Action>(["allow", "deny", "pass", "log"]),
    protocol: random.chance(50) ? 6 : undefined,
    source: peer(random),
    destination: peer(random),
    origin: { policy, direction, index },
  }));
}

function randomObject(random: Random): WorldObject {
  const name = random.pick(NAMES), namespace = random.pick(NAMESPACES), node = random.pick(NODES);
  const addresses = random.some(ADDRESSES, 2), ports = random.some(PORTS, 2);
  const serviceAccount = random.chance(50) ? random.pick(["a", "b"]) : undefined;
  const profiles = random.chance(30) ? random.some(PROFILES, 2) : undefined;
  switch (random.pick(KINDS)) {
    case "workload":
      return {
        kind: "workload",
        id: `w-${random.below(8)}`,
        node,
        namespace,
        interfaceName: random.chance(10) ? random.pick(["eth0", "eth1"]) : `if-${random.below(8)}`,
        addresses,
        labels: labels(random),
        ports,
        serviceAccount,
        pod: random.chance(50) ? name : undefined,
        profiles,
        orchestrator: "cni",
      };
    case "pod":
      return {
        kind: "pod",
        id: `${namespace}/${name}`,
        namespace,
        name,
        labels: labels(random),
        serviceAccount,
        ports,
        addresses,
      };
    case "namespace":
      return { kind: "namespace", id: namespace, labels: new Map([["team", random.pick(VALUES)]]) };
    case "serviceAccount": {
      const account = random.pick(["a", "b"]);
      const levels = new Map([["level", random.pick(VALUES)]]);
      return { kind: "serviceAccount", id: `${namespace}/${account}`, namespace, name: account, labels: levels };
    }
    case "hostEndpoint": {
      const interfaceName = random.pick(["*", "eth0", "eth1", undefined, undefined]);
      const id = `h-${random.below(4)}`;
      const own = labels(random);
      return {
        kind: "hostEndpoint",
        id,
        node,
        interfaceName,
        expectedAddresses: addresses,
        labels: own,
        ports,
        profiles: profiles ?? [],
      };
    }
    case "networkSet": {
      const within = random.chance(50) ? namespace : undefined;
      return {
        kind: "networkSet",
        id: `${within ?? ""}/${name}`,
        namespace: within,
        name,
        labels: labels(random),
        nets: random.some(NETS, 2),
      };
    }
    case "policy": {
      const id = `policy-${random.below(12)}`;
      const stage = random.pick(["normal", "normal", "normal", "forward", "preDnat", "untracked"] as const);
      return {
        kind: "policy",
        id,
        tier: random.pick(["default", "default", "t1", "t2", "kube-admin"]),
        order: random.pick([undefined, 1, 2, 1000]),
        sortName: random.pick(NAMES),
        selects: selector(random),
        stage,
        staged: random.chance(15),
        logDenied: random.chance(15) ? true : undefined,
        ingress: random.chance(70) ? rules(random, id, "ingress") : undefined,
        egress: random.chance(40) ? rules(random, id, "egress") : undefined,
      };
    }
    case "tier":
      return {
        kind: "tier",
        id: random.pick(["t1", "t2", "default"]),
        order: random.pick([undefined, 5, 2e6]),
        closed: random.chance(15) ? true : undefined,
        defaultAction: random.pick(["deny", "pass"]),
        logDenied: random.chance(30) ? true : undefined,
      };
    case "profile": {
      const id = random.pick(["p1", "p2", "kns.default"]);
      const applied: Labels = random.chance(50) ? new Map([["applied", "yes"]]) : new Map();
      return {
        kind: "profile",
        id,
        labelsToApply: applied,
        ingress: rules(random, id, "ingress"),
        egress: rules(random, id, "egress"),
      };
    }
    case "node":
      return {
        kind: "node",
        id: random.pick(["n1", "n2"]),
        addresses,
        labels: new Map(random.chance(60) ? [["zone", random.pick(VALUES)]] : []),
      };
    case "block":
      return { kind: "block", id: `b-${random.below(4)}`, cidr: random.pick(NETS), node };
    case "pool":
      return { kind: "pool", id: name, cidr: random.pick(NETS), natOutgoing: random.chance(50) };
    case "interface":
      return { kind: "interface", id: random.pick(["eth0", "eth1", "eth2"]), addresses };
    case "service":
      return {
        kind: "service",
        id: `default/${name}`,
        namespace: "default",
        name,
        clusterAddresses: addresses,
        externalAddresses: [],
        loadBalancerAddresses: [],
        ports: [],
        internalLocal: false,
        externalLocal: false,
      };
    case "serviceBackends": {
      const backends = addresses.map((address) => ({ address, ready: true, serving: true, terminating: false }));
      return {
        kind: "serviceBackends",
        id: `slice-${random.below(4)}`,
        service: `default/${name}`,
        family: 4,
        ports,
        backends,
      };
    }
  }
}
