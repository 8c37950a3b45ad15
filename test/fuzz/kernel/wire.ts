/** The end of a link that a place holds: frames are put on it as they are, and what comes out of it is seen. AF_PACKET, packet(7). */
import {
  AF,
  bind,
  buffer,
  check,
  close,
  MSG,
  recvfrom,
  send,
  setsockoptInt,
  SO,
  SOCK,
  socket,
  SOL,
} from "../../../src/kernel/libc.ts";
import { inNamespace } from "../../../src/kernel/netns.ts";
import type { NetworkNamespace } from "../../../src/sdk/kernel_door.ts";

/** ETH_P_ALL, include/uapi/linux/if_ether.h. */
const EVERY_PROTOCOL = 0x0003;
/** PACKET_OUTGOING, include/uapi/linux/if_packet.h: a copy of what we sent ourselves. */
const OUTGOING = 4;
const QUEUE_BYTES = 8 << 20;

export class Wire implements Disposable {
  readonly #fd: number;
  readonly #inbox = buffer(2_048);

  /** `index`: of the link in that namespace. @throws {KernelError} */
  constructor(namespace: NetworkNamespace, index: number) {
    const bigEndian = (value: number) => (value & 0xff) << 8 | value >> 8;
    this.#fd = check(
      "open a packet socket",
      inNamespace(
        namespace,
        () => socket(AF.PACKET, SOCK.RAW | SOCK.NONBLOCK | SOCK.CLOEXEC, bigEndian(EVERY_PROTOCOL)),
      ),
    );
    setsockoptInt(this.#fd, SOL.SOCKET, SO.RCVBUFFORCE, QUEUE_BYTES);
    // struct sockaddr_ll
    const address = buffer(20);
    const view = new DataView(address.buffer);
    view.setUint16(0, AF.PACKET, true);
    view.setUint16(2, EVERY_PROTOCOL, false);
    view.setInt32(4, index, true);
    check("bind a packet socket", bind(this.#fd, address));
  }

  get fd(): number {
    return this.#fd;
  }

  /** Puts a frame on the wire. @throws {KernelError} */
  send(frame: Uint8Array): void {
    check("send a frame", send(this.#fd, frame, MSG.DONTWAIT));
  }

  /** Everything that has come since the last time, from its Ethernet header on; valid during the call only. */
  receive(take: (frame: Uint8Array) => void): void {
    for (;;) {
      const { count, from } = recvfrom(this.#fd, this.#inbox, MSG.DONTWAIT);
      if (count < 0) return;
      if (from[10] !== OUTGOING) take(this.#inbox.subarray(0, count));
    }
  }

  [Symbol.dispose](): void {
    close(this.#fd);
  }
}
