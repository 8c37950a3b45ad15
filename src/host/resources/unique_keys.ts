import { type Document, isScalar, type Scalar, visit } from "yaml";

/**
 * The first key that its map has already, as YAML 1.2 section 3.2.1.3 forbids; scalars only. The parser's own look (`uniqueKeys`) compares each key
 * with all before it: seconds for a map of 20,000.
 */
export function repeatedKey(document: Document): Scalar | undefined {
  let found: Scalar | undefined;
  visit(document, {
    Map(_, map) {
      const seen = new Set<unknown>();
      for (const { key } of map.items) {
        if (!isScalar(key)) continue;
        if (seen.has(key.value)) {
          found = key;
          return visit.BREAK;
        }
        seen.add(key.value);
      }
      return undefined;
    },
  });
  return found;
}
