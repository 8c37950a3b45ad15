/** For tests: a node in a namespace of its own with two pods and the outside, and whether packets get from one to another. */
import { expect } from "bun:test";
import { type Address, addressFromBytes, parseAddress } from "../../src/model/address.ts";
import { errnoOf } from "../../src/kernel/errors.ts";
import { createNamespace, inNamespace, namespacePath } from "../../src/kernel/netns.ts";
import {
  AF,
  check,
  close,
  connect,
  Errno,
  getsockname,
  getsockoptInt,
  POLL,
  poll,
  SO,
  SOCK,
  socket,
  SOL,
} from "../../src/kernel/libc.ts";
import { inetSockaddr } from "../../src/kernel/sockaddr.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import type { Dataplane } from "../../src/sdk/dataplane.ts";
import type { NetworkNamespace } from "../../src/sdk/kernel_door.ts";

const REFUSED = errnoOf("ECONNREFUSED")!;
/** A dropped SYN is answered by nothing; an answer on a veth takes microseconds. */
const SILENCE_MS = 120;
/** Of a hundred at once, beside other tests. */
const SILENCE_OF_ALL_MS = 250;

export interface Node extends AsyncDisposable {
  readonly node: NetworkNamespace;
  readonly dataplane: Dataplane;
  readonly places: Readonly<Record<string, NetworkNamespace>>;
}

export const PLACES: Readonly<Record<string, { readonly link: string; readonly v4: string; readonly v6: string }>> = {
  a: { link: "mxa", v4: "10.0.0.1", v6: "fd00::1" },
  b: { link: "mxb", v4: "10.0.0.2", v6: "fd00::2" },
  out: { link: "eth0", v4: "192.0.2.1", v6: "2001:db8::1" },
};
export const NODE = { v4: "10.0.0.254", v6: "fd00::fe" };

/** Without duplicate address detection IPv6 works at once. */
const quickV6 = (place: NetworkNamespace): void =>
  void runIn(
    place,
    "sh",
    "-c",
    "for scope in all default; do echo 0 > /proc/sys/net/ipv6/conf/$scope/accept_dad; done",
  );

/** `open`: the dataplane, in the node's namespace. */
export async function node(open: (namespace: NetworkNamespace) => Promise<Dataplane>): Promise<Node> {
  const host = createNamespace("node");
  runIn(
    host,
    "sh",
    "-c",
    "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; ip link set lo up",
  );
  quickV6(host);
  const places: Record<string, NetworkNamespace> = {};
  for (const [name, { link, v4, v6 }] of Object.entries(PLACES)) {
    const place = places[name] = createNamespace(name);
    quickV6(place);
    runIn(host, "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespacePath(place));
    runIn(
      host,
      "sh",
      "-c",
      `
      ip link set ${link} up
      ip addr add ${NODE.v4}/32 dev ${link}; ip -6 addr add ${NODE.v6}/128 dev ${link} nodad
      ip route add ${v4} dev ${link}; ip -6 route add ${v6} dev ${link}`,
    );
    runIn(
      place,
      "sh",
      "-c",
      `
      ip link set lo up; ip link set eth0 up
      ip addr add ${v4}/32 dev eth0; ip -6 addr add ${v6}/128 dev eth0 nodad
      ip route add ${NODE.v4} dev eth0; ip route add default via ${NODE.v4} dev eth0
      ip -6 route add ${NODE.v6} dev eth0; ip -6 route add default via ${NODE.v6} dev eth0`,
    );
  }
  const dataplane = await open(host);
  return {
    node: host,
    dataplane,
    places,
    async [Symbol.asyncDispose]() {
      await dataplane[Symbol.asyncDispose]();
      for (const place of [...Object.values(places), host]) place[Symbol.dispose]();
    },
  };
}

/** Whether a SYN is answered: by a listener, or by the reset of a port where nobody listens. */
export function reaches(from: NetworkNamespace, address: string, port: number): boolean {
  const family = address.includes(":") ? AF.INET6 : AF.INET;
  const fd = inNamespace(
    from,
    () => check("open socket", socket(family, SOCK.STREAM | SOCK.NONBLOCK | SOCK.CLOEXEC, 0)),
  );
  try {
    const returned = connect(fd, inetSockaddr({ address: parseAddress(address), port }));
    if (returned === -REFUSED || returned === 0) return true;
    if (returned !== -Errno.EINPROGRESS) check(`connect to ${address}`, returned);
    poll([{ fd, events: POLL.OUT }], SILENCE_MS);
    const failure = getsockoptInt(fd, SOL.SOCKET, SO.ERROR);
    const [events] = poll([{ fd, events: POLL.OUT }], 0);
    return failure === REFUSED || failure === 0 && events !== 0;
  } finally {
    close(fd);
  }
}

export interface Attempt {
  readonly from: NetworkNamespace;
  readonly address: string;
  readonly port: number;
}

/** As `reaches`, for many at once; with the address and port that each was sent from. */
export function reachesAll(
  attempts: readonly Attempt[],
): readonly { readonly answered: boolean; readonly source: Address; readonly sourcePort: number }[] {
  const open = attempts.map(({ from, address, port }) => {
    const family = address.includes(":") ? AF.INET6 : AF.INET;
    const fd = inNamespace(
      from,
      () => check("open socket", socket(family, SOCK.STREAM | SOCK.NONBLOCK | SOCK.CLOEXEC, 0)),
    );
    const returned = connect(fd, inetSockaddr({ address: parseAddress(address), port }));
    const name = getsockname(fd);
    const source = addressFromBytes(family === AF.INET ? name.slice(4, 8) : name.slice(8, 24));
    return { fd, returned, source, sourcePort: name[2]! << 8 | name[3]! };
  });
  const untilMs = performance.now() + SILENCE_OF_ALL_MS;
  const waiting = () => open.filter(({ fd, returned }) => returned === -Errno.EINPROGRESS && !isAnswered(fd));
  for (let left = waiting(); left.length > 0 && performance.now() < untilMs; left = waiting()) {
    poll(left.map(({ fd }) => ({ fd, events: POLL.OUT })), untilMs - performance.now());
  }
  return open.map(({ fd, returned, source, sourcePort }) => {
    // An error is told once: who asked for it above was told nothing, because `isAnswered` only looks.
    const answered = returned === 0 || returned === -REFUSED || returned === -Errno.EINPROGRESS && isAnswered(fd);
    close(fd);
    return { answered, source, sourcePort };
  });
}

const isAnswered = (fd: number): boolean => poll([{ fd, events: POLL.OUT }], 0)[0] !== 0;

/** Lines `a > b 80` with `= yes` or `= no`; v6 where the line ends in `v6`. */
export function checkReach(here: Node, lines: string): void {
  const wanted = lines.trim().split("\n").map((line) => line.trim());
  const found = wanted.map((line) => {
    const [path] = line.split(" = ");
    const [from, , to, port, family = "v4"] = path!.split(" ");
    const target = to === "node" ? NODE : PLACES[to!]!;
    const source = from === "node" ? here.node : here.places[from!]!;
    return `${path} = ${reaches(source, target[family as "v4" | "v6"], Number(port)) ? "yes" : "no"}`;
  });
  expect(found).toEqual(wanted);
}
