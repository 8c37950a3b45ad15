/** For tests of both variants: rules of every kind, and other people's tables. */
import { type Family, parseCidr } from "../../../src/model/address.ts";
import { addMembers, createSet, getSetIndex, parseIndex } from "../../../src/kernel/netlink/schema/ipset.ts";
import { openNetlink } from "../../../src/kernel/netlink/socket.ts";
import type { NetworkNamespace } from "../../../src/sdk/kernel_door.ts";
import { encodeRule } from "../entry.ts";
import { ACCEPT, DROP, goto, jump, type Match, RETURN, type Rule, rule } from "../ruleset.ts";
import type { WantedTable } from "../table.ts";

export const wantedOf = (
  family: Family,
  chains: Readonly<Record<string, readonly Rule[]>>,
  hooks: Readonly<Record<string, string>> = {},
): WantedTable => ({
  chains: new Map(Object.entries(chains).map(([name, rules]) => [name, rules.map((one) => encodeRule(one, family))])),
  hooks: new Map(Object.entries(hooks).map(([hook, chain]) => [hook, encodeRule(rule(jump(chain)), family)])),
});

export const net = (end: "source" | "destination", text: string, not = false): Match => ({
  match: "net",
  end,
  net: parseCidr(text),
  not,
});
export const protocol = (number: number, not = false): Match => ({ match: "protocol", protocol: number, not });
export const ports = (number: number, end: "source" | "destination", ...ranges: [number, number][]): Match => ({
  match: "ports",
  protocol: number,
  end,
  ranges: ranges.map(([first, last]) => ({ first, last })),
});

/** One of every kind. */
export function everyRule(family: Family): readonly Rule[] {
  const v4 = family === 4;
  const [one, wide] = v4 ? ["10.1.2.3/32", "10.128.0.0/9"] : ["fd00::1/128", "fd00:8000::/17"];
  const icmp = v4 ? 1 : 58;
  return [
    rule(DROP),
    rule(ACCEPT, net("source", one!), net("destination", wide!, true)),
    rule(RETURN, net("source", wide!, true), net("destination", one!)),
    rule(DROP, { match: "interface", way: "in", name: "mx0123456789abc", prefix: false }),
    rule(DROP, { match: "interface", way: "in", name: "mx", prefix: true }, {
      match: "interface",
      way: "out",
      name: "eth0",
      prefix: false,
    }),
    rule(goto("manx-b"), protocol(6), ports(6, "destination", [80, 80])),
    rule(jump("manx-b"), protocol(17), ports(17, "source", [1000, 2000])),
    rule(DROP, protocol(17, true)),
    rule(DROP, protocol(253)),
    rule(DROP, protocol(132), ports(132, "destination", [9, 9])),
    rule(DROP, protocol(136), ports(136, "destination", [9, 10])),
    rule(DROP, protocol(6), ports(6, "destination", [1, 1], [3, 5], [7, 7], [65534, 65535])),
    rule(DROP, protocol(6), ports(6, "source", [1, 2]), ports(6, "destination", [3, 3])),
    rule(DROP, protocol(icmp), { match: "icmp", type: 200, code: null, not: false }),
    rule(DROP, protocol(icmp), { match: "icmp", type: 201, code: 3, not: true }),
    rule(DROP, { match: "state", states: ["invalid"] }),
    rule(RETURN, { match: "state", states: ["related", "established"] }),
    rule(RETURN, { match: "state", states: ["untracked"] }),
    rule(RETURN, { match: "mark", mask: 0x10000, not: false }),
    rule(RETURN, { match: "mark", mask: 0x80000000, not: true }),
    rule(RETURN, { match: "flowMark", mask: 0x20000, not: false }),
    rule(DROP, { match: "set", set: "manx-s", ends: ["source"], not: false }),
    rule(DROP, { match: "set", set: "manx-p", ends: ["destination", "destination"], not: true }),
    rule(DROP, { match: "set", set: "manx-i", ends: ["source", "source"], not: false }),
    rule({ target: "log", group: 86, prefix: "manx deny ingress no profile" }, {
      match: "limit",
      perSecond: 10,
      burst: 20,
    }),
    rule({ target: "tcpReset" }, protocol(6)),
  ];
}

/** The sets that `everyRule` asks. */
export function makeSets(namespace: NetworkNamespace, family: Family): (set: string) => number {
  using socket = openNetlink(12, { namespace });
  const address = family === 4 ? "\x0a\0\0\x01" : "\xfd" + "\0".repeat(15);
  const full = String.fromCharCode(family === 4 ? 32 : 128);
  const sets = [
    { name: "manx-s", kind: "net", family, member: address + full },
    { name: "manx-p", kind: "port", family, member: address + "\x06\0\x50" },
    { name: "manx-i", kind: "interface", family, member: address + full + "mx0" },
  ] as const;
  for (const set of sets) socket.request("make set", [createSet(set), ...addMembers(set, [set.member])]);
  const indexes = new Map(
    sets.map(({ name }) => [name as string, parseIndex(socket.request("ask", [getSetIndex(name)])[0]!)]),
  );
  return (set) => indexes.get(set)!;
}

/** As kube-proxy, docker and firewalld write them, with matches and targets that we know nothing of. */
export const FOREIGN: Readonly<Record<string, string>> = {
  kubeProxy: `*filter
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-SERVICES
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "a/b has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SEP-AAAA - [0:0]
:KUBE-SEP-BBBB - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-CCCC - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SEP-AAAA -s 10.244.0.5/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-AAAA -p tcp -m tcp -j DNAT --to-destination 10.244.0.5:8080
-A KUBE-SEP-BBBB -s 10.244.0.6/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-BBBB -p tcp -m recent --set --name KUBE-SEP-BBBB --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.244.0.6:8080
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-CCCC
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-SVC-CCCC
-A KUBE-SVC-CCCC -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-AAAA
-A KUBE-SVC-CCCC -j KUBE-SEP-BBBB
COMMIT
`,
  docker: `*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -s 192.0.2.0/24
-A DOCKER-USER -j RETURN
COMMIT
`,
  firewalld: `*raw
:PREROUTING_ZONES - [0:0]
:PRE_public - [0:0]
-A PREROUTING -j PREROUTING_ZONES
-A PREROUTING_ZONES -i eth0 -g PRE_public
COMMIT
*filter
:INPUT_ZONES - [0:0]
:IN_public - [0:0]
:IN_public_allow - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -j INPUT_ZONES
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A INPUT_ZONES -i eth0 -g IN_public
-A IN_public -j IN_public_allow
-A IN_public -p icmp -j ACCEPT
-A IN_public -m limit --limit 3/min -m hashlimit --hashlimit-upto 5/sec --hashlimit-mode srcip --hashlimit-name in -j LOG --log-prefix "in: "
-A IN_public_allow -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW,UNTRACKED -j ACCEPT
COMMIT
`,
};
