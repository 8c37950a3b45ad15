/**
 * What `iptables-nft` uses of nf_tables: rules whose matches and targets are extensions of x_tables, chains of the kernel's hooks, and
 * the question which extensions there are. include/uapi/linux/netfilter/nf_tables.h and nf_tables_compat.h.
 */
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import {
  type AttributeType,
  attrs,
  be32,
  be64,
  bytes,
  decode,
  decodeMessage,
  encode,
  encodeMessage,
  list,
  MessageFlag,
  messageSchema,
  padding,
  Reader,
  str,
} from "../codec.ts";
import {
  type BaseChain,
  chain,
  HOOKS,
  nfgenmsg,
  NftMessage,
  ProtocolFamily,
  ruleCompat,
  table,
  type TableName,
  type WireExpression,
} from "./nftables.ts";
import { expression } from "./nftables_expression.ts";

/** NFNL_SUBSYS_NFT_COMPAT of nfnetlink.h, NFNL_MSG_COMPAT_GET. */
const COMPAT_GET = 11 << 8;

/** enum of NFTA_COMPAT_*. */
const compatMessage = messageSchema(
  "extension",
  nfgenmsg,
  attrs({ name: [1, str], revision: [2, be32], type: [3, be32] }),
);

/** Answered where the kernel has this revision of an extension of x_tables; refused otherwise. */
export const getExtension = (
  family: 4 | 6,
  kind: "match" | "target",
  name: string,
  revision: number,
): NetlinkMessage =>
  encodeMessage(compatMessage, COMPAT_GET, 0, { family: familyNumber(family) }, {
    name,
    revision,
    type: kind === "match" ? 0 : 1,
  });

/** AF_INET and AF_INET6, which are NFPROTO_IPV4 and NFPROTO_IPV6. */
export const familyNumber = (family: 4 | 6): number => family === 4 ? ProtocolFamily.Ipv4 : ProtocolFamily.Ipv6;

/** Attributes as bytes, to be sent again as they are. */
const rawAttributes: AttributeType<Uint8Array> = { ...bytes, nested: true };

/** enum nft_rule_attributes, with the expressions as bytes. */
const rawRule = attrs({
  table: [1, str],
  chain: [2, str],
  handle: [3, be64],
  expressions: [4, rawAttributes],
  compat: [5, ruleCompat],
  position: [6, be64],
  userdata: [7, bytes],
  pad: [8, padding],
});
const rawRuleMessage = messageSchema("rule", nfgenmsg, rawRule);
const tableMessage = messageSchema("table", nfgenmsg, table);
const chainMessage = messageSchema("chain", nfgenmsg, chain);
const expressions = list(() => expression);

export const encodeExpressions = (list: readonly WireExpression[]): Uint8Array => encode(expressions, list);
/** @throws {DecodeError} */
export const decodeExpressions = (raw: Uint8Array): readonly WireExpression[] => decode(expressions, raw);

export interface RawRule {
  /** As `encodeExpressions` gives them. */
  readonly expressions: Uint8Array;
  /** For extensions that ask which protocol their rule is of. */
  readonly protocol?: { readonly number: number; readonly not: boolean };
  readonly userdata?: Uint8Array;
}

/** NFT_RULE_COMPAT_F_INV. */
const COMPAT_INVERT = 2;
const { Create, Append, Exclusive } = MessageFlag;

/** At the end of its chain, or before the rule with this handle. */
export const addRawRule = (
  at: TableName,
  chainName: string,
  { expressions, protocol, userdata }: RawRule,
  before?: bigint,
): NetlinkMessage =>
  encodeMessage(
    rawRuleMessage,
    NftMessage.NewRule,
    before === undefined ? Create | Append : Create,
    { family: at.family },
    {
      table: at.table,
      chain: chainName,
      expressions,
      compat: protocol && { protocol: protocol.number, flags: protocol.not ? COMPAT_INVERT : 0 },
      position: before,
      userdata,
    },
  );

export const parseRawRule = (message: Pick<NetlinkMessage, "payload">) => decodeMessage(rawRuleMessage, message);

/** NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE. */
const RULE_TABLE = 1, RULE_CHAIN = 2, RULE_HANDLE = 3;

/** Where a rule is, without looking at what it says: dumps have many. @throws {DecodeError} */
export function placeOfRule(
  { payload }: Pick<NetlinkMessage, "payload">,
): TableName & { readonly chain: string; readonly handle: bigint } {
  const reader = new Reader(payload);
  const end = payload.length;
  reader.need(0, end, nfgenmsg.size, "struct nfgenmsg");
  let table = "", chain = "", handle = 0n;
  for (let at = nfgenmsg.size; at < end;) {
    const length = reader.attributeLength(at, end);
    const type = reader.view.getUint16(at + 2, true) & 0x3fff;
    if (type === RULE_TABLE) table = reader.text(at + 4, at + length);
    else if (type === RULE_CHAIN) chain = reader.text(at + 4, at + length);
    else if (type === RULE_HANDLE) {
      reader.need(at + 4, at + length, 8, "a rule's handle");
      handle = reader.view.getBigUint64(at + 4, false);
    }
    at += length + 3 & ~3;
  }
  return { family: payload[0]!, table, chain, handle };
}

/** Refused where there is one already. */
export const newMarkedTable = (at: TableName, userdata: Uint8Array): NetlinkMessage =>
  encodeMessage(tableMessage, NftMessage.NewTable, Create | Exclusive, { family: at.family }, {
    name: at.table,
    userdata,
  });

/** Refused where there is one already. */
export const newMarkedChain = (at: TableName, name: string, userdata: Uint8Array, base?: BaseChain): NetlinkMessage =>
  encodeMessage(chainMessage, NftMessage.NewChain, Create | Exclusive, { family: at.family }, {
    table: at.table,
    name,
    ...base === undefined ? {} : {
      hook: { number: HOOKS.indexOf(base.hook), priority: base.priority },
      policy: base.policy === "accept" ? 1 : 0,
      type: base.type,
    },
    userdata,
  });

/** What an event of nf_tables is about; `chain` absent: the table, or something in it that is no chain. */
export interface Touched {
  readonly family: number;
  readonly table: string;
  readonly chain?: string;
  /** It is about a rule of the chain, not the chain itself. */
  readonly isRule: boolean;
}

/** NFTA_RULE_CHAIN and NFTA_CHAIN_NAME. */
const CHAIN_ATTRIBUTE = new Map<number, number>([
  [NftMessage.NewRule, 2],
  [NftMessage.DeleteRule, 2],
  [NftMessage.NewChain, 3],
  [NftMessage.DeleteChain, 3],
]);
/** NFTA_*_TABLE and NFTA_TABLE_NAME. */
const TABLE_ATTRIBUTE = 1;

/** Cheap: no more is read than that. Undefined for a generation. @throws {DecodeError} */
export function touchedBy(message: Pick<NetlinkMessage, "type" | "payload">): Touched | undefined {
  if (message.type === NftMessage.NewGeneration) return undefined;
  const reader = new Reader(message.payload);
  const end = message.payload.length, wanted = CHAIN_ATTRIBUTE.get(message.type);
  reader.need(0, end, nfgenmsg.size, "struct nfgenmsg");
  let table: string | undefined, chain: string | undefined;
  for (let at = nfgenmsg.size; at < end && (table === undefined || chain === undefined && wanted !== undefined);) {
    const length = reader.attributeLength(at, end);
    const type = reader.view.getUint16(at + 2, true) & 0x3fff;
    if (type === TABLE_ATTRIBUTE) table = reader.text(at + 4, at + length);
    else if (type === wanted) chain = reader.text(at + 4, at + length);
    at += length + 3 & ~3;
  }
  if (table === undefined) return undefined;
  const isRule = message.type === NftMessage.NewRule || message.type === NftMessage.DeleteRule;
  return { family: message.payload[0]!, table, isRule, ...chain === undefined ? {} : { chain } };
}
