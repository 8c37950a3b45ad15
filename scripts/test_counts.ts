/** What a run of `bun test` left in its junit report. */
import { readFileSync } from "node:fs";

export interface TestCounts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

/** All zero where there is no report. */
export function readCounts(path: string): TestCounts {
  let head = "";
  try {
    head = /<testsuites\b[^>]*>/.exec(readFileSync(path, "utf8"))?.[0] ?? "";
  } catch {
    console.error("the test runner left no report");
  }
  const count = (name: string) => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(head)?.[1] ?? 0);
  const failed = count("failures"), skipped = count("skipped");
  return { passed: count("tests") - failed - skipped, failed, skipped };
}
