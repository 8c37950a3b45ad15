/**
 * What IPVS does not do, as the table `inet manx-ipvs`: services without servers, sources that are not let in, marks for policy and
 * address translation, and that nothing of the node answers in a service's place. The table as a value, without its elements. Pure.
 */
import { type BaseChain, fieldSize, KeyType, setKeyType } from "../../src/kernel/netlink/schema/nftables.ts";
import type { WireExpression } from "../../src/kernel/netlink/schema/nftables.ts";
import {
  type Expression,
  expressionFromWire,
  expressionToWire,
} from "../../src/kernel/netlink/schema/nftables_expression.ts";
import type { Family } from "../../src/model/address.ts";
import { PROTOCOLS } from "../../src/model/ports.ts";
import type { IpvsConfig } from "./config.ts";

export type GateRule = readonly Expression[];

export interface GateChain {
  readonly base?: BaseChain;
  readonly rules: readonly GateRule[];
}

export type GateField = "ipv4_addr" | "ipv6_addr" | "inet_proto" | "inet_service";
const FIELDS: Readonly<Record<GateField, { readonly type: number; readonly length: number }>> = {
  ipv4_addr: { type: KeyType.Ipv4Address, length: 4 },
  ipv6_addr: { type: KeyType.Ipv6Address, length: 16 },
  inet_proto: { type: KeyType.L4Protocol, length: 1 },
  inet_service: { type: KeyType.Service, length: 2 },
};

export interface GateSet {
  readonly fields: readonly GateField[];
  /** Of verdicts. */
  readonly map: boolean;
  /** Keys are the first and the last of a range after each other. */
  readonly interval: boolean;
}

export const keyTypeOf = ({ fields }: GateSet): number => setKeyType(fields.map((field) => FIELDS[field].type));
export const keyLengthOf = ({ fields }: GateSet): number =>
  fields.length === 1
    ? FIELDS[fields[0]!].length
    : fields.reduce((sum, field) => sum + fieldSize(FIELDS[field].length), 0);

const FAMILIES = [4, 6] as const;
const addressField = (family: Family): GateField => family === 4 ? "ipv4_addr" : "ipv6_addr";

/** Sets that are always there, by name. `services`: where a packet to an address, protocol and port goes. `closed`: of those, the ones that the node's own processes do not get. */
export const FIXED_SETS: ReadonlyMap<string, GateSet> = new Map(FAMILIES.flatMap((family) => {
  const frontend: GateSet = {
    fields: [addressField(family), "inet_proto", "inet_service"],
    map: true,
    interval: false,
  };
  const address: GateSet = { fields: [addressField(family)], map: false, interval: false };
  const pair: GateSet = { fields: [addressField(family), addressField(family)], map: false, interval: false };
  const nets: GateSet = { fields: [addressField(family)], map: false, interval: true };
  return [
    [`services${family}`, frontend],
    [`closed${family}`, frontend],
    [`addresses${family}`, address],
    [`hairpin${family}`, pair],
    [`inside${family}`, nets],
  ] as const;
}));

export const netsOf = (family: Family): GateSet => ({ fields: [addressField(family)], map: false, interval: true });

// ---------------------------------------------------------------------------------------------------------- expressions

/** A 32-bit number as registers hold it: host byte order. */
const word = (value: number): string =>
  String.fromCharCode(value & 0xff, value >>> 8 & 0xff, value >>> 16 & 0xff, value >>> 24);
const byte = (value: number): string => String.fromCharCode(value);
const verdict = (kind: "accept" | "drop"): Expression => ({ op: "verdict", verdict: { kind } });
export const goto = (chain: string): Expression => ({ op: "verdict", verdict: { kind: "goto", chain } });
const loadMark: Expression = { op: "meta", key: "mark", dreg: 0 };
const iifname: Expression = { op: "meta", key: "iifname", dreg: 0 };
const oifname: Expression = { op: "meta", key: "oifname", dreg: 0 };
const interfaceName = (name: string): string => name.padEnd(16, "\0");

const hasMark = (bits: number): readonly Expression[] => [
  loadMark,
  { op: "bitwise", sreg: 0, dreg: 0, mask: word(bits), xor: word(0) },
  { op: "cmp", sreg: 0, is: "neq", data: word(0) },
];
const setMark = (keep: number, set: number): readonly Expression[] => [
  loadMark,
  { op: "bitwise", sreg: 0, dreg: 0, mask: word(keep), xor: word(set) },
  { op: "setMark", sreg: 0 },
];
/** NFPROTO_IPV4 and NFPROTO_IPV6. */
const isFamily = (family: Family): readonly Expression[] => [
  { op: "meta", key: "nfproto", dreg: 0 },
  { op: "cmp", sreg: 0, is: "eq", data: byte(family === 4 ? 2 : 10) },
];
const isTcp: readonly Expression[] = [
  { op: "meta", key: "l4proto", dreg: 0 },
  { op: "cmp", sreg: 0, is: "eq", data: byte(PROTOCOLS.TCP) },
];
/** Header offsets of RFC 791 section 3.1 and RFC 8200 section 3. */
export const loadAddress = (family: Family, end: "source" | "destination", dreg: number): Expression => ({
  op: "payload",
  base: "network",
  offset: family === 4 ? (end === "source" ? 12 : 16) : (end === "source" ? 8 : 24),
  length: family === 4 ? 4 : 16,
  dreg,
});
/** Address, protocol and port of the destination, as the key of a map. */
const toFrontend = (family: Family, map: string): GateRule => {
  const words = family === 4 ? 1 : 4;
  return [
    ...isFamily(family),
    loadAddress(family, "destination", 0),
    { op: "meta", key: "l4proto", dreg: words },
    { op: "payload", base: "transport", offset: 2, length: 2, dreg: words + 1 },
    { op: "vmap", set: `${map}${family}`, sreg: 0 },
  ];
};
export const inSet = (family: Family, end: "source" | "destination", set: string): readonly Expression[] => [
  loadAddress(family, end, 0),
  { op: "lookup", set, sreg: 0, invert: false },
];
/** NF_CT_STATE_BIT of established and related. */
const knownFlow: readonly Expression[] = [
  { op: "ct", key: "state", dreg: 0 },
  { op: "bitwise", sreg: 0, dreg: 0, mask: word(0x06), xor: word(0) },
  { op: "cmp", sreg: 0, is: "neq", data: word(0) },
];

// --------------------------------------------------------------------------------------------------------------- chains

/** Where a packet to a frontend goes. Names that nft can read again: its own words are none. */
export const Chain = {
  Serve: "serve",
  Masquerade: "serve-masquerade",
  Reject: "end-reject",
  Drop: "end-drop",
} as const;

const base = (
  hook: BaseChain["hook"],
  priority: number,
  rules: readonly GateRule[],
  type: "filter" | "nat" = "filter",
): GateChain => ({ base: { type, hook, priority, policy: "accept" }, rules });

/** IPVS takes packets to the node at 98 and 99 (NF_IP_PRI_NAT_SRC − 2 and − 1), those of the node itself at −99 and −98. */
const BEFORE_IPVS_IN = 97;
const AFTER_IPVS_IN = 101;
const BEFORE_IPVS_OUT = -101;
const BEFORE_MASQUERADE = 99;

type Marks = Pick<IpvsConfig, "forwardMark" | "masqueradeMark">;

/** Here a second time: IPVS has not taken it, and nobody else on the node shall. */
const notTaken = ({ forwardMark }: Marks): GateRule => [...hasMark(forwardMark), verdict("drop")];

/** The chains that are always there. */
export function fixedChains(marks: Marks): ReadonlyMap<string, GateChain> {
  const { forwardMark, masqueradeMark } = marks;
  const ours = (forwardMark | masqueradeMark) >>> 0;
  const serve = (set: number): readonly GateRule[] => [
    notTaken(marks),
    [...setMark(~ours >>> 0, set), verdict("accept")],
  ];
  const afterwards = FAMILIES.map((family): GateRule => [
    ...isFamily(family),
    { op: "meta", key: "l4proto", dreg: 0 },
    { op: "cmp", sreg: 0, is: "neq", data: byte(family === 4 ? PROTOCOLS.ICMP : PROTOCOLS.ICMPv6) },
    ...inSet(family, "destination", `addresses${family}`),
    goto(Chain.Reject),
  ]);
  return new Map<string, GateChain>([
    [Chain.Reject, { rules: [[...isTcp, { op: "tcpReset" }], [{ op: "portUnreachable" }]] }],
    [Chain.Drop, { rules: [[verdict("drop")]] }],
    [Chain.Serve, { rules: serve(forwardMark) }],
    [Chain.Masquerade, { rules: serve(ours) }],
    ["input", base("input", BEFORE_IPVS_IN, FAMILIES.map((family) => toFrontend(family, "services")))],
    [
      "input-after",
      base("input", AFTER_IPVS_IN, [
        [...knownFlow, verdict("accept")],
        ...FAMILIES.map((family) => toFrontend(family, "services")),
        ...afterwards,
      ]),
    ],
    ["output", base("output", BEFORE_IPVS_OUT, FAMILIES.map((family) => toFrontend(family, "closed")))],
    [
      "postrouting",
      base("postrouting", BEFORE_MASQUERADE, [
        [...hasMark(masqueradeMark), { op: "masquerade" }],
        ...FAMILIES.flatMap((family): readonly GateRule[] => [
          // The node's own packet to a service has the service's address as its source: it is the node's, after all.
          [
            ...isFamily(family),
            oifname,
            { op: "cmp", sreg: 0, is: "neq", data: interfaceName("lo") },
            ...inSet(family, "source", `addresses${family}`),
            { op: "masquerade" },
          ],
          // A pod that meets itself would answer itself, past the service.
          [
            ...hasMark(forwardMark),
            ...isFamily(family),
            loadAddress(family, "destination", 0),
            loadAddress(family, "source", family === 4 ? 1 : 4),
            { op: "lookup", set: `hairpin${family}`, sreg: 0, invert: false },
            { op: "masquerade" },
          ],
        ]),
      ], "nat"),
    ],
  ]);
}

/** Sends what is not from pods or the node elsewhere. */
export const insideOrOutside = (family: Family, inside: string, outside: string): GateChain => ({
  rules: [
    [iifname, { op: "cmp", sreg: 0, is: "eq", data: "mx" }, goto(inside)],
    [iifname, { op: "cmp", sreg: 0, is: "eq", data: interfaceName("lo") }, goto(inside)],
    [...inSet(family, "source", `inside${family}`), goto(inside)],
    [goto(outside)],
  ],
});

export const fromNets = (family: Family, nets: string | undefined, to: string): GateChain => ({
  rules: [
    ...nets === undefined ? [] : [[...inSet(family, "source", nets), goto(to)]],
    [verdict("drop")],
  ],
});

/** Packets of flows that are established go on, `to` a chain or on their way; of others `end` is the end. */
export const onlyKnown = (to: string | undefined, end: string): GateChain => ({
  rules: [[...knownFlow, to === undefined ? verdict("accept") : goto(to)], [goto(end)]],
});

/** IPVS finds the list of servers by the whole mark, `mark`. */
export const serveByMark = (marks: Marks, mark: number): GateChain => ({
  rules: [notTaken(marks), [...setMark(0, mark), verdict("accept")]],
});

/** Equal rules have equal texts, ours and those that the kernel gives back. */
export const wireText = (rule: readonly WireExpression[]): string => JSON.stringify(rule.map(expressionFromWire));
export const chainText = ({ base, rules }: GateChain): string =>
  JSON.stringify([
    base === undefined ? null : [base.type, base.hook, base.priority, base.policy],
    rules.map((rule) => wireText(rule.map(expressionToWire))),
  ]);
