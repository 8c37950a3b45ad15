/** What every dataplane's rules log, and what its reader says of it, with real packets. Call `dataplaneLogs` in a test file of the dataplane. */
import { expect, test } from "bun:test";
import { inNamespace } from "../../src/kernel/netns.ts";
import * as c from "../../src/kernel/libc.ts";
import { inetSockaddr } from "../../src/kernel/sockaddr.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { formatAddress, parseAddress } from "../../src/model/address.ts";
import type { CompiledPolicy, PolicyList } from "../../src/model/desired.ts";
import type { Direction } from "../../src/model/rule.ts";
import { list, policy, rule, state, tier, workload } from "../../src/model/testdata/small_states.ts";
import type { Dataplane, LoggedPacket, LostPackets } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";
import { node, PLACES } from "./dataplane_node.ts";

const DEADLINE_MS = 5_000;
/** What is logged on the way is there by then. */
const SETTLED_MS = 300;

type Item = LoggedPacket | LostPackets;

/** Datagrams from one socket. */
export function send(from: NetworkNamespace, to: string, port: number, count = 1): void {
  const family = to.includes(":") ? c.AF.INET6 : c.AF.INET;
  const fd = inNamespace(from, () => c.check("socket", c.socket(family, c.SOCK.DGRAM | c.SOCK.CLOEXEC, 0)));
  const address = inetSockaddr({ address: parseAddress(to), port });
  const payload = c.buffer(8);
  for (let i = 0; i < count; i++) c.sendto(fd, payload, 0, address);
  c.close(fd);
}

/** What comes until a packet to port 9, which is logged last, or the deadline. */
async function logged(dataplane: Dataplane, listening: () => void): Promise<readonly Item[]> {
  const items: Item[] = [];
  const stream = dataplane.logs!(AbortSignal.timeout(DEADLINE_MS))[Symbol.asyncIterator]();
  // The group is bound when the first item is asked for.
  let next = stream.next();
  listening();
  for (;;) {
    const { value, done } = await next;
    if (done) throw new Error(`waited ${DEADLINE_MS} ms in vain, found ${JSON.stringify(items)}`);
    if ("packet" in value && value.packet.destinationPort === 9) break;
    items.push(value);
    next = stream.next();
  }
  await stream.return?.();
  return items;
}

const textOf = (item: Item): string => {
  if (!("packet" in item)) return `lost ${item.lost}`;
  const { packet, verdict, direction, decision, inInterface, outInterface } = item;
  const by = decision?.by === "rule" ? `${decision.policy} ${decision.origin.index}` : decision?.by;
  return `${verdict} ${direction} ${formatAddress(packet.source)} > ${
    formatAddress(packet.destination)
  } ${packet.destinationPort} ${inInterface ?? "-"} ${outInterface ?? "-"} ${by}`;
};

const to = (port: number) => ({ protocol: 17, to: { ports: [{ first: port, last: port }] } });
const at = (policy: string, direction: Direction, index: number) => ({ origin: { policy, direction, index } });

/** The last to be logged, in either direction. */
const last = (direction: Direction): CompiledPolicy =>
  policy("NetworkPolicy/x/z", rule("log", { ...to(9), ...at("NetworkPolicy/x/z", direction, 0) }));

const worldOf = (lists: { readonly ingress?: PolicyList; readonly egress?: PolicyList }, generation = 1) =>
  state({
    generation,
    workloads: [
      workload("a", "mxa", [PLACES.a!.v4, PLACES.a!.v6], lists.egress === undefined ? {} : { egress: lists.egress }),
      workload("b", "mxb", [PLACES.b!.v4, PLACES.b!.v6], lists.ingress === undefined ? {} : { ingress: lists.ingress }),
    ],
  });

/** `open`: the dataplane, in a namespace that is a node of its own; again, as another process; with `logGroup`, where it is given. */
export function dataplaneLogs(
  open: (namespace: NetworkNamespace, config?: { readonly logGroup: number }) => Promise<Dataplane>,
): void {
  test("a Log rule's packets come with its place in its policy, their links and their ends", async () => {
    await using here = await node((namespace) => open(namespace));
    const id = "NetworkPolicy/x/p";
    const egress = list([
      tier(
        "default",
        "deny",
        last("egress"),
        policy(
          id,
          rule("log", { ...to(90), ...at(id, "egress", 0) }),
          rule("deny", { ...to(90), ...at(id, "egress", 1) }),
          rule("allow", at(id, "egress", 2)),
        ),
      ),
    ]);
    await here.dataplane.apply(worldOf({ egress }));
    const startMs = Date.now();
    const items = await logged(here.dataplane, () => {
      send(here.places.a!, PLACES.b!.v4, 90);
      send(here.places.a!, PLACES.b!.v6, 90);
      send(here.places.a!, "10.0.0.254", 90);
      send(here.places.a!, PLACES.b!.v4, 91);
      send(here.places.a!, PLACES.b!.v4, 9);
    });
    expect(items.map(textOf).sort()).toEqual([
      "log egress 10.0.0.1 > 10.0.0.2 90 mxa mxb NetworkPolicy/x/p 0",
      "log egress 10.0.0.1 > 10.0.0.254 90 mxa - NetworkPolicy/x/p 0",
      "log egress fd00::1 > fd00::2 90 mxa mxb NetworkPolicy/x/p 0",
    ]);
    for (const item of items as readonly LoggedPacket[]) {
      expect(Math.abs(item.atMs - startMs)).toBeLessThan(DEADLINE_MS);
      expect(item.lengthBytes).toBe(item.packet.source.length === 4 ? 36 : 56);
      expect(item.prefix).toBe("manx log egress tier default rule 0 NetworkPolicy/x/p");
      const origin = { policy: id, direction: "egress", index: 0 };
      expect(item.decision).toMatchObject({ by: "rule", tier: "default", policy: id, origin });
    }
  });

  test("denied packets are logged where a tier or a policy asks for it, and no others", async () => {
    await using here = await node((namespace) => open(namespace));
    const id = "NetworkPolicy/x/p";
    const quiet = policy(
      "NetworkPolicy/x/quiet",
      rule("deny", { ...to(80), ...at("NetworkPolicy/x/quiet", "ingress", 0) }),
    );
    const loud = policy(
      id,
      ...[90, 91, 92, 93, 94, 95, 96, 97].map((port, index) =>
        rule("deny", { ...to(port), ...at(id, "ingress", index) })
      ),
      rule("allow", { ...to(100), ...at(id, "ingress", 8) }),
    );
    const staged = {
      ...policy("StagedNetworkPolicy/x/s", rule("deny", to(100))),
      staged: true,
      logDenied: true as const,
    };
    const ingress = list([
      tier("default", "deny", quiet, last("ingress"), staged, { ...loud, logDenied: true as const }),
    ]);
    await here.dataplane.apply(worldOf({ ingress }));
    const knock = () => {
      for (const port of [80, 93, 97, 100, 200, 9]) send(here.places.a!, PLACES.b!.v4, port);
    };
    expect((await logged(here.dataplane, knock)).map(textOf)).toEqual([
      "deny ingress 10.0.0.1 > 10.0.0.2 93 mxa mxb NetworkPolicy/x/p 3",
      "deny ingress 10.0.0.1 > 10.0.0.2 97 mxa mxb NetworkPolicy/x/p 7",
      "deny ingress 10.0.0.1 > 10.0.0.2 200 mxa mxb tier default",
    ]);

    const all = { ...ingress, id: "all", tiers: [{ ...ingress.tiers[0]!, logDenied: true as const }] };
    await here.dataplane.apply(worldOf({ ingress: all }, 2));
    expect((await logged(here.dataplane, knock)).map(textOf)).toEqual([
      "deny ingress 10.0.0.1 > 10.0.0.2 80 mxa mxb NetworkPolicy/x/quiet 0",
      "deny ingress 10.0.0.1 > 10.0.0.2 93 mxa mxb NetworkPolicy/x/p 3",
      "deny ingress 10.0.0.1 > 10.0.0.2 97 mxa mxb NetworkPolicy/x/p 7",
      "deny ingress 10.0.0.1 > 10.0.0.2 200 mxa mxb tier default",
    ]);
  });

  test("a name too long for a prefix is that of the policy in force, by another process as well", async () => {
    await using here = await node((namespace) => open(namespace));
    const [one, other] = ["one", "other"].map((name) => `NetworkPolicy.projectcalico.org/${"n".repeat(63)}/${name}`);
    const ingress = list([
      tier(
        "default",
        "deny",
        last("ingress"),
        ...[one!, other!].map((id, i) => ({
          ...policy(id, rule("deny", { ...to(90 + i), ...at(id, "ingress", 0) })),
          logDenied: true as const,
        })),
      ),
    ]);
    await here.dataplane.apply(worldOf({ ingress }));
    await using next = await open(here.node);
    expect((await next.apply(worldOf({ ingress }, 2))).converged).toBe(true);
    const items = await logged(next, () => {
      for (const port of [90, 91, 9]) send(here.places.a!, PLACES.b!.v4, port);
    });
    expect(items.map((item) => "packet" in item && item.decision?.by === "rule" ? item.decision.policy : undefined))
      .toEqual([one, other]);
  });

  test("of a flood few packets are logged, of each rule for itself", async () => {
    await using here = await node((namespace) => open(namespace));
    const id = "NetworkPolicy/x/p";
    const ingress = list([
      tier("default", "deny", last("ingress"), {
        ...policy(
          id,
          rule("deny", { ...to(90), ...at(id, "ingress", 0) }),
          rule("deny", { ...to(91), ...at(id, "ingress", 1) }),
        ),
        logDenied: true as const,
      }),
    ]);
    await here.dataplane.apply(worldOf({ ingress }));
    const items = await logged(here.dataplane, () => {
      send(here.places.a!, PLACES.b!.v4, 90, 2_000);
      send(here.places.a!, PLACES.b!.v4, 91, 3);
      send(here.places.a!, PLACES.b!.v4, 9);
    });
    const of = (port: number) =>
      items.filter((item) => "packet" in item && item.packet.destinationPort === port).length;
    expect(of(90)).toBeGreaterThan(10);
    expect(of(90)).toBeLessThan(60);
    expect(of(91)).toBe(3);
    // The counter says how many there were.
    const counts = await here.dataplane.counts!(ingress);
    const denied = counts.find(({ decisions: [one] }) =>
      one?.by === "rule" && one.origin.index === 0 && one.policy === id
    );
    expect(denied?.packets).toBe(2_000);
  });

  test("a group that another program reads is refused in so many words, and another group can be configured", async () => {
    await using here = await node((namespace) => open(namespace));
    await using other = await open(here.node);
    const stop = new AbortController();
    const reading = other.logs!(stop.signal)[Symbol.asyncIterator]().next();
    const refused = here.dataplane.logs!(AbortSignal.timeout(SETTLED_MS))[Symbol.asyncIterator]().next();
    const error = await refused.then(() => undefined, (error: Error & { code?: string }) => error);
    expect(error?.code).toBe("unavailable");
    expect(error?.message).toContain("NFLOG group 86: found that another program reads this group");
    await using elsewhere = await open(here.node, { logGroup: 4711 });
    const first = elsewhere.logs!(stop.signal)[Symbol.asyncIterator]().next();
    expect(runIn(here.node, "cat", "/proc/net/netfilter/nfnetlink_log")).toMatch(/^ *4711 /m);
    stop.abort();
    expect([await reading, await first]).toEqual([{ value: undefined, done: true }, { value: undefined, done: true }]);
  });
}
