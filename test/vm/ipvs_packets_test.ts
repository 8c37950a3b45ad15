/** The IPVS dataplane on a real kernel: what it writes, as ipvsadm and nft list it, and who answers whom. */
import { expect } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import ipvs from "../../dataplanes/ipvs/mod.ts";
import { errnoOf, KernelError } from "../../src/kernel/errors.ts";
import { NETLINK_GENERIC } from "../../src/kernel/netlink/generic.ts";
import { runIn } from "../../src/kernel/testdata/tool_fixture.ts";
import type { Report } from "../../src/sdk/dataplane.ts";
import type { Host } from "../../src/sdk/plugin.ts";
import { Conversation } from "../contract/conversation.ts";
import { guestTest } from "./guest.ts";
import {
  backends,
  bareNode,
  frontend,
  PLACES,
  type ServiceNode,
  serviceNode,
  services,
  SILENCE_MS,
  succeedsIn,
  testHost,
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
  "a removed server keeps its TCP connections until they are gone, a datagram service's goes at once",
  async () => {
    await using here = await serviceNode();
    using talk = new Conversation(SILENCE_MS);
    for (const name of ["b", "c"] as const) {
      const { v4 } = PLACES[name];
      talk.serve(name, here.places[name]!, `tcp ${v4}:8080`, `udp ${v4}:5353`);
    }
    const client = here.places.a!;
    const both = (tcp: readonly string[], udp: readonly string[]) =>
      services([frontend("tcp 10.96.0.1:80", backends(tcp)), frontend("udp 10.96.0.1:53", backends(udp))]);
    well(await here.dataplane.apply(both(["10.0.0.2:8080"], ["10.0.0.2:5353"])));
    const held = talk.hold(client, "10.96.0.1:80");
    expect([held.server, held.passes()]).toEqual(["b", true]);
    expect(talk.ask(client, "udp 10.96.0.1:53")).toBe("b saw 10.0.0.1");

    well(await here.dataplane.apply(both(["10.0.0.3:8080"], ["10.0.0.3:5353"])));
    expect(listed(here)).toEqual([
      "TCP 10.96.0.1:80 rr (flag-3) → 10.0.0.2:8080 Masq 0 → 10.0.0.3:8080 Masq 1",
      "UDP 10.96.0.1:53 rr (flag-3) → 10.0.0.3:5353 Masq 1",
    ]);
    expect(held.passes()).toBe(true);
    expect(talk.ask(client, "tcp 10.96.0.1:80")).toBe("c saw 10.0.0.1");
    // Retired before the restart, retired after it, and nothing is sent for that.
    const again = await here.reopen();
    expect(well(await again.apply(both(["10.0.0.3:8080"], ["10.0.0.3:5353"]))).messages).toBe(0);
    expect(held.passes()).toBe(true);
    held.reset();
    await until(() => listed(here)[0] === "TCP 10.96.0.1:80 rr (flag-3) → 10.0.0.3:8080 Masq 1", 60_000);
  },
);

guestTest("a service that is somebody else's is named and left alone, and ours once it is gone", async () => {
  await using here = await serviceNode({ resyncSeconds: 1 });
  runIn(here.namespace, "ipvsadm", "-A", "-t", "10.96.0.77:80", "-s", "lc");
  runIn(here.namespace, "ipvsadm", "-a", "-t", "10.96.0.77:80", "-r", "10.0.0.9:80", "-m");
  const wanted = services([frontend("tcp 10.96.0.1:80", B), frontend("tcp 10.96.0.77:80", B)]);
  const report = await here.dataplane.apply(wanted);
  expect(report.converged).toBe(false);
  expect(report.problems).toEqual([
    "IPVS service tcp 10.96.0.77:80: found one that is somebody else's, wanted ours; left alone",
  ]);
  expect(await here.dataplane.diff!()).toEqual([
    "+ service tcp 10.96.0.77:80 rr with 1 server (somebody else has it)",
  ]);
  expect(listed(here)).toEqual([
    "TCP 10.96.0.1:80 rr (flag-3) → 10.0.0.2:8080 Masq 1",
    "TCP 10.96.0.77:80 lc → 10.0.0.9:80 Masq 1",
  ]);
  const stop = new AbortController();
  const gone = here.dataplane.drift(stop.signal)[Symbol.asyncIterator]().next();
  runIn(here.namespace, "ipvsadm", "-D", "-t", "10.96.0.77:80");
  expect((await gone).value).toContain("somebody else's service is gone");
  stop.abort();
  well(await here.dataplane.resync());
  expect(listed(here)[1]).toBe("TCP 10.96.0.77:80 rr (flag-3) → 10.0.0.2:8080 Masq 1");
});

guestTest("many addresses are spread over links, and a link that somebody deleted comes back", async () => {
  await using here = await serviceNode();
  const wanted = services(
    Array.from({ length: 600 }, (_, i) => frontend(`tcp 10.96.${i >> 8}.${i & 255}:80`, backends([]))),
  );
  well(await here.dataplane.apply(wanted));
  const counts = () =>
    runIn(here.namespace, "ip", "-br", "address").trimEnd().split("\n").map((line) => line.trim().split(/\s+/))
      .filter(([name]) => name!.startsWith("manx-ipvs")).map(([name, , ...addresses]) => `${name} ${addresses.length}`)
      .sort();
  expect(counts()).toEqual(["manx-ipvs0 512", "manx-ipvs1 88"]);
  const again = await here.reopen();
  expect(well(await again.apply(wanted)).messages).toBe(0);
  const stop = new AbortController();
  const gone = again.drift(stop.signal)[Symbol.asyncIterator]().next();
  runIn(here.namespace, "ip", "link", "del", "manx-ipvs0");
  expect((await gone).done).toBe(false);
  stop.abort();
  expect((await again.diff!())[0]).toBe("+ address 10.96.0.0/32");
  well(await again.resync());
  expect(counts()).toEqual(["manx-ipvs0 512", "manx-ipvs1 88"]);
  expect(await again.diff!()).toEqual([]);
  well(await again.sweep());
  expect(counts()).toEqual([]);
});

guestTest("a link of such a name that is somebody else's is named and left alone", async () => {
  await using here = await serviceNode();
  runIn(here.namespace, "ip", "link", "add", "manx-ipvs0", "type", "bridge");
  const report = await here.dataplane.apply(services([frontend("tcp 10.96.0.1:80", B)]));
  expect(report).toMatchObject({
    converged: false,
    problems: ["create link manx-ipvs0: found one of kind bridge, wanted none or dummy; it is left alone"],
  });
  expect(runIn(here.namespace, "ip", "-d", "-br", "link", "show", "manx-ipvs0")).toContain("DOWN");
  runIn(here.namespace, "ip", "link", "del", "manx-ipvs0");
  well(await here.dataplane.apply(services([frontend("tcp 10.96.0.1:80", B)])));
});

guestTest("IPVS that comes later is used from the next try on", async () => {
  using namespace = bareNode("late");
  const host = testHost(namespace), { kernel } = host;
  let isThere = false;
  const netlink: Host["kernel"]["netlink"] = (protocol, options) => {
    const socket = kernel.netlink(protocol, options), request = socket.request.bind(socket);
    socket.request = (operation, messages) => {
      if (protocol === NETLINK_GENERIC && !isThere) throw new KernelError(operation, errnoOf("ENOENT")!);
      return request(operation, messages);
    };
    return socket;
  };
  Object.assign(host, { kernel: { ...kernel, netlink } });
  await using dataplane = await ipvs.open(ipvs.parseConfig(undefined), host, new AbortController().signal);
  const wanted = services([frontend("tcp 10.96.0.1:80", B)]);
  expect(await dataplane.apply(wanted)).toMatchObject({
    converged: false,
    problems: ["probe IPVS: found no generic netlink family IPVS, wanted a kernel with the module ip_vs"],
  });
  expect(runIn(namespace, "ip", "-br", "address", "show", "manx-ipvs0")).toContain("10.96.0.1/32");
  isThere = true;
  well(await dataplane.apply(wanted));
  expect(runIn(namespace, "ipvsadm", "-S", "-n")).toContain("-a -t 10.96.0.1:80 -r 10.0.0.2:8080 -m -w 1");
  expect(await dataplane.diff!()).toEqual([]);
});

guestTest("a kernel without the scheduler is named, and the service made when it has it", async () => {
  await using here = await serviceNode({ scheduler: "mh" });
  const wanted = services([frontend("tcp 10.96.0.1:80", B)]);
  const loader = "/proc/sys/kernel/modprobe", before = readFileSync(loader, "utf8");
  writeFileSync(loader, "/bin/false");
  try {
    expect(await here.dataplane.apply(wanted)).toMatchObject({
      converged: false,
      problems: [
        "make IPVS service tcp 10.96.0.1:80: found a kernel without the scheduler mh, wanted the module ip_vs_mh",
      ],
    });
  } finally {
    writeFileSync(loader, before);
  }
  well(await here.dataplane.apply(wanted));
  // Of `mh` and `sh` ipvsadm knows the names of two flags, and says nothing of the third.
  expect(listed(here)).toEqual(["TCP 10.96.0.1:80 mh () → 10.0.0.2:8080 Masq 1"]);
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
