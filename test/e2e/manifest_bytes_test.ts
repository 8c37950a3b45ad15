/**
 * Whatever bytes a manifest is made of: it is read or refused with reasons, in bounded time, never by another error. Texts are good
 * manifests, cut, spliced and sprinkled with what means something to YAML, to selectors or to the readers.
 */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parse, parseAllDocuments } from "yaml";
import { calicoSource } from "../../plugins/policy/calico/mod.ts";
import { kubernetesSource } from "../../plugins/policy/kubernetes/mod.ts";
import { coreSource } from "../../src/host/resources/core_source.ts";
import { kindRegistry } from "../../src/host/resources/kinds.ts";
import { parseManifest } from "../../src/host/resources/manifest.ts";
import { RefusedError } from "../../src/sdk/errors.ts";

const ROUNDS = 3_000;
const SEEDS = [1, 2, 3] as const;
const TEXT_DEADLINE_MS = 5_000;
const TEXT_CHARACTERS_MAX = 20_000;

const registry = kindRegistry([
  { name: "kubernetes", source: kubernetesSource },
  { name: "calico", source: calicoSource },
], coreSource);

const SCENARIOS = ["../../deploy/examples/scenarios", "../lab/scenarios"].map((path) => join(import.meta.dir, path));
const filesIn = (folder: string): readonly string[] =>
  readdirSync(folder).filter((name) => name.endsWith(".yaml")).sort().map((name) => join(folder, name));
/** Manifests of the scenarios and of the recipes. */
const GOOD: readonly string[] = [
  ...SCENARIOS.flatMap(filesIn).flatMap((file) =>
    (parse(readFileSync(file, "utf8")) as { steps: { apply?: string }[] }).steps.flatMap(({ apply }) => apply ?? [])
  ),
  ...(parse(readFileSync(join(import.meta.dir, "../vectors/recipes.yaml"), "utf8")) as {
    recipes: { policies: object[] }[];
  })
    .recipes.map(({ policies }) => policies.map((policy) => JSON.stringify(policy)).join("\n---\n")),
];

const PIECES: readonly string[] = [
  ..."{}[]:,#&*!|>'\"%@`?-\n\t \\".split(""),
  "---\n",
  "...\n",
  "- ",
  "? ",
  ": ",
  "<<: ",
  "*a",
  "&a ",
  "!!binary ",
  "!!set ",
  "!!omap ",
  "!!timestamp 2001-01-01",
  "!!js/function ",
  "|2-\n",
  "%YAML 9.9\n",
  "\0",
  "\ufeff",
  "\u2028",
  "\ud800",
  "é",
  "😀",
  "null",
  "~",
  "true",
  "yes",
  "0x1f",
  "0o17",
  ".inf",
  ".nan",
  "1e400",
  "-0",
  "65536",
  "99999999999999999999",
  "10.0.0.0/33",
  "::/0",
  "all()",
  "!global()",
  "((((",
  "__proto__: ",
  "constructor: ",
  "[".repeat(50),
  "{a: ".repeat(50),
];

/** Linear congruential, so that a seed is a test. */
function chance(seed: number): (bound: number) => number {
  let state = seed >>> 0;
  return (bound) => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0, Math.floor(state / 2 ** 32 * bound));
}

function mutated(next: (bound: number) => number): string {
  let text = GOOD[next(GOOD.length)]!;
  for (let times = 1 + next(6); times > 0; times--) {
    const at = next(text.length + 1), length = next(next(2) === 0 ? 4 : 200);
    const head = text.slice(0, at), tail = text.slice(at);
    switch (next(6)) {
      case 0:
        text = head + PIECES[next(PIECES.length)]! + tail;
        break;
      case 1:
        text = head + tail.slice(length);
        break;
      case 2:
        text = head + tail.slice(0, length) + tail;
        break;
      case 3:
        text = head + String.fromCharCode(next(next(2) === 0 ? 128 : 0x10000)) + tail.slice(1);
        break;
      case 4: {
        const other = GOOD[next(GOOD.length)]!, from = next(other.length);
        text = head + other.slice(from, from + length) + tail;
        break;
      }
      default:
        text = head + PIECES[next(PIECES.length)]!.repeat(1 + next(40)) + tail;
    }
    text = text.slice(0, TEXT_CHARACTERS_MAX);
  }
  return text;
}

test("the texts that are changed are good ones", () => {
  expect(GOOD.length).toBeGreaterThan(25);
  const kinds = new Set(
    GOOD.flatMap((text) => parseAllDocuments(text).map((document) => (document as any).get("kind"))),
  );
  expect(kinds.size).toBeGreaterThan(6);
});

test.each(SEEDS)("any bytes are read or refused with reasons (seed %d)", (seed) => {
  const next = chance(seed);
  const outcomes = { read: 0, refused: 0 };
  for (let round = 0; round < ROUNDS; round++) {
    const text = mutated(next);
    const startMs = performance.now();
    try {
      // What is read can be stored.
      JSON.stringify(parseManifest(text, "m.yaml", registry, true).map(({ resource }) => resource));
      outcomes.read++;
    } catch (error) {
      if (!(error instanceof RefusedError)) {
        throw new Error(`seed ${seed}, round ${round}: ${JSON.stringify(text)}`, { cause: error });
      }
      expect(error.reasons.every((reason) => /^m\.yaml: document \d+, line \d+|^… and \d+ more$/.test(reason)), text)
        .toBe(true);
      outcomes.refused++;
    }
    expect(performance.now() - startMs, text).toBeLessThan(TEXT_DEADLINE_MS);
  }
  expect(Math.min(outcomes.read, outcomes.refused)).toBeGreaterThan(ROUNDS / 50);
});
