import { expect, test } from "bun:test";
import { createKernelDoor } from "../kernel/door.ts";
import { createNamespace, namespacePath } from "../kernel/netns.ts";
import { formatAddress } from "../model/address.ts";
import type { WorldChange } from "../model/world.ts";
import type { KernelDoor } from "../sdk/kernel_door.ts";
import { systemClock } from "./clock.ts";
import { createLinks } from "./links.ts";
import { silentLog } from "./log.ts";

const DEADLINE_MS = 5_000;

/** A node of its own: links are made there, and looked at from there. */
function newNode() {
  const namespace = createNamespace("links test");
  const door = createKernelDoor();
  const kernel: KernelDoor = {
    ...door,
    netlink: (protocol, options) => door.netlink(protocol, { ...options, namespace }),
  };
  const ip = (...args: string[]) => {
    const run = Bun.spawnSync(["nsenter", `--net=${namespacePath(namespace)}`, "ip", ...args]);
    if (run.exitCode !== 0) throw new Error(run.stderr.toString());
  };
  return {
    ip,
    links: createLinks(kernel, silentLog, systemClock),
    [Symbol.dispose]: () => namespace[Symbol.dispose](),
  };
}

const text = (changes: readonly WorldChange[]): string =>
  changes.map(({ origin, objects }) => {
    const [link] = objects;
    return link?.kind === "interface"
      ? `${origin} ${link.addresses.filter((one) => one.length === 4).map(formatAddress).join(" ")}`.trim()
      : `-${origin}`;
  }).sort().join(", ");

test("a namespace that never had a route has no addresses, and is no error", () => {
  using node = newNode();
  expect([text(node.links.snapshot()), node.links.nodeAddresses()]).toEqual(["", []]);
});

test("links are listed with their addresses; loopback, pod links and those with the addresses of services are not", () => {
  using node = newNode();
  node.ip("link", "add", "eth0", "type", "veth", "peer", "name", "mx0123456789a");
  node.ip("address", "add", "192.0.2.1/24", "dev", "eth0");
  node.ip("address", "add", "198.51.100.1/32", "dev", "mx0123456789a");
  node.ip("link", "add", "manx-ipvs12", "type", "bridge");
  node.ip("address", "add", "10.96.0.1/32", "dev", "manx-ipvs12");
  node.ip("link", "set", "lo", "up");
  expect(text(node.links.snapshot())).toBe("interface/eth0 192.0.2.1");
});

test("the node's address is that of the link with the default route", () => {
  using node = newNode();
  node.ip("link", "add", "first", "type", "veth", "peer", "name", "second");
  for (
    const [link, address] of [["first", "192.0.2.1/24"], ["second", "198.51.100.1/24"], ["second", "2001:db8::1/64"]]
  ) {
    node.ip("address", "add", address!, "dev", link!, ...address!.includes(":") ? ["nodad"] : []);
    node.ip("link", "set", link!, "up");
  }
  node.links.snapshot();
  // The kernel numbers the peer first.
  expect(node.links.nodeAddresses().map(formatAddress)).toEqual(["198.51.100.1", "2001:db8::1"]);
  node.ip("route", "add", "default", "via", "192.0.2.254");
  expect(node.links.nodeAddresses().map(formatAddress)).toEqual(["192.0.2.1", "2001:db8::1"]);
});

test("links and addresses are followed as they come, are renamed and go", async () => {
  using node = newNode();
  const stop = new AbortController();
  const world = new Map<string, WorldChange>();
  const following = node.links.follow((changes) => {
    for (const change of changes) {
      if (change.objects.length === 0) world.delete(change.origin);
      else world.set(change.origin, change);
    }
  }, stop.signal);
  const becomes = async (expected: string) => {
    for (
      const deadline = performance.now() + DEADLINE_MS;
      text([...world.values()]) !== expected && performance.now() < deadline;
    ) {
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    expect(text([...world.values()])).toBe(expected);
  };
  node.ip("link", "add", "eth0", "type", "veth", "peer", "name", "mx0123456789a");
  await becomes("interface/eth0");
  node.ip("address", "add", "192.0.2.1/24", "dev", "eth0");
  node.ip("address", "add", "192.0.2.2/24", "dev", "eth0");
  await becomes("interface/eth0 192.0.2.1 192.0.2.2");
  node.ip("address", "del", "192.0.2.2/24", "dev", "eth0");
  await becomes("interface/eth0 192.0.2.1");
  node.ip("link", "set", "eth0", "name", "uplink");
  await becomes("interface/uplink 192.0.2.1");
  node.ip("link", "del", "uplink");
  await becomes("");
  stop.abort();
  await following;
});
