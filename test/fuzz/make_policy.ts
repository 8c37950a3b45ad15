/** Random policies of every kind, as manifests. */
import type { Random } from "../../src/calc/testing/random_world.ts";
import { cidrAddress, cidrContains, formatCidr, parseCidr } from "../../src/model/address.ts";
import type { Resource } from "../../src/model/resource.ts";
import { calicoRules, looseNet, maybe, PORT_NAMES, PORTS, some, someNet } from "./make_rule.ts";
import { labelSelector, NAMESPACES, selectorText } from "./make_selector.ts";

type Spec = Record<string, unknown>;

export const TIERS = ["t1", "t2", "t3"] as const;
const CALICO = "projectcalico.org/v3";
const ORDERS = [0, 1, 1, 5, 10, 10.5, 100, 999, 1000, 1000, 1001, -3];

/** What a world's policies are like, in percent: worlds of one kind show what mixed ones hide. */
export interface Style {
  /** Policies that select everybody whom they can. */
  readonly everybody: number;
  /** Lists of few rules that say little. */
  readonly plain: number;
  /** Of the same order as others. */
  readonly tied: number;
  /** Global ones for host endpoints: before DNAT or tracking, or for forwarded traffic. */
  readonly host: number;
}

const STYLES: readonly (readonly [weight: number, Style])[] = [
  [40, { everybody: 15, plain: 10, tied: 0, host: 12 }],
  [30, { everybody: 60, plain: 80, tied: 10, host: 10 }],
  [10, { everybody: 70, plain: 50, tied: 95, host: 10 }],
  [20, { everybody: 60, plain: 60, tied: 10, host: 60 }],
];

export function someStyle(random: Random): Style {
  let left = random.below(STYLES.reduce((sum, [weight]) => sum + weight, 0));
  for (const [weight, style] of STYLES) if ((left -= weight) < 0) return style;
  return STYLES[0]![1];
}

const directionsOf = (random: Random, percent: { readonly ingress: number; readonly egress: number }) => ({
  ingress: random.chance(percent.ingress),
  egress: random.chance(percent.egress),
});

// --------------------------------------------------------------------------------------------------------- networking/v1

function kubernetesPort(random: Random): Spec {
  const protocol = maybe(random, 65, "protocol", () => random.pick(["TCP", "TCP", "UDP", "SCTP"]));
  if (random.chance(12)) return { ...protocol };
  if (random.chance(25)) return { ...protocol, port: random.pick(PORT_NAMES) };
  const port = random.pick(PORTS);
  const last = random.chance(50) ? port : random.pick(PORTS.filter((other) => other >= port));
  return { ...protocol, port, ...maybe(random, 25, "endPort", () => last) };
}

/** Some, and now and then one that leaves a single port between itself and another. */
function kubernetesPorts(random: Random): Spec[] {
  const ports = some(random, 3, () => kubernetesPort(random));
  const { port, endPort = port, ...first } = ports[0]!;
  if (random.chance(85) || typeof endPort !== "number" || endPort > 65533) return ports;
  return [...ports, { ...first, port: endPort + 2 }];
}

function kubernetesPeer(random: Random): Spec {
  const roll = random.below(10);
  if (roll < 4) {
    const family = random.chance(70) ? 4 : 6;
    const cidr = random.chance(15) ? looseNet(random, family) : someNet(random, family);
    const [address, length] = formatCidr(parseCidr(cidr)).split("/") as [string, string];
    const longest = family === 4 ? 32 : 128;
    if (Number(length) === longest) return { ipBlock: { cidr } };
    const inside = () => {
      // Its own first addresses, or whoever's that happen to be inside.
      for (let tries = 0; tries < 8; tries++) {
        const net = someNet(random, family, Number(length) + 1);
        if (contains(cidr, net)) return net;
      }
      return `${address}/${Number(length) + 1 + random.below(longest - Number(length))}`;
    };
    return { ipBlock: { cidr, ...maybe(random, 45, "except", () => random.chance(5) ? [] : some(random, 2, inside)) } };
  }
  if (roll < 6) return { podSelector: labelSelector(random, "endpoint") };
  if (roll < 8) return { namespaceSelector: labelSelector(random, "namespace") };
  return { podSelector: labelSelector(random, "endpoint"), namespaceSelector: labelSelector(random, "namespace") };
}

function kubernetesSpec(random: Random, style: Style): Spec {
  const covers = directionsOf(random, { ingress: 75, egress: 45 });
  const rules = (peers: "from" | "to") =>
    random.chance(15) ? [] : some(random, random.chance(12) ? 12 : 3, () => ({
      ...maybe(random, 75, peers, () => random.chance(6) ? [] : some(random, 3, () => kubernetesPeer(random))),
      ...maybe(random, 70, "ports", () => random.chance(6) ? [] : kubernetesPorts(random)),
    }));
  return {
    podSelector: random.chance(style.everybody) ? {} : labelSelector(random, "endpoint"),
    ...maybe(
      random,
      60,
      "policyTypes",
      () => random.pick([["Ingress"], ["Egress"], ["Ingress", "Egress"], ["Egress", "Ingress"], []]),
    ),
    ...(covers.ingress ? { ingress: rules("from") } : {}),
    ...(covers.egress ? { egress: rules("to") } : {}),
  };
}

const kubernetesPolicy = (random: Random, style: Style): Resource => ({
  apiVersion: "networking.k8s.io/v1",
  kind: "NetworkPolicy",
  metadata: { name: `np-${random.below(3)}`, namespace: random.pick(NAMESPACES) },
  spec: kubernetesSpec(random, style),
});

// ---------------------------------------------------------------------------------------------------------------- policy

function clusterSubject(random: Random): Spec {
  return random.chance(50) ? { namespaces: labelSelector(random, "namespace") } : {
    pods: {
      ...maybe(random, 80, "namespaceSelector", () => labelSelector(random, "namespace")),
      podSelector: labelSelector(random, "endpoint"),
    },
  };
}

function clusterProtocols(random: Random, names: boolean): Spec[] {
  return some(random, 3, () => {
    if (names && random.chance(20)) return { destinationNamedPort: random.pick(PORT_NAMES) };
    const number = random.pick(PORTS);
    const destinationPort = random.chance(65) || number === 65535
      ? { number }
      : { range: { start: number, end: random.pick(PORTS.filter((port) => port > number)) } };
    return { [random.pick(["tcp", "tcp", "udp", "sctp"])]: { destinationPort } };
  });
}

/** Each once, whatever bits are set past its prefix. */
function someNetworks(random: Random, family: 4 | 6): string[] {
  const nets = some(random, 3, () => {
    const own = random.chance(90) ? family : family === 4 ? 6 : 4;
    return random.chance(10) ? looseNet(random, own) : someNet(random, own);
  });
  return [...new Map(nets.map((net) => [parseCidr(net), net])).values()];
}

function clusterPolicy(random: Random, style: Style): Resource {
  const covers = directionsOf(random, { ingress: 70, egress: 55 });
  const rules = (direction: "ingress" | "egress") =>
    random.chance(5) ? [] : some(random, random.chance(15) ? 20 : 4, () => {
      const networks = direction === "egress" && random.chance(35);
      const nodes = direction === "egress" && !networks && random.chance(15);
      const family = random.chance(70) ? 4 : 6;
      const peer = () =>
        networks
          ? { networks: someNetworks(random, family) }
          : nodes
          ? { nodes: nodeSelector(random) }
          : clusterSubject(random);
      return {
        ...maybe(random, 20, "name", () => `rule ${random.below(9)}`),
        action: random.pick(["Accept", "Accept", "Deny", "Pass"]),
        [direction === "ingress" ? "from" : "to"]: some(random, 3, peer),
        ...maybe(random, 65, "protocols", () => clusterProtocols(random, !networks && !nodes)),
      };
    });
  return {
    apiVersion: "policy.networking.k8s.io/v1alpha2",
    kind: "ClusterNetworkPolicy",
    metadata: { name: `cnp-${random.below(4)}` },
    spec: {
      tier: random.pick(["Admin", "Baseline"]),
      priority: random.chance(style.tied) ? 1 : random.pick([0, 1, 1, 5, 1000]),
      subject: random.chance(style.everybody) ? { namespaces: {} } : clusterSubject(random),
      ...(covers.ingress ? { ingress: rules("ingress") } : {}),
      ...(covers.egress ? { egress: rules("egress") } : {}),
    },
  };
}

export const NODE_LABELS: Readonly<Record<string, readonly string[]>> = { zone: ["a", "b"], gpu: ["yes"] };

function nodeSelector(random: Random): Spec {
  if (random.chance(30)) return {};
  const key = random.pick(Object.keys(NODE_LABELS));
  return random.chance(50)
    ? { matchLabels: { [key]: random.pick(NODE_LABELS[key]!) } }
    : { matchExpressions: [{ key, operator: random.pick(["Exists", "DoesNotExist"]) }] };
}

// ---------------------------------------------------------------------------------------------------------------- Calico

interface CalicoShape {
  readonly namespaced: boolean;
  readonly staged: boolean;
}

function calicoPolicy(random: Random, { namespaced, staged }: CalicoShape, style: Style): Resource {
  const tier = random.chance(50) ? undefined : random.chance(92) ? random.pick(["default", ...TIERS]) : "t-unknown";
  const stage = namespaced || !random.chance(style.host)
    ? undefined
    : random.pick(["preDNAT", "doNotTrack", "doNotTrack", "applyOnForward"]);
  const early = stage === "preDNAT" || stage === "doNotTrack";
  const covers = stage === "preDNAT"
    ? { ingress: true, egress: false }
    : directionsOf(random, { ingress: 80, egress: early ? 75 : 50 });
  const actions = random.chance(50)
    ? ["Allow", "Allow", "Allow", "Deny", "Log"]
    : ["Allow", "Allow", "Deny", "Deny", "Pass", "Log"];
  const types = stage === "preDNAT"
    ? [["Ingress"]]
    : [["Ingress"], ["Egress"], ["Ingress", "Egress"], ["Ingress", "Egress"], []];
  const rules = (direction: "ingress" | "egress") => ({
    [direction]: calicoRules(random, { direction, namespaced }, actions, style.plain),
  });
  // Around those of Kubernetes policies, by which they are ordered where their orders are equal.
  const name = `${tier !== undefined && random.chance(40) ? `${tier}.` : ""}${
    random.pick(["a", "knp", "l", "p", "p"])
  }-${random.below(3)}`;
  // Few host endpoints are there to be selected, and what is said early is for nobody else.
  const everybody = random.chance(early ? Math.max(style.everybody, 65) : style.everybody);
  const selection = everybody ? {} : {
    ...maybe(random, 85, "selector", () => random.chance(8) ? "" : selectorText(random, "endpoint")),
    ...maybe(random, 10, "serviceAccountSelector", () => selectorText(random, "account")),
    ...(namespaced ? {} : maybe(random, 28, "namespaceSelector", () => selectorText(random, "namespace"))),
  };
  return {
    apiVersion: random.chance(90) ? CALICO : "crd.projectcalico.org/v1",
    kind: `${staged ? "Staged" : ""}${namespaced ? "" : "Global"}NetworkPolicy`,
    metadata: { name, ...(namespaced ? { namespace: random.pick(NAMESPACES) } : {}) },
    spec: {
      ...(tier === undefined ? {} : { tier }),
      ...(random.chance(style.tied) ? { order: 1000 } : maybe(random, 80, "order", () => random.pick(ORDERS))),
      ...selection,
      ...maybe(random, 60, "types", () => random.pick(types)),
      ...(covers.ingress ? rules("ingress") : {}),
      ...(covers.egress ? rules("egress") : {}),
      ...(early ? { [stage]: true } : {}),
      ...(stage !== undefined
        ? { applyOnForward: true }
        : namespaced
        ? {}
        : maybe(random, 25, "applyOnForward", () => random.chance(80))),
      ...maybe(random, 3, "performanceHints", () => ["AssumeNeededOnEveryNode"]),
      ...(staged ? maybe(random, 60, "stagedAction", () => random.pick(["Set", "Set", "Set", "Ignore", "Learn"])) : {}),
    },
  };
}

const stagedKubernetesPolicy = (random: Random, style: Style): Resource => ({
  apiVersion: CALICO,
  kind: "StagedKubernetesNetworkPolicy",
  metadata: { name: `snp-${random.below(2)}`, namespace: random.pick(NAMESPACES) },
  spec: {
    ...kubernetesSpec(random, style),
    ...maybe(random, 50, "stagedAction", () => random.pick(["Set", "Ignore", "Learn"])),
  },
});

/** Every kind of policy, the enforced ones more often. */
export const somePolicy = (random: Random, style: Style): Resource =>
  maybeLogged(random, unloggedPolicy(random, style));

/** What it denies may be logged, which changes no verdict. */
export function maybeLogged(random: Random, { metadata, ...rest }: Resource): Resource {
  const annotations = maybe(
    random,
    12,
    "annotations",
    () => ({ "manx.io/log-denied": random.pick(["true", "true", "false"]) }),
  );
  return { ...rest, metadata: { ...metadata, ...annotations } } as Resource;
}

function unloggedPolicy(random: Random, style: Style): Resource {
  const roll = random.below(100);
  if (roll < 24) return kubernetesPolicy(random, style);
  if (roll < 36) return clusterPolicy(random, style);
  if (roll < 58) return calicoPolicy(random, { namespaced: true, staged: false }, style);
  if (roll < 90) return calicoPolicy(random, { namespaced: false, staged: false }, style);
  if (roll < 94) return calicoPolicy(random, { namespaced: true, staged: true }, style);
  if (roll < 97) return calicoPolicy(random, { namespaced: false, staged: true }, style);
  return stagedKubernetesPolicy(random, style);
}

const contains = (outer: string, inner: string): boolean => {
  const [cidr, other] = [outer, inner].map(parseCidr) as [ReturnType<typeof parseCidr>, ReturnType<typeof parseCidr>];
  return cidrContains(cidr, cidrAddress(other));
};
