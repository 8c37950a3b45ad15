/** What an NFLOG rule says of the decision that it stands for, in the room that it has. */
import type { DesiredState } from "../../src/model/desired.ts";
import type { Decision } from "../../src/model/evaluate.ts";
import {
  createPrefixResolver as createResolver,
  logPrefix as prefixOf,
  type LogVerdict,
  type PrefixResolver,
} from "../../src/model/log_prefix.ts";
import type { Direction } from "../../src/model/rule.ts";

/** The prefix of struct xt_nflog_info (include/uapi/linux/netfilter/xt_NFLOG.h), less the terminator. */
export const LOG_PREFIX_MAX_BYTES = 63;

export const logPrefix = (decision: Decision, direction: Direction, verdict: LogVerdict): string =>
  prefixOf(decision, direction, verdict, LOG_PREFIX_MAX_BYTES);
export const createPrefixResolver = (desired: () => DesiredState | undefined): PrefixResolver =>
  createResolver(desired, LOG_PREFIX_MAX_BYTES);
