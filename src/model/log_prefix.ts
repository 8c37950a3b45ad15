/** What the prefix of a logged packet says of the decision that it stands for, and back again; in as much room as a rule has for it. */
import type { DesiredState, PolicyList } from "./desired.ts";
import { digest } from "./digest.ts";
import type { Decision } from "./evaluate.ts";
import type { Direction } from "./rule.ts";

/** Every prefix of ours begins so: others may write to the same group. */
const OURS = "manx";
/** Longest tier name that a shortened prefix still shows whole: a quarter of the room. */
const tierShownBytes = (maxBytes: number): number => maxBytes >> 2;
/** Of the digest that ends a shortened prefix: 80 bits, so nobody finds another policy with the same one. */
const DIGEST_CHARACTERS = 16;
/** Between what is left of a long name and the digest of the whole; not in any name. */
const CUT = "~";

export type LogVerdict = "log" | "deny";

export interface LogPrefix {
  readonly verdict: LogVerdict;
  readonly direction: Direction;
  /** Undefined where the prefix was shortened and no list has what it stands for. */
  readonly decision: Decision | undefined;
}

/**
 * The prefix of a rule that logs: printable ASCII, at most `maxBytes`, equal for equal decisions on every node, for example
 * `manx deny ingress tier default rule 3 NetworkPolicy.networking.k8s.io/prod/web` and `manx deny egress tier default no match`.
 * What does not fit, or is not printable, is cut and ends in `~` and a digest of the whole.
 */
export function logPrefix(decision: Decision, direction: Direction, verdict: LogVerdict, maxBytes: number): string {
  const whole = wholeText(decision, direction, verdict);
  return isPlain(decision, direction, whole, maxBytes) ? whole : shorten(decision, direction, verdict, whole, maxBytes);
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
function isPlain(decision: Decision, direction: Direction, whole: string, maxBytes: number): boolean {
  if (whole.length > maxBytes) return false;
  if (decision.by === "tier default") return NAME.test(decision.tier);
  if (decision.by !== "rule") return true;
  const { tier, policy, origin } = decision;
  return NAME.test(policy) && (tier === undefined || NAME.test(tier)) && origin.policy === policy &&
    origin.direction === direction;
}

/** What is shown of it before the digest. */
function shownText(decision: Decision, direction: Direction, verdict: LogVerdict, maxBytes: number): string {
  const tier = "tier" in decision ? decision.tier : undefined;
  const shown = tierShownBytes(maxBytes);
  const short = tier !== undefined && tier.length > shown
    ? { ...decision, tier: tier.slice(0, shown - 1) + CUT } as Decision
    : decision;
  return printable(wholeText(short, direction, verdict)).slice(0, maxBytes - DIGEST_CHARACTERS - 1);
}

/** The digest is of everything that the text cannot give back. */
function shorten(
  decision: Decision,
  direction: Direction,
  verdict: LogVerdict,
  whole: string,
  maxBytes: number,
): string {
  const origin = decision.by === "rule" ? ` ${decision.origin.direction} ${decision.origin.policy}` : "";
  return shownText(decision, direction, verdict, maxBytes) + CUT + digest(whole + origin).slice(0, DIGEST_CHARACTERS);
}

const printable = (text: string): string => text.replace(/[^\x20-\x7e]/g, "?");

const FORM = new RegExp(
  `^${OURS} (log|deny) (ingress|egress) (staged )?(?:` +
    "(?:(profile)|tier ([\\x21-\\x7d]+)) rule (\\d{1,9}) ([\\x21-\\x7d]+)|" +
    "tier ([\\x21-\\x7d]+) no match|" +
    "(no profile|end|unknown endpoint))$",
);
const SHORT_FORM = new RegExp(
  `^${OURS} (log|deny) (ingress|egress) (?:staged )?(?:profile|tier) .*${CUT}[a-z2-7]{${DIGEST_CHARACTERS}}$`,
);

/** Reads a prefix that was not shortened, and of a shortened one verdict and direction; undefined: not ours. */
export function parseLogPrefix(prefix: string): LogPrefix | undefined {
  const match = FORM.exec(prefix);
  if (match === null) {
    const short = SHORT_FORM.exec(prefix);
    return short === null
      ? undefined
      : { verdict: short[1] as LogVerdict, direction: short[2] as Direction, decision: undefined };
  }
  const [, verdict, way, staged, profile, tier, index, policy, emptyTier, other] = match;
  const direction = way as Direction;
  const decision = (): Decision => {
    if (policy !== undefined) {
      const origin = { policy, direction, index: Number(index) };
      const rule = { by: "rule", policy, origin, ...profile === undefined ? { tier: tier! } : {} } as const;
      return staged === undefined ? rule : { ...rule, staged: true };
    }
    if (emptyTier !== undefined) return { by: "tier default", tier: emptyTier };
    return { by: other } as Decision;
  };
  return { verdict: verdict as LogVerdict, direction, decision: decision() };
}

/** Shortened prefixes that are remembered, those of nobody included. */
const REMEMBERED_MAX = 4_096;

/** Finds the decision of any prefix; what was found stays known when its policy goes. */
export interface PrefixResolver {
  /** Undefined: the prefix is not one of ours. */
  resolve(prefix: string): LogPrefix | undefined;
}

/**
 * `desired`: what is in force; undefined before anything is. It is searched for a shortened prefix that was not met before,
 * and once more whenever it is another one. `maxBytes`: as it was shortened to.
 */
export function createPrefixResolver(desired: () => DesiredState | undefined, maxBytes: number): PrefixResolver {
  const found = new Map<string, LogPrefix>();
  const nobodys = new Set<string>();
  let searched: DesiredState | undefined;
  return {
    resolve(prefix) {
      const parsed = parseLogPrefix(prefix);
      if (parsed === undefined || parsed.decision !== undefined) return parsed;
      const known = found.get(prefix);
      if (known !== undefined) return known;
      const now = desired();
      if (now !== searched) {
        nobodys.clear();
        searched = now;
      }
      if (now === undefined || nobodys.has(prefix)) return parsed;
      const decision = findDecision(prefix, parsed, now, maxBytes);
      if (decision === undefined) {
        if (nobodys.size < REMEMBERED_MAX) nobodys.add(prefix);
        return parsed;
      }
      if (found.size >= REMEMBERED_MAX) found.delete(found.keys().next().value!);
      const resolved = { ...parsed, decision };
      found.set(prefix, resolved);
      return resolved;
    },
  };
}

function findDecision(
  prefix: string,
  { verdict, direction }: LogPrefix,
  desired: DesiredState,
  maxBytes: number,
): Decision | undefined {
  const searched = new Set<PolicyList>();
  for (const list of listsOf(desired, direction)) {
    if (searched.has(list)) continue;
    searched.add(list);
    for (const decision of decisionsOf(list)) {
      if (isShortOf(prefix, decision, direction, verdict, maxBytes)) return decision;
    }
  }
  return undefined;
}

function* listsOf({ workloads, hostEndpoints }: DesiredState, direction: Direction): Generator<PolicyList> {
  for (const workload of workloads.values()) yield workload[direction];
  for (const { ingress, egress, ...host } of hostEndpoints.values()) {
    const lists = direction === "ingress"
      ? [ingress, host.forwardIngress, host.preDnat, host.untrackedIngress]
      : [egress, host.forwardEgress, host.untrackedEgress];
    for (const list of lists) if (list !== undefined) yield list;
  }
}

/** Compares what is cheap to compare before the digest. */
function isShortOf(
  prefix: string,
  decision: Decision,
  direction: Direction,
  verdict: LogVerdict,
  maxBytes: number,
): boolean {
  const whole = wholeText(decision, direction, verdict);
  return !isPlain(decision, direction, whole, maxBytes) &&
    prefix.startsWith(shownText(decision, direction, verdict, maxBytes)) &&
    shorten(decision, direction, verdict, whole, maxBytes) === prefix;
}

/** Everything that a list may decide by. */
export function* decisionsOf(list: PolicyList): Generator<Decision> {
  for (const { name: tier, policies } of list.tiers) {
    for (const { id: policy, rules, staged } of policies) {
      for (const { origin } of rules) {
        yield { by: "rule", tier, policy, origin, ...staged ? { staged } : {} };
      }
    }
    yield { by: "tier default", tier };
  }
  for (const { id: policy, rules } of list.profiles) {
    for (const { origin } of rules) yield { by: "rule", policy, origin };
  }
}
