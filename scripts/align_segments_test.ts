import { expect, test } from "bun:test";
import { chmodSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { alignSegments, HUGE_PAGE_BYTES } from "./align_segments.ts";

const PROGRAM = realpathSync("/bin/sh");

interface Segment {
  readonly offset: number;
  readonly address: number;
}

function loadSegments(file: Uint8Array): Segment[] {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const found: Segment[] = [];
  for (let i = 0; i < view.getUint16(56, true); i++) {
    const header = Number(view.getBigUint64(32, true)) + i * 56;
    if (view.getUint32(header, true) !== 1) continue;
    found.push({
      offset: Number(view.getBigUint64(header + 8, true)),
      address: Number(view.getBigUint64(header + 16, true)),
    });
  }
  return found;
}

test("each segment's place and address agree modulo a huge page, and the program runs as before", () => {
  const directory = mkdtempSync(join(tmpdir(), "manx-align-"));
  try {
    const before = readFileSync(PROGRAM);
    expect(loadSegments(before).some((segment) => (segment.address - segment.offset) % HUGE_PAGE_BYTES !== 0)).toBe(
      true,
    );
    const after = alignSegments(before);
    for (const { offset, address } of loadSegments(after)) expect((address - offset) % HUGE_PAGE_BYTES).toBe(0);
    expect(loadSegments(after).map(({ address }) => address)).toEqual(
      loadSegments(before).map(({ address }) => address),
    );

    const copy = join(directory, "sh");
    writeFileSync(copy, after);
    chmodSync(copy, 0o755);
    const run = Bun.spawnSync([copy, "-c", "echo $((6 * 7))"]);
    expect(run.stdout.toString()).toBe("42\n");
    expect(run.exitCode).toBe(0);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

test("what is aligned already stays as it is", () => {
  const aligned = alignSegments(readFileSync(PROGRAM));
  expect(alignSegments(aligned)).toEqual(aligned);
});

test("anything else than an ELF64 file is refused", () => {
  expect(() => alignSegments(new Uint8Array(10))).toThrow("found no little-endian ELF64 file");
  expect(() => alignSegments(new TextEncoder().encode("#!/bin/sh\n".repeat(20)))).toThrow(
    "found no little-endian ELF64 file",
  );
});
