/**
 * A set that grows, shrinks or takes another form in the kernel is never empty on the way: packets that it denies are sent without a pause
 * while it changes, and none arrives. A kernel shows new sets of intervals late, which let through 25,000 packets in 0.8 s once.
 */
import { afterAll, expect, test } from "bun:test";
import { buffer, close, MSG, recv, sendto } from "../../src/kernel/libc.ts";
import { inetSockaddr } from "../../src/kernel/sockaddr.ts";
import { openBound } from "../../src/lab/probe_socket.ts";
import { type Address, addressFamily, parseAddress } from "../../src/model/address.ts";
import { type Manifest, PolicyLab } from "./policy_lab.ts";

const TEST_DEADLINE_MS = 60_000;
const PORT = 443;
const BURST = 20;
/** So many go out while any of the changes is under way. */
const SENT_MIN = 200;

const WORLD = `
nodes: [ { name: n1 } ]
pods: [ { name: server, labels: { app: server } } ]
hosts:
  - { name: out, address: 203.0.113.5, link: up0 }
  - { name: out6, address: "2001:db8:ffff::5", link: up0 }
`;
const DENIED: readonly Address[] = [parseAddress("203.0.113.5"), parseAddress("2001:db8:ffff::5")];
const POLICY = {
  apiVersion: "projectcalico.org/v3",
  kind: "GlobalNetworkPolicy",
  metadata: { name: "block" },
  spec: {
    selector: "app == 'server'",
    types: ["Egress"],
    egress: [{ action: "Deny", destination: { selector: "has(threat)" } }, { action: "Allow" }],
  },
};

const MEMBERS = 20_000;
const SINGLE: readonly string[] = Array.from(
  { length: MEMBERS },
  (_, i) => i % 2 === 0 ? `100.64.${i >> 9}.${i >> 1 & 255}` : `2001:db8:1::${(i >> 1).toString(16)}`,
);
const ALWAYS = ["203.0.113.5/32", "2001:db8:ffff::5/128"];
const setOf = (nets: readonly string[]): Manifest => ({
  apiVersion: "projectcalico.org/v3",
  kind: "GlobalNetworkSet",
  metadata: { name: "many", labels: { threat: "yes" } },
  spec: { nets: [...nets, ...ALWAYS] },
} as Manifest);

let opened: Promise<PolicyLab> | undefined;
afterAll(async () => await (await opened)?.[Symbol.asyncDispose]());

/** Sends from server to whoever is denied, in a tight loop, for as long as `work` takes. How many went out, and how many arrived. */
async function hammer(lab: PolicyLab, work: Promise<unknown>): Promise<{ readonly sent: number; arrived: number }> {
  const from = lab.sandbox.pods.get("default/server")!.namespace;
  using open = new DisposableStack();
  const ends = DENIED.map((to) => {
    const family = addressFamily(to);
    const host = lab.sandbox.hosts.get(family === 4 ? "out" : "out6")!.namespace;
    return {
      arriving: open.adopt(openBound(host, "datagram", 17, to, PORT), close),
      source: lab.sandbox.podAddresses("default/server").find((address) => addressFamily(address) === family)!,
      destination: inetSockaddr({ address: to, port: PORT }),
    };
  });
  const word = buffer(4), into = buffer(64);
  let isDone = false, sent = 0, arrived = 0;
  const done = work.finally(() => isDone = true);
  done.catch(() => {});
  while (!isDone) {
    for (let i = 0; i < BURST; i++) {
      for (const { arriving, source, destination } of ends) {
        // A flow of its own each time, so that nothing is let through for being known.
        const fd = openBound(from, "datagram", 17, source, 0);
        sendto(fd, word, MSG.NOSIGNAL, destination);
        close(fd);
        sent++;
        while (recv(arriving, into, MSG.DONTWAIT) >= 0) arrived++;
      }
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
  await done;
  return { sent, arrived };
}

const CHANGES: readonly (readonly [title: string, nets: readonly string[]])[] = [
  ["a member more", [...SINGLE, "100.127.0.1", "2001:db8:2::1"]],
  ["a prefix among the addresses: a set of intervals instead", [...SINGLE, "100.127.0.0/16", "2001:db8:2::/48"]],
  ["another prefix", [...SINGLE, "100.126.0.0/16", "2001:db8:3::/48"]],
  ["addresses alone again", SINGLE],
  ["more than the capacity that it was made for", [
    ...SINGLE,
    ...SINGLE.map((net) => net.replace(/^100\.64/, "100.65").replace("8:1::", "8:4::")),
  ]],
  ["nothing but what is denied", []],
  ["a prefix that holds all the rest", ["203.0.113.0/24", "2001:db8:ffff::/48"]],
];

test("what a set denies stays denied while the set changes", async () => {
  const lab = await (opened ??= PolicyLab.open(WORLD));
  // It is seen where it does arrive.
  await lab.apply([setOf(SINGLE)]);
  const open = await hammer(lab, lab.apply([POLICY]));
  expect(open.arrived).toBeGreaterThan(0);
  for (const [title, nets] of CHANGES) {
    const { sent, arrived } = await hammer(lab, lab.apply([setOf(nets)]));
    expect([title, arrived]).toEqual([title, 0]);
    if (nets.length > MEMBERS / 2) expect(sent).toBeGreaterThan(SENT_MIN);
  }
}, TEST_DEADLINE_MS);

test("a policy whose own list of nets changes denies what both lists hold, throughout", async () => {
  const lab = await (opened ??= PolicyLab.open(WORLD));
  await lab.reset();
  const listing = (nets: readonly string[]): Manifest => ({
    ...POLICY,
    spec: {
      selector: "app == 'server'",
      types: ["Egress"],
      // A rule has prefixes of one family.
      egress: [
        { action: "Deny", destination: { nets: [ALWAYS[0], ...nets] } },
        { action: "Deny", destination: { nets: [ALWAYS[1]] } },
        { action: "Allow" },
      ],
    },
  });
  const prefixes = (second: number) =>
    Array.from({ length: 5_000 }, (_, i) => `10.${second + (i >> 7)}.${(i & 127) * 2}.0/24`);
  await lab.apply([listing([])]);
  for (const nets of [prefixes(0), prefixes(100), ["203.0.113.0/24"], []]) {
    const { arrived } = await hammer(lab, lab.apply([listing(nets)]));
    expect(arrived).toBe(0);
  }
}, TEST_DEADLINE_MS);
