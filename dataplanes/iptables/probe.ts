/** What the kernel can do, found by asking it, and which `iptables` the host uses. */
import { readlinkSync } from "node:fs";
import type { Family } from "../../src/model/address.ts";
import { createSet, destroySet, type SetKind } from "../../src/kernel/netlink/schema/ipset.ts";
import { explainError, UnavailableError } from "../../src/sdk/errors.ts";
import type { NetlinkSocket } from "../../src/sdk/kernel_door.ts";
import { OURS } from "./ruleset.ts";

/** Which extensions of x_tables a kernel has: an `XtablesSocket`, say. */
export interface Extensions {
  supports(kind: "match" | "target", name: string, revision: number): boolean;
}

type Wanted = readonly (readonly ["match" | "target", string, number])[];

const POLICY: Wanted = [
  ["match", "conntrack", 3],
  ["match", "set", 4],
  ["match", "multiport", 1],
  ["match", "tcp", 0],
  ["match", "udp", 0],
  ["match", "mark", 1],
  ["match", "limit", 0],
  ["target", "MARK", 2],
  ["target", "NFLOG", 0],
  ["target", "CT", 2],
];
const CUT: Wanted = [["match", "connmark", 1], ["target", "REJECT", 0]];
const NAT: Wanted = [["target", "MASQUERADE", 0]];
const SERVICES: Wanted = [
  ["match", "addrtype", 1],
  ["match", "statistic", 0],
  ["match", "recent", 1],
  ["target", "DNAT", 2],
  ["target", "REJECT", 0],
];
const ICMP: Readonly<Record<Family, string>> = { 4: "icmp", 6: "icmp6" };

const missing = (extensions: Extensions, wanted: Wanted): readonly string[] =>
  wanted.filter(([kind, name, revision]) => !extensions.supports(kind, name, revision))
    .map(([kind, name, revision]) => `${kind} ${name} (revision ${revision})`);

export interface Abilities {
  readonly families: ReadonlySet<Family>;
  readonly nat: boolean;
  readonly cut: boolean;
  readonly services: boolean;
}

/** @throws {UnavailableError} where the kernel lacks what policy needs */
export function probe(byFamily: ReadonlyMap<Family, Extensions>, netlink: NetlinkSocket): Abilities {
  const families = new Set<Family>();
  let nat = true, cut = true, services = true;
  for (const [family, extensions] of byFamily) {
    const lacks = missing(extensions, [...POLICY, ["match", ICMP[family], 0]]);
    const tool = `ip${family === 6 ? "6" : ""}tables`;
    if (lacks.length > 0) {
      throw new UnavailableError(`probe ${tool}: found a kernel without ${lacks.join(", ")}, wanted one that has them`);
    }
    nat &&= missing(extensions, NAT).length === 0;
    cut &&= missing(extensions, CUT).length === 0;
    services &&= missing(extensions, [...NAT, ...SERVICES]).length === 0;
    for (const kind of ["net", "port", "interface"] as const) probeSet(netlink, family, kind);
    families.add(family);
  }
  return { families, nat, cut, services };
}

function probeSet(netlink: NetlinkSocket, family: Family, kind: SetKind): void {
  const name = `${OURS}probe`;
  try {
    netlink.attempt("destroy probe ip set", [destroySet(name)]);
    netlink.request("make probe ip set", [createSet({ name, kind, family }), destroySet(name)]);
  } catch (cause) {
    throw new UnavailableError(
      `probe ip sets: found ${
        explainError(cause)
      }, wanted a kernel with ip_set and its type for ${kind} members, IPv${family}`,
      { cause },
    );
  }
}

/** The file that Debian's and others' `iptables` leads to. */
const LINKS = ["/etc/alternatives/iptables", "/usr/sbin/iptables", "/sbin/iptables"];

/** Which `iptables` the host itself uses, as the name that its link leads to says; undefined where it does not. */
export function hostVariant(readLink: (path: string) => string = readlinkSync): "legacy" | "nft" | undefined {
  for (const path of LINKS) {
    try {
      const target = readLink(path);
      if (target.includes("nft")) return "nft";
      if (target.includes("legacy")) return "legacy";
    } catch {
      // No such link: the next one may say it.
    }
  }
  return undefined;
}
