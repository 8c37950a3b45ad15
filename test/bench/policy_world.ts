/** A world to measure with: policies of five rules, remote and local endpoints, in a hundred namespaces of twenty applications. */
import { addressFromBigInt } from "../../src/model/address.ts";
import { parseSelector } from "../../src/model/selector_parse.ts";
import type { WorldChange } from "../../src/model/world.ts";

export const POLICIES = 10_000, RULES = 5, REMOTES = 250_000, LOCALS = 200;
const NAMESPACES = 100, APPS = 20;

const address = (network: bigint, i: number) => addressFromBigInt((network << 24n) + BigInt(i), 4);
const namespaceOf = (i: number) => `ns-${i % NAMESPACES}`;
const appOf = (i: number) => Math.floor(i / NAMESPACES) % APPS;
const labelsOf = (app: number) => new Map([["app", `app-${app % APPS}`], ["tier", app % 2 ? "web" : "db"]]);

/** `shift`: how many applications further than its own it belongs to. */
export function remotePod(i: number, shift = 0): WorldChange {
  const namespace = namespaceOf(i), name = `pod-${i}`;
  const id = `${namespace}/${name}`;
  return {
    origin: `Pod/${id}`,
    objects: [{
      kind: "pod",
      id,
      namespace,
      name,
      labels: labelsOf(appOf(i) + shift),
      ports: [],
      addresses: [address(10n, i)],
    }],
  };
}

export const localPod = (i: number): WorldChange => ({
  origin: `local-${i}`,
  objects: [{
    kind: "workload",
    id: `local-${i}`,
    node: "bench",
    namespace: namespaceOf(i),
    interfaceName: `mxl${i}`,
    addresses: [address(11n, i)],
    labels: labelsOf(appOf(i)),
    ports: [],
    orchestrator: "k8s",
  }],
});

/** Selects one application of its namespace and lets five others in. */
export function policy(i: number, port = 80): WorldChange {
  const namespace = namespaceOf(i);
  const id = `NetworkPolicy.networking.k8s.io/${namespace}/policy-${i}`;
  const app = (k: number) => parseSelector(`projectcalico.org/namespace == "${namespace}" && app == "app-${k % APPS}"`);
  return {
    origin: id,
    objects: [{
      kind: "policy",
      id,
      tier: "default",
      order: 1000,
      sortName: id,
      selects: app(appOf(i) * 7),
      stage: "normal",
      staged: false,
      ingress: Array.from({ length: RULES }, (_, index) => ({
        action: "allow",
        protocol: 6,
        source: { selector: app(i * 3 + index) },
        destination: { ports: [{ first: port, last: port }] },
        origin: { policy: id, direction: "ingress", index },
      })),
    }],
  };
}
