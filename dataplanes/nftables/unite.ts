/** Conditions joined by *or*, and what of them can be looked up at once. Pure. */
import type { Cidr, Family } from "../../src/model/address.ts";
import type { SetId } from "../../src/model/desired.ts";
import { isHost, maximalNets } from "../../src/model/prefixes.ts";
import { type Alternative, type End, type Test, testText } from "../../src/model/rule_alternatives.ts";
import type { Cause } from "../../src/model/flat_list.ts";
import type { Output } from "./output.ts";

export type RuleAction = "allow" | "deny" | "pass";

/** All tests hold. */
export interface Conjunction {
  readonly tests: readonly Test[];
  /** Equal for equal tests. */
  readonly text: string;
  readonly action: RuleAction;
  /** Whose it is; several where they are counted together. */
  readonly causes: readonly Cause[];
}

const texts = new WeakMap<Alternative, string>();

/** Equal for alternatives with equal tests, whatever their protocol and destination ports. */
export function textOf(one: Alternative): string {
  let text = texts.get(one);
  if (text === undefined) texts.set(one, text = one.tests.map(testText).join());
  return text;
}

export const isLogged = ({ causes }: Conjunction): boolean => causes[0]!.logs;

export type AddressTest = Extract<Test, { test: "address" }>;

/** So many addresses are looked up one after the other; more become one union. */
export const LOOKUPS_MAX = 4;

/** Of one action and unlogged: in any order and grouping they say the same. */
export function unite(conjunctions: readonly Conjunction[], family: Family, out: Output): readonly Conjunction[] {
  let left = withoutRepeats(conjunctions);
  for (const end of ["source", "destination"] as const) {
    if (left.length > LOOKUPS_MAX) left = uniteEnd(left, end, family, out);
  }
  return left;
}

/** The first of each: the others never get their turn. */
function withoutRepeats(conjunctions: readonly Conjunction[]): readonly Conjunction[] {
  const byText = new Map<string, Conjunction>();
  for (const one of conjunctions) if (!byText.has(one.text)) byText.set(one.text, one);
  return byText.size === conjunctions.length ? conjunctions : [...byText.values()];
}

/** Conjunctions that differ in nothing but one address. */
interface Group {
  readonly rest: readonly Test[];
  readonly members: { readonly conjunction: Conjunction; readonly address: AddressTest }[];
}

function uniteEnd(
  conjunctions: readonly Conjunction[],
  end: End,
  family: Family,
  out: Output,
): readonly Conjunction[] {
  const groups = new Map<string, Group | Conjunction>();
  for (const conjunction of conjunctions) {
    const { tests, text } = conjunction;
    const at = tests.findIndex((test) => test.test === "address" && test.end === end && !test.not);
    if (at < 0) {
      groups.set(` ${text}`, conjunction);
      continue;
    }
    const rest = tests.filter((_, i) => i !== at);
    const key = rest.map(testText).join();
    const group = groups.get(key) as Group | undefined;
    const member = { conjunction, address: tests[at] as AddressTest };
    if (group === undefined) groups.set(key, { rest, members: [member] });
    else group.members.push(member);
  }
  return [...groups.values()].flatMap((group) => "tests" in group ? [group] : uniteGroup(group, end, family, out));
}

/** What pools hold, and what makes sets of its own, are united apart. */
function uniteGroup({ rest, members }: Group, end: End, family: Family, out: Output): readonly Conjunction[] {
  if (members.length <= LOOKUPS_MAX) return members.map(({ conjunction }) => conjunction);
  const isPlain = ({ address }: Group["members"][number]) =>
    address.ids.every((id) => out.sizeOf(family, id) !== "own") && address.nets.every(isHost);
  const united: Conjunction[] = [];
  for (const part of [members.filter(isPlain), members.filter((one) => !isPlain(one))]) {
    const ids = [...new Set(part.flatMap(({ address }) => address.ids))].sort();
    const nets = maximalNets(part.flatMap(({ address }) => address.nets));
    if (part.length <= LOOKUPS_MAX || !out.mayUnite(family, ids, nets)) {
      united.push(...part.map(({ conjunction }) => conjunction));
      continue;
    }
    const causes = part.reduce<readonly Cause[]>((all, { conjunction }) => all.concat(conjunction.causes), []);
    united.push(
      conjunctionOf([addressTest(end, ids, nets), ...rest], part[0]!.conjunction.action, [...new Set(causes)]),
    );
  }
  return united;
}

const addressTest = (end: End, ids: readonly SetId[], nets: readonly Cidr[]): AddressTest => ({
  test: "address",
  end,
  ids,
  nets,
  not: false,
});

const conjunctionOf = (tests: readonly Test[], action: RuleAction, causes: readonly Cause[]): Conjunction => ({
  tests,
  text: tests.map(testText).join(),
  action,
  causes,
});
