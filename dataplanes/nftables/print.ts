/** A ruleset as text for people and golden tests, in the words of `nft` where it has them. */
import { type Address, formatAddress } from "../../src/model/address.ts";
import {
  type ElementKey,
  type ElementValue,
  type Expression,
  KEY_FIELDS,
  type KeyField,
  type NftChain,
  type NftSet,
  type Rule,
  type Ruleset,
  type Verdict,
} from "./ruleset.ts";

export function printRuleset(ruleset: Ruleset): string {
  const lines: string[] = [];
  for (const [name, set] of byName(ruleset.sets)) lines.push(...printSet(name, set));
  for (const [name, chain] of byName(ruleset.chains)) lines.push(...printChain(name, chain));
  return lines.join("\n") + "\n";
}

const byName = <V>(map: Iterable<readonly [string, V]>) => [...map].sort(([a], [b]) => a < b ? -1 : a > b ? 1 : 0);

export function printSet(name: string, set: NftSet): readonly string[] {
  const elements: string[] = [];
  set.elements.forEach((value, key) => elements.push(printElement(set, key, value)));
  elements.sort();
  const data = set.data === undefined ? "" : ` : ${set.data.join(" . ")}`;
  const more = `${set.interval ? " interval" : ""}${set.counted ? " counter" : ""}${set.dynamic ? " dynamic" : ""}`;
  const head = `${set.map ? "map" : "set"} ${name} { ${set.fields.join(" . ")}${data}${more} }`;
  return elements.length === 0 ? [`${head} empty`] : [head, ...elements.map((element) => `    ${element}`)];
}

export function printChain(name: string, chain: NftChain): readonly string[] {
  const base = chain.base;
  const head = base === undefined
    ? `chain ${name}`
    : `chain ${name} { ${base.type} hook ${base.hook} priority ${base.priority} policy ${base.policy} }`;
  return [head, ...chain.rules.map((rule) => `    ${printRule(rule)}`)];
}

export const printRule = (rule: Rule): string => rule.map(printExpression).join(" ");

export function printVerdict(verdict: Verdict): string {
  if (verdict.kind === "other") return `verdict ${verdict.code}`;
  return "chain" in verdict ? `${verdict.kind} ${verdict.chain}` : verdict.kind;
}

function printElement(set: NftSet, key: ElementKey, value: ElementValue): string {
  const length = set.interval ? key.length / 2 : key.length;
  const first = printKey(set.fields, key.slice(0, length));
  const last = set.interval ? printKey(set.fields, key.slice(length)) : first;
  const keys = first.map((field, i) => field === last[i] ? field : `${field}-${last[i]}`).join(" . ");
  if (value === true) return keys;
  if (set.counted && typeof value === "string") return `${keys} ${JSON.stringify(value)}`;
  return `${keys} : ${typeof value === "string" ? printKey(set.data ?? [], value).join(" . ") : printVerdict(value)}`;
}

function printKey(fields: readonly KeyField[], key: string): readonly string[] {
  let at = 0;
  return fields.map((field) => {
    const { length } = KEY_FIELDS[field];
    const text = printField(field, key.slice(at, at + length));
    at += length + 3 & ~3;
    return text;
  });
}

const CT_STATES: Readonly<Record<number, string>> = {
  1: "invalid",
  2: "established",
  4: "related",
  8: "new",
  64: "untracked",
};
const PROTOCOL_NAMES: Readonly<Record<number, string>> = {
  1: "icmp",
  6: "tcp",
  17: "udp",
  58: "icmpv6",
  132: "sctp",
  136: "udplite",
};

export function printField(field: KeyField, bytes: string): string {
  switch (field) {
    case "ipv4_addr":
    case "ipv6_addr":
      return formatAddress(bytes as Address);
    case "inet_proto":
      return PROTOCOL_NAMES[bytes.charCodeAt(0)] ?? String(bytes.charCodeAt(0));
    case "inet_service":
      return String(bytes.charCodeAt(0) << 8 | bytes.charCodeAt(1));
    case "icmpv6_type":
      return String(bytes.charCodeAt(0));
    case "ifname":
      return bytes.replace(/\0+$/, "");
    case "mark":
      return String(new DataView(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)).buffer).getUint32(0, true));
    case "ct_state":
      return CT_STATES[bytes.charCodeAt(0)] ?? hex(bytes);
  }
}

const SYMBOLS = { eq: "==", neq: "!=", lt: "<", lte: "<=", gt: ">", gte: ">=" } as const;
const hex = (bytes: string): string =>
  `0x${[...bytes].map((byte) => byte.charCodeAt(0).toString(16).padStart(2, "0")).join("")}`;

export function printExpression(one: Expression): string {
  switch (one.op) {
    case "meta":
      return `[r${one.dreg} = meta ${one.key}]`;
    case "setMark":
      return `[meta mark = r${one.sreg}]`;
    case "setPriority":
      return `[meta priority = r${one.sreg}]`;
    case "payload":
      return `[r${one.dreg} = ${printPayload(one)}]`;
    case "ct":
      return `[r${one.dreg} = ct ${one.key}]`;
    case "cmp":
      return `[r${one.sreg} ${SYMBOLS[one.is]} ${printData(one.data)}]`;
    case "range":
      return `[r${one.sreg} ${one.is === "eq" ? "in" : "not in"} ${printData(one.from)}-${printData(one.to)}]`;
    case "bitwise":
      return `[r${one.dreg} = r${one.sreg} & ${hex(one.mask)} ^ ${hex(one.xor)}]`;
    case "lookup":
      return `[r${one.sreg} ${one.invert ? "not in" : "in"} @${one.set}]`;
    case "immediate":
      return `[r${one.dreg} = ${printData(one.data)}]`;
    case "map":
      return `[r${one.dreg} = r${one.sreg} map @${one.set}]`;
    case "vmap":
      return `[r${one.sreg} vmap @${one.set}]`;
    case "verdict":
      return printVerdict(one.verdict);
    case "counter":
      return "counter";
    case "limit":
      return `limit ${one.rate}/${one.unitSeconds}s burst ${one.burst}`;
    case "log":
      return `log group ${one.group} ${JSON.stringify(one.prefix)}`;
    case "notrack":
      return "notrack";
    case "tcpReset":
      return "reject with tcp reset";
    case "portUnreachable":
      return "reject with icmpx port-unreachable";
    case "masquerade":
      return "masquerade";
    case "destinationType":
      return `[r${one.dreg} = fib daddr type]`;
    case "random":
      return `[r${one.dreg} = numgen random mod ${one.modulus} offset ${one.offset}]`;
    case "dnat":
      return `dnat ${one.family === 4 ? "ip" : "ip6"} to r${one.addressSreg} : r${one.portSreg}`;
    case "dynamic": {
      const timeout = one.seconds === undefined ? "" : ` timeout ${one.seconds}s`;
      return `${one.action} @${one.set} { r${one.keySreg}${timeout} : r${one.dataSreg} }`;
    }
    case "forward":
      return `fwd ${one.family === 4 ? "ip" : "ip6"} to r${one.addressSreg} device r${one.deviceSreg}`;
    case "other":
      return `[${one.name} ${one.attributes}]`;
  }
}

const PAYLOADS: Readonly<Record<string, string>> = {
  "network 12 4": "ip saddr",
  "network 16 4": "ip daddr",
  "network 8 16": "ip6 saddr",
  "network 24 16": "ip6 daddr",
  "transport 0 2": "th sport",
  "transport 2 2": "th dport",
  "transport 0 1": "icmp type",
};
const printPayload = (one: Extract<Expression, { op: "payload" }>): string =>
  PAYLOADS[`${one.base} ${one.offset} ${one.length}`] ?? `${one.base} ${one.offset} ${one.length}`;

function printData(data: string): string {
  if (data.length === 16 && /^[\x20-\x7e]+\0+$/.test(data)) return JSON.stringify(data.replace(/\0+$/, ""));
  if (data.length === 4 || data.length === 16) return formatAddress(data as Address);
  if (data.length === 2 && /^[a-z]{2}$/.test(data)) return JSON.stringify(`${data}*`);
  if (data.length === 2) return String(data.charCodeAt(0) << 8 | data.charCodeAt(1));
  return data.length === 1 ? String(data.charCodeAt(0)) : hex(data);
}
