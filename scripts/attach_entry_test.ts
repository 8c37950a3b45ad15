import { expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildPrograms, why } from "../src/cni/entry/testdata/build.ts";
import { attachEntry } from "./attach_entry.ts";

const PHDR_BYTES = 56;
const PT_LOAD = 1, PT_INTERP = 3;

interface Headers {
  readonly entry: bigint;
  readonly types: readonly number[];
  readonly loads: readonly { readonly offset: bigint; readonly address: bigint; readonly bytes: bigint }[];
}

function headersOf(file: Uint8Array): Headers {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const at = Number(view.getBigUint64(32, true));
  const headers = Array.from({ length: view.getUint16(56, true) }, (_, i) => at + i * PHDR_BYTES);
  return {
    entry: view.getBigUint64(24, true),
    types: headers.map((at) => view.getUint32(at, true)),
    loads: headers.filter((at) => view.getUint32(at, true) === PT_LOAD).map((at) => ({
      offset: view.getBigUint64(at + 8, true),
      address: view.getBigUint64(at + 16, true),
      bytes: view.getBigUint64(at + 32, true),
    })),
  };
}

test.skipIf(why !== undefined)(
  `the entry takes the interpreter's place, and nothing else changes${why === undefined ? "" : ` (skipped: ${why})`}`,
  () => {
    const directory = mkdtempSync(join(tmpdir(), "manx-attach-"));
    try {
      const { plain, entered } = buildPrograms(directory, {});
      const before = readFileSync(plain), after = readFileSync(entered);
      const [was, is] = [headersOf(before), headersOf(after)];
      expect(is.types).toEqual(was.types.map((type) => type === PT_INTERP ? PT_LOAD : type));
      const added = is.loads.filter(({ address }) => !was.loads.some((load) => load.address === address));
      expect(added).toHaveLength(1);
      const { offset, address, bytes } = added[0]!;
      expect(offset % 4096n).toBe(0n);
      expect(Number(offset + bytes)).toBe(after.length);
      expect(is.entry >= address && is.entry < address + bytes).toBe(true);
      // Ascending, as elf(5) wants it.
      expect(is.loads.map((load) => load.address)).toEqual(
        is.loads.map((load) => load.address).toSorted((a, b) => a < b ? -1 : 1),
      );
      const changed = [...before.keys()].filter((i) => before[i] !== after[i]);
      const header = 64 + was.types.indexOf(PT_INTERP) * PHDR_BYTES;
      expect(changed.filter((i) => !(i >= 24 && i < 32) && !(i >= header && i < header + PHDR_BYTES))).toEqual([]);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  },
);

test("what is no executable of x86-64 is refused", () => {
  expect(() => attachEntry(new Uint8Array(0))).toThrow("no ELF executable");
  expect(() => attachEntry(new TextEncoder().encode("#!/bin/sh\n".repeat(10)))).toThrow("no ELF executable");
  // Position-independent: /bin/true.
  expect(() => attachEntry(readFileSync("/bin/true"))).toThrow("no ELF executable of x86-64 at fixed addresses");
  const empty = new Uint8Array(64);
  empty.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  empty.set([2, 0, 62, 0], 16);
  expect(() => attachEntry(empty)).toThrow("another executable than expected");
  // Headers that lie outside of the file.
  empty.set([9, 0], 56);
  expect(() => attachEntry(empty)).toThrow("program headers");
});
