/**
 * Where every dataplane for services sends packets, by its own tracer: transcripts, walked in rendered rules. Call
 * `dataplaneServiceVerdicts` in the dataplane's `services_test.ts`.
 */
import { expect, test } from "bun:test";
import { type Address, formatAddress } from "../../src/model/address.ts";
import type { DesiredState } from "../../src/model/desired.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import type { ServiceState } from "../../src/model/services.ts";
import { random } from "../../src/model/testdata/random_lists.ts";
import { endpoint, services, someServices } from "../../src/model/testdata/services.ts";
import { state, workload } from "../../src/model/testdata/small_states.ts";

/** The first packet of a flow, as it comes. */
export interface FirstPacket {
  readonly source: Address;
  readonly destination: Address;
  readonly protocol: number;
  readonly sourcePort: number;
  readonly destinationPort: number;
  readonly state: "new";
}

/** What is true beside the packet. `Memory`: how the dataplane's tracer keeps clients that are remembered. */
export interface Way<Memory> {
  /** Which of its backends chance gives; absent: the first. */
  readonly picks?: "first" | "last";
  /** The destination is an address of the node. */
  readonly isToNode?: boolean;
  readonly memory?: Memory;
}

export type Fate = "as it is" | "reset" | "unreachable" | "drop" | {
  readonly address: Address;
  readonly port: number;
  readonly masqueraded: boolean;
};

export interface RenderedServices<Memory> {
  print(): string;
  /** `inInterface` absent: a process of the node sends it. */
  fate(packet: FirstPacket, inInterface: string | undefined, way: Way<Memory>): Fate;
  /** What becomes of a forwarded packet, translated or not, when it leaves. */
  leave(packet: FirstPacket, at: LeavingPacket): { readonly masqueraded: boolean; readonly mark: number };
}

export interface LeavingPacket {
  readonly inInterface: string;
  readonly outInterface: string;
  /** Its flow has got another destination. */
  readonly hasDnat: boolean;
  readonly mark?: number;
}

export interface ServiceVerdictsSubject<Memory> {
  /** A renderer that remembers what it rendered; without services: they are another dataplane's. */
  renderer(options: { readonly services: boolean }): (world: DesiredState) => RenderedServices<Memory>;
  /** Nobody is remembered. */
  memory(): Memory;
  /** The bit of the mark of what is to be masqueraded. */
  readonly masqueradeMark: number;
  /** What only services write. */
  readonly ours: RegExp;
}

const PODS = [workload("a", "mxa", ["10.0.0.1", "fd00::1"]), workload("b", "tap0", ["10.0.0.2", "fd00::2"])];

/** Pods `a` (10.0.0.1, fd00::1, `mxa`) and `b` (10.0.0.2, fd00::2, `tap0`); undefined: services are nobody's aspect. */
export const serviceWorld = (of: ServiceState | undefined, generation = 1): DesiredState => ({
  ...state({ generation, workloads: PODS }),
  ...of === undefined ? {} : { services: of },
});

/** `mxa tcp 10.0.0.1:1000 > 10.96.0.1:80`; `-` for a process of the node. */
export function walk<Memory>(rendered: RenderedServices<Memory>, line: string, way: Way<Memory> = {}): string {
  const [link, name, from, , to] = line.split(" ");
  const fate = rendered.fate(
    firstPacket(PROTOCOLS[name!.toUpperCase() as "TCP"], from!, to!),
    link === "-" ? undefined : link,
    way,
  );
  if (typeof fate === "string") return fate;
  return `${formatAddress(fate.address)} ${fate.port}${fate.masqueraded ? " masqueraded" : ""}`;
}

function firstPacket(protocol: number, from: string, to: string): FirstPacket {
  const source = endpoint(from), destination = endpoint(to);
  return {
    source: source.address,
    destination: destination.address,
    protocol,
    sourcePort: source.port,
    destinationPort: destination.port,
    state: "new",
  };
}

export function dataplaneServiceVerdicts<Memory>(subject: ServiceVerdictsSubject<Memory>): void {
  const { ours, masqueradeMark } = subject;
  const rendered = (of: ServiceState) => subject.renderer({ services: true })(serviceWorld(of));
  /** Lines as `walk` takes them, each with ` = ` and what becomes of it. */
  const check = (of: ServiceState, expected: string, way: Way<Memory> = {}) => {
    const there = rendered(of);
    const lines = expected.trim().split("\n").map((line) => line.trim());
    expect(lines.map((line) => {
      const [path] = line.split(" = ");
      return `${path} = ${walk(there, path!, way)}`;
    })).toEqual(lines);
  };

  test("a cluster address leads to a backend that chance picks, for pods, the node and others, in both families", () => {
    const of = services([
      "tcp 10.96.0.1:80 > 10.0.0.1:8080 10.0.0.2:8081",
      "udp 10.96.0.1:53 > 10.0.0.2:5353",
      "tcp [fd96::1]:80 > [fd00::1]:8080 [fd00::2]:8081",
      "sctp [fd96::1]:90 > [fd00::1]:9090",
    ]);
    for (
      const [picks, v4, v6] of [
        ["first", "10.0.0.1 8080", "fd00::1 8080"],
        ["last", "10.0.0.2 8081", "fd00::2 8081"],
      ] as const
    ) {
      check(
        of,
        `
        mxa tcp 10.0.0.1:1000 > 10.96.0.1:80 = ${v4}
        eth0 tcp 192.0.2.1:1000 > 10.96.0.1:80 = ${v4}
        - tcp 192.0.2.7:1000 > 10.96.0.1:80 = ${v4}
        mxa tcp [fd00::1]:1000 > [fd96::1]:80 = ${v6}
        - tcp [2001:db8::1]:1000 > [fd96::1]:80 = ${v6}
      `,
        { picks },
      );
    }
    check(
      of,
      `
      mxa udp 10.0.0.1:1000 > 10.96.0.1:53 = 10.0.0.2 5353
      mxa sctp [fd00::1]:1000 > [fd96::1]:90 = fd00::1 9090
      mxa tcp 10.0.0.1:1000 > 10.96.0.1:53 = as it is
      mxa tcp 10.0.0.1:1000 > 10.96.0.2:80 = as it is
      mxa udp [fd00::1]:1000 > [fd96::1]:80 = as it is
    `,
    );
  });

  test("what has no backend is refused or dropped before policy, and backends that drain take no new flows", () =>
    check(
      services([
        "tcp 10.96.0.1:80 > reject",
        "udp 10.96.0.1:53 > reject",
        "tcp 10.96.0.2:80 > drop",
        "tcp [fd96::1]:80 > reject",
        "udp [fd96::1]:53 > ~[fd00::1]:53",
        "tcp 10.96.0.3:80 > ~10.0.0.1:1 10.0.0.2:2 ~10.0.0.3:3",
      ]),
      `
    mxa tcp 10.0.0.1:1000 > 10.96.0.1:80 = reset
    - tcp 192.0.2.7:1000 > 10.96.0.1:80 = reset
    mxa udp 10.0.0.1:1000 > 10.96.0.1:53 = unreachable
    mxa tcp 10.0.0.1:1000 > 10.96.0.2:80 = drop
    mxa tcp [fd00::1]:1000 > [fd96::1]:80 = reset
    mxa udp [fd00::1]:1000 > [fd96::1]:53 = unreachable
    mxa tcp 10.0.0.1:1000 > 10.96.0.3:80 = 10.0.0.2 2
  `,
      { picks: "last" },
    ));

  test("outside and inside have their own backends, and masquerading is for outside", () => {
    const lines = [
      "tcp 192.0.2.10:80 > 10.0.0.1:80 | scope external | masquerade",
      "tcp 192.0.2.11:80 > 10.1.0.1:80 | scope external | outside 10.0.0.2:80",
      "tcp 192.0.2.14:80 > 10.1.0.1:80 10.0.0.2:80 | scope external | outside 10.0.0.2:80",
      "tcp 192.0.2.12:80 > 10.1.0.1:80 | scope external | outside drop",
      "tcp 192.0.2.13:80 > 10.1.0.1:80 10.1.0.2:80 | scope external | outside 10.0.0.2:80 | masquerade",
      "tcp 10.96.0.1:80 > 10.0.0.1:80 | masquerade | outside drop",
      "tcp [2001:db8::10]:80 > [fd00::1]:80 | scope external | masquerade",
    ];
    check(
      services(lines, { podNets: ["10.0.0.0/8", "10.0.0.0/16", "fd00::/16"] }),
      `
    mxa tcp 10.0.0.1:9 > 192.0.2.10:80 = 10.0.0.1 80
    tap0 tcp 10.0.0.2:9 > 192.0.2.10:80 = 10.0.0.1 80
    eth0 tcp 10.1.2.3:9 > 192.0.2.10:80 = 10.0.0.1 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.10:80 = 10.0.0.1 80 masqueraded
    - tcp 203.0.113.1:9 > 192.0.2.10:80 = 10.0.0.1 80
    mxa tcp 10.0.0.1:9 > 192.0.2.11:80 = 10.1.0.1 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.11:80 = 10.0.0.2 80
    mxa tcp 10.0.0.1:9 > 192.0.2.14:80 = 10.1.0.1 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.14:80 = 10.0.0.2 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.12:80 = drop
    mxa tcp 10.0.0.1:9 > 192.0.2.12:80 = 10.1.0.1 80
    eth0 tcp 203.0.113.1:9 > 192.0.2.13:80 = 10.0.0.2 80 masqueraded
    mxa tcp 10.0.0.1:9 > 192.0.2.13:80 = 10.1.0.1 80
    eth0 tcp 203.0.113.1:9 > 10.96.0.1:80 = 10.0.0.1 80
    eth0 tcp [fd00::9]:9 > [2001:db8::10]:80 = fd00::1 80
    eth0 tcp [2001:db8::9]:9 > [2001:db8::10]:80 = fd00::1 80 masqueraded
  `,
    );
    check(
      services(lines),
      `
    mxa tcp 10.0.0.1:9 > 192.0.2.10:80 = 10.0.0.1 80
    tap0 tcp 10.0.0.2:9 > 192.0.2.10:80 = 10.0.0.1 80
    eth0 tcp 10.1.2.3:9 > 192.0.2.10:80 = 10.0.0.1 80 masqueraded
    eth0 tcp 10.0.0.1:9 > 192.0.2.10:80 = 10.0.0.1 80 masqueraded
    - tcp 10.0.0.1:9 > 192.0.2.10:80 = 10.0.0.1 80
  `,
    );
  });

  test("a pod that reaches itself is masqueraded, and nothing else that it sends; the mark of others stays", () => {
    const of = rendered(services(["tcp 10.96.0.1:80 > 10.0.0.1:80"]));
    const toItself = firstPacket(PROTOCOLS.TCP, "10.0.0.1:1", "10.0.0.1:80");
    const leaving = (more: Partial<LeavingPacket>) =>
      of.leave(toItself, { inInterface: "mxa", outInterface: "mxa", hasDnat: true, ...more });
    expect(leaving({}).masqueraded).toBe(true);
    expect(leaving({ outInterface: "tap0" }).masqueraded).toBe(false);
    expect(leaving({ hasDnat: false }).masqueraded).toBe(false);
    for (
      const [packet, at] of [
        [toItself, { inInterface: "mxa", outInterface: "mxa", hasDnat: false }],
        [firstPacket(PROTOCOLS.TCP, "203.0.113.1:1", "10.0.0.1:80"), {
          inInterface: "eth0",
          outInterface: "mxa",
          hasDnat: true,
        }],
      ] as const
    ) {
      expect(of.leave(packet, { ...at, mark: masqueradeMark | 3 })).toMatchObject({ masqueraded: true, mark: 3 });
      expect(of.leave(packet, { ...at, mark: ~masqueradeMark >>> 0 }).masqueraded).toBe(false);
    }
  });

  test("node ports answer on the node's own addresses but loopback, or on those of the configuration", () => {
    const lines = ["tcp node4:30080 > 10.0.0.1:80 | masquerade", "udp node6:30053 > [fd00::1]:53"];
    check(
      services(lines),
      `
    eth0 tcp 203.0.113.1:9 > 192.0.2.7:30080 = 10.0.0.1 80 masqueraded
    mxa tcp 10.0.0.1:9 > 192.0.2.7:30080 = 10.0.0.1 80
    - tcp 192.0.2.7:9 > 192.0.2.7:30080 = 10.0.0.1 80
    - tcp 127.0.0.1:9 > 127.0.0.1:30080 = as it is
    - tcp 127.0.0.1:9 > 127.1.2.3:30080 = as it is
    eth0 udp 203.0.113.1:9 > 192.0.2.7:30080 = as it is
    eth0 udp 203.0.113.1:9 > 192.0.2.7:30053 = as it is
    eth0 udp [2001:db8::9]:9 > [2001:db8::7]:30053 = fd00::1 53
    - udp [::1]:9 > [::1]:30053 = as it is
  `,
      { isToNode: true },
    );
    check(services(lines), "mxa tcp 10.0.0.1:9 > 203.0.113.7:30080 = as it is");
    check(
      services(lines, { nodePortAddresses: ["192.0.2.0/24", "127.0.0.0/8"] }),
      `
    eth0 tcp 203.0.113.1:9 > 192.0.2.7:30080 = 10.0.0.1 80 masqueraded
    eth0 tcp 203.0.113.1:9 > 198.51.100.7:30080 = as it is
    - tcp 127.0.0.1:9 > 127.0.0.1:30080 = 10.0.0.1 80
    eth0 udp [2001:db8::9]:9 > [2001:db8::7]:30053 = as it is
  `,
      { isToNode: true },
    );
  });

  test("source ranges let their own in, an empty list nobody", () =>
    check(
      services([
        "tcp 192.0.2.10:80 > 10.0.0.1:80 | scope external | masquerade | sources 203.0.113.0/24 203.0.113.0/25 198.51.100.1/32",
        "tcp 192.0.2.11:80 > 10.0.0.1:80 | scope external | sources ",
        "tcp [2001:db8::10]:80 > [fd00::1]:80 | scope external | sources 2001:db8:1::/48",
        "tcp 192.0.2.12:80 > reject | scope external | sources 203.0.113.0/24",
        "tcp 192.0.2.13:80 > 10.0.0.1:80 | scope external | sources 0.0.0.0/0",
      ]),
      `
    eth0 tcp 203.0.113.200:9 > 192.0.2.10:80 = 10.0.0.1 80 masqueraded
    eth0 tcp 198.51.100.1:9 > 192.0.2.10:80 = 10.0.0.1 80 masqueraded
    eth0 tcp 198.51.100.2:9 > 192.0.2.10:80 = drop
    mxa tcp 10.0.0.1:9 > 192.0.2.10:80 = drop
    eth0 tcp 203.0.113.200:9 > 192.0.2.11:80 = drop
    eth0 tcp [2001:db8:1::1]:9 > [2001:db8::10]:80 = fd00::1 80
    eth0 tcp [2001:db8:2::1]:9 > [2001:db8::10]:80 = drop
    eth0 tcp 203.0.113.1:9 > 192.0.2.12:80 = reset
    eth0 tcp 192.0.2.1:9 > 192.0.2.12:80 = drop
    eth0 tcp 192.0.2.1:9 > 192.0.2.13:80 = 10.0.0.1 80
  `,
    ));

  test.each(
    [
      [4, "10.0.0.1:9", "10.0.0.2:9", "10.96.0.1:80", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80 10.0.0.4:80"],
      [6, "[fd00::1]:9", "[fd00::2]:9", "[fd96::1]:80", "[fd00::1]:80", "[fd00::2]:80", "[fd00::3]:80 [fd00::4]:80"],
    ] as const,
  )(
    "a client stays with its backend as long as that is there, IPv%i",
    (_, client, other, address, first, second, others) => {
      const text = (backend: string) => {
        const { address, port } = endpoint(backend);
        return `${formatAddress(address)} ${port}`;
      };
      const line = `tcp ${address} > ${first} ${second} | affinity 60`;
      const memory = subject.memory(), path = `mxa tcp ${client} > ${address}`;
      const both = rendered(services([line]));
      expect(walk(both, path, { picks: "last", memory })).toBe(text(second));
      expect(walk(both, path, { picks: "first", memory })).toBe(text(second));
      expect(walk(both, `tap0 tcp ${other} > ${address}`, { picks: "first", memory })).toBe(text(first));
      const changed = rendered(services([line.replace(`${first} `, `${others} `)]));
      expect(walk(changed, path, { picks: "first", memory })).toBe(text(second));
      const one = rendered(services([line.replace(` ${second}`, "")]));
      expect(walk(one, path, { picks: "last", memory })).toBe(text(first));
      expect(walk(both, path, { picks: "last", memory })).toBe(text(first));
    },
  );

  test("a client outside stays with a backend of the outside list only", () => {
    const memory = subject.memory();
    const line = "tcp 192.0.2.10:80 > 10.0.0.1:80 10.0.0.2:80 | scope external | affinity 60 | outside ";
    const path = "eth0 tcp 203.0.113.1:9 > 192.0.2.10:80";
    expect(walk(rendered(services([`${line}10.0.0.1:80`])), path, { memory })).toBe("10.0.0.1 80");
    // It is still a backend, of those inside.
    expect(walk(rendered(services([`${line}10.0.0.2:80`])), path, { memory })).toBe("10.0.0.2 80");
  });

  test("without services nothing of them is rendered, and where they are another dataplane's neither", () => {
    const of = services(["tcp 10.96.0.1:80 > 10.0.0.1:80"]);
    const text = (isOurs: boolean, of: ServiceState | undefined) =>
      subject.renderer({ services: isOurs })(serviceWorld(of)).print();
    const plain = text(false, undefined);
    expect(plain).not.toMatch(ours);
    expect(text(true, undefined)).toBe(plain);
    expect(text(false, of)).toBe(plain);
    const render = subject.renderer({ services: true });
    const served = render(serviceWorld(of)).print();
    expect(served).not.toBe(plain);
    expect(served).toMatch(ours);
    expect(render(serviceWorld(undefined)).print()).toBe(plain);
  });

  test("what is rendered does not depend on what was rendered before", () => {
    for (let seed = 1; seed <= 60; seed++) {
      const r = random(seed * 7_919);
      const render = subject.renderer({ services: true });
      for (let step = 1; step <= 8; step++) {
        const world = serviceWorld(r.chance(0.1) ? undefined : someServices(r, seed % 3 === 0 ? 60 : 6), step);
        expect(render(world).print()).toBe(subject.renderer({ services: true })(world).print());
      }
    }
  });
}
