/** For tests: Ethernet frames with TCP in them, made by hand and sent from a pod, whatever its sockets would send. */
import { AF, buffer, check, close, sendto, SOCK, socket } from "../../../src/kernel/libc.ts";
import { inNamespace } from "../../../src/kernel/netns.ts";
import { runIn } from "../../../src/kernel/testdata/tool_fixture.ts";
import { internetChecksum } from "../../../src/lab/packets.ts";
import type { Address } from "../../../src/model/address.ts";
import type { NetworkNamespace } from "../../../src/sdk/kernel_door.ts";

/** struct tcphdr's flags. */
export const FLAG = { fin: 1, syn: 2, rst: 4, ack: 16 } as const;

export interface Segment {
  readonly source: Address;
  readonly destination: Address;
  readonly sourcePort: number;
  readonly destinationPort: number;
  /** `FLAG` bits; absent: `ack`. */
  readonly flags?: number;
  /** Absent: 64. */
  readonly hops?: number;
  /** IPv4: options in its header; IPv6: a destination options header before TCP. */
  readonly options?: boolean;
  /** Absent: 0. */
  readonly dscp?: number;
  /** More fragments follow. */
  readonly fragment?: boolean;
  readonly vlan?: number;
  /** Link address that it goes to; absent: the node's. */
  readonly to?: string;
}

const bytesOf = (text: string): number[] => Array.from(text, (one) => one.charCodeAt(0));
const be16 = (value: number): number[] => [value >> 8, value & 0xff];
const hardware = (text: string): number[] => text.split(":").map((part) => Number.parseInt(part, 16));

function tcp({ source, destination, sourcePort, destinationPort, flags = FLAG.ack }: Segment): number[] {
  const header = (checksum: number) => [
    ...be16(sourcePort),
    ...be16(destinationPort),
    ...[0, 0, 0, 0, 0, 0, 0, 0],
    ...[0x50, flags],
    ...be16(1_000),
    ...be16(checksum),
    ...[0, 0],
  ];
  const pseudo = [...bytesOf(source), ...bytesOf(destination), 0, 6, ...be16(20)];
  return header(internetChecksum(Uint8Array.from([...pseudo, ...header(0)])));
}

/** RFC 791 and RFC 8200. */
function packet(segment: Segment): number[] {
  const { source, destination, hops = 64, dscp = 0, options = false, fragment = false } = segment;
  const payload = tcp(segment);
  if (source.length === 16) {
    // Header extension length 0: 8 bytes, of which 6 are PadN (RFC 8200 section 4.2).
    const extension = options ? [6, 0, 1, 4, 0, 0, 0, 0] : fragment ? [6, 0, 0, 1, 0, 0, 0, 7] : [];
    const next = options ? 60 : fragment ? 44 : 6;
    const length = be16(extension.length + payload.length);
    return [
      0x60 | dscp >> 2,
      dscp << 6 & 0xff,
      0,
      0,
      ...length,
      next,
      hops,
      ...bytesOf(source),
      ...bytesOf(destination),
      ...extension,
      ...payload,
    ];
  }
  // Four times "no operation".
  const more = options ? [1, 1, 1, 1] : [];
  const header = (checksum: number) => [
    0x45 + more.length / 4,
    dscp << 2,
    ...be16(20 + more.length + payload.length),
    ...[0, 7, fragment ? 0x20 : 0x40, 0],
    ...[hops, 6],
    ...be16(checksum),
    ...bytesOf(source),
    ...bytesOf(destination),
    ...more,
  ];
  return [...header(internetChecksum(Uint8Array.from(header(0)))), ...payload];
}

const addressOfLink = (namespace: NetworkNamespace, link: string): string =>
  JSON.parse(runIn(namespace, "ip", "-j", "link", "show", link))[0].address;

/** Sends from the link `eth0` of `pod` to the link of the node at its other end. */
export class FrameSender implements Disposable {
  readonly #fd: number;
  readonly #from: string;
  readonly #to: string;
  readonly #link: Uint8Array<ArrayBuffer>;

  constructor(pod: NetworkNamespace, node: NetworkNamespace, nodeLink: string) {
    this.#from = addressOfLink(pod, "eth0");
    this.#to = addressOfLink(node, nodeLink);
    const index = JSON.parse(runIn(pod, "ip", "-j", "link", "show", "eth0"))[0].ifindex as number;
    // struct sockaddr_ll, include/uapi/linux/if_packet.h.
    this.#link = buffer(20);
    const view = new DataView(this.#link.buffer);
    view.setUint16(0, AF.PACKET, true);
    view.setInt32(4, index, true);
    this.#fd = inNamespace(pod, () => check("socket", socket(AF.PACKET, SOCK.RAW | SOCK.CLOEXEC, 0)));
  }

  send(segment: Segment): void {
    const etherType = segment.source.length === 4 ? [0x08, 0x00] : [0x86, 0xdd];
    const tag = segment.vlan === undefined ? [] : [0x81, 0x00, ...be16(segment.vlan)];
    const frame = [
      ...hardware(segment.to ?? this.#to),
      ...hardware(this.#from),
      ...tag,
      ...etherType,
      ...packet(segment),
    ];
    const bytes = buffer(frame.length);
    bytes.set(frame);
    check("send a frame", sendto(this.#fd, bytes, 0, this.#link));
  }

  [Symbol.dispose](): void {
    close(this.#fd);
  }
}
