import { ALL, labelIn } from "./selector.ts";
import type { Selector } from "./selector.ts";

/** Levels of `!`, `&&` and `||` inside one another; parentheses that group nothing cost no level. */
export const SELECTOR_DEPTH_LIMIT = 500;
export const LABEL_NAME_LIMIT = 512;

/** Thrown for text that is not a selector; `position` counts UTF-16 units from 0, `text.length` is its end. */
export class SelectorSyntaxError extends Error {
  override readonly name = "SelectorSyntaxError";
  constructor(readonly text: string, readonly position: number, readonly found: string, readonly wanted: string) {
    super(`selector, character ${position + 1}: found ${found}, wanted ${wanted}: ${pointAt(text, position)}`);
  }
}

/**
 * Empty text is `all()`. `&&` binds tighter than `||`, `!` tightest; labels are `[A-Za-z0-9_./-]`, strings stand in
 * single or double quotes without escapes. Works without recursion, in time linear in the text.
 * @throws {SelectorSyntaxError}
 */
export function parseSelector(text: string): Selector {
  const input = new Input(text);
  input.skipBlanks();
  if (input.atEnd()) return ALL;
  const stack: Group[] = [newGroup(-1)];
  for (;;) {
    // An operand: any number of `!` and `(`, then one test.
    let group = stack.at(-1)!;
    input.skipBlanks();
    if (input.take("!")) {
      group.nots++;
      continue;
    }
    if (input.take("(")) {
      stack.push(newGroup(input.position - 1));
      continue;
    }
    addOperand(input, group, { selector: parseTest(input), height: 0 });
    // Then what may follow it: any number of `)`, then an operator or the end.
    for (input.skipBlanks(); input.peek() === ")"; input.skipBlanks()) {
      if (stack.length === 1) throw input.error("&&, || or the end: no ( is open here");
      input.take(")");
      const closed = closeGroup(input, stack.pop()!);
      group = stack.at(-1)!;
      addOperand(input, group, closed);
    }
    if (input.take("&&")) continue;
    if (input.take("||")) {
      group.alternatives.push(join(input, "and", group.factors));
      group.factors = [];
      continue;
    }
    if (!input.atEnd()) throw input.error(stack.length > 1 ? "&&, || or )" : "&&, || or the end");
    if (stack.length > 1) throw input.error(`a ) for the ( at character ${group.openedAt + 1}`);
    return closeGroup(input, group).selector;
  }
}

/** A selector and how many levels of operators it holds. */
interface Part {
  readonly selector: Selector;
  readonly height: number;
}

/** What stands between one pair of parentheses, so far. */
interface Group {
  readonly openedAt: number;
  alternatives: Part[];
  factors: Part[];
  /** `!` read since the last operand. */
  nots: number;
}

const newGroup = (openedAt: number): Group => ({ openedAt, alternatives: [], factors: [], nots: 0 });

function addOperand(input: Input, group: Group, part: Part): void {
  if (part.height + group.nots > SELECTOR_DEPTH_LIMIT) throw input.tooDeep();
  let selector = part.selector;
  for (let i = 0; i < group.nots; i++) selector = { op: "not", of: selector };
  group.factors.push({ selector, height: part.height + group.nots });
  group.nots = 0;
}

function closeGroup(input: Input, group: Group): Part {
  group.alternatives.push(join(input, "and", group.factors));
  return join(input, "or", group.alternatives);
}

function join(input: Input, op: "and" | "or", parts: readonly Part[]): Part {
  if (parts.length === 1) return parts[0]!;
  const height = 1 + parts.reduce((highest, part) => Math.max(highest, part.height), 0);
  if (height > SELECTOR_DEPTH_LIMIT) throw input.tooDeep();
  return { selector: { op, of: parts.map((part) => part.selector) }, height };
}

function parseTest(input: Input): Selector {
  if (input.take("all(")) return closeCall(input, { op: "all" });
  if (input.take("global(")) return closeCall(input, { op: "global" });
  if (input.take("has(")) {
    input.skipBlanks();
    return closeCall(input, { op: "has", label: input.label("a label name") });
  }
  const label = input.label("a label name, all(), global(), has(label), ! or (");
  input.skipBlanks();
  for (const [pattern, op] of COMPARISONS) {
    if (input.takePattern(pattern)) {
      input.skipBlanks();
      return { op, label, value: input.string() };
    }
  }
  for (const [pattern, op] of MEMBERSHIPS) {
    if (input.takePattern(pattern)) return labelIn(op, label, parseValues(input));
  }
  throw input.error("==, !=, in, not in, contains, starts with or ends with");
}

const COMPARISONS = [
  [/==/y, "eq"],
  [/!=/y, "ne"],
  [/contains/y, "contains"],
  [/starts[ \t\r\n]*with/y, "startsWith"],
  [/ends[ \t\r\n]*with/y, "endsWith"],
] as const;
const MEMBERSHIPS = [[/not[ \t\r\n]*in/y, "notIn"], [/in/y, "in"]] as const;

function parseValues(input: Input): string[] {
  const values: string[] = [];
  input.skipBlanks();
  if (!input.take("{")) throw input.error('a list of strings such as {"a", "b"}');
  for (;;) {
    input.skipBlanks();
    if (input.take("}")) return values;
    values.push(input.string());
    input.skipBlanks();
    if (input.peek() !== "}" && !input.take(",")) throw input.error(", or }");
  }
}

function closeCall(input: Input, selector: Selector): Selector {
  input.skipBlanks();
  if (!input.take(")")) throw input.error(")");
  return selector;
}

// Once: a literal where it is used would be a new object each time.
const BLANKS = /[ \t\r\n]*/y;
const LABEL_NAME = /[A-Za-z0-9_.\/-]+/y;

class Input {
  position = 0;
  constructor(readonly text: string) {}

  atEnd = (): boolean => this.position === this.text.length;
  peek = (): string => this.text.charAt(this.position);
  skipBlanks = (): boolean => this.takePattern(BLANKS);

  take(word: string): boolean {
    if (!this.text.startsWith(word, this.position)) return false;
    this.position += word.length;
    return true;
  }

  takePattern(pattern: RegExp): boolean {
    pattern.lastIndex = this.position;
    if (!pattern.test(this.text)) return false;
    this.position = pattern.lastIndex;
    return true;
  }

  label(wanted: string): string {
    const start = this.position;
    if (!this.takePattern(LABEL_NAME)) throw this.error(wanted);
    if (this.position - start > LABEL_NAME_LIMIT) {
      const found = `a label name of ${this.position - start} characters`;
      throw new SelectorSyntaxError(this.text, start, found, `at most ${LABEL_NAME_LIMIT}`);
    }
    return this.text.slice(start, this.position);
  }

  string(): string {
    const start = this.position;
    const quote = this.peek();
    if (quote !== '"' && quote !== "'") throw this.error("a string in quotes");
    const end = this.text.indexOf(quote, start + 1);
    if (end < 0) throw new SelectorSyntaxError(this.text, start, "a string that does not end", `a closing ${quote}`);
    this.position = end + 1;
    return this.text.slice(start + 1, end);
  }

  error(wanted: string): SelectorSyntaxError {
    const word = /^(?:[A-Za-z0-9_.\/-]{1,40}|[^])/u.exec(this.text.slice(this.position, this.position + 40))?.[0];
    const found = word === undefined ? "the end" : JSON.stringify(word);
    return new SelectorSyntaxError(this.text, this.position, found, wanted);
  }

  tooDeep(): SelectorSyntaxError {
    const wanted = `at most ${SELECTOR_DEPTH_LIMIT} levels of !, && and ||`;
    return new SelectorSyntaxError(this.text, this.position, "deeper nesting", wanted);
  }
}

/** The text around `position` on one line, the place marked by `▸`. */
function pointAt(text: string, position: number): string {
  const before = text.slice(Math.max(0, position - 30), position);
  const after = text.slice(position, position + 30);
  const line = `${position > 30 ? "…" : ""}${before}▸${after}${position + 30 < text.length ? "…" : ""}`;
  return line.replace(/[\x00-\x1f\x7f]/g, " ");
}
