import { expect, test } from "bun:test";
import { crc32c, internetChecksum } from "../../../src/lab/packets.ts";
import type { FuzzPacket } from "../packet.ts";
import { ETHERTYPE, frame, ipPacket, serialOf, serialOfTransport } from "./frames.ts";

const ends = {
  4: { source: "10.65.0.1", destination: "192.0.2.9" },
  6: { source: "fd65::1", destination: "2001:db8::9" },
} as const;
const ports = { sourcePort: 40_000, destinationPort: 443 };
const SERIAL = 0x01020304;

const PACKETS: readonly (readonly [name: string, packet: FuzzPacket])[] = ([4, 6] as const).flatMap((family) => [
  ...[6, 17, 132, 136].map((
    protocol,
  ): [string, FuzzPacket] => [`protocol ${protocol} of IPv${family}`, { protocol, ...ends[family], ...ports }]),
  [`echo of IPv${family}`, {
    protocol: family === 4 ? 1 : 58,
    ...ends[family],
    icmp: { type: family === 4 ? 8 : 128, code: 3 },
  }],
  [`protocol 89 of IPv${family}`, { protocol: 89, ...ends[family] }],
]);

test.each(PACKETS)("%s carries its serial number, there and back", (_, packet) => {
  const bytes = ipPacket(packet, SERIAL);
  expect(serialOf(bytes)).toBe(SERIAL);
  const header = bytes[0] === 0x45 ? 20 : 40;
  expect(serialOfTransport(packet.protocol, bytes.subarray(header))).toBe(SERIAL);
  expect(serialOf(bytes.subarray(0, bytes.length - 12))).toBeUndefined();
});

/** What the pseudo header, the header and the data sum up to: 0 where the checksum is right. */
function sumOf(bytes: Uint8Array, number: number): number {
  const v4 = bytes[0] === 0x45;
  const payload = bytes.subarray(v4 ? 20 : 40);
  const pseudo = [...bytes.subarray(v4 ? 12 : 8, v4 ? 20 : 40), 0, 0, 0, payload.length, 0, 0, 0, number, ...payload];
  return internetChecksum(Uint8Array.from(pseudo));
}

test.each([4, 6] as const)("checksums of IPv%d are right", (family) => {
  const make = (protocol: number, more: object = ports) => ipPacket({ protocol, ...ends[family], ...more }, SERIAL);
  if (family === 4) expect(internetChecksum(make(6).subarray(0, 20))).toBe(0);
  expect(sumOf(make(6), 6)).toBe(0);
  expect(sumOf(make(17), 17)).toBe(0);
  // As connection tracking wants it, with UDP's number.
  expect(sumOf(make(136), 17)).toBe(0);
  const sctp = make(132).slice(family === 4 ? 20 : 40);
  const sum = new DataView(sctp.buffer).getUint32(8, true);
  sctp.fill(0, 8, 12);
  expect(crc32c(sctp)).toBe(sum);
  if (family === 4) expect(internetChecksum(make(1, { icmp: { type: 8, code: 0 } }).subarray(20))).toBe(0);
  else expect(sumOf(make(58, { icmp: { type: 128, code: 0 } }), 58)).toBe(0);
});

test("what is translated is sent to where it goes before translation", () => {
  const bytes = ipPacket(
    { protocol: 6, ...ends[4], ...ports, beforeDnat: { destination: "192.168.2.1", destinationPort: 30_080 } },
    1,
  );
  expect([...bytes.subarray(16, 20)]).toEqual([192, 168, 2, 1]);
  expect(bytes[22]! << 8 | bytes[23]!).toBe(30_080);
});

test("a frame has both ends, the type and the packet", () => {
  const bytes = frame(
    Uint8Array.of(1, 2, 3, 4, 5, 6),
    Uint8Array.of(7, 8, 9, 10, 11, 12),
    ETHERTYPE[6],
    Uint8Array.of(99),
  );
  expect([...bytes]).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x86, 0xdd, 99]);
});
