/** Rules there and back, without a kernel. */
import { expect, test } from "bun:test";
import { parseAddress } from "../../../src/model/address.ts";
import type { WireExpression } from "../../../src/kernel/netlink/schema/nftables.ts";
import { decodeExpressions, encodeExpressions } from "../../../src/kernel/netlink/schema/nftables_compat.ts";
import { encodeRule } from "../entry.ts";
import { LAYOUTS } from "../entry_layout.ts";
import { ACCEPT, type Rule, rule } from "../ruleset.ts";
import { isRule } from "../table.ts";
import { everyRule, net, ports, protocol } from "../testdata/table_cases.ts";
import { entryOf } from "./to_entry.ts";
import { expressionsOf } from "./to_expressions.ts";

const indexOf = (set: string): number => set.length;

/** What services ask for besides. */
const OF_SERVICES: readonly Rule[] = [
  rule(ACCEPT, { match: "local", end: "destination", not: false }),
  rule(ACCEPT, { match: "translated" }),
  rule(ACCEPT, { match: "chance", of31Bits: 123_456_789 }),
  rule(ACCEPT, { match: "remember", list: "manx-list" }),
  rule(ACCEPT, { match: "remembered", list: "manx-list", seconds: 10_800 }),
  rule({ target: "portUnreachable" }),
  rule({ target: "masquerade" }),
  rule({ target: "noTrack" }),
  rule({ target: "mark", value: 1, mask: 3 }),
];

const there = (one: Rule, family: 4 | 6, counts?: { packets: bigint; bytes: bigint }) =>
  decodeExpressions(expressionsOf(encodeRule(one, family), family, indexOf, counts).expressions);

test.each([4, 6] as const)("every rule comes back as it went: IPv%d", (family) => {
  const dnat = rule(
    { target: "dnat", address: parseAddress(family === 4 ? "10.0.0.1" : "fd00::1"), port: 8080 },
    protocol(6),
  );
  const all = everyRule(family);
  for (const one of [...all, ...OF_SERVICES, dnat]) {
    const back = entryOf(there(one, family), family)!;
    const encoded = encodeRule(one, family);
    const leads = back.chain === undefined ? undefined : {
      name: back.chain,
      hook: undefined,
      head: undefined,
      rules: [],
      tail: { bytes: new Uint8Array(0), index: 0, leads: undefined },
    };
    const entry = { bytes: back.bytes, index: 0, leads };
    expect({ one, same: isRule(family, entry, encoded, indexOf) }).toEqual({ one, same: true });
    const others = all.filter((other) => other !== one).filter((other) =>
      isRule(family, entry, encodeRule(other, family), indexOf)
    );
    expect({ one, others }).toEqual({ one, others: [] });
  }
});

test("counters are those of the entry", () => {
  const { bytes } = entryOf(there(everyRule(4)[1]!, 4, { packets: 7n, bytes: 700n }), 4)!;
  const view = new DataView(bytes.buffer);
  expect([view.getBigUint64(LAYOUTS[4].counters, true), view.getBigUint64(LAYOUTS[4].counters + 8, true)]).toEqual([
    7n,
    700n,
  ]);
});

test("the tools' own words for ports, marks, limits and NFLOG say the same as ours", () => {
  const meta = (key: number): WireExpression => ({ name: "meta", data: { dreg: 1, key } });
  const cmp = (value: string, operation = 0): WireExpression => ({
    name: "cmp",
    data: { sreg: 1, operation, data: { value } },
  });
  const port: WireExpression = { name: "payload", data: { dreg: 1, base: 2, offset: 2, length: 2 } };
  const accept: WireExpression = { name: "immediate", data: { dreg: 0, data: { verdict: { code: 1 } } } };
  const counter: WireExpression = { name: "counter", data: {} };
  const tcp = [meta(16), cmp("\x06")];
  const bit = "\0\0\x01\0", none = "\0\0\0\0";
  const masked: WireExpression = {
    name: "bitwise",
    data: { sreg: 1, dreg: 1, length: 4, mask: { value: bit }, xor: { value: none } },
  };
  const cases: readonly (readonly [readonly WireExpression[], Rule])[] = [
    [[...tcp, port, cmp("\0\x50"), counter, accept], rule(ACCEPT, protocol(6), ports(6, "destination", [80, 80]))],
    [
      [
        ...tcp,
        port,
        { name: "range", data: { sreg: 1, operation: 0, from: { value: "\0\x50" }, to: { value: "\x01\0" } } },
        counter,
        accept,
      ],
      rule(ACCEPT, protocol(6), ports(6, "destination", [80, 256])),
    ],
    [
      [...tcp, port, cmp("\0\x50", 5), cmp("\x01\0", 3), counter, accept],
      rule(ACCEPT, protocol(6), ports(6, "destination", [80, 256])),
    ],
    [
      [meta(3), masked, cmp(none, 1), counter, accept],
      rule(ACCEPT, { match: "mark", mask: 0x10000, not: false }),
    ],
    [
      [
        meta(6),
        cmp("mx"),
        { name: "payload", data: { dreg: 1, base: 1, offset: 12, length: 1 } },
        cmp("\x0a"),
        counter,
        accept,
      ],
      rule(ACCEPT, { match: "interface", way: "in", name: "mx", prefix: true }, net("source", "10.0.0.0/8")),
    ],
    [
      [
        { name: "limit", data: { rate: 10n, unitSeconds: 1n, burst: 20, type: 0, flags: 0 } },
        counter,
        { name: "log", data: { group: 86, prefix: "manx x", snapLength: 0, queueThreshold: 0 } },
      ],
      rule({ target: "log", group: 86, prefix: "manx x" }, { match: "limit", perSecond: 10, burst: 20 }),
    ],
  ];
  for (const [words, wanted] of cases) {
    const { bytes } = entryOf(decodeExpressions(encodeExpressions(words)), 4)!;
    expect(isRule(4, { bytes, index: 0, leads: undefined }, encodeRule(wanted, 4), indexOf)).toBe(true);
  }
});

test("what no rule of ours says is none of ours", () => {
  const accept: WireExpression = { name: "immediate", data: { dreg: 0, data: { verdict: { code: 1 } } } };
  const strange: readonly (readonly WireExpression[])[] = [
    [],
    [{ name: "counter", data: {} }],
    [{ name: "fib", data: { dreg: 1, result: 3, flags: 2 } }, accept],
    [{ name: "ct", data: { dreg: 1, key: 0 } }, accept],
    [{ name: "meta", data: { dreg: 1, key: 3 } }, { name: "lookup", data: { set: "__set0", sreg: 1 } }, accept],
    [{ name: "cmp", data: { sreg: 1, operation: 0, data: { value: "\0" } } }, accept],
    [{ name: "payload", data: { dreg: 1, base: 2, offset: 2, length: 2 } }, {
      name: "cmp",
      data: { sreg: 1, operation: 0, data: { value: "\0\x50" } },
    }, accept],
    [accept, accept],
    [{ name: "log", data: { level: 4, prefix: "x" } }],
    [{ name: "queue", data: { number: 1 } }],
    [{ name: "immediate", data: { dreg: 0, data: { verdict: { code: 3 } } } }],
  ];
  for (const words of strange) expect(entryOf(decodeExpressions(encodeExpressions(words)), 4)).toBe(undefined);
});
