/** Daemons of other processes that serve the network namespace of this one, whatever sockets they listen on. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { basename } from "node:path";

/**
 * Process ids, of what can be seen in /proc: what was started as `manx daemon`, under a file name that begins so.
 * proc(5): `cmdline`, `ns/net`.
 */
export function otherDaemons(): readonly number[] {
  const here = statSync("/proc/self/ns/net");
  const found: number[] = [];
  for (const name of readdirSync("/proc")) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    try {
      const [program = "", ...rest] = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
      if (!basename(program).startsWith("manx") || !rest.includes("daemon")) continue;
      const there = statSync(`/proc/${pid}/ns/net`);
      if (there.ino === here.ino && there.dev === here.dev) found.push(pid);
    } catch {
      // It has ended meanwhile, or is not ours to look at.
    }
  }
  return found;
}
