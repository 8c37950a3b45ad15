/**
 * What every dataplane must do. Call `dataplaneContract` in a test file of the dataplane; `dataplane_packets.ts` has the part with
 * real daemons and packets.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { DesiredState } from "../../src/model/desired.ts";
import { namespacedKernel } from "../../src/kernel/namespaced_door.ts";
import { createNamespace } from "../../src/kernel/netns.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import type { Dataplane, Report } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import type { Host, Plugin } from "../../src/sdk/plugin.ts";
import { systemClock } from "../../src/host/clock.ts";
import { silentLog } from "../../src/host/log.ts";
import { CLOSED, netSet, portSet, rule, rules, setId, state, workload } from "../../src/model/testdata/small_states.ts";

export interface DataplaneSubject {
  readonly plugin: Plugin<"dataplane">;
  /** Absent: the plugin's. */
  readonly name?: string;
  /** Of its slot; absent = none. */
  readonly config?: unknown;
  /** Absent: `world`. */
  readonly world?: typeof world;
  /** Absent: it writes nothing to the kernel. */
  readonly kernel?: {
    /** Commands that make a namespace what every node is, as far as it matters to it. */
    readonly node?: readonly (readonly string[])[];
    /** What strangers have besides, where it writes; commands. */
    readonly foreign?: readonly (readonly string[])[];
    /** Commands that list what else it writes. */
    readonly listings?: readonly (readonly string[])[];
    /** What others do to what is ours: commands, in the state of `world(3)`. */
    readonly harm: Readonly<Record<string, readonly string[]>>;
  };
}

const DRIFT_DEADLINE_MS = 5_000;
/** For a writer of xtables besides us, and so that tests of several processes do not wait for one another. */
const tools = { XTABLES_LOCKFILE: "/dev/null" };

const port = (first: number, last = first) => [{ first, last }];

/** Sets of every kind, lists of every action, both families, pods, a host endpoint, masquerading. */
export function world(pods: number, more: Parameters<typeof state>[0] = {}): DesiredState {
  const web = rules(
    rule("allow", { protocol: 6, from: { sets: [setId("web")] }, to: { ports: port(80) } }),
    rule("allow", { protocol: 6, from: { sets: [setId("nets")] }, to: { ports: port(8000, 8999) } }),
    rule("allow", { protocol: 17, to: { ports: port(53) } }),
    rule("allow", { protocol: 6, from: { notSets: [setId("web")] }, to: { ports: port(443) } }),
    rule("allow", { to: { portSets: [setId("named")] } }),
    rule("log", { protocol: 1 }),
    rule("deny", { protocol: 1, icmp: { type: 8, code: 0 } }),
    rule("allow", { protocol: 1 }),
  );
  return state({
    sets: [
      netSet("web", "10.0.0.1", "10.0.0.2", "fd00::1"),
      netSet("nets", "10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "fd01::/64"),
      portSet("named", "10.0.0.1 6 8080", "fd00::1 17 53"),
    ],
    workloads: Array.from(
      { length: pods },
      (_, i) => workload(`w${i}`, `mx${i}`, [`10.0.${i >> 8}.${i & 255}`, `fd00::${i.toString(16)}`], { ingress: web }),
    ),
    hostEndpoints: [{ id: "h", interfaces: ["eth9"], ingress: CLOSED, egress: web }],
    failsafe: { inbound: [{ protocol: 6, port: 22 }], outbound: [{ protocol: 17, port: 53 }] },
    masquerade: { sources: ["10.0.0.0/16"], inside: ["10.0.0.0/8"] },
    ...more,
  });
}

/** What strangers have in a namespace, in every place where a dataplane writes. */
export function addForeign(namespace: NetworkNamespace): void {
  const into = (cmd: readonly string[], text: string) =>
    void runIn(
      namespace,
      "sh",
      "-c",
      `XTABLES_LOCKFILE=${tools.XTABLES_LOCKFILE} ${cmd.join(" ")} <<'END'\n${text}\nEND`,
    );
  into(["nft", "-f", "-"], FOREIGN_NFT);
  into(["ipset", "restore"], FOREIGN_SETS);
  for (const [tool, address] of [["iptables", "192.0.2.7/32"], ["ip6tables", "2001:db8::7/128"]] as const) {
    into([`${tool}-legacy-restore`], FOREIGN_XTABLES.replaceAll("ADDRESS", address));
  }
  // Everything stays down: no packet of the kernel's own is to count anywhere.
  for (const link of ["eth9", "mx-not-ours"]) runIn(namespace, "ip", "link", "add", link, "type", "bridge");
  runIn(namespace, "ip", "route", "add", "blackhole", "198.51.100.0/24", "proto", "static");
  runIn(namespace, "ip", "-6", "route", "add", "blackhole", "2001:db8:7::/48", "proto", "static");
}

const FOREIGN_NFT = `table inet other {
	set s { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 }; }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr @s counter packets 0 bytes 0 drop comment "theirs"
	}
}
table ip manx-not {
	chain manx { tcp dport 22 accept; }
}
table ip6 manx {
	chain mine { tcp dport 22 accept; }
}`;
const FOREIGN_SETS = `create theirs4 hash:net family inet
add theirs4 192.0.2.0/24
create manxtheirs hash:ip family inet6
add manxtheirs 2001:db8::9`;
/** As kube-proxy and docker have them, in short: chains of their own, jumps from the kernel's, counters. */
export const FOREIGN_XTABLES = `*filter
:INPUT ACCEPT [7:700]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FORWARD - [0:0]
:DOCKER-USER - [0:0]
:manxnot - [0:0]
[3:180] -A INPUT -s ADDRESS -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A DOCKER-USER -j RETURN
[9:540] -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A manxnot -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -p udp -j MARK --set-xmark 0x1/0x1
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -s ADDRESS -j ACCEPT
COMMIT`;

/** Everything that the network of a namespace has, ours and theirs, counters of rules included; nothing that time changes. */
export function everythingIn(namespace: NetworkNamespace, more: readonly (readonly string[])[] = []): string {
  const listings = [
    ["nft", "list", "ruleset"],
    ...["iptables", "ip6tables"].map((tool) => [`${tool}-legacy-save`, "-c"]),
    ["ipset", "save"],
    ...["-4", "-6"].map((family) => ["ip", family, "route", "show", "table", "all"]),
    ["ip", "-o", "link", "show"],
    ...more,
  ];
  return listings.map((argv) => `== ${argv.join(" ")}\n${withoutDates(runIn(namespace, ...argv))}`).join("");
}

const withoutDates = (text: string): string => text.split("\n").filter((line) => !line.startsWith("#")).join("\n");

/** The dataplane, inside the namespace, as the daemon opens it. */
export async function openSubject(
  { plugin, config }: DataplaneSubject,
  namespace: NetworkNamespace,
): Promise<Dataplane> {
  const host: Host = {
    node: "test",
    log: silentLog,
    clock: systemClock,
    kernel: namespacedKernel(namespace),
    get datastore(): never {
      throw new Error("a dataplane has no use for a datastore");
    },
    stateDirectory: "/nonexistent",
  };
  return await plugin.open(plugin.parseConfig(config), host, new AbortController().signal);
}

export function dataplaneContract(subject: DataplaneSubject): void {
  const { plugin, kernel, world: worldOf = world } = subject;
  const everything = (namespace: NetworkNamespace): string => everythingIn(namespace, kernel?.listings);
  const strangers = (namespace: NetworkNamespace): void => {
    addForeign(namespace);
    for (const command of kernel?.foreign ?? []) runIn(namespace, ...command);
  };

  interface Here extends AsyncDisposable {
    readonly namespace: NetworkNamespace;
    readonly dataplane: Dataplane;
  }
  async function fresh(prepare: (namespace: NetworkNamespace) => void = () => {}): Promise<Here> {
    const namespace = createNamespace(`contract of ${plugin.name}`);
    for (const command of kernel?.node ?? []) runIn(namespace, ...command);
    prepare(namespace);
    const dataplane = await openSubject(subject, namespace);
    return {
      namespace,
      dataplane,
      async [Symbol.asyncDispose]() {
        await dataplane[Symbol.asyncDispose]();
        namespace[Symbol.dispose]();
      },
    };
  }
  const applied = async (dataplane: Dataplane, wanted: DesiredState): Promise<Report> => {
    const report = await dataplane.apply(wanted);
    expect(report).toMatchObject({ generation: wanted.generation, converged: true, problems: [] });
    return report;
  };
  /** As the next apply or resync of somebody who remembers nothing finds it. */
  const restarted = async (namespace: NetworkNamespace, wanted: DesiredState): Promise<Report> => {
    await using next = await openSubject(subject, namespace);
    return await applied(next, wanted);
  };

  describe(`dataplane contract: ${subject.name ?? plugin.name}`, () => {
    test("it says what it does, for both families, and enforces policy", async () => {
      await using here = await fresh();
      const { aspects, families, atomicity } = here.dataplane.capabilities;
      expect([...families].sort()).toEqual([4, 6]);
      expect(aspects.has("policy")).toBe(true);
      expect(["all", "object"]).toContain(atomicity);
    });

    test("before anything is wanted, resync, diff and sweep find nothing to do", async () => {
      await using here = await fresh();
      expect(await here.dataplane.resync()).toMatchObject({ converged: true, messages: 0, problems: [] });
      expect(await here.dataplane.diff?.() ?? []).toEqual([]);
      expect(await here.dataplane.sweep()).toMatchObject({ converged: true, problems: [] });
    });

    test("what is wanted is in force on return, and wanting it again sends nothing", async () => {
      await using here = await fresh();
      const wanted = worldOf(3);
      expect((await applied(here.dataplane, wanted)).messages).toBeGreaterThan(0);
      expect((await applied(here.dataplane, wanted)).messages).toBe(0);
      expect((await here.dataplane.resync()).messages).toBe(0);
      expect(await here.dataplane.diff?.() ?? []).toEqual([]);
    });

    test("a generation that changes nothing is reported as that generation", async () => {
      await using here = await fresh();
      await applied(here.dataplane, worldOf(2));
      expect((await applied(here.dataplane, { ...worldOf(2), generation: 7 })).generation).toBe(7);
      expect((await here.dataplane.resync()).generation).toBe(7);
    });

    test("a drift that nobody causes ends with its signal", async () => {
      await using here = await fresh();
      await applied(here.dataplane, worldOf(1));
      const stop = new AbortController();
      const drift = here.dataplane.drift(stop.signal)[Symbol.asyncIterator]();
      const first = drift.next();
      stop.abort();
      expect((await first).done).toBe(true);
    });

    if (kernel === undefined) return;

    test("opening it changes nothing that strangers have", async () => {
      await using here = await fresh(strangers);
      const theirs = everything(here.namespace);
      await using _ = await openSubject(subject, here.namespace);
      expect(everything(here.namespace)).toBe(theirs);
    });

    test("a restart sends nothing, and what is in force stands while nobody is there", async () => {
      await using here = await fresh();
      const wanted = worldOf(5);
      await applied(here.dataplane, wanted);
      const before = everything(here.namespace);
      await here.dataplane[Symbol.asyncDispose]();
      expect(everything(here.namespace)).toBe(before);
      expect((await restarted(here.namespace, worldOf(5))).messages).toBe(0);
      expect(everything(here.namespace)).toBe(before);
    });

    test("what it comes to does not depend on the way there: from other states, or begun anew in the middle", async () => {
      await using here = await fresh();
      const wanted = { ...worldOf(4), generation: 9 };
      const ways: readonly (readonly DesiredState[])[] = [
        [worldOf(1), worldOf(9), state({})],
        [worldOf(4, { sets: [netSet("web", "10.0.0.9"), netSet("nets"), portSet("named", "10.0.0.3 6 1")] })],
        [worldOf(0, { hostEndpoints: [], masquerade: undefined }), worldOf(40)],
      ];
      for (const way of ways) {
        for (const [index, step] of way.entries()) await applied(here.dataplane, { ...step, generation: index + 1 });
        await applied(here.dataplane, wanted);
        expect(await here.dataplane.diff?.() ?? []).toEqual([]);
        expect((await here.dataplane.resync()).messages).toBe(0);
        expect((await restarted(here.namespace, { ...worldOf(4), generation: 9 })).messages).toBe(0);
      }
      await using half = await openSubject(subject, here.namespace);
      await applied(half, worldOf(30));
      expect((await restarted(here.namespace, wanted)).messages).toBeGreaterThan(0);
      expect((await restarted(here.namespace, wanted)).messages).toBe(0);
    });

    test("strangers' rules, sets, counters and routes are the same, byte for byte, after everything it does", async () => {
      await using here = await fresh(strangers);
      const theirs = everything(here.namespace);
      await applied(here.dataplane, worldOf(3));
      expect(everything(here.namespace)).not.toBe(theirs);
      await applied(here.dataplane, { ...worldOf(20), generation: 2 });
      await restarted(here.namespace, worldOf(2));
      await here.dataplane.resync();
      const swept = await here.dataplane.sweep();
      expect(swept).toMatchObject({ converged: true, problems: [] });
      expect(swept.messages).toBeGreaterThan(0);
      expect(everything(here.namespace)).toBe(theirs);
      expect((await here.dataplane.sweep()).messages).toBe(0);
      expect(everything(here.namespace)).toBe(theirs);
    });

    test("somebody who has just come sweeps what an earlier one left", async () => {
      await using here = await fresh(strangers);
      const theirs = everything(here.namespace);
      await applied(here.dataplane, worldOf(3));
      await using next = await openSubject(subject, here.namespace);
      expect(await next.sweep()).toMatchObject({ converged: true, problems: [] });
      expect(everything(here.namespace)).toBe(theirs);
    });

    describe("harm that others do to what is ours", () => {
      let here: Here;
      beforeAll(async () => void (here = await fresh(strangers)));
      afterAll(async () => await here[Symbol.asyncDispose]());

      for (const [what, commands] of Object.entries(kernel.harm)) {
        test(`${what}: seen by diff, noticed, and mended`, async () => {
          const wanted = worldOf(3);
          await applied(here.dataplane, wanted);
          const before = everything(here.namespace);
          const stop = new AbortController();
          const drift = here.dataplane.drift(stop.signal)[Symbol.asyncIterator]();
          const first = drift.next();
          // The listener is there before the harm is done.
          await Promise.resolve();
          for (const command of commands) {
            runIn(here.namespace, "sh", "-c", `XTABLES_LOCKFILE=${tools.XTABLES_LOCKFILE} ${command}`);
          }
          const harmed = everything(here.namespace);
          expect(harmed).not.toBe(before);
          if (here.dataplane.diff !== undefined) {
            const lines = await here.dataplane.diff();
            expect(lines.length).toBeGreaterThan(0);
            for (const line of lines) expect(line).toMatch(/^[-+~] \S.*$/);
            expect(everything(here.namespace)).toBe(harmed);
          }
          const noticed = await Promise.race([
            first,
            new Promise<undefined>((resolve) => setTimeout(resolve, DRIFT_DEADLINE_MS, undefined)),
          ]);
          expect(noticed?.done).toBe(false);
          expect(noticed!.value).toMatch(/\S/);
          const mended = await here.dataplane.resync();
          expect(mended.converged).toBe(true);
          expect(mended.messages).toBeGreaterThan(0);
          expect(await here.dataplane.diff?.() ?? []).toEqual([]);
          expect((await here.dataplane.resync()).messages).toBe(0);
          expect((await restarted(here.namespace, worldOf(3))).messages).toBe(0);
          expect(inOrder(everything(here.namespace))).toEqual(inOrder(before));
          stop.abort();
          await drift.return?.();
        });
      }
    });
  });
}

/** Objects and elements come back in an order of the kernel's own; that lines of a chain are in theirs, `restarted` has seen. */
const inOrder = (listing: string): readonly string[] =>
  listing.replaceAll(/elements = \{[^}]*\}/g, (elements) => elements.split(/[\s,]+/).sort().join(" ")).split("\n")
    .sort();
