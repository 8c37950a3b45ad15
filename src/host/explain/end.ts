/** Who is meant by `default/web`, `node/kube-01`, `10.0.0.1`, `host`: names as people write them → ends of a packet's way. */
import type { Calc, EndpointView } from "../../calc/mod.ts";
import { type Address, AddressSyntaxError, cidrContains, formatAddress, parseAddress } from "../../model/address.ts";
import type { NamedPort } from "../../model/ports.ts";
import { keyText } from "../../model/resource.ts";
import type { Holder } from "../../model/rule_text.ts";
import type { Labels } from "../../model/selector.ts";
import type { HostEndpointObject, WorkloadObject } from "../../model/world.ts";
import { ManxError, RefusedError } from "../../sdk/errors.ts";
import { describe } from "../config.ts";
import { WORKLOAD_ENDPOINT } from "../resources/core_source.ts";
import { standInId } from "./nodes.ts";
import { NotFoundError } from "../resources/resources.ts";

/** Names that an error lists. */
const CANDIDATES_MAX = 10;

/** One end of a packet's way. */
export interface End {
  /** For people. */
  readonly name: string;
  readonly kind: "pod" | "endpoint" | "node" | "outside";
  /** IPv4 first. */
  readonly addresses: readonly Address[];
  /** Absent: outside, or nobody knows. */
  readonly node?: string;
  /** Of its workload; of a pod without one, of what stands for it where every node is calculated. */
  readonly workload?: string;
  /** Whether a workload was attached or written down for it: without one, its node has nothing to enforce policy at. */
  readonly attached: boolean;
  /** The link of the node that was asked for, `NAME@eth0`. */
  readonly link?: string;
  readonly labels: Labels;
  readonly ports: readonly NamedPort[];
}

export type Lookup = Pick<Calc, "object" | "endpoints" | "world">;

/** A service with its port: `service/web:80`. */
export interface ServiceTarget {
  readonly namespace: string;
  readonly name: string;
}

const KIND_WORDS: Readonly<Record<string, "pod" | "endpoint" | "node" | "hostEndpoint">> = {
  pod: "pod",
  workloadendpoint: "endpoint",
  wep: "endpoint",
  node: "node",
  hostendpoint: "hostEndpoint",
  hep: "hostEndpoint",
};
const FORMS = "[NAMESPACE/]POD, node/NAME, wep/[NAMESPACE/]NAME, hep/NAME, an address, or host";
/** The node that answers. */
const THIS_NODE = "host";

/** `service/[NAMESPACE/]NAME`; undefined for anything else. */
export function readService(text: string, namespace: string): ServiceTarget | undefined {
  const match = /^(?:service|svc)\/(?:([^/]+)\/)?([^/]+)$/.exec(text);
  return match === null ? undefined : { namespace: match[1] ?? namespace, name: match[2]! };
}

/**
 * `what`: which of the two it is, for messages. `namespace`: of names that say none.
 * @throws {RefusedError} {NotFoundError} {ManxError} code `ambiguous`; each lists what there is
 */
export function resolveEnd(what: string, text: string, namespace: string, node: string, lookup: Lookup): End {
  const at = text.lastIndexOf("@");
  const bare = at < 0 ? text : text.slice(0, at), link = at < 0 ? undefined : text.slice(at + 1);
  if (bare === "" || link === "") throw new RefusedError([`${what}: found ${describe(text)}, wanted ${FORMS}`]);
  const address = readAddress(bare);
  const end = address === undefined ? named(what, bare, namespace, node, lookup) : holding(what, address, node, lookup);
  if (link === undefined) return end;
  if (end.kind === "node" || end.kind === "outside") return { ...end, link };
  throw new RefusedError([
    `${what}: found the link ${
      describe(link)
    } of ${end.name}, wanted none: only nodes and outside addresses have a choice`,
  ]);
}

function readAddress(text: string): Address | undefined {
  try {
    return parseAddress(text);
  } catch (error) {
    if (!(error instanceof AddressSyntaxError)) throw error;
    return undefined;
  }
}

function named(what: string, text: string, namespace: string, node: string, lookup: Lookup): End {
  const parts = text.split("/");
  if (parts.includes("") || parts.length > 3) {
    throw new RefusedError([`${what}: found ${describe(text)}, wanted ${FORMS}`]);
  }
  const kind = parts.length > 1 && Object.hasOwn(KIND_WORDS, parts[0]!) ? KIND_WORDS[parts[0]!] : undefined;
  const [name, within = namespace] = (kind === undefined ? parts : parts.slice(1)).toReversed() as [string, string?];
  const isNamespaced = (kind === undefined ? parts : parts.slice(1)).length === 2;
  let found: Candidate[] = [];
  if (kind === undefined || kind === "pod") found.push(...podsNamed(within, name, lookup));
  if (kind === undefined || kind === "endpoint") {
    // A pod's endpoint may be called as the pod is.
    found.push(...endpointsNamed(within, name, lookup).filter(({ id }) => !found.some((one) => one.id === id)));
  }
  if (!isNamespaced && (kind === undefined || kind === "node")) found.push(...nodesNamed(name, node, lookup));
  if (!isNamespaced && (kind === undefined || kind === "hostEndpoint")) found.push(...hostsNamed(name, lookup));
  if (kind === undefined && text === THIS_NODE) found.push(nodeCandidate(node, lookup));
  // A namespace may be called as a kind is.
  if (found.length === 0 && kind !== undefined && parts.length === 2) found = podsNamed(parts[0]!, parts[1]!, lookup);
  if (found.length === 1) return found[0]!.end();
  if (found.length > 1) {
    throw new ManxError(
      "ambiguous",
      `${what}: found ${found.length} called ${describe(text)}, wanted one of ${
        listed(found.map(({ title }) => title))
      }`,
    );
  }
  throw new NotFoundError(
    `${what}: found nothing called ${describe(text)}${
      isNamespaced || kind === "node" || kind === "hostEndpoint" ? "" : ` in namespace ${within}`
    }, wanted ${FORMS}${suggestion(name, lookup)}`,
  );
}

interface Candidate {
  /** Of its object. */
  readonly id: string;
  /** As it can be asked for without doubt. */
  readonly title: string;
  readonly end: () => End;
}

/** A pod: its endpoints, one for each of its networks, or the pod alone. */
function podsNamed(namespace: string, name: string, lookup: Lookup): Candidate[] {
  const views = workloads(lookup, (workload) => workload.namespace === namespace && workload.pod === name);
  if (views.length > 0) {
    return views.map(([view, workload]) => ({
      id: workload.id,
      title: views.length === 1 ? `pod/${namespace}/${name}` : `wep/${namespace}/${resourceName(workload.id)}`,
      end: () => workloadEnd(view, workload),
    }));
  }
  const id = `${namespace}/${name}`;
  const pod = lookup.object("pod", id);
  if (pod === undefined) return [];
  return [{
    id,
    title: `pod/${id}`,
    end: () => {
      if (pod.addresses.length === 0) {
        throw new NotFoundError(
          `pod ${id}: found no address of its own, wanted one: it does not run, or runs on the network of ${
            pod.node === undefined ? "its node" : `node/${pod.node}, which can be asked about`
          }`,
        );
      }
      return podEnd(id, lookup);
    },
  }];
}

function podEnd(id: string, lookup: Lookup): End {
  const pod = lookup.object("pod", id)!;
  const labels = viewsOf(lookup, (view) => view.kind === "pod" && view.id === id)[0]?.labels ?? pod.labels;
  return {
    name: id,
    kind: "pod",
    addresses: byFamily(pod.addresses),
    ...pod.node === undefined ? {} : { node: pod.node },
    workload: standInId(id),
    attached: false,
    labels,
    ports: pod.ports,
  };
}

/** WorkloadEndpoints by their own name. */
const endpointsNamed = (namespace: string, name: string, lookup: Lookup): Candidate[] =>
  workloads(lookup, ({ id }) => id === keyText({ kind: WORKLOAD_ENDPOINT, namespace, name })).map((
    [view, workload],
  ) => ({ id: workload.id, title: `wep/${namespace}/${name}`, end: () => workloadEnd(view, workload) }));

function nodesNamed(name: string, node: string, lookup: Lookup): Candidate[] {
  const known = name === node || lookup.object("node", name) !== undefined;
  return known ? [nodeCandidate(name, lookup)] : [];
}

const nodeCandidate = (node: string, lookup: Lookup): Candidate => ({
  id: node,
  title: `node/${node}`,
  end: () => nodeEnd(node, lookup),
});

/** The node behind a host endpoint, at its link. */
function hostsNamed(name: string, lookup: Lookup): Candidate[] {
  const host = lookup.object("hostEndpoint", name);
  return host === undefined ? [] : [{ id: name, title: `hep/${name}`, end: () => hostEnd(host, lookup) }];
}

function hostEnd(host: HostEndpointObject, lookup: Lookup): End {
  const node = nodeEnd(host.node, lookup);
  const link = host.interfaceName === "*" ? undefined : host.interfaceName;
  return {
    ...node,
    name: `node/${host.node}`,
    kind: "node",
    addresses: link !== undefined && host.expectedAddresses.length > 0
      ? byFamily(host.expectedAddresses)
      : node.addresses,
    node: host.node,
    attached: true,
    ...link === undefined ? {} : { link },
    labels: host.labels,
    ports: host.ports,
  };
}

export function nodeEnd(name: string, lookup: Lookup): End {
  return {
    name: `node/${name}`,
    kind: "node",
    addresses: byFamily(nodeAddresses(name, lookup)),
    node: name,
    attached: true,
    labels: lookup.object("node", name)?.labels ?? new Map(),
    ports: hostsOf(name, lookup).flatMap(({ ports }) => ports),
  };
}

/** Those of its Node object; without any, what its host endpoints expect. */
export function nodeAddresses(name: string, lookup: Lookup): readonly Address[] {
  const object = lookup.object("node", name);
  if (object !== undefined && object.addresses.length > 0) return object.addresses;
  return [...new Set(hostsOf(name, lookup).flatMap((host) => host.expectedAddresses))];
}

function hostsOf(node: string, lookup: Lookup): readonly HostEndpointObject[] {
  const hosts: HostEndpointObject[] = [];
  for (const view of lookup.endpoints()) {
    const host = view.kind === "hostEndpoint" ? lookup.object("hostEndpoint", view.id) : undefined;
    if (host?.node === node) hosts.push(host);
  }
  return hosts;
}

export function workloadEnd(view: EndpointView, workload: WorkloadObject): End {
  return {
    name: workloadName(workload),
    kind: workload.pod === undefined ? "endpoint" : "pod",
    addresses: byFamily(workload.addresses),
    node: workload.node,
    workload: workload.id,
    attached: true,
    labels: view.labels,
    ports: view.ports,
  };
}

/** For people: of a pod `namespace/name`, of anything else its endpoint's. */
export const workloadName = (workload: Pick<WorkloadObject, "id" | "namespace" | "pod">): string =>
  `${workload.namespace}/${workload.pod ?? resourceName(workload.id)}`;

/** Who has the address; nobody that is known: outside. */
function holding(what: string, address: Address, thisNode: string, lookup: Lookup): End {
  const holders: Candidate[] = [];
  for (const view of lookup.endpoints()) {
    if (!view.addresses.includes(address)) continue;
    if (view.kind === "workload") {
      const workload = lookup.object("workload", view.id)!;
      const title = `wep/${workload.namespace}/${resourceName(view.id)}`;
      holders.push({ id: view.id, title, end: () => workloadEnd(view, workload) });
    } else if (view.kind === "pod") {
      holders.push({ id: view.id, title: `pod/${view.id}`, end: () => podEnd(view.id, lookup) });
    }
  }
  if (holders.length > 1) {
    const titles = listed(holders.map(({ title }) => title));
    throw new ManxError(
      "ambiguous",
      `${what}: found ${holders.length} with ${formatAddress(address)}, wanted one of ${titles}`,
    );
  }
  if (holders.length === 1) return { ...holders[0]!.end(), addresses: [address] };
  const node = nodeWith(address, thisNode, lookup);
  if (node !== undefined) return { ...nodeEnd(node, lookup), addresses: [address] };
  return {
    name: formatAddress(address),
    kind: "outside",
    addresses: [address],
    attached: false,
    labels: new Map(),
    ports: [],
  };
}

function nodeWith(address: Address, thisNode: string, lookup: Lookup): string | undefined {
  for (const { objects } of lookup.world()) {
    for (const object of objects) {
      if (object.kind === "node" && object.addresses.includes(address)) return object.id;
      // This node's own links say what it has, whatever its host endpoints expect; of others there is nothing better.
      if (object.kind === "interface" && object.addresses.includes(address)) return thisNode;
      const isElsewhere = object.kind === "hostEndpoint" && object.node !== thisNode;
      if (isElsewhere && object.expectedAddresses.includes(address)) return object.node;
    }
  }
  return undefined;
}

/** Everything with labels that an address belongs to, network sets included. */
export function holdersOf(address: Address, lookup: Lookup): readonly Holder[] {
  const holds = ({ addresses, nets }: EndpointView) =>
    addresses.includes(address) || nets.some((net) => cidrContains(net, address));
  return viewsOf(lookup, holds).map((view) => {
    const { labels, ports } = view;
    switch (view.kind) {
      case "workload":
        return { name: workloadName(lookup.object("workload", view.id)!), labels, ports };
      case "networkSet":
        return { name: `network set ${view.id.replace(/^\//, "")}`, labels, ports };
      case "hostEndpoint":
        return { name: `host endpoint ${view.id}`, labels, ports };
      case "pod":
        return { name: view.id, labels, ports };
    }
  });
}

function viewsOf(lookup: Lookup, holds: (view: EndpointView) => boolean): EndpointView[] {
  const found: EndpointView[] = [];
  for (const view of lookup.endpoints()) if (holds(view)) found.push(view);
  return found;
}

function workloads(lookup: Lookup, holds: (workload: WorkloadObject) => boolean): [EndpointView, WorkloadObject][] {
  const found: [EndpointView, WorkloadObject][] = [];
  for (const view of lookup.endpoints()) {
    const workload = view.kind === "workload" ? lookup.object("workload", view.id) : undefined;
    if (workload !== undefined && holds(workload)) found.push([view, workload]);
  }
  return found;
}

/** `kind/namespace/name` → name. */
const resourceName = (id: string): string => id.split("/").slice(2).join("/") || id;

const byFamily = (addresses: readonly Address[]): readonly Address[] =>
  addresses.toSorted((a, b) => a.length - b.length);

function listed(titles: readonly string[]): string {
  const shown = titles.toSorted().slice(0, CANDIDATES_MAX);
  return shown.join(", ") + (titles.length > shown.length ? ` and ${titles.length - shown.length} more` : "");
}

/** Where the name, or one much like it, is to be found. */
function suggestion(name: string, lookup: Lookup): string {
  const same: string[] = [], like: string[] = [];
  const note = (title: string, found: string) => {
    if (found === name) same.push(title);
    else if (isLike(found, name)) like.push(title);
  };
  for (const { objects } of lookup.world()) {
    for (const object of objects) {
      if (object.kind === "pod") note(object.id, object.name);
      else if (object.kind === "workload") note(workloadName(object), object.pod ?? resourceName(object.id));
      else if (object.kind === "node") note(`node/${object.id}`, object.id);
      else if (object.kind === "service") note(`service/${object.id}`, object.name);
    }
  }
  const found = [...new Set(same.length > 0 ? same : like)];
  return found.length === 0 ? "" : `; there is ${listed(found)}`;
}

/** One begins as the other, or they differ by two letters at most. */
function isLike(a: string, b: string): boolean {
  if (a.startsWith(b) || b.startsWith(a)) return true;
  if (Math.abs(a.length - b.length) > 2) return false;
  let before = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      row.push(Math.min(before[j]! + 1, row[j - 1]! + 1, before[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    before = row;
  }
  return before[b.length]! <= 2;
}
