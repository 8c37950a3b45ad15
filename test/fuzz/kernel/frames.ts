/** Packets as bytes: what a fuzzed packet looks like on a wire, with a serial number in it, and back. Pure. */
import { type Address, addressBytes, addressFamily, type Family, parseAddress } from "../../../src/model/address.ts";
import { hasPorts, PROTOCOLS } from "../../../src/model/ports.ts";
import { crc32c, internetChecksum } from "../../../src/lab/packets.ts";
import type { FuzzPacket } from "../packet.ts";

/** Before a serial number, so that nobody else's bytes are taken for one. */
const MAGIC = 0x6d786675;
const SERIAL_BYTES = 8;
const HOPS = 64;
/** Neighbour discovery is heard with this many only: RFC 4861 section 6.1. */
const NEIGHBOUR_HOPS = 255;
/** ETH_P_IP, ETH_P_IPV6, include/uapi/linux/if_ether.h. */
export const ETHERTYPE: Readonly<Record<Family, number>> = { 4: 0x0800, 6: 0x86dd };
const IP_HEADER_BYTES: Readonly<Record<Family, number>> = { 4: 20, 6: 40 };

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
const bytesOf = (length: number): Uint8Array<ArrayBuffer> => new Uint8Array(new ArrayBuffer(length));

/** An IP packet from its header on: as it is sent, so with addresses and ports before DNAT. */
export function ipPacket(packet: FuzzPacket, serial: number): Uint8Array<ArrayBuffer> {
  const source = parseAddress(packet.source);
  const destination = parseAddress(packet.beforeDnat?.destination ?? packet.destination);
  const family = addressFamily(source);
  const payload = transport(packet, serial, source, destination);
  const header = IP_HEADER_BYTES[family];
  const bytes = bytesOf(header + payload.length);
  const view = viewOf(bytes);
  const isNeighbour = packet.protocol === PROTOCOLS.ICMPv6 && (packet.icmp?.type ?? 0) >= 130;
  if (family === 4) {
    view.setUint8(0, 0x45);
    view.setUint16(2, bytes.length);
    view.setUint16(4, serial & 0xffff);
    view.setUint8(8, HOPS);
    view.setUint8(9, packet.protocol);
    bytes.set(addressBytes(source), 12);
    bytes.set(addressBytes(destination), 16);
    view.setUint16(10, internetChecksum(bytes.subarray(0, 20)));
  } else {
    view.setUint8(0, 0x60);
    view.setUint16(4, payload.length);
    view.setUint8(6, packet.protocol);
    view.setUint8(7, isNeighbour ? NEIGHBOUR_HOPS : HOPS);
    bytes.set(addressBytes(source), 8);
    bytes.set(addressBytes(destination), 24);
  }
  bytes.set(payload, header);
  return bytes;
}

/** What was sent as `serial`, if this is one of ours. `packet` begins with its IP header. */
export function serialOf(packet: Uint8Array): number | undefined {
  if (packet.length < 20) return undefined;
  const family = packet[0]! >> 4 === 6 ? 6 : 4;
  const header = family === 4 ? (packet[0]! & 15) * 4 : 40;
  return serialOfTransport(packet[family === 4 ? 9 : 6]!, packet.subarray(header));
}

/** Likewise, from the header behind IP's on. */
export function serialOfTransport(protocol: number, payload: Uint8Array): number | undefined {
  const view = viewOf(payload);
  if (protocol === PROTOCOLS.SCTP) {
    const isInit = payload.length >= SCTP_INIT_BYTES && payload[12] === 1;
    return isInit && view.getUint32(24) === MAGIC ? view.getUint32(16) : undefined;
  }
  const at = payload.length - SERIAL_BYTES;
  return at >= 0 && view.getUint32(at) === MAGIC ? view.getUint32(at + 4) : undefined;
}

/** How long the header is that a packet's serial follows. */
function headerBytes({ protocol, icmp }: FuzzPacket): number {
  if (protocol === PROTOCOLS.TCP) return 20;
  if (hasPorts(protocol)) return 8;
  // As long as neighbour discovery must be, RFC 4861 section 4; of other protocols nothing is known.
  return icmp === undefined ? 16 : 24;
}

function transport(packet: FuzzPacket, serial: number, source: Address, destination: Address): Uint8Array<ArrayBuffer> {
  const { protocol } = packet;
  const to = packet.beforeDnat?.destinationPort ?? packet.destinationPort;
  if (protocol === PROTOCOLS.SCTP) return sctpInit(packet, serial);
  const sized = headerBytes(packet);
  const bytes = bytesOf(sized + SERIAL_BYTES);
  const view = viewOf(bytes);
  view.setUint32(sized, MAGIC);
  view.setUint32(sized + 4, serial);
  if (hasPorts(protocol)) {
    view.setUint16(0, packet.sourcePort!);
    view.setUint16(2, to!);
  }
  switch (protocol) {
    case PROTOCOLS.TCP:
      view.setUint32(4, serial);
      view.setUint8(12, 5 << 4);
      view.setUint8(13, 0x02); // SYN
      view.setUint16(14, 0xffff);
      view.setUint16(16, checksum(protocol, source, destination, bytes));
      break;
    case PROTOCOLS.UDP:
      view.setUint16(4, bytes.length);
      // RFC 768: a sum of zero is sent as all ones.
      view.setUint16(6, checksum(protocol, source, destination, bytes) || 0xffff);
      break;
    case PROTOCOLS.UDPLite:
      // Coverage of zero is the whole packet, RFC 3828. Its number would belong into the sum, but connection tracking looks for UDP's
      // and calls a right one invalid (udplite_error, net/netfilter/nf_conntrack_proto_udp.c): this is what passes it.
      view.setUint16(6, checksum(PROTOCOLS.UDP, source, destination, bytes) || 0xffff);
      break;
    default:
      if (packet.icmp === undefined) break;
      view.setUint8(0, packet.icmp.type);
      view.setUint8(1, packet.icmp.code);
      view.setUint16(4, serial & 0xffff); // identifier
      view.setUint16(
        2,
        protocol === PROTOCOLS.ICMP ? internetChecksum(bytes) : checksum(protocol, source, destination, bytes),
      );
  }
  return bytes;
}

const SCTP_INIT_BYTES = 32;

/** RFC 9260 section 3.3.2. The serial is its tag; the magic stands in the place of the numbers of streams, which nobody reads. */
function sctpInit(packet: FuzzPacket, serial: number): Uint8Array<ArrayBuffer> {
  const bytes = bytesOf(SCTP_INIT_BYTES);
  const view = viewOf(bytes);
  view.setUint16(0, packet.sourcePort!);
  view.setUint16(2, packet.beforeDnat?.destinationPort ?? packet.destinationPort!);
  view.setUint8(12, 1);
  view.setUint16(14, 20);
  view.setUint32(16, serial);
  view.setUint32(20, 65_536);
  view.setUint32(24, MAGIC);
  view.setUint32(28, serial);
  view.setUint32(8, crc32c(bytes), true);
  return bytes;
}

/** Over the pseudo header: RFC 9293 section 3.1, RFC 8200 section 8.1. */
function checksum(protocol: number, source: Address, destination: Address, payload: Uint8Array): number {
  const pseudo = bytesOf(source.length * 2 + 8 + payload.length);
  pseudo.set(addressBytes(source), 0);
  pseudo.set(addressBytes(destination), source.length);
  const view = viewOf(pseudo);
  view.setUint32(source.length * 2, payload.length);
  pseudo[source.length * 2 + 7] = protocol;
  pseudo.set(payload, source.length * 2 + 8);
  return internetChecksum(pseudo);
}

/** struct ethhdr and what follows. `to` and `from`: 6 bytes each. */
export function frame(
  to: Uint8Array,
  from: Uint8Array,
  etherType: number,
  payload: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const bytes = bytesOf(14 + payload.length);
  bytes.set(to, 0);
  bytes.set(from, 6);
  viewOf(bytes).setUint16(12, etherType);
  bytes.set(payload, 14);
  return bytes;
}
