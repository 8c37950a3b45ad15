/** What of ICMPv6 no policy judges: neighbour discovery and multicast listeners. Pure. */
import { parseCidr } from "../../src/model/address.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import type { GrowingTables } from "./growing_tables.ts";
import { isProtocol } from "./rule_matches.ts";
import { DROP, RETURN, type Rule, rule, type TableName } from "./ruleset.ts";

const LINK_LOCAL = parseCidr("fe80::/10");
const UNSPECIFIED = parseCidr("::/128");
/** Neighbour discovery and multicast listeners, RFC 4861 and RFC 2710. */
const NEIGHBOUR_TYPES = [130, 131, 132, 133, 134, 135, 136];
/** MLDv2 reports, RFC 3810: from the link-local address or none, as those are, but no part of what policy never sees. */
const MLDV2_REPORT = 143;

const passTypes = (types: readonly number[]): readonly Rule[] =>
  types.map((type) => rule(RETURN, isProtocol(PROTOCOLS.ICMPv6), { match: "icmp", type, code: null, not: false }));

/** Neighbour discovery goes back where it came from; it is between an endpoint and its node, never forwarded. */
export function besideNeighbours(tables: GrowingTables, table: TableName, rest: readonly Rule[]): readonly Rule[] {
  if (tables.family === 4) return rest;
  const neighbours = passTypes(NEIGHBOUR_TYPES);
  return [rule(tables.to(table, [...neighbours, ...rest]), isProtocol(PROTOCOLS.ICMPv6)), ...rest];
}

/** From addresses that nobody has given to a pod, it may say this and no more. */
export function neighbourSources(tables: GrowingTables): readonly Rule[] {
  if (tables.family === 4) return [];
  const aside = tables.to("raw", [...passTypes([...NEIGHBOUR_TYPES, MLDV2_REPORT]), rule(DROP)]);
  return [LINK_LOCAL, UNSPECIFIED].map((net) =>
    rule(aside, isProtocol(PROTOCOLS.ICMPv6), { match: "net", end: "source", net, not: false })
  );
}
