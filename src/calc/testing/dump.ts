import { formatAddress, formatCidr } from "../../model/address.ts";
import type { Address, Cidr } from "../../model/address.ts";
import type { AddressSet, PolicyList } from "../../model/desired.ts";
import type { CalcResult } from "../mod.ts";
import { servicesText } from "./services_text.ts";

/** The whole content of a result as text, generations aside: equal text, equal state. */
export function dump({ desired, routes }: CalcResult): string {
  const lines: string[] = [];
  const lists = new Map<string, PolicyList>();
  const list = (name: string, list: PolicyList | undefined) => {
    if (list === undefined) return "";
    lists.set(list.id, list);
    return ` ${name}=${list.id}`;
  };
  for (const [id, set] of sorted(desired.sets)) {
    lines.push(`set ${id} ${set.id} ${set.kind} ${set.title}: ${membersText(set)}`);
  }
  for (const [id, w] of sorted(desired.workloads)) {
    const addresses = w.addresses.map(formatAddress).join(",");
    lines.push(
      `workload ${id} ${w.id} ${w.interfaceName} ${addresses} ${w.mac}${list("in", w.ingress)}${list("out", w.egress)}`,
    );
  }
  for (const [id, h] of sorted(desired.hostEndpoints)) {
    lines.push(
      `host ${id} ${h.id} ${JSON.stringify(h.interfaces)}${list("in", h.ingress)}${list("out", h.egress)}` +
        list("fin", h.forwardIngress) + list("fout", h.forwardEgress) + list("predn", h.preDnat) +
        list("uin", h.untrackedIngress) + list("uout", h.untrackedEgress),
    );
  }
  for (const [id, content] of [...lists].sort(byKey)) lines.push(`list ${id} ${JSON.stringify(content)}`);
  lines.push(`failsafe ${JSON.stringify(desired.failsafe)}`);
  const { sources, inside } = desired.masquerade;
  lines.push(`masquerade ${sources.map(formatCidr)} outside ${inside.map(formatCidr)}`);
  if (desired.services !== undefined) lines.push(servicesText(desired.services));
  for (const [key, route] of sorted(routes.routes)) {
    lines.push(`route ${key} ${formatCidr(route.destination)} ${route.node} ${formatAddress(route.via)}`);
  }
  lines.push(`local ${routes.localBlocks.map(formatCidr)}`);
  return lines.join("\n");
}

/** Members of a set in order, as people write them. */
export function membersText(set: AddressSet): string {
  return [...set.members.keys()].map((member) => {
    if (set.kind === "net") return formatCidr(member as unknown as Cidr);
    const [protocol, high, low] = [3, 2, 1].map((back) => member.charCodeAt(member.length - back)) as [
      number,
      number,
      number,
    ];
    return `${formatAddress(member.slice(0, -3) as Address)} ${protocol}/${high << 8 | low}`;
  }).sort().join(" ");
}

const byKey = (a: readonly [string, unknown], b: readonly [string, unknown]): number => a[0] < b[0] ? -1 : 1;
const sorted = <V>(map: Iterable<readonly [string, V]>): (readonly [string, V])[] => [...map].sort(byKey);
