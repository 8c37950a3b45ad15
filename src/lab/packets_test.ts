import { expect, test } from "bun:test";
import {
  crc32c,
  echoRequest,
  internetChecksum,
  readIcmp,
  readSctp,
  readToken,
  SCTP_CHUNK,
  sctpInit,
  sctpInitAck,
  writeToken,
} from "./packets.ts";

const hex = (text: string) => Uint8Array.from(text.match(/../g) ?? [], (byte) => parseInt(byte, 16));

test("crc32c is as RFC 3720 appendix B.4 has it", () => {
  expect(crc32c(new Uint8Array(32)).toString(16)).toBe("8a9136aa");
  expect(crc32c(new Uint8Array(32).fill(0xff)).toString(16)).toBe("62a8ab43");
  expect(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i)).toString(16)).toBe("46dd794e");
  expect(crc32c(new TextEncoder().encode("123456789")).toString(16)).toBe("e3069283");
});

test("the internet checksum is as RFC 1071 section 3 has it, odd lengths padded", () => {
  expect(internetChecksum(hex("0001f203f4f5f6f7"))).toBe(~0xddf2 & 0xffff);
  expect(internetChecksum(hex("01"))).toBe(~0x0100 & 0xffff);
});

test("a token survives the way there and back with who answered", () => {
  const token = { prober: 0xdeadbeef, probe: 7, attempt: 2 };
  expect(readToken(writeToken(token))).toEqual({ ...token, identity: "" });
  expect(readToken(writeToken(token, "prod/näh"))).toEqual({ ...token, identity: "prod/näh" });
});

test("foreign and short bytes are nobody's token", () => {
  expect(readToken(new Uint8Array(40))).toBeUndefined();
  expect(readToken(writeToken({ prober: 1, probe: 2, attempt: 1 }).subarray(0, 15))).toBeUndefined();
});

test("an IPv4 echo request checks to zero; its news are the token's", () => {
  const token = { prober: 1, probe: 2, attempt: 1 };
  const request = echoRequest(4, 0x1234, 1, writeToken(token));
  expect(internetChecksum(request)).toBe(0);
  expect(readIcmp(4, request)).toMatchObject({ kind: "request", token });
  expect(readIcmp(6, echoRequest(6, 1, 1, writeToken(token)))).toMatchObject({ kind: "request", token });
});

test("an ICMP error names the flow and reason of what it complains about", () => {
  const ipv4 = hex("4500002800000000400600000a0000010a000002");
  const tcp = hex("9c40005000000000");
  const message = Uint8Array.from([3, 13, 0, 0, 0, 0, 0, 0, ...ipv4, ...tcp]);
  expect(readIcmp(4, message)).toEqual({
    kind: "error",
    protocol: 6,
    flow: 0x9c40,
    reason: "administratively prohibited",
  });
  const ipv6 = Uint8Array.from([0x60, 0, 0, 0, 0, 8, 58, 64, ...new Array(32).fill(0)]);
  const echo = hex("8000000012340001");
  expect(readIcmp(6, Uint8Array.from([1, 4, 0, 0, 0, 0, 0, 0, ...ipv6, ...echo])))
    .toEqual({ kind: "error", protocol: 58, flow: 0x1234, reason: "port unreachable" });
});

test("neighbour discovery, truncated errors and empty messages are no news", () => {
  expect(readIcmp(6, hex("8700000000000000"))).toBeUndefined();
  expect(readIcmp(4, hex("0303000000000000450000"))).toBeUndefined();
  expect(readIcmp(4, new Uint8Array())).toBeUndefined();
});

test("an SCTP INIT and its answer read back with tags, ports and cookie, checksums right", () => {
  const init = sctpInit({ sourcePort: 40_000, destinationPort: 80, initiateTag: 99, initialTsn: 2 });
  const checked = (packet: Uint8Array) => {
    const copy = packet.slice();
    copy.fill(0, 8, 12);
    return new DataView(packet.buffer).getUint32(8, true) === crc32c(copy);
  };
  expect(checked(init)).toBe(true);
  const news = readSctp(init)!;
  expect(news).toMatchObject({
    sourcePort: 40_000,
    destinationPort: 80,
    verificationTag: 0,
    chunk: SCTP_CHUNK.INIT,
    initiateTag: 99,
    initialTsn: 2,
  });
  const cookie = writeToken({ prober: 1, probe: 99, attempt: 2 }, "b");
  const answer = sctpInitAck(news, 5, cookie);
  expect(checked(answer)).toBe(true);
  expect(answer.length % 4).toBe(0);
  expect(readSctp(answer)).toEqual({
    sourcePort: 80,
    destinationPort: 40_000,
    verificationTag: 99,
    chunk: SCTP_CHUNK.INIT_ACK,
    initiateTag: 5,
    initialTsn: 2,
    cookie,
  });
});

test("an SCTP packet cut anywhere is read without a fault", () => {
  const answer = sctpInitAck(
    readSctp(sctpInit({ sourcePort: 1, destinationPort: 2, initiateTag: 3, initialTsn: 1 }))!,
    4,
    writeToken({ prober: 1, probe: 3, attempt: 1 }, "b"),
  );
  // Only padding comes after its last byte.
  const cookieEnd = 12 + new DataView(answer.buffer).getUint16(14);
  for (let length = 0; length < cookieEnd; length++) {
    const news = readSctp(answer.subarray(0, length));
    expect(news === undefined || news.cookie.length === 0).toBe(true);
  }
});
