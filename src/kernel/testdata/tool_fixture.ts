/** For tests: runs the real tools inside a namespace to check us by. Product code spawns nothing. */
import type { NetworkNamespace } from "../../sdk/kernel_door.ts";
import { namespacePath } from "../netns.ts";

/** Standard output of `argv` run in `namespace`. @throws {Error} with the tool's own words where it fails */
export function runIn(namespace: NetworkNamespace, ...argv: readonly string[]): string {
  const child = Bun.spawnSync(["nsenter", `--net=${namespacePath(namespace)}`, ...argv]);
  if (child.exitCode !== 0) throw new Error(`${argv.join(" ")}: ${child.stderr.toString().trim()}`);
  return child.stdout.toString();
}

/** What `body` throws. @throws {Error} where it throws nothing, or something that is no Error */
export function thrownBy(body: () => unknown): Error {
  try {
    body();
  } catch (error) {
    if (error instanceof Error) return error;
    throw new Error(`thrown, and no Error: ${String(error)}`);
  }
  throw new Error("nothing was thrown");
}
