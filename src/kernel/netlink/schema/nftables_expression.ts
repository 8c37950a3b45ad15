/**
 * Expressions of nf_tables rules: their wire schemas, and the closed union `Expression` of those that we write and whose
 * meaning we know. Everything else is kept as `{ op: "other" }`: it can be shown and compared, never evaluated.
 */
import {
  type AttributeType,
  attrs,
  be16,
  be32,
  be64,
  bytes,
  type Infer,
  list,
  nested,
  padding,
  str,
  switched,
  u8,
} from "../codec.ts";

/** Bytes as a packed string: one Latin-1 character each. */
export const packed: AttributeType<string> = {
  encode: (writer, value) => writer.latin1(value),
  decode: (reader, start, end) => reader.latin1(start, end),
};

/** Signed numbers in network order: hook priorities, verdict codes. */
export const hookPriority: AttributeType<number> & { readonly size: number } = {
  size: 4,
  encode: (writer, value) => writer.be32(value >>> 0),
  decode: (reader, start, end) => {
    reader.need(start, end, 4, "a signed number");
    return reader.view.getInt32(start, false);
  },
};

/** enum nft_verdict_attributes */
const verdictAttributes = attrs({ code: [1, hookPriority], chain: [2, str], chainId: [3, be32] });
/** enum nft_data_attributes */
export const data = attrs({ value: [1, packed], verdict: [2, verdictAttributes] });

/** enum nft_counter_attributes */
export const counter = attrs({ bytes: [1, be64], packets: [2, be64], pad: [3, padding] });
const none = attrs({});

/** NFTA_EXPR_DATA by NFTA_EXPR_NAME; each as `enum nft_NAME_attributes` of nf_tables.h has it. */
const expressionData = {
  immediate: attrs({ dreg: [1, be32], data: [2, data] }),
  bitwise: attrs({
    sreg: [1, be32],
    dreg: [2, be32],
    length: [3, be32],
    mask: [4, data],
    xor: [5, data],
    operation: [6, be32],
    data: [7, data],
    sreg2: [8, be32],
  }),
  byteorder: attrs({ sreg: [1, be32], dreg: [2, be32], operation: [3, be32], length: [4, be32], size: [5, be32] }),
  cmp: attrs({ sreg: [1, be32], operation: [2, be32], data: [3, data] }),
  range: attrs({ sreg: [1, be32], operation: [2, be32], from: [3, data], to: [4, data] }),
  lookup: attrs({ set: [1, str], sreg: [2, be32], dreg: [3, be32], setId: [4, be32], flags: [5, be32] }),
  dynset: attrs({
    set: [1, str],
    setId: [2, be32],
    operation: [3, be32],
    keySreg: [4, be32],
    dataSreg: [5, be32],
    timeout: [6, be64],
    expression: [7, nested((): AttributeType<Record<string, unknown>> => expression as never)],
    pad: [8, padding],
    flags: [9, be32],
    expressions: [10, list((): AttributeType<Record<string, unknown>> => expression as never)],
  }),
  payload: attrs({
    dreg: [1, be32],
    base: [2, be32],
    offset: [3, be32],
    length: [4, be32],
    sreg: [5, be32],
    checksumType: [6, be32],
    checksumOffset: [7, be32],
    checksumFlags: [8, be32],
  }),
  exthdr: attrs({
    dreg: [1, be32],
    type: [2, u8],
    offset: [3, be32],
    length: [4, be32],
    flags: [5, be32],
    operation: [6, be32],
    sreg: [7, be32],
  }),
  hash: attrs({
    sreg: [1, be32],
    dreg: [2, be32],
    length: [3, be32],
    modulus: [4, be32],
    seed: [5, be32],
    offset: [6, be32],
    type: [7, be32],
  }),
  meta: attrs({ dreg: [1, be32], key: [2, be32], sreg: [3, be32] }),
  rt: attrs({ dreg: [1, be32], key: [2, be32] }),
  socket: attrs({ key: [1, be32], dreg: [2, be32], level: [3, be32] }),
  ct: attrs({ dreg: [1, be32], key: [2, be32], direction: [3, u8], sreg: [4, be32] }),
  flow_offload: attrs({ flowtable: [1, str] }),
  limit: attrs({
    rate: [1, be64],
    unitSeconds: [2, be64],
    burst: [3, be32],
    type: [4, be32],
    flags: [5, be32],
    pad: [6, padding],
  }),
  connlimit: attrs({ count: [1, be32], flags: [2, be32] }),
  counter,
  last: attrs({ set: [1, be32], milliseconds: [2, be64], pad: [3, padding] }),
  log: attrs({
    group: [1, be16],
    prefix: [2, str],
    snapLength: [3, be32],
    queueThreshold: [4, be16],
    level: [5, be32],
    flags: [6, be32],
  }),
  queue: attrs({ number: [1, be16], total: [2, be16], flags: [3, be16], numberSreg: [4, be32] }),
  quota: attrs({ bytes: [1, be64], flags: [2, be32], pad: [3, padding], consumed: [4, be64] }),
  reject: attrs({ type: [1, be32], code: [2, u8] }),
  nat: attrs({
    type: [1, be32],
    family: [2, be32],
    addressMinReg: [3, be32],
    addressMaxReg: [4, be32],
    portMinReg: [5, be32],
    portMaxReg: [6, be32],
    flags: [7, be32],
  }),
  tproxy: attrs({ family: [1, be32], addressReg: [2, be32], portReg: [3, be32] }),
  masq: attrs({ flags: [1, be32], portMinReg: [2, be32], portMaxReg: [3, be32] }),
  redir: attrs({ portMinReg: [1, be32], portMaxReg: [2, be32], flags: [3, be32] }),
  objref: attrs({ type: [1, be32], name: [2, str], setSreg: [3, be32], set: [4, str], setId: [5, be32] }),
  fib: attrs({ dreg: [1, be32], result: [2, be32], flags: [3, be32] }),
  numgen: attrs({ dreg: [1, be32], modulus: [2, be32], type: [3, be32], offset: [4, be32] }),
  notrack: none,
  /** `family`: NFPROTO_*. */
  fwd: attrs({ deviceSreg: [1, be32], addressSreg: [2, be32], family: [3, be32] }),
  /** Extensions of x_tables: enum nft_match_attributes and nft_target_attributes of nf_tables_compat.h. `info`: padded to 8 bytes. */
  match: attrs({ name: [1, str], revision: [2, be32], info: [3, bytes] }),
  target: attrs({ name: [1, str], revision: [2, be32], info: [3, bytes] }),
} as const;

/** enum nft_expr_attributes */
export const expression = attrs({ name: [1, str], data: [2, switched("name", () => expressionData)] });
type WireExpression = Infer<typeof expression>;
type WireData<N extends keyof typeof expressionData> = Infer<(typeof expressionData)[N]>;

// ------------------------------------------------------------------------------------------------------------- meaning

/** Where a rule sends a packet. `return` leaves the chain, `continue` goes to the next rule. */
export type Verdict =
  | { readonly kind: "accept" | "drop" | "return" | "continue" }
  | { readonly kind: "jump" | "goto"; readonly chain: string }
  /** NF_QUEUE and what else we never write. */
  | { readonly kind: "other"; readonly code: number };

/** NF_* of include/uapi/linux/netfilter.h and enum nft_verdicts. */
const VERDICT_CODES = { drop: 0, accept: 1, continue: -1, jump: -3, goto: -4, return: -5 } as const;
const VERDICT_KINDS = new Map(Object.entries(VERDICT_CODES).map(([kind, code]) => [code as number, kind]));

export const verdictToWire = (verdict: Verdict): Infer<typeof verdictAttributes> =>
  verdict.kind === "other"
    ? { code: verdict.code }
    : "chain" in verdict
    ? { code: VERDICT_CODES[verdict.kind], chain: verdict.chain }
    : { code: VERDICT_CODES[verdict.kind] };

export function verdictFromWire(wire: Infer<typeof verdictAttributes>): Verdict {
  const code = wire.code ?? 0;
  const kind = VERDICT_KINDS.get(code);
  if (kind === undefined) return { kind: "other", code };
  if (kind === "jump" || kind === "goto") return { kind, chain: wire.chain ?? "" };
  return { kind: kind as "accept" | "drop" | "return" | "continue" };
}

/** enum nft_meta_keys, those whose meaning we use. */
const META_KEYS = {
  priority: 2,
  mark: 3,
  iif: 4,
  iifname: 6,
  oifname: 7,
  nfproto: 15,
  l4proto: 16,
  packetType: 19,
} as const;
/** enum nft_ct_keys. */
const CT_KEYS = { state: 0, direction: 1, status: 2, mark: 3 } as const;
/** enum nft_payload_bases. */
const PAYLOAD_BASES = ["link", "network", "transport"] as const;
/** enum nft_cmp_ops. */
const COMPARISONS = ["eq", "neq", "lt", "lte", "gt", "gte"] as const;

export type MetaKey = keyof typeof META_KEYS;
export type CtKey = keyof typeof CT_KEYS;
export type PayloadBase = typeof PAYLOAD_BASES[number];
export type Comparison = typeof COMPARISONS[number];

/**
 * One step of a rule. A register is an index of 32-bit words, 0 … 15 (NFT_REG32_00 + index); data are packed strings.
 * Plain values whose fields are always in the same order, so that equal expressions have equal JSON.
 */
export type Expression =
  | { readonly op: "meta"; readonly key: MetaKey; readonly dreg: number }
  | { readonly op: "setMark"; readonly sreg: number }
  | { readonly op: "setPriority"; readonly sreg: number }
  | {
    readonly op: "payload";
    readonly base: PayloadBase;
    readonly offset: number;
    readonly length: number;
    readonly dreg: number;
  }
  | { readonly op: "ct"; readonly key: CtKey; readonly dreg: number }
  | { readonly op: "cmp"; readonly sreg: number; readonly is: Comparison; readonly data: string }
  | {
    readonly op: "range";
    readonly sreg: number;
    readonly is: "eq" | "neq";
    readonly from: string;
    readonly to: string;
  }
  | {
    readonly op: "bitwise";
    readonly sreg: number;
    readonly dreg: number;
    readonly mask: string;
    readonly xor: string;
  }
  | { readonly op: "lookup"; readonly set: string; readonly sreg: number; readonly invert: boolean }
  /** Loads the data. */
  | { readonly op: "immediate"; readonly dreg: number; readonly data: string }
  /** Lookup in a map of data: what is found is loaded; nothing found ends the rule. */
  | { readonly op: "map"; readonly set: string; readonly sreg: number; readonly dreg: number }
  /** Lookup in a verdict map: the verdict found is carried out; nothing found ends the rule. */
  | { readonly op: "vmap"; readonly set: string; readonly sreg: number }
  | { readonly op: "verdict"; readonly verdict: Verdict }
  /** Counts; the counts themselves are no part of the value. */
  | { readonly op: "counter" }
  /** Packets per `unitSeconds`, over which the rule ends. */
  | { readonly op: "limit"; readonly rate: number; readonly unitSeconds: number; readonly burst: number }
  /** To NFLOG group `group`. */
  | { readonly op: "log"; readonly group: number; readonly prefix: string }
  | { readonly op: "notrack" }
  /** Drops the packet and answers it with a TCP reset. Of TCP packets only. */
  | { readonly op: "tcpReset" }
  /** Drops the packet and answers it with ICMP or ICMPv6 "port unreachable". */
  | { readonly op: "portUnreachable" }
  | { readonly op: "masquerade" }
  /** The destination's kind in the routing tables, an RTN_* number in host byte order. */
  | { readonly op: "destinationType"; readonly dreg: number }
  /** A random number from `offset` to `offset + modulus - 1`, in host byte order. */
  | { readonly op: "random"; readonly modulus: number; readonly offset: number; readonly dreg: number }
  /** Another destination for the flow; ends the chain as `accept` does. */
  | { readonly op: "dnat"; readonly family: 4 | 6; readonly addressSreg: number; readonly portSreg: number }
  /**
   * An element of a dynamic map. `update` adds it, or begins its time anew where it is there (its data stay); a map that is full ends the
   * rule. `delete` takes it away. Without seconds the map's own time.
   */
  | {
    readonly op: "dynamic";
    readonly action: "update" | "delete";
    readonly set: string;
    readonly keySreg: number;
    readonly dataSreg: number;
    readonly seconds?: number;
  }
  /**
   * Only in chains of the family netdev. Takes the packet past everything else to a neighbour (a register with its address) on a link (one with
   * its index, host byte order), with one hop less left.
   */
  | { readonly op: "forward"; readonly family: 4 | 6; readonly deviceSreg: number; readonly addressSreg: number }
  /** Not understood: its name and a canonical text of its attributes. */
  | { readonly op: "other"; readonly name: string; readonly attributes: string };

const REGISTER_VERDICT = 0;
/** NFT_REJECT_TCP_RST of enum nft_reject_types. */
const REJECT_TCP_RESET = 1;
/** NFT_REJECT_ICMPX_UNREACH of enum nft_reject_types, NFT_REJECT_ICMPX_PORT_UNREACH of enum nft_reject_inet_code. */
const REJECT_ICMPX = 2, ICMPX_PORT_UNREACHABLE = 1;
/** NFT_FIB_RESULT_ADDRTYPE of enum nft_fib_result, NFTA_FIB_F_DADDR of enum nft_fib_flags. */
const FIB_ADDRESS_TYPE = 3, FIB_DESTINATION = 2;
/** NFT_NG_RANDOM of enum nft_ng_types. */
const NUMGEN_RANDOM = 1;
/** NFT_NAT_DNAT of enum nft_nat_types. */
const NAT_DESTINATION = 1;
/** NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED of include/uapi/linux/netfilter/nf_nat.h: the kernel sets them itself. */
const NAT_RANGE_FLAGS = 3;
/** NFPROTO_* of include/uapi/linux/netfilter.h. */
const NAT_FAMILIES = { 4: 2, 6: 10 } as const;
/** enum nft_dynset_ops. */
const DYNAMIC_ACTIONS = { update: 1, delete: 2 } as const;
const registerToWire = (index: number): number => index % 4 === 0 ? 1 + index / 4 : 8 + index;
/** NFT_REG_1 … NFT_REG_4 (16 bytes each) or NFT_REG32_00 … NFT_REG32_15, as a word index. */
const registerFromWire = (wire: number): number => wire >= 1 && wire <= 4 ? (wire - 1) * 4 : wire - 8;

/** @throws {TypeError} for `other`: it is never written */
export function expressionToWire(one: Expression): WireExpression {
  switch (one.op) {
    case "meta":
      return { name: "meta", data: { dreg: registerToWire(one.dreg), key: META_KEYS[one.key] } };
    case "setMark":
      return { name: "meta", data: { key: META_KEYS.mark, sreg: registerToWire(one.sreg) } };
    case "setPriority":
      return { name: "meta", data: { key: META_KEYS.priority, sreg: registerToWire(one.sreg) } };
    case "payload": {
      const base = PAYLOAD_BASES.indexOf(one.base);
      return {
        name: "payload",
        data: { dreg: registerToWire(one.dreg), base, offset: one.offset, length: one.length },
      };
    }
    case "ct":
      return { name: "ct", data: { dreg: registerToWire(one.dreg), key: CT_KEYS[one.key] } };
    case "cmp": {
      const operation = COMPARISONS.indexOf(one.is);
      return { name: "cmp", data: { sreg: registerToWire(one.sreg), operation, data: { value: one.data } } };
    }
    case "range": {
      const operation = one.is === "eq" ? 0 : 1;
      const [from, to] = [{ value: one.from }, { value: one.to }];
      return { name: "range", data: { sreg: registerToWire(one.sreg), operation, from, to } };
    }
    case "bitwise":
      return {
        name: "bitwise",
        data: {
          sreg: registerToWire(one.sreg),
          dreg: registerToWire(one.dreg),
          length: one.mask.length,
          mask: { value: one.mask },
          xor: { value: one.xor },
        },
      };
    case "lookup":
      return { name: "lookup", data: { set: one.set, sreg: registerToWire(one.sreg), flags: one.invert ? 1 : 0 } };
    case "immediate":
      return { name: "immediate", data: { dreg: registerToWire(one.dreg), data: { value: one.data } } };
    case "map": {
      const [sreg, dreg] = [registerToWire(one.sreg), registerToWire(one.dreg)];
      return { name: "lookup", data: { set: one.set, sreg, dreg } };
    }
    case "vmap":
      return { name: "lookup", data: { set: one.set, sreg: registerToWire(one.sreg), dreg: REGISTER_VERDICT } };
    case "verdict":
      return { name: "immediate", data: { dreg: REGISTER_VERDICT, data: { verdict: verdictToWire(one.verdict) } } };
    case "counter":
      return { name: "counter", data: {} };
    case "limit":
      return {
        name: "limit",
        data: { rate: BigInt(one.rate), unitSeconds: BigInt(one.unitSeconds), burst: one.burst, type: 0, flags: 0 },
      };
    case "log":
      return { name: "log", data: { group: one.group, prefix: one.prefix } };
    case "notrack":
      return { name: "notrack" };
    case "tcpReset":
      return { name: "reject", data: { type: REJECT_TCP_RESET } };
    case "portUnreachable":
      return { name: "reject", data: { type: REJECT_ICMPX, code: ICMPX_PORT_UNREACHABLE } };
    case "masquerade":
      return { name: "masq", data: {} };
    case "destinationType":
      return {
        name: "fib",
        data: { dreg: registerToWire(one.dreg), result: FIB_ADDRESS_TYPE, flags: FIB_DESTINATION },
      };
    case "random": {
      const { modulus, offset } = one;
      return { name: "numgen", data: { dreg: registerToWire(one.dreg), modulus, type: NUMGEN_RANDOM, offset } };
    }
    case "dnat":
      return {
        name: "nat",
        data: {
          type: NAT_DESTINATION,
          family: NAT_FAMILIES[one.family],
          addressMinReg: registerToWire(one.addressSreg),
          portMinReg: registerToWire(one.portSreg),
        },
      };
    case "dynamic":
      return {
        name: "dynset",
        data: {
          set: one.set,
          operation: DYNAMIC_ACTIONS[one.action],
          keySreg: registerToWire(one.keySreg),
          dataSreg: registerToWire(one.dataSreg),
          timeout: one.seconds === undefined ? undefined : BigInt(one.seconds) * 1000n,
        },
      };
    case "forward": {
      const [deviceSreg, addressSreg] = [registerToWire(one.deviceSreg), registerToWire(one.addressSreg)];
      return { name: "fwd", data: { deviceSreg, addressSreg, family: NAT_FAMILIES[one.family] } };
    }
    case "other":
      throw new TypeError(`expression ${one.name} is not one that is written`);
  }
}

const keyOf = <K extends string>(table: Readonly<Record<K, number>>, value: number | undefined): K | undefined => {
  for (const key in table) if (table[key] === value) return key;
  return undefined;
};

/** What the kernel says a rule does; `other` for what it may say and we never do. */
export function expressionFromWire(wire: WireExpression): Expression {
  return known(wire) ?? { op: "other", name: wire.name ?? "", attributes: canonicalText(wire.data) };
}

function known(wire: WireExpression): Expression | undefined {
  if (wire.unknown !== undefined || wire.data instanceof Uint8Array) return undefined;
  if (wire.data?.unknown !== undefined) return undefined;
  switch (wire.name) {
    case "meta": {
      const { dreg, key, sreg } = wire.data as WireData<"meta">;
      const name = keyOf(META_KEYS, key);
      if ((name === "mark" || name === "priority") && dreg === undefined && sreg !== undefined) {
        return { op: name === "mark" ? "setMark" : "setPriority", sreg: registerFromWire(sreg) };
      }
      return dreg === undefined || sreg !== undefined || name === undefined
        ? undefined
        : { op: "meta", key: name, dreg: registerFromWire(dreg) };
    }
    case "payload": {
      const { dreg, base, offset, length } = wire.data as WireData<"payload">;
      const name = PAYLOAD_BASES[base ?? -1];
      return dreg === undefined || name === undefined || offset === undefined || length === undefined
        ? undefined
        : { op: "payload", base: name, offset, length, dreg: registerFromWire(dreg) };
    }
    case "ct": {
      const { dreg, key, direction, sreg } = wire.data as WireData<"ct">;
      const name = keyOf(CT_KEYS, key);
      return dreg === undefined || name === undefined || direction !== undefined || sreg !== undefined
        ? undefined
        : { op: "ct", key: name, dreg: registerFromWire(dreg) };
    }
    case "cmp": {
      const { sreg, operation, data } = wire.data as WireData<"cmp">;
      const is = COMPARISONS[operation ?? -1];
      return sreg === undefined || is === undefined || data?.value === undefined
        ? undefined
        : { op: "cmp", sreg: registerFromWire(sreg), is, data: data.value };
    }
    case "range": {
      const { sreg, operation, from, to } = wire.data as WireData<"range">;
      return sreg === undefined || from?.value === undefined || to?.value === undefined ? undefined : {
        op: "range",
        sreg: registerFromWire(sreg),
        is: operation === 0 ? "eq" : "neq",
        from: from.value,
        to: to.value,
      };
    }
    case "bitwise": {
      const { sreg, dreg, mask, xor, operation, length } = wire.data as WireData<"bitwise">;
      return sreg === undefined || dreg === undefined || mask?.value === undefined || xor?.value === undefined ||
          (operation ?? 0) !== 0 || length !== mask.value.length
        ? undefined
        : {
          op: "bitwise",
          sreg: registerFromWire(sreg),
          dreg: registerFromWire(dreg),
          mask: mask.value,
          xor: xor.value,
        };
    }
    case "lookup": {
      const { set, sreg, dreg, flags } = wire.data as WireData<"lookup">;
      if (set === undefined || sreg === undefined) return undefined;
      if (dreg === undefined) {
        return { op: "lookup", set, sreg: registerFromWire(sreg), invert: ((flags ?? 0) & 1) !== 0 };
      }
      if ((flags ?? 0) !== 0) return undefined;
      return dreg === REGISTER_VERDICT
        ? { op: "vmap", set, sreg: registerFromWire(sreg) }
        : { op: "map", set, sreg: registerFromWire(sreg), dreg: registerFromWire(dreg) };
    }
    case "immediate": {
      const { dreg, data } = wire.data as WireData<"immediate">;
      if (dreg === REGISTER_VERDICT && data?.verdict !== undefined) {
        return { op: "verdict", verdict: verdictFromWire(data.verdict) };
      }
      return dreg === undefined || data?.value === undefined
        ? undefined
        : { op: "immediate", dreg: registerFromWire(dreg), data: data.value };
    }
    case "counter":
      return { op: "counter" };
    case "limit": {
      const { rate, unitSeconds, burst, type, flags } = wire.data as WireData<"limit">;
      return rate === undefined || unitSeconds === undefined || (type ?? 0) !== 0 || (flags ?? 0) !== 0
        ? undefined
        : { op: "limit", rate: Number(rate), unitSeconds: Number(unitSeconds), burst: burst ?? 0 };
    }
    case "log": {
      const { group, prefix, snapLength, queueThreshold, level, flags } = wire.data as WireData<"log">;
      return group === undefined || snapLength || queueThreshold || level !== undefined || flags
        ? undefined
        : { op: "log", group, prefix: prefix ?? "" };
    }
    case "notrack":
      return { op: "notrack" };
    case "reject": {
      const { type, code } = wire.data as WireData<"reject">;
      if (type === REJECT_TCP_RESET) return { op: "tcpReset" };
      return type === REJECT_ICMPX && code === ICMPX_PORT_UNREACHABLE ? { op: "portUnreachable" } : undefined;
    }
    case "fib": {
      const { dreg, result, flags } = wire.data as WireData<"fib">;
      return dreg === undefined || result !== FIB_ADDRESS_TYPE || flags !== FIB_DESTINATION
        ? undefined
        : { op: "destinationType", dreg: registerFromWire(dreg) };
    }
    case "numgen": {
      const { dreg, modulus, type, offset } = wire.data as WireData<"numgen">;
      return dreg === undefined || modulus === undefined || type !== NUMGEN_RANDOM
        ? undefined
        : { op: "random", modulus, offset: offset ?? 0, dreg: registerFromWire(dreg) };
    }
    case "nat": {
      const { type, family, addressMinReg, addressMaxReg, portMinReg, portMaxReg, flags } = wire.data as WireData<
        "nat"
      >;
      const of = family === NAT_FAMILIES[4] ? 4 : family === NAT_FAMILIES[6] ? 6 : undefined;
      return type !== NAT_DESTINATION || of === undefined || addressMinReg === undefined || portMinReg === undefined ||
          (addressMaxReg ?? addressMinReg) !== addressMinReg || (portMaxReg ?? portMinReg) !== portMinReg ||
          ((flags ?? 0) & ~NAT_RANGE_FLAGS) !== 0
        ? undefined
        : {
          op: "dnat",
          family: of,
          addressSreg: registerFromWire(addressMinReg),
          portSreg: registerFromWire(portMinReg),
        };
    }
    case "dynset": {
      const { set, operation, keySreg, dataSreg, timeout, expression, expressions, flags } = wire.data as WireData<
        "dynset"
      >;
      const action = keyOf(DYNAMIC_ACTIONS, operation);
      const isOurs = set !== undefined && action !== undefined && keySreg !== undefined && dataSreg !== undefined &&
        expression === undefined && expressions === undefined && (flags ?? 0) === 0 &&
        (timeout === undefined || timeout % 1000n === 0n);
      return !isOurs ? undefined : {
        op: "dynamic",
        action,
        set,
        keySreg: registerFromWire(keySreg),
        dataSreg: registerFromWire(dataSreg),
        ...!timeout ? {} : { seconds: Number(timeout / 1000n) },
      };
    }
    case "fwd": {
      const { deviceSreg, addressSreg, family } = wire.data as WireData<"fwd">;
      const of = family === NAT_FAMILIES[4] ? 4 : family === NAT_FAMILIES[6] ? 6 : undefined;
      return of === undefined || deviceSreg === undefined || addressSreg === undefined ? undefined : {
        op: "forward",
        family: of,
        deviceSreg: registerFromWire(deviceSreg),
        addressSreg: registerFromWire(addressSreg),
      };
    }
    case "masq": {
      const { flags, portMinReg } = wire.data as WireData<"masq"> ?? {};
      return flags || portMinReg !== undefined ? undefined : { op: "masquerade" };
    }
    default:
      return undefined;
  }
}

const canonicalText = (value: unknown): string =>
  JSON.stringify(
    value,
    (_, inner) =>
      typeof inner === "bigint"
        ? inner.toString()
        : inner instanceof Uint8Array
        ? Array.from(inner, (byte) => byte.toString(16).padStart(2, "0")).join("")
        : inner,
  ) ?? "";
