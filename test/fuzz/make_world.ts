/** Random worlds, and random steps from one to the next. A world is its manifests, by key. */
import { addressFamily, formatAddress } from "../../src/model/address.ts";
import type { Address } from "../../src/model/address.ts";
import type { Random } from "../../src/calc/testing/random_world.ts";
import type { Resource } from "../../src/model/resource.ts";
import { maybeLogged, NODE_LABELS, somePolicy, someStyle, type Style, TIERS } from "./make_policy.ts";
import { calicoRules, maybe, PORT_NAMES, PORTS, some, someNet } from "./make_rule.ts";
import { ACCOUNT_LABELS, ACCOUNTS, NAMESPACE_LABELS, NAMESPACES, OWN_LABELS, someLabels } from "./make_selector.ts";
import { ALL_ADDRESSES, NODE, NODE_LINKS, OTHER_NODES, REMOTE, type Slot, SLOTS } from "./plan.ts";

/** By `manifestKey`. */
export type World = ReadonlyMap<string, Resource>;

export const manifestKey = ({ apiVersion, kind, metadata }: Resource): string =>
  `${apiVersion.replace(/\/?v\d.*$/, "").replace("crd.", "")} ${kind} ${metadata.namespace ?? ""}/${metadata.name}`;

const CALICO = "projectcalico.org/v3";
const PODS = ["pod-0", "pod-1", "pod-2", "pod-3", "pod-4"];
const PROFILES = ["p-open", "p-web", "p-shut"];
const PORTED = ["TCP", "TCP", "UDP", "SCTP"];

type Fields = Record<string, unknown>;

const hostText = (address: Address): string => `${formatAddress(address)}/${addressFamily(address) === 4 ? 32 : 128}`;
const ownLabels = (random: Random): Fields => maybe(random, 85, "labels", () => someLabels(random, OWN_LABELS, 55));
const someOnce = (
  random: Random,
  most: number,
  from: readonly string[],
): string[] => [...new Set(some(random, most, () => random.pick(from)))];
const subset = <T>(random: Random, list: readonly T[], percent: number): T[] =>
  list.filter(() => random.chance(percent));
const someNamed = (random: Random): { readonly name: string; readonly protocol: string; readonly port: number }[] =>
  some(
    random,
    3,
    () => ({ name: random.pick(PORT_NAMES.slice(0, -1)), protocol: random.pick(PORTED), port: random.pick(PORTS) }),
  );
/** Mostly those that belong there, now and then somebody else's. */
const someAddresses = (random: Random, from: readonly Address[]): Address[] => {
  const own = subset(random, from, 65);
  return random.chance(8) ? [...own, random.pick(ALL_ADDRESSES)] : own;
};

// ------------------------------------------------------------------------------------------------------------- endpoints

function pod(random: Random): Resource {
  const addresses = random.chance(25) ? [] : someAddresses(random, some(random, 2, () => random.pick(REMOTE)));
  const phase = random.chance(18) ? random.pick(["Succeeded", "Failed"]) : "Running";
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: random.pick(PODS), namespace: random.pick(NAMESPACES), ...ownLabels(random) },
    spec: {
      ...maybe(random, 80, "nodeName", () => random.pick([NODE, ...OTHER_NODES])),
      ...maybe(random, 55, "serviceAccountName", () => random.pick(ACCOUNTS)),
      ...maybe(random, 6, "hostNetwork", () => true),
      containers: [{
        name: "main",
        image: "image",
        ...maybe(random, 70, "ports", () =>
          someNamed(random).map(({ name, protocol, port }) => ({
            ...maybe(random, 90, "name", () => name),
            containerPort: port,
            ...(protocol === "TCP" && random.chance(50) ? {} : { protocol }),
          }))),
      }],
      // One that goes on running beside the others, and one that does not.
      ...maybe(random, 8, "initContainers", () => [{
        name: "first",
        image: "image",
        ...maybe(random, 60, "restartPolicy", () => "Always"),
        ports: [{ name: random.pick(PORT_NAMES.slice(0, -1)), containerPort: random.pick(PORTS) }],
      }]),
    },
    status: {
      phase,
      ...(addresses.length === 0 ? {} : { podIPs: addresses.map((address) => ({ ip: formatAddress(address) })) }),
    },
  };
}

function workloadEndpoint(
  random: Random,
  place: {
    readonly name: string;
    readonly node: string;
    readonly link: string;
    readonly addresses: readonly Address[];
  },
): Resource {
  const isPod = random.chance(60);
  const namespace = random.pick(NAMESPACES);
  return {
    apiVersion: CALICO,
    kind: "WorkloadEndpoint",
    metadata: { name: place.name, namespace, ...ownLabels(random) },
    spec: {
      node: place.node,
      orchestrator: isPod ? "k8s" : "cni",
      ...(isPod ? { pod: random.pick(PODS) } : { workload: place.name }),
      endpoint: "eth0",
      interfaceName: place.link,
      ipNetworks: place.addresses.map(hostText),
      ...maybe(random, 35, "serviceAccountName", () => random.pick(ACCOUNTS)),
      ...maybe(
        random,
        30,
        "profiles",
        () => random.chance(15) ? [] : someOnce(random, 2, [...PROFILES, `kns.${namespace}`, "p-missing"]),
      ),
      ...maybe(random, 65, "ports", () => someNamed(random)),
    },
  };
}

const slotName = (slot: Slot): string => `local-${slot.link}`;

function localEndpoint(random: Random, slot: Slot): Resource {
  const own = random.chance(4) ? [] : subset(random, slot.addresses, 80);
  const addresses = random.chance(4) ? [...own, random.pick(SLOTS).addresses[0]!] : own;
  return workloadEndpoint(random, {
    name: slotName(slot),
    node: NODE,
    link: slot.link,
    addresses: [...new Set(addresses)],
  });
}

function remoteEndpoint(random: Random): Resource {
  const number = random.below(3);
  const addresses = [...new Set(someAddresses(random, some(random, 2, () => random.pick(REMOTE))))];
  return workloadEndpoint(random, {
    name: `remote-${number}`,
    node: random.pick(OTHER_NODES),
    link: `mx00000000b0${number}`,
    addresses,
  });
}

function hostEndpoint(random: Random): Resource {
  const roll = random.below(10);
  const [first, second] = NODE_LINKS as [typeof NODE_LINKS[0], typeof NODE_LINKS[0]];
  const link = random.pick([first, second]);
  const texts = link.addresses.map(formatAddress);
  const place = roll < 3
    ? { node: NODE, interfaceName: link.link, ...maybe(random, 60, "expectedIPs", () => texts) }
    : roll < 5
    ? {
      node: NODE,
      interfaceName: "*",
      ...maybe(random, 50, "expectedIPs", () => NODE_LINKS.flatMap((one) => one.addresses.map(formatAddress))),
    }
    : roll < 7
    ? { node: NODE, expectedIPs: random.chance(50) ? texts : [random.pick(texts)] }
    : { node: random.pick(OTHER_NODES), interfaceName: "eth0", expectedIPs: [formatAddress(random.pick(REMOTE))] };
  const { node, interfaceName } = place as { node: string; interfaceName?: string };
  const twin = random.chance(20) ? "-twin" : "";
  const name = `hep-${node}${twin}-${
    interfaceName === undefined ? `by-${texts[0]!.replaceAll(/[.:]/g, "-")}` : interfaceName.replace("*", "all")
  }`;
  return {
    apiVersion: CALICO,
    kind: "HostEndpoint",
    metadata: { name, ...ownLabels(random) },
    spec: {
      ...place,
      ...maybe(random, 45, "profiles", () => someOnce(random, 2, ["p-open", "p-open", "p-web", "p-missing"])),
      ...maybe(random, 65, "ports", () => someNamed(random)),
    },
  };
}

// ------------------------------------------------------------------------------------------------------- everything else

const namespace = (random: Random): Resource => ({
  apiVersion: "v1",
  kind: "Namespace",
  metadata: {
    name: random.pick(NAMESPACES),
    ...maybe(random, 85, "labels", () => someLabels(random, NAMESPACE_LABELS, 65)),
  },
});

const serviceAccount = (random: Random): Resource => ({
  apiVersion: "v1",
  kind: "ServiceAccount",
  metadata: {
    name: random.pick(ACCOUNTS),
    namespace: random.pick(NAMESPACES),
    ...maybe(random, 85, "labels", () => someLabels(random, ACCOUNT_LABELS, 75)),
  },
});

const nodeObject = (random: Random): Resource => {
  const name = random.pick([NODE, ...OTHER_NODES]);
  const addresses = name === NODE
    ? NODE_LINKS[1]!.addresses
    : REMOTE.filter((_, index) => (index % 5 === 0) === (name === OTHER_NODES[0])).slice(0, 2);
  return {
    apiVersion: "v1",
    kind: "Node",
    metadata: { name, labels: someLabels(random, NODE_LABELS, 60) },
    status: { addresses: addresses.map((address) => ({ type: "InternalIP", address: formatAddress(address) })) },
  };
};

const service = (random: Random): Resource => ({
  apiVersion: "v1",
  kind: "Service",
  metadata: { name: `svc-${random.below(2)}`, namespace: random.pick(NAMESPACES) },
  spec: {
    clusterIP: "None",
    selector: { app: random.pick(OWN_LABELS.app!) },
    ports: [{ name: "http", port: random.pick(PORTS), protocol: random.pick(PORTED) }],
  },
});

function endpointSlice(random: Random): Resource {
  const family = random.chance(65) ? 4 : 6;
  const ours = ALL_ADDRESSES.filter((address) => addressFamily(address) === family);
  return {
    apiVersion: "discovery.k8s.io/v1",
    kind: "EndpointSlice",
    metadata: {
      name: `slice-${random.below(4)}`,
      namespace: random.pick(NAMESPACES),
      ...maybe(random, 95, "labels", () => ({ "kubernetes.io/service-name": `svc-${random.below(2)}` })),
    },
    addressType: family === 4 ? "IPv4" : "IPv6",
    ports: random.chance(5) ? [] : some(random, 3, () => ({
      ...maybe(random, 60, "name", () => random.pick(["http", "dns", "metrics"])),
      ...maybe(random, 75, "protocol", () => random.pick(PORTED)),
      // Without a number it is none that a rule can mean.
      ...maybe(random, 96, "port", () => random.pick(PORTS)),
    })),
    endpoints: random.chance(8) ? [] : some(random, 3, () => ({
      addresses: some(random, 2, () => formatAddress(random.pick(ours))),
      ...maybe(random, 30, "conditions", () => ({ ready: random.chance(50) })),
    })),
  };
}

function networkSet(random: Random): Resource {
  const global = random.chance(50);
  const net = () => {
    const text = someNet(random, random.chance(65) ? 4 : 6);
    return random.chance(20) && /\/(32|128)$/.test(text) ? text.replace(/\/\d+$/, "") : text;
  };
  return {
    apiVersion: CALICO,
    kind: global ? "GlobalNetworkSet" : "NetworkSet",
    metadata: {
      name: `set-${random.below(3)}`,
      ...(global ? {} : { namespace: random.pick(NAMESPACES) }),
      ...ownLabels(random),
    },
    spec: { nets: random.chance(8) ? [] : some(random, 6, net) },
  };
}

const tier = (random: Random): Resource => maybeLogged(random, random.chance(5) ? fixedTier(random) : someTier(random));

const someTier = (random: Random): Resource => ({
  apiVersion: CALICO,
  kind: "Tier",
  metadata: { name: random.pick(TIERS) },
  spec: {
    ...maybe(random, 80, "order", () => random.pick([0, 5, 5, 100, 999.5, 1000, 1_000_000, 2_000_000, 20_000_000])),
    ...maybe(random, 65, "defaultAction", () => random.pick(["Deny", "Pass", "Pass"])),
  },
});

/** One of those that are always there, as it is. */
const fixedTier = (random: Random): Resource => ({
  apiVersion: CALICO,
  kind: "Tier",
  ...random.pick([
    { metadata: { name: "kube-admin" }, spec: { order: 1_000, defaultAction: "Pass" } },
    { metadata: { name: "default" }, spec: { order: 1_000_000, defaultAction: "Deny" } },
    { metadata: { name: "kube-baseline" }, spec: { order: 10_000_000, defaultAction: "Pass" } },
  ]),
});

function profile(random: Random): Resource {
  const name = random.pick(PROFILES);
  const rules = (direction: "ingress" | "egress") =>
    name === "p-open"
      ? [{ action: "Allow" }]
      : name === "p-shut"
      ? []
      : calicoRules(random, { direction, namespaced: false }, ["Allow", "Allow", "Deny", "Log", "Pass"]);
  return {
    apiVersion: CALICO,
    kind: "Profile",
    metadata: { name },
    spec: {
      ...maybe(random, 75, "labelsToApply", () => ({ applied: "yes" })),
      ingress: rules("ingress"),
      egress: rules("egress"),
    },
  };
}

const pool = (random: Random): Resource => ({
  apiVersion: CALICO,
  kind: "IPPool",
  metadata: { name: `pool-${random.below(2)}` },
  spec: { cidr: random.pick(["10.65.0.0/16", "fd65::/64", "10.66.0.0/16"]), natOutgoing: random.chance(60) },
});

type Maker = (random: Random, style: Style) => Resource;
/** What else there is, with how often it is made when something is. */
const MAKERS: readonly (readonly [weight: number, Maker])[] = [
  [34, somePolicy],
  [14, pod],
  [12, (random) => localEndpoint(random, random.pick(SLOTS))],
  [6, remoteEndpoint],
  [6, hostEndpoint],
  [5, namespace],
  [5, serviceAccount],
  [2, nodeObject],
  [2, service],
  [5, endpointSlice],
  [6, networkSet],
  [4, tier],
  [4, profile],
  [1, pool],
];
const ALL_WEIGHTS = MAKERS.reduce((sum, [weight]) => sum + weight, 0);

function something(random: Random, style: Style): Resource {
  let left = random.below(ALL_WEIGHTS);
  for (const [weight, make] of MAKERS) if ((left -= weight) < 0) return make(random, style);
  return somePolicy(random, style);
}

/** A link has one workload, so what was behind it goes. */
function put(world: Map<string, Resource>, resource: Resource): void {
  if (resource.kind === "WorkloadEndpoint") {
    for (const [key, other] of world) {
      if (other.kind === "WorkloadEndpoint" && other.metadata.name === resource.metadata.name) world.delete(key);
    }
  }
  world.set(manifestKey(resource), resource);
}

/** Worlds of one seed, the first and steps from one to the next. */
export class WorldMaker {
  readonly #random: Random;
  readonly #style: Style;
  constructor(random: Random) {
    this.#random = random;
    this.#style = someStyle(random);
  }

  first(): World {
    const random = this.#random, style = this.#style;
    const world = new Map<string, Resource>();
    const add = (most: number, make: Maker) => {
      for (let i = random.below(most + 1); i > 0; i--) put(world, make(random, style));
    };
    for (const slot of SLOTS) if (random.chance(80)) put(world, localEndpoint(random, slot));
    for (let i = 0; i < 3; i++) put(world, namespace(random));
    add(7, pod);
    add(3, remoteEndpoint);
    add(4, serviceAccount);
    if (random.chance(55 + style.host)) add(4, hostEndpoint);
    add(3, tier);
    add(3, profile);
    add(3, networkSet);
    add(6, endpointSlice);
    add(2, service);
    add(2, nodeObject);
    add(1, pool);
    // Where everybody is selected, few are enough to hide one another.
    const most = random.chance(20) ? 24 : style.everybody > 50 ? 5 : 9;
    for (let i = 1 + random.below(most); i > 0; i--) put(world, somePolicy(random, style));
    return world;
  }

  /** A few resources are added, written anew, or gone. */
  next(before: World): World {
    const random = this.#random;
    const world = new Map(before);
    for (let changes = 1 + random.below(random.chance(20) ? 20 : 5); changes > 0; changes--) {
      const keys = [...world.keys()];
      if (random.chance(30) && keys.length > 0) world.delete(random.pick(keys));
      else put(world, something(random, this.#style));
    }
    return world;
  }
}
