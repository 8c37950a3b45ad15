/** The IPVS dataplane on a real kernel: what it writes, as ipvsadm and nft list it, and who answers whom. */
import { expect } from "bun:test";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import type { Report } from "../../src/sdk/dataplane.ts";
import { guestTest } from "./guest.ts";
import {
  backends,
  frontend,
  type ServiceNode,
  serviceNode,
  services,
  succeedsIn,
  Traffic,
  until,
} from "./service_node.ts";

const well = (report: Report): Report => {
  expect(report.problems).toEqual([]);
  expect(report.converged).toBe(true);
  return report;
};

/** `ipvsadm -Ln`, a line a service, without counters. */
const listed = (here: ServiceNode): readonly string[] => {
  const services: string[] = [];
  for (const line of runIn(here.namespace, "ipvsadm", "-Ln").trimEnd().split("\n").slice(3)) {
    const words = line.trim().split(/\s+/);
    if (words[0] === "->") services.push(`${services.pop()} → ${words.slice(1, 4).join(" ")}`);
    else services.push(words.join(" "));
  }
  return services.map((line) => {
    const [service, ...servers] = line.split(" → ");
    return [service, ...servers.sort()].join(" → ");
  }).sort();
};

const B = backends(["10.0.0.2:8080"]);
const B6 = backends(["[fd00::2]:8080"]);

guestTest("what is applied is what ipvsadm, ip and nft list, and a restart sends nothing", async () => {
  await using here = await serviceNode();
  const wanted = services([
    frontend("tcp 10.96.0.1:80", backends(["10.0.0.2:8080", "10.0.0.3:8080 draining"])),
    frontend("udp 10.96.0.1:53", backends(["10.0.0.2:5353"]), { affinitySeconds: 10_800 }),
    frontend("sctp 10.96.0.2:9", backends(["10.0.0.3:9"])),
    frontend("tcp [fd00:96::1]:80", B6),
    frontend("tcp 10.96.0.9:80", backends([])),
    frontend("tcp 198.51.100.7:443", B, { scope: "external", sources: ["192.0.2.0/25"], masqueradeOutside: true }),
    frontend("tcp :30080", B, { masqueradeOutside: true }),
  ]);
  expect(well(await here.dataplane.apply(wanted)).messages).toBeGreaterThan(40);
  expect(listed(here)).toEqual([
    "SCTP 10.96.0.2:9 rr (flag-3) → 10.0.0.3:9 Masq 1",
    "TCP 10.0.0.254:30080 rr (flag-3) → 10.0.0.2:8080 Masq 1",
    "TCP 10.96.0.1:80 rr (flag-3) → 10.0.0.2:8080 Masq 1 → 10.0.0.3:8080 Masq 0",
    "TCP 192.0.2.254:30080 rr (flag-3) → 10.0.0.2:8080 Masq 1",
    "TCP 198.51.100.7:443 rr (flag-3) → 10.0.0.2:8080 Masq 1",
    "TCP [fd00:96::1]:80 rr (flag-3) → [fd00::2]:8080 Masq 1",
    "UDP 10.96.0.1:53 rr (flag-3) persistent 10800 → 10.0.0.2:5353 Masq 1",
  ]);
  const addresses = runIn(here.namespace, "ip", "-br", "addr", "show", "dev", "manx-ipvs0").trim().split(/\s+/).slice(2)
    .sort();
  expect(addresses).toEqual([
    "10.96.0.1/32",
    "10.96.0.2/32",
    "10.96.0.9/32",
    "198.51.100.7/32",
    "fd00:96::1/128",
  ]);
  expect(runIn(here.namespace, "nft", "list", "table", "inet", "manx-ipvs")).toContain(
    "10.96.0.1 . tcp . 80 : goto serve",
  );
  expect(well(await here.dataplane.apply(wanted)).messages).toBe(0);
  expect(well(await here.dataplane.resync()).messages).toBe(0);
  const again = await here.reopen();
  expect(well(await again.apply(wanted)).messages).toBe(0);

  // One service changed is a handful of messages, and all of it goes again.
  const fewer = services([frontend("tcp 10.96.0.1:80", backends(["10.0.0.2:8080"]))]);
  well(await again.apply(fewer));
  // The server that is no longer wanted had no connection: it goes when somebody has looked.
  await until(() => listed(here).join() === "TCP 10.96.0.1:80 rr (flag-3) → 10.0.0.2:8080 Masq 1");
  expect(well(await again.resync()).messages).toBe(0);
  expect(well(await again.sweep()).messages).toBeGreaterThan(2);
  expect(runIn(here.namespace, "nft", "list", "ruleset")).toBe("");
  expect(runIn(here.namespace, "ipvsadm", "-S", "-n")).toBe("");
  expect(runIn(here.namespace, "ip", "-br", "link")).not.toContain("manx-ipvs0");
  expect(well(await again.sweep()).messages).toBe(0);
});

guestTest(
  "pods, the node and the outside reach backends through a service, and are seen by their own address",
  async () => {
    await using here = await serviceNode();
    using traffic = new Traffic(here);
    traffic.listen("b", "tcp", "10.0.0.2", 8080);
    traffic.listen("b", "tcp", "fd00::2", 8080);
    traffic.listen("b", "udp", "10.0.0.2", 5353);
    traffic.listen("b", "udp", "fd00::2", 5353);
    well(
      await here.dataplane.apply(services([
        frontend("tcp 10.96.0.1:80", B),
        frontend("tcp [fd00:96::1]:80", B6),
        frontend("udp 10.96.0.1:53", backends(["10.0.0.2:5353"])),
        frontend("udp [fd00:96::1]:53", backends(["[fd00::2]:5353"])),
        frontend("tcp :30080", B, { masqueradeOutside: true }),
        frontend("tcp 10.96.0.9:80", backends([])),
        frontend("tcp 10.96.0.10:80", backends([], "drop")),
        frontend("udp 10.96.0.9:53", backends([])),
      ])),
    );
    const seen = (from: string, protocol: "tcp" | "udp", to: string, port: number) =>
      `${from} ${protocol} ${to}:${port} = ${traffic.reach(from, protocol, to, port)}`;
    expect([
      seen("a", "tcp", "10.96.0.1", 80),
      seen("a", "tcp", "fd00:96::1", 80),
      seen("a", "udp", "10.96.0.1", 53),
      seen("a", "udp", "fd00:96::1", 53),
      seen("out", "tcp", "10.96.0.1", 80),
      seen("out", "tcp", "192.0.2.254", 30080),
      seen("a", "tcp", "192.0.2.254", 30080),
      seen("node", "tcp", "10.96.0.1", 80),
      seen("node", "tcp", "fd00:96::1", 80),
      seen("node", "udp", "10.96.0.1", 53),
      // A pod that meets itself.
      seen("b", "tcp", "10.96.0.1", 80),
      seen("b", "tcp", "fd00:96::1", 80),
      // No backend: told so, or not.
      seen("a", "tcp", "10.96.0.9", 80),
      seen("node", "tcp", "10.96.0.9", 80),
      seen("a", "udp", "10.96.0.9", 53),
      seen("a", "tcp", "10.96.0.10", 80),
      // Nothing of the node answers on a service's address.
      seen("a", "tcp", "10.96.0.1", 22),
    ]).toEqual([
      "a tcp 10.96.0.1:80 = b saw 10.0.0.1",
      "a tcp fd00:96::1:80 = b saw fd00::1",
      "a udp 10.96.0.1:53 = b saw 10.0.0.1",
      "a udp fd00:96::1:53 = b saw fd00::1",
      "out tcp 10.96.0.1:80 = b saw 192.0.2.1",
      "out tcp 192.0.2.254:30080 = b saw 10.0.0.254",
      "a tcp 192.0.2.254:30080 = b saw 10.0.0.1",
      "node tcp 10.96.0.1:80 = b saw 10.0.0.254",
      "node tcp fd00:96::1:80 = b saw fd00::fe",
      "node udp 10.96.0.1:53 = b saw 10.0.0.254",
      "b tcp 10.96.0.1:80 = b saw 10.0.0.254",
      "b tcp fd00:96::1:80 = b saw fd00::fe",
      "a tcp 10.96.0.9:80 = refused",
      "node tcp 10.96.0.9:80 = refused",
      "a udp 10.96.0.9:53 = refused",
      "a tcp 10.96.0.10:80 = silent",
      "a tcp 10.96.0.1:22 = refused",
    ]);
  },
);

guestTest(
  "a removed server keeps its TCP connections until they are gone, a datagram service's goes at once",
  async () => {
    await using here = await serviceNode();
    using traffic = new Traffic(here);
    for (const name of ["b", "c"]) {
      const address = name === "b" ? "10.0.0.2" : "10.0.0.3";
      traffic.listen(name, "tcp", address, 8080);
      traffic.listen(name, "udp", address, 5353);
    }
    const both = (tcp: readonly string[], udp: readonly string[]) =>
      services([frontend("tcp 10.96.0.1:80", backends(tcp)), frontend("udp 10.96.0.1:53", backends(udp))]);
    well(await here.dataplane.apply(both(["10.0.0.2:8080"], ["10.0.0.2:5353"])));
    const held = traffic.hold("a", "10.96.0.1", 80);
    expect([held.server, held.passes()]).toEqual(["b", true]);
    expect(traffic.reach("a", "udp", "10.96.0.1", 53)).toBe("b saw 10.0.0.1");

    well(await here.dataplane.apply(both(["10.0.0.3:8080"], ["10.0.0.3:5353"])));
    expect(listed(here)).toEqual([
      "TCP 10.96.0.1:80 rr (flag-3) → 10.0.0.2:8080 Masq 0 → 10.0.0.3:8080 Masq 1",
      "UDP 10.96.0.1:53 rr (flag-3) → 10.0.0.3:5353 Masq 1",
    ]);
    expect(held.passes()).toBe(true);
    expect(traffic.reach("a", "tcp", "10.96.0.1", 80)).toBe("c saw 10.0.0.1");
    // Retired before the restart, retired after it, and nothing is sent for that.
    const again = await here.reopen();
    expect(well(await again.apply(both(["10.0.0.3:8080"], ["10.0.0.3:5353"]))).messages).toBe(0);
    expect(held.passes()).toBe(true);
    held.reset();
    await until(() => listed(here)[0] === "TCP 10.96.0.1:80 rr (flag-3) → 10.0.0.3:8080 Masq 1", 60_000);
  },
);

guestTest("a client stays with its server where the service asks for it", async () => {
  await using here = await serviceNode();
  using traffic = new Traffic(here);
  traffic.listen("b", "tcp", "10.0.0.2", 8080);
  traffic.listen("c", "tcp", "10.0.0.3", 8080);
  const list = backends(["10.0.0.2:8080", "10.0.0.3:8080"]);
  well(
    await here.dataplane.apply(services([
      frontend("tcp 10.96.0.1:80", list),
      frontend("tcp 10.96.0.2:80", list, { affinitySeconds: 60 }),
    ])),
  );
  const tries = (to: string) => new Set(Array.from({ length: 6 }, () => traffic.reach("a", "tcp", to, 80)));
  expect([...tries("10.96.0.1")].sort()).toEqual(["b saw 10.0.0.1", "c saw 10.0.0.1"]);
  expect(tries("10.96.0.2").size).toBe(1);
});

guestTest("traffic from outside meets its own servers and only from where it may come", async () => {
  await using here = await serviceNode();
  using traffic = new Traffic(here);
  traffic.listen("b", "tcp", "10.0.0.2", 8080);
  traffic.listen("c", "tcp", "10.0.0.3", 8080);
  const c = backends(["10.0.0.3:8080"]);
  const wanted = services([
    frontend("tcp :30080", B, { outside: c }),
    frontend("tcp :30081", B, { outside: backends([], "drop") }),
    frontend("tcp 198.51.100.1:80", B, { scope: "external", outside: c }),
    frontend("tcp 198.51.100.2:80", B, { scope: "external", sources: ["192.0.2.0/31"] }),
    frontend("tcp 198.51.100.3:80", B, { scope: "external", sources: ["203.0.113.0/24", "2001:db8::/32"] }),
  ]);
  well(await here.dataplane.apply(wanted));
  const seen = (from: string, to: string, port = 80) =>
    `${from} ${to}:${port} = ${traffic.reach(from, "tcp", to, port)}`;
  expect([
    seen("out", "192.0.2.254", 30080),
    seen("a", "192.0.2.254", 30080),
    seen("node", "192.0.2.254", 30080),
    seen("out", "192.0.2.254", 30081),
    seen("a", "192.0.2.254", 30081),
    seen("out", "198.51.100.1"),
    seen("a", "198.51.100.1"),
    seen("out", "198.51.100.2"),
    seen("out", "198.51.100.3"),
    seen("a", "198.51.100.2"),
  ]).toEqual([
    "out 192.0.2.254:30080 = c saw 192.0.2.1",
    "a 192.0.2.254:30080 = b saw 10.0.0.1",
    "node 192.0.2.254:30080 = b saw 192.0.2.254",
    "out 192.0.2.254:30081 = silent",
    "a 192.0.2.254:30081 = b saw 10.0.0.1",
    "out 198.51.100.1:80 = c saw 192.0.2.1",
    "a 198.51.100.1:80 = b saw 10.0.0.1",
    "out 198.51.100.2:80 = b saw 192.0.2.1",
    "out 198.51.100.3:80 = silent",
    "a 198.51.100.2:80 = silent",
  ]);
  expect(well(await here.dataplane.resync()).messages).toBe(0);
  const again = await here.reopen();
  expect(well(await again.apply(wanted)).messages).toBe(0);
});

guestTest("what others do to ours is noticed and mended, what is theirs is left alone", async () => {
  await using here = await serviceNode({ resyncSeconds: 1 });
  const theirs = ["-A", "-t", "10.96.0.77:80", "-s", "lc"];
  runIn(here.namespace, "ipvsadm", ...theirs);
  runIn(here.namespace, "ipvsadm", "-a", "-t", "10.96.0.77:80", "-r", "10.0.0.9:80", "-m");
  runIn(here.namespace, "nft", "add", "table", "inet", "theirs");
  const wanted = services([frontend("tcp 10.96.0.1:80", B), frontend("tcp 10.96.0.77:80", B)]);
  const report = await here.dataplane.apply(wanted);
  expect(report.converged).toBe(false);
  expect(report.problems).toEqual([
    "IPVS service tcp 10.96.0.77:80: found one that is somebody else's, wanted ours; left alone",
  ]);
  const before = ["TCP 10.96.0.1:80 rr (flag-3) → 10.0.0.2:8080 Masq 1", "TCP 10.96.0.77:80 lc → 10.0.0.9:80 Masq 1"];
  expect(listed(here)).toEqual(before);

  const stop = new AbortController();
  const reasons: string[] = [];
  const drift = (async () => {
    for await (const reason of here.dataplane.drift(stop.signal)) {
      reasons.push(reason);
      await here.dataplane.resync();
    }
  })();
  const mends = async (what: string, ...argv: readonly string[]) => {
    reasons.length = 0;
    runIn(here.namespace, ...argv);
    await until(() => reasons.some((reason) => reason.includes(what)));
    await until(() => listed(here).join() === before.join());
  };
  await mends("is gone", "ipvsadm", "-D", "-t", "10.96.0.1:80");
  await mends("servers of", "ipvsadm", "-a", "-t", "10.96.0.1:80", "-r", "10.0.0.66:80", "-m", "-w", "0");
  await mends("was changed", "ipvsadm", "-E", "-t", "10.96.0.1:80", "-s", "wrr", "-b", "flag-3");
  await mends("address 10.96.0.1", "ip", "addr", "del", "10.96.0.1/32", "dev", "manx-ipvs0");
  await mends("manx-ipvs", "nft", "delete", "table", "inet", "manx-ipvs");
  expect(runIn(here.namespace, "nft", "list", "table", "inet", "manx-ipvs")).toContain("10.96.0.1 . tcp . 80");
  expect(runIn(here.namespace, "ip", "-br", "addr", "show", "dev", "manx-ipvs0")).toContain("10.96.0.1/32");
  stop.abort();
  await drift;
  await here.dataplane.sweep();
  expect(listed(here)).toEqual(["TCP 10.96.0.77:80 lc → 10.0.0.9:80 Masq 1"]);
  expect(runIn(here.namespace, "nft", "list", "tables").trim()).toBe("table inet theirs");
});

guestTest("node ports follow the addresses of the node, services the services", async () => {
  await using here = await serviceNode();
  const nodePort = [frontend("tcp :30080", B)];
  well(await here.dataplane.apply(services(nodePort, { nodePortAddresses: ["192.0.2.0/24", "198.51.100.0/24"] })));
  const ports = () => listed(here).map((line) => line.split(" ")[1]);
  expect(ports()).toEqual(["192.0.2.254:30080"]);
  const stop = new AbortController();
  const changed = here.dataplane.drift(stop.signal)[Symbol.asyncIterator]().next();
  await until(() => (runIn(here.namespace, "ip", "addr", "replace", "198.51.100.9/32", "dev", "eth0"), true));
  expect((await changed).value).toContain("address 198.51.100.9");
  stop.abort();
  well(await here.dataplane.resync());
  expect(ports()).toEqual(["192.0.2.254:30080", "198.51.100.9:30080"]);
  // An address that is the node's own stays where it is.
  well(await here.dataplane.apply(services([frontend("tcp 198.51.100.9:80", B, { scope: "external" })])));
  expect(ports()).toEqual(["198.51.100.9:80"]);
  expect(runIn(here.namespace, "ip", "-br", "addr", "show", "dev", "eth0")).toContain("198.51.100.9/32");
  // Switched off: nothing is left, and nobody else's is touched.
  const { services: _, ...off } = services([]);
  well(await here.dataplane.apply(off));
  expect(ports()).toEqual([]);
});

guestTest("neighbours get no answer for a service's address", async () => {
  await using here = await serviceNode();
  well(await here.dataplane.apply(services([frontend("tcp 10.96.0.1:80", B)])));
  runIn(here.places.out!, "ip", "route", "add", "10.96.0.1/32", "dev", "eth0", "src", "192.0.2.1");
  const ping = (...argv: readonly string[]) => succeedsIn(here.places.out!, ...argv);
  // Through the node's own address it is reached; asked for on the link it is not there.
  expect(ping("ping", "-c1", "-W1", "10.96.0.1")).toBe(false);
  runIn(here.places.out!, "ip", "route", "replace", "10.96.0.1/32", "via", "192.0.2.254", "dev", "eth0");
  expect(ping("ping", "-c1", "-W2", "10.96.0.1")).toBe(true);
});
