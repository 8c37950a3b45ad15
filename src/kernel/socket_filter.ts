/** Classic BPF on a socket: the kernel queues only what the program lets through. include/uapi/linux/filter.h, bpf_common.h. */
import { ptr } from "bun:ffi";
import { buffer, setsockopt, SOL } from "./libc.ts";

/** struct sock_filter: opcode, jump when true, jump when false, constant. */
export type FilterInstruction = readonly [code: number, jumpTrue: number, jumpFalse: number, constant: number];

/** SO_ATTACH_FILTER, include/uapi/asm-generic/socket.h. */
const SO_ATTACH_FILTER = 26;

/** 0, or -errno. The kernel copies the program. */
export function attachFilter(fd: number, program: readonly FilterInstruction[]): number {
  const instructions = buffer(program.length * 8);
  const view = new DataView(instructions.buffer);
  program.forEach(([code, jumpTrue, jumpFalse, constant], index) => {
    view.setUint16(index * 8, code, true);
    view.setUint8(index * 8 + 2, jumpTrue);
    view.setUint8(index * 8 + 3, jumpFalse);
    view.setUint32(index * 8 + 4, constant, true);
  });
  // struct sock_fprog: length, padding, pointer.
  const head = buffer(16);
  const headView = new DataView(head.buffer);
  headView.setUint16(0, program.length, true);
  headView.setBigUint64(8, BigInt(ptr(instructions)), true);
  return setsockopt(fd, SOL.SOCKET, SO_ATTACH_FILTER, head);
}
