import { expect, test } from "bun:test";
import { decodeAnswer, encodeRequest } from "./http.ts";

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const text = (request: Uint8Array): string => new TextDecoder().decode(request);

test("a request says how long its body is, in bytes", () => {
  expect(text(encodeRequest("/v1/cni/add", { name: "ä" }))).toBe(
    "POST /v1/cni/add HTTP/1.1\r\nHost: manx\r\nConnection: close\r\nContent-Type: application/json\r\n" +
      'Content-Length: 13\r\n\r\n{"name":"ä"}',
  );
  expect(text(encodeRequest("/v1/cni/status"))).toBe(
    "GET /v1/cni/status HTTP/1.1\r\nHost: manx\r\nConnection: close\r\n\r\n",
  );
});

test("an answer is there once all of it is, and not a byte before", () => {
  const whole = bytes('HTTP/1.1 200 OK\r\nX: content-length: 99\r\ncontent-length:  8\r\n\r\n{"a":"ä"');
  expect(decodeAnswer(whole)).toEqual({ status: 200, text: '{"a":"ä' });
  for (let length = 0; length < whole.length - 1; length++) {
    expect(decodeAnswer(whole.subarray(0, length))).toBeUndefined();
  }
});

test("an answer without content has no text", () => {
  expect(decodeAnswer(bytes("HTTP/1.1 204 No Content\r\n\r\n"))).toEqual({ status: 204, text: "" });
  expect(decodeAnswer(bytes("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))).toEqual({ status: 404, text: "" });
});

test("what is no answer is refused", () => {
  expect(() => decodeAnswer(bytes("SSH-2.0-x\r\n\r\n"))).toThrow("not HTTP/1.1");
  expect(() => decodeAnswer(bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"))).toThrow(
    "without a Content-Length",
  );
});
