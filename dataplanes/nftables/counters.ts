/**
 * What is counted, and under which key. Every verdict of a policy list is counted in an element of `counts` or `hits`; an
 * element's comment names the decisions, so that a counter whose meaning changes is another one, and `nft list` can be read.
 */
import { digest, sha256 } from "../../src/model/digest.ts";
import type { Decision } from "../../src/model/evaluate.ts";
import type { DecisionCount } from "../../src/sdk/dataplane.ts";
import type { Cause } from "../../src/model/flat_list.ts";

/** What an element's comment may have: NFT_USERDATA_MAXLEN (256) leaves more, nft shows 128 with the terminator. */
const COMMENT_MAX_BYTES = 125;
const DIGEST_CHARACTERS = 16;

/** By name, the length of their keys. `hits`: by key, protocol and port, of the rules that a port leads to. `counts`: all others. */
export const COUNTING_SETS = { hits: 24, counts: 16 } as const;

export interface Count {
  readonly packets: number;
  readonly bytes: number;
}

const encoder = new TextEncoder();

/** A key within a pool: 16 bytes of the SHA-256 of the text, because nobody may find two texts with one key. */
export function keyOf(text: string): string {
  const words = sha256(encoder.encode(text));
  let key = "";
  for (let at = 0; at < 16; at++) key += String.fromCharCode(words[at >> 2]! >>> 24 - (at & 3) * 8 & 0xff);
  return key;
}

/** Field by field: equal decisions have equal texts. */
function textOf(decision: Decision): string {
  if (decision.by !== "rule") return JSON.stringify([decision.by, "tier" in decision ? decision.tier : null]);
  const { tier, policy, origin, staged } = decision;
  return JSON.stringify([tier ?? null, policy, origin.policy, origin.direction, origin.index, staged ?? false]);
}

const keys = new WeakMap<Decision, string>();

/** The key of a decision; the same for equal ones. */
function decisionKey(decision: Decision): string {
  let key = keys.get(decision);
  if (key === undefined) keys.set(decision, key = keyOf(textOf(decision)));
  return key;
}

/** The key of some decisions that are counted together. `scope`: whose, where not of all lists that have them. */
export const countKey = (causes: readonly Cause[], scope = ""): string =>
  causes.length === 1 && scope === ""
    ? decisionKey(causes[0]!.decision)
    : keyOf(`${scope}\n${causes.map(({ decision }) => decisionKey(decision)).join("")}`);

const comments = new WeakMap<Decision, string>();

/** Names the decisions; another one for any others. Printable ASCII. */
export function commentOf(causes: readonly Cause[]): string {
  const [first, ...more] = causes as readonly [Cause, ...Cause[]];
  if (more.length > 0) return shortened(`${nameOf(first.decision)} and ${more.length} more`, causes);
  let comment = comments.get(first.decision);
  if (comment === undefined) {
    const name = nameOf(first.decision);
    comment = /^[\x20-\x7d]*$/.test(name) && name.length <= COMMENT_MAX_BYTES ? name : shortened(name, causes);
    comments.set(first.decision, comment);
  }
  return comment;
}

function shortened(name: string, causes: readonly Cause[]): string {
  const whole = causes.map(({ decision }) => decisionKey(decision)).join("");
  const mark = `~${digest(whole).slice(0, DIGEST_CHARACTERS)}`;
  return name.replace(/[^\x20-\x7d]/g, "?").slice(0, COMMENT_MAX_BYTES - mark.length) + mark;
}

/** @param counters what the elements of a list count @param counts what elements have counted */
export function decisionCounts(
  counters: ReadonlyMap<string, readonly Cause[]>,
  counts: ReadonlyMap<string, Count>,
): readonly DecisionCount[] {
  const found = new Map<string, { decisions: readonly Decision[]; packets: number; bytes: number }>();
  for (const [element, causes] of counters) {
    const count = counts.get(element);
    if (count === undefined) continue;
    // One for each family, protocol and port: what they count is the same.
    const key = countKey(causes);
    const before = found.get(key);
    if (before === undefined) found.set(key, { decisions: causes.map(({ decision }) => decision), ...count });
    else {
      before.packets += count.packets;
      before.bytes += count.bytes;
    }
  }
  return [...found.values()];
}

function nameOf(decision: Decision): string {
  switch (decision.by) {
    case "rule": {
      const { policy, origin, staged } = decision;
      return `${staged ? "staged " : ""}${origin.direction} rule ${origin.index} of ${policy}`;
    }
    case "tier default":
      return `default of tier ${decision.tier}`;
    default:
      return decision.by;
  }
}
