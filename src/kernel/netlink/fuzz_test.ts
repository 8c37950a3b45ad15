/** Mutated captures against every decoder: what comes out is a value or a `DecodeError`, nothing else, and soon. */
import { expect, test } from "bun:test";
import type { NetlinkMessage } from "../../sdk/kernel_door.ts";
import { DecodeError } from "../errors.ts";
import { parseAcknowledgement, parseDone } from "./acknowledgement.ts";
import { attributePath, decodeMessage, encodeMessage, type MessageSchema } from "./codec.ts";
import { splitFrames } from "./frame.ts";
import { flowEnds, flowMessage, parseFlow } from "./schema/conntrack.ts";
import { NFULNL_MSG_PACKET, packetMessage, parseGroupPacket } from "./schema/nflog.ts";
import { addressMessage, parseAddressMessage } from "./schema/rt_addr.ts";
import { linkMessage, parseLink } from "./schema/rt_link.ts";
import { neighbourMessage, parseNeighbour } from "./schema/rt_neigh.ts";
import { namespaceIdMessage, parseNamespaceId } from "./schema/rt_nsid.ts";
import { parseRoute, routeMessage } from "./schema/rt_route.ts";
import { parseRule, ruleMessage } from "./schema/rt_rule.ts";
import captured from "./testdata/captured.json";
import capturedPackets from "./testdata/captured_nflog.json";

const seed = Number(Bun.env.MANX_FUZZ_SEED ?? 0x6d616e78);
const ROUNDS = Number(Bun.env.MANX_FUZZ_ROUNDS ?? 20_000);

/** mulberry32: small, and the same everywhere. */
function randomFrom(state: number): () => number {
  return () => {
    state = state + 0x6d2b79f5 | 0;
    let t = Math.imul(state ^ state >>> 15, 1 | state);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
}

/** struct nlmsghdr of a logged packet with so many bytes behind it. */
function packetHead(payloadBytes: number): string {
  const head = new DataView(new ArrayBuffer(16));
  head.setUint32(0, 16 + payloadBytes, true);
  head.setUint16(4, NFULNL_MSG_PACKET, true);
  return Buffer.from(head.buffer).toString("hex");
}

const datagrams = [
  ...captured.cases.flatMap((each) => [each.sent, ...each.received]),
  ...capturedPackets.packets.map(({ payload }) => packetHead(payload.length / 2) + payload),
].map((hex) => Uint8Array.from(hex.match(/../g)!, (pair) => parseInt(pair, 16)));

const schemas = [
  linkMessage,
  addressMessage,
  routeMessage,
  neighbourMessage,
  ruleMessage,
  flowMessage,
  namespaceIdMessage,
  packetMessage,
].map(
  (schema) => schema as unknown as MessageSchema<object, unknown>,
);
const parsers: readonly ((message: Pick<NetlinkMessage, "payload">) => unknown)[] = [
  parseLink,
  parseAddressMessage,
  parseRoute,
  parseNeighbour,
  parseRule,
  parseFlow,
  flowEnds,
  parseNamespaceId,
  parseGroupPacket,
];

const interesting = [0, 1, 2, 3, 4, 5, 7, 8, 0x0f, 0x10, 0x3f, 0x40, 0x7f, 0x80, 0xfe, 0xff];

function mutate(input: Uint8Array, random: () => number): Uint8Array {
  const below = (limit: number) => Math.floor(random() * limit);
  let output = input.slice(0, random() < 0.3 ? below(input.length + 1) : input.length);
  if (random() < 0.1) output = new Uint8Array([...output, ...Array.from({ length: below(40) }, () => below(256))]);
  for (let count = below(6); count > 0 && output.length > 0; count--) {
    const at = below(output.length);
    output[at] = random() < 0.5 ? interesting[below(interesting.length)]! : below(256);
  }
  return output;
}

function typedOrFine(body: () => unknown): "value" | "refused" {
  try {
    body();
    return "value";
  } catch (error) {
    if (error instanceof DecodeError && Number.isInteger(error.offset) && error.offset >= 0) return "refused";
    throw error;
  }
}

test(`mutated datagrams, seed ${seed}: every reader gives a value or a decode error`, () => {
  const random = randomFrom(seed);
  const seen = { value: 0, refused: 0 };
  for (let round = 0; round < ROUNDS; round++) {
    const original = datagrams[round % datagrams.length]!;
    const input = mutate(original, random);
    try {
      seen[typedOrFine(() => splitFrames(input))]++;
      const payload = input.subarray(Math.min(16, input.length));
      const pick = Math.floor(random() * schemas.length);
      seen[typedOrFine(() => parsers[pick]!({ payload }))]++;
      seen[
        typedOrFine(() => {
          const schema = schemas[pick]!;
          const value = decodeMessage(schema, { payload });
          const again = encodeMessage(schema, 0, 0, value.header, value.attributes);
          attributePath(again, Math.floor(random() * 200), random() < 0.5 ? undefined : 3);
        })
      ]++;
      attributePath({ payload, schema: schemas[pick] }, Math.floor(random() * 200));
      seen[typedOrFine(() => parseAcknowledgement(Math.floor(random() * 1024), payload))]++;
      seen[typedOrFine(() => parseDone(Math.floor(random() * 1024), payload))]++;
    } catch (error) {
      throw new Error(`round ${round}: ${Buffer.from(input).toString("hex")}`, { cause: error });
    }
  }
  // Both ways must have been walked, or the fuzzer fuzzes nothing.
  expect(seen.value).toBeGreaterThan(ROUNDS / 2);
  expect(seen.refused).toBeGreaterThan(ROUNDS / 2);
});

test("what a mutated message decodes to is stable: decode, encode, decode gives the same", () => {
  const random = randomFrom(seed ^ 0x5bd1e995);
  let stable = 0;
  for (let round = 0; round < ROUNDS / 4; round++) {
    const input = mutate(datagrams[round % datagrams.length]!, random).subarray(16);
    const schema = schemas[Math.floor(random() * schemas.length)]!;
    let once;
    try {
      once = decodeMessage(schema, { payload: input });
    } catch (error) {
      expect(error).toBeInstanceOf(DecodeError);
      continue;
    }
    const again = decodeMessage(schema, encodeMessage(schema, 0, 0, once.header, once.attributes));
    expect(again).toEqual(once);
    stable++;
  }
  expect(stable).toBeGreaterThan(ROUNDS / 40);
});
