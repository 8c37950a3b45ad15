/** What an NFLOG rule says of the decision that it stands for. The words are those of every dataplane; there is less room. Pure. */
import { digest } from "../../src/model/digest.ts";
import type { Decision } from "../../src/model/evaluate.ts";
import type { Direction } from "../../src/model/rule.ts";

/** The prefix of struct xt_nflog_info (xt_NFLOG.h), less the terminator. */
export const LOG_PREFIX_MAX_BYTES = 63;
/** Every prefix of ours begins so: others may write to the same group. */
const OURS = "manx";
/** Longest tier name that a shortened prefix still shows whole. */
const TIER_SHOWN_BYTES = 15;
/** Of the digest that ends a shortened prefix: 80 bits, so nobody finds another policy with the same one. */
const DIGEST_CHARACTERS = 16;
/** Between what is left of a long name and the digest of the whole; not in any name. */
const CUT = "~";

export type LogVerdict = "log" | "deny";

/**
 * The prefix of a log expression: printable ASCII, at most 63 bytes, equal for equal decisions on every node, for example
 * `manx deny ingress tier default rule 3 NetworkPolicy.networking.k8s.io/prod/web` and `manx deny egress tier default no match`.
 * What does not fit, or is not printable, is cut and ends in `~` and a digest of the whole.
 */
export function logPrefix(decision: Decision, direction: Direction, verdict: LogVerdict): string {
  const whole = wholeText(decision, direction, verdict);
  return isPlain(decision, direction, whole) ? whole : shorten(decision, direction, verdict, whole);
}

const isStaged = (decision: Decision): boolean => decision.by === "rule" && decision.staged === true;

const headText = (decision: Decision, direction: Direction, verdict: LogVerdict): string =>
  `${OURS} ${verdict} ${direction} ${isStaged(decision) ? "staged " : ""}`;

const tierText = (tier: string | undefined): string => tier === undefined ? "profile" : `tier ${tier}`;

function wholeText(decision: Decision, direction: Direction, verdict: LogVerdict): string {
  const head = headText(decision, direction, verdict);
  switch (decision.by) {
    case "rule":
      return `${head}${tierText(decision.tier)} rule ${decision.origin.index} ${decision.policy}`;
    case "tier default":
      return `${head}${tierText(decision.tier)} no match`;
    default:
      return head + decision.by;
  }
}

/** Names of what the API server and our own validation let through; anything else is shown cut. */
const NAME = /^[\x21-\x7d]+$/;

/** Whether the text alone gives back the decision. */
function isPlain(decision: Decision, direction: Direction, whole: string): boolean {
  if (whole.length > LOG_PREFIX_MAX_BYTES) return false;
  if (decision.by === "tier default") return NAME.test(decision.tier);
  if (decision.by !== "rule") return true;
  const { tier, policy, origin } = decision;
  return NAME.test(policy) && (tier === undefined || NAME.test(tier)) && origin.policy === policy &&
    origin.direction === direction;
}

/** What is shown of it before the digest. */
function shownText(decision: Decision, direction: Direction, verdict: LogVerdict): string {
  const tier = "tier" in decision ? decision.tier : undefined;
  const short = tier !== undefined && tier.length > TIER_SHOWN_BYTES
    ? { ...decision, tier: tier.slice(0, TIER_SHOWN_BYTES - 1) + CUT } as Decision
    : decision;
  return printable(wholeText(short, direction, verdict)).slice(0, LOG_PREFIX_MAX_BYTES - DIGEST_CHARACTERS - 1);
}

/** The digest is of everything that the text cannot give back. */
function shorten(decision: Decision, direction: Direction, verdict: LogVerdict, whole: string): string {
  const origin = decision.by === "rule" ? ` ${decision.origin.direction} ${decision.origin.policy}` : "";
  return shownText(decision, direction, verdict) + CUT + digest(whole + origin).slice(0, DIGEST_CHARACTERS);
}

const printable = (text: string): string => text.replace(/[^\x20-\x7e]/g, "?");
