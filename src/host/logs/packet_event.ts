/** A logged packet in words: who, and whose policy. Pure. */
import { type Address, formatAddress } from "../../model/address.ts";
import type { DesiredHostEndpoint, DesiredState, PolicyList } from "../../model/desired.ts";
import type { Decision } from "../../model/evaluate.ts";
import { PROTOCOLS } from "../../model/ports.ts";
import type { Direction } from "../../model/rule.ts";
import type { LoggedPacket } from "../../sdk/dataplane.ts";
import type { AddressNames } from "../explain/address_names.ts";
import type { LoggedEnd, NameView, PacketEvent } from "./packet_log_view.ts";

export interface Surroundings {
  readonly desired: () => DesiredState;
  readonly names: Pick<AddressNames, "nameOf" | "behind">;
}

/** Equal for packets of one flow that met the same decision at the same place. */
export function flowOf({ prefix, packet, inInterface, outInterface }: LoggedPacket): string {
  const { protocol, source, destination, sourcePort, destinationPort, icmp } = packet;
  const what = `${protocol} ${sourcePort} ${destinationPort} ${icmp?.type} ${icmp?.code}`;
  return `${prefix}\0${inInterface}\0${outInterface}\0${what}\0${source}${destination}`;
}

/** What the packet is in words, and the list that judged it where that can be told. */
export function describePacket(
  logged: LoggedPacket,
  atMs: number,
  surroundings: Surroundings,
): { readonly event: PacketEvent; readonly list?: PolicyList } {
  const { verdict, direction, decision, prefix, packet, inInterface, outInterface, lengthBytes } = logged;
  const { source, destination, sourcePort, destinationPort, icmp } = packet;
  const { names } = surroundings;
  const end = (address: Address, port?: number): LoggedEnd => {
    const owner = names.nameOf(address);
    return {
      address: formatAddress(address),
      ...port === undefined ? {} : { port },
      ...owner === undefined ? {} : { owner },
    };
  };
  const { endpoint, list } = judgeOf(logged, surroundings);
  const event: PacketEvent = {
    event: "packet",
    time: timeText(atMs),
    packets: 1,
    verdict,
    direction,
    protocol: protocolName(packet.protocol),
    source: end(source, sourcePort),
    destination: end(destination, destinationPort),
    ...icmp === undefined ? {} : { icmp },
    ...endpoint === undefined ? {} : { endpoint },
    ...decisionFields(decision, prefix),
    ...inInterface === undefined ? {} : { inInterface },
    ...outInterface === undefined ? {} : { outInterface },
    lengthBytes,
  };
  return { event, ...list === undefined ? {} : { list } };
}

/** RFC 3339, to the millisecond. */
export const timeText = (ms: number): string => new Date(ms).toISOString();

const protocolName = (number: number): string =>
  Object.entries(PROTOCOLS).find(([, known]) => known === number)?.[0].toLowerCase() ?? String(number);

function decisionFields(
  decision: Decision | undefined,
  prefix: string,
): Pick<PacketEvent, "by" | "tier" | "policy" | "rule" | "prefix"> {
  if (decision === undefined) return { by: "unknown", prefix };
  const tier = "tier" in decision && decision.tier !== undefined ? { tier: decision.tier } : {};
  return decision.by === "rule"
    ? { by: "rule", ...tier, policy: decision.policy, rule: decision.origin.index }
    : { by: decision.by, ...tier };
}

/**
 * Whose policy it was: the direction names the side, the link on that side the endpoint. What is forwarded may pass a host
 * endpoint and a workload in the same direction; then it was the one that has such a decision, the workload where both have.
 */
function judgeOf(
  { direction, decision, inInterface, outInterface }: LoggedPacket,
  { desired, names }: Surroundings,
): { readonly endpoint?: NameView; readonly list?: PolicyList } {
  const state = desired();
  // Into a workload by the link that a packet leaves its node by, into the host by the one that it came by; out likewise.
  const [toWorkload, toHost] = direction === "ingress" ? [outInterface, inInterface] : [inInterface, outInterface];
  const found = toWorkload === undefined ? undefined : names.behind(toWorkload);
  const host = toHost === undefined ? undefined : hostEndpointAt(state, toHost);
  const own = found && state.workloads.get(found.id)?.[direction];
  const list = [...own === undefined ? [] : [own], ...host === undefined ? [] : hostLists(host, direction)]
    .find((list) => canDecide(list, decision));
  const isHosts = host !== undefined && (found === undefined || list !== undefined && list !== own);
  return {
    ...isHosts
      ? { endpoint: { kind: "hostEndpoint", name: host.id } }
      : found === undefined
      ? {}
      : { endpoint: found.name },
    ...list === undefined ? {} : { list },
  };
}

function hostEndpointAt({ hostEndpoints }: DesiredState, interfaceName: string): DesiredHostEndpoint | undefined {
  let ofAll: DesiredHostEndpoint | undefined;
  for (const host of hostEndpoints.values()) {
    if (host.interfaces === "*") ofAll ??= host;
    else if (host.interfaces.includes(interfaceName)) return host;
  }
  return interfaceName === "lo" ? undefined : ofAll;
}

const hostLists = (host: DesiredHostEndpoint, direction: Direction): readonly PolicyList[] =>
  (direction === "ingress"
    ? [host.ingress, host.forwardIngress, host.preDnat, host.untrackedIngress]
    : [host.egress, host.forwardEgress, host.untrackedEgress]).filter((list) => list !== undefined);

function canDecide(list: PolicyList, decision: Decision | undefined): boolean {
  switch (decision?.by) {
    case "rule": {
      const { tier, policy } = decision;
      const policies = tier === undefined
        ? list.profiles
        : list.tiers.find(({ name }) => name === tier)?.policies ?? [];
      return policies.some(({ id }) => id === policy);
    }
    case "tier default":
      return list.tiers.some(({ name }) => name === decision.tier);
    case "no profile":
      return list.end === "deny";
    default:
      return false;
  }
}
