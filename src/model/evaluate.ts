/**
 * What the desired state means for one packet: the product's own evaluator. It walks lists in the order of
 * policy-semantics, "Order of judgement", and keeps what it saw, for `manx explain` and for cutting flows that a change denies.
 */
import { addressFamily, cidrContains, makeCidr, parseAddress, parseCidr } from "./address.ts";
import type { Address, Cidr } from "./address.ts";
import type {
  AddressSet,
  CompiledPolicy,
  DesiredHostEndpoint,
  DesiredState,
  DesiredWorkload,
  Packet,
  PolicyList,
  ProtocolPort,
  Rule,
  RuleMatch,
  SetId,
} from "./desired.ts";
import { hasPorts, PROTOCOLS } from "./ports.ts";
import type { IcmpMatch, RuleOrigin } from "./rule.ts";

/** `next`: nothing decided and the stage has no default; the packet goes on. */
export type Verdict = "allow" | "deny" | "next";

/** What made the verdict. */
export type Decision =
  | {
    readonly by: "rule";
    /** Absent: a profile. */
    readonly tier?: string;
    readonly policy: string;
    readonly origin: RuleOrigin;
    /** What a staged policy would have decided. */
    readonly staged?: true;
  }
  /** Policies of the tier apply and none matched. */
  | { readonly by: "tier default"; readonly tier: string }
  /** No profile matched, or there is none. */
  | { readonly by: "no profile" }
  /** Nothing matched where nothing has to. */
  | { readonly by: "end" }
  /** No such endpoint here: unknown ones drop. */
  | { readonly by: "unknown endpoint" };

/** A condition of a rule, as its field is called. */
export type RuleField =
  | "family"
  | "protocol"
  | "notProtocol"
  | "icmp"
  | "notIcmp"
  | `${"source" | "destination"}.${Exclude<keyof RuleMatch, "portSets" | "notPortSets">}`;

export interface RuleTrace {
  readonly action: Rule["action"];
  readonly origin: RuleOrigin;
  /** The conditions that do not hold; none = it matched. */
  readonly misses: readonly RuleField[];
}

export interface PolicyTrace {
  readonly id: string;
  readonly staged: boolean;
  /** What it says by itself; of a staged policy, what it would say. */
  readonly outcome: "allow" | "deny" | "pass" | "no match";
  /** Up to the rule that decided. */
  readonly rules: readonly RuleTrace[];
}

export interface TierTrace {
  readonly name: string;
  readonly outcome: "allow" | "deny" | "pass";
  readonly policies: readonly PolicyTrace[];
}

/** What a list said; tiers and profiles up to the one that decided. */
export interface ListJudgement {
  readonly verdict: Verdict;
  readonly decision: Decision;
  readonly tiers: readonly TierTrace[];
  readonly profiles: readonly PolicyTrace[];
}

export type Stage =
  | "ingress"
  | "egress"
  | "forwardIngress"
  | "forwardEgress"
  | "preDnat"
  | "untrackedIngress"
  | "untrackedEgress";

export type EndpointRef = { readonly workload: string } | { readonly hostEndpoint: string };

export interface Judgement extends ListJudgement {
  readonly endpoint: EndpointRef;
  readonly stage: Stage;
}

/** What one stage of one endpoint says about a packet. A stage without a list lets it go on; an unknown endpoint denies. */
export function judge(state: DesiredState, endpoint: EndpointRef, stage: Stage, packet: Packet): Judgement {
  const found: Partial<Record<Stage, PolicyList>> | undefined = "workload" in endpoint
    ? state.workloads.get(endpoint.workload)
    : state.hostEndpoints.get(endpoint.hostEndpoint);
  if (found === undefined) {
    const decision = { by: "unknown endpoint" } as const;
    return { endpoint, stage, verdict: "deny", decision, tiers: [], profiles: [] };
  }
  const list = found[stage];
  if (list === undefined) {
    return { endpoint, stage, verdict: "next", decision: { by: "end" }, tiers: [], profiles: [] };
  }
  return { endpoint, stage, ...judgeList(state, list, packet) };
}

/** What a list says about a packet, with everything that was looked at. */
export function judgeList(state: DesiredState, list: PolicyList, packet: Packet): ListJudgement {
  const tiers: TierTrace[] = [], profiles: PolicyTrace[] = [];
  const answer = (verdict: Verdict, decision: Decision): ListJudgement => ({ verdict, decision, tiers, profiles });
  for (const tier of list.tiers) {
    const policies: PolicyTrace[] = [];
    const conclude = (outcome: TierTrace["outcome"]) => tiers.push({ name: tier.name, outcome, policies });
    let decided: PolicyTrace | undefined;
    for (const policy of tier.policies) {
      const trace = judgePolicy(state, policy, packet);
      policies.push(trace);
      if (policy.staged || trace.outcome === "no match") continue;
      decided = trace;
      break;
    }
    const outcome = decided?.outcome ?? "no match";
    if (outcome === "allow" || outcome === "deny") {
      conclude(outcome);
      return answer(outcome, ruleDecision(decided!, tier.name));
    }
    const enforced = tier.policies.some((policy) => !policy.staged);
    if (outcome === "no match" && enforced && tier.defaultAction === "deny") {
      conclude("deny");
      return answer("deny", { by: "tier default", tier: tier.name });
    }
    conclude("pass");
  }
  for (const profile of list.profiles) {
    const trace = judgePolicy(state, profile, packet);
    profiles.push(trace);
    // Pass has no meaning here: there is no next tier, so it ends this profile and the next one is asked.
    if (trace.outcome === "allow" || trace.outcome === "deny") return answer(trace.outcome, ruleDecision(trace));
  }
  return list.end === "deny" ? answer("deny", { by: "no profile" }) : answer("next", { by: "end" });
}

const ruleDecision = (trace: PolicyTrace, tier?: string): Decision => ({
  by: "rule",
  ...tier === undefined ? {} : { tier },
  policy: trace.id,
  origin: trace.rules.at(-1)!.origin,
});

function judgePolicy(state: DesiredState, policy: CompiledPolicy, packet: Packet): PolicyTrace {
  const rules: RuleTrace[] = [];
  const { id, staged } = policy;
  for (const rule of policy.rules) {
    const misses = missesOf(state, rule, packet);
    rules.push({ action: rule.action, origin: rule.origin, misses });
    if (misses.length === 0 && rule.action !== "log") return { id, staged, outcome: rule.action, rules };
  }
  return { id, staged, outcome: "no match", rules };
}

/** A rule that one condition kept from matching, and that would have turned the verdict round. */
export interface NearMiss extends RuleTrace {
  readonly policy: string;
  /** Absent: a profile. */
  readonly tier?: string;
}

/** The near misses of a judgement, in order. Staged policies count for nothing. */
export function nearMisses({ verdict, tiers, profiles }: ListJudgement): NearMiss[] {
  const of = (policies: readonly PolicyTrace[], tier: { readonly tier?: string }): NearMiss[] =>
    policies.filter((policy) => !policy.staged).flatMap(({ id, rules }) =>
      rules.filter(({ misses, action }) => misses.length === 1 && action !== "log" && action !== verdict)
        .map((rule) => ({ ...rule, ...tier, policy: id }))
    );
  return [...tiers.flatMap(({ name, policies }) => of(policies, { tier: name })), ...of(profiles, {})];
}

/** The conditions of a rule that do not hold for the packet; none = it matches. */
export function missesOf(state: DesiredState, rule: Rule, packet: Packet): RuleField[] {
  const misses: RuleField[] = [];
  const need = (holds: boolean, field: RuleField) => {
    if (!holds) misses.push(field);
  };
  const { family, protocol, notProtocol, icmp, notIcmp } = rule;
  need(family === undefined || family === addressFamily(packet.destination), "family");
  need(protocol === undefined || protocol === packet.protocol, "protocol");
  need(notProtocol === undefined || notProtocol !== packet.protocol, "notProtocol");
  need(icmp === undefined || icmpMatches(icmp, packet), "icmp");
  need(notIcmp === undefined || !icmpMatches(notIcmp, packet), "notIcmp");
  for (const side of ["source", "destination"] as const) {
    const address = packet[side], port = side === "source" ? packet.sourcePort : packet.destinationPort;
    const { nets, notNets, sets, notSets, ports, portSets, notPorts, notPortSets, serviceSet } = rule[side];
    const inNets = (nets: readonly Cidr[]) => nets.some((net) => cidrContains(net, address));
    const inSet = (id: SetId) => netSetHolds(state.sets.get(id), address);
    const atPort = (id: SetId) => portSetHolds(state.sets.get(id), packet.protocol, address, port);
    const portIn = (ranges: Rule["source"]["ports"], ids: Rule["source"]["portSets"]) =>
      port !== undefined && hasPorts(packet.protocol) &&
      ((ranges ?? []).some(({ first, last }) => first <= port && port <= last) || (ids ?? []).some(atPort));
    need(nets === undefined || inNets(nets), `${side}.nets`);
    need(notNets === undefined || !inNets(notNets), `${side}.notNets`);
    need(sets === undefined || sets.every(inSet), `${side}.sets`);
    need(notSets === undefined || !notSets.some(inSet), `${side}.notSets`);
    need((ports ?? portSets) === undefined || portIn(ports, portSets), `${side}.ports`);
    need((notPorts ?? notPortSets) === undefined || !portIn(notPorts, notPortSets), `${side}.notPorts`);
    need(serviceSet === undefined || atPort(serviceSet), `${side}.serviceSet`);
  }
  return misses;
}

/** The types mean those of the packet's own family: ICMP for IPv4, ICMPv6 for IPv6. */
function icmpMatches(match: IcmpMatch, { protocol, destination, icmp }: Packet): boolean {
  const own = addressFamily(destination) === 4 ? PROTOCOLS.ICMP : PROTOCOLS.ICMPv6;
  return protocol === own && icmp !== undefined && icmp.type === match.type &&
    (match.code === undefined || icmp.code === match.code);
}

/** A set that does not exist has no members. */
function netSetHolds(set: AddressSet | undefined, address: Address): boolean {
  if (set === undefined || set.members.size === 0) return false;
  // The longest prefix first: nearly every member is a single address.
  for (let prefix = address.length * 8; prefix >= 0; prefix--) {
    if (set.members.has(makeCidr(address, prefix))) return true;
  }
  return false;
}

function portSetHolds(set: AddressSet | undefined, protocol: number, address: Address, port?: number): boolean {
  if (set === undefined || port === undefined || !hasPorts(protocol)) return false;
  return set.members.has(address + String.fromCharCode(protocol, port >> 8, port & 0xff));
}

/** A packet on its way through this node. */
export interface Path {
  /** Addresses and ports after DNAT and before SNAT. */
  readonly packet: Packet;
  /** As it was before DNAT changed it: what preDnat and untracked policy see. */
  readonly beforeDnat?: Packet;
  /** Absent: a process of the node sent it. */
  readonly inInterface?: string;
  /** Absent: it is for the node itself. */
  readonly outInterface?: string;
}

/** One thing that was asked on the way, in order. */
export type PathStep =
  | { readonly kind: "judgement"; readonly judgement: Judgement }
  /** Never meets this endpoint's policy, and why. */
  | { readonly kind: "exempt"; readonly endpoint: EndpointRef; readonly reason: ExemptReason }
  /** Dropped before policy: a workload may send from its own addresses only. */
  | { readonly kind: "refused"; readonly endpoint: EndpointRef; readonly reason: "not its address" };

export type ExemptReason =
  /** Neighbour discovery and multicast listener messages (RFC 4861, RFC 2710; types 130 to 136) on a link of the node. */
  | "neighbour discovery"
  /** From the node itself to its own pod. */
  | "from its node"
  /** A pod to itself. */
  | "itself"
  | "failsafe port"
  /** Policy before DNAT or before connection tracking has allowed it at this endpoint. */
  | "allowed before";

export interface PathJudgement {
  readonly verdict: "allow" | "deny";
  readonly steps: readonly PathStep[];
}

/**
 * A new connection's first packet on this node, from end to end: where it comes in, then where it goes out. Host endpoint
 * in (untracked, preDnat, then forward or normal) or egress of the local workload; then ingress of the local workload
 * or host endpoint out (untracked where the node itself sends, then forward or normal). What the node sends to its own
 * workload leaves it too: by an interface that the endpoint of every interface stands for. What preDnat or untracked policy
 * allows has passed its host endpoint, though not workloads.
 */
export function judgePath(state: DesiredState, path: Path): PathJudgement {
  const { packet, inInterface, outInterface } = path;
  const original = path.beforeDnat ?? packet;
  const forwarded = inInterface !== undefined && outInterface !== undefined;
  const steps: PathStep[] = [];
  const from = inInterface === undefined ? undefined : endpointAt(state, inInterface);
  const to = outInterface === undefined ? undefined : endpointAt(state, outInterface);

  const exempt = (endpoint: EndpointRef, reason: ExemptReason) => void steps.push({ kind: "exempt", endpoint, reason });
  const ask = (endpoint: EndpointRef, stage: Stage, about: Packet): Verdict => {
    const judgement = judge(state, endpoint, stage, about);
    steps.push({ kind: "judgement", judgement });
    return judgement.verdict;
  };

  /** False: dropped. */
  const passHost = (host: DesiredHostEndpoint, inbound: boolean): boolean => {
    const endpoint = { hostEndpoint: host.id };
    const { failsafe } = state;
    const open = inbound ? failsafe.inbound : failsafe.outbound;
    const back = inbound ? failsafe.outbound : failsafe.inbound;
    // What is forwarded has been tracked, or not, where it came in.
    const early: readonly Stage[] = inbound ? ["untrackedIngress", "preDnat"] : forwarded ? [] : ["untrackedEgress"];
    // A link without it has no IPv6, whatever ports are open. What is forwarded is none, and is told apart after routing.
    const neighbours = isNeighbourDiscovery(packet);
    for (const stage of early) {
      if (host[stage as keyof DesiredHostEndpoint] === undefined) continue;
      if (neighbours) {
        exempt(endpoint, "neighbour discovery");
        continue;
      }
      // Without connection tracking an answer is a packet like any other: it is known by its source port.
      const answers = stage !== "preDnat" && isFailsafe(back, original.protocol, original.sourcePort);
      if (answers || isFailsafe(open, original.protocol, original.destinationPort)) {
        exempt(endpoint, "failsafe port");
        continue;
      }
      const verdict = ask(endpoint, stage, original);
      if (verdict === "deny") return false;
      if (verdict === "allow") {
        exempt(endpoint, "allowed before");
        return true;
      }
    }
    if (!forwarded && (neighbours || isFailsafe(open, packet.protocol, packet.destinationPort))) {
      exempt(endpoint, neighbours ? "neighbour discovery" : "failsafe port");
      return true;
    }
    const stage: Stage = forwarded ? (inbound ? "forwardIngress" : "forwardEgress") : (inbound ? "ingress" : "egress");
    return ask(endpoint, stage, packet) !== "deny";
  };

  const passWorkload = (workload: DesiredWorkload, stage: "ingress" | "egress"): boolean => {
    const endpoint = { workload: workload.id };
    if (stage === "egress" && !maySendFrom(workload, packet)) {
      steps.push({ kind: "refused", endpoint, reason: "not its address" });
      return false;
    }
    // Neighbours share a link: what is forwarded from one pod to another is no discovery, whatever its type says.
    if (!forwarded && isNeighbourDiscovery(packet)) exempt(endpoint, "neighbour discovery");
    else if (stage === "ingress" && inInterface === undefined) exempt(endpoint, "from its node");
    else return ask(endpoint, stage, packet) === "allow";
    return true;
  };

  if (from?.workload !== undefined && from.workload === to?.workload && maySendFrom(from.workload, packet)) {
    exempt({ workload: from.workload.id }, "itself");
    return { verdict: "allow", steps };
  }
  const onTheWay = inInterface === undefined && to?.workload !== undefined ? hostOfAll(state) : undefined;
  /** Nobody's, and it has no policy yet: what comes from it or is forwarded to it is dropped. */
  const unknown = (interfaceName: string | undefined, at: EndpointAt | undefined) =>
    interfaceName !== undefined && at?.workload === undefined && isPodLink(interfaceName);
  const allowed = (!unknown(inInterface, from) || ask({ workload: inInterface! }, "egress", packet) === "allow") &&
    (from?.workload === undefined || passWorkload(from.workload, "egress")) &&
    (from?.host === undefined || passHost(from.host, true)) &&
    (onTheWay === undefined || passHost(onTheWay, false)) &&
    (!forwarded || !unknown(outInterface, to) || ask({ workload: outInterface }, "ingress", packet) === "allow") &&
    (to?.workload === undefined || passWorkload(to.workload, "ingress")) &&
    (to?.host === undefined || passHost(to.host, false));
  return { verdict: allowed ? "allow" : "deny", steps };
}

interface EndpointAt {
  readonly workload?: DesiredWorkload;
  readonly host?: DesiredHostEndpoint;
}

/** The local endpoint behind a link: a workload's, a host endpoint's by name, or the one for all others. */
export function endpointAt(state: DesiredState, interfaceName: string): EndpointAt | undefined {
  for (const workload of state.workloads.values()) if (workload.interfaceName === interfaceName) return { workload };
  for (const host of state.hostEndpoints.values()) {
    if (host.interfaces !== "*" && host.interfaces.includes(interfaceName)) return { host };
  }
  const rest = interfaceName === "lo" ? undefined : hostOfAll(state);
  return rest && { host: rest };
}

/** As the daemon names the links of its pods: `mx`, then a hash. */
const isPodLink = (interfaceName: string): boolean => interfaceName.startsWith("mx");

/** The host endpoint of every interface that has none of its own. */
function hostOfAll(state: DesiredState): DesiredHostEndpoint | undefined {
  for (const host of state.hostEndpoints.values()) if (host.interfaces === "*") return host;
  return undefined;
}

const isFailsafe = (open: readonly ProtocolPort[], protocol: number, port: number | undefined): boolean =>
  open.some((one) => one.protocol === protocol && one.port === port);

const isNeighbourDiscovery = ({ protocol, icmp }: Packet): boolean =>
  protocol === PROTOCOLS.ICMPv6 && icmp !== undefined && icmp.type >= 130 && icmp.type <= 136;

/** RFC 3810: reports go, as neighbour discovery does, from the link-local address or from none. */
const MLDV2_REPORT = 143;
const LINK_LOCAL = parseCidr("fe80::/10");
const UNSPECIFIED = parseAddress("::");

function maySendFrom(workload: DesiredWorkload, packet: Packet): boolean {
  if (workload.addresses.includes(packet.source)) return true;
  const aboutLink = isNeighbourDiscovery(packet) ||
    packet.protocol === PROTOCOLS.ICMPv6 && packet.icmp?.type === MLDV2_REPORT;
  return aboutLink && (packet.source === UNSPECIFIED || cidrContains(LINK_LOCAL, packet.source));
}
