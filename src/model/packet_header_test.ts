import { expect, test } from "bun:test";
import captured from "../kernel/netlink/testdata/captured_nflog.json";
import { parseGroupPacket } from "../kernel/netlink/schema/nflog.ts";
import { formatAddress } from "./address.ts";
import { readPacketHeader } from "./packet_header.ts";

const bytesOf = (hex: string) => Uint8Array.from(hex.match(/../g)!, (pair) => parseInt(pair, 16));
const headerOf = (payload: string) => parseGroupPacket({ payload: bytesOf(payload) }).payload;

/** `17 127.0.0.1:4660 > 127.0.0.1:81, 60 bytes` */
function text(bytes: Uint8Array): string {
  const found = readPacketHeader(bytes);
  if (found === undefined) return "nothing";
  const { packet: { protocol, source, destination, sourcePort, destinationPort, icmp }, lengthBytes } = found;
  const end = (address: typeof source, port?: number) =>
    formatAddress(address) + (port === undefined ? "" : ` ${port}`);
  const type = icmp === undefined ? "" : ` ${icmp.type}/${icmp.code}`;
  return `${protocol}${type} ${end(source, sourcePort)} > ${end(destination, destinationPort)}, ${lengthBytes} bytes`;
}

const v4 = (protocol: string, ports: boolean, lengthBytes: number) =>
  `${protocol} 127.0.0.1${ports ? " 4660" : ""} > 127.0.0.1${ports ? " 81" : ""}, ${lengthBytes} bytes`;
const v6 = (protocol: string, ports: boolean, lengthBytes: number) =>
  v4(protocol, ports, lengthBytes).replaceAll("127.0.0.1", "::1");

/** As the packets were put together. */
const WANTED: Readonly<Record<string, string>> = {
  "IPv4 tcp 4660 to 81, leaving": v4("6", true, 40),
  "IPv4 tcp 4660 to 81": v4("6", true, 40),
  "IPv4 udp 4660 to 81": v4("17", true, 32),
  "IPv4 udplite 4660 to 81": v4("136", true, 32),
  "IPv4 sctp 4660 to 81": v4("132", true, 52),
  "IPv4 icmp 3/13": v4("1 3/13", false, 56),
  "IPv4 gre": v4("47", false, 44),
  "IPv4 with options, tcp 4660 to 81": v4("6", true, 48),
  "IPv4 esp": v4("50", false, 36),
  "IPv4 later fragment of udp": v4("17", false, 44),
  "IPv4 udp 4660 to 81 of 1432 bytes": v4("17", true, 1432),
  "IPv6 tcp 4660 to 81": v6("6", true, 60),
  "IPv6 udp 4660 to 81": v6("17", true, 52),
  "IPv6 sctp 4660 to 81": v6("132", true, 72),
  "IPv6 icmp 128/0": v6("58 128/0", false, 48),
  "IPv6 hop-by-hop options, tcp 4660 to 81": v6("6", true, 68),
  "IPv6 hop-by-hop and destination options, udp 4660 to 81": v6("17", true, 76),
  "IPv6 destination options and authentication, tcp 4660 to 81": v6("6", true, 100),
  "IPv6 first fragment, udp 4660 to 81": v6("17", true, 64),
  "IPv6 later fragment of udp": v6("17", false, 72),
  "IPv6 no next header": v6("59", false, 40),
  "IPv6 routing header, udp 4660 to 81": v6("17", true, 60),
};

for (const { what, payload } of captured.packets) {
  test(`${what}: read as it was sent`, () => expect(text(headerOf(payload))).toBe(WANTED[what]!));
}

const cut: readonly [string, number, string][] = [
  ["IPv4 tcp 4660 to 81", 24, v4("6", true, 40)],
  ["IPv4 tcp 4660 to 81", 23, v4("6", false, 40)],
  ["IPv4 tcp 4660 to 81", 20, v4("6", false, 40)],
  ["IPv4 tcp 4660 to 81", 19, "nothing"],
  ["IPv4 icmp 3/13", 22, v4("1 3/13", false, 56)],
  ["IPv4 icmp 3/13", 21, v4("1", false, 56)],
  ["IPv6 hop-by-hop options, tcp 4660 to 81", 52, v6("6", true, 68)],
  ["IPv6 hop-by-hop options, tcp 4660 to 81", 51, v6("6", false, 68)],
  ["IPv6 hop-by-hop options, tcp 4660 to 81", 47, v6("0", false, 68)],
  ["IPv6 hop-by-hop options, tcp 4660 to 81", 39, "nothing"],
  ["IPv6 tcp 4660 to 81", 0, "nothing"],
];
for (const [what, lengthBytes, wanted] of cut) {
  test(`${what}, cut to ${lengthBytes} bytes: ${wanted === "nothing" ? "nothing" : "what is left of it"}`, () => {
    const { payload } = captured.packets.find((packet) => packet.what === what)!;
    expect(text(headerOf(payload).subarray(0, lengthBytes))).toBe(wanted);
  });
}

test("headers that contradict themselves are read as far as they can be, or not at all", () => {
  const packet = headerOf(captured.packets[1]!.payload);
  const changed = (...changes: readonly [at: number, value: number][]) => {
    const bytes = packet.slice();
    for (const [at, value] of changes) bytes[at] = value;
    return text(bytes);
  };
  expect(changed([0, 0x44])).toBe("nothing");
  expect(changed([0, 0x05])).toBe("nothing");
  expect(changed([0, 0x75])).toBe("nothing");
  // The header says it is longer than what is there.
  expect(changed([0, 0x4f])).toBe(v4("6", false, 40));
  expect(changed([2, 0], [3, 0])).toBe(v4("6", true, 0));
  // Hop-by-hop headers that point at each other without end.
  const chain = new Uint8Array(1024);
  chain.set([0x60]);
  chain.fill(0, 6);
  expect(text(chain)).toBe("0 :: > ::, 40 bytes");
});

test("random and mutated bytes never throw, and what is read of them is within its bounds", () => {
  let seed = 0x6d616e78, read = 0, refused = 0;
  const below = (limit: number) => {
    seed = Math.imul(seed, 1_664_525) + 1_013_904_223 | 0;
    return (seed >>> 8) % limit;
  };
  const originals = captured.packets.map(({ payload }) => headerOf(payload));
  for (let round = 0; round < 50_000; round++) {
    const original = originals[below(originals.length)]!;
    const bytes = below(4) === 0
      ? Uint8Array.from({ length: below(200) }, () => below(256))
      : original.slice(0, below(3) === 0 ? below(original.length + 1) : original.length);
    for (let count = below(8); count > 0 && bytes.length > 0; count--) bytes[below(bytes.length)] = below(256);
    const found = readPacketHeader(bytes);
    if (found === undefined) {
      refused++;
      continue;
    }
    read++;
    const { packet, lengthBytes } = found;
    const isPort = (port: number | undefined) => port === undefined || port >= 0 && port <= 0xffff;
    const holds = packet.source.length === packet.destination.length && isPort(packet.sourcePort) &&
      isPort(packet.destinationPort) && (packet.sourcePort === undefined) === (packet.destinationPort === undefined) &&
      packet.protocol >= 0 && packet.protocol <= 255 && lengthBytes >= 0 && lengthBytes <= 0xffff + 40;
    if (!holds) throw new Error(`round ${round}: ${Buffer.from(bytes).toString("hex")} gave ${JSON.stringify(found)}`);
  }
  expect(read).toBeGreaterThan(10_000);
  expect(refused).toBeGreaterThan(5_000);
});
