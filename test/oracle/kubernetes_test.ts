/** NetworkPolicy and ClusterNetworkPolicy: small worlds, and who reaches whom. */
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
  pod prod/web app=web 10.0.0.1 fd00::1 http:tcp/8080 dns:udp/53
  pod prod/db app=db 10.0.0.2 fd00::2 on:n2
  pod dev/web app=web 10.0.0.3 fd00::3 http:tcp/80
  pod dev/other app=other 10.0.0.4 fd00::4
  host out 203.0.113.5 2001:db8::5 via:up0
---
`;

holds(
  "types that are not given: ingress always, egress where it has rules",
  `${WORLD}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: a, namespace: prod }
spec: { podSelector: { matchLabels: { app: web } } }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: b, namespace: prod }
spec: { podSelector: { matchLabels: { app: db } }, egress: [{ ports: [{ port: 53, protocol: UDP }] }] }
`,
  `
  dev/other -> prod/web tcp/8080 deny
  prod/web -> dev/other tcp/80 allow
  dev/other -> prod/db tcp/80 deny
  prod/db -> dev/other udp/53 allow
  prod/db -> dev/other tcp/53 deny
  dev/web -> dev/other tcp/1 allow`,
);

holds(
  "peers: one namespace, namespaces by label, both in one, blocks with exceptions whoever has the address",
  `${WORLD}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: a, namespace: prod }
spec:
  podSelector: { matchLabels: { app: web } }
  ingress:
  - { from: [{ podSelector: {} }], ports: [{ port: 1 }] }
  - { from: [{ namespaceSelector: { matchLabels: { env: dev } } }], ports: [{ port: 2 }] }
  - { from: [{ namespaceSelector: { matchLabels: { env: dev } }, podSelector: { matchLabels: { app: web } } }], ports: [{ port: 3 }] }
  - { from: [{ namespaceSelector: {} }], ports: [{ port: 4 }] }
  - { from: [{ ipBlock: { cidr: 10.0.0.0/8, except: [10.0.0.4/32] } }, { ipBlock: { cidr: "2001:db8::/32" } }], ports: [{ port: 5 }] }
  - { from: [], ports: [{ port: 6 }] }
  - { from: [{ namespaceSelector: { matchExpressions: [{ key: kubernetes.io/metadata.name, operator: In, values: [dev] }] } }], ports: [{ port: 7 }] }
`,
  `
  prod/db -> prod/web tcp/1 allow
  dev/web -> prod/web tcp/1 deny
  dev/other -> prod/web tcp/2 allow
  prod/db -> prod/web tcp/2 deny
  dev/web -> prod/web tcp/3 allow
  dev/other -> prod/web tcp/3 deny
  prod/db -> prod/web tcp/4 allow
  out -> prod/web tcp/4 deny
  prod/db -> prod/web tcp/5 4 allow, 6 deny
  dev/other -> prod/web tcp/5 deny
  out -> prod/web tcp/5 4 deny, 6 allow
  out -> prod/web tcp/6 allow
  out -> prod/web udp/6 deny
  dev/web -> prod/web tcp/7 allow
  prod/db -> prod/web tcp/7 deny`,
);

holds(
  "ports: ranges, names at the destination, every port of a protocol, every protocol",
  `${WORLD}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: in, namespace: prod }
spec:
  podSelector: {}
  ingress: [{ ports: [{ port: 1000, endPort: 1002 }, { port: http }, { protocol: SCTP }, { protocol: UDP, port: http }] }]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: out, namespace: dev }
spec:
  podSelector: { matchLabels: { app: other } }
  egress: [{ to: [{ namespaceSelector: {}, podSelector: { matchLabels: { app: web } } }], ports: [{ port: http }] }]
  policyTypes: [Egress]
`,
  `
  dev/web -> prod/web tcp/999 deny
  dev/web -> prod/web tcp/1000 allow
  dev/web -> prod/web tcp/1002 allow
  dev/web -> prod/web tcp/1003 deny
  dev/web -> prod/web tcp/8080 allow
  dev/web -> prod/web udp/8080 deny
  dev/web -> prod/db tcp/8080 deny
  dev/web -> prod/web sctp/7 allow
  dev/web -> prod/web icmp deny
  dev/other -> prod/web tcp/8080 allow
  dev/other -> prod/web tcp/80 deny
  dev/other -> dev/web tcp/80 allow
  dev/other -> dev/web tcp/8080 deny`,
);

holds(
  "one that cannot be read denies what it selects in the directions that it names, and before the others",
  `${WORLD}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: broken, namespace: prod }
spec: { podSelector: { matchLabels: { app: web } }, policyTypes: [Ingress], ingress: [{ from: [{ ipBlock: { cidr: nonsense } }] }] }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: all, namespace: prod }
spec: { podSelector: {}, ingress: [{}] }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: whom, namespace: dev }
spec: { podSelector: { matchExpressions: [{ key: app, operator: Near, values: [a] }] }, policyTypes: [Egress] }
`,
  `
  dev/web -> prod/web tcp/1 deny
  prod/web -> prod/db tcp/1 allow
  out -> prod/db tcp/1 allow
  dev/other -> out tcp/1 deny
  prod/db -> dev/other tcp/1 allow`,
);

const cluster = (name: string, tier: string, priority: number, spec: string) => `
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: { name: ${name} }
spec:
  tier: ${tier}
  priority: ${priority}
${spec}`;

holds(
  "cluster policies: Admin before, Baseline after the namespaces' own, Pass to the next tier, by priority",
  `${WORLD}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: own, namespace: prod }
spec: { podSelector: { matchLabels: { app: web } }, ingress: [{ ports: [{ port: 1 }, { port: 2 }, { port: 3 }] }] }
${
    cluster(
      "late",
      "Admin",
      10,
      `
  subject: { namespaces: { matchLabels: { env: prod } } }
  ingress:
  - { action: Deny, from: [{ namespaces: {} }], protocols: [{ tcp: { destinationPort: { number: 1 } } }, { tcp: { destinationPort: { range: { start: 3, end: 4 } } } }] }
  - { action: Accept, from: [{ pods: { podSelector: { matchLabels: { app: other } } } }], protocols: [{ destinationNamedPort: http }] }`,
    )
  }
${
    cluster(
      "early",
      "Admin",
      1,
      `
  subject: { pods: { namespaceSelector: {}, podSelector: { matchLabels: { app: web } } } }
  ingress: [{ action: Pass, from: [{ namespaces: {} }], protocols: [{ tcp: { destinationPort: { number: 3 } } }] }]`,
    )
  }
${
    cluster(
      "base",
      "Baseline",
      0,
      `
  subject: { namespaces: {} }
  ingress: [{ action: Deny, from: [{ namespaces: {} }] }]`,
    )
  }
`,
  `
  dev/other -> prod/web tcp/1 deny
  out -> prod/web tcp/1 allow
  dev/other -> prod/web tcp/2 allow
  dev/other -> prod/web tcp/3 allow
  dev/other -> prod/db tcp/3 deny
  dev/other -> prod/web tcp/8080 allow
  dev/web -> prod/web tcp/8080 deny
  dev/other -> dev/web tcp/9 deny
  out -> dev/web tcp/9 allow
  prod/web -> out tcp/9 allow`,
);

holds(
  "cluster policies' egress: nodes and networks, whoever has the address; domain names deny what is selected",
  `${WORLD}
${
    cluster(
      "out",
      "Admin",
      1,
      `
  subject: { namespaces: { matchLabels: { env: prod } } }
  egress:
  - { action: Accept, to: [{ nodes: {} }], protocols: [{ tcp: { destinationPort: { number: 22 } } }] }
  - { action: Accept, to: [{ networks: [203.0.113.0/24, "fd00::4/128"] }] }
  - { action: Deny, to: [{ networks: [0.0.0.0/0, "::/0"] }] }`,
    )
  }
${
    cluster(
      "names",
      "Admin",
      2,
      `
  subject: { pods: { podSelector: { matchLabels: { app: other } } } }
  egress: [{ action: Accept, to: [{ domainNames: [example.org] }] }]`,
    )
  }
`,
  `
  prod/web -> node:n1 tcp/22 allow
  prod/web -> node:n2 tcp/22 allow
  prod/web -> node:n1 tcp/23 deny
  prod/web -> out tcp/1 4 allow, 6 deny
  prod/web -> dev/other tcp/1 4 deny, 6 allow
  prod/web -> out icmp allow
  dev/other -> out tcp/1 deny
  dev/web -> dev/other tcp/1 allow`,
);
