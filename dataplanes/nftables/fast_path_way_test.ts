/** Which ways need no second look, asked of a real kernel. */
import { expect, test } from "bun:test";
import { addressOf, openPodNode, type Place, PLACES, type PodNode } from "../../src/host/testdata/pod_node.ts";
import { createKernelDoor } from "../../src/kernel/door.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import { formatAddress, parseAddress } from "../../src/model/address.ts";
import type { KernelDoor } from "../../src/sdk/kernel_door.ts";
import { Ways } from "./fast_path_way.ts";

const TEST_DEADLINE_MS = 30_000;

class Asker implements Disposable {
  readonly ways: Ways;

  constructor(readonly node: PodNode) {
    this.ways = new Ways({ kernel: node.kernel });
  }

  run(command: string): void {
    runIn(this.node.namespace, "sh", "-ec", command);
  }

  #index(link: string): number {
    return JSON.parse(runIn(this.node.namespace, "ip", "-j", "link", "show", link))[0].ifindex;
  }

  /** `10.0.0.2 at mxb`, or nothing. */
  way(from: Place, to: Place, family: 4 | 6, destination = addressOf(to, family)): string {
    const found = this.ways.find({
      source: addressOf(from, family),
      destination,
      inIndex: this.#index(PLACES[from].link),
      outIndex: this.#index(PLACES[to].link),
    });
    return found === undefined ? "" : `${formatAddress(found.nextHop)} at ${found.output.name}`;
  }

  [Symbol.dispose](): void {
    this.ways[Symbol.dispose]();
  }
}

for (const family of [4, 6] as const) {
  const [ip, one, far, full] = family === 4
    ? ["ip", "10.0.0.2", "203.0.113.0/24", 32] as const
    : ["ip -6", "fd00::2", "2001:db8:7::/48", 128] as const;
  const beyond = parseAddress(family === 4 ? "203.0.113.9" : "2001:db8:7::9");

  test(`IPv${family}: a neighbour or its gateway, as the routes of the moment say`, async () => {
    await using node = await openPodNode();
    using ask = new Asker(node);
    expect(ask.way("a", "b", family)).toBe(`${one} at mxb`);
    expect(ask.way("out", "b", family)).toBe(`${one} at mxb`);
    const gateway = formatAddress(addressOf("out", family));
    expect(ask.way("a", "out", family)).toBe(`${gateway} at eth0`);
    expect(ask.way("a", "out", family, beyond)).toBe("");
    ask.run(`${ip} route add ${far} via ${gateway} dev eth0`);
    expect(ask.way("a", "out", family, beyond)).toBe(`${gateway} at eth0`);
    ask.run(`${ip} route replace ${far} via ${one} dev mxb`);
    expect(ask.way("a", "out", family, beyond)).toBe("");
    ask.run(`${ip} route replace unreachable ${far}`);
    expect(ask.way("a", "out", family, beyond)).toBe("");
    // For a process of the node.
    expect(ask.way("a", "b", family, addressOf("node", family))).toBe("");
  }, TEST_DEADLINE_MS);

  test(`IPv${family}: none where packets of the flow may differ, or links are not plain`, async () => {
    await using node = await openPodNode();
    using ask = new Asker(node);
    const way = () => ask.way("a", "b", family);
    const plain = `${one} at mxb`;
    /** Done, no way; undone, a way again. */
    const forbids = (command: string, undo: string) => {
      expect(way()).toBe(plain);
      ask.run(command);
      expect([command, way()]).toEqual([command, ""]);
      ask.run(undo);
      expect(way()).toBe(plain);
    };
    forbids(`${ip} rule add fwmark 7 lookup 100`, `${ip} rule del fwmark 7 lookup 100`);
    forbids(`${ip} rule add ipproto tcp dport 80 lookup 100`, `${ip} rule del ipproto tcp dport 80 lookup 100`);
    forbids(`${ip} rule add from ${one} lookup main pref 32766`, `${ip} rule del from ${one} lookup main pref 32766`);
    forbids("ip link set mxb mtu 1400", "ip link set mxb mtu 1500");
    forbids(`${ip} route replace ${one} dev mxb mtu 1400`, `${ip} route replace ${one} dev mxb`);
    const selector = `src ${one}/${full} dst ${beyond.length === 4 ? "203.0.113.9/32" : "2001:db8:7::9/128"} dir out`;
    forbids(`ip xfrm policy add ${selector} action block`, `ip xfrm policy delete ${selector}`);
    expect(ask.way("a", "a", family)).toBe("");
    ask.run("ip link set mxb down");
    expect(way()).toBe("");
  }, TEST_DEADLINE_MS);
}

test("none over ports of a bridge", async () => {
  await using node = await openPodNode();
  using ask = new Asker(node);
  ask.run("ip link add br0 type bridge; ip link set br0 up; ip link set mxb master br0");
  expect(ask.way("a", "b", 4)).toBe("");
  expect(ask.way("b", "a", 4)).toBe("");
  ask.run("ip link set mxb nomaster");
  expect(ask.way("a", "b", 4)).toBe("10.0.0.2 at mxb");
}, TEST_DEADLINE_MS);

test("a kernel without IPsec has no policies of it", async () => {
  await using node = await openPodNode();
  const door = createKernelDoor();
  const asked: number[] = [];
  const kernel: KernelDoor = {
    ...door,
    netlink: (protocol, options) => {
      asked.push(protocol);
      // No protocol has this number: it is refused as one that the kernel was built without.
      return door.netlink(protocol === 6 ? 31 : protocol, { ...options, namespace: node.namespace });
    },
  };
  using ways = new Ways({ kernel });
  expect(asked).toEqual([0, 6]);
  const index = (link: string) => JSON.parse(runIn(node.namespace, "ip", "-j", "link", "show", link))[0].ifindex;
  expect(
    ways.find({
      source: addressOf("a", 4),
      destination: addressOf("b", 4),
      inIndex: index("mxa"),
      outIndex: index("mxb"),
    })?.output.name,
  ).toBe("mxb");
}, TEST_DEADLINE_MS);
