/** The packets that probes send by hand, and what is read of the answers. Pure: bytes in, values out. */
import { type Address, addressFromBytes, type Family } from "../model/address.ts";

/** Names one probe in every packet it sends: which prober's, which probe, at which attempt (from 1). 32 bits each. */
export interface Token {
  readonly prober: number;
  readonly probe: number;
  readonly attempt: number;
}

export const TOKEN_BYTES = 16;
const TOKEN_MAGIC = 0x6d616e78;
const utf8 = new TextEncoder();
const text = new TextDecoder();

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);

/** A token, then `identity` as UTF-8: what a responder answers; without one, what a client sends. */
export function writeToken({ prober, probe, attempt }: Token, identity = ""): Uint8Array<ArrayBuffer> {
  const name = utf8.encode(identity);
  const bytes = new Uint8Array(new ArrayBuffer(TOKEN_BYTES + name.length));
  const view = viewOf(bytes);
  view.setUint32(0, TOKEN_MAGIC);
  view.setUint32(4, prober);
  view.setUint32(8, probe);
  view.setUint32(12, attempt);
  bytes.set(name, TOKEN_BYTES);
  return bytes;
}

/** undefined where the bytes are nobody's token. */
export function readToken(bytes: Uint8Array): (Token & { readonly identity: string }) | undefined {
  if (bytes.length < TOKEN_BYTES) return undefined;
  const view = viewOf(bytes);
  if (view.getUint32(0) !== TOKEN_MAGIC) return undefined;
  return {
    prober: view.getUint32(4),
    probe: view.getUint32(8),
    attempt: view.getUint32(12),
    identity: text.decode(bytes.subarray(TOKEN_BYTES)),
  };
}

/** The payload of an IPv4 packet, after its header and options. */
export function ipv4Payload(packet: Uint8Array): Uint8Array {
  return packet.subarray(packet.length === 0 ? 0 : (packet[0]! & 0x0f) * 4);
}

/** The source of an IPv4 packet. */
export const ipv4Source = (packet: Uint8Array): Address => addressFromBytes(packet.subarray(12, 16));

/** RFC 1071. */
export function internetChecksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += bytes[i]! << 8 | (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

const ECHO: Readonly<Record<Family, { readonly request: number; readonly reply: number }>> = {
  4: { request: 8, reply: 0 }, // RFC 792
  6: { request: 128, reply: 129 }, // RFC 4443 section 4
};

/** An echo request. In IPv6 the checksum is left to the kernel, which knows the addresses. */
export function echoRequest(
  family: Family,
  identifier: number,
  sequence: number,
  payload: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(new ArrayBuffer(8 + payload.length));
  const view = viewOf(bytes);
  view.setUint8(0, ECHO[family].request);
  view.setUint16(4, identifier);
  view.setUint16(6, sequence);
  bytes.set(payload, 8);
  if (family === 4) view.setUint16(2, internetChecksum(bytes));
  return bytes;
}

/** What an ICMP or ICMPv6 message (without IP header) tells a prober. `flow`: source port or echo identifier of the packet complained about. */
export type IcmpNews =
  | { readonly kind: "request" | "reply"; readonly token: Token }
  | { readonly kind: "error"; readonly protocol: number; readonly flow: number; readonly reason: string };

/** undefined for what does not concern probes. */
export function readIcmp(family: Family, message: Uint8Array): IcmpNews | undefined {
  if (message.length < 8) return undefined;
  const type = message[0]!, code = message[1]!;
  if (type === ECHO[family].request || type === ECHO[family].reply) {
    const token = readToken(message.subarray(8));
    return token && { kind: type === ECHO[family].request ? "request" : "reply", token };
  }
  const reason = icmpReason(family, type, code);
  if (reason === undefined) return undefined;
  const packet = message.subarray(8);
  if (packet.length < (family === 4 ? 20 : 40)) return undefined;
  const protocol = packet[family === 4 ? 9 : 6]!;
  const inner = family === 4 ? ipv4Payload(packet) : packet.subarray(40);
  if (inner.length < 8) return undefined;
  const echo = protocol === 1 || protocol === 58;
  return { kind: "error", protocol, flow: viewOf(inner).getUint16(echo ? 4 : 0), reason };
}

/** RFC 792 and RFC 1812 section 5.2.7.1 for IPv4, RFC 4443 section 3.1 for IPv6; only what ends a probe. */
function icmpReason(family: Family, type: number, code: number): string | undefined {
  if (family === 4 && type === 3) {
    const named = ["network unreachable", "host unreachable", "protocol unreachable", "port unreachable"][code];
    return named ??
      (code === 9 || code === 10 || code === 13 ? "administratively prohibited" : `unreachable, code ${code}`);
  }
  if (family === 6 && type === 1) {
    const names = [
      "no route",
      "administratively prohibited",
      "beyond scope",
      "address unreachable",
      "port unreachable",
    ];
    return names[code] ?? `unreachable, code ${code}`;
  }
  if (family === 6 && type === 4 && code === 1) return "protocol unreachable";
  if (type === (family === 4 ? 11 : 3)) return "time exceeded";
  return undefined;
}

const CRC32C_TABLE = new Uint32Array(256);
for (let i = 0; i < 256; i++) {
  let value = i;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? value >>> 1 ^ 0x82f63b78 : value >>> 1;
  CRC32C_TABLE[i] = value;
}

/** RFC 9260 appendix A: the checksum of SCTP. */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC32C_TABLE[(crc ^ byte) & 0xff]! ^ crc >>> 8;
  return ~crc >>> 0;
}

/** Chunk types, RFC 9260 section 3.2. */
export const SCTP_CHUNK = { INIT: 1, INIT_ACK: 2, ABORT: 6 } as const;
const SCTP_STATE_COOKIE = 7;
const RECEIVER_WINDOW_BYTES = 65_536;

/** The common header and the first chunk, as far as probes need them. */
export interface SctpNews {
  readonly sourcePort: number;
  readonly destinationPort: number;
  readonly verificationTag: number;
  readonly chunk: number;
  /** Of INIT and INIT ACK; else 0. */
  readonly initiateTag: number;
  /** Likewise: the first transmission sequence number. */
  readonly initialTsn: number;
  /** State cookie of an INIT ACK; empty elsewhere. */
  readonly cookie: Uint8Array;
}

interface SctpInit {
  readonly sourcePort: number;
  readonly destinationPort: number;
  readonly initiateTag: number;
  readonly initialTsn: number;
}

/** RFC 9260 section 3.3.2: opens an association; `initiateTag` is not 0. */
export const sctpInit = (init: SctpInit): Uint8Array<ArrayBuffer> =>
  sctpPacket(SCTP_CHUNK.INIT, 0, init, new Uint8Array());

/** RFC 9260 section 3.3.3: the answer to `init`, which carries `cookie`. */
export const sctpInitAck = (init: SctpNews, initiateTag: number, cookie: Uint8Array): Uint8Array<ArrayBuffer> =>
  sctpPacket(
    SCTP_CHUNK.INIT_ACK,
    init.initiateTag,
    { sourcePort: init.destinationPort, destinationPort: init.sourcePort, initiateTag, initialTsn: init.initialTsn },
    cookie,
  );

function sctpPacket(
  chunk: number,
  verificationTag: number,
  ports: SctpInit,
  cookie: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const cookieBytes = cookie.length === 0 ? 0 : 4 + cookie.length;
  const bytes = new Uint8Array(new ArrayBuffer(12 + 20 + (cookieBytes + 3 & ~3)));
  const view = viewOf(bytes);
  view.setUint16(0, ports.sourcePort);
  view.setUint16(2, ports.destinationPort);
  view.setUint32(4, verificationTag);
  view.setUint8(12, chunk);
  view.setUint16(14, 20 + cookieBytes);
  view.setUint32(16, ports.initiateTag);
  view.setUint32(20, RECEIVER_WINDOW_BYTES);
  view.setUint16(24, 1);
  view.setUint16(26, 1);
  view.setUint32(28, ports.initialTsn);
  if (cookieBytes > 0) {
    view.setUint16(32, SCTP_STATE_COOKIE);
    view.setUint16(34, cookieBytes);
    bytes.set(cookie, 36);
  }
  view.setUint32(8, crc32c(bytes), true);
  return bytes;
}

/** undefined for what is no whole SCTP packet. */
export function readSctp(packet: Uint8Array): SctpNews | undefined {
  if (packet.length < 16) return undefined;
  const view = viewOf(packet);
  const chunk = view.getUint8(12);
  const opening = (chunk === SCTP_CHUNK.INIT || chunk === SCTP_CHUNK.INIT_ACK) && packet.length >= 32;
  const end = Math.min(packet.length, 12 + view.getUint16(14));
  let cookie = new Uint8Array();
  for (let at = 32; opening && at + 4 <= end;) {
    const lengthBytes = view.getUint16(at + 2);
    if (lengthBytes < 4 || at + lengthBytes > end) break;
    if (view.getUint16(at) === SCTP_STATE_COOKIE) cookie = packet.slice(at + 4, at + lengthBytes);
    at += lengthBytes + 3 & ~3;
  }
  return {
    sourcePort: view.getUint16(0),
    destinationPort: view.getUint16(2),
    verificationTag: view.getUint32(4),
    chunk,
    initiateTag: opening ? view.getUint32(16) : 0,
    initialTsn: opening ? view.getUint32(28) : 0,
    cookie,
  };
}

/** The source port of a TCP segment. */
export const tcpSourcePort = (segment: Uint8Array): number | undefined =>
  segment.length < 20 ? undefined : viewOf(segment).getUint16(0);

/**
 * A classic BPF program for a raw TCP socket: only opening segments (SYN without ACK). What raw IPv4 sockets see starts with the IP
 * header, what IPv6 ones see with the TCP header. Opcodes: include/uapi/linux/bpf_common.h.
 */
export function synFilter(family: Family): readonly (readonly [number, number, number, number])[] {
  const load: readonly (readonly [number, number, number, number])[] = family === 4
    ? [[0xb1, 0, 0, 0], [0x50, 0, 0, 13]] // X = header length; A = byte at X + 13
    : [[0x30, 0, 0, 13]]; // A = byte at 13
  return [
    ...load,
    [0x54, 0, 0, 0x12], // A &= SYN | ACK
    [0x15, 0, 1, 0x02], // A == SYN
    [0x06, 0, 0, 0xffff],
    [0x06, 0, 0, 0],
  ];
}

/** IANA number of a probe's protocol in a family. */
export function protocolNumber(protocol: "tcp" | "udp" | "sctp" | "icmp" | "icmpv6"): number {
  return { tcp: 6, udp: 17, sctp: 132, icmp: 1, icmpv6: 58 }[protocol];
}
