/** Who holds a lock, for people. */
import { readFileSync, statSync } from "node:fs";

/** Of one that holds it: `1: FLOCK  ADVISORY  WRITE 4711 fe:00:9979729 0 EOF`, major:minor (hexadecimal) and inode; proc_locks(5). */
const HELD = /^\d+: FLOCK +\S+ +\S+ +(\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) /gm;

/** `process 4711, iptables-restor`; undefined where it cannot be told: it is in another process namespace, or nobody holds it any more. */
export function holderOf(path: string): string | undefined {
  try {
    const { dev, ino } = statSync(path);
    // new_decode_dev of include/linux/kdev_t.h.
    const major = dev >>> 8 & 0xfff, minor = dev & 0xff | dev >>> 12 & 0xfff00;
    for (const [, pid, heldMajor, heldMinor, inode] of readFileSync("/proc/locks", "utf8").matchAll(HELD)) {
      const isIt = Number(inode) === ino && parseInt(heldMajor!, 16) === major && parseInt(heldMinor!, 16) === minor;
      if (!isIt || Number(pid) === process.pid || pid === "0") continue;
      return `process ${pid}, ${readFileSync(`/proc/${pid}/comm`, "utf8").trim()}`;
    }
  } catch {
    // It has ended meanwhile, or /proc is not to be seen.
  }
  return undefined;
}
