/**
 * Moves the segments of an executable within its file so that the kernel can map it by huge pages.
 *
 * A huge page of the page cache can be mapped whole only where its place in the file and its address agree modulo its size. Linkers align to
 * small pages. Some kilobytes of padding before a segment are enough; no address changes, so nothing in the program does.
 * Shapes: elf(5), Elf64_Ehdr, Elf64_Phdr, Elf64_Shdr.
 */

/** Of x86-64 and of arm64 with pages of 4 KiB. */
export const HUGE_PAGE_BYTES = 2 << 20;
const PAGE_BYTES = 4096;

const PT_LOAD = 1;
const PROGRAM_HEADER_BYTES = 56;
const SECTION_HEADER_BYTES = 64;

/** @throws {Error} where `file` is no little-endian ELF64 file, or its segments lie in it otherwise than linkers put them */
export function alignSegments(file: Uint8Array): Uint8Array {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (file.length < 64 || view.getUint32(0) !== 0x7f454c46 || file[4] !== 2 || file[5] !== 1) {
    throw new Error("aligning an executable: found no little-endian ELF64 file");
  }
  const number = (at: number): number => Number(view.getBigUint64(at, true));
  const programHeaders = number(32), sectionHeaders = number(40);
  const segmentCount = view.getUint16(56, true), sectionCount = view.getUint16(60, true);

  // What begins at `from` moves by `by`; each segment with the page it begins in, whose beginning may belong to the one before as well.
  const moves: { readonly from: number; readonly by: number }[] = [];
  let by = 0;
  for (let i = 0; i < segmentCount; i++) {
    const header = programHeaders + i * PROGRAM_HEADER_BYTES;
    if (view.getUint32(header, true) !== PT_LOAD) continue;
    const offset = number(header + 8), address = number(header + 16);
    const before = moves.at(-1);
    if (before !== undefined && offset < before.from) {
      throw new Error(
        `aligning an executable: found a segment at ${offset} after one at ${before.from}, wanted them in order`,
      );
    }
    const apart = (address - offset - by) % HUGE_PAGE_BYTES;
    by += apart < 0 ? apart + HUGE_PAGE_BYTES : apart;
    if (by % PAGE_BYTES !== 0) {
      throw new Error(`aligning an executable: the segment at ${offset} and its address differ within a page`);
    }
    moves.push({ from: offset, by });
  }
  const moved = (offset: number): number => offset + (moves.findLast((move) => move.from <= offset)?.by ?? 0);

  const aligned = new Uint8Array(file.length + by);
  moves.forEach(({ from, by }, i) => {
    const first = from - from % PAGE_BYTES;
    aligned.set(file.subarray(first, moves[i + 1]?.from ?? file.length), first + by);
  });
  const target = new DataView(aligned.buffer);
  for (let i = 0; i < segmentCount; i++) {
    const at = programHeaders + i * PROGRAM_HEADER_BYTES + 8;
    target.setBigUint64(at, BigInt(moved(number(at))), true);
  }
  target.setBigUint64(40, BigInt(moved(sectionHeaders)), true);
  for (let i = 0; i < sectionCount; i++) {
    const at = sectionHeaders + i * SECTION_HEADER_BYTES + 24;
    target.setBigUint64(moved(at), BigInt(moved(number(at))), true);
  }
  return aligned;
}
