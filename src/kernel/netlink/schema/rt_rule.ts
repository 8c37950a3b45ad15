/** Policy routing rules: RTM_NEWRULE and its kin, include/uapi/linux/fib_rules.h. */
import { type Address, type Cidr, cidrAddress, cidrPrefix, type Family, makeCidr } from "../../../model/address.ts";
import type { NetlinkMessage } from "../../../sdk/kernel_door.ts";
import {
  address,
  attrs,
  be64,
  decodeMessage,
  encodeMessage,
  type Infer,
  MessageFlag,
  messageSchema,
  pad,
  padding,
  str,
  struct,
  u16,
  u32,
  u8,
} from "../codec.ts";
import { familyFrom, familyOf } from "./family.ts";

export const RTM_NEWRULE = 32;
export const RTM_DELRULE = 33;
export const RTM_GETRULE = 34;
/** Multicast groups of rule changes. */
export const RTNLGRP_IPV4_RULE = 8;
export const RTNLGRP_IPV6_RULE = 19;

/** FR_ACT_*. */
export const RuleAction = { ToTable: 1, GoTo: 2, Nothing: 3, Blackhole: 6, Unreachable: 7, Prohibit: 8 } as const;
/** FIB_RULE_INVERT: what does not match. */
const FIB_RULE_INVERT = 0x2;

/** struct fib_rule_hdr. */
const ruleHeader = struct({
  family: u8,
  destinationPrefix: u8,
  sourcePrefix: u8,
  tos: u8,
  table: u8,
  reserved: pad(2),
  action: u8,
  flags: u32,
});

/** struct fib_rule_port_range, both ends included. */
const portRange = struct({ first: u16, last: u16 });

/** FRA_*. */
export const ruleAttributes = attrs({
  destination: [1, address],
  source: [2, address],
  inputName: [3, str],
  goTo: [4, u32],
  priority: [6, u32],
  mark: [10, u32],
  flow: [11, u32],
  tunnelId: [12, be64],
  suppressGroup: [13, u32],
  suppressPrefixLength: [14, u32],
  table: [15, u32],
  markMask: [16, u32],
  outputName: [17, str],
  padding: [18, padding],
  l3Master: [19, u8],
  protocol: [21, u8],
  ipProtocol: [22, u8],
  sourcePorts: [23, portRange],
  destinationPorts: [24, portRange],
});
export type RuleAttributes = Infer<typeof ruleAttributes>;
export const ruleMessage = messageSchema("rule", ruleHeader, ruleAttributes);

export interface RoutingRule {
  readonly family: Family;
  /** Lower is looked at first. */
  readonly priority: number;
  /** A `RuleAction`; default: look in `table`. */
  readonly action?: number;
  readonly table?: number;
  readonly source?: Cidr;
  readonly destination?: Cidr;
  readonly inputName?: string;
  readonly outputName?: string;
  readonly mark?: number;
  /** Default: all bits. */
  readonly markMask?: number;
  readonly invert?: boolean;
  /** Routes of this prefix length or shorter do not count: 0 skips default routes. */
  readonly suppressPrefixLength?: number;
  /** RTPROT_*: who made the rule. */
  readonly protocol?: number;
}

function ruleOf(type: number, flags: number, rule: RoutingRule): NetlinkMessage {
  const table = rule.table ?? 0;
  return encodeMessage(ruleMessage, type, flags, {
    family: familyOf(rule.family),
    destinationPrefix: rule.destination === undefined ? 0 : cidrPrefix(rule.destination),
    sourcePrefix: rule.source === undefined ? 0 : cidrPrefix(rule.source),
    table: table < 256 ? table : 0,
    action: rule.action ?? RuleAction.ToTable,
    flags: rule.invert ? FIB_RULE_INVERT : 0,
  }, {
    destination: rule.destination === undefined ? undefined : cidrAddress(rule.destination),
    source: rule.source === undefined ? undefined : cidrAddress(rule.source),
    inputName: rule.inputName,
    priority: rule.priority,
    mark: rule.mark,
    markMask: rule.markMask,
    suppressPrefixLength: rule.suppressPrefixLength,
    table: table < 256 ? undefined : table,
    outputName: rule.outputName,
    protocol: rule.protocol,
  });
}

/** RTM_NEWRULE; EEXIST where an equal one is there. `flags` are `MessageFlag` bits. */
export const newRule = (
  rule: RoutingRule,
  flags: number = MessageFlag.Create | MessageFlag.Exclusive,
): NetlinkMessage => ruleOf(RTM_NEWRULE, flags, rule);

/** RTM_DELRULE of the first rule that has what is given; ENOENT where there is none. */
export const delRule = (rule: RoutingRule): NetlinkMessage => ruleOf(RTM_DELRULE, 0, rule);

/** RTM_GETRULE of all rules, for `dump`. */
export const getRules = (family?: Family): NetlinkMessage =>
  encodeMessage(ruleMessage, RTM_GETRULE, 0, { family: familyOf(family) }, {});

/** Suppressors of the kernel are -1 where there is none. */
const NO_SUPPRESSOR = 0xffffffff;

/** Reads RTM_NEWRULE and RTM_DELRULE; families other than IP have an undefined family. @throws {DecodeError} */
export function parseRule(
  message: Pick<NetlinkMessage, "payload">,
): Omit<RoutingRule, "family"> & { readonly family: Family | undefined; readonly attributes: RuleAttributes } {
  const { header, attributes } = decodeMessage(ruleMessage, message);
  const prefixOf = (found: Address | undefined, prefix: number) =>
    found === undefined ? undefined : makeCidr(found, prefix);
  const suppress = attributes.suppressPrefixLength;
  return {
    family: familyFrom(header.family),
    priority: attributes.priority ?? 0,
    action: header.action,
    table: attributes.table ?? header.table,
    source: prefixOf(attributes.source, header.sourcePrefix),
    destination: prefixOf(attributes.destination, header.destinationPrefix),
    inputName: attributes.inputName,
    outputName: attributes.outputName,
    mark: attributes.mark,
    markMask: attributes.markMask,
    invert: (header.flags & FIB_RULE_INVERT) !== 0,
    suppressPrefixLength: suppress === NO_SUPPRESSOR ? undefined : suppress,
    protocol: attributes.protocol,
    attributes,
  };
}
