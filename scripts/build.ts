/** Builds `dist/manx`: one file with everything in it. `npm run build`. */
import {
  closeSync,
  fdatasyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { attachEntry, COMPILER_PACKAGES, whyNoEntry } from "./attach_entry.ts";
import { ensureDebianPackages } from "./debian.ts";

const ROOT = join(import.meta.dir, "..");
const PIECE_BYTES = 32 << 10;
export const BINARY = join(ROOT, "dist", "manx");

/** @throws {Error} with the bundler's words where the build fails; an earlier binary stays then */
export async function buildBinary(): Promise<string> {
  // In the guest of test/vm, where a build takes ten times as long, the machine outside has built it.
  if (process.env.MANX_VM !== undefined) return BINARY;
  mkdirSync(join(ROOT, "dist"), { recursive: true });
  // The bundler leaves its source maps beside its output, besides embedding them: only the binary is wanted.
  const scratch = mkdtempSync(join(ROOT, "dist", "build-"));
  const fresh = join(scratch, "manx");
  const build = Bun.spawn({
    cmd: [
      process.execPath,
      "build",
      "--compile",
      "--minify",
      "--bytecode",
      "--format=esm",
      "--splitting",
      "--sourcemap=linked",
      // Without these two a bunfig.toml or .env in the working directory would run code or set variables, as root.
      "--no-compile-autoload-dotenv",
      "--no-compile-autoload-bunfig",
      "src/main.ts",
      "--outfile",
      fresh,
    ],
    cwd: ROOT,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [output, errors, status] = await Promise.all([
    new Response(build.stdout).text(),
    new Response(build.stderr).text(),
    build.exited,
  ]);
  try {
    if (status !== 0) throw new Error(`the build of ${BINARY} failed (exit status ${status}):\n${output}${errors}`);
    const finished = join(scratch, "finished");
    writeExecutable(finished, withEntry(readFileSync(fresh)));
    // In one step, so that a running binary is never written to and a reader never sees half a file.
    renameSync(finished, BINARY);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return BINARY;
}

/** Where there is no compiler, calls of the CNI plugin work all the same, and take some milliseconds longer. */
function withEntry(program: Uint8Array): Uint8Array {
  if (process.arch === "x64") ensureDebianPackages(COMPILER_PACKAGES);
  const why = whyNoEntry();
  if (why === undefined) return attachEntry(program);
  console.error(`dist/manx: built without the entry for CNI calls: ${why}`);
  return program;
}

/**
 * In pieces, as `cp` does. What is written at once is kept together in the page cache, in huge pages at most, and a daemon that is
 * started from these counts all of each as resident memory.
 */
function writeExecutable(path: string, bytes: Uint8Array): void {
  const file = openSync(path, "wx", 0o755);
  try {
    for (let at = 0; at < bytes.length;) at += writeSync(file, bytes, at, Math.min(PIECE_BYTES, bytes.length - at));
    // Before it gets its name; and whoever measures next does not share the disk with it.
    fdatasyncSync(file);
  } finally {
    closeSync(file);
  }
}

if (import.meta.main) {
  const startMs = performance.now();
  const path = await buildBinary();
  const megabytes = statSync(path).size / 1e6;
  console.log(`dist/manx: ${megabytes.toFixed(0)} MB in ${((performance.now() - startMs) / 1000).toFixed(1)} s`);
}
