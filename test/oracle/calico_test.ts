/** Calico's policies, tiers, sets and profiles: small worlds, and who reaches whom. */
import { expect, test } from "bun:test";
import { answer } from "./sketch.ts";

function holds(title: string, sketch: string, table: string): void {
  test(title, () => expect(answer(sketch, table)).toBe(table));
}

const WORLD = `
  node n1 192.168.2.1 fd02::1
  node n2 192.168.2.2 fd02::2
  namespace prod env=prod
  namespace dev env=dev
  pod prod/web app=web 10.0.0.1 fd00::1 http:tcp/8080 @robot
  pod prod/db app=db 10.0.0.2 fd00::2 on:n2 pg:tcp/5432
  pod dev/web app=web 10.0.0.3 fd00::3 http:tcp/80
  pod dev/other app=other 10.0.0.4 fd00::4 @robot
  host out 203.0.113.5 2001:db8::5 via:up0
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: robot, namespace: dev, labels: { level: low } }
`;

const policy = (kind: string, name: string, spec: string) => `
---
apiVersion: projectcalico.org/v3
kind: ${kind}
metadata: { name: ${name}${kind.startsWith("Global") || kind === "Tier" ? "" : ", namespace: prod"} }
spec: ${spec}`;

holds(
  "tiers by order, then name; policies by order, then name; what no policy of a tier matches meets the tier's default",
  `${WORLD}
${policy("Tier", "second", "{ order: 20, defaultAction: Pass }")}
${policy("Tier", "first", "{ order: 10 }")}
${
    policy(
      "GlobalNetworkPolicy",
      "z",
      "{ tier: first, selector: app == 'db', ingress: [{ action: Pass, protocol: TCP, destination: { ports: ['1:9'] } }] }",
    )
  }
${
    policy(
      "GlobalNetworkPolicy",
      "y",
      "{ tier: second, order: 2, selector: app == 'db', ingress: [{ action: Deny, protocol: TCP, destination: { ports: [1, 2] } }] }",
    )
  }
${
    policy(
      "GlobalNetworkPolicy",
      "x",
      "{ tier: second, order: 1, selector: app == 'db', ingress: [{ action: Log }, { action: Allow, protocol: TCP, destination: { ports: [1] } }] }",
    )
  }
${
    policy(
      "GlobalNetworkPolicy",
      "b",
      "{ selector: all(), ingress: [{ action: Allow, protocol: TCP, destination: { ports: [3] } }] }",
    )
  }
${
    policy(
      "NetworkPolicy",
      "a",
      "{ selector: app == 'db', ingress: [{ action: Deny, protocol: TCP, destination: { ports: [3] } }, { action: Allow, protocol: TCP, destination: { ports: [4] } }] }",
    )
  }
`,
  `
  out -> prod/db tcp/1 allow
  out -> prod/db tcp/2 deny
  out -> prod/db tcp/3 deny
  out -> prod/db tcp/4 allow
  out -> prod/db tcp/5 deny
  out -> prod/db tcp/10 deny
  out -> prod/web tcp/3 allow
  out -> prod/web tcp/4 deny
  prod/db -> out tcp/1 allow`,
);

holds(
  "a Kubernetes policy stands at order 1000 by its own name",
  `${WORLD}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: m, namespace: prod }
spec: { podSelector: {}, ingress: [{ ports: [{ port: 1 }, { port: 2 }, { port: 3 }] }] }
${
    policy(
      "NetworkPolicy",
      "l",
      "{ order: 1000, ingress: [{ action: Deny, protocol: TCP, destination: { ports: [1] } }] }",
    )
  }
${
    policy(
      "NetworkPolicy",
      "n",
      "{ order: 1000, ingress: [{ action: Deny, protocol: TCP, destination: { ports: [2] } }] }",
    )
  }
${
    policy(
      "NetworkPolicy",
      "a",
      "{ order: 999.5, ingress: [{ action: Deny, protocol: TCP, destination: { ports: [3] } }] }",
    )
  }
`,
  `
  out -> prod/web tcp/1 deny
  out -> prod/web tcp/2 allow
  out -> prod/web tcp/3 deny`,
);

holds(
  "types that are not given, and rules of a direction that is not among them",
  `${WORLD}
${policy("NetworkPolicy", "none", "{ selector: app == 'db' }")}
${policy("GlobalNetworkPolicy", "out", "{ selector: app == 'other', egress: [{ action: Allow, protocol: UDP }] }")}
${
    policy(
      "NetworkPolicy",
      "only",
      "{ selector: app == 'web', types: [Egress], ingress: [{ action: Deny }], egress: [{ action: Allow }] }",
    )
  }
`,
  `
  out -> prod/db tcp/1 deny
  prod/db -> out tcp/1 allow
  dev/other -> out tcp/1 deny
  dev/other -> out udp/1 allow
  out -> dev/other tcp/1 allow
  out -> prod/web tcp/1 allow`,
);

holds(
  "selectors of a namespaced policy mean its namespace, also a notSelector alone, unless namespaceSelector says which",
  `${WORLD}
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: { name: outside, labels: { app: web } }
spec: { nets: [203.0.113.0/24, "2001:db8::/32"] }
${
    policy(
      "NetworkPolicy",
      "a",
      `
  selector: app == 'db'
  ingress:
  - { action: Allow, protocol: TCP, source: { selector: app == 'web' }, destination: { ports: [1] } }
  - { action: Allow, protocol: TCP, source: { notSelector: app == 'web' }, destination: { ports: [2] } }
  - { action: Allow, protocol: TCP, source: { namespaceSelector: env == 'dev' }, destination: { ports: [3] } }
  - { action: Allow, protocol: TCP, source: { namespaceSelector: "env == 'dev'", selector: app == 'web' }, destination: { ports: [4] } }
  - { action: Allow, protocol: TCP, source: { namespaceSelector: all() }, destination: { ports: [5] } }
  - { action: Allow, protocol: TCP, source: { namespaceSelector: global() }, destination: { ports: [6] } }
  - { action: Allow, protocol: TCP, source: { namespaceSelector: env != 'prod' }, destination: { ports: [7] } }
  - { action: Allow, protocol: TCP, source: { serviceAccounts: { names: [robot] } }, destination: { ports: [8] } }`,
    )
  }
`,
  `
  prod/web -> prod/db tcp/1 allow
  dev/web -> prod/db tcp/1 deny
  out -> prod/db tcp/1 deny
  prod/web -> prod/db tcp/2 deny
  dev/other -> prod/db tcp/2 deny
  out -> prod/db tcp/2 deny
  dev/other -> prod/db tcp/3 allow
  prod/web -> prod/db tcp/3 deny
  dev/web -> prod/db tcp/4 allow
  dev/other -> prod/db tcp/4 deny
  dev/other -> prod/db tcp/5 allow
  out -> prod/db tcp/5 deny
  out -> prod/db tcp/6 allow
  dev/web -> prod/db tcp/6 deny
  dev/web -> prod/db tcp/7 allow
  out -> prod/db tcp/7 deny
  prod/web -> prod/db tcp/8 allow
  dev/other -> prod/db tcp/8 deny`,
);

holds(
  "a global policy's selectors mean everybody, and its notSelector everything else",
  `${WORLD}
${
    policy(
      "GlobalNetworkPolicy",
      "a",
      `
  selector: app == 'db'
  ingress:
  - { action: Allow, protocol: TCP, source: { selector: app == 'web' }, destination: { ports: [1] } }
  - { action: Allow, protocol: TCP, source: { notSelector: app == 'web' }, destination: { ports: [2] } }
  - { action: Allow, protocol: TCP, source: { serviceAccounts: { selector: level == 'low' } }, destination: { ports: [3] } }
  - { action: Allow, protocol: TCP, source: { serviceAccounts: { selector: level != 'high' } }, destination: { ports: [4] } }
  - { action: Allow, protocol: TCP, source: { selector: pcns.env == 'dev' }, destination: { ports: [5] } }
  - { action: Allow, protocol: TCP, source: { selector: "projectcalico.org/serviceaccount == 'robot'" }, destination: { ports: [6] } }`,
    )
  }
`,
  `
  dev/web -> prod/db tcp/1 allow
  prod/web -> prod/db tcp/2 deny
  dev/other -> prod/db tcp/2 allow
  out -> prod/db tcp/2 allow
  dev/other -> prod/db tcp/3 allow
  prod/web -> prod/db tcp/3 deny
  prod/web -> prod/db tcp/4 allow
  out -> prod/db tcp/4 deny
  dev/other -> prod/db tcp/5 allow
  prod/web -> prod/db tcp/5 deny
  prod/web -> prod/db tcp/6 allow
  dev/web -> prod/db tcp/6 deny`,
);

holds(
  "policies apply by label, by namespace and by service account; labels that say who one is are not one's own to write",
  `
  node n1 192.168.2.1
  namespace prod env=prod
  pod prod/web app=web 10.0.0.1 @robot
  pod dev/liar app=liar pcns.env=prod projectcalico.org/namespace=prod projectcalico.org/serviceaccount=robot 10.0.0.2
  pod dev/free app=free 10.0.0.3
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: robot, namespace: prod, labels: { level: low } }
${
    policy(
      "GlobalNetworkPolicy",
      "n",
      "{ namespaceSelector: env == 'prod', ingress: [{ action: Allow, protocol: TCP, source: { selector: pcns.env == 'prod' }, destination: { ports: [1] } }] }",
    )
  }
${
    policy(
      "GlobalNetworkPolicy",
      "s",
      "{ order: 1, serviceAccountSelector: level == 'low', egress: [{ action: Deny, protocol: TCP, destination: { ports: [2] } }] }",
    )
  }
${
    policy(
      "GlobalNetworkPolicy",
      "o",
      "{ selector: projectcalico.org/namespace == 'prod', egress: [{ action: Deny, protocol: TCP, destination: { ports: [3] } }, { action: Allow }] }",
    )
  }
`,
  `
  dev/liar -> prod/web tcp/1 deny
  prod/web -> dev/free tcp/2 deny
  dev/liar -> dev/free tcp/2 allow
  prod/web -> dev/free tcp/3 deny
  dev/liar -> dev/free tcp/3 allow`,
);

holds(
  "protocols, ICMP, families, ports and their negations",
  `${WORLD}
${
    policy(
      "GlobalNetworkPolicy",
      "a",
      `
  selector: app == 'db'
  ingress:
  - { action: Allow, protocol: ICMP, icmp: { type: 8, code: 0 } }
  - { action: Allow, protocol: ICMPv6, notICMP: { type: 128, code: 1 } }
  - { action: Allow, protocol: 132 }
  - { action: Allow, protocol: TCP, source: { notNets: [10.0.0.0/8] }, destination: { ports: [1] } }
  - { action: Allow, protocol: TCP, ipVersion: 6, destination: { ports: [2] } }
  - { action: Allow, protocol: TCP, source: { ports: ['1000:1001'] }, destination: { notPorts: ['1:9', pg] } }
  - { action: Allow, protocol: UDPLite, destination: { ports: [9] } }
  - { action: Allow, notProtocol: TCP, source: { nets: [203.0.113.0/24] } }`,
    )
  }
`,
  `
  dev/web -> prod/db icmp allow
  dev/web -> prod/db icmp type/8 code/1 deny
  dev/web -> prod/db icmp type/13 deny
  dev/web -> prod/db icmpv6 allow
  dev/web -> prod/db icmpv6 type/128 code/1 deny
  dev/web -> prod/db sctp/7 allow
  out -> prod/db tcp/1 4 allow, 6 deny
  dev/web -> prod/db tcp/1 deny
  dev/web -> prod/db tcp/2 4 deny, 6 allow
  dev/web -> prod/db tcp/10 from/1000 allow
  dev/web -> prod/db tcp/10 from/1002 deny
  dev/web -> prod/db tcp/9 from/1000 deny
  dev/web -> prod/db tcp/5432 from/1000 deny
  dev/web -> prod/web tcp/5432 allow
  dev/web -> prod/db udplite/9 allow
  out -> prod/db udp/9 4 allow, 6 deny`,
);

holds(
  "services: as a source their addresses, as a destination these with the ports of their slices",
  `${WORLD}
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: s-1, namespace: prod, labels: { kubernetes.io/service-name: s } }
addressType: IPv4
ports: [{ port: 5432 }, { port: 53, protocol: UDP }]
endpoints: [{ addresses: [10.0.0.2] }, { addresses: [203.0.113.5], conditions: { ready: false } }]
${
    policy(
      "NetworkPolicy",
      "out",
      "{ selector: app == 'web', egress: [{ action: Allow, destination: { services: { name: s } } }] }",
    )
  }
${
    policy(
      "GlobalNetworkPolicy",
      "in",
      "{ selector: app == 'other', ingress: [{ action: Allow, protocol: TCP, source: { services: { name: s, namespace: prod } }, destination: { ports: [1] } }] }",
    )
  }
`,
  `
  prod/web -> prod/db tcp/5432 4 allow, 6 deny
  prod/web -> prod/db tcp/53 deny
  prod/web -> prod/db udp/53 4 allow, 6 deny
  prod/web -> out tcp/5432 4 allow, 6 deny
  prod/web -> dev/other tcp/5432 deny
  prod/db -> dev/other tcp/1 4 allow, 6 deny
  prod/db -> dev/other tcp/2 deny
  prod/web -> dev/other tcp/1 deny`,
);

holds(
  "network sets, by their labels, their name and their namespace's labels",
  `${WORLD}
apiVersion: projectcalico.org/v3
kind: NetworkSet
metadata: { name: offices, namespace: prod, labels: { kind: office } }
spec: { nets: [203.0.113.0/24] }
${
    policy(
      "NetworkPolicy",
      "a",
      `
  selector: app == 'db'
  ingress:
  - { action: Allow, protocol: TCP, source: { selector: kind == 'office' }, destination: { ports: [1] } }
  - { action: Allow, protocol: TCP, source: { namespaceSelector: env == 'prod' }, destination: { ports: [2] } }
  - { action: Allow, protocol: TCP, source: { selector: projectcalico.org/name == 'offices' }, destination: { ports: [3] } }
  - { action: Allow, protocol: TCP, source: { namespaceSelector: global() }, destination: { ports: [4] } }`,
    )
  }
`,
  `
  out -> prod/db tcp/1 4 allow, 6 deny
  out -> prod/db tcp/2 4 allow, 6 deny
  out -> prod/db tcp/3 4 allow, 6 deny
  out -> prod/db tcp/4 deny`,
);

holds(
  "profiles decide after the last tier; staged policies never; a tier that is not there comes last and denies",
  `
  node n1 192.168.2.1
  pod a app=a 10.0.0.1
  pod b app=b 10.0.0.2
  pod c app=c 10.0.0.3
---
apiVersion: projectcalico.org/v3
kind: Profile
metadata: { name: web }
spec: { ingress: [{ action: Deny, protocol: TCP, destination: { ports: [2] } }, { action: Allow, protocol: TCP }], egress: [{ action: Allow }], labelsToApply: { marked: "yes" } }
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: { name: n1-k8s-a-eth0, namespace: default }
spec: { node: n1, orchestrator: k8s, pod: a, interfaceName: mx0, ipNetworks: [10.0.0.1/32], profiles: [unknown, web] }
---
apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: { name: s }
spec: { selector: all(), types: [Ingress, Egress] }
${
    policy(
      "GlobalNetworkPolicy",
      "passes",
      "{ selector: has(marked), egress: [{ action: Allow }, { action: Deny }], ingress: [{ action: Pass }] }",
    )
  }
${
    policy(
      "GlobalNetworkPolicy",
      "lost",
      "{ tier: nowhere, selector: app == 'c', ingress: [{ action: Allow, protocol: TCP, destination: { ports: [1] } }] }",
    )
  }
`,
  `
  b -> a tcp/1 allow
  b -> a tcp/2 deny
  b -> a udp/1 deny
  a -> b tcp/1 allow
  b -> c tcp/1 allow
  b -> c tcp/2 deny`,
);

holds(
  "one that cannot be read denies, in its place, what it selects; all of its namespace where nobody can say whom",
  `${WORLD}
${
    policy(
      "GlobalNetworkPolicy",
      "early",
      "{ order: 1, selector: app == 'db', ingress: [{ action: Allow, protocol: TCP, destination: { ports: [1] } }] }",
    )
  }
${
    policy(
      "GlobalNetworkPolicy",
      "broken",
      "{ order: 2, selector: app == 'db', ingress: [{ action: Allow, protocol: TCP, http: { methods: [GET] } }] }",
    )
  }
${policy("GlobalNetworkPolicy", "late", "{ order: 3, ingress: [{ action: Allow }], egress: [{ action: Allow }] }")}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: { name: whom, namespace: dev }
spec: { order: 2, selector: app =, types: [Egress], egress: [{ action: Allow }] }
`,
  `
  out -> prod/db tcp/1 allow
  out -> prod/db tcp/2 deny
  prod/db -> out tcp/2 allow
  out -> prod/web tcp/2 allow
  dev/web -> out tcp/1 deny
  dev/other -> out tcp/1 deny
  out -> dev/web tcp/1 allow`,
);
