/**
 * Gives an executable another entry point: src/cni/entry/entry.c, compiled into a segment of its own.
 *
 * The segment takes the place of the interpreter among the program headers, for there is no room for one more, and because the kernel would start
 * the interpreter first otherwise; the entry maps it where the program is wanted. Nothing else in the file changes.
 * Shapes: elf(5), Elf64_Ehdr, Elf64_Phdr.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ANSWER_DEADLINE_MS, ANSWER_LIMIT_BYTES } from "../src/cni/daemon.ts";
import { DEFAULT_SOCKET } from "../src/cni/network_config.ts";
import { STDIN_LIMIT_BYTES } from "../src/cni/stdio.ts";

const SOURCE = join(import.meta.dir, "..", "src", "cni", "entry", "entry.c");
/** Below where linkers put programs (0x200000 and above), above what may not be mapped (vm.mmap_min_addr, 64 KiB). */
const ENTRY_ADDRESS = 0x100000;
const PAGE_BYTES = 4096;

const EHDR_BYTES = 64, PHDR_BYTES = 56;
const ET_EXEC = 2, EM_X86_64 = 62;
const PT_LOAD = 1, PT_INTERP = 3;
const PF_R = 4, PF_X = 1;

interface ProgramHeader {
  readonly at: number;
  readonly type: number;
  readonly offset: number;
  readonly address: number;
  readonly fileBytes: number;
}

/** What the entry needs to be compiled: Debian packages. */
export const COMPILER_PACKAGES = ["gcc", "libc6-dev"];

/** Why no entry can be attached here; undefined where one can be. */
export function whyNoEntry(): string | undefined {
  if (process.arch !== "x64") return `it is written for x86-64, found ${process.arch}`;
  const wanted = `wanted the Debian packages ${COMPILER_PACKAGES.join(" and ")}`;
  if (Bun.which("gcc") === null) return `found no gcc, ${wanted}`;
  const headers = new TextEncoder().encode("#include <elf.h>\n#include <sys/syscall.h>\n");
  const { success } = Bun.spawnSync({ cmd: ["gcc", "-xc", "-fsyntax-only", "-"], stdin: headers, stderr: "ignore" });
  return success ? undefined : `found gcc without the headers of libc and the kernel, ${wanted}`;
}

/** What tests want otherwise. */
export interface EntryOptions {
  /** How long the entry waits for the daemon's answer; in whole seconds. */
  readonly answerDeadlineMs?: number;
  /** Where the configuration names none. */
  readonly defaultSocket?: string;
}

/**
 * @throws {Error} where `file` is no executable of x86-64 as linkers make it, with an interpreter and at fixed addresses; with the compiler's
 * words where that fails
 */
export function attachEntry(
  file: Uint8Array,
  { answerDeadlineMs = ANSWER_DEADLINE_MS, defaultSocket = DEFAULT_SOCKET }: EntryOptions = {},
): Uint8Array {
  const { entry, headers, headersAt } = readElf(file);
  const interpreter = headers.find((header) => header.type === PT_INTERP);
  const holder = headers.find((header) =>
    header.type === PT_LOAD && header.offset <= headersAt && headersAt < header.offset + header.fileBytes
  );
  const lowest = Math.min(...headers.filter((header) => header.type === PT_LOAD).map((header) => header.address));
  if (interpreter === undefined || holder === undefined || lowest < ENTRY_ADDRESS + 2 * PAGE_BYTES) {
    throw new Error(
      "attaching the entry: found another executable than expected, wanted an interpreter, program headers that are mapped, and room below",
    );
  }
  const name = file.subarray(interpreter.offset, interpreter.offset + interpreter.fileBytes - 1);
  const segment = compileEntry({
    ENTRY_ADDRESS,
    PROGRAM_ENTRY: entry,
    PROGRAM_HEADERS: holder.address + headersAt - holder.offset,
    PROGRAM_HEADER_COUNT: headers.length,
    INTERPRETER: JSON.stringify(new TextDecoder().decode(name)),
    INTERPRETER_OFFSET: interpreter.offset,
    INTERPRETER_ADDRESS: interpreter.address,
    INTERPRETER_BYTES: interpreter.fileBytes,
    DEFAULT_SOCKET: JSON.stringify(defaultSocket),
    INPUT_LIMIT_BYTES: `${STDIN_LIMIT_BYTES}ul`,
    ANSWER_LIMIT_BYTES: `${ANSWER_LIMIT_BYTES}ul`,
    ANSWER_DEADLINE_S: Math.ceil(answerDeadlineMs / 1000),
  });
  const offset = Math.ceil(file.length / PAGE_BYTES) * PAGE_BYTES;
  const attached = new Uint8Array(offset + segment.bytes.length);
  attached.set(file);
  attached.set(segment.bytes, offset);
  const target = new DataView(attached.buffer);
  target.setBigUint64(24, BigInt(segment.entry), true);
  target.setUint32(interpreter.at, PT_LOAD, true);
  target.setUint32(interpreter.at + 4, PF_R | PF_X, true);
  const rest = [offset, ENTRY_ADDRESS, ENTRY_ADDRESS, segment.bytes.length, segment.bytes.length, PAGE_BYTES];
  rest.forEach((value, i) => target.setBigUint64(interpreter.at + 8 + i * 8, BigInt(value), true));
  return attached;
}

function readElf(file: Uint8Array) {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (
    file.length < EHDR_BYTES || view.getUint32(0) !== 0x7f454c46 || file[4] !== 2 || file[5] !== 1 ||
    view.getUint16(16, true) !== ET_EXEC || view.getUint16(18, true) !== EM_X86_64
  ) {
    throw new Error("attaching the entry: found no ELF executable of x86-64 at fixed addresses");
  }
  const number = (at: number): number => Number(view.getBigUint64(at, true));
  const headersAt = number(32), count = view.getUint16(56, true);
  if (headersAt + count * PHDR_BYTES > file.length) {
    throw new Error(`attaching the entry: found ${count} program headers at ${headersAt}, beyond the end of the file`);
  }
  const headers = Array.from({ length: count }, (_, i): ProgramHeader => {
    const at = headersAt + i * PHDR_BYTES;
    return {
      at,
      type: view.getUint32(at, true),
      offset: number(at + 8),
      address: number(at + 16),
      fileBytes: number(at + 32),
    };
  });
  return { entry: number(24), headers, headersAt };
}

/** The only segment of the compiled source, and where it begins to run. */
function compileEntry(definitions: Readonly<Record<string, string | number>>) {
  const scratch = mkdtempSync(join(tmpdir(), "manx-entry-"));
  try {
    const output = join(scratch, "entry");
    const { success, stderr } = Bun.spawnSync({
      cmd: [
        "gcc",
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-ffreestanding",
        "-fno-stack-protector",
        "-fcf-protection=none",
        "-fno-asynchronous-unwind-tables",
        "-fno-pie",
        "-no-pie",
        "-nostdlib",
        "-static",
        `-Wl,--build-id=none,-z,noseparate-code,-z,norelro,-z,noexecstack,-Ttext-segment=0x${
          ENTRY_ADDRESS.toString(16)
        }`,
        ...Object.entries(definitions).map(([name, value]) => `-D${name}=${value}`),
        SOURCE,
        "-o",
        output,
      ],
      stderr: "pipe",
    });
    if (!success) throw new Error(`compiling ${SOURCE} failed:\n${stderr}`);
    const bytes = readFileSync(output);
    const { entry, headers } = readElf(bytes);
    const segments = headers.filter((header) => header.type === PT_LOAD);
    if (segments.length !== 1 || segments[0]!.address !== ENTRY_ADDRESS) {
      throw new Error(`compiling ${SOURCE}: found ${segments.length} segments, wanted one, without writable data`);
    }
    return { entry, bytes: bytes.subarray(segments[0]!.offset, segments[0]!.offset + segments[0]!.fileBytes) };
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
