/** The little of HTTP/1.1 (RFC 9112) that one request and one answer on a connection of their own need. */

const encoder = new TextEncoder();
/** Of the head in lower case. */
const LENGTH = "\r\ncontent-length:";

/** A request that ends the connection; with a body, a POST of JSON. */
export function encodeRequest(path: string, body?: unknown): Uint8Array {
  const start = (method: string) => `${method} ${path} HTTP/1.1\r\nHost: manx\r\nConnection: close\r\n`;
  if (body === undefined) return encoder.encode(`${start("GET")}\r\n`);
  const content = encoder.encode(JSON.stringify(body));
  const head = encoder.encode(
    `${start("POST")}Content-Type: application/json\r\nContent-Length: ${content.length}\r\n\r\n`,
  );
  const bytes = new Uint8Array(new ArrayBuffer(head.length + content.length));
  bytes.set(head);
  bytes.set(content, head.length);
  return bytes;
}

export interface HttpAnswer {
  readonly status: number;
  readonly text: string;
}

/** The answer that `bytes` begin with; undefined where they end before it does. @throws {Error} where they are no answer */
export function decodeAnswer(bytes: Uint8Array): HttpAnswer | undefined {
  const end = endOfHead(bytes);
  if (end === undefined) return undefined;
  const head = String.fromCharCode(...bytes.subarray(0, end)).toLowerCase();
  const status = Number(head.slice(9, 12));
  if (!(head.startsWith("http/1.1 ") || head.startsWith("http/1.0 ")) || !(status >= 100)) {
    throw new Error("it answered something that is not HTTP/1.1");
  }
  const at = head.indexOf(LENGTH);
  // Bodies without a length are for those who cannot know it: the daemon's are JSON, whole before they are sent.
  if (at < 0 && status !== 204) throw new Error("it answered without a Content-Length");
  const length = at < 0 ? 0 : parseInt(head.slice(at + LENGTH.length));
  if (!(length >= 0)) throw new Error("it answered with a Content-Length that is no number");
  const from = end + 4, to = from + length;
  if (bytes.length < to) return undefined;
  return { status, text: new TextDecoder().decode(bytes.subarray(from, to)) };
}

/** Where the empty line begins that ends the head. */
function endOfHead(bytes: Uint8Array): number | undefined {
  for (let at = bytes.indexOf(13); at >= 0; at = bytes.indexOf(13, at + 1)) {
    if (bytes[at + 1] === 10 && bytes[at + 2] === 13 && bytes[at + 3] === 10) return at;
  }
  return undefined;
}
