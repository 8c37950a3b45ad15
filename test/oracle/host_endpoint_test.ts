/** Host endpoints: which interfaces they stand for, and what is asked at which stage. */
import { expect, test } from "bun:test";
import { answer } from "./sketch.ts";

function holds(title: string, sketch: string, table: string): void {
  test(title, () => expect(answer(sketch, table)).toBe(table));
}

const WORLD = `
  node n1 192.168.2.1 fd02::1
  node n2 192.168.2.2 fd02::2
  link up0 192.168.3.1
  link up1 192.168.3.2
  pod web app=web 10.0.0.1 fd00::1 http:tcp/80
  pod far app=far 10.0.0.2 fd00::2 on:n2
  host left 203.0.113.5 via:up0
  host right 198.51.100.5 via:up1
  dnat n1 tcp/8080 web tcp/80
---
`;

const host = (name: string, spec: string) => `
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: { name: ${name}, labels: { host: ${name} } }
spec: { node: n1, ${spec} }`;

const policy = (name: string, spec: string) => `
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: { name: ${name} }
spec: { ${spec} }`;

holds(
  "one that nothing selects closes the node at its interface, but for failsafe ports, and nothing else",
  `${WORLD}${host("up0", "interfaceName: up0")}`,
  `
  left -> node:n1@up0 tcp/80 deny
  left -> node:n1@up0 tcp/22 allow
  left -> node:n1@up0 udp/68 allow
  left -> node:n1@up0 udp/53 deny
  left -> node:n1@up0 icmp deny
  node:n1 -> left tcp/22 deny
  node:n1 -> left udp/53 allow
  node:n1 -> left tcp/6443 allow
  right -> node:n1@up1 tcp/80 allow
  left -> right tcp/80 allow
  left -> web tcp/80 allow
  web -> left tcp/80 allow
  web -> node:n1 tcp/80 allow`,
);

holds(
  "by the address that an interface holds; a name comes before it, and both before all interfaces",
  `${WORLD}
${host("by-address", "expectedIPs: [192.168.3.2]")}
${host("by-name", "interfaceName: up0")}
${host("all", 'interfaceName: "*"')}
${
    policy(
      "a",
      "selector: host == 'by-address', ingress: [{ action: Allow, protocol: TCP, destination: { ports: [1] } }]",
    )
  }
${policy("n", "selector: host == 'by-name', ingress: [{ action: Allow, protocol: TCP, destination: { ports: [2] } }]")}
${policy("s", "selector: host == 'all', ingress: [{ action: Allow, protocol: TCP, destination: { ports: [3] } }]")}
`,
  `
  right -> node:n1@up1 tcp/1 allow
  right -> node:n1@up1 tcp/3 deny
  left -> node:n1@up0 tcp/2 allow
  left -> node:n1@up0 tcp/3 deny
  node:n2 -> node:n1 tcp/3 allow
  node:n2 -> node:n1 tcp/2 deny
  web -> node:n1 tcp/9 allow`,
);

holds(
  "the node reaches its own pods, whatever they say; the endpoint of all interfaces alone has a word in it",
  `${WORLD}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: shut }
spec: { podSelector: {} }
${host("up0", "interfaceName: up0")}
`,
  `
  node:n1 -> web tcp/80 allow
  node:n2 -> web tcp/80 deny
  node:n1 -> far tcp/80 deny
  left -> web tcp/80 deny`,
);

holds(
  "what the endpoint of all interfaces says of the node's own traffic, it says of that to its pods",
  `${WORLD}
${host("all", 'interfaceName: "*"')}
${policy("out", "selector: host == 'all', egress: [{ action: Allow, protocol: TCP, destination: { ports: [80] } }]")}
`,
  `
  node:n1 -> web tcp/80 allow
  node:n1 -> web tcp/81 deny
  node:n1 -> far tcp/81 deny
  node:n1 -> web tcp/179 allow
  web -> far tcp/81 allow`,
);

holds(
  "forwarded traffic: allowed where no policy for it applies, else judged to the end, on the way in and on the way out",
  `${WORLD}
${host("left", "interfaceName: up0")}
${host("right", "interfaceName: up1")}
${
    policy(
      "in",
      "selector: host == 'left', applyOnForward: true, ingress: [{ action: Allow, protocol: TCP, destination: { ports: [80, 81] } }]",
    )
  }
${
    policy(
      "out",
      "selector: host == 'right', applyOnForward: true, types: [Egress], egress: [{ action: Allow, protocol: TCP, destination: { ports: [80] } }]",
    )
  }
${policy("own", "selector: host == 'left', ingress: [{ action: Allow, protocol: TCP, destination: { ports: [90] } }]")}
`,
  `
  left -> web tcp/81 allow
  left -> web tcp/82 deny
  left -> web tcp/22 deny
  left -> web tcp/90 deny
  left -> node:n1@up0 tcp/90 allow
  left -> right tcp/80 allow
  left -> right tcp/81 deny
  web -> right tcp/81 deny
  web -> left tcp/99 allow
  right -> web tcp/99 allow
  node:n1 -> right tcp/80 allow
  node:n1 -> right tcp/81 deny`,
);

holds(
  "forwarded traffic that every tier passes meets the profiles, and without one that allows it an end",
  `${WORLD}
apiVersion: projectcalico.org/v3
kind: Tier
metadata: { name: t }
spec: { order: 1, defaultAction: Pass }
---
apiVersion: projectcalico.org/v3
kind: Profile
metadata: { name: p }
spec: { ingress: [{ action: Allow, protocol: UDP }] }
${host("left", "interfaceName: up0, profiles: [p]")}
${host("right", "interfaceName: up1, profiles: [projectcalico-default-allow]")}
${
    policy(
      "in",
      "tier: t, selector: has(host), applyOnForward: true, ingress: [{ action: Deny, protocol: TCP, destination: { ports: [1] } }, { action: Pass, protocol: TCP }]",
    )
  }
`,
  `
  left -> web tcp/2 deny
  left -> web udp/2 allow
  left -> web sctp/2 deny
  right -> web tcp/1 deny
  right -> web tcp/2 allow
  left -> node:n1@up0 udp/2 allow
  left -> node:n1@up0 tcp/2 deny`,
);

holds(
  "before DNAT the node's port counts; nothing said goes on, an allowed packet has passed the endpoint and not the pod",
  `${WORLD}
${host("left", "interfaceName: up0")}
${
    policy(
      "pre",
      "selector: has(host), preDNAT: true, applyOnForward: true, ingress: [{ action: Deny, protocol: TCP, destination: { ports: [81] } }, { action: Allow, protocol: TCP, destination: { ports: [82, 83, 8080] } }]",
    )
  }
${policy("forward", "selector: host == 'left', applyOnForward: true, ingress: [{ action: Allow, protocol: UDP }]")}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: web }
spec: { podSelector: {}, ingress: [{ ports: [{ port: 80 }, { port: 81 }, { port: 82 }, { port: 1, protocol: UDP }] }] }
`,
  `
  left -> node:n1@up0 tcp/8080 allow
  left -> web tcp/80 deny
  left -> web tcp/81 deny
  left -> web tcp/82 allow
  left -> web tcp/83 deny
  left -> web udp/1 allow
  left -> node:n1@up0 tcp/82 allow
  left -> node:n1@up0 tcp/84 deny
  left -> node:n1@up0 tcp/22 allow
  right -> web tcp/81 allow
  web -> left tcp/81 allow`,
);

holds(
  "without tracking: before all else in, and out for what the node sends; answers to failsafe ports are known by their source port",
  `${WORLD}
${host("left", "interfaceName: up0")}
${
    policy(
      "u",
      `selector: has(host), doNotTrack: true, applyOnForward: true, types: [Ingress, Egress],
  ingress: [{ action: Allow, protocol: TCP, destination: { ports: [81] } }, { action: Deny, protocol: TCP }],
  egress: [{ action: Allow, protocol: TCP, destination: { ports: [81] } }, { action: Deny, protocol: UDP }]`,
    )
  }
${
    policy(
      "own",
      "selector: has(host), types: [Ingress, Egress], ingress: [{ action: Allow, protocol: TCP }], egress: [{ action: Allow, protocol: TCP, destination: { ports: [82] } }]",
    )
  }
`,
  `
  left -> node:n1@up0 tcp/81 allow
  left -> node:n1@up0 tcp/82 deny
  left -> node:n1@up0 tcp/82 from/179 allow
  left -> node:n1@up0 tcp/22 allow
  left -> web tcp/82 deny
  left -> web udp/82 allow
  node:n1 -> left tcp/81 allow
  node:n1 -> left tcp/82 allow
  node:n1 -> left tcp/83 deny
  node:n1 -> left udp/53 allow
  node:n1 -> left udp/54 deny
  web -> left udp/54 allow`,
);

holds(
  "policies for a stage that only host endpoints have mean nothing to workloads; others select both",
  `${WORLD}
${host("left", "interfaceName: up0")}
${
    policy(
      "pre",
      "selector: all(), preDNAT: true, applyOnForward: true, ingress: [{ action: Deny, protocol: TCP, destination: { ports: [81] } }]",
    )
  }
${
    policy(
      "both",
      "order: 5, selector: has(host) || app == 'far', ingress: [{ action: Allow, protocol: TCP, destination: { ports: [80] } }]",
    )
  }
`,
  `
  far -> web tcp/81 allow
  web -> far tcp/80 allow
  web -> far tcp/82 deny
  left -> node:n1@up0 tcp/80 allow
  left -> node:n1@up0 tcp/82 deny`,
);

holds(
  "a host endpoint is a peer by its expected addresses, and has named ports there",
  `${WORLD}
${
    host(
      "named",
      "interfaceName: eth0, expectedIPs: [192.168.2.1], ports: [{ name: api, port: 6444, protocol: TCP }], profiles: [projectcalico-default-allow]",
    )
  }
${host("nowhere", "interfaceName: up0, profiles: [projectcalico-default-allow]")}
${
    policy(
      "out",
      "selector: app == 'far', egress: [{ action: Allow, protocol: TCP, destination: { selector: has(host), ports: [api] } }]",
    )
  }
${policy("in", "selector: app == 'far', ingress: [{ action: Allow, protocol: TCP, source: { selector: has(host) } }]")}
`,
  `
  far -> node:n1 tcp/6444 4 allow, 6 deny
  far -> node:n1 tcp/6445 deny
  far -> web tcp/6444 deny
  node:n1 -> far tcp/1 4 allow, 6 deny
  web -> far tcp/1 deny`,
);
