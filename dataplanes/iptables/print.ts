/** Rules as `iptables-save` shows them. */
import { cidrAddress, cidrPrefix, type Family, formatAddress, formatCidr } from "../../src/model/address.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import type { Match, Rule, Ruleset, Table, Target } from "./ruleset.ts";

const PROTOCOL_NAMES: Readonly<Record<number, string>> = {
  1: "icmp",
  6: "tcp",
  17: "udp",
  132: "sctp",
  136: "udplite",
};
const STATE_NAMES = {
  invalid: "INVALID",
  new: "NEW",
  related: "RELATED",
  established: "ESTABLISHED",
  untracked: "UNTRACKED",
};
const ICMP_NAME = { 4: "icmp", 6: "icmp6" } as const;

const hex = (value: number): string => `0x${(value >>> 0).toString(16)}`;
const not = (yes: boolean): string => yes ? "! " : "";

/** In the order in which the tool prints fields: source, destination, interfaces, protocol, then extensions as written. */
export function printRule({ matches, target }: Rule, family: Family): string {
  const rank = (match: Match): number => {
    if (match.match === "net") return match.end === "source" ? 0 : 1;
    if (match.match === "interface") return match.way === "in" ? 2 : 3;
    return match.match === "protocol" ? 4 : 5;
  };
  const sorted = matches.map((match, at) => ({ match, at })).sort((a, b) =>
    rank(a.match) - rank(b.match) || a.at - b.at
  );
  return [...sorted.map(({ match }) => printMatch(match, family)), printTarget(target, family)].join(" ");
}

function printMatch(match: Match, family: Family): string {
  switch (match.match) {
    case "net":
      return `${not(match.not)}-${match.end === "source" ? "s" : "d"} ${
        cidrPrefix(match.net) === 0 ? `${formatAddress(cidrAddress(match.net))}/0` : formatCidr(match.net)
      }`;
    case "interface":
      return `-${match.way === "in" ? "i" : "o"} ${match.name}${match.prefix ? "+" : ""}`;
    case "protocol":
      return `${not(match.not)}-p ${
        match.protocol === PROTOCOLS.ICMPv6 ? "ipv6-icmp" : PROTOCOL_NAMES[match.protocol] ?? match.protocol
      }`;
    case "set":
      return `-m set ${not(match.not)}--match-set ${match.set} ${
        match.ends.map((end) => end === "source" ? "src" : "dst").join(",")
      }`;
    case "ports": {
      const [range, ...more] = match.ranges;
      const way = match.end === "source" ? "s" : "d";
      const ports = match.ranges.map(({ first, last }) => first === last ? first : `${first}:${last}`).join(",");
      return (match.protocol === PROTOCOLS.TCP || match.protocol === PROTOCOLS.UDP) && more.length === 0
        ? `-m ${PROTOCOL_NAMES[match.protocol]} --${way}port ${printSingle(range!)}`
        : `-m multiport --${way}ports ${ports}`;
    }
    case "icmp":
      return `-m ${ICMP_NAME[family]} ${not(match.not)}--icmp${family === 4 ? "" : "v6"}-type ${match.type}${
        match.code === null ? "" : `/${match.code}`
      }`;
    case "state":
      return `-m conntrack --ctstate ${
        (Object.keys(STATE_NAMES) as (keyof typeof STATE_NAMES)[]).filter((state) => match.states.includes(state))
          .map((state) => STATE_NAMES[state]).join(",")
      }`;
    case "mark":
    case "flowMark":
      return `-m ${match.match === "mark" ? "mark" : "connmark"} ${not(!match.not)}--mark 0x0/${hex(match.mask)}`;
    case "limit":
      return `-m limit --limit ${match.perSecond}/sec --limit-burst ${match.burst}`;
    case "local":
      return `-m addrtype ${not(match.not)}--${match.end === "source" ? "src" : "dst"}-type LOCAL`;
    case "translated":
      return "-m conntrack --ctstate DNAT";
    case "chance":
      return `-m statistic --mode random --probability ${(match.of31Bits / 2 ** 31).toFixed(11)}`;
    case "remember":
      return `-m recent --set ${printList(match.list, family)}`;
    case "remembered":
      return `-m recent --update --seconds ${match.seconds} --reap ${printList(match.list, family)}`;
  }
}

const printList = (list: string, family: Family): string =>
  `--name ${list} --mask ${family === 4 ? "255.255.255.255" : "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"} --rsource`;

/** A range that begins or ends at the edge of all ports is shown without that number's help only where it is both. */
const printSingle = ({ first, last }: { first: number; last: number }): string =>
  first === last ? String(first) : `${first}:${last}`;

function printTarget(target: Target, family: Family): string {
  switch (target.target) {
    case "accept":
    case "drop":
    case "return":
      return `-j ${target.target.toUpperCase()}`;
    case "jump":
      return `-j ${target.chain}`;
    case "goto":
      return `-g ${target.chain}`;
    case "log":
      return `-j NFLOG --nflog-prefix ${
        /[ "'\\]/.test(target.prefix) ? JSON.stringify(target.prefix) : target.prefix
      } --nflog-group ${target.group}`;
    case "mark":
      return `-j MARK --set-xmark ${hex(target.value)}/${hex(target.mask)}`;
    case "noTrack":
      return "-j CT --notrack";
    case "masquerade":
      return "-j MASQUERADE";
    case "tcpReset":
      return "-j REJECT --reject-with tcp-reset";
    case "portUnreachable":
      return `-j REJECT --reject-with icmp${family === 4 ? "" : "6"}-port-unreachable`;
    case "dnat": {
      const address = formatAddress(target.address);
      return `-j DNAT --to-destination ${family === 4 ? address : `[${address}]`}:${target.port}`;
    }
  }
}

/** As `iptables-save -t TABLE` shows our part: chains sorted by name. */
export function printTable({ family, table, chains, hooks }: Table): string {
  const lines = [`*${table} ${family}`];
  for (const name of [...chains.keys()].sort()) lines.push(`:${name}`);
  for (const [hook, chain] of hooks) lines.push(`-A ${hook} -j ${chain}`);
  for (const name of [...chains.keys()].sort()) {
    for (const rule of chains.get(name)!) lines.push(`-A ${name} ${printRule(rule, family)}`);
  }
  return lines.join("\n");
}

/** Everything, sets included: equal rulesets have equal texts. */
export function printRuleset({ tables, sets }: Ruleset): string {
  const lines = tables.map(printTable);
  for (const name of [...sets.keys()].sort()) {
    const { kind, family, content } = sets.get(name)!;
    const members: string[] = [];
    content.forEach((member) => members.push(member));
    lines.push(`set ${name} ${kind}${family} ${members.sort().map((member) => JSON.stringify(member)).join(" ")}`);
  }
  return lines.join("\n");
}
