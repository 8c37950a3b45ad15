/** The worked examples of `deploy/examples/scenarios`, as neutral objects: what the dialects must translate them to. */
import { expect, test } from "bun:test";
import { parseAddress } from "../model/address.ts";
import { judgePath } from "../model/evaluate.ts";
import { clusterOf, parseWorld, verdicts } from "./testing/world_text.ts";

interface Step {
  readonly name: string;
  readonly apply: string;
  readonly expect: string;
}

function scenario(name: string, world: string, steps: readonly Step[]): void {
  test.each([...steps])(`${name}: $name`, (step) => {
    const { found, wanted } = verdicts(clusterOf(parseWorld(`${world}\n${step.apply}`)), step.expect);
    expect(found).toBe(wanted);
  });
}

scenario(
  "the Kubernetes reference policy",
  `
  namespace default
  namespace myproject project=myproject
  namespace other project=other
  pod db 10.244.0.1 fd00::1 role=db
  pod frontend 10.244.0.2 fd00::2 role=frontend
  pod stranger 10.244.0.3 fd00::3 role=batch
  pod worker-mine 10.244.0.4 fd00::4 ns=myproject
  pod worker-other 10.244.0.5 fd00::5 ns=other
  pod frontend-other 10.244.0.6 fd00::6 role=frontend ns=other`,
  [
    {
      name: "before",
      apply: "",
      expect: `
      stranger -> db tcp/6379 allow
      172.17.1.5@eth0 -> db tcp/6379 allow
      db -> 10.0.0.5 tcp/5979 allow`,
    },
    {
      name: "with the policy",
      apply: `
  policy test-network-policy selects projectcalico.org/namespace == "default" && role == "db" order=1000
    ingress allow tcp from 172.17.0.0/16 not 172.17.1.0/24 to port 6379
    ingress allow tcp from [pcns.project == "myproject"] to port 6379
    ingress allow tcp from [projectcalico.org/namespace == "default" && role == "frontend"] to port 6379
    egress allow tcp to 10.0.0.0/24 port 5978`,
      expect: `
      frontend -> db tcp/6379 allow
      frontend -> db tcp/6380 deny
      frontend -> db icmp deny
      stranger -> db tcp/6379 deny
      worker-mine -> db tcp/6379 allow
      worker-other -> db tcp/6379 deny
      frontend-other -> db tcp/6379 deny
      172.17.0.5@eth0 -> db tcp/6379 allow
      172.17.1.5@eth0 -> db tcp/6379 deny
      db -> 10.0.0.5 tcp/5978 allow
      db -> 10.0.0.5 tcp/5979 deny
      db -> 10.0.1.5 tcp/5978 deny
      db -> frontend tcp/80 deny
      stranger -> frontend tcp/80 allow`,
    },
  ],
);

scenario(
  "defaults",
  `
  pod a 10.244.0.1 fd00::1
  pod b 10.244.0.2 fd00::2
  pod c 10.244.0.3 fd00::3 ns=elsewhere`,
  [
    {
      name: "deny all ingress",
      apply: `
  policy ingress selects projectcalico.org/namespace == "default"
    ingress`,
      expect: `
      b -> a tcp/80 deny
      b -> a udp/53 deny
      b -> a icmp deny
      c -> b tcp/80 deny
      a -> c tcp/80 allow`,
    },
    {
      name: "allow all ingress",
      apply: `
  policy ingress selects projectcalico.org/namespace == "default"
    ingress allow`,
      expect: `
      b -> a tcp/80 allow
      b -> a udp/53 allow
      c -> b tcp/80 allow`,
    },
    {
      name: "deny all egress",
      apply: `
  policy egress selects projectcalico.org/namespace == "default"
    egress`,
      expect: `
      a -> c tcp/80 deny
      a -> b tcp/80 deny
      a -> b icmp deny
      c -> a tcp/80 allow`,
    },
  ],
);

scenario(
  "redis",
  `
  pod redis 10.244.0.1 fd00::1 service=redis
  pod nodejs 10.244.0.2 fd00::2 service=nodejs
  pod php 10.244.0.3 fd00::3 service=php`,
  [
    {
      name: "allowed to one",
      apply: `
  policy allow-redis-nodejs selects projectcalico.org/namespace == "default" && service == "redis"
    ingress allow tcp from [projectcalico.org/namespace == "default" && service == "nodejs"] to port 6379`,
      expect: `
      nodejs -> redis tcp/6379 allow
      php -> redis tcp/6379 deny
      nodejs -> redis tcp/9121 deny
      redis -> php tcp/9000 allow
      php -> nodejs tcp/8080 allow`,
    },
    {
      name: "Allow turned to Deny, everything else allowed after it",
      apply: `
  policy allow-redis-nodejs selects projectcalico.org/namespace == "default" && service == "redis"
    ingress deny tcp from [projectcalico.org/namespace == "default" && service == "nodejs"] to port 6379
    ingress allow`,
      expect: `
      nodejs -> redis tcp/6379 deny
      nodejs -> redis tcp/9121 allow
      php -> redis tcp/6379 allow`,
    },
  ],
);

const METRICS = (team: string) => `
  namespace default
  namespace kube-prometheus module=${team}
  namespace tenant module=shop
  pod app 10.244.0.1 fd00::1
  pod neighbour 10.244.0.2 fd00::2
  pod prometheus 10.244.0.3 fd00::3 ns=kube-prometheus
  pod curious 10.244.0.4 fd00::4 ns=tenant
  policy allow-metrics-prom selects projectcalico.org/namespace == "default"
    ingress allow tcp from [pcns.module == "prometheus"] to port 9100`;

scenario("metrics", "", [
  {
    name: "only Prometheus's namespace",
    apply: METRICS("prometheus"),
    expect: `
      prometheus -> app tcp/9100 allow
      prometheus -> app tcp/80 deny
      neighbour -> app tcp/9100 deny
      curious -> app tcp/9100 deny
      app -> prometheus tcp/9090 allow`,
  },
  { name: "the label leaves the namespace", apply: METRICS("retired"), expect: "prometheus -> app tcp/9100 deny" },
]);

const NODES = `
  node kube-01 192.168.2.1
  node kube-02 192.168.2.2
  pod a 10.244.0.1 app=a on=kube-01
  pod b 10.244.1.1 app=b on=kube-02
  policy block-icmp selects all() order=200
    ingress deny icmp
    egress deny icmp`;
const REST = `
  policy allow-the-rest selects all() order=300
    ingress allow
    egress allow`;
const ETH0 = "\n  host kube-02-eth0 192.168.2.2 role=k8s-node if=eth0 on=kube-02";

scenario("ICMP and nodes", NODES, [
  {
    name: "block-icmp alone",
    apply: "",
    expect: `
      a -> b icmp deny
      a -> node:kube-02 icmp deny
      a -> b tcp/80 deny
      node:kube-01 -> node:kube-02 icmp allow
      192.168.2.100@eth0 -> node:kube-02 icmp allow`,
  },
  {
    name: "the rest of the traffic allowed",
    apply: REST,
    expect: `
      a -> b icmp deny
      a -> b tcp/80 allow
      node:kube-01 -> node:kube-02 icmp allow`,
  },
  {
    name: "eth0 becomes an endpoint",
    apply: REST + ETH0,
    expect: `
      node:kube-01 -> node:kube-02 icmp deny
      192.168.2.100@eth0 -> node:kube-02 icmp deny
      a -> b tcp/80 allow`,
  },
  {
    name: "an earlier policy decides about the nodes",
    apply: `${REST}${ETH0}
  policy icmp-kube-02 selects role == "k8s-node" order=0
    ingress allow icmp
    egress allow icmp`,
    expect: `
      node:kube-01 -> node:kube-02 icmp allow
      192.168.2.100@eth0 -> node:kube-02 icmp allow
      a -> b icmp deny`,
  },
]);

const VPN = `
  node kube-02 192.168.2.2
  pod redis 10.244.0.1 fd00::1 service=redis on=kube-02
  pod dns 10.244.0.2 fd00::2 app=dns on=kube-02
  pod web 10.244.0.3 fd00::3 app=web on=kube-02`;
const VPN_RULES = `
  host vpnclient-eth0 172.176.176.2 role=vpnclient environment=production if=* on=kube-02
  policy vpn-rules selects role == "vpnclient" order=0 stage=preDnat
    ingress deny tcp to port 6379
    ingress allow udp to port 53,67`;

scenario("VPN", VPN, [
  {
    name: "before",
    apply: "",
    expect: `
      172.176.176.2@tun0 -> redis tcp/6379 allow
      172.176.176.2@tun0 -> node:kube-02 tcp/6379 allow`,
  },
  {
    name: "with the rules",
    apply: VPN_RULES,
    expect: `
      172.176.176.2@tun0 -> redis tcp/6379 deny
      172.176.176.2@tun0 -> node:kube-02 tcp/6379 deny
      172.176.176.2@tun0 -> dns udp/53 allow
      172.176.176.2@tun0 -> web tcp/80 allow
      10.99.0.7@eth0 -> redis tcp/6379 deny
      web -> redis tcp/6379 allow
      172.176.176.2@tun0 -> node:kube-02 icmp deny`,
  },
]);

test("VPN: what is refused before DNAT is the port that was asked for, not the one behind it", () => {
  const { desired } = clusterOf(parseWorld(VPN + VPN_RULES)).nodes.get("kube-02")!;
  const [source, node, redis] = ["172.176.176.2", "192.168.2.2", "10.244.0.1"].map(parseAddress);
  const through = (port: number) => {
    const packet = { protocol: 6, source: source!, destination: redis!, sourcePort: 40_000, destinationPort: 6379 };
    const beforeDnat = { ...packet, destination: node!, destinationPort: port };
    return judgePath(desired, { packet, beforeDnat, inInterface: "tun0", outInterface: "if-redis" }).verdict;
  };
  expect(through(6379)).toBe("deny");
  expect(through(16379)).toBe("allow");
});
