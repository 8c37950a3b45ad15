/**
 * From an interface's name to what is to become of its packets: a tree of chains by the beginnings of names, so that 500
 * interfaces are a few steps and not 500. Pure.
 */
import { goto, type Match, type Rule, rule, type Target } from "./ruleset.ts";

/** Interfaces that begin so are pods', known or not. */
export const POD_PREFIX = "mx";
/** IFNAMSIZ, less the terminator. */
export const INTERFACE_NAME_MAX = 15;
/** So many names are asked for one after another. */
const LEAF_NAMES = 6;

export interface DispatchOptions {
  readonly way: "in" | "out";
  /** What becomes of each name's packets. */
  readonly names: ReadonlyMap<string, readonly Target[] | LeafRules>;
  /** Of pods' interfaces that are not among them. */
  readonly otherPods: Target | undefined;
  /** Of all others; undefined: back to where they came from. */
  readonly others: Target | undefined;
  /** Makes a chain and answers its name. */
  readonly chain: (rules: readonly Rule[]) => string;
}
/** Rules for packets of one interface, each asked besides for what `matches` say of it. */
export type LeafRules = (matches: readonly Match[]) => readonly Rule[];

const isInterface = (way: "in" | "out", name: string, prefix = false): Match => ({
  match: "interface",
  way,
  name,
  prefix,
});

/** Rules whose last has no condition, unless all others go back. */
export function dispatch(options: DispatchOptions): readonly Rule[] {
  const { way, otherPods, others, chain } = options;
  const sorted = [...options.names.keys()].sort();
  const pods = sorted.filter((name) => name.startsWith(POD_PREFIX));
  const rest = sorted.filter((name) => !name.startsWith(POD_PREFIX));
  const rules: Rule[] = [];
  const end = (target: Target | undefined): readonly Rule[] => target === undefined ? [] : [rule(target)];
  if (pods.length > 0) {
    const node = chain([...branch(options, pods, POD_PREFIX.length, otherPods), ...end(otherPods)]);
    rules.push(rule(goto(node), isInterface(way, POD_PREFIX, true)));
  } else if (otherPods !== undefined) rules.push(rule(otherPods, isInterface(way, POD_PREFIX, true)));
  else if (others !== undefined) rules.push(rule({ target: "return" }, isInterface(way, POD_PREFIX, true)));
  return [...rules, ...branch(options, rest, 0, others), ...end(others)];
}

/** All of them share their first `known` characters. */
function branch(
  options: DispatchOptions,
  names: readonly string[],
  known: number,
  otherwise: Target | undefined,
): readonly Rule[] {
  if (names.length <= LEAF_NAMES) return names.flatMap((name) => leaf(options, name));
  const first = names[0]!, last = names[names.length - 1]!;
  let shared = known;
  // Sorted: what the first and the last share, all share.
  while (shared < first.length && first[shared] === last[shared]) shared++;
  const rules: Rule[] = [];
  const groups = new Map<string, string[]>();
  for (const name of names) {
    if (name.length === shared) rules.push(...leaf(options, name));
    else {
      const beginning = name.slice(0, shared + 1);
      const group = groups.get(beginning);
      if (group === undefined) groups.set(beginning, [name]);
      else group.push(name);
    }
  }
  for (const [beginning, group] of groups) {
    if (group.length === 1) rules.push(...leaf(options, group[0]!));
    else {
      const inner = branch(options, group, shared + 1, otherwise);
      const node = options.chain(otherwise === undefined ? inner : [...inner, rule(otherwise)]);
      rules.push(rule(goto(node), isInterface(options.way, beginning, true)));
    }
  }
  return rules;
}

function leaf({ way, names }: DispatchOptions, name: string): readonly Rule[] {
  const found = names.get(name)!;
  const matches = [isInterface(way, name)];
  return typeof found === "function" ? found(matches) : found.map((target) => rule(target, ...matches));
}
