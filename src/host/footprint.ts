/** Memory that only the start needed. */
import { readFileSync } from "node:fs";
import { MADV, madvise } from "../kernel/libc.ts";

/**
 * Unmaps the executable's code and constants that have been read so far: most of them served the start alone. What is used again comes back from the
 * page cache, where it stays. @returns bytes of the mappings that were let go; 0 where that cannot be done
 */
export function releaseStartPages(): number {
  let released = 0;
  try {
    // Of each mapping first a line with its range, then a line for each of its numbers: proc_pid_smaps(5).
    for (const mapping of readFileSync("/proc/self/smaps", "utf8").split(/\n(?=[0-9a-f]+-[0-9a-f]+ )/)) {
      const match = /^([0-9a-f]+)-([0-9a-f]+) r-[-x]p [0-9a-f]+ \S+ [1-9]\d* +(\/.*)$/m.exec(mapping);
      // "Anonymous: 0" says that no page differs from the file: nothing can be lost with it.
      if (match === null || match[3] !== process.execPath || !/^Anonymous: +0 kB$/m.test(mapping)) continue;
      const [first, end] = [parseInt(match[1]!, 16), parseInt(match[2]!, 16)];
      if (madvise(first, end - first, MADV.DONTNEED) === 0) released += end - first;
    }
  } catch {
    // Without /proc there is nothing to let go of, and nothing lost.
  }
  return released;
}
