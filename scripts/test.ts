/**
 * The whole suite: `npm test`. Installs what it needs, checks types, builds the binary, runs every test, and ends with one
 * line that people and programs read: `N passed, N failed, N skipped`.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildBinary } from "./build.ts";
import { ensureDebianPackages } from "./debian.ts";

const ROOT = join(import.meta.dir, "..");
const PACKAGES = [
  "iproute2",
  "nftables",
  "conntrack",
  "iputils-ping",
  "containernetworking-plugins",
  "procps",
  "util-linux",
];

const missing = ensureDebianPackages(PACKAGES);
if (missing.length > 0) {
  console.error(`these Debian packages are missing, and tests that need them will fail: ${missing.join(" ")}`);
}

let failedSteps = 0;
const step = (title: string, cmd: string[]): void => {
  console.error(`── ${title}`);
  if (!Bun.spawnSync({ cmd, cwd: ROOT, stdout: "inherit", stderr: "inherit" }).success) {
    console.error(`${title}: failed`);
    failedSteps++;
  }
};

step("types", [join(ROOT, "node_modules/.bin/tsc"), "-p", "."]);
console.error("── build");
await buildBinary();

console.error("── tests");
const scratch = mkdtempSync(join(tmpdir(), "manx-test-"));
const report = join(scratch, "junit.xml");
const run = Bun.spawnSync({
  cmd: [
    process.execPath,
    "--no-install",
    "test",
    "--timeout",
    "120000",
    "--reporter=junit",
    `--reporter-outfile=${report}`,
    ...process.argv.slice(2),
  ],
  cwd: ROOT,
  stdout: "inherit",
  stderr: "inherit",
});

const counts = { tests: 0, failures: 0, skipped: 0 };
try {
  const xml = readFileSync(report, "utf8");
  const head = /<testsuites\b[^>]*>/.exec(xml)?.[0] ?? "";
  for (const name of ["tests", "failures", "skipped"] as const) {
    counts[name] = Number(new RegExp(`\\b${name}="(\\d+)"`).exec(head)?.[1] ?? 0);
  }
} catch {
  console.error("the test runner left no report");
}
rmSync(scratch, { recursive: true, force: true });

// A runner that failed without a failed test (a file that does not load, a crash) is a failure all the same.
const failed = Math.max(counts.failures, run.success ? 0 : 1) + failedSteps;
const passed = counts.tests - counts.failures - counts.skipped;
console.log(`${passed} passed, ${failed} failed, ${counts.skipped} skipped`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);
