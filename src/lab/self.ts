/** The product as a command: what the lab starts its daemons and CNI calls with. */
import { existsSync } from "node:fs";
import { join } from "node:path";

/** The executable and the arguments that come before the command's own. */
export type SelfCommand = readonly string[];

/** This very program: the compiled executable, or Bun with `src/main.ts` where it runs from source. */
export function selfCommand(): SelfCommand {
  const main = join(import.meta.dir, "..", "main.ts");
  // A compiled executable carries its sources in a file system of its own, which is not on disk.
  return import.meta.dir.startsWith("/$bunfs") || !existsSync(main)
    ? [process.execPath]
    : [process.execPath, "--no-install", main];
}

/** The environment for a child that is this program: nothing that would change what it is. */
export function childEnvironment(extra: Readonly<Record<string, string>> = {}): Record<string, string> {
  const kept = Object.entries(process.env).filter((entry): entry is [string, string] => {
    const [name, value] = entry;
    return value !== undefined && !name.startsWith("CNI_") &&
      (!name.startsWith("BUN_") || name === "BUN_JSC_forceRAMSize");
  });
  return { ...Object.fromEntries(kept), ...extra };
}
