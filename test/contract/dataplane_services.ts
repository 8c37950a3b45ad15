/**
 * What every dataplane for services does to real packets: pods, the node and the outside in namespaces, servers that say whom they
 * saw. Policy is in force beside it, so a dataplane for services only is opened together with one for policy.
 */
import { expect, test } from "bun:test";
import type { DesiredState } from "../../src/model/desired.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import { openNetlink } from "../../src/kernel/netlink/socket.ts";
import { getFlows, parseFlow } from "../../src/kernel/netlink/schema/conntrack.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { Prober } from "../../src/lab/prober.ts";
import { services } from "../../src/model/testdata/services.ts";
import { address, cidr, CLOSED, rule, rules, state, workload } from "../../src/model/testdata/small_states.ts";
import type { Dataplane } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { Conversation, SILENCE_MS } from "./conversation.ts";
import { type Node, node, PLACES } from "./dataplane_node.ts";

export interface ServicesSubject {
  /** The dataplane, in a namespace that is a node of its own; again, as after a restart, once the first is disposed. */
  readonly open: (namespace: NetworkNamespace) => Promise<Dataplane>;
  /** Absent: `test` of bun:test. */
  readonly test?: typeof test;
  /** What a port of a service's address answers that no service has. Absent: nothing, as the address is nobody's. */
  readonly unserved?: "refused";
  /** An affinity's time begins when the client's connections are forgotten, minutes after their end: too long for a test. */
  readonly affinityOutlastsConnections?: true;
  /** So long without an answer is silence; for machines where that takes longer. */
  readonly silenceMs?: number;
}

/** What begins anew with each connection has ended after so long without one, where it lasts a second. */
const AFFINITY_GONE_MS = 2_100;
const AFFINITY_TRIES = 20;
const WORK_MS = 20;

type Lists = NonNullable<Parameters<typeof workload>[3]>;

let generation = 0;
const world = (
  lines: readonly string[],
  more: {
    readonly lists?: Readonly<Record<string, Lists>>;
    readonly podNets?: readonly string[];
    readonly nodePortAddresses?: readonly string[];
  } = {},
): DesiredState => ({
  ...state({
    generation: ++generation,
    workloads: ["a", "b"].map((name) =>
      workload(name, PLACES[name]!.link, [PLACES[name]!.v4, PLACES[name]!.v6], more.lists?.[name])
    ),
  }),
  services: services(lines, { podNets: more.podNets ?? [], nodePortAddresses: more.nodePortAddresses ?? [] }),
});

interface Opened extends AsyncDisposable {
  readonly here: Node;
  readonly talk: Conversation;
  /** How many messages that took. */
  apply(of: DesiredState): Promise<number>;
}

async function opened({ open, silenceMs = SILENCE_MS }: ServicesSubject): Promise<Opened> {
  const here = await node(open);
  const talk = new Conversation(silenceMs);
  // A node has a way to service addresses, be it the default route.
  runIn(here.node, "sh", "-c", "ip route add 10.96.0.0/16 dev eth0; ip -6 route add fd96::/64 dev eth0");
  for (const [name, { v4, v6 }] of Object.entries(PLACES)) {
    talk.serve(name, here.places[name]!, `tcp ${v4}:8080`, `udp ${v4}:8080`, `tcp [${v6}]:8080`, `udp [${v6}]:8080`);
  }
  return {
    here,
    talk,
    async apply(of) {
      const report = await here.dataplane.apply(of);
      expect(report).toMatchObject({ converged: true, problems: [] });
      return report.messages;
    },
    async [Symbol.asyncDispose]() {
      talk[Symbol.dispose]();
      await here[Symbol.asyncDispose]();
    },
  };
}

/** `a tcp 10.96.0.1:80 = b saw 10.0.0.1`; from `node` too. */
function check({ here, talk }: { readonly here: Node; readonly talk: Conversation }, lines: string): void {
  const wanted = lines.trim().split("\n").map((line) => line.trim());
  expect(wanted.map((line) => {
    const [question, answer] = line.split(" = ");
    const [from, ...what] = question!.split(" ");
    const place = from === "node" ? here.node : here.places[from!]!;
    const ask = answer === "silence" ? talk.ask.bind(talk) : talk.askAgain.bind(talk);
    return `${question} = ${ask(place, what.join(" "))}`;
  })).toEqual(wanted);
}

/** Emulated kernels on a busy machine take that long for what is work behind a change. */
const UNTIL_MS = 20_000;

/** Until `found` is as wanted. */
async function until<T>(wanted: T, found: () => T): Promise<void> {
  for (const deadline = performance.now() + UNTIL_MS;;) {
    const is = found();
    if (Bun.deepEquals(is, wanted)) return;
    if (performance.now() > deadline) return expect(is).toEqual(wanted);
    // Asking holds the thread that works on it.
    await new Promise((resolve) => setTimeout(resolve, WORK_MS));
  }
}

/** All that a dataplane with the aspect `services` does, beside policy. */
export function dataplaneServices(subject: ServicesSubject): void {
  const { test: run = test } = subject;

  run(
    "a cluster address answers pods, the node and others, over TCP and UDP, in both families, and a pod that is its own backend",
    async () => {
      await using all = await opened(subject);
      await all.apply(world([
        "tcp 10.96.0.1:80 > 10.0.0.2:8080",
        "udp 10.96.0.1:80 > 10.0.0.2:8080",
        "tcp [fd96::1]:80 > [fd00::2]:8080",
        "udp [fd96::1]:80 > [fd00::2]:8080",
      ]));
      check(
        all,
        `
      a tcp 10.96.0.1:80 = b saw 10.0.0.1
      a udp 10.96.0.1:80 = b saw 10.0.0.1
      a tcp [fd96::1]:80 = b saw fd00::1
      a udp [fd96::1]:80 = b saw fd00::1
      node tcp 10.96.0.1:80 = b saw 10.0.0.254
      node udp 10.96.0.1:80 = b saw 10.0.0.254
      node tcp [fd96::1]:80 = b saw fd00::fe
      node udp [fd96::1]:80 = b saw fd00::fe
      out tcp 10.96.0.1:80 = b saw 192.0.2.1
      b tcp 10.96.0.1:80 = b saw 10.0.0.254
      b udp 10.96.0.1:80 = b saw 10.0.0.254
      b tcp [fd96::1]:80 = b saw fd00::fe
      a tcp 10.96.0.1:81 = ${subject.unserved ?? "silence"}
    `,
      );
    },
  );

  run("SCTP goes to its backend too", async () => {
    await using all = await opened(subject);
    await all.apply(world(["sctp 10.96.0.1:90 > 10.0.0.2:9090"]));
    using prober = new Prober();
    const [a, b] = ["a", "b"].map((name) => ({ name, namespace: all.here.places[name]! })) as [never, never];
    const [result] = await prober.run([{
      from: a,
      source: address("10.0.0.1"),
      to: address("10.96.0.1"),
      protocol: "sctp",
      port: 90,
      target: { end: b, address: address("10.0.0.2"), port: 9090 },
      expect: "allow",
    }]);
    expect(result!.observed).toBe("answered");
  });

  run("every backend gets its share of connections", async () => {
    await using all = await opened(subject);
    await all.apply(world(["tcp 10.96.0.1:80 > 10.0.0.1:8080 10.0.0.2:8080 192.0.2.1:8080"]));
    const counts: Record<string, number> = {};
    const TRIES = 150;
    for (let i = 0; i < TRIES; i++) {
      const [who] = all.talk.askAgain(all.here.node, "tcp 10.96.0.1:80").split(" ");
      counts[who!] = (counts[who!] ?? 0) + 1;
    }
    // A fair third of 150 is below 20 or above 80 once in ten million runs.
    expect(Object.keys(counts).sort()).toEqual(["a", "b", "out"]);
    for (const count of Object.values(counts)) expect(count).toBeWithin(20, 81);
  });

  run(
    "a service without backends is refused at once, whatever policy says, and one with none here is silent",
    async () => {
      await using all = await opened(subject);
      const closed = { egress: CLOSED };
      await all.apply(world([
        "tcp 10.96.0.1:80 > reject",
        "udp 10.96.0.1:80 > reject",
        "tcp [fd96::1]:80 > reject",
        "udp [fd96::1]:80 > reject",
        "tcp 10.96.0.2:80 > drop",
        "tcp node4:30080 > reject | masquerade",
      ], { lists: { b: closed } }));
      check(
        all,
        `
      a tcp 10.96.0.1:80 = refused
      a udp 10.96.0.1:80 = refused
      a tcp [fd96::1]:80 = refused
      a udp [fd96::1]:80 = refused
      b tcp 10.96.0.1:80 = refused
      b tcp 10.0.0.1:8080 = silence
      node tcp 10.96.0.1:80 = refused
      node udp 10.96.0.1:80 = refused
      node tcp [fd96::1]:80 = refused
      out tcp 10.0.0.254:30080 = refused
      a tcp 10.96.0.2:80 = silence
    `,
      );
    },
  );

  run(
    "node ports and external addresses: masqueraded for the outside, or with the client's address where the policy is Local",
    async () => {
      await using all = await opened(subject);
      await all.apply(world([
        "tcp node4:30080 > 10.0.0.2:8080 | masquerade",
        "udp node4:30080 > 10.0.0.2:8080 | masquerade",
        "tcp node6:30080 > [fd00::2]:8080 | masquerade",
        "tcp node4:30081 > 10.0.0.1:8080 | outside 10.0.0.2:8080",
        "tcp node4:30082 > 10.0.0.1:8080 | outside drop",
        "tcp 10.96.9.9:80 > 10.0.0.2:8080 | scope external | masquerade",
        "tcp 10.96.9.8:80 > 10.0.0.1:8080 | scope external | outside 10.0.0.2:8080",
        "tcp 10.96.9.7:80 > 10.0.0.2:8080 | scope external | sources 10.0.0.0/24",
        "tcp 10.96.9.6:80 > 10.0.0.2:8080 | scope external | sources 10.0.0.0/25 192.0.2.1/32",
        "tcp 10.96.9.5:80 > 10.0.0.2:8080 | scope external | sources ",
        "tcp node6:30081 > [fd00::1]:8080 | outside [fd00::2]:8080",
        "udp node6:30082 > [fd00::1]:8080 | outside drop",
        "udp [fd96::9]:80 > [fd00::2]:8080 | scope external | masquerade",
        "tcp [fd96::8]:80 > [fd00::1]:8080 | scope external | outside [fd00::2]:8080",
        "tcp [fd96::7]:80 > [fd00::2]:8080 | scope external | sources fd00::/64",
      ]));
      const lines = `
      out tcp 10.0.0.254:30080 = b saw 10.0.0.254
      out udp 10.0.0.254:30080 = b saw 10.0.0.254
      out tcp [fd00::fe]:30080 = b saw fd00::fe
      a tcp 10.0.0.254:30080 = b saw 10.0.0.1
      node tcp 10.0.0.254:30080 = b saw 10.0.0.254
      out tcp 10.0.0.254:30081 = b saw 192.0.2.1
      a tcp 10.0.0.254:30081 = a saw 10.0.0.254
      node tcp 10.0.0.254:30081 = a saw 10.0.0.254
      out tcp 10.0.0.254:30082 = silence
      b tcp 10.0.0.254:30082 = a saw 10.0.0.2
      out tcp 10.96.9.9:80 = b saw 10.0.0.254
      out tcp 10.96.9.8:80 = b saw 192.0.2.1
      a tcp 10.96.9.8:80 = a saw 10.0.0.254
      out tcp 10.96.9.7:80 = silence
      a tcp 10.96.9.7:80 = b saw 10.0.0.1
      out tcp 10.96.9.6:80 = b saw 192.0.2.1
      b tcp 10.96.9.6:80 = b saw 10.0.0.254
      node tcp 10.96.9.6:80 = silence
      a tcp 10.96.9.5:80 = silence
      out tcp [fd00::fe]:30081 = b saw 2001:db8::1
      b tcp [fd00::fe]:30081 = a saw fd00::2
      out udp [fd00::fe]:30082 = silence
      a udp [fd00::fe]:30082 = a saw fd00::fe
      out udp [fd96::9]:80 = b saw fd00::fe
      a udp [fd96::9]:80 = b saw fd00::1
      out tcp [fd96::8]:80 = b saw 2001:db8::1
      out tcp [fd96::7]:80 = silence
      a tcp [fd96::7]:80 = b saw fd00::1
      node tcp 127.0.0.1:30080 = refused
      node tcp [::1]:30080 = refused
    `;
      check(all, lines);
      // From where pods are, other nodes' pods are inside.
      await all.apply(
        world(["tcp node4:30081 > 10.0.0.1:8080 | outside 10.0.0.2:8080"], { podNets: ["192.0.2.0/24"] }),
      );
      check(all, "out tcp 10.0.0.254:30081 = a saw 192.0.2.1");
    },
  );

  run("node ports answer on the addresses of the configuration only, where there are some", async () => {
    await using all = await opened(subject);
    runIn(all.here.node, "sh", "-c", "ip addr add 10.0.0.253/32 dev lo; ip -6 addr add fd00::fd/128 dev lo nodad");
    await all.apply(world(
      ["tcp node4:30080 > 10.0.0.2:8080 | masquerade", "tcp node6:30080 > [fd00::2]:8080 | masquerade"],
      { nodePortAddresses: ["10.0.0.253/32", "fd00::fd/128"] },
    ));
    check(
      all,
      `
      out tcp 10.0.0.253:30080 = b saw 10.0.0.254
      out tcp 10.0.0.254:30080 = refused
      out tcp [fd00::fd]:30080 = b saw fd00::fe
      out tcp [fd00::fe]:30080 = refused
    `,
    );
  });

  run("many services, of which some share an address, lead to their own backends", async () => {
    await using all = await opened(subject);
    const lines = Array.from({ length: 300 }, (_, i) => {
      const backend = i % 2 === 0 ? "10.0.0.1:8080" : "10.0.0.2:8080";
      return [
        `tcp 10.96.${i >> 4}.${i & 15}:80 > ${backend}`,
        `tcp 10.96.1.200:${1_000 + i} > ${backend}`,
        `tcp node4:${30_000 + i} > ${backend}`,
        `tcp [fd96::${i.toString(16)}]:80 > ${i % 2 === 0 ? "[fd00::1]:8080" : "[fd00::2]:8080"}`,
      ];
    }).flat();
    await all.apply(world(lines));
    check(
      all,
      [0, 1, 6, 7, 255, 256, 299].flatMap((i) => {
        const name = i % 2 === 0 ? "a" : "b";
        return [
          `a tcp 10.96.${i >> 4}.${i & 15}:80 = ${name} saw ${name === "a" ? "10.0.0.254" : "10.0.0.1"}`,
          `out tcp 10.96.1.200:${1_000 + i} = ${name} saw 192.0.2.1`,
          `out tcp 10.0.0.254:${30_000 + i} = ${name} saw 192.0.2.1`,
          `out tcp [fd96::${i.toString(16)}]:80 = ${name} saw 2001:db8::1`,
        ];
      }).join("\n"),
    );
    check(
      all,
      `
      out tcp 10.96.20.0:80 = silence
      out tcp 10.96.0.0:81 = ${subject.unserved ?? "silence"}
      out tcp 10.0.0.254:30300 = refused
      out tcp 10.0.0.254:29999 = refused
    `,
    );
  });

  run("a backend that terminates keeps its connections and gets no new ones", async () => {
    await using all = await opened(subject);
    const { talk, here } = all;
    await all.apply(world(["tcp 10.96.0.1:80 > 10.0.0.2:8080", "tcp [fd96::1]:80 > [fd00::2]:8080"]));
    const held = ["10.96.0.1:80", "[fd96::1]:80"].map((to) => talk.hold(here.places.a!, to));
    for (const one of held) expect(one.passes()).toBe(true);
    await all.apply(
      world([
        "tcp 10.96.0.1:80 > ~10.0.0.2:8080 192.0.2.1:8080",
        "tcp [fd96::1]:80 > ~[fd00::2]:8080 [2001:db8::1]:8080",
      ]),
    );
    for (const one of held) expect(one.passes()).toBe(true);
    check(
      all,
      `
      a tcp 10.96.0.1:80 = out saw 10.0.0.1
      a tcp [fd96::1]:80 = out saw fd00::1
    `,
    );
    await all.apply(world(["tcp 10.96.0.1:80 > ~10.0.0.2:8080", "tcp [fd96::1]:80 > ~[fd00::2]:8080"]));
    for (const one of held) expect(one.passes()).toBe(true);
    check(
      all,
      `
      a tcp 10.96.0.1:80 = refused
      a tcp [fd96::1]:80 = refused
    `,
    );
  });

  run("a restart sends nothing, whatever clients are remembered, and a sweep leaves no service", async () => {
    await using all = await opened(subject);
    const { here } = all;
    const of = world([
      "tcp 10.96.0.1:80 > 10.0.0.1:8080 10.0.0.2:8080 | affinity 600",
      "udp [fd96::1]:80 > [fd00::2]:8080",
      "tcp node4:30080 > 10.0.0.2:8080 | masquerade | sources 10.0.0.0/8",
      "tcp 10.96.0.2:80 > reject",
    ]);
    expect(await all.apply(of)).toBeGreaterThan(0);
    const ask = () => all.talk.askAgain(here.node, "tcp 10.96.0.1:80");
    const first = ask();
    expect(await all.apply(of)).toBe(0);
    expect((await here.dataplane.resync()).messages).toBe(0);
    await here.dataplane[Symbol.asyncDispose]();
    await using next = await subject.open(here.node);
    expect(await next.apply(of)).toMatchObject({ converged: true, messages: 0, problems: [] });
    for (let i = 0; i < 10; i++) expect(ask()).toBe(first);
    expect((await next.diff?.()) ?? []).toEqual([]);
    await next.sweep();
    check(
      all,
      `
      a tcp 10.96.0.1:80 = silence
      a udp [fd96::1]:80 = silence
      a tcp 10.96.0.2:80 = silence
      a tcp 10.0.0.254:30080 = refused
    `,
    );
  });

  run("policy of the backend holds for what comes through a service, and sees the client's own address", async () => {
    await using all = await opened(subject);
    const ingress = rules(rule("allow", {
      protocol: PROTOCOLS.TCP,
      from: { nets: [cidr("10.0.0.1/32"), cidr("192.0.2.1/32")] },
      to: { ports: [{ first: 8080, last: 8080 }] },
    }));
    const lines = [
      "tcp 10.96.0.1:80 > 10.0.0.2:8080",
      "udp 10.96.0.1:80 > 10.0.0.2:8080",
      "tcp [fd96::1]:80 > [fd00::2]:8080",
      "tcp node4:30080 > 10.0.0.2:8080 | masquerade",
    ];
    await all.apply(world(lines, { lists: { b: { ingress } } }));
    check(
      all,
      `
      a tcp 10.96.0.1:80 = b saw 10.0.0.1
      a udp 10.96.0.1:80 = silence
      a tcp [fd96::1]:80 = silence
      out tcp 10.0.0.254:30080 = b saw 10.0.0.254
      out tcp 10.96.0.1:80 = b saw 192.0.2.1
      node tcp 10.96.0.1:80 = b saw 10.0.0.254
    `,
    );
    const egress = rules(
      rule("allow", {
        protocol: PROTOCOLS.TCP,
        to: { nets: [cidr("10.0.0.2/32")], ports: [{ first: 8080, last: 8080 }] },
      }),
    );
    await all.apply(world(lines, { lists: { a: { egress }, b: { ingress: CLOSED } } }));
    check(all, "a tcp 10.96.0.1:80 = silence");
    await all.apply(world(lines, { lists: { a: { egress } } }));
    check(all, "a tcp 10.96.0.1:80 = b saw 10.0.0.1");
  });

  run("a client stays with its backend for as long as that is there", async () => {
    await using all = await opened(subject);
    const of = (list: string, list6: string) =>
      world([`tcp 10.96.0.1:80 > ${list} | affinity 600`, `tcp [fd96::1]:80 > ${list6} | affinity 600`]);
    await all.apply(
      of("10.0.0.1:8080 10.0.0.2:8080 192.0.2.1:8080", "[fd00::1]:8080 [fd00::2]:8080 [2001:db8::1]:8080"),
    );
    // By TCP: datagrams from a port that a while ago was another client's go where its flow went, which is right.
    for (const what of ["tcp 10.96.0.1:80", "tcp [fd96::1]:80"]) {
      const met = new Set(Array.from({ length: 20 }, () => all.talk.askAgain(all.here.node, what).split(" ")[0]));
      expect([...met]).toHaveLength(1);
      const gone = [...met][0]!;
      const rest = (family: "v4" | "v6") =>
        Object.entries(PLACES).filter(([name]) => name !== gone)
          .map(([, place]) => family === "v4" ? `${place.v4}:8080` : `[${place.v6}]:8080`).join(" ");
      await all.apply(of(rest("v4"), rest("v6")));
      const then = new Set(Array.from({ length: 20 }, () => all.talk.askAgain(all.here.node, what).split(" ")[0]));
      expect([...then]).toHaveLength(1);
      expect(then.has(gone)).toBe(false);
      // The other backends' clients are where they were, whatever has come and gone.
      await all.apply(
        of("10.0.0.1:8080 10.0.0.2:8080 192.0.2.1:8080", "[fd00::1]:8080 [fd00::2]:8080 [2001:db8::1]:8080"),
      );
      expect(new Set(Array.from({ length: 10 }, () => all.talk.askAgain(all.here.node, what).split(" ")[0]))).toEqual(
        then,
      );
    }
  });

  const runBriefly = subject.affinityOutlastsConnections ? test.skip : run;
  runBriefly("an affinity ends with its time", async () => {
    await using all = await opened(subject);
    await all.apply(world(["tcp 10.96.0.1:80 > 10.0.0.1:8080 10.0.0.2:8080 | affinity 1"]));
    const ask = () => all.talk.askAgain(all.here.node, "tcp 10.96.0.1:80").split(" ")[0];
    const first = ask();
    // Chance gives the same one again, every other time.
    for (let tries = 1;; tries++) {
      await new Promise((resolve) => setTimeout(resolve, AFFINITY_GONE_MS));
      if (ask() !== first) break;
      if (tries === AFFINITY_TRIES) throw new Error("the client was never given another backend");
    }
  }, 60_000);

  run(
    "a UDP flow that goes on moves when its backend goes, when its service comes, and when its service goes",
    async () => {
      await using all = await opened(subject);
      const { here, talk } = all;
      // Before the service: the packet goes on its way, and connection tracking remembers that.
      await all.apply(world([]));
      for (const to of ["10.96.0.1:80", "[fd96::1]:80"]) {
        const client = talk.client(here.places.a!, to);
        const v6 = to.startsWith("[");
        const of = (...list: string[]) => world(list.length === 0 ? [] : [`udp ${to} > ${list.join(" ")}`]);
        const [first, second] = v6 ? ["[fd00::2]:8080", "[2001:db8::1]:8080"] : ["10.0.0.2:8080", "192.0.2.1:8080"];
        const seen = v6 ? "fd00::1" : "10.0.0.1";
        expect(client.ask()).toBe("silence");
        await all.apply(of(first!));
        await until(`b saw ${seen}`, () => client.ask());
        // Another backend, and this one stays: so does the flow.
        await all.apply(of(first!, second!));
        await all.apply(of(`~${first}`, second!));
        for (let i = 0; i < 3; i++) expect(client.ask()).toBe(`b saw ${seen}`);
        await all.apply(of(second!));
        await until(`out saw ${seen}`, () => client.ask());
        await all.apply(of("reject"));
        await until("refused", () => client.ask());
        await all.apply(of(first!));
        await until(`b saw ${seen}`, () => client.ask());
        await all.apply(of());
        await until("silence", () => client.ask());
      }
    },
    120_000,
  );

  run("UDP flows of many services that change at once are looked at, and nobody else's are touched", async () => {
    await using all = await opened(subject);
    const { here, talk } = all;
    const of = (backend: string) =>
      world([
        ...Array.from({ length: 20 }, (_, i) => `udp 10.96.0.${i}:80 > ${backend}`),
        `udp node4:30053 > ${backend} | masquerade`,
      ]);
    await all.apply(of("10.0.0.2:8080"));
    const clients = Array.from({ length: 20 }, (_, i) => talk.client(here.places.a!, `10.96.0.${i}:80`));
    const outside = talk.client(here.places.out!, "10.0.0.254:30053");
    const direct = talk.client(here.places.a!, "10.0.0.2:8080");
    for (const client of [...clients, direct]) await until("b saw 10.0.0.1", () => client.ask());
    await until("b saw 10.0.0.254", () => outside.ask());
    const flowIds = () => {
      using socket = openNetlink(12, { namespace: here.node });
      return socket.dump("list flows", getFlows({ family: 4 })).map(parseFlow)
        .filter(({ original }) => original.protocol === PROTOCOLS.UDP && original.destination === address("10.0.0.2"))
        .map(({ id }) => id);
    };
    const before = flowIds();
    expect(before.length).toBe(1);
    await all.apply(of("192.0.2.1:8080"));
    for (const client of clients) await until("out saw 10.0.0.1", () => client.ask());
    await until("out saw 10.0.0.254", () => outside.ask());
    expect(direct.ask()).toBe("b saw 10.0.0.1");
    expect(flowIds()).toEqual(before);
  });

  run("UDP flows of what changed or went while the daemon was away are looked at when it is back", async () => {
    await using all = await opened(subject);
    const { here, talk } = all;
    await all.apply(world(["udp 10.96.0.1:80 > 10.0.0.2:8080", "udp 10.96.0.2:80 > 10.0.0.2:8080"]));
    const [changed, gone] = ["10.96.0.1:80", "10.96.0.2:80"].map((to) => talk.client(here.places.a!, to)) as [
      { ask(): string },
      { ask(): string },
    ];
    for (const client of [changed, gone]) await until("b saw 10.0.0.1", () => client.ask());
    await here.dataplane[Symbol.asyncDispose]();
    await using next = await subject.open(here.node);
    await next.apply(world(["udp 10.96.0.1:80 > 192.0.2.1:8080"]));
    await until("out saw 10.0.0.1", () => changed.ask());
    await until("silence", () => gone.ask());
  });
}
