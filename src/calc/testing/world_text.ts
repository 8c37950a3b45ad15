/**
 * Worlds and verdicts as text, for tests. One object a line; rules are indented under their policy or profile:
 *
 *     node n1 192.168.2.1
 *     namespace prod team=a
 *     account prod/builder level=2
 *     pod web 10.0.0.2 app=web ns=prod on=n1 sa=builder port=http:tcp/80    (attached: a workload, interface `if-web`)
 *     remote db 10.1.0.3 app=db ns=prod                                       (a Pod object alone)
 *     host eth0-n1 192.168.2.1 role=node if=eth0 on=n1 profile=open
 *     link eth0 192.168.2.1
 *     set offices 172.16.0.0/12 kind=office ns=prod
 *     tier early order=5 default=pass                                         (also `closed`, and `log-denied` as for a policy)
 *     service prod/db tcp/80 10.1.0.3                                         (endpoints with their ports)
 *     policy p selects app == "web" tier=early order=3 stage=preDnat staged log-denied
 *       ingress allow tcp from [app == "db"] not 10.2.0.0/16 to port 80,90-99,http
 *       egress log
 *       egress                                                                (covers it, matches nothing)
 *     profile open team=x
 *       ingress allow
 */
import { addressFamily, formatAddress, parseAddress, parseCidr } from "../../model/address.ts";
import type { Address } from "../../model/address.ts";
import type { Packet } from "../../model/desired.ts";
import { judgePath } from "../../model/evaluate.ts";
import type { Path } from "../../model/evaluate.ts";
import { PROTOCOLS } from "../../model/ports.ts";
import type { NamedPort, PortRange } from "../../model/ports.ts";
import type { Action, Direction, NeutralPolicy, NeutralRule, PeerMatch, PolicyStage } from "../../model/rule.ts";
import { parseSelector } from "../../model/selector_parse.ts";
import type { WorldChange, WorldObject } from "../../model/world.ts";
import { createCalc, DEFAULT_FAILSAFE } from "../mod.ts";
import type { CalcResult } from "../mod.ts";

const PROTOCOL_NUMBERS: Readonly<Record<string, number>> = {
  icmp: PROTOCOLS.ICMP,
  icmpv6: PROTOCOLS.ICMPv6,
  tcp: PROTOCOLS.TCP,
  udp: PROTOCOLS.UDP,
  sctp: PROTOCOLS.SCTP,
};

/** One change per object; its origin is `kind/id`. */
export function parseWorld(text: string): WorldChange[] {
  const objects: WorldObject[] = [];
  for (const line of text.split("\n")) {
    if (line.trim() === "" || line.trim().startsWith("#")) continue;
    const rule = /^\s*(ingress|egress)\b(.*)$/.exec(line);
    if (rule === null) objects.push(parseObject(line.trim()));
    else {
      const owner = objects.at(-1)!;
      if (owner.kind !== "policy" && owner.kind !== "profile") throw new Error(`a rule belongs to a policy: ${line}`);
      const direction = rule[1] as Direction;
      const rules = (owner[direction] ?? []) as NeutralRule[];
      if (rule[2]!.trim() !== "") rules.push(parseRule(rule[2]!.trim(), owner.id, direction, rules.length));
      Object.assign(owner, { [direction]: rules });
    }
  }
  return objects.map((object) => ({ origin: `${object.kind}/${object.id}`, objects: [object] }));
}

export const interfaceOf = (pod: string): string => `if-${pod}`;

function parseObject(line: string): WorldObject {
  const [kind, name, ...words] = line.split(/\s+/) as [string, string, ...string[]];
  if (kind === "policy") return parsePolicy(line, name);
  const options = new Map<string, string>(), labels = new Map<string, string>();
  const plain: string[] = [];
  for (const word of words) {
    const [, key, value] = /^([^=]+)=(.*)$/.exec(word) ?? [];
    if (key === undefined) plain.push(word);
    else if (OPTIONS.has(key)) options.set(key, value!);
    else labels.set(key, value!);
  }
  const namespace = options.get("ns") ?? "default";
  const serviceAccount = options.get("sa");
  const ports = (options.get("port")?.split(",") ?? []).map(parseNamedPort);
  const profiles = options.get("profile")?.split(",").filter((name) => name !== "");
  const node = options.get("on") ?? "n1";
  switch (kind) {
    case "node":
      return { kind: "node", id: name, addresses: plain.map(parseAddress), labels };
    case "namespace":
      return { kind: "namespace", id: name, labels };
    case "account": {
      const [namespace, account] = name.split("/") as [string, string];
      return { kind: "serviceAccount", id: name, namespace, name: account, labels };
    }
    case "pod":
      return {
        kind: "workload",
        id: name,
        node,
        namespace,
        interfaceName: options.get("if") ?? interfaceOf(name),
        addresses: plain.map(parseAddress),
        labels,
        ports,
        serviceAccount,
        pod: options.get("pod"),
        profiles,
        orchestrator: "cni",
      };
    case "remote": {
      const addresses = plain.map(parseAddress);
      return {
        kind: "pod",
        id: `${namespace}/${name}`,
        namespace,
        name,
        labels,
        serviceAccount,
        ports,
        addresses,
        node,
      };
    }
    case "host":
      return {
        kind: "hostEndpoint",
        id: name,
        node,
        interfaceName: options.get("if"),
        expectedAddresses: plain.map(parseAddress),
        labels,
        ports,
        profiles: profiles ?? [],
      };
    case "link":
      return { kind: "interface", id: name, addresses: plain.map(parseAddress) };
    case "set":
      return {
        kind: "networkSet",
        id: `${options.get("ns") ?? ""}/${name}`,
        namespace: options.get("ns"),
        name,
        labels,
        nets: plain.map(parseCidr),
      };
    case "tier": {
      const order = options.get("order");
      const defaultAction = options.get("default") === "pass" ? "pass" : "deny";
      const logDenied = plain.includes("log-denied") ? true : undefined;
      return {
        kind: "tier",
        id: name,
        order: order === undefined ? undefined : Number(order),
        defaultAction,
        closed: plain.includes("closed") ? true : undefined,
        logDenied,
      };
    }
    case "profile":
      return { kind: "profile", id: name, labelsToApply: labels, ingress: [], egress: [] };
    case "block":
      return { kind: "block", id: name, cidr: parseCidr(plain[0]!), node };
    case "pool":
      return { kind: "pool", id: name, cidr: parseCidr(plain[0]!), natOutgoing: plain.includes("nat") };
    case "service": {
      const backends = plain.filter((word) => !word.includes("/")).map(parseAddress);
      return {
        kind: "serviceBackends",
        id: name,
        service: options.get("of") ?? name,
        family: backends[0] === undefined ? 4 : addressFamily(backends[0]),
        ports: plain.filter((word) => word.includes("/")).map((word) => parseNamedPort(`:${word}`)),
        backends: backends.map((address) => ({ address, ready: true, serving: true, terminating: false })),
      };
    }
  }
  throw new Error(`no such object: ${line}`);
}

const OPTIONS = new Set(["ns", "sa", "port", "profile", "on", "if", "pod", "order", "default", "of"]);

function parseNamedPort(text: string): NamedPort {
  const [, name, protocol, port] = /^(.*):(\w+)\/(\d+)$/.exec(text)!;
  return { name: name!, protocol: PROTOCOL_NUMBERS[protocol!]!, port: Number(port) };
}

function parsePolicy(line: string, id: string): NeutralPolicy {
  const [, selector, options] =
    /^policy \S+ selects (.*?)((?:\s+(?:tier|order|stage|name)=\S+|\s+staged|\s+log-denied)*)$/.exec(
      line,
    )!;
  const option = (name: string) => new RegExp(`\\b${name}=(\\S+)`).exec(options!)?.[1];
  const order = option("order");
  return {
    kind: "policy",
    id,
    tier: option("tier") ?? "default",
    order: order === undefined ? undefined : Number(order),
    sortName: option("name") ?? id,
    selects: parseSelector(selector!),
    stage: (option("stage") ?? "normal") as PolicyStage,
    staged: / staged\b/.test(options!),
    logDenied: / log-denied\b/.test(options!) ? true : undefined,
  };
}

function parseRule(text: string, policy: string, direction: Direction, index: number): NeutralRule {
  const [, head, from, to] = /^(.*?)(?:\bfrom\b(.*?))?(?:\bto\b(.*))?$/.exec(text)!;
  const [action, protocol, icmp] = head!.trim().split(/\s+/) as [string, string?, string?];
  const [type, code] = icmp?.split("/").map(Number) ?? [];
  const not = protocol?.startsWith("!");
  const number = protocol === undefined ? undefined : PROTOCOL_NUMBERS[protocol.replace("!", "")];
  return {
    action: action as Action,
    ...not ? { notProtocol: number } : { protocol: number },
    icmp: type === undefined ? undefined : { type, code },
    source: parsePeer(from ?? ""),
    destination: parsePeer(to ?? ""),
    origin: { policy, direction, index },
  };
}

function parsePeer(text: string): PeerMatch {
  const peer: { -readonly [K in keyof PeerMatch]: PeerMatch[K] } = {};
  const word = /\s*(not\s+|nodes\s+)?(?:\[(.*?)\]|port\s+(\S+)|service\s+(\S+)|hosts-of\s+(\S+)|(\S+))/y;
  for (let match = word.exec(text); match !== null; match = word.exec(text)) {
    const [, not, selector, ports, service, hostsOf, nets] = match;
    if (selector !== undefined) {
      const field = not === undefined ? "selector" : not.startsWith("nodes") ? "nodes" : "notSelector";
      peer[field] = parseSelector(selector);
    } else if (ports !== undefined) {
      const parts = ports.split(",");
      const names = parts.filter((part) => !/^\d/.test(part));
      peer[not ? "notPorts" : "ports"] = parts.filter((part) => /^\d/.test(part)).map(parseRange);
      if (names.length > 0) peer[not ? "notPortNames" : "portNames"] = names;
    } else if (nets !== undefined) peer[not ? "notNets" : "nets"] = nets.split(",").map(parseCidr);
    else {
      const [namespace, name] = (service ?? hostsOf)!.split("/") as [string, string];
      peer.service = { namespace, name };
      if (hostsOf !== undefined) peer.servicePorts = false;
    }
  }
  return peer;
}

function parseRange(text: string): PortRange {
  const [first, last] = text.split("-").map(Number) as [number, number?];
  return { first, last: last ?? first };
}

/** Every node's state of one world, to ask about packets from end to end. */
export interface Cluster {
  readonly nodes: ReadonlyMap<string, CalcResult>;
  /** `SOURCE -> TARGET PROTOCOL[/PORT]`: what becomes of it. */
  verdict(line: string): "allow" | "deny";
}

/** The cluster a world describes; `n1` is there where the world names no node. */
export function clusterOf(changes: readonly WorldChange[]): Cluster {
  const objects = changes.flatMap((change) => change.objects);
  const names = objects.flatMap((object) => object.kind === "node" ? [object.id] : []);
  const nodes = new Map((names.length > 0 ? names : ["n1"]).map((node) => {
    const calc = createCalc({ node, failsafe: DEFAULT_FAILSAFE });
    return [node, calc.step(changes)] as const;
  }));
  return { nodes, verdict: (line) => verdictOf(objects, nodes, line) };
}

interface End {
  readonly addresses: readonly Address[];
  /** Absent: outside, or a pod that is nowhere attached. */
  readonly node?: string;
  /** Where its node sees its packets; absent: the node itself. */
  readonly interfaceName?: string;
  /** Where it enters and leaves a node from outside. */
  readonly link: string;
}

/** Ends: a pod's name, `node:NAME`, an address, `ADDRESS@LINK`; what joins nodes is `eth0`. */
function endOf(objects: readonly WorldObject[], text: string): End {
  const node = /^node:(.*)$/.exec(text)?.[1];
  for (const object of objects) {
    if (node !== undefined && object.kind === "node" && object.id === node) {
      return { addresses: object.addresses, node, link: "eth0" };
    }
    if (object.kind === "workload" && object.id === text) {
      const { addresses, node, interfaceName } = object;
      return { addresses, node, interfaceName, link: "eth0" };
    }
    if (object.kind === "pod" && object.name === text) return { addresses: object.addresses, link: "eth0" };
  }
  const [address, link] = text.split("@") as [string, string?];
  return { addresses: [parseAddress(address)], link: link ?? "eth0" };
}

function verdictOf(
  objects: readonly WorldObject[],
  nodes: ReadonlyMap<string, CalcResult>,
  line: string,
): "allow" | "deny" {
  const [, source, target, protocolText, portText] = /^(\S+) -> (\S+) (\w+)(?:\/(\d+))?(?:\/\d+)?$/.exec(line)!;
  const from = endOf(objects, source!), to = endOf(objects, target!);
  const protocol = PROTOCOL_NUMBERS[protocolText!]!;
  const verdicts = new Set<"allow" | "deny">();
  for (const sourceAddress of from.addresses) {
    const destination = to.addresses.find((address) => address.length === sourceAddress.length);
    const icmpFamily = protocol === PROTOCOLS.ICMP ? 4 : protocol === PROTOCOLS.ICMPv6 ? 6 : undefined;
    if (destination === undefined || (icmpFamily ?? addressFamily(destination)) !== addressFamily(destination)) {
      continue;
    }
    const packet: Packet = {
      protocol,
      source: sourceAddress,
      destination,
      ...icmpFamily === undefined
        ? { sourcePort: 40_000, destinationPort: Number(portText) }
        : { icmp: { type: icmpFamily === 4 ? 8 : 128, code: 0 } },
    };
    const legs: [string, Path][] = [];
    if (from.node !== undefined && from.node === to.node) {
      legs.push([from.node, { packet, inInterface: from.interfaceName, outInterface: to.interfaceName }]);
    } else {
      if (from.node !== undefined) {
        legs.push([from.node, { packet, inInterface: from.interfaceName, outInterface: to.link }]);
      }
      if (to.node !== undefined) {
        legs.push([to.node, { packet, inInterface: from.link, outInterface: to.interfaceName }]);
      }
    }
    const allowed = legs.every(([node, path]) => judgePath(nodes.get(node)!.desired, path).verdict === "allow");
    verdicts.add(allowed ? "allow" : "deny");
  }
  if (verdicts.size !== 1) {
    throw new Error(`${line}: ${verdicts.size} verdicts over ${from.addresses.map(formatAddress)}`);
  }
  return [...verdicts][0]!;
}

/** `expected` with each line's verdict as it is: compare the two texts. */
export function verdicts(cluster: Cluster, expected: string): { readonly found: string; readonly wanted: string } {
  const lines = expected.split("\n").map((line) => line.trim()).filter((line) => line !== "");
  const found = lines.map((line) => {
    const question = line.replace(/ (allow|deny)$/, "");
    return `${question} ${cluster.verdict(question)}`;
  });
  return { found: found.join("\n"), wanted: lines.join("\n") };
}
