import { expect, test } from "bun:test";
import { CniError } from "./errors.ts";
import { readStdin, STDIN_LIMIT_BYTES } from "./stdio.ts";

function refusal(read: (limitBytes: number) => Uint8Array): CniError {
  try {
    readStdin(read);
  } catch (error) {
    if (error instanceof CniError) return error;
  }
  throw new Error("nothing was refused");
}

test("text is what its bytes say", () => {
  expect(readStdin(() => new TextEncoder().encode("aä€"))).toBe("aä€");
  expect(readStdin(() => new Uint8Array())).toBe("");
});

test("bytes that are no UTF-8 are error 6", () => {
  expect(refusal(() => new Uint8Array([0x7b, 0xe4, 0x7d]))).toMatchObject({ code: 6 });
  expect(refusal(() => new Uint8Array([0x7b, 0xc3]))).toMatchObject({ code: 6 });
});

test("more than the limit is error 5, and no more than the limit and a little is asked for", () => {
  let asked = 0;
  const tooMuch = (limitBytes: number) => new Uint8Array((asked = limitBytes) + 1);
  expect(refusal(tooMuch)).toMatchObject({ code: 5 });
  expect(asked).toBe(STDIN_LIMIT_BYTES);
});

test("what cannot be read is error 5, with the reason", () => {
  const error = refusal(() => {
    throw new Error("read: errno 21");
  });
  expect(error).toMatchObject({ code: 5 });
  expect(error.message).toContain("errno 21");
});
