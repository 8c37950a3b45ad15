import { expect, test } from "bun:test";
import { hostCidr, parseAddress, parseCidr } from "./address.ts";
import type { AddressSet, DesiredState, Packet, Rule, SetId } from "./desired.ts";
import { missesOf } from "./evaluate.ts";
import { persistentMap } from "./persistent_map.ts";
import { describeMiss, describeRule, type Holder } from "./rule_text.ts";

const [PHP, WEB, OFFICE] = ["10.0.0.1", "10.0.0.2", "192.0.2.9"].map(parseAddress) as [never, never, never];
const set = (
  id: string,
  kind: "net" | "port",
  title: string,
  ...members: string[]
): [SetId, AddressSet] => [id as SetId, {
  id: id as SetId,
  kind,
  title,
  members: persistentMap(members.map((member) => [member, true] as const)),
}];
const STATE = {
  sets: persistentMap([
    set(
      "node",
      "net",
      '(has(projectcalico.org/orchestrator) && projectcalico.org/namespace == "default" && app == "node")',
    ),
    set("php", "net", 'app == "php"', hostCidr(PHP)),
    set("http", "port", 'port http of app == "web"', WEB + "\x06\x1f\x90"),
    set("svc", "port", "service prod/db"),
    set("addresses", "net", "addresses of service prod/db"),
    set("odd", "net", "whatever a plugin says"),
  ]),
} as DesiredState;
const HOLDERS = new Map<string, Holder>([
  [PHP, {
    name: "default/php",
    labels: new Map([["app", "php"], ["projectcalico.org/namespace", "default"], [
      "projectcalico.org/orchestrator",
      "k8s",
    ]]),
    ports: [],
  }],
  [WEB, { name: "default/web", labels: new Map([["app", "web"]]), ports: [{ name: "http", protocol: 6, port: 8080 }] }],
]);

const rule = (match: Partial<Rule>): Rule => ({
  action: "allow",
  source: {},
  destination: {},
  ...match,
  origin: { policy: "p", direction: "ingress", index: 0 },
});
const tcp: Packet = { protocol: 6, source: PHP, destination: WEB, sourcePort: 40_000, destinationPort: 80 };
const ping: Packet = { protocol: 1, source: PHP, destination: WEB, icmp: { type: 8, code: 0 } };
const id = (...names: string[]) => names as SetId[];

/** A rule in words, then why it does not match, one line each. */
const CASES: readonly [string, Partial<Rule>, Packet, string][] = [
  ["nothing asked", {}, tcp, "allow everything"],
  [
    "a selector",
    { protocol: 6, source: { sets: id("node") }, destination: { ports: [{ first: 6379, last: 6379 }] } },
    tcp,
    `allow tcp from pods in namespace default with app == "node" to port 6379
the source default/php has app=php, wanted app == "node"
port 80 is not 6379`,
  ],
  [
    "an address that nobody is known by",
    { source: { sets: id("node") } },
    { ...tcp, source: OFFICE },
    `allow from pods in namespace default with app == "node"
the source 192.0.2.9 is no endpoint that is known, wanted pods in namespace default with app == "node"`,
  ],
  [
    "prefixes",
    { source: { nets: [parseCidr("10.1.0.0/16"), parseCidr("10.2.0.0/16")], notNets: [parseCidr("10.0.0.0/30")] } },
    tcp,
    `allow from 10.1.0.0/16, 10.2.0.0/16 but not 10.0.0.0/30
the source 10.0.0.1 is not in 10.1.0.0/16, 10.2.0.0/16
the source 10.0.0.1 is in 10.0.0.0/30, which the rule leaves out`,
  ],
  [
    "ranges and a name",
    { destination: { ports: [{ first: 1, last: 9 }, { first: 90, last: 99 }], portSets: id("http") } },
    tcp,
    `allow to port 1-9, 90-99, http
port 80 is none of 1-9, 90-99, http (http of default/web is tcp/8080)`,
  ],
  [
    "a name that nobody there has",
    { destination: { portSets: id("http") } },
    { ...tcp, destination: PHP },
    `allow to port http
port 80 is not http (default/php has no port named http)`,
  ],
  [
    "ports of what has none",
    { destination: { ports: [{ first: 80, last: 80 }] } },
    ping,
    `allow to port 80
icmp has no ports, wanted port 80`,
  ],
  [
    "negations",
    { notProtocol: 6, source: { notSets: id("php") }, destination: { notPorts: [{ first: 80, last: 90 }] } },
    tcp,
    `allow all but tcp from but not endpoints with app == "php" to but not port 80-90
the packet is tcp, which the rule leaves out
the source default/php is one of endpoints with app == "php", which the rule leaves out
port 80 is one of 80-90, which the rule leaves out`,
  ],
  [
    "protocol and type",
    { protocol: 58, icmp: { type: 128, code: 0 }, family: 6 },
    ping,
    `allow IPv6 icmpv6 type 128/0
the packet is IPv4, the rule is for IPv6
the packet is icmp, wanted icmpv6
the packet is type 8/0, wanted type 128/0`,
  ],
  [
    "services",
    { source: { sets: id("addresses") }, destination: { serviceSet: "svc" as SetId } },
    tcp,
    `allow from addresses of service prod/db to service prod/db
the source 10.0.0.1 is none of addresses of service prod/db
the destination 10.0.0.2 at tcp/80 is no endpoint of service prod/db`,
  ],
  [
    "a set of a plugin's own",
    { source: { sets: id("odd", "none") } },
    tcp,
    `allow from whatever a plugin says and the set none
the source 10.0.0.1 is none of whatever a plugin says
the source 10.0.0.1 is none of the set none`,
  ],
  [
    "a source port",
    { source: { ports: [{ first: 53, last: 53 }] } },
    tcp,
    `allow from port 53
source port 40000 is not 53`,
  ],
  [
    "many prefixes",
    { source: { nets: Array.from({ length: 12 }, (_, i) => parseCidr(`10.9.${i}.0/24`)) } },
    tcp,
    `allow from 10.9.0.0/24, 10.9.1.0/24, 10.9.2.0/24, 10.9.3.0/24, 10.9.4.0/24, 10.9.5.0/24, 10.9.6.0/24, 10.9.7.0/24 and 4 more
the source 10.0.0.1 is not in 10.9.0.0/24, 10.9.1.0/24, 10.9.2.0/24, 10.9.3.0/24, 10.9.4.0/24, 10.9.5.0/24, 10.9.6.0/24, 10.9.7.0/24 and 4 more`,
  ],
];
test.each([...CASES])("a rule and why it does not match: %s", (_, match, packet, words) => {
  const asked = rule(match);
  const context = {
    state: STATE,
    packet,
    holdersOf: (address: string) => [HOLDERS.get(address)].filter((holder) => holder !== undefined),
  };
  const misses = missesOf(STATE, asked, packet).flatMap((field) => describeMiss(asked, field, context));
  expect([describeRule(asked, STATE), ...misses].join("\n")).toBe(words);
});
