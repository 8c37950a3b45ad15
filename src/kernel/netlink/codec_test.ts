import { expect, test } from "bun:test";
import { parseAddress } from "../../model/address.ts";
import { DecodeError, EncodeError } from "../errors.ts";
import { thrownBy } from "../testdata/tool_fixture.ts";
import {
  address,
  attributePath,
  type AttributeType,
  attrs,
  be16,
  be32,
  be64,
  bytes,
  decode,
  decodeMessage,
  encode,
  encodeInto,
  encodeMessage,
  flag,
  hardwareAddress,
  headed,
  i32,
  indexed,
  type Infer,
  list,
  messageSchema,
  nested,
  pad,
  padding,
  str,
  struct,
  switched,
  u16,
  u32,
  u64,
  u8,
  Writer,
} from "./codec.ts";

const hex = (value: Uint8Array) => Buffer.from(value).toString("hex").replace(/(.{8})(?=.)/g, "$1 ");
const raw = (text: string) =>
  Uint8Array.from(text.replaceAll(" ", "").match(/../g) ?? [], (pair) => parseInt(pair, 16));
const decodeError = (body: () => unknown): DecodeError => {
  const error = thrownBy(body);
  expect(error).toBeInstanceOf(DecodeError);
  return error as DecodeError;
};

test("each scalar has the kernel's width, byte order and padding", () => {
  const all = attrs({
    a: [1, u8],
    b: [2, u16],
    c: [3, u32],
    d: [4, u64],
    e: [5, i32],
    f: [6, be16],
    g: [7, be32],
    h: [8, be64],
    s: [9, str],
    raw: [10, bytes],
    on: [11, flag],
    ip: [12, address],
    mac: [13, hardwareAddress],
  });
  const value = {
    a: 0xff,
    b: 0x1234,
    c: 0xfedcba98,
    d: 0xfedcba9876543210n,
    e: -2,
    f: 0x1234,
    g: 0xfedcba98,
    h: 0x0102030405060708n,
    s: "lo",
    raw: new Uint8Array([1, 2, 3, 4, 5]),
    on: true,
    ip: parseAddress("10.0.0.1"),
    mac: "02:00:5e:10:00:01",
  };
  const encoded = encode(all, value);
  expect(hex(encoded)).toBe([
    "05000100 ff000000",
    "06000200 34120000",
    "08000300 98badcfe",
    "0c000400 10325476 98badcfe",
    "08000500 feffffff",
    "06000600 12340000",
    "08000700 fedcba98",
    "0c000800 01020304 05060708",
    "07000900 6c6f0000",
    "09000a00 01020304 05000000",
    "04000b00",
    "08000c00 0a000001",
    "0a000d00 02005e10 00010000",
  ].join(" "));
  expect(decode(all, encoded)).toEqual(value);
});

test("a flag that is false, and what is undefined, is left away", () => {
  const schema = attrs({ on: [1, flag], n: [2, u32] });
  expect(encode(schema, { on: false, n: undefined })).toHaveLength(0);
  expect(decode(schema, new Uint8Array(0))).toEqual({});
});

test("the type of a schema is inferred from it", () => {
  const inner = attrs({ id: [1, u32] });
  const schema = attrs({ name: [1, str], many: [2, list(() => inner)], wide: [3, be64], gap: [4, padding] });
  const value: Infer<typeof schema> = { name: "x", many: [{ id: 1 }], wide: 2n };
  const name: string | undefined = value.name;
  const wide: bigint | undefined = value.wide;
  // @ts-expect-error: 64 bit numbers are bigints
  const wrong: Infer<typeof schema> = { wide: 2 };
  // @ts-expect-error: padding is no part of a value
  void value.gap;
  expect([name, wide, wrong.wide as unknown]).toEqual(["x", 2n, 2]);
});

test("text is UTF-8, ends at the first NUL, needs none, and survives bytes that are not UTF-8", () => {
  const schema = attrs({ s: [1, str] });
  expect(decode(schema, encode(schema, { s: "ünï→code" }))).toEqual({ s: "ünï→code" });
  expect(decode(schema, raw("07000100 616263 00"))).toEqual({ s: "abc" });
  expect(decode(schema, raw("0a000100 6100 6263 0000 0000"))).toEqual({ s: "a" });
  expect(decode(schema, raw("06000100 fffe 0000"))).toEqual({ s: "\u00ff\u00fe" });
  expect(decode(schema, raw("04000100"))).toEqual({ s: "" });
});

test("nested attributes and lists carry NLA_F_NESTED, leaves do not, and decode takes both", () => {
  const schema = attrs({
    one: [1, attrs({ id: [1, u8] })],
    many: [2, list(() => attrs({ id: [1, u8] }))],
    names: [3, indexed(() => str)],
  });
  const value = { one: { id: 1 }, many: [{ id: 2 }, { id: 3 }], names: ["a", "b"] };
  const encoded = encode(schema, value);
  expect(hex(encoded)).toBe([
    "0c000180 05000100 01000000",
    "1c000280 0c000180 05000100 02000000 0c000180 05000100 03000000",
    "14000380 06000100 61000000 06000200 62000000",
  ].join(" "));
  expect(decode(schema, encoded)).toEqual(value);
  const unflagged = encoded.slice();
  unflagged[3] = 0;
  unflagged[15] = 0;
  expect(decode(schema, unflagged)).toEqual(value);
});

test("a schema may contain itself", () => {
  interface Tree {
    readonly id?: number;
    readonly below?: Tree;
  }
  const tree: AttributeType<Tree> = attrs({ id: [1, u8], below: [2, nested((): AttributeType<Tree> => tree)] });
  const value: Tree = { id: 1, below: { id: 2, below: { id: 3 } } };
  expect(decode(tree, encode(tree, value))).toEqual(value);
});

test("unknown attributes are kept with their flags and written back", () => {
  const schema = attrs({ id: [1, u8], inner: [2, attrs({ id: [1, u8] })] });
  const input = raw("05000100 07000000 08006380 aabbccdd 0c000280 07000900 01020300");
  const value = decode(schema, input);
  expect(value).toEqual({
    id: 7,
    unknown: [{ type: 0x8063, payload: raw("aabbccdd") }],
    inner: { unknown: [{ type: 9, payload: raw("010203") }] },
  });
  expect(decode(schema, encode(schema, value))).toEqual(value);
});

test("what is decoded does not change when the receive buffer is used again", () => {
  const schema = attrs({ raw: [1, bytes] });
  const input = raw("08000100 01020304 08004d00 05060708");
  const value = decode(schema, input);
  input.fill(0xee);
  expect(value).toEqual({ raw: raw("01020304"), unknown: [{ type: 77, payload: raw("05060708") }] });
});

test("padding attributes are read over and never written", () => {
  const schema = attrs({ gap: [1, padding], n: [2, u8] });
  expect(decode(schema, raw("04000100 05000200 09000000"))).toEqual({ n: 9 });
});

test("a sibling chooses the schema, whichever comes first; without a choice the bytes are kept", () => {
  const schema = attrs({
    data: [2, switched("kind", () => ({ a: attrs({ x: [1, u8] }), b: attrs({ y: [1, be16] }) }))],
    kind: [1, str],
  });
  for (const value of [{ kind: "a", data: { x: 1 } }, { kind: "b", data: { y: 258 } }]) {
    expect(decode(schema, encode(schema, value))).toEqual(value);
  }
  expect(hex(encode(schema, { kind: "b", data: { y: 258 } }))).toBe("0c000280 06000100 01020000 06000100 62000000");
  const foreign = { kind: "c", data: raw("01020304") };
  expect(decode(schema, encode(schema, foreign))).toEqual(foreign);
  expect(() => encode(schema, { kind: "c", data: { x: 1 } })).toThrow('encode: found kind "c", wanted one of a, b');
  expect(() => encode(schema, { kind: "constructor", data: { x: 1 } })).toThrow("wanted one of a, b");
});

test("structures have fixed offsets; absent fields are zero; more bytes than known are allowed, fewer are not", () => {
  const header = struct({ family: u8, gap: pad(1), type: be16, index: i32 });
  expect(header.size).toBe(8);
  const schema = attrs({ h: [1, header] });
  const value = { h: { family: 2, type: 0x0102, index: -1 } };
  expect(hex(encode(schema, value))).toBe("0c000100 02000102 ffffffff");
  expect(decode(schema, raw("10000100 02000102 ffffffff 99999999"))).toEqual(value);
  expect(decodeError(() => decode(schema, raw("0b000100 02000102 ffffff00"))).offset).toBe(4);
});

test("a structure with attributes behind it within an attribute", () => {
  const schema = attrs({ peer: [1, headed(struct({ index: i32 }), () => attrs({ name: [3, str] }))] });
  const value = { peer: { header: { index: 5 }, attributes: { name: "eth0" } } };
  expect(hex(encode(schema, value))).toBe("14000180 05000000 09000300 65746830 00000000");
  expect(decode(schema, encode(schema, value))).toEqual(value);
});

test("an attribute of 65,535 bytes is written, one byte more is a typed error that names it", () => {
  const schema = attrs({ outer: [1, attrs({ raw: [2, bytes] })], flat: [3, bytes] });
  expect(encode(schema, { flat: new Uint8Array(65_531) })).toHaveLength(65_536);
  for (const value of [{ flat: new Uint8Array(65_532) }, { outer: { raw: new Uint8Array(65_530) } }]) {
    const error = thrownBy(() => encode(schema, value));
    expect(error).toBeInstanceOf(EncodeError);
    expect(error.message).toContain("at most 65535");
    expect((error as EncodeError).path).toBe("flat" in value ? "flat" : "outer");
  }
});

test("a failed encode leaves nothing in the next one, and encodes may run within encodes", () => {
  const inner = attrs({ id: [1, u32] });
  const wrapping: AttributeType<number> = {
    encode: (writer, value) => writer.raw(encode(inner, { id: value })),
    decode: (reader, start, end) => decode(inner, reader.copy(start, end)).id ?? 0,
  };
  const schema = attrs({ first: [1, u32], wrapped: [2, wrapping], last: [3, bytes] });
  expect(() => encode(schema, { first: 1, last: new Uint8Array(70_000) })).toThrow(EncodeError);
  const value = { first: 1, wrapped: 2, last: raw("0102") };
  expect(hex(encode(schema, value))).toBe("08000100 01000000 0c000200 08000100 02000000 06000300 01020000");
  expect(decode(schema, encode(schema, value))).toEqual(value);
});

test("encodeInto appends, across many growths of the writer", () => {
  const schema = attrs({ n: [1, be32] });
  const writer = new Writer(4);
  for (let n = 0; n < 5000; n++) encodeInto(writer, schema, { n });
  expect(writer.length).toBe(40_000);
  expect(hex(writer.bytes.subarray(39_992, 40_000))).toBe("08000100 00001387");
});

test("link-layer addresses that are none are refused", () => {
  const schema = attrs({ mac: [1, hardwareAddress] });
  for (const mac of ["2:0:5e:10:0:1", "02-00-5e-10-00-01", "02:00:5e:10:00:0g", "02:00:", "zz"]) {
    expect(() => encode(schema, { mac })).toThrow(EncodeError);
  }
});

test("malformed input is a decode error with the offset and the name path of the spot", () => {
  const schema = attrs({
    id: [1, u32],
    inner: [2, attrs({ id: [1, u32], many: [2, list(() => attrs({ ip: [1, address] }))] })],
  });
  const cases: readonly [input: string, offset: number, path: string][] = [
    ["0800", 0, ""], // cut header
    ["03000100", 0, ""], // length below the header's
    ["0c000100 01020304", 0, ""], // length past the end
    ["06000100 01020000", 4, "id"], // too short for u32
    ["0c000280 06000100 01020000", 8, "inner.id"],
    ["08000280 ff000100", 4, "inner"], // nested length past its parent
    ["08000100 01000000 14000280 10000280 0c000180 08000100 0a00", 8, ""], // cut in the nest
    ["14000280 10000280 0c000180 07000100 0a000000", 16, "inner.many[0].ip"],
  ];
  for (const [input, offset, path] of cases) {
    const error = decodeError(() => decode(schema, raw(input)));
    expect([input, error.offset, error.path]).toEqual([input, offset, path]);
  }
  expect(decodeError(() => decode(schema, raw("06000100 01020000"), 100)).offset).toBe(104);
});

test("hostile nesting ends in a decode error, not in the stack", () => {
  interface Tree {
    readonly below?: Tree;
    readonly many?: readonly Tree[];
  }
  const tree: AttributeType<Tree> = attrs({
    below: [1, nested((): AttributeType<Tree> => tree)],
    many: [2, list((): AttributeType<Tree> => tree)],
  });
  for (const type of [1, 2]) {
    const input = new Uint8Array(65_532);
    const view = new DataView(input.buffer);
    for (let at = 0; at < input.length; at += 4) {
      view.setUint16(at, input.length - at, true);
      view.setUint16(at + 2, type, true);
    }
    expect(decodeError(() => decode(tree, input)).message).toContain("at most 32");
  }
});

const inner = attrs({ table: [1, str], id: [2, be32] });
const paths = messageSchema(
  "rule",
  struct({ family: u8, version: u8, resource: be16 }),
  attrs({
    table: [1, str],
    chain: [2, str],
    expressions: [
      4,
      list(() =>
        attrs({
          name: [1, str],
          data: [2, switched("name", () => ({ lookup: inner, other: attrs({ z: [1, u8] }) }))],
        })
      ),
    ],
    peer: [5, headed(struct({ index: i32 }), () => attrs({ mtu: [4, u32] }))],
  }),
);

test("an offset in a message resolves to the name of the attribute there", () => {
  const message = encodeMessage(paths, 0xa06, 0, { family: 1 }, {
    table: "manx",
    chain: "c",
    expressions: [{ name: "other", data: { z: 1 } }, { name: "lookup", data: { table: "x", id: 9 } }],
    peer: { header: { index: 1 }, attributes: { mtu: 1 } },
  });
  // Offsets as the kernel counts them: from the start of the message header, pointing at attribute headers.
  const at = (path: string) => {
    for (let offset = 20; offset < 16 + message.payload.length; offset += 4) {
      if (attributePath(message, offset) === path) return offset;
    }
    return -1;
  };
  expect(attributePath(message, 16)).toBe("rule.header");
  expect(at("rule.table")).toBe(20);
  expect(at("rule.chain")).toBe(32);
  expect(at("rule.expressions")).toBe(40);
  expect(at("rule.expressions[0]")).toBe(44);
  expect(at("rule.expressions[0].name")).toBe(48);
  expect(at("rule.expressions[0].data")).toBe(60);
  expect(at("rule.expressions[0].data.z")).toBe(64);
  expect(at("rule.expressions[1].data.id")).toBeGreaterThan(0);
  expect(at("rule.peer.mtu")).toBeGreaterThan(0);
  expect(attributePath(message, 4)).toBe("offset 4");
  expect(attributePath(message, 4000)).toBe("offset 4000");
  expect(attributePath({ payload: message.payload }, 40)).toBe("offset 40");
});

test("a missing attribute is named within the nest it is missing from", () => {
  const message = encodeMessage(paths, 0xa06, 0, {}, { expressions: [{ name: "lookup", data: { id: 9 } }] });
  expect(attributePath(message, undefined, 2)).toBe("rule.chain");
  expect(attributePath(message, undefined, 99)).toBe("rule.99");
  expect(attributePath(message, 24, 2)).toBe("rule.expressions[0].data");
  expect(attributePath(message, 40, 1)).toBe("rule.expressions[0].data.table");
  expect(attributePath({ payload: message.payload }, 40, 1)).toBe("1 in offset 40");
});

test("a message's attributes begin behind its aligned header, and decode gives both back", () => {
  const message = encodeMessage(paths, 1, 2, { family: 3, resource: 4 }, { table: "t" });
  expect(hex(message.payload)).toBe("03000004 06000100 74000000");
  expect(message.type).toBe(1);
  expect(message.flags).toBe(2);
  expect(decodeMessage(paths, message)).toEqual({
    header: { family: 3, version: 0, resource: 4 },
    attributes: { table: "t" },
  });
  expect(decodeError(() => decodeMessage(paths, { payload: raw("0300") })).offset).toBe(0);
});

test("two attributes of one number are a mistake in the schema", () => {
  expect(() => attrs({ a: [1, u8], b: [1, u8] })).toThrow("schema names attribute 1 twice: b");
});
