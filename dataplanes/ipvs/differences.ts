/** What the kernel has otherwise than wanted, as lines for people: `- ` found, `+ ` wanted, `~ ` so much more. Pure. */
import { type Address, addressFamily, familyBits, formatAddress } from "../../src/model/address.ts";
import type { RealServer, VirtualService } from "../../src/kernel/netlink/schema/ipvs.ts";
import { endText, type FoundServices, protocolText, sameServer, sameService, serviceText } from "./found_servers.ts";
import { chainText, FIXED_SETS, type GateSet, netsOf } from "./gate.ts";
import { formText, type FoundGate, TABLE, valueText } from "./gate_table.ts";
import { type ElementValue, type Renderer, splitElementId, type WantedService } from "./render.ts";
import type { ServiceLinks } from "./service_links.ts";

/** Of each kind of thing; how many there are beyond is said. */
const LINES_MAX = 50;

export interface Found {
  /** Absent: the kernel has no IPVS. */
  readonly services: FoundServices | undefined;
  readonly links: Pick<ServiceLinks, "keys" | "linkOf" | "oddities">;
  readonly gate: FoundGate;
}

/** `wanted` absent: nothing of ours is to be there. Empty where a write would send nothing. */
export function differences(found: Found, wanted: Renderer | undefined): readonly string[] {
  return [
    ...bounded("services and servers", ofServices(found.services, wanted)),
    ...bounded("addresses", ofAddresses(found.links, wanted)),
    ...bounded(`table inet ${TABLE.table}`, ofGate(found.gate, wanted)),
  ];
}

// ------------------------------------------------------------------------------------------------------------- services

function ofServices(found: FoundServices | undefined, wanted: Renderer | undefined): readonly string[] {
  const ours = found?.ours ?? new Map(), foreign = found?.foreign ?? new Set();
  const lines: string[] = [];
  for (const key of union(ours.keys(), wanted?.services.keys())) {
    const is = ours.get(key), want = wanted?.services.get(key);
    if (want === undefined) lines.push(`- ${headOf(is!.service)}${countText(is!.servers)}`);
    else if (is === undefined) {
      const why = foreign.has(key) ? " (somebody else has it)" : "";
      lines.push(`+ ${headOf(want.service)}${countText(want.servers)}${why}`);
    } else {
      if (!sameService(is.service, want.service)) lines.push(`- ${headOf(is.service)}`, `+ ${headOf(want.service)}`);
      lines.push(...ofServers(is.servers, want));
    }
  }
  return lines;
}

function ofServers(found: ReadonlyMap<string, RealServer>, { service, servers }: WantedService): readonly string[] {
  const lines: string[] = [];
  const line = (mark: string, one: RealServer) =>
    `${mark} server ${endText(one)} weight ${one.weight} of service ${serviceText(service)}`;
  for (const key of union(found.keys(), servers.keys())) {
    const is = found.get(key), want = servers.get(key);
    // Retired, and gone when its connections are: as wanted.
    if (want === undefined && is!.weight === 0) continue;
    if (is !== undefined && want !== undefined && sameServer(is, want)) continue;
    if (is !== undefined) lines.push(line("-", is));
    if (want !== undefined) lines.push(line("+", want));
  }
  return lines;
}

/** In the words of `ipvsadm -Ln`. */
const headOf = (service: VirtualService): string =>
  `service ${serviceText(service)} ${service.scheduler}` +
  (service.persistenceSeconds === undefined ? "" : ` persistent ${service.persistenceSeconds}`);

const countText = ({ size }: ReadonlyMap<string, RealServer>): string =>
  ` with ${size} ${size === 1 ? "server" : "servers"}`;

// ------------------------------------------------------------------------------------------------------------ addresses

function ofAddresses(links: Found["links"], wanted: Renderer | undefined): readonly string[] {
  const { down, strays } = links.oddities();
  const lines = down.flatMap(({ name }) => [`- link ${name} down`, `+ link ${name} up`]);
  const whole = (address: Address) => `${formatAddress(address)}/${familyBits(addressFamily(address))}`;
  for (const { link, address, prefix } of strays) {
    lines.push(`- address ${formatAddress(address)}/${prefix} of ${link.name}`);
  }
  for (const key of union(links.keys(), wanted?.addresses.keys())) {
    const address = key as Address, link = links.linkOf(address);
    const isWanted = wanted?.addresses.get(key) === true;
    if (link !== undefined && !isWanted) lines.push(`- address ${whole(address)} of ${link.name}`);
    if (link === undefined && isWanted) lines.push(`+ address ${whole(address)}`);
  }
  return lines;
}

// ----------------------------------------------------------------------------------------------------------------- gate

function ofGate(found: FoundGate, wanted: Renderer | undefined): readonly string[] {
  const title = `table inet ${TABLE.table}`;
  if (wanted === undefined) return found.isThere ? [`- ${title}`] : [];
  if (!found.isThere) return [`+ ${title}`];
  const lines: string[] = [];
  const line = (mark: string, what: string) => lines.push(`${mark} ${title} ${what}`);
  for (const name of union(found.chains.keys(), wanted.chains.keys())) {
    const is = found.chains.get(name), want = wanted.chains.get(name);
    const text = want && chainText(want);
    if (is === text) continue;
    if (is !== undefined) line("-", `chain ${name} with ${rulesText(is)}`);
    if (text !== undefined) line("+", `chain ${name} with ${rulesText(text)}`);
  }
  for (const name of union(found.sets.keys(), wanted.sets.keys())) {
    const is = found.sets.get(name), want = wanted.sets.get(name);
    if (is === (want && formText(want))) continue;
    if (is !== undefined) line("-", `set ${name}${want === undefined ? "" : " of another type"}`);
    if (want !== undefined) line("+", `set ${name}`);
  }
  for (const id of union(found.elements.keys(), wanted.elements.keys())) {
    const is = found.elements.get(id), want = wanted.elements.get(id);
    if (is !== undefined && want !== undefined && valueText(is) === valueText(want)) continue;
    const { set } = splitElementId(id);
    // Those of a set that is told as a whole are not told one by one.
    if (is !== undefined && wanted.sets.get(set) !== undefined) line("-", elementText(id, is));
    if (want !== undefined && found.sets.has(set)) line("+", elementText(id, want));
  }
  return lines;
}

/** A chain's text is its base and its rules. */
function rulesText(text: string): string {
  const [, rules] = JSON.parse(text) as [unknown, readonly unknown[]];
  return `${rules.length} ${rules.length === 1 ? "rule" : "rules"}`;
}

/** `services4 10.96.0.1 . tcp . 80 : goto serve`, as nft has it. */
function elementText(id: string, value: ElementValue): string {
  const { set, key } = splitElementId(id);
  const verdict = valueText(value);
  return `set ${set} ${keyText(formOf(set), key)}${verdict === "" ? "" : ` : ${verdict}`}`;
}

const formOf = (name: string): GateSet => FIXED_SETS.get(name) ?? netsOf(name.startsWith("nets4") ? 4 : 6);

function keyText({ fields, interval }: GateSet, key: string): string {
  if (interval) {
    const half = key.length / 2;
    return `${formatAddress(key.slice(0, half) as Address)}-${formatAddress(key.slice(half) as Address)}`;
  }
  let at = 0;
  return fields.map((field) => {
    const start = at;
    at += field === "ipv6_addr" ? 16 : 4;
    switch (field) {
      case "inet_proto":
        return protocolText(key.charCodeAt(start));
      case "inet_service":
        return String(key.charCodeAt(start) << 8 | key.charCodeAt(start + 1));
      default:
        return formatAddress(key.slice(start, at) as Address);
    }
  }).join(" . ");
}

// --------------------------------------------------------------------------------------------------------------- common

function union(found: Iterable<string>, wanted: Iterable<string> = []): ReadonlySet<string> {
  const all = new Set(found);
  for (const key of wanted) all.add(key);
  return all;
}

function bounded(title: string, lines: readonly string[]): readonly string[] {
  const sorted = lines.map((line, at) => ({ line, at })).sort((a, b) =>
    a.line.slice(2) < b.line.slice(2) ? -1 : a.line.slice(2) > b.line.slice(2) ? 1 : a.at - b.at
  ).map(({ line }) => line);
  if (sorted.length <= LINES_MAX) return sorted;
  return [...sorted.slice(0, LINES_MAX), `~ ${title}: ${sorted.length - LINES_MAX} lines more`];
}
