/** Expectation lines: `SOURCE -> TARGET PROTOCOL[/PORT] allow|deny`, checked against the world they speak of. */
import { addressFamily, type Family } from "../model/address.ts";
import type { ScenarioWorld } from "./scenario.ts";
import { SHARED_LINK } from "./address_plan.ts";

export type ServiceProtocol = "tcp" | "udp" | "sctp";
export type ProbeProtocol = ServiceProtocol | "icmp" | "icmpv6";

/** A served port, `tcp/80=http`. */
export interface Service {
  readonly protocol: ServiceProtocol;
  readonly port: number;
  readonly name?: string;
}

/** One end of a line. `link`: the address of that interface of the node. */
export type Party =
  | { readonly kind: "pod"; readonly id: string }
  | { readonly kind: "host"; readonly name: string }
  | { readonly kind: "node"; readonly name: string; readonly link: string };

/** A source and a target of a line; `families` that are tried between them. */
export interface Pair {
  readonly from: Party;
  readonly to: Party;
  readonly families: readonly Family[];
}

export interface Expectation {
  /** As written, spaces made single. */
  readonly text: string;
  /** In the scenario file, from 1. */
  readonly line: number;
  /** As written. */
  readonly source: string;
  readonly target: string;
  readonly protocol: ProbeProtocol;
  /** 0 for icmp and icmpv6. */
  readonly port: number;
  readonly allow: boolean;
  /** What `*` stands for is spelt out; nobody meets itself; never empty. */
  readonly pairs: readonly Pair[];
}

/** A line that says nothing that can be tried. */
export class PartySyntaxError extends Error {
  override readonly name = "PartySyntaxError";
  constructor(readonly found: string, readonly wanted: string) {
    super(`found ${found}, wanted ${wanted}`);
  }
}

const SERVICE = /^(tcp|udp|sctp)\/([1-9][0-9]{0,4})(?:=([a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?))?$/;
const LINE = /^(\S+)\s*->\s*(\S+)\s+([^\s/]+)(?:\/(\S*))?\s+(\S+)$/;

/** `tcp/80` or `tcp/80=http`; undefined for anything else. */
export function parseService(text: string): Service | undefined {
  const match = SERVICE.exec(text);
  if (match === null || Number(match[2]) > 65535) return undefined;
  const service = { protocol: match[1] as ServiceProtocol, port: Number(match[2]) };
  return match[3] === undefined ? service : { ...service, name: match[3] };
}

/** The name that lines and reports use: `redis`, `prod/redis`, `laptop`, `node:kube-01`, `node:kube-01@tun0`. */
export function partyName(party: Party): string {
  if (party.kind === "pod") return party.id.startsWith("default/") ? party.id.slice("default/".length) : party.id;
  if (party.kind === "host") return party.name;
  return `node:${party.name}${party.link === SHARED_LINK ? "" : `@${party.link}`}`;
}

/** @throws {PartySyntaxError} where the line cannot be read, names what is not there, or can try nothing */
export function parseExpectation(text: string, world: ScenarioWorld, line: number): Expectation {
  const match = LINE.exec(text);
  if (match === null) {
    throw new PartySyntaxError(JSON.stringify(text), "SOURCE -> TARGET PROTOCOL[/PORT] allow|deny");
  }
  const [, source, target, protocolText, portText, verdict] = match as unknown as [
    string,
    string,
    string,
    string,
    string?,
    string?,
  ];
  if (verdict !== "allow" && verdict !== "deny") {
    throw new PartySyntaxError(`"${verdict}" at the end of the line`, "allow or deny");
  }
  const { protocol, port } = parseWhat(protocolText, portText);
  const allow = verdict === "allow";
  const pairs = pairsOf(parseParties(source, world), parseParties(target, world), protocol, world);
  if (pairs.length === 0) {
    const family = protocol === "icmp" ? "IPv4 " : protocol === "icmpv6" ? "IPv6 " : "";
    throw new PartySyntaxError(
      `"${source} -> ${target}", which tries nothing`,
      `two different ends that both have an ${family}address`,
    );
  }
  const expectation: Expectation = {
    text: text.replace(/\s+/g, " "),
    line,
    source,
    target,
    protocol,
    port,
    allow,
    pairs,
  };
  if (allow && port !== 0) refuseUnserved(expectation, world);
  return expectation;
}

function parseWhat(protocol: string, port: string | undefined): { protocol: ProbeProtocol; port: number } {
  if (protocol === "icmp" || protocol === "icmpv6") {
    if (port !== undefined) throw new PartySyntaxError(`${protocol}/${port}`, `${protocol} alone`);
    return { protocol, port: 0 };
  }
  const service = parseService(`${protocol}/${port ?? ""}`);
  if (service === undefined || service.name !== undefined) {
    throw new PartySyntaxError(
      port === undefined ? protocol : `${protocol}/${port}`,
      "tcp/PORT, udp/PORT, sctp/PORT, icmp or icmpv6",
    );
  }
  return service;
}

function parseParties(text: string, world: ScenarioWorld): readonly Party[] {
  const pod = (id: string): Party => ({ kind: "pod", id });
  if (text === "*") return world.pods.map(({ id }) => pod(id));
  const node = /^node:([^@]+)(?:@(.+))?$/.exec(text);
  if (node !== null) return [parseNode(node[1]!, node[2] ?? SHARED_LINK, world)];
  const every = /^([^/]+)\/\*$/.exec(text);
  if (every !== null) {
    const namespace = every[1]!;
    if (!world.namespaces.has(namespace)) {
      throw new PartySyntaxError(`the namespace "${namespace}"`, `one of ${[...world.namespaces.keys()].join(", ")}`);
    }
    return world.pods.filter((pod) => pod.namespace === namespace).map(({ id }) => pod(id));
  }
  if (world.hosts.some((host) => host.name === text)) return [{ kind: "host", name: text }];
  const found = world.pods.find((pod) => pod.id === (text.includes("/") ? text : `default/${text}`));
  if (found !== undefined) return [pod(found.id)];
  const names = [...world.pods.map(({ id }) => partyName(pod(id))), ...world.hosts.map((host) => host.name)];
  throw new PartySyntaxError(
    `"${text}", which is no pod, host or node`,
    `one of ${[...names, ...world.nodes.map((node) => `node:${node.name}`)].join(", ")}`,
  );
}

function parseNode(name: string, link: string, world: ScenarioWorld): Party {
  if (!world.nodes.some((node) => node.name === name)) {
    throw new PartySyntaxError(`the node "${name}"`, `one of ${world.nodes.map((node) => node.name).join(", ")}`);
  }
  const links = [SHARED_LINK, ...world.hosts.filter((host) => host.node === name).map((host) => host.link)];
  if (!links.includes(link)) {
    throw new PartySyntaxError(`the interface "${link}" of ${name}`, `one of ${[...new Set(links)].join(", ")}`);
  }
  return { kind: "node", name, link };
}

function pairsOf(
  from: readonly Party[],
  to: readonly Party[],
  protocol: ProbeProtocol,
  world: ScenarioWorld,
): readonly Pair[] {
  return from.flatMap((source) =>
    to.flatMap((target) => {
      if (machine(source) === machine(target)) return [];
      const both = familiesOf(source, world).filter((family) => familiesOf(target, world).includes(family));
      const families = protocol === "icmp"
        ? both.filter((f) => f === 4)
        : protocol === "icmpv6"
        ? both.filter((f) => f === 6)
        : both;
      return families.length === 0 ? [] : [{ from: source, to: target, families }];
    })
  );
}

const machine = (party: Party): string => `${party.kind} ${party.kind === "pod" ? party.id : party.name}`;

function familiesOf(party: Party, world: ScenarioWorld): readonly Family[] {
  if (party.kind !== "host") return world.families;
  return world.hosts.filter((host) => host.name === party.name).map((host) => addressFamily(host.address));
}

/** Who answers at a node's port may be a pod behind `dnat`; undefined where nobody does. */
export function servedBy(party: Party, protocol: ProbeProtocol, port: number, world: ScenarioWorld): Party | undefined {
  const serves = (services: readonly Service[]) => services.some((s) => s.protocol === protocol && s.port === port);
  switch (party.kind) {
    case "pod":
      return world.pods.some((pod) => pod.id === party.id && serves(pod.serves)) ? party : undefined;
    case "host":
      return world.hosts.some((host) => host.name === party.name && serves(host.serves)) ? party : undefined;
    case "node": {
      const dnat = world.dnat.find((d) => d.node === party.name && d.protocol === protocol && d.port === port);
      if (dnat !== undefined) return { kind: "pod", id: dnat.to };
      return world.nodes.some((node) => node.name === party.name && serves(node.serves)) ? party : undefined;
    }
  }
}

function refuseUnserved({ pairs, protocol, port }: Expectation, world: ScenarioWorld): void {
  const silent = [...new Set(pairs.map(({ to }) => to))].filter((to) =>
    servedBy(to, protocol, port, world) === undefined
  );
  if (silent.length === 0) return;
  const names = [...new Set(silent.map(partyName))].join(", ");
  throw new PartySyntaxError(
    `allow to ${protocol}/${port}, which ${names} does not serve`,
    `a port in its \`serves\`, or deny`,
  );
}
