/** Explanations from end to end without a daemon: manifests in, what a person reads out. */
import { expect, test } from "bun:test";
import type { ExplainRequest } from "../api/protocol.ts";
import { explainedWorld, pod } from "../host/testdata/explained_world.ts";
import type { Dataplane } from "../sdk/dataplane.ts";
import { renderExplainReply } from "./explain_text.ts";
import { createPaint } from "./output.ts";
import { renderPolicies } from "./policies.ts";

const PLAIN = createPaint(false);
type World = Awaited<ReturnType<typeof explainedWorld>>;

async function told(world: World, line: string, more: Partial<ExplainRequest> = {}): Promise<string> {
  const [from, to, protocol, family] = line.split(" ") as [string, string, string, string?];
  const question = { from, to, protocol, ...family === undefined ? {} : { family: Number(family.slice(1)) as 4 | 6 } };
  return renderExplainReply(await world.explainer.explain({ question, ...more }), PLAIN).trimEnd();
}
const refusal = async (world: World, line: string, more: Partial<ExplainRequest> = {}): Promise<string> =>
  await told(world, line, more).then((text) => `no refusal: ${text}`, (error: Error) => error.message);
/** Without the leading newline and the indentation of the source. */
const text = (lines: string): string => lines.replace(/^\n/, "").trimEnd();

const REDIS =
  pod("redis", "n1", "10.0.0.4 fd00::4", { service: "redis" }, { ports: "{ name: redis, containerPort: 6379 }" }) +
  pod("php", "n1", "10.0.0.5 fd00::5", { service: "php" }) +
  pod("nodejs", "n2", "10.0.1.5 fd00::15", { service: "nodejs" }) +
  `---
apiVersion: v1
kind: Node
metadata: { name: n2 }
status: { addresses: [ { type: InternalIP, address: 192.168.0.2 } ] }
`;
const REDIS_POLICY = `kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: { name: allow-redis-nodejs }
spec:
  podSelector: { matchLabels: { service: redis } }
  ingress:
  - from: [{ podSelector: { matchLabels: { service: nodejs } } }]
    ports: [{ protocol: TCP, port: 6379 }]
`;

test("a denial names the tier, the policies that were asked, and the rule that came near with the values that differ", async () => {
  const world = await explainedWorld(REDIS);
  await world.apply(REDIS_POLICY, "redis.yaml");
  expect(await told(world, "php redis tcp/redis")).toBe(text(`
DENIED   default/php → default/redis   tcp/6379 (redis)
         10.0.0.5 on n1 → 10.0.0.4 on n1

  egress of default/php on n1: allowed
    because   no policy selects default/php; Profile kns.default: allow everything
    counted   no counter: the dataplane none does not count

  ingress of default/redis on n1: denied
    because   no rule of the policy that tier default has for default/redis matches; the tier's default action is Deny
    tier      default: order 1000000, default Deny; denied
              - NetworkPolicy default/allow-redis-nodejs (redis.yaml:1): 1 rule, no match
                selects endpoints in namespace default with service == "redis"
    near      redis.yaml:7 NetworkPolicy default/allow-redis-nodejs spec.ingress[0]
              allow tcp from pods in namespace default with service == "nodejs" to port 6379
              ✗ the source default/php has service=php, wanted service == "nodejs"
    counted   no counter: the dataplane none does not count`));
});

test("an allowed packet between nodes is judged at both, and says who counts where", async () => {
  const world = await explainedWorld(REDIS);
  await world.apply(REDIS_POLICY, "standard input");
  expect(await told(world, "nodejs redis tcp/6379 -6")).toBe(text(`
ALLOWED   default/nodejs → default/redis   tcp/6379
          fd00::15 on n2 → fd00::4 on n1

  egress of default/nodejs on n2: allowed
    because   no policy selects default/nodejs; Profile kns.default: allow everything
    counted   no counter: n2 counts: ask there

  ingress of default/redis on n1: allowed
    because   NetworkPolicy default/allow-redis-nodejs spec.ingress[0]: allow tcp from pods in namespace default with service == "nodejs" to port 6379
    written   stdin:7
    tier      default: order 1000000, default Deny; allowed
              - NetworkPolicy default/allow-redis-nodejs (stdin:1): 1 rule, allow
                selects endpoints in namespace default with service == "redis"
    counted   no counter: the dataplane none does not count`));
});

const TIERS = `apiVersion: projectcalico.org/v3
kind: Tier
metadata: { name: security }
spec: { order: 100, defaultAction: Pass }
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: { name: security.block }
spec:
  tier: security
  order: 5
  selector: has(service)
  ingress:
  - action: Log
  - action: Deny
    protocol: TCP
    source: { notSelector: "service in {'nodejs', 'php'}", nets: [10.0.0.0/8] }
    destination: { ports: ["6000:6999"], notPorts: [6100] }
    metadata: { annotations: { ticket: "42" } }
  - action: Pass
---
apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: { name: staged-close }
spec:
  order: 1
  selector: service == 'redis'
  ingress:
  - action: Deny
    source: { selector: service == 'nodejs' }
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: { name: late }
spec:
  order: 2000
  selector: service == 'redis'
  ingress:
  - action: Allow
    protocol: UDP
  - { action: Deny, protocol: TCP, destination: { ports: [6379] } }
`;

test("tiers are told one by one, with what is staged and what would have denied", async () => {
  const world = await explainedWorld(REDIS);
  await world.apply(REDIS_POLICY, "redis.yaml");
  await world.apply(TIERS, "tiers.yaml");
  expect(await told(world, "nodejs redis tcp/6379 -4")).toContain(text(`
  ingress of default/redis on n1: allowed
    because   NetworkPolicy default/allow-redis-nodejs spec.ingress[0]: allow tcp from pods in namespace default with service == "nodejs" to port 6379
    written   redis.yaml:7
    tier      security: order 100, default Pass; passed on
              - GlobalNetworkPolicy security.block (tiers.yaml:6): 3 rules, pass
                selects endpoints with has(service)
    tier      default: order 1000000, default Deny; allowed
              - StagedGlobalNetworkPolicy staged-close (tiers.yaml:22), staged: 1 rule, deny
                selects endpoints with service == "redis"
              - NetworkPolicy default/allow-redis-nodejs (redis.yaml:1): 1 rule, allow
                selects endpoints in namespace default with service == "redis"
    near      tiers.yaml:41 NetworkPolicy default/late spec.ingress[1]
              deny tcp to port 6379
              ✗ it matches, but what comes before it has decided
    near      tiers.yaml:15 GlobalNetworkPolicy security.block spec.ingress[1]
              deny IPv4 tcp from 10.0.0.0/8 but not endpoints with service in {"nodejs", "php"} to port 6000-6999 but not port 6100
              ✗ the source default/nodejs is one of endpoints with service in {"nodejs", "php"}, which the rule leaves out
    staged    tiers.yaml:29 StagedGlobalNetworkPolicy staged-close spec.ingress[0]: would deny; in force, it would turn the verdict round
    counted   no counter: the dataplane none does not count`));
  const denied = await told(world, "redis redis tcp/1");
  expect(denied).toContain("because   a pod always reaches itself");
  const outside = await told(world, "10.7.7.7 redis tcp/6379");
  expect(outside).toContain(
    "because   GlobalNetworkPolicy security.block spec.ingress[1]: deny IPv4 tcp from 10.0.0.0/8",
  );
  expect(outside).toContain("written   tiers.yaml:15\n    noted     ticket: 42");
});

test("the other family is told of where it fares otherwise, and only then", async () => {
  const world = await explainedWorld(REDIS);
  await world.apply(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: v4 }
spec: { podSelector: {}, ingress: [ { from: [ { ipBlock: { cidr: 10.0.0.0/8 } } ] } ] }`);
  expect(await told(world, "php redis udp/53")).toEndWith(
    "  note  IPv6 is denied: no rule of the policy that tier default has for default/redis matches; the tier's default action is Deny (-6 explains it)",
  );
  await world.apply(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: v6 }
spec: { podSelector: {}, ingress: [ { from: [ { ipBlock: { cidr: "fd00::/16" } } ] } ] }`);
  expect(await told(world, "php redis udp/53")).toEndWith(
    "  note  IPv6 is allowed: NetworkPolicy default/v6 spec.ingress[0]: allow IPv6 from fd00::/16 (-6 explains it)",
  );
  expect(await told(world, "php nodejs icmp")).not.toContain("IPv6");
});

test("a rule of several peers and ports is one rule, told by the forms that failed by least", async () => {
  const world = await explainedWorld(REDIS);
  await world.apply(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: many }
spec:
  podSelector: {}
  ingress:
  - from:
    - podSelector: { matchLabels: { service: a } }
    - podSelector: { matchLabels: { service: b } }
      namespaceSelector: { matchLabels: { team: x } }
    - ipBlock: { cidr: 172.16.0.0/12, except: [172.16.1.0/24] }
    ports: [ { port: 6379 }, { port: 53, protocol: UDP } ]
`);
  expect(await told(world, "172.16.1.9 redis tcp/6379")).toContain(text(`
    near      m.yaml:7 NetworkPolicy default/many spec.ingress[0]
              allow tcp from pods in namespace default with service == "a" to port 6379, or allow tcp from pods in namespaces with team == "x" with service == "b" to port 6379, or allow IPv4 tcp from 172.16.0.0/12 but not 172.16.1.0/24 to port 6379, or by 3 further peers or ports
              ✗ the source 172.16.1.9 is no endpoint that is known, wanted pods in namespace default with service == "a"
              ✗ the source 172.16.1.9 is no endpoint that is known, wanted pods in namespaces with team == "x" with service == "b"
              ✗ the source 172.16.1.9 is in 172.16.1.0/24, which the rule leaves out
`));
});

const HOSTS = `
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: { name: n1-eth0, labels: { role: node } }
spec: { node: n1, interfaceName: eth0, expectedIPs: [192.168.0.1] }
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: { name: n2-all, labels: { role: node } }
spec: { node: n2, interfaceName: "*" }
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: { name: hosts }
spec:
  selector: role == 'node'
  ingress: [ { action: Allow, protocol: TCP, destination: { ports: [9100] } } ]
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: { name: forwarded }
spec:
  selector: role == 'node'
  applyOnForward: true
  types: [Ingress, Egress]
  ingress: [ { action: Allow, source: { nets: [10.0.0.0/16] } } ]
  egress: [ { action: Allow, protocol: TCP } ]
`;

test("host endpoints on the way are asked, at the link that is known or assumed or named", async () => {
  const world = await explainedWorld(REDIS + HOSTS);
  const steps = (told: string) => told.split("\n").filter((line) => /^ {2}\S.*: |^ {2}note/.test(line)).join("\n");
  expect(steps(await told(world, "nodejs redis udp/53"))).toBe(text(`
  egress of default/nodejs on n2: allowed
  egress, forwarded, of host endpoint n2-all on n2: denied
  ingress, forwarded, of host endpoint n1-eth0 on n1: would be allowed
  ingress of default/redis on n1: would be allowed`));
  expect(steps(await told(world, "192.0.2.7 host tcp/9100"))).toBe("  ingress of host endpoint n1-eth0 on n1: allowed");
  expect(steps(await told(world, "192.0.2.7 host tcp/22"))).toBe("  ingress of host endpoint n1-eth0 on n1: allowed");
  expect(await told(world, "192.0.2.7 host tcp/22")).toContain(
    "because   a failsafe port is open whatever policy says",
  );
  expect(steps(await told(world, "192.0.2.7 node/n1@eth1 tcp/9101"))).toBe(
    "  note  node/n1 has no host endpoint there: what it sends and gets itself meets no policy of its own",
  );
  expect(steps(await told(world, "192.0.2.7 hep/n1-eth0 tcp/9101"))).toBe(
    "  ingress of host endpoint n1-eth0 on n1: denied",
  );
  expect(steps(await told(world, "192.0.2.7 node/n2 tcp/9101"))).toBe(
    "  ingress of host endpoint n2-all on n2: denied",
  );
});

test("what leaves a pool with natOutgoing is judged by the node's address elsewhere", async () => {
  const world = await explainedWorld(`${REDIS}${HOSTS}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: { name: pods }
spec: { cidr: 10.0.0.0/16, natOutgoing: true }
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: { name: by-address }
spec: { order: 1, selector: role == 'node', ingress: [ { action: Allow, source: { nets: [192.168.0.1/32] } } ] }
`);
  const answer = await told(world, "php node/n2 tcp/9999");
  expect(answer).toStartWith("ALLOWED");
  expect(answer).toContain("GlobalNetworkPolicy by-address spec.ingress[0]");
  expect(answer).toContain(
    "note  n1 sends it on with its own address 192.168.0.1: the pool of 10.0.0.5 has natOutgoing",
  );
});

test("doNotTrack policy is told with what it means for answers", async () => {
  const world = await explainedWorld(`${REDIS}${HOSTS}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: { name: raw }
spec:
  selector: role == 'node'
  doNotTrack: true
  applyOnForward: true
  ingress: [ { action: Allow, protocol: TCP, destination: { ports: [9101] } } ]
`);
  const answer = await told(world, "192.0.2.7 host tcp/9101");
  expect(answer).toContain("  ingress, before connection tracking, of host endpoint n1-eth0 on n1: allowed");
  expect(answer).toContain("note  doNotTrack policy decided: answers are judged by themselves");
});

const SERVICE = `
---
apiVersion: v1
kind: Service
metadata: { name: db }
spec: { clusterIP: 10.96.0.1, ports: [ { name: redis, port: 80, targetPort: 6379 } ] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: db-1, labels: { kubernetes.io/service-name: db } }
addressType: IPv4
ports: [ { name: redis, port: 6379, protocol: TCP } ]
endpoints: [ { addresses: [10.0.0.4] }, { addresses: [10.0.1.5] }, { addresses: [10.0.0.5], conditions: { ready: false } } ]
`;

test("a service is explained backend by backend, at the port that they have", async () => {
  const world = await explainedWorld(REDIS + SERVICE);
  await world.apply(REDIS_POLICY);
  const answer = await told(world, "php service/db tcp/80");
  expect(answer.split("\n").filter((line) => /^[A-Z]/.test(line))).toEqual([
    "DENIED   default/php → default/redis   tcp/6379",
    "ALLOWED   default/php → default/nodejs   tcp/6379",
  ]);
  expect(await told(world, "php 10.96.0.1 tcp/redis")).toBe(answer.replaceAll("tcp/6379", "tcp/6379 (redis)"));
  expect(await refusal(world, "php service/db tcp/6379")).toBe(
    'protocol: found "tcp/6379", which is no port of service default/db, wanted one of tcp/80',
  );
  expect(await refusal(world, "php service/other/db tcp/80")).toBe("to: found no service other/db");
});

test("a pod that nobody has attached is explained by its labels, and that is said", async () => {
  const world = await explainedWorld(`${REDIS}---
apiVersion: v1
kind: Pod
metadata: { name: foreign, labels: { service: nodejs } }
spec: { nodeName: n3 }
status: { podIPs: [ { ip: 10.0.3.3 } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: homeless, labels: { service: php } }
status: { podIP: 10.0.3.4 }
---
apiVersion: v1
kind: Pod
metadata: { name: pending }
spec: { nodeName: n3 }
`);
  await world.apply(REDIS_POLICY);
  const answer = await told(world, "foreign redis tcp/6379");
  expect(answer).toStartWith(
    "ALLOWED   default/foreign → default/redis   tcp/6379\n          10.0.3.3 on n3 → 10.0.0.4 on n1",
  );
  expect(answer).toContain("  egress of default/foreign on n3: allowed");
  expect(answer).toContain(
    "note  default/foreign has no WorkloadEndpoint: shown is what its policies say; n3 enforces them",
  );
  expect(await told(world, "redis homeless tcp/1")).toContain("has no WorkloadEndpoint and no node");
  expect(await refusal(world, "pending redis tcp/1")).toBe(
    "pod default/pending: found no address of its own, wanted one: it does not run, or runs on the network of node/n3, which can be asked about",
  );
});

const NAMES = pod("web", "n1", "10.0.0.7", {}) + pod("web", "n2", "10.0.1.7", {}, { namespace: "prod" }) +
  pod("n2", "n1", "10.0.0.8", {}) + pod("host", "n1", "10.0.0.9", {}) +
  pod("node", "n1", "10.0.0.10", {}, { namespace: "pod" });

const REFUSALS: readonly [string, string][] = [
  [
    "php2 web tcp/80",
    'from: found nothing called "php2" in namespace default, wanted [NAMESPACE/]POD, node/NAME, wep/[NAMESPACE/]NAME, hep/NAME, an address, or host; there is default/php',
  ],
  [
    "dev/web web tcp/80",
    'from: found nothing called "dev/web", wanted [NAMESPACE/]POD, node/NAME, wep/[NAMESPACE/]NAME, hep/NAME, an address, or host; there is default/web, prod/web',
  ],
  ["n2 web tcp/80", 'from: found 2 called "n2", wanted one of node/n2, pod/default/n2'],
  ["host web tcp/80", 'from: found 2 called "host", wanted one of node/n1, pod/default/host'],
  [
    "web node/n9 tcp/80",
    'to: found nothing called "node/n9", wanted [NAMESPACE/]POD, node/NAME, wep/[NAMESPACE/]NAME, hep/NAME, an address, or host; there is default/n2, node/n2',
  ],
  [
    "web a/b/c/d tcp/80",
    'to: found "a/b/c/d", wanted [NAMESPACE/]POD, node/NAME, wep/[NAMESPACE/]NAME, hep/NAME, an address, or host',
  ],
  [
    "web@eth0 web tcp/80",
    'from: found the link "eth0" of default/web, wanted none: only nodes and outside addresses have a choice',
  ],
  [
    "web @ tcp/80",
    'to: found "@", wanted [NAMESPACE/]POD, node/NAME, wep/[NAMESPACE/]NAME, hep/NAME, an address, or host',
  ],
  [
    "web fd00::9 tcp/80",
    "explain: found no addresses on both ends (default/web has 10.0.0.7; fd00::9 has fd00::9), wanted two of one family",
  ],
  [
    "web php tcp/80 -6",
    "explain: found no IPv6 addresses on both ends (default/web has 10.0.0.7; default/php has 10.0.0.5 and fd00::5), wanted two of one family",
  ],
  ["web php icmpv6 -4", "protocol: found icmpv6 with IPv4, wanted icmp"],
  [
    "web php icmpv6",
    "explain: found no IPv6 addresses on both ends (default/web has 10.0.0.7; default/php has 10.0.0.5 and fd00::5), wanted two of one family",
  ],
  ["web php tcp", 'protocol: found "tcp", wanted a port, such as tcp/80'],
  ["web php tcp/0", 'protocol: found "tcp/0", wanted a port from 1 to 65535'],
  ["web php tcp/80/90", 'protocol: found "tcp/80/90", wanted a port, such as tcp/80'],
  ["web php icmp/300", 'protocol: found "icmp/300", wanted icmp, icmp/TYPE or icmp/TYPE/CODE, each from 0 to 255'],
  ["web php 47/1", 'protocol: found "47/1", wanted 47 alone: it has no ports'],
  [
    "web php frob",
    'protocol: found "frob", wanted tcp/80, tcp/http, udp/53, sctp/9, icmp, icmp/8, icmp/8/0, icmpv6/128, or the number of a protocol',
  ],
  [
    "web redis udp/redis",
    'protocol: found the port "redis" of udp; default/redis names redis (tcp/6379); wanted one of them or a number',
  ],
  [
    "web php tcp/http",
    'protocol: found the port "http" of tcp; default/php has no named ports; wanted one of them or a number',
  ],
];
test("names and packets that cannot be understood are one clear refusal with what there is", async () => {
  const world = await explainedWorld(REDIS + NAMES);
  const found: [string, string][] = [];
  for (const [line] of REFUSALS) found.push([line, await refusal(world, line)]);
  expect(found).toEqual([...REFUSALS] as [string, string][]);
});

test("a pod with two endpoints is asked for by one of them", async () => {
  const second = `---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: { name: n1-php-net2 }
spec: { node: n1, pod: php, orchestrator: k8s, interfaceName: if-php2, ipNetworks: [10.9.0.5/32] }
`;
  const world = await explainedWorld(REDIS + second);
  expect(await refusal(world, "php redis tcp/80")).toBe(
    'from: found 2 called "php", wanted one of wep/default/n1-php, wep/default/n1-php-net2',
  );
  expect(await told(world, "wep/n1-php-net2 redis tcp/80")).toContain("10.9.0.5 on n1 → 10.0.0.4 on n1");
  expect(await told(world, "10.9.0.5 redis tcp/80")).toContain("10.9.0.5 on n1 → 10.0.0.4 on n1");
});

test("names may say of what kind they are; addresses are known by who has them", async () => {
  const world = await explainedWorld(REDIS + NAMES);
  for (
    const [line, head] of [
      ["node/n2 pod/n2 tcp/80", "node/n2 → default/n2   tcp/80"],
      ["pod/default/host wep/prod/n2-web sctp/9", "default/host → prod/web   sctp/9"],
      ["10.0.0.5 prod/web 47", "default/php → prod/web   protocol 47"],
      ["pod/node 192.168.0.2 icmp/3/1", "pod/node → node/n2   icmp/3/1"],
      ["wep/n1-php 203.0.113.9 udp/53", "default/php → 203.0.113.9   udp/53"],
    ]
  ) expect((await told(world, line!)).split("\n")[0]).toBe(`ALLOWED   ${head}`);
});

test("a daemon that knows nothing yet explains nothing", async () => {
  const world = await explainedWorld(REDIS, { isSynced: () => false });
  expect(await refusal(world, "php redis tcp/1")).toContain("found the datastore not in sync");
});

test("what is not in force yet is said", async () => {
  const world = await explainedWorld(REDIS, { isInForce: () => false });
  expect(await told(world, "php redis tcp/1")).toContain("note  the latest change is not in force on n1 yet");
});

test("counters of the deciding rule are told, with how many decisions share them, and why there are none", async () => {
  const decisions = (index: number) => ({
    by: "rule" as const,
    tier: "default",
    policy: "NetworkPolicy.networking.k8s.io/default/allow-redis-nodejs",
    origin: {
      policy: "NetworkPolicy.networking.k8s.io/default/allow-redis-nodejs",
      direction: "ingress" as const,
      index,
    },
  });
  const counting = (counts: Dataplane["counts"]) => [{
    name: "counter",
    instance: { capabilities: { aspects: new Set(["policy"]) }, counts } as unknown as Dataplane,
  }];
  const counted = async (counts: Dataplane["counts"]) => {
    const world = await explainedWorld(REDIS + "---\n" + REDIS_POLICY, { dataplanes: counting(counts) });
    return (await told(world, "nodejs redis tcp/6379")).split("\n").filter((line) => line.includes("counted")).at(-1)!
      .trim();
  };
  expect(await counted(() => Promise.resolve([{ decisions: [decisions(0)], packets: 1, bytes: 60 }]))).toBe(
    "counted   1 new flow, 60 bytes",
  );
  expect(
    await counted(() =>
      Promise.resolve([
        { decisions: [decisions(0), decisions(1), decisions(2)], packets: 5, bytes: 300 },
        { decisions: [decisions(0), decisions(1)], packets: 2, bytes: 120 },
        { decisions: [decisions(7)], packets: 9, bytes: 9 },
      ])
    ),
  ).toBe(
    "counted   7 new flows, 420 bytes, shared with 2 other decisions that the kernel has as one",
  );
  expect(await counted(() => Promise.resolve([]))).toBe("counted   no counter: not in force yet");
  expect(await counted(() => Promise.resolve([{ decisions: [decisions(7)], packets: 9, bytes: 9 }]))).toBe(
    "counted   no counter: the dataplane counter keeps no counter for it",
  );
  expect(await counted(() => Promise.reject(new Error("EPERM")))).toBe("counted   no counter: cannot be read: EPERM");
});

test("policies lists what applies in order, with what tiers end in, places and staged marks", async () => {
  const world = await explainedWorld(REDIS + HOSTS);
  await world.apply(REDIS_POLICY, "redis.yaml");
  await world.apply(TIERS, "tiers.yaml");
  const list = async (name: string, wide = false) =>
    renderPolicies(await world.explainer.policies(name, "default"), wide).trimEnd();
  expect(await list("redis")).toBe(text(`
DIRECTION   TIER       ORDER   POLICY                                            RULES   SOURCE
ingress     security   5       GlobalNetworkPolicy security.block                3       tiers.yaml:6
ingress     default    1       StagedGlobalNetworkPolicy staged-close (staged)   1       tiers.yaml:22
ingress     default    1000    NetworkPolicy default/allow-redis-nodejs          1       redis.yaml:1
ingress     default    2000    NetworkPolicy default/late                        2       tiers.yaml:32
ingress     default    -       otherwise Deny                                    -       -
ingress     -          -       Profile kns.default                               1       -
egress      -          -       Profile kns.default                               1       -`));
  expect(await list("node/n2", true)).toBe(text(`
DIRECTION             TIER      ORDER   POLICY                          RULES   SOURCE          SELECTS
ingress               default   last    GlobalNetworkPolicy forwarded   1       world.yaml:55   endpoints with role == "node"
ingress               default   last    GlobalNetworkPolicy hosts       1       world.yaml:48   endpoints with role == "node"
ingress               default   -       otherwise Deny                  -       -               -
ingress (forwarded)   default   last    GlobalNetworkPolicy forwarded   1       world.yaml:55   endpoints with role == "node"
ingress (forwarded)   default   -       otherwise Deny                  -       -               -
egress                default   last    GlobalNetworkPolicy forwarded   1       world.yaml:55   endpoints with role == "node"
egress                default   -       otherwise Deny                  -       -               -
egress (forwarded)    default   last    GlobalNetworkPolicy forwarded   1       world.yaml:55   endpoints with role == "node"
egress (forwarded)    default   -       otherwise Deny                  -       -               -`));
  expect(await world.explainer.policies("192.0.2.9", "default").catch((error: Error) => error.message)).toBe(
    "policies: found no endpoint with 192.0.2.9: policy applies to pods, endpoints and nodes",
  );
});
