/** Tests as nf_tables expressions, and what they look up. Pure. */
import { type Address, type Cidr, cidrAddress, cidrPrefix, type Family, maskAddress } from "../../src/model/address.ts";
import type { PortRange } from "../../src/model/ports.ts";
import { ALL_PORTS, portBytes } from "../../src/model/port_ranges.ts";
import { isHost } from "../../src/model/prefixes.ts";
import { type End, PORT_PROTOCOLS, type Test } from "../../src/model/rule_alternatives.ts";
import type { Output } from "./output.ts";
import type { Expression, Verdict } from "./ruleset.ts";

export const ACCEPT: Verdict = { kind: "accept" };
export const DROP: Verdict = { kind: "drop" };
export const RETURN: Verdict = { kind: "return" };
export const goto = (chain: string): Verdict => ({ kind: "goto", chain });
export const jump = (chain: string): Verdict => ({ kind: "jump", chain });
export const verdict = (to: Verdict): Expression => ({ op: "verdict", verdict: to });

export const isFamily = (family: Family): readonly Expression[] => [
  { op: "meta", key: "nfproto", dreg: 0 },
  { op: "cmp", sreg: 0, is: "eq", data: family === 4 ? "\x02" : "\x0a" },
];

export const isProtocol = (protocol: number, is: "eq" | "neq" = "eq"): readonly Expression[] => [
  { op: "meta", key: "l4proto", dreg: 0 },
  { op: "cmp", sreg: 0, is, data: String.fromCharCode(protocol) },
];

/** Header offsets of RFC 791 section 3.1 and RFC 8200 section 3. */
export const loadAddress = (family: Family, end: End, dreg: number): Expression => ({
  op: "payload",
  base: "network",
  offset: family === 4 ? (end === "source" ? 12 : 16) : (end === "source" ? 8 : 24),
  length: family === 4 ? 4 : 16,
  dreg,
});

/** Of TCP, UDP, SCTP and UDPLite alike. */
const loadPort = (end: End, dreg: number): Expression => ({
  op: "payload",
  base: "transport",
  offset: end === "source" ? 0 : 2,
  length: 2,
  dreg,
});

/** A pool's key takes 16 bytes: four registers. */
const KEY_REGISTERS = 4;
const registersOf = (family: Family): number => family === 4 ? 1 : 4;

/** Loads what the elements of `flows`, and the beginning of theirs, those of `cells` and `hits` have: key, protocol, port. */
export const loadPorts = (key: string): readonly Expression[] => [
  { op: "immediate", dreg: 0, data: key },
  { op: "meta", key: "l4proto", dreg: KEY_REGISTERS },
  loadPort("destination", KEY_REGISTERS + 1),
];
/** After `loadPorts`: the address that `flows` have besides. */
export const loadFlowAddress = (family: Family, end: End): Expression => loadAddress(family, end, KEY_REGISTERS + 2);

/** Whether the address in register 0 is in the prefix. */
export function inNet(net: Cidr, not: boolean): readonly Expression[] {
  const is = not ? "neq" : "eq";
  if (isHost(net)) return [{ op: "cmp", sreg: 0, is, data: cidrAddress(net) }];
  const zero = "\0".repeat(net.length - 1);
  const mask = maskAddress("\xff".repeat(net.length - 1) as Address, cidrPrefix(net));
  return [{ op: "bitwise", sreg: 0, dreg: 0, mask, xor: zero }, { op: "cmp", sreg: 0, is, data: cidrAddress(net) }];
}

const RANK = { protocol: 0, portless: 1, icmp: 2, ports: 3, address: 4, addressPort: 5 } as const;

/** All of them must hold: the cheap ones first. What they look up is noted in `out`. */
export const testExpressions = (tests: readonly Test[], family: Family, out: Output): readonly Expression[] =>
  tests.length === 0
    ? []
    : [...tests].sort((a, b) => RANK[a.test] - RANK[b.test]).flatMap((test) => expressionsOf(test, family, out));

function expressionsOf(test: Test, family: Family, out: Output): readonly Expression[] {
  switch (test.test) {
    case "protocol":
      return isProtocol(test.protocol, test.not ? "neq" : "eq");
    case "portless": {
      const entries = PORT_PROTOCOLS.map((protocol) => [String.fromCharCode(protocol), true] as const);
      const set = out.fixedSet("x", { fields: ["inet_proto"], interval: false, map: false }, entries);
      return [{ op: "meta", key: "l4proto", dreg: 0 }, { op: "lookup", set, sreg: 0, invert: true }];
    }
    case "icmp": {
      const data = String.fromCharCode(test.type) + (test.code === null ? "" : String.fromCharCode(test.code));
      return [
        { op: "payload", base: "transport", offset: 0, length: data.length, dreg: 0 },
        { op: "cmp", sreg: 0, is: test.not ? "neq" : "eq", data },
      ];
    }
    case "ports":
      return portsExpressions(test.end, test.ranges, out);
    case "address": {
      const { end, ids, nets, not } = test;
      const load = loadAddress(family, end, 0);
      if (ids.length === 0 && nets.length === 1) return [load, ...inNet(nets[0]!, not)];
      const found = out.addresses(family, ids, nets);
      if ("set" in found) return [load, { op: "lookup", set: found.set, sreg: 0, invert: not }];
      return [
        { op: "immediate", dreg: 0, data: found.key },
        loadAddress(family, end, KEY_REGISTERS),
        { op: "lookup", set: `peers${family}`, sreg: 0, invert: not },
      ];
    }
    case "addressPort": {
      const port = KEY_REGISTERS + registersOf(family);
      return [
        { op: "immediate", dreg: 0, data: out.addressPorts(family, test.id) },
        loadAddress(family, test.end, KEY_REGISTERS),
        { op: "meta", key: "l4proto", dreg: port },
        loadPort(test.end, port + 1),
        { op: "lookup", set: `ports${family}`, sreg: 0, invert: test.not },
      ];
    }
  }
}

function portsExpressions(end: End, ranges: readonly PortRange[], out: Output): readonly Expression[] {
  if (ranges.length === 1 && ranges[0]!.first === ALL_PORTS[0]!.first && ranges[0]!.last === ALL_PORTS[0]!.last) {
    return [];
  }
  const load = loadPort(end, 0);
  if (ranges.length === 1) {
    const { first, last } = ranges[0]!;
    if (first === last) return [load, { op: "cmp", sreg: 0, is: "eq", data: portBytes(first) }];
    return [load, { op: "range", sreg: 0, is: "eq", from: portBytes(first), to: portBytes(last) }];
  }
  const interval = ranges.some(({ first, last }) => first !== last);
  const entries = ranges.map(({ first, last }) =>
    [portBytes(first) + (interval ? portBytes(last) : ""), true] as const
  );
  const set = out.fixedSet("q", { fields: ["inet_service"], interval, map: false }, entries);
  return [load, { op: "lookup", set, sreg: 0, invert: false }];
}
