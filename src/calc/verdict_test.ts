import { expect, test } from "bun:test";
import { clusterOf, parseWorld, verdicts } from "./testing/world_text.ts";

/** A world, and what becomes of packets in it. */
function holds(subject: string, world: string, expected: string): void {
  test(subject, () => {
    const { found, wanted } = verdicts(clusterOf(parseWorld(world)), expected);
    expect(found).toBe(wanted);
  });
}

const PAIR = `
  pod a 10.0.0.1 fd00::1 app=a
  pod b 10.0.0.2 fd00::2 app=b
`;

holds(
  "pods that no policy selects are open, with or without a namespace object",
  `${PAIR}
  pod c 10.0.0.3 fd00::3 ns=elsewhere
  namespace default team=x`,
  `
  a -> b tcp/80 allow
  c -> a udp/53 allow
  a -> c icmp allow
  192.0.2.1@eth0 -> c tcp/22 allow
  c -> 192.0.2.1 tcp/443 allow`,
);

holds(
  "a policy closes the directions it covers, and only what it selects",
  `${PAIR}
  policy p selects app == "a"
    ingress`,
  `
  b -> a tcp/80 deny
  a -> b tcp/80 allow`,
);

holds(
  "the first rule that matches decides; log goes on",
  `${PAIR}
  policy p selects app == "a"
    ingress log
    ingress deny tcp to port 80-90
    ingress allow tcp`,
  `
  b -> a tcp/85 deny
  b -> a tcp/91 allow
  b -> a udp/91 deny`,
);

holds(
  "policies go by order, then name, and those without an order come last",
  `${PAIR}
  policy z selects all() order=1
    ingress allow tcp to port 1,2,3
  policy y selects all() order=2 name=bbb
    ingress deny tcp to port 1,2
  policy x selects all() order=2 name=aaa
    ingress allow tcp to port 4
  policy a selects all()
    ingress allow tcp to port 5
  policy w selects all() order=2 name=ccc
    ingress deny tcp to port 4,5`,
  `
  b -> a tcp/1 allow
  b -> a tcp/4 allow
  b -> a tcp/5 deny`,
);

holds(
  "tiers go by order, and end with their default action",
  `${PAIR}
  tier second order=20
  tier first order=10 default=pass
  policy f selects app == "a" tier=first
    ingress allow tcp to port 1
  policy s selects app == "a" tier=second
    ingress allow tcp to port 2
    ingress pass tcp to port 3
  policy d selects app == "a"
    ingress allow tcp to port 3,4`,
  `
  b -> a tcp/1 allow
  b -> a tcp/2 allow
  b -> a tcp/3 allow
  b -> a tcp/4 deny
  a -> b tcp/4 allow`,
);

holds(
  "pass from the last tier asks the profiles",
  `${PAIR}
  policy d selects app == "a"
    ingress pass tcp to port 3`,
  `
  b -> a tcp/3 allow
  b -> a tcp/4 deny`,
);

holds(
  "the fixed tiers stand where they stand, whatever tier objects say",
  `${PAIR}
  tier default order=1 default=pass
  tier kube-admin order=9000000 default=deny
  policy admin selects all() tier=kube-admin
    ingress allow tcp to port 1
    ingress pass tcp to port 2
  policy plain selects all()
    ingress deny tcp to port 1
    ingress allow tcp to port 2,3
  policy base selects all() tier=kube-baseline
    ingress deny`,
  `
  b -> a tcp/1 allow
  b -> a tcp/2 allow
  b -> a tcp/3 allow
  b -> a tcp/4 deny`,
);

holds(
  "the baseline decides where nothing before it did, and passes to the profiles",
  `${PAIR}
  policy base selects all() tier=kube-baseline
    ingress deny tcp to port 1`,
  `
  b -> a tcp/1 deny
  b -> a tcp/2 allow`,
);

holds(
  "a tier that nobody described comes last and denies",
  `${PAIR}
  policy p selects app == "a" tier=unknown
    ingress allow tcp to port 1
  policy base selects app == "a" tier=kube-baseline
    ingress deny tcp to port 1`,
  `
  b -> a tcp/1 deny
  b -> a tcp/2 deny`,
);

holds(
  "a tier whose place is not known comes first, and its policies deny what they select in their directions",
  `${PAIR}
  pod c 10.0.0.3 fd00::3 app=c
  tier lost closed default=pass
  policy l selects app == "a" tier=lost
    ingress allow
  policy s selects app == "c" tier=lost staged
    ingress allow
  policy admin selects all() tier=kube-admin
    ingress allow`,
  `
  b -> a tcp/1 deny
  a -> b tcp/1 allow
  b -> c tcp/1 allow`,
);

holds(
  "staged policies decide nothing and close nothing",
  `${PAIR}
  policy p selects all() staged
    ingress deny
  policy q selects app == "b" order=1 staged
    ingress allow
  policy r selects app == "b" order=2
    ingress allow tcp to port 2`,
  `
  b -> a tcp/1 allow
  a -> b tcp/1 deny
  a -> b tcp/2 allow`,
);

holds(
  "selectors find peers by own, inherited and identity labels",
  `
  pod a 10.0.0.1 app=a
  pod same 10.0.0.2 role=client
  pod other 10.0.0.3 role=client ns=prod
  remote far 10.1.0.4 ns=prod sa=builder
  pod plain 10.0.0.5 ns=dev sa=builder
  namespace prod team=red
  account prod/builder level=2
  policy p selects app == "a"
    ingress allow tcp from [projectcalico.org/namespace == "default" && role == "client"] to port 1
    ingress allow tcp from [pcns.team == "red"] to port 2
    ingress allow tcp from [pcsa.level == "2"] to port 3
    ingress allow tcp from [pcns.kubernetes.io/metadata.name == "dev"] to port 4
    ingress allow tcp from [projectcalico.org/serviceaccount == "builder"] to port 5
    ingress allow tcp from [projectcalico.org/orchestrator == "k8s"] to port 6
    ingress allow tcp from [pcns.projectcalico.org/name == "prod" && !has(role)] to port 7`,
  `
  same -> a tcp/1 allow
  other -> a tcp/1 deny
  other -> a tcp/2 allow
  far -> a tcp/2 allow
  same -> a tcp/2 deny
  far -> a tcp/3 allow
  plain -> a tcp/3 deny
  plain -> a tcp/4 allow
  far -> a tcp/5 allow
  plain -> a tcp/5 allow
  other -> a tcp/5 deny
  far -> a tcp/6 allow
  same -> a tcp/6 deny
  far -> a tcp/7 allow
  other -> a tcp/7 deny`,
);

holds(
  "labels of its own win over those of profiles, but never say what, where or who it is",
  `
  pod a 10.0.0.1 app=a
  pod liar 10.0.0.2 pcns.team=red projectcalico.org/namespace=prod projectcalico.org/serviceaccount=admin pcns.kubernetes.io/metadata.name=prod pcsa.level=9 projectcalico.org/name=offices projectcalico.org/orchestrator=k8s profile=marker
  pod marked 10.0.0.3 color=green profile=marker
  pod other 10.0.0.4 ns=elsewhere pcns.team=red
  profile marker color=blue pcns.team=red
    egress allow
  namespace default team=blue
  policy p selects app == "a"
    ingress allow tcp from [pcns.team == "red"] to port 1
    ingress allow tcp from [projectcalico.org/namespace == "prod"] to port 2
    ingress allow tcp from [has(projectcalico.org/serviceaccount)] to port 3
    ingress allow tcp from [pcns.kubernetes.io/metadata.name == "prod"] to port 4
    ingress allow tcp from [has(pcsa.level)] to port 5
    ingress allow tcp from [has(projectcalico.org/name)] to port 6
    ingress allow tcp from [projectcalico.org/orchestrator == "k8s"] to port 7
    ingress allow tcp from [color == "green"] to port 8
    ingress allow tcp from [color == "blue"] to port 9`,
  `
  liar -> a tcp/1 deny
  other -> a tcp/1 deny
  liar -> a tcp/5 deny
  liar -> a tcp/6 deny
  liar -> a tcp/7 deny
  marked -> a tcp/8 allow
  marked -> a tcp/9 deny
  liar -> a tcp/9 allow
  liar -> a tcp/2 deny
  liar -> a tcp/3 deny
  liar -> a tcp/4 deny`,
);

holds(
  "a workload joins its pod: the pod's labels, ports and account hold",
  `
  pod a 10.0.0.1 pod=apod stale=yes port=http:tcp/1
  remote apod 10.9.9.9 app=a sa=builder port=http:tcp/80
  account default/builder level=2
  pod b 10.0.0.2 app=b
  pod alone 10.0.0.3 pod=missing app=b
  policy p selects app == "a"
    ingress allow tcp from [app == "b"] to port http
  policy q selects app == "b"
    ingress allow tcp from [pcsa.level == "2" && !has(stale)]
  policy r selects app == "b"
    egress allow tcp to [app == "a"]`,
  `
  b -> a tcp/80 allow
  b -> a tcp/1 deny
  a -> b tcp/9 allow
  a -> alone tcp/9 allow
  10.9.9.9@eth0 -> b tcp/9 deny
  b -> 10.9.9.9 tcp/9 deny`,
);

holds(
  "network sets give their prefixes by label, namespaced ones only where selected with their namespace",
  `
  pod a 10.0.0.1 app=a
  set offices 172.16.0.0/12 2001:db8::/32 kind=office
  set labs 192.168.0.0/16 kind=lab ns=prod
  policy p selects app == "a"
    ingress allow tcp from [kind == "office" && global()] to port 1
    ingress allow tcp from [kind == "lab" && projectcalico.org/namespace == "prod"] to port 2
    ingress allow tcp from [kind == "lab" && global()] to port 3
    ingress allow tcp from [projectcalico.org/name == "labs"] to port 4`,
  `
  172.20.1.1@eth0 -> a tcp/1 allow
  192.168.1.1@eth0 -> a tcp/1 deny
  192.168.1.1@eth0 -> a tcp/2 allow
  192.168.1.1@eth0 -> a tcp/3 deny
  192.168.1.1@eth0 -> a tcp/4 allow`,
);

holds(
  "negations of nets, selectors, ports and protocols",
  `${PAIR}
  pod c 10.0.0.3 app=c
  policy p selects app == "a"
    ingress allow tcp from 10.0.0.0/8 not 10.0.0.2/32 to port 1
    ingress allow tcp from not [app == "c"] to port 2
    ingress allow tcp from [app == "b"] to not port 3,100-200
    ingress allow !udp from [app == "c"]`,
  `
  10.5.5.5@eth0 -> a tcp/1 allow
  192.0.2.1@eth0 -> a tcp/2 allow
  192.0.2.1@eth0 -> a tcp/1 deny
  b -> a tcp/3 deny
  b -> a tcp/150 deny
  b -> a tcp/201 allow
  c -> a udp/5 deny
  c -> a sctp/5 allow
  c -> a icmp allow`,
);

holds(
  "a rule with prefixes of one family is for that family, also where they are excluded",
  `${PAIR}
  policy p selects app == "a"
    ingress allow tcp from not 10.9.0.0/16 to port 1
    ingress allow tcp from 10.0.0.0/8 fd00::/16 to port 2
    ingress allow tcp from 10.0.0.0/8,fd00::/16 to port 3`,
  `
  10.0.0.9@eth0 -> a tcp/1 allow
  10.9.0.9@eth0 -> a tcp/1 deny
  fd00::9@eth0 -> a tcp/1 deny
  10.0.0.9@eth0 -> a tcp/3 allow
  fd00::9@eth0 -> a tcp/3 allow`,
);

holds(
  "rules of one protocol or ICMP type match nothing else",
  `${PAIR}
  policy p selects app == "a"
    ingress allow icmp 8
    ingress deny icmpv6 128/1
    ingress allow icmpv6
    ingress allow udp to port 53`,
  `
  b -> a icmp allow
  b -> a icmpv6 allow
  b -> a udp/53 allow
  b -> a tcp/53 deny`,
);

holds(
  "named ports mean the port of the end they are asked of",
  `
  pod a 10.0.0.1 app=a port=http:tcp/80,http:udp/80
  pod b 10.0.0.2 app=a port=http:tcp/8080
  pod c 10.0.0.3 app=c port=http:tcp/99
  policy p selects app == "a"
    ingress allow tcp to port http,9000-9001
  policy q selects app == "c"
    egress allow tcp to [app == "a"] port http
  policy r selects app == "c"
    ingress allow tcp from [app == "a"] to not port http`,
  `
  c -> a tcp/80 allow
  c -> b tcp/80 deny
  c -> b tcp/8080 allow
  192.0.2.1@eth0 -> a udp/80 deny
  192.0.2.1@eth0 -> a tcp/9001 allow
  c -> 192.0.2.1 tcp/80 deny
  a -> c tcp/99 deny
  a -> c tcp/98 allow`,
);

holds(
  "a service as a peer is the addresses and ports of its endpoints",
  `
  pod a 10.0.0.1 app=a
  service prod/db tcp/5432 10.1.0.1 10.1.0.2
  service prod/db-more tcp/5433 10.1.0.3 of=prod/db
  policy p selects app == "a"
    egress allow tcp to service prod/db
    ingress allow tcp from hosts-of prod/db
  policy q selects app == "a"
    egress allow to service prod/missing`,
  `
  a -> 10.1.0.1 tcp/5432 allow
  a -> 10.1.0.1 tcp/5433 deny
  a -> 10.1.0.3 tcp/5433 allow
  a -> 10.1.0.4 tcp/5432 deny
  10.1.0.3@eth0 -> a tcp/1 allow
  10.1.0.4@eth0 -> a tcp/1 deny`,
);

holds(
  "nodes as peers are their addresses, and nothing with labels like theirs",
  `
  node n1 192.168.2.1 zone=a
  node n2 192.168.2.2 192.168.3.2 zone=b
  pod a 10.0.0.1 app=a
  pod b 10.0.0.2 zone=b
  host h 192.168.9.9 zone=b on=n2
  policy p selects app == "a"
    egress allow tcp to nodes [zone == "b"] port 1
    egress allow tcp to nodes [all()] port 2
    egress allow tcp to [zone == "a"] port 3`,
  `
  a -> 192.168.2.2 tcp/1 allow
  a -> 192.168.3.2 tcp/1 allow
  a -> 192.168.2.1 tcp/1 deny
  a -> b tcp/1 deny
  a -> 192.168.9.9 tcp/1 deny
  a -> 192.168.2.1 tcp/2 allow
  a -> b tcp/2 deny
  a -> 192.168.2.1 tcp/3 deny`,
);

holds(
  "explicit profiles hold instead of the namespace's; missing ones allow nothing",
  `
  pod open 10.0.0.1 profile=easy,strict
  pod shut 10.0.0.2 profile=missing
  pod none 10.0.0.3 profile=
  pod named 10.0.0.4 profile=kns.default
  pod foreign 10.0.0.5 profile=kns.prod
  pod marked 10.0.0.6 profile=marker
  profile easy
    ingress allow tcp to port 1
    ingress pass tcp to port 2
  profile strict
    ingress allow tcp to port 2
    ingress deny
    egress allow
  profile marker special=yes
    egress allow
  policy p selects special == "yes"
    ingress allow tcp to port 7`,
  `
  named -> open tcp/1 allow
  named -> open tcp/2 allow
  named -> open tcp/3 deny
  open -> shut tcp/1 deny
  shut -> named tcp/1 deny
  open -> none tcp/1 deny
  open -> named tcp/1 allow
  open -> foreign tcp/1 deny
  open -> marked tcp/7 allow
  open -> marked tcp/8 deny`,
);

holds(
  "a profile object named for a namespace stands in for the implied one",
  `
  pod a 10.0.0.1
  pod b 10.0.0.2 ns=prod
  profile kns.default team=x
    ingress allow tcp to port 1
    egress allow
  policy p selects team == "x"
    egress deny tcp to port 9
    egress pass`,
  `
  b -> a tcp/1 allow
  b -> a tcp/2 deny
  a -> b tcp/9 deny
  a -> b tcp/8 allow`,
);

holds(
  "both ends are judged, on one node or on two",
  `
  node n1 192.168.2.1
  node n2 192.168.2.2
  pod a 10.0.1.1 app=a on=n1
  pod b 10.0.2.2 app=b on=n2
  pod c 10.0.1.3 app=c on=n1
  policy out selects app == "a"
    egress allow tcp to port 1,2
  policy in selects app in {"b", "c"}
    ingress allow tcp to port 2,3`,
  `
  a -> b tcp/1 deny
  a -> b tcp/2 allow
  a -> b tcp/3 deny
  a -> c tcp/1 deny
  a -> c tcp/2 allow
  c -> b tcp/3 allow
  node:n1 -> c tcp/9 allow
  node:n2 -> c tcp/9 deny
  node:n2 -> c tcp/3 allow`,
);

const HOST = `
  node n1 192.168.2.1
  node n2 192.168.2.2
  link eth0 192.168.2.1
  link eth1 192.168.3.1
  pod a 10.0.0.1 app=a
`;

holds(
  "a host endpoint closes its interface but for failsafe ports, and forwards",
  `${HOST}
  host h if=eth0 role=node`,
  `
  192.0.2.1@eth0 -> node:n1 tcp/80 deny
  192.0.2.1@eth0 -> node:n1 tcp/22 allow
  192.0.2.1@eth0 -> node:n1 udp/68 allow
  192.0.2.1@eth1 -> node:n1 tcp/80 allow
  node:n1 -> node:n2 tcp/80 deny
  node:n1 -> node:n2 udp/53 allow
  192.0.2.1@eth0 -> a tcp/80 allow
  a -> 192.0.2.1@eth0 tcp/80 allow
  a -> node:n1 tcp/80 allow
  node:n1 -> a tcp/80 allow`,
);

holds(
  "a host endpoint without a name for its interface is found by an expected address",
  `${HOST}
  host h 192.168.3.1 role=node`,
  `
  192.0.2.1@eth1 -> node:n1 tcp/80 deny
  192.0.2.1@eth0 -> node:n1 tcp/80 allow`,
);

holds(
  "a named interface goes before an expected address, and that before every interface",
  `${HOST}
  host all if=* role=all
  host byname if=eth0 role=name
  host byaddress 192.168.2.1 192.168.3.1 role=address
  policy p1 selects role == "name"
    ingress allow tcp to port 1
  policy p2 selects role == "address"
    ingress allow tcp to port 2
  policy p3 selects role == "all"
    ingress allow tcp to port 3`,
  `
  192.0.2.1@eth0 -> node:n1 tcp/1 allow
  192.0.2.1@eth0 -> node:n1 tcp/2 deny
  192.0.2.1@eth1 -> node:n1 tcp/2 allow
  192.0.2.1@eth1 -> node:n1 tcp/3 deny
  192.0.2.1@eth2 -> node:n1 tcp/3 allow
  192.0.2.1@eth2 -> node:n1 tcp/1 deny`,
);

holds(
  "the endpoint of every interface also has what its node sends to its own pods, and nothing that pods do",
  `${HOST}
  host all if=* role=all
  policy out selects role == "all" order=1
    egress allow tcp to port 1
    ingress allow tcp to port 2
  policy early selects role == "all" stage=untracked
    egress deny tcp to port 3
  policy forward selects role == "all" order=2 stage=forward
    ingress deny tcp to port 4
    egress deny tcp to port 5
    ingress allow
    egress pass
  policy pods selects app == "a"
    ingress deny`,
  `
  node:n1 -> a tcp/1 allow
  node:n1 -> a tcp/9 deny
  node:n1 -> a tcp/3 deny
  node:n1 -> a udp/53 allow
  a -> node:n1 tcp/9 allow
  a -> 192.0.2.1@eth0 tcp/5 deny
  a -> 192.0.2.1@eth0 tcp/9 deny
  192.0.2.1@eth0 -> node:n1 tcp/4 deny`,
);

holds(
  "host endpoints are peers by their addresses, in no namespace, and take profiles",
  `${HOST}
  host h 192.168.2.1 if=eth0 role=node profile=projectcalico-default-allow
  host far 192.168.2.2 role=node on=n2
  policy p selects app == "a"
    ingress allow tcp from [global() && role == "node"]`,
  `
  node:n2 -> a tcp/80 allow
  192.168.2.3@eth0 -> a tcp/80 deny
  192.168.2.3@eth0 -> node:n1 tcp/80 allow`,
);

holds(
  "normal policy of a host endpoint leaves forwarded traffic alone; forward policy does not",
  `${HOST}
  host h if=eth0 role=node
  policy normal selects role == "node" order=1
    ingress allow tcp to port 1
  policy forward selects role == "node" order=2 stage=forward
    ingress allow tcp to port 2
  policy pods selects app == "a"
    ingress allow tcp to port 1,2,3`,
  `
  192.0.2.1@eth0 -> node:n1 tcp/1 allow
  192.0.2.1@eth0 -> node:n1 tcp/2 allow
  192.0.2.1@eth0 -> node:n1 tcp/3 deny
  192.0.2.1@eth0 -> a tcp/1 deny
  192.0.2.1@eth0 -> a tcp/2 allow
  192.0.2.1@eth0 -> a tcp/22 deny
  192.0.2.1@eth1 -> a tcp/3 allow
  a -> 192.0.2.1@eth0 tcp/5 allow`,
);

holds(
  "forward policy in its outgoing direction, and pass out of it",
  `${HOST}
  host h if=eth0 role=node
  policy forward selects role == "node" stage=forward
    egress deny tcp to port 5
    egress pass tcp to port 6
    egress allow tcp to port 7`,
  `
  a -> 192.0.2.1@eth0 tcp/5 deny
  a -> 192.0.2.1@eth0 tcp/6 deny
  a -> 192.0.2.1@eth0 tcp/7 allow
  a -> 192.0.2.1@eth0 tcp/8 deny
  192.0.2.1@eth0 -> a tcp/5 allow
  node:n1 -> node:n2 tcp/6 deny`,
);

holds(
  "what the last tier passes of forwarded traffic is for the host endpoint's profiles",
  `${HOST}
  host h if=eth0 role=node profile=projectcalico-default-allow
  policy forward selects role == "node" stage=forward
    egress pass tcp to port 6`,
  `
  a -> 192.0.2.1@eth0 tcp/6 allow
  a -> 192.0.2.1@eth0 tcp/8 deny`,
);

holds(
  "named ports of a forward policy are those of whoever the packet is for",
  `${HOST}
  pod named 10.0.0.2 app=named port=http:tcp/8080
  host h 192.168.2.1 if=eth0 role=node port=http:tcp/80
  policy forward selects role == "node" stage=forward
    ingress allow tcp to port http`,
  `
  192.0.2.1@eth0 -> named tcp/8080 allow
  192.0.2.1@eth0 -> named tcp/80 deny
  192.0.2.1@eth0 -> node:n1 tcp/80 allow`,
);

holds(
  "policy before DNAT or connection tracking denies early, allows past its host endpoint, and has no default",
  `${HOST}
  host h if=eth0 role=node
  policy early selects role == "node" stage=preDnat
    ingress deny tcp to port 1
    ingress allow tcp to port 2
    ingress deny tcp to port 22
  policy untracked selects role == "node" stage=untracked
    ingress deny tcp to port 3
    ingress allow tcp to port 4
    egress deny tcp to port 5
    egress allow tcp to port 6
  policy forward selects role == "node" stage=forward
    ingress deny tcp to port 2,4,7
    ingress allow
  policy pods selects app == "a"
    ingress allow tcp to port 2,7,8
    egress allow`,
  `
  192.0.2.1@eth0 -> node:n1 tcp/1 deny
  192.0.2.1@eth0 -> node:n1 tcp/2 allow
  192.0.2.1@eth0 -> node:n1 tcp/22 allow
  192.0.2.1@eth0 -> node:n1 tcp/3 deny
  192.0.2.1@eth0 -> node:n1 tcp/4 allow
  192.0.2.1@eth0 -> a tcp/1 deny
  192.0.2.1@eth0 -> a tcp/2 allow
  192.0.2.1@eth0 -> a tcp/4 deny
  192.0.2.1@eth0 -> a tcp/7 deny
  192.0.2.1@eth0 -> a tcp/8 allow
  a -> 192.0.2.1@eth0 tcp/5 allow
  node:n1 -> node:n2 tcp/5 deny
  node:n1 -> node:n2 tcp/6 allow
  node:n1 -> node:n2 tcp/9 deny`,
);

holds(
  "policies for host endpoints alone do nothing to pods, and a forward policy is a normal one to them",
  `
  pod a 10.0.0.1 app=a
  policy early selects all() stage=preDnat
    ingress deny
  policy untracked selects all() stage=untracked
    ingress deny
    egress deny
  policy forward selects app == "a" stage=forward
    ingress allow tcp to port 1`,
  `
  192.0.2.1@eth0 -> a tcp/1 allow
  192.0.2.1@eth0 -> a tcp/2 deny
  a -> 192.0.2.1 tcp/1 allow`,
);

holds(
  "an interface has one workload: the smallest id",
  `
  pod a 10.0.0.1 app=a if=shared
  pod b 10.0.0.2 app=b if=shared
  policy p selects app == "a"
    ingress allow tcp to port 1
  policy q selects app == "b"
    ingress allow tcp to port 2`,
  `
  192.0.2.1@eth0 -> a tcp/1 allow
  192.0.2.1@eth0 -> a tcp/2 deny`,
);
