import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { digest, sha256 } from "./digest.ts";

const hex = (words: Int32Array) => [...words].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");

test("the hash is SHA-256 at every length around its block bounds", () => {
  for (let length = 0; length < 200; length++) {
    const message = Uint8Array.from({ length }, (_, i) => i * 31 + length & 0xff);
    expect(hex(sha256(message))).toBe(createHash("sha256").update(message).digest("hex"));
  }
});

test("the digest is the first 24 base32 characters of the hash of the UTF-8 text", () => {
  for (const text of ["", "abc", "é漢🙂", "x".repeat(10_000)]) {
    const bytes = createHash("sha256").update(text, "utf8").digest().subarray(0, 15);
    let bits = "";
    for (const byte of bytes) bits += byte.toString(2).padStart(8, "0");
    const wanted = bits.match(/.{5}/g)!.map((five) => "abcdefghijklmnopqrstuvwxyz234567"[parseInt(five, 2)]).join("");
    expect(digest(text)).toBe(wanted);
  }
  expect(digest("abc")).toBe("xj4bnp4pahh6uqkbidpf3lrc");
});
