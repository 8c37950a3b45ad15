/** Random selectors, as text and as Kubernetes writes them, over few labels so that they meet. */
import type { Random } from "../../src/calc/testing/random_world.ts";

type Values = Readonly<Record<string, readonly string[]>>;

/** Of pods, workloads, host endpoints and network sets. */
export const OWN_LABELS: Values = { app: ["web", "db", "cache"], role: ["front", "back"], flag: ["", "on"] };
export const NAMESPACE_LABELS: Values = { team: ["x", "y"], env: ["prod", "dev", ""] };
export const ACCOUNT_LABELS: Values = { level: ["low", "high"] };
export const NAMESPACES = ["default", "prod", "dev"] as const;
export const ACCOUNTS = ["builder", "runner"] as const;

const NAMESPACE_NAMES: Values = {
  "kubernetes.io/metadata.name": NAMESPACES,
  "projectcalico.org/name": NAMESPACES,
};

/** What labels a selector may ask for, by what it selects. */
const VOCABULARY = {
  endpoint: {
    ...OWN_LABELS,
    "projectcalico.org/namespace": [...NAMESPACES, "nowhere"],
    "projectcalico.org/orchestrator": ["k8s", "cni"],
    "projectcalico.org/serviceaccount": ACCOUNTS,
    "pcns.team": NAMESPACE_LABELS.team!,
    "pcsa.level": ACCOUNT_LABELS.level!,
    applied: ["yes"],
  },
  namespace: { ...NAMESPACE_LABELS, ...NAMESPACE_NAMES },
  account: { ...ACCOUNT_LABELS, "projectcalico.org/name": ACCOUNTS },
} as const satisfies Readonly<Record<string, Values>>;
export type Selected = keyof typeof VOCABULARY;

/** A few of a vocabulary's labels, each with one of its values; `percent`: how likely each is there. */
export function someLabels(random: Random, from: Values, percent: number): Record<string, string> {
  return Object.fromEntries(
    Object.entries(from).flatMap(([key, values]) => random.chance(percent) ? [[key, random.pick(values)]] : []),
  );
}

const quoted = (random: Random, text: string): string => random.chance(50) ? `'${text}'` : `"${text}"`;
const blank = (random: Random): string => random.chance(85) ? " " : random.chance(50) ? "" : "  ";

function test(random: Random, selected: Selected): string {
  const vocabulary: Values = VOCABULARY[selected];
  const keys = Object.keys(vocabulary);
  // Own labels more often than what is inherited.
  const key = random.chance(60) ? keys[random.below(Math.min(3, keys.length))]! : random.pick(keys);
  const values = vocabulary[key]!;
  const value = random.chance(90) ? random.pick(values) : "other";
  const part = () => {
    const from = random.below(value.length + 1);
    return value.slice(from, from + random.below(value.length - from + 1));
  };
  const list = () =>
    `{${Array.from({ length: 1 + random.below(3) }, () => quoted(random, random.pick(values))).join(", ")}}`;
  const space = blank(random);
  switch (random.below(12)) {
    case 0:
    case 1:
    case 2:
    case 3:
      return `${key}${space}==${space}${quoted(random, value)}`;
    case 4:
      return `${key}${space}!=${space}${quoted(random, value)}`;
    case 5:
      return `${key} in ${list()}`;
    case 6:
      return `${key} not in ${list()}`;
    case 7:
      return `${key} contains ${quoted(random, part())}`;
    case 8:
      return `${key} starts with ${quoted(random, value.slice(0, random.below(value.length + 1)))}`;
    case 9:
      return `${key} ends with ${quoted(random, value.slice(random.below(value.length + 1)))}`;
    case 10:
      return `has(${key})`;
    default:
      return `!has(${key})`;
  }
}

/** Calico's language; never `global()`, which may stand alone only. */
export function selectorText(random: Random, selected: Selected, depth = 0): string {
  const roll = random.below(100);
  if (depth === 0 && roll < 12) return "all()";
  if (depth > 2 || roll < 68) return test(random, selected);
  const parts = Array.from({ length: 2 + random.below(2) }, () => selectorText(random, selected, depth + 1));
  if (roll < 80) return parts.map((part) => part.includes("||") ? `(${part})` : part).join(" && ");
  if (roll < 90) return depth === 0 ? parts.join(" || ") : `(${parts.join(" || ")})`;
  if (roll < 97) return `!(${parts[0]})`;
  return depth === 0 ? `(${parts[0]})` : "all()";
}

/** meta/v1 LabelSelector of pods or namespaces; `{}` is all of them. */
export function labelSelector(random: Random, selected: "endpoint" | "namespace"): Record<string, unknown> {
  if (random.chance(25)) return {};
  const vocabulary: Values = selected === "endpoint" ? OWN_LABELS : { ...NAMESPACE_LABELS, ...NAMESPACE_NAMES };
  const keys = Object.keys(vocabulary);
  const selector: Record<string, unknown> = {};
  if (random.chance(65)) {
    const key = random.pick(keys);
    selector.matchLabels = { [key]: random.pick(vocabulary[key]!) };
  }
  if (random.chance(45)) {
    selector.matchExpressions = Array.from({ length: 1 + random.below(2) }, () => {
      const key = random.pick(keys);
      const operator = random.pick(["In", "NotIn", "Exists", "DoesNotExist"]);
      if (operator === "Exists" || operator === "DoesNotExist") return { key, operator };
      const values = [
        ...new Set([random.pick(vocabulary[key]!), ...random.chance(40) ? [random.pick(vocabulary[key]!)] : []]),
      ];
      return { key, operator, values };
    });
  }
  return selector;
}
