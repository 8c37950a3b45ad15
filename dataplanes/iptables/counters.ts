/** What the counters of rules say: which decisions each of them counts, and what they have counted. Pure. */
import type { Family } from "../../src/model/address.ts";
import type { Decision } from "../../src/model/evaluate.ts";
import type { Cause } from "../../src/model/flat_list.ts";
import type { DecisionCount } from "../../src/sdk/dataplane.ts";
import type { ShownTable } from "./backend.ts";
import { LAYOUTS } from "./entry_layout.ts";
import { OURS, type Rule } from "./ruleset.ts";

/** Field by field: equal decisions have equal texts. */
function textOf(decision: Decision): string {
  if (decision.by !== "rule") return JSON.stringify([decision.by, "tier" in decision ? decision.tier : null]);
  const { tier, policy, origin, staged } = decision;
  return JSON.stringify([tier ?? null, policy, origin.policy, origin.direction, origin.index, staged ?? false]);
}

const texts = new WeakMap<Decision, string>();

/** Equal where the same decisions are counted together. */
export function countKey(causes: readonly Cause[]): string {
  let key = "";
  for (const { decision } of causes) {
    let text = texts.get(decision);
    if (text === undefined) texts.set(decision, text = textOf(decision));
    key += text;
  }
  return key;
}

const isRules = (causes: readonly Cause[]): boolean => causes.every(({ decision }) => decision.by === "rule");

/** The key of what outlives the list that it is in: what rules decide. A default's count is its list's own. */
export const lastingKey = (causes: readonly Cause[]): string | undefined =>
  isRules(causes) ? countKey(causes) : undefined;

/** A table with the chains that were written to it. */
export interface CountingTable {
  readonly family: Family;
  /** As they were rendered. */
  readonly chains: ReadonlyMap<string, readonly Rule[]>;
  /** As the kernel has them. */
  readonly found: ShownTable["chains"];
}

/**
 * What was counted for a list. What its rules decide is counted wherever they do; its defaults, in its own chains alone.
 * @param heads the first chains of what the list was compiled to
 */
export function decisionCounts(
  tables: readonly CountingTable[],
  heads: ReadonlySet<string>,
): readonly DecisionCount[] {
  const slots = new Set([...heads].map(slotOf));
  const isOwn = (chain: string) => isOfList(chain) && slots.has(slotOf(chain));
  const counts = new Map<string, { decisions: readonly Decision[]; packets: number; bytes: number }>();
  for (const { chains } of tables) {
    for (const [name, rules] of chains) {
      if (!isOwn(name)) continue;
      for (const { causes } of rules) {
        if (causes === undefined) continue;
        const key = countKey(causes);
        if (!counts.has(key)) {
          counts.set(key, { decisions: causes.map(({ decision }) => decision), packets: 0, bytes: 0 });
        }
      }
    }
  }
  if (counts.size === 0) return [];
  for (const { family, chains, found } of tables) {
    const { counters, headerBytes } = LAYOUTS[family];
    for (const { name, rules } of found) {
      const wanted = chains.get(name);
      // Somebody else has been at it: it is about to be mended.
      if (wanted === undefined || wanted.length !== rules.length) continue;
      const own = isOwn(name);
      wanted.forEach(({ causes }, i) => {
        if (causes === undefined || !own && lastingKey(causes) === undefined) return;
        const count = counts.get(countKey(causes)), { bytes } = rules[i]!;
        if (count === undefined || bytes.length < headerBytes) return;
        const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
        // struct xt_counters: packets, bytes.
        count.packets += Number(view.getBigUint64(counters, true));
        count.bytes += Number(view.getBigUint64(counters + 8, true));
      });
    }
  }
  return [...counts.values()];
}

/** A list's chains are named alike behind their first letters, whole or cut into pieces (nft/bounded.ts). */
const SLOT_AT = `${OURS}l-`.length;
const SLOT_CHARACTERS = 12;
const isOfList = (chain: string): boolean => chain.startsWith(`${OURS}l-`) || chain.startsWith(`${OURS}k-`);
const slotOf = (chain: string): string => chain.slice(SLOT_AT, SLOT_AT + SLOT_CHARACTERS);
