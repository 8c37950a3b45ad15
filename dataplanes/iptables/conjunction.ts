/** One alternative of a policy rule, or of several that are one by now: what a rule of x_tables asks for. Pure. */
import type { Family } from "../../src/model/address.ts";
import type { Cause, JudgedRule } from "../../src/model/flat_list.ts";
import type { PortRange } from "../../src/model/ports.ts";
import { alternativesOf, PORT_PROTOCOLS, type Test, testText } from "../../src/model/rule_alternatives.ts";

export type RuleAction = "allow" | "deny" | "pass";

/** All tests hold. */
export interface Conjunction {
  readonly tests: readonly Test[];
  /** Only beside a protocol with ports; destination. */
  readonly protocol: number | undefined;
  readonly ports: readonly PortRange[] | undefined;
  readonly action: RuleAction;
  /** The rules that it stands for, at least one. Logged ones stand alone. */
  readonly causes: readonly Cause[];
}

const NONE: readonly Conjunction[] = [];
const NO_PROTOCOLS: readonly number[] = [];

export function conjunctionsOf(judged: JudgedRule, family: Family): readonly Conjunction[] {
  const alternatives = alternativesOf(judged.rule, family);
  if (alternatives.length === 0) return NONE;
  const action = judged.rule.action as RuleAction;
  const causes = [judged];
  return alternatives.map(({ tests, protocol, ports }): Conjunction => ({ tests, protocol, ports, action, causes }));
}

/** Equal where the same packets are asked for. */
export const textOf = ({ tests, protocol, ports }: Conjunction): string =>
  JSON.stringify([protocol ?? null, ports ?? null, tests.map(testText)]);
export const isLogged = ({ causes }: Conjunction): boolean => causes[0]!.logs;
export const isAlways = ({ tests, protocol, ports }: Conjunction): boolean =>
  tests.length === 0 && protocol === undefined && ports === undefined;

/** Whether a packet of a protocol with ports can match. */
export function mayBe({ tests, protocol }: Conjunction, asked: number): boolean {
  if (protocol !== undefined) return protocol === asked;
  return tests.every((test) =>
    test.test === "portless" ? false : test.test !== "protocol" || (test.protocol === asked) !== test.not
  );
}

/** As it stands in a cell of a protocol's ports: the protocol may still be asked for by a test of source ports. */
export function withoutPorts({ tests: all, action, causes }: Conjunction, protocol: number): Conjunction {
  const tests = all.some(({ test }) => test === "protocol") ? all.filter(({ test }) => test !== "protocol") : all;
  const asksSource = tests.some(({ test }) => test === "ports");
  return { tests, protocol: asksSource ? protocol : undefined, ports: undefined, action, causes };
}

/** The protocol that is asked for, if one is, and those that it must not be, ascending. */
export function protocolsOf(
  { tests, protocol }: Pick<Conjunction, "tests" | "protocol">,
): { readonly only: number | undefined; readonly without: readonly number[] } | "never" {
  let only = protocol;
  let without: Set<number> | undefined;
  for (const test of tests) {
    if (test.test === "portless") { for (const one of PORT_PROTOCOLS) (without ??= new Set()).add(one); }
    if (test.test !== "protocol") continue;
    if (test.not) (without ??= new Set()).add(test.protocol);
    else if (only !== undefined && only !== test.protocol) return "never";
    else only = test.protocol;
  }
  // 0 stands for every protocol; no packet has it.
  if (only === 0 || only !== undefined && without?.has(only)) return "never";
  without?.delete(0);
  return { only, without: without === undefined ? NO_PROTOCOLS : [...without].sort((a, b) => a - b) };
}
