/**
 * The whole suite: `npm test`. Installs what it needs, checks types, builds the binary, runs every test, and ends with one
 * line that people and programs read: `N passed, N failed, N skipped`.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildBinary } from "./build.ts";
import { ensureDebianPackages } from "./debian.ts";
import { readCounts } from "./test_counts.ts";

const ROOT = join(import.meta.dir, "..");
const PACKAGES = [
  "iproute2",
  "nftables",
  "iptables",
  "ipset",
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
    // Those are for another kernel: scripts/test_vm.ts.
    "--path-ignore-patterns=test/vm/**",
    ...process.argv.slice(2),
  ],
  cwd: ROOT,
  stdout: "inherit",
  stderr: "inherit",
});

const counts = readCounts(report);
rmSync(scratch, { recursive: true, force: true });

// A runner that failed without a failed test (a file that does not load, a crash) is a failure all the same.
const failed = Math.max(counts.failed, run.success ? 0 : 1) + failedSteps;
console.log(`${counts.passed} passed, ${failed} failed, ${counts.skipped} skipped`);
process.exit(failed === 0 && counts.passed > 0 ? 0 : 1);
