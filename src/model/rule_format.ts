/** Policies as text for people, logs and tests; equal policies give equal text. */
import { formatCidr } from "./address.ts";
import { PROTOCOLS } from "./ports.ts";
import type { PortRange } from "./ports.ts";
import type { IcmpMatch, NeutralPolicy, NeutralRule, PeerMatch } from "./rule.ts";
import { formatSelector } from "./selector_format.ts";

/** A line for the policy, then one for each rule, indented. */
export function formatPolicy(policy: NeutralPolicy): string {
  const place = `tier ${policy.tier} order ${policy.order ?? "last"}`;
  const stage = policy.stage === "normal" ? "" : ` ${policy.stage}`;
  const flags = `${policy.staged ? " staged" : ""}${policy.logDenied ? " log-denied" : ""}`;
  const head = `policy ${policy.id} ${place}${stage}${flags} selects ${formatSelector(policy.selects)}`;
  const lines = (["ingress", "egress"] as const).flatMap((direction) => {
    const rules = policy[direction];
    if (rules === undefined) return [];
    return rules.length === 0 ? [`  ${direction} nothing`] : rules.map((rule) => `  ${direction} ${formatRule(rule)}`);
  });
  return [head, ...lines].join("\n");
}

/** For example `allow tcp from (has(a)) to ports 80,90-99,http`. */
export function formatRule(rule: NeutralRule): string {
  const words: string[] = [rule.action];
  if (rule.family !== undefined) words.push(`ipv${rule.family}`);
  if (rule.protocol !== undefined) words.push(formatProtocol(rule.protocol));
  if (rule.notProtocol !== undefined) words.push(`not ${formatProtocol(rule.notProtocol)}`);
  if (rule.icmp !== undefined) words.push(`type ${formatIcmp(rule.icmp)}`);
  if (rule.notIcmp !== undefined) words.push(`not type ${formatIcmp(rule.notIcmp)}`);
  const source = formatPeer(rule.source), destination = formatPeer(rule.destination);
  if (source !== "") words.push(`from ${source}`);
  if (destination !== "") words.push(`to ${destination}`);
  return words.join(" ");
}

/** For example `tcp`, `47`. */
export function formatProtocol(protocol: number): string {
  return Object.entries(PROTOCOLS).find(([, number]) => number === protocol)?.[0].toLowerCase() ??
    `protocol ${protocol}`;
}

const formatIcmp = (icmp: IcmpMatch): string => icmp.code === undefined ? `${icmp.type}` : `${icmp.type}/${icmp.code}`;

const formatRange = ({ first, last }: PortRange): string => first === last ? `${first}` : `${first}-${last}`;

function formatPeer(peer: PeerMatch): string {
  const list = (name: string, members: readonly string[]) =>
    members.length === 0 ? [] : [`${name} ${members.join(",")}`];
  const ports = [...(peer.ports ?? []).map(formatRange), ...(peer.portNames ?? [])];
  const notPorts = [...(peer.notPorts ?? []).map(formatRange), ...(peer.notPortNames ?? [])];
  const service = peer.service;
  return [
    ...list("nets", (peer.nets ?? []).map(formatCidr)),
    ...list("not nets", (peer.notNets ?? []).map(formatCidr)),
    ...(peer.selector === undefined ? [] : [formatSelector(peer.selector)]),
    ...(peer.notSelector === undefined ? [] : [`not ${formatSelector(peer.notSelector)}`]),
    ...(peer.nodes === undefined ? [] : [`nodes ${formatSelector(peer.nodes)}`]),
    ...(service === undefined ? [] : [
      `service ${service.namespace}/${service.name}${peer.servicePorts === false ? " at any port" : ""}`,
    ]),
    ...list("ports", ports),
    ...list("not ports", notPorts),
  ].join(" and ");
}
