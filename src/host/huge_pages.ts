/**
 * A file's page cache as huge pages.
 *
 * A runtime starts the CNI plugin anew for each call, and mapping an executable by small pages, thousands of them, costs more than the call's
 * own work. Read in pieces of 2 MiB the page cache keeps it as huge pages, and each start maps these whole. Needs a filesystem that knows them
 * (ext4 since Linux 6.16, xfs, btrfs) and an executable whose segments are aligned to them; elsewhere this reads the file and changes nothing.
 */
import { open } from "node:fs/promises";
import { readFileSync } from "node:fs";
import { check, FADV, fadvise, MADV, madvise, MAP, mmap, munmap, PROT } from "../kernel/libc.ts";

export const HUGE_PAGE_BYTES = 2 << 20;

export interface HugePages {
  readonly fileBytes: number;
  /** How many of them are in huge pages now. */
  readonly hugeBytes: number;
}

/**
 * Reads `path` into huge pages where it is not in them yet. Holds the thread for one piece of 2 MiB at a time.
 * @throws {KernelError} and errors of node:fs where the file cannot be read or mapped
 */
export async function readIntoHugePages(path: string, signal: AbortSignal): Promise<HugePages> {
  const file = await open(path, "r");
  try {
    const status = await file.stat();
    if (!status.isFile()) throw new Error(`reading ${path} into huge pages: found no regular file`);
    const fileBytes = status.size;
    const pieces = Math.floor(fileBytes / HUGE_PAGE_BYTES);
    if (pieces === 0) return { fileBytes, hugeBytes: 0 };
    const found = await mapped(file.fd, fileBytes, pieces, signal);
    // A piece or two may be in use by small pages for ever; most of them decide whether it is worth reading anew.
    if (found * 8 >= pieces * HUGE_PAGE_BYTES * 7 || signal.aborted) return { fileBytes, hugeBytes: found };
    // Pages not yet written to the disk, as those of a fresh copy, would stay.
    await file.datasync();
    check("dropping the page cache of a file", fadvise(file.fd, 0, 0, FADV.DONTNEED));
    return { fileBytes, hugeBytes: await mapped(file.fd, fileBytes, pieces, signal) };
  } finally {
    await file.close();
  }
}

/** Maps the file, reads what is not in the page cache by huge pages, and tells how many bytes the kernel mapped by them. */
async function mapped(fd: number, fileBytes: number, pieces: number, signal: AbortSignal): Promise<number> {
  const reservedBytes = fileBytes + HUGE_PAGE_BYTES;
  const reserved = check("mmap", mmap(0, reservedBytes, PROT.NONE, MAP.PRIVATE | MAP.ANONYMOUS | MAP.NORESERVE, -1));
  try {
    const start = Math.ceil(reserved / HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES;
    check("mmap of a file", mmap(start, fileBytes, PROT.READ, MAP.SHARED | MAP.FIXED, fd));
    // Says nothing where the kernel has no huge pages: then the next calls read by small ones.
    madvise(start, fileBytes, MADV.HUGEPAGE);
    for (let piece = 0; piece < pieces && !signal.aborted; piece++) {
      madvise(start + piece * HUGE_PAGE_BYTES, HUGE_PAGE_BYTES, MADV.POPULATE_READ);
      await new Promise<void>((resume) => setImmediate(resume));
    }
    return hugeBytesAt(start);
  } finally {
    munmap(reserved, reservedBytes);
  }
}

/** FilePmdMapped of the mapping that begins at `start`, proc_pid_smaps(5). */
function hugeBytesAt(start: number): number {
  const text = readFileSync("/proc/self/smaps", "utf8");
  const at = text.search(new RegExp(`^0*${start.toString(16)}-`, "m"));
  const kilobytes = at < 0 ? undefined : /^FilePmdMapped: +(\d+) kB$/m.exec(text.slice(at))?.[1];
  return Number(kilobytes ?? 0) * 1024;
}
