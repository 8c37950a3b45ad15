/**
 * What of test/vectors/selectors.json and k8s-conversion.yaml the tests beside the parsers leave out: token lists as such, restrictions
 * behind `all() &&`, identity strings, and that no category grew cases that nobody replays. Matches, refusals, canonical texts and
 * prefixes are replayed in src/model/selector_test.ts, restrictions in src/calc/restriction_test.ts, conversions in
 * plugins/policy/kubernetes/conversion_vectors_test.ts.
 */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { restrictionsOf } from "../../src/calc/restriction.ts";
import { formatSelector } from "../../src/model/selector_format.ts";
import { parseSelector, SelectorSyntaxError } from "../../src/model/selector_parse.ts";
import vectors from "../vectors/selectors.json" with { type: "json" };

const conversion = parse(readFileSync(join(import.meta.dir, "../vectors/k8s-conversion.yaml"), "utf8"));

/** Each token with blanks around it, words and strings spelled in one way: whoever cuts the text elsewhere reads something else. */
function spaced(tokens: readonly (readonly string[])[]): string {
  const words = tokens.map(([kind, value]) => {
    switch (kind) {
      case "label":
        return value!;
      case "string":
        return `"${value}"`;
      case "has":
        return `has( ${value} )`;
      case "all":
      case "global":
        return `${kind}( )`;
      case "end":
        return "";
      default:
        return kind!;
    }
  });
  return words.join("  ").trim();
}

/** The canonical text, or the place and reason of the refusal. */
function reading(text: string): { readonly canonical: string } | { readonly refused: string } {
  try {
    return { canonical: formatSelector(parseSelector(text)) };
  } catch (error) {
    if (!(error instanceof SelectorSyntaxError)) throw error;
    return { refused: `${error.found}, wanted ${error.wanted}` };
  }
}

test.each(vectors.tokens.map(({ in: text, tokens }) => [text.slice(0, 60), text, tokens] as const))(
  "%s is cut into the tokens that Calico's lexer finds",
  (_, text, tokens) => expect(reading(text)).toEqual(reading(spaced(tokens))),
);

test("of the token vectors just those with a list that is no list are no selectors", () => {
  const refused = vectors.tokens.filter(({ in: text }) => "refused" in reading(text));
  expect(refused.map(({ tokens }) => tokens.some(([kind], i) => /in$/.test(kind!) && tokens[i + 1]![0] !== "{")))
    .toEqual(refused.map(() => true));
  expect(refused.length).toBe(3);
});

test.each(vectors.restrictions.map(({ selector }) => selector).filter((selector) => selector !== ""))(
  "all() && in front of %s restricts no less and no more",
  (selector) =>
    expect(restrictionsOf(parseSelector(`all() && (${selector})`))).toEqual(restrictionsOf(parseSelector(selector))),
);

test("selectors with one identity in Calico have one text here, those with different ones have different texts", () => {
  // Calico hashes the canonical text; here the text itself is the identity, so the hash is the text's and nothing more.
  const identities = vectors.canonical.filter((vector): vector is typeof vector & { uid: string } => "uid" in vector);
  expect(identities.length).toBe(5);
  for (const { in: text, uid } of identities) {
    const canonical = formatSelector(parseSelector(text));
    const hash = new Bun.CryptoHasher("sha224").update(`s:${canonical}`).digest("base64url");
    expect(`s:${hash}`).toBe(uid);
  }
});

test("every category of selectors.json has as many cases as are replayed", () => {
  const { match, invalid, canonical, restrictions, tokens, prefixed } = vectors;
  const counts = { match, invalid, canonical, restrictions, tokens, prefixed };
  expect(Object.fromEntries(Object.entries(counts).map(([name, cases]) => [name, cases.length]))).toEqual({
    match: 98,
    invalid: 41,
    canonical: 17,
    restrictions: 32,
    tokens: 32,
    prefixed: 11,
  });
  expect(Object.keys(vectors).filter((name) => !(name in counts))).toEqual(["source", "format"]);
});

test("every category of k8s-conversion.yaml has as many cases as are replayed", () => {
  const { source: _, format: __, ...categories } = conversion as Record<string, readonly unknown[]>;
  expect(Object.fromEntries(Object.entries(categories).map(([name, cases]) => [name, cases.length]))).toEqual({
    policies: 37,
    selectors: 9,
    peers: 3,
    ports: 12,
    // Not replayed on purpose: Calico stores what it converts and so must name it; here nothing that is converted is stored.
    uids: 1,
    profiles: 4,
  });
});
