/** A packet's way through the node: which endpoints it meets, and at which stages it asks them. */
import { type Address, holds, readNet } from "./address.ts";
import type { ProfileRules, Tier } from "./calico_policy.ts";
import type { Endpoint } from "./holder.ts";
import { judge } from "./judgement.ts";
import { PROTOCOLS } from "./protocol.ts";
import type { Direction, Packet, Policy } from "./rule.ts";

interface Port {
  readonly protocol: number;
  readonly port: number;
}

export interface Failsafe {
  readonly inbound: readonly Port[];
  readonly outbound: readonly Port[];
}

export interface Node {
  /** Of the whole world; staged ones are none. */
  readonly policies: readonly Policy[];
  readonly tiers: ReadonlyMap<string, Tier>;
  readonly failsafe: Failsafe;
  /** Of an endpoint, by name; undefined: nothing is known of it. */
  profile(name: string, endpoint: Endpoint): ProfileRules | undefined;
  endpointAt(interfaceName: string): Place;
  /** The host endpoint of all interfaces that have none of their own. */
  readonly hostOfAll: Endpoint | undefined;
}

/** What stands behind an interface. */
export type Place = Endpoint | "nothing" | "unknown pod link";

export interface Journey {
  /** After DNAT. */
  readonly packet: Packet;
  /** As it was before DNAT. */
  readonly original: Packet;
  /** Absent: a process of the node sent it. */
  readonly inInterface?: string;
  /** Absent: it is for the node itself. */
  readonly outInterface?: string;
}

type Stage = "normal" | "forward" | "preDnat" | "untracked";

/** The verdict on a new connection's first packet: whether it passes. What was asked on the way goes to `why`. */
export function travel(node: Node, journey: Journey, why: string[]): boolean {
  const { packet, inInterface, outInterface } = journey;
  const from: Place = inInterface === undefined ? "nothing" : node.endpointAt(inInterface);
  const to: Place = outInterface === undefined ? "nothing" : node.endpointAt(outInterface);
  // The node reaches its own pods before any policy of theirs is asked, so none has to be known.
  if (from === "unknown pod link" || (to === "unknown pod link" && inInterface !== undefined)) {
    why.push(`no endpoint has the pod link ${from === "unknown pod link" ? inInterface : outInterface}: Deny`);
    return false;
  }
  if (from !== "nothing" && from.kind === "workload") {
    if (!maySendFrom(from, packet)) {
      why.push(`${from.title} sends from an address that is not its own: Deny`);
      return false;
    }
    if (from === to) {
      why.push(`${from.title} to itself: never meets policy`);
      return true;
    }
  }
  const traveller = new Traveller(node, journey, why);
  if (from !== "nothing" && !(from.kind === "workload" ? traveller.leavesWorkload(from) : traveller.entersHost(from))) {
    return false;
  }
  if (to === "unknown pod link") return node.hostOfAll === undefined || traveller.leavesHost(node.hostOfAll);
  if (to === "nothing") return true;
  return to.kind === "workload" ? traveller.entersWorkload(to) : traveller.leavesHost(to);
}

/** Each question: does the packet pass this endpoint, this way? */
class Traveller {
  constructor(readonly node: Node, readonly journey: Journey, readonly why: string[]) {}

  leavesWorkload(workload: Endpoint): boolean {
    return this.#exempt(workload, this.#findsNeighbours && !this.#isForwarded, "neighbour discovery") ||
      this.#ask(workload, "egress", "normal") === "allow";
  }

  entersWorkload(workload: Endpoint): boolean {
    if (this.journey.inInterface === undefined) {
      // The node's own end is judged where a host endpoint stands for all of its interfaces; the pod's end is not.
      const { hostOfAll } = this.node;
      return (hostOfAll === undefined || this.leavesHost(hostOfAll)) &&
        this.#exempt(workload, true, "sent by its own node");
    }
    return this.#ask(workload, "ingress", "normal") === "allow";
  }

  entersHost(host: Endpoint): boolean {
    const { inbound, outbound } = this.node.failsafe;
    const { packet, original } = this.journey;
    const isFailsafe = isTo(inbound, original);
    // Without connection tracking an answer is known by its source port alone.
    if (
      !this.#exempt(host, isFailsafe || isFrom(outbound, original), "failsafe port, before tracking") &&
      !this.#exempt(host, this.#findsNeighbours, "neighbour discovery, before tracking")
    ) {
      const verdict = this.#ask(host, "ingress", "untracked");
      if (verdict !== "none") return verdict === "allow";
    }
    if (
      !this.#exempt(host, isFailsafe, "failsafe port, before DNAT") &&
      !this.#exempt(host, this.#findsNeighbours, "neighbour discovery, before DNAT")
    ) {
      const verdict = this.#ask(host, "ingress", "preDnat");
      if (verdict !== "none") return verdict === "allow";
    }
    if (this.#isForwarded) return this.#ask(host, "ingress", "forward") === "allow";
    return this.#exempt(host, isTo(inbound, packet), "failsafe port") ||
      this.#exempt(host, this.#findsNeighbours, "neighbour discovery") ||
      this.#ask(host, "ingress", "normal") === "allow";
  }

  leavesHost(host: Endpoint): boolean {
    if (this.#isForwarded) return this.#ask(host, "egress", "forward") === "allow";
    const { inbound, outbound } = this.node.failsafe;
    const { packet, original } = this.journey;
    const isFailsafe = isTo(outbound, original) || isFrom(inbound, original);
    if (this.#exempt(host, this.#findsNeighbours, "neighbour discovery")) return true;
    if (!this.#exempt(host, isFailsafe, "failsafe port, before tracking")) {
      const verdict = this.#ask(host, "egress", "untracked");
      if (verdict !== "none") return verdict === "allow";
    }
    return this.#exempt(host, isTo(outbound, packet), "failsafe port") ||
      this.#ask(host, "egress", "normal") === "allow";
  }

  /** It is of one link: forwarded, it is a packet like any other. Before routing nobody knows which it will be. */
  get #findsNeighbours(): boolean {
    return isNeighbourDiscovery(this.journey.packet);
  }

  get #isForwarded(): boolean {
    return this.journey.inInterface !== undefined && this.journey.outInterface !== undefined;
  }

  #exempt(endpoint: Endpoint, is: boolean, reason: string): boolean {
    if (is) this.why.push(`${endpoint.title}: ${reason}: not asked`);
    return is;
  }

  #ask(endpoint: Endpoint, direction: Direction, stage: Stage): "allow" | "deny" | "none" {
    const { node, journey, why } = this;
    const asked = node.policies.filter((policy) =>
      policy.directions.includes(direction) && isAskedAt(policy, stage) && policy.selects(endpoint)
    );
    const hasDefaults = stage === "normal" || stage === "forward";
    if (!hasDefaults && asked.length === 0) return "none";
    why.push(`${direction} of ${endpoint.title}${endpoint.kind === "workload" ? "" : ` (${stage})`}:`);
    if (stage === "forward" && asked.length === 0) {
      why.push("  no policy for forwarded traffic: Allow");
      return "allow";
    }
    return judge({
      direction,
      packet: hasDefaults ? journey.packet : journey.original,
      policies: asked,
      tiers: node.tiers,
      // Of forwarded traffic too: it is allowed where no policy for it applies, but only preDNAT and doNotTrack have no end.
      profiles: endpoint.profiles.map((name) => [name, node.profile(name, endpoint)] as const),
      hasDefaults,
    }, why);
  }
}

/** What applies on forward applies to the host's own traffic as well. */
function isAskedAt({ stage, applyOnForward }: Policy, asked: Stage): boolean {
  return asked === "forward" ? stage === "normal" && applyOnForward : stage === asked;
}

const isTo = (ports: readonly Port[], { protocol, destinationPort }: Packet): boolean =>
  ports.some((open) => open.protocol === protocol && open.port === destinationPort);
const isFrom = (ports: readonly Port[], { protocol, sourcePort }: Packet): boolean =>
  ports.some((open) => open.protocol === protocol && open.port === sourcePort);

const icmp6Type = ({ protocol, icmp }: Packet): number => protocol === PROTOCOLS.ICMPv6 ? icmp?.type ?? -1 : -1;

/** Multicast listener discovery (RFC 2710) and neighbour discovery (RFC 4861). */
const isNeighbourDiscovery = (packet: Packet): boolean => icmp6Type(packet) >= 130 && icmp6Type(packet) <= 136;

/** RFC 3810: from the same addresses as neighbour discovery. */
const MLDV2_REPORT = 143;
const LINK_ADDRESSES = [readNet("fe80::/10", "link-local"), readNet("::/128", "unspecified")];

/** A workload sends from its own addresses; what it says about its link, also from a link-local one or from none. */
function maySendFrom(workload: Endpoint, packet: Packet): boolean {
  const within = (nets: Endpoint["nets"], address: Address) => nets.some((net) => holds(net, address));
  return within(workload.nets, packet.source) ||
    ((isNeighbourDiscovery(packet) || icmp6Type(packet) === MLDV2_REPORT) && within(LINK_ADDRESSES, packet.source));
}
