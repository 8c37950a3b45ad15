/** Rules that differ in one address only become one that asks for any of them. Pure. */
import { maximalNets } from "../../src/model/prefixes.ts";
import type { End, Test } from "../../src/model/rule_alternatives.ts";
import { type Conjunction, isLogged, textOf } from "./conjunction.ts";

/** So many addresses are looked up one after the other; more become one union. */
const LOOKUPS_MAX = 3;

type AddressTest = Extract<Test, { test: "address" }>;

interface Group {
  /** What all of them ask for besides the address. */
  readonly rest: Conjunction;
  readonly parts: Conjunction[];
  readonly addresses: AddressTest[];
}

/** Within a stretch of one action and unlogged, the order says nothing. */
export function unite(all: readonly Conjunction[]): readonly Conjunction[] {
  const united: Conjunction[] = [];
  for (let from = 0; from < all.length;) {
    let to = from + 1;
    const { action } = all[from]!;
    if (!isLogged(all[from]!)) {
      while (to < all.length && all[to]!.action === action && !isLogged(all[to]!)) to++;
    }
    if (to === from + 1) united.push(all[from]!);
    else {
      let run: readonly Conjunction[] = withoutRepeats(all.slice(from, to));
      for (const end of ["source", "destination"] as const) run = uniteEnd(run, end);
      for (const one of run) united.push(one);
    }
    from = to;
  }
  return united;
}

/** What was asked before is never met. */
function withoutRepeats(all: readonly Conjunction[]): readonly Conjunction[] {
  const byText = new Map<string, Conjunction>();
  for (const one of all) {
    const text = textOf(one);
    if (!byText.has(text)) byText.set(text, one);
  }
  return byText.size === all.length ? all : [...byText.values()];
}

function uniteEnd(all: readonly Conjunction[], end: End): readonly Conjunction[] {
  if (all.length <= LOOKUPS_MAX) return all;
  const groups = new Map<string, Group>();
  for (const one of all) {
    const at = one.tests.findIndex((test) => test.test === "address" && test.end === end && !test.not);
    if (at < 0) {
      groups.set(` ${textOf(one)}`, { rest: one, parts: [one], addresses: [] });
      continue;
    }
    const rest = { ...one, tests: one.tests.filter((_, i) => i !== at) };
    const key = textOf(rest), address = one.tests[at] as AddressTest;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, { rest, parts: [one], addresses: [address] });
    else {
      group.parts.push(one);
      group.addresses.push(address);
    }
  }
  return [...groups.values()].flatMap(({ rest, parts, addresses }) => {
    if (parts.length <= LOOKUPS_MAX) return parts;
    const ids = [...new Set(addresses.flatMap(({ ids }) => ids))].sort();
    const nets = maximalNets(addresses.flatMap(({ nets }) => nets));
    const test: Test = { test: "address", end, ids, nets, not: false };
    const causes = [...new Set(parts.flatMap(({ causes }) => causes))];
    return [{ ...rest, tests: [test, ...rest.tests], causes }];
  });
}
