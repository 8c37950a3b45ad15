/** The dataplane on the real kernel, each test in a network namespace of its own, checked by the real tools. */
import { afterAll, describe, expect, test } from "bun:test";
import type { DesiredState } from "../../src/model/desired.ts";
import { createNamespace } from "../../src/kernel/netns.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { tryLock } from "../../src/kernel/xtables.ts";
import type { Dataplane, Report } from "../../src/sdk/dataplane.ts";
import { ConfigError } from "../../src/sdk/errors.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { random, someList, someSets } from "../../src/model/testdata/random_lists.ts";
import {
  CLOSED,
  list,
  manyAddresses,
  netSet,
  OPEN,
  policy,
  portSet,
  rule,
  rules,
  setId,
  state,
  tier,
  workload,
} from "../../src/model/testdata/small_states.ts";
import { freeBits, parseConfig } from "./config.ts";
import { Bounder } from "./nft/bounded.ts";
import { hostVariant } from "./probe.ts";
import { printRule } from "./print.ts";
import { Renderer } from "./render.ts";
import { openDataplane } from "./testdata/open.ts";
import {
  iptablesOf,
  lockFileOf,
  removeLocks,
  restore as restoreOf,
  save as saveOf,
  tool,
  toolName,
  type Variant,
} from "./testdata/tools.ts";

afterAll(removeLocks);

const port = (first: number, last = first) => [{ first, last }];
const families = [4, 6] as const;

function world(pods: number, more: Parameters<typeof state>[0] = {}): DesiredState {
  const web = rules(
    rule("allow", { protocol: 6, from: { sets: [setId("web")] }, to: { ports: port(80) } }),
    rule("allow", { protocol: 6, from: { sets: [setId("nets")] }, to: { ports: port(8000, 8999) } }),
    rule("allow", { protocol: 17, to: { ports: port(53) } }),
    rule("allow", { to: { portSets: [setId("named")] } }),
    rule("log", { protocol: 1 }),
    rule("deny", { protocol: 1, icmp: { type: 8, code: 0 } }),
    rule("allow", { protocol: 1 }),
  );
  const next = list(
    [tier("t", "pass", policy("p", rule("deny", { protocol: 6, to: { ports: port(9) } })))],
    [],
    "next",
  );
  return state({
    sets: [
      netSet("web", "10.0.0.1", "10.0.0.2", "fd00::1"),
      netSet("nets", "10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "fd01::/64", "0.0.0.0/0"),
      portSet("named", "10.0.0.1 6 8080", "fd00::1 17 53"),
    ],
    workloads: Array.from(
      { length: pods },
      (_, i) => workload(`w${i}`, `mx${i}`, [`10.0.${i >> 8}.${i & 255}`, `fd00::${i.toString(16)}`], { ingress: web }),
    ),
    hostEndpoints: [{
      id: "h",
      interfaces: ["eth0"],
      ingress: CLOSED,
      egress: OPEN,
      forwardIngress: OPEN,
      preDnat: next,
      untrackedIngress: next,
      untrackedEgress: next,
    }],
    failsafe: { inbound: [{ protocol: 6, port: 22 }], outbound: [{ protocol: 17, port: 53 }] },
    masquerade: { sources: ["10.0.0.0/16", "fd00::/64"], inside: ["10.0.0.0/8", "192.0.2.0/24"] },
    ...more,
  });
}

const applied = async (dataplane: Dataplane, wanted: DesiredState): Promise<Report> => {
  const report = await dataplane.apply(wanted);
  expect(report.problems).toEqual([]);
  expect(report.converged).toBe(true);
  return report;
};

/** Our lines as `iptables-save` would have them. */
function wantedLinesOf(variant: Variant, wanted: DesiredState, family: 4 | 6): readonly string[] {
  const bounder = new Bounder(freeBits(0xffff0000));
  const options = { logGroup: 86, passedMark: 0x10000, cutMark: 0x20000, families, nat: true };
  return new Renderer(options).render(wanted).ruleset.tables.filter((table) => table.family === family)
    .map((table) => variant === "nft" ? bounder.table(table) : table)
    .flatMap(({ chains, hooks }) => [
      ...[...hooks].map(([hook, chain]) => `-A ${hook} -j ${chain}`),
      ...[...chains].flatMap(([name, rules]) => rules.map((one) => `-A ${name} ${printRule(one, family)}`)),
    ]).sort();
}
const foundLinesOf = (variant: Variant, namespace: NetworkNamespace, family: 4 | 6): readonly string[] =>
  saveOf(namespace, family, { variant }).split("\n").filter((line) => line.startsWith("-A ") && line.includes("manx-"))
    // Names of protocols are the host's own.
    .map((line) => line.replace("-p gre ", "-p 47 ")).sort();

async function freshOf(
  title: string,
  config?: Readonly<Record<string, unknown>>,
  slept?: () => void,
): Promise<AsyncDisposable & { namespace: NetworkNamespace; dataplane: Dataplane }> {
  const namespace = createNamespace(title);
  const dataplane = await openDataplane(namespace, config, slept);
  return {
    namespace,
    dataplane,
    async [Symbol.asyncDispose]() {
      await dataplane[Symbol.asyncDispose]();
      namespace[Symbol.dispose]();
    },
  };
}

async function driftAfter(here: { dataplane: Dataplane }, change: () => void): Promise<string> {
  const stop = AbortSignal.timeout(5_000);
  const reasons = here.dataplane.drift(stop)[Symbol.asyncIterator]();
  const next = reasons.next();
  change();
  const { value } = await next;
  await reasons.return?.();
  return value as string;
}

describe.each(["legacy", "nft"] as const)("iptables (%s)", (variant) => {
  const fresh = (title: string, config?: Readonly<Record<string, unknown>>, slept?: () => void) =>
    freshOf(title, { variant, ...config }, slept);
  const reopened = (namespace: NetworkNamespace) => openDataplane(namespace, { variant });
  const save = (namespace: NetworkNamespace, family: 4 | 6) => saveOf(namespace, family, { variant });
  const restore = (namespace: NetworkNamespace, family: 4 | 6, text: string, flags?: readonly string[]) =>
    restoreOf(namespace, family, text, flags, variant);
  const iptables = (namespace: NetworkNamespace, family: 4 | 6, ...args: readonly string[]) =>
    iptablesOf(variant, namespace, family, ...args);
  const wantedLines = (wanted: DesiredState, family: 4 | 6) => wantedLinesOf(variant, wanted, family);
  const foundLines = (namespace: NetworkNamespace, family: 4 | 6) => foundLinesOf(variant, namespace, family);

  test("opening finds what the kernel can do and leaves nothing behind", async () => {
    await using here = await fresh("probe");
    expect([...here.dataplane.capabilities.aspects]).toEqual(["policy", "nat", "services"]);
    expect([...here.dataplane.capabilities.families]).toEqual([4, 6]);
    expect(here.dataplane.cutMark).toBe(0x20000);
    expect(save(here.namespace, 4) + runIn(here.namespace, "ipset", "list", "-n")).toBe("");
  });

  test("an applied world is what the real tools show, rule by rule and member by member, and they take it back", async () => {
    await using here = await fresh("apply");
    const wanted = world(3);
    expect((await applied(here.dataplane, wanted)).messages).toBeGreaterThan(10);
    for (const family of families) {
      expect(foundLines(here.namespace, family)).toEqual(wantedLines(wanted, family));
      const text = save(here.namespace, family);
      restore(here.namespace, family, text, ["--test"]);
      restore(here.namespace, family, text);
      expect(save(here.namespace, family)).toBe(text);
    }
    const sets = runIn(here.namespace, "ipset", "save").split("\n");
    const members = sets.filter((line) => line.startsWith("add ")).map((line) =>
      line.replace(/^add manx-([46][nip])-\S+ /, "$1 ")
    );
    expect(members.filter((line) => line.includes("mx1")).sort()).toEqual(["4i 10.0.0.1,mx1", "6i fd00::1,mx1"]);
    expect(members.filter((line) => line.startsWith("4n")).sort()).toEqual([
      "4n 0.0.0.0/1",
      "4n 10.0.0.0/8",
      "4n 10.0.0.1",
      "4n 10.0.0.2",
      "4n 10.1.0.0/16",
      "4n 10.1.2.0/24",
      "4n 10.2.0.0/16",
      "4n 128.0.0.0/1",
      "4n 192.0.2.0/24",
    ]);
    expect(members.filter((line) => /^[46]p/.test(line)).sort()).toEqual(["4p 10.0.0.1,tcp:8080", "6p fd00::1,udp:53"]);
    // What the tool has written back is as it was wanted.
    expect((await here.dataplane.resync()).messages).toBe(0);
  });

  test("an unchanged world sends nothing, from the same process and from the next one", async () => {
    await using here = await fresh("idempotent");
    await applied(here.dataplane, world(5));
    expect((await applied(here.dataplane, world(5))).messages).toBe(0);
    expect((await here.dataplane.resync()).messages).toBe(0);
    await using next = await reopened(here.namespace);
    expect((await applied(next, world(5))).messages).toBe(0);
  });

  test("a member more is one message and needs no lock; a pod more is its table and its address", async () => {
    await using here = await fresh("incremental");
    const first = world(200);
    await applied(here.dataplane, first);
    const sets = first.sets.set(setId("web"), netSet("web", "10.0.0.1", "10.0.0.9", "fd00::1"));
    {
      using _held = tryLock(lockFileOf(here.namespace))!;
      // One comes, one goes.
      expect((await applied(here.dataplane, { ...first, generation: 2, sets })).messages).toBe(2);
    }
    const pod = workload("new", "mxnew", ["10.9.9.9", "fd00::9:9"], { ingress: first.workloads.get("w0")!.ingress });
    const after = { ...first, generation: 3, sets, workloads: first.workloads.set("new", pod) };
    const { messages } = await applied(here.dataplane, after);
    // Two filter tables and two sets of addresses; or chains on the way to the pod, made anew, and two sets.
    if (variant === "legacy") expect(messages).toBe(4);
    else expect(messages).toBeLessThan(200);
    for (const family of families) expect(foundLines(here.namespace, family)).toEqual(wantedLines(after, family));
  });

  test("random worlds one after another leave exactly the last one", async () => {
    await using here = await fresh("random");
    const r = random(4711);
    for (let step = 0; step < 12; step++) {
      const wanted = {
        ...state({
          generation: step,
          workloads: Array.from(
            { length: r.below(4) },
            (_, i) =>
              workload(`w${i}`, r.pick(["mx1", "tap2", "mx3", "mx4"]), [`10.0.0.${i}`, `fd00::${i}`], {
                ingress: someList(r, 10),
                egress: someList(r, 10),
              }),
          ),
        }),
        sets: someSets(r),
      };
      const report = await here.dataplane.apply(wanted);
      expect(report.converged ? [] : report.problems).toEqual([]);
      for (const family of families) expect(foundLines(here.namespace, family)).toEqual(wantedLines(wanted, family));
      const names = runIn(here.namespace, "ipset", "list", "-n").trim().split("\n").sort();
      const options = { logGroup: 86, passedMark: 0x10000, cutMark: 0x20000, families, nat: true };
      expect(names).toEqual([...new Renderer(options).render(wanted).ruleset.sets.keys()].sort());
      const found = runIn(here.namespace, "ipset", "save").split("\n").filter((line) => line.startsWith("add ")).length;
      expect((await here.dataplane.resync()).messages).toBe(0);
      expect(runIn(here.namespace, "ipset", "save").split("\n").filter((line) => line.startsWith("add ")).length).toBe(
        found,
      );
    }
  });

  test("a large set is filled, replaced at once and emptied", async () => {
    await using here = await fresh("large");
    const asks = rules(rule("allow", { from: { sets: [setId("many")] } }));
    const of = (generation: number, ...sets: Parameters<typeof state>[0]["sets"] & object) =>
      state({ generation, sets, workloads: [workload("a", "mxa", ["10.0.0.1"], { ingress: asks })] });
    const count = () =>
      runIn(here.namespace, "ipset", "save").split("\n").filter((line) => /^add manx-4n/.test(line)).length;
    await applied(here.dataplane, of(1, manyAddresses("many", "10.0.0.0", 20_000)));
    expect(count()).toBe(20_000);
    await applied(here.dataplane, of(2, manyAddresses("many", "11.0.0.0", 9_000, 2)));
    expect(count()).toBe(9_000);
    expect((await here.dataplane.resync()).messages).toBe(0);
    await applied(here.dataplane, of(3, netSet("many", "10.0.0.1")));
    expect(count()).toBe(1);
    expect(runIn(here.namespace, "ipset", "list", "-n")).not.toContain("scratch");
  });

  test.each(
    [
      [
        "a rule of ours is gone",
        [toolName(4, variant), "-w", "-D", "manx-forward", "1"],
        "table filter of iptables was changed",
      ],
      [
        "our jump is gone",
        [toolName(4, variant), "-w", "-D", "FORWARD", "-j", "manx-forward"],
        "table filter of iptables was changed",
      ],
      [
        "somebody is before us",
        [toolName(6, variant), "-w", "-I", "FORWARD", "-j", "ACCEPT"],
        "table filter of ip6tables was changed",
      ],
      ["a table is flushed", [toolName(4, variant), "-w", "-t", "raw", "-F"], "table raw of iptables was changed"],
      ["a set is flushed", ["ipset", "flush", "manx-4i-source"], "ip set manx-4i-source was changed"],
      ["a member is gone", ["ipset", "del", "manx-6i-source", "fd00::1,mx1"], "ip set manx-6i-source was changed"],
    ] as const,
  )("drift is noticed and mended: %s", async (_, command, reason) => {
    await using here = await fresh("drift");
    await applied(here.dataplane, world(3));
    const text = runIn(here.namespace, "ipset", "save").split("\n").sort().join("\n");
    expect(await driftAfter(here, () => expect(tool(here.namespace, command).code).toBe(0))).toContain(reason);
    const report = await here.dataplane.resync();
    expect(report.converged).toBe(true);
    expect(report.messages).toBeGreaterThan(0);
    for (const family of families) expect(foundLines(here.namespace, family)).toEqual(wantedLines(world(3), family));
    expect(runIn(here.namespace, "ipset", "save").split("\n").sort().join("\n")).toBe(text);
  });

  test("what others change is no drift", async () => {
    let looks = 0;
    await using here = await fresh("no drift", { pollMs: 50 }, () => looks++);
    await applied(here.dataplane, world(1));
    const stop = new AbortController();
    const reasons = here.dataplane.drift(stop.signal)[Symbol.asyncIterator]();
    let told = false;
    const next = reasons.next().then(({ done }) => told = done !== true);
    iptables(here.namespace, 4, "-A", "FORWARD", "-s", "192.0.2.1", "-j", "ACCEPT");
    iptables(here.namespace, 4, "-N", "THEIRS");
    runIn(here.namespace, "ipset", "create", "theirs", "hash:ip");
    const enough = looks + 12;
    while (looks < enough && !told) await new Promise((resolve) => setImmediate(resolve));
    stop.abort();
    await next;
    expect(told).toBe(false);
  });

  test("sweep takes everything that is ours, of an earlier process too, and nothing else", async () => {
    await using here = await fresh("sweep");
    restore(here.namespace, 4, "*filter\n:THEIRS - [0:0]\n-A FORWARD -j THEIRS\n-A THEIRS -p tcp -j DROP\nCOMMIT\n");
    runIn(here.namespace, "ipset", "create", "theirs", "hash:ip");
    const before = save(here.namespace, 4), sets = runIn(here.namespace, "ipset", "save");
    await applied(here.dataplane, world(3));
    await using next = await reopened(here.namespace);
    expect((await next.sweep()).messages).toBeGreaterThan(5);
    expect(save(here.namespace, 4).split("*filter")[1]!).toBe(before.split("*filter")[1]!);
    for (const family of families) expect(save(here.namespace, family)).not.toContain("manx");
    expect(runIn(here.namespace, "ipset", "save")).toBe(sets);
    expect((await next.sweep()).messages).toBe(0);
    // And the first one begins anew.
    await here.dataplane.resync();
    expect(foundLines(here.namespace, 4)).toEqual(wantedLines(world(3), 4));
  });

  test("a set that somebody's rule names stays, is told of, and goes when it is free", async () => {
    await using here = await fresh("named");
    const asks = rules(rule("allow", { from: { sets: [setId("web")] } }));
    const one = state({
      sets: [netSet("web", "10.0.0.1")],
      workloads: [workload("a", "mxa", ["10.0.0.1"], { ingress: asks })],
    });
    await applied(here.dataplane, one);
    const name = runIn(here.namespace, "ipset", "list", "-n").split("\n").find((line) => line.startsWith("manx-4n"))!;
    iptables(here.namespace, 4, "-A", "INPUT", "-m", "set", "--match-set", name, "src", "-j", "DROP");
    const report = await here.dataplane.apply({ ...state({}), generation: 2 });
    expect(report.converged).toBe(true);
    expect(report.problems).toEqual([
      `destroy ip set ${name}: found it in use by somebody else's rules, wanted it free: tried again later`,
    ]);
    iptables(here.namespace, 4, "-F", "INPUT");
    await here.dataplane.resync();
    expect(runIn(here.namespace, "ipset", "list", "-n").split("\n")).not.toContain(name);
  });
});

test("in nf_tables, drift is told of by events, and mended within a second, however seldom we look", async () => {
  await using here = await freshOf("events", { variant: "nft", pollMs: 600_000 });
  await applied(here.dataplane, world(3));
  const stop = new AbortController();
  const mended = (async () => {
    for await (const _ of here.dataplane.drift(stop.signal)) return await here.dataplane.resync();
  })();
  // It listens, and has looked once.
  await Bun.sleep(0);
  const text = saveOf(here.namespace, 4, { variant: "nft" });
  const began = performance.now();
  iptablesOf("nft", here.namespace, 4, "-t", "filter", "-F");
  expect((await mended)!.messages).toBeGreaterThan(10);
  expect(performance.now() - began).toBeLessThan(1_000);
  expect(saveOf(here.namespace, 4, { variant: "nft" }).split("\n").sort()).toEqual(text.split("\n").sort());
  stop.abort();
});

test("somebody who keeps the lock is named, nothing is half-made, and when it is free all is written", async () => {
  await using here = await freshOf("locked", { variant: "legacy", lockWaitMs: 50 });
  const held = tryLock(lockFileOf(here.namespace))!;
  const report = await here.dataplane.apply(world(2));
  expect(report).toEqual({
    generation: 1,
    converged: false,
    messages: 0,
    problems: [
      `lock ${
        lockFileOf(here.namespace)
      }: found it held by somebody else for 50 ms, wanted it to write iptables: nothing was written; tried again later`,
    ],
  });
  expect(saveOf(here.namespace, 4) + runIn(here.namespace, "ipset", "list", "-n")).toBe("");
  held[Symbol.dispose]();
  await applied(here.dataplane, world(2));
  expect(foundLinesOf("legacy", here.namespace, 4)).toEqual(wantedLinesOf("legacy", world(2), 4));
});

test("which iptables the host uses is read from its links", () => {
  const links = (target: string) => (path: string) => {
    if (path !== "/etc/alternatives/iptables") throw new Error("ENOENT");
    return target;
  };
  expect(hostVariant(links("/usr/sbin/iptables-nft"))).toBe("nft");
  expect(hostVariant(links("/usr/sbin/iptables-legacy"))).toBe("legacy");
  expect(hostVariant(links("xtables-nft-multi"))).toBe("nft");
  expect(hostVariant(links("/opt/iptables"))).toBe(undefined);
});

test("a configuration that makes no sense is refused by its key", () => {
  const refusal = (raw: unknown): string => {
    try {
      parseConfig(raw);
    } catch (error) {
      if (error instanceof ConfigError) return error.message;
      throw error;
    }
    return "";
  };
  expect(refusal(undefined)).toBe("");
  expect(refusal({ position: "append", lockFile: "/run/x" })).toBe("");
  expect(refusal({ position: "top" })).toContain("dataplane.config.position");
  expect(refusal({ lockFile: "x" })).toContain("dataplane.config.lockFile");
  expect(refusal({ pollMs: 1 })).toContain("dataplane.config.pollMs");
  expect(refusal({ colour: 1 })).toContain("dataplane.config.colour");
  expect(refusal([])).toContain("dataplane.config");
});
