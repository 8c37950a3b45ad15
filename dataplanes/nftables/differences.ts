/** What one ruleset has otherwise than another, as lines for people: in the words of print.ts. Pure. */
import { printChain, printRule, printSet } from "./print.ts";
import {
  elementChanges,
  elementsOf,
  type ElementValue,
  type NftChain,
  type NftSet,
  type Rule,
  type Ruleset,
  ruleText,
  sameBase,
  sameForm,
  sameRules,
} from "./ruleset.ts";

/** Of one set or chain; how many there are beyond is said. */
const LINES_MAX = 50;

/** `- `: found and not wanted, `+ `: wanted and not found. Empty where `diff` would send nothing. */
export function differences(found: Ruleset, wanted: Ruleset): readonly string[] {
  const lines: string[] = [];
  for (const { key, before, after } of wanted.sets.changesSince(found.sets)) lines.push(...ofSet(key, before, after));
  for (const { key, before, after } of wanted.chains.changesSince(found.chains)) {
    lines.push(...ofChain(key, before, after));
  }
  return lines.sort((a, b) => a.slice(2) < b.slice(2) ? -1 : a.slice(2) > b.slice(2) ? 1 : 0);
}

/** Told of in one line. */
const REPAIRS_MAX = 5;

/** What somebody else had done to a table that held `written`, in a line; none where nothing. */
export function repairsOf(found: Ruleset, written: Ruleset, table: string): readonly string[] {
  const lines = differences(found, written);
  if (lines.length === 0) return [];
  const more = lines.length > REPAIRS_MAX ? `; and ${lines.length - REPAIRS_MAX} more` : "";
  return [
    `found ${table} changed by somebody else, and put it right (- taken away, + put back): ${
      lines.slice(0, REPAIRS_MAX).join("; ")
    }${more}`,
  ];
}

function ofSet(name: string, found: NftSet | undefined, wanted: NftSet | undefined): readonly string[] {
  if (found === undefined || wanted === undefined || !sameForm(found, wanted)) {
    return [...whole("-", found && setHead(name, found)), ...whole("+", wanted && setHead(name, wanted))];
  }
  const [title] = headOf(name, wanted);
  const lines: string[] = [];
  const line = (mark: string, set: NftSet, key: string, value: ElementValue | undefined) => {
    if (value !== undefined) lines.push(`${mark} ${title} ${printOne(name, set, key, value)}`);
  };
  for (const { key, before, after } of elementChanges(found.elements, wanted.elements)) {
    line("-", found, key, before);
    line("+", wanted, key, after);
  }
  return bounded(lines, title);
}

function ofChain(name: string, found: NftChain | undefined, wanted: NftChain | undefined): readonly string[] {
  if (found === undefined || wanted === undefined) {
    return [...whole("-", found && chainHead(name, found)), ...whole("+", wanted && chainHead(name, wanted))];
  }
  const lines: string[] = [];
  if (!sameBase(found.base, wanted.base)) {
    lines.push(`- ${printChain(name, found)[0]}`, `+ ${printChain(name, wanted)[0]}`);
  }
  const title = `chain ${name}`;
  if (!sameRules(found.rules, wanted.rules)) {
    const [gone, come] = [only(found.rules, wanted.rules), only(wanted.rules, found.rules)];
    lines.push(...gone.map((rule) => `- ${title} ${printRule(rule)}`));
    lines.push(...come.map((rule) => `+ ${title} ${printRule(rule)}`));
    if (gone.length === 0 && come.length === 0) {
      lines.push(`- ${title} its ${found.rules.length} rules in another order`);
    }
  }
  return bounded(lines, title);
}

/** Rules of one list that the other does not have, or not so often. */
function only(rules: readonly Rule[], others: readonly Rule[]): readonly Rule[] {
  const there = new Map<string, number>();
  for (const rule of others) there.set(ruleText(rule), (there.get(ruleText(rule)) ?? 0) + 1);
  return rules.filter((rule) => {
    const text = ruleText(rule), count = there.get(text) ?? 0;
    there.set(text, count - 1);
    return count <= 0;
  });
}

const whole = (mark: string, head: string | undefined): readonly string[] =>
  head === undefined ? [] : [`${mark} ${head}`];

function setHead(name: string, set: NftSet): string {
  let count = 0;
  set.elements.forEach(() => void count++);
  return `${headOf(name, set)[1]} with ${count} ${count === 1 ? "element" : "elements"}`;
}

const chainHead = (name: string, chain: NftChain): string =>
  `${printChain(name, chain)[0]} with ${chain.rules.length} ${chain.rules.length === 1 ? "rule" : "rules"}`;

/** `set NAME`, and with what it is made of. */
function headOf(name: string, set: NftSet): readonly [title: string, head: string] {
  const [head] = printSet(name, { ...set, elements: elementsOf([]) });
  return [`${set.map ? "map" : "set"} ${name}`, head!.replace(/ empty$/, "")];
}

const printOne = (name: string, set: NftSet, key: string, value: ElementValue): string =>
  printSet(name, { ...set, elements: elementsOf([[key, value]]) })[1]!.trim();

function bounded(lines: readonly string[], title: string): readonly string[] {
  if (lines.length <= LINES_MAX) return lines;
  return [...lines.slice(0, LINES_MAX), `~ ${title} and ${lines.length - LINES_MAX} lines more`];
}
