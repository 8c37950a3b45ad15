import { expect, test } from "bun:test";
import { createCalc, DEFAULT_FAILSAFE } from "../../calc/mod.ts";
import { parseAddress, parseCidr } from "../../model/address.ts";
import type { WorldChange, WorldObject } from "../../model/world.ts";
import { createAddressNames } from "./address_names.ts";

const labels = new Map<string, string>();
const pod = (id: string, ...addresses: readonly string[]): WorldObject => {
  const [namespace, name] = id.split("/") as [string, string];
  return { kind: "pod", id, namespace, name, labels, ports: [], addresses: addresses.map(parseAddress) };
};
const workload = (
  name: string,
  interfaceName: string,
  address: string,
  { pod, node = "here" }: { readonly pod?: string; readonly node?: string } = {},
): WorldObject => ({
  kind: "workload",
  id: `WorkloadEndpoint.projectcalico.org/prod/${name}`,
  node,
  namespace: "prod",
  interfaceName,
  addresses: [parseAddress(address)],
  labels,
  ports: [],
  orchestrator: "k8s",
  ...pod === undefined ? {} : { pod },
});
const networkSet = (id: string, ...nets: readonly string[]): WorldObject => {
  const [name, namespace] = id.split("/").toReversed() as [string, string?];
  return { kind: "networkSet", id, name, labels, nets: nets.map(parseCidr), ...namespace ? { namespace } : {} };
};
const node = (id: string, ...addresses: readonly string[]): WorldObject => ({
  kind: "node",
  id,
  addresses: addresses.map(parseAddress),
  labels,
});

/** A world that changes, and how often it was walked. */
function worldOf(...objects: readonly WorldObject[]) {
  const calc = createCalc({ node: "here", failsafe: DEFAULT_FAILSAFE });
  let nowMs = 0, walks = 0;
  const names = createAddressNames(
    { object: (kind, id) => calc.object(kind, id), world: () => (walks++, calc.world()) },
    "here",
    { nowMs: () => nowMs },
  );
  const change = (...changes: readonly WorldChange[]) => {
    calc.step(changes);
    names.changed(changes);
  };
  const put = (...objects: readonly WorldObject[]) =>
    change(...objects.map((object) => ({ origin: `${object.kind} ${object.id}`, objects: [object] })));
  put(...objects);
  return {
    put,
    remove: (...gone: readonly WorldObject[]) =>
      change(...gone.map(({ kind, id }) => ({ origin: `${kind} ${id}`, objects: [] }))),
    /** `pod prod/web`, or `nobody`. */
    async of(address: string): Promise<string> {
      await names.ready();
      const name = names.nameOf(parseAddress(address));
      return name === undefined ? "nobody" : `${name.kind} ${name.name}`;
    },
    async behind(link: string): Promise<string | undefined> {
      await names.ready();
      return names.behind(link)?.name.name;
    },
    /** What was begun to be read is read. */
    settled: () => new Promise<void>((resolve) => setImmediate(() => setImmediate(resolve))),
    pass: (ms: number) => void (nowMs += ms),
    get walks() {
      return walks;
    },
  };
}

test("an address is a pod's, another workload's, a node's, or within a network set, in this order", async () => {
  const world = worldOf(
    pod("prod/remote", "10.0.1.1", "fd00::1:1"),
    pod("prod/local", "10.0.0.1"),
    workload("here-k8s-local-eth0", "mx1", "10.0.0.1", { pod: "local" }),
    workload("vm-one", "tap0", "10.0.0.2"),
    node("n1", "192.0.2.1", "10.0.0.1"),
    { kind: "interface", id: "eth1", addresses: [parseAddress("198.51.100.7")] },
    networkSet("/world", "0.0.0.0/0", "198.51.100.0/24", "10.0.0.0/8"),
    networkSet("prod/some", "203.0.113.0/24", "203.0.113.128/25", "2001:db8::/32"),
    networkSet("prod/more", "203.0.113.128/26"),
    networkSet("prod/also", "203.0.113.128/26"),
  );
  const owners: Readonly<Record<string, string>> = {
    "10.0.1.1": "pod prod/remote",
    "fd00::1:1": "pod prod/remote",
    "10.0.0.1": "pod prod/local",
    "10.0.0.2": "workload prod/vm-one",
    "10.0.0.3": "networkSet world",
    "192.0.2.1": "node n1",
    "198.51.100.7": "node here",
    "198.51.100.8": "networkSet world",
    "203.0.113.5": "networkSet prod/some",
    "203.0.113.200": "networkSet prod/some",
    "203.0.113.129": "networkSet prod/also",
    "2001:db8::5": "networkSet prod/some",
    "8.8.8.8": "nobody",
    "2001:db9::5": "nobody",
    "::": "nobody",
  };
  for (const [address, owner] of Object.entries(owners)) {
    expect([address, await world.of(address)]).toEqual([address, owner]);
  }
});

test("the workload behind a link is this node's, and its pod's name is its name", async () => {
  const here = workload("a", "mx1", "10.0.0.1", { pod: "web" });
  const world = worldOf(here, workload("b", "mx1", "10.0.1.1", { node: "there" }), workload("c", "tap0", "10.0.0.2"));
  const links = ["mx1", "tap0", "eth0"].map(world.behind);
  expect(await Promise.all(links)).toEqual(["prod/web", "prod/c", undefined]);
  world.remove(here);
  expect(await world.behind("mx1")).toBeUndefined();
  world.put(workload("d", "mx1", "10.0.0.3", { pod: "next" }));
  expect(await world.behind("mx1")).toBe("prod/next");
});

test("changes are followed without walking the world again", async () => {
  const web = pod("prod/web", "10.0.0.1");
  const world = worldOf(web);
  expect(await world.of("10.0.0.1")).toBe("pod prod/web");
  world.put(pod("prod/new", "10.0.0.2"));
  expect(await world.of("10.0.0.2")).toBe("pod prod/new");
  world.put(pod("prod/web", "10.0.0.9"));
  expect([await world.of("10.0.0.1"), await world.of("10.0.0.9")]).toEqual(["nobody", "pod prod/web"]);
  world.remove(pod("prod/new"));
  expect(await world.of("10.0.0.2")).toBe("nobody");
  // The address goes to another pod.
  world.put(pod("prod/heir", "10.0.0.2"));
  expect(await world.of("10.0.0.2")).toBe("pod prod/heir");
  expect(world.walks).toBe(1);
});

test("who hid another one's address and has gone hides it no longer than the next walk", async () => {
  const first = pod("prod/first", "10.0.0.1"), second = pod("prod/second", "10.0.0.1");
  const world = worldOf(second, first);
  expect(await world.of("10.0.0.1")).toBe("pod prod/first");
  world.remove(first);
  for (let i = 0; i < 10; i++) expect(await world.of("10.0.0.1")).toBe("nobody");
  expect(world.walks).toBe(1);
  world.pass(30_000);
  expect(await world.of("10.0.0.1")).toBe("nobody");
  await world.settled();
  expect(await world.of("10.0.0.1")).toBe("pod prod/second");
  expect(world.walks).toBe(2);
});

test("changed network sets are read at the next walk, which is not for every change", async () => {
  const set = networkSet("prod/set", "192.0.2.0/24");
  const world = worldOf(set);
  expect(await world.of("192.0.2.1")).toBe("networkSet prod/set");
  world.pass(30_000);
  world.put(networkSet("prod/set", "198.51.100.0/24"));
  await world.of("192.0.2.1");
  await world.settled();
  expect([await world.of("192.0.2.1"), await world.of("198.51.100.1")]).toEqual(["nobody", "networkSet prod/set"]);
  for (let i = 0; i < 10; i++) {
    world.put(networkSet("prod/set", `10.${i}.0.0/16`));
    await world.of("192.0.2.1");
  }
  expect(world.walks).toBe(2);
  world.remove(set);
  world.pass(30_000);
  await world.of("10.9.0.1");
  await world.settled();
  expect(await world.of("10.9.0.1")).toBe("nobody");
  expect(world.walks).toBe(3);
});

test("what changes while the world is read is not missed", async () => {
  const world = worldOf(...Array.from({ length: 600 }, (_, i) => pod(`prod/p${i}`, `10.1.${i >> 8}.${i & 255}`)));
  const first = world.of("10.2.0.1");
  world.put(pod("prod/late", "10.2.0.1"));
  expect(await first).toBe("pod prod/late");
  expect(await world.of("10.1.2.87")).toBe("pod prod/p599");
  expect(world.walks).toBe(1);
});

test("tables that nobody asks are dropped, and the world walked when somebody asks again", async () => {
  const world = worldOf(pod("prod/web", "10.0.0.1"));
  world.put(pod("prod/unasked", "10.0.0.3"));
  expect(world.walks).toBe(0);
  expect(await world.of("10.0.0.1")).toBe("pod prod/web");
  world.pass(10 * 60_000 + 1);
  world.put(pod("prod/new", "10.0.0.2"));
  expect(world.walks).toBe(1);
  expect(await world.of("10.0.0.2")).toBe("pod prod/new");
  expect(world.walks).toBe(2);
});
