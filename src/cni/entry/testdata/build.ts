/** The program of these tests, with the entry and without it. */
import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { attachEntry, type EntryOptions, whyNoEntry } from "../../../../scripts/attach_entry.ts";

/** Of tests that need the entry. */
export const why = whyNoEntry();

/** @throws {Error} with the compiler's words */
export function buildPrograms(directory: string, options: EntryOptions): { plain: string; entered: string } {
  const plain = join(directory, "plain"), entered = join(directory, `entered-${options.answerDeadlineMs ?? "patient"}`);
  const { success, stderr } = Bun.spawnSync([
    "gcc",
    "-O1",
    "-no-pie",
    "-fno-pie",
    join(import.meta.dir, "program.c"),
    "-o",
    plain,
  ]);
  if (!success) throw new Error(`compiling the test's program failed:\n${stderr}`);
  writeFileSync(entered, attachEntry(readFileSync(plain), options));
  chmodSync(entered, 0o755);
  return { plain, entered };
}
