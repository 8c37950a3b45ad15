import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { releaseStartPages } from "./footprint.ts";

const residentFileKb = () => Number(/^RssFile:\s+(\d+)/m.exec(readFileSync("/proc/self/status", "utf8"))![1]);

test("pages of the executable leave the resident set, and the program goes on", () => {
  const before = residentFileKb();
  expect(releaseStartPages()).toBeGreaterThan(1_000_000);
  expect(residentFileKb()).toBeLessThan(before);
  expect(JSON.parse(JSON.stringify({ a: [1, "x"] }))).toEqual({ a: [1, "x"] });
});
