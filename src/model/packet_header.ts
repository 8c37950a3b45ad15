/**
 * What policy sees of a packet, from its first bytes: RFC 791, RFC 8200 and the first bytes of what they carry. The bytes
 * come from the network: whatever they are, the answer is a packet or nothing. Pure.
 */
import type { Address } from "./address.ts";
import type { Packet } from "./desired.ts";
import { hasPorts, PROTOCOLS } from "./ports.ts";

/** RFC 791 section 3.1. */
const IPV4_HEADER_BYTES = 20;
/** RFC 8200 section 3. */
const IPV6_HEADER_BYTES = 40;
/** Longer chains are not followed. */
const EXTENSIONS_MAX = 16;

/** IPv6 extension headers that the kernel reads over (`ipv6_ext_hdr` of net/ipv6/exthdrs_core.c); IANA protocol numbers. */
const HOP_BY_HOP = 0;
const ROUTING = 43;
const FRAGMENT = 44;
const AUTHENTICATION = 51;
const DESTINATION_OPTIONS = 60;

export interface PacketHeader {
  readonly packet: Packet;
  /** Of the whole packet with its network header, as that says. */
  readonly lengthBytes: number;
}

/** `bytes` begin with the network header and may end anywhere. Undefined: neither IPv4 nor IPv6, or not enough of it. */
export function readPacketHeader(bytes: Uint8Array): PacketHeader | undefined {
  const version = bytes.length === 0 ? 0 : bytes[0]! >> 4;
  return version === 4 ? readIpv4(bytes) : version === 6 ? readIpv6(bytes) : undefined;
}

const be16 = (bytes: Uint8Array, at: number): number => bytes[at]! << 8 | bytes[at + 1]!;
const addressAt = (bytes: Uint8Array, at: number, length: number): Address =>
  String.fromCharCode(...bytes.subarray(at, at + length)) as Address;

function readIpv4(bytes: Uint8Array): PacketHeader | undefined {
  const headerBytes = (bytes[0]! & 0x0f) * 4;
  if (bytes.length < IPV4_HEADER_BYTES || headerBytes < IPV4_HEADER_BYTES) return undefined;
  const packet = {
    protocol: bytes[9]!,
    source: addressAt(bytes, 12, 4),
    destination: addressAt(bytes, 16, 4),
  };
  const isFirst = (be16(bytes, 6) & 0x1fff) === 0;
  return { packet: isFirst ? withTransport(packet, bytes, headerBytes) : packet, lengthBytes: be16(bytes, 2) };
}

function readIpv6(bytes: Uint8Array): PacketHeader | undefined {
  if (bytes.length < IPV6_HEADER_BYTES) return undefined;
  const ends = { source: addressAt(bytes, 8, 16), destination: addressAt(bytes, 24, 16) };
  const lengthBytes = IPV6_HEADER_BYTES + be16(bytes, 4);
  let protocol = bytes[6]!, at = IPV6_HEADER_BYTES;
  for (let count = 0; count < EXTENSIONS_MAX && isExtension(protocol) && at + 8 <= bytes.length; count++) {
    const next = bytes[at]!;
    if (protocol === FRAGMENT && (be16(bytes, at + 2) & 0xfff8) !== 0) {
      // A later fragment: the transport header went with the first one.
      return { packet: { protocol: next, ...ends }, lengthBytes };
    }
    // RFC 4302 section 2.2 counts in 4 bytes less 2, RFC 8200 in 8 bytes less 1; a fragment header has no length.
    at += protocol === FRAGMENT ? 8 : protocol === AUTHENTICATION ? (bytes[at + 1]! + 2) * 4 : (bytes[at + 1]! + 1) * 8;
    protocol = next;
  }
  return { packet: withTransport({ protocol, ...ends }, bytes, at), lengthBytes };
}

const isExtension = (protocol: number): boolean =>
  protocol === HOP_BY_HOP || protocol === ROUTING || protocol === FRAGMENT || protocol === AUTHENTICATION ||
  protocol === DESTINATION_OPTIONS;

/** Ports, or ICMP type and code, where they are among the bytes. */
function withTransport(packet: Packet, bytes: Uint8Array, at: number): Packet {
  const { protocol } = packet;
  if (hasPorts(protocol) && at + 4 <= bytes.length) {
    return { ...packet, sourcePort: be16(bytes, at), destinationPort: be16(bytes, at + 2) };
  }
  if ((protocol === PROTOCOLS.ICMP || protocol === PROTOCOLS.ICMPv6) && at + 2 <= bytes.length) {
    return { ...packet, icmp: { type: bytes[at]!, code: bytes[at + 1]! } };
  }
  return packet;
}
