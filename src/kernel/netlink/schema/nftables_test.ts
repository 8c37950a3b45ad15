/** Our nf_tables messages beside those of `nft`, and the kernel's answers to it: `../testdata/captured_nftables.json`. */
import { expect, test } from "bun:test";
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import { DecodeError } from "../../errors.ts";
import { type AttributeType, decode, encode } from "../codec.ts";
import captured from "../testdata/captured_nftables.json";
import * as nft from "./nftables.ts";
import { type Expression, expressionFromWire, expressionToWire } from "./nftables_expression.ts";

const bytesOf = (hex: string) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
const messageOf = (
  one: { readonly type: number; readonly flags: number; readonly payload: string },
): NetlinkMessage => ({
  type: nft.SUBSYSTEM_NFTABLES << 8 | one.type,
  flags: one.flags,
  payload: bytesOf(one.payload),
});
const sent = captured.sent.map(messageOf), answered = captured.answered.map(messageOf);

const SCHEMAS: Readonly<Record<number, AttributeType<unknown>>> = {
  0: nft.table,
  2: nft.table,
  3: nft.chain,
  6: nft.rule,
  8: nft.rule,
  9: nft.set,
  12: nft.elementList,
  14: nft.elementList,
} as Readonly<Record<number, AttributeType<unknown>>>;
const schemaOf = (message: NetlinkMessage) => SCHEMAS[message.type & 0xff]!;
const valueOf = (message: NetlinkMessage) => decode(schemaOf(message), message.payload.subarray(4));

const MANX: nft.TableName = { family: nft.ProtocolFamily.Inet, table: "manx" };
/** Those of nft that speak of the chain or set of that name. */
const theirs = (type: number, about: string) =>
  sent.filter((one) => one.type === type).map(valueOf).filter((value) => {
    const { name, chain, set } = value as { name?: string; chain?: string; set?: string };
    return [name, chain, set].includes(about);
  });

test("every captured message is understood whole, and written back it says the same", () => {
  expect(sent.length + answered.length).toBeGreaterThan(60);
  for (const message of [...sent, ...answered]) {
    const value = valueOf(message);
    expect(JSON.stringify(value, (_, inner) => typeof inner === "bigint" ? String(inner) : inner)).not.toContain(
      '"unknown"',
    );
    expect(decode(schemaOf(message), encode(schemaOf(message), value))).toEqual(value);
  }
});

test("tables, chains, sets and their removal are what nft sends for the same", () => {
  expect(valueOf(nft.newTable(MANX))).toEqual(theirs(nft.NftMessage.NewTable, "manx")[0]!);
  expect(valueOf(nft.newChain(MANX, "cell"))).toEqual(theirs(nft.NftMessage.NewChain, "cell")[0]!);
  const base = { type: "filter", hook: "forward", priority: -1, policy: "accept" } as const;
  expect(valueOf(nft.newChain(MANX, "forward", base))).toEqual(theirs(nft.NftMessage.NewChain, "forward")[0]!);
  const set = (definition: nft.SetDefinition) => {
    const { id: _, ...value } = valueOf(nft.newSet(MANX, definition, 1)) as Record<string, unknown>;
    return value;
  };
  const theirSet = (name: string) => {
    const { id: _, userdata: __, ...value } = theirs(nft.NftMessage.NewSet, name)[0] as Record<string, unknown>;
    return value;
  };
  const { Ipv4Address, L4Protocol, Service } = nft.KeyType;
  expect(set({ name: "nets", flags: nft.SetFlag.Interval, keyType: Ipv4Address, keyLength: 4 })).toEqual(
    theirSet("nets"),
  );
  expect(set({
    name: "cells",
    flags: nft.SetFlag.Interval | nft.SetFlag.Map | nft.SetFlag.Concatenation,
    keyType: nft.setKeyType([L4Protocol, Service]),
    keyLength: 8,
    fieldLengths: [1, 2],
    dataType: nft.DATA_TYPE_VERDICT,
    dataLength: 0,
  })).toEqual({ ...theirSet("cells"), dataLength: 0 });
  expect(valueOf(nft.flushChain(MANX, "cell"))).toEqual(theirs(nft.NftMessage.DeleteRule, "cell")[0]!);
  expect(valueOf(nft.deleteTable(MANX))).toEqual(theirs(nft.NftMessage.DeleteTable, "manx")[0]!);
});

test("elements are what nft sends for the same: intervals, concatenated ranges, verdicts", () => {
  const elements = (set: string, fill: (messages: nft.ElementMessages) => void) => {
    const messages = new nft.ElementMessages("add", MANX, set);
    fill(messages);
    return (valueOf(messages.messages()[0]!) as { elements: unknown[] }).elements;
  };
  const those = (set: string) => (theirs(nft.NftMessage.NewElement, set)[0] as { elements: unknown[] }).elements;
  const port = (protocol: number, number: number) =>
    String.fromCharCode(protocol) + "\0\0\0" + String.fromCharCode(number >> 8, number & 0xff) + "\0\0";
  expect(elements("cells", (messages) => {
    messages.add(port(6, 80), { kind: "jump", chain: "cell" }, port(6, 90));
    messages.add(port(17, 53), { kind: "drop" }, port(17, 53));
  })).toEqual(those("cells"));
  const ours = elements("nets", (messages) => {
    messages.add("\x0a\0\0\0");
    messages.add("\x0b\0\0\0", undefined, undefined, nft.ElementFlag.IntervalEnd);
    messages.addPacked(Uint8Array.of(0xc0, 0, 2, 1), 4);
    messages.add("\xc0\0\x02\x02", undefined, undefined, nft.ElementFlag.IntervalEnd);
  });
  // nft begins an interval set with an end at zero; the kernel needs none.
  expect(those("nets")).toEqual([{ flags: 1, key: { value: "\0\0\0\0" } }, ...ours]);
  expect(nft.parseElements(sent.find((one) => one.type === nft.NftMessage.NewElement)!).set).toBe("nets");
});

test("one hundred thousand elements are cut into messages whose attribute lengths hold", () => {
  const messages = new nft.ElementMessages("remove", MANX, "s");
  for (let i = 0; i < 100_000; i++) messages.add(String.fromCharCode(10, i >> 16, i >> 8 & 0xff, i & 0xff));
  const all = messages.messages();
  expect(all.length).toBe(25);
  const parsed = all.flatMap((message) => nft.parseElements(message).elements);
  expect(parsed.length).toBe(100_000);
  expect(parsed[99_999]).toEqual({ key: "\x0a\x01\x86\x9f" });
  expect(Math.max(...all.map((message) => message.payload.length))).toBeLessThan(65_536);
  expect(new nft.ElementMessages("add", MANX, "s").messages()).toEqual([]);
});

const say = (expressions: readonly Expression[]) =>
  expressions.map((one) => one.op === "other" ? `other ${one.name}` : one.op).join(", ");

test("rules of the kernel's answer read as expressions; what has no meaning for us keeps its name and attributes", () => {
  const rules = answered.filter((one) => one.type === nft.NftMessage.NewRule).map((one) =>
    nft.parseRule(one).attributes
  )
    .map(({ chain, expressions }) => `${chain}: ${say((expressions ?? []).map(expressionFromWire))}`);
  expect(rules).toEqual([
    "cell: verdict",
    "forward: ct, bitwise, cmp, verdict",
    "forward: meta, cmp, verdict",
    "forward: meta, cmp, payload, lookup, meta, cmp, payload, cmp, cmp, verdict",
    "forward: meta, cmp, payload, meta, payload, lookup, verdict",
    "forward: meta, other byteorder, payload, vmap",
    "forward: meta, cmp, payload, cmp, verdict",
    "forward: meta, cmp, meta, cmp, payload, cmp, cmp, verdict",
    "forward: limit, log",
    "forward: counter, meta, bitwise, setMark",
    "forward: other reject",
    "forward: random, vmap",
    "forward: destinationType, cmp, verdict",
    "forward: meta, cmp, payload, other hash, vmap",
    "forward: immediate, other ct",
    "forward: immediate, other exthdr",
    "raw: notrack",
    "nat: meta, cmp, payload, cmp, masquerade",
    "nat: immediate, other nat",
  ]);
});

test("every expression that we write comes back the same, in one canonical text", () => {
  const all: readonly Expression[] = [
    { op: "meta", key: "l4proto", dreg: 0 },
    { op: "meta", key: "oifname", dreg: 4 },
    { op: "setMark", sreg: 0 },
    { op: "payload", base: "transport", offset: 2, length: 2, dreg: 5 },
    { op: "ct", key: "state", dreg: 0 },
    { op: "cmp", sreg: 0, is: "neq", data: "\x06" },
    { op: "range", sreg: 0, is: "neq", from: "\0\x50", to: "\0\x5a" },
    { op: "bitwise", sreg: 0, dreg: 0, mask: "\xff\xff\0\0", xor: "\0\0\0\0" },
    { op: "lookup", set: "s", sreg: 0, invert: true },
    { op: "immediate", dreg: 4, data: "\x01".repeat(16) },
    { op: "map", set: "d", sreg: 12, dreg: 0 },
    { op: "vmap", set: "m", sreg: 4 },
    { op: "verdict", verdict: { kind: "goto", chain: "c" } },
    { op: "verdict", verdict: { kind: "drop" } },
    { op: "verdict", verdict: { kind: "return" } },
    { op: "counter" },
    { op: "limit", rate: 10, unitSeconds: 1, burst: 20 },
    { op: "log", group: 86, prefix: "manx" },
    { op: "notrack" },
    { op: "masquerade" },
    { op: "meta", key: "packetType", dreg: 0 },
    { op: "forward", family: 6, deviceSreg: 0, addressSreg: 4 },
  ];
  const wire = encode(nft.rule, { table: "manx", chain: "c", expressions: all.map(expressionToWire) });
  const back = decode(nft.rule, wire).expressions!.map(expressionFromWire);
  expect(JSON.stringify(back)).toBe(JSON.stringify(all));
  expect(() => expressionToWire({ op: "other", name: "x", attributes: "" })).toThrow(TypeError);
});

test("elements keep their data, comments and counters; what else they have is told of", () => {
  const messages = new nft.ElementMessages("add", MANX, "s");
  messages.add("\x0a\0\0\x01", "\x01\x02");
  messages.add("\x0a\0\0\x02", undefined, undefined, undefined, "what it counts");
  messages.add("\x0a\0\0\x03", { kind: "drop" });
  expect(nft.parseElements(messages.messages()[0]!).elements).toEqual([
    { key: "\x0a\0\0\x01", data: "\x01\x02" },
    { key: "\x0a\0\0\x02", comment: "what it counts" },
    { key: "\x0a\0\0\x03", verdict: { kind: "drop" } },
  ]);
  const written = (element: Record<string, unknown>) =>
    nft.parseElements({ payload: Uint8Array.of(0, 0, 0, 0, ...encode(nft.elementList, { elements: [element] })) });
  const key = { value: "\x0a\0\0\x01" };
  const counter = { name: "counter", data: { packets: 3n, bytes: 200n } };
  expect(written({ key, expression: counter }).elements).toEqual([
    { key: key.value, counter: { packets: 3, bytes: 200 } },
  ]);
  const others = [
    { key, expression: { name: "limit", data: { rate: 1n } } },
    { key, userdata: Uint8Array.of(1, 2, 3) },
    { key, timeout: 1n },
  ];
  for (const one of others) expect(written(one).elements).toEqual([{ key: key.value, more: true }]);
});

test("bytes from anywhere give a value or a DecodeError, never anything else", () => {
  let at = 1;
  const below = (n: number) => (at = Math.imul(at, 1664525) + 1013904223 >>> 0, Math.floor(at / 2 ** 32 * n));
  const read = (message: NetlinkMessage) => {
    nft.tableOf(message);
    if (message.type === nft.NftMessage.NewElement || message.type === nft.NftMessage.DeleteElement) {
      nft.parseElements(message);
    }
    const value = valueOf(message) as { expressions?: readonly never[] };
    for (const one of value.expressions ?? []) expressionFromWire(one);
  };
  let refused = 0;
  for (let round = 0; round < 6_000; round++) {
    const original = answered[below(answered.length)]!;
    const payload = original.payload.slice(0, below(4) === 0 ? 4 + below(original.payload.length - 4) : undefined);
    for (let i = below(4); i >= 0; i--) payload[4 + below(payload.length - 4)] = below(256);
    try {
      read({ ...original, payload });
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error;
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(1_000);
});
