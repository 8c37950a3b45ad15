/** What has been found, on disk: one file for each disagreement, replayed by `found_test.ts` for ever. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { type Failure, failureFile } from "./run.ts";
import { type FoundScenario, parseScenario } from "./scenario_file.ts";

const FOLDER = join(import.meta.dir, "found");
const ROOT = join(import.meta.dir, "../..");

export function foundScenarios(): readonly { readonly name: string; readonly scenario: FoundScenario }[] {
  return readdirSync(FOLDER).filter((name) => name.endsWith(".yaml")).sort().map((name) => ({
    name,
    scenario: parseScenario(readFileSync(join(FOLDER, name), "utf8"), name),
  }));
}

/** Keeps the failure's scenario, and says for people what is wrong and how to see it again. */
export function keep(failure: Failure): string {
  const { seed, step, text } = failure;
  const file = failureFile(failure);
  const lines = [`seed ${seed}, step ${step}:`, text, `again: npm run fuzz -- --seed ${seed}`];
  if (file !== undefined) {
    mkdirSync(FOLDER, { recursive: true });
    const path = join(FOLDER, `seed_${seed}.yaml`);
    writeFileSync(path, file);
    lines.push(`kept as ${relative(ROOT, path)}: give it the name of what is wrong`);
  }
  return lines.join("\n");
}
