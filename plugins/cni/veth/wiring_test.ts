import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { KernelError } from "../../../src/kernel/errors.ts";
import {
  AF,
  bind,
  buffer,
  check,
  close,
  POLL,
  poll,
  recvfrom,
  sendto,
  SOCK,
  socket,
} from "../../../src/kernel/libc.ts";
import { createNamespace, inNamespace, namespacePath } from "../../../src/kernel/netns.ts";
import {
  delAddress,
  getAddresses,
  newAddress,
  parseAddressMessage,
} from "../../../src/kernel/netlink/schema/rt_addr.ts";
import { delLink, getLinks, newLink, parseLink, setLink } from "../../../src/kernel/netlink/schema/rt_link.ts";
import { getNeighbours, NeighbourState, parseNeighbour } from "../../../src/kernel/netlink/schema/rt_neigh.ts";
import { delRoute, getRoutes, newRoute, parseRoute, RouteTable } from "../../../src/kernel/netlink/schema/rt_route.ts";
import { linkByName } from "../../../src/kernel/rtnetlink.ts";
import { getSysctl, setSysctl } from "../../../src/kernel/sysctl.ts";
import { inetSockaddr } from "../../../src/kernel/sockaddr.ts";
import {
  type Address,
  formatAddress,
  formatCidr,
  hostCidr,
  parseAddress,
  parseCidr,
} from "../../../src/model/address.ts";
import type { KernelDoor, NetlinkSocket, NetworkNamespace } from "../../../src/sdk/kernel_door.ts";
import type { Host } from "../../../src/sdk/plugin.ts";
import type { Attachment } from "../../../src/sdk/wiring.ts";
import { namespacedKernel } from "../../../src/kernel/namespaced_door.ts";
import { DOOMED_GROUP, LIVE_GROUP } from "./plan.ts";
import { VethWiring } from "./wiring.ts";

let stack: AsyncDisposableStack;
let node: NetworkNamespace;
let kernel: KernelDoor;
let wiring: VethWiring;

beforeEach(() => {
  stack = new AsyncDisposableStack();
  node = stack.use(createNamespace("node"));
  kernel = namespacedKernel(node);
  wiring = stack.use(new VethWiring({}, hostOf(kernel)));
});
afterEach(() => stack.disposeAsync());

function hostOf(door: KernelDoor): Host {
  const quiet = () => {};
  return {
    node: "n",
    log: { debug: quiet, info: quiet, warn: quiet, error: quiet },
    clock: {
      nowMs: () => performance.now(),
      wallMs: () => 0,
      sleep: (ms, signal) =>
        new Promise((resolve, reject) => {
          const timer = setTimeout(resolve, ms);
          const stop = () => {
            clearTimeout(timer);
            reject(signal.reason);
          };
          if (signal.aborted) stop();
          else signal.addEventListener("abort", stop, { once: true });
        }),
    },
    kernel: door,
    datastore: undefined as never,
    stateDirectory: "/nonexistent",
  };
}

function rtnetlink(namespace: NetworkNamespace): NetlinkSocket {
  return stack.use(kernel.netlink(0, { namespace }));
}

let counter = 0;
interface Pod {
  readonly namespace: NetworkNamespace;
  readonly attachment: Attachment;
}
function podOf(addresses: readonly string[], more: Partial<Attachment> = {}): Pod {
  const number = ++counter;
  const namespace = stack.use(createNamespace(`pod ${number}`));
  return {
    namespace,
    attachment: {
      id: `id-${number}`,
      netns: namespacePath(namespace),
      interfaceName: "eth0",
      hostInterface: `mx${number.toString(16).padStart(11, "0")}`,
      addresses: addresses.map(parseAddress),
      ...more,
    },
  };
}

/** Everything the wiring may leave in the node's namespace, as text. */
function traces(): string[] {
  using links = kernel.netlink(0);
  return [
    ...links.dump("links", getLinks()).map(parseLink).filter(({ name }) => name !== "lo").map(({ name }) =>
      `link ${name}`
    ),
    ...links.dump("routes", getRoutes()).map(parseRoute)
      .filter(({ table, destination }) => table === RouteTable.Main && !formatCidr(destination).startsWith("ff00:"))
      .map(({ destination }) => `route ${formatCidr(destination)}`),
    ...links.dump("neighbours", getNeighbours()).map(parseNeighbour)
      .filter(({ state }) => (state & NeighbourState.NoArp) === 0).map(({ address }) =>
        `neighbour ${formatAddress(address!)}`
      ),
  ];
}
const podLinks = (namespace: NetworkNamespace): string[] =>
  rtnetlink(namespace).dump("links", getLinks()).map(parseLink).map(({ name }) => name).filter((name) => name !== "lo");

/** Whether a datagram gets from one pod to the other and an answer back. */
function reaches(from: Pod, to: Pod, source: string, destination: string, timeoutMs = 1_000): boolean {
  const open = (pod: Pod, address: string) => {
    const family = address.includes(":") ? AF.INET6 : AF.INET;
    const fd = check("socket", inNamespace(pod.namespace, () => socket(family, SOCK.DGRAM | SOCK.NONBLOCK, 0)));
    check("bind", bind(fd, inetSockaddr({ address: parseAddress(address), port: 7 })));
    return fd;
  };
  const a = open(from, source), b = open(to, destination);
  try {
    const arrives = (fd: number) => {
      if (poll([{ fd, events: POLL.IN }], timeoutMs)[0] === 0) return false;
      recvfrom(fd, buffer(64), 0);
      return true;
    };
    const send = (fd: number, address: string) =>
      sendto(fd, Uint8Array.of(1), 0, inetSockaddr({ address: parseAddress(address), port: 7 })) === 1;
    return send(a, destination) && arrives(b) && send(b, source) && arrives(a);
  } finally {
    close(a);
    close(b);
  }
}

describe("apply", () => {
  test("two pods exchange packets of both families right after it", async () => {
    const a = podOf(["10.244.0.5", "fd00:10:244::5"]), b = podOf(["10.244.0.6", "fd00:10:244::6"]);
    const observed = await wiring.apply(a.attachment, "fail");
    expect(reachesHost(a, "10.244.0.5")).toBe(true);
    await wiring.apply(b.attachment, "fail");
    expect(reaches(a, b, "10.244.0.5", "10.244.0.6")).toBe(true);
    expect(reaches(b, a, "fd00:10:244::6", "fd00:10:244::5")).toBe(true);
    expect({
      ...observed,
      addresses: observed.addresses.map(formatCidr),
      gateways: observed.gateways.map(formatAddress),
    }).toEqual({
      interfaceName: "eth0",
      mac: expect.stringMatching(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/),
      hostInterface: a.attachment.hostInterface,
      hostMac: "ee:ee:ee:ee:ee:ee",
      mtu: 1500,
      addresses: ["10.244.0.5/32", "fd00:10:244::5/128"],
      gateways: ["169.254.1.1", "fe80::1"],
      differences: [],
    });
  });

  /** A packet to the gateway's address needs neither policy nor another pod: an ICMP error or silence, but no send error. */
  function reachesHost(pod: Pod, source: string): boolean {
    const fd = check("socket", inNamespace(pod.namespace, () => socket(AF.INET, SOCK.DGRAM | SOCK.NONBLOCK, 0)));
    try {
      check("bind", bind(fd, inetSockaddr({ address: parseAddress(source), port: 9 })));
      return sendto(fd, Uint8Array.of(1), 0, inetSockaddr({ address: parseAddress("169.254.1.1"), port: 9 })) === 1;
    } finally {
      close(fd);
    }
  }

  test("addresses are usable at once: none is tentative, the mac is the same for the same id", async () => {
    const pod = podOf(["fd00::5"]);
    const first = await wiring.apply(pod.attachment, "fail");
    const socket = rtnetlink(pod.namespace);
    const index = linkByName(socket, "eth0")!.index;
    const found = socket.dump("addresses", getAddresses({ index })).map(parseAddressMessage)
      .filter(({ address }) => address === parseAddress("fd00::5"));
    expect(found).toHaveLength(1);
    expect(found[0]!.flags & 0x40).toBe(0);
    await wiring.remove(pod.attachment.hostInterface);
    await wiring.flush();
    expect((await wiring.apply(pod.attachment, "fail")).mac).toBe(first.mac);
  });

  test("mtu, mac and routes are as asked, on both ends", async () => {
    const pod = podOf(["10.244.0.5"], {
      mtu: 1400,
      mac: "02:00:00:00:00:05",
      routes: [
        { destination: parseCidr("10.0.0.0/8") },
        { destination: parseCidr("192.168.0.0/16"), via: parseAddress("10.0.0.1") },
        { destination: parseCidr("fd00::/8") },
      ],
    });
    const observed = await wiring.apply(pod.attachment, "fail");
    expect([observed.mtu, observed.mac]).toEqual([1400, "02:00:00:00:00:05"]);
    const socket = rtnetlink(pod.namespace);
    expect(linkByName(socket, "eth0")).toMatchObject({ mtu: 1400, hardwareAddress: "02:00:00:00:00:05" });
    expect(linkByName(rtnetlink(node), pod.attachment.hostInterface)).toMatchObject({ mtu: 1400, group: LIVE_GROUP });
    const routes = socket.dump("routes", getRoutes({ family: 4 })).map(parseRoute).filter(({ table }) =>
      table === RouteTable.Main
    )
      .map(({ destination, gateway }) =>
        `${formatCidr(destination)}${gateway === undefined ? "" : ` via ${formatAddress(gateway)}`}`
      );
    expect(routes.sort()).toEqual(["10.0.0.0/8 via 169.254.1.1", "169.254.1.1/32", "192.168.0.0/16 via 10.0.0.1"]);
  });

  test("IPv6 works at once where the pod has no default route, time and again", async () => {
    const routes = [{ destination: parseCidr("fd00::/64") }];
    const first = podOf(["fd00::1"], { routes });
    await wiring.apply(first.attachment, "fail");
    for (let i = 2; i < 20; i++) {
      const pod = podOf([`fd00::${i}`], { routes });
      await wiring.apply(pod.attachment, "fail");
      expect(reaches(first, pod, "fd00::1", `fd00::${i}`)).toBe(true);
    }
  });

  test("the default mtu is that of the link the default route goes out of", async () => {
    const socket = rtnetlink(node);
    socket.request("uplink", [newLink({ kind: "veth", name: "up0", mtu: 1450, peer: { name: "up1" } })]);
    const { index } = linkByName(socket, "up0")!;
    socket.request("uplink", [
      setLink({ index }, { up: true }),
      newAddress({ index, address: parseAddress("192.0.2.2"), prefix: 24 }),
      newRoute({ destination: parseCidr("0.0.0.0/0"), gateway: parseAddress("192.0.2.1") }),
    ]);
    await using other = new VethWiring({}, hostOf(kernel));
    const pod = podOf(["10.244.0.5"]);
    expect((await other.apply(pod.attachment, "fail")).mtu).toBe(1450);
    await using configured = new VethWiring({ mtu: 9000 }, hostOf(kernel));
    expect((await configured.apply(podOf(["10.244.0.6"]).attachment, "fail")).mtu).toBe(9000);
  });

  test("a pod whose namespace has IPv6 switched off gets its IPv6 address all the same", async () => {
    const a = podOf(["fd00::5"]), b = podOf(["fd00::6"]);
    inNamespace(a.namespace, () => setSysctl("ipv6/conf/default/disable_ipv6", "1"));
    inNamespace(node, () => setSysctl("ipv6/conf/default/disable_ipv6", "1"));
    await wiring.apply(a.attachment, "fail");
    await wiring.apply(b.attachment, "fail");
    expect(reaches(a, b, "fd00::5", "fd00::6")).toBe(true);
  });

  test("an IPv4 pod leaves the node's IPv6 forwarding as it was; the host side listens to no router", async () => {
    inNamespace(node, () => setSysctl("ipv6/conf/default/accept_ra", "2"));
    const pod = podOf(["10.244.0.5"]);
    await wiring.apply(pod.attachment, "fail");
    const settings = inNamespace(node, () => [
      getSysctl("ipv6/conf/all/forwarding"),
      getSysctl("ipv4/ip_forward"),
      ...["accept_ra"].map((name) => getSysctl(`ipv6/conf/${pod.attachment.hostInterface}/${name}`)),
      ...["proxy_arp", "forwarding", "accept_redirects", "send_redirects"]
        .map((name) => getSysctl(`ipv4/conf/${pod.attachment.hostInterface}/${name}`)),
      getSysctl(`ipv4/neigh/${pod.attachment.hostInterface}/proxy_delay`),
    ]);
    expect(settings).toEqual(["0", "1", "0", "1", "1", "0", "0", "0"]);
    await wiring.apply(podOf(["fd00::5"]).attachment, "fail");
    expect(inNamespace(node, () => getSysctl("ipv6/conf/all/forwarding"))).toBe("1");
  });

  test("a pod that asks for its gateway by ARP is answered at once", async () => {
    // The kernel answers for what it would forward: like any node, this one has a default route.
    const socket = rtnetlink(node);
    socket.request("uplink", [newLink({ kind: "veth", name: "up0", peer: { name: "up1" } })]);
    const { index } = linkByName(socket, "up0")!;
    socket.request("uplink", [
      setLink({ index }, { up: true }),
      newRoute({ destination: parseCidr("0.0.0.0/0"), outputIndex: index }),
    ]);
    const pod = podOf(["10.244.0.5"]);
    await wiring.apply(pod.attachment, "fail");
    const other = podOf(["10.244.0.6"]);
    await wiring.apply(other.attachment, "fail");
    const child = Bun.spawnSync([
      "nsenter",
      `--net=${pod.attachment.netns}`,
      "ip",
      "neigh",
      "flush",
      "dev",
      "eth0",
      "nud",
      "all",
    ]);
    expect(child.exitCode).toBe(0);
    const begun = performance.now();
    expect(reaches(pod, other, "10.244.0.5", "10.244.0.6")).toBe(true);
    expect(performance.now() - begun).toBeLessThan(100);
  });
});

describe("begin", () => {
  test("makes the link that apply goes on from: packets pass, and no second link is asked for", async () => {
    const a = podOf(["10.0.0.1", "fd00::1"]), b = podOf(["10.0.0.2", "fd00::2"]);
    for (const { attachment } of [a, b]) wiring.begin(attachment);
    await Promise.all([a, b].map(({ attachment }) => wiring.apply(attachment, "fail")));
    expect(reaches(a, b, "10.0.0.1", "10.0.0.2")).toBe(true);
    expect(reaches(a, b, "fd00::1", "fd00::2")).toBe(true);
    expect((await wiring.observe(a.attachment))!.differences).toEqual([]);
    expect(traces().filter((line) => line.startsWith("link ")).length).toBe(2);
  });
  test("is taken back by remove, before the link is there as well as after", async () => {
    const pod = podOf(["10.0.0.1"]);
    wiring.begin(pod.attachment);
    await wiring.remove(pod.attachment.hostInterface);
    await wiring.flush();
    expect(traces()).toEqual([]);
    expect(podLinks(pod.namespace)).toEqual([]);
    await wiring.remove(pod.attachment.hostInterface);
  });
  test("what goes wrong in it is apply's to throw, and leaves nothing", async () => {
    const pod = podOf(["10.0.0.1"], { netns: "/nonexistent" });
    wiring.begin(pod.attachment);
    expect(wiring.apply(pod.attachment, "fail")).rejects.toThrow("wanted a network namespace");
    await wiring.flush();
    expect(traces()).toEqual([]);
  });
  test("right after the removal of the same attachment the new link takes the old one's place", async () => {
    const pod = podOf(["10.0.0.1"]);
    for (let i = 0; i < 3; i++) {
      wiring.begin(pod.attachment);
      await wiring.apply(pod.attachment, "fail");
      expect((await wiring.observe(pod.attachment))!.differences).toEqual([]);
      await wiring.remove(pod.attachment.hostInterface);
    }
  });
  test("fifty at once are all made", async () => {
    const pods = Array.from({ length: 50 }, (_, i) => podOf([`10.0.1.${i}`]));
    for (const { attachment } of pods) wiring.begin(attachment);
    await Promise.all(pods.map(({ attachment }) => wiring.apply(attachment, "fail")));
    expect(traces().filter((line) => line.startsWith("link ")).length).toBe(50);
  });
  test("closing waits for a link that is being made", async () => {
    const pod = podOf(["10.0.0.1"]);
    const own = new VethWiring({}, hostOf(kernel));
    own.begin(pod.attachment);
    await own[Symbol.asyncDispose]();
    expect(traces()).toEqual([`link ${pod.attachment.hostInterface}`]);
    expect(await wiring.collect(new Set())).toEqual([pod.attachment.hostInterface]);
  });
});

describe("apply refuses", () => {
  async function failure(attachment: Attachment): Promise<string> {
    try {
      await wiring.apply(attachment, "fail");
    } catch (error) {
      expect(traces().filter((line) => line.includes(attachment.hostInterface))).toEqual([]);
      return (error as Error).message;
    }
    throw new Error("it succeeded");
  }
  test("a missing namespace", async () => {
    const { attachment } = podOf(["10.0.0.1"], { netns: "/run/netns/no-such-namespace" });
    expect(await failure(attachment)).toBe(
      "attach eth0: found nothing at /run/netns/no-such-namespace, wanted a network namespace",
    );
  });
  test("a file that is no namespace", async () => {
    const { attachment } = podOf(["10.0.0.1"], { netns: "/etc/hostname" });
    expect(await failure(attachment)).toContain("found something else at /etc/hostname");
  });
  test("the namespace of the node itself", async () => {
    const { attachment } = podOf(["10.0.0.1"], { netns: namespacePath(node) });
    expect(await failure(attachment)).toContain("found the namespace of the host itself");
    expect(traces()).toEqual([]);
  });
  test("an interface name that the pod has already, and leaves that one alone", async () => {
    const pod = podOf(["10.0.0.1"]);
    rtnetlink(pod.namespace).request("make", [newLink({ kind: "veth", name: "eth0", peer: { name: "other" } })]);
    expect(await failure(pod.attachment)).toContain("found an interface eth0");
    expect(podLinks(pod.namespace).sort()).toEqual(["eth0", "other"]);
  });
  test("a second time for the same attachment, and leaves the first one alone", async () => {
    const a = podOf(["10.0.0.1"]), b = podOf(["10.0.0.2"]);
    await wiring.apply(a.attachment, "fail");
    await wiring.apply(b.attachment, "fail");
    expect(wiring.apply(a.attachment, "fail")).rejects.toThrow(
      `found a link ${a.attachment.hostInterface} on the host already`,
    );
    expect(reaches(a, b, "10.0.0.1", "10.0.0.2")).toBe(true);
  });
  test.each<[string, Partial<Attachment>, string]>([
    ["an MTU too small for IPv6", { mtu: 1000, addresses: [parseAddress("fd00::1")] }, "wanted at least 1280"],
    ["no address", { addresses: [] }, "found none"],
    ["a host interface that is not ours", { hostInterface: "eth0" }, "wanted mx"],
    ["a gateway of another family", {
      routes: [{ destination: parseCidr("10.0.0.0/8"), via: parseAddress("fd00::1") }],
    }, "family"],
  ])("%s", async (_title, change, text) => {
    expect(await failure({ ...podOf(["10.0.0.1"]).attachment, ...change })).toContain(text);
  });
});

describe("a failure half-way", () => {
  /** A door whose call number `failAt` fails; `after`: the kernel has done it, only the answer is lost. */
  function failingDoor(failAt: number, after: boolean): KernelDoor & { calls: number } {
    const step = <T>(operation: string, body: () => T): T => {
      const number = ++door.calls;
      if (number !== failAt) return body();
      if (after) body();
      throw new KernelError(operation, 105);
    };
    const wrap = (socket: NetlinkSocket): NetlinkSocket => ({
      portId: socket.portId,
      request: (operation, messages) => step(operation, () => socket.request(operation, messages)),
      attempt: (operation, messages) => step(operation, () => socket.attempt(operation, messages)),
      dump: (operation, message) => step(operation, () => socket.dump(operation, message)),
      transaction: (...args) => socket.transaction(...args),
      requestBehind: (operation, messages) => step(operation, () => socket.requestBehind(operation, messages)),
      dumpBehind: (operation, message) => step(operation, () => socket.dumpBehind(operation, message)),
      events: (signal) => socket.events(signal),
      [Symbol.dispose]: () => socket[Symbol.dispose](),
    });
    const door = {
      ...kernel,
      calls: 0,
      netlink: (protocol: number, options?: object) => step("open", () => wrap(kernel.netlink(protocol, options))),
      openNamespace: (path: string) => step("open namespace", () => kernel.openNamespace(path)),
      inNamespace: <T>(namespace: NetworkNamespace, body: () => T) => kernel.inNamespace(namespace, body),
      setSysctl: (path: string, value: string) => step("sysctl", () => kernel.setSysctl(path, value)),
    };
    return door;
  }

  test.each([false, true])("at any call leaves nothing, the answer lost after the deed: %j", async (after) => {
    const counting = failingDoor(Infinity, after);
    await new VethWiring({}, hostOf(counting))[Symbol.asyncDispose]();
    let failures = 0;
    for (let failAt = 1;; failAt++) {
      const pod = podOf(["10.244.0.5", "fd00::5"]);
      const armed = failingDoor(counting.calls + failAt, after);
      await using tried = new VethWiring({}, hostOf(armed));
      let error: unknown;
      try {
        await tried.apply(pod.attachment, "fail");
      } catch (caught) {
        error = caught;
      }
      if (error === undefined) {
        // Beyond the last call: everything was tried.
        expect(armed.calls).toBeLessThan(counting.calls + failAt);
        break;
      }
      failures++;
      expect(error).toBeInstanceOf(KernelError);
      expect({ failAt, traces: traces(), pod: podLinks(pod.namespace) }).toEqual({ failAt, traces: [], pod: [] });
    }
    expect(failures).toBeGreaterThan(7);
  });

  test("within the pod's burst leaves nothing", async () => {
    // The pod has a default route of its own: ours is refused after the addresses are in.
    const pod = podOf(["10.244.0.5", "fd00::5"]);
    const socket = rtnetlink(pod.namespace);
    socket.request("make", [newLink({ kind: "veth", name: "net1", peer: { name: "net2" } })]);
    const { index } = linkByName(socket, "net1")!;
    socket.request("make", [
      setLink({ index }, { up: true }),
      setLink({ name: "net2" }, { up: true }),
      newRoute({ destination: parseCidr("0.0.0.0/0"), outputIndex: index }),
    ]);
    expect(wiring.apply(pod.attachment, "fail")).rejects.toThrow("EEXIST");
    await wiring.flush();
    await until(() => traces().length === 0);
    expect(podLinks(pod.namespace).sort()).toEqual(["net1", "net2"]);
  });
});

async function until(condition: () => boolean, deadlineMs = 5_000): Promise<void> {
  const end = performance.now() + deadlineMs;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`not within ${deadlineMs} ms: ${condition}`);
    await Bun.sleep(2);
  }
}

describe("remove", () => {
  test("cuts the traffic before it returns and deletes the link behind", async () => {
    const a = podOf(["10.0.0.1", "fd00::1"]), b = podOf(["10.0.0.2", "fd00::2"]);
    await wiring.apply(a.attachment, "fail");
    await wiring.apply(b.attachment, "fail");
    await wiring.remove(a.attachment.hostInterface);
    expect(linkByName(rtnetlink(node), a.attachment.hostInterface)).toMatchObject({ up: false, group: DOOMED_GROUP });
    expect(traces().filter((line) => /10\.0\.0\.1|fd00::1$|fd00::1\//.test(line))).toEqual([]);
    expect(reaches(b, a, "10.0.0.2", "10.0.0.1", 50)).toBe(false);
    expect(reaches(a, b, "10.0.0.1", "10.0.0.2", 50)).toBe(false);
    const socket = rtnetlink(node);
    await until(() => linkByName(socket, a.attachment.hostInterface) === undefined);
    expect(podLinks(a.namespace)).toEqual([]);
  });
  test("may be repeated, and knows nothing of links that never were", async () => {
    const pod = podOf(["10.0.0.1"]);
    await wiring.apply(pod.attachment, "fail");
    for (let i = 0; i < 3; i++) await wiring.remove(pod.attachment.hostInterface);
    await wiring.flush();
    await wiring.remove(pod.attachment.hostInterface);
    await wiring.remove("mx00000000fff");
    expect(traces()).toEqual([]);
  });
  test("does not touch a link that is not ours by name", () => {
    expect(wiring.remove("eth0")).rejects.toThrow("wanted a name of ours");
  });
  test("the same attachment can be made again straight away", async () => {
    const pod = podOf(["10.0.0.1"]);
    for (let i = 0; i < 3; i++) {
      await wiring.apply(pod.attachment, "fail");
      await wiring.remove(pod.attachment.hostInterface);
    }
    await wiring.apply(pod.attachment, "fail");
    expect((await wiring.observe(pod.attachment))!.differences).toEqual([]);
  });
  test("the namespace gone first is fine", async () => {
    const pod = podOf(["10.0.0.1"]);
    await wiring.apply(pod.attachment, "fail");
    pod.namespace[Symbol.dispose]();
    const socket = rtnetlink(node);
    await until(() => linkByName(socket, pod.attachment.hostInterface) === undefined);
    await wiring.remove(pod.attachment.hostInterface);
    await wiring.flush();
  });
  test("does not hold up the event loop while the kernel deletes", async () => {
    const pods = Array.from({ length: 20 }, (_, i) => podOf([`10.0.1.${i + 1}`]));
    for (const { attachment } of pods) await wiring.apply(attachment, "fail");
    for (const { attachment } of pods) await wiring.remove(attachment.hostInterface);
    let turns = 0;
    const flushed = wiring.flush().then(() => true);
    while (!await Promise.race([flushed, new Promise<false>((resolve) => setImmediate(() => resolve(false)))])) turns++;
    expect(turns).toBeGreaterThan(20);
    expect(traces()).toEqual([]);
  });
});

test("50 pods made and removed at once leave nothing", async () => {
  const pods = Array.from({ length: 50 }, (_, i) => podOf([`10.0.2.${i + 1}`, `fd00::2:${i + 1}`]));
  await Promise.all(pods.map(({ attachment }) => wiring.apply(attachment, "fail")));
  expect(traces().filter((line) => line.startsWith("link"))).toHaveLength(50);
  expect(reaches(pods[0]!, pods[49]!, "10.0.2.1", "10.0.2.50")).toBe(true);
  expect(reaches(pods[49]!, pods[0]!, "fd00::2:50", "fd00::2:1")).toBe(true);
  await Promise.all(pods.map(({ attachment }) => wiring.remove(attachment.hostInterface)));
  await wiring.flush();
  expect(traces()).toEqual([]);
});

describe("observe", () => {
  test("a pod that was never made is undefined, one that was removed too", async () => {
    const pod = podOf(["10.0.0.1"]);
    expect(await wiring.observe(pod.attachment)).toBeUndefined();
    await wiring.apply(pod.attachment, "fail");
    await wiring.remove(pod.attachment.hostInterface);
    expect(await wiring.observe(pod.attachment)).toBeUndefined();
  });

  test("finds no difference right after apply", async () => {
    const pod = podOf(["10.0.0.1", "fd00::1"], { routes: [{ destination: parseCidr("10.0.0.0/8") }] });
    await wiring.apply(pod.attachment, "fail");
    const observed = (await wiring.observe(pod.attachment))!;
    expect(observed.differences).toEqual([]);
    expect(observed.addresses.map(formatCidr).sort()).toEqual(["10.0.0.1/32", "fd00::1/128"]);
  });

  const address = parseAddress("10.0.0.1");
  test.each<[string, "node" | "pod", (socket: NetlinkSocket, index: number) => void, string]>([
    [
      "the pod's address gone",
      "pod",
      (s, index) => s.request("x", [delAddress({ index, address, prefix: 32 })]),
      "found no address 10.0.0.1/32",
    ],
    [
      "an address more in the pod",
      "pod",
      (s, index) => s.request("x", [newAddress({ index, address: parseAddress("10.9.9.9"), prefix: 32 })]),
      "found address 10.9.9.9/32",
    ],
    [
      "the default route gone",
      "pod",
      (s) => s.request("x", [delRoute({ destination: parseCidr("0.0.0.0/0") })]),
      "found no route 0.0.0.0/0",
    ],
    [
      "another MAC address",
      "pod",
      (s, index) => s.request("x", [setLink({ index }, { hardwareAddress: "02:00:00:00:00:99" })]),
      "MAC address",
    ],
    ["another MTU", "pod", (s, index) => s.request("x", [setLink({ index }, { mtu: 1300 })]), "MTU: found 1300"],
    [
      "the pod's side down",
      "pod",
      (s, index) => s.request("x", [setLink({ index }, { up: false })]),
      "state: found down",
    ],
    ["the pod's side renamed", "pod", (s, index) => {
      s.request("x", [setLink({ index }, { up: false })]);
      s.request("x", [setLink({ index }, { name: "other" })]);
    }, "found no such interface"],
    [
      "the host's route gone",
      "node",
      (s, index) => s.request("x", [delRoute({ destination: hostCidr(address), outputIndex: index })]),
      "found no route to 10.0.0.1",
    ],
    [
      "the host's side down",
      "node",
      (s, index) => s.request("x", [setLink({ index }, { up: false })]),
      "state: found down",
    ],
    [
      "the gateway's address gone",
      "node",
      (s, index) => s.request("x", [delAddress({ index, address: parseAddress("fe80::1"), prefix: 64 })]),
      "found no gateway address fe80::1",
    ],
  ])("complains of %s, and adopt mends it", async (_title, where, change, text) => {
    const pod = podOf(["10.0.0.1", "fd00::1"]), other = podOf(["10.0.0.2", "fd00::2"]);
    await wiring.apply(pod.attachment, "fail");
    await wiring.apply(other.attachment, "fail");
    const socket = rtnetlink(where === "pod" ? pod.namespace : node);
    change(socket, linkByName(socket, where === "pod" ? "eth0" : pod.attachment.hostInterface)!.index);
    const { differences } = (await wiring.observe(pod.attachment))!;
    expect(differences.some((line) => line.includes(text))).toBe(true);
    await wiring.apply(pod.attachment, "adopt");
    expect((await wiring.observe(pod.attachment))!.differences).toEqual([]);
    expect(reaches(pod, other, "10.0.0.1", "10.0.0.2")).toBe(true);
    expect(reaches(other, pod, "fd00::2", "fd00::1")).toBe(true);
  });

  test("complains when the namespace is gone from its path", async () => {
    const pod = podOf(["10.0.0.1"]);
    await wiring.apply(pod.attachment, "fail");
    const { differences } = (await wiring.observe({ ...pod.attachment, netns: "/run/netns/no-such-namespace" }))!;
    expect(differences).toEqual(["eth0 of /run/netns/no-such-namespace: found no such interface, wanted it"]);
  });
});

describe("adopt", () => {
  test("makes what is not there", async () => {
    const pod = podOf(["10.0.0.1"]);
    await wiring.apply(pod.attachment, "adopt");
    expect((await wiring.observe(pod.attachment))!.differences).toEqual([]);
  });
  test("moves an attachment to other addresses and takes the old ones away", async () => {
    const pod = podOf(["10.0.0.1", "fd00::1"]);
    await wiring.apply(pod.attachment, "fail");
    const moved = { ...pod.attachment, addresses: [parseAddress("10.0.0.9") as Address] };
    await wiring.apply(moved, "adopt");
    expect((await wiring.observe(moved))!.differences).toEqual([]);
    expect(traces().filter((line) => line.startsWith("route"))).toEqual(expect.arrayContaining(["route 10.0.0.9/32"]));
    expect(traces().filter((line) => /10\.0\.0\.1\/|fd00::1\//.test(line))).toEqual([]);
  });
  test("a link that leads to another pod is replaced", async () => {
    const pod = podOf(["10.0.0.1"]), elsewhere = podOf(["10.0.0.1"]);
    await wiring.apply(pod.attachment, "fail");
    const moved = { ...pod.attachment, netns: elsewhere.attachment.netns };
    await wiring.apply(moved, "adopt");
    expect((await wiring.observe(moved))!.differences).toEqual([]);
    expect(podLinks(pod.namespace)).toEqual([]);
  });
  test("a link of that name that is not ours is left alone", async () => {
    const pod = podOf(["10.0.0.1"]);
    const socket = rtnetlink(node);
    socket.request("make", [newLink({ kind: "veth", name: pod.attachment.hostInterface, peer: { name: "foreign" } })]);
    expect(wiring.apply(pod.attachment, "adopt")).rejects.toThrow("on the host already");
    expect(linkByName(socket, "foreign")).toBeDefined();
    socket.request("tidy", [delLink({ name: "foreign" })]);
  });
});

describe("collect", () => {
  test("removes links of ours that nobody lives on, after a restart too, and no others", async () => {
    const [a, b, c] = [podOf(["10.0.0.1"]), podOf(["10.0.0.2"]), podOf(["10.0.0.3"])];
    for (const { attachment } of [a, b, c]) await wiring.apply(attachment, "fail");
    const socket = rtnetlink(node);
    socket.request("make", [newLink({ kind: "veth", name: "mxffffffffff0", peer: { name: "foreign" } })]);
    await wiring[Symbol.asyncDispose]();
    // Killed between the mark and the deletion.
    socket.request("doom", [setLink({ name: c.attachment.hostInterface }, { up: false, group: DOOMED_GROUP })]);

    await using restarted = new VethWiring({}, hostOf(kernel));
    const gone = await restarted.collect(new Set([a.attachment.hostInterface]));
    expect(gone).toEqual([b.attachment.hostInterface, c.attachment.hostInterface]);
    await restarted.flush();
    expect(traces().filter((line) => line.startsWith("link")).sort())
      .toEqual([`link ${a.attachment.hostInterface}`, "link foreign", "link mxffffffffff0"].sort());
    expect((await restarted.observe(a.attachment))!.differences).toEqual([]);
  });
});

test("disposing changes nothing in the kernel and waits for deletions under way", async () => {
  const a = podOf(["10.0.0.1"]), b = podOf(["10.0.0.2"]), c = podOf(["10.0.0.3"]);
  for (const { attachment } of [a, b, c]) await wiring.apply(attachment, "fail");
  await wiring.remove(c.attachment.hostInterface);
  await wiring[Symbol.asyncDispose]();
  expect(traces().filter((line) => line.startsWith("link"))).toHaveLength(2);
  expect(reaches(a, b, "10.0.0.1", "10.0.0.2")).toBe(true);
});
