/**
 * ICMP with packets made by hand: types and codes, neighbour discovery of a pod that is closed both ways, answers and errors that
 * belong to what was allowed, and those that belong to nothing.
 */
import { afterAll, expect, test } from "bun:test";
import { KernelError } from "../../src/kernel/errors.ts";
import {
  buffer,
  check,
  close,
  connect,
  Errno,
  getsockoptInt,
  IP,
  IPPROTO,
  IPV6,
  MSG,
  POLL,
  poll,
  recv,
  send,
  sendto,
  setsockoptInt,
  SO,
  SOL,
} from "../../src/kernel/libc.ts";
import { inetSockaddr, parseInetSockaddr } from "../../src/kernel/sockaddr.ts";
import { internetChecksum, ipv4Payload } from "../../src/lab/packets.ts";
import { drain, echoProtocol, openBound, openSocket } from "../../src/lab/probe_socket.ts";
import { DENY_WINDOW_MS } from "../../src/lab/prober.ts";
import { type Address, addressFamily, type Family, formatAddress, parseAddress } from "../../src/model/address.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { type Manifest, output, PolicyLab } from "./policy_lab.ts";

/** The thread is given back as often, so that both families are tried at once. */
const LOOK_MS = 5;
const TEST_DEADLINE_MS = 60_000;
/** What must come comes in the sender's own time; the rest is for a busy machine. */
const ANSWER_DEADLINE_MS = 5_000;

const WORLD = `
nodes: [ { name: n1 }, { name: n2 } ]
pods:
  - { name: a, node: n1, labels: { app: a }, serves: [tcp/80] }
  - { name: b, node: n2, labels: { app: b }, serves: [tcp/80] }
  - { name: c, node: n1, labels: { app: c }, serves: [tcp/80] }
`;

let opened: Promise<PolicyLab> | undefined;
afterAll(async () => await (await opened)?.[Symbol.asyncDispose]());

/** The bare world again. */
async function fresh(): Promise<PolicyLab> {
  const lab = await (opened ??= PolicyLab.open(WORLD));
  await lab.reset();
  return lab;
}

type Pod = "a" | "b" | "c";
const FAMILIES: readonly Family[] = [4, 6];
const namespaceOf = (lab: PolicyLab, pod: Pod): NetworkNamespace => lab.sandbox.pods.get(`default/${pod}`)!.namespace;
const addressOf = (lab: PolicyLab, pod: Pod, family: Family): Address =>
  lab.sandbox.podAddresses(`default/${pod}`).find((address) => addressFamily(address) === family)!;

const policy = (name: string, spec: Readonly<Record<string, unknown>>): Manifest => ({
  apiVersion: "projectcalico.org/v3",
  kind: "NetworkPolicy",
  metadata: { name, namespace: "default" },
  spec,
});
const CLOSED = (pod: Pod): Manifest =>
  policy(`closed-${pod}`, { selector: `app == '${pod}'`, types: ["Ingress", "Egress"] });

/** `TYPE/CODE`. */
type Kind = string;
const TOKEN_BYTES = 8;
const HEADER_BYTES = 8;
let nextToken = 1;

/** An ICMP message with a token as its identifier, so that it is a flow of its own, and behind its header; room for a timestamp's three times, RFC 792. */
function message(family: Family, kind: Kind, token: number): Uint8Array<ArrayBuffer> {
  const [type, code] = kind.split("/").map(Number) as [number, number];
  const bytes = buffer(HEADER_BYTES + TOKEN_BYTES + 16);
  bytes.set([type, code]);
  const view = new DataView(bytes.buffer);
  view.setUint16(4, token & 0xffff);
  view.setUint32(HEADER_BYTES, token);
  // In IPv6 the kernel fills it in.
  if (family === 4) view.setUint16(2, internetChecksum(bytes));
  return bytes;
}

/** Sees the ICMP messages that reach a namespace, by their tokens. */
class Witness implements Disposable {
  /** Kind and sender by token. */
  readonly seen = new Map<number, { readonly kind: Kind; readonly from: string }>();
  readonly #fd: number;
  readonly #family: Family;

  constructor(namespace: NetworkNamespace, family: Family) {
    this.#family = family;
    this.#fd = openSocket(namespace, family, "raw", echoProtocol(family));
  }

  /** Takes in all there is, after waiting for it for at most `timeoutMs`. */
  look(timeoutMs: number): void {
    poll([{ fd: this.#fd, events: POLL.IN }], timeoutMs);
    drain(this.#fd, (data, from) => {
      const icmp = this.#family === 4 ? ipv4Payload(data) : data;
      if (icmp.length < HEADER_BYTES + TOKEN_BYTES) return;
      const token = new DataView(icmp.buffer, icmp.byteOffset).getUint32(HEADER_BYTES);
      const sender = formatAddress(parseInetSockaddr(from()).address);
      this.seen.set(token, { kind: `${icmp[0]}/${icmp[1]}`, from: sender });
    });
  }

  [Symbol.dispose](): void {
    close(this.#fd);
  }
}

/** Sends each of `kinds` twice and gives those of which any arrives at `to` within the time for silence. */
async function arrivals(
  from: { readonly namespace: NetworkNamespace; readonly address: Address; readonly scopeId?: number },
  to: { readonly namespace: NetworkNamespace; readonly address: Address },
  kinds: readonly Kind[],
): Promise<readonly Kind[]> {
  const family = addressFamily(to.address);
  using witness = new Witness(to.namespace, family);
  using sender = new DisposableStack();
  const fd = sender.adopt(openBound(from.namespace, "raw", echoProtocol(family), from.address, 0), close);
  const tokens = new Map(kinds.map((kind) => [nextToken++, kind]));
  const destination = inetSockaddr({ address: to.address, port: 0, scopeId: from.scopeId ?? 0 });
  for (let attempt = 0; attempt < 2; attempt++) {
    for (const [token, kind] of tokens) {
      const sent = sendto(fd, message(family, kind, token), MSG.NOSIGNAL, destination);
      // The sender's own node may refuse on the spot.
      if (sent < 0 && sent !== -Errno.EPERM) throw new KernelError(`send ICMP ${kind}`, -sent);
    }
    const untilMs = performance.now() + DENY_WINDOW_MS / 2;
    while (performance.now() < untilMs) {
      witness.look(LOOK_MS);
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
  return [...tokens].filter(([token, kind]) => witness.seen.get(token)?.kind === kind).map(([, kind]) => kind);
}

/** What of `kinds` gets from one pod to another. */
const between = (lab: PolicyLab, from: Pod, to: Pod, family: Family, kinds: readonly Kind[]) =>
  arrivals(
    { namespace: namespaceOf(lab, from), address: addressOf(lab, from, family) },
    { namespace: namespaceOf(lab, to), address: addressOf(lab, to, family) },
    kinds,
  );

/** What opens a flow for the kernel's connection tracking: requests for echo, time, information and mask; in IPv6 for echo and names. */
const REQUESTS: Readonly<Record<Family, readonly Kind[]>> = {
  4: ["8/0", "8/1", "13/0", "13/1", "15/0", "17/0"],
  6: ["128/0", "128/1", "139/0", "139/1"],
};

interface TypeCase {
  readonly title: string;
  readonly rules: readonly Readonly<Record<string, unknown>>[];
  /** What passes, in each family. */
  readonly passes: Readonly<Record<Family, readonly Kind[]>>;
}
const CASES: readonly TypeCase[] = [
  {
    title: "type and code of ICMP",
    rules: [{ action: "Allow", protocol: "ICMP", icmp: { type: 8, code: 1 } }],
    passes: { 4: ["8/1"], 6: [] },
  },
  {
    title: "a type of ICMP, whatever the code",
    rules: [{ action: "Allow", protocol: "ICMP", icmp: { type: 13 } }],
    passes: { 4: ["13/0", "13/1"], 6: [] },
  },
  {
    title: "type and code of ICMPv6",
    rules: [{ action: "Allow", protocol: "ICMPv6", icmp: { type: 128, code: 0 } }],
    passes: { 4: [], 6: ["128/0"] },
  },
  {
    title: "a denied type before all of its protocol, in either family",
    rules: [
      { action: "Deny", protocol: "ICMP", icmp: { type: 8 } },
      { action: "Deny", protocol: "ICMPv6", icmp: { type: 139 } },
      { action: "Allow", protocol: "ICMP" },
      { action: "Allow", protocol: "ICMPv6" },
    ],
    passes: { 4: ["13/0", "13/1", "15/0", "17/0"], 6: ["128/0", "128/1"] },
  },
  {
    title: "all but a type and code",
    rules: [
      { action: "Allow", protocol: "ICMP", notICMP: { type: 8, code: 0 } },
      { action: "Allow", protocol: "ICMPv6", notICMP: { type: 128 } },
    ],
    passes: { 4: ["8/1", "13/0", "13/1", "15/0", "17/0"], 6: ["139/0", "139/1"] },
  },
  {
    title: "protocols by number, and one that is not",
    rules: [{ action: "Deny", notProtocol: 1 }, { action: "Allow", protocol: 1 }],
    passes: { 4: REQUESTS[4], 6: [] },
  },
  {
    title: "a family without a protocol",
    rules: [{ action: "Allow", ipVersion: 6 }],
    passes: { 4: [], 6: REQUESTS[6] },
  },
];

for (const { title, rules, passes } of CASES) {
  for (const direction of ["ingress", "egress"] as const) {
    test(`${direction} by ${title}`, async () => {
      const lab = await fresh();
      const subject = direction === "ingress" ? "b" : "a";
      const types = [direction === "ingress" ? "Ingress" : "Egress"];
      await lab.apply([policy("types", { selector: `app == '${subject}'`, types, [direction]: rules })]);
      const passed = await Promise.all(FAMILIES.map((family) => between(lab, "a", "b", family, REQUESTS[family])));
      expect(passed).toEqual([passes[4], passes[6]]);
    }, TEST_DEADLINE_MS);
  }
}

test("what belongs to no flow gets nowhere, however open the pods are", async () => {
  const lab = await fresh();
  // Errors, redirects, answers that nobody asked for.
  expect(await between(lab, "a", "b", 4, ["8/0", "0/0", "3/3", "5/1", "11/0", "14/0"])).toEqual(["8/0"]);
  expect(await between(lab, "a", "b", 6, ["128/0", "129/0", "1/4", "2/0", "3/0", "4/1"])).toEqual(["128/0"]);
  expect(await between(lab, "a", "c", 4, ["8/0", "0/0", "3/3"])).toEqual(["8/0"]);
}, TEST_DEADLINE_MS);

/** The host's side of every pod's link. */
const GATEWAY = parseAddress("fe80::1");
/** Multicast listener messages and neighbour discovery, RFC 2710 and RFC 4861. */
const NEIGHBOURS: readonly Kind[] = ["130/0", "131/0", "132/0", "133/0", "134/0", "135/0", "136/0"];

test(
  "neighbour discovery and multicast listeners of a pod that is closed both ways are not blocked, all else is",
  async () => {
    const lab = await fresh();
    await lab.apply([CLOSED("a")]);
    const pod = namespaceOf(lab, "a"), node = lab.sandbox.nodes.get("n1")!.namespace;
    const inside = Number(/^(\d+): eth0@/.exec(output(pod, ["ip", "-o", "link", "show", "eth0"]))![1]);
    const sent = (source: Address) =>
      arrivals(
        { namespace: pod, address: source, scopeId: inside },
        { namespace: node, address: GATEWAY },
        [...NEIGHBOURS, "128/0", "137/0", "139/0"],
      );
    expect(await sent(addressOf(lab, "a", 6))).toEqual([...NEIGHBOURS]);
    // Towards the pod too, where it is its own node that speaks.
    const toPod = await arrivals(
      { namespace: node, address: lab.sandbox.nodeAddresses("n1").find((address) => addressFamily(address) === 6)! },
      { namespace: pod, address: addressOf(lab, "a", 6) },
      NEIGHBOURS,
    );
    expect(toPod).toEqual([...NEIGHBOURS]);
    // What is forwarded is no discovery: two closed pods could talk by it.
    const toOther = await arrivals(
      { namespace: pod, address: addressOf(lab, "a", 6) },
      { namespace: namespaceOf(lab, "b"), address: addressOf(lab, "b", 6) },
      NEIGHBOURS,
    );
    expect(toOther).toEqual([]);
  },
  TEST_DEADLINE_MS,
);

test("a closed pod that has forgotten its gateway finds it again, and its node still reaches it", async () => {
  const lab = await fresh();
  await lab.apply([CLOSED("a")]);
  const pod = namespaceOf(lab, "a");
  const neighbours = () => output(pod, ["ip", "-6", "neigh", "show", "fe80::1", "dev", "eth0"]);
  expect(neighbours()).toContain("PERMANENT");
  output(pod, ["ip", "-6", "neigh", "del", "fe80::1", "dev", "eth0"]);
  expect(
    await lab.wrongLines([
      "node:n1 -> a tcp/80 allow",
      "node:n2 -> a tcp/80 deny",
      "a -> node:n1 icmpv6 deny",
      "b -> a tcp/80 deny",
    ]),
  ).toEqual([]);
  // Learnt by asking, not as it was written.
  expect(neighbours()).toContain("lladdr ee:ee:ee:ee:ee:ee");
  expect(neighbours()).not.toContain("PERMANENT");
  output(pod, [
    "ip",
    "-6",
    "neigh",
    "replace",
    "fe80::1",
    "lladdr",
    "ee:ee:ee:ee:ee:ee",
    "dev",
    "eth0",
    "nud",
    "permanent",
  ]);
}, TEST_DEADLINE_MS);

/** A UDP socket of `pod` at `port`, 0 for any. */
const udpSocket = (lab: PolicyLab, pod: Pod, family: Family, port = 0): number =>
  openBound(namespaceOf(lab, pod), "datagram", IPPROTO.UDP, addressOf(lab, pod, family), port);

const SENDS = new Uint8Array(new TextEncoder().encode("a word").buffer.slice(0) as ArrayBuffer);

/** Told to a socket: include/uapi/asm-generic/errno.h. */
const ECONNREFUSED = 111, EHOSTUNREACH = 113;

/** The error that the socket is told, or `silence`. */
function errorAt(fd: number, timeoutMs: number): string {
  const [events] = poll([{ fd, events: 0 }], timeoutMs);
  return events === 0 ? "silence" : `errno ${Math.abs(getsockoptInt(fd, SOL.SOCKET, SO.ERROR))}`;
}

test("an answer comes back to whoever lets nobody in, from whoever sends to nobody; nothing else does", async () => {
  const lab = await fresh();
  await lab.apply([
    policy("a", {
      selector: "app == 'a'",
      types: ["Ingress", "Egress"],
      egress: [{ action: "Allow", protocol: "UDP", destination: { ports: [53] } }],
    }),
    policy("b", {
      selector: "app == 'b'",
      types: ["Ingress", "Egress"],
      ingress: [{ action: "Allow", protocol: "UDP", destination: { ports: [53] } }],
    }),
  ]);
  for (const family of FAMILIES) {
    using open = new DisposableStack();
    const asking = open.adopt(udpSocket(lab, "a", family, 4053), close);
    const answering = open.adopt(udpSocket(lab, "b", family, 53), close);
    const beside = open.adopt(udpSocket(lab, "b", family, 54), close);
    const askedAt = inetSockaddr({ address: addressOf(lab, "a", family), port: 4053 });
    const into = buffer(64);
    // Before it was asked, the very same packet is nobody's answer.
    check("send before", sendto(answering, SENDS, 0, askedAt));
    expect(poll([{ fd: asking, events: POLL.IN }], DENY_WINDOW_MS)).toEqual([0]);
    check("ask", sendto(asking, SENDS, 0, inetSockaddr({ address: addressOf(lab, "b", family), port: 53 })));
    expect(poll([{ fd: answering, events: POLL.IN }], ANSWER_DEADLINE_MS)).toEqual([POLL.IN]);
    check("take", recv(answering, into, MSG.DONTWAIT));
    check("answer from another port", sendto(beside, SENDS, 0, askedAt));
    expect(poll([{ fd: asking, events: POLL.IN }], DENY_WINDOW_MS)).toEqual([0]);
    check("answer", sendto(answering, SENDS, 0, askedAt));
    expect(poll([{ fd: asking, events: POLL.IN }], ANSWER_DEADLINE_MS)).toEqual([POLL.IN]);
  }
}, TEST_DEADLINE_MS);

test(
  "errors about what was allowed come back, from the other pod and from routers on the way; others do not",
  async () => {
    const lab = await fresh();
    await lab.apply([
      policy("a", {
        selector: "app == 'a'",
        types: ["Ingress", "Egress"],
        egress: [{ action: "Allow", protocol: "UDP" }],
      }),
      policy("b", {
        selector: "app == 'b'",
        types: ["Ingress", "Egress"],
        ingress: [{ action: "Allow", protocol: "UDP", destination: { ports: [9] } }],
      }),
    ]);
    for (const family of FAMILIES) {
      using open = new DisposableStack();
      const towards = (port: number, hops?: number) => {
        const fd = open.adopt(udpSocket(lab, "a", family), close);
        if (family === 4) setsockoptInt(fd, SOL.IP, IP.RECVERR, 1);
        else setsockoptInt(fd, SOL.IPV6, IPV6.RECVERR, 1);
        if (hops !== undefined) {
          check(
            "set the hop limit",
            family === 4
              ? setsockoptInt(fd, SOL.IP, IP.TTL, hops)
              : setsockoptInt(fd, SOL.IPV6, IPV6.UNICAST_HOPS, hops),
          );
        }
        check("connect", connect(fd, inetSockaddr({ address: addressOf(lab, "b", family), port })));
        check("send", send(fd, SENDS, MSG.NOSIGNAL));
        return fd;
      };
      // Nobody listens at port 9, so b says so; of port 10 nothing reaches it.
      expect(errorAt(towards(9), ANSWER_DEADLINE_MS)).toBe(`errno ${ECONNREFUSED}`);
      expect(errorAt(towards(10), DENY_WINDOW_MS)).toBe("silence");
      // Its own node, then the other one, find the hop limit used up.
      expect(errorAt(towards(9, 1), ANSWER_DEADLINE_MS)).toBe(`errno ${EHOSTUNREACH}`);
      expect(errorAt(towards(9, 2), ANSWER_DEADLINE_MS)).toBe(`errno ${EHOSTUNREACH}`);
    }
    // A made-up one about no flow at all.
    expect(await between(lab, "b", "a", 4, ["3/3", "11/0"])).toEqual([]);
    expect(await between(lab, "b", "a", 6, ["1/4", "3/0"])).toEqual([]);
  },
  TEST_DEADLINE_MS,
);
