/** The dataplane on the real kernel, each test in a network namespace of its own, checked by `nft` and by packets. */
import { expect, test } from "bun:test";
import type { AddressSet, DesiredState } from "../../src/model/desired.ts";
import { createNamespace } from "../../src/kernel/netns.ts";
import { openNetlink } from "../../src/kernel/netlink/socket.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import type { Dataplane, Report } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { printRuleset } from "./print.ts";
import { readTable } from "./read.ts";
import { Renderer } from "./render.ts";
import { random, someList, someSets } from "../../src/model/testdata/random_lists.ts";
import {
  cidr,
  CLOSED,
  list,
  manyAddresses,
  netSet,
  policy,
  rule,
  rules,
  setId,
  state,
  tier,
  workload,
} from "../../src/model/testdata/small_states.ts";
import { world as contractWorld } from "../../test/contract/dataplane.ts";
import { openDataplane } from "./testdata/open.ts";

const port = (first: number, last = first) => [{ first, last }];

/** Without host endpoints. */
const world = (pods: number, more: Parameters<typeof contractWorld>[1] = {}): DesiredState =>
  contractWorld(pods, { hostEndpoints: [], ...more });

const kernelText = (namespace: NetworkNamespace): string => {
  using socket = openNetlink(12, { namespace });
  const { ruleset } = readTable(socket);
  if (ruleset === undefined) throw new Error("there is no table inet manx");
  return printRuleset(ruleset);
};
const wantedText = (wanted: DesiredState): string =>
  printRuleset(
    new Renderer({ logGroup: 86, passedMark: 0x10000, cut: { mark: 0x20000, resets: true } }).render(wanted).ruleset,
  );

async function fresh(title: string): Promise<AsyncDisposable & { namespace: NetworkNamespace; dataplane: Dataplane }> {
  const namespace = createNamespace(title);
  const dataplane = await openDataplane(namespace);
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
  expect(report.problems).toEqual([]);
  expect(report.converged).toBe(true);
  return report;
};

test("opening finds what the kernel can do and leaves nothing behind", async () => {
  await using here = await fresh("probe");
  expect([...here.dataplane.capabilities.aspects]).toEqual(["policy", "nat", "services"]);
  expect(runIn(here.namespace, "nft", "list", "ruleset")).toBe("");
});

test("an applied world reads back as it was rendered, and nft sees it", async () => {
  await using here = await fresh("apply");
  const wanted = world(3);
  expect((await applied(here.dataplane, wanted)).messages).toBeGreaterThan(20);
  expect(kernelText(here.namespace)).toBe(wantedText(wanted));
  const text = runIn(here.namespace, "nft", "list", "table", "inet", "manx");
  expect(text).toMatch(/set workloads \{\s+type ifname\s+elements = \{ "mx0",\s+"mx1",\s+"mx2" \}/);
  expect(text).toMatch(
    /chain forward-to \{\s+type filter hook forward priority filter; policy accept;\s+ct state established,related accept/,
  );
  const objects = JSON.parse(runIn(here.namespace, "nft", "-j", "list", "ruleset")).nftables as Record<
    string,
    { readonly name?: string; readonly table?: string }
  >[];
  expect(objects.filter((one) => one.table !== undefined).map((one) => one.table!.name)).toEqual(["manx"]);
  expect(objects.filter((one) => one.chain !== undefined).length).toBe(
    [...wantedText(wanted).matchAll(/^chain /gm)].length,
  );
});

test("an unchanged world sends nothing, from the same process and from the next one", async () => {
  await using here = await fresh("idempotent");
  const wanted = world(5);
  await applied(here.dataplane, wanted);
  expect((await applied(here.dataplane, wanted)).messages).toBe(0);
  expect((await here.dataplane.resync()).messages).toBe(0);
  expect((await applied(here.dataplane, world(5))).messages).toBe(0);
  await using next = await openDataplane(here.namespace);
  expect((await applied(next, world(5))).messages).toBe(0);
});

test("one pod more costs the same few messages at 3 and at 300 pods", async () => {
  await using here = await fresh("incremental");
  const costs: number[] = [];
  for (const count of [3, 300]) {
    const before = world(count);
    await applied(here.dataplane, before);
    const pod = workload("z", "mxnew", ["10.9.9.9", "fd00::9:9"], { ingress: before.workloads.get("w0")!.ingress });
    const after = { ...before, generation: 2, workloads: before.workloads.set("z", pod) };
    costs.push((await applied(here.dataplane, after)).messages);
    expect(kernelText(here.namespace)).toBe(wantedText(after));
    costs.push((await applied(here.dataplane, { ...before, generation: 3 })).messages);
  }
  // Interfaces, two dispatch maps, self, and a source address of each family.
  expect(costs).toEqual([6, 6, 6, 6]);
});

test("a restart with another world changes only what differs", async () => {
  await using here = await fresh("restart");
  await applied(here.dataplane, world(4));
  await using next = await openDataplane(here.namespace);
  const wanted = world(5);
  expect((await applied(next, wanted)).messages).toBe(6);
  expect(kernelText(here.namespace)).toBe(wantedText(wanted));
});

test("a new policy adds its chains before the dispatch moves, and takes the old ones away in the same transaction", async () => {
  await using here = await fresh("policy");
  const before = world(2);
  await applied(here.dataplane, before);
  const closed = workload("w0", "mx0", ["10.0.0.0", "fd00::0"], { ingress: CLOSED });
  const after = { ...before, generation: 2, workloads: before.workloads.set("w0", closed) };
  await applied(here.dataplane, after);
  expect(kernelText(here.namespace)).toBe(wantedText(after));
  const none = state({ generation: 3 });
  await applied(here.dataplane, none);
  expect(kernelText(here.namespace)).toBe(wantedText(none));
});

test("one member more or less of a set of 100,000 is one message", async () => {
  await using here = await fresh("large");
  const of = (set: AddressSet) =>
    state({
      sets: [set],
      workloads: [
        workload("w", "mx0", ["10.0.0.1"], { ingress: rules(rule("allow", { from: { sets: [setId("big")] } })) }),
      ],
    });
  const big = manyAddresses("big", "10.0.0.0", 100_000, 2);
  await applied(here.dataplane, of(big));
  const more = { ...big, members: big.members.set(cidr("192.0.2.1"), true) };
  expect((await applied(here.dataplane, of(more))).messages).toBe(1);
  expect((await applied(here.dataplane, of(big))).messages).toBe(1);
  const name = /set (s4-\S+)/.exec(runIn(here.namespace, "nft", "-t", "list", "table", "inet", "manx"))![1]!;
  expect([...runIn(here.namespace, "nft", "list", "set", "inet", "manx", name).matchAll(/10\.\d+\.\d+\.\d+/g)].length)
    .toBe(100_000);
  await using next = await openDataplane(here.namespace);
  expect((await applied(next, of(big))).messages).toBe(0);
});

test("a set changes its form with its members and back: addresses, prefixes, many", async () => {
  await using here = await fresh("forms");
  const list = rules(
    rule("allow", { protocol: 6, from: { sets: [setId("s")] }, to: { ports: port(80) } }),
    rule("allow", { protocol: 17, from: { notSets: [setId("s")] } }),
  );
  const of = (set: AddressSet) =>
    state({ sets: [set], workloads: [workload("w", "mx0", ["10.0.0.1"], { ingress: list })] });
  const plain = netSet("s", "10.0.0.1", "fd00::1");
  const large = manyAddresses("s", "10.0.0.0", 5_000);
  for (
    const set of [
      plain,
      netSet("s", "10.0.0.1", "10.1.0.0/16", "fd00::1"),
      plain,
      netSet("s"),
      large,
      { ...large, members: large.members.set(cidr("0.0.0.0/0"), true) },
      netSet("s", "::/0"),
      plain,
    ]
  ) {
    await applied(here.dataplane, of(set));
    expect(kernelText(here.namespace)).toBe(wantedText(of(set)));
  }
});

test("random prefixes come and go in an interval set, nested and adjacent, and the kernel always agrees", async () => {
  await using here = await fresh("intervals");
  const list = rules(rule("allow", { from: { sets: [setId("s")] } }));
  const r = random(20_240_229);
  const some = () => {
    const v6 = r.chance(0.3);
    const length = v6 ? 112 + r.below(17) : r.pick([0, 1, 8, 23, 24, 24, 25, 26, 30, 31, 32, 32, 32]);
    return v6
      ? cidr(`fd00::${r.below(4)}:${(r.below(8) * 32).toString(16)}/${length}`)
      : cidr(`${r.pick(["10.0.0", "10.0.1", "255.255.255", "0.0.0"])}.${r.below(16) * 16}/${length}`);
  };
  // One that always makes it an interval set, so that elements come and go rather than sets.
  let members = netSet("s", "203.0.113.0/24", "2001:db8::/32").members;
  for (let round = 0; round < 120; round++) {
    for (let i = r.below(6); i >= 0; i--) members = r.chance(0.55) ? members.set(some(), true) : members.delete(some());
    const wanted = state({
      generation: round + 1,
      sets: [{ ...netSet("s"), members }],
      workloads: [workload("w", "mx0", ["10.0.0.1"], { ingress: list })],
    });
    await applied(here.dataplane, wanted);
    if (kernelText(here.namespace) !== wantedText(wanted)) {
      throw new Error(`round ${round}: ${kernelText(here.namespace)}\nwanted ${wantedText(wanted)}`);
    }
  }
});

test("whatever random lists compile to, the kernel takes and gives back", async () => {
  await using here = await fresh("lists");
  for (let seed = 1; seed <= 25; seed++) {
    const r = random(seed * 104_729);
    const sets = someSets(r);
    const wanted = {
      ...state({
        generation: seed,
        workloads: Array.from(
          { length: 4 },
          (_, i) => workload(`w${i}`, `mx${i}`, [`10.0.0.${i}`], { ingress: someList(r, 25), egress: someList(r, 25) }),
        ),
      }),
      sets,
    };
    await applied(here.dataplane, wanted);
    expect(kernelText(here.namespace)).toBe(wantedText(wanted));
  }
  runIn(here.namespace, "nft", "list", "ruleset");
});

test("thirty tiers with pass rules stay within the kernel's depth of jumps", async () => {
  await using here = await fresh("tiers");
  const passes = (i: number) =>
    Array.from(
      { length: 8 },
      (_, n) => rule("pass", { protocol: 6, from: { sets: [setId(`s${n}`)] }, to: { ports: port(80 + n * 2 + i) } }),
    );
  const many = list(
    Array.from({ length: 30 }, (_, i) =>
      tier(
        `t${i}`,
        "deny",
        policy(
          "p",
          ...passes(i),
          rule("allow", { protocol: 17 }),
          ...passes(i + 1),
          rule("deny", { protocol: 47 }),
          ...passes(i + 2),
          rule("allow", { protocol: 89 }),
          ...passes(i + 3),
          rule("deny", { protocol: 88 }),
          ...passes(i + 4),
        ),
      )),
    [policy("open", rule("allow"))],
  );
  await applied(here.dataplane, state({ workloads: [workload("w", "mx0", ["10.0.0.1"], { ingress: many })] }));
});

// ----------------------------------------------------------------------------------------------------- foreign changes

const FOREIGN = `table inet other {
	set s {
		type ipv4_addr
		elements = { 192.0.2.1, 192.0.2.2 }
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr @s counter packets 0 bytes 0 drop
	}
}
table ip manx {
	chain mine {
		tcp dport 22 accept
	}
}
`;
const foreign = (namespace: NetworkNamespace): string =>
  runIn(namespace, "nft", "list", "table", "inet", "other") + runIn(namespace, "nft", "list", "table", "ip", "manx");

const addForeign = (namespace: NetworkNamespace): void =>
  void runIn(namespace, "sh", "-c", `nft -f - <<'END'\n${FOREIGN}\nEND`);

/** What strangers do to our table; each is mended, and nothing else is touched. */
const HARM: Readonly<Record<string, readonly string[]>> = {
  "deleted table": ["delete table inet manx"],
  "flushed table": ["flush table inet manx"],
  "flushed chain": ["flush chain inet manx forward-to"],
  "inserted rule": ["insert rule inet manx forward-to accept"],
  "appended rule": ["add rule inet manx input counter drop"],
  "foreign chain": ["add chain inet manx extra", "add rule inet manx extra accept"],
  "foreign base chain": ["add chain inet manx extra { type filter hook input priority -400; policy drop; }"],
  "foreign set": [
    "add set inet manx extra { type ipv4_addr; flags timeout; }",
    "add element inet manx extra { 192.0.2.1 timeout 1h }",
  ],
  "deleted element": ["delete element inet manx workloads { mx1 }"],
  "added element": ["add element inet manx source4 { mx1 . 10.7.7.7 }"],
  "changed verdict": [
    "delete element inet manx to-workload { mx0 }",
    "add element inet manx to-workload { mx0 : accept }",
  ],
  "flushed set": ["flush map inet manx from-workload"],
  "dropped policy": ["chain inet manx input { policy drop; }"],
  "dormant table": ["table inet manx { flags dormant; }"],
  "deleted rules and chain": [
    "flush chain inet manx source-check",
    "flush chain inet manx raw-prerouting",
    "delete chain inet manx source-check",
  ],
};

for (const [what, commands] of Object.entries(HARM)) {
  test(`${what}: noticed, mended, and nothing foreign touched`, async () => {
    await using here = await fresh("harm");
    addForeign(here.namespace);
    const theirs = foreign(here.namespace);
    expect(theirs).toBe(FOREIGN);
    const wanted = world(3);
    await applied(here.dataplane, wanted);
    const stop = new AbortController();
    const drift = here.dataplane.drift(stop.signal)[Symbol.asyncIterator]();
    const first = drift.next();
    // The listener is there before the harm is done.
    await Promise.resolve();
    for (const command of commands) runIn(here.namespace, "nft", command);
    const noticed = await Promise.race([
      first,
      new Promise<undefined>((resolve) => setTimeout(resolve, 900, undefined)),
    ]);
    expect(noticed?.value).toContain("table inet manx was changed by somebody else");
    const report = await here.dataplane.resync();
    expect(report.converged).toBe(true);
    expect(report.messages).toBeGreaterThan(0);
    expect(kernelText(here.namespace)).toBe(wantedText(wanted));
    expect(foreign(here.namespace)).toBe(theirs);
    expect((await here.dataplane.resync()).messages).toBe(0);
    stop.abort();
    await drift.return?.();
  });
}

test("a flushed ruleset is noticed and ours is whole again", async () => {
  await using here = await fresh("flush");
  const wanted = world(3);
  await applied(here.dataplane, wanted);
  const stop = new AbortController();
  const drift = here.dataplane.drift(stop.signal)[Symbol.asyncIterator]();
  const first = drift.next();
  runIn(here.namespace, "nft", "flush", "ruleset");
  expect((await first).done).toBe(false);
  await here.dataplane.resync();
  expect(kernelText(here.namespace)).toBe(wantedText(wanted));
  stop.abort();
});

test("our own writes and foreign tables raise no alarm", async () => {
  await using here = await fresh("quiet");
  await applied(here.dataplane, world(1));
  const stop = new AbortController();
  const drift = here.dataplane.drift(stop.signal)[Symbol.asyncIterator]();
  const first = drift.next();
  await applied(here.dataplane, world(40));
  await applied(
    here.dataplane,
    state({
      generation: 2,
      sets: [manyAddresses("big", "10.0.0.0", 30_000)],
      workloads: [
        workload("w", "mx0", ["10.0.0.1"], { ingress: rules(rule("allow", { from: { sets: [setId("big")] } })) }),
      ],
    }),
  );
  addForeign(here.namespace);
  // An alarm that must come, after what must not have raised one.
  runIn(here.namespace, "nft", "add", "chain", "inet", "manx", "extra");
  expect((await first).value).toContain("changed by somebody else");
  const second = drift.next();
  expect((await here.dataplane.resync()).messages).toBe(1);
  stop.abort();
  expect((await second).done).toBe(true);
});

test("lost events alarm only where somebody else may have written", async () => {
  using namespace = createNamespace("lost");
  let losing = false, listening = 0;
  await using dataplane = await openDataplane(namespace, undefined, {
    losesEvents: () => losing && !(losing = false),
    listens: () => void listening++,
  });
  await applied(dataplane, world(1));
  const stop = new AbortController();
  const drift = dataplane.drift(stop.signal)[Symbol.asyncIterator]();
  const first = drift.next();
  const until = async (holds: () => boolean) => {
    for (const deadline = performance.now() + 5_000; !holds();) {
      if (performance.now() > deadline) throw new Error("waited 5 seconds in vain");
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  };
  await until(() => listening === 1);
  losing = true;
  await applied(dataplane, world(2));
  await until(() => listening === 2);
  // Had our own lost events raised an alarm, it would be the first.
  runIn(namespace, "nft", "add", "chain", "inet", "manx", "extra");
  expect((await first).value).toContain("changed by somebody else");
  const second = drift.next();
  expect((await dataplane.resync()).messages).toBe(1);
  losing = true;
  runIn(namespace, "nft", "add", "chain", "inet", "manx", "extra");
  expect((await second).value).toBe("events of nftables were lost");
  expect((await dataplane.resync()).messages).toBe(1);
  stop.abort();
});

test("a foreign write between comparing and writing makes the transaction stale, and it is done again on what is there then", async () => {
  using namespace = createNamespace("race");
  await using first = await openDataplane(namespace);
  await applied(first, world(2));
  let writes = 0;
  await using racing = await openDataplane(namespace, undefined, {
    beforeApply() {
      // The first two transactions that are tried come too late.
      if (++writes <= 2) runIn(namespace, "nft", "add", "chain", "inet", "manx", `extra${writes}`);
    },
  });
  const wanted = world(3);
  const report = await applied(racing, wanted);
  expect(writes).toBe(3);
  expect(report.messages).toBe(6 + 2);
  expect(kernelText(namespace)).toBe(wantedText(wanted));
});

test("a stranger who never stops writing is reported, and the next resync converges", async () => {
  using namespace = createNamespace("storm");
  let storm = true, writes = 0;
  await using dataplane = await openDataplane(namespace, undefined, {
    beforeApply() {
      if (storm) runIn(namespace, "nft", "add", "table", "inet", `t${writes++}`);
    },
  });
  const report = await dataplane.apply(world(1));
  expect(report.converged).toBe(false);
  expect(report.problems.join()).toContain("ERESTART");
  storm = false;
  expect((await dataplane.resync()).converged).toBe(true);
});

test("sweep removes our table and nothing else, and may be repeated", async () => {
  await using here = await fresh("sweep");
  addForeign(here.namespace);
  await applied(here.dataplane, world(2));
  expect((await here.dataplane.sweep()).messages).toBe(1);
  expect((await here.dataplane.sweep()).messages).toBe(0);
  expect(foreign(here.namespace)).toBe(FOREIGN);
  expect(runIn(here.namespace, "nft", "list", "tables")).toBe("table inet other\ntable ip manx\n");
});
