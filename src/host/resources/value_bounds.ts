/** What a manifest's value may be like at most, so that whoever walks it or writes it down comes to an end. Pure. */

/** Levels of mappings and lists inside one another; the Kubernetes API's own kinds have about twenty. */
export const NESTING_MAX = 100;
/** Aliases may make of a text this many characters beyond twice its own. */
const EXPANSION_CHARACTERS = 1 << 20;

/**
 * What is wrong with a value that was read of `textLength` characters, or `undefined`: found …, wanted …. A value inside itself,
 * which YAML's aliases can make, is one nested without end.
 */
export function boundsFault(value: unknown, textLength: number): string | undefined {
  // Without aliases each value takes one character of the text at least, and a string as many as it has.
  const expansionMax = 2 * textLength + EXPANSION_CHARACTERS;
  let expanded = 0;
  const waiting: { readonly value: unknown; readonly depth: number }[] = [{ value, depth: 0 }];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    const { value, depth } = next;
    expanded += 1 + (typeof value === "string" ? value.length : 0);
    if (expanded > expansionMax) return `found aliases that make more than ${expansionMax} characters, wanted less`;
    if (typeof value !== "object" || value === null) continue;
    if (depth === NESTING_MAX) return nestingFault();
    for (const [key, inner] of Object.entries(value)) {
      if (!Array.isArray(value)) expanded += key.length;
      waiting.push({ value: inner, depth: depth + 1 });
    }
  }
  return undefined;
}

export const nestingFault = (): string =>
  `found mappings or lists inside one another, or inside themselves, beyond ${NESTING_MAX} levels, wanted at most ${NESTING_MAX}`;
