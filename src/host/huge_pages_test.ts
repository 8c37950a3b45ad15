import { expect, test } from "bun:test";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { release, tmpdir } from "node:os";
import { join } from "node:path";
import { fileSystemType } from "../kernel/libc.ts";
import { HUGE_PAGE_BYTES, readIntoHugePages } from "./huge_pages.ts";

const EXT4_MAGIC = 0xef53;
const PIECES = 4;

const directory = mkdtempSync(join(tmpdir(), "manx-huge-"));
const never = new AbortController().signal;

/** Written in small pieces, so that the page cache has it in small pages. */
function writeInSmallPieces(path: string, bytes: Uint8Array): void {
  const file = openSync(path, "w");
  for (let at = 0; at < bytes.length; at += 4096) writeSync(file, bytes, at, Math.min(4096, bytes.length - at));
  closeSync(file);
}

/** Whether this filesystem keeps huge pages: ext4 does since Linux 6.16. */
function expectsHugePages(): boolean {
  const file = openSync(directory, "r");
  const type = fileSystemType(file);
  closeSync(file);
  const [major, minor] = release().split(".").map(Number);
  return type === EXT4_MAGIC && major! * 100 + minor! >= 616;
}

test("a file of small pages is in huge ones afterwards, with the same bytes, and then stays as it is", async () => {
  try {
    const path = join(directory, "file");
    const bytes = new Uint8Array(PIECES * HUGE_PAGE_BYTES + 5000).map((_, i) => (i * 7919) >> 8);
    writeInSmallPieces(path, bytes);
    const wanted = { fileBytes: bytes.length, hugeBytes: expectsHugePages() ? PIECES * HUGE_PAGE_BYTES : 0 };
    expect(await readIntoHugePages(path, never)).toEqual(wanted);
    expect(readFileSync(path).equals(bytes)).toBe(true);
    expect(await readIntoHugePages(path, never)).toEqual(wanted);

    const small = join(directory, "small");
    writeFileSync(small, "less than a huge page");
    expect(await readIntoHugePages(small, never)).toEqual({ fileBytes: 21, hugeBytes: 0 });

    mkdirSync(join(directory, "directory"));
    expect(readIntoHugePages(join(directory, "directory"), never)).rejects.toThrow("found no regular file");
    expect(readIntoHugePages(join(directory, "none"), never)).rejects.toThrow("ENOENT");
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
